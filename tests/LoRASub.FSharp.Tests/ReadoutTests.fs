/// Several heads over one network: each as if it were alone, and heads that follow a network that moves.
module LoRASub.Tests.ReadoutTests

open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open TorchSharp

let private others =
    [
        "cosine-lda@rich"
        "lda@frozen+class-token"
        "ridge@last-blocks+flip"
        "rp-cosine-lda:16@frozen+rich+flip+shift"
        "nearest-mean@last-blocks"
    ]

/// Three tasks in float64, so that rounding decides no prediction.
let private settings =
    { Tiny.settings with
        Tasks = 3
        Epochs = 1
        Batch = 4
        Precision = Precision.Float64
        OtherHeads = others
    }

let private planOf (settings: RunSettings) =
    Tiny.planWith settings (Tiny.dataset 6 3 2) (Tiny.vit settings.Precision 8 2 7)

let private withPlan settings (test: Plan -> unit) () =
    Scope.run (fun () -> test (planOf settings))

/// The settings with one of the heads alone.
let private alone (text: string) =
    let struct (head, embedding) = Settings.readout settings.Embedding text

    { settings with
        Head = head
        Embedding = embedding
        OtherHeads = []
    }

let private sameHead what (head: AnyHead) expected actual =
    List.iter2
        (fun (name, e: torch.Tensor) (_, a: torch.Tensor) ->
            let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64
            closeTo 1e-7 $"{what}, {name}" (Generators.numbers (wide e)) (Generators.numbers (wide a)))
        (Tree.write head.Tree expected)
        (Tree.write head.Tree actual)

/// The state of the i-th head.
let private at i (state: TaskState) = Array.item i (TaskState.heads state)

/// The state after the first task, and after the second.
let private twoTasks (plan: Plan) learner =
    let first = Tiny.learnFirst learner plan
    struct (first, Experiment.learnTask learner plan first plan.Stream.Tasks[1])

let private following (settings: RunSettings) =
    { settings with
        OtherHeads = [ "cosine-lda@rich"; "rda@class-token"; "nearest-mean@class-token" ]
    }

/// A row of a head of pooled moments: the sums of a class.
let private sums (tree: Tree<HeadState>) (state: HeadState) =
    Tree.write tree state
    |> List.find (fun (name, _) -> name.EndsWith "sums")
    |> snd

