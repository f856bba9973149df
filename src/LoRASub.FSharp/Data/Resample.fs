namespace LoRASub

open TorchSharp

/// Antialiased bilinear resampling as PIL and torchvision do it on the cropped image, for a whole batch of images of
/// one size in two products. Difference: PIL rounds to 8 bits after each axis; here nothing is rounded, so that the two
/// differ by at most one grey level. `Picture` rounds as PIL does.
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

    /// rows [n, h, H] · images [n, c, H, W] · columnsᵀ [n, W, w]
    let private apply (rows: torch.Tensor) (columns: torch.Tensor) (images: torch.Tensor) =
        let n, c, height, width =
            images.shape[0], images.shape[1], images.shape[2], images.shape[3]

        let h, w = rows.shape[1], columns.shape[1]
        let across = (images.reshape (n, c * height, width)).bmm(columns.transpose (1L, 2L)) // [n, c·H, w]

        let perChannel =
            rows.unsqueeze(1L).expand(n, c, h, height).reshape(n * c, h, height)

        (perChannel.bmm (across.view (n * c, height, w))).view(n, c, h, w)

    let private check (target: int) (images: torch.Tensor) =
        Shape.expect "images" [ Axis.Any "n"; Axis.Any "c"; Axis.Any "H"; Axis.Any "W" ] images

        if images.dtype <> torch.ScalarType.Float32 then
            Errors.reject "images to resample" "must be Float32" $"{images.dtype}" ""

        if target < 1 then
            Errors.reject "image size" "must be at least 1" $"{target}" ""

    /// One box of each image, resampled to target x target: float32 [n, c, H, W] -> [n, c, target, target]. Borrows;
    /// owned by the caller. Rejects a box that is not in the image.
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
        | Some box -> Errors.reject "crop box" $"must be in the image of {height} x {width}" $"{box}" ""
        | None -> ()

        Scope.noGrad Leaves.tensor (fun () ->
            let along (value: CropBox -> int) =
                torch.tensor(boxes |> Array.map (value >> single)).``to`` images.device

            let rows = weights height target (along _.Top) (along _.Height)
            let columns = weights width target (along _.Left) (along _.Width)
            apply rows columns images)

    let private resizeTo (height: int) (width: int) (images: torch.Tensor) =
        if images.shape[2] = int64 height && images.shape[3] = int64 width then
            images.alias ()
        else
            Scope.noGrad Leaves.tensor (fun () ->
                let whole (extent: int64) (target: int) =
                    let start = torch.zeros ([| 1L |], device = images.device)

                    let extents =
                        torch.full ([| 1L |], Scalar.op_Implicit (float32 extent), device = images.device)

                    (weights (int extent) target start extents).expand(images.shape[0], -1L, -1L)

                apply (whole images.shape[2] height) (whole images.shape[3] width) images)

    /// The whole images resampled to target x target: float32 [n, c, H, W] -> [n, c, target, target]; of the same
    /// size already, they share their storage with the result. Borrows; owned by the caller.
    let resize (target: int) (images: torch.Tensor) : torch.Tensor =
        check target images
        resizeTo target target images

    /// torchvision's `Resize(side)` and `CenterCrop(size)`: float32 [n, c, H, W] -> [n, c, size, size] with the shorter
    /// side resampled to `side`, and `black` where the images end. Square images of side `size` come out as `resize`.
    /// Borrows; owned by the caller.
    let centre (side: int) (size: int) (black: float) (images: torch.Tensor) : torch.Tensor =
        check side images
        check size images

        Scope.noGrad Leaves.tensor (fun () ->
            let struct (height, width) =
                Picture.shorterSide side (int images.shape[2]) (int images.shape[3])

            let resized = resizeTo height width images

            let cut (axis: int64) (t: torch.Tensor) =
                let extent = int t.shape[int axis]

                if extent <= size then
                    t
                else
                    t.narrow (axis, int64 (Picture.centreOffset extent size), int64 size)

            let middle = resized |> cut 2L |> cut 3L
            let missing axis = size - int middle.shape[axis]

            if missing 2 = 0 && missing 3 = 0 then
                middle.contiguous ()
            else
                let before axis = int64 (missing axis / 2)
                let after axis = int64 (missing axis) - before axis

                torch.nn.functional.pad (
                    middle,
                    [| before 3; after 3; before 2; after 2 |],
                    PaddingModes.Constant,
                    black
                ))
