namespace LoRASub.Core

open System
open System.Collections.Generic
open TorchSharp

/// Lists the tensors that a value owns, so that `Scope` can hand exactly those to the caller.
type Leaves<'T> = 'T -> torch.Tensor seq

/// Leaves of the values that records are made of.
[<RequireQualifiedAccess>]
module Leaves =
    /// <summary>A value that owns no tensor.</summary>
    /// <param name="value">Not read.</param>
    /// <returns>No leaves.</returns>
    let none (value: 'T) : torch.Tensor seq =
        ignore value
        Seq.empty

    /// <summary>A tensor, which is its own leaf.</summary>
    let tensor: Leaves<torch.Tensor> = Seq.singleton
    /// <summary>An array of tensors.</summary>
    let tensors: Leaves<torch.Tensor[]> = Seq.ofArray

    /// <summary>The leaves of the first of two values; the second owns none.</summary>
    /// <param name="leaves">Lists the tensors of the first.</param>
    /// <param name="pair">The two values, borrowed.</param>
    /// <returns>The leaves of the pair.</returns>
    let first (leaves: Leaves<'A>) (pair: struct ('A * 'B)) : torch.Tensor seq =
        let struct (a, _) = pair
        leaves a

    /// <summary>The leaves of two values.</summary>
    /// <param name="left">Lists the tensors of the first.</param>
    /// <param name="right">Lists the tensors of the second.</param>
    /// <param name="pair">The two values, borrowed.</param>
    /// <returns>The leaves of the pair.</returns>
    let both (left: Leaves<'A>) (right: Leaves<'B>) (pair: struct ('A * 'B)) : torch.Tensor seq =
        let struct (a, b) = pair
        Seq.append (left a) (right b)

    /// <summary>The leaves of every item of an array.</summary>
    /// <param name="leaves">Lists the tensors of an item.</param>
    /// <returns>The leaves of the array.</returns>
    let array (leaves: Leaves<'T>) : Leaves<'T[]> = Seq.collect leaves
    /// <summary>The leaves of a value that may be absent.</summary>
    /// <param name="leaves">Lists the tensors of the value.</param>
    /// <returns>No leaves for None.</returns>
    let option (leaves: Leaves<'T>) : Leaves<'T option> = Option.toList >> Seq.collect leaves

/// The only lifetime code. Rule of the library: a function borrows its arguments and owns its result.
[<RequireQualifiedAccess>]
module Scope =

    let private distinct (tensors: torch.Tensor seq) =
        HashSet<torch.Tensor>(tensors, HashIdentity.Reference)

    /// <summary>Runs a function and frees every tensor made in it except the leaves of its result. Leaves that
    /// were there before stay where they were.</summary>
    /// <param name="leaves">Lists the tensors of the result.</param>
    /// <param name="f">The function. Its exceptions reach the caller.</param>
    /// <returns>The result, its leaves owned by the caller or the scope around.</returns>
    let keep (leaves: Leaves<'T>) (f: unit -> 'T) : 'T =
        use scope = torch.NewDisposeScope()
        let result = f ()

        for tensor in distinct (leaves result) do
            scope.MoveToOuter tensor |> ignore

        result

    /// <summary>Runs a function and frees every tensor made in it.</summary>
    /// <param name="f">The function; its result must own no tensor.</param>
    /// <returns>The result.</returns>
    let run (f: unit -> 'T) : 'T = keep Leaves.none f

    /// <summary>Does as `keep`, without gradients.</summary>
    /// <param name="leaves">Lists the tensors of the result.</param>
    /// <param name="f">The function. Its exceptions reach the caller.</param>
    /// <returns>The result, its leaves owned by the caller or the scope around.</returns>
    let noGrad (leaves: Leaves<'T>) (f: unit -> 'T) : 'T =
        use _ = torch.no_grad ()
        keep leaves f

    /// <summary>Frees the tensors of a value.</summary>
    /// <param name="leaves">Lists the tensors of the value.</param>
    /// <param name="value">Unusable afterwards.</param>
    let free (leaves: Leaves<'T>) (value: 'T) =
        for tensor in distinct (leaves value) do
            tensor.Dispose()

    /// <summary>Takes the tensors of a value out of every scope, for an owner that outlives the scopes of the
    /// caller.</summary>
    /// <param name="leaves">Lists the tensors of the value.</param>
    /// <param name="value">The value.</param>
    /// <returns>The value itself, whose owner must free it.</returns>
    let detach (leaves: Leaves<'T>) (value: 'T) : 'T =
        for tensor in distinct (leaves value) do
            tensor.DetachFromDisposeScope() |> ignore

        value

    /// <summary>Frees the tensors of a value that no newer value holds.</summary>
    /// <param name="leaves">Lists the tensors of a value.</param>
    /// <param name="kept">The values that stay.</param>
    /// <param name="previous">The value that is replaced.</param>
    let supersede (leaves: Leaves<'S>) (kept: 'S seq) (previous: 'S) =
        let held = distinct (Seq.collect leaves kept)

        for tensor in distinct (leaves previous) do
            if not (held.Contains tensor) then
                tensor.Dispose()

    /// <summary>Folds pure steps over items and frees what each step makes obsolete, also when a step
    /// fails.</summary>
    /// <param name="leaves">Lists the tensors of a state.</param>
    /// <param name="step">Borrows the state and returns the next one.</param>
    /// <param name="initial">Borrowed.</param>
    /// <param name="items">Read one by one.</param>
    /// <returns>The last state, owned by the caller; without items the initial state itself.</returns>
    let fold (leaves: Leaves<'S>) (step: 'S -> 'T -> 'S) (initial: 'S) (items: 'T seq) : 'S =
        let mutable state = initial

        try
            for item in items do
                let previous = state
                state <- keep leaves (fun () -> step previous item)
                supersede leaves [ state; initial ] previous

            state
        with _ ->
            supersede leaves [ initial ] state
            reraise ()

    /// <summary>A handle that frees the tensors of a value when it is disposed: for `use` in F# and `using` in
    /// C#.</summary>
    /// <param name="leaves">Lists the tensors of the value.</param>
    /// <param name="value">Must not be used after the handle is disposed.</param>
    /// <returns>The handle.</returns>
    let own (leaves: Leaves<'T>) (value: 'T) : IDisposable =
        { new IDisposable with
            member _.Dispose() = free leaves value
        }
