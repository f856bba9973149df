namespace LoRASub.Data

open System
open System.Buffers
open System.IO
open System.Runtime.InteropServices
open System.Runtime.Loader
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open SkiaSharp

/// JPEG, PNG, WebP, BMP and GIF files as RGB bytes, as PIL's `convert("RGB")` gives them: grey is repeated, palettes are
/// looked up, CMYK is converted by Adobe's convention, alpha and colour profiles are dropped, and EXIF's orientation is
/// ignored, as torchvision's loader does. Of an animation the first frame is read. Differences: 16-bit grey keeps its
/// high byte, where PIL clips it to 255; transparent pixels of a GIF are black, where PIL keeps the colour behind them.
[<RequireQualifiedAccess>]
module ImageFile =

    /// Larger images are refused before any memory is taken for them.
    [<Literal>]
    let private MaxPixels = 100_000_000

    [<Literal>]
    let internal MaxBytes = 1_000_000_000L

    /// First bytes that show what kind of file it is.
    [<Literal>]
    let private HeadBytes = 512

    /// Extensions, in lower case, of images that are read here and that torchvision's ImageFolder leaves out.
    let internal unusualExtensions = set [ ".jfif"; ".jpe"; ".gif" ]

    /// What the folder readers take for an image, in lower case: torchvision's list and `unusualExtensions`.
    /// Of these, TIFF and the portable maps are not read, but reported as broken.
    let internal extensions =
        set [ ".jpg"; ".jpeg"; ".png"; ".bmp"; ".webp"; ".tif"; ".tiff"; ".ppm"; ".pgm" ]
        |> Set.union unusualExtensions

    let private skia = typeof<SKCodec>.Assembly

    /// A script's runtime does not find Skia's native library, which is in the package folder.
    let private resolver =
        lazy
            let context = AssemblyLoadContext.GetLoadContext skia
            let version = skia.GetName().Version

            let find () =
                NativeBackend.packageFolders ()
                |> List.map (fun folder ->
                    Path.Combine(folder, "skiasharp.nativeassets.linux.nodependencies"))
                |> List.filter Directory.Exists
                |> List.collect (fun folder ->
                    Directory.GetDirectories(folder, $"{version.Major}.{version.Minor}.*")
                    |> Array.sortDescending
                    |> List.ofArray)
                |> List.map (fun folder ->
                    Path.Combine(folder, "runtimes", "linux-x64", "native", "libSkiaSharp.so"))
                |> List.tryFind File.Exists

            context.add_ResolvingUnmanagedDll (fun _ name ->
                match name with
                | "libSkiaSharp" -> find () |> Option.map NativeLibrary.Load |> Option.defaultValue 0n
                | _ -> 0n)

    /// <summary>Lets the native part of Skia be found in the package folder where it is not beside the program,
    /// as in scripts that use SkiaSharp themselves. The functions here need no such call.</summary>
    let ensureLoaded () : unit = resolver.Force()

    /// Runs `f`, which uses Skia.
    let private withSkia (f: unit -> 'T) : 'T =
        try
            ensureLoaded ()
            f ()
        with
        | :? TypeInitializationException
        | :? DllNotFoundException as e ->
            match NativeError.ofException e with
            | Some shortage ->
                let what = "while loading Skia, which decodes images"
                raise (NativeError.memory what NativeError.moreMemory shortage e)
            | None -> ()

            Errors.reject
                "Skia"
                "libSkiaSharp must be in the program's folder or in the package folder"
                "neither"
                "reference the package SkiaSharp.NativeAssets.Linux.NoDependencies 2.88.9"

    /// Whether this system has Skia, which decodes and writes image files.
    let internal isAvailable () : bool =
        try
            withSkia (fun () ->
                use bitmap = new SKBitmap(1, 1)
                not bitmap.IsNull)
        with :? InputException ->
            false

    let private formats =
        [
            SKEncodedImageFormat.Jpeg
            SKEncodedImageFormat.Png
            SKEncodedImageFormat.Webp
            SKEncodedImageFormat.Bmp
            SKEncodedImageFormat.Gif
        ]

    [<Literal>]
    let private Rule = "must be a JPEG, PNG, WebP, BMP or GIF image"

    let private readable =
        set [ "a JPEG image"; "a PNG image"; "a WebP image"; "a GIF image" ]

    /// The format of an unreadable file, by its first bytes.
    let private kind (head: byte[]) : string =
        let isText =
            head |> Array.forall (fun b -> b >= 32uy || b = 9uy || b = 10uy || b = 13uy)

        match FileKind.identify head with
        | Some kind when readable.Contains kind.Name -> $"{kind.Name} that is damaged or of a rare kind"
        | Some kind when kind.Name.StartsWith "a Git LFS" -> $"{kind.Name}; {kind.Advice}"
        | Some kind -> kind.Name
        | None when head |> Array.forall ((=) 0uy) -> "only zero bytes, as a broken download or disk leaves"
        | None when isText -> "text"
        | None -> "not an image in a known format"

    /// Why a codec's image cannot be decoded, if that shows before trying; `head` gives the file's first bytes.
    let private objection (head: unit -> byte[]) (codec: SKCodec) =
        if isNull codec || not (List.contains codec.EncodedFormat formats) then
            Some(kind (head ()))
        else
            let height, width = codec.Info.Height, codec.Info.Width

            if int64 height * int64 width > int64 MaxPixels then
                Some $"{width} x {height} pixels, more than {MaxPixels}"
            else
                None

    let private told (result: SKCodecResult) =
        match result with
        | SKCodecResult.IncompleteInput -> "truncated"
        | other -> $"damaged ({other})"

    let private decoded (codec: SKCodec) : Result<Picture, string> =
        let height, width = codec.Info.Height, codec.Info.Width

        // without a colour space nothing is converted, and unpremultiplied colours are those of the file
        let info =
            SKImageInfo(width, height, SKColorType.Rgba8888, SKAlphaType.Unpremul, null)

        let buffer = ArrayPool.Shared.Rent(4 * height * width)

        try
            let pin = GCHandle.Alloc(buffer, GCHandleType.Pinned)

            let result =
                try
                    codec.GetPixels(info, pin.AddrOfPinnedObject())
                finally
                    pin.Free()

            match result with
            | SKCodecResult.Success ->
                let pixels = Array.zeroCreate<byte>(3 * height * width)

                for i in 0 .. height * width - 1 do
                    pixels[3 * i] <- buffer[4 * i]
                    pixels[3 * i + 1] <- buffer[4 * i + 1]
                    pixels[3 * i + 2] <- buffer[4 * i + 2]

                Ok
                    {
                        Height = height
                        Width = width
                        Pixels = pixels
                    }
            | other -> Error(told other)
        finally
            ArrayPool.Shared.Return buffer

    /// A file with bytes that can be read, or why there is none.
    let private present (path: string) : Result<FileInfo, string> =
        FileNames.file path
        |> Result.bind (fun file ->
            // pipes and devices have no length either, and reading them might never end
            if file.Length = 0L then
                Error "empty"
            elif file.Length > MaxBytes then
                Error $"{file.Length} bytes, more than {MaxBytes}"
            else
                Ok file)

    /// The bytes of a regular file, or why there are none.
    let private bytes (path: string) : Result<byte[], string> =
        try
            present path |> Result.map (fun file -> File.ReadAllBytes file.FullName)
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Error e.Message

    let private tryDecode (bytes: ReadOnlyMemory<byte>) : Result<Picture, string> =
        if bytes.IsEmpty then
            Error "empty"
        else
            withSkia (fun () ->
                use data = SKData.CreateCopy bytes.Span
                use codec = SKCodec.Create data

                match objection (fun () -> bytes.Slice(0, min HeadBytes bytes.Length).ToArray()) codec with
                | Some reason -> Error reason
                | None -> decoded codec)

    let private require (name: string) (result: Result<Picture, string>) : Picture =
        match result with
        | Ok picture -> picture
        | Error reason -> Errors.reject name Rule reason ""

    /// The picture, or why there is none, in a few words.
    let internal tryRead (path: string) : Result<Picture, string> =
        bytes path |> Result.bind (ReadOnlyMemory >> tryDecode)

    /// <summary>Reads an image file.</summary>
    /// <param name="path">A JPEG, PNG, WebP, BMP or GIF file; a link is followed.</param>
    /// <returns>The picture. Grey is repeated to red, green and blue; 16 bits keep the high byte; alpha is
    /// dropped.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, damaged, of another format, or has more
    /// than 100 million pixels.</exception>
    let read (path: string) : Picture = require path (tryRead path)

    /// <summary>Decodes an image that is in memory.</summary>
    /// <param name="name">Names the image in errors.</param>
    /// <param name="bytes">Those of a JPEG, PNG, WebP, BMP or GIF file; borrowed.</param>
    /// <returns>The picture, as `read` gives it.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The bytes are damaged, of another format, or of more than 100
    /// million pixels.</exception>
    let decode (name: string) (bytes: ReadOnlyMemory<byte>) : Picture = require name (tryDecode bytes)

    let private headOf (path: string) () : byte[] =
        use stream = File.OpenRead path
        let head = Array.zeroCreate<byte> HeadBytes
        head[.. stream.ReadAtLeast(Span head, HeadBytes, throwOnEndOfStream = false) - 1]

    /// Whether the file is as long as its format states; false if that is unknown.
    let private isWhole (path: string) (format: SKEncodedImageFormat) =
        use stream = File.OpenRead path

        let last (n: int) =
            if stream.Length < int64 n then
                [||]
            else
                stream.Seek(int64 -n, SeekOrigin.End) |> ignore
                let found = Array.zeroCreate<byte> n
                stream.ReadExactly(found, 0, n)
                found

        match format with
        | SKEncodedImageFormat.Jpeg -> last 2 = [| 0xFFuy; 0xD9uy |]
        | SKEncodedImageFormat.Png ->
            last 8 = [| 0x49uy; 0x45uy; 0x4Euy; 0x44uy; 0xAEuy; 0x42uy; 0x60uy; 0x82uy |]
        | _ -> false

    /// The error of a file by its header and its end; if these are not enough, it is decoded. Damage
    /// in between shows only when the file is read.
    let internal glance (path: string) : string option =
        let decode () =
            match tryRead path with
            | Ok _ -> None
            | Error reason -> Some reason

        try
            match present path with
            | Error reason -> Some reason
            | Ok _ ->
                withSkia (fun () ->
                    use codec = SKCodec.Create path

                    match objection (headOf path) codec with
                    | Some reason -> Some reason
                    | None when isWhole path codec.EncodedFormat -> None
                    | None -> decode ())
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Some e.Message
