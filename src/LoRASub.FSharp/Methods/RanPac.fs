namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open TorchSharp

/// The network of RanPAC: M. McDonnell et al., NeurIPS 2023, arXiv 2307.02251. The first task trains MLP adapters with a
/// cosine classifier, which is dropped afterwards; then the network stays as it is. The paper's classifier, a random
/// projection with ridge regression, is a head over these features.
[<RequireQualifiedAccess>]
module RanPac =

    /// <summary>The settings for CIFAR-100, which trains at a rate of 0.01. The dropout is that of AdaptFormer's
    /// code, which RanPAC's adapters come from.</summary>
    let published: AdapterOptions =
        {
            Hidden = 64
            Scale = 0.1
            Dropout = 0.1
            Sgd = { Momentum = 0.9; WeightDecay = 5e-4 }
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "ranpac"
            Summary = "MLP adapters trained on the first task, then frozen"
            Source = "McDonnell et al., NeurIPS 2023, arXiv 2307.02251"
            Stores =
                "an MLP adapter of width h per block, once: 4·L·(2·d·h + d + h) bytes; nothing per class or later task"
            Trains = true
            Joint = false
        }

    /// A task, with its session if it is the first one.
    [<ReferenceEquality>]
    type internal Phase =
        {
            /// An adapter per block, none before the first task; borrowed.
            State: MlpAdapter[]
            Session: AdapterSession option
        }

    let private phaseTree options vit task (state: MlpAdapter[]) : Tree<Phase> =
        tree {
            let! state = Tree.given _.State state

            and! session =
                Tree.field "session" _.Session (Tree.option (AdapterSession.tree options vit task))

            return { State = state; Session = session }
        }

    let private trains (task: LearningTask) = task.Index = 0

    let private update options vit rates batch (phase: Phase) =
        match phase.Session with
        | None ->
            Errors.reject
                $"method {info.Name}"
                "must not be trained after the first task"
                "a training step"
                ""
        | Some session ->
            let struct (session, report) = AdapterSession.update options vit rates batch session
            struct ({ phase with Session = Some session }, report)

    /// The method with its types.
    let internal typed
        (vit: VisionTransformer)
        (options: AdapterOptions)
        : Method<MlpAdapter[], Phase, Phase> =
        AdapterSession.check options

        {
            Info = info
            State = Tree.field "adapters" id (AdapterSession.mlpTree options)
            Observing = phaseTree options vit
            Training = phaseTree options vit
            Start = fun _ -> [||]
            Observes = fun _ -> false
            Trains = trains
            BeginTask =
                fun key task state ->
                    {
                        State = state
                        Session =
                            if trains task then
                                Some(AdapterSession.start options vit key task)
                            else
                                None
                    }
            Observe = fun _ phase -> phase
            Prepare = id
            Update = update options vit
            Diagnostics = fun _ -> Diagnostics.none
            Merge =
                fun phase ->
                    match phase.Session with
                    | Some session -> session.Mlp
                    | None -> phase.State
            Consolidate = fun _ _ state -> state
            Finish = id
            Forget = fun _ state -> state
            Adapters = AdapterSession.network vit
            Logits = None
        }

    /// <summary>The method over a backbone. `Rates.Network` is the rate of the adapters.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="options">`published`, or others.</param>
    /// <returns>The method over hidden states.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An option is out of range.</exception>
    let method' (vit: VisionTransformer) (options: AdapterOptions) : AnyMethod =
        Method.hide (typed vit options)
