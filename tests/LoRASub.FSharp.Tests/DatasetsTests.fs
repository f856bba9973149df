module LoRASub.Tests.DatasetsTests

open System.IO
open LoRASub.Core
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private badInputs: BadInput list =
    let unknown name nearest : BadInput =
        $"the name \"{name}\"",
        [
            "fashion-mnist, mnist, cifar10, cifar100, imagenet-r"
            $"did you mean {nearest}?"
        ],
        fun folder -> Datasets.load name folder |> ignore

    [
        unknown "cifar-100" "cifar100"
        unknown "fashion_mnist" "fashion-mnist"
        unknown "MNIST" "mnist"
        for name in Datasets.names do
            $"{name} in a missing folder",
            [ "nowhere"; name; "no such folder" ],
            fun folder -> Datasets.load name (Path.Combine(folder, "nowhere")) |> ignore

            $"{name} in an empty folder",
            [ name.Replace("-domains", ""); "found no " ],
            Datasets.load name >> ignore

            $"{name} in a file",
            [ "a.txt"; name; "a file; give the folder with" ],
            fun folder ->
                write folder "a.txt" [||]
                Datasets.load name (Path.Combine(folder, "a.txt")) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Datasets"
        [
            refusals badInputs

            testCase "the bundled part of Fashion-MNIST loads, 300 and 100 images a class" (fun () ->
                leavesNothing (fun () ->
                    let folder =
                        Path.Combine(System.AppContext.BaseDirectory, "assets", "fashion-mnist")

                    let dataset = Datasets.load "fashion-mnist" folder

                    let counts (set: ImageSet) =
                        set.Labels |> Array.countBy id |> Array.sort

                    Expect.equal (counts dataset.Train) (Array.init 10 (fun c -> c, 300)) "training"
                    Expect.equal (counts dataset.Test) (Array.init 10 (fun c -> c, 100)) "test"
                    Expect.equal dataset.ClassNames[9] "Ankle boot" "names"
                    // the first image of the full set is an ankle boot, too
                    Expect.equal dataset.Train.Labels[0] 9 "original order"
                    let image = dataset.Train.Read 0

                    Expect.equal
                        (image.Height, image.Width, Array.sumBy int (planes 1 image))
                        (28, 28, 76247)
                        "pixels"))

            testCase "a known name is nearest to itself, and one letter off still near" (fun () ->
                for name in Datasets.names do
                    Expect.equal (Errors.nearest Datasets.names name) (Some name) "itself"
                    Expect.equal (Errors.nearest Datasets.names (name + "x")) (Some name) "one more"
                    Expect.equal (Errors.nearest Datasets.names (name.Substring 1)) (Some name) "one less")

            for layout in Layouts.all do
                let how = if layout.IsSplit then "split" else "not split"

                testCase
                    $"{layout.Name} as published, {how}: counts, classes, batches, and what check tells"
                    (fun () ->
                        inFolder (fun folder ->
                            layout.Write folder
                            let data = Datasets.load layout.Name folder
                            Expect.equal data.Name layout.Name "name"
                            Expect.equal data.ClassNames layout.ClassNames "classes"

                            Expect.equal
                                (data.Train.Labels.Length, data.Test.Labels.Length)
                                (layout.Train, layout.Test)
                                "counts"

                            Expect.equal
                                data.Notes
                                [|
                                    if Directory.Exists(Path.Combine(folder, "val", "n01443537")) then
                                        "training images are read from train/, test images from val/"
                                |]
                                "notes"

                            // every image has its class's red and its split's green
                            for set, green in [ data.Train, 200; data.Test, 100 ] do
                                for i, label in Array.indexed set.Labels do
                                    let picture = set.Read i

                                    let middle =
                                        3 * (picture.Height / 2 * picture.Width + picture.Width / 2)

                                    let red = 40 * (data.Answers[label] + 1)

                                    Expect.isLessThan
                                        (abs (int picture.Pixels[middle] - red)
                                         + (if layout.IsSplit then
                                                abs (int picture.Pixels[middle + 1] - green)
                                            else
                                                0))
                                        9
                                        $"{data.ClassNames[label]}, image {i}"

                            let report = Datasets.check layout.Name folder
                            Expect.isEmpty report.Problems "problems"
                            Expect.isEmpty report.Broken "broken"
                            Expect.equal report.Notes data.Notes "the notes of a run"

                            Expect.equal
                                (report.ClassNames,
                                 report.TrainingImages,
                                 report.TestImages,
                                 report.Dataset.Name)
                                (layout.ClassNames, layout.Train, layout.Test, layout.Name)
                                "report"))

            testCase "check tells of broken and of missing files without stopping at the first" (fun () ->
                inFolder (fun folder ->
                    let layout = Layouts.all |> List.find (fun layout -> layout.Name = "imagenet-r")
                    layout.Write folder

                    let images =
                        Directory.GetFiles(folder, "*.jpg", SearchOption.AllDirectories) |> Array.sort

                    File.WriteAllBytes(images[3], [||])

                    File.WriteAllBytes(
                        images[1],
                        (let bytes = File.ReadAllBytes images[1] in bytes[.. bytes.Length / 2])
                    )

                    let report = Datasets.check "imagenet-r" folder

                    Expect.equal
                        (report.Broken |> Array.map _.Path |> Array.sort)
                        [| images[1]; images[3] |]
                        "broken"

                    Expect.equal
                        report.Problems
                        [| $"2 of {images.Length} image files cannot be decoded" |]
                        "problem"

                    Expect.isNonEmpty report.ClassNames "the rest is told"
                    Directory.CreateDirectory(Path.Combine(folder, "n09999999")) |> ignore
                    let both = Datasets.check "imagenet-r" folder
                    Expect.equal both.Broken.Length 2 "an empty class hides no broken file"
                    Expect.hasLength both.Problems 2 "both are problems"
                    Expect.stringContains both.Problems[0] "n09999999" "the empty class"

                    Directory.Delete(folder, true)
                    Directory.CreateDirectory folder |> ignore
                    let empty = Datasets.check "imagenet-r" folder

                    Expect.stringContains
                        empty.Problems[0]
                        "one folder of images for each class"
                        "empty folder"

                    let nowhere = Datasets.check "cub200" (Path.Combine(folder, "nowhere"))
                    Expect.stringContains nowhere.Problems[0] "no such folder" "no folder"

                    Check.refused [ "did you mean cub200" ] (fun () ->
                        Datasets.check "cub20" folder |> ignore)))

            testCase "an absent file of a list hides no broken one" (fun () ->
                inFolder (fun folder ->
                    Layouts.domainNet folder

                    let at name =
                        Path.Combine(folder, "sketch", "airplane", name)

                    File.Delete(at "sketch_train_1.jpg")
                    File.WriteAllText(at "sketch_train_2.jpg", "no image")
                    let report = Datasets.check "domainnet" folder
                    Expect.equal (Array.exactlyOne report.Broken).Path (at "sketch_train_2.jpg") "broken"
                    Expect.hasLength report.Problems 2 "both"

                    Check.refused [ "1 of 9 absent" ] (fun () -> Datasets.load "domainnet" folder |> ignore)))

            testCase "a missing list: where it is, what must be unpacked, or what reads the folder" (fun () ->
                let advice name prepare words =
                    inFolder (fun folder ->
                        prepare folder
                        Check.refused words (fun () -> Datasets.load name folder |> ignore))

                advice
                    "mnist"
                    (fun folder ->
                        let raw = Path.Combine(folder, "MNIST", "raw")
                        Directory.CreateDirectory raw |> ignore
                        write raw "train-images-idx3-ubyte.gz" [||])
                    [ "no such file"; "MNIST/raw, which holds it" ]

                advice
                    "fashion-mnist"
                    (fun folder -> write folder "archive.zip" [||])
                    [ "unpack archive.zip" ]

                advice
                    "cub200"
                    (fun folder ->
                        for split in [ "train"; "test" ] do
                            Layouts.image folder $"{split}/001.Auk/1.jpg" 0 true)
                    [ "classes.txt"; "train/ and test/"; "--data folder" ]

                inFolder (fun folder ->
                    let below = Path.Combine(folder, "images")
                    Directory.CreateDirectory below |> ignore
                    write folder "wnids.txt" [||]

                    Check.refused [ "wnids.txt"; $"give {folder}, which holds it" ] (fun () ->
                        Datasets.load "tiny-imagenet" below |> ignore)))

            testCase "check counts the images of sets that are not files" (fun () ->
                let folder =
                    Path.Combine(System.AppContext.BaseDirectory, "assets", "fashion-mnist")

                let report = Datasets.check "fashion-mnist" folder
                Expect.equal (report.TrainingImages, report.TestImages) (3000, 1000) "counts"
                Expect.isEmpty report.Problems "problems")

            law
                "a name that is suggested is the one that the slow distance prefers"
                (fun (NonNull(name: string), NonEmptyArray(known: NonNull<string>[])) ->
                    let rec distance (a: char list) (b: char list) =
                        match a, b with
                        | [], rest
                        | rest, [] -> rest.Length
                        | x :: a', y :: b' ->
                            let swapped =
                                match a', b' with
                                | x2 :: a2, y2 :: b2 when x = y2 && x2 = y -> [ 1 + distance a2 b2 ]
                                | _ -> []

                            let change = if x = y then 0 else 1

                            List.min (
                                change + distance a' b' :: 1 + distance a' b :: 1 + distance a b' :: swapped
                            )

                    let cut (text: string) =
                        text.Substring(0, min 5 text.Length).ToLowerInvariant()

                    let name, known = cut name, known |> Array.map (fun k -> cut k.Get)

                    let expected =
                        known |> Array.minBy (fun k -> distance (List.ofSeq name) (List.ofSeq k))

                    match Errors.nearest known name with
                    | Some near -> Expect.equal near expected "name"
                    | None ->
                        Expect.isGreaterThan
                            (3 * distance (List.ofSeq name) (List.ofSeq expected))
                            (max name.Length expected.Length)
                            "far")
        ]
