namespace LoRASub

open System
open System.Diagnostics
open TorchSharp

/// A run with everything it needs, read and checked.
[<ReferenceEquality>]
type Plan =
    {
        Settings: RunSettings
        Stream: TaskStream
        /// Owned by the creator of the plan.
        Backbone: VisionTransformer
        /// SHA-256 of the backbone's file when it was read, in lower-case hexadecimal; empty for a network in memory.
        BackboneSha256: string
        /// What the run is measured against; one without training has each task scored before it is learned.
        References: RunScores[]
    }

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

/// Progress of a run.
type Progress =
    | TaskBegins of LearningTask * MemoryUse
    | Steps of Step
    /// What observing led to, per block.
    | Retains of LearningTask * Retained[]
    | EpochEnds of EpochReport
    /// The scores on all tasks so far, and the seconds that the task took in all phases and sittings.
    | TaskEnds of LearningTask * Score[] * MemoryUse * seconds: float
    | Notice of string

/// What became of one task's test images, in the order of the data set; classes are positions in the class order.
type TaskPredictions =
    {
        Task: LearningTask
        Truth: int[]
        Predicted: int[]
    }

[<RequireQualifiedAccess>]
module TaskPredictions =

    /// A prediction is correct if its answer is the true class's; `answers` gives that of each
    /// position.
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
        /// On its own test images right before it was learned, with prototypes of its classes from the network at
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
        Method: string
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

/// Reads and checks what settings name.
[<RequireQualifiedAccess>]
module Plan =

    let leaves: Leaves<Plan> = fun plan -> VisionTransformer.leaves plan.Backbone

    /// natural, seed1993 or an order file.
    let classOrder (text: string) : ClassOrder =
        match text with
        | "natural" -> ClassOrder.Natural
        | "seed1993" -> ClassOrder.Seed1993
        | path -> ClassOrder.readFile path

    /// The backbone options of the settings. Rejects a device that is absent.
    let backboneOptions (settings: RunSettings) : BackboneOptions =
        {
            Heads = settings.Heads
            ImageSize = settings.ImageSize
            NormEpsilon = settings.NormEpsilon
            Precision = settings.Precision
            Device = Device.parse settings.Device
            CheckpointActivations = settings.CheckpointActivations
        }

    let private loadFrom (checkClasses: int -> unit) (order: ClassOrder) (settings: RunSettings) : Plan =
        Settings.check settings

        let needed name value =
            match value with
            | Some path -> path
            | None -> Errors.reject name "must be given" "none" $"set {name}"

        let options = backboneOptions settings
        let references = settings.Reference |> List.map Reference.read |> Array.ofList

        let dataset =
            Datasets.loadWith (Settings.reading settings) settings.Data (needed "data-path" settings.DataPath)

        checkClasses dataset.ClassNames.Length
        let stream = TaskStream.create dataset order settings.Tasks settings.InitialClasses

        let backboneFile = needed "backbone" settings.Backbone
        let backbone = Weights.load options backboneFile

        try
            LoRASubDrs.check backbone.Width settings.Method

            {
                Settings = settings
                Stream = stream
                Backbone = backbone
                BackboneSha256 = DataFile.sha256 backboneFile
                References = references
            }
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

    /// `load` with a class order that is at hand.
    let loadWith (order: ClassOrder) (settings: RunSettings) : Plan = loadFrom ignore order settings

    /// `load` with a check of the number of classes, before they are cut into tasks.
    let loadChecking (checkClasses: int -> unit) (settings: RunSettings) : Plan =
        loadFrom checkClasses (classOrder settings.ClassOrder) settings

    /// Reads the data set and the backbone that settings name. Rejects settings out of range and files that do not
    /// fit; see `Datasets.load`, `TaskStream.create`, `Weights.load`, `LoRASubDrs.check`. Owned by the caller.
    let load (settings: RunSettings) : Plan =
        loadWith (classOrder settings.ClassOrder) settings

    /// How this plan's images become batches; the test transform where `augmentation` is None.
    let batchOptions (plan: Plan) (augmentation: Augmentation) : BatchOptions =
        let struct (low, high) = plan.Settings.InputRange

        {
            Format =
                {
                    Size = plan.Backbone.ImageSize
                    Channels = plan.Backbone.Channels
                    Low = low
                    High = high
                }
            BatchSize = plan.Settings.Batch
            Augmentation = augmentation
            Cropping =
                {
                    Scale = plan.Settings.CropScale
                    Ratio = plan.Settings.CropRatio
                    TestResize = plan.Settings.TestResize
                }
            Device = plan.Backbone.Device
            Dtype = Precision.compute plan.Backbone.Precision
        }

    /// The key of an epoch's shuffling and augmentation under a run's root key; epoch -1 is the observation.
    let epochKey (settings: RunSettings) (root: RandomKey) (task: LearningTask) (epoch: int) : RandomKey =
        let epoch = int64 epoch

        match settings.Seeding with
        | Seeding.EveryEpoch -> Rng.ofSeed (settings.Seed + epoch) |> Rng.fold RandomBranch.Data
        | Seeding.Once ->
            root
            |> Rng.fold RandomBranch.Data
            |> Rng.fold (int64 task.Index)
            |> Rng.fold epoch

