namespace LoRASub.Train

open LoRASub.Core
open TorchSharp

/// Settings of Adam (Kingma & Ba 2015).
type AdamOptions =
    {
        /// Decay of the first moment, in [0, 1).
        Beta1: float
        /// Decay of the second moment, in [0, 1).
        Beta2: float
        /// Added to √v, before bias correction.
        Epsilon: float
        /// L2 penalty, added to the gradient.
        WeightDecay: float
        /// Divide by the largest second moment so far (Reddi et al. 2018).
        AmsGrad: bool
    }

/// Moments per parameter. A parameter without a gradient keeps its own, and its step count.
[<ReferenceEquality>]
type AdamState =
    {
        /// Steps taken, per parameter.
        Steps: int64[]
        /// First moments, each of its parameter's shape.
        Mu: torch.Tensor[]
        /// Second moments, likewise.
        Nu: torch.Tensor[]
        /// Largest Nu so far; empty without AMSGrad.
        NuMax: torch.Tensor[]
    }

/// Adam as a transformation.
[<RequireQualifiedAccess>]
module Adam =

    /// <summary>β 0.9 and 0.999, ε 1e-8, no weight decay, no AMSGrad: the published choice.</summary>
    let defaults =
        {
            Beta1 = 0.9
            Beta2 = 0.999
            Epsilon = 1e-8
            WeightDecay = 0.0
            AmsGrad = false
        }

    /// <summary>The tensors and step counts of a state.</summary>
    let tree: Tree<AdamState> =
        let tensors = Tree.array Tree.tensor

        tree {
            let! steps = Tree.field "steps" _.Steps Tree.int64s
            and! mu = Tree.field "mu" _.Mu tensors
            and! nu = Tree.field "nu" _.Nu tensors
            and! nuMax = Tree.field "numax" _.NuMax tensors

            return
                {
                    Steps = steps
                    Mu = mu
                    Nu = nu
                    NuMax = nuMax
                }
        }

    /// Rejects a learning rate, ε or weight decay below 0 and a β outside [0, 1).
    let internal check (learningRate: float) (options: AdamOptions) =
        let notNegative name value =
            if not (value >= 0.0 && value < infinity) then
                Errors.reject name "must be finite and at least 0" $"{value}" ""

        let decay name value =
            if not (value >= 0.0 && value < 1.0) then
                Errors.reject name "must be in [0, 1)" $"{value}" ""

        notNegative "learning rate" learningRate
        notNegative "Adam epsilon" options.Epsilon
        notNegative "weight decay" options.WeightDecay
        decay "Adam beta 1" options.Beta1
        decay "Adam beta 2" options.Beta2

    /// <summary>u = −η·√(1−β₂ˢ)/(1−β₁ˢ)·m/(√v + ε). Kingma &amp; Ba 2015, algorithm 1 in the efficient order
    /// of their section 2: ε is not scaled by the bias correction, as in the published code and unlike
    /// torch.optim.Adam.</summary>
    /// <param name="learningRate">η, finite and at least 0.</param>
    /// <param name="options">Decays, ε, weight decay and AMSGrad.</param>
    /// <returns>The transformation; its updates have their parameters' shape and type. It rejects a sparse
    /// gradient and one of another shape, type or device than its parameter.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learning rate or an option is out of range.</exception>
    let transform (learningRate: float) (options: AdamOptions) : Transform<AdamState> =
        check learningRate options
        let number (x: float) = Number.Of x

        let init (parameters: torch.Tensor[]) =
            let zeros () =
                parameters |> Array.map torch.zeros_like

            {
                Steps = Array.zeroCreate parameters.Length
                Mu = zeros ()
                Nu = zeros ()
                NuMax = if options.AmsGrad then zeros () else [||]
            }

        let update (gradients: Gradients) (state: AdamState) (parameters: torch.Tensor[]) =
            let steps = Array.copy state.Steps
            let mu, nu, nuMax = Array.copy state.Mu, Array.copy state.Nu, Array.copy state.NuMax

            let one i (gradient: torch.Tensor) =
                let parameter = parameters[i]
                Transform.checkGradient i parameter gradient

                let gradient =
                    if options.WeightDecay = 0.0 then
                        gradient
                    else
                        gradient.add (parameter, number options.WeightDecay)

                steps[i] <- state.Steps[i] + 1L
                mu[i] <- state.Mu[i].mul(number options.Beta1).add_(gradient, number (1.0 - options.Beta1))

                nu[i] <-
                    state.Nu[i]
                        .mul(number options.Beta2)
                        .addcmul_(gradient, gradient, number (1.0 - options.Beta2))

                let spread =
                    if options.AmsGrad then
                        nuMax[i] <- torch.maximum (state.NuMax[i], nu[i])
                        nuMax[i]
                    else
                        nu[i]

                let s = float steps[i]

                let rate =
                    learningRate * sqrt (1.0 - options.Beta2 ** s) / (1.0 - options.Beta1 ** s)

                mu[i].div(spread.sqrt().plus_(number options.Epsilon)).mul_(number -rate)

            let updates =
                gradients |> Array.mapi (fun i gradient -> Option.map (one i) gradient)

            struct (updates,
                    {
                        Steps = steps
                        Mu = mu
                        Nu = nu
                        NuMax = nuMax
                    })

        {
            Init = init
            Update = update
            Tree = tree
        }
