/// What every class-incremental method must keep to, whatever it computes.
module LoRASub.Tests.ContractTests

open System
open System.Collections.Generic
open Expecto
open LoRASub
open LoRASub.Tests.Check
open TorchSharp

/// A call of one phase on prepared arguments.
type private Phase =
    {
        Name: string
        /// Every tensor that the phase may read.
        Given: torch.Tensor[]
        /// The leaves of the result.
        Call: unit -> torch.Tensor[]
    }

let private bits (tensors: torch.Tensor seq) =
    tensors |> Seq.map Probe.bytesOf |> Array.ofSeq

let private references (tensors: torch.Tensor seq) =
    HashSet<torch.Tensor>(tensors, HashIdentity.Reference)

/// A phase read from copies of what its tree writes.
let private restored (tree: Tree<'State>) (phase: 'State) : 'State =
    Scope.keep tree.Leaves (fun () ->
        Tree.write tree phase
        |> List.map (fun (name, tensor) -> name, tensor.clone ())
        |> Map.ofList
        |> Tree.read tree "the copies")

/// Prepares every phase of the second task, in order.
let private phases (make: VisionTransformer -> Learner<'O, 'T>) (plan: Plan) : Phase list =
    let vit = plan.Backbone
    let learner = make vit
    let state = Tiny.learnFirst learner plan
    let start = learner.Start(Rng.ofSeed 3L)
    let first, task = plan.Stream.Tasks[0], plan.Stream.Tasks[1]
    let batch = (Tiny.batches plan 1)[0]
    let options = Plan.batchOptions plan Augmentation.None
    let loaders = TaskStream.plainTrainBatches options plan.Stream task
    let begun = learner.BeginTask task state
    let observed = learner.Observe batch begun
    let prepared = learner.Prepare observed
    let struct (trained, _) = learner.Update batch prepared
    let next = learner.AfterTask loaders trained
    let model = learner.Deploy next
    let features = learner.Features model batch.Images
    let frozen = Array.ofSeq (VisionTransformer.leaves vit)
    let images = Array.ofSeq (Batch.leaves batch)

    let phase name (leaves: Leaves<'R>) (given: torch.Tensor seq) (call: unit -> 'R) =
        {
            Name = name
            Given = Array.concat [ frozen; images; Array.ofSeq given ]
            Call = call >> leaves >> Array.ofSeq
        }

    let observingTree, trainingTree =
        learner.ObservingTree task state, learner.TrainingTree task state

    let observing, training = observingTree.Leaves, trainingTree.Leaves
    let ofState = Array.ofSeq (TaskState.leaves state)

    [
        phase "Start" TaskState.leaves [] (fun () -> learner.Start(Rng.ofSeed 3L))
        phase "BeginTask" observing ofState (fun () -> learner.BeginTask task state)
        phase "BeginTask of the first task" observing (TaskState.leaves start) (fun () ->
            learner.BeginTask first start)
        phase "Observe" observing (Seq.append ofState (observing begun)) (fun () ->
            learner.Observe batch begun)
        phase "Prepare" training (Seq.append ofState (observing observed)) (fun () ->
            learner.Prepare observed)
        phase "BeginEpoch" training (Seq.append ofState (training prepared)) (fun () ->
            learner.BeginEpoch 1 prepared)
        phase
            "Update"
            (Leaves.both training StepReport.leaves)
            (Seq.append ofState (training trained))
            (fun () -> learner.Update batch trained)
        phase "AfterTask" TaskState.leaves (Seq.append ofState (training trained)) (fun () ->
            learner.AfterTask loaders trained)
        phase "Deploy" Model.leaves (TaskState.leaves next) (fun () -> learner.Deploy next)
        phase "Extend" TaskState.leaves ofState (fun () -> learner.Extend task loaders state)
        phase "Features" Features.leaves (Model.leaves model) (fun () -> learner.Features model batch.Images)
        phase
            "Classify"
            Leaves.tensor
            (Seq.concat [ TaskState.leaves next; Model.leaves model; Features.leaves features ])
            (fun () -> learner.Classify model features)
        phase "restoring an observation" observing (Seq.append ofState (observing observed)) (fun () ->
            restored observingTree observed)
        phase "restoring a training" training (Seq.append ofState (training trained)) (fun () ->
            restored trainingTree trained)
    ]

