module LoRASub.Tests.FileKindTests

open System
open System.IO
open System.IO.Compression
open System.Text
open LoRASub.Files
open Expecto
open FsCheck.FSharp

let private zip (entry: string) =
    use file = new MemoryStream()

    (use archive = new ZipArchive(file, ZipArchiveMode.Create, leaveOpen = true)
     use stream = archive.CreateEntry(entry).Open()
     stream.Write("content"B, 0, 7))

    file.ToArray()

let private gzip () =
    use file = new MemoryStream()

    (use packed = new GZipStream(file, CompressionLevel.Fastest, leaveOpen = true)
     packed.Write("content"B, 0, 7))

    file.ToArray()

let private tar () =
    use file = new MemoryStream()

    (use archive = new Formats.Tar.TarWriter(file, leaveOpen = true)
     archive.WriteEntry(Formats.Tar.UstarTarEntry(Formats.Tar.TarEntryType.RegularFile, "a")))

    file.ToArray()

/// Bytes of a kind, its name, and the advice.
let kinds: (byte[] * string * string) list =
    let text (some: string) = Encoding.UTF8.GetBytes some

    [
        [||], "an empty file", "download"
        text "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS", "git lfs pull"
        zip "archive/data.pkl", "PyTorch archive (.pth, zip)", "docs/formats.md"
        zip "w.npy", "NumPy archive (.npz, zip)", "docs/formats.md"
        zip "readme.txt", "a zip archive", "unpack"
        Array.append [| 0x80uy; 2uy; 0x8Auy; 10uy |] (Array.zeroCreate 20), "pickle", "docs/formats.md"
        Array.append [| 0x93uy |] "NUMPY\001\000v\000{}"B, "NumPy array", "docs/formats.md"
        gzip (), "gzip", "unpack"
        "BZh91AY&SY"B, "bzip2", "unpack"
        Array.append [| 0xFDuy |] "7zXZ\000\000\004"B, "xz", "unpack"
        [| 0x28uy; 0xB5uy; 0x2Fuy; 0xFDuy; 0uy |], "Zstandard", "unpack"
        tar (), "tar", "unpack"
        Array.append "GGUF\003\000\000\000"B (Array.zeroCreate 20), "GGUF", "Vision Transformer"
        Array.append [| 0x89uy |] "HDF\r\n\026\n\000"B, "HDF5", "docs/formats.md"
        Array.append [| 8uy; 7uy; 18uy; 7uy |] "pytorch\026\0052.1.0"B, "ONNX", "exported from"
        text "\uFEFF\n <!DOCTYPE html><html></html>", "HTML", "not the page"
        text "<HTML><body>Access denied", "an HTML page", "not the page"
        text "<?xml version='1.0'?><svg/>", "an SVG drawing", ""
        text "<?xml version=\"1.0\"?><Error/>", "XML", "login"
        text """{"metadata": {}, "weight_map": {"cls_token": "a.safetensors"}}""", "index of shards", "merge"
        text """{"architecture": "vit"}""", "a JSON text", "beside it"
        Array.append [| 0x89uy |] "PNG\r\n\026\n"B, "a PNG image", ""
    ]

[<Tests>]
let tests =
    testList
        "FileKind"
        [
            for bytes, name, advice in kinds do
                testCase $"{name} is known by its first bytes" (fun () ->
                    match FileKind.identify bytes with
                    | Some kind ->
                        Expect.stringContains kind.Name name "name"
                        Expect.stringContains kind.Advice advice "advice"
                    | None -> failtest "not identified")

            testCase "a safetensors file is none of them, nor are bytes without meaning" (fun () ->
                for bytes in
                    [
                        Array.append (BitConverter.GetBytes 2UL) "{}"B
                        // lengths whose bytes begin as an icon and as JPEG XL do
                        Array.append (BitConverter.GetBytes 0x10000UL) "{}"B
                        Array.append (BitConverter.GetBytes 0x0AFFUL) "{}"B
                        Array.append (BitConverter.GetBytes 0x088B1FUL) "{}"B |> Array.skip 1
                        Array.zeroCreate 300
                        "some text"B
                    ] do
                    Expect.isNone (FileKind.identify bytes) $"{bytes.Length} bytes")

            Check.propertyWith
                (ArbMap.defaults |> ArbMap.arbitrary<byte[]>)
                500
                "FileKind"
                "any bytes are identified or not, without an error"
                (fun bytes -> FileKind.identify bytes |> ignore)
        ]
