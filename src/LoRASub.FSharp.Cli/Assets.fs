/// The bundled data set and backbone, for runs that name none.
module LoRASub.Cli.Assets

open System
open System.IO
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Settings
open LoRASub.Run

/// Beside the executable, in a build folder as in a published one.
let folder = Path.Combine(AppContext.BaseDirectory, "assets")

[<Literal>]
let DataName = "fashion-mnist"

let dataPath = Path.Combine(folder, DataName)
let backbone = Path.Combine(folder, "vit_micro_patch4_32.safetensors")

let private orAsset exists flag path given =
    match given with
    | Some name when String.IsNullOrWhiteSpace name ->
        Errors.reject $"--{flag}" "must name a file or folder" "an empty name" ""
    | Some _ -> given
    | None when exists path -> Some path
    | None ->
        Errors.reject
            path
            "must be in the program's folder"
            "nothing"
            $"reinstall the program or pass --{flag}"

// saved settings must name the same file from any folder
let private absolute (path: string) = Path.GetFullPath path

// As a setting, folders are separated by commas.
let private reference (folder: string) =
    let path = absolute folder

    if path.Contains ',' then
        Errors.reject "--reference" "must be a path without a comma" path "rename or move the folder"

    path

/// The settings with a downloaded data set where none is named.
let downloaded (settings: RunSettings) : RunSettings =
    if settings.DataPath.IsNone && settings.Data <> DataName then
        { settings with
            DataPath = DataDownloads.cached settings.Data
        }
    else
        settings

/// The settings with the program's own data set and backbone where none is named. Rejects an unknown data set, and
/// one of which the program has no copy.
let fill (settings: RunSettings) : RunSettings =
    if not (List.contains settings.Data Datasets.names) then
        Datasets.load settings.Data "" |> ignore

    let data =
        match settings.DataPath with
        | None when settings.Data <> DataName ->
            Errors.reject
                "--data-path"
                $"must name the folder with the files of {settings.Data}"
                "none"
                (match DataDownloads.tryFind settings.Data with
                 | Some row -> $"pass --data-path DIR, or run: lorasub data get {row.Name}"
                 | None -> "pass --data-path DIR")
        | given -> orAsset Directory.Exists "data-path" dataPath given

    { settings with
        DataPath = Option.map absolute data
        Backbone =
            settings.Backbone
            |> Option.map Backbones.find
            |> orAsset File.Exists "backbone" backbone
            |> Option.map absolute
        Reference = List.map reference settings.Reference
        ClassOrder =
            match settings.ClassOrder with
            | "natural"
            | "seed1993" as known -> known
            | file -> absolute file
    }
