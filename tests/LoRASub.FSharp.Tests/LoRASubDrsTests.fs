module LoRASub.Tests.LoRASubDrsTests

open System
open System.Collections.Concurrent
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.LoraSteps
open TorchSharp

/// A second task after a first one that has moved the network, in float64.
type Task =
    {
        [<Between(0, 9999)>]
        Seed: int
        /// Half the width, which two heads divide.
        [<Between(2, 5)>]
        Half: int
        [<Between(1, 3)>]
        Depth: int
        [<Between(1, 4)>]
        Rank: int
        [<Between(1, 3)>]
        Steps: int
        [<Between(5, 9)>]
        EnergyTenths: int
        Official: bool
        Subtraction: bool
        WeightDecay: bool
        AmsGrad: bool
    }

    member c.Width = 2 * c.Half

    member c.Method: LoRASubSettings =
        { Tiny.settings.Method with
            Rank = c.Rank
            BInit = if c.Official then BInit.Sparse else BInit.Zeros
            Energy = float c.EnergyTenths / 10.0
            Subtraction = c.Subtraction
            LearningRate = 0.05
            Adam =
                { Adam.defaults with
                    WeightDecay = if c.WeightDecay then 0.1 else 0.0
                    AmsGrad = c.AmsGrad
                }
        }

    member c.Plan: Plan =
        let settings =
            { Tiny.settings with
                Precision = Precision.Float64
                Seed = int64 c.Seed
                Method = c.Method
            }

        Tiny.planWith settings (Tiny.dataset 4 3 1) (Tiny.vit Precision.Float64 c.Width c.Depth c.Seed)

let private propertyOf cases name (law: Task -> unit) =
    propertyOf<Task> cases "LoRASubDrs" name law

let private property name law = propertyOf 15 name law

let private example =
    {
        Seed = 3
        Half = 4
        Depth = 2
        Rank = 2
        Steps = 3
        EnergyTenths = 8
        Official = false
        Subtraction = true
        WeightDecay = false
        AmsGrad = false
    }

let private inScope (test: unit -> unit) () = Scope.run test

/// The plan's second task, observed and prepared, with the state before it.
let private secondTask (plan: Plan) = prepared plan (Tiny.drs plan) 1

let private firstTask (plan: Plan) =
    let struct (_, _, training) = prepared plan (Tiny.drs plan) 0
    training

/// So many updates on the task's batches in turn.
let private update (plan: Plan) steps training =
    path plan (Tiny.drs plan) steps training |> List.last

/// The learner's path ≡ Adam in slow loops on cross-entropy and the triplet loss.
let private againstOracle (c: Task) (plan: Plan) confinedBy training =
    let settings = plan.Settings.Method

    let triplet (state: LoRASubDrs.State) local (features: torch.Tensor) =
        AugmentedTriplet.loss
            settings.Margin
            settings.NormOrder
            state.Prototypes
            local
            (torch.nn.functional.normalize (features, 2.0, 1L))
        |> _.mul(Scalar.op_Implicit settings.TripletWeight)
        |> Some

    against plan (Tiny.drs plan) _.Deltas triplet c.Steps confinedBy training

let private spoilNorm (block: int) (vit: VisionTransformer) =
    let spoilt = vit.Blocks[block]

    { vit with
        Blocks =
            vit.Blocks
            |> Array.updateAt
                block
                { spoilt with
                    Norm1 =
                        { spoilt.Norm1 with
                            Weight = torch.zeros_like spoilt.Norm1.Weight
                            Bias = torch.zeros_like spoilt.Norm1.Bias
                        }
                }
    }

/// A data set whose readers refuse the images that `allowed split label` does not allow.
let private guarded (allowed: string -> int -> bool) (dataset: Dataset) =
    let guard split (set: ImageSet) =
        { set with
            Read =
                fun i ->
                    if not (allowed split set.Labels[i]) then
                        failwith $"read a {split} image of class {set.Labels[i]}"

                    set.Read i
        }

    { dataset with
        Train = guard "training" dataset.Train
        Test = guard "test" dataset.Test
    }

