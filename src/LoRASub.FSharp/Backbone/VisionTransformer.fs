namespace LoRASub.Backbone

open System
open LoRASub.Core
open TorchSharp

[<ReferenceEquality>]
type LayerNorm =
    {
        Weight: torch.Tensor
        Bias: torch.Tensor
        Epsilon: float
    }

/// One pre-norm transformer block with frozen weights.
[<ReferenceEquality>]
type Block =
    {
        Norm1: LayerNorm
        /// Fused rows of query, key and value, [3d, d], in the master format: deltas are added to it before it is
        /// cast for use.
        Qkv: Linear
        Projection: Linear
        Norm2: LayerNorm
        Fc1: Linear
        Fc2: Linear
    }

[<RequireQualifiedAccess>]
module Block =

    // The layer of a site that is not a part of the fused one.
    let internal layer (block: Block) (site: Site) : Linear =
        match site with
        | Site.Projection -> block.Projection
        | Site.Fc1 -> block.Fc1
        | Site.Fc2 -> block.Fc2
        | Site.Query
        | Site.Key
        | Site.Value -> invalidArg (nameof site) $"{Site.name site} is a part of the fused layer"

    /// <summary>The shapes of a block's weights.</summary>
    /// <param name="sites">Where.</param>
    /// <param name="block">The block.</param>
    /// <returns>[outputs, inputs] per site.</returns>
    let shapes (sites: Site list) (block: Block) : Map<Site, int64[]> =
        Map.ofList
            [
                for site in sites do
                    if List.contains site Site.fused then
                        let d = block.Qkv.Weight.shape[1]
                        site, [| d; d |]
                    else
                        site, (layer block site).Weight.shape
            ]

/// What is read of the tokens that leave a block.
[<RequireQualifiedAccess>]
type Tokens =
    /// The class token: d columns.
    | Class
    /// The mean of the patches' tokens: d columns.
    | PatchMean
    /// The standard deviation over the patches' tokens: d columns.
    | PatchSpread
    /// The mean of the middle patches, without a quarter of the rows and columns, rounded down, at each edge: d columns.
    | PatchCentre
    /// The root mean square of the change from a patch's token to the next one's, across and down: d columns.
    | PatchChange
    /// The means of the four quarters of the patch grid, row by row: 4d columns.
    | PatchQuadrants

/// One part of an embedding.
type EmbeddingPart =
    {
        /// Counted from 1; a network's last is its depth.
        Block: int
        Tokens: Tokens
        /// Whether the tokens pass the network's final norm first, which is trained for those of the last block.
        FinalNorm: bool
    }

/// A plain Vision Transformer (Dosovitskiy et al. 2021, in timm's form: pre-norm, class token, learned positions).
/// Frozen; a value shared by every learner on it.
[<ReferenceEquality>]
type VisionTransformer =
    {
        /// [d, channels, p, p]
        PatchEmbedding: Linear
        /// [1, 1, d]
        ClassToken: torch.Tensor
        /// [1, 1 + tokens, d]
        Positions: torch.Tensor
        Blocks: Block[]
        Norm: LayerNorm
        Heads: int
        /// Height and width of its images, in pixels.
        ImageSize: int
        Precision: Precision
        /// Compute the blocks' activations again for the gradient instead of keeping them.
        CheckpointActivations: bool
    }

    /// d: the number of columns of a token.
    member this.Width = this.ClassToken.shape[2]
    /// Side of a patch, in pixels.
    member this.PatchSize = int this.PatchEmbedding.Weight.shape[2]
    /// Patches along each side of an image.
    member this.GridSide = this.ImageSize / this.PatchSize
    /// Channels of its images.
    member this.Channels = int this.PatchEmbedding.Weight.shape[1]
    /// Where its tensors are.
    member this.Device = this.ClassToken.device

/// What the blocks of one network run with besides their frozen weights.
[<ReferenceEquality>]
type Adapters =
    {
        /// Per block, the effective fused weight [3d, d]: all in the compute format, or all in the master format beside pairs
        /// in training.
        Qkv: torch.Tensor[]
        /// Per block, the effective weights [outputs, inputs] of the other adapted sites, without the pairs in training,
        /// in the compute format. Empty where none is adapted.
        Weights: Map<Site, torch.Tensor>[]
        /// Pairs in training per block, or empty outside training.
        Lora: LayerLora[]
        /// An adapter per block, or empty.
        Mlp: MlpAdapter[]
    }

