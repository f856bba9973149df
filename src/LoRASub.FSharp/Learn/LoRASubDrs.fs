namespace LoRASub

open TorchSharp

/// Every choice of the method, so that an ablation is a setting.
type LoRASubSettings =
    {
        /// r of each low-rank pair.
        Rank: int
        BInit: BInit
        /// Base rate of the low-rank pairs.
        LearningRate: float
        /// Base rate of the task's linear head.
        HeadLearningRate: float
        Adam: AdamOptions
        /// K of the schedule, the same in every task.
        ScheduleEpochs: int
        /// Share of the second moment's energy that the retained space holds; 1 switches the projection off.
        Energy: float
        UpdateScale: UpdateScale
        /// Off: updates are free, and nothing is observed.
        Projection: bool
        /// Off: the new data is observed through W + V instead of W − V.
        Subtraction: bool
        /// Off: cross-entropy only.
        Triplet: bool
        /// m of the triplet loss.
        Margin: float
        /// λ of the triplet loss.
        TripletWeight: float
        /// Order of the norm between features and prototypes.
        NormOrder: float
        /// Off: prototypes of the frozen backbone's features.
        Training: bool
    }

/// LoRA Subtraction for the Drift-Resistant Space: X. Liu, X. Chang, CVPR 2025, arXiv 2503.18985. Old deltas are kept
/// merged, one per projection, where the authors' code keeps one per task: the same sum.
[<RequireQualifiedAccess>]
module LoRASubDrs =

    /// What a task trains: the pairs of each block and the task's head.
    type Trained = { Lora: LayerLora[]; Head: Linear }

    let private trainedTree: Tree<Trained> =
        tree {
            let! lora = Tree.field "lora" _.Lora (Tree.array (Lora.tree Lora.keyValue))
            and! head = Tree.field "head" _.Head Linear.tree
            return { Lora = lora; Head = head }
        }

    /// A task that is observed but not yet trained.
    [<ReferenceEquality>]
    type Observing =
        {
            Task: LearningTask
            /// Borrowed.
            State: TaskState
            Trained: Trained
            /// W − V, or W + V without subtraction.
            ObservedQkv: torch.Tensor[]
            Moments: SecondMoment[]
        }

        member this.Lora = this.Trained.Lora
        member this.Head = this.Trained.Head

    /// A task in training.
    [<ReferenceEquality>]
    type Training<'Optimizer> =
        {
            Task: LearningTask
            /// Borrowed.
            State: TaskState
            Trained: Trained
            /// W + V.
            Qkv: torch.Tensor[]
            /// One per block, or empty where updates are free.
            Projections: Projection[]
            Optimizer: 'Optimizer
            Epoch: int
        }

        member this.Lora = this.Trained.Lora
        member this.Head = this.Trained.Head

    let private observedQkv settings (state: TaskState) (vit: VisionTransformer) =
        let sign = if settings.Subtraction then -1.0 else 1.0
        (VisionTransformer.merged sign state.Deltas vit).Qkv

    let private observingTree vit settings task state : Tree<Observing> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained trainedTree

            and! qkv =
                Tree.computed _.ObservedQkv (Tree.array Tree.tensor) (fun () ->
                    observedQkv settings state vit)

            and! moments = Tree.field "moments" _.Moments (Tree.array SecondMoment.tree)

            return
                {
                    Task = task
                    State = state
                    Trained = trained
                    ObservedQkv = qkv
                    Moments = moments
                }
        }

    let private trainingTree
        vit
        (optimizer: Tree<'Optimizer>)
        task
        (state: TaskState)
        : Tree<Training<'Optimizer>> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained trainedTree

            and! qkv =
                Tree.computed _.Qkv (Tree.array Tree.tensor) (fun () ->
                    (VisionTransformer.forTraining state.Deltas vit).Qkv)

            and! projections =
                Tree.field "projections" _.Projections (Tree.array Projection.tree)

            and! optimizer = Tree.field "optimizer" _.Optimizer optimizer
            and! epoch = Tree.field "epoch" _.Epoch Tree.int

            return
                {
                    Task = task
                    State = state
                    Trained = trained
                    Qkv = qkv
                    Projections = projections
                    Optimizer = optimizer
                    Epoch = epoch
                }
        }

    /// Rejects settings that no backbone can have.
    let checkSettings (settings: LoRASubSettings) =
        let notNegative name value =
            if not (value >= 0.0 && value < infinity) then
                Errors.reject name "must be finite and at least 0" $"{value}" ""

        if settings.Rank < 1 then
            Errors.reject "rank" "must be at least 1" $"{settings.Rank}" ""

        Adam.check settings.LearningRate settings.Adam
        notNegative "head learning rate" settings.HeadLearningRate
        Projection.checkThreshold settings.Energy
        notNegative "margin" settings.Margin
        notNegative "triplet weight" settings.TripletWeight

        if not (settings.NormOrder >= 1.0) then
            Errors.reject "norm order" "must be at least 1" $"{settings.NormOrder}" ""

        if settings.ScheduleEpochs < 1 then
            Errors.reject "schedule epochs" "must be at least 1" $"{settings.ScheduleEpochs}" ""

    /// Rejects settings out of range for a backbone of this width.
    let check (width: int64) (settings: LoRASubSettings) =
        checkSettings settings
        Lora.checkRank width settings.Rank

    let private master (vit: VisionTransformer) = Precision.master vit.Precision

    /// Before the first task: no deltas, no classes.
    let start (vit: VisionTransformer) (key: RandomKey) : TaskState =
        {
            Finished = 0
            Deltas =
                vit.Blocks
                |> Array.map (fun block ->
                    Lora.noDelta (Block.shapes Lora.keyValue block) (master vit) vit.Device)
            Prototypes = Prototype.none vit.Width (master vit) vit.Device
            Key = key
        }

    /// Whether the method observes this task: not the first, and not where updates are free anyway.
    let observes (settings: LoRASubSettings) (task: LearningTask) =
        task.Index > 0
        && settings.Training
        && settings.Projection
        && settings.Energy < 1.0

    let private initialHead (vit: VisionTransformer) (classes: int) (key: RandomKey) : Linear =
        let bound = 1.0 / sqrt (float vit.Width)

        let uniform shape number =
            Rng.uniform -bound bound shape (master vit) vit.Device (Rng.fold number key)

        {
            Weight = uniform [| int64 classes; vit.Width |] 0L
            Bias = Some(uniform [| int64 classes |] 1L)
        }

    /// Begins a task from given pairs and a given head, [classes, d] and [classes]. Borrows them.
    let beginTaskWith (vit: VisionTransformer) settings (trained: Trained) task state : Observing =
        Scope.noGrad (observingTree vit settings task state).Leaves (fun () ->
            {
                Task = task
                State = state
                Trained = Tree.map _.detach() trainedTree trained
                ObservedQkv = observedQkv settings state vit
                Moments =
                    vit.Blocks
                    |> Array.map (fun _ -> SecondMoment.zero vit.Width (master vit) vit.Device)
            })

    /// Begins a task from fresh random pairs and a fresh head.
    let beginTask
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        (task: LearningTask)
        state
        : Observing =
        Scope.keep (observingTree vit settings task state).Leaves (fun () ->
            let key = state.Key |> Rng.fold RandomBranch.Method |> Rng.fold (int64 task.Index)
            // without training B must leave the network as it is
            let bInit = if settings.Training then settings.BInit else BInit.Zeros

            let lora =
                vit.Blocks
                |> Array.mapi (fun i block ->
                    let shapes = Block.shapes Lora.keyValue block
                    Lora.init bInit settings.Rank shapes (master vit) vit.Device (Rng.fold (int64 i) key))

            let head = initialHead vit task.Classes.Length (Rng.fold -1L key)
            beginTaskWith vit settings { Lora = lora; Head = head } task state)

    /// Runs one batch of the new task through the subtracted network and adds each block's attention input to its
    /// second moment.
    let observe (vit: VisionTransformer) settings (batch: Batch) (observing: Observing) : Observing =
        Scope.noGrad (observingTree vit settings observing.Task observing.State).Leaves (fun () ->
            let adapters =
                {
                    Qkv = observing.ObservedQkv
                    Weights = [||]
                    Lora = [||]
                    Mlp = [||]
                }

            let visit (moments: SecondMoment[]) i input =
                Array.updateAt i (SecondMoment.observe input moments[i]) moments

            let leaves = (Tree.array SecondMoment.tree).Leaves

            { observing with
                Moments =
                    VisionTransformer.foldInputs leaves visit observing.Moments adapters vit batch.Images
            })

    /// An optimizer at a learning rate, such as `Adam.transform`: `prepare` and `update` confine its updates.
    type Optimizer<'S> = float -> Transform<'S>

    // The rates of an epoch for the pairs and for the head; the updates of each block's pairs confined to its retained
    // space, the head's never.
    let private confined
        (optimizer: Optimizer<'S>)
        settings
        (projections: Projection[])
        epoch
        (trained: Trained)
        : Transform<struct ('S[] * unit)> =
        let rate baseRate =
            Schedule.cosine baseRate settings.ScheduleEpochs epoch

        let head = Linear.leaves trained.Head |> Seq.length
        let pairs = trained.Lora |> Seq.sumBy (Lora.leaves >> Seq.length)

        let confinements =
            [|
                for projection in projections do
                    for side in Lora.sides do
                        Confinement.Within(side, projection.Matrix)

                if Array.isEmpty projections then
                    yield! Array.create pairs Confinement.Free

                yield! Array.create head Confinement.Free
            |]

        Transform.chain
            (Transform.partition
                [| yield! Array.create pairs 0; yield! Array.create head 1 |]
                [|
                    optimizer (rate settings.LearningRate)
                    optimizer (rate settings.HeadLearningRate)
                |])
            (Projected.transform confinements)

    let private optimizerTree (optimizer: Optimizer<'S>) : Tree<struct ('S[] * unit)> =
        Tree.pair "first" (Tree.array (optimizer 0.0).Tree) "second" Tree.unit

    /// Turns the second moments into projections and starts a fresh optimizer. Rejects an all-zero moment.
    let prepareWith
        (optimizer: Optimizer<'S>)
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        (observing: Observing)
        =
        let tree = trainingTree vit (optimizerTree optimizer) observing.Task observing.State

        Scope.noGrad tree.Leaves (fun () ->
            let projections =
                if observes settings observing.Task then
                    observing.Moments
                    |> Array.mapi (fun i moment ->
                        let subject = $"second moment of block {i}, task {observing.Task.Index + 1}"
                        Projection.retain settings.UpdateScale settings.Energy subject moment)
                else
                    [||]

            let trained = Tree.map _.detach() trainedTree observing.Trained
            let parameters = Array.ofSeq (trainedTree.Leaves trained)

            {
                Task = observing.Task
                State = observing.State
                Trained = trained
                Qkv = (VisionTransformer.forTraining observing.State.Deltas vit).Qkv
                Projections = projections
                Optimizer = (confined optimizer settings projections 0 trained).Init parameters
                Epoch = 0
            })

    /// The network in training.
    let adapters (training: Training<_>) =
        {
            Qkv = training.Qkv
            Weights = [||]
            Lora = training.Trained.Lora
            Mlp = [||]
        }

    /// CE(head(f), y) + λ·ATL(f/‖f‖, y, prototypes), and the head's predictions as positions in the task, [n].
    let loss
        (settings: LoRASubSettings)
        (prototypes: Prototypes)
        head
        (local: torch.Tensor)
        (features: torch.Tensor)
        =
        let logits = Linear.forward head features // [n, classes of the task]
        let crossEntropy = torch.nn.functional.cross_entropy (logits, local)

        let total =
            if settings.Triplet && settings.TripletWeight > 0.0 then
                let unit = features.div (features.norm (1, keepdim = true))

                let triplet =
                    AugmentedTriplet.loss settings.Margin settings.NormOrder prototypes.Means local unit

                crossEntropy.add (triplet.mul (Scalar.op_Implicit settings.TripletWeight))
            else
                crossEntropy

        struct (total, logits.argmax 1L)

    /// One projected step on one batch.
    let updateWith
        (optimizer: Optimizer<'S>)
        vit
        settings
        (batch: Batch)
        (training: Training<struct ('S[] * unit)>)
        =
        let tree = trainingTree vit (optimizerTree optimizer) training.Task training.State

        Scope.keep (Leaves.both tree.Leaves StepReport.leaves) (fun () ->
            let first = Scalar.op_Implicit (int64 training.Task.FirstClass)
            let local = batch.Labels.sub first // [n], position in the task

            let lossOf (variables: torch.Tensor[]) =
                let variable = Tree.withLeaves trainedTree variables training.Trained

                let features =
                    VisionTransformer.features
                        (adapters { training with Trained = variable })
                        vit
                        batch.Images

                let struct (total, predictions) =
                    loss settings training.State.Prototypes variable.Head local features

                struct (total, [| predictions |])

            let before = Array.ofSeq (trainedTree.Leaves training.Trained)
            let struct (total, extra, gradients) = Grad.valueAndGradWith lossOf before

            let transform =
                confined optimizer settings training.Projections training.Epoch training.Trained

            let struct (after, optimizer) =
                Transform.step transform gradients training.Optimizer before

            struct ({ training with
                        Trained = Tree.withLeaves trainedTree after training.Trained
                        Optimizer = optimizer
                    },
                    {
                        Loss = total
                        Predictions = extra[0].add first
                        Correct = extra[0].eq(local).sum()
                    }))

    /// Effective weights for prediction; the prototypes stay the state's.
    let deploy (vit: VisionTransformer) (state: TaskState) : Model =
        Scope.keep Model.leaves (fun () ->
            {
                Adapters = VisionTransformer.merged 1.0 state.Deltas vit
                Prototypes = state.Prototypes
            })

    /// Merges the task's pairs into the deltas and appends the mean raw feature of each of its classes, in one pass
    /// over `loaders`. Old prototypes are not touched. Rejects a class without images.
    let afterTask (vit: VisionTransformer) (loaders: BatchLoader[]) (training: Training<_>) : TaskState =
        Scope.noGrad TaskState.leaves (fun () ->
            let task, state = training.Task, training.State
            let classes = task.Classes.Length

            let merged =
                { state with
                    Finished = state.Finished + 1
                    Deltas = Array.map2 Lora.merge training.Trained.Lora state.Deltas
                }

            let model = deploy vit merged

            let step sums (load: BatchLoader) =
                let batch = load ()
                let features = VisionTransformer.features model.Adapters vit batch.Images

                ClassSums.observe
                    features
                    (batch.Labels.sub (Scalar.op_Implicit (int64 task.FirstClass)))
                    sums

            let sums =
                Scope.fold
                    ClassSums.leaves
                    step
                    (ClassSums.zero classes vit.Width (master vit) vit.Device)
                    loaders

            let nameOf c =
                $"class at position {task.FirstClass + c} of the class order (task {task.Index + 1})"

            let ids = Array.init classes (fun c -> task.FirstClass + c)

            { merged with
                Prototypes = Prototype.append ids (ClassSums.means nameOf sums) state.Prototypes
            })

    /// Features of images under a model, block by block.
    let features (vit: VisionTransformer) (model: Model) (images: torch.Tensor) : Features =
        Scope.noGrad Features.leaves (fun () -> VisionTransformer.featuresByBlock model.Adapters vit images)

    /// Nearest prototype on unit vectors, over all classes seen.
    let classify (model: Model) (features: Features) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let nearest = Prototype.nearest model.Prototypes features.Output

            let classes =
                torch.tensor (Array.map int64 model.Prototypes.Classes, device = nearest.device)

            classes.index_select (0L, nearest))

    /// Adam with the settings' options.
    let adam settings : Optimizer<AdamState> =
        fun rate -> Adam.transform rate settings.Adam

    /// `prepareWith` Adam.
    let prepare vit settings observing =
        prepareWith (adam settings) vit settings observing

    /// Adds a task's classes without training: `afterTask` with the current network.
    let extend
        (vit: VisionTransformer)
        settings
        task
        (loaders: BatchLoader[])
        (state: TaskState)
        : TaskState =
        let untrained = { settings with Training = false }

        Scope.noGrad TaskState.leaves (fun () ->
            beginTask vit untrained task state
            |> prepare vit untrained
            |> afterTask vit loaders)

    /// `updateWith` Adam.
    let update vit settings batch training =
        updateWith (adam settings) vit settings batch training

    /// The method as a value over a frozen backbone, which it borrows, with an optimizer of the caller's. Rejects
    /// settings out of range.
    let learnerWith
        (optimizer: Optimizer<'S>)
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        : Learner<Observing, Training<struct ('S[] * unit)>> =
        check vit.Width settings

        {
            Name =
                if settings.Training then
                    "lora-sub-drs"
                else
                    "frozen-prototypes"
            Start = start vit
            Observes = observes settings
            BeginTask = beginTask vit settings
            Observe = observe vit settings
            Prepare = prepareWith optimizer vit settings
            BeginEpoch = fun epoch training -> { training with Training.Epoch = epoch }
            Update = updateWith optimizer vit settings
            Retained =
                fun training ->
                    training.Projections
                    |> Array.map (fun p ->
                        {
                            Rank = p.Rank
                            Energy = p.Energy
                            Condition = p.Condition
                        })
            Subspaces = fun training -> training.Projections |> Array.map Subspace.ofProjection
            AfterTask = afterTask vit
            Extend = extend vit settings
            Deploy = deploy vit
            Features = features vit
            Classify = classify
            ObservingTree = observingTree vit settings
            TrainingTree = trainingTree vit (optimizerTree optimizer)
        }

    /// `learnerWith` Adam, as published.
    let learner (vit: VisionTransformer) (settings: LoRASubSettings) =
        learnerWith (adam settings) vit settings
