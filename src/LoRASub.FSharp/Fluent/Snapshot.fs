namespace LoRASub.Fluent

open System.Threading
open LoRASub.Core
open LoRASub.Learn
open LoRASub.Run

/// Counts the users of something and frees it after the last one. Its maker is the first.
[<Sealed>]
type internal Users(free: unit -> unit) =
    let mutable count = 1

    /// While there is a user already.
    member _.Join() = Interlocked.Increment &count |> ignore

    member _.Leave() =
        if Interlocked.Decrement &count = 0 then
            free ()

/// A classifier between two changes: immutable, for any number of threads, and freed after its last user.
[<Sealed>]
type internal Snapshot
    private (kept: KeptLearner, sources: string list, adaptation: string option, backbone: Users) =
    let gate = obj ()
    let mutable model: Model option = None

    let users =
        Users(fun () ->
            Option.iter (Scope.free Model.leaves) model
            Scope.free TaskState.leaves kept.State
            backbone.Leave())

    do backbone.Join()

    /// What `build` gives: a learner over a backbone with its users, the folders of the images learned, and why it was
    /// or was not adapted.
    static member Of
        (backbone: Users, build: unit -> struct (KeptLearner * string list * string option))
        : Snapshot =
        // states share tensors; handles of its own let each be freed without regard to the others
        let own (kept: KeptLearner) =
            { kept with
                State = Tree.map _.alias() (Learner.tree kept.Learner kept.State) kept.State
            }

        let struct (kept, sources, adaptation) =
            Scope.keep (fun struct (kept: KeptLearner, _, _) -> TaskState.leaves kept.State) (fun () ->
                let struct (kept, sources, adaptation) = build ()
                struct (own kept, sources, adaptation))

        // it outlives the scopes of the caller
        Scope.detach TaskState.leaves kept.State |> ignore
        new Snapshot(kept, sources, adaptation, backbone)

    member _.Kept = kept
    member _.Sources = sources
    member _.Adaptation = adaptation
    member _.Join() = users.Join()
    member _.Leave() = users.Leave()

    /// Ready to predict; made when it is first asked for.
    member _.Model: Model =
        lock gate (fun () ->
            match model with
            | Some model -> model
            | None ->
                let made = Scope.detach Model.leaves (Learner.deploy kept.Learner kept.State)
                model <- Some made
                made)
