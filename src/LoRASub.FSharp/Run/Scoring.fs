namespace LoRASub.Run

open System
open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// Predicts the test images of a plan's tasks and scores them.
[<RequireQualifiedAccess>]
module Scoring =

    /// <summary>The score of predictions on a plan's test images.</summary>
    /// <param name="plan">Decides which classes count as the same answer.</param>
    /// <param name="predictions">Of one task.</param>
    /// <returns>How many are correct.</returns>
    let scoreOf (plan: Plan) (predictions: TaskPredictions) : Score =
        TaskPredictions.score (TaskStream.answers plan.Stream) predictions

    /// <summary>The scores of the other heads' predictions on a plan's test images.</summary>
    /// <param name="plan">Decides which classes count as the same answer.</param>
    /// <param name="predictions">Of one task.</param>
    /// <returns>One score per other head.</returns>
    let othersOf (plan: Plan) (predictions: TaskPredictions) : Score[] =
        TaskPredictions.others (TaskStream.answers plan.Stream) predictions

    /// Of each task the scores of each head, as of each head the scores of each task.
    let internal transpose (rows: Score[][]) : Score[][] =
        match rows with
        | [||] -> [||]
        | _ -> Array.init rows[0].Length (fun i -> rows |> Array.map (Array.item i))

    // A model's predictions for the test images of some tasks, and a fold over the tokens of some parts and the labels.
    let private predictAnd leaves visit initial parts learner (plan: Plan) onBatch model tasks =
        let options = Plan.batchOptions plan Augmentation.None

        let step struct (found, state) (load: BatchLoader) =
            onBatch ()

            Scope.noGrad (Leaves.both Leaves.tensors leaves) (fun () ->
                let batch = load ()
                let struct (scores, tokens) = Learner.predictWith learner model parts batch.Images
                let rows = torch.stack [| batch.Labels; yield! Array.map Scorer.best scores |] // [1 + heads, n]
                struct (Array.append found [| rows |], visit tokens batch.Labels state))

        let ofTask state (task: LearningTask) =
            Scope.keep (fun struct (_, state) -> leaves state) (fun () ->
                let struct (found, state) =
                    TaskStream.testBatches options plan.Stream task
                    |> Scope.fold (Leaves.both Leaves.tensors leaves) step struct ([||], state)

                let rows = torch.cat(found, 1L).``to``(torch.ScalarType.Int32).cpu()
                let row (i: int64) = rows[i].data<int>().ToArray()

                struct ({
                            Task = task
                            Truth = row 0L
                            Predicted = row 1L
                            Others = [| for i in 2L .. rows.shape[0] - 1L -> row i |]
                        },
                        state))

        let oneMore struct (predictions, state) task =
            let struct (mine, state) = ofTask state task
            struct (Array.append predictions [| mine |], state)

        Scope.fold (fun struct (_, state) -> leaves state) oneMore struct ([||], initial) tasks

    /// <summary>A model's predictions for the test images of some tasks.</summary>
    /// <param name="learner">The learner of the model, borrowed.</param>
    /// <param name="plan">The plan of the tasks, borrowed.</param>
    /// <param name="onBatch">Called before each batch.</param>
    /// <param name="model">Borrowed.</param>
    /// <param name="tasks">Tasks of the plan whose classes the model knows.</param>
    /// <returns>For each task, the true and the predicted rows.</returns>
    let predict learner plan (onBatch: unit -> unit) model (tasks: LearningTask[]) : TaskPredictions[] =
        let struct (predictions, ()) =
            predictAnd Leaves.none (fun _ _ () -> ()) () [||] learner plan onBatch model tasks

        predictions

    /// <summary>Scores of a model on the test images of some tasks.</summary>
    /// <param name="learner">The learner of the model, borrowed.</param>
    /// <param name="plan">The plan of the tasks, borrowed.</param>
    /// <param name="onBatch">Called before each batch.</param>
    /// <param name="model">Borrowed.</param>
    /// <param name="tasks">Tasks of the plan whose classes the model knows.</param>
    /// <returns>One score for each task.</returns>
    let score learner plan onBatch model tasks : Score[] =
        predict learner plan onBatch model tasks |> Array.map (scoreOf plan)

    // Predictions on all tasks so far, and the moments of their classes where drift is measured.
    let internal predictSeen learner (plan: Plan) (clock: PhaseClock) measured onProgress onBatch state task =
        let plan = Plan.testedAfter task plan
        let seen = plan.Stream.Tasks[.. task.Index]
        let vit = plan.Backbone

        let batches task =
            let images = (TaskStream.testIndices plan.Stream task).Length
            (images + plan.Settings.Batch - 1) / plan.Settings.Batch

        let steps = Array.sumBy batches seen
        let mutable finished = 0

        let onBatch () =
            onBatch ()

            onProgress (
                Learning(
                    Steps
                        {
                            Task = task
                            Phase = Phase.Predict
                            Done = finished
                            Steps = steps
                            Epoch = 0
                            Epochs = plan.Settings.EpochsOf task
                            Loss = None
                            Accuracy = None
                        }
                )
            )

            finished <- finished + 1

        let none =
            if measured then
                Some(ClassMoments.zero (TaskState.classes state) vit.Blocks.Length vit.Width vit.Device)
            else
                None

        let visit tokens labels moments =
            moments |> Option.map (ClassMoments.observe tokens labels)

        clock.Time Phase.Predict (fun () ->
            Scope.keep (fun struct (_, moments) -> Leaves.option ClassMoments.leaves moments) (fun () ->
                let model = Learner.deploy learner state
                let parts = if measured then ClassMoments.parts vit else [||]
                let leaves = Leaves.option ClassMoments.leaves
                predictAnd leaves visit none parts learner plan onBatch model seen))

    // The score on a task before it is learned: see `TaskRecord.Before`.
    let internal scoreBefore learner (plan: Plan) (clock: PhaseClock) onBatch (state: TaskState) task =
        let plan = Plan.testedAfter task plan

        let loaders =
            (Plan.taskContext learner plan clock state task).Batches Pass.Consolidate
            |> Array.map (fun load ->
                fun () ->
                    onBatch ()
                    load ())

        clock.Time Phase.Predict (fun () ->
            Scope.run (fun () ->
                let model = Learner.foresee learner task loaders state
                (score (Learner.alone learner) plan onBatch model [| task |])[0]))

    /// The scores of each head on all tasks so far, if its sums were computed again from all training images under the
    /// present network: what stale statistics cost. A diagnosis, which no learner without old images can have.
    let internal recomputed
        (learner: Learner)
        (plan: Plan)
        (clock: PhaseClock)
        onBatch
        (state: TaskState)
        : Score[][] =
        let seen = plan.Stream.Tasks |> Array.truncate state.Finished
        let classes = TaskState.classes state

        let loaders =
            seen
            |> Array.collect (fun task ->
                (Plan.taskContext learner plan clock state task).Batches Pass.Consolidate)

        clock.Time Phase.Predict (fun () ->
            Scope.run (fun () ->
                let networks = Learner.networks learner state.Method

                let step heads (load: BatchLoader) =
                    onBatch ()
                    let batch = load ()
                    let struct (_, embedded) = Learner.embed learner networks [||] batch.Images
                    Learner.observe learner embedded batch.Labels heads

                let none =
                    learner.Readouts
                    |> Array.map (fun readout -> readout.Head.Grow classes (Learner.noHead learner readout))

                let heads = Scope.fold (Seq.collect Hidden.leaves) step none loaders

                let model =
                    Learner.deploy
                        learner
                        { state with
                            Head = heads[0]
                            Others = heads[1..]
                        }

                let predictions = predict learner plan onBatch model seen

                Array.append
                    [| predictions |> Array.map (scoreOf plan) |]
                    (transpose (predictions |> Array.map (othersOf plan)))))
