module LoRASub.Tests.SdLoraTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private settings =
    { SdLora.published with
        Rank = 2
        Magnitude = 0.8
    }

let private plan () =
    let settings =
        { Tiny.settings with
            Tasks = 3
            Precision = Precision.Float64
        }

    Tiny.planWith settings (Tiny.dataset 6 4 3) (Tiny.vit settings.Precision 8 2 7)

let private rates: Rates = { Network = 0.5; Classifier = 0.2 }

let private begun (plan: Plan) state index =
    let task = plan.Stream.Tasks[index]
    (SdLora.typed plan.Backbone settings).BeginTask (Tiny.taskKey plan task) task state

let private step (plan: Plan) (batch: Batch) training =
    let struct (next, _) =
        (SdLora.typed plan.Backbone settings).Update rates batch training

    next

/// A task after a step on each of its batches.
let private trained plan state index =
    Array.fold
        (fun training batch -> step plan batch training)
        (begun plan state index)
        (Tiny.batches plan index)

/// The states before the first task and after each of `count`.
let private states (plan: Plan) count =
    let method = SdLora.typed plan.Backbone settings

    [ 0 .. count - 1 ]
    |> List.scan (fun state index -> method.Merge(trained plan state index)) (method.Start(Rng.ofSeed 1L))

let private features (plan: Plan) (network: Adapters) =
    VisionTransformer.features network plan.Backbone ((Tiny.batches plan 0)[0]).Images

let private featuresOf plan state =
    features plan ((SdLora.typed plan.Backbone settings).Adapters state)

let private difference (a: torch.Tensor) (b: torch.Tensor) =
    Array.map2 (fun x y -> abs (x - y)) (numbers a) (numbers b) |> Array.max

let private withPlan (test: Plan -> unit) () = Scope.run (fun () -> test (plan ()))

/// The loss of what is trained, through the merged network.
let private lossThroughMerged (plan: Plan) (batch: Batch) (training: SdLora.Training) =
    let method = SdLora.typed plan.Backbone settings
    let state = method.Merge training

    let f =
        VisionTransformer.features (method.Adapters state) plan.Backbone batch.Images

    let first = training.Task.FirstClass

    let all =
        Oracles.linear (matrix state.Classifier.Weight) (numbers state.Classifier.Bias.Value) (matrix f)

    let own = all[*, first .. first + training.Task.Classes.Length - 1]
    let labels = wholeNumbers batch.Labels |> Array.map (fun l -> int l - first)
    fst (Oracles.crossEntropy labels own)

/// The training with one number of one leaf moved.
let private moved (training: SdLora.Training) pick (index: int64) (by: float) : SdLora.Training =
    let leaf: torch.Tensor = pick training.Trained

    let change (t: torch.Tensor) =
        if System.Object.ReferenceEquals(t, leaf) then
            let flat = t.clone().flatten()
            let at = torch.tensor ([| index |], device = t.device)
            let step = torch.tensor ([| by |], dtype = t.dtype, device = t.device)
            flat.index_add(0L, at, step, Scalar.op_Implicit 1.0).reshape t.shape
        else
            t

    let trained = training.Trained

    { training with
        Trained =
            { trained with
                Lora = trained.Lora |> Array.map (Map.map (fun _ -> Tree.map change Lora.pairTree))
                Magnitudes = Array.map change trained.Magnitudes
                Classifier = Tree.map change Linear.tree trained.Classifier
            }
    }