/// Calls of the second task that must fail, each with good arguments but one.
let private failures
    (make: VisionTransformer -> Learner<'O, 'T>)
    (plan: Plan)
    : (string * (unit -> unit)) list =
    let learner = make plan.Backbone
    let state = Tiny.learnFirst learner plan
    let task = plan.Stream.Tasks[1]
    let batch = (Tiny.batches plan 1)[0]

    let narrow =
        { batch with
            Images = batch.Images.narrow (3L, 0L, 4L)
        }

    let begun = learner.BeginTask task state
    let observed = learner.Observe batch begun
    let trained = learner.Prepare observed
    let model = learner.Deploy state

    let options = Plan.batchOptions plan Augmentation.None
    let loaders = TaskStream.plainTrainBatches options plan.Stream task
    let torn = Array.append loaders [| fun () -> failwith "the disk is gone" |]

    let shallow =
        { state with
            Deltas = Array.take 1 state.Deltas
        }

    let misfit =
        { state with
            Deltas =
                [|
                    state.Deltas[0]
                    Lora.noDelta
                        (Map.ofList [ for site in Lora.keyValue -> site, [| 3L; 3L |] ])
                        (Precision.master plan.Backbone.Precision)
                        Generators.device
                |]
        }

    [
        "BeginTask over too few blocks", (fun () -> learner.BeginTask task shallow |> ignore)
        "BeginTask over another width", (fun () -> learner.BeginTask task misfit |> ignore)
        "Observe of small images", (fun () -> learner.Observe narrow begun |> ignore)
        "Update on small images", (fun () -> learner.Update narrow trained |> ignore)
        "AfterTask over failing images", (fun () -> learner.AfterTask torn trained |> ignore)
        "AfterTask over small images",
        (fun () ->
            let load () =
                { narrow with
                    Images = narrow.Images.clone ()
                    Labels = narrow.Labels.clone ()
                }

            learner.AfterTask [| load |] trained |> ignore)
        "Deploy over another width", (fun () -> learner.Deploy misfit |> ignore)
        "Features of small images", (fun () -> learner.Features model narrow.Images |> ignore)
    ]

