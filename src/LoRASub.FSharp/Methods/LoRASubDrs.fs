namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open TorchSharp

/// Every choice of the method, so that an ablation is a setting.
type LoRASubSettings =
    {
        /// r of each low-rank pair.
        Rank: int
        /// How B starts in each task.
        BInit: BInit
        /// Base rate of the low-rank pairs.
        LearningRate: float
        /// Base rate of the task's linear head.
        HeadLearningRate: float
        /// Options of the optimizer.
        Adam: AdamOptions
        /// Share of the second moment's energy that the retained space holds; 1 switches the projection off.
        Energy: float
        /// How the projector is scaled.
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
    }

/// LoRA Subtraction for the Drift-Resistant Space: X. Liu, X. Chang, CVPR 2025, arXiv 2503.18985. Old deltas are kept
/// merged, one per projection, where the authors' code keeps one per task: the same sum.
[<RequireQualifiedAccess>]
module LoRASubDrs =

    /// What a task trains.
    type Trained =
        {
            /// The pairs of each block.
            Lora: LayerLora[]
            /// The task's linear head.
            Head: Linear
        }

    let private trainedTree: Tree<Trained> =
        tree {
            let! lora = Tree.field "lora" _.Lora (Tree.array (Lora.tree Lora.keyValue))
            and! head = Tree.field "head" _.Head Linear.tree
            return { Lora = lora; Head = head }
        }

    /// What outlives a task.
    [<ReferenceEquality>]
    type State =
        {
            /// Per block, the summed deltas of finished tasks.
            Deltas: LayerDelta[]
            /// [c, d]: the mean raw feature of each class, for the triplet loss.
            Prototypes: torch.Tensor
            /// Of the task's classes, in the pass after training only.
            Sums: ClassSums option
        }

    let private stateTree: Tree<State> =
        tree {
            let! deltas =
                Tree.field
                    "blocks"
                    _.Deltas
                    (Tree.array (Tree.field "delta" id (Lora.deltaTree Lora.keyValue)))

            and! prototypes = Tree.field "prototypes" _.Prototypes Tree.tensor
            and! sums = Tree.field "sums" _.Sums (Tree.option ClassSums.tree)

            return
                {
                    Deltas = deltas
                    Prototypes = prototypes
                    Sums = sums
                }
        }

    /// A task that is observed but not yet trained.
    [<ReferenceEquality>]
    type Observing =
        {
            /// The task.
            Task: LearningTask
            /// Borrowed.
            State: State
            /// The pairs and the head that are to be trained.
            Trained: Trained
            /// With W − V, or W + V without subtraction.
            Network: Adapters
            /// Per block, the second moment of its attention's inputs.
            Moments: SecondMoment[]
        }

        /// <summary>The pairs of each block.</summary>
        member this.Lora = this.Trained.Lora
        /// <summary>The task's linear head.</summary>
        member this.Head = this.Trained.Head

    /// A task in training.
    [<ReferenceEquality>]
    type Training<'Optimizer> =
        {
            /// The task.
            Task: LearningTask
            /// Borrowed.
            State: State
            /// The pairs and the head as they are.
            Trained: Trained
            /// With W + V, for the pairs to be added to.
            Network: Adapters
            /// One per block, or empty where updates are free.
            Projections: Projection[]
            /// The state of the optimizer.
            Optimizer: 'Optimizer
        }

        /// <summary>The pairs of each block.</summary>
        member this.Lora = this.Trained.Lora
        /// <summary>The task's linear head.</summary>
        member this.Head = this.Trained.Head

    let private observedNetwork settings (state: State) (vit: VisionTransformer) =
        let sign = if settings.Subtraction then -1.0 else 1.0
        VisionTransformer.merged sign state.Deltas vit

    let private observingTree vit settings task state : Tree<Observing> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained trainedTree

            and! network =
                Tree.computed _.Network Adapters.tree (fun () -> observedNetwork settings state vit)

            and! moments = Tree.field "moments" _.Moments (Tree.array SecondMoment.tree)

            return
                {
                    Task = task
                    State = state
                    Trained = trained
                    Network = network
                    Moments = moments
                }
        }

    let private trainingTree
        vit
        (optimizer: Tree<'Optimizer>)
        task
        (state: State)
        : Tree<Training<'Optimizer>> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained trainedTree

            and! network =
                Tree.computed _.Network Adapters.tree (fun () ->
                    VisionTransformer.forTraining state.Deltas vit)

            and! projections =
                Tree.field "projections" _.Projections (Tree.array Projection.tree)

            and! optimizer = Tree.field "optimizer" _.Optimizer optimizer

            return
                {
                    Task = task
                    State = state
                    Trained = trained
                    Network = network
                    Projections = projections
                    Optimizer = optimizer
                }
        }

    /// Rejects settings that no backbone can have.
    let internal checkSettings (settings: LoRASubSettings) =
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

    /// Rejects settings out of range for a backbone of this width.
    let internal check (width: int64) (settings: LoRASubSettings) =
        checkSettings settings
        Lora.checkRank width settings.Rank

    let private master (vit: VisionTransformer) = Precision.master vit.Precision

    /// Before the first task: no deltas, no classes.
    let internal start (vit: VisionTransformer) : State =
        {
            Deltas =
                vit.Blocks
                |> Array.map (fun block ->
                    Lora.noDelta (Block.shapes Lora.keyValue block) (master vit) vit.Device)
            Prototypes = torch.zeros ([| 0L; vit.Width |], dtype = master vit, device = vit.Device)
            Sums = None
        }

    /// Whether the method observes this task: not the first, and not where updates are free anyway.
    let internal observes (settings: LoRASubSettings) (task: LearningTask) =
        task.Index > 0 && settings.Projection && settings.Energy < 1.0

    /// A task's linear head with nn.Linear's start: U(−1/√d, 1/√d).
    let internal initialHead (vit: VisionTransformer) (classes: int) (key: RandomKey) : Linear =
        let bound = 1.0 / sqrt (float vit.Width)

        let uniform shape number =
            Rng.uniform -bound bound shape (master vit) vit.Device (Rng.fold number key)

        {
            Weight = uniform [| int64 classes; vit.Width |] 0L
            Bias = Some(uniform [| int64 classes |] 1L)
        }

    /// Begins a task from given pairs and a given head, [classes, d] and [classes]. Borrows them.
    let internal beginTaskWith (vit: VisionTransformer) settings (trained: Trained) task state : Observing =
        Scope.noGrad (observingTree vit settings task state).Leaves (fun () ->
            {
                Task = task
                State = state
                Trained = Tree.map _.detach() trainedTree trained
                Network = observedNetwork settings state vit
                Moments =
                    vit.Blocks
                    |> Array.map (fun _ -> SecondMoment.zero vit.Width (master vit) vit.Device)
            })

    /// Begins a task from fresh random pairs and a fresh head.
    let internal beginTask (vit: VisionTransformer) (settings: LoRASubSettings) key task state : Observing =
        Scope.keep (observingTree vit settings task state).Leaves (fun () ->
            let lora =
                vit.Blocks
                |> Array.mapi (fun i block ->
                    let shapes = Block.shapes Lora.keyValue block

                    Lora.init
                        settings.BInit
                        settings.Rank
                        shapes
                        (master vit)
                        vit.Device
                        (Rng.fold (int64 i) key))

            let head = initialHead vit task.Classes.Length (Rng.fold -1L key)
            beginTaskWith vit settings { Lora = lora; Head = head } task state)

    /// Runs one batch of the new task through the subtracted network and adds each block's attention input to its
    /// second moment.
    let internal observe (vit: VisionTransformer) settings (batch: Batch) (observing: Observing) : Observing =
        Scope.noGrad (observingTree vit settings observing.Task observing.State).Leaves (fun () ->
            let visit (moments: SecondMoment[]) i input =
                Array.updateAt i (SecondMoment.observe input moments[i]) moments

            let leaves = (Tree.array SecondMoment.tree).Leaves

            { observing with
                Moments =
                    VisionTransformer.foldInputs
                        leaves
                        visit
                        observing.Moments
                        observing.Network
                        vit
                        batch.Images
            })

    /// An optimizer at a learning rate, such as `Adam.transform`: `prepare` and `update` confine its updates.
    type Optimizer<'S> = float -> Transform<'S>

    // The updates of each block's pairs are confined to its retained space, the head's never.
    let private confined
        (optimizer: Optimizer<'S>)
        (rates: Rates)
        (projections: Projection[])
        (trained: Trained)
        : Transform<struct ('S[] * unit)> =
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
                [| optimizer rates.Network; optimizer rates.Classifier |])
            (Projected.transform confinements)

    let private optimizerTree (optimizer: Optimizer<'S>) : Tree<struct ('S[] * unit)> =
        Tree.pair "first" (Tree.array (optimizer 0.0).Tree) "second" Tree.unit

    /// Turns the second moments into projections and starts a fresh optimizer. Rejects an all-zero moment.
    let internal prepareWith
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
                Network = VisionTransformer.forTraining observing.State.Deltas vit
                Projections = projections
                // no rate matters before the first step
                Optimizer =
                    (confined optimizer { Network = 0.0; Classifier = 0.0 } projections trained).Init
                        parameters
            })

    /// <summary>CE(head(f), y) + λ·ATL(f/‖f‖, y, prototypes), Liu &amp; Chang 2025.</summary>
    /// <param name="settings">λ, margin and norm order; without the triplet loss the second term is left
    /// out.</param>
    /// <param name="prototypes">[c, d]: the old classes' raw means, c may be 0; borrowed.</param>
    /// <param name="head">The task's linear head, [classes, d] and [classes]; borrowed.</param>
    /// <param name="local">[n] int64: positions in the task; borrowed.</param>
    /// <param name="features">[n, d]; borrowed.</param>
    /// <returns>The loss, a scalar, and the head's predictions [n] int64 as positions in the task; owned by
    /// the caller's scope.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `AugmentedTriplet.loss` rejects.</exception>
    let loss
        (settings: LoRASubSettings)
        (prototypes: torch.Tensor)
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
                    AugmentedTriplet.loss settings.Margin settings.NormOrder prototypes local unit

                crossEntropy.add (triplet.mul (Scalar.op_Implicit settings.TripletWeight))
            else
                crossEntropy

        struct (total, logits.argmax 1L)

    /// The network in training.
    let internal network (training: Training<_>) =
        { training.Network with
            Lora = training.Trained.Lora
        }

    /// One projected step on one batch.
    let internal updateWith
        (optimizer: Optimizer<'S>)
        vit
        settings
        (rates: Rates)
        (batch: Batch)
        (training: Training<struct ('S[] * unit)>)
        =
        let tree = trainingTree vit (optimizerTree optimizer) training.Task training.State

        Scope.keep (Leaves.both tree.Leaves StepReport.leaves) (fun () ->
            let first = Scalar.op_Implicit (int64 training.Task.FirstClass)
            let local = batch.Labels.sub first // [n], position in the task

            let lossOf (variables: torch.Tensor[]) =
                let variable = Tree.withLeaves trainedTree variables training.Trained
                let network = network { training with Trained = variable }
                let features = VisionTransformer.features network vit batch.Images

                let struct (total, predictions) =
                    loss settings training.State.Prototypes variable.Head local features

                struct (total, [| predictions |])

            let before = Array.ofSeq (trainedTree.Leaves training.Trained)
            let struct (total, extra, gradients) = Grad.valueAndGradWith lossOf before
            let transform = confined optimizer rates training.Projections training.Trained

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

    /// What the projections retain.
    let internal diagnostics (training: Training<_>) : Diagnostics =
        Diagnostics.ofProjections training.Projections

    /// Merges the task's pairs into the deltas.
    let internal merge (training: Training<_>) : State =
        let state, means = training.State, training.State.Prototypes

        Scope.noGrad stateTree.Leaves (fun () ->
            { state with
                Deltas = Array.map2 Lora.merge training.Trained.Lora state.Deltas
                Sums =
                    Some(ClassSums.zero training.Task.Classes.Length means.shape[1] means.dtype means.device)
            })

    /// Adds a batch of the task to the sums of its classes.
    let internal consolidate (batch: Batch) (features: torch.Tensor) (state: State) : State =
        match state.Sums with
        | None -> Errors.reject "consolidation" "must follow the end of training" "a finished state" ""
        | Some sums ->
            let first = Scalar.op_Implicit state.Prototypes.shape[0]

            Scope.noGrad stateTree.Leaves (fun () ->
                { state with
                    Sums = Some(ClassSums.observe features (batch.Labels.sub first) sums)
                })

    /// Appends the mean raw feature of each of the task's classes; old prototypes keep their bits. Rejects a class
    /// without images.
    let internal finish (state: State) : State =
        match state.Sums with
        | None -> state
        | Some sums ->
            Scope.noGrad stateTree.Leaves (fun () ->
                let nameOf c =
                    $"class in row {state.Prototypes.shape[0] + int64 c}"

                { state with
                    Prototypes = torch.cat ([| state.Prototypes; ClassSums.means nameOf sums |], 0L)
                    Sums = None
                })

    /// Without the prototype of the class in a row.
    let internal forget (row: int) (state: State) : State =
        Scope.noGrad stateTree.Leaves (fun () ->
            { state with
                Prototypes = ClassSums.withoutRow row state.Prototypes
            })

    /// Adam with the settings' options.
    let internal adam settings : Optimizer<AdamState> =
        fun rate -> Adam.transform rate settings.Adam

    /// `prepareWith` Adam.
    let internal prepare vit settings observing =
        prepareWith (adam settings) vit settings observing

    /// `updateWith` Adam.
    let internal update vit settings rates batch training =
        updateWith (adam settings) vit settings rates batch training

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "lora-sub-drs"
            Summary = "LoRA subtraction for the drift-resistant space"
            Source = "Liu & Chang, CVPR 2025, arXiv 2503.18985"
            Stores = "two d x d deltas per block, and one mean feature per class"
            Trains = true
            Joint = false
        }

    /// <summary>The method as a value over a frozen backbone, with an optimizer of the caller's.</summary>
    /// <param name="optimizer">A transformation for each learning rate, such as Adam's; the method confines
    /// its updates.</param>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Every choice of the method.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let methodWith
        (optimizer: Optimizer<'S>)
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        : Method<State, Observing, Training<struct ('S[] * unit)>> =
        check vit.Width settings

        {
            Info = info
            State = stateTree
            Observing = observingTree vit settings
            Training = trainingTree vit (optimizerTree optimizer)
            Start = fun _ -> start vit
            Observes = observes settings
            Trains = fun _ -> true
            BeginTask = beginTask vit settings
            Observe = observe vit settings
            Prepare = prepareWith optimizer vit settings
            Update = updateWith optimizer vit settings
            Diagnostics = diagnostics
            Merge = merge
            Consolidate = consolidate
            Finish = finish
            Forget = forget
            Adapters = fun state -> VisionTransformer.merged 1.0 state.Deltas vit
            Logits = None
        }

    /// <summary>The method as published: `methodWith` Adam.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Every choice of the method.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) = methodWith (adam settings) vit settings
