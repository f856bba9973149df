namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone

/// The baseline that trains nothing: the head alone learns, from the frozen backbone's features. With the nearest mean
/// it is SimpleCIL (Zhou et al. 2023).
[<RequireQualifiedAccess>]
module Frozen =

    /// <summary>Its name, its paper and what it stores: nothing.</summary>
    let info: MethodInfo =
        {
            Name = "frozen"
            Summary = "no training: statistics of the frozen backbone's features"
            Source = "Zhou et al. 2023, SimpleCIL"
            Stores = "nothing"
            Trains = false
            Joint = false
        }

    /// <summary>The method over a backbone.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <returns>The method, whose state is empty. `Update` is never called, as no task trains.</returns>
    let method' (vit: VisionTransformer) : Method<unit, unit, unit> =
        {
            Info = info
            State = Tree.unit
            Observing = fun _ () -> Tree.unit
            Training = fun _ () -> Tree.unit
            Start = ignore
            Observes = fun _ -> false
            Trains = fun _ -> false
            BeginTask = fun _ _ () -> ()
            Observe = fun _ () -> ()
            Prepare = ignore
            Update =
                fun _ _ () ->
                    Errors.reject "method frozen" "must not be trained" "a training step" "use 0 epochs"
            Diagnostics = fun () -> Diagnostics.none
            Merge = ignore
            Consolidate = fun _ _ () -> ()
            Finish = ignore
            Forget = fun _ () -> ()
            Adapters = fun () -> VisionTransformer.frozen vit
            Logits = None
        }
