/// `lorasub methods` and `lorasub heads`: what can be chosen by name.
module LoRASub.Cli.ListCommand

open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Settings

let private row (name: string) (lines: string list) =
    match lines with
    | [] -> [ name ]
    | first :: rest ->
        $"{name, -22} {first}"
        :: (rest |> List.map (fun line -> $"""{"", -22} {line}"""))

/// Name, meaning, source and storage of every method.
let methods () : string list =
    [
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
        for one in Heads.all do
            yield!
                row
                    one.Info.Name
                    [
                        one.Info.Summary
                        one.Info.Source
                        for parameter, byDefault in one.Parameters do
                            $":{parameter}, by default {byDefault}"
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
