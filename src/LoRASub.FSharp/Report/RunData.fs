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
        Settings: RunSettings option
        /// Where each setting's value came from.
        Sources: Map<string, string>
        Matrix: AccuracyMatrix
        Measures: Measures
        /// Every head that the run scored; empty where there is no summary or an older program wrote it.
        Heads: HeadLine[]
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
        /// By seed; at least one.
        Runs: RunData[]
        Notes: string[]
    }

/// Reads the folders that `lorasub run --out` writes; see docs/formats.md.
[<RequireQualifiedAccess>]
module RunData =

    // ------------------------------------------------------------------------------------------ files

    let private ifPresent (path: string) (read: string -> 'T) : 'T option =
        if File.Exists path then Some(read path) else None

    let private require subject rule holds found =
        if not holds then
            Errors.reject subject rule found ""

    let private isPng (base64: string) =
        // the first bytes of every PNG file, then nothing but base64
        base64.StartsWith("iVBORw0KGgo", StringComparison.Ordinal)
        && Buffers.Text.Base64.IsValid(base64.AsSpan())

    let private classes (path: string) : ClassesFile =
        let file = Json.load<ClassesFile> "the scores by class of a run" path
        let count = file.Classes.Length
        let positions = file.Classes |> Array.map _.Position
        let lengths = file.Confusion |> Array.map _.Length

        require
            path
            $"must list the positions from 0 to {count - 1} in order, each once"
            (positions = [| 0 .. count - 1 |])
            $"{List.ofArray positions}"

        require
            path
            $"must have a confusion matrix of {count} rows and columns, one for each class"
            (lengths = Array.create count count)
            $"{lengths.Length} rows of lengths {List.ofArray (Array.distinct lengths)}"

        let counts =
            Seq.append
                (Seq.concat file.Confusion)
                (file.Classes |> Seq.collect (fun c -> [ c.Correct; c.Total - c.Correct ]))

        require
            path
            "must count correct answers among all images"
            (counts |> Seq.forall (fun n -> n >= 0 && n <= 100_000_000))
            "counts that contradict each other"

        for i, sample in Array.indexed file.Samples do
            let require = require $"{path}, sample {i}"

            for position in [ sample.True; sample.Predicted ] do
                require
                    $"must be of a class from 0 to {count - 1}"
                    (position >= 0 && position < count)
                    $"{position}"

            require "must be a PNG file in base64" (isPng sample.Png) "something else"

        file

    let private drift (path: string) : DriftFile =
        let file = Json.load<DriftFile> "the drift of a run" path
        let tasks = file.AfterTask |> Array.map _.Task
        let components = file.Picture.Explained.Length
        let require = require path

        require
            "must hold the drift after each task from 0, in order"
            (tasks = [| 0 .. tasks.Length - 1 |])
            $"tasks {List.ofArray tasks}"

        require
            "must count the tasks of classes from 0"
            (file.Classes |> Array.forall (fun c -> c.Task >= 0))
            "a negative one"

        require "must hold two numbers under 'explained'" (components = 2) $"{components}"
        file

    /// The events of metrics.jsonl; a run that was killed while it wrote leaves a last line without its end.
    let private events (path: string) : MetricsEvent[] * string[] =
        let bytes = Json.bytes "the metrics of a run" path

        MetricsLog.read path |> Array.map _.Event,
        [|
            if bytes.Length > 0 && Array.last bytes <> byte '\n' then
                $"The last line of {Path.GetFileName path} is cut off and was left out."
        |]

    let private optionalFiles =
        [
            RunFiles.settings, "no settings"
            RunFiles.sources, "the sources of settings are unknown"
            RunFiles.resources, "no timings, memory and environment"
            RunFiles.metrics, "no training curves"
            RunFiles.classes, "no confusion matrix, scores by class and sample images"
            RunFiles.drift, "no drift and subspaces"
        ]

    // ------------------------------------------------------------------------------------------ runs

    let private isRun (folder: string) =
        File.Exists(RunFiles.summary folder) || File.Exists(RunFiles.metrics folder)

    /// Reads the folder of one run. A run without summary.json is read as far as it got. Rejects a folder that is not a
    /// run's, and files that are damaged or contradict themselves.
    let private load (folder: string) : RunData =
        if not (isRun folder) then
            let rule = "must be the folder of a run, with summary.json or metrics.jsonl"

            let found =
                if Directory.Exists folder then
                    "neither"
                else
                    "no such folder"

            Errors.reject folder rule found "name the --out folder of lorasub run"

        let settings =
            ifPresent (RunFiles.settings folder) (fun path ->
                Json.read "the settings of a run" path (Settings.ofJson path))

        let sources =
            ifPresent (RunFiles.sources folder) (Json.load<SourcesFile> "the sources of a run's settings")

        let classes = ifPresent (RunFiles.classes folder) classes

        let events, torn =
            ifPresent (RunFiles.metrics folder) events |> Option.defaultValue ([||], [||])

        let start =
            events
            |> Array.tryPick (function
                | MetricsEvent.Start start -> Some start
                | _ -> None)

        // after a resume the later of two lines counts
        let latest (choose: MetricsEvent -> ('Key * 'T) option) =
            events |> Seq.choose choose |> Map.ofSeq

        let ranks =
            latest (function
                | MetricsEvent.Retained(task, ranks, _) -> Some(task, ranks)
                | _ -> None)

        let rows =
            latest (function
                | MetricsEvent.Task task -> Some(task.Task, task.Row)
                | _ -> None)

        let epochs =
            latest (function
                | MetricsEvent.Epoch e -> Some((e.Task, e.Epoch), e)
                | _ -> None)

        let summary, stored =
            match ifPresent (RunFiles.summary folder) SummaryFile.load with
            | Some(struct (summary, measures)) -> Some summary, measures
            | None -> None, Map.empty

        /// What the summary says or, where there is none, what is known so far.
        let known (said: SummaryFile -> 'T) (soFar: 'T) : 'T =
            summary |> Option.map said |> Option.defaultValue soFar

        let setting (get: RunSettings -> 'T) (otherwise: 'T) : 'T =
            settings |> Option.map get |> Option.defaultValue otherwise

        // the rows up to the first gap
        let learned = Seq.initInfinite id |> Seq.find (rows.ContainsKey >> not)
        let matrix = known _.CorrectAndTotal (Array.init learned (fun t -> rows[t]))

        let tasks =
            match start with
            | Some start -> start.TaskSizes.Length
            | None -> setting _.Tasks matrix.Length
            |> known _.Tasks


        let rankOf task =
            Map.tryFind task ranks |> Option.defaultValue [||]

        {
            Folder = folder
            Finished = summary.IsSome
            Seed = known _.Seed (setting _.Seed 0L)
            Method = known _.Method (start |> Option.map _.Method |> Option.defaultValue "")
            Data = known _.Data (setting _.Data "")
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
                    Metrics.complete stored (Metrics.measure matrix)
            Heads = known (_.Heads >> Option.defaultValue [||]) [||]
            Missing =
                known
                    (fun summary ->
                        [|
                            for why in Option.toArray summary.ForwardTransferNote do
                                "forward transfer", why
                            for why in Option.toArray summary.IntransigenceNote do
                                "intransigence", why
                        |])
                    [||]
            RetainedRank = known _.RetainedRank (Array.init matrix.Length rankOf)
            Epochs = epochs |> Map.toArray |> Array.map snd
            Resources =
                ifPresent (RunFiles.resources folder) (Json.load<ResourcesFile> "the resources of a run")
            Classes = classes
            Drift = ifPresent (RunFiles.drift folder) drift
            Notes =
                [|
                    if summary.IsNone then
                        $"The run is not finished: {matrix.Length} of {tasks} tasks are done (no summary.json yet)."
                    for file in Option.toArray sources do
                        yield! file.Notes
                    yield!
                        events
                        |> Array.choose (function
                            | MetricsEvent.Notice text -> Some text
                            | _ -> None)
                        |> Array.distinct
                    yield! torn
                    for path, effect in optionalFiles do
                        if not (File.Exists(path folder)) then
                            $"{Path.GetFileName(path folder)} is missing: {effect}."
                |]
        }

    /// Seeds that statistics.json lists without a folder for them.
    let private lostSeeds (folder: string) (runs: RunData[]) =
        let listed =
            ifPresent
                (SeedFolders.statisticsPath folder)
                (Json.load<StatisticsFile> "the statistics of several seeds")

        listed
        |> Option.map _.Seeds
        |> Option.defaultValue [||]
        |> Array.except (runs |> Array.map _.Seed)
        |> Array.map (fun seed -> $"statistics.json lists seed {seed}, but there is no folder seed-{seed}.")

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

    /// <summary>Reads the folders of runs, or of several seeds of a run (seed-1, seed-2, …), for one report.</summary>
    /// <param name="folders">Folders that <c>lorasub run --out</c> wrote, each once. A run that is not finished is read as far
    /// as it got.</param>
    /// <returns>A group for each folder, in their order. Its name is the shortest end of its path that differs from the
    /// others.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no folder, a repeated one, or one that is not a run's, or one of its
    /// files is damaged or contradicts itself.</exception>
    let loadAll (folders: string[]) : RunGroup[] =
        let hint = "name the --out folder of lorasub run"

        if folders.Length = 0 then
            Errors.reject "report" "needs the folder of a run" "none" hint

        if folders |> Array.exists String.IsNullOrWhiteSpace then
            Errors.reject "report" "needs the folder of a run" "an empty name" hint

        let full =
            folders |> Array.map (Path.GetFullPath >> Path.TrimEndingDirectorySeparator)

        match full |> Array.countBy id |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(folder, n) -> Errors.reject folder "must be given once" $"it {n} times" ""
        | None -> ()

        Array.map2 loadGroup (uniqueNames full) folders
