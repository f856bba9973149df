module LoRASub.Tests.EmbeddingTests

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.VisionTransformerTests
open TorchSharp

let private property name law = propertyOf 40 "Embedding" name law

// Every part that a network can give, one block after the other.
let private everyPart (c: Network) : EmbeddingPart[] =
    [|
        for block in 1 .. c.Depth do
            for tokens in
                [
                    Tokens.Class
                    Tokens.PatchMean
                    Tokens.PatchSpread
                    Tokens.PatchCentre
                    Tokens.PatchChange
                    Tokens.PatchQuadrants
                ] do
                if tokens <> Tokens.PatchQuadrants || c.Side % 2 = 0 then
                    for norm in [ false; true ] do
                        {
                            Block = block
                            Tokens = tokens
                            FinalNorm = norm
                        }
    |]

let private withPairs (c: Network) vit =
    { bare vit with
        Lora = lora c.PlainLora
    }

let private againstLoops (c: Network) (parts: EmbeddingPart[]) =
    let vit = build c.Plain
    let found = VisionTransformer.tokens parts (withPairs c vit) vit c.Batch
    Expect.hasLength found parts.Length "one per part"

    for i in 0 .. c.Images - 1 do
        let outputs = Oracles.run c.Plain c.PlainLora [||] (c.Image i) |> List.map snd

        for part, tokens in Array.zip parts found do
            close $"%A{part} of image {i}" (Oracles.part c.Plain outputs part) (numbers tokens[int64 i])

// The named embeddings that a network can give, and one with a part twice.
let private embeddings (c: Network) vit : Embedding list =
    [
        Embedding.output vit
        Embedding.lastBlocks vit
        Embedding.smallTexture vit
        Embedding.texture vit
        Embedding.full vit

        if c.Side % 2 = 0 then
            Embedding.allBlocks vit

        { Embedding.output vit with
            Parts = Array.append (everyPart c) (everyPart c)
        }
    ]

let private wide =
    {
        Seed = 1
        Images = 3
        Channels = 2
        Patch = 2
        Side = 4
        Depth = 3
        Heads = 2
        HeadWidth = 3
        Rank = 2
    }

let private odd = { wide with Side = 3 }

let private differentiate (c: Network) vit parts =
    [| c.Batch; yield! Seq.collect Lora.leaves (lora c.PlainLora) |]
    |> Grad.valueAndGrad (fun p ->
        let tree = Tree.array (Lora.tree [])
        let pairs = Tree.withLeaves tree p[1..] (lora c.PlainLora)
        let found = VisionTransformer.tokens parts { bare vit with Lora = pairs } vit p[0]

        let weighed i (t: torch.Tensor) =
            t.mul(Scalar.op_Implicit (float (i + 1))).tanh().sum()

        found |> Array.mapi weighed |> Array.reduce (fun a b -> a.add b))

let private gives name depth side (expected: (int * Tokens * bool) list) embedding =
    testCase name (fun () ->
        Scope.run (fun () ->
            let vit = build { wide with Depth = depth; Side = side }.Plain
            let e: Embedding = embedding vit

            Expect.equal [ for part in e.Parts -> part.Block, part.Tokens, part.FinalNorm ] expected "parts"

            Embedding.check vit e))

