module LoRASub.Tests.WeightsTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Probe
open TorchSharp

let private options =
    {
        Heads = None
        ImageSize = None
        NormEpsilon = { Blocks = 1e-5; Final = 1e-6 }
        Precision = Precision.Float32
        Device = Generators.device
        CheckpointActivations = false
    }

let private tiny =
    {
        Width = 8
        Depth = 2
        Heads = 2
        PatchSize = 4
        ImageSize = 12
        Channels = 3
        MlpRatio = 4.0
        QkvBias = true
    }

let private tinyOptions = { options with Heads = Some tiny.Heads }
let private key = Rng.ofSeed 1993L

/// Tensors in timm's names, every element random, so that no two leaves are alike.
let private distinctTensors (shape: BackboneShape) =
    Scope.noGrad (fun (tensors: Map<string, torch.Tensor>) -> tensors.Values) (fun () ->
        Weights.randomTensors shape torch.ScalarType.Float64 key
        |> Map.toArray
        |> Array.mapi (fun i (name, tensor) ->
            name, Rng.normal tensor.shape torch.ScalarType.Float64 torch.CPU (Rng.fold (int64 i) key))
        |> Map.ofArray)

let private featuresOf (vit: VisionTransformer) (images: torch.Tensor) =
    Scope.noGrad Leaves.tensor (fun () ->
        VisionTransformer.features (VisionTransformer.frozen vit) vit images)

let private numbers (tensor: torch.Tensor) : float[] =
    use _ = torch.NewDisposeScope()
    tensor.``to``(torch.ScalarType.Float64).cpu().contiguous().data<float>().ToArray()

/// timm's name of each leaf of a network, beside the leaf.
let private named (vit: VisionTransformer) =
    let linear name (l: Linear) =
        (name + ".weight", l.Weight)
        :: [ for bias in Option.toList l.Bias -> name + ".bias", bias ]

    let norm name (n: LayerNorm) =
        [ name + ".weight", n.Weight; name + ".bias", n.Bias ]

    [
        yield! linear "patch_embed.proj" vit.PatchEmbedding
        "cls_token", vit.ClassToken
        "pos_embed", vit.Positions

        for i, block in Array.indexed vit.Blocks do
            yield! norm $"blocks.{i}.norm1" block.Norm1
            yield! linear $"blocks.{i}.attn.qkv" block.Qkv
            yield! linear $"blocks.{i}.attn.proj" block.Projection
            yield! norm $"blocks.{i}.norm2" block.Norm2
            yield! linear $"blocks.{i}.mlp.fc1" block.Fc1
            yield! linear $"blocks.{i}.mlp.fc2" block.Fc2

        yield! norm "norm" vit.Norm
    ]

let private shapes =
    [
        "two blocks", tiny
        "no qkv bias", { tiny with QkvBias = false }
        "one grey channel", { tiny with Channels = 1 }
        "one patch", { tiny with ImageSize = 4 }
        "a narrow MLP", { tiny with MlpRatio = 0.5 }
        "eleven blocks", { tiny with Depth = 11 }
        "as many heads as columns", { tiny with Heads = 8 }
        "patches of one pixel",
        { tiny with
            PatchSize = 1
            ImageSize = 5
        }
    ]

type private Tensors = Map<string, torch.Tensor>

let private replaced name (shape: int64 list) (tensors: Tensors) =
    tensors.Add(name, torch.ones (Array.ofList shape, torch.ScalarType.Float64))

let private spoiled name (value: float) (tensors: Tensors) =
    let copy = tensors[name].clone()
    copy.view(-1L)[1L] <- torch.tensor value
    tensors.Add(name, copy)

let private without name (tensors: Tensors) = tensors.Remove name

let private withHeads text (metadata: Map<string, string>) : Map<string, string> = metadata.Add("heads", text)

