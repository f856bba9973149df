module LoRASub.Tests.VisionTransformerTests

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Measure
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.Oracles
open TorchSharp

let private propertyOf cases name law =
    propertyOf cases "VisionTransformer" name law

let private float64 = torch.ScalarType.Float64

type Network =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 3)>]
        Images: int
        [<Between(1, 3)>]
        Channels: int
        [<Between(1, 3)>]
        Patch: int
        /// Patches along each side.
        [<Between(1, 4)>]
        Side: int
        [<Between(1, 3)>]
        Depth: int
        [<Between(1, 2)>]
        Heads: int
        [<Between(1, 3)>]
        HeadWidth: int
        [<Between(1, 6)>]
        Rank: int
    }

    interface IConstrained with
        member c.Holds = c.Rank <= c.Width

    member c.Width = c.Heads * c.HeadWidth
    member c.Size = c.Patch * c.Side

    member c.Plain: PlainVit =
        let d = c.Width
        let mutable next = c.Seed

        let linear rows columns =
            next <- next + 2
            normalMatrix next rows columns |> Oracles.scale 0.5, normals (next + 1) rows

        let norm () =
            next <- next + 2
            normals next d, normals (next + 1) d

        {
            Patch = c.Patch
            Channels = c.Channels
            Size = c.Size
            Heads = c.Heads
            Embedding = linear d (c.Channels * c.Patch * c.Patch)
            ClassToken = normals (c.Seed + 500) d
            Positions = normalMatrix (c.Seed + 501) (1 + c.Side * c.Side) d
            Blocks =
                Array.init c.Depth (fun _ ->
                    {
                        Norm1 = norm ()
                        Qkv = linear (3 * d) d
                        Projection = linear d d
                        Norm2 = norm ()
                        Fc1 = linear (4 * d) d
                        Fc2 = linear d (4 * d)
                    })
            Norm = norm ()
            // different, and large enough that swapping them shows
            BlockEpsilon = 1e-2
            Epsilon = 1e-3
        }

    member c.Image i =
        Array.init c.Channels (fun channel -> normalMatrix (c.Seed + 600 + 10 * i + channel) c.Size c.Size)

    member c.Batch =
        let pixels =
            [|
                for i in 0 .. c.Images - 1 do
                    for channel in c.Image i do
                        yield! Seq.cast<float> channel
            |]

        shaped [ c.Images; c.Channels; c.Size; c.Size ] pixels

    /// Pairs on some sites of each block.
    member c.PlainLoraOn(sites: Site list) : PlainLora[] =
        let pair seed outputs inputs : PlainPair =
            {
                A = normalMatrix seed c.Rank inputs
                B = normalMatrix (seed + 1) outputs c.Rank
            }

        Array.init c.Depth (fun i ->
            Map.ofList
                [
                    for number, site in List.indexed sites do
                        let outputs, inputs =
                            match site with
                            | Site.Fc1 -> 4 * c.Width, c.Width
                            | Site.Fc2 -> c.Width, 4 * c.Width
                            | _ -> c.Width, c.Width

                        site, pair (c.Seed + 700 + 20 * i + 2 * number) outputs inputs
                ])

    member c.PlainLora = c.PlainLoraOn Lora.keyValue

let internal build (plain: PlainVit) : VisionTransformer =
    let linear (w, b) : Linear =
        {
            Weight = tensor w
            Bias = Some(vector b)
        }

    let norm epsilon (w, b) : LayerNorm =
        {
            Weight = vector w
            Bias = vector b
            Epsilon = epsilon
        }

    let embedding = linear plain.Embedding
    let kernel = [| -1L; int64 plain.Channels; int64 plain.Patch; int64 plain.Patch |]

    {
        PatchEmbedding =
            { embedding with
                Weight = embedding.Weight.reshape kernel
            }
        ClassToken = (vector plain.ClassToken).reshape(1L, 1L, -1L)
        Positions = (tensor plain.Positions).unsqueeze 0L
        Blocks =
            plain.Blocks
            |> Array.map (fun b ->
                {
                    Norm1 = norm plain.BlockEpsilon b.Norm1
                    Qkv = linear b.Qkv
                    Projection = linear b.Projection
                    Norm2 = norm plain.BlockEpsilon b.Norm2
                    Fc1 = linear b.Fc1
                    Fc2 = linear b.Fc2
                })
        Norm = norm plain.Epsilon plain.Norm
        Heads = plain.Heads
        ImageSize = plain.Size
        Precision = Precision.Float64
        CheckpointActivations = false
    }

