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

    /// `load` with a class order that is at hand.
    let loadWith (order: ClassOrder) (settings: RunSettings) : Plan =
        Settings.check settings

        let needed name value =
            match value with
            | Some path -> path
            | None -> Errors.reject name "must be given" "none" $"add --{name}"

        let device = Device.parse settings.Device
        let dataset = Datasets.load settings.Data (needed "data-path" settings.DataPath)
        let stream = TaskStream.create dataset order settings.Tasks settings.InitialClasses

        let options =
            {
                Heads = settings.Heads
                ImageSize = settings.ImageSize
                NormEpsilon = settings.NormEpsilon
                Precision = settings.Precision
                Device = device
            }

        let backbone = Weights.load options (needed "backbone" settings.Backbone)

        try
            LoRASubDrs.check backbone.Width settings.Method

            {
                Settings = settings
                Stream = stream
                Backbone = backbone
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
            Device = plan.Backbone.Device
            Dtype = Precision.compute plan.Backbone.Precision
        }

    /// The key of an epoch's shuffling and augmentation; epoch −1 is the observation.
    let epochKey (settings: RunSettings) (task: LearningTask) (epoch: int) : RandomKey =
        match settings.Seeding with
        | Seeding.EveryEpoch -> Rng.ofSeed (settings.Seed + int64 epoch)
        | Seeding.Once ->
            Rng.ofSeed settings.Seed
            |> Rng.fold (int64 task.Index)
            |> Rng.fold (int64 epoch)

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

    /// Scores of a model on the test images of some tasks. Borrows all.
    let score
        (learner: Learner<_, _>)
        (plan: Plan)
        (listen: int -> unit)
        (model: Model)
        (tasks: LearningTask[])
        =
        let options = Plan.batchOptions plan Augmentation.None

        tasks
        |> Array.map (fun task ->
            Scope.run (fun () ->
                let loaders = TaskStream.testBatches options plan.Stream task

                let step (struct (correct: torch.Tensor, total)) (load: BatchLoader) =
                    let batch = load ()
                    listen 1
                    let right = (learner.Predict model batch.Images).eq(batch.Labels).sum()
                    struct (correct.add right, total + int batch.Labels.shape[0])

                let none =
                    torch.zeros ([||], dtype = torch.ScalarType.Int64, device = plan.Backbone.Device)

                let struct (correct, total) =
                    Scope.fold (Leaves.first Leaves.tensor) step struct (none, 0) loaders

                {
                    Correct = int (correct.item<int64>())
                    Total = total
                }))

    /// Learns every task of a plan in turn and scores it on all tasks so far. `listen` hears of the progress on the
    /// calling thread. Rejects a loss that is not finite.
    let run (learner: Learner<'Observing, 'Training>) (plan: Plan) (listen: Progress -> unit) : Outcome =
        let settings, stream = plan.Settings, plan.Stream
        let seconds = Collections.Generic.Dictionary<Phase, float>()

        for phase in Phase.all do
            seconds[phase] <- 0.0

        let timed phase f =
            let clock = Stopwatch.StartNew()
            let result = f ()
            seconds[phase] <- seconds[phase] + clock.Elapsed.TotalSeconds
            result

        let trainBatches augmentation task epoch =
            let key = Plan.epochKey settings task epoch
            TaskStream.trainBatches (Plan.batchOptions plan augmentation) key stream task

        let stepOf task phase finished steps =
            {
                Task = task
                Phase = phase
                Done = finished
                Steps = steps
                Epoch = 0
                Epochs = settings.EpochsOf task
                Loss = None
                Accuracy = None
            }

        // tells of each loader's turn
        let counted task phase (loaders: BatchLoader[]) : BatchLoader[] =
            loaders
            |> Array.mapi (fun i load ->
                fun () ->
                    listen (Steps(stepOf task phase i loaders.Length))
                    load ())

        let observe task observing =
            let loaders =
                trainBatches settings.Augmentation task -1 |> counted task Phase.Observe

            let step o (load: BatchLoader) = learner.Observe (load ()) o
            Scope.fold learner.ObservingLeaves step observing loaders

        let trainEpoch task (training: 'Training) epoch : 'Training =
            let loaders = trainBatches settings.Augmentation task epoch
            let sinceRead = Stopwatch.StartNew()

            let step struct (training, tally) (load: BatchLoader) =
                let batch = load ()
                let struct (training, report) = learner.Update batch training
                let tally = add batch report tally
                let steps = (epoch * loaders.Length) + tally.Steps

                let now =
                    { stepOf task Phase.Train steps (settings.EpochsOf task * loaders.Length) with
                        Epoch = epoch
                    }

                if tally.Steps = loaders.Length || sinceRead.Elapsed >= readEvery then
                    sinceRead.Restart()
                    let loss = tally.Loss.item<float>() / float tally.Steps

                    if not (Double.IsFinite loss) then
                        let fix = "lower --lr or --head-lr, or use a wider --precision"

                        Errors.reject
                            $"loss of task {task.Index}, epoch {epoch}"
                            "must stay finite"
                            $"{loss}"
                            fix

                    listen (
                        Steps
                            { now with
                                Loss = Some loss
                                Accuracy = Some(float (tally.Correct.item<int64>()) / float tally.Images)
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

        let train task (training: 'Training) : 'Training =
            Scope.fold learner.TrainingLeaves (trainEpoch task) training [ 0 .. settings.EpochsOf task - 1 ]

        // `prepared` replaces `previous`, whose other leaves nothing needs any more
        let replacing leaves (previous: 'S) (next: 'S) =
            Scope.supersede leaves [ next ] previous
            next

        let learn (state: TaskState) (task: LearningTask) : struct (TaskState * Retained[]) =
            let observing = learner.BeginTask task state

            let observing =
                if learner.Observes task then
                    timed Phase.Observe (fun () -> observe task observing)
                    |> replacing learner.ObservingLeaves observing
                else
                    observing

            let training = timed Phase.Project (fun () -> learner.Prepare observing)
            Scope.free learner.ObservingLeaves observing
            let retained = learner.Retained training

            if not (Array.isEmpty retained) then
                listen (Retains(task, retained))

            let training =
                timed Phase.Train (fun () -> train task training)
                |> replacing learner.TrainingLeaves training

            let loaders =
                match settings.PrototypeTransform with
                | PrototypeTransform.Train -> trainBatches settings.Augmentation task (settings.EpochsOf task)
                | PrototypeTransform.Test ->
                    TaskStream.plainTrainBatches (Plan.batchOptions plan Augmentation.None) stream task
                |> counted task Phase.Prototypes

            let next = timed Phase.Prototypes (fun () -> learner.AfterTask loaders training)
            Scope.free learner.TrainingLeaves training
            struct (next, retained)

        let scoreSeen (state: TaskState) (task: LearningTask) : Score[] =
            let seen = stream.Tasks[.. task.Index]

            let batches (task: LearningTask) =
                let images = (TaskStream.testIndices stream task).Length
                (images + settings.Batch - 1) / settings.Batch

            let steps = Array.sumBy batches seen
            let mutable finished = 0

            let tell n =
                listen (Steps(stepOf task Phase.Predict finished steps))
                finished <- finished + n

            timed Phase.Predict (fun () ->
                Scope.run (fun () ->
                    let model = learner.Deploy state
                    score learner plan tell model seen))

        for task in stream.Tasks do
            match Schedule.heldFrom settings.Method.ScheduleEpochs (settings.EpochsOf task) with
            | Some epoch when task.Index < 2 ->
                listen (
                    Notice
                        $"task {task.Index}: the learning rate is held from epoch {epoch} on, where the schedule ends"
                )
            | _ -> ()

        let tasks =
            stream.Tasks
            |> Array.truncate (defaultArg settings.StopAfter stream.Tasks.Length)

        let oneTask (state: TaskState, rows) task =
            let before = MemoryUse.now ()
            listen (TaskBegins(task, before))
            let struct (next, retained) = learn state task
            let next = replacing TaskState.leaves state next
            let row = scoreSeen next task
            let after = MemoryUse.now ()
            listen (TaskEnds(task, row, after))
            next, struct (row, retained, struct (before, after)) :: rows

        Scope.keep (fun outcome -> TaskState.leaves outcome.State) (fun () ->
            let state, rows =
                Array.fold oneTask (learner.Start(Rng.ofSeed settings.Seed), []) tasks

            let rows = List.rev rows |> Array.ofList

            {
                State = state
                Method = learner.Name
                Matrix = rows |> Array.map (fun (struct (row, _, _)) -> row)
                Retained = rows |> Array.map (fun (struct (_, retained, _)) -> retained)
                Memory = rows |> Array.map (fun (struct (_, _, memory)) -> memory)
                PhaseSeconds = Phase.all |> List.map (fun phase -> phase, seconds[phase]) |> Map.ofList
            })
