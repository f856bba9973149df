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
        /// Owned by whoever made the plan.
        Backbone: VisionTransformer
        /// SHA-256 of the backbone's file when it was read, in lower-case hexadecimal; empty for a network in memory.
        BackboneSha256: string
    }

/// The phases whose time is told apart.
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

    /// As it stands in saved results.
    let name (phase: Phase) = (string phase).ToLowerInvariant()

/// Where a phase stands.
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

/// What a run tells while it goes on.
type Progress =
    | TaskBegins of LearningTask * MemoryUse
    | Steps of Step
    /// What observing led to, per block.
    | Retains of LearningTask * Retained[]
    /// The scores on all tasks so far.
    | TaskEnds of LearningTask * Score[] * MemoryUse
    | Notice of string

/// What a run leaves.
[<ReferenceEquality>]
type Outcome =
    {
        /// Owned by the caller.
        State: TaskState
        Method: string
        Matrix: AccuracyMatrix
        /// Per task and block.
        Retained: Retained[][]
        /// At the start and the end of each task.
        Memory: struct (MemoryUse * MemoryUse)[]
        PhaseSeconds: Map<Phase, float>
    }

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

    /// What settings say about the backbone. Rejects a device that is absent.
    let backboneOptions (settings: RunSettings) : BackboneOptions =
        {
            Heads = settings.Heads
            ImageSize = settings.ImageSize
            NormEpsilon = settings.NormEpsilon
            Precision = settings.Precision
            Device = Device.parse settings.Device
        }

    /// `load` with a class order that is at hand.
    let loadWith (order: ClassOrder) (settings: RunSettings) : Plan =
        Settings.check settings

        let needed name value =
            match value with
            | Some path -> path
            | None -> Errors.reject name "must be given" "none" $"set {name}"

        let options = backboneOptions settings

        let reading =
            {
                SplitRatio = settings.SplitRatio
                SplitSeed = settings.SplitSeed
                SkipBroken = settings.SkipBroken
            }

        let dataset =
            Datasets.loadWith reading settings.Data (needed "data-path" settings.DataPath)

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
            }
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

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

/// Seconds per phase, summed over the tasks of a run. Mutable: it belongs to the shell around the pure phases.
type PhaseClock() =
    let seconds = Collections.Generic.Dictionary<Phase, float>()

    /// Runs `f` and adds its time to a phase.
    member _.Time (phase: Phase) (f: unit -> 'T) : 'T =
        let clock = Stopwatch.StartNew()
        let result = f ()
        let _, before = seconds.TryGetValue phase
        seconds[phase] <- before + clock.Elapsed.TotalSeconds
        result

    /// Every phase, 0 for those that did not run.
    member _.Seconds: Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, snd (seconds.TryGetValue phase))
        |> Map.ofList

