module LoRASub.Tests.PictureTests

open System
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private box top left height width : CropBox =
    {
        Top = top
        Left = left
        Height = height
        Width = width
    }

let private whole (p: Picture) = box 0 0 p.Height p.Width

/// The definition in float64 loops, rounded after each axis: triangle weights inside the box alone.
let private slow (b: CropBox) (height: int) (width: int) (p: Picture) : byte[] =
    let weights extent target i =
        let scale = float extent / float target
        let support = max 1.0 scale

        let raw =
            Array.init extent (fun j ->
                max 0.0 (1.0 - abs (float j + 0.5 - (float i + 0.5) * scale) / support))

        raw |> Array.map (fun w -> w / Array.sum raw)

    let pixel y x c =
        float p.Pixels[3 * ((b.Top + y) * p.Width + b.Left + x) + c]

    let rounded (x: float) = Math.Floor(x + 0.5)

    [|
        for y in 0 .. height - 1 do
            let rows = weights b.Height height y

            for x in 0 .. width - 1 do
                let columns = weights b.Width width x

                for c in 0..2 do
                    let across row =
                        Array.mapi (fun j w -> w * pixel row j c) columns |> Array.sum |> rounded

                    byte (
                        Array.mapi (fun j w -> if w = 0.0 then 0.0 else w * across j) rows
                        |> Array.sum
                        |> rounded
                    )
    |]

let private largest (expected: byte[]) (actual: byte[]) =
    Expect.equal actual.Length expected.Length "as many bytes"

    Array.map2 (fun (a: byte) (b: byte) -> abs (int a - int b)) expected actual
    |> Array.max

let private sized (h: int) (w: int) (seed: int) : Picture =
    let noise = Random seed

    {
        Height = h
        Width = w
        Pixels = Array.init (3 * h * w) (fun _ -> byte (noise.Next 256))
    }

