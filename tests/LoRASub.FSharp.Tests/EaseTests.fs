module LoRASub.Tests.EaseTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Ease" name law

/// Random means of classes, which come in tasks.
type Classes =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 4)>]
        Tasks: int
        [<Between(1, 3)>]
        Each: int
        [<Between(1, 5)>]
        Width: int
        [<Between(1, 3)>]
        Images: int
    }

    member c.Count = c.Tasks * c.Each
    member c.TaskOf row = row / c.Each

    /// Of each class in each subspace: those that a class lacks are never to be read.
    member c.All: float[,][] =
        Array.init c.Tasks (fun j -> normalMatrix (c.Seed + 10 * j) c.Count c.Width)

    /// What the method keeps.
    member c.Kept: torch.Tensor[] =
        c.All |> Array.mapi (fun j all -> tensor all[j * c.Each .., *])

    /// Features of images in each subspace.
    member c.Features: float[,][] =
        Array.init c.Tasks (fun j -> normalMatrix (c.Seed + 10 * j + 5) c.Images c.Width)

let private cosine (x: float[]) (y: float[]) =
    Array.fold2 (fun sum a b -> sum + a * b) 0.0 x y / (norm x * norm y)

/// The published rule, class by class: weights of the later classes, and the mean.
let private synthesised (c: Classes) (row: int) (j: int) : float[] * float[] =
    let i = c.TaskOf row
    let later = [| j * c.Each .. c.Count - 1 |]

    let powers =
        later |> Array.map (fun n -> exp (cosine c.All[i].[row, *] c.All[i].[n, *]))

    let weights = powers |> Array.map (fun p -> p / Array.sum powers)

    weights,
    Array.init c.Width (fun k -> Array.fold2 (fun sum w n -> sum + w * c.All[j].[n, k]) 0.0 weights later)

let private completed (c: Classes) : float[,][] =
    Array.init c.Tasks (fun j ->
        array2D
            [
                for row in 0 .. c.Count - 1 do
                    if c.TaskOf row >= j then
                        c.All[j].[row, *]
                    else
                        snd (synthesised c row j)
            ])

let private scores (alpha: float) (c: Classes) : float[,] =
    let all = completed c

    Array2D.init c.Images c.Count (fun image row ->
        let at j =
            cosine c.Features[j].[image, *] all[j].[row, *]

        let own = c.TaskOf row

        let others =
            [
                for j in 0 .. c.Tasks - 1 do
                    if j <> own then
                        at j
            ]

        at own + (if others.IsEmpty then 0.0 else alpha * List.average others))

let private found alpha (c: Classes) (means: torch.Tensor[]) : torch.Tensor =
    Array.map2
        (fun f (weights: torch.Tensor) -> (tensor (unitRows f)).mm(weights.t ()))
        c.Features
        (Ease.weights alpha means)
    |> Array.reduce (fun a b -> a.add b)

let private settings: EaseSettings =
    { Ease.published with
        Adapter =
            { Ease.published.Adapter with
                Hidden = 3
                Scale = 0.5
            }
    }

let private plan tasks =
    let settings =
        { Tiny.settings with
            Tasks = tasks
            Precision = Precision.Float64
        }

    Tiny.planWith settings (Tiny.dataset 6 4 3) (Tiny.vit settings.Precision 8 2 7)

let private typed (plan: Plan) = Ease.typed plan.Backbone settings

let private learn (plan: Plan) (head: AnyHead) =
    let learner =
        Learner.create plan.Backbone (Method.hide (typed plan)) head (Embedding.output plan.Backbone)

    let outcome = Experiment.run learner plan Tiny.silent
    learner, outcome.State, Method.reveal (typed plan) outcome.State.Method

