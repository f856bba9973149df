namespace LoRASub

open TorchSharp

/// y = x·Wᵀ + b, with W [out, in].
[<ReferenceEquality>]
type Linear =
    {
        Weight: torch.Tensor
        Bias: torch.Tensor option
    }

[<RequireQualifiedAccess>]
module Linear =
    let leaves: Leaves<Linear> = fun l -> Seq.append [ l.Weight ] (Option.toList l.Bias)

    let forward (linear: Linear) (x: torch.Tensor) =
        torch.nn.functional.linear (x, linear.Weight, Option.toObj linear.Bias)

/// Multi-head self-attention whose key and value rows carry low-rank deltas.
[<RequireQualifiedAccess>]
module Attention =

    /// The fused weight [3d, d] with `sign` · delta added to its key and value rows, in `dtype`: sign +1 gives the
    /// network of finished tasks, −1 the subtracted one. Borrows all; owned by the caller.
    let withDelta
        (sign: float)
        (dtype: torch.ScalarType)
        (delta: LayerDelta)
        (qkv: torch.Tensor)
        : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let d = qkv.shape[1]
            Shape.expect "qkv weight" [ Axis.Is(3L * d); Axis.Is d ] qkv

            for name, part in [ "key delta", delta.Key; "value delta", delta.Value ] do
                Shape.expect name [ Axis.Is d; Axis.Is d ] part
                Shape.expectLike name qkv part

            let queries = torch.zeros_like delta.Key
            let stacked = torch.cat ([| queries; delta.Key; delta.Value |], 0L) // [3d, d]
            // `mul` makes a copy also where dtype is the weight's own
            stacked.mul(Scalar.op_Implicit sign).add(qkv).``to`` dtype)

    /// Attention over tokens. `heads` divides d; `qkv` holds the effective fused weight [3d, d]; `lora`, where given,
    /// is added to keys and values as x·Aᵀ·Bᵀ, so that no gradient of full size is formed. x [B, N, d] -> [B, N, d].
    let forward (heads: int64) (qkv: Linear) (projection: Linear) (lora: LayerLora option) (x: torch.Tensor) =
        let d = qkv.Weight.shape[1]
        Shape.expect "attention input" [ Axis.Any "batch"; Axis.Any "tokens"; Axis.Is d ] x

        if heads < 1L || d % heads <> 0L then
            Errors.reject "attention heads" $"must divide the width {d}" $"{heads}" ""

        let batch, tokens = x.shape[0], x.shape[1]
        let fused = (Linear.forward qkv x).chunk(3L, dim = -1L) // 3 × [B, N, d]

        let lowRank (pair: LoraPair) =
            let a, b = pair.A.``to`` x.dtype, pair.B.``to`` x.dtype
            torch.nn.functional.linear (torch.nn.functional.linear (x, a), b) // [B, N, d]

        let k, v =
            match lora with
            | None -> fused[1], fused[2]
            | Some lora -> fused[1].add(lowRank lora.Key), fused[2].add(lowRank lora.Value)

        let split (t: torch.Tensor) =
            t.view(batch, tokens, heads, d / heads).transpose(1L, 2L) // [B, h, N, d/h]

        let mixed = Fused.attention (split fused[0]) (split k) (split v)

        Linear.forward projection (mixed.transpose(1L, 2L).reshape(batch, tokens, d))
