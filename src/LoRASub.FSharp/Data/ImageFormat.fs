namespace LoRASub

open TorchSharp

/// What a network expects of its images.
type ImageFormat =
    {
        /// Height and width, in pixels.
        Size: int
        /// 3 (RGB) or 1 (grey).
        Channels: int
        /// The value of a black pixel.
        Low: float
        /// The value of a white pixel.
        High: float
    }

[<RequireQualifiedAccess>]
module ImageFormat =

    /// The format itself; rejects sizes below 1, channels other than 1 and 3, and an empty or infinite range.
    let validate (format: ImageFormat) : ImageFormat =
        if format.Size < 1 then
            Errors.reject "image size" "must be at least 1" $"{format.Size}" ""

        if format.Channels <> 1 && format.Channels <> 3 then
            Errors.reject "image channels" "must be 1 (grey) or 3 (RGB)" $"{format.Channels}" ""

        if not (format.Low < format.High && System.Double.IsFinite(format.High - format.Low)) then
            Errors.reject "input range" "must be finite and increase" $"{format.Low} to {format.High}" ""

        format

    /// ITU-R 601 luma of [n, 3, H, W], as PIL weighs it.
    let private toGrey (images: torch.Tensor) =
        let weights =
            torch.tensor([| 0.299f; 0.587f; 0.114f |]).``to``(images.device).view(1L, 3L, 1L, 1L)

        (images.mul weights).sum(1L, keepdim = true)

    /// Scales bytes to the input range, in float32; `arrange` brings them to the network's size.
    let private convert format (device: torch.Device) dtype arrange (images: torch.Tensor) : torch.Tensor =
        let format = validate format
        Shape.expect "images" [ Axis.Any "n"; Axis.Any "1 or 3"; Axis.Any "H"; Axis.Any "W" ] images
        let channels = images.shape[1]

        if channels <> 1L && channels <> 3L then
            Errors.reject "images" "must have 1 channel (grey) or 3 (RGB)" (Shape.text images.shape) ""

        if images.dtype <> torch.ScalarType.Byte then
            Errors.reject "images" "must be Byte, 0 to 255" $"{images.dtype}" ""

        Scope.noGrad Leaves.tensor (fun () ->
            let pixels = images.``to``(device).``to`` torch.ScalarType.Float32

            let pixels =
                if format.Channels = 1 && channels = 3L then
                    toGrey pixels
                else
                    pixels

            // before resampling, whose weights sum to 1, there are mostly fewer pixels to scale; in place, for the floats
            // are made here
            let scaled =
                pixels
                    .mul_(Scalar.op_Implicit ((format.High - format.Low) / 255.0))
                    .add_(Scalar.op_Implicit format.Low)

            let input: torch.Tensor =
                (arrange scaled: torch.Tensor).``to``(dtype: torch.ScalarType)

            if format.Channels = 3 && channels = 1L then
                input.repeat (1L, 3L, 1L, 1L)
            else
                input)

    /// Images uint8 [n, 1 or 3, H, W] as network input [n, Channels, Size, Size] on a device: resampled and augmented,
    /// grey repeated to RGB or RGB weighed to grey, and scaled to pixel/255·(High − Low) + Low. Everything after the
    /// copy of the bytes runs on `device`, in float32 up to the final `dtype`. Borrows; owned by the caller.
    let toInput
        (format: ImageFormat)
        (cropping: Cropping)
        (augmentation: Augmentation)
        (key: RandomKey)
        (device: torch.Device)
        (dtype: torch.ScalarType)
        (images: torch.Tensor)
        : torch.Tensor =
        let arrange scaled =
            Augment.apply augmentation cropping format.Size format.Low scaled key

        convert format device dtype arrange images

    /// Images uint8 [n, 1 or 3, Size, Size] that are augmented already as network input; see `toInput`.
    let ofFitted
        (format: ImageFormat)
        (device: torch.Device)
        (dtype: torch.ScalarType)
        (images: torch.Tensor)
        =
        Shape.expect
            "images"
            [
                Axis.Any "n"
                Axis.Any "1 or 3"
                Axis.Is(int64 format.Size)
                Axis.Is(int64 format.Size)
            ]
            images

        convert format device dtype (fun scaled -> scaled.alias ()) images
