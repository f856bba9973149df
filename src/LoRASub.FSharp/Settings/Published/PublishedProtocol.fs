namespace LoRASub.Settings

open System
open LoRASub.Core
open LoRASub.Data
open LoRASub.Settings.ConfigSection

/// What LibContinual's files and those of the method's authors have in common.
[<RequireQualifiedAccess>]
module internal PublishedProtocol =

    let words (text: string) : string list =
        text.Split([| ' '; '\n' |], StringSplitOptions.RemoveEmptyEntries)
        |> List.ofArray

    /// The same for ImageNet_R, imagenet-r and ImageNetR.
    let private spelling (name: string) =
        String.filter Char.IsLetterOrDigit name |> _.ToLowerInvariant()

    /// The data set, under any of its spellings.
    let data (root: Section) : SettingSource =
        let found = root.Needed "dataset" "must name the data set"
        let name = found.Text

        match Datasets.names |> List.tryFind (fun known -> spelling known = spelling name) with
        | Some known -> says "data" known found.Source
        | None -> refuseData found.Source $"'{ConfigTree.shortened name}'"

    /// Tasks and classes: those of the first task, of each later one, of all, and the number of tasks.
    let tasks (s: Section) first later total number : SettingSource list * int option =
        let first = s.Needed first "must give the classes of the first task"
        let later = s.Needed later "must give the classes of a later task"
        let given = s.Find number
        let total = Option.bind s.Find total
        let initial, increment = int64 first.Count, int64 later.Count

        let tasks, source =
            match given, total with
            | Some given, _ -> int64 given.Count, given.Source
            | None, Some total when (int64 total.Count - initial) % increment = 0L ->
                1L + (int64 total.Count - initial) / increment, total.Source
            | None, Some total -> total.Refuse $"must be {initial} and a multiple of {increment}" ""
            | None, None ->
                Errors.reject $"{s.File}, {number}" "must give the number of tasks" "no such key" ""

        let classes = initial + increment * (tasks - 1L)

        if classes > 1_000_000L || tasks < 1L then
            Errors.reject source "must give 1 to 1000000 classes in all" $"{classes}" ""

        total
        |> Option.iter (fun total ->
            if int64 total.Count <> classes then
                total.Refuse
                    $"must be {classes}, {initial} in the first task and {increment} in each of {tasks - 1L} later ones"
                    "change it or the classes of the tasks")

        [
            says "tasks" (string tasks) source
            // left open where all tasks are equal, so that another number of tasks can be asked for
            if initial <> increment && tasks > 1L then
                says "initial-classes" (string initial) first.Source
        ],
        Some(int classes)

    /// The preset under a published file, whose own defaults are LibContinual's or the authors'.
    let preset (variant: Variant) (data: SettingSource) : RunSettings = snd (Preset.ofData data.Value) variant

    /// Both codes take the later tasks' epochs where the first task's are not given.
    let epochs (preset: RunSettings) (s: Section) first later : SettingSource list =
        let initial =
            match s.Find first with
            | None when preset.InitialEpochs.IsSome -> s.Find later
            | found -> found

        assign "epochs" (s.Find later) @ assign "initial-epochs" initial

    /// A note that a folder is of another machine.
    let elsewhere (found: Found option) : string list =
        found
        |> Option.map (fun f ->
            $"{f.Source}: '{ConfigTree.shortened f.Text}' is a folder on the machine of the file's author; set yours with --data-path")
        |> Option.toList

    /// One note with all keys without effect.
    let unused (file: string) (ignored: string list) (used: string list) (names: string list) =
        let known, stray = names |> List.partition (fun n -> List.contains n ignored)

        let stray =
            List.truncate 20 stray
            |> List.map ConfigTree.shortened
            |> List.map (fun n ->
                match Errors.nearest used n with
                | Some near -> $"{n} (unknown; the nearest known key is {near})"
                | None -> $"{n} (unknown)")

        match known @ stray with
        | [] -> []
        | all -> [ $"{file}: not used by this method: {listed all}" ]

    /// Rejects a memory of earlier tasks' images.
    let noExemplars (s: Section) =
        for name in [ "buffer_size"; "memory_size"; "memory_per_class" ] do
            s.Find name
            |> Option.iter (fun f ->
                if f.Number > 0.0 then
                    f.Refuse "must be 0, as this method keeps no images of earlier tasks" "set it to 0")
