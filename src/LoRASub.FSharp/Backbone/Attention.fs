namespace LoRASub.Backbone

open LoRASub.Core
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
    let tree: Tree<Linear> =
        tree {
            let! weight = Tree.field "weight" _.Weight Tree.tensor
            and! bias = Tree.field "bias" _.Bias (Tree.option Tree.tensor)
            return { Weight = weight; Bias = bias }
        }

    let leaves = tree.Leaves

    let forward (linear: Linear) (x: torch.Tensor) =
        Product.linear linear.Weight (Option.toObj linear.Bias) x

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

            let sum = qkv.clone ()

            for first, part in [ d, delta.Key; 2L * d, delta.Value ] do
                sum.narrow(0L, first, d).add_(part, alpha = Scalar.op_Implicit sign) |> ignore

            sum.``to`` dtype)

    /// The fused weight [3d, d] with B·A of pairs in training on its key and value rows, summed in the weight's type and
    /// rounded once to `dtype`: a weight of few digits would swallow the first steps. Borrows all; owned by the caller;
    /// carries no gradient.
    let withPairs (dtype: torch.ScalarType) (lora: LayerLora) (qkv: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            qkv
            |> withDelta
                1.0
                dtype
                {
                    Key = Lora.delta lora.Key
                    Value = Lora.delta lora.Value
                })

    let private checkInput (heads: int64) (qkv: Linear) (x: torch.Tensor) =
        let d = qkv.Weight.shape[1]
        Shape.expect "attention input" [ Axis.Any "batch"; Axis.Any "tokens"; Axis.Is d ] x

        if heads < 1L || d % heads <> 0L then
            Errors.reject "attention heads" $"must divide the width {d}" $"{heads}" ""

    // Some rows of a layer, as views.
    let private rows (first: int64) (count: int64) (layer: Linear) : Linear =
        {
            Weight = layer.Weight.narrow (0L, first, count)
            Bias = layer.Bias |> Option.map _.narrow(0L, first, count)
        }

    let private project (layer: Linear) (lora: LayerLora option) (x: torch.Tensor) =
        let y = Linear.forward layer x

        match lora with
        | None -> y
        | Some lora -> LowRank.train lora x y

    // q [B, M, d], k and v [B, N, d] -> [B, M, d]
    let private mix
        (heads: int64)
        (projection: Linear)
        (q: torch.Tensor)
        (k: torch.Tensor)
        (v: torch.Tensor)
        =
        let split (t: torch.Tensor) =
            t.view(t.shape[0], t.shape[1], heads, t.shape[2] / heads).transpose(1L, 2L) // [B, h, N, d/h]

        let mixed = Fused.attention (split q) (split k) (split v)
        Linear.forward projection (mixed.transpose(1L, 2L).reshape q.shape)

    /// Attention over tokens. `heads` divides d; `qkv` holds the effective fused weight [3d, d], B·A of the pairs in
    /// training included; those pairs, where given, get their gradients without one of full size. x [B, N, d] ->
    /// [B, N, d].
    let forward (heads: int64) (qkv: Linear) (projection: Linear) (lora: LayerLora option) (x: torch.Tensor) =
        checkInput heads qkv x
        let parts = Fused.parts 3L (project qkv lora x) // 3 × [B, N, d]
        mix heads projection parts[0] parts[1] parts[2]

    /// `forward` for the first token only, from the keys and values of all: [B, N, d] -> [B, 1, d].
    let forwardFirst
        (heads: int64)
        (qkv: Linear)
        (projection: Linear)
        (lora: LayerLora option)
        (x: torch.Tensor)
        =
        checkInput heads qkv x
        let d = qkv.Weight.shape[1]
        let q = Linear.forward (rows 0L d qkv) (x.narrow (1L, 0L, 1L))
        let parts = Fused.parts 2L (project (rows d (2L * d) qkv) lora x) // 2 × [B, N, d]
        mix heads projection q parts[0] parts[1]
