namespace LoRASub.Train

open LoRASub.Core
open TorchSharp

/// A gradient transformation: a pair of pure functions over parallel arrays of tensors, after optax. A None gradient
/// (the loss does not depend on that parameter) passes through as None and changes nothing.
type Transform<'S> =
    {
        /// State for parameters; borrows them.
        Init: torch.Tensor[] -> 'S
        /// gradients -> state -> parameters -> (updates, next state); borrows all, owns its result.
        Update: Gradients -> 'S -> torch.Tensor[] -> struct (Gradients * 'S)
        /// The tensors of a state.
        Tree: Tree<'S>
    }

/// Transformations of gradients.
[<RequireQualifiedAccess>]
module Transform =

    /// <summary>A transformation without memory, of one gradient at a time.</summary>
    /// <param name="f">Position, gradient and parameter to update; borrows both tensors, owns its result. It
    /// is called for gradients that are present.</param>
    /// <returns>The transformation.</returns>
    let stateless (f: int -> torch.Tensor -> torch.Tensor -> torch.Tensor) : Transform<unit> =
        {
            Init = ignore
            Update =
                fun gradients () parameters ->
                    let update i gradient =
                        gradient |> Option.map (fun g -> f i g parameters[i])

                    struct (Array.mapi update gradients, ())
            Tree = Tree.unit
        }

    /// Rejects a sparse gradient, and one of another shape, type or device than its parameter.
    let internal checkGradient (i: int) (parameter: torch.Tensor) (gradient: torch.Tensor) =
        if gradient.is_sparse then
            Errors.reject $"gradient {i}" "must be dense" "a sparse tensor" ""

        if gradient.shape <> parameter.shape then
            let rule = $"must have its parameter's shape {Shape.text parameter.shape}"
            Errors.reject $"gradient {i}" rule (Shape.text gradient.shape) ""

        Shape.expectLike $"gradient {i}" parameter gradient

    /// <summary>Feeds the updates of one transformation to another.</summary>
    /// <param name="first">Gets the gradients.</param>
    /// <param name="second">Gets the updates of the first.</param>
    /// <returns>The transformation from gradients to the updates of the second.</returns>
    let chain (first: Transform<'A>) (second: Transform<'B>) : Transform<struct ('A * 'B)> =
        {
            Init = fun parameters -> struct (first.Init parameters, second.Init parameters)
            Update =
                fun gradients struct (a, b) parameters ->
                    let struct (between, a) = first.Update gradients a parameters
                    let struct (updates, b) = second.Update between b parameters
                    struct (updates, struct (a, b))
            Tree = Tree.pair "first" first.Tree "second" second.Tree
        }

    /// <summary>Gives each parameter the transformation of its group.</summary>
    /// <param name="groupOf">The index into `groups` of each parameter.</param>
    /// <param name="groups">The transformations.</param>
    /// <returns>A transformation of as many parameters as `groupOf` has; it rejects another number.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An index is not one of a group.</exception>
    let partition (groupOf: int[]) (groups: Transform<'S>[]) : Transform<'S[]> =
        groupOf
        |> Array.iteri (fun i g ->
            if g < 0 || g >= groups.Length then
                Errors.reject $"group of parameter {i}" $"must be in [0, {groups.Length - 1}]" $"{g}" "")

        let checkCount (parameters: torch.Tensor[]) =
            if parameters.Length <> groupOf.Length then
                Errors.reject
                    "parameters"
                    $"must be {groupOf.Length}, one per group index"
                    $"{parameters.Length}"
                    ""

        let members =
            groups
            |> Array.mapi (fun g _ ->
                [|
                    for i in 0 .. groupOf.Length - 1 do
                        if groupOf[i] = g then
                            i
                |])

        let pick (all: 'T[]) (indices: int[]) = indices |> Array.map (fun i -> all[i])

        {
            Init =
                fun parameters ->
                    checkCount parameters
                    Array.map2 (fun group at -> group.Init(pick parameters at)) groups members
            Update =
                fun gradients states parameters ->
                    checkCount parameters
                    let updates: Gradients = Array.create parameters.Length None

                    let next =
                        Array.map3
                            (fun (group: Transform<'S>) state at ->
                                let struct (some, state) =
                                    group.Update (pick gradients at) state (pick parameters at)

                                Array.iter2 (fun i update -> updates[i] <- update) at some
                                state)
                            groups
                            states
                            members

                    struct (updates, next)
            Tree = Tree.items (fun g -> groups[g].Tree)
        }

    /// <summary>One step: the updates added to the parameters.</summary>
    /// <param name="transform">Makes updates of gradients.</param>
    /// <param name="gradients">One per parameter; borrowed.</param>
    /// <param name="state">Of the transformation; borrowed.</param>
    /// <param name="parameters">Borrowed.</param>
    /// <returns>The new parameters and the next state. A parameter without an update is the given tensor
    /// itself; the other tensors are owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The number of gradients is not that of the parameters, or
    /// what the transformation rejects.</exception>
    let step (transform: Transform<'S>) (gradients: Gradients) (state: 'S) (parameters: torch.Tensor[]) =
        if gradients.Length <> parameters.Length then
            Errors.reject
                "gradients"
                $"must be {parameters.Length}, one per parameter"
                $"{gradients.Length}"
                ""

        Scope.noGrad (Leaves.both Leaves.tensors transform.Tree.Leaves) (fun () ->
            let struct (updates, next) = transform.Update gradients state parameters

            let stepped =
                Array.map2
                    (fun (parameter: torch.Tensor) update ->
                        match update with
                        | Some(u: torch.Tensor) -> parameter.plus u
                        | None -> parameter)
                    parameters
                    updates

            struct (stepped, next))
