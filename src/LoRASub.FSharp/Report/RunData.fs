namespace LoRASub.Reports

open System
open System.Collections.Generic
open System.Globalization
open System.IO
open System.Text.Json
open LoRASub

/// What one epoch of training reached; NaN where the file holds no number.
type EpochLog =
    {
        Task: int
        Epoch: int
        Loss: float
        /// In percent.
        Accuracy: float
        LearningRate: float
        Seconds: float
    }

/// Where the time went, and on what machine.
type Resources =
    {
        /// Wall seconds of each phase.
        PhaseSeconds: (string * float)[]
        /// The same for each task; empty where not recorded.
        TaskSeconds: (string * float)[][]
        PeakMemoryBytes: float
        /// Resident memory when each task ended.
        ResidentBytes: float[]
        Environment: (string * string)[]
        Started: string
        Finished: string
    }

/// Test scores of one class after the last task.
type ClassResult =
    {
        Position: int
        /// The data set's; two positions of one label are one answer, as in domain-incremental learning.
        Label: int64
        Name: string
        Task: int
        Score: Score
    }

/// A test image and what was seen in it.
type Sample =
    {
        True: int
        Predicted: int
        /// A PNG file in base64.
        Png: string
    }

/// Scores by class after the last task, by position.
type ClassReport =
    {
        Classes: ClassResult[]
        /// Row: true position; column: predicted position.
        Confusion: int[][]
        Samples: Sample[]
    }

/// How far a class's mean feature has moved.
type Movement =
    {
        /// In units of the features.
        Euclidean: float
        /// One minus the cosine.
        Cosine: float
        /// Euclidean, in units of the class's own spread.
        Relative: float
    }

/// The movement of one class, seen after some task.
type ClassDrift =
    {
        Position: int
        /// From the stored prototype to the true mean, which is that of test images.
        Output: Movement
        /// From the true mean right after the class was learned to the true mean now.
        SinceLearned: Movement
        /// The same as SinceLearned, after each block.
        Blocks: Movement[]
    }

/// What one block's retained subspace holds of a task's data.
type BlockSpectrum =
    {
        Rank: int
        EnergyInside: float
        EnergyOutside: float
        /// Eigenvalues of the second moment, descending.
        Spectrum: float[]
    }

/// How the retained subspaces of two tasks lie to each other; angles in degrees.
type Overlap =
    {
        Block: int
        First: int
        Second: int
        MeanSquaredCosine: float
        SmallestAngle: float
        LargestAngle: float
    }

/// A class's place in the two-dimensional picture.
type Place = { Position: int; X: float; Y: float }

/// Prototypes and true means in the plane of the prototypes' two largest principal components.
type Picture =
    {
        /// Share of the variance along x and y.
        Explained: struct (float * float)
        Prototypes: Place[]
        /// True means with the task after which they were taken.
        Means: (int * Place)[]
    }

type DriftReport =
    {
        /// Name and task of each class, by position.
        Classes: Map<int, string * int>
        /// Tasks with the movement of every class seen.
        AfterTask: (int * ClassDrift[])[]
        Subspaces: (int * BlockSpectrum[])[]
        Overlaps: Overlap[]
        Picture: Picture option
    }

/// A measure that needs a reference run: its value in points of %, or why there is none.
type Referred = { Points: float; Note: string option }

/// Everything that a run's folder says; what an optional file would say is None or empty.
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
        Settings: (string * string)[]
        /// Where each setting's value came from.
        Sources: Map<string, string>
        Matrix: AccuracyMatrix
        ForwardTransfer: Referred
        Intransigence: Referred
        /// Retained rank by task and block; empty for a task without projection.
        RetainedRank: float[][]
        Epochs: EpochLog[]
        Resources: Resources option
        Classes: ClassReport option
        Drift: DriftReport option
        /// What was noted during the run, and what is missing here.
        Notes: string[]
    }

/// One or several runs that differ in nothing but the seed.
type Study =
    {
        /// Unique among the studies of a report.
        Name: string
        Folder: string
        /// By seed.
        Runs: RunData[]
        Notes: string[]
    }

