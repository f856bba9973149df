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

[<RequireQualifiedAccess>]
module Transform =

    /// A transformation without memory, of one gradient and its parameter at a time; `f` gets the position as well.
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

    /// Feeds the updates of `first` to `second`.
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

    /// Gives each parameter the transformation of its group: `groupOf[i]` is an index into `groups`.
    /// Rejects an unknown group, and a number of parameters that differs from `groupOf`.
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

    /// One step: the updates added to the parameters. Borrows everything; parameters without an update are returned
    /// as they are, the others and the state are owned by the caller.
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
                        | Some(u: torch.Tensor) -> parameter.add u
                        | None -> parameter)
                    parameters
                    updates

            struct (stepped, next))
