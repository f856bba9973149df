module LoRASub.Tests.WeightsCardTests

open System.IO
open LoRASub.Files
open LoRASub.Backbone
open Expecto
open FsCheck
open LoRASub.Tests.Check
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private header (folder: string) (metadata: (string * string) list) : TensorFileHeader =
    {
        Path = Path.Combine(folder, "net.safetensors")
        Entries = [||]
        Metadata = Map.ofList metadata
    }

/// What a JSON file beside the weights says.
let private beside (folder: string) (metadata: (string * string) list) (json: string) : WeightsCard =
    let header = header folder metadata
    File.WriteAllText(WeightsCard.path header.Path, json)
    WeightsCard.read header

let private values (stated: Stated<'T> option) = stated |> Option.map _.Value

let private badInputs: BadInput list =
    [
        for json, words in
            [
                "", [ "must be JSON"; "no text" ]
                "{", [ "must be JSON" ]
                "[1]", [ "a weights file" ]
                """{"input_range": [0, 1]}""", [ "no keys but"; "input-range"; "'input_range'" ]
                """{"heads": 3, "heads": 4}""", [ "'heads'"; "once"; "2 times" ]
                """{"heads": 0}""", [ "'heads'"; "whole number of at least 1"; "'0'" ]
                """{"heads": 2.5}""", [ "'heads'"; "whole number"; "'2.5'" ]
                """{"heads": "3"}""", [ "'heads'"; "must be a number"; "\"3\"" ]
                """{"image-size": -32}""", [ "'image-size'"; "whole number"; "'-32'" ]
                """{"input-range": 1}""", [ "'input-range'"; "two numbers, black below white"; "'1'" ]
                """{"input-range": [1, -1]}""", [ "'input-range'"; "black below white"; "'1,-1'" ]
                """{"input-range": [0, 1e999]}""", [ "'input-range'"; "two numbers" ]
                """{"input-range": [0, 1], "std": 1}""", [ "'input-range'"; "must not be beside" ]
                """{"mean": 0.5}""", [ "'mean'"; "must come together" ]
                """{"std": 0.5}""", [ "'std'"; "must come together" ]
                """{"mean": [0.5, 0.5], "std": 0.5}""", [ "'mean'"; "one a channel"; "'0.5,0.5'" ]
                """{"mean": 0.5, "std": [1, 0, 1]}""", [ "'std'"; "above 0"; "'1,0,1'" ]
                """{"norm-epsilon": [1e-5, 1e-6, 1e-6]}""", [ "'norm-epsilon'"; "one or two numbers" ]
                """{"norm-epsilon": 0}""", [ "'norm-epsilon'"; "between 0 and 1"; "'0'" ]
            ] do
            json, "net.safetensors.json" :: words, (fun folder -> beside folder [] json |> ignore)

        for key, text in
            [
                "heads", "two"
                "image-size", "0"
                "input-range", "0"
                "norm-epsilon", "much"
            ] do
            $"metadata {key}",
            [ "net.safetensors: metadata"; $"'{key}'"; $"'{text}'" ],
            fun folder -> WeightsCard.read (header folder [ key, text ]) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "WeightsCard"
        [
            refusals badInputs

            testCase "a file that says nothing" (fun () ->
                inFolder (fun folder ->
                    for card in
                        [ WeightsCard.read (header folder [ "format", "pt" ]); beside folder [] "{}" ] do
                        Expect.isNone card.InputRange "range"
                        Expect.isNone card.ImageSize "size"
                        Expect.isNone card.Heads "heads"
                        Expect.isNone card.NormEpsilon "epsilon"))

            testCase "the metadata and the file beside say the same in the same words" (fun () ->
                inFolder (fun folder ->
                    let inside =
                        WeightsCard.read (
                            header
                                folder
                                [
                                    "mean", "[0.5, 0.5, 0.5]"
                                    "std", "0.5"
                                    "image-size", "224"
                                    "heads", "12"
                                    "norm-epsilon", "1e-5,1e-6"
                                ]
                        )

                    let beside =
                        beside
                            folder
                            []
                            """{"input-range": [-1, 1], "image-size": 224, "heads": 12,
                                "norm-epsilon": [1e-5, 1e-6]}"""

                    for card in [ inside; beside ] do
                        Expect.equal (values card.InputRange) (Some [| struct (-1.0, 1.0) |]) "range"
                        Expect.equal (values card.ImageSize) (Some 224) "size"
                        Expect.equal (values card.Heads) (Some 12) "heads"

                        Expect.equal
                            (values card.NormEpsilon)
                            (Some { Blocks = 1e-5; Final = 1e-6 })
                            "epsilon"))

            testCase "the file beside comes first, key by key" (fun () ->
                inFolder (fun folder ->
                    let card = beside folder [ "heads", "12"; "image-size", "32" ] """{"heads": 6}"""
                    Expect.equal (values card.Heads) (Some 6) "beside"
                    Expect.stringContains card.Heads.Value.Place "net.safetensors.json: 'heads'" "place"
                    Expect.equal (values card.ImageSize) (Some 32) "inside"))

            law
                "mean and std give the values of black and white of each channel"
                (fun (means: int8 list, PositiveInt deviation) ->
                    let deviation = float deviation / 64.0

                    let means =
                        List.init 3 (fun i -> if i < means.Length then float means[i] / 64.0 else 0.5)

                    let card =
                        WeightsCard.ofMetadata
                            "w"
                            (Map.ofList
                                [
                                    "mean", means |> List.map (fun m -> m.ToString "R") |> String.concat ", "
                                    "std", deviation.ToString "R"
                                ])

                    for struct (low, high) in card.InputRange.Value.Value do
                        Expect.isTrue
                            (means
                             |> List.exists (fun mean ->
                                 abs (low * deviation + mean) < 1e-9
                                 && abs (high * deviation + mean - 1.0) < 1e-9))
                            $"{low} and {high} are black and white of a channel"

                    Expect.hasLength card.InputRange.Value.Value (List.distinct means).Length "channels")

            testCase "the bundled backbone states how it was trained" (fun () ->
                let folder = Path.Combine(System.AppContext.BaseDirectory, "assets")
                let path = Path.Combine(folder, "vit_micro_patch4_32.safetensors")
                let card = WeightsCard.read (Safetensors.header path)
                Expect.equal (values card.InputRange) (Some [| struct (-1.0, 1.0) |]) "range"
                Expect.equal (values card.ImageSize) (Some 32) "size"
                Expect.equal (values card.Heads) (Some 3) "heads"
                Expect.equal (values card.NormEpsilon) (Some { Blocks = 1e-6; Final = 1e-6 }) "epsilon")
        ]
