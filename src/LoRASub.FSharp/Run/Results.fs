namespace LoRASub.Run

open System
open System.Collections.Generic
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// The results of a finished run as JSON: summary.json holds what the same settings reproduce, resources.json what
/// depends on the machine.
[<RequireQualifiedAccess>]
module Results =

    /// <summary>Counts the predictions of the last state for all test images.</summary>
    /// <param name="outcome">Borrowed.</param>
    /// <returns>By position in the class order.</returns>
    let confusion (outcome: Outcome) : Confusion =
        let all (pick: TaskPredictions -> int[]) =
            outcome.Predictions |> Array.collect pick

        Confusion.ofPredictions (all _.Truth) (all _.Predicted) (TaskState.classes outcome.State)

    /// <summary>The classes learned, with their scores after the last task.</summary>
    /// <param name="plan">Of the run. Borrowed.</param>
    /// <param name="outcome">Borrowed.</param>
    /// <returns>By position in the class order.</returns>
    let classScores (plan: Plan) (outcome: Outcome) : ClassScore[] =
        let order = plan.Stream.Order

        let tasks =
            plan.Stream.Tasks
            |> Array.collect (fun task -> Array.create task.Classes.Length task.Index)

        Confusion.classes
            (Plan.answers plan)
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
                Trained = outcome.Learner.Method.Info.Trains
                Head = outcome.Learner.Readouts[0].Label
                Matrix = outcome.Matrix
                Classes = classScores plan outcome
            }

    /// <summary>All measures that the references of the plan allow.</summary>
    /// <param name="plan">Of the run. Borrowed.</param>
    /// <param name="outcome">Borrowed.</param>
    /// <returns>The measures, as fractions, and by name why others are missing: None for one that is there.</returns>
    let measures (plan: Plan) (outcome: Outcome) : struct (Measures * (string * string option) list) =
        let transfer = transfer plan outcome

        struct (Metrics.measure outcome.Matrix |> Transfer.complete transfer,
                [
                    "forwardTransfer", Transfer.note transfer.ForwardTransfer
                    "intransigence", Transfer.note transfer.Intransigence
                ])

    /// <summary>The results of every head of a run.</summary>
    /// <param name="outcome">Borrowed.</param>
    /// <returns>First those of the head that predicts.</returns>
    let heads (outcome: Outcome) : HeadLine[] =
        let line i (readout: Readout) bytes (matrix: AccuracyMatrix) =
            let measures = Metrics.measure matrix

            let percent name =
                measures |> Map.tryFind name |> Option.map Metrics.percent

            {
                Head = readout.Label
                Last = (percent "last").Value
                Average = (percent "average").Value
                Forgetting = percent "forgetting"
                Bytes = bytes
                Recomputed =
                    outcome.Recomputed
                    |> Option.map (fun rows ->
                        rows[i] |> Array.reduce (+) |> Metrics.accuracy |> Metrics.percent)
                CorrectAndTotal = matrix
            }

        let bytes = Learner.headBytes outcome.Learner outcome.State

        Array.zip3 outcome.Learner.Readouts bytes outcome.Matrices
        |> Array.mapi (fun i (readout, bytes, matrix) -> line i readout bytes matrix)

    /// classes.json.
    let internal classes (plan: Plan) (outcome: Outcome) : JsonNode =
        Json.ofRecord
            {
                Classes =
                    classScores plan outcome
                    |> Array.map (fun one ->
                        {
                            Position = one.Position
                            Label = one.Label
                            Name = one.Name
                            Task = one.Task
                            Correct = one.Score.Correct
                            Total = one.Score.Total
                        })
                Samples =
                    Samples.choose plan.Stream outcome.Predictions
                    |> Array.map (fun sample ->
                        {
                            Task = sample.Task
                            True = sample.Truth
                            Predicted = sample.Predicted
                            Png = Convert.ToBase64String sample.Png
                        })
                Confusion = (confusion outcome).Counts
            }

    /// summary.json: no time and no path in it, so that two runs of the same settings agree byte for byte.
    let internal summary (plan: Plan) (outcome: Outcome) : JsonNode =
        let struct (measures, notes) = measures plan outcome
        let settings = plan.Settings

        let note name =
            notes |> List.find (fst >> (=) name) |> snd

        let retained f =
            outcome.Retained |> Array.map (Array.map f)

        SummaryFile.toJson
            measures
            {
                Method = outcome.Learner.Method.Info.Name
                Variant = (string settings.Variant).ToLowerInvariant()
                Data = settings.Data
                Tasks = plan.Stream.Tasks.Length
                LearnedTasks = outcome.Matrix.Length
                Seed = settings.Seed
                ForwardTransferNote = note "forwardTransfer"
                IntransigenceNote = note "intransigence"
                AccuracyMatrix = outcome.Matrix |> Array.map (Array.map (Metrics.accuracy >> Metrics.percent))
                CorrectAndTotal = outcome.Matrix
                Heads = Some(heads outcome)
                RetainedRank = retained _.Rank
                RetainedEnergy = retained _.Energy
                ConditionNumber = retained _.Condition
                Threads = torch.get_num_threads ()
            }

    let private seconds (spent: Map<Phase, float>) =
        Dictionary(dict [ for phase in Phase.all -> Phase.name phase, spent[phase] ])

    /// resources.json.
    let internal resources (plan: Plan) (started: DateTime) (outcome: Outcome) : JsonNode =
        let time (at: DateTime) = at.ToString "yyyy-MM-ddTHH:mm:ssZ"

        Json.ofRecord
            {
                PhaseSeconds = seconds outcome.PhaseSeconds
                TaskSeconds = outcome.Tasks |> Array.map (_.Seconds >> seconds)
                PeakMemoryBytes = MemoryUse.peakBytes ()
                PeakDeviceBytes = MemoryUse.deviceBytes plan.Backbone.Device
                Memory =
                    outcome.Tasks
                    |> Array.map (fun task ->
                        {
                            TaskStart = task.MemoryBefore
                            TaskEnd = task.MemoryAfter
                        })
                Environment = (Machine.describe plan.Settings.Device plan.Settings.Deterministic).AsObject()
                StartedUtc = time started
                FinishedUtc = time DateTime.UtcNow
            }
