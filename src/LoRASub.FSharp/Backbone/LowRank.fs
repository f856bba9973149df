namespace LoRASub

open System.Collections.Generic
open TorchSharp

/// Hands a product's output through and, on the way back, gives the low-rank pairs their gradients: with g the gradient
/// of their rows, ∂A = (g·B)ᵀ·x and ∂B = gᵀ·(x·Aᵀ), so that none of the weight's size is formed.
type internal PairGradient() =
    inherit torch.autograd.SingleTensorFunction<PairGradient>()

    override _.Name = "PairGradient"

    // y, x, then A and B of keys and of values
    override _.forward(ctx, arguments) =
        let tensors = arguments |> Array.map (fun t -> t :?> torch.Tensor)
        ctx.save_for_backward (List tensors[1..])
        tensors[0].detach ()

    override _.backward(ctx, gradient) =
        let saved = ctx.get_saved_variables ()
        let d = saved[1].shape[1]

        let pairs =
            Scope.noGrad Leaves.tensors (fun () ->
                let x = saved[0].reshape (-1L, d) // [R, d]
                let rows = gradient.reshape (x.shape[0], -1L) // [R, 2d or 3d]

                // keys and values are its last 2d columns
                let gradientOf part (a: torch.Tensor) (b: torch.Tensor) =
                    let g = rows.narrow (1L, rows.shape[1] - (2L - part) * d, d) // [R, d]
                    let within (t: torch.Tensor) = t.``to`` x.dtype

                    [|
                        g.mm(within b).t().mm(x).``to`` a.dtype // [r, d]
                        g.t().mm(x.mm(within(a).t ())).``to`` b.dtype // [d, r]
                    |]

                Array.append (gradientOf 0L saved[1] saved[2]) (gradientOf 1L saved[3] saved[4]))

        List [ gradient; null; yield! pairs ]

/// A frozen fused weight with low-rank pairs in training on its key and value rows.
[<RequireQualifiedAccess>]
module LowRank =

    /// W + B·A on the key and value rows of a fused weight [3d, d], in its own type. Borrows; owned by the caller;
    /// carries no gradient.
    let merge (lora: LayerLora) (qkv: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let d = qkv.shape[1]
            Shape.expect "qkv weight" [ Axis.Is(3L * d); Axis.Is d ] qkv
            let merged = qkv.clone ()

            let add first (pair: LoraPair) =
                merged.narrow(0L, first, d).add_ ((Lora.delta pair).``to`` merged.dtype)
                |> ignore

            add d lora.Key
            add (2L * d) lora.Value
            merged)

    /// The output y [B, N, 2d or 3d] of a product of x [B, N, d] with a merged weight, now a function of the pairs,
    /// whose delta it holds already. Differentiable once.
    let train (lora: LayerLora) (x: torch.Tensor) (y: torch.Tensor) : torch.Tensor =
        PairGradient.apply [| box y; x; yield! Lora.leaves lora |> Seq.map box |]
