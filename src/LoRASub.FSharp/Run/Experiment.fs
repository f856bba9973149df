namespace LoRASub.Run

open System
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// Learns the tasks of a plan in turn and scores each state: the imperative shell around `TaskLoop`.
[<RequireQualifiedAccess>]
module Experiment =

    // Does the work of a task. Where memory runs out, the exception states the phase and batch.
    let private reporting (plan: Plan) (clock: PhaseClock) onProgress (task: LearningTask) work =
        let last = ref None

        let remembering progress =
            match progress with
            | Learning(Steps step) -> last.Value <- Some step
            | _ -> ()

            onProgress progress

        let what () =
            let phase =
                match clock.Current, last.Value with
                | Some phase, Some step when step.Phase = phase && step.Done < step.Steps ->
                    $", phase {Phase.name phase}, batch {step.Done + 1} of {step.Steps}"
                | Some phase, _ -> $", phase {Phase.name phase}"
                | None, _ -> ""

            $"in task {task.Index + 1} of {plan.Stream.Tasks.Length}{phase}"

        NativeError.during what (Plan.lessMemory plan) (fun () -> work remembering)

    /// <summary>The state after one of the tasks of a plan.</summary>
    /// <param name="learner">Over the backbone of the plan.</param>
    /// <param name="plan">Borrowed.</param>
    /// <param name="state">After the tasks before. Borrowed.</param>
    /// <param name="task">The next task of the plan.</param>
    /// <returns>The next state, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `TaskLoop.learn`.</exception>
    let learnTask (learner: Learner) (plan: Plan) (state: TaskState) (task: LearningTask) : TaskState =
        Scope.keep TaskState.leaves (fun () ->
            let context = Plan.taskContext learner plan (PhaseClock()) state task
            (TaskLoop.learn context state None).State)

    // Where they leave any out.
    let private interimImages (plan: Plan) : int option =
        plan.Settings.InterimImages
        |> Option.filter (fun _ -> (Plan.tasks plan).Length > 1)

    // A class mean needs images that no training saw, the same after each task.
    let private whyNoDrift (plan: Plan) : string option =
        if (interimImages plan).IsSome then
            Some "interim-images leaves out test images"
        elif Set.isSubset (Set.ofArray plan.Stream.Order) (Set.ofArray plan.Stream.Dataset.Test.Labels) then
            None
        else
            Some "a class has no test image"

    /// The run before its first task. Owned by the caller.
    let internal start (learner: Learner) (plan: Plan) : RunState =
        {
            State = Learner.start learner (Rng.ofSeed plan.Settings.Seed)
            Tasks = [||]
            Drift =
                if plan.Settings.Drift && (whyNoDrift plan).IsNone then
                    Some(Drift.none plan.Backbone.Blocks.Length plan.Backbone.Width)
                else
                    None
            Open = None
        }

    // A method's own classifier knows nothing of a task before it is learned.
    let private measuresForward (learner: Learner) (plan: Plan) =
        not (Learner.isLogits learner.Head)
        && plan.References |> Array.exists (fun reference -> not reference.Trained)

    // `next` replaces `previous`, whose other leaves are no longer needed.
    let private replacing leaves (previous: 'S) (next: 'S) =
        Scope.supersede leaves [ next ] previous
        next

    // The run after one more task, and its predictions; takes ownership of its progress.
    let private oneTask learner plan clock onProgress (onCheckpoint: OnCheckpoint) (run: RunState) task =
        let memory, before =
            match run.Open with
            | Some opened -> opened.MemoryBefore, opened.Before
            | None when measuresForward learner plan && task.Index > 0 ->
                let onBatch () =
                    onCheckpoint CheckpointPoint.BetweenSteps (fun () -> run)

                let before = Scoring.scoreBefore learner plan clock onBatch run.State task
                MemoryUse.now (), Some before
            | None -> MemoryUse.now (), None

        let checkpoint point (run: RunState) progress =
            onCheckpoint point (fun () ->
                { run with
                    Open =
                        Some
                            {
                                MemoryBefore = memory
                                Seconds = (clock: PhaseClock).Seconds
                                Before = before
                                Progress = progress ()
                            }
                })

        onProgress (TaskBegins(task, memory))

        let learnFrom progress =
            let context =
                { Plan.taskContext learner plan clock run.State task with
                    OnEvent = Learning >> onProgress
                    OnStep =
                        fun progress ->
                            checkpoint CheckpointPoint.BetweenSteps run (fun () -> InLoop(progress ()))
                }

            let learned = TaskLoop.learn context run.State progress
            let state = replacing TaskState.leaves run.State learned.State
            struct ({ run with State = state }, learned.Diagnostics, learned.Means)

        let struct (run, diagnostics, means) =
            match run.Open |> Option.map _.Progress with
            | Some(Learned(diagnostics, means)) -> struct (run, diagnostics, means)
            | Some(InLoop progress) -> learnFrom (Some progress)
            | None -> learnFrom None

        let checkpoint point =
            checkpoint point run (fun () -> Learned(diagnostics, means))

        checkpoint CheckpointPoint.AfterLearning

        let struct (predictions, moments) =
            let onBatch () = checkpoint CheckpointPoint.BetweenSteps

            Scoring.predictSeen learner plan clock run.Drift.IsSome onProgress onBatch run.State task

        let drift =
            Option.map2
                (fun before moments ->
                    Drift.afterTask task.Index means moments diagnostics.Subspaces before
                    |> replacing Drift.leaves before)
                run.Drift
                moments

        Scope.free (Leaves.option ClassMoments.leaves) moments
        Scope.free Diagnostics.leaves diagnostics
        means.Dispose()
        let row = predictions |> Array.map (Scoring.scoreOf plan)
        let after = MemoryUse.now ()
        onProgress (TaskEnds(task, row, after, Seq.sum clock.Seconds.Values))

        let record =
            {
                Row = row
                Others = Scoring.transpose (predictions |> Array.map (Scoring.othersOf plan))
                Before = before
                Retained = diagnostics.Retained
                MemoryBefore = memory
                MemoryAfter = after
                Seconds = clock.Seconds
            }

        struct ({ run with
                    Tasks = Array.append run.Tasks [| record |]
                    Drift = drift
                    Open = None
                },
                predictions)

    // Reported once, before the first task.
    let private notices (plan: Plan) (run: RunState) =
        [|
            yield! plan.Stream.Dataset.Notes |> Array.map Notice
            yield! Plan.heldRates plan |> Array.map Notice

            match interimImages plan with
            | Some each ->
                let images = Text.counted each "test image" "test images"
                Notice $"before the last task, only the first {images} of each class count"
            | None -> ()

            match whyNoDrift plan with
            | Some why when plan.Settings.Drift -> Notice $"drift is not measured: {why}"
            | _ -> ()
        |]

    /// Resumes a run from its state, of which it takes ownership: learns the remaining tasks and scores each state on
    /// all tasks so far, exactly as without the interruption. `onProgress` is called with progress, `onCheckpoint` between
    /// two steps, both on the calling thread. Rejects as `TaskLoop.learn`, and a run without a task left.
    let internal resume
        (learner: Learner)
        (plan: Plan)
        onProgress
        (onCheckpoint: OnCheckpoint)
        (from: RunState)
        : Outcome =
        let tasks = Plan.tasks plan

        if plan.Settings.IsUndecided then
            Errors.reject
                "method"
                "must be decided before a run"
                plan.Settings.MethodName
                "give the plan to `Decision.ofPlan`, and take the learner of the plan that it returns"

        if from.Tasks.Length >= tasks.Length then
            Errors.reject "run" "must have a task left" $"all {tasks.Length} are finished" ""

        if Array.isEmpty from.Tasks && from.Open.IsNone then
            Array.iter onProgress (notices plan from)

        let step struct (run: RunState, _) task =
            let clock =
                match run.Open with
                | Some opened -> PhaseClock opened.Seconds
                | None -> PhaseClock()

            reporting plan clock onProgress task (fun onProgress ->
                oneTask learner plan clock onProgress onCheckpoint run task)

        Scope.keep Outcome.leaves (fun () ->
            let struct (last, predictions) =
                Array.skip from.Tasks.Length tasks |> Array.fold step struct (from, [||])

            let recomputed =
                if plan.Settings.Recompute then
                    Scoring.recomputed learner plan (PhaseClock()) ignore last.State |> Some
                else
                    None

            {
                State = last.State
                Learner = learner
                Recomputed = recomputed
                Tasks = last.Tasks
                Predictions = predictions
                Drift = last.Drift
            })

    /// <summary>Learns the tasks of a plan in turn and scores each state on all tasks so far.</summary>
    /// <param name="learner">Over the backbone of the plan.</param>
    /// <param name="plan">Borrowed.</param>
    /// <param name="onProgress">Called with progress, on the calling thread.</param>
    /// <returns>The last state with scores, predictions and drift. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `TaskLoop.learn`.</exception>
    /// <exception cref="T:LoRASub.Native.MemoryException">Memory runs out; the message states the task, phase and
    /// batch, and options that need less.</exception>
    let run (learner: Learner) (plan: Plan) (onProgress: RunEvent -> unit) : Outcome =
        Scope.keep Outcome.leaves (fun () ->
            start learner plan |> resume learner plan onProgress (fun _ _ -> ()))
