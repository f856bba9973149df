namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open TorchSharp

/// An optimizer at a learning rate, such as `Adam.transform`.
type Optimizer<'S> = float -> Transform<'S>

/// What a task trains: low-rank pairs on keys and values, and a linear head over its own classes. The pairs of all blocks
/// are two tensors: an update is then a few operations, however many blocks there are.
[<ReferenceEquality>]
type LoraTask =
    {
        /// A of key and value of each block, [blocks, 2, r, d].
        A: torch.Tensor
        /// B likewise, [blocks, 2, d, r].
        B: torch.Tensor
        /// The task's linear head.
        Head: Linear
    }

    /// <summary>The pairs of each block.</summary>
    /// <returns>Views, owned by the caller's scope.</returns>
    member this.Lora: LayerLora[] =
        let each (stacked: torch.Tensor) = stacked.flatten(0L, 1L).unbind 0L

        Array.map2 (fun a b -> { A = a; B = b }) (each this.A) (each this.B)
        |> Array.chunkBySize Lora.keyValue.Length
        |> Array.map (Seq.zip Lora.keyValue >> Map.ofSeq)

/// A task that is observed but not yet trained.
[<ReferenceEquality>]
type LoraObserving<'State> =
    {
        /// The task.
        Task: LearningTask
        /// Borrowed.
        State: 'State
        /// The pairs and the head that are to be trained.
        Trained: LoraTask
        /// The network that is observed.
        Network: Adapters
        /// Per block, the second moment of its attention's inputs.
        Moments: SecondMoment[]
    }

    /// <summary>The pairs of each block.</summary>
    /// <returns>Views, owned by the caller's scope.</returns>
    member this.Lora = this.Trained.Lora
    /// <summary>The task's linear head.</summary>
    member this.Head = this.Trained.Head

/// A task in training.
[<ReferenceEquality>]
type LoraTraining<'State, 'Optimizer> =
    {
        /// The task.
        Task: LearningTask
        /// Borrowed.
        State: 'State
        /// The pairs and the head as they are.
        Trained: LoraTask
        /// With the deltas of finished tasks, for the pairs to be added to.
        Network: Adapters
        /// One per block, or empty where no update is projected.
        Projections: Projection[]
        /// The state of the optimizer.
        Optimizer: 'Optimizer
    }

    /// <summary>The pairs of each block.</summary>
    /// <returns>Views, owned by the caller's scope.</returns>
    member this.Lora = this.Trained.Lora
    /// <summary>The task's linear head.</summary>
    member this.Head = this.Trained.Head

/// A task in training by Adam.
type AdamTraining<'State> = LoraTraining<'State, struct (AdamState[] * unit)>

/// What a method of low-rank training decides. The rest is the same for all: see `LoraTask.method'`.
type internal LoraRules<'State, 'S> =
    {
        BInit: BInit
        Rank: int
        Optimizer: Optimizer<'S>
        /// The tensors of what outlives a task.
        State: Tree<'State>
        /// Before the first task.
        Start: unit -> 'State
        /// The summed deltas of finished tasks.
        Deltas: 'State -> LayerDelta[]
        /// The factor of the deltas in the network that is observed.
        ObservedSign: float
        /// What is trained, and the projections of its updates.
        Prepare: LoraObserving<'State> -> struct (LoraTask * Projection[])
        /// What happens to the updates of one side of all pairs, given the projections of `Prepare`, [blocks, d, d], if
        /// any; the head's are free.
        Confine: torch.Tensor option -> Side -> Confinement
        /// Loss and predictions [n] of the task's head on features [n, d], with positions in the task as labels [n].
        Loss: 'State -> Linear -> torch.Tensor -> torch.Tensor -> struct (torch.Tensor * torch.Tensor)
        /// The next state, from its deltas.
        Merge: LayerDelta[] -> LoraTraining<'State, struct ('S[] * unit)> -> 'State
    }

