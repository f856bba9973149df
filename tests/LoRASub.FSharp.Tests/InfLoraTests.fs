module LoRASub.Tests.InfLoraTests

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.LoraSteps
open TorchSharp

/// A task, and how far it is trained.
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
    }

    member c.Plan = plan c.Seed (2 * c.Half) id

let private methodOf (plan: Plan) =
    InfLora.methodWith
        { InfLora.published with
            First = 0.7
            Last = 0.9
        }
        plan.Backbone
        plan.Settings.Method

let private property name law = propertyOf<Case> 10 "InfLora" name law

/// What M excludes, as a projector.
let private excludedBy (space: DualGpm) =
    let basis = matrix space.Basis
    let d, k = Array2D.length1 basis, Array2D.length2 basis

    let onBasis =
        if k = 0 then
            Array2D.zeroCreate d d
        else
            Oracles.multiply basis (Oracles.transpose basis)

    if space.IsAllowed then
        Oracles.subtract (Oracles.identity d) onBasis
    else
        onBasis

let private excluded (c: Case) (state: InfLora.State) block =
    match Array.tryItem block state.Spaces with
    | Some space -> excludedBy space
    | None -> Array2D.zeroCreate (2 * c.Half) (2 * c.Half)

[<Tests>]
let tests =
    testList
        "InfLora"
        [
            property
                "A = UᵀC̃'s leading directions/√3, the same for key and value, outside what is excluded"
                (fun c ->
                    let plan = c.Plan
                    let struct (state, observed, training) = prepared plan (methodOf plan) c.Task

                    let moments =
                        slowMoments (baked 1.0 state.Deltas plan.Backbone) (Tiny.batches plan c.Task)

                    for block in 0 .. training.Lora.Length - 1 do
                        closeMatrix "observed" moments[block] observed.Moments[block].Moment
                        let lora = training.Lora[block]
                        let a site = matrix lora[site].A
                        let key = a Site.Key
                        Expect.equal (a Site.Value) key "key and value"
                        let outside = excluded c state block
                        atMost "excluded" 1e-9 (Oracles.frobenius (Oracles.multiply key outside))
                        let allowed = Oracles.subtract (Oracles.identity (2 * c.Half)) outside
                        let part = Oracles.multiply allowed moments[block]
                        let squares, _ = Oracles.eigen (Oracles.multiply part (Oracles.transpose part))
                        // the norm before attention leaves one direction of these tokens without energy
                        let edge = 1e-13 * Oracles.frobenius moments[block] ** 2.0
                        let rank = squares |> Array.filter (fun s -> s > edge) |> Array.length |> min 2

                        close
                            "AAᵀ = I/3"
                            (Seq.cast (
                                Array2D.init 2 2 (fun i j -> if i = j && i < rank then 1.0 / 3.0 else 0.0)
                            ))
                            (Seq.cast (Oracles.multiply key (Oracles.transpose key)))

                        let held = 3.0 * Oracles.frobenius (Oracles.multiply key part) ** 2.0
                        closeTo 1e-8 "energy" [ Array.sum squares[.. rank - 1] ] [ held ]
                        Expect.all (numbers lora[Site.Key].B) ((=) 0.0) "B starts at zero")

            property "steps are Adam on B and the head, and A stays" (fun c ->
                let plan = c.Plan
                let method = methodOf plan
                let struct (_, _, training) = prepared plan method c.Task
                let last = 4 * training.Lora.Length

                let confinedBy i =
                    if i < last && i % 2 = 0 then
                        Oracles.Nowhere
                    else
                        Oracles.Anywhere

                against plan method _.Deltas noMore c.Steps confinedBy training
                let after = path plan method c.Steps training |> List.last

                let before, after = parameters training, parameters after

                for i in 0..2 .. last - 1 do
                    identical "A" before[i] after[i])

            property "excluded inputs see no change: (V' − V)x = 0" (fun c ->
                let plan = c.Plan
                let method = methodOf plan
                let struct (state, _, training) = prepared plan method c.Task
                let after = method.Merge(path plan method 3 training |> List.last)
                let mutable moved = 0.0

                for block in 0 .. training.Lora.Length - 1 do
                    let before, after = state.Deltas[block], after.Deltas[block]

                    for site in Lora.keyValue do
                        let change = Oracles.subtract (matrix after[site]) (matrix before[site])

                        moved <- moved + Oracles.frobenius change

                        atMost
                            "change"
                            1e-9
                            (Oracles.frobenius (Oracles.multiply change (excluded c state block)))

                Expect.isGreaterThan moved 1e-6 "the network has moved")

            property
                "a task extends the space by the inputs of the merged network, at ε of its index"
                (fun c ->
                    let plan = c.Plan
                    let method = methodOf plan
                    let learner = Tiny.learnerOf plan method
                    let start = Learner.start learner (Rng.ofSeed plan.Settings.Seed)

                    let states =
                        plan.Stream.Tasks[.. c.Task]
                        |> Array.scan (Experiment.learnTask learner plan) start
                        |> Array.map (fun state -> Method.reveal method state.Method)

                    let before, after = states[c.Task], states[c.Task + 1]

                    let moments =
                        slowMoments (baked 1.0 after.Deltas plan.Backbone) (Tiny.batches plan c.Task)

                    let epsilon = 0.7 + 0.2 * float c.Task / 10.0
                    Expect.isNone after.Pass "the pass is over"

                    for block in 0 .. moments.Length - 1 do
                        let expected =
                            DualGpm.extend
                                epsilon
                                "moment"
                                {
                                    Moment = tensor moments[block]
                                    Count = 1L
                                }
                                (Array.tryItem block before.Spaces
                                 |> Option.defaultWith (fun () ->
                                     DualGpm.zero (2L * int64 c.Half) torch.float64 device))

                        closeTo
                            1e-6
                            "excluded"
                            (Seq.cast (excludedBy expected))
                            (Seq.cast (excluded c after block)))

            property "own scores are the logits of all local heads, and old heads keep their bits" (fun c ->
                let plan = c.Plan
                let method = methodOf plan
                let struct (before, _, training) = prepared plan method c.Task
                let trained = path plan method c.Steps training |> List.last
                let after = method.Merge trained
                let old = 2L * int64 c.Task
                identical "old rows" before.Heads.Weight (after.Heads.Weight.narrow (0L, 0L, old))
                identical "new rows" trained.Head.Weight (after.Heads.Weight.narrow (0L, old, 2L))
                let features = normalMatrix c.Seed 3 (2 * c.Half)
                let weight, bias = matrix after.Heads.Weight, numbers after.Heads.Bias.Value

                match method.Logits.Value after with
                | OwnScores.OfFeatures scorer ->
                    closeMatrix
                        "logits"
                        (Oracles.linear weight bias features)
                        (scorer.Score(tensor features))
                | OwnScores.OfImages _ -> failtest "scores of images"

                let without = method.Forget 1 after
                let kept = [| 0; yield! [| 2 .. bias.Length - 1 |] |]
                Expect.equal (matrix without.Heads.Weight) (pick kept weight) "weights without row 1"

                Expect.equal
                    (numbers without.Heads.Bias.Value)
                    (kept |> Array.map (fun i -> bias[i]))
                    "biases")

            testCase "ε grows from λ_b to λ_e over the tasks and stays there" (fun () ->
                let epsilon = InfLora.threshold InfLora.published
                close "ε" [ 0.95; 0.975; 1.0; 1.0 ] [ epsilon 0; epsilon 5; epsilon 10; epsilon 25 ])

            testCase "ε grows over the tasks of the run" (fun () ->
                Scope.run (fun () ->
                    let plan = plan 2 8 id

                    let after learner =
                        (Experiment.run learner plan Tiny.silent).State.Method
                        |> Hidden.leaves
                        |> Seq.map (fun t -> numbers (t.flatten ()))
                        |> List.ofSeq

                    let ofRun tasks =
                        { plan.Settings with
                            MethodName = InfLora.info.Name
                            Tasks = tasks
                        }
                        |> Recipe.learner plan.Backbone
                        |> after

                    let ofOptions tasks =
                        InfLora.methodWith
                            { InfLora.published with Tasks = tasks }
                            plan.Backbone
                            plan.Settings.Method
                        |> Tiny.learnerOf plan
                        |> after

                    for tasks in [ 1; 10 ] do
                        Expect.equal (ofRun tasks) (ofOptions tasks) $"{tasks} tasks"

                    Expect.notEqual (ofRun 1) (ofRun 10) "the number counts"))

            testCase "a run with the head logits predicts by the local heads" (fun () ->
                Scope.run (fun () ->
                    let plan = plan 2 8 id
                    let method = InfLora.method' plan.Backbone plan.Settings.Method

                    let learner =
                        Learner.create
                            plan.Backbone
                            (Method.hide method)
                            (Head.hide Heads.logits)
                            (Embedding.output plan.Backbone)

                    let outcome = Experiment.run learner plan Tiny.silent
                    Expect.equal outcome.Matrix.Length 3 "scores after each task"
                    let state = Method.reveal method outcome.State.Method
                    Expect.equal state.Heads.Weight.shape [| 6L; 8L |] "local heads"))

            for name, words, options in
                [
                    "λ_b of 0", [ "energy threshold" ], { InfLora.published with First = 0.0 }
                    "λ_e above 1", [ "energy threshold" ], { InfLora.published with Last = 1.1 }
                    "no task", [ "number of tasks"; "0" ], { InfLora.published with Tasks = 0 }
                ] do
                rejects name words (fun () ->
                    let plan = plan 2 8 id
                    InfLora.methodWith options plan.Backbone plan.Settings.Method |> ignore)
        ]