[<RequireQualifiedAccess>]
module Adapters =

    /// The tree of effective weights and MLP adapters, which are computed again when a value is read. Pairs in training
    /// belong to their method.
    let tree: Tree<Adapters> =
        tree {
            let! qkv = Tree.field "qkv" _.Qkv (Tree.array Tree.tensor)

            and! weights =
                Tree.field "weights" _.Weights (Tree.array (Tree.keyed Site.name [] Tree.tensor))

            and! lora = Tree.given _.Lora [||]
            and! mlp = Tree.field "mlp" _.Mlp (Tree.array (MlpAdapter.tree 1.0))

            return
                {
                    Qkv = qkv
                    Weights = weights
                    Lora = lora
                    Mlp = mlp
                }
        }

    /// <summary>The effective weights and MLP adapters. Pairs in training belong to their method.</summary>
    /// <param name="adapters">The adapters.</param>
    /// <returns>The tensors that they own.</returns>
    let leaves (adapters: Adapters) : torch.Tensor seq = tree.Leaves adapters

[<RequireQualifiedAccess>]
module VisionTransformer =

    let private normLeaves (n: LayerNorm) = [ n.Weight; n.Bias ]

    let private blockLeaves (b: Block) =
        Seq.concat
            [
                Seq.ofList (normLeaves b.Norm1)
                Linear.leaves b.Qkv
                Linear.leaves b.Projection
                Seq.ofList (normLeaves b.Norm2)
                Linear.leaves b.Fc1
                Linear.leaves b.Fc2
            ]

    /// <summary>Lists the tensors of a network.</summary>
    /// <param name="vit">The network, borrowed.</param>
    /// <returns>Its weights.</returns>
    let leaves (vit: VisionTransformer) : torch.Tensor seq =
        Seq.concat
            [
                Linear.leaves vit.PatchEmbedding
                Seq.ofList [ vit.ClassToken; vit.Positions ]
                Seq.collect blockLeaves vit.Blocks
                Seq.ofList (normLeaves vit.Norm)
            ]

    // The weights of a block's other sites with sign · delta.
    let private withDelta
        (dtype: torch.ScalarType)
        (sign: float)
        (block: Block)
        (delta: LayerDelta)
        : Map<Site, torch.Tensor> =
        Map.ofList
            [
                for site in Site.others do
                    match Map.tryFind site delta with
                    | None -> ()
                    | Some delta ->
                        let name, weight = $"{Site.name site} delta", (Block.layer block site).Weight
                        Shape.expect name [ for n in weight.shape -> Axis.Is n ] delta
                        Shape.expectDevice name weight delta
                        let sum = weight.``to``(delta.dtype).add(delta, alpha = Number.Of sign)
                        site, sum.``to`` dtype
            ]

    let private summed qkvType sign (deltas: LayerDelta[]) (vit: VisionTransformer) : Adapters =
        if deltas.Length <> vit.Blocks.Length then
            Errors.reject "deltas" $"must be {vit.Blocks.Length}, one per block" $"{deltas.Length}" ""

        Scope.noGrad Adapters.leaves (fun () ->
            {
                Qkv =
                    Array.map2
                        (fun (block: Block) delta -> Attention.withDelta sign qkvType delta block.Qkv.Weight)
                        vit.Blocks
                        deltas
                Weights = Array.map2 (withDelta (Precision.compute vit.Precision) sign) vit.Blocks deltas
                Lora = [||]
                Mlp = [||]
            })

    /// <summary>A network with deltas in its weights, for prediction and observation.</summary>
    /// <param name="sign">The factor of the deltas: +1 for finished tasks, −1 to subtract them.</param>
    /// <param name="deltas">Per block, in the master format, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <returns>Effective weights in the compute format, owned by the caller (`Adapters.leaves`).</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Deltas for another number of blocks, or of another shape, type or
    /// device.</exception>
    let merged (sign: float) (deltas: LayerDelta[]) (vit: VisionTransformer) : Adapters =
        summed (Precision.compute vit.Precision) sign deltas vit

    /// <summary>`merged` for pairs in training to be set beside: the fused weights are in the master format.</summary>
    /// <param name="deltas">Per block, in the master format, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <returns>Adapters without pairs, owned by the caller (`Adapters.leaves`).</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As for `merged`.</exception>
    let forTraining (deltas: LayerDelta[]) (vit: VisionTransformer) : Adapters =
        summed (Precision.master vit.Precision) 1.0 deltas vit

    /// <summary>The network as it was loaded.</summary>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <returns>Adapters without any delta, owned by the caller (`Adapters.leaves`).</returns>
    let frozen (vit: VisionTransformer) : Adapters =
        merged 1.0 (vit.Blocks |> Array.map (fun _ -> Map.empty)) vit

    let private normalise (norm: LayerNorm) (x: torch.Tensor) =
        Fused.layerNorm norm.Weight norm.Bias norm.Epsilon x

    let private embed (vit: VisionTransformer) (images: torch.Tensor) =
        let batch, channels, p = images.shape[0], int64 vit.Channels, int64 vit.PatchSize
        let side = int64 vit.GridSide
        // patches do not overlap: their convolution is one product, which is faster than conv2d in float32
        let grid =
            images.``to``(vit.ClassToken.dtype).reshape [| batch; channels; side; p; side; p |]

        let patches =
            grid.permute(0L, 2L, 4L, 1L, 3L, 5L).reshape(batch, side * side, channels * p * p)

        let kernel = vit.PatchEmbedding.Weight.flatten 1L // [d, c·p·p]

        let tokens = Product.linear kernel (Option.toObj vit.PatchEmbedding.Bias) patches // [B, tokens, d]

        let classToken = vit.ClassToken.expand (batch, 1L, -1L)
        torch.cat([| classToken; tokens |], 1L).plus vit.Positions // [B, 1 + tokens, d]

    // What one block runs with: of the adapters, and the fused weight with the pairs' deltas.
    type private Layer =
        {
            Fused: torch.Tensor
            Others: Map<Site, torch.Tensor>
            Pairs: LayerLora
            Parallel: MlpAdapter option
        }

    let private layerTree: Tree<Layer> =
        tree {
            let! fused = Tree.field "fused" _.Fused Tree.tensor
            and! others = Tree.field "others" _.Others (Tree.keyed Site.name [] Tree.tensor)
            and! pairs = Tree.field "pairs" _.Pairs (Lora.tree [])
            and! mlp = Tree.field "parallel" _.Parallel (Tree.option (MlpAdapter.tree 1.0))

            return
                {
                    Fused = fused
                    Others = others
                    Pairs = pairs
                    Parallel = mlp
                }
        }

    let private checkPair (block: Block) (site: Site) (pair: LoraPair) =
        let weight = (Block.layer block site).Weight
        let name = Site.name site
        Shape.expect $"{name} pair's A" [ Axis.Any "rank"; Axis.Is weight.shape[1] ] pair.A
        Shape.expect $"{name} pair's B" [ Axis.Is weight.shape[0]; Axis.Is pair.A.shape[0] ] pair.B

        for leaf in [ pair.A; pair.B ] do
            Shape.expectDevice $"{name} pair" weight leaf

    let private layers (adapters: Adapters) (vit: VisionTransformer) : Layer[] =
        let depth = vit.Blocks.Length
        let dtype = Precision.compute vit.Precision

        if adapters.Qkv.Length <> depth then
            Errors.reject "qkv weights" $"must be {depth}, one per block" $"{adapters.Qkv.Length}" ""

        for subject, count in
            [
                "effective weights", adapters.Weights.Length
                "LoRA pairs", adapters.Lora.Length
                "MLP adapters", adapters.Mlp.Length
            ] do
            if count <> 0 && count <> depth then
                Errors.reject subject $"must be 0 or {depth}, one per block" $"{count}" ""

        let fused =
            if
                adapters.Lora
                |> Array.exists (fun pairs -> Site.fused |> List.exists pairs.ContainsKey)
            then
                Attention.withPairs dtype adapters.Lora adapters.Qkv
            else
                adapters.Qkv |> Array.map _.``to``(dtype)

        Array.mapi2
            (fun i (block: Block) fused ->
                let pairs = adapters.Lora |> Array.tryItem i |> Option.defaultValue Map.empty
                let others = adapters.Weights |> Array.tryItem i |> Option.defaultValue Map.empty
                let mlp = Array.tryItem i adapters.Mlp

                for KeyValue(site, weight) in others do
                    let frozen = (Block.layer block site).Weight
                    Shape.expect $"{Site.name site} weight" [ for n in frozen.shape -> Axis.Is n ] weight
                    Shape.expectLike $"{Site.name site} weight" frozen weight

                for site in Site.others do
                    Map.tryFind site pairs |> Option.iter (checkPair block site)

                mlp |> Option.iter (MlpAdapter.check vit.Width vit.ClassToken)

                {
                    Fused = fused
                    Others = others
                    Pairs = pairs
                    Parallel = mlp
                })
            vit.Blocks
            fused

    // A layer with its effective weight.
    let private effective (block: Block) (layer: Layer) (site: Site) : Linear =
        let frozen = Block.layer block site

        match Map.tryFind site layer.Others with
        | None -> frozen
        | Some weight -> { frozen with Weight = weight }

    // From the stream after attention.
    let private runMlp (block: Block) (layer: Layer) (x: torch.Tensor) =
        let through site =
            Linear.forwardWith (Map.tryFind site layer.Pairs) (effective block layer site)

        let hidden = normalise block.Norm2 x |> through Site.Fc1 |> torch.nn.functional.gelu

        let output = x.plus (through Site.Fc2 hidden)

        match layer.Parallel with
        | None -> output
        | Some adapter -> MlpAdapter.add adapter x output

    // Which tokens of a block are computed.
    [<Struct>]
    type private Rows =
        | All
        | First

    // One block, [B, N, d] -> [B, N, d], or [B, 1, d] for the first token alone, from x and its first norm.
    let private runBlock
        (vit: VisionTransformer)
        rows
        i
        (layer: Layer)
        (input: torch.Tensor)
        (x: torch.Tensor)
        =
        let block = vit.Blocks[i]
        let qkv = { block.Qkv with Weight = layer.Fused }

        let attend, x =
            match rows with
            | First -> Attention.forwardFirst, x.narrow (1L, 0L, 1L)
            | All -> Attention.forward, x

        attend (int64 vit.Heads) qkv (effective block layer Site.Projection) layer.Pairs input
        |> x.plus
        |> runMlp block layer

    let private runWhole (vit: VisionTransformer) rows i layer (x: torch.Tensor) =
        runBlock vit rows i layer (normalise vit.Blocks[i].Norm1 x) x

    // `runWhole` that keeps no activations for the gradient, but the merged weights, which all slices share.
    let private runAgain (vit: VisionTransformer) rows i (layer: Layer) (x: torch.Tensor) =
        let run (inputs: torch.Tensor[]) =
            runWhole vit rows i (Tree.withLeaves layerTree inputs[1..] layer) inputs[0]

        Recomputation.run run [| x; yield! layerTree.Leaves layer |]

    // Tokens at a time on a CPU, about: a forward pass is fastest while its activations stay in the cache, by 7 % against
    // a whole batch at width 192, and products need that many rows to be fast at width 768.
    let private sliceTokens = 1536L

    // Equal slices: the last would be slow if it were small.
    let private sliceImages (vit: VisionTransformer) (images: int64) =
        if vit.Device.``type`` = DeviceType.CPU then
            let tokens = images * vit.Positions.shape[1]
            let slices = max 1L ((tokens + sliceTokens / 2L) / sliceTokens)
            (images + slices - 1L) / slices
        else
            images

    let private slices (vit: VisionTransformer) (images: torch.Tensor) : torch.Tensor[] =
        let size = int64 vit.ImageSize
        Shape.expectDevice "images" vit.ClassToken images

        Shape.expect
            "images"
            [ Axis.Any "batch"; Axis.Is(int64 vit.Channels); Axis.Is size; Axis.Is size ]
            images

        let each = sliceImages vit (images.size 0)

        if images.size 0 <= each then
            [| images |]
        else
            images.split each

    // Equal patches have no spread and no change, and a root of 0 no gradient.
    let private root (square: torch.Tensor) = square.plus(Number.Of 1e-6).sqrt()

    // One part of the tokens x [b, N, d] that leave its block, after the final norm where the part has it, in the master
    // format: [b, d], or [b, 4d] for quadrants. Of the class token, x may hold nothing else.
    let private read (vit: VisionTransformer) (part: EmbeddingPart) (x: torch.Tensor) : torch.Tensor =
        let master = Precision.master vit.Precision

        let patches () = x.narrow (1L, 1L, x.shape[1] - 1L) // [b, N - 1, d]

        let side = int64 vit.GridSide

        // [b, side, side, d]
        let grid () =
            (patches ()).reshape [| x.shape[0]; side; side; vit.Width |]

        match part.Tokens with
        | Tokens.Class ->
            let token = x.select (1L, 0L)
            // copied: a view would hold the tokens of all patches
            (if x.shape[1] = 1L then token else token.clone ()).``to`` master
        | Tokens.PatchMean -> (patches ()).mean([| 1L |], false, Nullable master)
        | Tokens.PatchSpread ->
            let patches = (patches ()).``to`` master
            let apart = patches.sub (patches.mean ([| 1L |], true))
            root (apart.mul(apart).mean [| 1L |])
        | Tokens.PatchCentre ->
            let edge = side / 4L
            let middle = side - 2L * edge

            (grid ())
                .narrow(1L, edge, middle)
                .narrow(2L, edge, middle)
                .mean([| 1L; 2L |], false, Nullable master)
        | Tokens.PatchChange ->
            let grid = (grid ()).``to`` master

            let square along =
                let next = grid.narrow(along, 1L, side - 1L).sub(grid.narrow (along, 0L, side - 1L))
                next.mul(next).mean [| 1L; 2L |]

            // a single patch has no next one
            if side = 1L then
                root (grid.mul(Number.Of 0.0).mean [| 1L; 2L |])
            else
                root ((square 1L).plus(square 2L))
        | Tokens.PatchQuadrants ->
            let batch, half, d = x.shape[0], side / 2L, vit.Width
            let quarters = (patches ()).reshape [| batch; 2L; half; 2L; half; d |]
            quarters.mean([| 2L; 4L |], false, Nullable master).reshape(batch, 4L * d)

    // The parts of one slice of the images. What no gradient needs is freed block by block; of the last block asked for,
    // the class token alone is computed where nothing else of it is read.
    let private tokensOf
        (parts: EmbeddingPart[])
        (vit: VisionTransformer)
        (layers: Layer[])
        (images: torch.Tensor)
        : torch.Tensor[] =
        let last = parts |> Array.map _.Block |> Array.max

        let isFirstEnough =
            parts
            |> Array.forall (fun part -> part.Block < last || part.Tokens = Tokens.Class)

        // tokens after a block, and the parts found so far by their position
        let both: Leaves<struct (torch.Tensor * Map<int, torch.Tensor>)> =
            Leaves.both Leaves.tensor _.Values

        let step struct (x: torch.Tensor, found) block =
            let rows = if block = last && isFirstEnough then First else All
            let i = block - 1

            let output =
                if vit.CheckpointActivations && torch.is_grad_enabled () then
                    runAgain vit rows i layers[i] x
                else
                    runWhole vit rows i layers[i] x

            let normed =
                lazy
                    (let isClassEnough =
                        rows = All
                        && parts
                           |> Array.forall (fun part ->
                               part.Block <> block || not part.FinalNorm || part.Tokens = Tokens.Class)

                     normalise vit.Norm (if isClassEnough then output.narrow (1L, 0L, 1L) else output))

            let add found (position, part) =
                if part.Block = block then
                    let tokens = if part.FinalNorm then normed.Value else output
                    Map.add position (read vit part tokens) found
                else
                    found

            struct (output, Array.fold add found (Array.indexed parts))

        Scope.keep Leaves.tensors (fun () ->
            let struct (_, found) =
                Scope.fold both step struct (embed vit images, Map.empty) [ 1..last ]

            Array.init parts.Length (fun position -> found[position]))

    let private sliced number (layer: Layer) =
        { layer with
            Parallel = Option.map (MlpAdapter.ofSlice number) layer.Parallel
        }

    let private whole (parts: torch.Tensor[]) =
        if parts.Length = 1 then parts[0] else torch.cat parts

    let internal checkParts (parts: EmbeddingPart[]) (vit: VisionTransformer) =
        let depth = vit.Blocks.Length

        if Array.isEmpty parts then
            Errors.reject "embedding" "must have at least one part" "none" ""

        // each kind of tokens, with and without the norm, of the network as it is and as it was
        let most = 24 * depth

        if parts.Length > most then
            let rule = $"must have at most {most} parts, for {depth} blocks"
            Errors.reject "embedding" rule $"{parts.Length}" ""

        for part in parts do
            if part.Block < 1 || part.Block > depth then
                Errors.reject
                    "embedding's block"
                    $"must be in [1, {depth}], the backbone's blocks"
                    $"{part.Block}"
                    ""

            if part.Tokens = Tokens.PatchQuadrants && vit.GridSide % 2 <> 0 then
                Errors.reject
                    "embedding's patch quadrants"
                    "need a patch grid of even side"
                    $"{vit.GridSide}"
                    "use the mean of all patches, or another image size"

    /// <summary>Tokens of images at several blocks, in one forward pass that ends at the last block asked
    /// for.</summary>
    /// <param name="parts">What to read, in any order; at least one.</param>
    /// <param name="adapters">The network's adapters, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>For each part [n, d], or [n, 4d] for quadrants, in the master format; owned by the caller.
    /// Differentiable once.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No parts, a block outside 1..depth, quadrants of a patch grid of odd
    /// side, images of another size or device, or adapters of another depth.</exception>
    let tokens
        (parts: EmbeddingPart[])
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : torch.Tensor[] =
        checkParts parts vit

        Scope.keep Leaves.tensors (fun () ->
            let layers = layers adapters vit

            let ofSlice number images =
                let layers = layers |> Array.map (sliced number)
                tokensOf parts vit layers images

            let slices = slices vit images |> Array.mapi ofSlice
            Array.init parts.Length (fun i -> slices |> Array.map (Array.item i) |> whole))

    /// The class token of the last block after the final norm.
    let internal output (vit: VisionTransformer) : EmbeddingPart =
        {
            Block = vit.Blocks.Length
            Tokens = Tokens.Class
            FinalNorm = true
        }

    /// <summary>The last block's class token after the final norm: `tokens` of one part.</summary>
    /// <param name="adapters">The network's adapters, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>[n, d] in the master format, owned by the caller. Differentiable once.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Images of another size or device, or adapters of another
    /// depth.</exception>
    let features (adapters: Adapters) (vit: VisionTransformer) (images: torch.Tensor) : torch.Tensor =
        (tokens [| output vit |] adapters vit images)[0]

    /// <summary>Folds a function over the attention inputs of the blocks (the outputs of their first norms), block by
    /// block and slice by slice. Stops after the last block it needs.</summary>
    /// <param name="leaves">Lists the tensors of a folded state.</param>
    /// <param name="visit">Borrows a state, the index of a block and its inputs [b, N, d], and returns the next
    /// state.</param>
    /// <param name="initial">The first state, borrowed.</param>
    /// <param name="adapters">The network's adapters, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>The last state, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Images of another size or device, or adapters of another
    /// depth.</exception>
    let foldInputs
        (leaves: Leaves<'S>)
        (visit: 'S -> int -> torch.Tensor -> 'S)
        (initial: 'S)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : 'S =
        let both = Leaves.both Leaves.tensor leaves
        let last = vit.Blocks.Length - 1

        Scope.keep leaves (fun () ->
            let layers = layers adapters vit

            let step struct (x: torch.Tensor, state) i =
                let input = normalise vit.Blocks[i].Norm1 x
                let state = visit state i input
                struct ((if i = last then x else runBlock vit All i layers[i] input x), state)

            let ofSlice state images =
                Scope.keep leaves (fun () ->
                    let struct (_, state) =
                        Scope.fold both step struct (embed vit images, state) [ 0..last ]

                    state)

            Scope.fold leaves ofSlice initial (slices vit images))
