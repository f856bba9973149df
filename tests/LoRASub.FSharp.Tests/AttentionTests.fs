module LoRASub.Tests.AttentionTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Attention" name law
let private float64 = torch.ScalarType.Float64

type Layer =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 3)>]
        Batch: int
        [<Between(1, 5)>]
        Tokens: int
        [<Between(1, 3)>]
        Heads: int
        [<Between(1, 3)>]
        HeadWidth: int
        [<Between(1, 9)>]
        Rank: int
    }

    interface IConstrained with
        member c.Holds = c.Rank <= c.Width

    member c.Width = c.Heads * c.HeadWidth

    member c.Qkv =
        normalMatrix c.Seed (3 * c.Width) c.Width, normals (c.Seed + 1) (3 * c.Width)

    member c.Projection =
        normalMatrix (c.Seed + 2) c.Width c.Width, normals (c.Seed + 3) c.Width

    member c.Image i =
        normalMatrix (c.Seed + 100 + i) c.Tokens c.Width

    member c.X = Array.init c.Batch (fun i -> tensor (c.Image i)) |> torch.stack

    member c.LoraOn(sites: Site list) : Oracles.PlainLora =
        Map.ofList
            [
                for i, site in List.indexed sites do
                    let seed = c.Seed + 4 + 2 * i

                    site,
                    ({
                        A = normalMatrix seed c.Rank c.Width
                        B = normalMatrix (seed + 1) c.Width c.Rank
                    }
                    : Oracles.PlainPair)
            ]

    member c.Lora = c.LoraOn Lora.keyValue

/// All sites of attention.
let private attentionSites = [ Site.Query; Site.Key; Site.Value; Site.Projection ]

let private square (sites: Site list) (width: int64) =
    Map.ofList [ for site in sites -> site, [| width; width |] ]

let private noDelta width dtype device =
    Lora.noDelta (square Lora.keyValue width) dtype device

let private layer (weight, bias) : Linear =
    {
        Weight = tensor weight
        Bias = Some(vector bias)
    }

let private pair (p: Oracles.PlainPair) : LoraPair = { A = tensor p.A; B = tensor p.B }

let private lora (l: Oracles.PlainLora) : LayerLora = Map.map (fun _ -> pair) l

let private withTensors (tensors: torch.Tensor[]) (l: LayerLora) : LayerLora =
    Tree.withLeaves (Lora.tree []) tensors l

// The layer as the network runs it: the deltas of pairs on the fused weight are in it.
let private attend
    forward
    (heads: int)
    (qkv: Linear)
    (projection: Linear)
    (l: LayerLora)
    (x: torch.Tensor)
    : torch.Tensor =
    let weight = (Attention.withPairs qkv.Weight.dtype [| l |] [| qkv.Weight |])[0]

    forward (int64 heads) { qkv with Weight = weight } projection l x

let private run (c: Layer) (qkv: Linear) l =
    attend Attention.forward c.Heads qkv (layer c.Projection) l c.X

let private delta (c: Layer) =
    Lora.merge (lora c.Lora) (noDelta (int64 c.Width) float64 device)

let private againstLoops (c: Layer) (l: Oracles.PlainLora) =
    let actual = run c (layer c.Qkv) (lora l)
    Expect.equal actual.shape [| int64 c.Batch; int64 c.Tokens; int64 c.Width |] "[B, N, d]"

    for i in 0 .. c.Batch - 1 do
        closeMatrix
            $"image {i}"
            (Oracles.attention c.Heads c.Qkv c.Projection l (c.Image i))
            (actual[int64 i])

let private example: Layer =
    {
        Seed = 1
        Batch = 2
        Tokens = 3
        Heads = 2
        HeadWidth = 2
        Rank = 2
    }

let private withDelta sign d w = Attention.withDelta sign float64 d w

let private keyDelta (shape: int list) : LayerDelta =
    Map.ofList
        [
            Site.Key, shaped shape (normals 1 (List.reduce (*) shape))
            Site.Value, tensor (normalMatrix 1 4 4)
        ]

