/// Low-rank pairs on every site and MLP adapters, in the network.
module LoRASub.Tests.AdapterTests

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.Oracles
open LoRASub.Tests.VisionTransformerTests
open TorchSharp

let private property name law = propertyOf 15 "Adapter" name law
let private float64 = torch.ScalarType.Float64
let private hidden = 3

/// What is trained: pairs on some sites, and MLP adapters or none.
type private Kind = { Sites: Site list; Mlp: bool }

/// Each site on its own, several, all, and the MLP adapter alone and with all.
let private kinds: Kind list =
    [
        for site in Site.all do
            { Sites = [ site ]; Mlp = false }

        {
            Sites = [ Site.Query; Site.Value; Site.Fc2 ]
            Mlp = false
        }

        { Sites = []; Mlp = true }
        { Sites = Site.all; Mlp = true }
    ]

let private plainMlp (c: Network) (kind: Kind) : PlainMlp[] =
    [|
        if kind.Mlp then
            for i in 0 .. c.Depth - 1 do
                let seed = c.Seed + 800 + 4 * i

                {
                    Down = normalMatrix seed hidden c.Width, normals (seed + 1) hidden
                    Up = normalMatrix (seed + 2) c.Width hidden, normals (seed + 3) c.Width
                    Scale = 0.5
                }
    |]

let private mlp (plain: PlainMlp[]) : MlpAdapter[] =
    let linear (weight, bias) : Linear =
        {
            Weight = tensor weight
            Bias = Some(vector bias)
        }

    plain
    |> Array.map (fun p ->
        {
            Down = linear p.Down
            Up = linear p.Up
            Scale = p.Scale
            Dropout = None
        })

let private adapters (c: Network) (kind: Kind) (vit: VisionTransformer) : Adapters =
    { bare vit with
        Lora = lora (c.PlainLoraOn kind.Sites)
        Mlp = mlp (plainMlp c kind)
    }

let private trainedTree =
    Tree.pair "lora" (Tree.array (Lora.tree [])) "mlp" (Tree.array (MlpAdapter.tree 0.5))

let private trained (a: Adapters) =
    Array.ofSeq (trainedTree.Leaves(struct (a.Lora, a.Mlp)))

let private withTrained (tensors: torch.Tensor[]) (a: Adapters) : Adapters =
    let struct (lora, mlp) =
        Tree.withLeaves trainedTree tensors (struct (a.Lora, a.Mlp))

    { a with Lora = lora; Mlp = mlp }

/// The oracle of gradients: the tokens after the last block in plain operations on all tokens, from weights that hold
/// W + B·A, so that every gradient goes through one of full size.
let private reference (a: Adapters) (vit: VisionTransformer) (images: torch.Tensor) : torch.Tensor =
    let norm (n: LayerNorm) (x: torch.Tensor) =
        let centred = x.sub (x.mean ([| -1L |], true))

        let deviation =
            centred.square().mean([| -1L |], true).add(Scalar.op_Implicit n.Epsilon).sqrt()

        centred.div(deviation).mul(n.Weight).add(n.Bias)

    let product (weight: torch.Tensor) (bias: torch.Tensor option) (x: torch.Tensor) =
        (torch.einsum ("bni,oi->bno", x, weight)).add(Option.get bias)

    let step (x: torch.Tensor) (i, block: Block) =
        let pairs = a.Lora |> Array.tryItem i |> Option.defaultValue Map.empty

        let weight site (frozen: torch.Tensor) =
            match Map.tryFind site pairs with
            | None -> frozen
            | Some pair -> frozen.add (pair.B.mm pair.A)

        let d, heads = vit.Width, int64 vit.Heads
        let input = norm block.Norm1 x

        let heads site first =
            let rows (t: torch.Tensor) = t.narrow (0L, first * d, d)

            let y =
                product (weight site (rows block.Qkv.Weight)) (Option.map rows block.Qkv.Bias) input

            y.reshape(y.shape[0], y.shape[1], heads, d / heads).permute(0L, 2L, 1L, 3L) // [B, h, N, d/h]

        let q, k, v = heads Site.Query 0L, heads Site.Key 1L, heads Site.Value 2L
        let scale = Scalar.op_Implicit (1.0 / sqrt (float q.shape[3]))
        let scores = (torch.einsum ("bhnd,bhmd->bhnm", q, k)).mul scale
        let powers = scores.sub(scores.detach().amax([| -1L |], true)).exp()
        let weights = powers.div (powers.sum (-1L, true))

        let mixed =
            (torch.einsum ("bhnm,bhmd->bhnd", weights, v)).permute(0L, 2L, 1L, 3L).reshape(x.shape)

        let x =
            product (weight Site.Projection block.Projection.Weight) block.Projection.Bias mixed
            |> x.add

        let inner =
            product (weight Site.Fc1 block.Fc1.Weight) block.Fc1.Bias (norm block.Norm2 x)

        let activated =
            inner
                .mul(Scalar.op_Implicit 0.5)
                .mul(inner.div(Scalar.op_Implicit (sqrt 2.0)).erf().add(Scalar.op_Implicit 1.0))

        let output =
            x.add (product (weight Site.Fc2 block.Fc2.Weight) block.Fc2.Bias activated)

        match Array.tryItem i a.Mlp with
        | None -> output
        | Some adapter ->
            let down = product adapter.Down.Weight adapter.Down.Bias x

            let up =
                product adapter.Up.Weight adapter.Up.Bias (down.maximum (torch.zeros_like down))

            output.add (up.mul (Scalar.op_Implicit adapter.Scale))

    let patches =
        torch.nn.functional.conv2d (
            images,
            vit.PatchEmbedding.Weight,
            Option.get vit.PatchEmbedding.Bias,
            strides = [| int64 vit.PatchSize; int64 vit.PatchSize |]
        )

    let classTokens = vit.ClassToken.expand (images.shape[0], 1L, -1L)

    let embedded =
        torch.cat ([| classTokens; patches.flatten(2L).transpose(1L, 2L) |], 1L)

    Array.fold step (embedded.add vit.Positions) (Array.indexed vit.Blocks)

