/// The plan of a run, as far as it is known without images, weights and LibTorch.
module LoRASub.Cli.DryRun

open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Settings

let private table (rows: (string * string * string) list) : string list =
    let width column =
        rows |> List.map (column >> String.length) |> List.max

    let first, second = width (fun (a, _, _) -> a), width (fun (_, b, _) -> b)

    [ for a, b, c in rows -> $"{a.PadRight first}  {b.PadRight second}  {c}" ]

/// The number of classes of each task, counted in the data folder if it is needed and exists.
let private taskSizes (config: MergedConfig) : int[] option =
    let count (folder: string) =
        Datasets.classes ReadOptions.standard config.Settings.Data folder
        |> Config.taskSizesOf config

    Config.taskSizes config
    |> Option.orElseWith (fun () ->
        config.Settings.DataPath |> Option.filter Directory.Exists |> Option.map count)

/// As "20 tasks x 5 classes (100 in all)".
let private tasks (config: MergedConfig) (sizes: int[] option) : string =
    match sizes with
    | Some sizes -> $"{TaskStream.describeSizes sizes} ({Array.sum sizes} in all)"
    | None ->
        $"""{Text.counted config.Settings.Tasks "task" "tasks"}; the number of classes depends on the data"""

/// Settings that the command line still lacks.
let private missing (settings: RunSettings) =
    let settings = Assets.downloaded settings

    [
        if settings.DataPath.IsNone && settings.Data <> Assets.DataName then
            "a run needs --data-path DIR"
        if settings.Backbone.IsNone then
            "without --backbone FILE a run uses the small bundled backbone"
    ]

/// Notes of the readers about an existing folder of image files, as in a run.
let private dataNotes (settings: RunSettings) : string[] =
    match settings.DataPath with
    | Some folder when Directory.Exists folder ->
        Datasets.scan (Settings.reading settings) settings.Data folder
        |> Option.map (FileScan.require >> _.Notes)
        |> Option.defaultValue [||]
    | _ -> [||]

/// A source with the file's name instead of its path, so that lines stay short.
let private brief (config: MergedConfig) (source: string) =
    match config.Expected.File with
    | "" -> source
    | path -> source.Replace(path, Path.GetFileName path)

/// Settings with their sources, notes, tasks and seeds. Rejects tasks that leave one without classes, and a folder of
/// images that a run would reject before it reads one.
let lines (config: MergedConfig) : string list =
    let sizes = taskSizes config

    let notes =
        [
            yield! config.Notes
            yield! missing config.Settings
            yield! dataNotes config.Settings
            yield!
                sizes
                |> Option.bind (TaskStream.sizeNote config.Settings.InitialClasses)
                |> Option.toList
        ]

    [
        yield!
            table
                [
                    "setting", "value", "source"
                    for s in config.Sources do
                        s.Name, Text.visible s.Value, Text.visible (brief config s.Source)
                ]
        ""
        for note in notes do
            $"note: {brief config note}"
        tasks config sizes
        if config.Seeds.Length > 1 then
            $"{config.Seeds.Length} runs, one per seed"
    ]