/// What is wrong, the change that makes it so, and what the message must say.
let private wrongTensors: (string * (Tensors -> Tensors) * string list) list =
    [
        for name in
            [
                "cls_token"
                "pos_embed"
                "patch_embed.proj.weight"
                "patch_embed.proj.bias"
                "norm.weight"
                "norm.bias"
                "blocks.0.norm1.weight"
                "blocks.0.norm1.bias"
                "blocks.1.attn.qkv.weight"
                "blocks.1.attn.proj.weight"
                "blocks.1.attn.proj.bias"
                "blocks.0.norm2.weight"
                "blocks.0.norm2.bias"
                "blocks.1.mlp.fc1.weight"
                "blocks.1.mlp.fc1.bias"
                "blocks.1.mlp.fc2.weight"
                "blocks.1.mlp.fc2.bias"
            ] do
            $"no {name}", without name, [ $"'{name}'"; "must be there" ]

        for name in
            [
                "dist_token"
                "fc_norm.weight"
                "norm_pre.weight"
                "head_dist.weight"
                "head.fc.weight"
                "reg_token"
                "backbone.cls_token"
                "blocks.0.ls1.gamma"
                "blocks.0.attn.q_norm.weight"
                "blocks.0.attn.qkv.weight.extra"
                "blocks.00.norm1.weight"
                "blocks.-1.norm1.weight"
                "blocks.x.norm1.weight"
                "blocks.99999999999.norm1.weight"
                "layer1.0.conv1.weight"
                ""
            ] do
            $"an unknown '{name}'", replaced name [ 8L ], [ $"'{name}'"; "plain ViT" ]

        "no blocks", Map.filter (fun name _ -> not (name.StartsWith "blocks.")), [ "at least one block" ]
        "a gap in the blocks", replaced "blocks.7.norm1.weight" [ 8L ], [ "a block 2"; "block 7" ]
        "no block 0", Map.filter (fun name _ -> not (name.StartsWith "blocks.0.")), [ "a block 0" ]
        "patches with 3 axes",
        replaced "patch_embed.proj.weight" [ 8L; 3L; 16L ],
        [ "'patch_embed.proj.weight'"; "[8, 3, 16]" ]
        "patches that are not square",
        replaced "patch_embed.proj.weight" [ 8L; 3L; 4L; 2L ],
        [ "'patch_embed.proj.weight'"; "square"; "[8, 3, 4, 2]" ]
        "no channels",
        replaced "patch_embed.proj.weight" [ 8L; 0L; 4L; 4L ],
        [ "'patch_embed.proj.weight'"; "empty" ]
        "no width",
        replaced "patch_embed.proj.weight" [ 0L; 3L; 4L; 4L ],
        [ "'patch_embed.proj.weight'"; "empty" ]
        "a short patch bias",
        replaced "patch_embed.proj.bias" [ 7L ],
        [ "'patch_embed.proj.bias'"; "[8]"; "[7]" ]
        "a flat class token", replaced "cls_token" [ 8L ], [ "'cls_token'"; "[1, 1, 8]"; "found [8]" ]
        "positions of another width", replaced "pos_embed" [ 1L; 10L; 9L ], [ "'pos_embed'"; "[1, 10, 9]" ]
        "positions without a class token", replaced "pos_embed" [ 1L; 9L; 8L ], [ "'pos_embed'"; "9 tokens" ]
        "positions of two extra tokens", replaced "pos_embed" [ 1L; 11L; 8L ], [ "'pos_embed'"; "11 tokens" ]
        "positions of the class token alone",
        replaced "pos_embed" [ 1L; 1L; 8L ],
        [ "'pos_embed'"; "1 tokens" ]
        "no positions", replaced "pos_embed" [ 1L; 0L; 8L ], [ "'pos_embed'"; "empty" ]
        "a qkv weight of two parts",
        replaced "blocks.1.attn.qkv.weight" [ 16L; 8L ],
        [ "'blocks.1.attn.qkv.weight'"; "[24, 8]"; "[16, 8]" ]
        "a qkv bias of two parts",
        replaced "blocks.1.attn.qkv.bias" [ 16L ],
        [ "'blocks.1.attn.qkv.bias'"; "[24]"; "[16]" ]
        "a projection on its side",
        replaced "blocks.0.attn.proj.weight" [ 8L; 9L ],
        [ "'blocks.0.attn.proj.weight'"; "[8, 8]"; "[8, 9]" ]
        "a first MLP layer of another width",
        replaced "blocks.0.mlp.fc1.weight" [ 32L; 9L ],
        [ "'blocks.0.mlp.fc1.weight'"; "[32, 9]" ]
        "a second MLP layer that does not fit",
        replaced "blocks.0.mlp.fc2.weight" [ 8L; 31L ],
        [ "'blocks.0.mlp.fc2.weight'"; "[8, 32]"; "[8, 31]" ]
        "an MLP without hidden columns",
        replaced "blocks.0.mlp.fc1.weight" [ 0L; 8L ],
        [ "'blocks.0.mlp.fc1.weight'"; "empty" ]
        "a norm of another width", replaced "norm.weight" [ 9L ], [ "'norm.weight'"; "[8]"; "[9]" ]
        "NaN", spoiled "blocks.1.mlp.fc1.weight" nan, [ "'blocks.1.mlp.fc1.weight'"; "finite" ]
        "infinity", spoiled "norm.bias" infinity, [ "'norm.bias'"; "finite" ]
        "NaN in the positions", spoiled "pos_embed" nan, [ "'pos_embed'"; "finite" ]
        "NaN in the last block's qkv",
        spoiled "blocks.1.attn.qkv.weight" nan,
        [ "'blocks.1.attn.qkv.weight'"; "finite" ]
        "a number too large for float32",
        spoiled "norm.weight" 1e300,
        [ "'norm.weight'"; "finite in Float32" ]
        "whole numbers",
        (fun tensors -> tensors.Add("norm.weight", torch.ones (8L, dtype = torch.ScalarType.Int64))),
        [ "'norm.weight'"; "floating point"; "Int64" ]
    ]