let private last (vit: VisionTransformer) tokens =
    {
        Block = vit.Blocks.Length
        Tokens = tokens
        FinalNorm = false
    }

/// Of the last block only the class token, which is the shortcut, or all tokens.
let private readings = [ [ Tokens.Class ]; [ Tokens.Class; Tokens.PatchMean ] ]

/// The columns of some tokens, side by side.
let private ours tokens a vit images =
    torch.cat (VisionTransformer.tokens [| for t in tokens -> last vit t |] a vit images, 1L)

let private theirs (tokens: Tokens list) a (vit: VisionTransformer) images =
    let output = reference a vit images
    let patches = output.narrow (1L, 1L, output.shape[1] - 1L)

    torch.cat (
        [|
            for t in tokens do
                if t = Tokens.Class then
                    output.select (1L, 0L)
                else
                    patches.mean [| 1L |]
        |],
        1L
    )

let private differentiate read (a: Adapters) (images: torch.Tensor) =
    [| images; yield! trained a |]
    |> Grad.valueAndGrad (fun p -> (read (withTrained p[1..] a) p[0]: torch.Tensor).tanh().sum())

let private sameGradients (what: string) (expected: Gradients) (found: Gradients) =
    Array.iteri2
        (fun i (e: torch.Tensor option) (f: torch.Tensor option) ->
            closeTensors $"{what}: gradient {i}" e.Value f.Value)
        expected
        found

let private features a vit images = VisionTransformer.features a vit images

let private example: Network =
    {
        Seed = 1
        Images = 2
        Channels = 2
        Patch = 2
        Side = 2
        Depth = 2
        Heads = 2
        HeadWidth = 2
        Rank = 2
    }

let private everything = { Sites = Site.all; Mlp = true }

let private rejectsAdapters name words (change: Adapters -> Adapters) =
    rejects name words (fun () ->
        let vit = build example.Plain
        features (change (adapters example everything vit)) vit example.Batch |> ignore)

/// The first block's pair on a site with another A or B.
let private replacing site (change: LoraPair -> LoraPair) (a: Adapters) =
    { a with
        Lora = a.Lora |> Array.updateAt 0 (Map.change site (Option.map change) a.Lora[0])
    }

