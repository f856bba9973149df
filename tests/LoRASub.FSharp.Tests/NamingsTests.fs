module LoRASub.Tests.NamingsTests

open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Probe
open TorchSharp

let private options = Tiny.backboneOptions Precision.Float64

let private leavesOf (tensors: Map<string, torch.Tensor>) : byte[][] =
    Weights.ofTensors options "w" Map.empty tensors
    |> VisionTransformer.leaves
    |> Seq.map bytesOf
    |> Array.ofSeq

/// Random tensors in timm's names under a prefix.
let private under prefix seed =
    [ for KeyValue(name, tensor) in Tiny.tensors 8 2 seed -> prefix + name, tensor ]

let private ones name = name, torch.ones 8L

/// What a program's file holds, when the network is `under "" 1`.
let private files: (string * (unit -> (string * torch.Tensor) list)) list =
    [
        "DeiT's training", fun () -> [ yield! under "model." 1; ones "optimizer.state.0.exp_avg" ]
        "a compiled module in parallel", fun () -> under "module._orig_mod." 1
        "MAE",
        fun () ->
            [
                yield! under "model." 1
                for name in
                    [
                        "mask_token"
                        "decoder_pos_embed"
                        "decoder_embed.weight"
                        "decoder_blocks.0.norm1.weight"
                    ] do
                    ones ("model." + name)
            ]
        "MoCo v3",
        fun () ->
            [
                yield! under "state_dict.module.base_encoder." 1
                yield! under "state_dict.module.momentum_encoder." 2
                for name in
                    [
                        "base_encoder.head.0.weight"
                        "base_encoder.head.1.running_mean"
                        "predictor.0.weight"
                    ] do
                    ones ("state_dict.module." + name)
            ]
        "DINO",
        fun () ->
            [
                yield! under "student.module.backbone." 2
                yield! under "teacher.backbone." 1
                for name in
                    [
                        "student.module.head.mlp.0.weight"
                        "teacher.head.last_layer.weight_v"
                        "dino_loss.center"
                    ] do
                    ones name
            ]
    ]

/// Names of other networks beside timm's, and words of the message.
let private others: (string list * string list) list =
    [
        [ "dist_token"; "head_dist.weight" ], [ "distilled DeiT, with two tokens" ]
        [ "register_tokens" ], [ "register tokens" ]
        [ "reg_token" ], [ "register tokens" ]
        [ "blocks.0.mlp.w12.weight"; "blocks.0.mlp.w3.weight" ], [ "SwiGLU" ]
        [ "layers.0.blocks.0.attn.relative_position_bias_table" ], [ "Swin or BEiT" ]
        [ "blocks.0.attn.q_norm.weight" ], [ "other norms" ]
        [ "fc_norm.weight" ], [ "other norms" ]
        [ "norm_pre.weight" ], [ "CLIP" ]
    ]

