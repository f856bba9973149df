namespace LoRASub.Core

open System
open TorchSharp

/// A gradient per parameter; None where the value does not depend on it.
type Gradients = torch.Tensor option[]

/// Gradients as values, which leave parameters as they were.
[<RequireQualifiedAccess>]
module Grad =

    /// <summary>Value, further results and gradients of a scalar function.</summary>
    /// <param name="f">Gives a tensor of one element, and tensors to pass on.</param>
    /// <param name="parameters">Borrowed; their state and their gradients stay as they were.</param>
    /// <returns>Value, further results and a gradient for each parameter, owned by the caller and without a
    /// graph.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The value has more than one element.</exception>
    let valueAndGradWith
        (f: torch.Tensor[] -> struct (torch.Tensor * torch.Tensor[]))
        (parameters: torch.Tensor[])
        : struct (torch.Tensor * torch.Tensor[] * Gradients) =
        let leaves struct (value, extra, gradients) =
            Seq.concat [ Seq.singleton value; Seq.ofArray extra; Seq.choose id gradients ]

        // the result must not depend on the caller's mode: under no_grad every gradient would silently be None
        use _ = torch.enable_grad ()

        Scope.keep leaves (fun () ->
            // detached aliases: `backward` writes `.grad` on them, never on what the caller handed in
            let variables = parameters |> Array.map (fun p -> p.detach().requires_grad_())
            use pass = new BackwardPass()
            let struct (value, extra) = pass.During(fun () -> f variables)

            if value.numel () <> 1L then
                Errors.reject "value to differentiate" "must be a scalar" (Shape.text value.shape) ""

            // without inputs, `backward` would write on every leaf that the function captured
            if Array.isEmpty variables || not value.requires_grad then
                let none: Gradients = Array.map (fun _ -> None) variables
                struct (value.detach (), extra |> Array.map _.detach(), none)
            else
                try
                    torch.autograd.backward ([| value |], null, Nullable(), false, variables)
                finally
                    pass.Rethrow()

                let gradients =
                    variables
                    |> Array.map (fun variable -> variable.grad |> Option.ofObj |> Option.map _.detach())

                struct (value.detach (), extra |> Array.map _.detach(), gradients))

    /// <summary>Value and gradients of a scalar function.</summary>
    /// <param name="f">Gives a tensor of one element.</param>
    /// <param name="parameters">Borrowed; their state and their gradients stay as they were.</param>
    /// <returns>Value and a gradient for each parameter, owned by the caller and without a graph.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The value has more than one element.</exception>
    let valueAndGrad (f: torch.Tensor[] -> torch.Tensor) parameters : struct (torch.Tensor * Gradients) =
        let struct (value, _, gradients) =
            valueAndGradWith (fun variables -> struct (f variables, [||])) parameters

        struct (value, gradients)
