module LoRASub.Tests.FirstSessionTests

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.LoraSteps
open TorchSharp

/// A plan and how far its task is trained.
type Case =
    {
        [<Between(0, 9999)>]
        Seed: int
        /// Half the width, which two heads divide.
        [<Between(2, 4)>]
        Half: int
        [<Between(1, 3)>]
        Steps: int
        [<Between(0, 2)>]
        Task: int
        WeightDecay: bool
    }

    member c.Plan =
        plan c.Seed (2 * c.Half) (fun m ->
            { m with
                Adam =
                    { m.Adam with
                        WeightDecay = if c.WeightDecay then 0.1 else 0.0
                    }
            })

let private example () = plan 3 8 id

let private withOrder (order: int[]) (plan: Plan) =
    { plan with
        Stream =
            TaskStream.create
                plan.Stream.Dataset
                (ClassOrder.Explicit("test", order))
                plan.Settings.Tasks
                None
    }

let private firstSession (plan: Plan) =
    FirstSession.method' plan.Backbone plan.Settings.Method

/// The summed deltas after each task.
let private deltas (method: Plan -> Method<LayerDelta[], _, _>) (plan: Plan) =
    let learner = Tiny.learnerOf plan (method plan)

    plan.Stream.Tasks
    |> Array.scan (Experiment.learnTask learner plan) (Learner.start learner (Rng.ofSeed plan.Settings.Seed))
    |> Array.map (fun state -> Seq.collect Lora.deltaLeaves (Method.reveal (method plan) state.Method))

let private inScope (test: unit -> unit) () = Scope.run test

[<Tests>]
let tests =
    testList
        "FirstSession"
        [
            propertyOf<Case> 10 "SequentialLora" "a task is plain Adam on cross-entropy" (fun c ->
                let plan = c.Plan
                let method = SequentialLora.method' plan.Backbone plan.Settings.Method
                let struct (_, _, training) = prepared plan method c.Task
                against plan method id noMore c.Steps (fun _ -> Oracles.Anywhere) training)

            testCase
                "the first task is that of sequential training, and nothing changes after it"
                (inScope (fun () ->
                    let plan = example ()
                    let mine = deltas firstSession plan

                    let sequential =
                        deltas (fun p -> SequentialLora.method' p.Backbone p.Settings.Method) plan

                    let numbers = Seq.collect TestFiles.numbers >> Array.ofSeq
                    Expect.all (numbers mine[0]) ((=) 0.0) "before the first task"
                    Seq.iter2 (repeated "first task") sequential[1] mine[1]
                    Expect.notEqual (numbers sequential[2]) (numbers sequential[1]) "sequential goes on"
                    Expect.exists (numbers mine[1]) ((<>) 0.0) "the first task adapts"
                    Seq.iter2 (identical "second task") mine[1] mine[2]
                    Seq.iter2 (identical "third task") mine[1] mine[3]))

            testCase
                "B that does not start at zero does not move the network either"
                (inScope (fun () ->
                    let plan = plan 3 8 (fun m -> { m with BInit = BInit.Sparse })
                    let mine = deltas firstSession plan
                    Seq.iter2 (identical "third task") mine[1] mine[3]))

            testCase
                "the order of later tasks does not matter"
                (inScope (fun () ->
                    let outcomes =
                        [ [| 0; 1; 2; 3; 4; 5 |]; [| 0; 1; 4; 5; 2; 3 |] ]
                        |> List.map (fun order ->
                            let plan = withOrder order (example ())
                            let learner = Tiny.learnerOf plan (firstSession plan)
                            Tiny.prototypes (Experiment.run learner plan Tiny.silent).State)

                    let rows = torch.tensor ([| 0L; 1L; 4L; 5L; 2L; 3L |], device = Generators.device)
                    closeTensors "prototypes" outcomes[0] (outcomes[1].index_select(0L, rows))))

            testCase
                "only the first task has epochs"
                (inScope (fun () ->
                    let plan = example ()
                    let learner = Tiny.learnerOf plan (firstSession plan)
                    let epochs = ResizeArray()

                    Experiment.run learner plan (function
                        | Learning(EpochEnds epoch) -> epochs.Add epoch.Task
                        | _ -> ())
                    |> ignore

                    Expect.sequenceEqual epochs (Array.create plan.Settings.Epochs 0) "task of each epoch"))

            rejects "a training step of a later task" [ "first-session"; "task 2" ] (fun () ->
                let plan = example ()
                let method = firstSession plan
                let struct (_, _, training) = prepared plan method 1
                method.Update (Tiny.rates plan) (batchOf plan 1 0) training |> ignore)
        ]