let private wrongOptions =
    [
        "heads that do not divide the width",
        { options with Heads = Some 3 },
        id,
        [ "divides its width 8"; "found 3"; "--attention-heads" ]
        "no heads", { options with Heads = Some 0 }, id, [ "divides its width 8"; "found 0" ]
        "negative heads", { options with Heads = Some -2 }, id, [ "found -2" ]
        "an unknown number of heads", options, id, [ "width 8"; "give --attention-heads" ]
        "metadata that is no number", options, withHeads "two", [ "'heads'"; "'two'" ]
        "metadata that does not divide the width",
        options,
        withHeads "3",
        [ "divides its width 8"; "found 3" ]
        "an image size between multiples",
        { tinyOptions with ImageSize = Some 14 },
        id,
        [ "multiple of the patch, 4"; "14" ]
        "an image smaller than a patch",
        { tinyOptions with ImageSize = Some 0 },
        id,
        [ "multiple of the patch, 4"; "0" ]
        "a negative image size",
        { tinyOptions with ImageSize = Some -8 },
        id,
        [ "multiple of the patch, 4"; "-8" ]
        "an image that no memory holds",
        { tinyOptions with
            ImageSize = Some 2147483644
        },
        id,
        [ "up to 4096"; "2147483644" ]
        "an epsilon of 0",
        { tinyOptions with
            NormEpsilon = { Blocks = 0.0; Final = 1e-6 }
        },
        id,
        [ "epsilon of the blocks"; "found 0" ]
        "an epsilon that is NaN",
        { tinyOptions with
            NormEpsilon = { Blocks = 1e-6; Final = nan }
        },
        id,
        [ "epsilon of the final norm"; "NaN" ]
    ]

let private wrongShapes =
    [
        "width", { tiny with Width = 0 }
        "depth", { tiny with Depth = 0 }
        "heads", { tiny with Heads = 0 }
        "patch size", { tiny with PatchSize = 0 }
        "image size", { tiny with ImageSize = 0 }
        "channels", { tiny with Channels = -1 }
        "multiple of the patch", { tiny with ImageSize = 13 }
        "divides its width", { tiny with Heads = 3 }
        "MLP ratio", { tiny with MlpRatio = 0.0 }
        "MLP ratio", { tiny with MlpRatio = nan }
        "MLP ratio", { tiny with MlpRatio = infinity }
    ]

