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

/// Predictions for one task's test images, in the order of the data set. Classes are rows of the head.
type TaskPredictions =
    {
        Task: LearningTask
        Truth: int[]
        Predicted: int[]
        /// Predictions of the learner's other heads.
        Others: int[][]
    }

/// Scores of predictions.
[<RequireQualifiedAccess>]
module TaskPredictions =

    /// <summary>The score of predictions. A prediction is correct if its answer is that of the true class.</summary>
    /// <param name="answers">The answer of each row.</param>
    /// <param name="predictions">Of one task.</param>
    /// <returns>Correct and all images.</returns>
    let score (answers: int[]) (predictions: TaskPredictions) : Score =
        {
            Correct =
                Seq.zip predictions.Truth predictions.Predicted
                |> Seq.filter (fun (truth, predicted) -> answers[truth] = answers[predicted])
                |> Seq.length
            Total = predictions.Truth.Length
        }

    /// <summary>The scores of the other heads' predictions.</summary>
    /// <param name="answers">The answer of each row.</param>
    /// <param name="predictions">Of one task.</param>
    /// <returns>One per other head.</returns>
    let others (answers: int[]) (predictions: TaskPredictions) : Score[] =
        predictions.Others
        |> Array.map (fun predicted ->
            score
                answers
                { predictions with
                    Predicted = predicted
                })

/// What is known of a finished task.
type TaskRecord =
    {
        /// Scores on all tasks so far.
        Row: Score[]
        /// The same for each of the other heads.
        Others: Score[][]
        /// On its own test images right before it was learned, where only the head has learned its classes, from the
        /// network at that time. Some if a reference needs it; None for the first task.
        Before: Score option
        /// The result of observing, per block; empty for a task that was not observed.
        Retained: Retained[]
        /// At the start of the task.
        MemoryBefore: MemoryUse
        /// At its end.
        MemoryAfter: MemoryUse
        /// Seconds per phase.
        Seconds: Map<Phase, float>
    }

/// The result of a run.
[<ReferenceEquality>]
type Outcome =
    {
        /// Owned by the caller.
        State: TaskState
        Learner: Learner
        Tasks: TaskRecord[]
        /// By the last state, of all tasks learned.
        Predictions: TaskPredictions[]
        /// Of each head the scores on all tasks, with sums computed again from all training images under the last
        /// network; where the settings ask for it.
        Recomputed: Score[][] option
        /// Owned by the caller; None where drift is not measured.
        Drift: Drift.State option
    }

    /// <summary>The score on each task so far, after each task.</summary>
    member this.Matrix: AccuracyMatrix = this.Tasks |> Array.map _.Row

    /// <summary>The matrix of each of the other heads.</summary>
    member this.OtherMatrices: AccuracyMatrix[] =
        this.Learner.Others
        |> Array.mapi (fun i _ -> this.Tasks |> Array.map (fun task -> task.Others[i]))

    /// <summary>The matrix of every head: first that of the one that predicts.</summary>
    member this.Matrices: AccuracyMatrix[] =
        Array.append [| this.Matrix |] this.OtherMatrices

    /// Per task and block.
    member this.Retained = this.Tasks |> Array.map _.Retained

    /// Seconds per phase, over all tasks.
    member this.PhaseSeconds: Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, this.Tasks |> Array.sumBy (fun task -> task.Seconds[phase]))
        |> Map.ofList

/// The tensors of an outcome.
[<RequireQualifiedAccess>]
module Outcome =
    /// <summary>Lists the tensors of an outcome.</summary>
    /// <param name="outcome">Borrowed.</param>
    /// <returns>Those of its state and drift, borrowed.</returns>
    let leaves: Leaves<Outcome> =
        fun outcome -> Seq.append (TaskState.leaves outcome.State) (Leaves.option Drift.leaves outcome.Drift)

/// The progress of an open task.
type OpenProgress =
    | InLoop of TaskProgress
    /// Merged into the run's state, and not scored yet; with what drift is measured from, as in `LearnedTask`.
    | Learned of Diagnostics * means: torch.Tensor

/// A task in progress.
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
        /// Over the scored tasks; None where drift is not measured.
        Drift: Drift.State option
        Open: OpenTask option
    }

/// The points at which a run can be checkpointed.
[<RequireQualifiedAccess>]
type CheckpointPoint =
    | BetweenSteps
    /// A task is learned and not yet scored.
    | AfterLearning

/// Called at each point where the run can be checkpointed. It may ask for the state, whose tensors it borrows, and may
/// throw to end the run.
type OnCheckpoint = CheckpointPoint -> (unit -> RunState) -> unit
