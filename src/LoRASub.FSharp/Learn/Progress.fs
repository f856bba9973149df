namespace LoRASub.Learn

open System.Diagnostics
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Methods
open TorchSharp

/// The phases that are timed separately.
[<RequireQualifiedAccess>]
type Phase =
    | Observe
    | Project
    | Train
    | Prototypes
    | Predict

[<RequireQualifiedAccess>]
module Phase =
    let all =
        [ Phase.Observe; Phase.Project; Phase.Train; Phase.Prototypes; Phase.Predict ]

    /// Name in saved results.
    let name (phase: Phase) = (string phase).ToLowerInvariant()

/// Progress of a phase.
type Step =
    {
        Task: LearningTask
        Phase: Phase
        /// Steps done and to do in this phase of the task.
        Done: int
        Steps: int
        /// Epoch from 0, and epochs of the task, while training.
        Epoch: int
        Epochs: int
        /// Running mean loss and accuracy of the epoch, where they were just read from the device.
        Loss: float option
        Accuracy: float option
    }

/// A finished epoch.
type EpochReport =
    {
        Task: int
        Epoch: int
        /// Mean over the epoch's batches.
        Loss: float
        /// On the training batches as they were learned, a fraction.
        [<JsonConverter(typeof<PercentConverter>)>]
        Accuracy: float
        /// Base rate of the pairs in this epoch.
        LearningRate: float
        /// Wall time of this epoch.
        Seconds: float
    }

/// What is reported while a task is learned.
type TaskEvent =
    | Steps of Step
    /// What observing led to, per block.
    | Retains of LearningTask * Retained[]
    | EpochEnds of EpochReport

/// Seconds per phase. Mutable: it belongs to the shell around the pure phases.
type PhaseClock(initial: Map<Phase, float>) =
    let mutable seconds = initial
    let mutable running: Phase option = None

    new() = PhaseClock Map.empty

    /// Runs `f` and adds its time to a phase.
    member _.Time (phase: Phase) (f: unit -> 'T) : 'T =
        let clock = Stopwatch.StartNew()
        running <- Some phase
        let result = f ()
        let before = Map.tryFind phase seconds |> Option.defaultValue 0.0
        seconds <- Map.add phase (before + clock.Elapsed.TotalSeconds) seconds
        running <- None
        result

    /// The phase in progress, or the one that an exception ended.
    member _.Current: Phase option = running

    /// Every phase so far, 0 for a phase that did not run.
    member _.Seconds: Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, Map.tryFind phase seconds |> Option.defaultValue 0.0)
        |> Map.ofList

/// Sums over an epoch, kept on the device so that a step need not wait for them.
[<ReferenceEquality>]
type Tally =
    {
        /// Summed over the steps, scalar float64.
        Loss: torch.Tensor
        /// Correct predictions, scalar int64.
        Correct: torch.Tensor
        Images: int64
        Steps: int
    }

[<RequireQualifiedAccess>]
module Tally =

    let tree: Tree<Tally> =
        tree {
            let! loss = Tree.field "loss" _.Loss Tree.tensor
            and! correct = Tree.field "correct" _.Correct Tree.tensor
            and! images = Tree.field "images" _.Images Tree.int64
            and! steps = Tree.field "steps" _.Steps Tree.int

            return
                {
                    Loss = loss
                    Correct = correct
                    Images = images
                    Steps = steps
                }
        }

    let leaves = tree.Leaves

    /// Of no steps. Owned by the caller.
    let zero (device: torch.Device) : Tally =
        {
            Loss = torch.zeros ([||], dtype = torch.ScalarType.Float64, device = device)
            Correct = torch.zeros ([||], dtype = torch.ScalarType.Int64, device = device)
            Images = 0L
            Steps = 0
        }

    /// With one more step. Owned by the caller.
    let add (batch: Batch) (report: StepReport) (tally: Tally) : Tally =
        {
            Loss = tally.Loss.add report.Loss
            Correct = tally.Correct.add report.Correct
            Images = tally.Images + batch.Labels.shape[0]
            Steps = tally.Steps + 1
        }

    /// Mean loss over the steps and the share of correct predictions; waits for the device.
    let read (tally: Tally) : struct (float * float) =
        struct (tally.Loss.item<float>() / float tally.Steps,
                float (tally.Correct.item<int64>()) / float tally.Images)