[<Tests>]
let tests =
    testList
        "Attention"
        [
            property "≡ the loops" (fun (c: Layer) -> againstLoops c Map.empty)
            property "with LoRA on keys and values ≡ the loops" (fun (c: Layer) -> againstLoops c c.Lora)

            property "with LoRA on each site, and on all, ≡ the loops" (fun (c: Layer) ->
                for site in attentionSites do
                    againstLoops c (c.LoraOn [ site ])

                againstLoops c (c.LoraOn attentionSites))

            property "B = 0 leaves the output at the base model's" (fun (c: Layer) ->
                let off =
                    c.LoraOn attentionSites
                    |> Map.map (fun _ p ->
                        { p with
                            B = Array2D.map (fun _ -> 0.0) p.B
                        })

                closeTensors "output" (run c (layer c.Qkv) Map.empty) (run c (layer c.Qkv) (lora off)))

            property "merged weights ≡ separate path" (fun (c: Layer) ->
                let qkv = layer c.Qkv

                let merged =
                    { qkv with
                        Weight = withDelta 1.0 (delta c) qkv.Weight
                    }

                closeTensors "output" (run c qkv (lora c.Lora)) (run c merged Map.empty))

            property "(W − V) + V = W" (fun (c: Layer) ->
                let w = tensor (fst c.Qkv)
                closeTensors "weight" w (w |> withDelta -1.0 (delta c) |> withDelta 1.0 (delta c)))

            property "the delta stands on keys and values; queries keep their bits" (fun (c: Layer) ->
                let w, d, v = tensor (fst c.Qkv), int64 c.Width, delta c
                let subtracted = withDelta -1.0 v w
                identical "queries" (w.narrow (0L, 0L, d)) (subtracted.narrow (0L, 0L, d))
                closeTensors "keys" ((w.narrow (0L, d, d)).sub v[Site.Key]) (subtracted.narrow (0L, d, d))

                closeTensors
                    "values"
                    ((w.narrow (0L, 2L * d, d)).sub v[Site.Value])
                    (subtracted.narrow (0L, 2L * d, d)))

            property "images do not see each other" (fun (c: Layer) ->
                let qkv, projection = layer c.Qkv, layer c.Projection

                let alone =
                    Attention.forward (int64 c.Heads) qkv projection Map.empty (c.X.narrow (0L, 0L, 1L))

                closeTensors "first image" ((run c qkv Map.empty).narrow(0L, 0L, 1L)) alone)

            property "permuted tokens give permuted outputs" (fun (c: Layer) ->
                let order = labelTensor (order c.Seed c.Tokens)
                let qkv, projection = layer c.Qkv, layer c.Projection

                let permuted =
                    attend
                        Attention.forward
                        c.Heads
                        qkv
                        projection
                        (lora (c.LoraOn attentionSites))
                        (c.X.index_select (1L, order))

                closeTensors
                    "output"
                    ((run c qkv (lora (c.LoraOn attentionSites))).index_select(1L, order))
                    permuted)

            property
                "gradients of A and B are those of the merged weight: dA = Bᵀ dW, dB = dW Aᵀ"
                (fun (c: Layer) ->
                    let l, projection, qkv =
                        lora (c.LoraOn attentionSites), layer c.Projection, layer c.Qkv

                    let weighing =
                        shaped
                            [ c.Batch; c.Tokens; c.Width ]
                            (normals (c.Seed + 9) (c.Batch * c.Tokens * c.Width))

                    let scalar (y: torch.Tensor) = y.mul(weighing).sum()

                    let struct (_, pairs) =
                        Array.ofSeq (Lora.leaves l)
                        |> Grad.valueAndGrad (fun p ->
                            scalar (attend Attention.forward c.Heads qkv projection (withTensors p l) c.X))

                    let projected = projection.Weight.add (Lora.delta l[Site.Projection])

                    let struct (_, full) =
                        [| (Attention.withPairs float64 [| l |] [| qkv.Weight |])[0]; projected |]
                        |> Grad.valueAndGrad (fun p ->
                            scalar (
                                Attention.forward
                                    (int64 c.Heads)
                                    { qkv with Weight = p[0] }
                                    { projection with Weight = p[1] }
                                    Map.empty
                                    c.X
                            ))

                    let rows = full[0].Value.split(int64 c.Width)

                    for i, dW in List.indexed [ rows[0]; rows[1]; rows[2]; full[1].Value ] do
                        let p = l[attentionSites[i]]
                        closeTensors "dA" (p.B.t().mm dW) pairs[2 * i].Value
                        closeTensors "dB" (dW.mm (p.A.t ())) pairs[2 * i + 1].Value)

            property "a frozen A or B has no gradient, and the other its own" (fun (c: Layer) ->
                let l, projection, qkv =
                    lora (c.LoraOn attentionSites), layer c.Projection, layer c.Qkv

                let all = Array.ofSeq (Lora.leaves l)

                let gradients (trained: int[]) =
                    let struct (_, found) =
                        trained
                        |> Array.map (Array.get all)
                        |> Grad.valueAndGrad (fun p ->
                            let leaves = Array.copy all
                            trained |> Array.iteri (fun i place -> leaves[place] <- p[i])

                            (attend Attention.forward c.Heads qkv projection (withTensors leaves l) c.X)
                                .square()
                                .sum())

                    Map.ofSeq (Seq.zip trained (Array.map Option.get found))

                let expected = gradients [| 0 .. all.Length - 1 |]

                for trained in
                    [
                        [| for i in 0..3 -> 2 * i + 1 |]
                        [| for i in 0..3 -> 2 * i |]
                        [| 0; 3 |]
                        [| 5 |]
                    ] do
                    for KeyValue(place, gradient) in gradients trained do
                        closeTensors $"leaf {place} of {trained}" expected[place] gradient)

            property "no images give gradients of zero" (fun (c: Layer) ->
                let qkv, projection, l =
                    layer c.Qkv, layer c.Projection, lora (c.LoraOn attentionSites)

                let struct (_, gradients) =
                    Array.ofSeq (Lora.leaves l)
                    |> Grad.valueAndGrad (fun p ->
                        let none = c.X.narrow (0L, 0L, 0L)
                        (attend Attention.forward c.Heads qkv projection (withTensors p l) none).sum())

                for gradient in gradients do
                    closeTensors "gradient" (torch.zeros_like gradient.Value) gradient.Value)

            property
                "the first token alone ≡ the first row of all tokens, in value and gradient"
                (fun (c: Layer) ->
                    let qkv, projection = layer c.Qkv, layer c.Projection

                    let weighing =
                        shaped [ c.Batch; 1; c.Width ] (normals (c.Seed + 9) (c.Batch * c.Width))

                    for sites in [ Lora.keyValue; [ Site.Query ]; attentionSites ] do
                        let l = lora (c.LoraOn sites)

                        let differentiate forward =
                            [| c.X; yield! Lora.leaves l |]
                            |> Grad.valueAndGradWith (fun p ->
                                let y = attend forward c.Heads qkv projection (withTensors p[1..] l) p[0]
                                let first = y.narrow (1L, 0L, 1L)
                                struct (first.mul(weighing).sum(), [| first |]))

                        let struct (_, first, gradients) = differentiate Attention.forwardFirst
                        let struct (_, expected, expectedGradients) = differentiate Attention.forward
                        closeTensors "first token" expected[0] first[0]

                        Array.iter2
                            (fun (e: torch.Tensor option) (g: torch.Tensor option) ->
                                closeTensors "gradient" e.Value g.Value)
                            expectedGradients
                            gradients)

            property "borrows: weights, deltas and tokens keep their bits" (fun (c: Layer) ->
                let qkv, x, v = layer c.Qkv, c.X, delta c

                let all =
                    Seq.concat [ Linear.leaves qkv; Seq.singleton x; Lora.deltaLeaves v ]
                    |> Array.ofSeq

                let before = all |> Array.map _.clone()
                withDelta -1.0 v qkv.Weight |> ignore
                Attention.forward (int64 c.Heads) qkv (layer c.Projection) Map.empty x |> ignore
                Array.iter2 (identical "argument") before all)

            property "each block's pairs reach its own fused weight, where it has any" (fun (c: Layer) ->
                let sites =
                    [|
                        []
                        [ Site.Value ]
                        [ Site.Query; Site.Key ]
                        [ Site.Key; Site.Projection ]
                    |]

                let pairs = sites |> Array.map (fun sites -> lora (c.LoraOn sites))

                let weights =
                    sites
                    |> Array.mapi (fun i _ -> tensor (normalMatrix (c.Seed + 50 + i) (3 * c.Width) c.Width))

                let before = weights |> Array.map _.clone()
                let merged = Attention.withPairs float64 pairs weights
                Array.iter2 (identical "weight") before weights

                for i in 0 .. sites.Length - 1 do
                    let delta = pairs[i] |> Map.map (fun _ -> Lora.delta)
                    let expected = withDelta 1.0 delta weights[i]
                    closeMatrix $"block {i}" (matrix expected) merged[i])

            rejects "pairs for another number of blocks" [ "LoRA pairs"; "2"; "found 1" ] (fun () ->
                let weight = torch.zeros (6L, 2L)
                Attention.withPairs torch.float32 [| Map.empty |] [| weight; weight |] |> ignore)

            testCase "a zero delta gives a copy, not the weight itself" (fun () ->
                Scope.run (fun () ->
                    let w = tensor (normalMatrix 1 12 4)
                    let copy = withDelta 1.0 (noDelta 4L float64 device) w
                    copy.zero_ () |> ignore
                    closeMatrix "the weight" (normalMatrix 1 12 4) w))

            testCase "a delta below the rounding of bfloat16 still reaches the weight" (fun () ->
                Scope.run (fun () ->
                    let d = 4L
                    let bfloat16 = torch.ScalarType.BFloat16

                    let filled (shape: int64[]) (value: float) =
                        torch
                            .ones(shape, dtype = torch.float32, device = device)
                            .mul(Scalar.op_Implicit value)

                    // below a tie between 1 and the next number by less than the delta
                    let weight = filled [| 3L * d; d |] (1.0 + 0.75 / 256.0)

                    let pair: LoraPair =
                        {
                            A = filled [| 1L; d |] (0.5 / 256.0)
                            B = filled [| d; 1L |] 1.0
                        }

                    let merged =
                        (Attention.withPairs
                            bfloat16
                            [| Map.ofList [ Site.Key, pair; Site.Value, pair ] |]
                            [| weight |])[0]

                    let next = 1.0 + 1.0 / 128.0
                    let expected first = if first < d then 1.0 else next
                    Expect.equal merged.dtype bfloat16 "type"

                    for row in [ 0L; d; 2L * d; 3L * d - 1L ] do
                        Expect.equal
                            (merged[row, 0L].``to``(float64).item<float>())
                            (expected row)
                            $"row {row}"))

            testCase "the compute format is the one asked for" (fun () ->
                Scope.run (fun () ->
                    let w =
                        Attention.withDelta
                            1.0
                            torch.bfloat16
                            (noDelta 4L float64 device)
                            (tensor (normalMatrix 1 12 4))

                    Expect.equal w.dtype torch.bfloat16 "type"))

            rejects "a fused weight of two parts" [ "qkv weight"; "[12, 4]"; "[8, 4]" ] (fun () ->
                withDelta 1.0 (noDelta 4L float64 device) (tensor (normalMatrix 1 8 4))
                |> ignore)

            rejects "a key delta of another width" [ "key delta"; "[4, 4]"; "[1, 4]" ] (fun () ->
                withDelta 1.0 (keyDelta [ 1; 4 ]) (tensor (normalMatrix 1 12 4)) |> ignore)

            rejects "a delta of another type" [ "key delta"; "Float64"; "Float32" ] (fun () ->
                withDelta 1.0 (noDelta 4L torch.float32 device) (tensor (normalMatrix 1 12 4))
                |> ignore)

            rejects "a delta on another device" [ "key delta"; string device; "meta" ] (fun () ->
                withDelta 1.0 (noDelta 4L float64 torch.META) (tensor (normalMatrix 1 12 4))
                |> ignore)

            rejects "heads that do not divide the width" [ "heads"; "divide"; "4"; "3" ] (fun () ->
                Attention.forward 3L (layer example.Qkv) (layer example.Projection) Map.empty example.X
                |> ignore)

            rejects
                "tokens of another width"
                [ "attention input"; "[batch, tokens, 4]"; "[2, 3, 5]" ]
                (fun () ->
                    let x = shaped [ 2; 3; 5 ] (normals 1 30)

                    Attention.forward 2L (layer example.Qkv) (layer example.Projection) Map.empty x
                    |> ignore)

            testCase "weights on the meta device" (fun () ->
                Scope.run (fun () ->
                    let l =
                        Lora.init
                            BInit.Sparse
                            2
                            (square Lora.keyValue 4L)
                            float64
                            torch.META
                            (Rng.ofSeed 1L)

                    let delta = Lora.merge l (noDelta 4L float64 torch.META)
                    expectMeta [ 12L; 4L ] (withDelta -1.0 delta (onMeta (tensor (normalMatrix 1 12 4))))))

            noLeaks
                "withDelta"
                (fun () -> tensor (normalMatrix 1 12 4), noDelta 4L float64 device)
                (fun (w, d) -> [ withDelta 1.0 d w ])

            noLeaks
                "withDelta in another format"
                (fun () -> tensor (normalMatrix 1 12 4), noDelta 4L float64 device)
                (fun (w, d) -> [ Attention.withDelta 1.0 torch.float32 d w ])

            // forward itself leaves its activations to the caller's scope, which may need them for a gradient
            noLeaks
                "forward in a scope"
                (fun () -> layer example.Qkv, layer example.Projection, lora example.Lora, example.X)
                (fun (qkv, projection, l, x) ->
                    [
                        Scope.keep Leaves.tensor (fun () -> attend Attention.forward 2 qkv projection l x)
                    ])
        ]
