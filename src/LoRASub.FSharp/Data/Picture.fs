namespace LoRASub.Data

open System
open System.Buffers.Binary
open System.Runtime.Intrinsics
open LoRASub.Core
open LoRASub.Backbone

/// A rectangle of whole pixels inside an image.
[<Struct>]
type CropBox =
    {
        /// The first row.
        Top: int
        /// The first column.
        Left: int
        /// Rows.
        Height: int
        /// Columns.
        Width: int
    }

/// One decoded image.
[<ReferenceEquality>]
type Picture =
    {
        /// Rows of pixels.
        Height: int
        /// Pixels of a row.
        Width: int
        /// Red, green and blue of each pixel, row by row: 3·Height·Width bytes.
        Pixels: byte[]
    }

/// Resampling of single images in the integers of PIL, so that images come out as the transforms of torchvision on PIL make
/// them, whether they are files or arrays.
[<RequireQualifiedAccess>]
module Picture =

    [<Literal>]
    let private Precision = 22

    /// Interpolation weights of some output positions of one axis: those of output i start at i·Taps and belong to the
    /// source pixels from First[i] on.
    [<Struct>]
    type private Weights =
        {
            First: int[]
            Count: int[]
            Taps: int
            Fixed: int[]
        }

    /// Outputs `from` to `from + n - 1` of `extent` source pixels resampled to `target`: the triangle filter, widened
    /// where the result is smaller, normalised in float64 and rounded to 22 binary places.
    let private weights (extent: int) (target: int) (from: int) (n: int) : Weights =
        let scale = float extent / float target
        let support = max scale 1.0
        let taps = 2 * int (Math.Ceiling support) + 1
        let first, count = Array.zeroCreate n, Array.zeroCreate n
        let fixedPoint = Array.zeroCreate<int>(n * taps)
        let raw = Array.zeroCreate<float> taps

        for i in 0 .. n - 1 do
            let centre = (float (from + i) + 0.5) * scale
            let low = max 0 (int (centre - support + 0.5))
            let high = min extent (int (centre + support + 0.5))
            let mutable sum = 0.0

            for j in 0 .. high - low - 1 do
                let weight =
                    max 0.0 (1.0 - abs ((float (low + j) - centre + 0.5) * (1.0 / support)))

                raw[j] <- weight
                sum <- sum + weight

            for j in 0 .. high - low - 1 do
                fixedPoint[i * taps + j] <- int (0.5 + raw[j] / sum * float (1 <<< Precision))

            first[i] <- low
            count[i] <- high - low

        {
            First = first
            Count = count
            Taps = taps
            Fixed = fixedPoint
        }

    let private half = 1 <<< (Precision - 1)

    /// Four bytes as integers.
    let inline private widened (bytes: uint32) =
        Vector128.WidenLower(Vector128.WidenLower(Vector128.CreateScalarUnsafe(bytes).AsByte())).AsInt32()

    let inline private shifted (sums: Vector128<int>) =
        Vector128.Min(
            Vector128.Max(Vector128.ShiftRightArithmetic(sums, Precision), Vector128.Zero),
            Vector128.Create 255
        )

    /// Sixteen integers of 0 to 255 as bytes.
    let inline private narrowed a b c d : Vector128<byte> =
        let two (low: Vector128<int>) high = Vector128.Narrow(low, high).AsUInt16()
        Vector128.Narrow(two a b, two c d)

    /// One row of pixels to a row of outputs from byte `at` on. Both arrays have a spare byte, and rows are written in order.
    let private across (w: Weights) (source: byte[]) (result: byte[]) (at: int) =
        for x in 0 .. w.First.Length - 1 do
            let first = 3 * w.First[x]
            let mutable sums = Vector128.Create half

            for j in 0 .. w.Count[x] - 1 do
                // red, green, blue, and the next pixel's red, which is unused
                let pixel =
                    BinaryPrimitives.ReadUInt32LittleEndian(ReadOnlySpan(source, first + 3 * j, 4))

                sums <- sums + widened pixel * w.Fixed[x * w.Taps + j]

            // the fourth byte is the next pixel's, which is written after it
            BinaryPrimitives.WriteUInt32LittleEndian(
                Span(result, at + 3 * x, 4),
                (narrowed (shifted sums) Vector128.Zero Vector128.Zero Vector128.Zero).AsUInt32().ToScalar()
            )

    /// One output row from consecutive rows of `row` bytes, the first of which is row `low` of the source.
    let private down (w: Weights) (y: int) (low: int) (row: int) (source: byte[]) (result: byte[]) =
        let first = (w.First[y] - low) * row
        let weights = ReadOnlySpan(w.Fixed, y * w.Taps, w.Count[y])
        let sixteens = row / 16 * 16

        for x in 0..16 .. sixteens - 1 do
            let start = Vector128.Create half
            let mutable a, b, c, d = start, start, start, start

            for j in 0 .. weights.Length - 1 do
                let bytes = Vector128.Create<byte>(ReadOnlySpan(source, first + j * row + x, 16))
                let low, high = Vector128.WidenLower bytes, Vector128.WidenUpper bytes
                a <- a + Vector128.WidenLower(low).AsInt32() * weights[j]
                b <- b + Vector128.WidenUpper(low).AsInt32() * weights[j]
                c <- c + Vector128.WidenLower(high).AsInt32() * weights[j]
                d <- d + Vector128.WidenUpper(high).AsInt32() * weights[j]

            (narrowed (shifted a) (shifted b) (shifted c) (shifted d)).CopyTo(Span(result, y * row + x, 16))

        for x in sixteens .. row - 1 do
            let mutable sum = half

            for j in 0 .. weights.Length - 1 do
                sum <- sum + weights[j] * int source[first + j * row + x]

            result[y * row + x] <- byte (Math.Clamp(sum >>> Precision, 0, 255))

    let private whole (height: int) (width: int) =
        {
            Top = 0
            Left = 0
            Height = height
            Width = width
        }

    /// `box` of a picture resampled to height x width, of which only `window` is made.
    let private resampled (box: CropBox) (height: int) (width: int) (window: CropBox) (picture: Picture) =
        let columns = weights box.Width width window.Left window.Width
        let rows = weights box.Height height window.Top window.Height
        let row = 3 * window.Width
        // the rows that the vertical pass reads
        let low = rows.First[0]
        let high = rows.First[window.Height - 1] + rows.Count[window.Height - 1]
        let between = Array.zeroCreate<byte>((high - low) * row + 1)
        let source = Array.zeroCreate<byte>(3 * box.Width + 1)

        for y in low .. high - 1 do
            let start = 3 * ((box.Top + y) * picture.Width + box.Left)
            Buffer.BlockCopy(picture.Pixels, start, source, 0, 3 * box.Width)
            across columns source between ((y - low) * row)

        let result = Array.zeroCreate<byte>(window.Height * row)

        for y in 0 .. window.Height - 1 do
            down rows y low row between result

        {
            Height = window.Height
            Width = window.Width
            Pixels = result
        }

    /// As `resampled`; a picture that stays what it is is given back itself.
    let private resample (box: CropBox) (height: int) (width: int) (window: CropBox) (picture: Picture) =
        let all = whole picture.Height picture.Width

        if box = all && window = all && height = box.Height && width = box.Width then
            picture
        else
            resampled box height width window picture

    /// The picture itself. Rejects one whose bytes do not fit its size; `source` is what made it.
    let internal require (source: string) (picture: Picture) : Picture =
        if
            picture.Height < 1
            || picture.Width < 1
            || picture.Pixels.LongLength <> 3L * int64 picture.Height * int64 picture.Width
        then
            Errors.reject
                source
                "must read pictures of at least one pixel, 3 bytes a pixel"
                $"{picture.Height} x {picture.Width} with {picture.Pixels.Length} bytes"
                ""

        picture

    let private requireSize (height: int) (width: int) =
        if height < 1 || width < 1 then
            Errors.reject "image size" "must be at least 1" $"{height} x {width}" ""

    /// <summary>A box of a picture, resampled: `crop` and then `resize` of PIL with its bilinear filter, bit for
    /// bit.</summary>
    /// <param name="box">A box in the picture.</param>
    /// <param name="height">Pixels of the result, at least 1.</param>
    /// <param name="width">Pixels of the result, at least 1.</param>
    /// <param name="picture">Stays as it was.</param>
    /// <returns>A picture of height x width; the picture itself where nothing changes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The box is not in the picture, or a size is below
    /// 1.</exception>
    let crop (box: CropBox) (height: int) (width: int) (picture: Picture) : Picture =
        requireSize height width

        let fits start extent size =
            start >= 0 && extent >= 1 && start <= size - extent

        if not (fits box.Top box.Height picture.Height && fits box.Left box.Width picture.Width) then
            Errors.reject "crop box" $"must be in the image of {picture.Height} x {picture.Width}" $"{box}" ""

        resample box height width (whole height width) picture

    /// <summary>A whole picture, resampled: `resize` of PIL with its bilinear filter, bit for bit.</summary>
    /// <param name="height">Pixels of the result, at least 1.</param>
    /// <param name="width">Pixels of the result, at least 1.</param>
    /// <param name="picture">Stays as it was.</param>
    /// <returns>A picture of height x width; the picture itself where nothing changes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A size is below 1.</exception>
    let resize (height: int) (width: int) (picture: Picture) : Picture =
        crop (whole picture.Height picture.Width) height width picture

    /// torchvision's `Resize` with one number: the shorter side becomes `side`, the other keeps the ratio, rounded down.
    let internal shorterSide (side: int) (height: int) (width: int) : struct (int * int) =
        let longer long short =
            int (float side * float long / float short)

        if height < width then
            struct (side, longer width height)
        else
            struct (longer height width, side)

    /// Where torchvision's `CenterCrop` begins along an axis: half of the rest, halves to even.
    let internal centreOffset (extent: int) (size: int) : int =
        int (Math.Round(float (extent - size) / 2.0))

    /// Copies a picture into the middle of a black one of size x size that is nowhere smaller.
    let private padded (size: int) (picture: Picture) =
        let top, left = (size - picture.Height) / 2, (size - picture.Width) / 2
        let pixels = Array.zeroCreate<byte>(3 * size * size)

        for y in 0 .. picture.Height - 1 do
            Buffer.BlockCopy(
                picture.Pixels,
                3 * y * picture.Width,
                pixels,
                3 * ((top + y) * size + left),
                3 * picture.Width
            )

        {
            Height = size
            Width = size
            Pixels = pixels
        }

    /// <summary>`Resize(side)` and `CenterCrop(size)` of torchvision on PIL, bit for bit.</summary>
    /// <param name="side">Pixels of the shorter side before the middle is cut out; the longer side keeps the
    /// ratio, rounded down.</param>
    /// <param name="size">Pixels of a side of the result.</param>
    /// <param name="picture">Stays as it was.</param>
    /// <returns>A picture of size x size, with black where the picture ends.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A size is below 1.</exception>
    let centre (side: int) (size: int) (picture: Picture) : Picture =
        requireSize side size
        let struct (height, width) = shorterSide side picture.Height picture.Width

        let along extent =
            if extent < size then
                struct (0, extent)
            else
                struct (centreOffset extent size, size)

        let struct (top, windowHeight) = along height
        let struct (left, windowWidth) = along width

        let window =
            {
                Top = top
                Left = left
                Height = windowHeight
                Width = windowWidth
            }

        let middle =
            resample (whole picture.Height picture.Width) height width window picture

        if windowHeight = size && windowWidth = size then
            middle
        else
            padded size middle

    /// <summary>A picture mirrored left to right.</summary>
    /// <param name="picture">Stays as it was.</param>
    /// <returns>A new picture of the same size.</returns>
    let flip (picture: Picture) : Picture =
        let width = picture.Width
        let pixels = Array.zeroCreate<byte> picture.Pixels.Length

        for y in 0 .. picture.Height - 1 do
            for x in 0 .. width - 1 do
                let source, target = 3 * (y * width + x), 3 * (y * width + width - 1 - x)
                pixels[target] <- picture.Pixels[source]
                pixels[target + 1] <- picture.Pixels[source + 1]
                pixels[target + 2] <- picture.Pixels[source + 2]

        { picture with Pixels = pixels }

    /// The picture of one plane (grey, which is repeated) or of three (red, green, blue) of height x width bytes.
    let internal ofPlanes (channels: int) (height: int) (width: int) (planes: ReadOnlySpan<byte>) : Picture =
        let size = height * width
        let green, blue = (if channels = 1 then 0, 0 else size, 2 * size)
        let pixels = Array.zeroCreate<byte>(3 * size)

        for i in 0 .. size - 1 do
            pixels[3 * i] <- planes[i]
            pixels[3 * i + 1] <- planes[green + i]
            pixels[3 * i + 2] <- planes[blue + i]

        {
            Height = height
            Width = width
            Pixels = pixels
        }

    /// The opposite of `ofPlanes`, into `planes` from byte `at` on: red, green and blue, or the one plane of PIL's
    /// `convert("L")`, ITU-R 601 luma in integers, which leaves grey as it is.
    let internal copyPlanes (channels: int) (planes: byte[]) (at: int) (picture: Picture) =
        let size = picture.Height * picture.Width
        let pixels = picture.Pixels

        if channels = 1 then
            for i in 0 .. size - 1 do
                let red, green, blue =
                    int pixels[3 * i], int pixels[3 * i + 1], int pixels[3 * i + 2]

                planes[at + i] <- byte ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >>> 16)
        else
            for i in 0 .. size - 1 do
                planes[at + i] <- pixels[3 * i]
                planes[at + size + i] <- pixels[3 * i + 1]
                planes[at + 2 * size + i] <- pixels[3 * i + 2]
