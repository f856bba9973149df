module LoRASub.Tests.DatasetTests

open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
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
        "a class without a name",
        [ "toy"; "not blank" ],
        fun _ ->
            Dataset.validate
                { dataset [| 0 |] [| 0 |] with
                    ClassNames = [| "a"; " " |]
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

/// Training images that hold their own position.
type Held =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 4)>]
        Classes: int
        /// More of later classes.
        [<Between(2, 9)>]
        Least: int
        [<Between(1, 99)>]
        Percent: int
    }

    member c.Share = float c.Percent / 100.0

    member c.Labels =
        let labels =
            [|
                for label in 0 .. c.Classes - 1 do
                    yield! Array.create (c.Least + 2 * label) label
            |]

        order c.Seed labels.Length |> Array.map (fun i -> labels[i])

    member c.Whole: Dataset =
        let labels = c.Labels

        let train =
            ImageSet.ofBytes "positions" labels 1 1 1 (Array.init labels.Length byte)

        let test: ImageSet =
            {
                Source = "test images"
                Labels = [| 0 |]
                Read = fun _ -> failwith "a test image was read"
            }

        Dataset.create "toy" (Array.init c.Classes string) train test

let private positions (set: ImageSet) =
    Array.init set.Labels.Length (fun i -> int (set.Read i).Pixels[0])

[<Tests>]
let tests =
    testList
        "Dataset"
        [
            property "Dataset" "held-out images are a share of each class's training images" (fun (c: Held) ->
                let labels = c.Labels
                let held = Dataset.holdOut c.Share (int64 c.Seed) c.Whole
                let train, test = positions held.Train, positions held.Test

                Expect.equal
                    (Array.sort (Array.append train test))
                    [| 0 .. labels.Length - 1 |]
                    "each image once"

                for set, positions in [ held.Train, train; held.Test, test ] do
                    Expect.equal set.Labels (positions |> Array.map (fun i -> labels[i])) "labels"
                    Expect.equal positions (Array.sort positions) "order"

                for label in 0 .. c.Classes - 1 do
                    let all = c.Least + 2 * label
                    let wanted = float all * c.Share
                    let count = test |> Array.filter (fun i -> labels[i] = label) |> Array.length
                    Expect.isTrue (count >= 1 && count < all) $"{count} of {all}"

                    if wanted >= 1.0 && wanted <= float (all - 1) then
                        Expect.isLessThanOrEqual (abs (float count - wanted)) 0.5 $"{count} of {all}"

                let again = Dataset.holdOut c.Share (int64 c.Seed) c.Whole
                Expect.equal (positions again.Test) test "the same again")

            testCase "which images are held out depends on the seed" (fun () ->
                let c =
                    {
                        Seed = 1
                        Classes = 2
                        Least = 40
                        Percent = 50
                    }

                let held seed =
                    positions (Dataset.holdOut c.Share seed c.Whole).Test

                Expect.notEqual (held 1L) (held 2L) "another seed")

            for share in [ 0.0; 1.0; -0.5; 1.5; nan ] do
                rejects
                    $"a share of {share} to hold out"
                    [ "share"; "between 0 and 1"; $"found {share}" ]
                    (fun () -> Dataset.holdOut share 1L (dataset [| 0; 0; 1; 1 |] [| 0 |]) |> ignore)

            rejects "a class of one image to hold out" [ "class 'b'"; "two training images"; "1" ] (fun () ->
                Dataset.holdOut 0.5 1L (dataset [| 0; 0; 1 |] [| 0 |]) |> ignore)

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
