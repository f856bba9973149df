namespace LoRASub.Learn

open System
open System.Diagnostics
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// The passes over a task's training images.
[<RequireQualifiedAccess>]
type Pass =
    /// Before training, without gradients.
    | Observe
    /// A training epoch, from 0.
    | Epoch of int
    /// After training: the pass that prototypes and heads learn from.
    | Consolidate

/// What a task is learned from.
[<ReferenceEquality>]
type TaskContext =
    {
        /// Method, head and embedding over a backbone.
        Learner: Learner
        /// The task to learn.
        Task: LearningTask
        /// Names of the task's classes, in its order.
        Names: string[]
        /// Loaders of the task's training images, for one pass.
        Batches: Pass -> BatchLoader[]
        /// Passes over the images; 0 for a method that does not train.
        Epochs: int
        /// The learning rates of an epoch, from 0.
        Rates: int -> Rates
        /// Receives the seconds of each phase.
        Clock: PhaseClock
        /// Receives progress, on the calling thread.
        OnEvent: TaskEvent -> unit
        /// Called between steps: may ask for the progress, whose tensors stay the loop's, and may throw to end the task.
        OnStep: (unit -> TaskProgress) -> unit
    }

/// How far a task has come, between two steps.
and TaskProgress =
    /// Observation with the number of batches observed.
    | Observing of Hidden<ObservingRole> * batches: int
    /// Training with the epoch in progress, from 0, and the tally of its steps so far.
    | Training of Hidden<TrainingRole> * epoch: int * Tally

/// A learned task.
[<ReferenceEquality>]
type LearnedTask =
    {
        /// After the task.
        State: TaskState
        /// What the method retained.
        Diagnostics: Diagnostics
        /// [classes of the task, d]: mean raw feature of each, for the measurement of drift.
        Means: torch.Tensor
    }

/// Progress between two steps.
[<RequireQualifiedAccess>]
module TaskProgress =
    /// <summary>Lists the tensors of a progress.</summary>
    /// <param name="progress">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<TaskProgress> =
        fun progress ->
            match progress with
            | Observing(observing, _) -> Hidden.leaves observing
            | Training(training, _, tally) -> Seq.append (Hidden.leaves training) (Tally.leaves tally)

    /// The tensors of a progress by name. Borrows.
    let internal write (learner: Learner) (task: LearningTask) (state: TaskState) (progress: TaskProgress) =
        match progress with
        | Observing(observing, _) -> (learner.Method.Observing task state.Method).Write "observing" observing
        | Training(training, _, tally) ->
            Tally.tree.Write "tally" tally
            @ (learner.Method.Training task state.Method).Write "training" training

    /// The inverse of `write`: of an observation with a number of batches, or of training in an epoch.
    let internal read
        (learner: Learner)
        (task: LearningTask)
        (state: TaskState)
        (tensors: NamedTensors)
        (isObserving: bool)
        (count: int)
        : TaskProgress =
        if isObserving then
            Observing((learner.Method.Observing task state.Method).Read tensors "observing", count)
        else
            Training(
                (learner.Method.Training task state.Method).Read tensors "training",
                count,
                Tally.tree.Read tensors "tally"
            )

/// Learned tasks.
[<RequireQualifiedAccess>]
module LearnedTask =
    /// <summary>Lists the tensors of a learned task.</summary>
    /// <param name="learned">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<LearnedTask> =
        fun learned ->
            Seq.concat
                [
                    TaskState.leaves learned.State
                    Diagnostics.leaves learned.Diagnostics
                    Seq.singleton learned.Means
                ]

