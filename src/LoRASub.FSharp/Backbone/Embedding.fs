namespace LoRASub.Backbone

open LoRASub.Core
open TorchSharp

/// What a classifier sees of an image: tokens of the backbone, side by side.
type Embedding =
    {
        Parts: EmbeddingPart[]
        /// Brings each d columns of a row to mean 0 and variance 1, so that no block outweighs another.
        Standardise: bool
        /// Also embeds each image mirrored left to right.
        Flip: bool
    }

[<RequireQualifiedAccess>]
module Embedding =

    // timm's for the norms of a ViT
    let private epsilon = 1e-6

    let private part block tokens =
        {
            Block = block
            Tokens = tokens
            FinalNorm = false
        }

    // class and mean patch token of some blocks
    let private ofBlocks (blocks: int list) =
        [|
            for block in blocks do
                part block Tokens.Class
                part block Tokens.PatchMean
        |]

    /// <summary>The class token of the last block after the final norm, as `VisionTransformer.features`.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of d columns.</returns>
    let output (vit: VisionTransformer) : Embedding =
        {
            Parts = [| VisionTransformer.output vit |]
            Standardise = false
            Flip = false
        }

    /// <summary>Class and mean patch token of the last three blocks, or of all where there are fewer,
    /// standardised.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of 6d columns.</returns>
    let lastBlocks (vit: VisionTransformer) : Embedding =
        let depth = vit.Blocks.Length

        {
            Parts = ofBlocks [ max 1 (depth - 2) .. depth ]
            Standardise = true
            Flip = false
        }

    /// <summary>Class and mean patch token of every block, standardised. The last block gives the quadrants of its patches
    /// after the final norm instead of their mean.</summary>
    /// <param name="vit">The backbone. `check` does not accept one whose patch grid has an odd side.</param>
    /// <returns>An embedding of (2 · depth + 3) · d columns.</returns>
    let allBlocks (vit: VisionTransformer) : Embedding =
        let depth = vit.Blocks.Length

        {
            Parts =
                [|
                    yield! ofBlocks [ 1 .. depth - 1 ]
                    part depth Tokens.Class

                    { part depth Tokens.PatchQuadrants with
                        FinalNorm = true
                    }
                |]
            Standardise = true
            Flip = false
        }

    let private table =
        [ "class-token", output; "last-blocks", lastBlocks; "all-blocks", allBlocks ]

    /// The embeddings that have a name.
    let names: string list = List.map fst table

    /// <summary>The embedding of that name.</summary>
    /// <param name="name">One of `names`.</param>
    /// <returns>The embedding for a backbone.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An unknown name.</exception>
    let named (name: string) : VisionTransformer -> Embedding =
        match List.tryFind (fun (known, _) -> known = name) table with
        | Some(_, embedding) -> embedding
        | None ->
            let known = String.concat ", " names
            Errors.reject "embedding" $"must be one of {known}" $"'{name}'" (Errors.didYouMean names name)

    /// <summary>Rejects an embedding that a backbone cannot give.</summary>
    /// <param name="vit">The backbone.</param>
    /// <param name="embedding">The embedding.</param>
    /// <exception cref="T:LoRASub.Core.InputException">No parts, a block outside 1..depth, or quadrants of a patch grid of
    /// odd side.</exception>
    let check (vit: VisionTransformer) (embedding: Embedding) : unit =
        VisionTransformer.checkParts embedding.Parts vit

    // widths d in a part
    let private pieces (part: EmbeddingPart) =
        match part.Tokens with
        | Tokens.Class
        | Tokens.PatchMean -> 1L
        | Tokens.PatchQuadrants -> 4L

    /// <summary>The number of columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <param name="embedding">The embedding.</param>
    /// <returns>The width of what `join` gives.</returns>
    let width (vit: VisionTransformer) (embedding: Embedding) : int64 =
        vit.Width * Array.sumBy pieces embedding.Parts

    /// <summary>The images to embed: the given ones and, where the embedding flips, their mirror images left to
    /// right.</summary>
    /// <param name="embedding">The embedding.</param>
    /// <param name="images">[n, c, H, W], borrowed.</param>
    /// <returns>One or two tensors [n, c, H, W]: first the given one itself, then the mirrored, owned by the
    /// caller.</returns>
    let views (embedding: Embedding) (images: torch.Tensor) : torch.Tensor[] =
        Shape.expect
            "images"
            [ Axis.Any "batch"; Axis.Any "channels"; Axis.Any "height"; Axis.Any "width" ]
            images

        [|
            images

            if embedding.Flip then
                images.flip 3L
        |]

    /// <summary>Joins the tokens of an embedding's parts, as `VisionTransformer.tokens` gives them.</summary>
    /// <param name="embedding">The embedding.</param>
    /// <param name="tokens">One tensor [n, d] per part, or [n, 4d] for quadrants, borrowed.</param>
    /// <returns>[n, width], owned by the caller. Each d columns have mean 0 and variance 1 where the embedding
    /// standardises.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Tensors of another number or shape.</exception>
    let join (embedding: Embedding) (tokens: torch.Tensor[]) : torch.Tensor =
        let parts = embedding.Parts

        if tokens.Length <> parts.Length || Array.isEmpty parts then
            Errors.reject
                "tokens"
                $"must be one tensor for each of the {parts.Length} parts"
                $"{tokens.Length}"
                ""

        Shape.expect "tokens of part 1" [ Axis.Any "images"; Axis.Any "columns" ] tokens[0]
        let n, d = tokens[0].shape[0], tokens[0].shape[1] / pieces parts[0]

        for i, part in Array.indexed parts do
            Shape.expect $"tokens of part {i + 1}" [ Axis.Is n; Axis.Is(d * pieces part) ] tokens[i]

        Scope.keep Leaves.tensor (fun () ->
            let joined = torch.cat (tokens, 1L)

            if embedding.Standardise then
                (Fused.standardise epsilon (joined.reshape (n, joined.shape[1] / d, d))).reshape joined.shape
            else
                joined)

    /// <summary>Embeds one view of images: `join` of their tokens.</summary>
    /// <param name="embedding">The embedding.</param>
    /// <param name="adapters">The network's adapters, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>[n, width] in the master format, owned by the caller. Differentiable once.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `VisionTransformer.tokens` rejects.</exception>
    let embed
        (embedding: Embedding)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : torch.Tensor =
        Scope.keep Leaves.tensor (fun () ->
            VisionTransformer.tokens embedding.Parts adapters vit images |> join embedding)