/// Reads the folders that `lorasub run --out` writes; see docs/formats.md.
[<RequireQualifiedAccess>]
module RunData =

    // What JsonElement throws without a name, said with it.
    let private field (name: string) (element: JsonElement) : JsonElement =
        match element.TryGetProperty name with
        | true, value -> value
        | _ -> raise (KeyNotFoundException $"no '{name}'")

    let private optionalField (name: string) (element: JsonElement) : JsonElement option =
        match element.TryGetProperty name with
        | true, value when value.ValueKind <> JsonValueKind.Null -> Some value
        | _ -> None

    // JSON has no NaN: files say null. What is too large to be measured would overflow sums and squares.
    let private number (element: JsonElement) =
        if element.ValueKind = JsonValueKind.Null then
            nan
        else
            let value = element.GetDouble()
            if abs value < 1e100 then value else nan

    let private numberField name element =
        optionalField name element |> Option.map number |> Option.defaultValue nan

    let private intField name element = (field name element).GetInt32()

    let private items (read: JsonElement -> 'T) (element: JsonElement) : 'T[] =
        [| for item in element.EnumerateArray() -> read item |]

    let private itemsField name read element = field name element |> items read

    let private optionalItems name read element =
        optionalField name element
        |> Option.map (items read)
        |> Option.defaultValue [||]

    // the text of any scalar
    let private text (element: JsonElement) =
        match element.ValueKind with
        | JsonValueKind.String -> element.GetString()
        | JsonValueKind.Null -> Markup.none
        | _ -> element.GetRawText()

    let private textField name element =
        optionalField name element |> Option.map text |> Option.defaultValue ""

    let private members (read: JsonElement -> 'T) (element: JsonElement) : (string * 'T)[] =
        [| for p in element.EnumerateObject() -> p.Name, read p.Value |]

    let private score (pair: JsonElement) : Score =
        match items _.GetInt32() pair with
        | [| correct; total |] -> { Correct = correct; Total = total }
        | other -> raise (FormatException $"{other.Length} numbers where [correct, total] belong")

    /// Reads an optional file.
    let private optional
        (folder: string)
        (name: string)
        what
        (read: string -> JsonElement -> 'T)
        : 'T option =
        let path = Path.Combine(folder, name)

        if File.Exists path then
            Some(Json.read what path (read path))
        else
            None

    let private referred (name: string) (summary: JsonElement) : Referred =
        {
            Points = numberField name summary
            Note = optionalField (name + "Note") summary |> Option.map text
        }

    let private noReference = { Points = nan; Note = None }

    let private seconds (element: JsonElement) = members number element

    let private resources _ (root: JsonElement) : Resources =
        let environment =
            match optionalField "environment" root with
            | Some facts -> members text facts
            | None -> [||]

        let resident (entry: JsonElement) =
            field "taskEnd" entry |> numberField "residentBytes"

        {
            PhaseSeconds = field "phaseSeconds" root |> seconds
            TaskSeconds = optionalItems "taskSeconds" seconds root
            PeakMemoryBytes = numberField "peakMemoryBytes" root
            ResidentBytes = optionalItems "memory" resident root
            Environment = environment
            Started = textField "startedUtc" root
            Finished = textField "finishedUtc" root
        }

    let private isPng (base64: string) =
        // the first bytes of every PNG file, and nothing but base64 behind them
        base64.StartsWith("iVBORw0KGgo", StringComparison.Ordinal)
        && Buffers.Text.Base64.IsValid(base64.AsSpan())

    let private classes (path: string) (root: JsonElement) : ClassReport =
        let classScore (element: JsonElement) =
            {
                Position = intField "position" element
                Label = (field "label" element).GetInt64()
                Name = textField "name" element
                Task = intField "task" element
                Score =
                    {
                        Correct = intField "correct" element
                        Total = intField "total" element
                    }
            }

        let sample (element: JsonElement) =
            {
                True = intField "true" element
                Predicted = intField "predicted" element
                Png = textField "png" element
            }

        let report =
            {
                Classes = itemsField "classes" classScore root |> Array.sortBy _.Position
                Confusion = itemsField "confusion" (items _.GetInt32()) root
                Samples = optionalItems "samples" sample root
            }

        let count = report.Classes.Length
        let positions = report.Classes |> Array.map _.Position

        if positions <> [| 0 .. count - 1 |] then
            Errors.reject
                path
                $"must name each position from 0 to {count - 1} once"
                $"{List.ofArray positions}"
                ""

        if
            report.Confusion.Length <> count
            || report.Confusion |> Array.exists (fun row -> row.Length <> count)
        then
            let found = report.Confusion |> Array.map _.Length |> Array.distinct |> List.ofArray

            Errors.reject
                path
                $"must have a confusion matrix of {count} rows and columns, one for each class"
                $"{report.Confusion.Length} rows of lengths {found}"
                ""

        let counts =
            Seq.append
                (report.Confusion |> Seq.concat)
                (report.Classes
                 |> Seq.collect (fun c -> [ c.Score.Correct; c.Score.Total - c.Score.Correct ]))

        if Seq.exists (fun n -> n < 0 || n > 100_000_000) counts then
            Errors.reject
                path
                "must count right answers among all images"
                "counts that contradict each other"
                ""

        report.Samples
        |> Array.iteri (fun i s ->
            for position in [ s.True; s.Predicted ] do
                if position < 0 || position >= count then
                    Errors.reject
                        $"{path}, sample {i}"
                        $"must be of a class from 0 to {count - 1}"
                        $"{position}"
                        ""

            if not (isPng s.Png) then
                Errors.reject $"{path}, sample {i}" "must be a PNG file in base64" "something else" "")

        report

    let private movement (element: JsonElement) : Movement =
        {
            Euclidean = numberField "euclidean" element
            Cosine = numberField "cosine" element
            Relative = numberField "relative" element
        }

    let private unknown =
        {
            Euclidean = nan
            Cosine = nan
            Relative = nan
        }

    let private place (element: JsonElement) : Place =
        {
            Position = intField "position" element
            X = numberField "x" element
            Y = numberField "y" element
        }

    let private picture (element: JsonElement) : Picture =
        let explained =
            match itemsField "explained" number element with
            | [| x; y |] -> struct (x, y)
            | other -> raise (FormatException $"{other.Length} numbers under 'explained' where 2 belong")

        {
            Explained = explained
            Prototypes = itemsField "prototypes" place element
            Means = itemsField "means" (fun m -> intField "afterTask" m, place m) element
        }

    let private drift (path: string) (root: JsonElement) : DriftReport =
        let classDrift (element: JsonElement) : ClassDrift =
            {
                Position = intField "position" element
                Output = field "output" element |> movement
                SinceLearned =
                    optionalField "outputSinceLearned" element
                    |> Option.map movement
                    |> Option.defaultValue unknown
                Blocks = optionalItems "blocks" movement element
            }

        let subspace (element: JsonElement) : BlockSpectrum =
            {
                Rank = intField "rank" element
                EnergyInside = numberField "energyInside" element
                EnergyOutside = numberField "energyOutside" element
                Spectrum = optionalItems "spectrum" number element
            }

        let overlap (element: JsonElement) : Overlap =
            {
                Block = intField "block" element
                First = intField "first" element
                Second = intField "second" element
                MeanSquaredCosine = numberField "meanSquaredCosine" element
                SmallestAngle = numberField "smallestAngle" element
                LargestAngle = numberField "largestAngle" element
            }

        let ofTask name read (element: JsonElement) =
            intField "task" element, itemsField name read element

        let report =
            {
                Classes =
                    itemsField
                        "classes"
                        (fun c -> intField "position" c, (textField "name" c, intField "task" c))
                        root
                    |> Map.ofArray
                AfterTask = itemsField "afterTask" (ofTask "classes" classDrift) root |> Array.sortBy fst
                Subspaces = optionalItems "subspaces" (ofTask "blocks" subspace) root |> Array.sortBy fst
                Overlaps = optionalItems "overlap" overlap root
                Picture = optionalField "picture" root |> Option.map picture
            }

        let tasks = report.AfterTask |> Array.map fst

        if tasks <> [| 0 .. tasks.Length - 1 |] then
            Errors.reject
                path
                "must tell the drift after each task from 0 once"
                $"tasks {List.ofArray tasks}"
                ""

        if report.Classes |> Map.exists (fun _ (_, task) -> task < 0) then
            Errors.reject path "must count the tasks of classes from 0" "a negative one" ""

        report

    /// What the lines of metrics.jsonl say; after a resume the later of two lines on the same thing counts.
    type private Stream =
        {
            Epochs: Map<int * int, EpochLog>
            Rows: Map<int, Score[]>
            Ranks: Map<int, float[]>
            Method: string
            Notices: string list
        }

    let private nothing =
        {
            Epochs = Map.empty
            Rows = Map.empty
            Ranks = Map.empty
            Method = ""
            Notices = []
        }

    let private event (stream: Stream) (line: JsonElement) : Stream =
        match textField "event" line with
        | "start" ->
            { stream with
                Method = textField "method" line
            }
        | "notice" ->
            { stream with
                Notices = textField "text" line :: stream.Notices
            }
        | "epoch" ->
            let log =
                {
                    Task = intField "task" line
                    Epoch = intField "epoch" line
                    Loss = numberField "loss" line
                    Accuracy = numberField "accuracy" line
                    LearningRate = numberField "learningRate" line
                    Seconds = numberField "seconds" line
                }

            { stream with
                Epochs = Map.add (log.Task, log.Epoch) log stream.Epochs
            }
        | "retained" ->
            { stream with
                Ranks = Map.add (intField "task" line) (itemsField "ranks" number line) stream.Ranks
            }
        | "task" ->
            { stream with
                Rows = Map.add (intField "task" line) (itemsField "row" score line) stream.Rows
            }
        // others tell of the machine or are of a later version
        | _ -> stream

    let private metrics (path: string) : Stream * string[] =
        let lines =
            try
                File.ReadAllLines path
                |> Array.indexed
                |> Array.filter (snd >> String.IsNullOrWhiteSpace >> not)
            with
            | :? IOException
            | :? UnauthorizedAccessException as e -> Errors.reject path "must be readable" e.Message ""

        let read stream (line: string) =
            try
                use document = JsonDocument.Parse line
                Ok(event stream document.RootElement)
            with
            | :? JsonException as e -> Error(Json.reason e)
            | :? KeyNotFoundException
            | :? InvalidOperationException
            | :? FormatException as e -> Error e.Message

        let last = lines |> Array.tryLast |> Option.map fst

        ((nothing, [||]), lines)
        ||> Array.fold (fun (stream, notes) (i, line) ->
            match read stream line with
            | Ok next -> next, notes
            | Error _ when last = Some i ->
                // a run that was killed while it wrote
                stream, [| $"The last line of {Path.GetFileName path} is cut off and was left out." |]
            | Error why ->
                Errors.reject $"{path}, line {i + 1}" "must be an event in JSON" why "remove the line")

    let private settings _ (root: JsonElement) = members text root

    let private sources _ (root: JsonElement) =
        optionalItems "settings" (fun s -> textField "name" s, textField "source" s) root
        |> Map.ofArray,
        optionalItems "notes" text root

    let private optionalFiles =
        [
            "settings.json", "no settings"
            "sources.json", "no word on where settings came from"
            "resources.json", "no timings, memory and environment"
            "metrics.jsonl", "no training curves"
            "classes.json", "no confusion matrix, scores by class and sample images"
            "drift.json", "no drift and subspaces"
        ]

    let private isRun (folder: string) =
        [ "summary.json"; "metrics.jsonl" ]
        |> List.exists (fun name -> File.Exists(Path.Combine(folder, name)))

    /// The rows of an unfinished run that stand without a gap.
    let private rowsOf (stream: Stream) : AccuracyMatrix =
        Seq.initInfinite (fun t -> Map.tryFind t stream.Rows)
        |> Seq.takeWhile Option.isSome
        |> Seq.map Option.get
        |> Array.ofSeq

    let private setting name (settings: (string * string)[]) =
        settings |> Array.tryFind (fst >> (=) name) |> Option.map snd

    let private wholeNumber (text: string option) =
        match text with
        | Some t ->
            match Int64.TryParse(t, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture) with
            | true, value -> Some value
            | _ -> None
        | None -> None

    /// Reads the folder of one run. Rejects a folder that is none, and files that are damaged or contradict
    /// themselves; a run without summary.json is read as far as it got.
    let load (folder: string) : RunData =
        if not (Directory.Exists folder) then
            Errors.reject
                folder
                "must be the folder of a run"
                "no such folder"
                "name what --out was in lorasub run"

        if not (isRun folder) then
            let rule = "must be the folder of a run, with summary.json or metrics.jsonl"
            Errors.reject folder rule "neither" "name what --out was in lorasub run"

        let settings =
            optional folder "settings.json" "the settings of a run" settings
            |> Option.defaultValue [||]

        let sources, notes =
            optional folder "sources.json" "the sources of a run's settings" sources
            |> Option.defaultValue (Map.empty, [||])

        let metricsPath = Path.Combine(folder, "metrics.jsonl")

        let stream, torn =
            if File.Exists metricsPath then
                metrics metricsPath
            else
                nothing, [||]

        let missing =
            [|
                for name, effect in optionalFiles do
                    if not (File.Exists(Path.Combine(folder, name))) then
                        $"{name} is missing: {effect}."
            |]

        let matrix = rowsOf stream
        let lookUp name = setting name settings

        let sofar =
            {
                Folder = folder
                Finished = false
                Seed = lookUp "seed" |> wholeNumber |> Option.defaultValue 0L
                Method = stream.Method
                Data = lookUp "data" |> Option.defaultValue ""
                Tasks =
                    lookUp "tasks"
                    |> wholeNumber
                    |> Option.map int
                    |> Option.defaultValue matrix.Length
                Settings = settings
                Sources = sources
                Matrix = matrix
                ForwardTransfer = noReference
                Intransigence = noReference
                RetainedRank =
                    [|
                        for t in 0 .. matrix.Length - 1 ->
                            Map.tryFind t stream.Ranks |> Option.defaultValue [||]
                    |]
                Epochs = stream.Epochs |> Map.toArray |> Array.map snd
                Resources = optional folder "resources.json" "the resources of a run" resources
                Classes = optional folder "classes.json" "the scores by class of a run" classes
                Drift = optional folder "drift.json" "the drift of a run" drift
                Notes =
                    Array.concat
                        [
                            notes
                            stream.Notices |> List.rev |> List.distinct |> Array.ofList
                            torn
                            missing
                        ]
            }

        let summary (_: string) (root: JsonElement) =
            { sofar with
                Finished = true
                Seed = (field "seed" root).GetInt64()
                Method = textField "method" root
                Data = textField "data" root
                Tasks = intField "tasks" root
                Matrix = itemsField "correctAndTotal" (items score) root
                ForwardTransfer = referred "forwardTransfer" root
                Intransigence = referred "intransigence" root
                RetainedRank = optionalItems "retainedRank" (items number) root
            }

        let run =
            match optional folder "summary.json" "the summary of a finished run" summary with
            | Some run -> run
            | None ->
                let said =
                    $"The run is not finished: {matrix.Length} of {sofar.Tasks} tasks are done (no summary.json yet)."

                { sofar with
                    Notes = Array.append [| said |] sofar.Notes
                }

        if run.Finished || run.Matrix.Length > 0 then
            try
                Metrics.check run.Matrix
            with :? InputException as e ->
                Errors.reject folder "must hold a sound accuracy matrix" e.Message ""

        run

    let private seedFolders (folder: string) =
        if Directory.Exists folder then
            Directory.GetDirectories(folder, "seed-*") |> Array.filter isRun
        else
            [||]

    /// Seeds that statistics.json lists without a folder for them.
    let private lostSeeds (folder: string) (runs: RunData[]) =
        let listed =
            optional folder "statistics.json" "the statistics of several seeds" (fun _ root ->
                itemsField "seeds" _.GetInt64() root)
            |> Option.defaultValue [||]

        [|
            for seed in listed do
                if runs |> Array.forall (fun run -> run.Seed <> seed) then
                    $"statistics.json lists seed {seed}, whose folder seed-{seed} is not here."
        |]

    let private loadStudy (name: string) (folder: string) : Study =
        let runs =
            match isRun folder, seedFolders folder with
            | false, (seeds: string[]) when seeds.Length > 0 -> seeds |> Array.map load |> Array.sortBy _.Seed
            | _ -> [| load folder |]

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

    /// The shortest ends of the paths that tell them apart.
    let private uniqueNames (folders: string[]) : string[] =
        let parts =
            folders
            |> Array.map (fun folder ->
                (Path.TrimEndingDirectorySeparator(Path.GetFullPath folder)).Split
                    Path.DirectorySeparatorChar
                |> Array.filter ((<>) "")
                |> List.ofArray
                |> List.rev)

        let ending depth (path: string list) =
            List.truncate depth path |> List.rev |> String.concat "/"

        let rec choose depth =
            let names = parts |> Array.map (ending depth)

            if (Array.distinct names).Length = names.Length then
                names
            else
                choose (depth + 1)

        choose 1

    /// Reads folders of runs, or of several seeds of a run (seed-1, seed-2, …), for one report. Their names are the
    /// shortest ends of the paths that tell them apart. Rejects what `load` rejects, no folder, and a folder given twice.
    let loadAll (folders: string[]) : Study[] =
        if folders.Length = 0 then
            Errors.reject "report" "needs the folder of a run" "none" "name what --out was in lorasub run"

        for folder in folders do
            if String.IsNullOrWhiteSpace folder then
                Errors.reject "report" "needs the folder of a run" "an empty name" ""

        let full =
            folders |> Array.map (Path.GetFullPath >> Path.TrimEndingDirectorySeparator)

        match full |> Array.countBy id |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(folder, _) -> Errors.reject folder "must be given once" "it twice" ""
        | None -> ()

        Array.map2 loadStudy (uniqueNames full) folders
