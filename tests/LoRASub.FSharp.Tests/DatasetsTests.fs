module LoRASub.Tests.DatasetsTests

open System.IO
open Expecto
open FsCheck
open LoRASub
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private badInputs: BadInput list =
    let unknown name nearest : BadInput =
        $"the name \"{name}\"",
        [ "fashion-mnist, mnist, cifar10, cifar100"; $"did you mean {nearest}?" ],
        fun folder -> Datasets.load name folder |> ignore

    [
        unknown "cifar-100" "cifar100"
        unknown "fashion_mnist" "fashion-mnist"
        unknown "MNIST" "mnist"
        unknown "" "mnist"
        for name in Datasets.names do
            $"{name} in a missing folder",
            [ "nowhere"; name; "no such folder" ],
            fun folder -> Datasets.load name (Path.Combine(folder, "nowhere")) |> ignore

            $"{name} in an empty folder", [ name; "no such file" ], Datasets.load name >> ignore
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
                    use image = dataset.Train.Read [| 0 |]

                    Expect.equal
                        (image.shape, Array.sumBy int (bytes image))
                        ([| 1L; 1L; 28L; 28L |], 76247)
                        "pixels"))

            testCase "a known name is nearest to itself, and one letter off still near" (fun () ->
                for name in Datasets.names do
                    Expect.equal (Errors.nearest Datasets.names name) name "itself"
                    Expect.equal (Errors.nearest Datasets.names (name + "x")) name "one more"
                    Expect.equal (Errors.nearest Datasets.names (name.Substring 1)) name "one less")

            law
                "the nearest name is the one that the slow distance prefers"
                (fun (NonNull(name: string), NonEmptyArray(known: NonNull<string>[])) ->
                    let rec distance (a: char list) (b: char list) =
                        match a, b with
                        | [], rest
                        | rest, [] -> rest.Length
                        | x :: a', y :: b' when x = y -> distance a' b'
                        | _ :: a', _ :: b' -> 1 + List.min [ distance a' b; distance a b'; distance a' b' ]

                    let cut (text: string) = text.Substring(0, min 5 text.Length)
                    let name, known = cut name, known |> Array.map (fun k -> cut k.Get)

                    let expected =
                        known |> Array.minBy (fun k -> distance (List.ofSeq name) (List.ofSeq k))

                    Expect.equal (Errors.nearest known name) expected "name")
        ]
