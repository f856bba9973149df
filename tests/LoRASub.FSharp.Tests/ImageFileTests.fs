module LoRASub.Tests.ImageFileTests

open System
open System.IO
open System.Text
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private under (folder: string) (name: string) = Path.Combine(folder, name)

let private written (folder: string) name (bytes: byte[]) =
    let path = under folder name
    File.WriteAllBytes(path, bytes)
    path

let private fixture (what: string) =
    let _, _, file, expected =
        PillowFixtures.files |> List.find (fun (name, _, _, _) -> name.StartsWith what)

    PillowFixtures.bytes file, PillowFixtures.bytes expected

/// A PNG whose header declares another size, with the header's check sum put right.
let png (width: int) (height: int) : byte[] =
    let file = fst (fixture "one-bit") |> Array.copy

    let put (at: int) (value: uint32) =
        Buffers.Binary.BinaryPrimitives.WriteUInt32BigEndian(Span(file, at, 4), value)

    put 16 (uint32 width)
    put 20 (uint32 height)

    let crc =
        file[12..28]
        |> Array.fold
            (fun crc b ->
                Seq.fold
                    (fun (c: uint32) _ -> if c &&& 1u = 1u then (c >>> 1) ^^^ 0xEDB88320u else c >>> 1)
                    (crc ^^^ uint32 b)
                    [ 1..8 ])
            0xFFFFFFFFu

    put 29 (~~~crc)
    file

let private rule = "must be a JPEG, PNG, WebP, BMP or GIF image"

let private badInputs: BadInput list =
    let bytes name content why : BadInput =
        name,
        [ "image.jpg"; rule; why ],
        fun folder ->
            refused [ "image.jpg"; rule; why ] (fun () ->
                ImageFile.decode "image.jpg" (ReadOnlyMemory content) |> ignore)

            ImageFile.read (written folder "image.jpg" content) |> ignore

    let jpeg, _ = fixture "grey JPEG"

    [
        bytes "an empty file" [||] "empty"
        for name, start, why in
            [
                "text", "no image", "found text"
                "a web page", "\r\n<!DOCTYPE html><html>404 Not Found</html>", "an HTML page"
                "a web page without a type", "<html>404 Not Found</html>", "an HTML page"
                "a drawing", "<?xml version='1.0'?><svg/>", "an SVG drawing"
                "a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"
                "a TIFF", "II*\000\008\000\000\000", "a TIFF image"
                "an AVIF", "\000\000\000\032ftypavif", "an AVIF image"
                "a HEIC", "\000\000\000\032ftypheic", "a HEIC image"
                "a portable map", "P6\n2 2 255\n", "a portable map"
                "a zip archive", "PK\003\004", "a zip archive"
                "a cut GIF", "GIF89a\002\000", "a GIF image that is damaged"
                "noise", "\001\255\002\254", "not an image in a known format"
            ] do
            bytes name (Encoding.Latin1.GetBytes start) why
        bytes "zeros" (Array.zeroCreate 4000) "only zero bytes"
        for extension in [ "jpg"; "png"; "webp"; "bmp" ] do
            $"a {extension} without its last third",
            [ "image."; rule ],
            fun folder ->
                let path = under folder $"image.{extension}"
                writePicture path (PillowFixtures.pattern 40 50)
                let file = File.ReadAllBytes path
                File.WriteAllBytes(path, file[.. file.Length * 2 / 3])
                ImageFile.read path |> ignore
        bytes "only a JPEG's header" jpeg[..20] "a JPEG image that is damaged"
        bytes "a PNG of 60000 x 50000" (png 60000 50000) "more than 100000000"
        bytes "a PNG of 0 x 5" (png 0 5) "a PNG image that is damaged"
        bytes "a PNG with fewer rows than declared" (png 9 600) ""
        "a missing file",
        [ "nothing.png"; rule; "no such file" ],
        fun folder -> ImageFile.read (under folder "nothing.png") |> ignore
        "a link to nothing",
        [ rule; "a link to gone.png, which does not exist" ],
        fun folder ->
            File.CreateSymbolicLink(under folder "link.png", "gone.png") |> ignore
            ImageFile.read (under folder "link.png") |> ignore
        "a folder", [ rule; "no such file" ], fun folder -> ImageFile.read folder |> ignore
    ]

