namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open TorchSharp

/// Progress of a run.
type RunEvent =
    | TaskBegins of LearningTask * MemoryUse
    | Learning of TaskEvent
    /// The scores on all tasks so far, and the seconds that the task took in all phases and sittings.
    | TaskEnds of LearningTask * Score[] * MemoryUse * seconds: float
    | Notice of string

/// What became of one task's test images, in the order of the data set; classes are rows.
type TaskPredictions =
    {
        Task: LearningTask
        Truth: int[]
        Predicted: int[]
    }

[<RequireQualifiedAccess>]
module TaskPredictions =

    /// A prediction is correct if its answer is the true class's; `answers` gives that of each row.
    let score (answers: int[]) (predictions: TaskPredictions) : Score =
        {
            Correct =
                Seq.zip predictions.Truth predictions.Predicted
                |> Seq.filter (fun (truth, predicted) -> answers[truth] = answers[predicted])
                |> Seq.length
            Total = predictions.Truth.Length
        }

/// What is known of a finished task.
type TaskRecord =
    {
        /// Scores on all tasks so far.
        Row: Score[]
        /// On its own test images right before it was learned, its classes learned by the head alone from the network at
        /// that time. Some if a reference needs it; None for the first task.
        Before: Score option
        /// What observing led to, per block; empty for a task that was not observed.
        Retained: Retained[]
        /// At the start of the task.
        MemoryBefore: MemoryUse
        /// At its end.
        MemoryAfter: MemoryUse
        /// Seconds per phase.
        Seconds: Map<Phase, float>
    }

/// What a run leaves.
[<ReferenceEquality>]
type Outcome =
    {
        /// Owned by the caller.
        State: TaskState
        Learner: Learner
        Tasks: TaskRecord[]
        /// By the last state, of all tasks learned.
        Predictions: TaskPredictions[]
        /// Owned by the caller; none where a class has no test image to measure it on.
        Drift: Drift.State option
    }

    member this.Matrix: AccuracyMatrix = this.Tasks |> Array.map _.Row

    /// Per task and block.
    member this.Retained = this.Tasks |> Array.map _.Retained

    /// Seconds per phase, over all tasks.
    member this.PhaseSeconds: Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, this.Tasks |> Array.sumBy (fun task -> task.Seconds[phase]))
        |> Map.ofList

[<RequireQualifiedAccess>]
module Outcome =
    let leaves: Leaves<Outcome> =
        fun outcome -> Seq.append (TaskState.leaves outcome.State) (Leaves.option Drift.leaves outcome.Drift)

/// How far an open task is.
type OpenProgress =
    | InLoop of TaskProgress
    /// Merged into the run's state, and not scored yet: what drift is measured from, as in `LearnedTask`.
    | Learned of Diagnostics * means: torch.Tensor

/// A task that is under way.
[<ReferenceEquality>]
type OpenTask =
    {
        MemoryBefore: MemoryUse
        /// Seconds so far, per phase.
        Seconds: Map<Phase, float>
        Before: Score option
        Progress: OpenProgress
    }

/// A run between two steps: all that is needed to resume it exactly.
[<ReferenceEquality>]
type RunState =
    {
        /// After the learned tasks.
        State: TaskState
        /// One per scored task.
        Tasks: TaskRecord[]
        /// Over the scored tasks; none where a class has no test image to measure it on.
        Drift: Drift.State option
        Open: OpenTask option
    }

/// The points at which a run can be checkpointed.
[<RequireQualifiedAccess>]
type CheckpointPoint =
    | BetweenSteps
    /// A task is learned and not yet scored.
    | AfterLearning

/// Called at each point where the run can be checkpointed; may ask for its state, whose tensors stay the run's, and
/// may throw to end it.
type OnCheckpoint = CheckpointPoint -> (unit -> RunState) -> unit
