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

    /// <summary>The fused weight of each block, with B·A of its pairs in training added to the rows of their sites. The sum
    /// is made in the weight's type and rounded once, because a type of few digits would lose the first updates.</summary>
    /// <param name="dtype">The type of the result.</param>
    /// <param name="lora">Per block; those on query, key and value are used. Borrowed.</param>
    /// <param name="qkv">[3d, d] per block, at least one, all of one type and device; borrowed.</param>
    /// <returns>[3d, d] per block, views of one tensor, owned by the caller, without a gradient.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Another number of blocks, or a weight or a pair of another shape,
    /// type or device.</exception>
    let withPairs (dtype: torch.ScalarType) (lora: LayerLora[]) (qkv: torch.Tensor[]) : torch.Tensor[] =
        if qkv.Length = 0 then
            Errors.reject "qkv weights" "must be at least 1" "0" ""

        if lora.Length <> qkv.Length then
            Errors.reject "LoRA pairs" $"must be {qkv.Length}, one per block" $"{lora.Length}" ""

        Scope.noGrad Leaves.tensors (fun () ->
            let first = qkv[0]
            let d = first.shape[1]

            for weight in qkv do
                Shape.expect "qkv weight" [ Axis.Is(3L * d); Axis.Is d ] weight
                Shape.expectLike "qkv weight" first weight

            // One sum for all blocks: with a small network, a GPU waits for the host, which pays for each operation.
            let sums = torch.stack qkv // [blocks, 3d, d]

            for row, site in List.indexed Site.fused do
                let deltaOf (pairs: LayerLora) =
                    match Map.tryFind site pairs with
                    | None -> torch.zeros ([| d; d |], dtype = first.dtype, device = first.device)
                    | Some pair ->
                        let delta, name = Lora.delta pair, $"{Site.name site} delta"
                        Shape.expect name [ Axis.Is d; Axis.Is d ] delta
                        Shape.expectLike name first delta
                        delta

                if lora |> Array.exists _.ContainsKey(site) then
                    // the deltas of one site at a time
                    Scope.run (fun () ->
                        let deltas = torch.stack (Array.map deltaOf lora)
                        sums.narrow(1L, int64 row * d, d).plus_ deltas |> ignore)

            sums.``to``(dtype).unbind 0L)

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

    // [B, N, count·d] -> count views [B, h, N, d/h]
    let private split (count: int64) (heads: int64) (t: torch.Tensor) : torch.Tensor[] =
        t.view(t.shape[0], t.shape[1], count, heads, t.shape[2] / (count * heads)).unbind(2L)
        |> Array.map _.transpose(1L, 2L)

    // q [B, h, M, d/h], k and v [B, h, N, d/h] -> [B, M, d]
    let private mix (projection: Linear) (lora: LayerLora) (q: torch.Tensor) k v =
        let mixed = (Fused.attention q k v).transpose(1L, 2L) // [B, M, h, d/h]

        mixed.flatten (2L, 3L)
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
        let parts = split 3L heads (project Site.fused qkv lora x)
        mix projection lora parts[0] parts[1] parts[2]

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
        let first = project [ Site.Query ] (rows 0L d qkv) lora (x.narrow (1L, 0L, 1L))
        let rest = project [ Site.Key; Site.Value ] (rows d (2L * d) qkv) lora x
        let parts = split 2L heads rest
        mix projection lora (Array.head (split 1L heads first)) parts[0] parts[1]
