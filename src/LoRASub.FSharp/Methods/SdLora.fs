namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open TorchSharp

/// Choices of SD-LoRA.
type SdLoraSettings =
    {
        /// r of each low-rank pair.
        Rank: int
        /// At which every α starts in each task.
        Magnitude: float
        /// Momentum and weight decay.
        Sgd: SgdOptions
    }

/// Scalable decoupled low-rank adaptation: Y. Wu et al., ICLR 2025, arXiv 2501.13198. On query and value of each block,
/// task t runs with Δ = α_t·B_t·A_t + Σ α_i·B_i·A_i/(‖B_i‖·‖A_i‖) over the earlier tasks i, in Frobenius norms. It trains
/// A_t, B_t, the α of all tasks, one number per task for the whole network, and the classifier of its own classes. As
/// published, every α restarts in each task, so that the network changes when a finished pair is scaled to length 1.
/// The published rates are constant; here the run's settings decide.
[<RequireQualifiedAccess>]
module SdLora =

    /// <summary>The settings of LibContinual for CIFAR-100, which trains at a rate of 8e-3. The authors' code starts α at
    /// 0.8, and trains at 1e-2 on ImageNet-R.</summary>
    let published: SdLoraSettings =
        {
            Rank = 10
            Magnitude = 1.0
            Sgd = { Momentum = 0.9; WeightDecay = 0.0 }
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "sd-lora"
            Summary = "low-rank pairs of all tasks, their directions kept and their magnitudes trained"
            Source = "Wu et al., ICLR 2025, arXiv 2501.13198"
            Stores =
                "two pairs of rank r per block and task, 16·L·d·r + 4 bytes; a row of a linear classifier per class, "
                + "4·(d + 1) bytes"
            Trains = true
            Joint = false
        }

    let private sites = [ Site.Query; Site.Value ]
    let private loraTree = Tree.array (Lora.tree sites)

    /// The pairs of a finished task, and its α.
    [<ReferenceEquality>]
    type internal Finished =
        {
            Lora: LayerLora[]
            /// Scalar.
            Magnitude: torch.Tensor
        }

    /// What outlives a task.
    [<ReferenceEquality>]
    type internal State =
        {
            Tasks: Finished[]
            /// A row per class.
            Classifier: Linear
        }

    let internal stateTree: Tree<State> =
        let finished =
            tree {
                let! lora = Tree.field "blocks" _.Lora loraTree
                and! magnitude = Tree.field "magnitude" _.Magnitude Tree.tensor
                return { Lora = lora; Magnitude = magnitude }
            }

        tree {
            let! tasks = Tree.field "tasks" _.Tasks (Tree.array finished)
            and! classifier = Tree.field "classifier" _.Classifier Linear.tree

            return
                {
                    Tasks = tasks
                    Classifier = classifier
                }
        }

    /// What a task trains.
    type internal Trained =
        {
            Lora: LayerLora[]
            /// α of each task, this one's last: scalars.
            Magnitudes: torch.Tensor[]
            /// Of the task's classes.
            Classifier: Linear
        }

    let private trainedTree: Tree<Trained> =
        tree {
            let! lora = Tree.field "lora" _.Lora loraTree
            and! magnitudes = Tree.field "magnitudes" _.Magnitudes (Tree.array Tree.tensor)
            and! classifier = Tree.field "classifier" _.Classifier Linear.tree

            return
                {
                    Lora = lora
                    Magnitudes = magnitudes
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
            Trained: Trained
            /// Without any pair.
            Network: Adapters
            /// Per block and site, the earlier tasks' pairs of length 1, side by side; empty in the first task.
            Directions: LayerLora[]
            Optimizer: SgdState[]
        }

    /// ‖B‖·‖A‖, a scalar.
    let internal magnitude (pair: LoraPair) : torch.Tensor = pair.B.norm().mul(pair.A.norm ())

    /// The pair whose B·A is that of the given one over ‖B‖·‖A‖: 0 for a pair that was never trained, where the
    /// published code divides 0 by 0.
    let internal direction (pair: LoraPair) : LoraPair =
        Scope.noGrad Lora.pairTree.Leaves (fun () ->
            {
                A = pair.A.clone ()
                B = pair.B.div ((magnitude pair).clamp_min(Number.Of 1e-30))
            })

    let private stacked (pairs: LoraPair seq) : LoraPair =
        {
            A = torch.cat ([| for pair in pairs -> pair.A |], 0L)
            B = torch.cat ([| for pair in pairs -> pair.B |], 1L)
        }

    let private directions (vit: VisionTransformer) (state: State) : LayerLora[] =
        Scope.noGrad loraTree.Leaves (fun () ->
            Array.init vit.Blocks.Length (fun block ->
                if Array.isEmpty state.Tasks then
                    Map.empty
                else
                    Map.ofList
                        [
                            for site in sites do
                                site,
                                stacked [ for task in state.Tasks -> direction task.Lora[block].[site] ]
                        ]))

    // One pair per site for those of all tasks, each with its α.
    let private combined (directions: LayerLora[]) (ranks: int64[]) (trained: Trained) : LayerLora[] =
        let earlier, own = trained.Magnitudes |> Array.splitAt ranks.Length

        let scales =
            lazy (torch.cat (Array.map2 (fun (a: torch.Tensor) rank -> a.expand [| rank |]) earlier ranks))

        Array.map2
            (fun (old: LayerLora) lora ->
                lora
                |> Map.map (fun site (pair: LoraPair) ->
                    let scaled = { pair with B = pair.B.mul own[0] }

                    match Map.tryFind site old with
                    | None -> scaled
                    | Some old -> stacked [ { old with B = old.B.mul scales.Value }; scaled ]))
            directions
            trained.Lora

    /// The network in training.
    let internal network (training: Training) : Adapters =
        let ranks =
            training.State.Tasks
            |> Array.map (fun task -> (Seq.head task.Lora[0].Values).A.shape[0])

        { training.Network with
            Lora = combined training.Directions ranks training.Trained
        }

    let private bare (vit: VisionTransformer) =
        VisionTransformer.forTraining (vit.Blocks |> Array.map (fun _ -> Map.empty)) vit

    let internal trainingTree vit task (state: State) : Tree<Training> =
        tree {
            let! task = Tree.given _.Task task
            and! state = Tree.given _.State state
            and! trained = Tree.field "trained" _.Trained trainedTree
            and! network = Tree.computed _.Network Adapters.tree (fun () -> bare vit)

            and! directions =
                Tree.computed _.Directions loraTree (fun () -> directions vit state)

            and! optimizer = Tree.field "optimizer" _.Optimizer (Tree.array Sgd.tree)

            return
                {
                    Task = task
                    State = state
                    Trained = trained
                    Network = network
                    Directions = directions
                    Optimizer = optimizer
                }
        }

    let private start (vit: VisionTransformer) : State =
        {
            Tasks = [||]
            Classifier = LocalHead.none vit
        }

    let private beginTask (vit: VisionTransformer) (settings: SdLoraSettings) key task state : Training =
        Scope.noGrad (trainingTree vit task state).Leaves (fun () ->
            let master = Precision.master vit.Precision

            let pairs i block =
                let shapes = Block.shapes sites block
                Lora.init BInit.Zeros settings.Rank shapes master vit.Device (Rng.fold (int64 i) key)

            let trained =
                {
                    Lora = Array.mapi pairs vit.Blocks
                    Magnitudes =
                        Array.init (state.Tasks.Length + 1) (fun _ ->
                            torch.tensor (settings.Magnitude, dtype = master, device = vit.Device))
                    Classifier = LocalHead.fresh vit task.Classes.Length (Rng.fold -1L key)
                }

            {
                Task = task
                State = state
                Trained = trained
                Network = bare vit
                Directions = directions vit state
                Optimizer = LocalTask.optimizer settings.Sgd trainedTree trained
            })

    let private update vit settings (rates: Rates) (batch: Batch) (training: Training) =
        let tree = trainingTree vit training.Task training.State

        let lossOf (trained: Trained) local =
            let network = network { training with Trained = trained }
            let features = VisionTransformer.features network vit batch.Images
            let logits = Linear.forward trained.Classifier features // [n, classes of the task]
            struct (torch.nn.functional.cross_entropy (logits, local), logits)

        Scope.keep (Leaves.both tree.Leaves StepReport.leaves) (fun () ->
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

    let private merge (training: Training) : State =
        let trained, state = training.Trained, training.State

        Scope.noGrad stateTree.Leaves (fun () ->
            {
                Tasks =
                    Array.append (state.Tasks |> Array.map _.Lora) [| trained.Lora |]
                    |> Array.map2
                        (fun magnitude lora -> { Lora = lora; Magnitude = magnitude })
                        trained.Magnitudes
                Classifier = LocalHead.append trained.Classifier state.Classifier
            })

    /// Δ per block and site; the last task's pair as it is, the others of length 1.
    let internal deltas (vit: VisionTransformer) (state: State) : LayerDelta[] =
        let last = state.Tasks.Length - 1

        let part block site i (task: Finished) =
            let pair = task.Lora[block].[site]
            (Lora.delta (if i = last then pair else direction pair)).mul task.Magnitude

        Scope.noGrad (Leaves.array Lora.deltaLeaves) (fun () ->
            Array.init vit.Blocks.Length (fun block ->
                Map.ofList
                    [
                        if last >= 0 then
                            for site in sites do
                                site,
                                state.Tasks
                                |> Array.mapi (part block site)
                                |> Array.reduce (fun a b -> a.plus b)
                    ]))

    let private adapters vit state : Adapters =
        Scope.noGrad Adapters.leaves (fun () -> VisionTransformer.merged 1.0 (deltas vit state) vit)

    let private forget row (state: State) : State =
        Scope.noGrad stateTree.Leaves (fun () ->
            { state with
                Classifier = LocalHead.withoutRow row state.Classifier
            })

    /// The method with its types.
    let internal typed
        (vit: VisionTransformer)
        (settings: SdLoraSettings)
        : Method<State, Training, Training> =
        Lora.checkRank vit.Width settings.Rank
        Sgd.check 0.0 settings.Sgd

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
            Merge = merge
            Consolidate = fun _ _ state -> state
            Finish = id
            Forget = forget
            Adapters = adapters vit
            Logits = Some(fun state -> LocalHead.scores state.Classifier)
        }

    /// <summary>The method over a backbone. `Rates.Network` is the rate of pairs and magnitudes.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">`published`, or others.</param>
    /// <returns>The method over hidden states.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: SdLoraSettings) : AnyMethod =
        Method.hide (typed vit settings)
