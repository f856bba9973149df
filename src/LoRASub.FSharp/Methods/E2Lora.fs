namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open TorchSharp

/// Choices of E²-LoRA.
type E2LoraSettings =
    {
        /// Momentum and weight decay, of the classifier as well.
        Sgd: SgdOptions
        /// Factor of the distillation loss, T²·KL(before ‖ now) of softmax(logits / T), at least 0.
        Distillation: float
        /// T, above 0.
        Temperature: float
    }

/// Energy-structured low-rank adaptation: L. Li et al., ICML 2026, arXiv 2605.27482, without classifier alignment. On the
/// fused weight [3d, d] of query, key and value of each block, the delta of task t is B_t·A_t. The first task trains A
/// and B [3d, 3d]; later tasks train A from zero, and B is fixed. The loss is the cross-entropy of a classifier of the task's
/// own classes, plus the distillation of earlier classes' logits from the network before the task, on the new images. After
/// training, the change B·A·x of the outputs is centred over all tokens and decomposed: B becomes its eigenvectors U, in
/// descending order of energy, and A becomes Uᵀ·B·A. When task t begins, each earlier task keeps the fewest leading
/// directions that hold a share τ of its energy; τ is the largest of 0.99999, 0.99998, … at which all of them together keep
/// at most t/(t + 1) of the 3d directions. The other directions are taken out of the network, and are the new task's B. The
/// bases of all tasks are orthonormal together. Differences from the published code: the MLP is not adapted (fc1
/// there); the final norm keeps its weights; the classifier is not trained again on Gaussian samples of all classes, for
/// which other heads can stand; the decomposition is of all images of the task, not of one batch; and it stays within
/// the task's B, where the code fills up with arbitrary directions, which may overlap those of other tasks.
[<RequireQualifiedAccess>]
module E2Lora =

    /// <summary>The settings for CIFAR-100, which trains for 5 epochs at rates of 5e-4 for the network and 0.01 for the
    /// classifier. There both fall to a tenth in the last epoch; here the run's settings decide.</summary>
    let published: E2LoraSettings =
        {
            Sgd = { Momentum = 0.9; WeightDecay = 5e-4 }
            Distillation = 0.25
            Temperature = 2.0
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "e2-lora"
            Summary =
                "deltas by the energy of their outputs; a new task writes into directions that hold little"
            Source = "Li et al., ICML 2026, arXiv 2605.27482"
            Stores =
                "a basis of the 3d outputs of each block and what is written in it, 48·L·d² + 12·L·d + 8 bytes, nothing per "
                + "task; a row of a linear classifier per class, 4·(d + 1) bytes"
            Trains = true
            Joint = false
        }

    /// What outlives a task.
    [<ReferenceEquality>]
    type internal State =
        {
            /// How many tasks.
            Tasks: int
            Blocks: OutputDeltas[]
            /// A row per class.
            Classifier: Linear
            /// Per block, of the attention's inputs with a 1 appended, [d + 1, d + 1]; in the pass after training only.
            Moments: SecondMoment[]
        }

    let internal stateTree: Tree<State> =
        tree {
            let! tasks = Tree.field "tasks" _.Tasks Tree.int
            and! blocks = Tree.field "blocks" _.Blocks (Tree.array OutputDeltas.tree)
            and! classifier = Tree.field "classifier" _.Classifier Linear.tree
            and! moments = Tree.field "moments" _.Moments (Tree.array SecondMoment.tree)

            return
                {
                    Tasks = tasks
                    Blocks = blocks
                    Classifier = classifier
                    Moments = moments
                }
        }

    /// What a task trains.
    type internal Trained =
        {
            /// Per block, [r, d].
            A: torch.Tensor[]
            /// Per block, [3d, 3d]; in the first task only.
            B: torch.Tensor[]
            /// Of the task's classes.
            Classifier: Linear
        }

    let private trainedTree: Tree<Trained> =
        tree {
            let! a = Tree.field "a" _.A (Tree.array Tree.tensor)
            and! b = Tree.field "b" _.B (Tree.array Tree.tensor)
            and! classifier = Tree.field "classifier" _.Classifier Linear.tree

            return
                {
                    A = a
                    B = b
                    Classifier = classifier
                }
        }

    /// A task in training.
    [<ReferenceEquality>]
    type internal Training =
        {
            Task: LearningTask
            /// Borrowed.
            State: State
            /// What earlier tasks keep: where training starts, and the teacher of the distillation.
            Network: Adapters
            /// Per block, the directions that no earlier task keeps, [3d, r]: B after the first task.
            Free: torch.Tensor[]
            Trained: Trained
            Optimizer: SgdState[]
        }

        member t.IsFirst = t.State.Tasks = 0
        member t.B = if t.IsFirst then t.Trained.B else t.Free

    // The rows of each site.
    let private rows (fused: torch.Tensor) : Map<Site, torch.Tensor> =
        let d = fused.shape[0] / 3L
        let part i = fused.narrow (0L, int64 i * d, d)
        Map.ofList (List.mapi (fun i site -> site, part i) Site.fused)

    let private pairs (a: torch.Tensor) (b: torch.Tensor) : LayerLora =
        rows b |> Map.map (fun _ b -> { A = a; B = b })

    // Of each block, what earlier tasks keep and what is free.
    let private splitAll (state: State) : struct (OutputDeltas[] * torch.Tensor[]) =
        let both = state.Blocks |> Array.map (OutputDeltas.split state.Tasks)

        struct (both |> Array.map (fun struct (kept, _) -> kept),
                both |> Array.map (fun struct (_, free) -> free))

    // The network of deltas, made by `VisionTransformer.merged` or `forTraining`.
    let private network make (vit: VisionTransformer) (blocks: OutputDeltas[]) : Adapters =
        Scope.noGrad Adapters.leaves (fun () ->
            let deltas: LayerDelta[] = blocks |> Array.map (fun w -> rows (OutputDeltas.sum w))
            make deltas vit)

    // The network before a task, and its fixed B.
    let private before vit (state: State) : struct (Adapters * torch.Tensor[]) =
        Scope.noGrad (Leaves.both Adapters.leaves Leaves.tensors) (fun () ->
            let struct (kept, free) = splitAll state
            struct (network VisionTransformer.forTraining vit kept, free))

    let internal trainingTree vit task (state: State) : Tree<Training> =
        let both = Tree.pair "network" Adapters.tree "free" (Tree.array Tree.tensor)

        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state

            and! struct (network, free) =
                Tree.computed (fun t -> struct (t.Network, t.Free)) both (fun () -> before vit state)

            and! trained = Tree.field "trained" _.Trained trainedTree
            and! optimizer = Tree.field "optimizer" _.Optimizer (Tree.array Sgd.tree)

            return
                {
                    Task = task
                    State = state
                    Network = network
                    Free = free
                    Trained = trained
                    Optimizer = optimizer
                }
        }

    let private zeros (vit: VisionTransformer) (shape: int64[]) =
        torch.zeros (shape, dtype = Precision.master vit.Precision, device = vit.Device)

    let private start (vit: VisionTransformer) : State =
        {
            Tasks = 0
            Blocks =
                vit.Blocks
                |> Array.map (fun _ ->
                    OutputDeltas.none (3L * vit.Width) vit.Width (Precision.master vit.Precision) vit.Device)
            Classifier = LocalHead.none vit
            Moments = [||]
        }

    let private beginTask vit (settings: E2LoraSettings) key (task: LearningTask) (state: State) : Training =
        Scope.noGrad (trainingTree vit task state).Leaves (fun () ->
            let d, classes = vit.Width, int64 task.Classes.Length
            let struct (network, free) = before vit state

            let random i =
                let bound = 1.0 / sqrt (float d)
                let key = Rng.fold (int64 i) key
                Rng.uniform -bound bound [| 3L * d; d |] (Precision.master vit.Precision) vit.Device key

            let rows =
                Rng.normal [| classes; d |] (Precision.master vit.Precision) vit.Device (Rng.fold -1L key)

            let isFirst = state.Tasks = 0

            let trained =
                {
                    A =
                        if isFirst then
                            Array.init vit.Blocks.Length random
                        else
                            free |> Array.map (fun b -> zeros vit [| b.shape[1]; d |])
                    B =
                        [|
                            if isFirst then
                                for _ in vit.Blocks do
                                    zeros vit [| 3L * d; 3L * d |]
                        |]
                    Classifier =
                        {
                            Weight = rows.mul (Number.Of 0.02)
                            Bias = Some(zeros vit [| classes |])
                        }
                }

            {
                Task = task
                State = state
                Network = network
                Free = free
                Trained = trained
                Optimizer = LocalTask.optimizer settings.Sgd trainedTree trained
            })

    // T²·KL(teacher ‖ student) of logits [n, classes] over T, the mean over images.
    let private distillation
        (temperature: float)
        (teacher: torch.Tensor)
        (student: torch.Tensor)
        : torch.Tensor =
        let log (logits: torch.Tensor) =
            torch.nn.functional.log_softmax (logits.div (Number.Of temperature), 1L)

        let p, q = log teacher, log student
        let sums = p.exp().mul(p.sub q).sum 1L
        sums.mean().mul(Number.Of(temperature * temperature))

    /// The network in training.
    let internal inTraining (training: Training) : Adapters =
        { training.Network with
            Lora = Array.map2 pairs training.Trained.A training.B
        }

    let private update vit (settings: E2LoraSettings) (rates: Rates) (batch: Batch) (training: Training) =
        let tree = trainingTree vit training.Task training.State
        let old = training.State.Classifier
        let distils = old.Weight.shape[0] > 0L && settings.Distillation > 0.0

        Scope.keep (Leaves.both tree.Leaves StepReport.leaves) (fun () ->
            let teacher =
                lazy
                    (Scope.noGrad Leaves.tensor (fun () ->
                        VisionTransformer.features training.Network vit batch.Images
                        |> Linear.forward old))

            let lossOf (trained: Trained) local =
                let network = inTraining { training with Trained = trained }
                let features = VisionTransformer.features network vit batch.Images
                let logits = Linear.forward trained.Classifier features // [n, classes of the task]
                let crossEntropy = torch.nn.functional.cross_entropy (logits, local)

                if distils then
                    let lost =
                        distillation settings.Temperature teacher.Value (Linear.forward old features)

                    struct (crossEntropy.plus (lost.mul (Number.Of settings.Distillation)), logits)
                else
                    struct (crossEntropy, logits)

            let struct (trained, optimizer, report) =
                LocalTask.step
                    settings.Sgd
                    rates
                    trainedTree
                    training.Task
                    batch.Labels
                    lossOf
                    training.Optimizer
                    training.Trained

            struct ({ training with
                        Trained = trained
                        Optimizer = optimizer
                    },
                    report))

    let private merge (vit: VisionTransformer) (training: Training) : State =
        Scope.noGrad stateTree.Leaves (fun () ->
            let struct (kept, _) = splitAll training.State

            let add i (kept: OutputDeltas) =
                let a =
                    if training.IsFirst then
                        training.B[i].mm training.Trained.A[i] // by unit vectors, which are all free
                    else
                        training.Trained.A[i]

                {
                    Basis = torch.cat ([| kept.Basis; training.Free[i] |], 1L)
                    A = torch.cat ([| kept.A; a |], 0L)
                    Before = kept.Before
                }

            let width, master = vit.Width + 1L, Precision.master vit.Precision

            {
                Tasks = training.State.Tasks + 1
                Blocks = Array.mapi add kept
                Classifier = LocalHead.append training.Trained.Classifier training.State.Classifier
                Moments = vit.Blocks |> Array.map (fun _ -> SecondMoment.zero width master vit.Device)
            })

    let private consolidate vit (images: torch.Tensor) (state: State) : State =
        if Array.isEmpty state.Moments then
            Errors.reject "consolidation" "must follow the end of training" "a finished state" ""

        Scope.noGrad stateTree.Leaves (fun () ->
            let visit (moments: SecondMoment[]) i (input: torch.Tensor) =
                let ones = torch.ones_like (input.narrow (-1L, 0L, 1L))
                let extended = torch.cat ([| input; ones |], -1L)
                Array.updateAt i (SecondMoment.observe extended moments[i]) moments

            let network = network (VisionTransformer.merged 1.0) vit state.Blocks
            let leaves = (Tree.array SecondMoment.tree).Leaves

            { state with
                Moments = VisionTransformer.foldInputs leaves visit state.Moments network vit images
            })

    let private finish (state: State) : State =
        if Array.isEmpty state.Moments then
            state
        else
            Scope.noGrad stateTree.Leaves (fun () ->
                let subject i =
                    $"change of the outputs of block {i} in task {state.Tasks}"

                { state with
                    Blocks = Array.mapi2 (subject >> OutputDeltas.ordered) state.Moments state.Blocks
                    Moments = [||]
                })

    let private forget row (state: State) : State =
        Scope.noGrad stateTree.Leaves (fun () ->
            { state with
                Classifier = LocalHead.withoutRow row state.Classifier
            })

    let private check (settings: E2LoraSettings) =
        Sgd.check 0.0 settings.Sgd

        if not (settings.Distillation >= 0.0 && settings.Distillation < infinity) then
            Errors.reject "distillation" "must be finite and at least 0" $"{settings.Distillation}" ""

        if not (settings.Temperature > 0.0 && settings.Temperature < infinity) then
            Errors.reject "temperature" "must be finite and above 0" $"{settings.Temperature}" ""

    /// The method with its types.
    let internal typed
        (vit: VisionTransformer)
        (settings: E2LoraSettings)
        : Method<State, Training, Training> =
        check settings

        {
            Info = info
            State = stateTree
            Observing = trainingTree vit
            Training = trainingTree vit
            Start = fun _ -> start vit
            Observes = fun _ -> false
            Trains = fun _ -> true
            BeginTask = beginTask vit settings
            Observe = fun _ training -> training
            Prepare = id
            Update = update vit settings
            Diagnostics = fun _ -> Diagnostics.none
            Merge = merge vit
            Consolidate = fun batch _ state -> consolidate vit batch.Images state
            Finish = finish
            Forget = forget
            Adapters = fun state -> network (VisionTransformer.merged 1.0) vit state.Blocks
            Logits = Some(fun state -> LocalHead.scores state.Classifier)
        }

    /// <summary>The method over a backbone. `Rates.Network` is the rate of A and B. A step takes a second forward pass from
    /// the second task on, and the pass after training takes one in every task.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">`published`, or others.</param>
    /// <returns>The method over hidden states. A task after as many as a block has outputs, 3d, is rejected when it
    /// begins.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range.</exception>
    let method' (vit: VisionTransformer) (settings: E2LoraSettings) : AnyMethod =
        Method.hide (typed vit settings)