let private badSettings: (string * string list * (LoRASubSettings -> LoRASubSettings)) list =
    [
        "a rank above the width", [ "rank"; "[1, 8]"; "9" ], (fun m -> { m with Rank = 9 })
        "a negative rate", [ "learning rate"; "-1" ], (fun m -> { m with LearningRate = -1.0 })
        "a head rate of NaN", [ "head learning rate"; "NaN" ], (fun m -> { m with HeadLearningRate = nan })
        "an energy above 1", [ "energy threshold"; "1.001" ], (fun m -> { m with Energy = 1.001 })
        "a negative margin", [ "margin"; "-0.5" ], (fun m -> { m with Margin = -0.5 })
        "an infinite weight", [ "triplet weight" ], (fun m -> { m with TripletWeight = infinity })
        "a norm below 1", [ "norm order"; "0.5" ], (fun m -> { m with NormOrder = 0.5 })
        "a β of 1",
        [ "beta 1" ],
        (fun m ->
            { m with
                Adam = { m.Adam with Beta1 = 1.0 }
            })
    ]

[<Tests>]
let tests =
    testList
        "LoRASubDrs"
        [
            property
                "the second task's steps stay in the retained space: (A−A₀)(I−Π) = 0 and (I−Π)(B−B₀) = 0"
                (fun c ->
                    let plan = c.Plan
                    let struct (_, _, before) = secondTask plan
                    let after = update plan c.Steps before

                    for block in 0 .. c.Depth - 1 do
                        let p = before.Projections[block]

                        let outside =
                            Oracles.subtract
                                (Oracles.identity c.Width)
                                (Oracles.multiply (matrix p.Basis) (Oracles.transpose (matrix p.Basis)))

                        for site in Lora.keyValue do
                            let old, fresh = before.Lora[block][site], after.Lora[block][site]

                            let moved (a: torch.Tensor) (b: torch.Tensor) =
                                Oracles.subtract (matrix b) (matrix a)

                            let a, b = moved old.A fresh.A, moved old.B fresh.B
                            Expect.isGreaterThan (Oracles.frobenius b) 0.0 "B has moved"

                            if c.Steps > 1 || c.Official then
                                Expect.isGreaterThan (Oracles.frobenius a) 0.0 "A has moved"

                            atMost "A outside" 1e-11 (Oracles.frobenius (Oracles.multiply a outside))
                            atMost "B outside" 1e-11 (Oracles.frobenius (Oracles.multiply outside b)))

            property "the first task is plain Adam" (fun c ->
                let plan = c.Plan
                againstOracle c plan (fun _ -> Oracles.Anywhere) (firstTask plan))

            property
                "a later task is Adam with A confined from the right, B from the left, the head nowhere"
                (fun c ->
                    let plan = c.Plan
                    let struct (_, observed, training) = secondTask plan

                    let projector =
                        observed.Moments
                        |> Array.map (fun moment ->
                            let spectrum, vectors = Oracles.eigen (matrix moment.Moment)
                            let k = Oracles.retainedRank plan.Settings.Method.Energy spectrum
                            Oracles.scale (1.0 / sqrt (float k)) (Oracles.projector vectors k))

                    let confinedBy i =
                        if i >= 4 * c.Depth then Oracles.Anywhere
                        elif i % 2 = 0 then Oracles.FromRight projector[i / 4]
                        else Oracles.FromLeft projector[i / 4]

                    againstOracle c plan confinedBy training)

            property
                "observing accumulates the moments of the network with W − V, or W + V without subtraction"
                (fun c ->
                    let plan = c.Plan
                    let struct (state, observed, _) = secondTask plan
                    let sign = if c.Subtraction then -1.0 else 1.0

                    let expected =
                        slowMoments (baked sign state.Deltas plan.Backbone) (Tiny.batches plan 1)

                    let opposite =
                        slowMoments (baked -sign state.Deltas plan.Backbone) (Tiny.batches plan 1)

                    Array.iter2
                        (fun e (m: SecondMoment) -> closeMatrix "moment" e m.Moment)
                        expected
                        observed.Moments

                    if c.Depth > 1 then
                        let other = numbers observed.Moments[c.Depth - 1].Moment

                        let apart =
                            Seq.map2 (fun x y -> abs (x - y)) (Seq.cast<float> opposite[c.Depth - 1]) other

                        Expect.isGreaterThan (Seq.max apart) 1e-7 "the sign matters"

                    Expect.equal observed.Moments[0].Count (6L * 5L) "6 images of 5 tokens")

            property
                "the Frobenius scale shortens the first projected update by √k, exactly where it projects"
                (fun c ->
                    let plan = c.Plan

                    let unscaled =
                        { plan with
                            Settings =
                                plan.Settings
                                |> Tiny.ofMethod (fun m ->
                                    { m with
                                        UpdateScale = UpdateScale.Unscaled
                                    })
                        }

                    let moves (plan: Plan) (training: LoRASubDrs.Training<_>) =
                        let training =
                            { training with
                                Projections =
                                    (let struct (_, observed, _) = secondTask plan
                                     ((Tiny.drs plan).Prepare observed).Projections)
                            }

                        Array.map2
                            (fun (a: torch.Tensor) (b: torch.Tensor) -> b.sub a)
                            (parameters training)
                            (parameters (update plan 1 training))

                    let struct (_, _, training) = secondTask plan
                    let short, long = moves plan training, moves unscaled training

                    for i in 0 .. 4 * c.Depth - 1 do
                        let root = sqrt (float training.Projections[i / 4].Rank)

                        closeTo
                            1e-12
                            $"parameter {i}"
                            (numbers long[i])
                            (numbers (short[i].mul(Scalar.op_Implicit root)))

                    for i in [ 4 * c.Depth; 4 * c.Depth + 1 ] do
                        identical "head" long[i] short[i])

            property "merged weights ≡ the separate path at the end of training" (fun c ->
                let plan = c.Plan
                let struct (_, _, training) = secondTask plan
                let trained = update plan c.Steps training
                let learner = Tiny.drs plan
                let merged = learner.Adapters(learner.Merge trained)
                let images = (batchOf plan 1 0).Images

                closeTensors
                    "features"
                    (VisionTransformer.features (LoraTask.network trained) plan.Backbone images)
                    (VisionTransformer.features merged plan.Backbone images))

            property
                "prototypes are the means of the merged network's features, and prediction takes the nearest"
                (fun c ->
                    let plan = c.Plan
                    let learner = Tiny.learner plan
                    let outcome = Tiny.run plan
                    let prototypes = Tiny.prototypes outcome.State
                    let network = baked 1.0 (Tiny.drsState plan outcome.State).Deltas plan.Backbone

                    let features (batch: Batch) =
                        matrix (VisionTransformer.features (bare network) network batch.Images)

                    let batches = Tiny.batches plan 1
                    let all = batches |> Array.collect (features >> rows) |> array2D

                    let labels =
                        batches
                        |> Array.collect (fun b -> wholeNumbers b.Labels)
                        |> Array.map (fun label -> int label - 2)

                    closeMatrix
                        "the last task's prototypes"
                        (Oracles.prototypes 2 labels all)
                        (prototypes.narrow (0L, 2L, 2L))

                    let model = Learner.deploy learner outcome.State

                    for batch in Array.append batches (Tiny.batches plan 0) do
                        let distances = Oracles.squaredDistances (matrix prototypes) (features batch)

                        wholeNumbers (Tiny.predict learner model batch.Images)
                        |> Array.iteri (fun i predicted ->
                            atMost
                                "distance to the predicted class"
                                (Array.min distances[i, *] + 1e-9)
                                distances[i, int predicted]))

            propertyOf 10 "the loss ≡ cross entropy + λ·triplet loss in slow loops" (fun c ->
                let n, classes = 2 + c.Steps, 2
                let features = normalMatrix c.Seed n c.Width
                let prototypes = normalMatrix (c.Seed + 1) c.Rank c.Width
                let labels = integers c.Seed classes n

                let weight, bias =
                    normalMatrix (c.Seed + 2) classes c.Width, normals (c.Seed + 3) classes

                let settings =
                    { c.Method with
                        Margin = 0.3
                        TripletWeight = 0.7
                    }

                let struct (total, predictions) =
                    LoRASubDrs.loss
                        settings
                        (tensor prototypes)
                        {
                            Weight = tensor weight
                            Bias = Some(vector bias)
                        }
                        (labelTensor labels)
                        (tensor features)

                let logits = Oracles.linear weight bias features
                let entropy, _ = Oracles.crossEntropy labels logits

                let triplet, _, _ =
                    Oracles.augmentedTriplet 0.3 2.0 prototypes labels (unitRows features)

                close "loss" [ entropy + 0.7 * triplet ] [ total.item<float>() ]

                Expect.equal
                    (wholeNumbers predictions)
                    (Array.init n (fun i -> if logits[i, 1] > logits[i, 0] then 1L else 0L))
                    "predictions")

            testCase
                "triplet off ≡ triplet weight 0, and differs from the whole loss"
                (inScope (fun () ->
                    let trained change =
                        let plan = example.Plan

                        let plan =
                            { plan with
                                Settings = Tiny.ofMethod change plan.Settings
                            }

                        let struct (_, _, training) = secondTask plan
                        parameters (update plan 3 training)

                    let off = trained (fun m -> { m with Triplet = false })
                    let zero = trained (fun m -> { m with TripletWeight = 0.0 })
                    let whole = trained (fun m -> { m with TripletWeight = 0.5 })
                    Array.iter2 (identical "parameter") off zero
                    Expect.notEqual (numbers off[1]) (numbers whole[1]) "the triplet loss matters"))

            testCase
                "training moves B away from zero, and A only once B is there"
                (inScope (fun () ->
                    let plan = example.Plan
                    let before = firstTask plan
                    let once, twice = update plan 1 before, update plan 2 before

                    for block in 0 .. example.Depth - 1 do
                        let at (t: LoRASubDrs.Training<_>) = t.Lora[block][Site.Value]
                        Expect.all (numbers (at before).B) ((=) 0.0) "B starts at zero"
                        Expect.exists (numbers (at once).B) ((<>) 0.0) "B after a step"
                        identical "A after a step" (at before).A (at once).A
                        Expect.notEqual (numbers (at twice).A) (numbers (at before).A) "A after two steps"))

            testCase
                "the official variant starts with one nonzero per column of B, fresh in every task"
                (inScope (fun () ->
                    let plan =
                        { example with
                            Official = true
                            Rank = 4
                        }
                            .Plan

                    let learner = Tiny.drs plan
                    let start = learner.Start(Rng.ofSeed 1L)

                    let begin' i =
                        let task = plan.Stream.Tasks[i]
                        learner.BeginTask (Tiny.taskKey plan task) task start

                    let first, second = begin' 0, begin' 1

                    for layer in Array.append first.Lora second.Lora do
                        for pair in layer.Values do
                            let b = matrix pair.B

                            for column in 0..3 do
                                let entries = b[*, column] |> Array.filter ((<>) 0.0)
                                Expect.equal entries.Length 1 "nonzero entries of a column"
                                atMost "its size" 0.06 (abs entries[0])

                    Expect.notEqual
                        (numbers (Map.find Site.Key first.Lora[0]).A)
                        (numbers (Map.find Site.Key second.Lora[0]).A)
                        "A"

                    Expect.notEqual
                        (numbers (Map.find Site.Key first.Lora[0]).A)
                        (numbers (Map.find Site.Key first.Lora[1]).A)
                        "blocks"

                    Expect.notEqual
                        (numbers (Map.find Site.Key first.Lora[0]).A)
                        (numbers (Map.find Site.Value first.Lora[0]).A)
                        "key, value"))

            testCase "a task is observed from the second on, unless its updates are free" (fun () ->
                let task i : LearningTask =
                    {
                        Index = i
                        FirstClass = 2 * i
                        Classes = [| 0; 1 |]
                    }

                let observes change i =
                    LoRASubDrs.observes (change Tiny.settings.Method) (task i)

                Expect.isFalse (observes id 0) "first task"
                Expect.isTrue (observes id 1) "second task"
                Expect.isTrue (observes (fun m -> { m with Subtraction = false }) 1) "no subtraction"
                Expect.isFalse (observes (fun m -> { m with Projection = false }) 1) "no projection"
                Expect.isFalse (observes (fun m -> { m with Energy = 1.0 }) 1) "energy 1")

            testCase
                "without projection, and at energy 1, a later task is plain Adam"
                (inScope (fun () ->
                    let free: (LoRASubSettings -> LoRASubSettings) list =
                        [ (fun m -> { m with Projection = false }); (fun m -> { m with Energy = 1.0 }) ]

                    for change in free do
                        let plan = example.Plan

                        let plan =
                            { plan with
                                Settings = Tiny.ofMethod change plan.Settings
                            }

                        let struct (_, _, training) = secondTask plan
                        Expect.isEmpty training.Projections "projections"
                        Expect.isEmpty ((Tiny.drs plan).Diagnostics training).Retained "retained"
                        againstOracle example plan (fun _ -> Oracles.Anywhere) training))

            testCase
                "what is retained is told per block"
                (inScope (fun () ->
                    let plan = example.Plan
                    let struct (_, observed, training) = secondTask plan
                    let retained = ((Tiny.drs plan).Diagnostics training).Retained

                    Array.iter2
                        (fun (moment: SecondMoment) (r: Retained) ->
                            let spectrum, _ = Oracles.eigen (matrix moment.Moment)
                            let k = Oracles.retainedRank 0.8 spectrum
                            Expect.equal r.Rank k "rank"
                            close "energy" [ (Oracles.energyShares spectrum)[k - 1] ] [ r.Energy ])
                        observed.Moments
                        retained))

            testCase
                "every epoch's first Adam step has the schedule's rate, by the same K in the first task"
                (inScope (fun () ->
                    let plan = example.Plan

                    let plan =
                        { plan with
                            Settings =
                                { plan.Settings with
                                    ScheduleEpochs = Some 6
                                }
                        }

                    let learner = Tiny.drs plan
                    let struct (_, _, second) = secondTask plan

                    for task, training in [ 0, firstTask plan; 1, second ] do
                        for epoch in 0..9 do
                            let struct (next, _) =
                                learner.Update
                                    (Recipe.rates plan.Settings epoch)
                                    (batchOf plan task 0)
                                    training

                            let size (a: torch.Tensor) (b: torch.Tensor) =
                                numbers (b.sub a) |> Array.map abs |> Array.max

                            closeTo
                                1e-4
                                $"head step of task {task}, epoch {epoch}"
                                [ Oracles.learningRate 1.0 6 epoch ]
                                [ size training.Head.Weight next.Head.Weight / 1e-2 ]

                            if task = 0 then
                                closeTo
                                    1e-4
                                    $"step of B, epoch {epoch}"
                                    [ Oracles.learningRate 1.0 6 epoch ]
                                    [
                                        size
                                            (Map.find Site.Value training.Lora[0]).B
                                            (Map.find Site.Value next.Lora[0]).B
                                        / 0.05
                                    ]))

            testCase
                "a step reports its loss, its predictions as classes and how many are right"
                (inScope (fun () ->
                    let plan = example.Plan
                    let struct (_, _, training) = secondTask plan
                    let batch = batchOf plan 1 0
                    let struct (_, report) = (Tiny.drs plan).Update (Tiny.rates plan) batch training
                    let predicted = wholeNumbers report.Predictions
                    Expect.all predicted (fun c -> c = 2L || c = 3L) "classes of this task"
                    let truth = wholeNumbers batch.Labels

                    Expect.equal
                        (report.Correct.item<int64>())
                        (Array.map2 (=) predicted truth |> Array.filter id |> Array.length |> int64)
                        "right ones"

                    Expect.isFalse report.Loss.requires_grad "the loss carries no graph"
                    Expect.isGreaterThan (report.Loss.item<float>()) 0.0 "loss"))

            testCase
                "without training the network stays as it was and prototypes are the backbone's means"
                (inScope (fun () ->
                    let plan = { example with Official = true }.Plan

                    let plan =
                        { plan with
                            Settings =
                                { plan.Settings with
                                    MethodName = Frozen.info.Name
                                }
                        }

                    let learner = Tiny.learner plan
                    Expect.equal learner.Method.Info.Name "frozen" "name"
                    let outcome = Tiny.run plan
                    let model = Learner.deploy learner outcome.State

                    for block in 0 .. example.Depth - 1 do
                        identical
                            "effective weights"
                            plan.Backbone.Blocks[block].Qkv.Weight
                            model.Networks.Adapted.Qkv[block]

                    let batches = Array.append (Tiny.batches plan 0) (Tiny.batches plan 1)

                    let features =
                        batches
                        |> Array.collect (fun b ->
                            rows (
                                matrix (
                                    VisionTransformer.features (bare plan.Backbone) plan.Backbone b.Images
                                )
                            ))
                        |> array2D

                    let labels =
                        batches |> Array.collect (fun b -> wholeNumbers b.Labels) |> Array.map int

                    closeMatrix
                        "prototypes"
                        (Oracles.prototypes 4 labels features)
                        (Tiny.prototypes outcome.State)))

            testCase
                "given pairs and a given head start a task as they are"
                (inScope (fun () ->
                    let plan = example.Plan
                    let struct (state, observed, _) = secondTask plan
                    let lora, head = observed.Lora, observed.Head

                    let begun =
                        LoRASubDrs.beginTaskWith
                            plan.Backbone
                            plan.Settings.Method
                            (LoraTask.ofPairs lora head)
                            plan.Stream.Tasks[1]
                            state

                    Seq.iter2
                        (identical "pair")
                        (Seq.collect Lora.leaves lora)
                        (Seq.collect Lora.leaves begun.Lora)

                    Seq.iter2 (identical "head") (Linear.leaves head) (Linear.leaves begun.Head)))

            // on a GPU the host is the limit of a small network's step
            testCase "a step costs the host no more than it did" (fun () ->
                let made depth =
                    Scope.run (fun () ->
                        let plan = { example with Depth = depth }.Plan
                        let method = Tiny.drs plan
                        let struct (_, _, training) = secondTask plan
                        let statistics = DisposeScopeManager.Statistics

                        let tensors () =
                            statistics.CreatedInScopeCount + statistics.CreatedOutsideScopeCount

                        let before = tensors ()
                        method.Update (Tiny.rates plan) (batchOf plan 1 0) training |> ignore
                        int (tensors () - before))

                let shallow, deep = made 2, made 5
                let each = (deep - shallow) / 3
                Expect.isLessThanOrEqual each 55 "tensors for each block"
                // 135 is what LibTorch's CUDA device was seen to take
                let most = if Generators.onCpu then 131 else 135
                Expect.isLessThanOrEqual (shallow - 2 * each) most "tensors beside the blocks")

            testCase "a moment of zeros is refused by block and task" (fun () ->
                Scope.run (fun () ->
                    let plan = example.Plan

                    let plan =
                        { plan with
                            Backbone = spoilNorm 1 plan.Backbone
                        }

                    refused [ "block 1"; "task 2"; "all-zero" ] (fun () -> Tiny.run plan |> ignore)))

            testCase "a loss that is not finite is refused by task and epoch" (fun () ->
                Scope.run (fun () ->
                    let settings =
                        { Tiny.settings with Epochs = 3 }
                        |> Tiny.ofMethod (fun m -> { m with HeadLearningRate = 1e38 })

                    refused [ "task 1"; "epoch"; "must stay finite"; "head-lr" ] (fun () ->
                        Tiny.run (Tiny.plan settings) |> ignore)))

            for name, words, change in badSettings do
                rejects name words (fun () ->
                    LoRASubDrs.method' (Tiny.vit Precision.Float32 8 1 1) (change Tiny.settings.Method)
                    |> ignore)

            testCase
                "a run reads training images of the present task alone, and no test image of a task to come"
                (inScope (fun () ->
                    let mutable present = -1
                    let reads = ConcurrentDictionary<struct (string * int), unit>()

                    let allowed split label =
                        reads[struct (split, label)] <- ()

                        match split with
                        | "training" -> label / 2 = present
                        | _ -> label / 2 <= present

                    for transform in [ PrototypeTransform.Train; PrototypeTransform.Test ] do
                        reads.Clear()

                        let settings =
                            { Tiny.settings with
                                Tasks = 3
                                PrototypeTransform = transform
                            }

                        let plan =
                            Tiny.planWith
                                settings
                                (guarded allowed (Tiny.dataset 6 3 2))
                                (Tiny.vit Precision.Float32 8 2 1)

                        Experiment.run (Tiny.learner plan) plan (function
                            | TaskBegins(task, _) -> present <- task.Index
                            | _ -> ())
                        |> ignore

                        Expect.equal reads.Count 12 "both splits of all classes were read in their turn"))

            testCase
                "the guard of that test does refuse"
                (inScope (fun () ->
                    let plan =
                        Tiny.planWith
                            Tiny.settings
                            (guarded (fun split label -> split = "test" || label < 2) (Tiny.dataset 4 3 2))
                            (Tiny.vit Precision.Float32 8 1 1)

                    Expect.throwsC (fun () -> Tiny.run plan |> ignore) (fun e ->
                        Expect.stringContains e.Message "read a training image" "message")))
        ]
