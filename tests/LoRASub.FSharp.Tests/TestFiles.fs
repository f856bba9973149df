/// Small data-set files, and the tables of refusals that the tests of readers share.
module LoRASub.Tests.TestFiles

open System
open System.Buffers.Binary
open System.IO
open System.IO.Compression
open LoRASub.Core
open LoRASub.Data
open Expecto
open FsCheck.FSharp
open SkiaSharp
open TorchSharp

let write (folder: string) (name: string) (bytes: byte[]) =
    File.WriteAllBytes(Path.Combine(folder, name), bytes)

/// Puts the byte order mark of UTF-8 before a file's text.
let marked (path: string) =
    File.WriteAllBytes(path, Array.append [| 0xEFuy; 0xBBuy; 0xBFuy |] (File.ReadAllBytes path))

let gzip (bytes: byte[]) : byte[] =
    use packed = new MemoryStream()

    do
        use stream = new GZipStream(packed, CompressionLevel.Optimal)
        stream.Write(bytes, 0, bytes.Length)

    packed.ToArray()

/// An IDX file: magic number, axes, elements.
let idx (magic: int) (sizes: int list) (elements: byte[]) : byte[] =
    let number (n: int) =
        let bytes = Array.zeroCreate<byte> 4
        BinaryPrimitives.WriteInt32BigEndian(Span bytes, n)
        bytes

    Array.concat [ yield number magic; yield! List.map number sizes; yield elements ]

/// One row of bad input: what it is, words of its message, and the call, which gets an empty folder.
type BadInput = string * string list * (string -> unit)

/// One test for each row.
let refusals (rows: BadInput list) : Test =
    testList
        "refuses"
        [
            for name, words, call in rows ->
                testCase name (fun () ->
                    Probe.inFolder (fun folder -> Check.refused words (fun () -> call folder)))
        ]

/// A law over FsCheck's own arguments.
let law name (property: 'Case -> unit) : Test =
    Check.propertyWith (ArbMap.defaults |> ArbMap.arbitrary<'Case>) 100 "Data" name property

/// Elements of a tensor of any type, as float.
let numbers (t: torch.Tensor) : float[] =
    Scope.run (fun () -> t.``to``(torch.ScalarType.Float64).cpu().contiguous().data<float>().ToArray())

let bytes (t: torch.Tensor) : byte[] =
    Scope.run (fun () -> t.cpu().data<byte>().ToArray())

/// n images of `size` equal bytes each: image i is full of i.
let countedPixels (n: int) (size: int) =
    Array.init (n * size) (fun i -> byte (i / size))

/// The bytes of a picture: red, green and blue planes, or one grey plane.
let planes (channels: int) (picture: Picture) : byte[] =
    let made = Array.zeroCreate<byte>(channels * picture.Height * picture.Width)
    Picture.copyPlanes channels made 0 picture
    made

/// The bytes of a set's images at some positions, plane by plane.
let planesAt (channels: int) (set: ImageSet) (positions: int[]) : byte[] =
    positions |> Array.collect (set.Read >> planes channels)

/// Writes a picture as JPEG, PNG, WebP or BMP, as the name's end says; folders are made.
let writePicture (path: string) (picture: Picture) =
    Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore

    match (Path.GetExtension path).ToLowerInvariant() with
    | ".bmp" ->
        // Skia writes no BMP: 24 bits, rows from below, each padded to four bytes
        let row = (3 * picture.Width + 3) / 4 * 4
        let file = Array.zeroCreate<byte>(54 + row * picture.Height)

        let put (at: int) (value: int) =
            BinaryPrimitives.WriteInt32LittleEndian(Span(file, at, 4), value)

        file[0] <- byte 'B'
        file[1] <- byte 'M'

        for at, value in
            [
                2, file.Length
                10, 54
                14, 40
                18, picture.Width
                22, picture.Height
                26, 1 + (24 <<< 16)
            ] do
            put at value

        for y in 0 .. picture.Height - 1 do
            for x in 0 .. picture.Width - 1 do
                for c in 0..2 do
                    file[54 + (picture.Height - 1 - y) * row + 3 * x + 2 - c] <-
                        picture.Pixels[3 * (y * picture.Width + x) + c]

        File.WriteAllBytes(path, file)
    | extension ->
        use bitmap =
            new SKBitmap(picture.Width, picture.Height, SKColorType.Rgba8888, SKAlphaType.Opaque)

        bitmap.Pixels <-
            Array.init (picture.Height * picture.Width) (fun i ->
                SKColor(picture.Pixels[3 * i], picture.Pixels[3 * i + 1], picture.Pixels[3 * i + 2]))

        let format =
            match extension with
            | ".png" -> SKEncodedImageFormat.Png
            | ".webp" -> SKEncodedImageFormat.Webp
            | _ -> SKEncodedImageFormat.Jpeg

        use data = bitmap.Encode(format, 95)
        File.WriteAllBytes(path, data.ToArray())

/// A picture of one colour.
let plainPicture (height: int) (width: int) (red: int) (green: int) (blue: int) : Picture =
    {
        Height = height
        Width = width
        Pixels =
            Array.init (3 * height * width) (fun i ->
                byte (
                    match i % 3 with
                    | 0 -> red
                    | 1 -> green
                    | _ -> blue
                ))
    }
