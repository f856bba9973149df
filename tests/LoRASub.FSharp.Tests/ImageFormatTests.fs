module LoRASub.Tests.ImageFormatTests

open LoRASub.Core
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles
open TorchSharp

let private format: ImageFormat =
    {
        Size = 4
        Channels = 3
        Low = -1.0
        High = 1.0
    }

let private float32' = torch.ScalarType.Float32

let private convert format dtype images =
    ImageFormat.toInput format Generators.device dtype images

/// uint8 [1, c, 4, 4], each channel of one value.
let private flat (channels: byte list) : torch.Tensor =
    let values =
        [|
            for value in channels do
                yield! Array.create 16 value
        |]

    Scope.keep Leaves.tensor (fun () ->
        (Generators.place (torch.tensor values)).view(1L, int64 channels.Length, 4L, 4L))

let private badInputs: BadInput list =
    let with' format _ =
        convert format float32' (flat [ 1uy; 2uy; 3uy ]) |> ignore

    [
        "a size of 0", [ "image size"; "0" ], with' { format with Size = 0 }
        "two channels in the network",
        [ "image channels"; "1 (grey) or 3 (RGB)"; "2" ],
        with' { format with Channels = 2 }
        "a range that falls", [ "input range"; "1 to 0" ], with' { format with Low = 1.0; High = 0.0 }
        "an empty range", [ "input range" ], with' { format with Low = 1.0; High = 1.0 }
        "an infinite range", [ "input range" ], with' { format with High = infinity }
        "a range that is no number", [ "input range"; "NaN" ], with' { format with Low = nan }
        "grey images for an RGB network",
        [ "images"; "3"; "[1, 1, 4, 4]" ],
        fun _ -> convert format float32' (flat [ 1uy ]) |> ignore
        "images of another size", [ "images"; "5"; "[1, 3, 4, 4]" ], with' { format with Size = 5 }
        "float images",
        [ "Byte"; "Float32" ],
        fun _ -> convert format float32' ((flat [ 1uy; 2uy; 3uy ]).``to`` float32') |> ignore
        "an image without a batch axis",
        [ "images"; "[1, 4, 4]" ],
        fun _ -> convert format float32' ((flat [ 1uy ]).squeeze 0L) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "ImageFormat"
        [
            refusals badInputs

            law
                "a pixel becomes pixel/255·(High − Low) + Low"
                (fun (pixel: byte, low: int8, PositiveInt width) ->
                    let low, high = float low / 10.0, float low / 10.0 + float width

                    let input =
                        convert
                            { format with Low = low; High = high }
                            float32'
                            (flat [ pixel; pixel; pixel ])

                    let expected = float pixel / 255.0 * (high - low) + low
                    Expect.equal input.shape [| 1L; 3L; 4L; 4L |] "shape"

                    for value in numbers input do
                        Expect.isLessThan
                            (abs (value - expected))
                            (1e-5 * (abs low + high - low + 1.0))
                            "value")

            testCase "RGB stays RGB, in its order" (fun () ->
                Scope.run (fun () ->
                    let input =
                        convert { format with Low = 0.0; High = 255.0 } float32' (flat [ 10uy; 20uy; 30uy ])

                    let expected =
                        [|
                            for value in [ 10.0; 20.0; 30.0 ] do
                                yield! Array.create 16 value
                        |]

                    Expect.all
                        (Array.map2 (fun a b -> abs (a - b)) expected (numbers input))
                        (fun d -> d < 1e-3)
                        "channels"))

            testCase "the element type is the one asked for" (fun () ->
                Scope.run (fun () ->
                    for dtype in [ float32'; torch.ScalarType.BFloat16; torch.ScalarType.Float64 ] do
                        Expect.equal (convert format dtype (flat [ 7uy; 8uy; 9uy ])).dtype dtype "type"))

            testCase "nothing is left behind, and the images stay" (fun () ->
                leavesNothing (fun () ->
                    for values in [ [ 1uy ]; [ 1uy; 2uy; 3uy ] ] do
                        for dtype in [ float32'; torch.ScalarType.BFloat16 ] do
                            use images = flat values

                            use input = convert { format with Channels = values.Length } dtype images

                            Expect.equal input.shape images.shape "shape"
                            Expect.equal (Array.head (bytes images)) 1uy "the argument is as it was"))
        ]
