module LoRASub.Tests.ImageFolderTests

open System
open System.IO
open System.Text
open Expecto
open FsCheck
open LoRASub
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private dot = plainPicture 2 3 10 20 30

/// Empty files suffice where nothing is decoded.
let private touch (folder: string) (names: string list) =
    for name in names do
        let path = Path.Combine(folder, name)
        Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore
        File.WriteAllBytes(path, [||])

let private scan folder =
    ImageFolder.scan "folder" ReadOptions.standard folder

let private names (folder: string) (files: LabelledFile[]) =
    files
    |> Array.map (fun f -> Path.GetRelativePath(folder, f.Path).Replace('\\', '/'), f.Label)

let private badInputs: BadInput list =
    let with' files words : string list * (string -> unit) =
        words,
        fun folder ->
            touch folder files
            scan folder |> ignore

    let row name files words : BadInput =
        let words, call = with' files words
        name, words, call

    [
        row "no class folder" [ "a.jpg" ] [ "one folder of images for each class"; "no folder" ]
        row "an empty class" [ "cat/1.jpg"; "dog/readme.txt" ] [ "dog"; "at least one image"; "none" ]
        row
            "classes that differ by case"
            [ "Cat/1.jpg"; "cat/1.jpg"; "dog/1.jpg" ]
            [ "'Cat' and 'cat'"; "differ by case alone"; "rename or merge" ]
        row
            "classes that differ by Unicode normalisation"
            [ "caf\u00E9/1.jpg"; "cafe\u0301/1.jpg" ]
            [ "differ by Unicode normalisation alone" ]
        row
            "a test class without training images"
            [ "train/a/1.jpg"; "train/b/1.jpg"; "test/a/1.jpg"; "test/c/1.jpg" ]
            [ "test"; "must have training images"; "'c'" ]
        row "train without test" [ "train/a/1.jpg"; "train/b/1.jpg" ] [ "test/ or val/"; "train/ alone" ]
        "a missing folder",
        [ "nowhere"; "no such folder" ],
        fun folder -> scan (Path.Combine(folder, "nowhere")) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "ImageFolder"
        [
            refusals badInputs

            testCase "train and test folders, in ordinal order, hidden and other files aside" (fun () ->
                inFolder (fun folder ->
                    touch
                        folder
                        [
                            "train/zebra/2.JPG"
                            "train/zebra/10.png"
                            "train/Ant/deep/er/x.webp"
                            "train/Ant/.hidden.jpg"
                            "train/Ant/notes.txt"
                            "train/.cache/y.jpg"
                            "train/bee/1.Bmp"
                            "test/zebra/1.jpeg"
                            "test/bee/1.jpg"
                            "val/bee/1.jpg"
                        ]

                    let found = scan folder
                    Expect.equal found.ClassNames [| "Ant"; "bee"; "zebra" |] "classes"
                    Expect.equal found.Answers [| 0; 1; 2 |] "answers"

                    Expect.equal
                        (names folder found.Train)
                        [|
                            "train/Ant/deep/er/x.webp", 0
                            "train/bee/1.Bmp", 1
                            "train/zebra/10.png", 2
                            "train/zebra/2.JPG", 2
                        |]
                        "training"

                    Expect.equal
                        (names folder found.Test)
                        [| "test/bee/1.jpg", 1; "test/zebra/1.jpeg", 2 |]
                        "test"))

            testCase "val stands in where there is no test" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/a/1.jpg"; "train/b/1.jpg"; "val/a/2.jpg" ]
                    Expect.equal (names folder (scan folder).Test) [| "val/a/2.jpg", 0 |] "test"))

            testCase "a class may be called train" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/1.jpg"; "train/2.jpg"; "truck/1.jpg"; "truck/2.jpg" ]
                    Expect.equal (scan folder).ClassNames [| "train"; "truck" |] "classes"))

            testCase "one folder is split class by class, by names and seed" (fun () ->
                inFolder (fun folder ->
                    let files = [ for c in [ "a"; "b" ] -> [ for i in 10..29 -> $"{c}/{i}.jpg" ] ]
                    touch folder ("one/1.jpg" :: "two/1.jpg" :: "two/2.jpg" :: List.concat files)
                    let first = scan folder

                    let count label files =
                        files |> Array.filter (fun (f: LabelledFile) -> f.Label = label) |> Array.length

                    Expect.equal [ for c in 0..3 -> count c first.Train ] [ 16; 16; 1; 1 ] "80% train"

                    Expect.equal
                        [ for c in 0..3 -> count c first.Test ]
                        [ 4; 4; 0; 1 ]
                        "the rest is the test"

                    let all = Array.append (names folder first.Train) (names folder first.Test)
                    Expect.equal (Array.distinct all).Length 43 "each image once"
                    Expect.equal (names folder (scan folder).Train) (names folder first.Train) "again"

                    // what these names and this seed give on every system
                    Expect.equal
                        (first.Test |> names folder |> Array.map fst |> Array.filter _.StartsWith("a/"))
                        [| "a/16.jpg"; "a/18.jpg"; "a/22.jpg"; "a/28.jpg" |]
                        "the drawn ones"

                    let other =
                        ImageFolder.scan
                            "folder"
                            { ReadOptions.standard with
                                SplitSeed = 7L
                            }
                            folder

                    Expect.notEqual (names folder other.Test) (names folder first.Test) "another seed"

                    let half =
                        ImageFolder.scan
                            "folder"
                            { ReadOptions.standard with
                                SplitRatio = 0.5
                            }
                            folder

                    Expect.equal (count 0 half.Train) 10 "another ratio"))

            testCase "another class changes no split" (fun () ->
                inFolder (fun folder ->
                    let files = [ for i in 1..10 -> $"b/{i}.jpg" ]
                    touch folder ("c/1.jpg" :: files)
                    let before = names folder (scan folder).Test |> Array.map fst
                    touch folder [ "a/1.jpg"; "a/2.jpg" ]
                    let after = names folder (scan folder).Test |> Array.map fst

                    Expect.equal
                        (after |> Array.filter _.StartsWith("b/"))
                        (before |> Array.filter _.StartsWith("b/"))
                        "b"))

            testCase
                "the archive's folder may be given from outside, and its README names the classes"
                (fun () ->
                    inFolder (fun folder ->
                        touch
                            folder
                            [
                                "imagenet-r/n01443537/art_0.jpg"
                                "imagenet-r/n01443537/art_1.jpg"
                                "imagenet-r/n02012849/toy_0.jpg"
                                "imagenet-r/n02012849/toy_1.jpg"
                                "imagenet-r/n03126707/toy_1.jpg"
                                "imagenet-r/n09999999/toy_1.jpg"
                            ]

                        File.WriteAllText(
                            Path.Combine(folder, "imagenet-r", "README.txt"),
                            "ImageNet-R\n\nn01443537 goldfish\nn02012849 crane\nn03126707 crane\n"
                        )

                        for given in [ folder; Path.Combine(folder, "imagenet-r") ] do
                            let found = ImageFolder.scan "imagenet-r" ReadOptions.standard given

                            Expect.equal
                                found.ClassNames
                                [| "goldfish"; "crane (n02012849)"; "crane (n03126707)"; "n09999999" |]
                                "names, told apart where they are the same"))

            testCase "no file is moved or changed" (fun () ->
                inFolder (fun folder ->
                    for c in [ "a"; "b" ] do
                        for i in 1..4 do
                            writePicture (Path.Combine(folder, c, $"{i}.png")) dot

                    let state () =
                        Directory.GetFiles(folder, "*", SearchOption.AllDirectories)
                        |> Array.sort
                        |> Array.map (fun path -> path, File.ReadAllBytes path)

                    let before = state ()
                    let data = Datasets.load "folder" folder
                    data.Train.Decode.Value 0 |> ignore
                    Expect.equal (state ()) before "files"))

            testCase "all images of a folder, without a split" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "b/1.jpg"; "a/2.jpg"; "a/1.jpg" ]
                    let struct (classNames, files) = ImageFolder.all folder
                    Expect.equal classNames [| "a"; "b" |] "classes"
                    Expect.equal (names folder files) [| "a/1.jpg", 0; "a/2.jpg", 0; "b/1.jpg", 1 |] "files"))

            testCase "links that lead back are not followed, others are" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "data/a/1.jpg"; "data/b/1.jpg"; "elsewhere/2.jpg" ]
                    let at name = Path.Combine(folder, name)

                    for i in 1..8 do
                        Directory.CreateSymbolicLink(at $"data/a/up{i}", "..") |> ignore
                        Directory.CreateSymbolicLink(at $"data/b/self{i}", ".") |> ignore

                    Directory.CreateSymbolicLink(at "data/b/more", at "elsewhere") |> ignore
                    let struct (_, files) = ImageFolder.all (at "data")

                    Expect.equal
                        (names (at "data") files)
                        [| "a/1.jpg", 0; "b/1.jpg", 1; "b/more/2.jpg", 1 |]
                        "files"))

            testCase "a run that was saved among the classes is no class" (fun () ->
                inFolder (fun folder ->
                    touch
                        folder
                        [
                            "cat/1.jpg"
                            "cat/2.jpg"
                            "dog/1.jpg"
                            "dog/2.jpg"
                            "run/settings.json"
                            "run/.lock"
                            "run/figures/1.png"
                        ]

                    Expect.equal (scan folder).ClassNames [| "cat"; "dog" |] "classes"))
        ]