/// Squares modulo 7 as positions of a class token and a 3 x 3 grid, resampled by PyTorch 1.13's
/// F.interpolate(mode="bicubic", antialias=True, align_corners=False) in float64.
let private resampled =
    [
        1L, [| 2.213610586011 |]
        2L, [| 2.475493972365; 2.544182475414; 1.163765139941; 2.661617658047 |]
        5L,
        [|
            0.692417230331
            2.089411433399
            4.0
            2.888200506899
            1.930224279103
            1.236975499859
            2.502506126086
            4.134328358209
            2.554299398530
            1.317234581808
            1.849056603774
            2.835820895522
            4.0
            2.141791044776
            0.773584905660
            0.647704871867
            1.166239697037
            2.052238805970
            2.663065270662
            2.967192340186
            -0.220719117124
            0.018727119121
            0.773584905660
            3.056744578992
            4.487006051972
        |]
    ]

let private squaresModulo7 (dtype: torch.ScalarType) =
    (Generators.vector [| for i in 0..9 -> float (i * i % 7) |]).``to``(dtype).reshape(1L, 10L, 1L)

let private closeTo (tolerance: float) (expected: float[]) (actual: float[]) =
    Expect.equal actual.Length expected.Length "number of values"
    let largest = Array.map2 (fun a b -> abs (a - b)) actual expected |> Array.max
    Expect.isLessThanOrEqual largest tolerance "largest difference"