[<Tests>]
let tests =
    testList
        "Namings"
        [
            for name, file in files do
                testCase $"{name}: the network is found, the rest ignored" (fun () ->
                    use _ = torch.NewDisposeScope()
                    let expected = leavesOf (Map.ofList (under "" 1))
                    Expect.equal (leavesOf (Map.ofList (file ()))) expected "weights")

            testCase "Hugging Face's ViTModel has a pooler, and no prefix" (fun () ->
                use _ = torch.NewDisposeScope()

                let state =
                    TensorFormats.readOnly (fun _ -> true) (TensorFormatsTests.fixture "pytorch_model.bin")

                let bare =
                    [
                        for KeyValue(name, tensor) in state.Tensors do
                            if name.StartsWith "vit." then
                                name.Substring 4, tensor
                        ones "pooler.dense.bias"
                    ]

                Expect.equal (leavesOf (Map.ofList bare)) (leavesOf state.Tensors) "weights"

                let partly =
                    bare
                    |> List.filter (fun (name, _) ->
                        not (name.Contains "layer.1.attention.attention.key.weight"))

                refused [ "'encoder.layer.1.attention.attention.key.weight'"; "must be there" ] (fun () ->
                    leavesOf (Map.ofList partly) |> ignore)

                let uneven =
                    bare
                    |> List.map (fun (name, tensor) ->
                        name,
                        (if name.EndsWith "0.attention.attention.value.weight" then
                             tensor.narrow (0L, 0L, 4L)
                         else
                             tensor))

                refused
                    [ "attention.query.weight', 'encoder"; "one shape and one type"; "[4, 8]" ]
                    (fun () -> leavesOf (Map.ofList uneven) |> ignore))

            testCase "Hugging Face's Dinov2Model is DINOv2 in other names" (fun () ->
                use _ = torch.NewDisposeScope()

                let state =
                    (TensorFormats.readOnly (fun _ -> true) (TensorFormatsTests.fixture "dinov2.pth"))
                        .Tensors

                let renamed =
                    [
                        for KeyValue(name, tensor) in state do
                            let name =
                                name
                                    .Replace("blocks.", "encoder.layer.")
                                    .Replace("attn.proj", "attention.output.dense")
                                    .Replace("ls1.gamma", "layer_scale1.lambda1")
                                    .Replace("ls2.gamma", "layer_scale2.lambda1")
                                    .Replace("cls_token", "embeddings.cls_token")
                                    .Replace("pos_embed", "embeddings.position_embeddings")
                                    .Replace("mask_token", "embeddings.mask_token")
                                    .Replace("patch_embed.proj", "embeddings.patch_embeddings.projection")

                            if name.Contains "attn.qkv" then
                                for i, part in [ 0L, "query"; 1L, "key"; 2L, "value" ] do
                                    name.Replace("attn.qkv", "attention.attention." + part),
                                    tensor.narrow (0L, 8L * i, 8L)
                            elif name.StartsWith "norm." then
                                "layer" + name, tensor
                            else
                                name, tensor
                    ]

                Expect.equal (leavesOf (Map.ofList renamed)) (leavesOf state) "weights"

                for gone in [ "blocks.1.ls1.gamma"; "blocks.0.ls2.gamma" ] do
                    refused [ ".gamma'"; "both layer scales in every block"; "3 for 2 blocks" ] (fun () ->
                        leavesOf (state.Remove gone) |> ignore))

            testCase "Flax's arrays of another number of axes, or under a prefix" (fun () ->
                use _ = torch.NewDisposeScope()

                let state =
                    (TensorFormats.readOnly (fun _ -> true) (TensorFormatsTests.fixture "augreg.npz"))
                        .Tensors

                let prefixed =
                    state
                    |> Map.toList
                    |> List.map (fun (name, t) -> "opt/target/" + name, t)
                    |> Map.ofList

                Expect.equal (leavesOf prefixed) (leavesOf state) "weights"
                let query = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
                let flat = state.Add(query, torch.ones (8L, 8L))

                refused [ query; "must have 3 axes"; "[8, 8]" ] (fun () -> leavesOf flat |> ignore)

                let other = { options with Heads = None }

                Expect.equal
                    (Weights.ofTensors other "w" Map.empty state).Heads
                    2
                    "its kernels show the heads")

            testCase "MoCo v3's ViT-S has twelve heads, and other files of its width six" (fun () ->
                let header prefix =
                    {
                        Path = "w"
                        Metadata = Map.empty
                        Entries =
                            [|
                                for name, shape in
                                    [
                                        "patch_embed.proj.weight", [| 384L; 3L; 16L; 16L |]
                                        "blocks.0.attn.qkv.weight", [| 1152L; 384L |]
                                    ] do
                                    {
                                        Name = prefix + name
                                        Type = torch.ScalarType.Float32
                                        Shape = shape
                                        Offset = 0L
                                        Length = 0L
                                    }
                            |]
                    }

                let heads prefix =
                    (Weights.card (header prefix)).Heads |> Option.map _.Value

                Expect.equal (heads "module.base_encoder.") (Some 12) "MoCo v3"
                Expect.equal (heads "module.") None "others")

            testList
                "networks that are not plain are refused"
                [
                    for names, words in others do
                        testCase names.Head (fun () ->
                            use _ = torch.NewDisposeScope()
                            let state = Map.ofList (under "" 1 @ List.map ones names)

                            refused ($"'{names.Head}'" :: words) (fun () -> leavesOf state |> ignore))

                    testCase "a convolutional stem" (fun () ->
                        use _ = torch.NewDisposeScope()

                        let state =
                            Map.ofList (under "" 1 @ [ ones "patch_embed.proj.0.weight" ])
                            |> Map.remove "patch_embed.proj.weight"

                        refused [ "'patch_embed.proj.0.weight'"; "a convolutional stem" ] (fun () ->
                            leavesOf state |> ignore))
                ]
        ]
