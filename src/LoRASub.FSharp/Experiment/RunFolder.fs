namespace LoRASub

open System
open System.IO

/// A task's score now, beside the one that was saved.
type Recheck =
    {
        Task: LearningTask
        Now: Score
        /// In percent, as saved in summary.json.
        SavedPercent: float
    }

/// The folder of one run: settings.json, learner.safetensors, learner.json and, last of all, summary.json, each
/// written whole.
[<RequireQualifiedAccess>]
module RunFolder =

    let summaryPath (folder: string) = Path.Combine(folder, "summary.json")
    let settingsPath (folder: string) = Path.Combine(folder, "settings.json")

    /// Rejects a folder that is or lies in a file, cannot be written or holds a finished run. Leaves nothing behind.
    let check (folder: string) =
        if String.IsNullOrWhiteSpace folder then
            Errors.reject "output folder" "must have a name" "an empty one" ""

        if File.Exists(summaryPath folder) then
            Errors.reject folder "must not hold a finished run" "summary.json" "choose another output folder"

        // folders that would have to be made, the outermost first
        let rec missing (path: string) (below: string list) =
            if Directory.Exists path then
                below
            elif File.Exists path then
                Errors.reject folder "must be a folder" $"a file, {path}" "choose another output folder"
            else
                missing (Path.GetDirectoryName path) (path :: below)

        let full = Path.GetFullPath folder
        let fresh = missing full []

        try
            try
                Directory.CreateDirectory full |> ignore
                let probe = Path.Combine(full, $".{Guid.NewGuid():N}.tmp")
                File.WriteAllText(probe, "")
                File.Delete probe
            finally
                for made in List.rev fresh do
                    if Directory.Exists made then
                        Directory.Delete made
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Errors.reject folder "must be writable" e.Message ""

    // rounded where only the noise of floating point is left
    let private percent (fraction: float) = System.Math.Round(100.0 * fraction, 10)

    let private summary (plan: Plan) (outcome: Outcome) =
        let measures = Metrics.measure outcome.Matrix
        let settings = plan.Settings
        let percents = percent >> Json.float
        // JSON has no infinity
        let finite x =
            Some x |> Option.filter System.Double.IsFinite |> Json.option Json.float

        let rows (node: 'T -> _) = Json.array (Json.array node)

        let counts (score: Score) =
            Json.array (int64 >> Json.int) [ score.Correct; score.Total ]

        let memory (use': MemoryUse) =
            Json.object
                [
                    "tensors", Json.int use'.Tensors
                    "residentBytes", Json.int use'.ResidentBytes
                ]

        let taskMemory struct (before, after) =
            Json.object [ "taskStart", memory before; "taskEnd", memory after ]

        Json.object
            [
                "method", Json.text outcome.Method
                "variant", Json.text ((string settings.Variant).ToLowerInvariant())
                "data", Json.text settings.Data
                "tasks", Json.int plan.Stream.Tasks.LongLength
                "learnedTasks", Json.int outcome.Matrix.LongLength
                "seed", Json.int settings.Seed
                "last", percents measures.Last
                "average", percents measures.Average
                "lastByTask", percents measures.LastByTask
                "averageByTask", percents measures.AverageByTask
                "forgetting", Json.option percents measures.Forgetting
                "backwardTransfer", Json.option percents measures.BackwardTransfer
                "accuracyMatrix", rows (Metrics.accuracy >> percents) outcome.Matrix
                "correctAndTotal", rows counts outcome.Matrix
                "retainedRank", rows (fun (r: Retained) -> Json.int r.Rank) outcome.Retained
                "retainedEnergy", rows (fun (r: Retained) -> Json.float r.Energy) outcome.Retained
                "conditionNumber", rows (_.Condition >> finite) outcome.Retained
                "phaseSeconds",
                Json.object
                    [
                        for phase in Phase.all -> Phase.name phase, Json.float outcome.PhaseSeconds[phase]
                    ]
                "peakMemoryBytes", Json.int (MemoryUse.peakBytes ())
                "memory", Json.array taskMemory outcome.Memory
                "threads", Json.int (TorchSharp.torch.get_num_threads ())
            ]

    /// A finished run's learner as it is saved; its state stays the outcome's.
    let savedLearner (plan: Plan) (outcome: Outcome) : SavedLearner =
        let names = plan.Stream.Dataset.ClassNames

        {
            Method = outcome.Method
            State = outcome.State
            Order = plan.Stream.Order
            ClassNames = plan.Stream.Order |> Array.map (fun label -> names[label])
            TaskSizes =
                plan.Stream.Tasks
                |> Array.truncate outcome.State.Finished
                |> Array.map _.Classes.Length
            Input = (Plan.batchOptions plan Augmentation.None).Format
            Heads = plan.Backbone.Heads
            NormEpsilon = plan.Settings.NormEpsilon
            BackboneSha256 = plan.BackboneSha256
        }

    /// Writes a finished run; summary.json comes last, so that its presence means the run is complete. Makes the
    /// folder. Rejects as `check`.
    let save (folder: string) (plan: Plan) (outcome: Outcome) : unit =
        check folder
        Directory.CreateDirectory folder |> ignore

        Json.write (settingsPath folder) (Settings.toJson plan.Settings)
        LearnerFile.save folder (savedLearner plan outcome)
        Json.write (summaryPath folder) (summary plan outcome)

    /// The settings of a saved run.
    let settings (folder: string) : RunSettings =
        let path = settingsPath folder
        Json.read "the settings of a finished run" path (Settings.ofJson path)

    /// The last row of a saved run's accuracy matrix, in percent.
    let lastRow (folder: string) : float[] =
        Json.read "the summary of a finished run" (summaryPath folder) (fun root ->
            match
                (root.GetProperty "accuracyMatrix").EnumerateArray()
                |> List.ofSeq
                |> List.tryLast
            with
            | Some row -> [| for entry in row.EnumerateArray() -> entry.GetDouble() |]
            | None -> Errors.reject (summaryPath folder) "must hold an accuracy matrix" "an empty one" "")

    /// Scores a saved learner again on every task it has learned, under `settings` (the saved ones, but for what
    /// belongs to the machine: paths, device, batch). `listen` counts test batches.
    let evaluate (folder: string) (settings: RunSettings) (listen: unit -> unit) : Recheck[] =
        let row = lastRow folder

        // the order that was learned, even where its file is gone
        let device = Device.parse settings.Device
        let dtype = Precision.master settings.Precision

        Scope.run (fun () ->
            let saved = LearnerFile.load dtype device folder
            let order = ClassOrder.Explicit(LearnerFile.jsonPath folder, saved.Order)
            let plan = Plan.loadWith order settings
            LearnerFile.checkBackbone saved plan.Backbone plan.BackboneSha256 (Option.get settings.Backbone)

            if
                saved.Input <> (Plan.batchOptions plan Augmentation.None).Format
                || saved.Heads <> plan.Backbone.Heads
            then
                let rule =
                    "must agree with settings.json on image size, channels, input range and heads"

                Errors.reject (LearnerFile.jsonPath folder) rule "other values" ""

            let learner = LoRASubDrs.learner plan.Backbone settings.Method
            let model = learner.Deploy saved.State
            let tasks = plan.Stream.Tasks |> Array.truncate saved.State.Finished

            if row.Length <> tasks.Length then
                let rule = $"must have a last row of {tasks.Length} tasks, as the learner has"
                Errors.reject (summaryPath folder) rule $"{row.Length}" ""

            let sizes = tasks |> Array.map _.Classes.Length

            if sizes <> saved.TaskSizes then
                let rule = $"must cut the classes into tasks of {List.ofArray saved.TaskSizes}"
                Errors.reject (settingsPath folder) rule $"{List.ofArray sizes}" ""

            Experiment.score learner plan listen model tasks
            |> Array.mapi (fun i score ->
                {
                    Task = tasks[i]
                    Now = score
                    SavedPercent = row[i]
                }))
