namespace LoRASub.Files

open System
open System.Text

/// What a file is, by its first bytes.
type internal FileKind =
    {
        /// With its article, as in "found a Git LFS pointer".
        Name: string
        /// What to do where safetensors was expected; may be empty.
        Advice: string
    }

/// Formats that are mistaken for safetensors or for images, recognised by their signatures.
[<RequireQualifiedAccess>]
module internal FileKind =

    /// The bytes that `identify` looks at.
    [<Literal>]
    let Needed = 4096

    let private convert = "convert it to safetensors, as docs/formats.md shows"
    let private unpack = "unpack it and give the safetensors file in it"

    /// What `torch.save` writes.
    let torchArchive =
        {
            Name = "a PyTorch archive (.pth, zip)"
            Advice = convert
        }

    /// What `numpy.savez` writes.
    let numpyArchive =
        {
            Name = "a NumPy archive (.npz, zip)"
            Advice = convert
        }

    /// Names the files of a network in several.
    let shardIndex =
        {
            Name = "an index of shards, not the weights"
            Advice = "merge the shards that it names into one file, as docs/formats.md shows"
        }

    let private startsWith (signature: byte[]) (start: byte[]) =
        start.AsSpan().StartsWith(ReadOnlySpan signature)

    let private has (text: string) (start: byte[]) =
        start.AsSpan().IndexOf(ReadOnlySpan(Encoding.ASCII.GetBytes text)) >= 0

    /// The first letters of a text in UTF-8, without a byte order mark and white space, in lower case.
    let private opens (word: string) (start: byte[]) =
        let text =
            (Encoding.UTF8.GetString start).TrimStart('\uFEFF', ' ', '\t', '\r', '\n')

        text.StartsWith(word, StringComparison.OrdinalIgnoreCase)

    let private at (offset: int) (signature: byte[]) (start: byte[]) =
        start.Length > offset && start.AsSpan(offset).StartsWith(ReadOnlySpan signature)

    /// ONNX: a protobuf that begins with a small version and the name of its producer.
    let private isOnnx (start: byte[]) =
        let isName length =
            length > 0
            && start.Length >= 4 + length
            && start[4 .. 3 + length] |> Array.forall (fun b -> b >= 32uy && b < 127uy)

        start.Length > 4
        && start[0] = 8uy
        && start[1] < 64uy
        && start[2] = 18uy
        && isName (int start[3])

    /// Whether the first eight bytes can be the length of a safetensors header, of less than 4 GB.
    let private isLength = at 4 (Array.zeroCreate 4)

    let private isZip = startsWith "PK\003\004"B

    /// The first that fits counts.
    let private known: ((byte[] -> bool) * FileKind) list =
        let kind name advice test = test, { Name = name; Advice = advice }
        let both a b start = a start && b start

        [
            Array.isEmpty |> kind "an empty file" "download it again"
            startsWith "version https://git-lfs"B
            |> kind "a Git LFS pointer, which only names the file" "fetch the file with `git lfs pull`"
            both isZip (has "data.pkl"), torchArchive
            both isZip (has ".npy"), numpyArchive
            isZip |> kind "a zip archive" unpack
            startsWith [| 0x93uy; yield! "NUMPY"B |] |> kind "a NumPy array (.npy)" convert
            (fun (start: byte[]) ->
                start.Length > 1 && start[0] = 0x80uy && start[1] >= 2uy && start[1] <= 5uy)
            |> kind "a Python pickle, as older PyTorch saved (.pth)" convert
            startsWith [| 0x1Fuy; 0x8Buy |] |> kind "a gzip archive" unpack
            startsWith "BZh"B |> kind "a bzip2 archive" unpack
            startsWith [| 0xFDuy; yield! "7zXZ\000"B |] |> kind "an xz archive" unpack
            startsWith [| 0x28uy; 0xB5uy; 0x2Fuy; 0xFDuy |]
            |> kind "a Zstandard archive" unpack
            startsWith [| yield! "7z"B; 0xBCuy; 0xAFuy |] |> kind "a 7-Zip archive" unpack
            at 257 "ustar"B |> kind "a tar archive" unpack
            startsWith "GGUF"B
            |> kind "a GGUF file, of a language model" "give the weights of a Vision Transformer"
            startsWith [| 0x89uy; yield! "HDF\r\n\026\n"B |]
            |> kind "an HDF5 file (.h5)" convert
            isOnnx |> kind "an ONNX model" "give the weights that it was exported from"
            (fun (start: byte[]) -> opens "<!doctype html" start || opens "<html" start)
            |> kind
                "an HTML page, as a failed download leaves"
                "download the file itself, not the page that shows it"
            (fun (start: byte[]) -> opens "<svg" start || opens "<?xml" start && has "<svg" start)
            |> kind "an SVG drawing" ""
            opens "<?xml"
            |> kind
                "an XML text, as servers answer instead of a file"
                "download the file again; it may need a login"
            both (opens "{") (has "\"weight_map\""), shardIndex
            (fun (start: byte[]) -> opens "{" start || opens "[" start)
            |> kind "a JSON text" "give the weights beside it"
            startsWith [| 0x89uy; yield! "PNG"B |] |> kind "a PNG image" ""
            startsWith [| 0xFFuy; 0xD8uy; 0xFFuy |] |> kind "a JPEG image" ""
            startsWith "GIF8"B |> kind "a GIF image" ""
            at 8 "WEBP"B |> kind "a WebP image" ""
            (fun (start: byte[]) -> startsWith "II*\000"B start || startsWith "MM\000*"B start)
            |> kind "a TIFF image" ""
            at 4 "ftypavi"B |> kind "an AVIF image" ""
            (fun (start: byte[]) -> at 4 "ftyphei"B start || at 4 "ftypmif1"B start)
            |> kind "a HEIC image" ""
            at 4 "ftyp"B |> kind "an MP4 video" ""
            (fun (start: byte[]) ->
                startsWith [| 0xFFuy; 0x0Auy |] start && not (isLength start)
                || at 4 "JXL "B start)
            |> kind "a JPEG XL image" ""
            at 4 "jP  "B |> kind "a JPEG 2000 image" ""
            startsWith "8BPS"B |> kind "a Photoshop image" ""
            both (startsWith [| 0uy; 0uy; 1uy; 0uy |]) (isLength >> not)
            |> kind "a Windows icon" ""
            startsWith "%PDF"B |> kind "a PDF document" ""
            (fun (start: byte[]) ->
                start.Length > 2
                && start[0] = byte 'P'
                && start[1] >= byte '1'
                && start[1] <= byte '6'
                && start[2] = 10uy)
            |> kind "a portable map (PBM, PGM or PPM)" ""
        ]

    /// What a file is whose first `Needed` bytes, or all where it has fewer, are these; None where they are of no
    /// known kind.
    let identify (start: byte[]) : FileKind option =
        known
        |> List.tryPick (fun (test, kind) -> if test start then Some kind else None)