/// The same network with its fused weights on the meta device.
let private toMeta (vit: VisionTransformer) : VisionTransformer =
    let block (b: Block) =
        { b with
            Qkv =
                { b.Qkv with
                    Weight = onMeta b.Qkv.Weight
                }
        }

    { vit with
        ClassToken = onMeta vit.ClassToken
        Blocks = Array.map block vit.Blocks
    }

let internal lora (plain: PlainLora[]) : LayerLora[] =
    plain |> Array.map (Map.map (fun _ p -> { A = tensor p.A; B = tensor p.B }))

let internal bare (vit: VisionTransformer) : Adapters =
    {
        Qkv = vit.Blocks |> Array.map _.Qkv.Weight
        Weights = [||]
        Lora = [||]
        Mlp = [||]
    }

let private nothing (vit: VisionTransformer) =
    vit.Blocks
    |> Array.map (fun block -> Lora.noDelta (Block.shapes Lora.keyValue block) float64 vit.Device)

let private againstLoops (c: Network) (pairs: PlainLora[]) =
    let vit = build c.Plain

    let adapters = { bare vit with Lora = lora pairs }

    let features = VisionTransformer.features adapters vit c.Batch

    let inputs =
        VisionTransformer.foldInputs Seq.ofList (fun all _ x -> x :: all) [] adapters vit c.Batch

    Expect.equal features.shape [| int64 c.Images; int64 c.Width |] "[B, d]"

    for i in 0 .. c.Images - 1 do
        let expectedInputs, outputs =
            Oracles.run c.Plain pairs [||] (c.Image i) |> List.unzip

        let expected = Oracles.part c.Plain outputs (VisionTransformer.output vit)
        close $"features of image {i}" expected (numbers features[int64 i])

        List.iter2
            (fun e (x: torch.Tensor) -> closeMatrix "attention input" e x[int64 i])
            expectedInputs
            (List.rev inputs)

let private example: Network =
    {
        Seed = 1
        Images = 2
        Channels = 3
        Patch = 2
        Side = 2
        Depth = 2
        Heads = 2
        HeadWidth = 2
        Rank = 2
    }

// Value of a scalar of the features, and the gradients of images and pairs.
let private differentiate (c: Network) (vit: VisionTransformer) =
    let weighing = tensor (normalMatrix (c.Seed + 900) c.Images c.Width)
    let pairs = lora c.PlainLora

    [| c.Batch; yield! Seq.collect Lora.leaves pairs |]
    |> Grad.valueAndGrad (fun p ->
        let pairs = Tree.withLeaves (Tree.array (Lora.tree [])) p[1..] pairs
        (VisionTransformer.features { bare vit with Lora = pairs } vit p[0]).mul(weighing).sum())

let private exampleWith f =
    fun () -> let vit = build example.Plain in f vit example.Batch |> ignore

/// The class token after each block, and the feature.
type private ByBlock =
    {
        Blocks: torch.Tensor[]
        Output: torch.Tensor
    }

let private featuresByBlock adapters (vit: VisionTransformer) images : ByBlock =
    let found = VisionTransformer.tokens (ClassMoments.parts vit) adapters vit images

    {
        Blocks = Array.take vit.Blocks.Length found
        Output = Array.last found
    }

