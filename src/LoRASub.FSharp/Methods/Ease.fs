namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open TorchSharp

/// Choices of EASE.
type EaseSettings =
    {
        /// Of the adapters, and of their training.
        Adapter: AdapterOptions
        /// α: the weight of all subspaces but a class's own, together.
        Alpha: float
    }

/// Expandable subspace ensemble: D.-W. Zhou et al., CVPR 2024, arXiv 2403.12030. Each task trains MLP adapters of its own,
/// which are kept: a subspace of features per task. A class has a mean feature in the subspaces up to its own task's; those
/// in later ones are synthesised from classes that have both. Other heads see the first task's subspace, because the images
/// of old classes are gone when a new one begins.
[<RequireQualifiedAccess>]
module Ease =

    /// <summary>The settings for CIFAR-100, which trains at a rate of 0.025.</summary>
    let published: EaseSettings =
        {
            Adapter =
                {
                    Hidden = 64
                    Scale = 0.1
                    Dropout = 0.1
                    Sgd = { Momentum = 0.9; WeightDecay = 5e-4 }
                }
            Alpha = 0.1
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "ease"
            Summary = "MLP adapters per task, class means in all of them, old ones synthesised"
            Source = "Zhou et al., CVPR 2024, arXiv 2403.12030"
            Stores =
                "an MLP adapter of width h per block and task, 4·L·(2·d·h + d + h) bytes; for a class of the t-th task "
                + "t mean features, 4·d·t bytes"
            Trains = true
            Joint = false
        }

    /// What outlives a task.
    [<ReferenceEquality>]
    type internal State =
        {
            /// Per task, an adapter per block.
            Adapters: MlpAdapter[][]
            /// Per subspace, the mean feature of each class of its own task and of later ones, [classes, d].
            Means: torch.Tensor[]
            /// Of the task's classes per subspace, in the pass after training only.
            Sums: ClassSums[]
        }

    /// A task in training.
    [<ReferenceEquality>]
    type internal Training =
        {
            /// Borrowed.
            State: State
            Session: AdapterSession
        }

    let internal stateTree (settings: EaseSettings) : Tree<State> =
        tree {
            let! adapters =
                Tree.field "adapters" _.Adapters (Tree.array (AdapterSession.mlpTree settings.Adapter))

            and! means = Tree.field "means" _.Means (Tree.array Tree.tensor)
            and! sums = Tree.field "sums" _.Sums (Tree.array ClassSums.tree)

            return
                {
                    Adapters = adapters
                    Means = means
                    Sums = sums
                }
        }

    let private trainingTree (settings: EaseSettings) vit task (state: State) : Tree<Training> =
        tree {
            let! state = Tree.given _.State state

            and! session =
                Tree.field "session" _.Session (AdapterSession.tree settings.Adapter vit task)

            return { State = state; Session = session }
        }

    let private classes (means: torch.Tensor[]) =
        if Array.isEmpty means then 0L else means[0].shape[0]

    // The first row whose class has a mean of its own in each subspace: the first of the subspace's task.
    let private firstRows (means: torch.Tensor[]) =
        means |> Array.map (fun own -> classes means - own.shape[0])

    /// The means of all classes in each subspace, [classes, d] each. A class o of task i has none in a later subspace j: it
    /// gets Σ w_n·p_nj over the classes n of tasks from j on, with w the softmax of cos(p_oi, p_ni).
    let internal complete (means: torch.Tensor[]) : torch.Tensor[] =
        let first = firstRows means

        let synthesised i j =
            let old = means[i].narrow(0L, 0L, first[i + 1] - first[i]) // of task i, in its own subspace
            let later = means[i].narrow(0L, first[j] - first[i], means[j].shape[0]) // of tasks from j on
            let cosines = (CosineClassifier.unit old).mm((CosineClassifier.unit later).t())
            (cosines.softmax 1L).mm means[j]

        Scope.noGrad Leaves.tensors (fun () ->
            Array.init means.Length (fun j ->
                torch.cat ([| yield! Array.init j (fun i -> synthesised i j); means[j] |], 0L)))

    /// Per subspace the weights [classes, d] of which a class's score is the sum of products with unit features: unit means,
    /// times 1 in the class's own subspace and times α over the number of the others elsewhere.
    let internal weights (alpha: float) (means: torch.Tensor[]) : torch.Tensor[] =
        let others = alpha / float (max (means.Length - 1) 1)
        let first = firstRows means

        Scope.noGrad Leaves.tensors (fun () ->
            complete means
            |> Array.mapi (fun j all ->
                let rows = CosineClassifier.unit all
                let next = if j + 1 < means.Length then first[j + 1] else rows.shape[0]
                let parts = rows.split [| first[j]; next - first[j]; rows.shape[0] - next |]
                let scaled i = parts[i].mul(Number.Of others)
                torch.cat ([| scaled 0; parts[1]; scaled 2 |], 0L)))

    let private merge settings vit (training: Training) : State =
        let state, task = training.State, training.Session.Task
        let master = Precision.master (vit: VisionTransformer).Precision

        Scope.noGrad (stateTree settings).Leaves (fun () ->
            let adapters = Array.append state.Adapters [| training.Session.Mlp |]

            { state with
                Adapters = adapters
                Sums =
                    adapters
                    |> Array.map (fun _ -> ClassSums.zero task.Classes.Length vit.Width master vit.Device)
            })

    // The features are those of the first subspace.
    let private consolidate settings vit (batch: Batch) (features: torch.Tensor) (state: State) : State =
        Scope.noGrad (stateTree settings).Leaves (fun () ->
            let local = batch.Labels.sub (Number.Of(classes state.Means))
            let frozen = VisionTransformer.frozen vit

            let add j sums =
                let features =
                    if j = 0 then
                        features
                    else
                        VisionTransformer.features { frozen with Mlp = state.Adapters[j] } vit batch.Images

                ClassSums.observe features local sums

            { state with
                Sums = Array.mapi add state.Sums
            })

    let private finish settings (state: State) : State =
        if Array.isEmpty state.Sums then
            state
        else
            let nameOf row =
                $"class in row {classes state.Means + int64 row}"

            let append j sums =
                let means = ClassSums.means nameOf sums

                match Array.tryItem j state.Means with
                | Some earlier -> torch.cat ([| earlier; means |], 0L)
                | None -> means

            Scope.noGrad (stateTree settings).Leaves (fun () ->
                { state with
                    Means = Array.mapi append state.Sums
                    Sums = [||]
                })

    let private forget settings row (state: State) : State =
        Scope.noGrad (stateTree settings).Leaves (fun () ->
            let without first (own: torch.Tensor) =
                if int64 row < first then
                    own
                else
                    ClassSums.withoutRow (row - int first) own

            { state with
                Means = Array.map2 without (firstRows state.Means) state.Means
            })

    let private logits settings vit (state: State) : OwnScores =
        Scope.noGrad OwnScores.leaves (fun () ->
            let weights = weights settings.Alpha state.Means
            let frozen = VisionTransformer.frozen vit
            let networks = Array.map AdapterSession.copied state.Adapters

            let score images =
                Scope.noGrad Leaves.tensor (fun () ->
                    Array.map2
                        (fun mlp (weights: torch.Tensor) ->
                            let features = VisionTransformer.features { frozen with Mlp = mlp } vit images
                            (CosineClassifier.unit features).mm(weights.t ()))
                        networks
                        weights
                    |> Array.reduce (fun sum part -> sum.plus part))

            let owned =
                [|
                    yield! weights
                    yield! Adapters.leaves frozen
                    yield! (Tree.array (AdapterSession.mlpTree settings.Adapter)).Leaves networks
                |]

            OwnScores.OfImages(Scorer.create owned score))

    /// The method with its types.
    let internal typed (vit: VisionTransformer) (settings: EaseSettings) : Method<State, Training, Training> =
        AdapterSession.check settings.Adapter

        if not (settings.Alpha >= 0.0 && settings.Alpha < infinity) then
            Errors.reject "alpha" "must be finite and at least 0" $"{settings.Alpha}" ""

        {
            Info = info
            State = stateTree settings
            Observing = trainingTree settings vit
            Training = trainingTree settings vit
            Start =
                fun _ ->
                    {
                        Adapters = [||]
                        Means = [||]
                        Sums = [||]
                    }
            Observes = fun _ -> false
            Trains = fun _ -> true
            BeginTask =
                fun key task state ->
                    {
                        State = state
                        Session = AdapterSession.start settings.Adapter vit key task
                    }
            Observe = fun _ training -> training
            Prepare = id
            Update =
                fun rates batch training ->
                    let struct (session, report) =
                        AdapterSession.update settings.Adapter vit rates batch training.Session

                    struct ({ training with Session = session }, report)
            Diagnostics = fun _ -> Diagnostics.none
            Merge = merge settings vit
            Consolidate = consolidate settings vit
            Finish = finish settings
            Forget = forget settings
            Adapters =
                fun state ->
                    AdapterSession.network vit (Array.tryHead state.Adapters |> Option.defaultValue [||])
            Logits = Some(logits settings vit)
        }

    /// <summary>The method over a backbone. `Rates.Network` is the rate of the adapters.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">`published`, or others.</param>
    /// <returns>The method over hidden states; its own classifier takes a forward pass per task.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range.</exception>
    let method' (vit: VisionTransformer) (settings: EaseSettings) : AnyMethod =
        Method.hide (typed vit settings)
