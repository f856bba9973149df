module LoRASub.Tests.ResampleTests

open System
open Expecto
open FsCheck
open LoRASub
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles
open TorchSharp

let private box top left height width =
    {
        Top = top
        Left = left
        Height = height
        Width = width
    }

/// Image height and width, box, size, and what Pillow 9.4 gives for `crop` and then `resize` with its bilinear filter
/// on image 0 of `pattern`.
let private pillow =
    [
        12,
        12,
        box 0 0 12 12,
        5,
        """
114 127 150 88 143 143 162 132 142 147 125 110 101 87 93 120 110 127 92 131 156 131 115 102 116"""
        9,
        14,
        box 0 0 9 14,
        7,
        """
55 101 162 110 64 134 169 163 143 147 122 122 154 98 127 166 164 134 139 142 119 144 158 162 99 165 156
124 136 133 112 81 50 65 93 88 57 71 108 82 109 86 130 95 113 131 85 128 103"""
        6,
        6,
        box 0 0 6 6,
        9,
        """
0 19 43 68 93 117 142 167 185 46 69 100 134 107 81 122 165 198 106 136 169 186 126 71 117 159 190 167
202 216 133 144 176 179 146 110 100 141 178 164 163 167 175 168 158 32 80 140 195 169 136 166 192 212 93
146 187 142 140 162 212 191 155 154 149 150 173 146 135 218 161 81 199 135 100 217 160 101 212 131 21"""
        12,
        12,
        box 3 2 5 8,
        6,
        """
198 142 197 107 160 87 142 183 169 82 159 192 165 173 118 75 92 126 155 110 104 93 67 36 79 45 108 108
102 45 23 43 57 82 113 139"""
        16,
        16,
        box 4 5 3 2,
        6,
        """
141 141 110 80 49 49 111 111 95 80 64 64 51 51 65 79 93 93 55 55 71 88 104 104 123 123 114 105 95 95 157
157 135 113 91 91"""
        20,
        20,
        box 1 0 19 7,
        4,
        """
132 150 151 124 133 111 115 114 143 121 114 141 138 123 119 158"""
    ]

/// The definition, in float64 loops: weights of one output position over one interval.
let private slowWeights (start: int) (extent: int) (source: int) (target: int) (i: int) : float[] =
    let scale = float extent / float target
    let support = max scale 1.0
    let centre = float start + (float i + 0.5) * scale

    let raw =
        Array.init source (fun j ->
            if j < start || j >= start + extent then
                0.0
            else
                max 0.0 (1.0 - abs (float j + 0.5 - centre) / support))

    raw |> Array.map (fun w -> w / Array.sum raw)

let private slowCrop (target: int) (b: CropBox) (height: int) (width: int) (pixels: float[]) : float[] =
    [|
        for i in 0 .. target - 1 do
            let rows = slowWeights b.Top b.Height height target i

            for j in 0 .. target - 1 do
                let columns = slowWeights b.Left b.Width width target j
                let mutable sum = 0.0

                for y in 0 .. height - 1 do
                    for x in 0 .. width - 1 do
                        sum <- sum + rows[y] * columns[x] * pixels[y * width + x]

                sum
    |]

let private difference (expected: float[]) (actual: float[]) =
    Expect.equal actual.Length expected.Length "as many numbers"
    Array.map2 (fun a b -> abs (a - b)) expected actual

let private near what bound expected actual =
    Expect.isLessThan (Array.max (difference expected actual)) bound what

/// A box inside an image of height x width, from any numbers.
let private boxFrom (height: int) (width: int) (numbers: int list) =
    let at i n = (abs (numbers[i] % n))
    let h, w = 1 + at 0 height, 1 + at 1 width
    box (at 2 (height - h + 1)) (at 3 (width - w + 1)) h w