let private badInputs: BadInput list =
    let crop b _ =
        Picture.crop b 2 2 (PillowFixtures.pattern 4 6) |> ignore

    [
        "a box below the image", [ "crop box"; "4 x 6"; "Top = 2" ], crop (box 2 0 3 6)
        "a box right of the image", [ "crop box"; "Left = 6" ], crop (box 0 6 4 1)
        "a negative start", [ "crop box"; "Left = -1" ], crop (box 0 -1 2 2)
        "an empty box", [ "crop box"; "Height = 0" ], crop (box 0 0 0 2)
        "an overflowing box", [ "crop box" ], crop (box 1 0 Int32.MaxValue 1)
        "a height of 0", [ "image size"; "0 x 3" ], fun _ -> Picture.resize 0 3 (sized 2 2 1) |> ignore
        "a picture with too few bytes",
        [ "reader"; "3 bytes a pixel"; "2 x 2 with 11" ],
        fun _ ->
            Picture.require
                "reader"
                { sized 2 2 1 with
                    Pixels = Array.zeroCreate 11
                }
            |> ignore
        "a centre of size 0", [ "image size"; "0" ], fun _ -> Picture.centre 4 0 (sized 2 2 1) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Picture"
        [
            refusals badInputs

            for h, w, b, height, width, base64 in PillowFixtures.crops do
                testCase
                    $"{b.Height} x {b.Width} of {h} x {w} to {height} x {width} is Pillow's, bit for bit"
                    (fun () ->
                        let made = Picture.crop b height width (PillowFixtures.pattern h w)
                        Expect.equal (made.Height, made.Width) (height, width) "size"
                        Expect.equal made.Pixels (PillowFixtures.bytes base64) "bytes")

            for h, w, side, size, base64 in PillowFixtures.centres do
                testCase $"the middle {size} of {h} x {w} at {side} is Pillow's, bit for bit" (fun () ->
                    let made = Picture.centre side size (PillowFixtures.pattern h w)
                    Expect.equal (made.Height, made.Width) (size, size) "size"
                    Expect.equal made.Pixels (PillowFixtures.bytes base64) "bytes")

            law
                "cropping and resizing is the slow definition within one level"
                (fun (PositiveInt h, PositiveInt w, PositiveInt oh, PositiveInt ow, seed: int) ->
                    let h, w, oh, ow = 1 + h % 17, 1 + w % 17, 1 + oh % 12, 1 + ow % 12
                    let picture = sized h w seed
                    let draw = Random seed
                    let bh, bw = 1 + draw.Next h, 1 + draw.Next w
                    let b = box (draw.Next(h - bh + 1)) (draw.Next(w - bw + 1)) bh bw
                    let made = Picture.crop b oh ow picture
                    // a sum that lies on a half may be rounded either way, once an axis
                    Expect.isLessThanOrEqual (largest (slow b oh ow picture) made.Pixels) 1 "levels")

            law
                "an image of one colour stays one, at any size"
                (fun (PositiveInt h, PositiveInt w, PositiveInt size, r: byte, g: byte, b: byte) ->
                    let picture = plainPicture (1 + h % 40) (1 + w % 40) (int r) (int g) (int b)
                    let size = 1 + size % 30
                    let made = Picture.resize size (size + 1) picture

                    Expect.equal
                        made.Pixels
                        (plainPicture size (size + 1) (int r) (int g) (int b)).Pixels
                        "colour"
                    // where the centre crop needs no black
                    let middle = Picture.centre (size + 2) size picture

                    Expect.equal
                        middle.Pixels
                        (plainPicture size size (int r) (int g) (int b)).Pixels
                        "middle")

            law "its own size changes nothing" (fun (PositiveInt h, PositiveInt w, seed: int) ->
                let picture = sized (1 + h % 20) (1 + w % 20) seed

                Expect.equal
                    (Picture.resize picture.Height picture.Width picture).Pixels
                    picture.Pixels
                    "bytes")

            law "a crop sees nothing outside its box" (fun (PositiveInt size, seed: int) ->
                let picture = sized 9 11 seed
                let b = box 2 3 5 4
                let size = 1 + size % 9
                let cut = Picture.crop b 5 4 picture
                let expected = Picture.resize size size cut
                Expect.equal (Picture.crop b size size picture).Pixels expected.Pixels "cut first")

            law
                "the middle is the resized image's middle"
                (fun (PositiveInt h, PositiveInt w, PositiveInt s) ->
                    let h, w, side = 3 + h % 30, 3 + w % 30, 3 + s % 12
                    let picture = PillowFixtures.pattern h w
                    let size = 1 + side / 2
                    let struct (height, width) = Picture.shorterSide side h w
                    Expect.equal (min height width) side "shorter side"
                    Expect.equal (max height width) (side * max h w / min h w) "longer side, rounded down"
                    let all = Picture.resize height width picture

                    let b =
                        box (Picture.centreOffset height size) (Picture.centreOffset width size) size size

                    Expect.equal
                        (Picture.centre side size picture).Pixels
                        (Picture.crop b size size all).Pixels
                        "cut")

            law
                "mirroring twice is nothing, and mirrors rows"
                (fun (PositiveInt h, PositiveInt w, seed: int) ->
                    let picture = sized (1 + h % 9) (1 + w % 9) seed
                    let once = Picture.flip picture
                    Expect.equal (Picture.flip once).Pixels picture.Pixels "twice"

                    Expect.equal
                        once.Pixels[0..2]
                        picture.Pixels[3 * picture.Width - 3 .. 3 * picture.Width - 1]
                        "corner")

            law
                "grey by PIL's integers is ITU-R 601 luma, rounded, and grey stays"
                (fun (r: byte, g: byte, b: byte) ->
                    let grey = planes 1 (plainPicture 1 1 (int r) (int g) (int b))
                    let luma = 0.299 * float r + 0.587 * float g + 0.114 * float b
                    // 16 binary places
                    Expect.isLessThan (abs (float grey[0] - luma)) 0.505 "luma"
                    Expect.equal (planes 1 (plainPicture 1 1 (int r) (int r) (int r))) [| r |] "grey")

            testCase "the picture given stays as it was" (fun () ->
                let picture = PillowFixtures.pattern 8 9
                let before = Array.copy picture.Pixels
                Picture.crop (whole picture) 4 4 picture |> Picture.flip |> ignore
                Picture.centre 5 12 picture |> ignore
                Expect.equal picture.Pixels before "bytes")
        ]
