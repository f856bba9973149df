/// Tasks that train MLP adapters: the session, and RanPAC's network.
module LoRASub.Tests.AdapterSessionTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private float64 = torch.ScalarType.Float64

let private options =
    { RanPac.published with
        Hidden = 3
        Scale = 0.5
    }

let private plan order =
    let settings =
        { Tiny.settings with
            Tasks = 3
            Precision = Precision.Float64
        }

    let plan =
        Tiny.planWith settings (Tiny.dataset 6 4 3) (Tiny.vit settings.Precision 8 2 7)

    { plan with
        Stream = TaskStream.create plan.Stream.Dataset (ClassOrder.Explicit("the test", order)) 3 None
    }

let private natural = [| 0..5 |]

let private withPlan (test: Plan -> unit) () =
    Scope.run (fun () -> test (plan natural))

let private rates: Rates = { Network = 0.5; Classifier = 0.2 }

/// Cosines of rows with rows.
let cosines (x: float[,]) (y: float[,]) : float[,] =
    Oracles.multiply (unitRows x) (Oracles.transpose (unitRows y))

let private step options (plan: Plan) batch session =
    let struct (next, _) =
        AdapterSession.update options plan.Backbone rates batch session

    next

let private start options (plan: Plan) key =
    AdapterSession.start options plan.Backbone (Rng.ofSeed key) plan.Stream.Tasks[1]

/// The adapter's change of x where Down and Up pass everything on.
let private passing (width: int) (dropout: Dropout option) (x: torch.Tensor) =
    let identity: Linear =
        {
            Weight = tensor (Oracles.identity width)
            Bias = None
        }

    let adapter =
        {
            Down = identity
            Up = identity
            Scale = 1.0
            Dropout = dropout
        }

    MlpAdapter.add adapter x (torch.zeros_like x)

type Sizes =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 5)>]
        Rows: int
        [<Between(1, 5)>]
        Classes: int
        [<Between(1, 5)>]
        Width: int
    }

