namespace LoRASub

open TorchSharp

/// A rectangle of whole pixels inside an image.
[<Struct>]
type CropBox =
    {
        Top: int
        Left: int
        Height: int
        Width: int
    }

/// Antialiased bilinear resampling as PIL and torchvision do it on the cropped image, for a whole batch in two
/// products. Difference: PIL rounds to 8 bits after each axis; here nothing is rounded, so that the two differ by at
/// most one grey level.
[<RequireQualifiedAccess>]
module Resample =

    /// Interpolation weights [n, target, source], float32, of n intervals of one axis: `starts` and `extents` [n] in
    /// source pixels, each interval inside [0, source). Rows sum to 1 and are 0 outside their interval. Borrows; owned
    /// by the caller.
    let weights (source: int) (target: int) (starts: torch.Tensor) (extents: torch.Tensor) : torch.Tensor =
        Shape.expect "starts" [ Axis.Any "n" ] starts
        Shape.expect "extents" [ Axis.Is starts.shape[0] ] extents

        Scope.noGrad Leaves.tensor (fun () ->
            let device = starts.device

            let centres (n: int) =
                let positions =
                    torch.arange (Scalar.op_Implicit n, dtype = torch.ScalarType.Float32, device = device)

                positions.add (Scalar.op_Implicit 0.5)


            let column (t: torch.Tensor) =
                t.``to``(torch.ScalarType.Float32).view(-1L, 1L, 1L) // [n, 1, 1]

            let start = column starts
            let scale = (column extents).div(Scalar.op_Implicit (float target))
            // a smaller result averages over `scale` pixels, a larger one interpolates between two
            let support = scale.clamp (min = Scalar.op_Implicit 1.0)
            let pixels = (centres source).view(1L, 1L, -1L) // [1, 1, source]
            let wanted = start.add (scale.mul ((centres target).view(1L, -1L, 1L))) // [n, target, 1]

            let triangle =
                (pixels.sub wanted)
                    .abs()
                    .div(support)
                    .neg()
                    .add(Scalar.op_Implicit 1.0)
                    .clamp(min = Scalar.op_Implicit 0.0) // [n, target, source]

            let inside = (pixels.gt start).logical_and(pixels.lt (start.add (column extents))) // [n, 1, source]
            let limited = triangle.mul (inside.``to`` torch.ScalarType.Float32)
            limited.div (limited.sum (2L, keepdim = true)))

    /// rows [n, target, H] · images [n, c, H, W] · columnsᵀ [n, W, target]
    let private apply (rows: torch.Tensor) (columns: torch.Tensor) (images: torch.Tensor) =
        let n, c, height, width =
            images.shape[0], images.shape[1], images.shape[2], images.shape[3]

        let target = rows.shape[1]
        let across = (images.reshape (n, c * height, width)).bmm(columns.transpose (1L, 2L)) // [n, c·H, target]

        let byRow =
            (across.view (n, c, height, target)).transpose(1L, 2L).reshape(n, height, c * target)

        (rows.bmm byRow).view(n, target, c, target).transpose(1L, 2L).contiguous() // [n, c, target, target]

    let private check (target: int) (images: torch.Tensor) =
        Shape.expect "images" [ Axis.Any "n"; Axis.Any "c"; Axis.Any "H"; Axis.Any "W" ] images

        if images.dtype <> torch.ScalarType.Float32 then
            Errors.reject "images to resample" "must be Float32" $"{images.dtype}" ""

        if target < 1 then
            Errors.reject "image size" "must be at least 1" $"{target}" ""

    /// One box of each image, resampled to target x target: float32 [n, c, H, W] -> [n, c, target, target]. Borrows;
    /// owned by the caller. Rejects a box that does not lie in the image.
    let crop (target: int) (boxes: CropBox[]) (images: torch.Tensor) : torch.Tensor =
        check target images
        let height, width = int images.shape[2], int images.shape[3]

        if boxes.LongLength <> images.shape[0] then
            Errors.reject "crop boxes" $"must be {images.shape[0]}, one per image" $"{boxes.Length}" ""

        let fits start extent size =
            start >= 0 && extent >= 1 && start <= size - extent

        match
            boxes
            |> Array.tryFind (fun b -> not (fits b.Top b.Height height && fits b.Left b.Width width))
        with
        | Some box -> Errors.reject "crop box" $"must lie in the image of {height} x {width}" $"{box}" ""
        | None -> ()

        Scope.noGrad Leaves.tensor (fun () ->
            let along (value: CropBox -> int) =
                torch.tensor(boxes |> Array.map (value >> single)).``to`` images.device

            let rows = weights height target (along _.Top) (along _.Height)
            let columns = weights width target (along _.Left) (along _.Width)
            apply rows columns images)

    /// The whole images resampled to target x target: float32 [n, c, H, W] -> [n, c, target, target]; of the same
    /// size already, they share their storage with the result. Borrows; owned by the caller.
    let resize (target: int) (images: torch.Tensor) : torch.Tensor =
        check target images
        let height, width = images.shape[2], images.shape[3]

        if height = int64 target && width = int64 target then
            images.alias ()
        else
            Scope.noGrad Leaves.tensor (fun () ->
                let whole (extent: int64) =
                    let start = torch.zeros ([| 1L |], device = images.device)

                    let extents =
                        torch.full ([| 1L |], Scalar.op_Implicit (float32 extent), device = images.device)

                    (weights (int extent) target start extents).expand(images.shape[0], -1L, -1L)

                apply (whole height) (whole width) images)
