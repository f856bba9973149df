namespace LoRASub.Backbone

open System
open System.Globalization
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open TorchSharp

/// What a weights file leaves open.
type BackboneOptions =
    {
        /// None: what the file states (`WeightsCard`), or timm's number for the width, which `Weights.notes` reports.
        Heads: int option
        /// Pixels; None: the size whose positions the file holds.
        ImageSize: int option
        /// Of the layer norms.
        NormEpsilon: NormEpsilon
        /// The formats of weights and products.
        Precision: Precision
        /// Where the network is.
        Device: torch.Device
        /// Compute the blocks' activations again for the gradient instead of keeping them: slower, in less memory.
        CheckpointActivations: bool
    }

/// The sizes of a plain Vision Transformer.
type BackboneShape =
    {
        /// d: columns of a token.
        Width: int
        /// Blocks.
        Depth: int
        /// Attention heads, which divide the width.
        Heads: int
        /// Pixels.
        PatchSize: int
        /// Pixels.
        ImageSize: int
        /// 1 or 3.
        Channels: int
        /// Hidden columns of the MLP over the width.
        MlpRatio: float
        /// Whether queries, keys and values have a bias.
        QkvBias: bool
    }

/// Files of weights to the record of a Vision Transformer. Other names become timm's (huggingface/pytorch-image-models,
/// vision_transformer.py) by the rows of `Namings`; then there is one builder.
[<RequireQualifiedAccess>]
module Weights =

    /// Pixels. Attention over the patches of larger images would fill any memory.
    let private largestImage = 4096L

    let private tensorOf = TensorBytes.tensorOf

    /// Where a file's network is: the names that it has, and what a training program put before them: `module.`,
    /// `backbone.`, `model.encoder.`; mostly nothing.
    type private Place = { Naming: Naming; Prefix: string }

    /// Of two networks that are trained together, the one that is published as the result.
    let private published = [ "teacher", "student"; "base_encoder", "momentum_encoder" ]

    /// Rejects a file of several networks.
    let private placeOf (subject: string) (names: string seq) : Place =
        let before (naming: Naming) =
            let anchor = Namings.anchor naming

            names
            |> Seq.filter (fun name ->
                name = anchor
                || name.EndsWith("." + anchor, StringComparison.Ordinal)
                || name.EndsWith("/" + anchor, StringComparison.Ordinal))
            |> Seq.map (fun name ->
                {
                    Naming = naming
                    Prefix = name.Substring(0, name.Length - anchor.Length)
                })
            |> List.ofSeq

        let has (part: string) (place: Place) =
            Array.contains part (place.Prefix.Split('.', '/'))

        match List.collect before Namings.all with
        | [] ->
            {
                Naming = Namings.all.Head
                Prefix = ""
            }
        | [ one ] -> one
        | several ->
            let meant =
                published
                |> List.tryPick (fun (result, other) ->
                    match several |> List.filter (has result) with
                    | [ one ] when
                        several
                        |> List.forall (fun place -> place.Prefix = one.Prefix || has other place)
                        ->
                        Some one
                    | _ -> None)

            match meant with
            | Some one -> one
            | None ->
                let shown =
                    several
                    |> List.map (fun place -> $"'{TensorBytes.shown place.Prefix}'")
                    |> String.concat ", "

                Errors.reject
                    subject
                    "must hold one Vision Transformer"
                    $"{several.Length}, under the prefixes {shown}"
                    "save the tensors of one of them, as docs/formats.md shows"

    /// The tensors of a file that make the network.
    type internal Selection =
        {
            /// Whose names they are.
            NamingName: string
            /// Before every name of the network.
            Prefix: string
            /// Blocks.
            Depth: int
            /// By timm's name: the rule and the file's names.
            Leaves: Map<string, LeafRule * string list>
            /// The other tensors of the file, and what they are.
            Ignored: (string * string) list
            /// The file's names of a leaf that it does not have.
            Absent: string -> string list
        }

        /// The file's names of the tensors that are read.
        member this.Used = this.Leaves.Values |> Seq.collect snd |> Set.ofSeq

        /// Whether a learned factor follows each attention and each MLP, as in DINOv2.
        member this.HasLayerScale = this.Leaves.ContainsKey "blocks.0.ls1.gamma"

    let private isGamma (leaf: string) =
        leaf.EndsWith(".gamma", StringComparison.Ordinal)

    /// Finds a plain ViT among a file's names. Rejects several, and what a plain ViT does not have.
    let internal select (subject: string) (names: string seq) : Selection =
        let place = placeOf subject names
        let naming, prefix = place.Naming, place.Prefix

        let inside, outside =
            names
            |> List.ofSeq
            |> List.partition (fun name -> name.StartsWith(prefix, StringComparison.Ordinal))

        let what (name: string) =
            naming.Ignored
            |> List.tryPick (fun (pattern, what) ->
                if pattern.IsMatch(name.Substring prefix.Length) then
                    Some(name, what)
                else
                    None)

        let ofLeaf (name: string) =
            let template, block = Namings.template (name.Substring prefix.Length)

            naming.Rules
            |> List.tryFind (fun rule -> List.contains template rule.Sources)
            |> Option.map (fun rule -> Namings.inBlock block rule.Leaf, block, rule)

        let others, needed = inside |> List.partition (what >> Option.isSome)
        let found = needed |> List.map (fun name -> name, ofLeaf name)

        match
            [
                for name, leaf in found do
                    if leaf.IsNone then
                        name
            ]
        with
        | [] -> ()
        | unknown ->
            let name, received, advice = Namings.telling unknown

            Errors.reject
                (tensorOf subject name)
                $"must belong to a plain ViT in the names of {naming.Name}"
                received
                advice

        let found = found |> List.choose snd

        let depth =
            match found |> List.choose (fun (_, block, _) -> block) |> List.distinct |> List.sort with
            | [] ->
                let first = Namings.sources naming "blocks.0.norm1.weight" |> List.head
                Errors.reject subject "must have at least one block" $"no '{prefix}{first}'" ""
            | blocks ->
                match blocks |> List.indexed |> List.tryFind (fun (i, block) -> i <> block) with
                | Some(i, block) ->
                    Errors.reject subject $"must have a block {i}" $"block {block} after {i - 1}" ""
                | None -> blocks.Length

        let leaves =
            found
            |> List.distinctBy (fun (leaf, _, rule) -> leaf, rule.Sources)
            |> List.groupBy (fun (leaf, _, _) -> leaf)
            |> List.map (fun (leaf, rules) ->
                match rules with
                | [ _, block, rule ] ->
                    leaf,
                    (rule, rule.Sources |> List.map (fun source -> prefix + Namings.inBlock block source))
                | _ ->
                    let received =
                        rules |> List.map (fun (_, _, rule) -> rule.Sources.Head) |> String.concat ", "

                    Errors.reject subject $"must have one tensor as timm's {leaf}" received "")
            |> Map.ofList

        match leaves |> Map.filter (fun leaf _ -> isGamma leaf) with
        | gammas when gammas.Count = 0 || gammas.Count = 2 * depth -> ()
        | gammas ->
            let name = (snd (Seq.head gammas.Values)).Head

            let rule =
                "must belong to a plain ViT: either both layer scales in every block, or none"

            Errors.reject (tensorOf subject name) rule $"{gammas.Count} for {depth} blocks" ""

        {
            NamingName = naming.Name
            Prefix = prefix
            Depth = depth
            Leaves = leaves
            Ignored =
                List.choose what others
                @ (outside
                   |> List.map (fun name -> name, $"not under '{TensorBytes.shown prefix}'"))
            Absent = Namings.sources naming >> List.map (fun source -> prefix + source)
        }

    /// A card with what the names and the shapes of a network show where the card says nothing.
    let private completed
        (subject: string)
        (names: string seq)
        (shapeOf: string -> int64[] option)
        (card: WeightsCard)
        : WeightsCard =
        let place = placeOf subject names

        let query =
            place.Prefix
            + List.head (Namings.sources place.Naming "blocks.0.attn.qkv.weight")

        let heads =
            match Option.bind place.Naming.Heads (shapeOf query) with
            | None when place.Prefix.EndsWith("base_encoder.", StringComparison.Ordinal) ->
                // MoCo v3's ViT-S has 12 heads, where others have 6
                match Option.bind Array.tryLast (shapeOf query) with
                | Some 384L -> Some 12
                | _ -> None
            | found -> found

        let stated value =
            {
                Value = value
                Place = tensorOf subject query
            }

        { card with
            Heads = card.Heads |> Option.orElse (Option.map stated heads)
            InputRange =
                card.InputRange
                |> Option.orElse (place.Naming.InputRange |> Option.map (fun range -> stated [| range |]))
        }

    /// <summary>What a weights file shows of its training: what `WeightsCard.read` finds, then what the names and the
    /// shapes of its tensors show.</summary>
    /// <param name="header">The header of the weights file.</param>
    /// <returns>The card; None for what neither shows.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `WeightsCard.read` rejects, or tensors of several
    /// networks.</exception>
    let card (header: TensorFileHeader) : WeightsCard =
        let shapes = header.Entries |> Array.map (fun e -> e.Name, e.Shape) |> Map.ofArray
        completed header.Path shapes.Keys shapes.TryFind (WeightsCard.read header)

    /// timm's number of heads for a width.
    let private timmHeads =
        Map.ofList [ 192L, 3; 384L, 6; 768L, 12; 1024L, 16; 1280L, 16 ]

    /// timm's number of heads for a width; None where it has no network so wide.
    let internal usualHeads (width: int64) : int option = Map.tryFind width timmHeads

    let private headsOf (subject: string) (options: BackboneOptions) (card: WeightsCard) (width: int64) =
        let heads, place =
            match options.Heads, card.Heads with
            | Some heads, _ -> heads, subject
            | None, Some stated -> stated.Value, stated.Place
            | None, None ->
                match usualHeads width with
                | Some heads -> heads, subject
                | None ->
                    let rule =
                        "must give its number of attention heads where its width is not one of timm's"

                    Errors.reject
                        subject
                        rule
                        $"width {width} and no metadata 'heads'"
                        "give --attention-heads"

        if heads < 1 || width % int64 heads <> 0L then
            Errors.reject
                place
                $"must have a number of heads that divides its width {width}"
                $"{heads}"
                "give --attention-heads"

        heads

    /// Patches along one side of the images that the positions were made for.
    let private gridOf (subject: string) (positions: torch.Tensor) =
        let tokens = positions.shape[1]
        let side = int64 (sqrt (float (tokens - 1L)))

        if tokens < 2L || side * side <> tokens - 1L then
            Errors.reject subject "must hold a class token and a square of patches" $"{tokens} tokens" ""

        side

    /// In float32 or wider.
    let private widened (tensor: torch.Tensor) : torch.Tensor =
        if tensor.dtype = torch.ScalarType.Float64 then
            tensor
        else
            tensor.``to`` torch.ScalarType.Float32

    /// Positions [1, 1 + g², d] resampled to another square grid, as timm's `resample_abs_pos_embed`: bicubic and
    /// antialiased, in float32 or wider; the class token's row is kept. Borrows; owned by the caller.
    let internal resamplePositions (grid: int64) (positions: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let old = gridOf "positions" positions
            let d = positions.shape[2]

            let image =
                (widened positions)
                    .narrow(1L, 1L, old * old)
                    .reshape(1L, old, old, d)
                    .permute(0L, 3L, 1L, 2L) // [1, d, g, g]

            let resampled =
                torch.nn.functional.interpolate (
                    image,
                    [| grid; grid |],
                    mode = torch.InterpolationMode.Bicubic,
                    align_corners = Nullable false,
                    antialias = true
                )

            let rows =
                resampled.permute(0L, 2L, 3L, 1L).reshape(1L, grid * grid, d).``to`` positions.dtype

            torch.cat ([| positions.narrow (1L, 0L, 1L); rows |], 1L))

    let private checkEpsilon (name: string) (epsilon: float) =
        if not (Double.IsFinite epsilon && epsilon > 0.0) then
            Errors.reject $"layer-norm epsilon {name}" "must be positive" $"{epsilon}" ""

    /// Two reductions in one pass; NaN is the least and the most of what holds it.
    let private isFinite (tensor: torch.Tensor) =
        let struct (least, most) = tensor.aminmax ()
        least.isfinite().item<bool>() && most.isfinite().item<bool>()

    /// With `copy` the network owns its memory.
    let private build
        (copy: bool)
        (options: BackboneOptions)
        (subject: string)
        (card: WeightsCard)
        (tensors: Map<string, torch.Tensor>)
        : VisionTransformer =
        checkEpsilon "of the blocks" options.NormEpsilon.Blocks
        checkEpsilon "of the final norm" options.NormEpsilon.Final
        let selection = select subject tensors.Keys

        // as the file calls it, and as timm does where that differs
        let named (leaf: string) =
            let names =
                match Map.tryFind leaf selection.Leaves with
                | Some(_, names) -> names
                | None -> selection.Absent leaf

            let shown = names |> List.map TensorBytes.shown |> String.concat "', '"

            let suffix =
                if names = [ selection.Prefix + leaf ] then
                    ""
                else
                    $", timm's {leaf}"

            $"{subject}: tensor '{shown}'{suffix}"

        let source (rule: LeafRule) (name: string) =
            match Map.tryFind name tensors with
            | None -> Errors.reject (tensorOf subject name) "must be there" "no tensor of this name" ""
            | Some tensor ->
                match rule.Axes with
                | Some axes when int64 axes <> tensor.dim () ->
                    Errors.reject
                        (tensorOf subject name)
                        $"must have {axes} axes"
                        (Shape.text tensor.shape)
                        ""
                | _ -> rule.Turn tensor

        let joined (parts: torch.Tensor list) leaf =
            for part in parts.Tail do
                if
                    part.shape <> parts.Head.shape
                    || part.dtype <> parts.Head.dtype
                    || part.dim () = 0L
                then
                    let received =
                        parts
                        |> List.map (fun p -> $"{Shape.text p.shape} {p.dtype}")
                        |> String.concat ", "

                    Errors.reject (named leaf) "must have one shape and one type" received ""

            torch.cat (Array.ofList parts, 0L)

        let find leaf axes =
            match Map.tryFind leaf selection.Leaves with
            | None -> Errors.reject (named leaf) "must be there" "no tensor of this name" ""
            | Some(rule, names) ->
                let tensor =
                    match names |> List.map (source rule) with
                    | [ one ] -> one
                    | parts -> joined parts leaf

                Shape.expect (named leaf) axes tensor

                if not (tensor.is_floating_point ()) then
                    Errors.reject (named leaf) "must be floating point" $"{tensor.dtype}" ""

                if tensor.numel () = 0L then
                    Errors.reject (named leaf) "must not be empty" (Shape.text tensor.shape) ""

                tensor

        let compute = Precision.compute options.Precision

        Scope.noGrad VisionTransformer.leaves (fun () ->
            let cast (dtype: torch.ScalarType) name (tensor: torch.Tensor) =
                let leaf = tensor.detach().``to``(dtype, options.Device, copy = copy)

                if not (isFinite leaf) then
                    Errors.reject (named name) $"must be finite in {dtype}" "NaN or infinity" ""

                leaf

            let leafIn dtype name axes = cast dtype name (find name axes)
            let leaf name axes = leafIn compute name axes

            // γ · (W x + b) = (γ W) x + γ b, in float64, so that it is rounded once
            let scaledBy gamma name axes =
                let tensor = find name axes

                let tensor =
                    if selection.Leaves.ContainsKey gamma then
                        let rows = List.head axes
                        let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64
                        let factor = wide (find gamma [ rows ])

                        (wide tensor)
                            .mul(factor.reshape [| -1L; yield! Seq.replicate (axes.Length - 1) 1L |])
                    else
                        tensor

                cast compute name tensor

            let patches =
                find
                    "patch_embed.proj.weight"
                    [ Axis.Any "d"; Axis.Any "channels"; Axis.Any "p"; Axis.Any "p" ]

            let d, patch = patches.shape[0], patches.shape[2]

            if patches.shape[3] <> patch then
                Errors.reject
                    (named "patch_embed.proj.weight")
                    "must have square patches"
                    (Shape.text patches.shape)
                    ""

            let heads = headsOf subject options card d
            let positions = find "pos_embed" [ Axis.Is 1L; Axis.Any "1 + tokens"; Axis.Is d ]
            let oldGrid = gridOf (named "pos_embed") positions

            match card.ImageSize with
            | Some stated when int64 stated.Value <> oldGrid * patch ->
                let rule =
                    $"must be {oldGrid * patch}, the size that the file's positions were made for"

                Errors.reject stated.Place rule $"{stated.Value}" "correct the number, or remove it"
            | _ -> ()

            let size =
                options.ImageSize |> Option.map int64 |> Option.defaultValue (oldGrid * patch)

            if size < patch || size % patch <> 0L || size > largestImage then
                let rule = $"must be a multiple of the patch, {patch} pixels, up to {largestImage}"
                Errors.reject "image size" rule $"{size}" ""

            let grid = size / patch

            let linear gamma name rows columns =
                {
                    Weight = scaledBy gamma $"{name}.weight" [ Axis.Is rows; Axis.Is columns ]
                    Bias = Some(scaledBy gamma $"{name}.bias" [ Axis.Is rows ])
                }

            let norm name epsilon =
                {
                    Weight = leaf $"{name}.weight" [ Axis.Is d ]
                    Bias = leaf $"{name}.bias" [ Axis.Is d ]
                    Epsilon = epsilon
                }

            let block i =
                let at layer = $"blocks.{i}.{layer}"
                let hidden = (find (at "mlp.fc1.weight") [ Axis.Any "hidden"; Axis.Is d ]).shape[0]
                let qkvBias = at "attn.qkv.bias"

                {
                    Norm1 = norm (at "norm1") options.NormEpsilon.Blocks
                    Qkv =
                        {
                            Weight =
                                leafIn
                                    (Precision.master options.Precision)
                                    (at "attn.qkv.weight")
                                    [ Axis.Is(3L * d); Axis.Is d ]
                            Bias =
                                if selection.Leaves.ContainsKey qkvBias then
                                    Some(leaf qkvBias [ Axis.Is(3L * d) ])
                                else
                                    None
                        }
                    Projection = linear (at "ls1.gamma") (at "attn.proj") d d
                    Norm2 = norm (at "norm2") options.NormEpsilon.Blocks
                    Fc1 = linear "" (at "mlp.fc1") hidden d
                    Fc2 = linear (at "ls2.gamma") (at "mlp.fc2") d hidden
                }

            {
                PatchEmbedding =
                    {
                        Weight = cast compute "patch_embed.proj.weight" patches
                        Bias = Some(leaf "patch_embed.proj.bias" [ Axis.Is d ])
                    }
                ClassToken = leaf "cls_token" [ Axis.Is 1L; Axis.Is 1L; Axis.Is d ]
                Positions =
                    cast
                        compute
                        "pos_embed"
                        (if grid = oldGrid then
                             positions
                         else
                             resamplePositions grid positions)
                Blocks = Array.init selection.Depth block
                Norm = norm "norm" options.NormEpsilon.Final
                Heads = heads
                ImageSize = int size
                Precision = options.Precision
                CheckpointActivations = options.CheckpointActivations
            })

    /// <summary>Builds the network from tensors in the names of timm, Hugging Face or Flax. Widths, depth, patch, MLP sizes
    /// and the qkv bias come from their shapes. One prefix before all names of the network is left out, and with it the
    /// tensors without it.</summary>
    /// <param name="options">What the file leaves open.</param>
    /// <param name="subject">Names the file of the tensors in errors.</param>
    /// <param name="metadata">May hold what a `WeightsCard` does.</param>
    /// <param name="tensors">By name, floating point, on any device; borrowed.</param>
    /// <returns>The network in the precision and on the device of the options, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A tensor is missing, unknown, of another shape, not
    /// floating point or not finite; the number of heads is unknown or does not divide the width; the image
    /// size is not a multiple of the patch; or the tensors are of several networks.</exception>
    let ofTensors
        (options: BackboneOptions)
        (subject: string)
        (metadata: Map<string, string>)
        (tensors: Map<string, torch.Tensor>)
        : VisionTransformer =
        // so that the caller's tensors and the network's never share memory
        let card =
            WeightsCard.ofMetadata subject metadata
            |> completed subject tensors.Keys (tensors.TryFind >> Option.map _.shape)

        build true options subject card tensors

    /// <summary>Reads a plain ViT from a file of weights: safetensors, NumPy's .npz, a PyTorch archive (.pth, .pt, .bin) or
    /// an index of shards, in the names of timm, Hugging Face or Flax (docs/backbones.md). Nothing in the file is
    /// executed. A classifier and other parts that the network does not need are left out.</summary>
    /// <param name="options">What the file leaves open.</param>
    /// <param name="path">The file.</param>
    /// <returns>The network in the precision and on the device of the options, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is not well-formed, or what `ofTensors` rejects,
    /// or what `WeightsCard.read` rejects of the JSON file beside it.</exception>
    let load (options: BackboneOptions) (path: string) : VisionTransformer =
        let what () = $"while loading the backbone {path}"

        NativeError.during what NativeError.moreMemory (fun () ->
            Scope.keep VisionTransformer.leaves (fun () ->
                let header = TensorFormats.header path
                let selection = select path (header.Entries |> Seq.map _.Name)
                let file = TensorFormats.readOnly selection.Used.Contains path
                build false options path (card header) file.Tensors))

    /// <summary>SHA-256 of a weights file.</summary>
    /// <param name="path">The file.</param>
    /// <returns>In lower-case hexadecimal; of an index of shards, that of the hashes of the index and its shards, one a
    /// line.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing or unreadable, or an index that is not
    /// well-formed.</exception>
    let sha256 (path: string) : string = TensorFormats.sha256 path

    /// Columns of a token, where the heads depend on them: Flax's names show the heads, whatever the width. 0 where the
    /// file does not show it.
    let internal width (header: TensorFileHeader) : int64 =
        let place = placeOf header.Path (header.Entries |> Seq.map _.Name)
        let anchor = place.Prefix + Namings.anchor place.Naming

        header.Entries
        |> Array.tryFind (fun entry -> entry.Name = anchor)
        |> Option.bind (fun entry -> Array.tryHead entry.Shape)
        |> Option.defaultValue 0L

    /// What `load` takes for granted in a file: a number of heads that is guessed from the width, and a prefix that is
    /// left out. Rejects a file of several networks.
    let internal notes
        (options: BackboneOptions)
        (card: WeightsCard)
        (header: TensorFileHeader)
        : string list =
        let place = placeOf header.Path (header.Entries |> Seq.map _.Name)
        let prefix = place.Prefix

        let others =
            header.Entries
            |> Array.map _.Name
            |> Array.filter (fun name -> not (name.StartsWith(prefix, StringComparison.Ordinal)))

        [
            if prefix <> "" then
                $"{header.Path}: names are read without the prefix '{TensorBytes.shown prefix}'"

            if others.Length > 0 then
                let tensors = Text.counted others.Length "tensor" "tensors"
                $"{header.Path}: ignored without the prefix: {tensors}, such as '{TensorBytes.shown others[0]}'"

            let width = width header

            match options.Heads, usualHeads width with
            | None, Some heads when card.Heads.IsNone ->
                $"{header.Path}: the weights do not state the number of attention heads; assuming {heads}, as timm at width {width} (--attention-heads N sets another)"
            | _ -> ()
        ]

    let private checkShape (shape: BackboneShape) =
        for name, size in
            [
                "width", shape.Width
                "depth", shape.Depth
                "heads", shape.Heads
                "patch size", shape.PatchSize
                "image size", shape.ImageSize
                "channels", shape.Channels
            ] do
            if size < 1 then
                Errors.reject $"backbone's {name}" "must be at least 1" $"{size}" ""

        if shape.ImageSize % shape.PatchSize <> 0 then
            Errors.reject
                "image size"
                $"must be a multiple of the patch, {shape.PatchSize} pixels"
                $"{shape.ImageSize}"
                ""

        if not (float shape.Width * shape.MlpRatio >= 1.0 && Double.IsFinite shape.MlpRatio) then
            Errors.reject "backbone's MLP ratio" "must give at least one hidden column" $"{shape.MlpRatio}" ""

    /// <summary>Random tensors in timm's names for a network: weights and positions from N(0, 0.02²) (not cut
    /// off, where timm cuts at 2), class token from N(0, 1e-6²), biases 0, norms 1.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="dtype">float32 or float64.</param>
    /// <param name="key">Decides every number.</param>
    /// <returns>The tensors by name, on the CPU; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A size of the shape is below 1.</exception>
    let randomTensors
        (shape: BackboneShape)
        (dtype: torch.ScalarType)
        (key: RandomKey)
        : Map<string, torch.Tensor> =
        checkShape shape
        let d, p = int64 shape.Width, int64 shape.PatchSize
        let tokens = pown (int64 shape.ImageSize / p) 2
        let hidden = int64 (float d * shape.MlpRatio)

        let linear name rows columns =
            [
                $"{name}.weight", [| rows; columns |], 0.0, 0.02
                $"{name}.bias", [| rows |], 0.0, 0.0
            ]

        let norm name =
            [ $"{name}.weight", [| d |], 1.0, 0.0; $"{name}.bias", [| d |], 0.0, 0.0 ]

        // name, shape, mean, standard deviation
        let leaves =
            [
                "cls_token", [| 1L; 1L; d |], 0.0, 1e-6
                "pos_embed", [| 1L; 1L + tokens; d |], 0.0, 0.02
                "patch_embed.proj.weight", [| d; int64 shape.Channels; p; p |], 0.0, 0.02
                "patch_embed.proj.bias", [| d |], 0.0, 0.0

                for i in 0 .. shape.Depth - 1 do
                    yield! norm $"blocks.{i}.norm1"
                    yield! linear $"blocks.{i}.attn.qkv" (3L * d) d
                    yield! linear $"blocks.{i}.attn.proj" d d
                    yield! norm $"blocks.{i}.norm2"
                    yield! linear $"blocks.{i}.mlp.fc1" hidden d
                    yield! linear $"blocks.{i}.mlp.fc2" d hidden

                yield! norm "norm"
            ]
            |> List.filter (fun (name, _, _, _) -> shape.QkvBias || not (name.EndsWith ".qkv.bias"))

        Scope.noGrad _.Values (fun () ->
            leaves
            |> List.mapi (fun i (name, sizes, mean, deviation) ->
                let numbers =
                    if deviation = 0.0 then
                        torch.full (sizes, Number.Of mean, dtype = dtype, device = torch.CPU)
                    else
                        (Rng.normal sizes dtype torch.CPU (Rng.fold (int64 i) key)).mul(Number.Of deviation)

                name, numbers)
            |> Map.ofList)

    /// <summary>A network of random weights for tests and benchmarks, drawn as timm does: N(0, 0.02²) for
    /// weights and positions, not cut off, where timm cuts at 2.</summary>
    /// <param name="options">Precision and device; the heads are the shape's.</param>
    /// <param name="shape">The sizes.</param>
    /// <param name="key">Decides every weight.</param>
    /// <returns>The network, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A size of the shape is below 1, or what `ofTensors`
    /// rejects.</exception>
    let random (options: BackboneOptions) (shape: BackboneShape) (key: RandomKey) : VisionTransformer =
        Scope.keep VisionTransformer.leaves (fun () ->
            randomTensors shape (Precision.master options.Precision) key
            |> ofTensors
                { options with
                    Heads = Some shape.Heads
                }
                "random backbone"
                Map.empty)