[<Tests>]
let tests =
    testList
        "Adapter"
        [
            property "tokens with any adapters ≡ the loops" (fun (c: Network) ->
                let vit = build c.Plain

                for kind in kinds do
                    let a = adapters c kind vit

                    let found =
                        VisionTransformer.tokens [| for t in readings[1] -> last vit t |] a vit c.Batch

                    let first = VisionTransformer.tokens [| last vit Tokens.Class |] a vit c.Batch

                    for i in 0 .. c.Images - 1 do
                        let outputs =
                            Oracles.run c.Plain (c.PlainLoraOn kind.Sites) (plainMlp c kind) (c.Image i)
                            |> List.map snd

                        for tokens, t in List.zip readings[1] (List.ofArray found) do
                            close
                                $"%A{kind}, %A{tokens} of image {i}"
                                (Oracles.part c.Plain outputs (last vit tokens))
                                (numbers t[int64 i])

                        close
                            $"%A{kind}, the class token alone of image {i}"
                            (Oracles.part c.Plain outputs (last vit Tokens.Class))
                            (numbers first[0].[int64 i]))

            property
                "value and gradients, activations kept or computed again ≡ those of plain operations"
                (fun (c: Network) ->
                    let vit = build c.Plain

                    for kind in kinds do
                        let a = adapters c kind vit

                        for tokens in readings do
                            let struct (value, gradients) =
                                differentiate (fun a -> theirs tokens a vit) a c.Batch

                            for again in [ false; true ] do
                                let vit =
                                    { vit with
                                        CheckpointActivations = again
                                    }

                                let struct (found, foundGradients) =
                                    differentiate (fun a -> ours tokens a vit) a c.Batch

                                let what = $"%A{kind}, %A{tokens}, again {again}"
                                closeTensors what value found
                                sameGradients what gradients foundGradients)

            property "pairs whose A is frozen: B's gradients are the same" (fun (c: Network) ->
                let vit = build c.Plain
                let a = adapters c { everything with Mlp = false } vit
                let all = trained a
                let places = [| 1..2 .. all.Length - 1 |]

                for again in [ false; true ] do
                    let vit =
                        { vit with
                            CheckpointActivations = again
                        }

                    let struct (_, expected) = differentiate (fun a -> ours readings[1] a vit) a c.Batch

                    let struct (_, found) =
                        places
                        |> Array.map (Array.get all)
                        |> Grad.valueAndGrad (fun p ->
                            let leaves = Array.copy all
                            places |> Array.iteri (fun i place -> leaves[place] <- p[i])
                            (ours readings[1] (withTrained leaves a) vit c.Batch).tanh().sum())

                    sameGradients "B" [| for place in places -> expected[place + 1] |] found)

            property
                "B = 0 and fresh MLP adapters leave the features at the base model's"
                (fun (c: Network) ->
                    let vit = build c.Plain
                    let a = adapters c everything vit

                    let silent =
                        { a with
                            Lora =
                                a.Lora
                                |> Array.map (Map.map (fun _ p -> { p with B = torch.zeros_like p.B }))
                            Mlp =
                                Array.init c.Depth (fun i ->
                                    MlpAdapter.init
                                        0.1
                                        hidden
                                        vit.Width
                                        float64
                                        device
                                        (Rng.ofSeed (int64 i)))
                        }

                    closeTensors "features" (features (bare vit) vit c.Batch) (features silent vit c.Batch))

            property "frozen adapters are the network as it was loaded" (fun (c: Network) ->
                let vit = build c.Plain
                let a = VisionTransformer.frozen vit
                Array.iter2 (identical "weights") (bare vit).Qkv a.Qkv
                // where the same weights lie in memory may decide the last digit of a product
                closeTensors "features" (features (bare vit) vit c.Batch) (features a vit c.Batch))

            property "merged weights ≡ pairs beside the weights, at every site" (fun (c: Network) ->
                let vit = build c.Plain

                for kind in kinds do
                    let shapes = vit.Blocks |> Array.map (Block.shapes kind.Sites)

                    let first, second =
                        lora (c.PlainLoraOn kind.Sites),
                        lora ({ c with Seed = c.Seed + 7 }.PlainLoraOn kind.Sites)

                    let none = shapes |> Array.map (fun s -> Lora.noDelta s float64 device)
                    let one = Array.map2 Lora.merge first none
                    let two = Array.map2 Lora.merge second one

                    closeTensors
                        $"%A{kind}: the pairs of the first task"
                        (features { bare vit with Lora = first } vit c.Batch)
                        (features (VisionTransformer.merged 1.0 one vit) vit c.Batch)

                    closeTensors
                        $"%A{kind}: those of the second, beside the merged first"
                        (features
                            { VisionTransformer.forTraining one vit with
                                Lora = second
                            }
                            vit
                            c.Batch)
                        (features (VisionTransformer.merged 1.0 two vit) vit c.Batch))

            property "subtracted deltas at every site are pairs of the other sign" (fun (c: Network) ->
                let vit, pairs = build c.Plain, lora (c.PlainLoraOn Site.all)

                let deltas = pairs |> Array.map (Map.map (fun _ -> Lora.delta))
                let opposite = pairs |> Array.map (Map.map (fun _ p -> { p with B = p.B.neg () }))

                closeTensors
                    "features"
                    (features { bare vit with Lora = opposite } vit c.Batch)
                    (features (VisionTransformer.merged -1.0 deltas vit) vit c.Batch))

            property "(BM, M⁻¹A) leaves the features unchanged" (fun (c: Network) ->
                let vit = build c.Plain
                let a = adapters c everything vit
                // a rotation times 2: its inverse is half its transpose
                let q = tensor (orthogonal (c.Seed + 2) c.Rank)
                let two, half = Scalar.op_Implicit 2.0, Scalar.op_Implicit 0.5

                let turned (p: LoraPair) : LoraPair =
                    {
                        A = q.t().mul(half).mm p.A
                        B = p.B.mm (q.mul two)
                    }

                closeTensors
                    "features"
                    (features a vit c.Batch)
                    (features
                        { a with
                            Lora = a.Lora |> Array.map (Map.map (fun _ -> turned))
                        }
                        vit
                        c.Batch))

            property "an MLP adapter twice as strong adds twice as much" (fun (c: Network) ->
                let vit =
                    { build c.Plain with
                        Blocks = Array.take 1 (build c.Plain).Blocks
                    }

                let one = { c with Depth = 1 }
                let a = adapters one { Sites = []; Mlp = true } vit

                let strength s =
                    { a with
                        Mlp = a.Mlp |> Array.map (fun m -> { m with Scale = s * m.Scale })
                    }

                let at s =
                    ours readings[1] (strength s) vit c.Batch

                closeTensors "tokens" ((at 1.0).mul(Scalar.op_Implicit 2.0).sub(at 0.0)) (at 2.0))

            property "shapes are those of the weights" (fun (c: Network) ->
                let vit = build c.Plain
                let d = int64 c.Width

                for block in vit.Blocks do
                    let shapes = Block.shapes Site.all block

                    for site in [ Site.Query; Site.Key; Site.Value; Site.Projection ] do
                        Expect.equal shapes[site] [| d; d |] (Site.name site)

                    Expect.equal shapes[Site.Fc1] [| 4L * d; d |] "fc1"
                    Expect.equal shapes[Site.Fc2] [| d; 4L * d |] "fc2"

                Expect.equal
                    (List.ofSeq (Block.shapes [ Site.Fc1 ] vit.Blocks[0]).Keys)
                    [ Site.Fc1 ]
                    "only the sites asked for")

            testCase "a frozen network in training mode has a gradient for the images alone" (fun () ->
                Scope.run (fun () ->
                    let kept = build example.Plain

                    let gradient again =
                        let vit =
                            { kept with
                                CheckpointActivations = again
                            }

                        let struct (_, found) =
                            Grad.valueAndGrad
                                (fun p -> (features (VisionTransformer.frozen vit) vit p[0]).square().sum())
                                [| example.Batch |]

                        found[0].Value

                    closeTensors "images" (gradient false) (gradient true)

                    let struct (value, gradients) =
                        Grad.valueAndGrad
                            (fun p ->
                                let vit =
                                    { kept with
                                        CheckpointActivations = true
                                    }

                                (features (bare vit) vit example.Batch).square().sum().add(p[0]))
                            [| tensor (array2D [ [ 1.0 ] ]) |]

                    finite "value" value
                    closeTo 0.0 "the other parameter" [ 1.0 ] (numbers gradients[0].Value)))

            testCase "bfloat16: a pair below the weight's rounding still changes the output" (fun () ->
                Scope.run (fun () ->
                    let filled (shape: int64[]) (value: float) (dtype: torch.ScalarType) =
                        torch.full (shape, Scalar.op_Implicit value, dtype = dtype, device = device)

                    let weight: Linear =
                        {
                            Weight = filled [| 3L; 4L |] 1.0 torch.bfloat16
                            Bias = None
                        }

                    // orthogonal to the weight's rows
                    let x = tensor (array2D [ [ 1.0; 1.0; -1.0; -1.0 ] ])

                    // bfloat16 rounds 1 ± 0.001 to 1
                    let pair: LoraPair =
                        {
                            A = x.mul(Scalar.op_Implicit 1e-3).``to`` torch.float32
                            B = filled [| 3L; 1L |] 1.0 torch.float32
                        }

                    let y = Linear.forwardWith (Some pair) weight (x.``to`` torch.bfloat16)
                    Expect.equal y.dtype torch.bfloat16 "type"
                    closeTo 1e-4 "output" [ 4e-3; 4e-3; 4e-3 ] (numbers (y.``to`` float64))))

            testCase "names of all sites" (fun () ->
                Expect.equal
                    (List.map Site.name Site.all)
                    [ "query"; "key"; "value"; "projection"; "fc1"; "fc2" ]
                    "names")

            testCase "an MLP adapter is read back under its names" (fun () ->
                Scope.run (fun () ->
                    let adapter = MlpAdapter.init 0.1 hidden 4L float64 device (Rng.ofSeed 1L)
                    let written = Tree.write (MlpAdapter.tree 0.1) adapter

                    Expect.equal
                        (List.map fst written)
                        [ "down.weight"; "down.bias"; "up.weight"; "up.bias" ]
                        "names"

                    let again = Tree.read (MlpAdapter.tree 0.1) "the file" (Map.ofList written)
                    Expect.equal again.Scale 0.1 "scale"
                    Expect.isTrue (Tree.equal (MlpAdapter.tree 0.1) adapter again) "tensors"
                    Expect.all (numbers adapter.Up.Weight) ((=) 0.0) "up"
                    atMost "down" 0.5 (numbers adapter.Down.Weight |> Array.map abs |> Array.max)))

            rejects
                "an MLP adapter without hidden columns"
                [ "hidden width"; "at least 1"; "found 0" ]
                (fun () -> MlpAdapter.init 0.1 0 4L float64 device (Rng.ofSeed 1L) |> ignore)

            rejectsAdapters "MLP adapters for fewer blocks" [ "MLP adapters"; "0 or 2"; "found 1" ] (fun a ->
                { a with Mlp = Array.take 1 a.Mlp })

            rejectsAdapters
                "effective weights for fewer blocks"
                [ "effective weights"; "0 or 2"; "found 1" ]
                (fun a -> { a with Weights = [| Map.empty |] })

            rejectsAdapters
                "an effective weight of another shape"
                [ "fc1 weight"; "[16, 4]"; "[4, 4]" ]
                (fun a ->
                    { a with
                        Weights = Array.create 2 (Map.ofList [ Site.Fc1, tensor (normalMatrix 1 4 4) ])
                    })

            rejectsAdapters
                "a pair of another width"
                [ "fc2 pair's A"; "[rank, 16]"; "[2, 4]" ]
                (replacing Site.Fc2 (fun p ->
                    { p with
                        A = tensor (normalMatrix 1 2 4)
                    }))

            rejectsAdapters
                "A and B of different ranks"
                [ "projection pair's B"; "[4, 2]"; "[4, 3]" ]
                (replacing Site.Projection (fun p ->
                    { p with
                        B = tensor (normalMatrix 1 4 3)
                    }))

            rejectsAdapters
                "a query pair of another width"
                [ "query delta"; "[4, 4]"; "[4, 5]" ]
                (replacing Site.Query (fun p ->
                    { p with
                        A = tensor (normalMatrix 1 2 5)
                    }))

            rejectsAdapters
                "a pair on another device"
                [ "fc1 pair"; string device; "meta" ]
                (replacing Site.Fc1 (fun p -> { p with B = onMeta p.B }))

            rejectsAdapters "an MLP adapter of another width" [ "up weight"; "[4, 3]"; "[5, 3]" ] (fun a ->
                let up: Linear =
                    {
                        Weight = tensor (normalMatrix 1 5 hidden)
                        Bias = None
                    }

                { a with
                    Mlp = a.Mlp |> Array.map (fun m -> { m with Up = up })
                })

            rejects "a delta of another shape" [ "fc1 delta"; "[16, 4]"; "[4, 4]" ] (fun () ->
                let vit = build example.Plain
                let deltas = Array.create 2 (Map.ofList [ Site.Fc1, tensor (normalMatrix 1 4 4) ])
                VisionTransformer.merged 1.0 deltas vit |> ignore)

            (let inputs again () =
                let vit =
                    { build example.Plain with
                        CheckpointActivations = again
                    }

                vit, adapters example everything vit, example.Batch

             testList
                 "ownership"
                 [
                     for again in [ false; true ] do
                         noLeaks
                             $"the gradient of every adapter, again {again}"
                             (inputs again)
                             (fun (vit, a, images) ->
                                 Scope.keep Leaves.tensors (fun () ->
                                     let struct (value, gradients) =
                                         differentiate (fun a -> ours readings[1] a vit) a images

                                     [| value; yield! Array.choose id gradients |])
                                 |> Seq.ofArray)

                     noLeaks "merged at every site" (inputs false) (fun (vit, a, _) ->
                         Scope.keep Adapters.leaves (fun () ->
                             let deltas = a.Lora |> Array.map (Map.map (fun _ -> Lora.delta))
                             VisionTransformer.merged 1.0 deltas vit)
                         |> Adapters.leaves)

                     noLeaks "frozen" (inputs false) (fun (vit, _, _) ->
                         Adapters.leaves (VisionTransformer.frozen vit))
                 ])
        ]
