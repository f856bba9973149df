namespace LoRASub

open System
open System.Buffers
open System.IO
open System.Runtime.InteropServices
open System.Runtime.Loader
open SkiaSharp

/// JPEG, PNG, WebP and BMP files as RGB bytes, as PIL's `convert("RGB")` gives them: grey is repeated, palettes are
/// looked up, CMYK is converted by Adobe's convention, alpha and colour profiles are dropped, and EXIF's orientation is
/// ignored, as torchvision's loader does. Difference: 16-bit grey keeps its high byte, where PIL clips it to 255.
[<RequireQualifiedAccess>]
module ImageFile =

    /// Larger images are refused before any memory is taken for them.
    [<Literal>]
    let MaxPixels = 100_000_000

    [<Literal>]
    let private MaxBytes = 1_000_000_000L

    /// What the folder readers take for an image, in lower case: torchvision's list. Of these, TIFF and the portable
    /// maps are not read and told as broken.
    let extensions =
        set [ ".jpg"; ".jpeg"; ".png"; ".bmp"; ".webp"; ".tif"; ".tiff"; ".ppm"; ".pgm" ]

    let private skia = typeof<SKCodec>.Assembly

    /// In a script nothing tells the runtime where Skia's native part is: it lies in the package folder.
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

    /// Lets Skia's native part be found in the package folder where it is not beside the program, as in scripts that
    /// use SkiaSharp themselves; the functions here need no such call.
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
    let isAvailable () : bool =
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
        ]

    /// Why a codec's image cannot be decoded, if that shows before trying.
    let private objection (codec: SKCodec) =
        if isNull codec || not (List.contains codec.EncodedFormat formats) then
            Some "no JPEG, PNG, WebP or BMP image"
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

    /// The bytes of a regular file, or why there are none.
    let private bytes (path: string) : Result<byte[], string> =
        try
            let file = FileInfo path

            if not file.Exists then
                Error "no such file"
            // pipes and devices have no length either, and reading them might never end
            elif file.Length = 0L then
                Error "empty"
            elif file.Length > MaxBytes then
                Error $"{file.Length} bytes, more than {MaxBytes}"
            else
                Ok(File.ReadAllBytes path)
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Error e.Message

    /// The picture, or why there is none, in a few words.
    let tryRead (path: string) : Result<Picture, string> =
        bytes path
        |> Result.bind (fun bytes ->
            withSkia (fun () ->
                use data = SKData.CreateCopy bytes
                use codec = SKCodec.Create data

                match objection codec with
                | Some reason -> Error reason
                | None -> decoded codec))

    /// Reads an image file. Rejects one that is missing, broken, truncated, of another format or of more than 100
    /// million pixels.
    let read (path: string) : Picture =
        match tryRead path with
        | Ok picture -> picture
        | Error reason -> Errors.reject path "must be a JPEG, PNG, WebP or BMP image" reason ""

    /// Whether the file goes as far as its format says; false also where that cannot be told.
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

    /// What is wrong with a file, as far as its header and its end tell; where they do not tell, it is decoded. Damage
    /// in between shows only when the file is read.
    let glance (path: string) : string option =
        let decode () =
            match tryRead path with
            | Ok _ -> None
            | Error reason -> Some reason

        try
            let file = FileInfo path

            if file.Exists && file.Length > 0L then
                withSkia (fun () ->
                    use codec = SKCodec.Create path

                    match objection codec with
                    | Some reason -> Some reason
                    | None when isWhole path codec.EncodedFormat -> None
                    | None -> decode ())
            else
                Some(if file.Exists then "empty" else "no such file")
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Some e.Message
