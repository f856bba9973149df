namespace LoRASub.Train

open LoRASub.Core
open TorchSharp

/// Settings of stochastic gradient descent.
type SgdOptions =
    {
        /// Share of its velocity that a parameter keeps in each step, in [0, 1).
        Momentum: float
        /// L2 penalty, added to the gradient.
        WeightDecay: float
    }

/// A velocity per parameter, of its shape.
[<ReferenceEquality>]
type SgdState = { Velocity: torch.Tensor[] }

/// Stochastic gradient descent with momentum as a transformation.
[<RequireQualifiedAccess>]
module Sgd =

    /// <summary>The tensors of a state.</summary>
    let tree: Tree<SgdState> =
        tree {
            let! velocity = Tree.field "velocity" _.Velocity (Tree.array Tree.tensor)
            return { Velocity = velocity }
        }

    /// Rejects a learning rate or weight decay below 0 and a momentum outside [0, 1).
    let internal check (learningRate: float) (options: SgdOptions) =
        for name, value in [ "learning rate", learningRate; "weight decay", options.WeightDecay ] do
            if not (value >= 0.0 && value < infinity) then
                Errors.reject name "must be finite and at least 0" $"{value}" ""

        if not (options.Momentum >= 0.0 && options.Momentum < 1.0) then
            Errors.reject "momentum" "must be in [0, 1)" $"{options.Momentum}" ""

    /// <summary>v ← μ·v + g + λ·p, u = −η·v, from v = 0: Polyak 1964 in the form of torch.optim.SGD, whose velocity
    /// does not depend on the learning rate.</summary>
    /// <param name="learningRate">η, finite and at least 0.</param>
    /// <param name="options">Momentum μ and weight decay λ.</param>
    /// <returns>The transformation; its updates have their parameters' shape and type. A parameter without a gradient
    /// keeps its velocity. It rejects a sparse gradient and one of another shape, type or device than its
    /// parameter.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learning rate or an option is out of range.</exception>
    let transform (learningRate: float) (options: SgdOptions) : Transform<SgdState> =
        check learningRate options
        let number (x: float) = Number.Of x

        let update (gradients: Gradients) (state: SgdState) (parameters: torch.Tensor[]) =
            let velocity = Array.copy state.Velocity

            let one i (gradient: torch.Tensor) =
                Transform.checkGradient i parameters[i] gradient

                velocity[i] <-
                    state.Velocity[i]
                        .mul(number options.Momentum)
                        .plus_(gradient)
                        .add_(parameters[i], number options.WeightDecay)

                velocity[i].mul(number -learningRate)

            let updates = gradients |> Array.mapi (fun i -> Option.map (one i))
            struct (updates, { Velocity = velocity })

        {
            Init =
                fun parameters ->
                    {
                        Velocity = Array.map torch.zeros_like parameters
                    }
            Update = update
            Tree = tree
        }
