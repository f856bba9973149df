namespace LoRASub

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

/// Class tokens of a batch on their way through the network, all in the master format.
[<ReferenceEquality>]
type Features =
    {
        /// Per block, its class token [B, d], before the final norm.
        Blocks: torch.Tensor[]
        /// [B, d]: the class token after the final norm, of which prototypes are made.
        Output: torch.Tensor
    }

[<RequireQualifiedAccess>]
module Features =
    let leaves: Leaves<Features> = fun f -> Seq.append f.Blocks [ f.Output ]

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
    }

    /// d: the number of columns of a token.
    member this.Width = this.ClassToken.shape[2]
    /// Side of a patch, in pixels.
    member this.PatchSize = int this.PatchEmbedding.Weight.shape[2]
    /// Channels of its images.
    member this.Channels = int this.PatchEmbedding.Weight.shape[1]
    member this.Device = this.ClassToken.device

/// What the qkv layers of one network hold: effective fused weights per block, and the pairs in training, if any.
[<ReferenceEquality>]
type Adapters =
    {
        /// Per block, [3d, d] in the compute format.
        Qkv: torch.Tensor[]
        /// Per block, or empty outside training.
        Lora: LayerLora[]
    }

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

    let leaves: Leaves<VisionTransformer> =
        fun vit ->
            Seq.concat
                [
                    Linear.leaves vit.PatchEmbedding
                    Seq.ofList [ vit.ClassToken; vit.Positions ]
                    Seq.collect blockLeaves vit.Blocks
                    Seq.ofList (normLeaves vit.Norm)
                ]

    /// Effective fused weights with `sign` · deltas on keys and values. Borrows; owned by the caller.
    let effectiveQkv (sign: float) (deltas: LayerDelta[]) (vit: VisionTransformer) : torch.Tensor[] =
        let dtype = Precision.compute vit.Precision

        if deltas.Length <> vit.Blocks.Length then
            Errors.reject "deltas" $"must be {vit.Blocks.Length}, one per block" $"{deltas.Length}" ""

        Array.map2
            (fun (block: Block) delta -> Attention.withDelta sign dtype delta block.Qkv.Weight)
            vit.Blocks
            deltas

    let private normalise (norm: LayerNorm) (x: torch.Tensor) =
        Fused.layerNorm norm.Weight norm.Bias norm.Epsilon x

    let private embed (vit: VisionTransformer) (images: torch.Tensor) =
        let batch, channels, p = images.shape[0], int64 vit.Channels, int64 vit.PatchSize
        let side = int64 vit.ImageSize / p
        // patches do not overlap: their convolution is one product, which is faster than conv2d in float32
        let grid =
            images.``to``(vit.ClassToken.dtype).reshape [| batch; channels; side; p; side; p |]

        let patches =
            grid.permute(0L, 2L, 4L, 1L, 3L, 5L).reshape(batch, side * side, channels * p * p)

        let kernel = vit.PatchEmbedding.Weight.flatten 1L // [d, c·p·p]

        let tokens =
            torch.nn.functional.linear (patches, kernel, Option.toObj vit.PatchEmbedding.Bias) // [B, tokens, d]

        let classToken = vit.ClassToken.expand (batch, 1L, -1L)
        torch.cat([| classToken; tokens |], 1L).add vit.Positions // [B, 1 + tokens, d]

    let private runBlock (heads: int64) (block: Block) (qkv: torch.Tensor) lora input (x: torch.Tensor) =
        let mixed =
            Attention.forward heads { block.Qkv with Weight = qkv } block.Projection lora input

        let x = x.add mixed

        let hidden =
            torch.nn.functional.gelu (Linear.forward block.Fc1 (normalise block.Norm2 x))

        x.add (Linear.forward block.Fc2 hidden)

    // `fold` whose `visit` sees each block's output as well.
    let private walk
        (leaves: Leaves<'S>)
        (visit: 'S -> int -> torch.Tensor -> torch.Tensor -> 'S)
        (initial: 'S)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : struct (torch.Tensor * 'S) =
        let size = int64 vit.ImageSize
        Shape.expectDevice "images" vit.ClassToken images
        let depth = vit.Blocks.Length

        if adapters.Qkv.Length <> depth then
            Errors.reject "qkv weights" $"must be {depth}, one per block" $"{adapters.Qkv.Length}" ""

        if adapters.Lora.Length <> 0 && adapters.Lora.Length <> depth then
            Errors.reject "LoRA pairs" $"must be 0 or {depth}, one per block" $"{adapters.Lora.Length}" ""


        Shape.expect
            "images"
            [ Axis.Any "batch"; Axis.Is(int64 vit.Channels); Axis.Is size; Axis.Is size ]
            images

        let both = Leaves.both Leaves.tensor leaves

        Scope.keep both (fun () ->
            let step struct (x: torch.Tensor, state) i =
                let block = vit.Blocks[i]
                let input = normalise block.Norm1 x

                let lora =
                    if Array.isEmpty adapters.Lora then
                        None
                    else
                        Some adapters.Lora[i]

                let output = runBlock (int64 vit.Heads) block adapters.Qkv[i] lora input x
                struct (output, visit state i input output)

            let embedded = struct (embed vit images, initial)

            let struct (x: torch.Tensor, state) =
                Scope.fold both step embedded [ 0 .. vit.Blocks.Length - 1 ]

            // only the class token is read, and the norm works row by row
            let classToken = x.select (1L, 0L) // [B, d]
            struct ((normalise vit.Norm classToken).``to``(Precision.master vit.Precision), state))

    /// Runs images through the network and folds `visit` over the attention inputs [B, N, d] of its blocks, in order;
    /// `leaves` lists the tensors of the folded state.
    /// images [B, c, H, W], floating point, in the backbone's input range -> features [B, d] (class token after the
    /// final norm, in the master format) and the folded state, owned by the caller. Borrows the rest. What no gradient
    /// needs is freed block by block.
    let fold
        (leaves: Leaves<'S>)
        (visit: 'S -> int -> torch.Tensor -> 'S)
        (initial: 'S)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : struct (torch.Tensor * 'S) =
        walk leaves (fun state i input _ -> visit state i input) initial adapters vit images

    /// Features of images: [B, c, H, W] -> [B, d], owned by the caller.
    let features (adapters: Adapters) (vit: VisionTransformer) (images: torch.Tensor) : torch.Tensor =
        let struct (result, ()) = fold Leaves.none (fun () _ _ -> ()) () adapters vit images
        result

    /// `features`, bit for bit, and the class token after each block, in the same pass. Owned by the caller.
    let featuresByBlock (adapters: Adapters) (vit: VisionTransformer) (images: torch.Tensor) : Features =
        Scope.keep Features.leaves (fun () ->
            let master = Precision.master vit.Precision

            // copied: a view would hold the tokens of all patches
            let visit tokens _ _ (output: torch.Tensor) =
                Array.append tokens [| (output.select (1L, 0L)).clone().``to`` master |]

            let struct (output, blocks) = walk Leaves.tensors visit [||] adapters vit images
            { Blocks = blocks; Output = output })
