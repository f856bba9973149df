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

/// timm's names (huggingface/pytorch-image-models, vision_transformer.py) to the record of a Vision Transformer.
[<RequireQualifiedAccess>]
module Weights =

    /// Pixels. Attention over the patches of larger images would fill any memory.
    let private largestImage = 4096L

    /// Classifier leaves: read by nothing here.
    let private ignored (name: string) =
        name = "head.weight"
        || name = "head.bias"
        || name.StartsWith("pre_logits.", StringComparison.Ordinal)

    /// Every network has it, and no other tensor's name ends so.
    let private anchor = "patch_embed.proj.weight"

    let private outerLeaves =
        [
            "cls_token"
            "pos_embed"
            anchor
            "patch_embed.proj.bias"
            "norm.weight"
            "norm.bias"
        ]

    let private blockLeaves =
        [
            for layer in [ "norm1"; "attn.qkv"; "attn.proj"; "norm2"; "mlp.fc1"; "mlp.fc2" ] do
                $"{layer}.weight"
                $"{layer}.bias"
        ]

    /// The block and the leaf in it, for a name of the form blocks.<number>.<leaf>.
    let private inBlock (name: string) =
        match name.Split('.', 3) with
        | [| "blocks"; number; leaf |] when List.contains leaf blockLeaves ->
            match Int32.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture) with
            | true, index when string index = number -> Some index
            | _ -> None
        | _ -> None

    /// What a training program put before timm's names: `module.`, `backbone.`, `model.encoder.`; mostly nothing.
    /// Rejects a file of several networks.
    let private prefixOf (subject: string) (names: string seq) : string =
        let before (name: string) =
            if name = anchor then
                Some ""
            elif name.EndsWith("." + anchor, StringComparison.Ordinal) then
                Some(name.Substring(0, name.Length - anchor.Length))
            else
                None

        match names |> Seq.choose before |> List.ofSeq with
        | [] -> ""
        | [ one ] -> one
        | several ->
            let shown =
                several
                |> List.map (fun prefix -> $"'{Safetensors.shown prefix}'")
                |> String.concat ", "

            Errors.reject
                subject
                "must hold one Vision Transformer"
                $"{several.Length}, under the prefixes {shown}"
                "save the tensors of one of them, as docs/formats.md shows"

    /// Whose names these are, where other programs name the same network otherwise.
    let private otherNames =
        [
            "embeddings.", "Hugging Face transformers"
            "encoder.layer.", "Hugging Face transformers"
            "conv_proj.", "torchvision"
            "encoder.layers.", "torchvision"
            "visual.", "OpenCLIP"
        ]

    /// Rejects what a plain ViT does not have; the number of blocks.
    let private depth (subject: string) (names: string seq) =
        for name in names do
            if not (ignored name || List.contains name outerLeaves || (inBlock name).IsSome) then
                let rule = "must belong to a plain ViT in timm's names"

                let received, fix =
                    match otherNames |> List.tryFind (fun (mark, _) -> name.Contains mark) with
                    | Some(_, whose) -> $"a name of {whose}", "take the same network from timm"
                    | None -> "another name", "other networks are not read"

                Errors.reject $"{subject}: tensor '{Safetensors.shown name}'" rule received fix

        match names |> Seq.choose inBlock |> Seq.distinct |> Seq.sort |> Array.ofSeq with
        | [||] -> Errors.reject subject "must have at least one block" "no 'blocks.0.'" ""
        | blocks ->
            match blocks |> Array.indexed |> Array.tryFind (fun (i, block) -> i <> block) with
            | Some(i, block) ->
                Errors.reject subject $"must have a block {i}" $"block {block} after {i - 1}" ""
            | None -> blocks.Length

    /// timm's number of heads for a width.
    let private timmHeads =
        Map.ofList [ 192L, 3; 384L, 6; 768L, 12; 1024L, 16; 1280L, 16 ]

    let private headsOf (subject: string) (options: BackboneOptions) (card: WeightsCard) (width: int64) =
        let heads, place =
            match options.Heads, card.Heads with
            | Some heads, _ -> heads, subject
            | None, Some stated -> stated.Value, stated.Place
            | None, None ->
                match Map.tryFind width timmHeads with
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

    /// Positions [1, 1 + g², d] resampled to another square grid, as timm's `resample_abs_pos_embed`: bicubic and
    /// antialiased, in float32 or wider; the class token's row is kept. Borrows; owned by the caller.
    let internal resamplePositions (grid: int64) (positions: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let old = gridOf "positions" positions
            let d = positions.shape[2]

            let wide =
                if positions.dtype = torch.ScalarType.Float64 then
                    torch.ScalarType.Float64
                else
                    torch.ScalarType.Float32

            let image =
                positions
                    .narrow(1L, 1L, old * old)
                    .``to``(wide)
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
        let prefix = prefixOf subject tensors.Keys

        let tensors =
            if prefix = "" then
                tensors
            else
                tensors
                |> Map.toSeq
                |> Seq.filter (fun (name, _) -> name.StartsWith(prefix, StringComparison.Ordinal))
                |> Seq.map (fun (name, tensor) -> name.Substring prefix.Length, tensor)
                |> Map.ofSeq

        let depth = depth subject tensors.Keys

        let named name =
            $"{subject}: tensor '{Safetensors.shown prefix}{name}'"

        let find name axes =
            match Map.tryFind name tensors with
            | None -> Errors.reject (named name) "must be there" "no tensor of this name" ""
            | Some tensor ->
                Shape.expect (named name) axes tensor

                if not (tensor.is_floating_point ()) then
                    Errors.reject (named name) "must be floating point" $"{tensor.dtype}" ""

                if tensor.numel () = 0L then
                    Errors.reject (named name) "must not be empty" (Shape.text tensor.shape) ""

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

            let patches =
                find anchor [ Axis.Any "d"; Axis.Any "channels"; Axis.Any "p"; Axis.Any "p" ]

            let d, patch = patches.shape[0], patches.shape[2]

            if patches.shape[3] <> patch then
                Errors.reject (named anchor) "must have square patches" (Shape.text patches.shape) ""

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

            let linear name rows columns =
                {
                    Weight = leaf $"{name}.weight" [ Axis.Is rows; Axis.Is columns ]
                    Bias = Some(leaf $"{name}.bias" [ Axis.Is rows ])
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
                                if tensors.ContainsKey qkvBias then
                                    Some(leaf qkvBias [ Axis.Is(3L * d) ])
                                else
                                    None
                        }
                    Projection = linear (at "attn.proj") d d
                    Norm2 = norm (at "norm2") options.NormEpsilon.Blocks
                    Fc1 = linear (at "mlp.fc1") hidden d
                    Fc2 = linear (at "mlp.fc2") d hidden
                }

            {
                PatchEmbedding =
                    {
                        Weight = cast compute anchor patches
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
                Blocks = Array.init depth block
                Norm = norm "norm" options.NormEpsilon.Final
                Heads = heads
                ImageSize = int size
                Precision = options.Precision
                CheckpointActivations = options.CheckpointActivations
            })

    /// <summary>Builds the network from tensors in timm's names. Widths, depth, patch, MLP sizes and the qkv
    /// bias come from their shapes. One prefix before all names of the network is left out, and with it the
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
        build true options subject (WeightsCard.ofMetadata subject metadata) tensors

    /// <summary>Reads a plain timm ViT from a safetensors file; a classifier in it is left out.</summary>
    /// <param name="options">What the file leaves open.</param>
    /// <param name="path">The file.</param>
    /// <returns>The network in the precision and on the device of the options, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is not well-formed, or what `ofTensors` rejects,
    /// or what `WeightsCard.read` rejects of the JSON file beside it.</exception>
    let load (options: BackboneOptions) (path: string) : VisionTransformer =
        let what () = $"while loading the backbone {path}"

        NativeError.during what NativeError.moreMemory (fun () ->
            Scope.keep VisionTransformer.leaves (fun () ->
                let header = Safetensors.header path
                let card = WeightsCard.read header
                let prefix = prefixOf path (header.Entries |> Array.map _.Name)

                let wanted (name: string) =
                    name.StartsWith(prefix, StringComparison.Ordinal)
                    && not (ignored (name.Substring prefix.Length))

                let file = Safetensors.readOnly wanted path
                build false options path card file.Tensors))

    /// What `load` takes for granted in a file: a number of heads that is guessed from the width, and a prefix that is
    /// left out. Rejects a file of several networks.
    let internal notes
        (options: BackboneOptions)
        (card: WeightsCard)
        (header: TensorFileHeader)
        : string list =
        let prefix = prefixOf header.Path (header.Entries |> Seq.map _.Name)

        let others =
            header.Entries
            |> Array.map _.Name
            |> Array.filter (fun name -> not (name.StartsWith(prefix, StringComparison.Ordinal)))

        let width =
            header.Entries
            |> Array.tryFind (fun entry -> entry.Name = prefix + anchor)
            |> Option.bind (fun entry -> Array.tryHead entry.Shape)

        [
            if prefix <> "" then
                $"{header.Path}: names are read without the prefix '{Safetensors.shown prefix}'"

            if others.Length > 0 then
                let tensors = Text.counted others.Length "tensor" "tensors"
                $"{header.Path}: ignored without the prefix: {tensors}, such as '{Safetensors.shown others[0]}'"

            match options.Heads, width |> Option.bind (fun width -> Map.tryFind width timmHeads) with
            | None, Some heads when card.Heads.IsNone ->
                $"{header.Path}: the weights do not state the number of attention heads; assuming {heads}, as timm at width {width.Value} (--attention-heads N sets another)"
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
                        torch.full (sizes, Scalar.op_Implicit mean, dtype = dtype, device = torch.CPU)
                    else
                        (Rng.normal sizes dtype torch.CPU (Rng.fold (int64 i) key))
                            .mul(Scalar.op_Implicit deviation)

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
