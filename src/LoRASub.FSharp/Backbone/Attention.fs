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
    /// <summary>The tensors of a layer: `weight` and, if it has one, `bias`.</summary>
    let tree: Tree<Linear> =
        tree {
            let! weight = Tree.field "weight" _.Weight Tree.tensor
            and! bias = Tree.field "bias" _.Bias (Tree.option Tree.tensor)
            return { Weight = weight; Bias = bias }
        }

    /// <summary>Lists the tensors of a layer.</summary>
    let leaves: Leaves<Linear> = tree.Leaves

    /// <summary>y = x·Wᵀ + b.</summary>
    /// <param name="linear">The layer, borrowed.</param>
    /// <param name="x">[.., inputs], borrowed.</param>
    /// <returns>[.., outputs], owned by the caller. Differentiable.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Inputs of another width, type or device than the
    /// weight.</exception>
    let forward (linear: Linear) (x: torch.Tensor) : torch.Tensor =
        Product.linear linear.Weight (Option.toObj linear.Bias) x

    /// <summary>`forward`, with a pair in training beside the weight: x·Aᵀ·Bᵀ is a product of its own, because a sum with
    /// a frozen weight of few digits would lose small deltas.</summary>
    /// <param name="pair">A [r, inputs] and B [outputs, r], if any; borrowed.</param>
    /// <param name="linear">The layer, borrowed.</param>
    /// <param name="x">[.., inputs], borrowed.</param>
    /// <returns>[.., outputs]. Differentiable.</returns>
    let forwardWith (pair: LoraPair option) (linear: Linear) (x: torch.Tensor) : torch.Tensor =
        let y = forward linear x

        match pair with
        | None -> y
        | Some pair ->
            let through (weight: torch.Tensor) (x: torch.Tensor) =
                torch.nn.functional.linear (x, weight.``to`` x.dtype)

            y.plus (x |> through pair.A |> through pair.B)

/// Multi-head self-attention whose fused weight carries low-rank deltas.
[<RequireQualifiedAccess>]
module Attention =

    // The sites of the fused weight that a value has, with the first of their rows.
    let private rowsOf (d: int64) (sites: Site list) (values: Map<Site, 'T>) : (int64 * Site * 'T) list =
        [
            for i, site in List.indexed sites do
                match Map.tryFind site values with
                | Some value -> int64 i * d, site, value
                | None -> ()
        ]

    /// <summary>The fused weight with deltas added to its rows: sign +1 gives the network of finished tasks, −1 the
    /// subtracted one.</summary>
    /// <param name="sign">The factor of the deltas.</param>
    /// <param name="dtype">The type of the result.</param>
    /// <param name="delta">Those on query, key and value, [d, d] each, of the weight's type, are used; borrowed.</param>
    /// <param name="qkv">[3d, d], borrowed.</param>
    /// <returns>[3d, d], owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A weight or a delta of another shape, type or device.</exception>
    let withDelta
        (sign: float)
        (dtype: torch.ScalarType)
        (delta: LayerDelta)
        (qkv: torch.Tensor)
        : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let d = qkv.shape[1]
            Shape.expect "qkv weight" [ Axis.Is(3L * d); Axis.Is d ] qkv
            let deltas = rowsOf d Site.fused delta

            for _, site, part in deltas do
                let name = $"{Site.name site} delta"
                Shape.expect name [ Axis.Is d; Axis.Is d ] part
                Shape.expectLike name qkv part

            let sum = qkv.clone ()

            for first, _, part in deltas do
                sum.narrow(0L, first, d).add_(part, alpha = Number.Of sign) |> ignore

            sum.``to`` dtype)

    /// <summary>The fused weight with B·A of pairs in training on its rows, summed in the weight's type and rounded
    /// once: a weight of few digits would swallow the first steps.</summary>
    /// <param name="dtype">The type of the result.</param>
    /// <param name="lora">Those on query, key and value are used; borrowed.</param>
    /// <param name="qkv">[3d, d], borrowed.</param>
    /// <returns>[3d, d], owned by the caller, without a gradient.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A weight or a pair of another shape, type or device.</exception>
    let withPairs (dtype: torch.ScalarType) (lora: LayerLora) (qkv: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let deltas =
                lora
                |> Map.filter (fun site _ -> List.contains site Site.fused)
                |> Map.map (fun _ -> Lora.delta)

            withDelta 1.0 dtype deltas qkv)

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

    // A product with the rows of some sites, whose pairs get their gradients.
    let private project (sites: Site list) (layer: Linear) (lora: LayerLora) (x: torch.Tensor) =
        let pairs =
            [
                for first, _, pair in rowsOf layer.Weight.shape[1] sites lora do
                    first, pair
            ]

        LowRank.train pairs x (Linear.forward layer x)

    // q [B, M, d], k and v [B, N, d] -> [B, M, d]
    let private mix
        (heads: int64)
        (projection: Linear)
        (lora: LayerLora)
        (q: torch.Tensor)
        (k: torch.Tensor)
        (v: torch.Tensor)
        =
        let split (t: torch.Tensor) =
            t.view(t.shape[0], t.shape[1], heads, t.shape[2] / heads).transpose(1L, 2L) // [B, h, N, d/h]

        let mixed = Fused.attention (split q) (split k) (split v)

        mixed.transpose(1L, 2L).reshape q.shape
        |> Linear.forwardWith (Map.tryFind Site.Projection lora) projection

    /// <summary>Attention over tokens.</summary>
    /// <param name="heads">Divides d.</param>
    /// <param name="qkv">The effective fused weight [3d, d], B·A of the pairs in training included; borrowed.</param>
    /// <param name="projection">The output projection [d, d], without the pair in training; borrowed.</param>
    /// <param name="lora">The pairs in training; those of attention are used, and get their gradients without one of
    /// full size. Borrowed.</param>
    /// <param name="x">[B, N, d], borrowed.</param>
    /// <returns>[B, N, d].</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Heads that do not divide d, or tokens of another width.</exception>
    let forward (heads: int64) (qkv: Linear) (projection: Linear) (lora: LayerLora) (x: torch.Tensor) =
        checkInput heads qkv x
        let parts = Fused.parts 3L (project Site.fused qkv lora x) // 3 × [B, N, d]
        mix heads projection lora parts[0] parts[1] parts[2]

    /// <summary>`forward` for the first token only, from the keys and values of all.</summary>
    /// <param name="heads">As for `forward`, and so the other parameters.</param>
    /// <param name="qkv">The effective fused weight.</param>
    /// <param name="projection">The output projection.</param>
    /// <param name="lora">The pairs in training.</param>
    /// <param name="x">[B, N, d], borrowed.</param>
    /// <returns>[B, 1, d].</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As for `forward`.</exception>
    let forwardFirst (heads: int64) (qkv: Linear) (projection: Linear) (lora: LayerLora) (x: torch.Tensor) =
        checkInput heads qkv x
        let d = qkv.Weight.shape[1]
        let q = project [ Site.Query ] (rows 0L d qkv) lora (x.narrow (1L, 0L, 1L))

        let parts =
            Fused.parts 2L (project [ Site.Key; Site.Value ] (rows d (2L * d) qkv) lora x) // 2 × [B, N, d]

        mix heads projection lora q parts[0] parts[1]
