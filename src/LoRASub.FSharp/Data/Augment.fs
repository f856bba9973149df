namespace LoRASub

open System
open TorchSharp

/// Random changes of training images.
[<RequireQualifiedAccess>]
type Augmentation =
    /// The image resampled to the network's size.
    | None
    /// `None`, mirrored with probability 1/2.
    | Flip
    /// torchvision's RandomResizedCrop (scale 0.08 to 1, ratio 3/4 to 4/3), mirrored with probability 1/2.
    | CropFlip

[<RequireQualifiedAccess>]
module Augment =

    let private scaleLow, scaleHigh = 0.08, 1.0
    let private ratioLow, ratioHigh = 3.0 / 4.0, 4.0 / 3.0
    let private tries = 10

    // Half to even, as Python's `round`
    let private rounded (x: float) = int (Math.Round x)

    /// The largest centred box whose ratio is allowed.
    let private fallback height width =
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

    /// n boxes of torchvision's RandomResizedCrop in images of height x width: the area is uniform between 8% and
    /// 100%, the ratio log-uniform between 3/4 and 4/3; after ten boxes that do not fit, the largest centred one.
    let cropBoxes (height: int) (width: int) (n: int) (key: RandomKey) : CropBox[] =
        let shape = [| int64 n; int64 tries; 4L |]
        use numbers = Rng.uniform 0.0 1.0 shape torch.ScalarType.Float64 torch.CPU key
        let uniform = numbers.data<float>().ToArray()

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

        Array.init n (fun i ->
            Seq.init tries (fun t -> 4 * (i * tries + t))
            |> Seq.tryPick attempt
            |> Option.defaultWith (fun () -> fallback height width))

    let private flip (key: RandomKey) (images: torch.Tensor) =
        let chance =
            Rng.uniform 0.0 1.0 [| images.shape[0]; 1L; 1L; 1L |] torch.ScalarType.Float32 images.device key

        torch.where (chance.lt (Scalar.op_Implicit 0.5), images.flip 3L, images)

    /// Resamples a batch to size x size with the augmentation's random changes, which the key decides: float32
    /// [n, c, H, W] -> [n, c, size, size]. Borrows; owned by the caller.
    let apply
        (augmentation: Augmentation)
        (size: int)
        (images: torch.Tensor)
        (key: RandomKey)
        : torch.Tensor =
        Shape.expect "images" [ Axis.Any "n"; Axis.Any "c"; Axis.Any "H"; Axis.Any "W" ] images
        let cropKey, flipKey = Rng.fold 0L key, Rng.fold 1L key

        Scope.noGrad Leaves.tensor (fun () ->
            match augmentation with
            | Augmentation.None -> Resample.resize size images
            | Augmentation.Flip -> Resample.resize size images |> flip flipKey
            | Augmentation.CropFlip ->
                let n, height, width = int images.shape[0], int images.shape[2], int images.shape[3]
                Resample.crop size (cropBoxes height width n cropKey) images |> flip flipKey)