[<Tests>]
let tests =
    testList
        "Ease"
        [
            property "means of old classes in later subspaces ≡ the loops" (fun (c: Classes) ->
                Array.iter2 (closeMatrix "means") (completed c) (Ease.complete c.Kept))

            property "synthesised means are convex combinations of later ones" (fun (c: Classes) ->
                for j, all in Array.indexed (Ease.complete c.Kept) do
                    for row in 0 .. j * c.Each - 1 do
                        let weights, _ = synthesised c row j
                        close "sum of the weights" [ 1.0 ] [ Array.sum weights ]
                        Expect.all weights (fun w -> w > 0.0) "weights"

                        for k in 0 .. c.Width - 1 do
                            let later = c.All[j].[j * c.Each .., k]
                            let value = (matrix all)[row, k]
                            between "mean" (Array.min later - 1e-12) (Array.max later + 1e-12) value)

            property "scores ≡ the loops" (fun (c: Classes) ->
                for alpha in [ 0.1; 1.0 ] do
                    closeMatrix $"α {alpha}" (scores alpha c) (found alpha c c.Kept))

            property "α = 0 ⇒ each class is scored in its own subspace only" (fun (c: Classes) ->
                let own =
                    Array2D.init c.Images c.Count (fun image row ->
                        let j = c.TaskOf row
                        cosine c.Features[j].[image, *] c.All[j].[row, *])

                closeMatrix "scores" own (found 0.0 c c.Kept))

            testCase "one task ⇒ the nearest mean of the first session's features" (fun () ->
                Scope.run (fun () ->
                    let plan = plan 1
                    let learner, state, own = learn plan (Head.hide NearestMean.head)
                    closeTensors "means" (Tiny.prototypes state) (own.Means[0])
                    let images = ((Tiny.batches plan 0)[0]).Images
                    let nearest = Learner.predict learner (Learner.deploy learner state) images

                    match (typed plan).Logits.Value own with
                    // the nearest mean divides by ‖f‖ + 1e-8
                    | OwnScores.OfImages scorer ->
                        closeTo 1e-7 "scores" (numbers nearest) (numbers (scorer.Score images))
                    | OwnScores.OfFeatures _ -> failtest "scores of features"))

            testCase
                "means and scores of a learner ≡ the loops over its adapters; earlier ones keep their bits"
                (fun () ->
                    Scope.run (fun () ->
                        let plan = plan 3
                        let learner, state, own = learn plan (Head.hide Heads.logits)
                        let batches = Array.init 3 (Tiny.batches plan)

                        let features j images =
                            let network = AdapterSession.network plan.Backbone own.Adapters[j]
                            matrix (VisionTransformer.features network plan.Backbone images)

                        let c =
                            {
                                Seed = 1
                                Tasks = 3
                                Each = 2
                                Width = 8
                                Images = 1
                            }

                        for j in 0..2 do
                            let expected =
                                array2D
                                    [
                                        for row in 2 * j .. 5 do
                                            let mine =
                                                [|
                                                    for batch in batches[row / 2] do
                                                        let labels = wholeNumbers batch.Labels
                                                        let f = features j batch.Images

                                                        for i in 0 .. labels.Length - 1 do
                                                            if labels[i] = int64 row then
                                                                f[i, *]
                                                |]

                                            Expect.hasLength mine 4 "images of a class"

                                            Array.init c.Width (fun k ->
                                                mine |> Array.averageBy (Array.item k))
                                    ]

                            closeMatrix $"means in subspace {j}" expected own.Means[j]

                        let images = batches[1].[0].Images

                        let expected =
                            [ 0..2 ]
                            |> List.map (fun j ->
                                Oracles.multiply
                                    (unitRows (features j images))
                                    (Oracles.transpose (matrix ((Ease.weights 0.1 own.Means)[j]))))
                            |> List.reduce Oracles.add

                        closeMatrix
                            "scores"
                            expected
                            (Learner.predict learner (Learner.deploy learner state) images)

                        let first = Method.reveal (typed plan) (Tiny.learnFirst learner plan).Method

                        for before, after in Array.zip first.Adapters[0] own.Adapters[0] do
                            Seq.iter2
                                (identical "adapter")
                                (MlpAdapter.leaves before)
                                (MlpAdapter.leaves after)))

            testCase "it stores the bytes that it states" (fun () ->
                Scope.run (fun () ->
                    let plan = plan 3
                    let _, _, own = learn plan (Head.hide Heads.logits)
                    let d, h = 8L, 3L
                    let perTask = 8L * 2L * (2L * d * h + d + h) // float64
                    let means = Seq.sum [ for t in 1L .. 3L -> 2L * 8L * d * t ]
                    Expect.equal (Tree.bytes (typed plan).State own) (3L * perTask + means) "bytes"))

            rejects "a negative α" [ "alpha"; "-1" ] (fun () ->
                Ease.method' (Tiny.vit Precision.Float32 8 2 7) { settings with Alpha = -1.0 }
                |> ignore)
        ]
