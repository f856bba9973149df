module LoRASub.Tests.AugmentTests

open Expecto
open FsCheck
open LoRASub
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles
open TorchSharp

let private images (t: torch.Tensor) =
    numbers t |> Array.chunkBySize (int (t.numel () / t.shape[0]))

let private badInputs: BadInput list =
    let key = Rng.ofSeed 1L

    [
        for augmentation in [ Augmentation.None; Augmentation.Flip; Augmentation.CropFlip ] do
            $"{augmentation} to a size of 0",
            [ "image size"; "0" ],
            fun _ -> Augment.apply augmentation Cropping.standard 0 0.0 (pattern 1 4 4) key |> ignore

            $"{augmentation} of three axes",
            [ "[n, c, H, W]" ],
            fun _ ->
                Augment.apply augmentation Cropping.standard 4 0.0 ((pattern 1 4 4).squeeze 0L) key
                |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Augment"
        [
            refusals badInputs

            law
                "crop boxes lie in the image and keep to scale and ratio"
                (fun (seed: int64, PositiveInt h, PositiveInt w) ->
                    // sides of at least 24, where rounding to whole pixels moves area and ratio by little
                    let height, width = 24 + h % 200, 24 + w % 200
                    let area, ratio = float (height * width), float width / float height
                    let fits = Augment.cropBoxes Cropping.standard height width 8 (Rng.ofSeed seed)
                    Expect.hasLength fits 8 "one box per image"

                    for box in fits do
                        Expect.isTrue (box.Top >= 0 && box.Left >= 0) $"{box} starts inside"

                        Expect.isTrue
                            (box.Height >= 1 && box.Top + box.Height <= height)
                            $"{box} fits the height {height}"

                        Expect.isTrue
                            (box.Width >= 1 && box.Left + box.Width <= width)
                            $"{box} fits the width {width}"

                        let share = float (box.Height * box.Width) / area
                        Expect.isTrue (share > 0.06 && share <= 1.0) $"{box} has {share} of the area"
                        let own = float box.Width / float box.Height
                        // half a pixel more or less on the shorter side
                        let slack = 1.0 / float (min box.Height box.Width) + 1e-9

                        Expect.isTrue
                            (own > 0.75 * (1.0 - slack) && own < 4.0 / 3.0 * (1.0 + slack))
                            $"{box} in ratio {ratio}")

            testCase "boxes vary in size and place" (fun () ->
                let boxes = Augment.cropBoxes Cropping.standard 32 32 1000 (Rng.ofSeed 3L)
                let share (b: CropBox) = float (b.Height * b.Width) / 1024.0
                // uniform on 0.08 to 1, a little less because large boxes of a wide ratio do not fit
                Expect.isTrue (abs (Array.averageBy share boxes - 0.5) < 0.06) "mean share of the area"
                Expect.isLessThan (Array.min (Array.map share boxes)) 0.12 "small ones"
                Expect.isGreaterThan (Array.max (Array.map share boxes)) 0.9 "large ones"
                let logRatio (b: CropBox) = log (float b.Width / float b.Height)
                Expect.isLessThan (abs (Array.averageBy logRatio boxes)) 0.03 "wide as often as high"
                let middle (b: CropBox) = float b.Left + float b.Width / 2.0
                Expect.isLessThan (abs (Array.averageBy middle boxes - 16.0)) 0.6 "centred on average")

            testCase "an image too narrow for any box gives the largest centred one" (fun () ->
                let box top left height width =
                    {
                        Top = top
                        Left = left
                        Height = height
                        Width = width
                    }

                let only height width =
                    Augment.cropBoxes Cropping.standard height width 20 (Rng.ofSeed 5L)
                    |> Array.distinct

                Expect.equal (only 1 100) [| box 0 49 1 1 |] "wide"
                Expect.equal (only 300 3) [| box 148 0 4 3 |] "high"
                Expect.equal (only 1 1) [| box 0 0 1 1 |] "one pixel")

            testCase "no augmentation is resampling" (fun () ->
                Scope.run (fun () ->
                    let given = pattern 3 8 8

                    let plain =
                        Augment.apply Augmentation.None Cropping.standard 5 0.0 given (Rng.ofSeed 1L)

                    Check.closeTo 1e-6 "pixels" (numbers (Resample.resize 5 given)) (numbers plain)))

            law "flipping keeps or mirrors each image" (fun (seed: int64) ->
                let given = pattern 4 6 6
                let plain, mirrored = images given, images (given.flip 3L)

                let flipped =
                    images (Augment.apply Augmentation.Flip Cropping.standard 6 0.0 given (Rng.ofSeed seed))

                for i in 0..3 do
                    Expect.isTrue (flipped[i] = plain[i] || flipped[i] = mirrored[i]) $"image {i}")

            testCase "about half of the images are mirrored" (fun () ->
                Scope.run (fun () ->
                    let given = pattern 400 2 2
                    let plain = images given

                    let flipped =
                        images (
                            Augment.apply Augmentation.Flip Cropping.standard 2 0.0 given (Rng.ofSeed 9L)
                        )

                    let kept = Array.map2 (fun a b -> if a = b then 1 else 0) plain flipped |> Array.sum
                    Expect.isTrue (kept > 160 && kept < 240) $"{kept} of 400 are as they were"))

            testCase "cropping is the box of its key in the image, mirrored or not" (fun () ->
                Scope.run (fun () ->
                    let key = Rng.ofSeed 17L
                    let given = pattern 16 12 10
                    let boxes = Augment.cropBoxes Cropping.standard 12 10 16 (Rng.fold 0L key)
                    let plain = images (Resample.crop 6 boxes given)
                    let mirrored = images (Resample.crop 6 boxes (given.flip 3L))

                    let augmented =
                        images (Augment.apply Augmentation.CropFlip Cropping.standard 6 0.0 given key)

                    // two products of the same numbers may differ in their last digits
                    let alike = Array.forall2 (fun (a: float) b -> abs (a - b) < 1e-3)
                    let kept = Array.map2 alike augmented plain
                    let turned = Array.map2 alike augmented mirrored

                    for i in 0..15 do
                        Expect.isTrue (kept[i] || turned[i]) $"image {i}"

                    Expect.isFalse (Array.forall id kept || Array.forall id turned) "some of each"))

            testCase "the same key gives the same images, another key others" (fun () ->
                Scope.run (fun () ->
                    let given = pattern 8 10 10

                    let at seed =
                        numbers (
                            Augment.apply
                                Augmentation.CropFlip
                                Cropping.standard
                                8
                                0.0
                                given
                                (Rng.ofSeed seed)
                        )

                    Expect.equal (at 1L) (at 1L) "same key"
                    Expect.notEqual (at 1L) (at 2L) "other key"))

            testCase "nothing is left behind" (fun () ->
                leavesNothing (fun () ->
                    use given = pattern 2 6 6

                    for augmentation in [ Augmentation.None; Augmentation.Flip; Augmentation.CropFlip ] do
                        for size in [ 4; 6 ] do
                            use made =
                                Augment.apply augmentation Cropping.standard size 0.0 given (Rng.ofSeed 1L)

                            Expect.equal made.shape [| 2L; 1L; int64 size; int64 size |] "shape"))
        ]
