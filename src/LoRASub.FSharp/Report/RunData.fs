namespace LoRASub.Report

open System
open System.Collections.Generic
open System.IO
open System.Text.Json
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run

/// The contents of a run's folder. What an optional file would hold is None or empty.
type RunData =
    {
        Folder: string
        /// False for a run that is still going on or was cut off.
        Finished: bool
        Seed: int64
        Method: string
        Data: string
        /// Tasks of the whole stream.
        Tasks: int
        /// Classes of each of them; empty where unknown.
        TaskSizes: int[]
        /// Names and texts, in the file's order.
        Settings: (string * string)[]
        /// Where each setting's value came from.
        Sources: Map<string, string>
        Matrix: AccuracyMatrix
        Measures: Measures
        /// Measures that need a reference run, and why they are missing.
        Missing: (string * string)[]
        /// By task and block; empty for a task without projection.
        RetainedRank: int[][]
        Epochs: EpochReport[]
        Resources: ResourcesFile option
        Classes: ClassesFile option
        Drift: DriftFile option
        /// What was noted during the run, and what is missing here.
        Notes: string[]
    }

/// One or several runs that differ in nothing but the seed.
type RunGroup =
    {
        /// Unique in a report.
        Name: string
        Folder: string
        /// By seed.
        Runs: RunData[]
        Notes: string[]
    }