[<Tests>]
let tests =
    testList
        "Embedding"
        [
            property "every part of one pass ≡ the loops" (fun (c: Network) -> againstLoops c (everyPart c))

            property "each part on its own ≡ the loops" (fun (c: Network) ->
                for part in everyPart c do
                    againstLoops c [| part |])

            property "parts in another order are the same tokens" (fun (c: Network) ->
                let vit, parts = build c.Plain, everyPart c
                let order = order c.Seed parts.Length
                let all = VisionTransformer.tokens parts (bare vit) vit c.Batch

                let shuffled =
                    VisionTransformer.tokens (order |> Array.map (Array.get parts)) (bare vit) vit c.Batch

                order |> Array.iteri (fun i o -> closeTensors $"part {o}" all[o] shuffled[i]))

            property "the mean of the quadrants is the mean of all patches" (fun (c: Network) ->
                let c = if c.Side % 2 = 0 then c else { c with Side = c.Side + 1 }
                let vit = build c.Plain

                for norm in [ false; true ] do
                    let part tokens =
                        {
                            Block = c.Depth
                            Tokens = tokens
                            FinalNorm = norm
                        }

                    let found =
                        VisionTransformer.tokens
                            [| part Tokens.PatchQuadrants; part Tokens.PatchMean |]
                            (bare vit)
                            vit
                            c.Batch

                    let quadrants = found[0].reshape(int64 c.Images, 4L, vit.Width)
                    closeTensors "mean" (quadrants.mean [| 1L |]) found[1])

            property "nothing beyond the last block asked for is read" (fun (c: Network) ->
                let vit = build c.Plain

                for part in everyPart c do
                    let cut =
                        { vit with
                            Blocks = Array.take part.Block vit.Blocks
                        }

                    let last (vit: VisionTransformer) =
                        VisionTransformer.tokens [| part |] (bare vit) vit c.Batch |> Array.head

                    closeTensors "tokens" (last cut) (last vit))

            property "the default embedding is the feature, bit for bit" (fun (c: Network) ->
                let vit = build c.Plain
                let adapters = withPairs c vit

                identical
                    "feature"
                    (VisionTransformer.features adapters vit c.Batch)
                    (Embedding.embed (Embedding.output vit) adapters vit c.Batch))

            property "the width is the number of columns" (fun (c: Network) ->
                let vit = build c.Plain

                for e in embeddings c vit do
                    Expect.equal
                        (Embedding.embed e (bare vit) vit c.Batch).shape
                        [| int64 c.Images; Embedding.width vit e |]
                        "[n, width]")

            property "joined columns are those of the parts, in order" (fun (c: Network) ->
                let vit = build c.Plain

                for e in embeddings c vit do
                    let e = { e with Standardise = false }
                    let tokens = VisionTransformer.tokens e.Parts (bare vit) vit c.Batch
                    let joined = Embedding.join e tokens

                    (0L, tokens)
                    ||> Array.fold (fun first t ->
                        identical "columns" t (joined.narrow (1L, first, t.shape[1]))
                        first + t.shape[1])
                    |> fun last -> Expect.equal last joined.shape[1] "no column more")

            property "standardised: each d columns have mean 0 and variance 1" (fun (c: Network) ->
                let vit = build c.Plain

                for e in embeddings c vit do
                    let tokens = VisionTransformer.tokens e.Parts (bare vit) vit c.Batch
                    let rows (t: torch.Tensor) = t.reshape (-1L, vit.Width)
                    let plain = rows (Embedding.join { e with Standardise = false } tokens)
                    let actual = rows (Embedding.join { e with Standardise = true } tokens)
                    let ones, zeros = Array.create c.Width 1.0, Array.zeroCreate c.Width
                    closeMatrix "rows" (Oracles.layerNorm 1e-6 ones zeros (matrix plain)) actual)

            property "standardised: a constant added to a part changes nothing" (fun (c: Network) ->
                let vit = build c.Plain

                for e in embeddings c vit do
                    let e = { e with Standardise = true }
                    let tokens = VisionTransformer.tokens e.Parts (bare vit) vit c.Batch

                    let shifted =
                        tokens |> Array.mapi (fun i t -> t.add (Scalar.op_Implicit (float (i + 1))))

                    // differences of numbers with the constant in them
                    closeTo
                        1e-6
                        "embedding"
                        (numbers (Embedding.join e tokens))
                        (numbers (Embedding.join e shifted)))

            property "two mirrorings give the image back" (fun (c: Network) ->
                let vit = build c.Plain

                let views images =
                    Embedding.views
                        { Embedding.output vit with
                            Flip = true
                        }
                        vit
                        images

                let once = views c.Batch
                let twice = views once[1]
                identical "the image itself" c.Batch once[0]
                identical "mirrored twice" c.Batch twice[1]

                Expect.hasLength (Embedding.views (Embedding.output vit) vit c.Batch) 1 "one view"

                for i in 0 .. c.Images - 1 do
                    for channel, plane in Array.indexed (c.Image i) do
                        closeMatrix
                            "mirrored left to right"
                            (plane |> Array2D.mapi (fun y x _ -> plane[y, c.Size - 1 - x]))
                            (once[1].select(0L, int64 i).select(0L, int64 channel)))

            property "a shifted image is half a patch further down and right" (fun (c: Network) ->
                let vit = build c.Plain
                let by = vit.PatchSize / 2

                let views =
                    Embedding.views
                        { Embedding.output vit with
                            Shift = true
                        }
                        vit
                        c.Batch

                for i in 0 .. c.Images - 1 do
                    for channel, plane in Array.indexed (c.Image i) do
                        closeMatrix
                            "shifted, the edge reflected"
                            (plane |> Array2D.mapi (fun y x _ -> plane[abs (y - by), abs (x - by)]))
                            (views[1].select(0L, int64 i).select(0L, int64 channel)))

            property "activations computed again ≡ activations kept, for every part" (fun (c: Network) ->
                let vit, parts = build c.Plain, everyPart c
                let struct (value, gradients) = differentiate c vit parts

                let struct (again, gradientsAgain) =
                    differentiate
                        c
                        { vit with
                            CheckpointActivations = true
                        }
                        parts

                closeTensors "value" value again

                Array.iteri2
                    (fun i (e: torch.Tensor option) (g: torch.Tensor option) ->
                        closeTensors $"gradient {i}" e.Value g.Value)
                    gradients
                    gradientsAgain)

            testCase "the gradient of every part ≡ differences of values" (fun () ->
                Scope.run (fun () ->
                    let vit, parts = build wide.Plain, everyPart wide

                    let value (images: torch.Tensor) =
                        let found = VisionTransformer.tokens parts (withPairs wide vit) vit images

                        found
                        |> Array.mapi (fun i t -> t.mul(Scalar.op_Implicit (float (i + 1))).tanh().sum())
                        |> Array.sumBy _.item<float>()

                    let struct (_, gradients) = differentiate wide vit parts
                    let direction = Rng.normal wide.Batch.shape torch.float64 device (Rng.ofSeed 5L)
                    let step = 1e-5

                    let at (s: float) =
                        value (wide.Batch.add (direction.mul (Scalar.op_Implicit s)))

                    closeTo
                        1e-4
                        "slope along a direction"
                        [ gradients[0].Value.mul(direction).sum().item<float>() ]
                        [ (at step - at -step) / (2.0 * step) ]))

            gives
                "class-token: the last block's class token after the final norm"
                3
                3
                [ 3, Tokens.Class, true ]
                (Embedding.named "class-token")

            gives
                "last-blocks: class and mean patch token of the last three"
                5
                3
                [
                    for block in 3..5 do
                        block, Tokens.Class, false
                        block, Tokens.PatchMean, false
                ]
                (Embedding.named "last-blocks")

            gives
                "last-blocks: of two blocks, both"
                2
                3
                [
                    for block in 1..2 do
                        block, Tokens.Class, false
                        block, Tokens.PatchMean, false
                ]
                (Embedding.named "last-blocks")

            gives
                "all-blocks: every block, quadrants of the last"
                3
                4
                [
                    for block in 1..2 do
                        block, Tokens.Class, false
                        block, Tokens.PatchMean, false
                    3, Tokens.Class, false
                    3, Tokens.PatchQuadrants, true
                ]
                (Embedding.named "all-blocks")

            gives
                "small-texture: of the last four, class token of the last two"
                5
                3
                [
                    2, Tokens.PatchSpread, false
                    3, Tokens.PatchChange, false
                    4, Tokens.PatchSpread, false
                    5, Tokens.PatchChange, true
                    4, Tokens.Class, false
                    5, Tokens.Class, true
                ]
                (Embedding.named "small-texture")

            gives
                "small-texture: of one block, that one"
                1
                3
                [ 1, Tokens.PatchChange, true; 1, Tokens.Class, true ]
                (Embedding.named "small-texture")

            gives
                "texture: spread and change of every block, class token of the last three"
                4
                3
                [
                    for block in 1..4 do
                        block, Tokens.PatchSpread, block = 4
                        block, Tokens.PatchChange, block = 4
                    for block in 2..4 do
                        block, Tokens.Class, block = 4
                ]
                (Embedding.named "texture")

            gives
                "moments, as in older files: mean and spread of every block, class token of the last three"
                2
                3
                [
                    for block in 1..2 do
                        block, Tokens.PatchMean, block = 2
                        block, Tokens.PatchSpread, block = 2
                    1, Tokens.Class, false
                    2, Tokens.Class, true
                ]
                (Embedding.named "moments")

            gives
                "spread, as in older files: of the last four, class token of the last two"
                5
                3
                [
                    for block in 2..5 do
                        block, Tokens.PatchSpread, block = 5
                    4, Tokens.Class, false
                    5, Tokens.Class, true
                ]
                (Embedding.named "spread")

            gives
                "full: texture, means and middle patches"
                2
                3
                [
                    for block in 1..2 do
                        block, Tokens.PatchSpread, block = 2
                        block, Tokens.PatchChange, block = 2
                    for block in 1..2 do
                        block, Tokens.Class, block = 2
                    for block in 1..2 do
                        block, Tokens.PatchMean, block = 2
                        block, Tokens.PatchCentre, block = 2
                ]
                (Embedding.named "full")

            testCase "every name gives an embedding of six blocks in its published width" (fun () ->
                Scope.run (fun () ->
                    let vit = build { wide with Depth = 6 }.Plain

                    let width name =
                        Embedding.width vit (Embedding.named name vit) / vit.Width

                    Expect.equal
                        (List.map width Embedding.names)
                        [ 1L; 6L; 15L; 6L; 15L; 27L; 15L; 27L ]
                        "widths in d"))

            propertyOf 12 "Embedding" "embeddings of one pass ≡ one at a time" (fun (c: Network) ->
                let vit = build c.Plain
                let frozen, adapters = VisionTransformer.frozen vit, withPairs c vit

                let all =
                    [|
                        for e in embeddings c vit do
                            e
                            { e with Flip = true }
                            Embedding.withFrozen e

                            { e with Shift = true }

                            { Embedding.withFrozen e with
                                Flip = true
                                Shift = true
                            }
                    |]

                let more = everyPart c

                let struct (tokens, found) =
                    Embedding.embedAll all more (Some frozen) adapters vit c.Batch

                Array.iter2
                    (closeTensors "tokens of the adapted network")
                    (VisionTransformer.tokens more adapters vit c.Batch)
                    tokens

                for e, found in Array.zip all found do
                    let ofView view =
                        let read parts adapters =
                            if Array.isEmpty parts then
                                [||]
                            else
                                VisionTransformer.tokens parts adapters vit view

                        Array.append (read e.Frozen frozen) (read e.Parts adapters)
                        |> Embedding.join e
                        |> numbers

                    let views = Embedding.views e vit c.Batch |> Array.map ofView

                    let mean = views |> Array.transpose |> Array.map Array.average

                    closeTo 1e-9 "mean of the views" mean (numbers found))

            property "marks of a name: frozen tokens in front, more views" (fun (c: Network) ->
                let c = if c.Side % 2 = 0 then c else { c with Side = c.Side + 1 }
                let vit = build c.Plain

                for name in Embedding.names do
                    let plain = Embedding.named name vit

                    for front in [ ""; "frozen+" ] do
                        for back in [ ""; "+flip"; "+shift"; "+flip+shift"; "+shift+flip" ] do
                            let e = Embedding.named (front + name + back) vit

                            Expect.equal
                                e
                                { plain with
                                    Frozen = if front = "" then [||] else plain.Parts
                                    Flip = back.Contains "flip"
                                    Shift = back.Contains "shift"
                                }
                                (front + name + back)

                            Expect.equal
                                (Embedding.width vit e)
                                ((if front = "" then 1L else 2L) * Embedding.width vit plain)
                                "width")

            noLeaks
                "embedding of several at once"
                (fun () ->
                    let vit = build wide.Plain
                    struct (vit, bare vit, VisionTransformer.frozen vit, wide.Batch))
                (fun (struct (vit, adapters, frozen, images)) ->
                    let all =
                        [| "class-token"; "class-token"; "frozen+rich+flip" |]
                        |> Array.map (fun name -> Embedding.named name vit)

                    let more = [| VisionTransformer.output vit |]

                    let struct (tokens, embedded) =
                        Embedding.embedAll all more (Some frozen) adapters vit images

                    Seq.append tokens embedded)

            testCase "rich fits 5,000 columns, richest 10,500" (fun () ->
                Scope.run (fun () ->
                    let found name columns =
                        let vit = build wide.Plain

                        let vit =
                            { vit with
                                ClassToken = torch.empty ([| 1L; 1L; columns |], device = torch.META)
                            }

                        let found = Embedding.named name vit

                        [ "class-token"; "small-texture"; "texture"; "full" ]
                        |> List.filter (fun name -> Embedding.named name vit = found)

                    let rich, richest = found "rich", found "richest"

                    // of three blocks: 15, 9, 5 and 1 times the width
                    Expect.equal (rich 555L) [ "texture" ] "4,995 columns"
                    Expect.equal (rich 556L) [ "small-texture" ] "5,004 columns"
                    Expect.equal (rich 1000L) [ "small-texture" ] "5,000 columns"
                    Expect.equal (rich 1001L) [ "class-token" ] "5,005 columns"
                    Expect.equal (richest 700L) [ "full" ] "10,500 columns"
                    Expect.equal (richest 701L) [ "texture" ] "10,515 columns"
                    Expect.equal (richest 1167L) [ "small-texture" ] "10,503 columns"
                    Expect.equal (richest 2101L) [ "class-token" ] "10,505 columns"))

            for name in [ "flip"; "frozen+"; "+flip"; "frozen+flip"; "Rich"; "" ] do
                rejects $"the name '{name}'" [ "embedding"; "class-token"; $"'{name}'" ] (fun () ->
                    Embedding.named name |> ignore)

            for name in [ "rich+flip+flip"; "texture+shift+shift"; "frozen+rich+turn"; "rich+" ] do
                rejects $"the marks of '{name}'" [ "embedding"; "+flip and +shift"; $"'{name}'" ] (fun () ->
                    Embedding.named name |> ignore)

            rejects
                "frozen parts without the frozen network"
                [ "frozen network"; "found 1"; "give that network" ]
                (fun () ->
                    let vit = build wide.Plain
                    let e = Embedding.named "frozen+class-token" vit
                    Embedding.embedAll [| e |] [||] None (bare vit) vit wide.Batch |> ignore)

            rejects
                "an unknown name"
                [
                    "embedding"
                    "class-token, last-blocks, all-blocks, small-texture, texture, full, rich, richest"
                    "'all-block'"
                    "all-blocks?"
                ]
                (fun () -> Embedding.named "all-block" |> ignore)

            rejects "no parts" [ "embedding"; "at least one part"; "none" ] (fun () ->
                let vit = build wide.Plain

                Embedding.check
                    vit
                    { Embedding.output vit with
                        Parts = [||]
                    })

            rejects "more parts than there are" [ "embedding"; "at most 72 parts"; "found 10000" ] (fun () ->
                let vit = build wide.Plain

                Embedding.check
                    vit
                    { Embedding.output vit with
                        Parts = Array.replicate 10000 (Embedding.output vit).Parts[0]
                    })

            for block in [ 0; 4 ] do
                rejects
                    $"block {block} of three"
                    [ "embedding's block"; "[1, 3]"; $"found {block}" ]
                    (fun () ->
                        let vit = build wide.Plain

                        VisionTransformer.tokens
                            [|
                                { VisionTransformer.output vit with
                                    Block = block
                                }
                            |]
                            (bare vit)
                            vit
                            wide.Batch
                        |> ignore)

            rejects
                "quadrants of an odd grid"
                [ "patch quadrants"; "even side"; "found 3"; "mean" ]
                (fun () ->
                    let vit = build odd.Plain
                    Embedding.check vit (Embedding.allBlocks vit))

            rejects "tokens of another number of parts" [ "tokens"; "6 parts"; "found 5" ] (fun () ->
                let vit = build wide.Plain
                let e = Embedding.lastBlocks vit
                let tokens = VisionTransformer.tokens e.Parts (bare vit) vit wide.Batch
                Embedding.join e tokens[1..] |> ignore)

            rejects "tokens of another part" [ "tokens of part 6"; "[3, 24]"; "[3, 6]" ] (fun () ->
                let vit = build wide.Plain

                let tokens =
                    VisionTransformer.tokens (Embedding.lastBlocks vit).Parts (bare vit) vit wide.Batch

                Embedding.join (Embedding.allBlocks vit) tokens |> ignore)

            rejects "an image without a batch" [ "images"; "[batch, channels, 8, 8]"; "[2, 8, 8]" ] (fun () ->
                let vit = build wide.Plain
                Embedding.views (Embedding.output vit) vit wide.Batch[0] |> ignore)

            testCase "no images give no rows" (fun () ->
                Scope.run (fun () ->
                    let vit = build wide.Plain
                    let e = Embedding.allBlocks vit
                    let none = wide.Batch.narrow (0L, 0L, 0L)

                    Expect.equal
                        (Embedding.embed e (bare vit) vit none).shape
                        [| 0L; Embedding.width vit e |]
                        "[0, width]"))

            (let inputs () = build wide.Plain, wide.Batch

             testList
                 "ownership"
                 [
                     noLeaks "tokens" inputs (fun (vit, images) ->
                         use _ = torch.no_grad ()
                         let parts = Array.append (everyPart wide) (everyPart wide)
                         VisionTransformer.tokens parts (bare vit) vit images)

                     noLeaks "embed" inputs (fun (vit, images) ->
                         use _ = torch.no_grad ()
                         [ Embedding.embed (Embedding.allBlocks vit) (bare vit) vit images ])

                     noLeaks "views" inputs (fun (vit, images) ->
                         Embedding.views
                             { Embedding.output vit with
                                 Flip = true
                                 Shift = true
                             }
                             vit
                             images)

                     noLeaks "the gradient of tokens" inputs (fun (vit, _) ->
                         Scope.keep Leaves.tensors (fun () ->
                             let struct (value, gradients) = differentiate wide vit (everyPart wide)
                             [| value; yield! Array.choose id gradients |])
                         |> Seq.ofArray)
                 ])
        ]