/// Seconds per phase. Mutable: it belongs to the shell around the pure phases.
type PhaseClock(initial: Map<Phase, float>) =
    let mutable seconds = initial
    let mutable running: (Phase * Stopwatch) option = None

    let read () =
        let spent phase =
            let before = Map.tryFind phase seconds |> Option.defaultValue 0.0

            match running with
            | Some(current, clock) when current = phase -> before + clock.Elapsed.TotalSeconds
            | _ -> before

        Phase.all |> List.map (fun phase -> phase, spent phase) |> Map.ofList

    new() = PhaseClock Map.empty

    /// Runs `f` and adds its time to a phase.
    member _.Time (phase: Phase) (f: unit -> 'T) : 'T =
        running <- Some(phase, Stopwatch.StartNew())
        let result = f ()
        seconds <- read ()
        running <- None
        result

    /// The phase in progress, or the one that an exception ended.
    member _.Current: Phase option = Option.map fst running

    /// Every phase so far, 0 for a phase that did not run.
    member _.Seconds: Map<Phase, float> = read ()

/// Sums over an epoch, kept on the device so that a step need not wait for them.
[<ReferenceEquality>]
type Tally =
    {
        /// Summed over the steps, scalar float64.
        Loss: torch.Tensor
        /// Right predictions, scalar int64.
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

/// How far a task has come, between two steps.
type Standing<'Observing, 'Training> =
    /// So many of its batches are observed.
    | Observing of 'Observing * batches: int
    /// The tally holds the steps of the epoch so far.
    | Training of 'Training * epoch: int * Tally
    /// Merged into the run's state, but not scored yet.
    | Learned of Retained[] * Subspace[]

/// A task that is under way.
[<ReferenceEquality>]
type OpenTask<'Observing, 'Training> =
    {
        MemoryBefore: MemoryUse
        /// Seconds so far, per phase.
        Seconds: Map<Phase, float>
        Before: Score option
        Standing: Standing<'Observing, 'Training>
    }

/// A run between two steps: all that is needed to resume it exactly.
[<ReferenceEquality>]
type RunState<'Observing, 'Training> =
    {
        /// After the learned tasks.
        State: TaskState
        /// One per scored task.
        Tasks: TaskRecord[]
        /// Over the scored tasks; none where a class has no test image to measure it on.
        Drift: Drift.State option
        Open: OpenTask<'Observing, 'Training> option
    }

/// The points at which a run can be checkpointed.
[<RequireQualifiedAccess>]
type Moment =
    | BetweenSteps
    /// A task is merged and not yet scored.
    | AfterLearning

/// Called at each point where the run can be checkpointed; may ask for its state, whose tensors stay the run's, and
/// may throw to end it.
type Pause<'Observing, 'Training> = Moment -> (unit -> RunState<'Observing, 'Training>) -> unit

[<RequireQualifiedAccess>]
module Outcome =
    let leaves: Leaves<Outcome> =
        fun outcome -> Seq.append (TaskState.leaves outcome.State) (Leaves.option Drift.leaves outcome.Drift)

/// The task loop: the imperative shell around a learner's pure phases.
[<RequireQualifiedAccess>]
module Experiment =

    // Losses are read this often at most, so that the device seldom waits for the host.
    let private readEvery = TimeSpan.FromSeconds 0.5

    let private stepOf (plan: Plan) task phase finished steps =
        {
            Task = task
            Phase = phase
            Done = finished
            Steps = steps
            Epoch = 0
            Epochs = plan.Settings.EpochsOf task
            Loss = None
            Accuracy = None
        }

    // Tells of each loader's turn.
    let private counted plan (listen: Progress -> unit) task phase (loaders: BatchLoader[]) : BatchLoader[] =
        loaders
        |> Array.mapi (fun i load ->
            fun () ->
                listen (Steps(stepOf plan task phase i loaders.Length))
                load ())

    // Work on a task, given a `listen` that remembers the last step: if it runs out of memory, the exception states
    // how far the task was.
    let private reporting (plan: Plan) (clock: PhaseClock) fix listen (task: LearningTask) work =
        let last = ref None

        let remembering progress =
            match progress with
            | Steps step -> last.Value <- Some step
            | _ -> ()

            listen progress

        let what () =
            let phase =
                match clock.Current, last.Value with
                | Some phase, Some step when step.Phase = phase && step.Done < step.Steps ->
                    $", phase {Phase.name phase}, batch {step.Done + 1} of {step.Steps}"
                | Some phase, _ -> $", phase {Phase.name phase}"
                | None, _ -> ""

            let count = plan.Stream.Tasks.Length
            let all = if task.Index < count then $" of {count}" else ""
            $"in task {task.Index + 1}{all}{phase}"

        NativeError.during what fix (fun () -> work remembering)

    // What needs less memory, in the words of the command line.
    let private smaller (settings: RunSettings) =
        let options =
            [
                if settings.Batch > 1 then
                    $"--batch below {settings.Batch}"
                if not settings.CheckpointActivations then
                    "--checkpoint-activations"
                if settings.Precision <> Precision.BFloat16 then
                    "--precision bfloat16"
            ]

        if options.IsEmpty then
            NativeError.moreMemory
        else
            "use less memory with " + String.concat ", or with " options

    // `next` replaces `previous`, whose other leaves are no longer needed.
    let private replacing leaves (previous: 'S) (next: 'S) =
        Scope.supersede leaves [ next ] previous
        next

    let private trainBatches (plan: Plan) root task epoch =
        let key = Plan.epochKey plan.Settings root task epoch
        TaskStream.trainBatches (Plan.batchOptions plan plan.Settings.Augmentation) key plan.Stream task

    let private observe learner plan listen pause (state: TaskState) task batches observing =
        let loaders =
            trainBatches plan state.Key task -1 |> counted plan listen task Phase.Observe

        let step struct (observing, batches) (load: BatchLoader) =
            let next = learner.Observe (load ()) observing
            pause (fun () -> Observing(next, batches + 1))
            struct (next, batches + 1)

        let struct (observed, _) =
            Array.skip batches loaders
            |> Scope.fold
                (Leaves.first (learner.ObservingTree task state).Leaves)
                step
                struct (observing, batches)

        observed

    let private requireFinite (task: LearningTask) epoch (loss: float) =
        if not (Double.IsFinite loss) then
            let fix = "lower lr or head-lr, or use a wider precision"
            Errors.reject $"loss of task {task.Index + 1}, epoch {epoch + 1}" "must stay finite" $"{loss}" fix

    // No loss after a task's last step could show its divergence.
    let private requireFiniteState (task: LearningTask) (state: TaskState) =
        let finite (tensor: torch.Tensor) =
            Scope.run (fun () -> tensor.isfinite().all().item<bool>())

        if not (TaskState.leaves state |> Seq.forall finite) then
            Errors.reject
                $"deltas and prototypes after task {task.Index + 1}"
                "must stay finite"
                "NaN or infinity"
                "lower lr or head-lr, or use a wider precision"

    // Tells of a step; reads the device at the end of an epoch and now and then before.
    let private tell
        listen
        (settings: RunSettings)
        (step: Step)
        (batches: int)
        (began: Stopwatch)
        (sinceRead: Stopwatch)
        tally
        =
        if tally.Steps < batches && sinceRead.Elapsed < readEvery then
            listen (Steps step)
        else
            sinceRead.Restart()
            let loss = tally.Loss.item<float>() / float tally.Steps
            requireFinite step.Task step.Epoch loss
            let accuracy = float (tally.Correct.item<int64>()) / float tally.Images

            listen (
                Steps
                    { step with
                        Loss = Some loss
                        Accuracy = Some accuracy
                    }
            )

            if tally.Steps = batches then
                listen (
                    EpochEnds
                        {
                            Task = step.Task.Index
                            Epoch = step.Epoch
                            Loss = loss
                            Accuracy = accuracy
                            LearningRate =
                                Schedule.cosine
                                    settings.Method.LearningRate
                                    settings.ScheduleEpochs
                                    step.Epoch
                            Seconds = began.Elapsed.TotalSeconds
                        }
                )

    // Starts from the tally.
    let private trainEpoch learner plan listen pause (state: TaskState) task epoch (tally: Tally) training =
        let trainingLeaves = (learner.TrainingTree task state).Leaves
        let loaders = trainBatches plan state.Key task epoch
        let steps = plan.Settings.EpochsOf task * loaders.Length
        let began, sinceRead = Stopwatch.StartNew(), Stopwatch.StartNew()

        let step struct (training, tally) (load: BatchLoader) =
            let batch = load ()
            let struct (training, report) = learner.Update batch training
            let tally = Tally.add batch report tally

            let now =
                { stepOf plan task Phase.Train (epoch * loaders.Length + tally.Steps) steps with
                    Epoch = epoch
                }

            tell listen plan.Settings now loaders.Length began sinceRead tally
            pause (fun () -> Training(training, epoch, tally))
            struct (training, tally)

        Scope.keep trainingLeaves (fun () ->
            let leaves = Leaves.both trainingLeaves Tally.leaves
            let initial = struct (learner.BeginEpoch epoch training, tally)

            let struct (training, _) =
                Scope.fold leaves step initial (Array.skip tally.Steps loaders)

            training)

    // The epochs from a given one to the last.
    let private train learner plan listen pause (state: TaskState) task epoch tally training =
        let leaves = (learner.TrainingTree task state).Leaves

        let fromZero training epoch =
            Scope.keep leaves (fun () ->
                let tally = Tally.zero plan.Backbone.Device
                trainEpoch learner plan listen pause state task epoch tally training)

        let epochs = plan.Settings.EpochsOf task

        if epoch >= epochs then
            training
        else
            Scope.keep leaves (fun () ->
                let current = trainEpoch learner plan listen pause state task epoch tally training

                Scope.fold leaves fromZero current (seq { epoch + 1 .. epochs - 1 })
                |> replacing leaves current)

    // The start of a task's training; takes ownership of the observations.
    let private prepare learner (clock: PhaseClock) listen state task observed =
        let prepared = clock.Time Phase.Project (fun () -> learner.Prepare observed)
        Scope.free (learner.ObservingTree task state).Leaves observed
        let retained = learner.Retained prepared

        if not (Array.isEmpty retained) then
            listen (Retains(task, retained))

        prepared

    // The task up to the end of training, from its saved progress if any; takes ownership of it.
    let private trained learner plan clock listen pause (state: TaskState) task standing =
        let observed observing batches =
            (clock: PhaseClock).Time Phase.Observe (fun () ->
                observe learner plan listen pause state task batches observing)
            |> replacing (learner.ObservingTree task state).Leaves observing

        let trainFrom epoch tally training =
            clock.Time Phase.Train (fun () -> train learner plan listen pause state task epoch tally training)
            |> replacing (learner.TrainingTree task state).Leaves training

        let trainPrepared observing =
            prepare learner clock listen state task observing
            |> trainFrom 0 (Tally.zero plan.Backbone.Device)

        match standing with
        | Some(Training(training, epoch, tally)) -> trainFrom epoch tally training
        | Some(Observing(observing, batches)) -> observed observing batches |> trainPrepared
        | _ ->
            let begun = learner.BeginTask task state

            if learner.Observes task then
                observed begun 0 |> trainPrepared
            else
                trainPrepared begun

    // Takes ownership of the progress; `pause` is called with the next one after each step.
    let private learnFrom
        (learner: Learner<'Observing, 'Training>)
        (plan: Plan)
        (clock: PhaseClock)
        listen
        (pause: (unit -> Standing<'Observing, 'Training>) -> unit)
        (state: TaskState)
        task
        standing
        : struct (TaskState * Retained[] * Subspace[]) =
        let settings = plan.Settings
        let epochs = settings.EpochsOf task

        let leaves struct (state, _, subspaces) =
            Seq.append (TaskState.leaves state) (Leaves.array Subspace.leaves subspaces)

        Scope.keep leaves (fun () ->
            let training = trained learner plan clock listen pause state task standing

            let loaders =
                match settings.PrototypeTransform with
                | PrototypeTransform.Train -> trainBatches plan state.Key task epochs
                | PrototypeTransform.Test ->
                    TaskStream.plainTrainBatches (Plan.batchOptions plan Augmentation.None) plan.Stream task
                |> counted plan listen task Phase.Prototypes
                |> Array.map (fun load ->
                    fun () ->
                        pause (fun () -> Training(training, epochs, Tally.zero plan.Backbone.Device))
                        load ())

            let next =
                clock.Time Phase.Prototypes (fun () -> learner.AfterTask loaders training)

            requireFiniteState task next
            struct (next, learner.Retained training, learner.Subspaces training))

    /// Learns one task: observes it where the method does, trains, and merges it into the next state. Borrows the
    /// state; the next one is owned by the caller. `listen` is called with progress on the calling thread. Rejects a
    /// loss that is not finite, and what the phases reject.
    let learnTask learner plan (clock: PhaseClock) (listen: Progress -> unit) state (task: LearningTask) =
        let fix =
            "use less memory with a smaller batch, with activations computed again (CheckpointActivations) or in bfloat16"

        reporting plan clock fix listen task (fun listen ->
            Scope.keep (Leaves.first TaskState.leaves) (fun () ->
                let struct (next, retained, _) =
                    learnFrom learner plan clock listen ignore state task None

                struct (next, retained)))

    let private answers (plan: Plan) = TaskStream.answers plan.Stream

    // What a model takes the test images of some tasks for, and a fold over their features and classes.
    let private predictAnd leaves visit initial (learner: Learner<_, _>) (plan: Plan) listen model tasks =
        let options = Plan.batchOptions plan Augmentation.None

        let step struct (found, state) (load: BatchLoader) =
            let batch = load ()
            listen ()

            Scope.noGrad (Leaves.both Leaves.tensors leaves) (fun () ->
                let features = learner.Features model batch.Images
                let predicted = learner.Classify model features
                let both = torch.stack [| batch.Labels; predicted |] // [2, n]
                struct (Array.append found [| both |], visit features batch.Labels state))

        let ofTask state (task: LearningTask) =
            Scope.keep (fun struct (_, state) -> leaves state) (fun () ->
                let struct (found, state) =
                    TaskStream.testBatches options plan.Stream task
                    |> Scope.fold (Leaves.both Leaves.tensors leaves) step struct ([||], state)

                let both = torch.cat(found, 1L).``to``(torch.ScalarType.Int32).cpu()
                let row (i: int64) = both[i].data<int>().ToArray()

                struct ({
                            Task = task
                            Truth = row 0L
                            Predicted = row 1L
                        },
                        state))

        let oneMore struct (predictions, state) task =
            let struct (mine, state) = ofTask state task
            struct (Array.append predictions [| mine |], state)

        Scope.fold (fun struct (_, state) -> leaves state) oneMore struct ([||], initial) tasks

    /// A model's predictions for the test images of some tasks. Borrows all; `listen` is called for each batch.
    let predict learner plan (listen: unit -> unit) model (tasks: LearningTask[]) : TaskPredictions[] =
        let struct (predictions, ()) =
            predictAnd Leaves.none (fun _ _ () -> ()) () learner plan listen model tasks

        predictions

    /// Scores of a model on the test images of some tasks. Borrows all; `listen` is called for each batch.
    let score learner plan listen model tasks : Score[] =
        predict learner plan listen model tasks
        |> Array.map (TaskPredictions.score (answers plan))

    // Predictions on all tasks so far, and the moments of their classes, all zero unless `measured`.
    let private predictSeen
        learner
        (plan: Plan)
        (clock: PhaseClock)
        measured
        listen
        pause
        state
        (task: LearningTask)
        =
        let seen = plan.Stream.Tasks[.. task.Index]
        let vit = plan.Backbone

        let batches task =
            let images = (TaskStream.testIndices plan.Stream task).Length
            (images + plan.Settings.Batch - 1) / plan.Settings.Batch

        let steps = Array.sumBy batches seen
        let mutable finished = 0

        let tell () =
            pause ()
            listen (Steps(stepOf plan task Phase.Predict finished steps))
            finished <- finished + 1

        clock.Time Phase.Predict (fun () ->
            Scope.keep (fun struct (_, moments) -> ClassMoments.leaves moments) (fun () ->
                let none =
                    ClassMoments.zero (TaskState.classes state) vit.Blocks.Length vit.Width vit.Device

                let visit features labels moments =
                    if measured then
                        ClassMoments.observe features labels moments
                    else
                        moments

                predictAnd ClassMoments.leaves visit none learner plan tell (learner.Deploy state) seen))

    // A class mean needs images that no training saw.
    let private canMeasureDrift (plan: Plan) =
        Set.isSubset (Set.ofArray plan.Stream.Order) (Set.ofArray plan.Stream.Dataset.Test.Labels)

    let private heldRates (plan: Plan) =
        plan.Stream.Tasks
        |> Array.truncate 2
        |> Array.choose (fun task ->
            let epochs = plan.Settings.EpochsOf task

            Schedule.heldFrom plan.Settings.ScheduleEpochs epochs
            |> Option.map (fun epoch ->
                Notice
                    $"task {task.Index + 1}: the learning rate stays constant from epoch {epoch} (end of schedule)"))

    /// Before the first task. Owned by the caller.
    let start (learner: Learner<'Observing, 'Training>) (plan: Plan) : RunState<'Observing, 'Training> =
        {
            State = learner.Start(Rng.ofSeed plan.Settings.Seed)
            Tasks = [||]
            Drift =
                if plan.Settings.Drift && canMeasureDrift plan then
                    Some(Drift.none plan.Backbone.Blocks.Length plan.Backbone.Width)
                else
                    None
            Open = None
        }

    let private measuresForward (plan: Plan) =
        plan.References |> Array.exists (fun reference -> not reference.Trained)

    // The score on a task before it is learned: see `TaskRecord.Before`.
    let private scoreBefore learner (plan: Plan) (clock: PhaseClock) pause (state: TaskState) task =
        let loaders =
            TaskStream.plainTrainBatches (Plan.batchOptions plan Augmentation.None) plan.Stream task
            |> Array.map (fun load ->
                fun () ->
                    pause ()
                    load ())

        clock.Time Phase.Predict (fun () ->
            Scope.run (fun () ->
                let model = learner.Extend task loaders state |> learner.Deploy
                (score learner plan pause model [| task |])[0]))

    // The run after one more task, and its predictions; takes ownership of its progress.
    let private oneTask learner plan clock listen pause struct (run: RunState<_, _>, _) (task: LearningTask) =
        let memory, before =
            match run.Open with
            | Some open' -> open'.MemoryBefore, open'.Before
            | None ->
                let before =
                    if measuresForward plan && task.Index > 0 then
                        let pause () =
                            pause Moment.BetweenSteps (fun () -> run)

                        Some(scoreBefore learner plan clock pause run.State task)
                    else
                        None

                MemoryUse.now (), before

        let pause moment state standing =
            pause moment (fun () ->
                { run with
                    State = state
                    Open =
                        Some
                            {
                                MemoryBefore = memory
                                Seconds = clock.Seconds
                                Before = before
                                Standing = standing ()
                            }
                })

        listen (TaskBegins(task, memory))

        let struct (learned, retained, subspaces) =
            match run.Open |> Option.map _.Standing with
            | Some(Learned(retained, subspaces)) -> struct (run.State, retained, subspaces)
            | standing ->
                let pause = pause Moment.BetweenSteps run.State
                learnFrom learner plan clock listen pause run.State task standing

        let learned = replacing TaskState.leaves run.State learned

        let pauseLearned moment =
            pause moment learned (fun () -> Learned(retained, subspaces))

        pauseLearned Moment.AfterLearning

        let struct (predictions, moments) =
            let pause () = pauseLearned Moment.BetweenSteps
            predictSeen learner plan clock run.Drift.IsSome listen pause learned task

        let drift =
            run.Drift
            |> Option.map (fun before ->
                Drift.afterTask task.Index learned.Prototypes moments subspaces before
                |> replacing Drift.leaves before)

        Scope.free ClassMoments.leaves moments
        Scope.free (Leaves.array Subspace.leaves) subspaces
        let row = predictions |> Array.map (TaskPredictions.score (answers plan))
        let after = MemoryUse.now ()
        listen (TaskEnds(task, row, after, Seq.sum clock.Seconds.Values))

        let record =
            {
                Row = row
                Before = before
                Retained = retained
                MemoryBefore = memory
                MemoryAfter = after
                Seconds = clock.Seconds
            }

        struct ({
                    State = learned
                    Tasks = Array.append run.Tasks [| record |]
                    Drift = drift
                    Open = None
                },
                predictions)

    // Told once, before the first task.
    let private notices (plan: Plan) (run: RunState<_, _>) =
        [|
            yield! plan.Stream.Dataset.Notes |> Array.map Notice
            yield! heldRates plan

            if plan.Settings.Drift && run.Drift.IsNone then
                Notice "drift is not measured: a class has no test image"
        |]

    /// Resumes a run from its state, of which it takes ownership: learns the remaining tasks and scores each state on
    /// all tasks so far, exactly as without the interruption. `listen` is called with progress, `pause` between two
    /// steps, both on the calling thread. Rejects as `learnTask`, and a run without a task left.
    let resume
        (learner: Learner<'Observing, 'Training>)
        (plan: Plan)
        (listen: Progress -> unit)
        (pause: Pause<'Observing, 'Training>)
        (from: RunState<'Observing, 'Training>)
        : Outcome =
        let tasks =
            plan.Stream.Tasks
            |> Array.truncate (defaultArg plan.Settings.StopAfter Int32.MaxValue)

        if from.Tasks.Length >= tasks.Length then
            Errors.reject "run" "must have a task left" $"all {tasks.Length} are finished" ""

        if Array.isEmpty from.Tasks && from.Open.IsNone then
            Array.iter listen (notices plan from)

        let step struct (run: RunState<'Observing, 'Training>, predictions) task =
            let clock =
                match run.Open with
                | Some open' -> PhaseClock open'.Seconds
                | None -> PhaseClock()

            reporting plan clock (smaller plan.Settings) listen task (fun listen ->
                oneTask learner plan clock listen pause struct (run, predictions) task)

        Scope.keep Outcome.leaves (fun () ->
            let struct (last, predictions) =
                Array.skip from.Tasks.Length tasks |> Array.fold step struct (from, [||])

            {
                State = last.State
                Method = learner.Name
                Tasks = last.Tasks
                Predictions = predictions
                Drift = last.Drift
            })

    /// Learns the tasks of a plan in turn and scores each state on all tasks so far. `listen` is called with progress
    /// on the calling thread. Rejects as `learnTask`.
    let run (learner: Learner<'Observing, 'Training>) (plan: Plan) (listen: Progress -> unit) : Outcome =
        Scope.keep Outcome.leaves (fun () -> start learner plan |> resume learner plan listen (fun _ _ -> ()))