[<Tests>]
let tests =
    testList
        "Readout"
        [
            testCase
                "each of several heads learns and predicts as if it were alone"
                (withPlan settings (fun plan ->
                    let outcome = Tiny.run plan
                    let learner = outcome.Learner
                    Expect.hasLength learner.Others others.Length "heads"

                    for i, text in List.indexed ($"{settings.Head}@{settings.Embedding}" :: others) do
                        Expect.equal learner.Readouts[i].Label text "label"
                        let one = Tiny.run (planOf (alone text))
                        Expect.hasLength one.Learner.Others 0 "alone"
                        Expect.equal outcome.Matrices[i] one.Matrix $"{text}: scores"

                        let predicted (p: TaskPredictions) =
                            if i = 0 then p.Predicted else p.Others[i - 1]

                        Expect.equal
                            (outcome.Predictions |> Array.map predicted)
                            (one.Predictions |> Array.map _.Predicted)
                            $"{text}: predictions"

                        sameHead text one.Learner.Head one.State.Head (at i outcome.State)))

            testCase
                "the results list every head with its scores and bytes"
                (withPlan settings (fun plan ->
                    let outcome = Tiny.run plan
                    let lines = Results.heads outcome
                    let labels = lines |> Array.map _.Head |> List.ofArray
                    Expect.equal labels ("nearest-mean@class-token" :: others) "names"

                    for i, line in Array.indexed lines do
                        let measures = Metrics.measure outcome.Matrices[i]
                        Expect.equal line.CorrectAndTotal outcome.Matrices[i] "matrix"
                        closeTo 1e-9 "last" [ 100.0 * measures["last"] ] [ line.Last ]
                        closeTo 1e-9 "average" [ 100.0 * measures["average"] ] [ line.Average ]

                        closeTo
                            1e-9
                            "forgetting"
                            [ 100.0 * measures["forgetting"] ]
                            [ line.Forgetting.Value ]

                        Expect.equal line.Recomputed None "no diagnosis"

                        Expect.equal
                            line.Bytes
                            (Tree.bytes outcome.Learner.Readouts[i].Head.Tree (at i outcome.State))
                            "bytes"))

            testCase "a head that is named twice is one" (fun () ->
                let settings =
                    { settings with
                        OtherHeads =
                            [
                                "nearest-mean"
                                "lda"
                                "lda@class-token"
                                "nearest-mean@class-token"
                                "lda@rich"
                            ]
                    }

                Scope.run (fun () ->
                    let learner = Tiny.learner (planOf settings)

                    Expect.equal
                        (learner.Readouts |> Array.map _.Label)
                        [| "nearest-mean@class-token"; "lda@class-token"; "lda@rich" |]
                        "labels"))

            testCase
                "all heads forget a class together"
                (withPlan settings (fun plan ->
                    let learner = Tiny.learner plan
                    let state = Tiny.learnFirst learner plan
                    let forgotten = Learner.forget learner state.Classes[0].Id state
                    Expect.hasLength forgotten.Classes 1 "classes"

                    for i, readout in Array.indexed learner.Readouts do
                        let expected = readout.Head.Forget 0 (at i state)
                        sameHead readout.Label readout.Head expected (at i forgotten)

                    let images = (Array.head (Tiny.batches plan 0)).Images
                    let model = Learner.deploy learner forgotten
                    let struct (scores, _) = Learner.predictWith learner model [||] images

                    for one in scores do
                        Expect.equal one.shape [| images.shape[0]; 1L |] "one class is left"))

            testCase
                "all heads are saved and loaded together"
                (withPlan { settings with Transport = false } (fun plan ->
                    Probe.inFolder (fun folder ->
                        let learner = Tiny.learner plan
                        let state = Tiny.learnFirst learner plan
                        Tiny.save folder plan state
                        let saved = LearnerFile.load folder

                        let loaded =
                            LearnerFile.learner plan.Backbone plan.Settings.Tasks plan.Settings.Method saved

                        Expect.equal
                            (loaded.Others |> Array.map (fun r -> r.Label, r.Head.Info.Name, r.Embedding))
                            (learner.Others |> Array.map (fun r -> r.Label, r.Head.Info.Name, r.Embedding))
                            "heads"

                        Expect.isFalse loaded.Transport "heads that follow"
                        Tiny.sameState "state" state (LearnerFile.restore loaded saved)

                        let rewrite (change: JsonObject -> unit) =
                            let path = LearnerFile.jsonPath folder
                            let json = (JsonNode.Parse(System.IO.File.ReadAllText path)).AsObject()
                            json.Remove "sha256" |> ignore
                            change json
                            System.IO.File.WriteAllText(path, json.ToJsonString())

                        rewrite (fun json -> json["others"].[1].["head"] <- JsonValue.Create "magic")

                        refused [ "learner.json"; "'magic'" ] (fun () ->
                            LearnerFile.load folder
                            |> LearnerFile.learner plan.Backbone plan.Settings.Tasks plan.Settings.Method
                            |> ignore)

                        // a learner saved before there were several heads
                        rewrite (fun json ->
                            json.Remove "others" |> ignore
                            json.Remove "transport" |> ignore
                            (json["embedding"].AsObject()).Remove "frozen" |> ignore)

                        let older =
                            LearnerFile.load folder
                            |> LearnerFile.learner plan.Backbone plan.Settings.Tasks plan.Settings.Method

                        Expect.hasLength older.Others 0 "one head"
                        Expect.isTrue older.Transport "by default")))

            testCase
                "old classes go through the map of drift of the new task's images"
                (withPlan (following settings) (fun plan ->
                    let learner = Tiny.learner plan
                    let struct (first, second) = twoTasks plan learner

                    let embeddings (state: TaskState) i =
                        [|
                            for batch in Tiny.batches plan 1 do
                                let networks = Learner.networks learner state.Method
                                let struct (_, embedded) = Learner.embed learner networks [||] batch.Images
                                embedded[i]
                        |]
                        |> fun all -> torch.cat (all, 0L)

                    let labels = torch.cat (Tiny.batches plan 1 |> Array.map _.Labels, 0L)

                    for i, readout in Array.indexed learner.Readouts do
                        let head = readout.Head
                        let before, after = embeddings first i, embeddings second i
                        let width = before.shape[1]

                        let moved =
                            match head.Transport with
                            | Some transport -> transport (DriftMap.fit before after)
                            | None -> id

                        let expected =
                            head.Merge
                                (moved (head.Grow 2 (at i first)))
                                (head.Zero width before.dtype before.device
                                 |> head.Grow 4
                                 |> head.Observe after labels)

                        sameHead readout.Label head expected (at i second)))

            testCase
                "heads that do not follow keep the sums of old classes"
                (withPlan
                    { following settings with
                        Transport = false
                    }
                    (fun plan ->
                        let stale = Tiny.learner plan
                        let moving = { stale with Transport = true }
                        let struct (first, second) = twoTasks plan stale
                        let struct (_, followed) = twoTasks plan moving

                        for i, readout in Array.indexed stale.Readouts do
                            let rows (state: TaskState) =
                                (sums readout.Head.Tree (at i state)).narrow(0L, 0L, 2L)

                            closeTensors $"{readout.Label}: as they were" (rows first) (rows second)
                            let far = (rows followed).sub(rows first).abs().max().item<float>()

                            if readout.Head.Transport.IsSome then
                                Expect.isGreaterThan far 1e-6 $"{readout.Label}: followed"
                            else
                                Expect.equal far 0.0 $"{readout.Label}: cannot follow"))

            testCase
                "a frozen network has nothing to follow, and recomputed heads score as streamed ones"
                (withPlan
                    { settings with
                        MethodName = Frozen.info.Name
                        PrototypeTransform = PrototypeTransform.Test
                        Recompute = true
                    }
                    (fun plan ->
                        let outcome = Tiny.run plan

                        let still =
                            Experiment.run
                                { outcome.Learner with
                                    Transport = false
                                }
                                plan
                                Tiny.silent

                        Tiny.sameState "state" still.State outcome.State

                        Expect.equal
                            outcome.Recomputed.Value
                            (outcome.Matrices |> Array.map Array.last)
                            "scores of each head"

                        for line in Results.heads outcome do
                            closeTo 1e-9 line.Head [ line.Last ] [ line.Recomputed.Value ]))

            testCase
                "recomputed heads are those of all training images under the last network"
                (withPlan
                    { following settings with
                        Recompute = true
                    }
                    (fun plan ->
                        let outcome = Tiny.run plan
                        let learner, state = outcome.Learner, outcome.State
                        let networks = Learner.networks learner state.Method

                        let fresh =
                            learner.Readouts
                            |> Array.mapi (fun i readout ->
                                let head = readout.Head

                                [ 0..2 ]
                                |> List.collect (fun task -> List.ofArray (Tiny.batches plan task))
                                |> List.fold
                                    (fun sums batch ->
                                        let struct (_, embedded) =
                                            Learner.embed learner networks [||] batch.Images

                                        head.Observe embedded[i] batch.Labels sums)
                                    (head.Grow 6 (Learner.noHead learner readout)))

                        let model =
                            Learner.deploy
                                learner
                                { state with
                                    Head = fresh[0]
                                    Others = fresh[1..]
                                }

                        let expected = Scoring.predict learner plan ignore model plan.Stream.Tasks

                        Expect.equal
                            outcome.Recomputed.Value[0]
                            (expected |> Array.map (Scoring.scoreOf plan))
                            "the head that predicts"

                        Expect.equal
                            outcome.Recomputed.Value[1..]
                            (Scoring.transpose (expected |> Array.map (Scoring.othersOf plan)))
                            "the others"))

            testCase
                "several heads that follow leave no tensor behind"
                (withPlan
                    { following settings with
                        Drift = false
                        Recompute = true
                    }
                    (fun plan ->
                        Probe.leavesNothing (fun () -> Scope.run (fun () -> Tiny.run plan |> ignore))))

            testCase
                "logits take a method with a classifier and its own features, also beside other heads"
                (withPlan settings (fun plan ->
                    for head, words in
                        [
                            "logits", [ "head logits"; "classifier of its own"; "method lora-sub-drs" ]
                            "lda@lust-blocks", [ "embedding"; "did you mean last-blocks?" ]
                        ] do
                        refused words (fun () ->
                            Tiny.learner
                                { plan with
                                    Settings = { settings with OtherHeads = [ head ] }
                                }
                            |> ignore)))
        ]
