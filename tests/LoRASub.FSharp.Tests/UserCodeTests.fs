/// Methods, heads and embeddings of users: what they return is checked, and errors name them.
module LoRASub.Tests.UserCodeTests

open Expecto
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Tests.Check
open TorchSharp

let private toyLearner (plan: Plan) head : Learner =
    Learner.create
        plan.Backbone
        (Method.hide (ToyMethod.method' plan.Backbone))
        head
        (Embedding.output plan.Backbone)

let private withPlan (test: Plan -> unit) () =
    Scope.run (fun () -> test (Tiny.plan { Tiny.settings with Epochs = 6 }))

/// The toy head with other scores.
let private scoring (change: torch.Tensor -> torch.Tensor) : AnyHead =
    Head.hide
        { ToyHead.head with
            Scores =
                fun sums ->
                    let scorer = ToyHead.head.Scores sums

                    { scorer with
                        Score = scorer.Score >> change
                    }
        }

let private reporting (plan: Plan) (change: StepReport -> StepReport) : Learner =
    let toy = ToyMethod.method' plan.Backbone

    let method =
        { toy with
            Update =
                fun rates batch training ->
                    let struct (next, report) = toy.Update rates batch training
                    struct (next, change report)
        }

    Learner.create
        plan.Backbone
        (Method.hide method)
        (Head.hide ToyHead.head)
        (Embedding.output plan.Backbone)

[<Tests>]
let tests =
    testList
        "UserCode"
        [
            testCase
                "a method's own logits classify, and so does any head over it"
                (withPlan (fun plan ->
                    for head in
                        [ Head.hide Heads.logits; Head.hide ToyHead.head; Head.hide NearestMean.head ] do
                        let outcome = Experiment.run (toyLearner plan head) plan Tiny.silent
                        Metrics.check outcome.Matrix
                        let last = (Metrics.measure outcome.Matrix)["last"]
                        Expect.isGreaterThan last 0.2 $"last accuracy with {head.Info.Name}"))

            testCase
                "scores of images are those of their features, also of more views"
                (withPlan (fun plan ->
                    let vit = plan.Backbone
                    let images = (Array.head (Tiny.batches plan 0)).Images

                    for more in [ false; true ] do
                        let scores method =
                            let embedding =
                                { Embedding.output vit with
                                    Flip = more
                                    Shift = more
                                }

                            let learner =
                                Learner.create vit (Method.hide method) (Head.hide Heads.logits) embedding

                            let state = Tiny.learnFirst learner plan
                            Learner.predict learner (Learner.deploy learner state) images

                        closeTo
                            1e-6
                            $"scores, more views {more}"
                            (TestFiles.numbers (scores (ToyMethod.method' vit)))
                            (TestFiles.numbers (scores (ToyMethod.ofImages vit)))))

            testCase
                "scores of images are the same beside other heads"
                (withPlan (fun plan ->
                    let vit = plan.Backbone
                    let images = (Array.head (Tiny.batches plan 0)).Images

                    let learner head =
                        Learner.create
                            vit
                            (Method.hide (ToyMethod.ofImages vit))
                            head
                            { Embedding.output vit with
                                Flip = true
                            }

                    let own = learner (Head.hide Heads.logits)
                    let means = learner (Head.hide NearestMean.head)

                    let scores (learner: Learner) =
                        let state = Tiny.learnFirst learner plan
                        let model = Learner.deploy learner state
                        let struct (scores, _) = Learner.predictWith learner model [||] images
                        scores

                    let alone = [| yield! scores own; yield! scores means |]

                    Array.iter2
                        (repeated "first")
                        alone
                        (scores (Learner.withOthers [| means.Readout |] own))

                    Array.iter2
                        (repeated "second")
                        (Array.rev alone)
                        (scores (Learner.withOthers [| own.Readout |] means))))

            for name, words, change in
                [
                    "scores of too few classes",
                    [ "head nearest-euclidean"; "[3, 2]"; "[3, 1]" ],
                    (fun (scores: torch.Tensor) -> scores.narrow (1L, 0L, 1L))
                    "scores of NaN",
                    [ "head nearest-euclidean"; "must be finite" ],
                    (fun scores -> scores.mul (Scalar.op_Implicit nan))
                    "whole numbers as scores",
                    [ "head nearest-euclidean"; "floating point"; "Int64" ],
                    (fun scores -> scores.``to`` torch.int64)
                ] do
                testCase
                    $"{name} are refused"
                    (withPlan (fun plan ->
                        let learner = toyLearner plan (scoring change)
                        let state = Tiny.learnFirst learner plan
                        let images = (Array.head (Tiny.batches plan 0)).Images.narrow(0L, 0L, 3L)

                        refused words (fun () ->
                            Learner.predict learner (Learner.deploy learner state) images |> ignore)))

            for name, words, change in
                [
                    "a loss per image",
                    [ "loss of method linear-probe"; "[]" ],
                    (fun (report: StepReport) ->
                        { report with
                            Loss = torch.zeros ([| 5L |])
                        })
                    "predictions of another batch",
                    [ "predictions of method linear-probe"; "[2]" ],
                    (fun report ->
                        { report with
                            Predictions = torch.zeros ([| 2L |], dtype = torch.int64)
                        })
                    "predictions that are no whole numbers",
                    [ "predictions of method linear-probe"; "Int64" ],
                    (fun report ->
                        { report with
                            Predictions = report.Predictions.``to`` torch.float32
                        })
                ] do
                testCase
                    $"{name}: refused"
                    (withPlan (fun plan ->
                        refused words (fun () -> Tiny.learnFirst (reporting plan change) plan |> ignore)))

            testCase
                "another method's state, and logits of a method without them, are refused"
                (withPlan (fun plan ->
                    let learner = toyLearner plan (Head.hide ToyHead.head)
                    let stranger = Tiny.learnFirst (Tiny.learner plan) plan

                    refused [ "method linear-probe"; "method lora-sub-drs" ] (fun () ->
                        Learner.deploy learner stranger |> ignore)

                    refused [ "lora-sub-drs"; "logits" ] (fun () ->
                        Learner.create
                            plan.Backbone
                            (Method.hide (Tiny.drs plan))
                            (Head.hide Heads.logits)
                            (Embedding.output plan.Backbone)
                        |> ignore)))

            testCase
                "an embedding of a block that is not there is refused"
                (withPlan (fun plan ->
                    let part: EmbeddingPart =
                        {
                            Block = 9
                            Tokens = Tokens.Class
                            FinalNorm = false
                        }

                    let embedding: Embedding =
                        {
                            Frozen = [||]
                            Parts = [| part |]
                            Standardise = false
                            Flip = false
                            Shift = false
                        }

                    refused [ "block"; "9" ] (fun () ->
                        Learner.create
                            plan.Backbone
                            (Method.hide (ToyMethod.method' plan.Backbone))
                            (Head.hide ToyHead.head)
                            embedding
                        |> ignore)))
        ]
