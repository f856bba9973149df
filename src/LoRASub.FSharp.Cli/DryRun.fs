/// What a run would do, as far as that is known without images, weights and LibTorch.
module LoRASub.Cli.DryRun

open System
open System.IO
open LoRASub

// a folder's name may hold anything
let private printable (text: string) =
    String.map (fun c -> if Char.IsControl c then '?' else c) text

let private table (rows: (string * string * string) list) : string list =
    let width column =
        rows |> List.map (column >> String.length) |> List.max

    let first, second = width (fun (a, _, _) -> a), width (fun (_, b, _) -> b)

    [ for a, b, c in rows -> $"{a.PadRight first}  {b.PadRight second}  {c}" ]

let private counted n one many =
    if n = 1 then $"1 {one}" else $"{n} {many}"

/// As "20 tasks x 5 classes (100 in all)".
let private tasks (config: MergedConfig) : string =
    match Config.taskSizes config with
    | None -> $"""{counted config.Settings.Tasks "task" "tasks"}; the data says how many classes"""
    | Some sizes ->
        let number = counted sizes.Length "task" "tasks"
        let later = Array.last sizes

        let split =
            if sizes[0] = later then
                $"""{number} x {counted later "class" "classes"}"""
            else
                $"""{number}: {counted sizes[0] "class" "classes"}, then {sizes.Length - 1} x {later}"""

        $"{split} ({Array.sum sizes} in all)"

/// What a run still needs on the command line.
let private missing (settings: RunSettings) =
    [
        if settings.DataPath.IsNone && settings.Data <> Assets.DataName then
            "a run needs --data-path DIR"
        if settings.Backbone.IsNone then
            "without --backbone FILE a run takes the small backbone that comes with the program"
    ]

/// What the readers say of a folder of image files that is there, which a run would repeat.
let private dataNotes (settings: RunSettings) : string[] =
    match settings.DataPath with
    | Some folder when Directory.Exists folder ->
        Datasets.scan (Settings.reading settings) settings.Data folder
        |> Option.map (FileScan.require >> _.Notes)
        |> Option.defaultValue [||]
    | _ -> [||]

/// A source with the file's name alone, so that lines stay readable.
let private brief (config: MergedConfig) (source: string) =
    match config.Expected.File with
    | "" -> source
    | path -> source.Replace(path, Path.GetFileName path)

/// Settings with their sources, notes, tasks and seeds. Rejects tasks that do not divide the classes, and a folder of
/// images that a run would reject before it reads one.
let lines (config: MergedConfig) : string list =
    let tasks = tasks config

    [
        yield!
            table
                [
                    "setting", "value", "source"
                    for s in config.Sources do
                        s.Name, printable s.Value, printable (brief config s.Source)
                ]
        ""
        for note in
            Seq.concat [ Seq.ofArray config.Notes; missing config.Settings; dataNotes config.Settings ] do
            $"note: {printable (brief config note)}"
        tasks
        if config.Seeds.Length > 1 then
            $"{config.Seeds.Length} runs, one for each seed"
    ]