/// The task loop: the imperative shell around a learner's pure phases.
[<RequireQualifiedAccess>]
module Experiment =

    // Sums over an epoch, kept on the device so that a step need not wait for them.
    [<ReferenceEquality>]
    type private Tally =
        {
            Loss: torch.Tensor
            Correct: torch.Tensor
            Images: int64
            Steps: int
        }

    let private tallyLeaves: Leaves<Tally> = fun t -> [ t.Loss; t.Correct ]

    let private noTally (device: torch.Device) =
        {
            Loss = torch.zeros ([||], dtype = torch.ScalarType.Float64, device = device)
            Correct = torch.zeros ([||], dtype = torch.ScalarType.Int64, device = device)
            Images = 0L
            Steps = 0
        }

    let private add (batch: Batch) (report: StepReport) (tally: Tally) =
        {
            Loss = tally.Loss.add report.Loss
            Correct = tally.Correct.add report.Correct
            Images = tally.Images + batch.Labels.shape[0]
            Steps = tally.Steps + 1
        }

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

    // `next` replaces `previous`, whose other leaves nothing needs any more.
    let private replacing leaves (previous: 'S) (next: 'S) =
        Scope.supersede leaves [ next ] previous
        next

    let private trainBatches (plan: Plan) root task epoch =
        let key = Plan.epochKey plan.Settings root task epoch
        TaskStream.trainBatches (Plan.batchOptions plan plan.Settings.Augmentation) key plan.Stream task

    let private observe (learner: Learner<'Observing, 'Training>) plan listen root task observing =
        let loaders =
            trainBatches plan root task -1 |> counted plan listen task Phase.Observe

        Scope.fold
            learner.ObservingLeaves
            (fun o (load: BatchLoader) -> learner.Observe (load ()) o)
            observing
            loaders

    let private requireFinite (task: LearningTask) epoch (loss: float) =
        if not (Double.IsFinite loss) then
            let fix = "lower lr or head-lr, or use a wider precision"
            Errors.reject $"loss of task {task.Index}, epoch {epoch}" "must stay finite" $"{loss}" fix

    // The last step of a task is followed by no loss that could tell.
    let private requireFiniteState (task: LearningTask) (state: TaskState) =
        let finite (tensor: torch.Tensor) =
            Scope.run (fun () -> tensor.isfinite().all().item<bool>())

        if not (TaskState.leaves state |> Seq.forall finite) then
            Errors.reject
                $"deltas and prototypes after task {task.Index}"
                "must stay finite"
                "NaN or infinity"
                "lower lr or head-lr, or use a wider precision"

    let private trainEpoch
        (learner: Learner<'Observing, 'Training>)
        plan
        listen
        root
        task
        training
        epoch
        : 'Training =
        let loaders = trainBatches plan root task epoch
        let steps = plan.Settings.EpochsOf task * loaders.Length
        let sinceRead = Stopwatch.StartNew()

        let step struct (training, tally) (load: BatchLoader) =
            let batch = load ()
            let struct (training, report) = learner.Update batch training
            let tally = add batch report tally

            let now =
                { stepOf plan task Phase.Train (epoch * loaders.Length + tally.Steps) steps with
                    Epoch = epoch
                }

            if tally.Steps = loaders.Length || sinceRead.Elapsed >= readEvery then
                sinceRead.Restart()
                let loss = tally.Loss.item<float>() / float tally.Steps
                requireFinite task epoch loss
                let accuracy = float (tally.Correct.item<int64>()) / float tally.Images

                listen (
                    Steps
                        { now with
                            Loss = Some loss
                            Accuracy = Some accuracy
                        }
                )
            else
                listen (Steps now)

            struct (training, tally)

        Scope.keep learner.TrainingLeaves (fun () ->
            let leaves = Leaves.both learner.TrainingLeaves tallyLeaves

            let initial =
                struct (learner.BeginEpoch epoch training, noTally plan.Backbone.Device)

            let struct (training, _) = Scope.fold leaves step initial loaders
            training)

    /// Learns one task: observes it where the method does, trains, and merges it into the next state. Borrows the
    /// state; the next one is owned by the caller. `listen` hears of the progress on the calling thread. Rejects a
    /// loss that is not finite, and what the phases reject.
    let learnTask
        (learner: Learner<'Observing, 'Training>)
        (plan: Plan)
        (clock: PhaseClock)
        (listen: Progress -> unit)
        (state: TaskState)
        (task: LearningTask)
        : struct (TaskState * Retained[]) =
        let settings = plan.Settings
        let epochs = settings.EpochsOf task

        Scope.keep (Leaves.first TaskState.leaves) (fun () ->
            let begun = learner.BeginTask task state

            let observing =
                if learner.Observes task then
                    clock.Time Phase.Observe (fun () -> observe learner plan listen state.Key task begun)
                    |> replacing learner.ObservingLeaves begun
                else
                    begun

            let prepared = clock.Time Phase.Project (fun () -> learner.Prepare observing)
            Scope.free learner.ObservingLeaves observing
            let retained = learner.Retained prepared

            if not (Array.isEmpty retained) then
                listen (Retains(task, retained))

            let trained =
                clock.Time Phase.Train (fun () ->
                    let epoch = trainEpoch learner plan listen state.Key task
                    Scope.fold learner.TrainingLeaves epoch prepared (seq { 0 .. epochs - 1 }))
                |> replacing learner.TrainingLeaves prepared

            let loaders =
                match settings.PrototypeTransform with
                | PrototypeTransform.Train -> trainBatches plan state.Key task epochs
                | PrototypeTransform.Test ->
                    TaskStream.plainTrainBatches (Plan.batchOptions plan Augmentation.None) plan.Stream task
                |> counted plan listen task Phase.Prototypes

            let next = clock.Time Phase.Prototypes (fun () -> learner.AfterTask loaders trained)
            requireFiniteState task next
            struct (next, retained))

    /// Scores of a model on the test images of some tasks. Borrows all; `listen` is told of each batch.
    let score
        (learner: Learner<_, _>)
        (plan: Plan)
        (listen: unit -> unit)
        (model: Model)
        (tasks: LearningTask[])
        =
        let options = Plan.batchOptions plan Augmentation.None

        let step struct (correct: torch.Tensor, total) (load: BatchLoader) =
            let batch = load ()
            listen ()
            let right = (learner.Predict model batch.Images).eq(batch.Labels).sum()
            struct (correct.add right, total + int batch.Labels.shape[0])

        tasks
        |> Array.map (fun task ->
            Scope.run (fun () ->
                let none =
                    torch.zeros ([||], dtype = torch.ScalarType.Int64, device = plan.Backbone.Device)

                let struct (correct, total) =
                    TaskStream.testBatches options plan.Stream task
                    |> Scope.fold (Leaves.first Leaves.tensor) step struct (none, 0)

                {
                    Correct = int (correct.item<int64>())
                    Total = total
                }))

    let private scoreSeen
        learner
        (plan: Plan)
        (clock: PhaseClock)
        listen
        (state: TaskState)
        (task: LearningTask)
        =
        let seen = plan.Stream.Tasks[.. task.Index]

        let batches task =
            let images = (TaskStream.testIndices plan.Stream task).Length
            (images + plan.Settings.Batch - 1) / plan.Settings.Batch

        let steps = Array.sumBy batches seen
        let mutable finished = 0

        clock.Time Phase.Predict (fun () ->
            Scope.run (fun () ->
                let tell () =
                    listen (Steps(stepOf plan task Phase.Predict finished steps))
                    finished <- finished + 1

                score learner plan tell (learner.Deploy state) seen))

    let private heldRates (plan: Plan) =
        plan.Stream.Tasks
        |> Array.truncate 2
        |> Array.choose (fun task ->
            let epochs = plan.Settings.EpochsOf task

            Schedule.heldFrom plan.Settings.Method.ScheduleEpochs epochs
            |> Option.map (fun epoch ->
                Notice
                    $"task {task.Index}: the learning rate is held from epoch {epoch} on, past the schedule's end"))

    /// Learns the tasks of a plan in turn and scores each state on all tasks so far. `listen` hears of the progress
    /// on the calling thread. Rejects as `learnTask`.
    let run (learner: Learner<'Observing, 'Training>) (plan: Plan) (listen: Progress -> unit) : Outcome =
        let settings = plan.Settings
        let clock = PhaseClock()

        let tasks =
            plan.Stream.Tasks
            |> Array.truncate (defaultArg settings.StopAfter Int32.MaxValue)

        Array.iter (Notice >> listen) plan.Stream.Dataset.Notes
        Array.iter listen (heldRates plan)

        let oneTask struct (state: TaskState, rows) task =
            let before = MemoryUse.now ()
            listen (TaskBegins(task, before))
            let struct (learned, retained) = learnTask learner plan clock listen state task
            let next = replacing TaskState.leaves state learned
            let row = scoreSeen learner plan clock listen next task
            let after = MemoryUse.now ()
            listen (TaskEnds(task, row, after))
            struct (next, struct (row, retained, struct (before, after)) :: rows)

        Scope.keep (fun outcome -> TaskState.leaves outcome.State) (fun () ->
            let first = learner.Start(Rng.ofSeed settings.Seed)
            let struct (state, rows) = Array.fold oneTask struct (first, []) tasks
            let rows = rows |> List.rev |> Array.ofList

            {
                State = state
                Method = learner.Name
                Matrix = rows |> Array.map (fun struct (row, _, _) -> row)
                Retained = rows |> Array.map (fun struct (_, retained, _) -> retained)
                Memory = rows |> Array.map (fun struct (_, _, memory) -> memory)
                PhaseSeconds = clock.Seconds
            })