/// The laws of a learner, for a method that `make` puts over a frozen backbone.
let contract (name: string) (make: VisionTransformer -> Learner<'Observing, 'Training>) : Test =
    // every random number that a method may draw is drawn: augmented images, also for prototypes
    let settings =
        { Tiny.settings with
            Augmentation = Augmentation.CropFlip
            PrototypeTransform = PrototypeTransform.Train
        }

    let run (plan: Plan) =
        Experiment.run (make plan.Backbone) plan Tiny.silent

    let inScope (test: Plan -> unit) () =
        Scope.run (fun () -> test (Tiny.plan settings))

    testList
        name
        [
            testCase
                "no phase changes its arguments"
                (inScope (fun plan ->
                    for phase in phases make plan do
                        let before = bits phase.Given
                        phase.Call() |> ignore
                        Expect.equal (bits phase.Given) before phase.Name))

            testCase
                "the same arguments give the same result, bit for bit"
                (inScope (fun plan ->
                    for phase in phases make plan do
                        Array.iter2 (repeated phase.Name) (phase.Call()) (phase.Call())))

            testCase
                "a phase owns exactly the new leaves of its result"
                (inScope (fun plan ->
                    for phase in phases make plan do
                        let struct (result, fresh) = Probe.counting phase.Call
                        let owned = references result
                        owned.ExceptWith(references phase.Given)
                        Expect.equal fresh (int64 owned.Count) $"{phase.Name}: new tensors"
                        let before = torch.Tensor.TotalCount - fresh
                        Seq.iter (fun (t: torch.Tensor) -> t.Dispose()) owned
                        Expect.equal torch.Tensor.TotalCount before $"{phase.Name}: none is left"))

            testCase
                "a phase that fails leaves nothing"
                (inScope (fun plan ->
                    for what, call in failures make plan do
                        Probe.leavesNothing (fun () ->
                            let failed =
                                try
                                    call ()
                                    false
                                with _ ->
                                    true

                            Expect.isTrue failed $"{what} must fail")))

            testCase
                "a run leaves the backbone as it was and frees all but its outcome"
                (inScope (fun plan ->
                    let before = bits (VisionTransformer.leaves plan.Backbone)
                    let struct (outcome, left) = Probe.counting (fun () -> run plan)
                    let owned = references (Outcome.leaves outcome)
                    Expect.equal left (int64 owned.Count) "tensors left"
                    Expect.equal (bits (VisionTransformer.leaves plan.Backbone)) before "backbone"))

            testCase
                "a later task leaves the earlier classes' prototypes as they were"
                (inScope (fun plan ->
                    let learner = make plan.Backbone
                    let first = Tiny.learnFirst learner plan

                    let struct (second, _) =
                        Experiment.learnTask
                            learner
                            plan
                            (PhaseClock())
                            Tiny.silent
                            first
                            plan.Stream.Tasks[1]

                    let old = second.Prototypes.Means.narrow (0L, 0L, 2L)
                    identical "old prototypes" first.Prototypes.Means old
                    Expect.equal second.Prototypes.Classes [| 0; 1; 2; 3 |] "classes"
                    Expect.equal (first.Finished, second.Finished) (1, 2) "finished tasks"))

            testCase
                "the seed decides every number of a run"
                (inScope (fun plan ->
                    let outcome = run plan
                    let again = run plan
                    Tiny.sameState "the same seed" outcome.State again.State
                    Expect.equal again.Matrix outcome.Matrix "the same seed: scores"

                    let other =
                        run
                            { plan with
                                Settings = { plan.Settings with Seed = 5L }
                            }

                    Expect.notEqual
                        (bits (TaskState.leaves other.State))
                        (bits (TaskState.leaves outcome.State))
                        "another seed"))

            testCase
                "only classes seen are predicted"
                (inScope (fun plan ->
                    let learner = make plan.Backbone
                    let model = learner.Deploy(Tiny.learnFirst learner plan)

                    for batch in Array.append (Tiny.batches plan 0) (Tiny.batches plan 1) do
                        let predicted = Learner.predict learner model batch.Images
                        Expect.equal predicted.dtype torch.ScalarType.Int64 "type"
                        Expect.equal predicted.shape batch.Labels.shape "one per image"

                        Expect.all
                            (Generators.wholeNumbers predicted)
                            (fun c -> c = 0L || c = 1L)
                            "classes of the first task"))

            testCase
                "a class without images is refused by its place and task"
                (inScope (fun plan ->
                    let learner = make plan.Backbone
                    let start = learner.Start(Rng.ofSeed 1L)
                    let task = plan.Stream.Tasks[0]
                    let training = learner.Prepare(learner.BeginTask task start)

                    let onlyClass0 () =
                        let batch = (Tiny.batches plan 0)[0]
                        let rows = batch.Labels.eq(Scalar.op_Implicit 0L).nonzero().squeeze(1L)

                        {
                            Images = batch.Images.index_select (0L, rows)
                            Labels = batch.Labels.index_select (0L, rows)
                        }

                    refused [ "position 1"; "task 1"; "at least one training image" ] (fun () ->
                        learner.AfterTask [| onlyClass0 |] training |> ignore)))

            testCase
                "a saved state predicts as before and learns on as before"
                (inScope (fun plan ->
                    Probe.inFolder (fun folder ->
                        let learner = make plan.Backbone
                        let state = Tiny.learnFirst learner plan
                        LearnerFile.save folder (Tiny.saved plan state)

                        let loaded =
                            (LearnerFile.load torch.ScalarType.Float32 Generators.device folder).State

                        Tiny.sameState "loaded" state loaded

                        for batch in Tiny.batches plan 0 do
                            identical
                                "predictions"
                                (Learner.predict learner (learner.Deploy state) batch.Images)
                                (Learner.predict learner (learner.Deploy loaded) batch.Images)

                        let goOn state =
                            let struct (next, _) =
                                Experiment.learnTask
                                    learner
                                    plan
                                    (PhaseClock())
                                    Tiny.silent
                                    state
                                    plan.Stream.Tasks[1]

                            next

                        Tiny.sameState "after the second task" (goOn state) (goOn loaded)
                        Tiny.sameState "as without interruption" (run plan).State (goOn loaded))))

            for precision in [ Precision.Float32; Precision.Float64; Precision.BFloat16 ] do
                testCase $"two tasks in {precision} give finite numbers in the master format" (fun () ->
                    Scope.run (fun () ->
                        let outcome = run (Tiny.plan { settings with Precision = precision })

                        for tensor in TaskState.leaves outcome.State do
                            Expect.equal tensor.dtype (Precision.master precision) "format"
                            Expect.all (TestFiles.numbers tensor) Double.IsFinite "finite"))
        ]

let private variants: (string * (LoRASubSettings -> LoRASubSettings)) list =
    [
        "LoRA-Sub-DRS", id
        "sparse B, unscaled updates",
        (fun m ->
            { m with
                BInit = BInit.Sparse
                UpdateScale = UpdateScale.Unscaled
            })
        "no projection", (fun m -> { m with Projection = false })
        "no subtraction, no triplet",
        (fun m ->
            { m with
                Subtraction = false
                Triplet = false
            })
        "AMSGrad with weight decay",
        (fun m ->
            { m with
                Adam =
                    { m.Adam with
                        AmsGrad = true
                        WeightDecay = 0.01
                    }
            })
        "frozen backbone", (fun m -> { m with Training = false })
    ]

[<Tests>]
let tests =
    testList
        "Contract"
        [
            for name, change in variants do
                contract name (fun vit -> LoRASubDrs.learner vit (change Tiny.settings.Method))
        ]
