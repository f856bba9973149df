/// `lorasub methods` and `lorasub heads`: what can be chosen by name.
module LoRASub.Cli.ListCommand

open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Settings

let private row (name: string) (lines: string list) =
    match lines with
    | [] -> [ name ]
    | first :: rest -> Layout.row 23 name first @ List.collect (Layout.row 23 "") rest

/// Name, meaning, source and storage of every method.
let methods () : string list =
    [
        "L blocks of width d, rank r, MLP adapters of width h. A head adds what it keeps"
        "per class (lorasub heads)."
        ""

        yield!
            row
                Methods.Auto
                [
                    "first-session if a trial on the first task gains from it, else frozen"
                    "this project: validation on the first task's training images"
                ]

        for one in Methods.all do
            yield! row one.Info.Name [ one.Info.Summary; one.Info.Source; $"stores {one.Info.Stores}" ]
    ]

/// Name, parameters, meaning and source of every head, and the names of the embeddings and presets.
let heads () : string list =
    [
        "heads (--head, or several with --heads)"

        for one in Heads.all do
            yield!
                row
                    one.Info.Name
                    [
                        one.Info.Summary
                        one.Info.Source
                        if not one.Parameters.IsEmpty then
                            let names = one.Parameters |> List.map fst |> String.concat ":"
                            let values = one.Parameters |> List.map snd |> String.concat ":"
                            $"{one.Info.Name}:{names}, by default {one.Info.Name}:{values}"
                    ]

        ""
        "embeddings (--embedding, or HEAD@EMBEDDING in --heads)"

        for name, meaning in Embedding.meanings do
            yield! row name [ meaning ]

        ""
        "presets (--preset)"

        for name, meaning, _ in Preset.named do
            yield! row name [ meaning ]
    ]