[<Tests>]
let tests =
    testList
        "ImageFile"
        [
            refusals badInputs

            for what, extension, file, expected in PillowFixtures.files do
                testCase $"{what}, as Pillow" (fun () ->
                    inFolder (fun folder ->
                        let path = written folder $"image.{extension}" (PillowFixtures.bytes file)
                        let picture = ImageFile.read path
                        Expect.equal (picture.Height, picture.Width) (6, 9) "size"
                        Expect.equal picture.Pixels (PillowFixtures.bytes expected) "bytes"
                        Expect.isNone (ImageFile.glance path) "nothing wrong at a glance"))

            testCase "of a GIF the first frame, under any name" (fun () ->
                inFolder (fun folder ->
                    // 2 x 1: red, then a second frame of blue
                    let gif =
                        Encoding.Latin1.GetBytes(
                            "GIF89a\002\000\001\000\128\000\000\255\000\000\000\000\255"
                            + "\044\000\000\000\000\002\000\001\000\000\002\002\004\010\000"
                            + "\044\000\000\000\000\002\000\001\000\000\002\002\076\010\000\059"
                        )

                    let path = written folder "image.jpg" gif
                    let picture = ImageFile.read path
                    Expect.equal (picture.Height, picture.Width) (1, 2) "size"
                    Expect.equal picture.Pixels [| 255uy; 0uy; 0uy; 255uy; 0uy; 0uy |] "pixels"
                    Expect.isNone (ImageFile.glance path) "nothing wrong"
                    Expect.isSome (ImageFile.glance (written folder "cut.jpg" gif[..25])) "cut"

                    // the first colour made transparent
                    let control = Encoding.Latin1.GetBytes "\033\249\004\001\000\000\000\000"
                    let transparent = Array.concat [ gif[..18]; control; gif[19..] ]
                    let picture = ImageFile.read (written folder "transparent.gif" transparent)
                    Expect.equal picture.Pixels (Array.zeroCreate 6) "transparent is black"))

            for extension in [ "png"; "bmp"; "jpg"; "webp" ] do
                testCase $"a {extension} of this machine comes back" (fun () ->
                    inFolder (fun folder ->
                        // the extension is not what tells the format
                        let path, wrong = under folder ("image." + extension), under folder "image.dat"
                        let picture = PillowFixtures.smooth 33 50
                        writePicture path picture
                        File.Copy(path, wrong)
                        let back = ImageFile.read wrong
                        Expect.equal (back.Height, back.Width) (33, 50) "size"

                        let differences =
                            Array.map2
                                (fun (a: byte) (b: byte) -> abs (float a - float b))
                                picture.Pixels
                                back.Pixels

                        match extension with
                        | "png"
                        | "bmp" -> Expect.equal back.Pixels picture.Pixels "bytes"
                        | _ ->
                            Expect.isLessThan
                                (Array.average differences)
                                6.0
                                "mean difference of a lossy file"))

            law
                "a spoilt file is refused or read, and nothing else happens"
                (fun (which: int, at: int, value: byte, cut: int) ->
                    let fixtures = List.toArray PillowFixtures.files
                    let _, _, file, _ = fixtures[(which &&& 0x7FFFFFFF) % fixtures.Length]
                    let bytes = PillowFixtures.bytes file
                    bytes[(at &&& 0x7FFFFFFF) % bytes.Length] <- value

                    let bytes =
                        if cut % 3 = 0 then
                            bytes[.. (cut &&& 0x7FFFFFFF) % bytes.Length]
                        else
                            bytes

                    inFolder (fun folder ->
                        let path = written folder "image" bytes

                        match ImageFile.tryRead path with
                        | Ok picture ->
                            Expect.equal picture.Pixels.Length (3 * picture.Height * picture.Width) "whole"
                            Expect.isNone (ImageFile.glance path) "a glance finds no more than reading"
                        | Error reason -> Expect.isNotEmpty reason "reason"))

            testCase "a glance sees what is missing, cut, or no image" (fun () ->
                inFolder (fun folder ->
                    for what in [ "grey JPEG"; "RGB PNG"; "lossy WebP"; "palette BMP" ] do
                        let bytes, _ = fixture what
                        let path = written folder "cut" bytes[.. bytes.Length * 3 / 4]
                        Expect.isSome (ImageFile.glance path) what

                    Expect.equal (ImageFile.glance (under folder "nothing")) (Some "no such file") "missing"
                    let text = written folder "text.png" (Encoding.UTF8.GetBytes "hello")
                    Expect.isSome (ImageFile.glance text) "text"
                    // some cameras write on after the image's end
                    let jpeg, expected = fixture "grey JPEG"
                    let long = written folder "long.jpg" (Array.append jpeg (Array.zeroCreate 100))
                    Expect.isNone (ImageFile.glance long) "bytes after the end"
                    Expect.equal (ImageFile.read long).Pixels expected "are ignored"))
        ]