let private badInputs: BadInput list =
    let crop target boxes _ =
        Resample.crop target boxes (pattern 1 4 6) |> ignore

    [
        "a box below the image", [ "crop box"; "4 x 6"; "Top = 2" ], crop 3 [| box 2 0 3 6 |]
        "a box right of the image", [ "crop box"; "4 x 6"; "Left = 6" ], crop 3 [| box 0 6 4 1 |]
        "a negative start", [ "crop box"; "Top = -1" ], crop 3 [| box -1 0 2 2 |]
        "an empty box", [ "crop box"; "Width = 0" ], crop 3 [| box 0 0 2 0 |]
        "an overflowing box", [ "crop box" ], crop 3 [| box 1 0 Int32.MaxValue 1 |]
        "two boxes for one image", [ "crop boxes"; "must be 1"; "2" ], crop 3 [| box 0 0 1 1; box 0 0 1 1 |]
        "a size of 0", [ "image size"; "0" ], crop 0 [| box 0 0 1 1 |]
        "bytes",
        [ "Float32"; "Byte" ],
        fun _ -> Resample.resize 3 ((pattern 1 4 4).``to`` torch.ScalarType.Byte) |> ignore
        "three axes",
        [ "[n, c, H, W]"; "[1, 4, 4]" ],
        fun _ -> Resample.resize 3 ((pattern 1 4 4).squeeze 0L) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Resample"
        [
            refusals badInputs

            for height, width, box, size, greys in pillow do
                testCase
                    $"{height} x {width}, {box.Height} x {box.Width} of it to {size}: within one grey level of Pillow"
                    (fun () ->
                        Scope.run (fun () ->
                            let expected =
                                greys.Split([| ' '; '\n' |], StringSplitOptions.RemoveEmptyEntries)
                                |> Array.map float

                            let actual = numbers (Resample.crop size [| box |] (pattern 1 height width))
                            let differences = difference expected actual
                            Expect.isLessThanOrEqual (Array.max differences) 1.0 "largest difference"

                            Expect.isLessThan
                                (Array.average differences)
                                0.4
                                "mean difference, from rounding alone"))

            law
                "a batch of boxes is the slow definition, image by image"
                (fun (PositiveInt h, PositiveInt w, PositiveInt t, a: int, b: int) ->
                    let h, w, t = 1 + h % 13, 1 + w % 13, 1 + t % 9
                    let images = pattern 3 h w

                    let boxes =
                        [| for i in 1..3 -> boxFrom h w [ a / i; b / i; a / (i + 1); b / (i + 2) ] |]

                    let pixels = numbers images |> Array.chunkBySize (h * w)

                    let expected =
                        Array.map2 (fun box -> slowCrop t box h w) boxes pixels |> Array.concat

                    near "grey levels" 1e-2 expected (numbers (Resample.crop t boxes images)))

            law
                "weights are averages over their interval alone"
                (fun (PositiveInt s, PositiveInt t, a: int, b: int) ->
                    let source, target = 1 + s % 40, 1 + t % 40
                    let interval = boxFrom source source [ a; a; b; b ]

                    let one (x: int) =
                        Generators.place (torch.tensor [| single x |])

                    let weights =
                        Resample.weights source target (one interval.Top) (one interval.Height)

                    Expect.equal weights.shape [| 1L; int64 target; int64 source |] "shape"
                    let rows = numbers weights |> Array.chunkBySize source

                    for row in rows do
                        Expect.floatClose Accuracy.medium (Array.sum row) 1.0 "sum"
                        Expect.all row (fun weight -> weight >= 0.0) "not negative"

                        for j in 0 .. source - 1 do
                            if j < interval.Top || j >= interval.Top + interval.Height then
                                Expect.equal row[j] 0.0 "outside")

            law
                "resampling a box sees nothing outside it"
                (fun (PositiveInt t, a: int, b: int, c: int, d: int) ->
                    let t = 1 + t % 12
                    let images = pattern 1 11 8
                    let box = boxFrom 11 8 [ a; b; c; d ]

                    let cut =
                        images
                            .narrow(2L, int64 box.Top, int64 box.Height)
                            .narrow(3L, int64 box.Left, int64 box.Width)

                    near
                        "grey levels"
                        1e-2
                        (numbers (Resample.resize t cut))
                        (numbers (Resample.crop t [| box |] images)))

            law "mirroring and resampling commute" (fun (PositiveInt t) ->
                let t = 1 + t % 20
                let images = pattern 2 9 7
                let expected = (Resample.resize t images).flip 3L
                near "grey levels" 1e-2 (numbers expected) (numbers (Resample.resize t (images.flip 3L))))

            testCase "the size already there changes nothing, and the result is the caller's own" (fun () ->
                leavesNothing (fun () ->
                    use images = pattern 2 5 5

                    do
                        use same = Resample.resize 5 images
                        Expect.equal (numbers same) (numbers images) "pixels"

                    Expect.equal images.shape [| 2L; 1L; 5L; 5L |] "still alive after the result is freed"))

            testCase "channels are resampled each for itself" (fun () ->
                Scope.run (fun () ->
                    let images = (pattern 6 7 5).view(2L, 3L, 7L, 5L)
                    let boxes = [| box 1 0 4 5; box 0 2 7 2 |]
                    let whole = Resample.crop 4 boxes images

                    for c in 0L .. 2L do
                        let one = Resample.crop 4 boxes (images.narrow (1L, c, 1L))
                        near $"channel {c}" 1e-3 (numbers one) (numbers (whole.narrow (1L, c, 1L)))))

            testCase "nothing is left behind" (fun () ->
                leavesNothing (fun () ->
                    use images = pattern 2 6 6
                    use small = Resample.resize 3 images
                    use cut = Resample.crop 4 [| box 0 0 2 2; box 1 1 5 5 |] images

                    Expect.equal
                        (small.dtype, cut.dtype)
                        (torch.ScalarType.Float32, torch.ScalarType.Float32)
                        "type"))
        ]
