module LoRASub.Tests.DatasetTests

open Expecto
open FsCheck
open LoRASub
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
            Decode = None
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
        "a position after the end", [ "memory"; "0 to 4"; "5" ], fun _ -> (images 5).Read [| 0; 5 |] |> ignore
        "a negative position", [ "memory"; "0 to 4"; "-1" ], fun _ -> (images 5).Read [| -1 |] |> ignore
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

            law "reading gathers the images asked for, in their order" (fun (positions: NonNegativeInt[]) ->
                let positions = positions |> Array.map (fun p -> p.Get % 7)
                let read = (images 7).Read positions
                Expect.equal read.dtype TorchSharp.torch.ScalarType.Byte "bytes"
                Expect.equal read.shape [| positions.LongLength; 3L; 2L; 2L |] "shape"
                let expected = positions |> Array.collect (fun p -> Array.create 12 (byte p))
                Expect.equal (if positions.Length = 0 then [||] else bytes read) expected "rows")

            testCase "a set holds no tensor, and a batch is the caller's" (fun () ->
                leavesNothing (fun () ->
                    use batch = (images 5).Read [| 4; 0 |]
                    Expect.equal batch.shape[0] 2L "two images"))

            testCase "batches are read on several threads at once" (fun () ->
                let set = images 64

                let firsts =
                    Array.Parallel.init 200 (fun i ->
                        use batch = set.Read [| i % 64 |]
                        int (Array.head (bytes batch)))

                Expect.equal firsts (Array.init 200 (fun i -> i % 64)) "each thread its image")
        ]