/// Learns one task from its batches. No data set, no test image and no other task is needed.
[<RequireQualifiedAccess>]
module TaskLoop =

    // Losses are read this often at most, so that the device seldom waits for the host.
    let private readEvery = TimeSpan.FromSeconds 0.5

    let private stepOf (c: TaskContext) phase finished steps =
        {
            Task = c.Task
            Phase = phase
            Done = finished
            Steps = steps
            Epoch = 0
            Epochs = c.Epochs
            Loss = None
            Accuracy = None
        }

    // Reads the device at the end of an epoch and now and then before.
    let private report
        (c: TaskContext)
        epoch
        batches
        (tally: Tally)
        (began: Stopwatch)
        (sinceRead: Stopwatch)
        =
        let step =
            { stepOf c Phase.Train (epoch * batches + tally.Steps) (c.Epochs * batches) with
                Epoch = epoch
            }

        if tally.Steps < batches && sinceRead.Elapsed < readEvery then
            c.OnEvent(Steps step)
        else
            sinceRead.Restart()
            let struct (loss, accuracy) = Tally.read tally

            if not (Double.IsFinite loss) then
                Errors.reject
                    $"loss of task {c.Task.Index + 1}, epoch {epoch + 1}"
                    "must stay finite"
                    $"{loss}"
                    "lower lr or head-lr, or use a wider precision"

            c.OnEvent(
                Steps
                    { step with
                        Loss = Some loss
                        Accuracy = Some accuracy
                    }
            )

            if tally.Steps = batches then
                c.OnEvent(
                    EpochEnds
                        {
                            Task = c.Task.Index
                            Epoch = epoch
                            Loss = loss
                            Accuracy = accuracy
                            LearningRate = (c.Rates epoch).Network
                            Seconds = began.Elapsed.TotalSeconds
                        }
                )

    // Rejects a step's report whose shapes or types are not those of the contract.
    let private checkReport (method: AnyMethod) (batch: Batch) (report: StepReport) =
        let of' what = $"{what} of method {method.Info.Name}"
        Shape.expect (of' "loss") [] report.Loss

        if not (torch.is_floating_point report.Loss) then
            Errors.reject (of' "loss") "must be floating point" $"{report.Loss.dtype}" ""

        Shape.expect (of' "predictions") [ Axis.Is batch.Labels.shape[0] ] report.Predictions
        Shape.expectLike (of' "predictions") batch.Labels report.Predictions
        Shape.expect (of' "correct predictions") [] report.Correct
        Shape.expectLike (of' "correct predictions") batch.Labels report.Correct

    // Gives each pass its loaders, made when it begins.
    let private passes (c: TaskContext) =
        let mutable current = None

        fun pass ->
            match current with
            | Some(made, loaders) when made = pass -> loaders
            | _ ->
                let loaders = c.Batches pass
                current <- Some(pass, loaders)
                loaders

    /// The task from a saved progress, or from its beginning, to the end of its training. Takes ownership of the
    /// progress; the result is owned by the caller.
    let private train (c: TaskContext) (state: TaskState) (from: TaskProgress option) : Hidden<TrainingRole> =
        let m, task = c.Learner.Method, c.Task
        let loadersOf = passes c
        let began, sinceRead = Stopwatch.StartNew(), Stopwatch.StartNew()

        let toTraining observing =
            let training = c.Clock.Time Phase.Project (fun () -> m.Prepare observing)

            match (m.Diagnostics training).Retained with
            | [||] -> ()
            | retained -> c.OnEvent(Retains(task, retained))

            began.Restart()
            Training(training, 0, Tally.zero c.Learner.Backbone.Device)

        // One step. None: training is over.
        let advance progress =
            match progress with
            | Observing(observing, batches) when m.Observes task && batches < (loadersOf Pass.Observe).Length ->
                let loaders = loadersOf Pass.Observe

                c.Clock.Time Phase.Observe (fun () ->
                    c.OnEvent(Steps(stepOf c Phase.Observe batches loaders.Length))
                    Some(Observing(m.Observe (loaders[batches]()) observing, batches + 1)))
            | Observing(observing, _) -> Some(toTraining observing)
            | Training(_, epoch, _) when epoch >= c.Epochs -> None
            | Training(training, epoch, tally) ->
                let loaders = loadersOf (Pass.Epoch epoch)

                if tally.Steps = loaders.Length then
                    began.Restart()
                    Some(Training(training, epoch + 1, Tally.zero c.Learner.Backbone.Device))
                else
                    c.Clock.Time Phase.Train (fun () ->
                        let batch = loaders[tally.Steps]()
                        let struct (training, step) = m.Update (c.Rates epoch) batch training
                        checkReport m batch step
                        let tally = Tally.add batch step tally
                        report c epoch loaders.Length tally began sinceRead
                        Some(Training(training, epoch, tally)))

        let start () =
            let key = state.Key |> Rng.fold RandomBranch.Method |> Rng.fold (int64 task.Index)

            Observing(m.BeginTask key task state.Method, 0)

        let rec run progress =
            let next =
                try
                    Scope.keep (Leaves.option TaskProgress.leaves) (fun () -> advance progress)
                with _ ->
                    Scope.free TaskProgress.leaves progress
                    reraise ()

            match next with
            | Some next ->
                Scope.supersede TaskProgress.leaves [ next ] progress

                try
                    c.OnStep(fun () -> next)
                with _ ->
                    Scope.free TaskProgress.leaves next
                    reraise ()

                run next
            | None -> progress

        match run (Option.defaultWith start from) with
        | Training(training, _, tally) ->
            Scope.free Tally.leaves tally
            training
        | Observing _ -> invalidOp "training never began"

    let private names (c: TaskContext) row =
        $"class at position {c.Task.FirstClass + row} of the class order (task {c.Task.Index + 1})"

    // No loss after a task's last step could show its divergence. The trees reject another maker's state.
    let private requireFinite (c: TaskContext) (state: TaskState) =
        let m = c.Learner.Method

        let finite (tensor: torch.Tensor) =
            not (torch.is_floating_point tensor)
            || Scope.run (fun () -> tensor.isfinite().all().item<bool>())

        let require what leaves =
            if not (Seq.forall finite leaves) then
                Errors.reject
                    $"state of {what} after task {c.Task.Index + 1}"
                    "must stay finite"
                    "NaN or infinity"
                    "lower lr or head-lr, or use a wider precision"

        require $"method {m.Info.Name}" (m.State.Leaves state.Method)

        for readout, head in Array.zip c.Learner.Readouts (TaskState.heads state) do
            require $"head {readout.Head.Info.Name}" (readout.Head.Tree.Leaves head)

    // Images of a task at most that a map of drift is fitted on: its cost grows with their square.
    let private driftImages = 2000

    // Whether images of a batch are among them.
    let private isSampled batches batch =
        batch % ((batches + driftImages - 1) / driftImages) = 0

    // Rows of a batch, evenly spaced, so that all batches together give about that many.
    let private sampled batches (images: torch.Tensor) =
        let wanted = max 1 (driftImages / batches)
        let step = max 1L ((images.shape[0] + int64 wanted - 1L) / int64 wanted)
        let scalar (n: int64) = Number.Of n
        torch.arange (scalar 0L, scalar images.shape[0], scalar step, device = images.device)

    // The pass after training: method, heads and means learn from one forward pass for each view of an image. Where the network moved,
    // some images also pass the network before the task, and what heads know of old classes follows.
    let private consolidate
        (c: TaskContext)
        (state: TaskState)
        (training: Hidden<TrainingRole>)
        : LearnedTask =
        let learner, task = c.Learner, c.Task
        let vit, m = learner.Backbone, learner.Method
        let output = (Embedding.output vit).Parts
        let classes = task.Classes.Length
        let merged = m.Merge training
        let networks = Learner.networks learner merged
        let first = Number.Of(int64 task.FirstClass)
        let loaders = c.Batches Pass.Consolidate
        let master = Precision.master vit.Precision

        let follows =
            learner.Readouts
            |> Array.map (fun readout ->
                learner.Transport
                && c.Epochs > 0
                && state.Classes.Length > 0
                && readout.Head.Transport.IsSome)

        let before =
            if Array.contains true follows then
                Some(Learner.networks learner state.Method)
            else
                None

        // embeddings of the same images by both networks, for each head that follows
        let pairsOf i (images: torch.Tensor) (embedded: torch.Tensor[]) =
            match before with
            | Some before when isSampled loaders.Length i ->
                let rows = sampled loaders.Length images

                let struct (_, old) =
                    Learner.embed learner before [||] (images.index_select (0L, rows))

                Array.map3
                    (fun follows old (now: torch.Tensor) ->
                        if follows then
                            [| old; now.index_select (0L, rows) |]
                        else
                            [||])
                    follows
                    old
                    embedded
            | _ -> [||]

        let step struct (method, heads, sums, pairs) i =
            c.OnStep(fun () -> Training(training, c.Epochs, Tally.zero vit.Device))

            c.Clock.Time Phase.Prototypes (fun () ->
                c.OnEvent(Steps(stepOf c Phase.Prototypes i loaders.Length))
                let batch = loaders[i]()
                let struct (tokens, embedded) = Learner.embed learner networks output batch.Images

                struct (m.Consolidate batch tokens[0] method,
                        Learner.observe learner embedded batch.Labels heads,
                        ClassSums.observe tokens[0] (batch.Labels.sub first) sums,
                        Array.append pairs [| pairsOf i batch.Images embedded |]))

        let leaves struct (method, heads, sums, pairs) =
            Seq.concat
                [
                    Hidden.leaves method
                    Seq.collect Hidden.leaves heads
                    ClassSums.leaves sums
                    pairs |> Seq.collect (Seq.collect Leaves.tensors)
                ]

        let none (readout: Readout) =
            readout.Head.Grow (state.Classes.Length + classes) (Learner.noHead learner readout)

        let struct (method, heads, sums, pairs) =
            Scope.fold
                leaves
                step
                struct (merged,
                        Array.map none learner.Readouts,
                        ClassSums.zero classes vit.Width master vit.Device,
                        [||])
                [ 0 .. loaders.Length - 1 ]

        // old classes, where the network is now, and the new ones
        let join i (readout: Readout) old fresh =
            let grown = readout.Head.Grow classes old

            let followed =
                match readout.Head.Transport with
                | Some transport when follows[i] ->
                    let side j =
                        pairs
                        |> Array.filter (Array.isEmpty >> not)
                        |> Array.map (fun (batch: torch.Tensor[][]) -> batch[i][j])
                        |> torch.cat

                    transport (DriftMap.fit (side 0) (side 1)) grown
                | _ -> grown

            readout.Head.Merge followed fresh

        let heads =
            c.Clock.Time Phase.Prototypes (fun () ->
                Array.zip3 learner.Readouts (TaskState.heads state) heads
                |> Array.mapi (fun i (readout, old, fresh) -> join i readout old fresh))

        let (ClassId next) = state.NextId
        let means = ClassSums.means (names c) sums

        let learned =
            ClassSums.counts sums
            |> Array.mapi (fun i images ->
                {
                    Id = ClassId(next + i)
                    Name = c.Names[i]
                    Task = task.Index
                    Images = images
                })

        {
            State =
                {
                    Finished = state.Finished + 1
                    Classes = Array.append state.Classes learned
                    NextId = ClassId(next + classes)
                    Method = m.Finish method
                    Head = heads[0]
                    Others = heads[1..]
                    Key = state.Key
                }
            Diagnostics = m.Diagnostics training
            Means = means
        }

    /// <summary>Learns a task from its beginning, or from a saved progress: observes the images where the method does,
    /// trains, and merges the task into the next state. Heads that can be transported follow the network, unless the
    /// learner says no.</summary>
    /// <param name="c">What the task is learned from; borrowed.</param>
    /// <param name="state">Before the task; borrowed.</param>
    /// <param name="from">A saved progress, of which it takes ownership; None for the beginning.</param>
    /// <returns>The next state, the method's diagnostics and the mean feature of each class; owned by the
    /// caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A loss or state is not finite; a report, adapters or
    /// state of the method, or a state of a head, are not as their contract says; a class has no image;
    /// or what the method rejects.</exception>
    let learn (c: TaskContext) (state: TaskState) (from: TaskProgress option) : LearnedTask =
        Scope.keep LearnedTask.leaves (fun () ->
            let training = train c state from

            let learned =
                try
                    let learned =
                        Scope.noGrad LearnedTask.leaves (fun () -> consolidate c state training)

                    requireFinite c learned.State
                    learned
                with _ ->
                    Scope.free Hidden.leaves training
                    reraise ()

            Scope.supersede id [ LearnedTask.leaves learned ] (Hidden.leaves training)
            learned)
