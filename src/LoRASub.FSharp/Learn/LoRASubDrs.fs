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
        /// Off: cross-entropy alone.
        Triplet: bool
        /// m of the triplet loss.
        Margin: float
        /// λ of the triplet loss.
        TripletWeight: float
        /// Order of the norm between features and prototypes.
        NormOrder: float
        /// Off: the backbone's own features, with prototypes alone.
        Training: bool
    }

/// LoRA Subtraction for the Drift-Resistant Space: X. Liu, X. Chang, CVPR 2025, arXiv 2503.18985. Old deltas are kept
/// merged, one per projection, where the authors' code keeps one per task: the same sum.
[<RequireQualifiedAccess>]
module LoRASubDrs =

    /// A task that is observed but not yet trained.
    [<ReferenceEquality>]
    type Observing =
        {
            Task: LearningTask
            /// Borrowed.
            State: TaskState
            Lora: LayerLora[]
            Head: Linear
            /// W − V, or W + V without subtraction.
            ObservedQkv: torch.Tensor[]
            Moments: SecondMoment[]
        }

    /// A task in training.
    [<ReferenceEquality>]
    type Training =
        {
            Task: LearningTask
            /// Borrowed.
            State: TaskState
            Lora: LayerLora[]
            Head: Linear
            /// W + V.
            Qkv: torch.Tensor[]
            /// One per block, or empty where updates are free.
            Projections: Projection[]
            Optimizer: struct (AdamState[] * unit)
            Epoch: int
        }

    let private observingLeaves: Leaves<Observing> =
        fun o ->
            Seq.concat
                [
                    Seq.collect Lora.leaves o.Lora
                    Linear.leaves o.Head
                    Seq.ofArray o.ObservedQkv
                    Seq.collect SecondMoment.leaves o.Moments
                ]

    let private trainingLeaves: Leaves<Training> =
        fun t ->
            let struct (adam, ()) = t.Optimizer

            Seq.concat
                [
                    Seq.collect Lora.leaves t.Lora
                    Linear.leaves t.Head
                    Seq.ofArray t.Qkv
                    Seq.collect Projection.leaves t.Projections
                    Seq.collect Adam.leaves adam
                ]

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
                |> Array.map (fun _ -> Lora.noDelta vit.Width (master vit) vit.Device)
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
    let beginTaskWith
        (vit: VisionTransformer)
        settings
        (lora: LayerLora[])
        (head: Linear)
        task
        state
        : Observing =
        let share (t: torch.Tensor) = t.detach ()
        let sharePair (p: LoraPair) = { A = share p.A; B = share p.B }

        Scope.noGrad observingLeaves (fun () ->
            {
                Task = task
                State = state
                Lora =
                    lora
                    |> Array.map (fun l ->
                        {
                            Key = sharePair l.Key
                            Value = sharePair l.Value
                        })
                Head =
                    {
                        Weight = share head.Weight
                        Bias = Option.map share head.Bias
                    }
                ObservedQkv =
                    VisionTransformer.effectiveQkv
                        (if settings.Subtraction then -1.0 else 1.0)
                        state.Deltas
                        vit
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
        Scope.keep observingLeaves (fun () ->
            let key = state.Key |> Rng.fold RandomBranch.Method |> Rng.fold (int64 task.Index)
            // without training B must leave the network as it is
            let bInit = if settings.Training then settings.BInit else BInit.Zeros

            let lora =
                Array.init vit.Blocks.Length (fun i ->
                    Lora.init bInit settings.Rank vit.Width (master vit) vit.Device (Rng.fold (int64 i) key))

            let head = initialHead vit task.Classes.Length (Rng.fold -1L key)
            beginTaskWith vit settings lora head task state)

    /// Runs one batch of the new task through the subtracted network and adds each block's attention input to its
    /// second moment.
    let observe (vit: VisionTransformer) (batch: Batch) (observing: Observing) : Observing =
        Scope.noGrad observingLeaves (fun () ->
            let adapters =
                {
                    Qkv = observing.ObservedQkv
                    Lora = [||]
                }

            let visit (moments: SecondMoment[]) i input =
                Array.updateAt i (SecondMoment.observe input moments[i]) moments

            let leaves: Leaves<SecondMoment[]> = Leaves.array SecondMoment.leaves

            { observing with
                Moments =
                    VisionTransformer.foldInputs leaves visit observing.Moments adapters vit batch.Images
            })

    let private parameters (lora: LayerLora[]) (head: Linear) =
        [| yield! Seq.collect Lora.leaves lora; yield! Linear.leaves head |]

    // The inverse of `parameters`.
    let private ofParameters blocks (all: torch.Tensor[]) : struct (LayerLora[] * Linear) =
        let pair i = { A = all[i]; B = all[i + 1] }

        let lora =
            Array.init blocks (fun b ->
                {
                    LayerLora.Key = pair (4 * b)
                    Value = pair (4 * b + 2)
                })

        struct (lora,
                {
                    Weight = all[4 * blocks]
                    Bias = Some all[4 * blocks + 1]
                })

    // In the order of `parameters`.
    let private parameterNames blocks =
        [|
            for b in 0 .. blocks - 1 do
                for projection in [ "key"; "value" ] do
                    $"blocks.{b}.{projection}.a"
                    $"blocks.{b}.{projection}.b"
            "head.weight"
            "head.bias"
        |]

    let private namedParameters (lora: LayerLora[]) head =
        Array.zip (parameterNames lora.Length) (parameters lora head)

    let private findParameters blocks (find: string -> torch.Tensor) =
        parameterNames blocks |> Array.map find |> ofParameters blocks

    /// Adam at this epoch's rates, its updates confined to each block's retained space: A from the right, B from the
    /// left, the head never.
    let optimizer
        settings
        (blocks: int)
        (projections: Projection[])
        epoch
        : Transform<struct (AdamState[] * unit)> =
        let rate baseRate =
            Schedule.cosine baseRate settings.ScheduleEpochs epoch

        let adam baseRate =
            Adam.transform (rate baseRate) settings.Adam

        let groupOf = [| yield! Array.create (4 * blocks) 0; 1; 1 |]

        let confinements =
            [|
                for b in 0 .. blocks - 1 do
                    for side in [ Side.Right; Side.Left; Side.Right; Side.Left ] do
                        if Array.isEmpty projections then
                            Confinement.Free
                        else
                            Confinement.Within(side, projections[b].Matrix)

                Confinement.Free
                Confinement.Free
            |]

        Transform.chain
            (Transform.partition groupOf [| adam settings.LearningRate; adam settings.HeadLearningRate |])
            (Projected.transform confinements)

    /// Turns the second moments into projections and starts a fresh optimizer. Rejects an all-zero moment.
    let prepare (vit: VisionTransformer) (settings: LoRASubSettings) (observing: Observing) : Training =
        Scope.noGrad trainingLeaves (fun () ->
            let projections =
                if observes settings observing.Task then
                    observing.Moments
                    |> Array.mapi (fun i moment ->
                        let subject = $"second moment of block {i}, task {observing.Task.Index}"
                        Projection.retain settings.UpdateScale settings.Energy subject moment)
                else
                    [||]

            let all = parameters observing.Lora observing.Head |> Array.map _.detach()
            let struct (lora, head) = ofParameters vit.Blocks.Length all

            {
                Task = observing.Task
                State = observing.State
                Lora = lora
                Head = head
                Qkv = VisionTransformer.trainingQkv observing.State.Deltas vit
                Projections = projections
                Optimizer = (optimizer settings vit.Blocks.Length projections 0).Init all
                Epoch = 0
            })

    let private observingLayout (vit: VisionTransformer) settings : Layout<Observing> =
        let names b =
            struct ($"blocks.{b}.moment", $"blocks.{b}.rows")

        {
            Tensors =
                fun observing ->
                    [
                        yield! namedParameters observing.Lora observing.Head

                        for b, moment in Array.indexed observing.Moments do
                            let struct (matrix, rows) = names b
                            matrix, moment.Moment
                            rows, torch.tensor moment.Count
                    ]
            Restore =
                fun task state find ->
                    Scope.noGrad observingLeaves (fun () ->
                        let struct (lora, head) = findParameters vit.Blocks.Length find

                        let moment b _ =
                            let struct (matrix, rows) = names b

                            {
                                Moment = find matrix
                                Count = (find rows).item<int64>()
                            }

                        { beginTaskWith vit settings lora head task state with
                            Lora = lora
                            Head = head
                            Moments = Array.mapi moment vit.Blocks
                        })
        }

    let private projectionTensors (projections: Projection[]) =
        [
            for b, projection in Array.indexed projections do
                let part name = $"blocks.{b}.projection.{name}"
                part "matrix", projection.Matrix
                part "basis", projection.Basis
                part "spectrum", projection.Spectrum
                part "energy", torch.tensor projection.Energy
                part "condition", torch.tensor projection.Condition
        ]

    let private findProjection (find: string -> torch.Tensor) b _ : Projection =
        let part name = find $"blocks.{b}.projection.{name}"
        let basis = part "basis"

        {
            Matrix = part "matrix"
            Basis = basis
            Spectrum = part "spectrum"
            Rank = int basis.shape[1]
            Energy = (part "energy").item<float>()
            Condition = (part "condition").item<float>()
        }

    let private adamTensors (groups: AdamState[]) =
        [
            for g, state in Array.indexed groups do
                $"adam.{g}.steps", torch.tensor state.Steps

                for name, moments in [ "mu", state.Mu; "nu", state.Nu; "numax", state.NuMax ] do
                    for i, moment in Array.indexed moments do
                        $"adam.{g}.{name}.{i}", moment
        ]

    // A fresh optimizer tells how many of each there are.
    let private findAdam (find: string -> torch.Tensor) g (fresh: AdamState) : AdamState =
        let all name (like: torch.Tensor[]) =
            like |> Array.mapi (fun i _ -> find $"adam.{g}.{name}.{i}")

        {
            Steps = (find $"adam.{g}.steps").cpu().data<int64>().ToArray()
            Mu = all "mu" fresh.Mu
            Nu = all "nu" fresh.Nu
            NuMax = all "numax" fresh.NuMax
        }

    let private trainingLayout (vit: VisionTransformer) settings : Layout<Training> =
        {
            Tensors =
                fun training ->
                    let struct (adam, ()) = training.Optimizer

                    [
                        yield! namedParameters training.Lora training.Head
                        yield! projectionTensors training.Projections
                        yield! adamTensors adam
                        "epoch", torch.tensor (int64 training.Epoch)
                    ]
            Restore =
                fun task state find ->
                    Scope.noGrad trainingLeaves (fun () ->
                        let blocks = vit.Blocks.Length
                        let struct (lora, head) = findParameters blocks find

                        let projections =
                            if observes settings task then
                                Array.mapi (findProjection find) vit.Blocks
                            else
                                [||]

                        let struct (fresh, ()) =
                            (optimizer settings blocks projections 0).Init(parameters lora head)

                        {
                            Task = task
                            State = state
                            Lora = lora
                            Head = head
                            Qkv = VisionTransformer.trainingQkv state.Deltas vit
                            Projections = projections
                            Optimizer = struct (Array.mapi (findAdam find) fresh, ())
                            Epoch = int ((find "epoch").item<int64>())
                        })
        }

    /// The network in training.
    let adapters (training: Training) =
        {
            Qkv = training.Qkv
            Lora = training.Lora
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
    let update vit settings (batch: Batch) (training: Training) : struct (Training * StepReport) =
        let blocks = training.Lora.Length

        Scope.keep (Leaves.both trainingLeaves StepReport.leaves) (fun () ->
            let first = Scalar.op_Implicit (int64 training.Task.FirstClass)
            let local = batch.Labels.sub first // [n], position in the task

            let lossOf (variables: torch.Tensor[]) =
                let struct (lora, head) = ofParameters blocks variables

                let features =
                    VisionTransformer.features { Qkv = training.Qkv; Lora = lora } vit batch.Images

                let struct (total, predictions) =
                    loss settings training.State.Prototypes head local features

                struct (total, [| predictions |])

            let before = parameters training.Lora training.Head
            let struct (total, extra, gradients) = Grad.valueAndGradWith lossOf before
            let transform = optimizer settings blocks training.Projections training.Epoch

            let struct (after, optimizer) =
                Transform.step transform gradients training.Optimizer before

            let struct (lora, head) = ofParameters blocks after

            struct ({ training with
                        Lora = lora
                        Head = head
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
                Adapters =
                    {
                        Qkv = VisionTransformer.effectiveQkv 1.0 state.Deltas vit
                        Lora = [||]
                    }
                Prototypes = state.Prototypes
            })

    /// Merges the task's pairs into the deltas and appends the mean raw feature of each of its classes, in one pass
    /// over `loaders`. Old prototypes are not touched. Rejects a class without images.
    let afterTask (vit: VisionTransformer) (loaders: BatchLoader[]) (training: Training) : TaskState =
        Scope.noGrad TaskState.leaves (fun () ->
            let task, state = training.Task, training.State
            let classes = task.Classes.Length

            let merged =
                { state with
                    Finished = state.Finished + 1
                    Deltas = Array.map2 Lora.merge training.Lora state.Deltas
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
                $"class at position {task.FirstClass + c} of the class order (task {task.Index})"

            let ids = Array.init classes (fun c -> task.FirstClass + c)

            { merged with
                Prototypes = Prototype.append ids (ClassSums.means nameOf sums) state.Prototypes
            })

    /// Adds a task's classes with the network as it stands: `afterTask` without training.
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

    /// The method as a value over a frozen backbone, which it borrows. Rejects settings out of range.
    let learner (vit: VisionTransformer) (settings: LoRASubSettings) : Learner<Observing, Training> =
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
            Observe = observe vit
            Prepare = prepare vit settings
            BeginEpoch = fun epoch training -> { training with Training.Epoch = epoch }
            Update = update vit settings
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
            ObservingLeaves = observingLeaves
            TrainingLeaves = trainingLeaves
            ObservingLayout = observingLayout vit settings
            TrainingLayout = trainingLayout vit settings
        }
