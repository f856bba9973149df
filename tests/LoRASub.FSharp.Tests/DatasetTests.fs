module LoRASub.Tests.DatasetTests

open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private images n =
    ImageSet.ofBytes "memory" (Array.zeroCreate n) 3 2 2 (countedPixels n 12)

let private dataset train test : Dataset =
    let set name labels : ImageSet =
        {
            Source = name
            Labels = labels
            Read = fun _ -> failwith "not read"
        }

    Dataset.create "toy" [| "a"; "b" |] (set "train.bin" train) (set "test.bin" test)

let private badInputs: BadInput list =
    let validate train test _ =
        Dataset.validate (dataset train test) |> ignore

    [
        "a label above the classes",
        [ "train.bin"; "0 to 1"; "2 at position 1" ],
        validate [| 0; 2; 3 |] [| 0 |]
        "a negative label", [ "test.bin"; "0 to 1"; "-1 at position 0" ], validate [| 0 |] [| -1 |]
        "no training image", [ "train.bin"; "training image"; "none" ], validate [||] [| 0 |]
        "no test image", [ "test.bin"; "test image"; "none" ], validate [| 0 |] [||]
        "no class",
        [ "toy"; "at least one class" ],
        fun _ ->
            Dataset.validate
                { dataset [||] [||] with
                    ClassNames = [||]
                }
            |> ignore
        "bytes for fewer images",
        [ "memory"; "3 images of 1 x 2 x 2 need 12"; "11" ],
        fun _ -> ImageSet.ofBytes "memory" [| 0; 0; 0 |] 1 2 2 (Array.zeroCreate 11) |> ignore
        "two channels",
        [ "memory"; "1 (grey) or 3 (RGB)"; "2" ],
        fun _ -> ImageSet.ofBytes "memory" [| 0 |] 2 2 2 (Array.zeroCreate 8) |> ignore
        "images without rows",
        [ "memory"; "at least 1"; "0 x 2" ],
        fun _ -> ImageSet.ofBytes "memory" [| 0 |] 3 0 2 [||] |> ignore
        "a position after the end", [ "memory"; "0 to 4"; "5" ], fun _ -> (images 5).Read 5 |> ignore
        "a negative position", [ "memory"; "0 to 4"; "-1" ], fun _ -> (images 5).Read -1 |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Dataset"
        [
            refusals badInputs

            testCase "a good data set is returned as it is" (fun () ->
                let good = dataset [| 0; 1 |] [| 1 |]
                Expect.isTrue (obj.ReferenceEquals(Dataset.validate good, good)) "the same value"
                Expect.equal (Dataset.classes good) 2 "classes")

            law
                "reading gives the planes of an image back, and selecting keeps the order"
                (fun (positions: NonNegativeInt[], seed: int) ->
                    let positions = positions |> Array.map (fun p -> p.Get % 7)
                    let pixels = Array.zeroCreate<byte>(7 * 3 * 2 * 4)
                    System.Random(seed).NextBytes pixels
                    let each = Array.chunkBySize 24 pixels
                    let rgb = ImageSet.ofBytes "rgb" (Array.zeroCreate 7) 3 2 4 pixels
                    let grey = ImageSet.ofBytes "grey" (Array.zeroCreate 7) 1 6 4 pixels

                    for channels, set in [ 3, rgb; 1, grey ] do
                        Expect.equal
                            (planesAt
                                channels
                                (ImageSet.select positions set)
                                [| 0 .. positions.Length - 1 |])
                            (positions |> Array.collect (fun p -> each[p]))
                            $"{channels} channels")

            testCase "images are read on several threads at once" (fun () ->
                let set = images 64

                let firsts = Array.Parallel.init 200 (fun i -> int (set.Read(i % 64)).Pixels[0])

                Expect.equal firsts (Array.init 200 (fun i -> i % 64)) "each thread its image")
        ]
