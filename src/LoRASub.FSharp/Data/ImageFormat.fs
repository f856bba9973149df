namespace LoRASub.Data

open LoRASub.Core
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
module internal ImageFormat =

    /// The format itself; rejects sizes below 1, channels other than 1 and 3, and an empty or infinite range.
    let validate (format: ImageFormat) : ImageFormat =
        if format.Size < 1 then
            Errors.reject "image size" "must be at least 1" $"{format.Size}" ""

        if format.Channels <> 1 && format.Channels <> 3 then
            Errors.reject "image channels" "must be 1 (grey) or 3 (RGB)" $"{format.Channels}" ""

        if not (format.Low < format.High && System.Double.IsFinite(format.High - format.Low)) then
            Errors.reject "input range" "must be finite and increase" $"{format.Low} to {format.High}" ""

        format

    /// To a GPU from pinned memory, so that the host does not wait for the steps before.
    let private copied (device: torch.Device) (t: torch.Tensor) : torch.Tensor =
        if device.``type`` = DeviceType.CUDA && t.device_type = DeviceType.CPU then
            t.pin_memory().``to``(device, non_blocking = true)
        else
            t.``to`` device

    /// Labels on a device, likewise. Owned by the caller.
    let labels (device: torch.Device) (labels: int64[]) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () -> copied device (torch.tensor labels))

    /// Images uint8 [n, Channels, Size, Size] as network input of the same shape on a device: pixel/255·(High − Low) +
    /// Low, in float32 up to the final `dtype`. Borrows; owned by the caller.
    let toInput
        (format: ImageFormat)
        (device: torch.Device)
        (dtype: torch.ScalarType)
        (images: torch.Tensor)
        : torch.Tensor =
        let format = validate format
        let size = Axis.Is(int64 format.Size)
        Shape.expect "images" [ Axis.Any "n"; Axis.Is(int64 format.Channels); size; size ] images

        if images.dtype <> torch.ScalarType.Byte then
            Errors.reject "images" "must be Byte, 0 to 255" $"{images.dtype}" ""

        Scope.noGrad Leaves.tensor (fun () ->
            // in place, for the floats are made here
            (copied device images)
                .``to``(torch.ScalarType.Float32)
                .mul_(Number.Of((format.High - format.Low) / 255.0))
                .plus_(Number.Of format.Low)
                .``to``(dtype))
