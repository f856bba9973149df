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
            let! deltas = Tree.field "blocks" _.Deltas LoraTask.deltas
            and! prototypes = Tree.field "prototypes" _.Prototypes Tree.tensor
            and! sums = Tree.field "sums" _.Sums (Tree.option ClassSums.tree)

            return
                {
                    Deltas = deltas
                    Prototypes = prototypes
                    Sums = sums
                }
        }

    /// A task in training.
    type Training<'Optimizer> = LoraTraining<State, 'Optimizer>

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

    /// Before the first task: no deltas, no classes.
    let internal start (vit: VisionTransformer) : State =
        let shape, dtype = [| 0L; vit.Width |], Precision.master vit.Precision

        {
            Deltas = LoraTask.noDeltas vit
            Prototypes = torch.zeros (shape, dtype = dtype, device = vit.Device)
            Sums = None
        }

    /// Whether the method observes this task: not the first, and not where updates are free anyway.
    let internal observes (settings: LoRASubSettings) (task: LearningTask) =
        task.Index > 0 && settings.Projection && settings.Energy < 1.0

    // The projections of the second moments. Rejects an all-zero moment.
    let private projections (settings: LoRASubSettings) (observing: LoraObserving<State>) =
        if observes settings observing.Task then
            observing.Moments
            |> Array.mapi (fun i moment ->
                let subject = $"second moment of block {i}, task {observing.Task.Index + 1}"
                Projection.retain settings.UpdateScale settings.Energy subject moment)
        else
            [||]

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
        let struct (crossEntropy, predictions) = LoraTask.crossEntropy head local features

        let total =
            if settings.Triplet && settings.TripletWeight > 0.0 then
                let unit = features.div (features.norm (1, keepdim = true))

                let triplet =
                    AugmentedTriplet.loss settings.Margin settings.NormOrder prototypes local unit

                crossEntropy.plus (triplet.mul (Number.Of settings.TripletWeight))
            else
                crossEntropy

        struct (total, predictions)

    /// Adds a batch of the task to the sums of its classes.
    let internal consolidate (batch: Batch) (features: torch.Tensor) (state: State) : State =
        match state.Sums with
        | None -> Errors.reject "consolidation" "must follow the end of training" "a finished state" ""
        | Some sums ->
            let first = Number.Of state.Prototypes.shape[0]

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

    let private rules (optimizer: Optimizer<'S>) vit (settings: LoRASubSettings) : LoraRules<State, 'S> =
        {
            BInit = settings.BInit
            Rank = settings.Rank
            Optimizer = optimizer
            State = stateTree
            Start = fun () -> start vit
            Deltas = _.Deltas
            ObservedSign = if settings.Subtraction then -1.0 else 1.0
            Prepare = fun observing -> struct (observing.Trained, projections settings observing)
            Confine = LoraTask.within
            Loss = fun state -> loss settings state.Prototypes
            Merge =
                fun deltas training ->
                    let means = training.State.Prototypes

                    let sums =
                        ClassSums.zero training.Task.Classes.Length means.shape[1] means.dtype means.device

                    { training.State with
                        Deltas = deltas
                        Sums = Some sums
                    }
        }

    /// Begins a task from given pairs and a given head, [classes, d] and [classes]. Borrows them.
    let internal beginTaskWith vit settings trained task state =
        LoraTask.beginWith vit (rules (adam settings) vit settings) trained task state

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
        : Method<State, LoraObserving<State>, Training<struct ('S[] * unit)>> =
        check vit.Width settings

        { LoraTask.method' info vit (rules optimizer vit settings) with
            Observes = observes settings
            Consolidate = consolidate
            Finish = finish
            Forget = forget
        }

    /// <summary>The method as published: `methodWith` Adam.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Every choice of the method.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) = methodWith (adam settings) vit settings
