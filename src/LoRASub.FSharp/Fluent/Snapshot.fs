namespace LoRASub.Fluent

open System.Threading
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
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

    /// The users of a backbone, which is freed after the last.
    static member OwnBackbone(backbone: VisionTransformer) : Users =
        let backbone = Scope.detach VisionTransformer.leaves backbone
        Users(fun () -> Scope.free VisionTransformer.leaves backbone)

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

    /// The best classes of some images of a set. Makes the model when it is first called.
    member _.Best(falseAlarms: float, count: int, images: ImageSet, positions: int[]) : Answer[] =
        let model =
            lock gate (fun () ->
                match model with
                | Some model -> model
                | None ->
                    let made = Scope.detach Model.leaves (Learner.deploy kept.Learner kept.State)
                    model <- Some made
                    made)

        let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone
        let calibration = KeptLearner.calibration falseAlarms kept
        ImageTask.best count kept.Learner batching model calibration images positions
