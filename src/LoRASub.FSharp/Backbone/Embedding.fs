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
        /// Brings each d columns of a view to mean 0 and variance 1, so that no block outweighs another.
        Standardise: bool
        /// Also embeds the image mirrored left to right. The embedding is the mean over the views.
        Flip: bool
        /// Also embeds the image moved half a patch down and to the right.
        Shift: bool
    }

type private View =
    | Whole
    | Mirrored
    | Shifted

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
            Shift = false
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
            Shift = false
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

    // class tokens of the last few blocks
    let private lastClasses (count: int) (vit: VisionTransformer) =
        let depth = vit.Blocks.Length

        [|
            for block in max 1 (depth - count + 1) .. depth -> normed vit block Tokens.Class
        |]

    // of all blocks
    let private pairs (first: Tokens) (second: Tokens) (vit: VisionTransformer) =
        standardised
            [|
                for block in 1 .. vit.Blocks.Length do
                    normed vit block first
                    normed vit block second

                yield! lastClasses 3 vit
            |]

    /// <summary>Spread of the patch tokens of every block, their change from patch to patch, and the class token of the
    /// last three, standardised. Those of the last block after the final norm.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of (2 · depth + 3) · d columns, fewer where there are fewer than three blocks.</returns>
    let texture (vit: VisionTransformer) : Embedding =
        pairs Tokens.PatchSpread Tokens.PatchChange vit

    // of the last four blocks
    let private turns (tokens: Tokens) (others: Tokens) (vit: VisionTransformer) =
        let depth = vit.Blocks.Length

        standardised
            [|
                for block in max 1 (depth - 3) .. depth do
                    normed vit block (if (depth - block) % 2 = 0 then tokens else others)

                yield! lastClasses 2 vit
            |]

    /// <summary>Of the last four blocks, by turns, the spread of the patch tokens and their change from patch to patch, and
    /// the class token of the last two, standardised. Those of the last block after the final norm.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of 6d columns, fewer where there are fewer than four blocks.</returns>
    let smallTexture (vit: VisionTransformer) : Embedding =
        turns Tokens.PatchChange Tokens.PatchSpread vit

    /// <summary>`texture`, and in every block the mean of the patch tokens and of the middle ones.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding of (4 · depth + 3) · d columns, fewer where there are fewer than three blocks.</returns>
    let full (vit: VisionTransformer) : Embedding =
        let texture = texture vit

        { texture with
            Parts =
                [|
                    yield! texture.Parts

                    for block in 1 .. vit.Blocks.Length do
                        normed vit block Tokens.PatchMean
                        normed vit block Tokens.PatchCentre
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

    /// <summary>The first of `texture`, `smallTexture` and `output` that has at most 5,000 columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding.</returns>
    let rich (vit: VisionTransformer) : Embedding =
        within 5000L [ texture; smallTexture ] vit

    /// <summary>The first of `full`, `texture`, `smallTexture` and `output` that has at most 10,500 columns.</summary>
    /// <param name="vit">The backbone.</param>
    /// <returns>An embedding.</returns>
    let richest (vit: VisionTransformer) : Embedding =
        within 10500L [ full; texture; smallTexture ] vit

    let private table =
        [
            "class-token", "class token after the final norm", output
            "last-blocks", "class and mean patch token of the last three blocks", lastBlocks
            "all-blocks",
            "class and mean patch token of all blocks; the last one's patches by quadrant",
            allBlocks
            "small-texture",
            "spread or change, alternating, of the patch tokens of the last four blocks; class token of the last two",
            smallTexture
            "texture",
            "spread of the patch tokens of all blocks and their change from patch to patch; class token of the last three",
            texture
            "full", "texture, with the mean of the patch tokens and of the middle ones of all blocks", full
            "rich", "the first of texture, small-texture and class-token with at most 5,000 columns", rich
            "richest",
            "the first of full, texture, small-texture and class-token with at most 10,500 columns",
            richest
        ]

    // names in files from before checkpoint version 7
    let private former =
        [
            "moments", pairs Tokens.PatchMean Tokens.PatchSpread
            "spread", turns Tokens.PatchSpread Tokens.PatchSpread
        ]

    /// The embeddings that have a name.
    let names: string list = table |> List.map (fun (name, _, _) -> name)

    /// Names and descriptions, including `frozen+`, `+flip` and `+shift`.
    let meanings: (string * string) list =
        (table |> List.map (fun (name, meaning, _) -> name, meaning))
        @ [
            "frozen+NAME", "the same tokens of the frozen network, side by side with the adapted ones"
            "NAME+flip", "the mean over the image and its mirror image"
            "NAME+shift", "the mean over the image and a copy moved half a patch down and right"
        ]

    /// <summary>The embedding of that name.</summary>
    /// <param name="name">One of `names`; after `frozen+` the same tokens of the frozen network stand in front, and
    /// before `+flip` and `+shift` the mean is taken with the mirrored and the moved image.</param>
    /// <returns>The embedding for a backbone.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An unknown name.</exception>
    let named (name: string) : VisionTransformer -> Embedding =
        let isJoined = name.StartsWith "frozen+"
        let words = (if isJoined then name.Substring 7 else name).Split '+' |> List.ofArray
        let bare, marks = words.Head, words.Tail

        let known =
            [ for name, _, embedding in table -> name, embedding ] @ former |> Map.ofList

        match known.TryFind bare with
        | None ->
            let listed = String.concat ", " names
            Errors.reject "embedding" $"must be one of {listed}" $"'{name}'" (Errors.didYouMean names bare)
        | Some _ when List.distinct marks <> marks || List.except [ "flip"; "shift" ] marks <> [] ->
            Errors.reject "embedding" "may end in +flip and +shift, each once" $"'{name}'" ""
        | Some embedding ->
            fun vit ->
                let embedding = embedding vit
                let embedding = if isJoined then withFrozen embedding else embedding

                { embedding with
                    Flip = List.contains "flip" marks
                    Shift = List.contains "shift" marks
                }

    /// <summary>Rejects an embedding that a backbone cannot give.</summary>
    /// <param name="vit">The backbone.</param>
    /// <param name="embedding">The embedding.</param>
    /// <exception cref="T:LoRASub.Core.InputException">No parts, a block outside 1..depth, or quadrants of a patch grid of
    /// odd side.</exception>
    let check (vit: VisionTransformer) (embedding: Embedding) : unit =
        VisionTransformer.checkParts (parts embedding) vit

    let private show (vit: VisionTransformer) (images: torch.Tensor) view : torch.Tensor =
        let by = int64 (vit.PatchSize / 2)

        // the edge is reflected
        let moved (dim: int64) (images: torch.Tensor) =
            let edge = images.narrow(dim, 1L, by).flip dim
            torch.cat ([| edge; images.narrow (dim, 0L, images.shape[int dim] - by) |], dim)

        match view with
        | Whole -> images.alias ()
        | Mirrored -> images.flip 3L
        | Shifted -> images |> moved 2L |> moved 3L

    let private viewsOf (embedding: Embedding) =
        [|
            Whole
            if embedding.Flip then
                Mirrored
            if embedding.Shift then
                Shifted
        |]

    /// <summary>The images as an embedding sees them: as they are and, where it says so, mirrored left to right, and moved
    /// half a patch down and to the right, with the edges reflected.</summary>
    /// <param name="embedding">The embedding.</param>
    /// <param name="vit">The backbone.</param>
    /// <param name="images">[n, c, H, W] in the backbone's size, borrowed.</param>
    /// <returns>One to three tensors [n, c, H, W], owned by the caller.</returns>
    let views (embedding: Embedding) (vit: VisionTransformer) (images: torch.Tensor) : torch.Tensor[] =
        let side = int64 vit.ImageSize
        Shape.expect "images" [ Axis.Any "batch"; Axis.Any "channels"; Axis.Is side; Axis.Is side ] images
        Scope.keep Leaves.tensors (fun () -> viewsOf embedding |> Array.map (show vit images))

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
    /// <returns>[n, d] for each of `more`, or [n, 4d] for quadrants, and [n, width] for each embedding, the mean over its
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
        : struct (torch.Tensor[] * torch.Tensor[]) =
        let read network wanted view =
            match Array.distinct wanted with
            | [||] -> Map.empty
            | distinct ->
                VisionTransformer.tokens distinct network vit view
                |> Array.zip distinct
                |> Map.ofArray

        // tokens of both networks, by part
        let ofView view =
            let mine = embeddings |> Array.filter (viewsOf >> Array.contains view)
            let shown = show vit images view
            let more = if view = Whole then more else [||]

            let adapted =
                read adapters (Array.append more (mine |> Array.collect _.Parts)) shown

            match frozen, mine |> Array.collect _.Frozen with
            | Some network, wanted -> view, adapted, read network wanted shown
            | None, [||] -> view, adapted, Map.empty
            | None, wanted ->
                Errors.reject
                    "embedding"
                    "must have no frozen parts where the frozen network is not given"
                    $"{wanted.Length}"
                    "give that network as well"

        Scope.keep (Leaves.both Leaves.tensors Leaves.tensors) (fun () ->
            let seen =
                embeddings
                |> Array.collect viewsOf
                |> Array.append [| Whole |]
                |> Array.distinct
                |> Array.map ofView

            let embed embedding =
                [|
                    for view, adapted, still in seen do
                        if Array.contains view (viewsOf embedding) then
                            Array.append
                                (embedding.Frozen |> Array.map (fun part -> still[part]))
                                (embedding.Parts |> Array.map (fun part -> adapted[part]))
                            |> join embedding
                |]
                |> fun views -> torch.stack(views).mean [| 0L |]

            let _, adapted, _ = seen[0]

            // a part that two want is one tensor, and each owner frees its own
            struct (more |> Array.map (fun part -> adapted[part].alias()), Array.map embed embeddings))

    /// <summary>Embeds images by the adapted network.</summary>
    /// <param name="embedding">Without frozen parts.</param>
    /// <param name="adapters">The network's adapters, borrowed.</param>
    /// <param name="vit">The backbone, borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range, borrowed.</param>
    /// <returns>[n, width] in the master format, owned by the caller. Differentiable once.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `embedAll` rejects.</exception>
    let embed
        (embedding: Embedding)
        (adapters: Adapters)
        (vit: VisionTransformer)
        (images: torch.Tensor)
        : torch.Tensor =
        let struct (_, embedded) = embedAll [| embedding |] [||] None adapters vit images
        embedded[0]
