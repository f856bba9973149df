namespace LoRASub.Backbone

open System
open System.Collections.Generic
open LoRASub.Core
open TorchSharp

/// Runs a function without a graph, and once more with one when its gradient is asked for: its inputs are all that is
/// kept in between (Chen et al. 2016, arXiv 1604.06174).
type internal Recomputed() =
    inherit CustomFunction<Recomputed>()

    // the function, then its inputs
    override _.Value(ctx, arguments) =
        let f = arguments[0] :?> (torch.Tensor[] -> torch.Tensor)
        let inputs = arguments[1..] |> Array.map (fun t -> t :?> torch.Tensor)
        ctx.save_data ("function", f)
        ctx.save_for_backward (List inputs)
        f inputs

    override _.Gradients(ctx, saved, gradient) =
        let f = ctx.get_data "function" :?> (torch.Tensor[] -> torch.Tensor)
        use _ = torch.enable_grad ()
        let inputs = saved |> Array.map (fun t -> t.detach().requires_grad_ t.requires_grad)
        let trained = inputs |> Array.filter _.requires_grad
        torch.autograd.backward ([| f inputs |], [| gradient |], Nullable(), false, trained)

        [|
            null
            yield! inputs |> Array.map (fun t -> if t.requires_grad then t.grad else null)
        |]

/// Memory for time: blocks run again in the backward pass instead of keeping their activations.
[<RequireQualifiedAccess>]
module internal Recomputation =

    /// f inputs, whose activations are computed again for the gradient. f must give the same for the same inputs.
    let run (f: torch.Tensor[] -> torch.Tensor) (inputs: torch.Tensor[]) : torch.Tensor =
        Recomputed.Of [| box f; yield! Array.map box inputs |]
