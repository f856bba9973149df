namespace LoRASub.Backbone

open System
open System.Globalization
open System.Text.RegularExpressions
open LoRASub.Core
open TorchSharp

/// How tensors of a file make one of timm's. `#` is the number of a block.
type internal LeafRule =
    {
        /// timm's name.
        Leaf: string
        /// The file's names; several are joined row by row.
        Sources: string list
        /// Axes of a source that is turned; None where it is used as it is.
        Axes: int option
        /// A source in timm's layout, contiguous.
        Turn: torch.Tensor -> torch.Tensor
    }

/// The names that a program gives the tensors of a Vision Transformer.
type internal Naming =
    {
        /// For people.
        Name: string
        Rules: LeafRule list
        /// Patterns of the names that the network does not need, and what they are.
        Ignored: (Regex * string) list
        /// The number of attention heads, where the shape of block 0's query shows it.
        Heads: int64[] -> int option
        /// Values of black and white that all its networks were trained with.
        InputRange: struct (float * float) option
    }

/// The namings that are read, and the marks of networks that are not.
[<RequireQualifiedAccess>]
module internal Namings =

    let private plain leaf source =
        {
            Leaf = leaf
            Sources = [ source ]
            Axes = None
            Turn = id
        }

    /// The weight and bias of a layer.
    let private layer leaf sources =
        [
            for part in [ ".weight"; ".bias" ] do
                {
                    Leaf = leaf + part
                    Sources = sources |> List.map (fun source -> source + part)
                    Axes = None
                    Turn = id
                }
        ]

    let private ignored patterns =
        patterns
        |> List.map (fun (pattern, what) -> Regex(pattern, RegexOptions.CultureInvariant), what)

    /// The layers of a block, and what surrounds the blocks.
    let private timmLayers =
        [
            for name in [ "norm1"; "attn.qkv"; "attn.proj"; "norm2"; "mlp.fc1"; "mlp.fc2" ] do
                "blocks.#." + name
            "patch_embed.proj"
            "norm"
        ]

    /// Also of DeiT, DINO, DINOv2, MoCo v3 and MAE.
    let private timm =
        {
            Name = "timm"
            Rules =
                [
                    for name in timmLayers do
                        yield! layer name [ name ]
                    for name in [ "cls_token"; "pos_embed"; "blocks.#.ls1.gamma"; "blocks.#.ls2.gamma" ] do
                        plain name name
                ]
            Ignored =
                ignored
                    [
                        @"^head\.(weight|bias)$", "classifier"
                        @"^pre_logits\.", "classifier"
                        @"^head\.[0-9]+\.", "projection of self-supervised training"
                        "^decoder_", "decoder of masked training"
                        "^mask_token$", "token of masked training"
                    ]
            Heads = fun _ -> None
            InputRange = None
        }

    let private huggingFace =
        let inBlock = "encoder.layer.#."

        {
            Name = "Hugging Face"
            Rules =
                [
                    plain "cls_token" "embeddings.cls_token"
                    plain "pos_embed" "embeddings.position_embeddings"
                    yield! layer "patch_embed.proj" [ "embeddings.patch_embeddings.projection" ]
                    yield! layer "norm" [ "layernorm" ]
                    yield!
                        layer
                            "blocks.#.attn.qkv"
                            [
                                for part in [ "query"; "key"; "value" ] do
                                    $"{inBlock}attention.attention.{part}"
                            ]

                    for leaf, source in
                        [
                            "norm1", "layernorm_before"
                            "norm2", "layernorm_after"
                            "attn.proj", "attention.output.dense"
                            "mlp.fc1", "intermediate.dense"
                            "mlp.fc2", "output.dense"
                            // Dinov2Model
                            "norm1", "norm1"
                            "norm2", "norm2"
                            "mlp.fc1", "mlp.fc1"
                            "mlp.fc2", "mlp.fc2"
                        ] do
                        yield! layer ("blocks.#." + leaf) [ inBlock + source ]

                    for i in 1..2 do
                        plain $"blocks.#.ls{i}.gamma" $"{inBlock}layer_scale{i}.lambda1"
                ]
            Ignored =
                ignored
                    [
                        @"^embeddings\.mask_token$", "token of masked training"
                        @"^pooler\.", "pooler"
                    ]
            Heads = fun _ -> None
            InputRange = None
        }

    /// Kernels are [inputs, outputs], those of attention split into heads, and that of the patches [p, p, channels, d].
    let private flax =
        let inBlock = "Transformer/encoderblock_#/"

        let turned leaf sources axes turn =
            {
                Leaf = leaf
                Sources = sources
                Axes = Some axes
                Turn = fun (t: torch.Tensor) -> (turn t: torch.Tensor).contiguous()
            }

        let norm leaf source =
            [
                plain (leaf + ".weight") (source + "/scale")
                plain (leaf + ".bias") (source + "/bias")
            ]

        let dense leaf source =
            [
                turned (leaf + ".weight") [ source + "/kernel" ] 2 _.t()
                plain (leaf + ".bias") (source + "/bias")
            ]

        let attention = inBlock + "MultiHeadDotProductAttention_1/"

        let fused part =
            [ for one in [ "query"; "key"; "value" ] -> attention + one + part ]

        {
            Name = "Flax (Google's AugReg)"
            Rules =
                [
                    plain "cls_token" "cls"
                    plain "pos_embed" "Transformer/posembed_input/pos_embedding"
                    turned "patch_embed.proj.weight" [ "embedding/kernel" ] 4 _.permute(3L, 2L, 0L, 1L)
                    plain "patch_embed.proj.bias" "embedding/bias"
                    yield! norm "norm" "Transformer/encoder_norm"
                    yield! norm "blocks.#.norm1" (inBlock + "LayerNorm_0")
                    yield! norm "blocks.#.norm2" (inBlock + "LayerNorm_2")
                    yield! dense "blocks.#.mlp.fc1" (inBlock + "MlpBlock_3/Dense_0")
                    yield! dense "blocks.#.mlp.fc2" (inBlock + "MlpBlock_3/Dense_1")
                    turned "blocks.#.attn.qkv.weight" (fused "/kernel") 3 _.flatten(1L).t()
                    turned "blocks.#.attn.qkv.bias" (fused "/bias") 2 _.flatten()
                    turned "blocks.#.attn.proj.weight" [ attention + "out/kernel" ] 3 _.flatten(0L, 1L).t()
                    plain "blocks.#.attn.proj.bias" (attention + "out/bias")
                ]
            Ignored = ignored [ "^(head|pre_logits)/", "classifier" ]
            Heads =
                fun query ->
                    match query with
                    | [| _; heads; _ |] when heads >= 1L && heads <= 1024L -> Some(int heads)
                    | _ -> None
            InputRange = Some(struct (-1.0, 1.0))
        }

    /// Every naming; the first is meant where none is recognised.
    let all = [ timm; huggingFace; flax ]

    let private number =
        Regex @"(?<=(^|[./])(blocks\.|layer\.|encoderblock_))(0|[1-9][0-9]{0,8})(?=[./])"

    /// A name with `#` in place of its block's number, and the number.
    let template (name: string) : string * int option =
        match number.Match name with
        | found when found.Success ->
            name.Remove(found.Index, found.Length).Insert(found.Index, "#"),
            Some(Int32.Parse(found.Value, CultureInfo.InvariantCulture))
        | _ -> name, None

    /// A template with a block's number.
    let inBlock (block: int option) (template: string) : string =
        match block with
        | Some i -> template.Replace("#", string i)
        | None -> template

    /// The file's names of a leaf, by the first rule for it.
    let sources (naming: Naming) (leaf: string) : string list =
        let template, block = template leaf
        let rule = naming.Rules |> List.find (fun rule -> rule.Leaf = template)
        rule.Sources |> List.map (inBlock block)

    /// The name by which a naming is recognised: every network has it, and no other tensor's name ends so.
    let anchor (naming: Naming) : string =
        sources naming "patch_embed.proj.weight" |> List.exactlyOne

    let private ofTimm = "take the same network from timm"
    let private unsupported = "docs/backbones.md lists what is supported"

    /// A part of a name that no plain ViT has; what it shows; what to do.
    let private marks =
        [
            for mark in [ "dist_token"; "head_dist"; "distillation" ] do
                mark, "a distilled DeiT, with two tokens", "take the DeiT without distillation"
            "register_tokens", "a network with register tokens", unsupported
            "reg_token", "a network with register tokens", unsupported
            "mlp.w12", "a SwiGLU network", unsupported
            "weights_in", "a SwiGLU network", unsupported
            "patch_embed.proj.", "a convolutional stem", unsupported
            "patch_embed.backbone", "a convolutional stem", unsupported
            "conv_root", "a convolutional stem", unsupported
            "relative_position", "Swin or BEiT, with relative positions", unsupported
            "_norm.", "a network with other norms than a plain ViT", unsupported
            "norm_pre", "CLIP, with a norm before the blocks", unsupported
            "vision_model.", "CLIP of Hugging Face transformers", unsupported
            "visual.", "OpenCLIP", ofTimm
            "embeddings.", "Hugging Face transformers", ofTimm
            "encoder.layer.", "Hugging Face transformers", ofTimm
            "conv_proj.", "torchvision", ofTimm
            "encoder.layers.", "torchvision", ofTimm
            "layer1.", "a ResNet", unsupported
        ]

    /// Of names that a plain ViT does not have: the most telling one, what it shows, and what to do.
    let telling (names: string list) : string * string * string =
        marks
        |> List.tryPick (fun (mark, what, advice) ->
            names
            |> List.tryFind (fun name -> name.Contains(mark, StringComparison.Ordinal))
            |> Option.map (fun name -> name, $"a name of {what}", advice))
        |> Option.defaultValue (names.Head, "another name", $"other networks are not read; {unsupported}")
