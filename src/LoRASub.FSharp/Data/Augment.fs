namespace LoRASub.Data

open System
open LoRASub.Core
open TorchSharp

/// Random changes of training images.
[<RequireQualifiedAccess>]
type Augmentation =
    /// The middle of the image, as at test time.
    | None
    /// `None`, mirrored with probability 1/2.
    | Flip
    /// torchvision's RandomResizedCrop, mirrored with probability 1/2.
    | CropFlip

/// Which part of an image the network sees.
type Cropping =
    {
        /// Smallest and largest share of the image's area in a random crop.
        Scale: struct (float * float)
        /// Smallest and largest width / height of a random crop.
        Ratio: struct (float * float)
        /// Pixels of the shorter side before the middle is cut out at test time; None: the network's size.
        TestResize: int option
    }

/// Croppings.
[<RequireQualifiedAccess>]
module Cropping =

    /// <summary>torchvision's cropping: area 8% to 100%, ratio 3/4 to 4/3; at test time the shorter side fills
    /// the network's.</summary>
    let standard =
        {
            Scale = struct (0.08, 1.0)
            Ratio = struct (3.0 / 4.0, 4.0 / 3.0)
            TestResize = None
        }

[<RequireQualifiedAccess>]
module internal Augment =

    let private tries = 10

    // Half to even, as Python's `round`
    let private rounded (x: float) = int (Math.Round x)

    /// The largest centred box whose ratio is allowed.
    let private fallback (cropping: Cropping) height width =
        let struct (ratioLow, ratioHigh) = cropping.Ratio
        let ratio = float width / float height

        let h, w =
            if ratio < ratioLow then
                min height (rounded (float width / ratioLow)), width
            elif ratio > ratioHigh then
                height, min width (rounded (float height * ratioHigh))
            else
                height, width

        {
            Top = (height - h) / 2
            Left = (width - w) / 2
            Height = h
            Width = w
        }

    /// The box of torchvision's RandomResizedCrop in an image of height x width that the numbers from `first` on decide.
    let private box
        (cropping: Cropping)
        (height: int)
        (width: int)
        (uniform: float[])
        (first: int)
        : CropBox =
        let struct (scaleLow, scaleHigh) = cropping.Scale
        let struct (ratioLow, ratioHigh) = cropping.Ratio

        let attempt first =
            let between low high i = low + (high - low) * uniform[first + i]
            let area = float height * float width * between scaleLow scaleHigh 0
            let ratio = exp (between (log ratioLow) (log ratioHigh) 1)
            let w = rounded (sqrt (area * ratio))
            let h = rounded (sqrt (area / ratio))

            if 0 < w && w <= width && 0 < h && h <= height then
                Some
                    {
                        Top = int (between 0.0 (float (height - h + 1)) 2)
                        Left = int (between 0.0 (float (width - w + 1)) 3)
                        Height = h
                        Width = w
                    }
            else
                None

        Seq.init tries (fun t -> first + 4 * t)
        |> Seq.tryPick attempt
        |> Option.defaultWith (fun () -> fallback cropping height width)

    /// The box of the i-th of n images of some height and width, by torchvision's RandomResizedCrop: the area is uniform
    /// in the scale, the ratio log-uniform; after ten boxes that do not fit, the largest centred one.
    let internal boxes (cropping: Cropping) (n: int) (key: RandomKey) : int -> int -> int -> CropBox =
        use numbers =
            Rng.uniform 0.0 1.0 [| int64 n; int64 tries; 4L |] torch.ScalarType.Float64 torch.CPU key

        let uniform = numbers.data<float>().ToArray()
        fun i height width -> box cropping height width uniform (4 * i * tries)

    /// Which of n images are mirrored.
    let private mirrors (n: int) (key: RandomKey) : bool[] =
        Scope.noGrad Leaves.none (fun () ->
            let numbers =
                Rng.uniform 0.0 1.0 [| int64 n |] torch.ScalarType.Float32 torch.CPU key

            numbers.data<float32>().ToArray() |> Array.map (fun x -> x < 0.5f))

    /// The test transform.
    let centred (cropping: Cropping) (size: int) : Picture -> Picture =
        Picture.centre (defaultArg cropping.TestResize size) size

    /// What the augmentation does to the i-th of n pictures, which the key decides. The numbers are drawn at once, so that
    /// the function may be called from any thread, in any order.
    let pictures
        (augmentation: Augmentation)
        (cropping: Cropping)
        (size: int)
        (n: int)
        (key: RandomKey)
        : int -> Picture -> Picture =
        let cropKey, flipKey = Rng.fold 0L key, Rng.fold 1L key
        let centre = centred cropping size

        match augmentation with
        | Augmentation.None -> fun _ picture -> centre picture
        | Augmentation.Flip ->
            let mirrored = mirrors n flipKey

            fun i picture ->
                if mirrored[i] then
                    Picture.flip (centre picture)
                else
                    centre picture
        | Augmentation.CropFlip ->
            let mirrored, boxOf = mirrors n flipKey, boxes cropping n cropKey

            fun i picture ->
                let box = boxOf i picture.Height picture.Width

                if mirrored[i] then
                    // the place of a box is as likely as its mirror image; the box is of the mirrored one
                    let left = picture.Width - box.Left - box.Width
                    Picture.crop { box with Left = left } size size picture |> Picture.flip
                else
                    Picture.crop box size size picture