/// Reads the folders that `lorasub run --out` writes; see docs/formats.md.
[<RequireQualifiedAccess>]
module RunData =

    let private optional<'T> (folder: string) (name: string) (what: string) : 'T option =
        let path = Path.Combine(folder, name)

        if File.Exists path then
            Some(Json.load<'T> what path)
        else
            None

    let private isPng (base64: string) =
        // the first bytes of every PNG file, then nothing but base64
        base64.StartsWith("iVBORw0KGgo", StringComparison.Ordinal)
        && Buffers.Text.Base64.IsValid(base64.AsSpan())

    let private checkClasses (path: string) (file: ClassesFile) =
        let count = file.Classes.Length
        let positions = file.Classes |> Array.map _.Position

        if positions <> [| 0 .. count - 1 |] then
            Errors.reject
                path
                $"must list the positions from 0 to {count - 1} in order, each once"
                $"{List.ofArray positions}"
                ""

        if
            file.Confusion.Length <> count
            || file.Confusion |> Array.exists (fun row -> row.Length <> count)
        then
            let found = file.Confusion |> Array.map _.Length |> Array.distinct |> List.ofArray

            Errors.reject
                path
                $"must have a confusion matrix of {count} rows and columns, one for each class"
                $"{file.Confusion.Length} rows of lengths {found}"
                ""

        let counts =
            Seq.append
                (Seq.concat file.Confusion)
                (file.Classes |> Seq.collect (fun c -> [ c.Correct; c.Total - c.Correct ]))

        if counts |> Seq.exists (fun n -> n < 0 || n > 100_000_000) then
            Errors.reject
                path
                "must count correct answers among all images"
                "counts that contradict each other"
                ""

        file.Samples
        |> Array.iteri (fun i sample ->
            for position in [ sample.True; sample.Predicted ] do
                if position < 0 || position >= count then
                    Errors.reject
                        $"{path}, sample {i}"
                        $"must be of a class from 0 to {count - 1}"
                        $"{position}"
                        ""

            if not (isPng sample.Png) then
                Errors.reject $"{path}, sample {i}" "must be a PNG file in base64" "something else" "")

    let private checkDrift (path: string) (file: DriftFile) =
        let tasks = file.AfterTask |> Array.map _.Task

        if tasks <> [| 0 .. tasks.Length - 1 |] then
            Errors.reject
                path
                "must hold the drift after each task from 0, in order"
                $"tasks {List.ofArray tasks}"
                ""

        if file.Classes |> Array.exists (fun c -> c.Task < 0) then
            Errors.reject path "must count the tasks of classes from 0" "a negative one" ""

        if file.Picture.Explained.Length <> 2 then
            Errors.reject path "must hold two numbers under 'explained'" $"{file.Picture.Explained.Length}" ""

    let private scalar (value: JsonElement) =
        match value.ValueKind with
        | JsonValueKind.String -> value.GetString()
        | JsonValueKind.Null -> Format.none
        | _ -> value.GetRawText()

    let private optionalFiles =
        [
            "settings.json", "no settings"
            "sources.json", "the sources of settings are unknown"
            "resources.json", "no timings, memory and environment"
            "metrics.jsonl", "no training curves"
            "classes.json", "no confusion matrix, scores by class and sample images"
            "drift.json", "no drift and subspaces"
        ]

    let private isRun (folder: string) =
        File.Exists(RunFiles.summary folder) || File.Exists(RunFiles.metrics folder)

    /// The events of metrics.jsonl; a run that was killed while it wrote leaves a last line without its end.
    let private events (path: string) : MetricsEvent[] * string[] =
        if not (File.Exists path) then
            [||], [||]
        else
            let bytes = Json.bytes "the metrics of a run" path

            MetricsLog.read path |> Array.map _.Event,
            [|
                if bytes.Length > 0 && Array.last bytes <> byte '\n' then
                    $"The last line of {Path.GetFileName path} is cut off and was left out."
            |]

    /// What lists of events hold by key: after a resume the later of two lines counts.
    let private latest (choose: MetricsEvent -> ('Key * 'T) option) (events: MetricsEvent[]) : Map<'Key, 'T> =
        events |> Seq.choose choose |> Map.ofSeq

    let private wholeNumber (text: string) =
        match Int64.TryParse text with
        | true, value -> Some value
        | _ -> None

    /// Reads the folder of one run. A run without summary.json is read as far as it got. Rejects a folder that is not a
    /// run's, and files that are damaged or contradict themselves.
    let load (folder: string) : RunData =
        if not (Directory.Exists folder) then
            Errors.reject
                folder
                "must be the folder of a run"
                "no such folder"
                "name the --out folder of lorasub run"

        if not (isRun folder) then
            let rule = "must be the folder of a run, with summary.json or metrics.jsonl"
            Errors.reject folder rule "neither" "name the --out folder of lorasub run"

        let settings =
            optional<Dictionary<string, JsonElement>> folder "settings.json" "the settings of a run"
            |> Option.map (Seq.map (fun pair -> pair.Key, scalar pair.Value) >> Array.ofSeq)
            |> Option.defaultValue [||]

        let sources =
            optional<SourcesFile> folder "sources.json" "the sources of a run's settings"

        let events, torn = events (RunFiles.metrics folder)

        let start =
            events
            |> Array.tryPick (function
                | MetricsEvent.Start start -> Some start
                | _ -> None)

        let ranks =
            events
            |> latest (function
                | MetricsEvent.Retained(task, ranks, _) -> Some(task, ranks)
                | _ -> None)

        let rows =
            events
            |> latest (function
                | MetricsEvent.Task task -> Some(task.Task, task.Row)
                | _ -> None)

        let epochs =
            events
            |> latest (function
                | MetricsEvent.Epoch e -> Some((e.Task, e.Epoch), e)
                | _ -> None)

        let summary =
            if File.Exists(RunFiles.summary folder) then
                Some(SummaryFile.load (RunFiles.summary folder))
            else
                None

        let matrix =
            match summary with
            | Some(struct (summary, _)) -> summary.CorrectAndTotal
            | None ->
                // the rows up to the first gap
                Seq.initInfinite (fun t -> Map.tryFind t rows)
                |> Seq.takeWhile Option.isSome
                |> Seq.choose id
                |> Array.ofSeq

        let setting name =
            settings |> Array.tryFind (fst >> (=) name) |> Option.map snd

        let tasks =
            match summary with
            | Some(struct (summary, _)) -> summary.Tasks
            | None ->
                setting "tasks"
                |> Option.bind wholeNumber
                |> Option.map int
                |> Option.defaultValue matrix.Length

        let classes =
            optional<ClassesFile> folder "classes.json" "the scores by class of a run"

        let drift = optional<DriftFile> folder "drift.json" "the drift of a run"
        classes |> Option.iter (checkClasses (RunFiles.classes folder))
        drift |> Option.iter (checkDrift (RunFiles.drift folder))

        let fromSummary f fallback =
            match summary with
            | Some(struct (summary: SummaryFile, _)) -> f summary
            | None -> fallback

        {
            Folder = folder
            Finished = summary.IsSome
            Seed = fromSummary _.Seed (setting "seed" |> Option.bind wholeNumber |> Option.defaultValue 0L)
            Method = fromSummary _.Method (start |> Option.map _.Method |> Option.defaultValue "")
            Data = fromSummary _.Data (setting "data" |> Option.defaultValue "")
            Tasks = tasks
            TaskSizes =
                match start, classes with
                | Some start, _ -> start.TaskSizes
                | None, Some file -> file.Classes |> Array.countBy _.Task |> Array.map snd
                | None, None -> [||]
            Settings = settings
            Sources =
                match sources with
                | Some file -> Map.ofArray (file.Settings |> Array.map (fun s -> s.Name, s.Source))
                | None -> Map.empty
            Matrix = matrix
            Measures =
                if matrix.Length = 0 then
                    Map.empty
                else
                    match summary with
                    | Some(struct (_, stored)) -> Metrics.complete stored (Metrics.measure matrix)
                    | None -> Metrics.measure matrix
            Missing =
                fromSummary
                    (fun summary ->
                        [|
                            for name, note in
                                [
                                    "forward transfer", summary.ForwardTransferNote
                                    "intransigence", summary.IntransigenceNote
                                ] do
                                match note with
                                | Some note -> name, note
                                | None -> ()
                        |])
                    [||]
            RetainedRank =
                fromSummary
                    _.RetainedRank
                    (Array.init matrix.Length (fun t -> Map.tryFind t ranks |> Option.defaultValue [||]))
            Epochs = epochs |> Map.toArray |> Array.map snd
            Resources = optional folder "resources.json" "the resources of a run"
            Classes = classes
            Drift = drift
            Notes =
                [|
                    if summary.IsNone then
                        $"The run is not finished: {matrix.Length} of {tasks} tasks are done (no summary.json yet)."
                    match sources with
                    | Some file -> yield! file.Notes
                    | None -> ()
                    yield!
                        events
                        |> Array.choose (function
                            | MetricsEvent.Notice text -> Some text
                            | _ -> None)
                        |> Array.distinct
                    yield! torn
                    for name, effect in optionalFiles do
                        if not (File.Exists(Path.Combine(folder, name))) then
                            $"{name} is missing: {effect}."
                |]
        }

    /// Seeds that statistics.json lists without a folder for them.
    let private lostSeeds (folder: string) (runs: RunData[]) =
        match optional<StatisticsFile> folder "statistics.json" "the statistics of several seeds" with
        | None -> [||]
        | Some file ->
            file.Seeds
            |> Array.except (runs |> Array.map _.Seed)
            |> Array.map (fun seed ->
                $"statistics.json lists seed {seed}, but there is no folder seed-{seed}.")

    let private loadGroup (name: string) (folder: string) : RunGroup =
        let seeds =
            if Directory.Exists folder && not (isRun folder) then
                Directory.GetDirectories(folder, "seed-*") |> Array.filter isRun
            else
                [||]

        let runs =
            if seeds.Length > 0 then
                seeds |> Array.map load |> Array.sortBy _.Seed
            else
                [| load folder |]

        match runs |> Array.countBy _.Seed |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(seed, n) ->
            Errors.reject folder "must hold each seed once" $"seed {seed} in {n} folders" "remove the copies"
        | None -> ()

        {
            Name = name
            Folder = folder
            Runs = runs
            Notes = lostSeeds folder runs
        }

    /// The shortest ends of the paths that differ from each other.
    let private uniqueNames (folders: string[]) : string[] =
        let endings depth =
            folders
            |> Array.map (fun folder ->
                let parts =
                    folder.Split(Path.DirectorySeparatorChar, StringSplitOptions.RemoveEmptyEntries)

                String.Join('/', Array.skip (max 0 (parts.Length - depth)) parts))

        Seq.initInfinite ((+) 1)
        |> Seq.map endings
        |> Seq.find (fun names -> (Array.distinct names).Length = names.Length)

    /// Reads folders of runs, or of several seeds of a run (seed-1, seed-2, …), for one report. Their names are the
    /// shortest ends of their paths that differ. Rejects what `load` rejects, no folder, and a repeated folder.
    let loadAll (folders: string[]) : RunGroup[] =
        if folders.Length = 0 then
            Errors.reject "report" "needs the folder of a run" "none" "name the --out folder of lorasub run"

        for folder in folders do
            if String.IsNullOrWhiteSpace folder then
                Errors.reject "report" "needs the folder of a run" "an empty name" ""

        let full =
            folders |> Array.map (Path.GetFullPath >> Path.TrimEndingDirectorySeparator)

        match full |> Array.countBy id |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(folder, n) -> Errors.reject folder "must be given once" $"it {n} times" ""
        | None -> ()

        Array.map2 loadGroup (uniqueNames full) folders
