namespace LoRASub.Backbone

open System
open System.Globalization
open LoRASub.Core
open TorchSharp

/// A change of weights as low-rank pairs.
[<ReferenceEquality>]
type LowRankChange =
    {
        /// r: of every pair.
        Rank: int
        /// What the pairs leave out of the change: its Frobenius norm over that of the change, over all layers.
        RelativeError: float
        /// By timm's name of the layer, such as blocks.0.attn.qkv: the change is B·A. float64.
        Pairs: (string * LoraPair) list
    }

/// Low-rank changes.
[<RequireQualifiedAccess>]
module LowRankChange =
    /// <summary>Lists the tensors of a change.</summary>
    /// <param name="change">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<LowRankChange> =
        fun change -> change.Pairs |> Seq.collect (fun (_, pair) -> [ pair.A; pair.B ])

/// A network with what a method added to it, for other programs: weights in timm's names, or the change alone.
[<RequireQualifiedAccess>]
module MergedWeights =

    /// What singular values below it add up to is rounding: deltas are sums of float32 products.
    let private rounding = 1e-6

    // The weights of a block by timm's names; effective where the block is adapted.
    let private weightsOf (adapters: Adapters) (vit: VisionTransformer) (i: int) : (string * Linear) list =
        let block = vit.Blocks[i]
        let others = adapters.Weights |> Array.tryItem i |> Option.defaultValue Map.empty

        let linear site =
            let frozen = Block.layer block site

            { frozen with
                Weight = Map.tryFind site others |> Option.defaultValue frozen.Weight
            }

        [
            "attn.qkv",
            { block.Qkv with
                Weight = adapters.Qkv[i]
            }
            "attn.proj", linear Site.Projection
            "mlp.fc1", linear Site.Fc1
            "mlp.fc2", linear Site.Fc2
        ]

    let private check (adapters: Adapters) (vit: VisionTransformer) =
        if adapters.Qkv.Length <> vit.Blocks.Length then
            Errors.reject "adapters" $"must be {vit.Blocks.Length}, one per block" $"{adapters.Qkv.Length}" ""

        if adapters.Lora.Length > 0 || adapters.Mlp.Length > 0 then
            Errors.reject
                "the network"
                "must be one plain Vision Transformer to have weights in timm's names"
                (if adapters.Mlp.Length > 0 then
                     "adapters beside the MLPs, which a plain one does not have"
                 else
                     "pairs in training")
                "keep the learner: this program computes it"

    /// <summary>The weights of an adapted network, in timm's names and order.</summary>
    /// <param name="adapters">Without pairs in training; borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <returns>The tensors, which belong to the network and its adapters. Learned factors after attention and MLP
    /// (layer scale) are in the weights.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The network is not one plain Vision Transformer: it has adapters
    /// beside its MLPs, or pairs in training.</exception>
    let tensors (adapters: Adapters) (vit: VisionTransformer) : (string * torch.Tensor) list =
        check adapters vit

        let linear name (layer: Linear) =
            [
                $"{name}.weight", layer.Weight
                for bias in Option.toList layer.Bias do
                    $"{name}.bias", bias
            ]

        let norm name (one: LayerNorm) =
            [ $"{name}.weight", one.Weight; $"{name}.bias", one.Bias ]

        [
            "cls_token", vit.ClassToken
            "pos_embed", vit.Positions
            yield! linear "patch_embed.proj" vit.PatchEmbedding

            for i, block in Array.indexed vit.Blocks do
                yield! norm $"blocks.{i}.norm1" block.Norm1
                yield! norm $"blocks.{i}.norm2" block.Norm2

                for name, layer in weightsOf adapters vit i do
                    yield! linear $"blocks.{i}.{name}" layer

            yield! norm "norm" vit.Norm
        ]

    /// <summary>What a file of these weights states of itself, as `WeightsCard` reads it.</summary>
    /// <param name="vit">The network, borrowed.</param>
    /// <param name="range">Values of black and white that it receives.</param>
    /// <returns>Metadata: input range, image size, heads and layer-norm epsilons.</returns>
    let metadata (vit: VisionTransformer) (range: struct (float * float)) : Map<string, string> =
        let text (x: float) =
            x.ToString("R", CultureInfo.InvariantCulture)

        let struct (low, high) = range

        Map
            [
                "format", "pt" // what other readers of PyTorch's tensors look for
                "input-range", $"{text low},{text high}"
                "image-size", string vit.ImageSize
                "heads", string vit.Heads
                "norm-epsilon", $"{text vit.Blocks[0].Norm1.Epsilon},{text vit.Norm.Epsilon}"
            ]

    /// <summary>What the adapters add to the frozen weights.</summary>
    /// <param name="adapters">Without pairs in training; borrowed.</param>
    /// <param name="vit">The backbone, in the precision of the adapters; borrowed.</param>
    /// <returns>The change of each layer, [outputs, inputs] float64 on the CPU, by timm's name without `.weight`: of
    /// every block for each kind of layer that changed in one. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `tensors`.</exception>
    let change (adapters: Adapters) (vit: VisionTransformer) : (string * torch.Tensor) list =
        check adapters vit

        Scope.noGrad (List.map snd >> Seq.ofList) (fun () ->
            let frozen = VisionTransformer.frozen vit
            let wide (t: torch.Tensor) = t.cpu().``to`` torch.ScalarType.Float64

            let all =
                [
                    for i in 0 .. vit.Blocks.Length - 1 do
                        for (kind, was), (_, now) in
                            List.zip (weightsOf frozen vit i) (weightsOf adapters vit i) do
                            kind, $"blocks.{i}.{kind}", (wide now.Weight).sub(wide was.Weight)
                ]

            let changed =
                all
                |> List.filter (fun (_, _, t) -> t.count_nonzero().item<int64>() > 0L)
                |> List.map (fun (kind, _, _) -> kind)
                |> Set.ofList

            all
            |> List.filter (fun (kind, _, _) -> changed.Contains kind)
            |> List.map (fun (_, name, t) -> name, t))

    // The first columns of a factor, or zeros in place of those that it lacks.
    let private columns (n: int) (factor: torch.Tensor) =
        let has = factor.shape[1]

        if int64 n <= has then
            factor.narrow(1L, 0L, int64 n).contiguous()
        else
            let zeros = torch.zeros ([| factor.shape[0]; int64 n - has |], dtype = factor.dtype)
            torch.cat ([| factor; zeros |], 1L)

    /// <summary>A change as pairs of one rank: the best of that rank in the Frobenius norm, by a truncated singular value
    /// decomposition of each layer.</summary>
    /// <param name="rank">Of each pair. None: the smallest that leaves out no more than rounding, 1e-6 of each layer's
    /// change.</param>
    /// <param name="change">As `change` gives it, not empty; borrowed.</param>
    /// <returns>The pairs and what they leave out, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Nothing changed, or the rank is not between 1 and the smaller side
    /// of a layer.</exception>
    let lowRank (rank: int option) (change: (string * torch.Tensor) list) : LowRankChange =
        if List.isEmpty change then
            Errors.reject "the change of the network" "must not be zero" "the network as it was loaded" ""

        let most = change |> List.map (fun (_, t) -> int (Array.min t.shape)) |> List.min

        match rank with
        | Some r when r < 1 || r > most ->
            Errors.reject "rank of the adapter" $"must be in [1, {most}]" $"{r}" ""
        | _ -> ()

        let squares (values: float[]) = values |> Array.sumBy (fun x -> x * x)

        Scope.noGrad LowRankChange.leaves (fun () ->
            // as many columns as the layer needs, so that the rest of its factors is freed
            let decomposed (name: string, t: torch.Tensor) =
                let mutable values = [||]

                let pair =
                    Scope.keep (fun (pair: LoraPair) -> [ pair.A; pair.B ]) (fun () ->
                        let struct (u, s, vt) = torch.linalg.svd (t, fullMatrices = false)
                        values <- s.data<float>().ToArray()
                        let size = sqrt (squares values)

                        let needed =
                            seq { 0 .. values.Length }
                            |> Seq.find (fun r -> sqrt (squares values[r..]) <= rounding * size)

                        let n = int64 (defaultArg rank needed)
                        let root = s.narrow(0L, 0L, n).sqrt()

                        {
                            A = vt.narrow(0L, 0L, n).mul(root.unsqueeze 1L)
                            B = u.narrow(1L, 0L, n).mul root
                        })

                name, pair, values

            let all = List.map decomposed change
            let largest = all |> List.map (fun (_, pair, _) -> int pair.B.shape[1]) |> List.max
            let r = max 1 largest

            let leftOut =
                all
                |> List.sumBy (fun (_, pair, values) -> squares values[int pair.B.shape[1] ..])

            let total = all |> List.sumBy (fun (_, _, values) -> squares values)

            {
                Rank = r
                RelativeError = sqrt (leftOut / total)
                Pairs =
                    all
                    |> List.map (fun (name, pair, _) ->
                        name,
                        {
                            A = (columns r (pair.A.t ())).t().contiguous()
                            B = columns r pair.B
                        })
            })
