namespace LoRASub

open System
open System.Text.Json.Nodes
open TorchSharp

/// The results of a finished run as JSON: everything that the same settings reproduce in summary.json, and what
/// depends on the machine and its load in resources.json.
[<RequireQualifiedAccess>]
module Results =

    // rounded where only the noise of floating point is left
    let private percent (fraction: float) = Math.Round(100.0 * fraction, 10)

    let private percents = percent >> Json.float

    let private rows (node: 'T -> JsonNode) = Json.array (Json.array node)

    // JSON has no infinity
    let private finite x =
        Some x |> Option.filter Double.IsFinite |> Json.option Json.float

    let private counts (score: Score) =
        Json.array (int64 >> Json.int) [ score.Correct; score.Total ]

    let private answers (plan: Plan) = TaskStream.answers plan.Stream

    /// Which test images the last state took for what.
    let confusion (outcome: Outcome) : Confusion =
        let all (pick: TaskPredictions -> int[]) =
            outcome.Predictions |> Array.collect pick

        Confusion.ofPredictions (all _.Truth) (all _.Predicted) (TaskState.classes outcome.State)

    /// The classes learned, with what the last state got right of each.
    let classScores (plan: Plan) (outcome: Outcome) : ClassScore[] =
        let order = plan.Stream.Order

        let tasks =
            plan.Stream.Tasks
            |> Array.collect (fun task -> Array.create task.Classes.Length task.Index)

        Confusion.classes
            (answers plan)
            order
            (order |> Array.map (fun label -> plan.Stream.Dataset.ClassNames[label]))
            tasks
            (confusion outcome)

    let private transfer (plan: Plan) (outcome: Outcome) : Transfer =
        let before = outcome.Tasks |> Array.choose _.Before

        Transfer.measure
            plan.References
            before
            {
                Trained = plan.Settings.Method.Training
                Matrix = outcome.Matrix
                Classes = classScores plan outcome
            }

    /// All measures, as far as the references at hand allow, and why the others are missing, by name.
    let measures (plan: Plan) (outcome: Outcome) : struct (Measures * (string * string option) list) =
        let transfer = transfer plan outcome

        struct (Metrics.measure outcome.Matrix |> Transfer.complete transfer,
                [
                    "forwardTransfer", Transfer.note transfer.ForwardTransfer
                    "intransigence", Transfer.note transfer.Intransigence
                ])

    /// classes.json: what became of each class's test images.
    let classes (plan: Plan) (outcome: Outcome) : JsonNode =
        let ofClass (one: ClassScore) =
            Json.object
                [
                    "position", Json.int (int64 one.Position)
                    "label", Json.int (int64 one.Label)
                    "name", Json.text one.Name
                    "task", Json.int (int64 one.Task)
                    "correct", Json.int (int64 one.Score.Correct)
                    "total", Json.int (int64 one.Score.Total)
                ]

        Json.object
            [
                "classes", Json.array ofClass (classScores plan outcome)
                "samples",
                Samples.choose plan.Stream outcome.Predictions
                |> Json.array (fun sample ->
                    Json.object
                        [
                            "task", Json.int (int64 sample.Task)
                            "true", Json.int (int64 sample.Truth)
                            "predicted", Json.int (int64 sample.Predicted)
                            "png", Json.text (Convert.ToBase64String sample.Png)
                        ])
                "confusion", rows (int64 >> Json.int) (confusion outcome).Counts
            ]

    /// summary.json: no clock and no address in it, so that two runs of the same settings agree byte for byte.
    let summary (plan: Plan) (outcome: Outcome) : JsonNode =
        let struct (measures, notes) = measures plan outcome
        let settings = plan.Settings

        Json.object
            [
                "method", Json.text outcome.Method
                "variant", Json.text ((string settings.Variant).ToLowerInvariant())
                "data", Json.text settings.Data
                "tasks", Json.int plan.Stream.Tasks.LongLength
                "learnedTasks", Json.int outcome.Matrix.LongLength
                "seed", Json.int settings.Seed
                for name, value in Measures.named measures do
                    name, Json.option percents value

                for name, note in notes do
                    $"{name}Note", Json.option Json.text note
                "accuracyMatrix", rows (Metrics.accuracy >> percents) outcome.Matrix
                "correctAndTotal", rows counts outcome.Matrix
                "retainedRank", rows (fun (r: Retained) -> Json.int r.Rank) outcome.Retained
                "retainedEnergy", rows (fun (r: Retained) -> Json.float r.Energy) outcome.Retained
                "conditionNumber", rows (_.Condition >> finite) outcome.Retained
                "threads", Json.int (torch.get_num_threads ())
            ]

    let private seconds (spent: Map<Phase, float>) =
        Json.object [ for phase in Phase.all -> Phase.name phase, Json.float spent[phase] ]

    let private memory (task: TaskRecord) =
        let at (use': MemoryUse) =
            Json.object
                [
                    "tensors", Json.int use'.Tensors
                    "residentBytes", Json.int use'.ResidentBytes
                ]

        Json.object [ "taskStart", at task.MemoryBefore; "taskEnd", at task.MemoryAfter ]

    /// resources.json: time, memory and the machine.
    let resources (plan: Plan) (started: DateTime) (outcome: Outcome) : JsonNode =
        let time (at: DateTime) =
            Json.text (at.ToString "yyyy-MM-ddTHH:mm:ssZ")

        Json.object
            [
                "phaseSeconds", seconds outcome.PhaseSeconds
                "taskSeconds", outcome.Tasks |> Json.array (_.Seconds >> seconds)
                "peakMemoryBytes", Json.int (MemoryUse.peakBytes ())
                "memory", Json.array memory outcome.Tasks
                "environment", Machine.describe plan.Settings.Device
                "startedUtc", time started
                "finishedUtc", time DateTime.UtcNow
            ]