[<Tests>]
let tests =
    testList
        "VisionTransformer"
        [
            propertyOf 60 "features and attention inputs ≡ the loops" (fun (c: Network) ->
                againstLoops c [||])
            propertyOf 60 "with LoRA ≡ the loops" (fun (c: Network) -> againstLoops c c.PlainLora)

            propertyOf 50 "class tokens by block: the output is that of features" (fun (c: Network) ->
                let vit = build c.Plain

                let adapters =
                    { bare vit with
                        Lora = lora c.PlainLora
                    }

                let found = featuresByBlock adapters vit c.Batch
                closeTensors "output" (VisionTransformer.features adapters vit c.Batch) found.Output
                Expect.hasLength found.Blocks c.Depth "one per block")

            propertyOf
                50
                "a block's class token, normed, is the feature of the network cut after it"
                (fun (c: Network) ->
                    let vit = build c.Plain
                    let found = featuresByBlock (bare vit) vit c.Batch

                    for i in 0 .. c.Depth - 1 do
                        let cut =
                            { vit with
                                Blocks = Array.take (i + 1) vit.Blocks
                            }

                        let weight, bias = c.Plain.Norm

                        closeMatrix
                            $"after block {i}"
                            (Oracles.layerNorm c.Plain.Epsilon weight bias (matrix found.Blocks[i]))
                            (VisionTransformer.features (bare cut) cut c.Batch))

            propertyOf
                50
                "activations computed again ≡ activations kept, in value and gradient"
                (fun (c: Network) ->
                    let kept = build c.Plain
                    let struct (value, gradients) = differentiate c kept

                    let struct (again, gradientsAgain) =
                        differentiate
                            c
                            { kept with
                                CheckpointActivations = true
                            }

                    closeTensors "value" value again

                    Array.iteri2
                        (fun i (e: torch.Tensor option) (g: torch.Tensor option) ->
                            closeTensors $"gradient {i}" e.Value g.Value)
                        gradients
                        gradientsAgain)

            noLeaks
                "gradients with activations computed again"
                (fun () ->
                    { build example.Plain with
                        CheckpointActivations = true
                    })
                (fun vit ->
                    Scope.keep Leaves.tensors (fun () ->
                        let struct (value, gradients) = differentiate example vit
                        [| value; yield! Array.choose id gradients |])
                    |> Seq.ofArray)

            testCase "more images than fit the cache ≡ the same images one by one" (fun () ->
                Scope.run (fun () ->
                    // 70 images of 65 tokens are three slices
                    let wide =
                        { example with
                            Images = 70
                            Patch = 1
                            Side = 8
                            Depth = 2
                            Heads = 2
                            HeadWidth = 32
                        }

                    let vit, images = build wide.Plain, wide.Batch

                    let adapters =
                        { bare vit with
                            Lora = lora wide.PlainLora
                        }

                    let whole = featuresByBlock adapters vit images
                    let gather all _ (x: torch.Tensor) = Array.append all [| x |]

                    let inputs =
                        VisionTransformer.foldInputs Leaves.tensors gather [||] adapters vit images

                    // a GPU takes them at once
                    if onCpu then
                        Expect.isGreaterThan inputs.Length wide.Depth "attention inputs of several slices"

                    let first =
                        torch.cat [| for i in 0 .. wide.Depth .. inputs.Length - 1 -> inputs[i] |]

                    for i in [ 0; 23; 24; 69 ] do
                        let one = images.narrow (0L, int64 i, 1L)
                        let alone = featuresByBlock adapters vit one
                        closeTensors $"image {i}" alone.Output (whole.Output.narrow (0L, int64 i, 1L))

                        for b in 0 .. wide.Depth - 1 do
                            closeTensors
                                $"image {i} after block {b}"
                                alone.Blocks[b]
                                (whole.Blocks[b].narrow(0L, int64 i, 1L))

                        let input = VisionTransformer.foldInputs Leaves.tensors gather [||] adapters vit one

                        closeTensors
                            $"attention input of image {i}"
                            input[0]
                            (first.narrow (0L, int64 i, 1L))

                    let struct (_, gradients) = differentiate wide vit

                    let struct (_, again) =
                        differentiate
                            wide
                            { vit with
                                CheckpointActivations = true
                            }

                    for g, a in Array.zip gradients again do
                        closeTensors "gradient" g.Value a.Value))

            propertyOf 50 "B = 0 leaves the features at the base model's" (fun (c: Network) ->
                let vit = build c.Plain

                let silent =
                    c.PlainLora
                    |> lora
                    |> Array.map (Map.map (fun _ p -> { p with B = torch.zeros_like p.B }))

                closeTensors
                    "features"
                    (VisionTransformer.features (bare vit) vit c.Batch)
                    (VisionTransformer.features { bare vit with Lora = silent } vit c.Batch))

            propertyOf 50 "merged weights ≡ separate path" (fun (c: Network) ->
                let vit, pairs = build c.Plain, lora c.PlainLora

                let merged =
                    VisionTransformer.merged 1.0 (Array.map2 Lora.merge pairs (nothing vit)) vit

                closeTensors
                    "features"
                    (VisionTransformer.features { bare vit with Lora = pairs } vit c.Batch)
                    (VisionTransformer.features merged vit c.Batch))

            propertyOf 50 "subtracting what was added gives the base model back" (fun (c: Network) ->
                let vit = build c.Plain
                let deltas = Array.map2 Lora.merge (lora c.PlainLora) (nothing vit)
                let added = (VisionTransformer.merged 1.0 deltas vit).Qkv

                let blocks =
                    Array.map2
                        (fun (b: Block) w ->
                            { b with
                                Qkv = { b.Qkv with Weight = w }
                            })
                        vit.Blocks
                        added

                let restored = VisionTransformer.merged -1.0 deltas { vit with Blocks = blocks }

                Array.iter2 (closeTensors "qkv") (bare vit).Qkv restored.Qkv)

            propertyOf
                50
                "frozen tensors and images keep their bits, also under a gradient"
                (fun (c: Network) ->
                    let vit, images, pairs = build c.Plain, c.Batch, lora c.PlainLora
                    let all = Seq.append [ images ] (VisionTransformer.leaves vit) |> Array.ofSeq
                    let before = all |> Array.map _.clone()

                    let f (ps: torch.Tensor[]) =
                        let first =
                            pairs[0]
                            |> Map.add
                                Site.Key
                                { Map.find Site.Key pairs[0] with
                                    A = ps[0]
                                }

                        (VisionTransformer.features
                            { bare vit with
                                Lora = Array.updateAt 0 first pairs
                            }
                            vit
                            images)
                            .sum()

                    Grad.valueAndGrad f [| (Map.find Site.Key pairs[0]).A |] |> ignore

                    VisionTransformer.features (bare vit) vit images |> ignore
                    Array.iter2 (identical "argument") before all

                    Expect.all
                        all
                        (fun t -> isNull t.grad && not t.requires_grad)
                        "no gradient on frozen tensors")

            propertyOf 50 "images do not see each other" (fun (c: Network) ->
                let vit = build c.Plain
                let together = VisionTransformer.features (bare vit) vit c.Batch
                let last = c.Images - 1

                let alone =
                    VisionTransformer.features (bare vit) vit (c.Batch.narrow (0L, int64 last, 1L))

                closeTensors "last image" (together.narrow (0L, int64 last, 1L)) alone)

            testCase "leaves are all tensors of the record, each once" (fun () ->
                Scope.run (fun () ->
                    let vit = build example.Plain
                    let leaves = VisionTransformer.leaves vit |> List.ofSeq
                    Expect.hasLength leaves (2 + 2 + 2 * 12 + 2) "embedding, tokens, blocks, norm"
                    Expect.hasLength (leaves |> List.distinctBy _.Handle) leaves.Length "distinct"))

            testCase "sizes are read off the tensors" (fun () ->
                Scope.run (fun () ->
                    let vit = build { example with Channels = 1; Patch = 3 }.Plain

                    Expect.equal
                        (vit.Width, vit.PatchSize, vit.Channels)
                        (4L, 3, 1)
                        "width, patch, channels"))

            testCase "bfloat16 inside, float32 features, close to float64" (fun () ->
                Scope.run (fun () ->
                    let exact = build example.Plain
                    let cast (t: torch.Tensor) = t.``to`` torch.bfloat16

                    let linear (l: Linear) : Linear =
                        {
                            Weight = cast l.Weight
                            Bias = Option.map cast l.Bias
                        }

                    let norm (n: LayerNorm) =
                        { n with
                            Weight = cast n.Weight
                            Bias = cast n.Bias
                        }

                    let vit =
                        { exact with
                            Precision = Precision.BFloat16
                            PatchEmbedding = linear exact.PatchEmbedding
                            ClassToken = cast exact.ClassToken
                            Positions = cast exact.Positions
                            Norm = norm exact.Norm
                            Blocks =
                                exact.Blocks
                                |> Array.map (fun b ->
                                    {
                                        Norm1 = norm b.Norm1
                                        Qkv =
                                            { b.Qkv with
                                                Bias = Option.map cast b.Qkv.Bias
                                            }
                                        Projection = linear b.Projection
                                        Norm2 = norm b.Norm2
                                        Fc1 = linear b.Fc1
                                        Fc2 = linear b.Fc2
                                    })
                        }

                    let pairs = lora example.PlainLora

                    let single = Map.map (fun _ -> Tree.map _.``to``(torch.float32) Lora.pairTree)

                    let adapters =
                        { VisionTransformer.forTraining (nothing exact) vit with
                            Lora = pairs |> Array.map single
                        }

                    let features = VisionTransformer.features adapters vit example.Batch
                    Expect.equal features.dtype torch.float32 "type"
                    let found = featuresByBlock adapters vit example.Batch
                    let wide (t: torch.Tensor) = numbers (t.``to`` float64)
                    // products in bfloat16 may be rounded another way
                    closeTo 0.05 "output by block" (wide features) (wide found.Output)
                    Expect.all found.Blocks (fun t -> t.dtype = torch.float32) "type of the blocks' tokens"

                    let expected =
                        VisionTransformer.features { bare exact with Lora = pairs } exact example.Batch

                    closeTo 0.15 "features" (numbers expected) (numbers (features.``to`` float64))))

            rejects
                "images of another size"
                [ "images"; "[batch, 3, 4, 4]"; "[2, 3, 4, 5]" ]
                (exampleWith (fun vit _ ->
                    VisionTransformer.features
                        (bare vit)
                        vit
                        (torch.zeros ([| 2L; 3L; 4L; 5L |], dtype = float64, device = device))))

            rejects
                "images on another device"
                [ "images"; string device; "meta" ]
                (exampleWith (fun vit images -> VisionTransformer.features (bare vit) vit (onMeta images)))

            rejects
                "weights for fewer blocks"
                [ "qkv weights"; "must be 2"; "found 1" ]
                (exampleWith (fun vit images ->
                    VisionTransformer.features
                        { bare vit with
                            Qkv = Array.take 1 (bare vit).Qkv
                        }
                        vit
                        images))

            rejects
                "pairs for fewer blocks"
                [ "LoRA pairs"; "0 or 2"; "found 1" ]
                (exampleWith (fun vit images ->
                    VisionTransformer.features
                        { bare vit with
                            Lora = Array.take 1 (lora example.PlainLora)
                        }
                        vit
                        images))

            rejects
                "deltas for fewer blocks"
                [ "deltas"; "must be 2"; "found 1" ]
                (exampleWith (fun vit _ -> VisionTransformer.merged 1.0 (Array.take 1 (nothing vit)) vit))

            testCase "effective weights on the meta device" (fun () ->
                Scope.run (fun () ->
                    let vit = toMeta (build example.Plain)

                    Array.iter
                        (expectMeta [ 12L; 4L ])
                        (VisionTransformer.merged -1.0 (nothing vit) vit).Qkv))

            (let inputs () =
                let vit = build example.Plain

                vit,
                { bare vit with
                    Lora = lora example.PlainLora
                },
                example.Batch

             testList
                 "ownership"
                 [
                     noLeaks "features" inputs (fun (vit, adapters, images) ->
                         use _ = torch.no_grad ()
                         [ VisionTransformer.features adapters vit images ])

                     noLeaks "tokens by block" inputs (fun (vit, adapters, images) ->
                         let found = featuresByBlock adapters vit images
                         Seq.append found.Blocks [ found.Output ])

                     noLeaks "the gradient of features" inputs (fun (vit, adapters, images) ->
                         let f (ps: torch.Tensor[]) =
                             let first =
                                 adapters.Lora[0]
                                 |> Map.add
                                     Site.Value
                                     { Map.find Site.Value adapters.Lora[0] with
                                         A = ps[0]
                                     }

                             (VisionTransformer.features
                                 { adapters with
                                     Lora = [| first; adapters.Lora[1] |]
                                 }
                                 vit
                                 images)
                                 .sum()

                         let struct (value, gradients) =
                             Grad.valueAndGrad f [| (Map.find Site.Value adapters.Lora[0]).A |]

                         [ value; gradients[0].Value ])

                     noLeaks
                         "merged"
                         (fun () -> let vit = build example.Plain in vit, nothing vit)
                         (fun (vit, deltas) -> Adapters.leaves (VisionTransformer.merged 1.0 deltas vit))
                 ])
        ]
