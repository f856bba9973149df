namespace LoRASub.Backbone

open System.Collections.Generic
open LoRASub.Core
open TorchSharp

/// Hands a product's output through and, on the way back, gives the low-rank pairs their gradients: with g the gradient
/// of their rows, ∂A = (g·B)ᵀ·x and ∂B = gᵀ·(x·Aᵀ), so that none of the weight's size is formed.
type internal PairGradient() =
    inherit CustomFunction<PairGradient>()

    // y, x, then A and B of keys and of values
    override _.Value(ctx, arguments) =
        let tensors = arguments |> Array.map (fun t -> t :?> torch.Tensor)
        ctx.save_for_backward (List tensors[1..])
        tensors[0].detach()

    override _.Gradients(_, saved, gradient) =
        let d, rank = saved[1].shape[1], saved[1].shape[0]
        let x = saved[0].reshape(-1L, d) // [R, d]
        let a = torch.cat([| saved[1]; saved[3] |]).``to`` x.dtype // [2r, d]
        let g = gradient.reshape (-1L, Array.last gradient.shape) // [R, 2d or 3d], keys and values last

        let part i =
            g.narrow (1L, g.shape[1] - (2L - i) * d, d) // [R, d]

        let inner = x.mm (a.t ()) // [R, 2r]
        let back i (b: torch.Tensor) = (part i).mm(b.``to`` x.dtype) // [R, r]
        let dA = torch.cat([| back 0L saved[2]; back 1L saved[4] |], 1L).t().mm x // [2r, d]

        let dB i =
            (part i).t().mm(inner.narrow (1L, i * rank, rank)) // [d, r]

        let pairs =
            [| dA.narrow (0L, 0L, rank); dB 0L; dA.narrow (0L, rank, rank); dB 1L |]
            |> Array.map _.``to``(saved[1].dtype)

        [| gradient; null; yield! pairs |]

/// Low-rank pairs in training on the key and value rows of a frozen fused weight.
[<RequireQualifiedAccess>]
module LowRank =

    /// The output y [B, N, 2d or 3d] of a product of x [B, N, d] with a merged weight, now a function of the pairs,
    /// whose delta it holds already. Differentiable once.
    let train (lora: LayerLora) (x: torch.Tensor) (y: torch.Tensor) : torch.Tensor =
        PairGradient.Of [| box y; x; yield! Lora.leaves lora |> Seq.map box |]
