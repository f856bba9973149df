namespace LoRASub.Learn

open System.Diagnostics
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Methods
open TorchSharp

/// The phases of a task that are timed separately.
[<RequireQualifiedAccess>]
type Phase =
    /// The new task's images run through the network, without training.
    | Observe
    /// What was observed becomes projections.
    | Project
    /// Training steps.
    | Train
    /// The pass after training.
    | Prototypes
    /// Test images are scored.
    | Predict

/// Phases of a task.
[<RequireQualifiedAccess>]
module Phase =
    /// <summary>Every phase, in order.</summary>
    let all =
        [ Phase.Observe; Phase.Project; Phase.Train; Phase.Prototypes; Phase.Predict ]

    /// <summary>The name of a phase in saved results.</summary>
    /// <param name="phase">Any.</param>
    /// <returns>Its name in lower case.</returns>
    let name (phase: Phase) = (string phase).ToLowerInvariant()

/// Progress of a phase.
type Step =
    {
        /// The task in progress.
        Task: LearningTask
        /// Its phase in progress.
        Phase: Phase
        /// Steps done in this phase of the task.
        Done: int
        /// Steps to do in this phase of the task.
        Steps: int
        /// Epoch in progress, from 0, while training.
        Epoch: int
        /// Epochs of the task.
        Epochs: int
        /// Running mean loss of the epoch, where it was just read from the device.
        Loss: float option
        /// Share of correct predictions of the epoch so far, likewise.
        Accuracy: float option
    }

/// A finished epoch.
type EpochReport =
    {
        /// From 0.
        Task: int
        /// From 0.
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
    /// A step was done, or is about to be.
    | Steps of Step
    /// What observing led to, per block.
    | Retains of LearningTask * Retained[]
    /// An epoch is finished.
    | EpochEnds of EpochReport

/// <summary>Seconds per phase. Mutable: it belongs to the shell around the pure phases.</summary>
/// <param name="initial">Seconds of earlier work; a phase that is absent has none.</param>
type PhaseClock(initial: Map<Phase, float>) =
    let mutable seconds = initial
    let mutable running: Phase option = None

    /// <summary>A clock of no work yet.</summary>
    new() = PhaseClock Map.empty

    /// <summary>Runs a function and adds its time to a phase.</summary>
    /// <param name="phase">The phase.</param>
    /// <param name="f">Runs once. An exception of its own passes through, and its time is not added.</param>
    /// <returns>The result of the function.</returns>
    member _.Time (phase: Phase) (f: unit -> 'T) : 'T =
        let clock = Stopwatch.StartNew()
        running <- Some phase
        let result = f ()
        let before = Map.tryFind phase seconds |> Option.defaultValue 0.0
        seconds <- Map.add phase (before + clock.Elapsed.TotalSeconds) seconds
        running <- None
        result

    /// <summary>The phase in progress, or the one that an exception ended.</summary>
    member _.Current: Phase option = running

    /// <summary>Seconds of every phase so far, 0 for a phase that did not run.</summary>
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
        /// Images seen.
        Images: int64
        /// Steps done.
        Steps: int
    }

/// Sums over an epoch.
[<RequireQualifiedAccess>]
module Tally =

    /// <summary>The tensors and numbers of a tally.</summary>
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

    /// <summary>Lists the tensors of a tally.</summary>
    let leaves = tree.Leaves

    /// <summary>The tally of no step.</summary>
    /// <param name="device">Where the sums are.</param>
    /// <returns>Owned by the caller.</returns>
    let zero (device: torch.Device) : Tally =
        {
            Loss = torch.zeros ([||], dtype = torch.ScalarType.Float64, device = device)
            Correct = torch.zeros ([||], dtype = torch.ScalarType.Int64, device = device)
            Images = 0L
            Steps = 0
        }

    /// <summary>The tally with one more step.</summary>
    /// <param name="batch">Of the step; borrowed.</param>
    /// <param name="report">Of the step, on the tally's device; borrowed.</param>
    /// <param name="tally">Borrowed.</param>
    /// <returns>Owned by the caller's scope.</returns>
    let add (batch: Batch) (report: StepReport) (tally: Tally) : Tally =
        {
            Loss = tally.Loss.plus report.Loss
            Correct = tally.Correct.plus report.Correct
            Images = tally.Images + batch.Labels.shape[0]
            Steps = tally.Steps + 1
        }

    /// <summary>Mean loss over the steps and the share of correct predictions; waits for the
    /// device.</summary>
    /// <param name="tally">Of at least one step; borrowed.</param>
    /// <returns>Loss, and accuracy as a fraction.</returns>
    let read (tally: Tally) : struct (float * float) =
        struct (tally.Loss.item<float>() / float tally.Steps,
                float (tally.Correct.item<int64>()) / float tally.Images)