[<Tests>]
let tests =
    testList
        "Weights"
        [
            testList
                "sizes come from the tensors' shapes"
                [
                    for name, shape in shapes do
                        testCase name (fun () ->
                            use _ = torch.NewDisposeScope()
                            let tensors = distinctTensors shape

                            let double =
                                { options with
                                    Heads = Some shape.Heads
                                    Precision = Precision.Float64
                                }

                            let vit = Weights.ofTensors double "w" Map.empty tensors
                            Expect.equal vit.Width (int64 shape.Width) "width"
                            Expect.equal vit.Blocks.Length shape.Depth "depth"
                            Expect.equal vit.Heads shape.Heads "heads"
                            Expect.equal vit.PatchSize shape.PatchSize "patch"
                            Expect.equal vit.ImageSize shape.ImageSize "image"
                            Expect.equal vit.Channels shape.Channels "channels"
                            let leaves = named vit

                            Expect.equal
                                (leaves |> List.map fst |> List.sort)
                                (List.ofSeq tensors.Keys)
                                "names"

                            for name, leaf in leaves do
                                Expect.equal leaf.shape tensors[name].shape name
                                Expect.equal (numbers leaf) (numbers tensors[name]) name

                            let size = int64 shape.ImageSize

                            let images =
                                Rng.normal
                                    [| 2L; int64 shape.Channels; size; size |]
                                    torch.ScalarType.Float64
                                    Generators.device
                                    key

                            let features = featuresOf vit images
                            Expect.equal features.shape [| 2L; int64 shape.Width |] "features"
                            Expect.isTrue (features.isfinite().all().item<bool>()) "finite")
                ]

            testList
                "names under a prefix"
                [
                    for prefix in
                        [
                            "module."
                            "backbone."
                            "model.encoder."
                            "_orig_mod."
                            "timm_model."
                            "a\u001B."
                        ] do
                        testCase $"'{Text.visible prefix}' is left out" (fun () ->
                            Probe.inFolder (fun folder ->
                                use _ = torch.NewDisposeScope()
                                let path = System.IO.Path.Combine(folder, "w.safetensors")
                                let tensors = distinctTensors tiny

                                [
                                    for KeyValue(name, tensor) in tensors do
                                        prefix + name, tensor
                                    prefix + "head.weight", torch.ones 2L
                                    "criterion.weight", torch.ones 3L
                                ]
                                |> Safetensors.write path (Map.ofList [ "heads", "2" ])

                                let vit = Weights.load options path
                                let plain = Weights.ofTensors tinyOptions "w" Map.empty tensors

                                for (name, one), (_, other) in List.zip (named vit) (named plain) do
                                    Expect.equal (numbers one) (numbers other) name

                                Expect.equal
                                    (Safetensors.header path
                                     |> fun header -> Weights.notes options (WeightsCard.read header) header)
                                    [
                                        $"{path}: names are read without the prefix '{Text.visible prefix}'"
                                        $"{path}: ignored without the prefix: 1 tensor, such as 'criterion.weight'"
                                    ]
                                    "notes"))

                    testCase "errors name the tensor as the file does" (fun () ->
                        use _ = torch.NewDisposeScope()

                        let some =
                            distinctTensors tiny
                            |> without "norm.bias"
                            |> Map.toSeq
                            |> Seq.map (fun (name, tensor) -> "module." + name, tensor)
                            |> Map.ofSeq

                        refused [ "tensor 'module.norm.bias'"; "must be there" ] (fun () ->
                            Weights.ofTensors tinyOptions "w" Map.empty some |> ignore))

                    testCase "a file of two networks is refused by their prefixes" (fun () ->
                        use _ = torch.NewDisposeScope()
                        let tensors = distinctTensors tiny

                        let both =
                            Map.ofSeq
                                [
                                    for KeyValue(name, tensor) in tensors do
                                        "model." + name, tensor
                                        "model_ema." + name, tensor
                                ]

                        refused [ "one Vision Transformer"; "found 2"; "'model.', 'model_ema.'" ] (fun () ->
                            Weights.ofTensors tinyOptions "w" Map.empty both |> ignore))

                    for name, whose in
                        [
                            "vit.embeddings.cls_token", "Hugging Face transformers"
                            "encoder.layers.encoder_layer_0.ln_1.bias", "torchvision"
                            "visual.conv1.weight", "OpenCLIP"
                        ] do
                        testCase $"names of {whose} are known" (fun () ->
                            use _ = torch.NewDisposeScope()

                            let some = Map.ofList [ name, torch.ones 2L ]

                            refused [ $"'{name}'"; whose; "from timm" ] (fun () ->
                                Weights.ofTensors tinyOptions "w" Map.empty some |> ignore))
                ]

            testCase "the file beside gives the heads; a wrong one is refused by its name" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "w.safetensors")
                    Safetensors.write path Map.empty (Map.toSeq (distinctTensors tiny))
                    let card (json: string) = File.WriteAllText(path + ".json", json)
                    card """{"heads": 4, "image-size": 12}"""
                    Expect.equal (Weights.load options path).Heads 4 "heads"

                    for json, words in
                        [
                            """{"heads": 3}""",
                            [ "w.safetensors.json: 'heads'"; "divides its width 8"; "found 3" ]
                            """{"heads": 4, "image-size": 16}""",
                            [ "w.safetensors.json: 'image-size'"; "must be 12"; "found 16" ]
                            """{"heads": 4""", [ "w.safetensors.json"; "must be JSON" ]
                        ] do
                        card json
                        refused words (fun () -> Weights.load options path |> ignore)))

            testCase "a number of heads that is guessed is noted" (fun () ->
                let notes options (header: TensorFileHeader) =
                    Weights.notes options (WeightsCard.ofMetadata "w" header.Metadata) header

                let header (metadata: (string * string) list) width =
                    {
                        Path = "w"
                        Metadata = Map.ofList metadata
                        Entries =
                            [|
                                {
                                    Name = "patch_embed.proj.weight"
                                    Type = torch.ScalarType.Float32
                                    Shape = [| width; 3L; 16L; 16L |]
                                    Offset = 0L
                                    Length = 0L
                                }
                            |]
                    }

                for width, heads in [ 192L, 3; 384L, 6; 768L, 12; 1024L, 16; 1280L, 16 ] do
                    let note = notes options (header [] width) |> List.exactlyOne
                    Expect.stringContains note $"attention heads; assuming {heads}, " "the guess"
                    Expect.stringContains note $"width {width}" "from what"
                    Expect.stringContains note "--attention-heads" "what to do"

                Expect.isEmpty (notes tinyOptions (header [] 384L)) "given"
                Expect.isEmpty (notes options (header [ "heads", "12" ] 384L)) "in the metadata"
                Expect.isEmpty (notes options (header [] 100L)) "a width that nobody guesses")

            testCase "epsilons go to the blocks and to the end" (fun () ->
                use _ = torch.NewDisposeScope()
                let vit = Weights.random options tiny key

                for block in vit.Blocks do
                    Expect.equal (block.Norm1.Epsilon, block.Norm2.Epsilon) (1e-5, 1e-5) "in a block"

                Expect.equal vit.Norm.Epsilon 1e-6 "at the end")

            testList
                "precision"
                [
                    for precision, compute, master in
                        [
                            Precision.Float32, torch.ScalarType.Float32, torch.ScalarType.Float32
                            Precision.BFloat16, torch.ScalarType.BFloat16, torch.ScalarType.Float32
                            Precision.Float64, torch.ScalarType.Float64, torch.ScalarType.Float64
                        ] do
                        testCase $"{precision}" (fun () ->
                            use _ = torch.NewDisposeScope()
                            let vit = Weights.random { options with Precision = precision } tiny key

                            for name, leaf in named vit do
                                Expect.equal
                                    leaf.dtype
                                    (if name.EndsWith "qkv.weight" then master else compute)
                                    name

                                Expect.isFalse leaf.requires_grad name

                            let images =
                                Rng.normal
                                    [| 2L; 3L; 12L; 12L |]
                                    torch.ScalarType.Float32
                                    Generators.device
                                    key

                            Expect.equal (featuresOf vit images).dtype master "features")
                ]

            testList
                "heads"
                [
                    for width, heads in [ 192, 3; 384, 6; 768, 12; 1024, 16; 1280, 16 ] do
                        testCase $"timm's number for a width of {width}" (fun () ->
                            use _ = torch.NewDisposeScope()

                            let shape =
                                { tiny with
                                    Width = width
                                    Depth = 1
                                    MlpRatio = 0.1
                                }

                            let tensors = Weights.randomTensors shape torch.ScalarType.Float32 key

                            let of' options metadata =
                                (Weights.ofTensors options "w" metadata tensors).Heads

                            Expect.equal (of' options Map.empty) heads "from the width"

                            Expect.equal
                                (of' options (Map.ofList [ "heads", "8" ]))
                                8
                                "the file's metadata come first"

                            let given = { options with Heads = Some 4 }

                            Expect.equal
                                (of' given (Map.ofList [ "heads", "8" ]))
                                4
                                "the given number comes before both")
                ]

            testList
                "refused tensors"
                [
                    for name, change, parts in wrongTensors do
                        testCase name (fun () ->
                            use _ = torch.NewDisposeScope()
                            let tensors = change (distinctTensors tiny)

                            refused ("net.safetensors" :: parts) (fun () ->
                                Weights.ofTensors tinyOptions "net.safetensors" Map.empty tensors |> ignore))
                ]

            testList
                "refused options"
                [
                    for name, options, metadata, parts in wrongOptions do
                        testCase name (fun () ->
                            use _ = torch.NewDisposeScope()
                            let tensors = distinctTensors tiny

                            refused parts (fun () ->
                                Weights.ofTensors options "w" (metadata Map.empty) tensors |> ignore))
                ]

            testList
                "refused shapes"
                [
                    for part, shape in wrongShapes do
                        testCase $"{shape}" (fun () ->
                            refused [ part ] (fun () -> Weights.random options shape key |> ignore))
                ]

            testCase "the network owns copies and nothing else" (fun () ->
                use _ = torch.NewDisposeScope()
                let tensors = distinctTensors { tiny with Depth = 1 }

                let double =
                    { tinyOptions with
                        Precision = Precision.Float64
                    }

                let struct (vit, left) =
                    counting (fun () -> Weights.ofTensors double "w" Map.empty tensors)

                Expect.equal left (int64 tensors.Count) "one tensor per leaf"
                let before = numbers vit.Norm.Weight
                tensors["norm.weight"].zero_() |> ignore
                Expect.equal (numbers vit.Norm.Weight) before "its values are its own"

                leavesNothing (fun () ->
                    Weights.ofTensors { double with ImageSize = Some 20 } "w" Map.empty tensors
                    |> Scope.free VisionTransformer.leaves))

            testCase "a file is loaded without its classifier, and leaves only the network" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "net.safetensors")
                    let tensors = distinctTensors tiny

                    let classifier =
                        [
                            "head.weight", torch.ones (5L, 8L)
                            "head.bias", torch.ones 5L
                            "pre_logits.fc.weight", torch.ones (8L, 8L)
                        ]

                    Safetensors.write path (Map.ofList [ "heads", "4" ]) (Map.toList tensors @ classifier)
                    let struct (vit, left) = counting (fun () -> Weights.load options path)
                    Expect.equal left (int64 tensors.Count) "one tensor per leaf"
                    Expect.equal vit.Heads 4 "heads"

                    for name, leaf in named vit do
                        Expect.equal (numbers leaf) (numbers (tensors[name].``to`` leaf.dtype)) name

                    Scope.free VisionTransformer.leaves vit

                    Safetensors.write path Map.empty (Map.toList (spoiled "norm.bias" nan tensors))

                    refused [ path; "'norm.bias'"; "finite" ] (fun () ->
                        Weights.load tinyOptions path |> ignore)))

            testCase "a file in the network's own type gives it its memory" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "net.safetensors")

                    let tensors =
                        distinctTensors tiny
                        |> Map.map (fun _ tensor -> tensor.``to`` torch.ScalarType.Float32)

                    Safetensors.write path (Map.ofList [ "heads", "4" ]) (Map.toSeq tensors)
                    let struct (vit, left) = counting (fun () -> Weights.load options path)
                    Expect.equal left (int64 tensors.Count) "one tensor per leaf"

                    for name, leaf in named vit do
                        Expect.equal (numbers leaf) (numbers tensors[name]) name))

            testCase "a bfloat16 file of a ViT-Tiny with 4-pixel patches" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "vit_micro_patch4_32.safetensors")

                    let shape =
                        {
                            Width = 192
                            Depth = 6
                            Heads = 3
                            PatchSize = 4
                            ImageSize = 32
                            Channels = 3
                            MlpRatio = 4.0
                            QkvBias = true
                        }

                    let tensors =
                        Weights.randomTensors shape torch.ScalarType.Float32 key
                        |> Map.map (fun _ tensor -> tensor.``to`` torch.ScalarType.BFloat16)

                    Safetensors.write path (Map.ofList [ "image", "32" ]) (Map.toSeq tensors)
                    let header = Safetensors.header path
                    Expect.equal (header.Entries |> Array.sumBy _.Length) 5383296L "2.7 M parameters"
                    let vit = Weights.load options path

                    Expect.equal
                        (vit.Width, vit.Blocks.Length, vit.Heads, vit.ImageSize)
                        (192L, 6, 3, 32)
                        "sizes"

                    Expect.equal (Seq.length (VisionTransformer.leaves vit)) 78 "leaves"

                    for name, leaf in named vit do
                        Expect.equal (numbers leaf) (numbers tensors[name]) name))

            testCase "the golden network's features" (fun () ->
                use _ = torch.NewDisposeScope()
                let path = Path.Combine(goldenFolder, "learner.safetensors")
                let file = Safetensors.read path

                let backbone =
                    file.Tensors
                    |> Map.toSeq
                    |> Seq.filter (fun (name, _) -> name.StartsWith "backbone.")
                    |> Seq.map (fun (name, tensor) -> name.Substring "backbone.".Length, tensor)
                    |> Map.ofSeq

                let golden =
                    { options with
                        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
                        Precision = Precision.Float64
                    }

                let vit = Weights.ofTensors golden path file.Metadata backbone

                let features =
                    featuresOf vit (file.Tensors["probe.images"].``to`` Generators.device)

                closeTo 1e-9 (numbers file.Tensors["probe.features_before"]) (numbers features))

            testList
                "positions"
                [
                    for grid, expected in resampled do
                        testCase $"3 x 3 to {grid} x {grid}, as PyTorch does" (fun () ->
                            use _ = torch.NewDisposeScope()

                            for dtype, tolerance in
                                [
                                    torch.ScalarType.Float64, 1e-11
                                    torch.ScalarType.Float32, 5e-6 // some units in the last of 24 binary digits of 4.5
                                    torch.ScalarType.BFloat16, 0.02
                                ] do
                                let result = Weights.resamplePositions grid (squaresModulo7 dtype)
                                Expect.equal result.dtype dtype "dtype"
                                closeTo tolerance (Array.append [| 0.0 |] expected) (numbers result))

                    testCase "to their own grid, unchanged" (fun () ->
                        use _ = torch.NewDisposeScope()
                        let positions = squaresModulo7 torch.ScalarType.Float64
                        closeTo 1e-14 (numbers positions) (numbers (Weights.resamplePositions 3L positions)))

                    testCase "columns are resampled alone, and the class token is kept" (fun () ->
                        use _ = torch.NewDisposeScope()
                        let one = squaresModulo7 torch.ScalarType.Float64
                        let constant = torch.full_like (one, Scalar.op_Implicit 3.0)
                        let both = torch.cat ([| one.add (Scalar.op_Implicit 1.0); constant |], 2L) // [1, 10, 2]
                        let result = numbers (Weights.resamplePositions 5L both)

                        let column c =
                            [| for i in 0..25 -> result[2 * i + c] |]

                        let expected =
                            Array.append [| 0.0 |] (resampled |> List.find (fst >> (=) 5L) |> snd)

                        closeTo 1e-11 (expected |> Array.map ((+) 1.0)) (column 0)
                        closeTo 1e-12 (Array.create 26 3.0) (column 1))

                    testCase "an image size that the file's positions are not for" (fun () ->
                        use _ = torch.NewDisposeScope()
                        let tensors = distinctTensors tiny

                        let double =
                            { tinyOptions with
                                Precision = Precision.Float64
                                ImageSize = Some 20
                            }

                        let vit = Weights.ofTensors double "w" Map.empty tensors
                        Expect.equal vit.ImageSize 20 "image size"
                        let expected = Weights.resamplePositions 5L tensors["pos_embed"]
                        Expect.equal (numbers vit.Positions) (numbers expected) "positions"

                        let images =
                            torch.ones ([| 1L; 3L; 20L; 20L |], torch.ScalarType.Float64, Generators.device)

                        Expect.equal (featuresOf vit images).shape [| 1L; 8L |] "features")

                    testCase "the file's own image size keeps them bit by bit" (fun () ->
                        use _ = torch.NewDisposeScope()
                        let tensors = distinctTensors tiny

                        let double =
                            { tinyOptions with
                                Precision = Precision.Float64
                                ImageSize = Some 12
                            }

                        let vit = Weights.ofTensors double "w" Map.empty tensors
                        Expect.equal (numbers vit.Positions) (numbers tensors["pos_embed"]) "positions")
                ]

            testCase "random weights: the key decides, and the spread is timm's" (fun () ->
                use _ = torch.NewDisposeScope()
                let shape = { tiny with Width = 64 }

                let draw key =
                    Weights.randomTensors shape torch.ScalarType.Float64 key

                let first, again, other = draw key, draw key, draw (Rng.fold 1L key)
                let weight = "blocks.1.mlp.fc1.weight"
                Expect.equal (numbers first[weight]) (numbers again[weight]) "same key"
                Expect.notEqual (numbers first[weight]) (numbers other[weight]) "another key"

                Expect.notEqual
                    (numbers first[weight])
                    (numbers first["blocks.0.mlp.fc1.weight"])
                    "another leaf"

                let deviation name =
                    numbers first[name] |> Array.averageBy (fun x -> x * x) |> sqrt

                Expect.floatClose { absolute = 1e-3; relative = 0.0 } (deviation weight) 0.02 "weights"
                Expect.isLessThan (deviation "cls_token") 2e-6 "class token"
                Expect.equal (deviation "norm.weight", deviation "norm.bias") (1.0, 0.0) "norm")

            testCase "random weights leave only the network" (fun () ->
                leavesNothing (fun () ->
                    Weights.random options tiny key |> Scope.free VisionTransformer.leaves))
        ]
