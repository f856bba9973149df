module LoRASub.Tests.AugmentTests

open LoRASub.Core
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles
open TorchSharp

let private all = [ Augmentation.None; Augmentation.Flip; Augmentation.CropFlip ]

/// What an augmentation makes of n copies of a picture.
let private augmented augmentation size n key (picture: Picture) : Picture[] =
    let change = Augment.pictures augmentation Cropping.standard size n key
    Array.init n (fun i -> change i picture)

/// The boxes of n images of one size.
let private cropBoxes height width n key : CropBox[] =
    let box = Augment.boxes Cropping.standard n key
    Array.init n (fun i -> box i height width)

let private badInputs: BadInput list =
    [
        for augmentation in all do
            $"{augmentation} to a size of 0",
            [ "image size"; "0" ],
            fun _ ->
                augmented augmentation 0 1 (Rng.ofSeed 1L) (PillowFixtures.pattern 4 4)
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
                    let fits = cropBoxes height width 8 (Rng.ofSeed seed)
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
                let boxes = cropBoxes 32 32 1000 (Rng.ofSeed 3L)
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
                    cropBoxes height width 20 (Rng.ofSeed 5L) |> Array.distinct

                Expect.equal (only 1 100) [| box 0 49 1 1 |] "wide"
                Expect.equal (only 300 3) [| box 148 0 4 3 |] "high"
                Expect.equal (only 1 1) [| box 0 0 1 1 |] "one pixel")

            law
                "without augmentation an image is cut as at test time"
                (fun (PositiveInt h, PositiveInt w, seed: int64) ->
                    let picture = PillowFixtures.pattern (1 + h % 12) (1 + w % 12)
                    let made = augmented Augmentation.None 5 1 (Rng.ofSeed seed) picture
                    Expect.equal made[0].Pixels (Picture.centre 5 5 picture).Pixels "pixels")

            law "flipping mirrors each image that its key's number decides" (fun (seed: int64) ->
                let key = Rng.ofSeed seed
                let picture = PillowFixtures.pattern 6 7
                let plain = Picture.centre 4 4 picture
                let mirrored = Picture.flip plain

                let numbers =
                    numbers (
                        Rng.uniform 0.0 1.0 [| 9L |] torch.ScalarType.Float32 torch.CPU (Rng.fold 1L key)
                    )

                for number, made in Array.zip numbers (augmented Augmentation.Flip 4 9 key picture) do
                    let expected = if number < 0.5 then mirrored else plain
                    Expect.equal made.Pixels expected.Pixels "pixels")

            testCase "about half of the images are mirrored" (fun () ->
                let picture = PillowFixtures.pattern 2 2

                let kept =
                    augmented Augmentation.Flip 2 400 (Rng.ofSeed 9L) picture
                    |> Array.filter (fun made -> made.Pixels = picture.Pixels)

                Expect.isTrue
                    (kept.Length > 160 && kept.Length < 240)
                    $"{kept.Length} of 400 are as they were")

            law "cropping is the box of its key, in the image or in its mirror image" (fun (seed: int64) ->
                let key = Rng.ofSeed seed
                let picture = PillowFixtures.pattern 12 10
                let boxes = cropBoxes 12 10 16 (Rng.fold 0L key)

                for box, made in Array.zip boxes (augmented Augmentation.CropFlip 6 16 key picture) do
                    let mirrored =
                        { box with
                            Left = picture.Width - box.Left - box.Width
                        }

                    let plain = (Picture.crop box 6 6 picture).Pixels
                    let turned = (Picture.flip (Picture.crop mirrored 6 6 picture)).Pixels
                    Expect.contains [ plain; turned ] made.Pixels "pixels")

            testCase "what the test transform made is as it without the resize makes it" (fun () ->
                let picture = PillowFixtures.pattern 30 20

                let resized =
                    { Cropping.standard with
                        TestResize = Some 9
                    }

                let made = Augment.centred resized 8 picture
                Expect.equal (made.Height, made.Width) (8, 8) "size"

                Expect.notEqual
                    made.Pixels
                    (Augment.centred Cropping.standard 8 picture).Pixels
                    "the resize counts"

                Expect.equal (Augment.centred Cropping.standard 8 made).Pixels made.Pixels "pixels")

            testCase "the same key gives the same images, another key others" (fun () ->
                let at seed =
                    augmented Augmentation.CropFlip 8 8 (Rng.ofSeed seed) (PillowFixtures.pattern 10 10)
                    |> Array.map _.Pixels

                Expect.equal (at 1L) (at 1L) "same key"
                Expect.notEqual (at 1L) (at 2L) "other key"
                Expect.isGreaterThan (Array.distinct (at 1L)).Length 6 "each image by its own numbers")

            testCase "no tensor is left behind" (fun () ->
                leavesNothing (fun () ->
                    for augmentation in all do
                        augmented augmentation 4 2 (Rng.ofSeed 1L) (PillowFixtures.pattern 6 6)
                        |> ignore))
        ]