/// Methods that train low-rank pairs and a head for each task, and merge the pairs into the network afterwards.
[<RequireQualifiedAccess>]
module LoraTask =

    let private taskTree: Tree<LoraTask> =
        tree {
            let! a = Tree.field "a" _.A Tree.tensor
            and! b = Tree.field "b" _.B Tree.tensor
            and! head = Tree.field "head" _.Head Linear.tree
            return { A = a; B = b; Head = head }
        }

    /// A task of the pairs of each block, which are copied. Borrows; owned by the caller's scope.
    let internal ofPairs (lora: LayerLora[]) (head: Linear) : LoraTask =
        let stack leaf =
            torch.stack
                [|
                    for block in lora -> torch.stack [| for site in Lora.keyValue -> leaf block[site] |]
                |]

        {
            A = stack _.A
            B = stack _.B
            Head = head
        }

    /// Confines updates of one side to the projection of their block; without projections they are free.
    let internal within (projections: torch.Tensor option) (side: Side) : Confinement =
        match projections with
        | Some matrices -> Confinement.Within(side, matrices)
        | None -> Confinement.Free

    /// The tensors of the deltas of every block.
    let internal deltas: Tree<LayerDelta[]> =
        Tree.array (Tree.field "delta" id (Lora.deltaTree Lora.keyValue))

    let private master (vit: VisionTransformer) = Precision.master vit.Precision

    /// The deltas of no task.
    let internal noDeltas (vit: VisionTransformer) : LayerDelta[] =
        vit.Blocks
        |> Array.map (fun block -> Lora.noDelta (Block.shapes Lora.keyValue block) (master vit) vit.Device)

    /// The second moments of no input, one per block.
    let internal noMoments (vit: VisionTransformer) : SecondMoment[] =
        vit.Blocks
        |> Array.map (fun _ -> SecondMoment.zero vit.Width (master vit) vit.Device)

    /// Adds the attention inputs of images, token by token, to the second moment of each block. Borrows; owned by the
    /// caller.
    let internal observeInputs (vit: VisionTransformer) network images (moments: SecondMoment[]) =
        let visit (moments: SecondMoment[]) i input =
            Array.updateAt i (SecondMoment.observe input moments[i]) moments

        VisionTransformer.foldInputs (Tree.array SecondMoment.tree).Leaves visit moments network vit images

    let private observingTree vit rules task state : Tree<LoraObserving<'State>> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained taskTree

            and! network =
                Tree.computed _.Network Adapters.tree (fun () ->
                    VisionTransformer.merged rules.ObservedSign (rules.Deltas state) vit)

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

    let private optimizerTree (optimizer: Optimizer<'S>) : Tree<struct ('S[] * unit)> =
        Tree.pair "first" (Tree.array (optimizer 0.0).Tree) "second" Tree.unit

    let private trainingTree
        vit
        (rules: LoraRules<'State, 'S>)
        task
        (state: 'State)
        : Tree<LoraTraining<'State, struct ('S[] * unit)>> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained taskTree

            and! network =
                Tree.computed _.Network Adapters.tree (fun () ->
                    VisionTransformer.forTraining (rules.Deltas state) vit)

            and! projections =
                Tree.field "projections" _.Projections (Tree.array Projection.tree)

            and! optimizer = Tree.field "optimizer" _.Optimizer (optimizerTree rules.Optimizer)

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

    /// Begins a task from given pairs and a given head, [classes, d] and [classes]. Borrows them.
    let internal beginWith vit (rules: LoraRules<'State, 'S>) (trained: LoraTask) task (state: 'State) =
        Scope.noGrad (observingTree vit rules task state).Leaves (fun () ->
            {
                Task = task
                State = state
                Trained = Tree.map _.detach() taskTree trained
                Network = VisionTransformer.merged rules.ObservedSign (rules.Deltas state) vit
                Moments = noMoments vit
            })

    // From fresh random pairs and a fresh head.
    let private beginTask
        (vit: VisionTransformer)
        (rules: LoraRules<'State, 'S>)
        key
        (task: LearningTask)
        state
        =
        Scope.keep (observingTree vit rules task state).Leaves (fun () ->
            let pairs i block =
                let shapes = Block.shapes Lora.keyValue block
                let key = Rng.fold (int64 i) key
                Lora.init rules.BInit rules.Rank shapes (master vit) vit.Device key

            let head = LocalHead.fresh vit task.Classes.Length (Rng.fold -1L key)
            let lora = Array.mapi pairs vit.Blocks
            beginWith vit rules (ofPairs lora head) task state)

    let private observe vit rules (batch: Batch) (observing: LoraObserving<'State>) =
        Scope.noGrad (observingTree vit rules observing.Task observing.State).Leaves (fun () ->
            { observing with
                Moments = observeInputs vit observing.Network batch.Images observing.Moments
            })

    // One for each leaf of what is trained.
    let private confinements (rules: LoraRules<'State, 'S>) (trained: LoraTask) (projections: Projection[]) =
        let matrices =
            if Array.isEmpty projections then
                None
            else
                Some(torch.stack (projections |> Array.map _.Matrix))

        [|
            rules.Confine matrices Side.Right // A reads from the retained space
            rules.Confine matrices Side.Left // B writes into it

            for _ in Linear.leaves trained.Head do
                Confinement.Free
        |]

    let private transform (rules: LoraRules<'State, 'S>) (rates: Rates) trained confinements =
        let head = Linear.leaves trained.Head |> Seq.length
        let pairs = Array.length confinements - head

        Transform.chain
            (Transform.partition
                [| yield! Array.create pairs 0; yield! Array.create head 1 |]
                [| rules.Optimizer rates.Network; rules.Optimizer rates.Classifier |])
            (Projected.transform confinements)

    let private prepare vit (rules: LoraRules<'State, 'S>) (observing: LoraObserving<'State>) =
        Scope.noGrad (trainingTree vit rules observing.Task observing.State).Leaves (fun () ->
            let struct (trained, projections) = rules.Prepare observing
            let trained = Tree.map _.detach() taskTree trained
            let confinements = confinements rules trained projections
            // no rate matters before the first step
            let transform =
                transform rules { Network = 0.0; Classifier = 0.0 } trained confinements

            {
                Task = observing.Task
                State = observing.State
                Trained = trained
                Network = VisionTransformer.forTraining (rules.Deltas observing.State) vit
                Projections = projections
                Optimizer = transform.Init(Array.ofSeq (taskTree.Leaves trained))
            })

    /// The network in training.
    let internal network (training: LoraTraining<_, _>) =
        { training.Network with
            Lora = training.Trained.Lora
        }

    /// <summary>The cross-entropy of the task's head: the loss where a method adds nothing to it.</summary>
    /// <param name="head">[classes, d] and [classes], borrowed.</param>
    /// <param name="local">[n] int64: positions in the task; borrowed.</param>
    /// <param name="features">[n, d], borrowed.</param>
    /// <returns>The mean loss, a scalar, and the head's predictions [n] int64 as positions in the task; owned
    /// by the caller's scope.</returns>
    let crossEntropy head (local: torch.Tensor) (features: torch.Tensor) =
        let logits = Linear.forward head features // [n, classes of the task]
        struct (torch.nn.functional.cross_entropy (logits, local), logits.argmax 1L)

    // Gradients of what is fixed are not computed.
    let private update vit (rules: LoraRules<'State, 'S>) (rates: Rates) (batch: Batch) training =
        let leaves = (trainingTree vit rules training.Task training.State).Leaves

        Scope.keep (Leaves.both leaves StepReport.leaves) (fun () ->
            // [n], position in the task
            let local = batch.Labels.sub (Number.Of(int64 training.Task.FirstClass))
            let before = Array.ofSeq (taskTree.Leaves training.Trained)
            let confinements = confinements rules training.Trained training.Projections

            let moving =
                [| 0 .. before.Length - 1 |]
                |> Array.filter (fun i -> not confinements[i].IsFixed)

            let lossOf (variables: torch.Tensor[]) =
                let all = Array.copy before
                Array.iter2 (fun i variable -> all[i] <- variable) moving variables
                let variable = Tree.withLeaves taskTree all training.Trained
                let network = network { training with Trained = variable }
                let features = VisionTransformer.features network vit batch.Images

                let struct (total, predictions) =
                    rules.Loss training.State variable.Head local features

                struct (total, [| predictions |])

            let struct (total, extra, found) =
                moving |> Array.map (fun i -> before[i]) |> Grad.valueAndGradWith lossOf

            let gradients: Gradients = Array.create before.Length None
            Array.iter2 (fun i gradient -> gradients[i] <- gradient) moving found
            let transform = transform rules rates training.Trained confinements

            let struct (after, optimizer) =
                Transform.step transform gradients training.Optimizer before

            struct ({ training with
                        Trained = Tree.withLeaves taskTree after training.Trained
                        Optimizer = optimizer
                    },
                    StepReport.ofTask training.Task total local extra[0]))

    let private merge (rules: LoraRules<'State, 'S>) (training: LoraTraining<'State, _>) =
        Scope.noGrad rules.State.Leaves (fun () ->
            let deltas =
                Array.map2 Lora.merge training.Trained.Lora (rules.Deltas training.State)

            rules.Merge deltas training)

    /// The method of some rules: it observes nothing, and keeps nothing in the pass after training. A method replaces
    /// what it does otherwise.
    let internal method'
        (info: MethodInfo)
        (vit: VisionTransformer)
        (rules: LoraRules<'State, 'S>)
        : Method<'State, LoraObserving<'State>, LoraTraining<'State, struct ('S[] * unit)>> =
        {
            Info = info
            State = rules.State
            Observing = observingTree vit rules
            Training = trainingTree vit rules
            Start = fun _ -> rules.Start()
            Observes = fun _ -> false
            Trains = fun _ -> true
            BeginTask = beginTask vit rules
            Observe = observe vit rules
            Prepare = prepare vit rules
            Update = update vit rules
            Diagnostics = fun training -> Diagnostics.ofProjections training.Projections
            Merge = merge rules
            Consolidate = fun _ _ state -> state
            Finish = id
            Forget = fun _ state -> state
            Adapters = fun state -> VisionTransformer.merged 1.0 (rules.Deltas state) vit
            Logits = None
        }