[<Tests>]
let tests =
    testList
        "SdLora"
        [
            testCase
                "the effective weights ≡ the loops over all tasks; the key's rows keep their bits"
                (withPlan (fun plan ->
                    let state = List.last (states plan 3)
                    let weights = ((SdLora.typed plan.Backbone settings).Adapters state).Qkv

                    for i, block in Array.indexed plan.Backbone.Blocks do
                        let delta site =
                            [
                                for t, task in Array.indexed state.Tasks do
                                    let pair = task.Lora[i].[site]
                                    let a, b = matrix pair.A, matrix pair.B
                                    let alpha = (numbers task.Magnitude)[0]

                                    let scale =
                                        if t = 2 then
                                            alpha
                                        else
                                            alpha / (Oracles.frobenius a * Oracles.frobenius b)

                                    Oracles.scale scale (Oracles.multiply b a)
                            ]
                            |> List.reduce Oracles.add

                        let rows first (t: torch.Tensor) = t.narrow (0L, first, 8L)
                        let frozen first = matrix (rows first block.Qkv.Weight)
                        closeMatrix "query" (Oracles.add (frozen 0L) (delta Site.Query)) (rows 0L weights[i])
                        identical "key" (rows 8L block.Qkv.Weight) (rows 8L weights[i])

                        closeMatrix
                            "value"
                            (Oracles.add (frozen 16L) (delta Site.Value))
                            (rows 16L weights[i])))

            testCase
                "the network in training ≡ the merged one, in every task"
                (withPlan (fun plan ->
                    for index, state in List.indexed (states plan 2) do
                        let training = trained plan state index
                        let merged = (SdLora.typed plan.Backbone settings).Merge training

                        closeTensors
                            $"task {index}"
                            (featuresOf plan merged)
                            (features plan (SdLora.network training))))

            testCase
                "α' = α·‖B‖·‖A‖ hands a pair over unchanged, the published restart does not"
                (withPlan (fun plan ->
                    let state = List.last (states plan 1)
                    let before = featuresOf plan state
                    let alpha = state.Tasks[0].Magnitude

                    let deltas =
                        state.Tasks[0].Lora
                        |> Array.map (
                            Map.map (fun _ pair ->
                                let kept = (SdLora.magnitude pair).mul alpha
                                (Lora.delta (SdLora.direction pair)).mul kept)
                        )

                    let handedOver = VisionTransformer.merged 1.0 deltas plan.Backbone
                    closeTensors "features" before (features plan handedOver)

                    let restarted = features plan (SdLora.network (begun plan state 1))
                    Expect.isGreaterThan (difference before restarted) 1e-2 "the jump"))

            for again in [ false; true ] do
                testCase
                    $"a step follows the slope of the merged network's loss, activations again {again}"
                    (withPlan (fun plan ->
                        let plan =
                            { plan with
                                Backbone =
                                    { plan.Backbone with
                                        CheckpointActivations = again
                                    }
                            }

                        for index, state in List.indexed (states plan 2) do
                            // B is no longer 0 after a step; a fresh velocity makes the next step −η times the gradient
                            let batch = (Tiny.batches plan index)[0]
                            let training = step plan batch (begun plan state index)

                            let training =
                                { training with
                                    Optimizer =
                                        training.Optimizer
                                        |> Array.map (fun s ->
                                            { s with
                                                Velocity = Array.map torch.zeros_like s.Velocity
                                            })
                                }

                            let next = step plan batch training

                            let leaves: (string * float * (SdLora.Trained -> torch.Tensor)) list =
                                [
                                    for t in 0..index do
                                        $"magnitude {t}", rates.Network, _.Magnitudes[t]
                                    for block in 0..1 do
                                        for site in [ Site.Query; Site.Value ] do
                                            "A", rates.Network, (fun trained -> trained.Lora[block].[site].A)
                                            "B", rates.Network, (fun trained -> trained.Lora[block].[site].B)
                                    "weight", rates.Classifier, _.Classifier.Weight
                                    "bias", rates.Classifier, _.Classifier.Bias.Value
                                ]

                            for name, rate, pick in leaves do
                                let before, after =
                                    numbers (pick training.Trained), numbers (pick next.Trained)

                                for i in [ 0; before.Length - 1 ] do
                                    let loss by =
                                        lossThroughMerged plan batch (moved training pick (int64 i) by)

                                    let slope = (loss 1e-5 - loss -1e-5) / 2e-5

                                    closeTo
                                        1e-6
                                        $"task {index}, {name} {i}"
                                        [ slope ]
                                        [ (before[i] - after[i]) / rate ]))

            testCase
                "an untrained pair has direction 0, and the next task trains beside it"
                (withPlan (fun plan ->
                    let method = SdLora.typed plan.Backbone settings
                    let state = method.Merge(begun plan (method.Start(Rng.ofSeed 1L)) 0)
                    let pair = state.Tasks[0].Lora[0].[Site.Query]
                    Expect.all (numbers (SdLora.direction pair).B) ((=) 0.0) "direction"
                    finite "features" (featuresOf plan (method.Merge(trained plan state 1)))))

            testCase
                "magnitudes restart, and rows of earlier classes and earlier pairs keep their bits"
                (withPlan (fun plan ->
                    let state = List.last (states plan 2)
                    let training = begun plan state 2

                    for magnitude in training.Trained.Magnitudes do
                        close "magnitude" [ 0.8 ] (numbers magnitude)

                    let next = (SdLora.typed plan.Backbone settings).Merge(trained plan state 2)
                    identical "rows" state.Classifier.Weight (next.Classifier.Weight.narrow (0L, 0L, 4L))

                    for t in 0..1 do
                        let pair (s: SdLora.State) = s.Tasks[t].Lora[1].[Site.Value]
                        identical "A" (pair state).A (pair next).A
                        identical "B" (pair state).B (pair next).B

                        Expect.notEqual
                            (numbers next.Tasks[t].Magnitude)
                            [| 0.8 |]
                            "the magnitude is trained"))

            testCase
                "its own scores ≡ the loops"
                (withPlan (fun plan ->
                    let state = List.last (states plan 2)
                    let f = featuresOf plan state

                    let weight, bias =
                        matrix state.Classifier.Weight, numbers state.Classifier.Bias.Value

                    match (SdLora.typed plan.Backbone settings).Logits.Value state with
                    | OwnScores.OfFeatures scorer ->
                        closeMatrix "scores" (Oracles.linear weight bias (matrix f)) (scorer.Score f)
                    | OwnScores.OfImages _ -> failtest "scores of images"))

            testCase
                "it stores 16·L·d·r + 4 bytes per task and 4·(d + 1) per class"
                (withPlan (fun plan ->
                    let vit = Tiny.vit Precision.Float32 8 2 7

                    let plan =
                        { plan with
                            Backbone = vit
                            Settings =
                                { plan.Settings with
                                    Precision = Precision.Float32
                                }
                        }

                    let method = SdLora.typed vit settings
                    let merged = method.Merge(begun plan (method.Start(Rng.ofSeed 1L)) 0)

                    Expect.equal
                        (Tree.bytes SdLora.stateTree merged)
                        (16L * 2L * 8L * 2L + 4L + 2L * 4L * 9L)
                        "bytes"))

            rejects "a rank above the width" [ "rank"; "[1, 8]" ] (fun () ->
                SdLora.method' (Tiny.vit Precision.Float32 8 2 7) { settings with Rank = 9 }
                |> ignore)
        ]