[<Tests>]
let tests =
    testList
        "AdapterSession"
        [
            property
                "AdapterSession"
                "cosine logits ≡ the loops, and a row of zeros has logits 0"
                (fun (c: Sizes) ->
                    let f, w =
                        normalMatrix c.Seed c.Rows c.Width, normalMatrix (c.Seed + 1) c.Classes c.Width

                    let classifier: CosineClassifier =
                        {
                            Weight = tensor w
                            Scale = vector([| 1.7 |]).squeeze()
                        }

                    closeMatrix
                        "logits"
                        (Oracles.scale 1.7 (cosines f w))
                        (CosineClassifier.logits classifier (tensor f))

                    let zeros = torch.zeros_like (tensor f)

                    Expect.all
                        (numbers (CosineClassifier.logits classifier zeros))
                        ((=) 0.0)
                        "logits of zeros")

            testCase "dropout sets units to 0 at its rate and scales the others" (fun () ->
                Scope.run (fun () ->
                    let x = torch.ones ([| 100L; 20L |], dtype = float64, device = device)

                    let dropout = { Rate = 0.25; Key = Rng.ofSeed 3L }

                    let found = numbers (passing 20 (Some dropout) x)
                    let dropped = found |> Array.filter ((=) 0.0) |> Array.length
                    between "dropped of 2000" 400.0 600.0 (float dropped)

                    found
                    |> Array.filter ((<>) 0.0)
                    |> Array.iter (fun y -> close "kept" [ 4.0 / 3.0 ] [ y ])

                    identical "again" (passing 20 (Some dropout) x) (passing 20 (Some dropout) x)
                    let other = { dropout with Key = Rng.ofSeed 4L }
                    Expect.notEqual (numbers (passing 20 (Some other) x)) found "another key"
                    identical "none" x (passing 20 None x)))

            testCase
                "equal images of one batch drop different units, also in different slices"
                (withPlan (fun plan ->
                    let session = step options plan ((Tiny.batches plan 1)[0]) (start options plan 1L)

                    let network =
                        { session.Network with
                            Mlp =
                                session.Mlp
                                |> Array.map (fun mlp ->
                                    { mlp with
                                        Dropout = Some { Rate = 0.5; Key = Rng.ofSeed 1L }
                                    })
                        }

                    // more than one slice on a CPU, which are equal in size
                    let first = ((Tiny.batches plan 1)[0]).Images.narrow(0L, 0L, 1L)
                    let images = first.expand (800L, -1L, -1L, -1L)
                    let f = VisionTransformer.features network plan.Backbone images
                    let distinct = f |> matrix |> rows |> Array.distinct |> Array.length
                    Expect.isGreaterThan distinct 400 "rows that differ"))

            testCase
                "a step follows the slope of the loss"
                (withPlan (fun plan ->
                    let options =
                        { options with
                            Dropout = 0.0
                            Sgd = { Momentum = 0.0; WeightDecay = 0.0 }
                        }

                    let batch = (Tiny.batches plan 1)[0]
                    // Up is no longer 0 after a step
                    let session = step options plan batch (start options plan 1L)
                    let next = step options plan batch session
                    let labels = wholeNumbers batch.Labels |> Array.map (fun l -> int l - 2)

                    let loss (session: AdapterSession) =
                        let network = AdapterSession.network plan.Backbone session.Mlp
                        let f = VisionTransformer.features network plan.Backbone batch.Images
                        let logits = cosines (matrix f) (matrix session.Classifier.Weight)
                        let scale = (numbers session.Classifier.Scale)[0]
                        fst (Oracles.crossEntropy labels (Oracles.scale scale logits))

                    let moved (leaf: torch.Tensor) (index: int) (by: float) =
                        let change (t: torch.Tensor) =
                            if System.Object.ReferenceEquals(t, leaf) then
                                let values = numbers t
                                values[index] <- values[index] + by
                                (vector values).reshape t.shape
                            else
                                t

                        { session with
                            Mlp = session.Mlp |> Array.map (Tree.map change (MlpAdapter.tree options.Scale))
                            Classifier = Tree.map change CosineClassifier.tree session.Classifier
                        }

                    let leaves (s: AdapterSession) =
                        [
                            for mlp in s.Mlp do
                                for leaf in MlpAdapter.leaves mlp do
                                    rates.Network, leaf
                            rates.Classifier, s.Classifier.Weight
                            rates.Classifier, s.Classifier.Scale
                        ]

                    for (rate, before), (_, after) in List.zip (leaves session) (leaves next) do
                        for i in List.distinct [ 0; int (before.numel ()) - 1 ] do
                            let slope = (loss (moved before i 1e-5) - loss (moved before i -1e-5)) / 2e-5

                            closeTo
                                1e-6
                                "gradient"
                                [ slope ]
                                [ ((numbers before)[i] - (numbers after)[i]) / rate ]))

            testCase
                "each step has a dropout of its own, which the session's key decides"
                (withPlan (fun plan ->
                    let batch = (Tiny.batches plan 1)[0]
                    let session = step options plan batch (start options plan 1L)
                    let next = step options plan batch session
                    Expect.notEqual next.Key session.Key "the key moves on"

                    let other = step options plan batch { session with Key = Rng.ofSeed 99L }

                    let up (s: AdapterSession) = numbers s.Mlp[0].Up.Weight
                    Expect.notEqual (up other) (up next) "another key"))

            testCase
                "RanPAC trains in the first task only, and the order of later tasks does not matter"
                (fun () ->
                    Scope.run (fun () ->
                        let run order =
                            let plan = plan order
                            let learner = Tiny.learnerOf plan (RanPac.typed plan.Backbone options)
                            let steps = ResizeArray<int>()

                            let onEvent event =
                                match event with
                                | Learning(Steps step) when step.Phase = Phase.Train ->
                                    steps.Add step.Task.Index
                                | _ -> ()

                            let outcome = Experiment.run learner plan onEvent
                            let typed = RanPac.typed plan.Backbone options
                            let first = Method.reveal typed (Tiny.learnFirst learner plan).Method

                            List.distinct (List.ofSeq steps),
                            first,
                            Method.reveal typed outcome.State.Method

                        let steps, first, last = run natural
                        let _, _, swapped = run [| 0; 1; 4; 5; 2; 3 |]
                        Expect.equal steps [ 0 ] "tasks that train"
                        let numbersOf = Seq.collect MlpAdapter.leaves >> Seq.collect numbers >> Array.ofSeq
                        Expect.equal (numbersOf last) (numbersOf first) "after later tasks"
                        Expect.equal (numbersOf swapped) (numbersOf last) "in another order"
                        Expect.exists (numbers last[0].Up.Weight) ((<>) 0.0) "the first task trained"))

            testCase "RanPAC stores 4·L·(2dh + d + h) bytes" (fun () ->
                Scope.run (fun () ->
                    let vit = Tiny.vit Precision.Float32 8 2 7
                    let method = RanPac.typed vit RanPac.published
                    let task = (plan natural).Stream.Tasks[0]
                    let state = method.Merge(method.BeginTask (Rng.ofSeed 1L) task [||])

                    Expect.equal
                        (Tree.bytes method.State state)
                        (4L * 2L * (2L * 8L * 64L + 8L + 64L))
                        "bytes"))

            for name, words, change in
                [
                    "a width of 0", [ "hidden width"; "0" ], (fun o -> { o with Hidden = 0 })
                    "a dropout of 1", [ "dropout"; "[0, 1)"; "1" ], (fun o -> { o with Dropout = 1.0 })
                ] do
                rejects name words (fun () ->
                    RanPac.method' (Tiny.vit Precision.Float32 8 2 7) (change options) |> ignore)
        ]
