/// Whether the network should adapt, decided on the first task's training images.
module LoRASub.Tests.AdaptationTests

open System.Collections.Concurrent
open LoRASub.Core
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto

let private auto classes train : Plan =
    let settings =
        { Tiny.settings with
            MethodName = Methods.Auto
            Tasks = 1
            Epochs = 1
            OtherHeads = []
        }

    Tiny.planWith settings (Tiny.dataset classes train 2) (Tiny.vit settings.Precision 8 2 7)

let private under (plan: Plan) name =
    Recipe.learner plan.Backbone { plan.Settings with MethodName = name }

let private trial (plan: Plan) frozen adapting (set: ImageSet) =
    let task = plan.Stream.Tasks[0]

    Adaptation.trial
        frozen
        adapting
        (Recipe.learnOptions plan.Settings plan.Backbone 1)
        set
        (TaskStream.trainIndices plan.Stream task)
        task.Classes
        (Rng.ofSeed 1L)
        ignore

/// The set, and the positions that are read of it.
let private spy (set: ImageSet) =
    let read = ConcurrentBag<int>()

    { set with
        Read =
            fun i ->
                read.Add i
                set.Read i
    },
    read

let private example: AdaptationTrial =
    {
        Classes = 2
        LaterClasses = 2
        Images = 100
        Frozen = 80
        Adapted = 84
        Error = 0.03
    }

[<Tests>]
let tests =
    testList
        "Adaptation"
        [
            testCase "a learner gains nothing over itself" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 5 11
                    let frozen = under plan Frozen.info.Name

                    match trial plan frozen frozen plan.Stream.Dataset.Train with
                    | None -> failtest "large enough"
                    | Some same ->
                        Expect.equal (same.Classes, same.LaterClasses) (2, 3) "halves"
                        Expect.equal same.Images 10 "two of eleven images of each class"
                        Expect.equal (same.Adapted, same.Error) (same.Frozen, 0.0) "scores"
                        Expect.isFalse same.Helps "no gain"))

            testCase "a trial reads at most 500 images of a class" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 4 505
                    let spied, read = spy plan.Stream.Dataset.Train
                    let frozen = under plan Frozen.info.Name
                    trial plan frozen frozen spied |> ignore
                    let positions = read |> Seq.distinct |> Seq.toArray
                    Expect.hasLength positions 2000 "of 2,020"

                    Expect.equal
                        (Adaptation.images (TaskStream.trainIndices plan.Stream plan.Stream.Tasks[0]) spied)
                        2000
                        "the number that the estimate of time counts"))

            testCase "the same seed gives the same trial" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 4 10

                    let once () =
                        trial
                            plan
                            (under plan Frozen.info.Name)
                            (under plan FirstSession.info.Name)
                            plan.Stream.Dataset.Train

                    Expect.equal (once ()) (once ()) "trial"))

            testCase "only training images of the first task are read" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 6 10

                    let plan =
                        { plan with
                            Stream = TaskStream.create plan.Stream.Dataset ClassOrder.Natural 2 (Some 4)
                        }

                    let spied, read = spy plan.Stream.Dataset.Train
                    let frozen = under plan Frozen.info.Name
                    trial plan frozen frozen spied |> ignore

                    let allowed =
                        TaskStream.trainIndices plan.Stream plan.Stream.Tasks[0] |> Set.ofArray

                    Expect.isNonEmpty read "read"
                    Expect.isEmpty (Set.difference (Set.ofSeq read) allowed) "of other tasks"))

            for classes, train in [ 3, 10; 4, 4 ] do
                testCase $"{classes} classes of {train} images are too few" (fun () ->
                    Scope.run (fun () ->
                        let struct (plan, trial) = Decision.ofPlan ignore (auto classes train)
                        Expect.isNone trial "trial"
                        Expect.equal plan.Settings.MethodName Frozen.info.Name "method"))

            testCase "a plan gets the method that the trial chooses" (fun () ->
                Scope.run (fun () ->
                    let struct (plan, trial) = Decision.ofPlan ignore (auto 4 10)

                    let expected =
                        if trial.Value.Helps then
                            FirstSession.info.Name
                        else
                            Frozen.info.Name

                    Expect.equal plan.Settings.MethodName expected "method"
                    Expect.isFalse plan.Settings.IsUndecided "settled"
                    let struct (again, none) = Decision.ofPlan ignore plan
                    Expect.equal (again.Settings, none) (plan.Settings, None) "nothing is open any more"))

            testCase "an undecided plan does not run" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 4 10

                    Check.refused [ "decided before a run"; "Decision.ofPlan" ] (fun () ->
                        Experiment.run (Plan.learner plan) plan ignore |> ignore)))

            testCase "training that diverges does not help" (fun () ->
                Scope.run (fun () ->
                    let plan = auto 4 10

                    let wild =
                        { plan with
                            Settings = Tiny.ofMethod (fun m -> { m with LearningRate = 1e30 }) plan.Settings
                        }

                    let struct (decided, trial) = Decision.ofPlan ignore wild
                    Expect.equal trial.Value.Adapted 0 "none right"
                    Expect.equal decided.Settings.MethodName Frozen.info.Name "method"))

            testCase "adapting must gain more than two standard errors" (fun () ->
                Expect.isFalse example.Helps "4 points, 3 points of error"
                Expect.isTrue { example with Error = 0.019 }.Helps "more than twice the error"
                Expect.isFalse { example with Error = 0.021 }.Helps "less than twice"
                Expect.isFalse { example with Adapted = 70 }.Helps "a loss"

                Expect.equal
                    (string example)
                    "the network stays frozen: adapted to 2 classes it gets 84.0% of 100 held-out training images of 4 classes right, frozen 80.0% (difference 4.0 ± 3.0)"
                    "in words")
        ]
