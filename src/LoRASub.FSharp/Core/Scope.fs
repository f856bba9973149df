namespace LoRASub

open System
open System.Collections.Generic
open TorchSharp

/// Lists the tensors that a value owns, so that `Scope` can hand exactly those to the caller.
type Leaves<'T> = 'T -> torch.Tensor seq

[<RequireQualifiedAccess>]
module Leaves =
    let none: Leaves<'T> = fun _ -> Seq.empty
    let tensor: Leaves<torch.Tensor> = Seq.singleton
    let tensors: Leaves<torch.Tensor[]> = fun all -> all
    let first (leaves: Leaves<'A>) : Leaves<struct ('A * 'B)> = fun struct (a, _) -> leaves a

    let both (left: Leaves<'A>) (right: Leaves<'B>) : Leaves<struct ('A * 'B)> =
        fun struct (a, b) -> Seq.append (left a) (right b)

    let array (leaves: Leaves<'T>) : Leaves<'T[]> = Seq.collect leaves
    let option (leaves: Leaves<'T>) : Leaves<'T option> = Option.toList >> Seq.collect leaves

/// The only lifetime code. Rule of the library: a function borrows its arguments and owns its result.
[<RequireQualifiedAccess>]
module Scope =

    let private distinct (tensors: torch.Tensor seq) =
        HashSet<torch.Tensor>(tensors, HashIdentity.Reference)

    /// Runs `f` and frees every tensor made in it except the leaves of its result. Leaves that existed before stay
    /// where they were.
    let keep (leaves: Leaves<'T>) (f: unit -> 'T) : 'T =
        use scope = torch.NewDisposeScope()
        let result = f ()

        for tensor in distinct (leaves result) do
            scope.MoveToOuter tensor |> ignore

        result

    /// Runs `f` and frees every tensor made in it.
    let run (f: unit -> 'T) : 'T = keep Leaves.none f

    /// `keep` without gradients.
    let noGrad (leaves: Leaves<'T>) (f: unit -> 'T) : 'T =
        use _ = torch.no_grad ()
        keep leaves f

    /// Frees the leaves of a value.
    let free (leaves: Leaves<'T>) (value: 'T) =
        for tensor in distinct (leaves value) do
            tensor.Dispose()

    /// The value, its leaves out of every scope: for an owner that outlives the caller's scopes.
    let detach (leaves: Leaves<'T>) (value: 'T) : 'T =
        for tensor in distinct (leaves value) do
            tensor.DetachFromDisposeScope() |> ignore

        value

    /// Frees the leaves of `previous` that none of `kept` holds.
    let supersede (leaves: Leaves<'S>) (kept: 'S seq) (previous: 'S) =
        let held = distinct (Seq.collect leaves kept)

        for tensor in distinct (leaves previous) do
            if not (held.Contains tensor) then
                tensor.Dispose()

    /// Folds pure steps over items, freeing what each step makes obsolete, also when a step fails. The initial state
    /// is borrowed, the result owned; without items the result is the initial state itself.
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

    /// A handle that frees the leaves of a value when disposed: for `use` in F# and `using` in C#.
    let own (leaves: Leaves<'T>) (value: 'T) : IDisposable =
        { new IDisposable with
            member _.Dispose() = free leaves value
        }
