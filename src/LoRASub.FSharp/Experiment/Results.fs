namespace LoRASub

open System
open System.Text.Json.Nodes
open TorchSharp

/// What a finished run tells, as JSON: everything that the same settings give again in summary.json, and what
/// depends on the machine and its mood in resources.json.
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

    /// summary.json: no clock and no address in it, so that two runs of the same settings agree byte for byte.
    let summary (plan: Plan) (outcome: Outcome) : JsonNode =
        let measures = Metrics.measure outcome.Matrix
        let settings = plan.Settings

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
