namespace LoRASub.Backbone

open LoRASub.Core
open TorchSharp

/// What a classifier sees of an image: tokens of the network, side by side.
type Embedding =
    {
        /// Tokens of the frozen network. They come first and need a second pass.
        Frozen: EmbeddingPart[]
        /// Read from the network as the method has adapted it.
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

    let private standardised (parts: EmbeddingPart[]) : Embedding =
        {
            Frozen = [||]
            Parts = parts
            Standardise = true
            Flip = false
        }

    /// <summary>The class token of the last block after the final norm, as `VisionTransformer.features`.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of d columns.</returns>
    let output (vit: VisionTransformer) : Embedding =
        {
            Frozen = [||]
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

        ofBlocks [ max 1 (depth - 2) .. depth ] |> standardised

    /// <summary>Class and mean patch token of every block, standardised. The last block gives the quadrants of its patches
    /// after the final norm instead of their mean.</summary>
    /// <param name="vit">The backbone. `check` does not accept one whose patch grid has an odd side.</param>
    /// <returns>An embedding of (2 · depth + 3) · d columns.</returns>
    let allBlocks (vit: VisionTransformer) : Embedding =
        let depth = vit.Blocks.Length

        standardised
            [|
                yield! ofBlocks [ 1 .. depth - 1 ]
                part depth Tokens.Class

                { part depth Tokens.PatchQuadrants with
                    FinalNorm = true
                }
            |]

    // the final norm is trained for tokens of the last block
    let private normed (vit: VisionTransformer) (block: int) (tokens: Tokens) =
        { part block tokens with
            FinalNorm = (block = vit.Blocks.Length)
        }

    /// <summary>Mean and spread of the patch tokens of every block, and the class token of the last three, standardised.
    /// Those of the last block after the final norm.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of (2 · depth + 3) · d columns, fewer where there are fewer than three blocks.</returns>
    let moments (vit: VisionTransformer) : Embedding =
        let depth = vit.Blocks.Length

        standardised
            [|
                for block in 1..depth do
                    normed vit block Tokens.PatchMean
                    normed vit block Tokens.PatchSpread

                for block in max 1 (depth - 2) .. depth do
                    normed vit block Tokens.Class
            |]

    /// <summary>Spread of the patch tokens of the last four blocks, and the class token of the last two, standardised. Those
    /// of the last block after the final norm.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of 6d columns, fewer where there are fewer than four blocks.</returns>
    let spread (vit: VisionTransformer) : Embedding =
        let depth = vit.Blocks.Length

        standardised
            [|
                for block in max 1 (depth - 3) .. depth do
                    normed vit block Tokens.PatchSpread

                for block in max 1 (depth - 1) .. depth do
                    normed vit block Tokens.Class
            |]

    /// <summary>`moments`, and in every block the mean of the middle patches and the change from patch to
    /// patch.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of (4 · depth + 3) · d columns, fewer where there are fewer than three blocks.</returns>
    let full (vit: VisionTransformer) : Embedding =
        { moments vit with
            Parts =
                [|
                    yield! (moments vit).Parts

                    for block in 1 .. vit.Blocks.Length do
                        normed vit block Tokens.PatchCentre
                        normed vit block Tokens.PatchChange
                |]
        }

    /// <summary>Puts the frozen network's tokens before the adapted ones. The frozen half cannot drift.</summary>
    /// <param name="embedding">Of the adapted network alone.</param>
    /// <returns>An embedding of twice as many columns, which costs a second pass.</returns>
    let withFrozen (embedding: Embedding) : Embedding =
        { embedding with
            Frozen = embedding.Parts
        }

    // widths d in a part
    let private pieces (part: EmbeddingPart) =
        match part.Tokens with
        | Tokens.Class
        | Tokens.PatchMean
        | Tokens.PatchSpread
        | Tokens.PatchCentre
        | Tokens.PatchChange -> 1L
        | Tokens.PatchQuadrants -> 4L

    /// <summary>Every part, in the order of the columns.</summary>
    /// <param name="embedding">The embedding.</param>
    /// <returns>First those of the frozen network.</returns>
    let parts (embedding: Embedding) : EmbeddingPart[] =
        Array.append embedding.Frozen embedding.Parts

    /// <summary>The number of columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <param name="embedding">The embedding.</param>
    /// <returns>The width of what `join` gives.</returns>
    let width (vit: VisionTransformer) (embedding: Embedding) : int64 =
        vit.Width * Array.sumBy pieces (parts embedding)

    // a head of second moments keeps the square of the columns in memory
    let private within
        (columns: int64)
        (choices: (VisionTransformer -> Embedding) list)
        (vit: VisionTransformer)
        =
        choices
        |> List.map (fun embedding -> embedding vit)
        |> List.tryFind (fun embedding -> width vit embedding <= columns)
        |> Option.defaultWith (fun () -> output vit)

    /// <summary>The first of `moments`, `spread` and `output` that has at most 5,000 columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding.</returns>
    let rich (vit: VisionTransformer) : Embedding = within 5000L [ moments; spread ] vit

    /// <summary>The first of `full`, `moments`, `spread` and `output` that has at most 10,500 columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding.</returns>
    let richest (vit: VisionTransformer) : Embedding =
        within 10500L [ full; moments; spread ] vit

    let private table =
        [
            "class-token", "class token after the final norm", output
            "last-blocks", "class and mean patch token of the last three blocks", lastBlocks
            "all-blocks",
            "class and mean patch token of all blocks; the last one's patches by quadrant",
            allBlocks
            "spread",
            "spread of the patch tokens of the last four blocks, class token of the last two",
            spread
            "moments",
            "mean and spread of the patch tokens of all blocks, class token of the last three",
            moments
            "full",
            "moments, with the mean of the middle patches and the change from patch to patch of all blocks",
            full
            "rich", "the first of moments, spread and class-token with at most 5,000 columns", rich
            "richest",
            "the first of full, moments, spread and class-token with at most 10,500 columns",
            richest
        ]

    /// The embeddings that have a name.
    let names: string list = table |> List.map (fun (name, _, _) -> name)

    /// Names and descriptions, including `frozen+` and `+flip`.
    let meanings: (string * string) list =
        (table |> List.map (fun (name, meaning, _) -> name, meaning))
        @ [
            "frozen+NAME", "the same tokens of the frozen network, side by side with the adapted ones"
            "NAME+flip", "also of the mirrored image"
        ]

    /// <summary>The embedding of that name.</summary>
    /// <param name="name">One of `names`; after `frozen+` the same tokens of the frozen network stand in front, and
    /// before `+flip` each image is also embedded mirrored.</param>
    /// <returns>The embedding for a backbone.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An unknown name.</exception>
    let named (name: string) : VisionTransformer -> Embedding =
        let without (mark: string) (cut: string -> string) (has: bool) (text: string) =
            if has then cut text, true else text, false

        let bare, isJoined =
            without "frozen+" (fun t -> t.Substring 7) (name.StartsWith "frozen+") name

        let bare, isFlipped =
            without "+flip" (fun t -> t.Substring(0, t.Length - 5)) (bare.EndsWith "+flip") bare

        match table |> List.tryFind (fun (known, _, _) -> known = bare) with
        | Some(_, _, embedding) ->
            fun vit ->
                let embedding = embedding vit
                let embedding = if isJoined then withFrozen embedding else embedding
                { embedding with Flip = isFlipped }
        | None ->
            let known = String.concat ", " names
            Errors.reject "embedding" $"must be one of {known}" $"'{name}'" (Errors.didYouMean names bare)

    /// <summary>Rejects an embedding that a backbone cannot give.</summary>
    /// <param name="vit">The backbone.</param>
    /// <param name="embedding">The embedding.</param>
    /// <exception cref="T:LoRASub.Core.InputException">No parts, a block outside 1..depth, or quadrants of a patch grid of
    /// odd side.</exception>
    let check (vit: VisionTransformer) (embedding: Embedding) : unit =
        VisionTransformer.checkParts (parts embedding) vit

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
        let parts = parts embedding

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

    /// <summary>Tokens and embeddings of images, from one forward pass for each network and view.</summary>
    /// <param name="embeddings">Each reads what it needs; what two read is computed once.</param>
    /// <param name="more">What else to read of the adapted network; may be empty.</param>
    /// <param name="frozen">The network as it was loaded, borrowed; needed by embeddings with `Frozen` parts.</param>
    /// <param name="adapters">The adapted network, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>[n, d] for each of `more`, or [n, 4d] for quadrants, and for each embedding [n, width] of each of its
    /// views, all in the master format; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `VisionTransformer.tokens` rejects, or frozen parts without
    /// the frozen network.</exception>
    let embedAll
        (embeddings: Embedding[])
        (more: EmbeddingPart[])
        (frozen: Adapters option)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : struct (torch.Tensor[] * torch.Tensor[][]) =
        let leaves struct (tokens, views) =
            Seq.append (Leaves.tensors tokens) (Seq.collect Leaves.tensors views)

        Scope.keep leaves (fun () ->
            let read (network: Adapters) (wanted: EmbeddingPart[]) view =
                let distinct = Array.distinct wanted

                if Array.isEmpty distinct then
                    Map.empty
                else
                    VisionTransformer.tokens distinct network vit view
                    |> Array.zip distinct
                    |> Map.ofArray

            let ofView (mine: Embedding[]) more view =
                let adapted = read adapters (Array.append more (mine |> Array.collect _.Parts)) view

                let still =
                    match frozen, mine |> Array.collect _.Frozen with
                    | Some network, wanted -> read network wanted view
                    | None, [||] -> Map.empty
                    | None, wanted ->
                        Errors.reject
                            "embedding"
                            "must have no frozen parts where the frozen network is not given"
                            $"{wanted.Length}"
                            "give that network as well"

                let embed (embedding: Embedding) =
                    [|
                        yield! embedding.Frozen |> Array.map (fun part -> still[part])
                        yield! embedding.Parts |> Array.map (fun part -> adapted[part])
                    |]
                    |> join embedding

                // a part that two want is one tensor, and each owner frees its own
                struct (more |> Array.map (fun part -> adapted[part].alias()), Array.map embed mine)

            let struct (tokens, first) = ofView embeddings more images
            let flipping = embeddings |> Array.filter _.Flip

            let mirrored =
                if Array.isEmpty flipping then
                    [||]
                else
                    let both: torch.Tensor[] = views flipping[0] images
                    let struct (_, found) = ofView flipping [||] both[1]
                    found

            let views =
                embeddings
                |> Array.mapi (fun i embedding ->
                    if embedding.Flip then
                        let before = embeddings[.. i - 1] |> Array.filter _.Flip |> Array.length
                        [| first[i]; mirrored[before] |]
                    else
                        [| first[i] |])

            struct (tokens, views))

    /// <summary>Embeds one view of images by the adapted network.</summary>
    /// <param name="embedding">Without frozen parts.</param>
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
