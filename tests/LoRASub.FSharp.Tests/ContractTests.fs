/// What every class-incremental method must keep to, whatever it computes.
module LoRASub.Tests.ContractTests

open System
open System.Collections.Generic
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Fluent
open Expecto
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

let private learnerOf (plan: Plan) (method: AnyMethod) : Learner =
    Learner.create plan.Backbone method (Head.hide NearestMean.head) (Embedding.output plan.Backbone)

/// Prepares every phase of the second task, in order.
let private phases (make: VisionTransformer -> AnyMethod) (plan: Plan) : Phase list =
    let vit = plan.Backbone
    let method = make vit
    let learner = learnerOf plan method
    let known = Tiny.learnFirst learner plan
    let state = known.Method
    let start = method.Start(Rng.ofSeed 3L)
    let first, task = plan.Stream.Tasks[0], plan.Stream.Tasks[1]
    let key = Tiny.taskKey plan task
    let batch = (Tiny.batches plan 1)[0]
    let options = Plan.batchOptions plan Augmentation.None
    let loaders = TaskStream.plainTrainBatches options plan.Stream task
    let rates = Tiny.rates plan
    let begun = method.BeginTask key task state
    let observed = method.Observe batch begun
    let prepared = method.Prepare observed

    let trained =
        if method.Trains task then
            let struct (trained, _) = method.Update rates batch prepared
            trained
        else
            prepared

    let merged = method.Merge trained

    let features =
        torch.ones ([| batch.Labels.shape[0]; vit.Width |], device = vit.Device)

    let consolidated =
        Array.fold
            (fun state (load: BatchLoader) ->
                let batch = load ()
                method.Consolidate batch (features.narrow (0L, 0L, batch.Labels.shape[0])) state)
            merged
            loaders

    let model = Learner.deploy learner known
    let frozen = Array.ofSeq (VisionTransformer.leaves vit)
    let images = Array.ofSeq (Batch.leaves batch)

    let phase name (leaves: Leaves<'R>) (given: torch.Tensor seq) (call: unit -> 'R) =
        {
            Name = name
            Given = Array.concat [ frozen; images; [| features |]; Array.ofSeq given ]
            Call = call >> leaves >> Array.ofSeq
        }

    let ofState = Array.ofSeq (Hidden.leaves state)

    let after phase =
        Seq.append ofState (Hidden.leaves phase)

    [
        phase "Start" Hidden.leaves [] (fun () -> method.Start(Rng.ofSeed 3L))
        phase "BeginTask" Hidden.leaves ofState (fun () -> method.BeginTask key task state)
        phase "BeginTask of the first task" Hidden.leaves (Hidden.leaves start) (fun () ->
            method.BeginTask key first start)
        phase "Observe" Hidden.leaves (after begun) (fun () -> method.Observe batch begun)
        phase "Prepare" Hidden.leaves (after observed) (fun () -> method.Prepare observed)

        if method.Trains task then
            phase "Update" (Leaves.both Hidden.leaves StepReport.leaves) (after trained) (fun () ->
                method.Update rates batch trained)

        phase "Diagnostics" Diagnostics.leaves (after trained) (fun () -> method.Diagnostics trained)
        phase "Merge" Hidden.leaves (after trained) (fun () -> method.Merge trained)
        phase "Consolidate" Hidden.leaves (after merged) (fun () -> method.Consolidate batch features merged)
        phase "Finish" Hidden.leaves (after consolidated) (fun () -> method.Finish consolidated)
        phase "Forget" Hidden.leaves ofState (fun () -> method.Forget 1 state)
        phase "Adapters" Adapters.tree.Leaves ofState (fun () -> method.Adapters state)
        phase "deploy" Model.leaves (TaskState.leaves known) (fun () -> Learner.deploy learner known)

        if method.Logits.IsSome then
            let own = Learner.create vit method (Head.hide Heads.logits) (Embedding.output vit)

            phase "deploy of own scores" Model.leaves (TaskState.leaves known) (fun () ->
                Learner.deploy own known)

            let ownModel = Learner.deploy own known

            phase "predict by own scores" Leaves.tensor (Model.leaves ownModel) (fun () ->
                Learner.predict own ownModel batch.Images)

        phase "foresee" Model.leaves (TaskState.leaves known) (fun () ->
            Learner.foresee learner task loaders known)
        phase "predict" Leaves.tensor (Seq.append (TaskState.leaves known) (Model.leaves model)) (fun () ->
            Learner.predict learner model batch.Images)
        phase "forget" TaskState.leaves (TaskState.leaves known) (fun () ->
            Learner.forget learner known.Classes[0].Id known)
        phase "restoring an observation" Hidden.leaves (after observed) (fun () ->
            restored (method.Observing task state) observed)
        phase "restoring a training" Hidden.leaves (after trained) (fun () ->
            restored (method.Training task state) trained)
        phase "restoring a state" TaskState.leaves (TaskState.leaves known) (fun () ->
            restored (Learner.tree learner known) known)
    ]

/// Calls of the second task that must fail, each with good arguments but one.
let private failures (make: VisionTransformer -> AnyMethod) (plan: Plan) : (string * (unit -> unit)) list =
    let method = make plan.Backbone
    let learner = learnerOf plan method
    let known = Tiny.learnFirst learner plan
    let task = plan.Stream.Tasks[1]
    let batch = (Tiny.batches plan 1)[0]

    let narrow =
        { batch with
            Images = batch.Images.narrow (3L, 0L, 4L)
        }

    let begun = method.BeginTask (Tiny.taskKey plan task) task known.Method
    let trained = method.Prepare(method.Observe batch begun)
    let model = Learner.deploy learner known

    let stranger: MethodState = Hidden.hide "method of another name" Tree.unit ()

    let learnFrom (load: Pass -> BatchLoader[]) () =
        let context =
            { Plan.taskContext learner plan (PhaseClock()) known task with
                Batches = load
            }

        TaskLoop.learn context known None |> ignore

    let torn: BatchLoader[] = [| fun () -> failwith "the disk is gone" |]

    [
        "BeginTask over another method's state",
        (fun () -> method.BeginTask (Tiny.taskKey plan task) task stranger |> ignore)
        "learning from failing images", learnFrom (fun _ -> torn)

        "consolidating failing images",
        learnFrom (fun pass ->
            match pass with
            | Pass.Consolidate -> torn
            | _ -> [| fun () -> Array.head (Tiny.batches plan 1) |])

        if method.Observes task then
            "Observe of small images", (fun () -> method.Observe narrow begun |> ignore)

        if method.Trains task then
            "Update on small images", (fun () -> method.Update (Tiny.rates plan) narrow trained |> ignore)

        "prediction of small images", (fun () -> Learner.predict learner model narrow.Images |> ignore)
        "forgetting an unknown class", (fun () -> Learner.forget learner (ClassId 99) known |> ignore)
    ]

/// The laws of a method that `make` puts over a frozen backbone.
let contract (name: string) (make: VisionTransformer -> AnyMethod) : Test =
    // every random number that a method may draw is drawn: augmented images, also for prototypes
    let settings =
        { Tiny.settings with
            Augmentation = Augmentation.CropFlip
            PrototypeTransform = PrototypeTransform.Train
        }

    let learnerOf (plan: Plan) = learnerOf plan (make plan.Backbone)

    let run (plan: Plan) =
        Experiment.run (learnerOf plan) plan Tiny.silent

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
                "a later task leaves the earlier classes' sums as they were"
                (inScope (fun plan ->
                    let learner = learnerOf plan
                    let first = Tiny.learnFirst learner plan
                    let second = Experiment.learnTask learner plan first plan.Stream.Tasks[1]
                    let sums (state: TaskState) = Head.reveal NearestMean.head state.Head
                    identical "old sums" (sums first).Sums ((sums second).Sums.narrow(0L, 0L, 2L))

                    Expect.equal
                        (second.Classes
                         |> Array.map (fun one -> one.Id.Value, one.Name, one.Task, one.Images))
                        [| for i in 0..3 -> i, $"colour {i}", i / 2, 4L |]
                        "classes"

                    Expect.equal (first.Finished, second.Finished) (1, 2) "finished tasks"))

            testCase
                "a forgotten class is no longer predicted, and its identity never comes back"
                (inScope (fun plan ->
                    let learner = learnerOf plan
                    let state = (run plan).State
                    let without = Learner.forget learner (ClassId 1) state
                    Expect.equal (without.Classes |> Array.map _.Id.Value) [| 0; 2; 3 |] "ids"
                    let model = Learner.deploy learner without
                    let images = (Array.head (Tiny.batches plan 1)).Images
                    let scores = Learner.predict learner model images

                    let whole = Learner.predict learner (Learner.deploy learner state) images

                    for before, after in [ 0L, 0L; 2L, 1L; 3L, 2L ] do
                        closeTo
                            1e-6
                            $"scores of row {before}"
                            (TestFiles.numbers (whole.select (1L, before)))
                            (TestFiles.numbers (scores.select (1L, after)))

                    let names = [| "a colour more" |]
                    let options = Recipe.learnOptions plan.Settings plan.Backbone 1

                    let images = Tiny.images "one more class" 5 [| 0; 0; 0 |]
                    let more = ImageTask.learn learner options names images ignore without
                    Expect.equal (Array.last more.Classes).Id.Value 4 "the next id"
                    Expect.equal (TaskState.taskSizes more) [| 1; 2; 1 |] "classes of each task"))

            testCase
                "own scores have a column per class, also after forgetting, and outlive the state"
                (inScope (fun plan ->
                    let method = make plan.Backbone

                    if method.Logits.IsSome then
                        let learner =
                            Learner.create
                                plan.Backbone
                                method
                                (Head.hide Heads.logits)
                                (Embedding.output plan.Backbone)

                        let images = (Array.head (Tiny.batches plan 1)).Images
                        let mutable state = (Experiment.run learner plan Tiny.silent).State

                        // a task's last class first, then whole tasks
                        for id in [ 1; 3; 2 ] do
                            state <- Learner.forget learner (ClassId id) state
                            let model = Learner.deploy learner state
                            let scores = Learner.predict learner model images
                            let copy = restored (Learner.tree learner state) state
                            let again = Learner.deploy learner copy
                            Scope.free TaskState.leaves copy
                            identical "scores" scores (Learner.predict learner again images)

                            Expect.equal
                                scores.shape
                                [| images.shape[0]; int64 state.Classes.Length |]
                                $"without class {id}"))

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
                    let learner = learnerOf plan
                    let model = Learner.deploy learner (Tiny.learnFirst learner plan)

                    for batch in Array.append (Tiny.batches plan 0) (Tiny.batches plan 1) do
                        let predicted = Tiny.predict learner model batch.Images
                        Expect.equal predicted.dtype torch.ScalarType.Int64 "type"
                        Expect.equal predicted.shape batch.Labels.shape "one per image"

                        Expect.all
                            (Generators.wholeNumbers predicted)
                            (fun c -> c = 0L || c = 1L)
                            "classes of the first task"))

            testCase
                "a class without images is refused by its place and task"
                (inScope (fun plan ->
                    let learner = learnerOf plan
                    let start = Learner.start learner (Rng.ofSeed 1L)
                    let task = plan.Stream.Tasks[0]

                    let onlyClass0 () =
                        let batch = Array.head (Tiny.batches plan 0)
                        let rows = batch.Labels.eq(Scalar.op_Implicit 0L).nonzero().squeeze(1L)

                        {
                            Images = batch.Images.index_select (0L, rows)
                            Labels = batch.Labels.index_select (0L, rows)
                        }

                    refused [ "position 1"; "task 1"; "at least one training image" ] (fun () ->
                        let context =
                            { Plan.taskContext learner plan (PhaseClock()) start task with
                                Batches = fun _ -> [| onlyClass0 |]
                            }

                        TaskLoop.learn context start None |> ignore)))

            testCase
                "a saved state predicts as before and learns on as before"
                (inScope (fun plan ->
                    Probe.inFolder (fun folder ->
                        let learner = learnerOf plan
                        let state = Tiny.learnFirst learner plan
                        LearnerFile.save folder learner (Tiny.record plan state) state
                        let loaded = LearnerFile.restore learner (LearnerFile.load folder)
                        Tiny.sameState "loaded" state loaded

                        for batch in Tiny.batches plan 0 do
                            identical
                                "scores"
                                (Learner.predict learner (Learner.deploy learner state) batch.Images)
                                (Learner.predict learner (Learner.deploy learner loaded) batch.Images)

                        let learnOn state =
                            Experiment.learnTask learner plan state plan.Stream.Tasks[1]

                        Tiny.sameState "after the second task" (learnOn state) (learnOn loaded)
                        Tiny.sameState "as without interruption" (run plan).State (learnOn loaded))))

            for precision in [ Precision.Float32; Precision.Float64; Precision.BFloat16 ] do
                testCase $"two tasks in {precision} give finite numbers in the master format" (fun () ->
                    Scope.run (fun () ->
                        let outcome = run (Tiny.plan { settings with Precision = precision })

                        for tensor in TaskState.leaves outcome.State do
                            if torch.is_floating_point tensor then
                                Expect.equal tensor.dtype (Precision.master precision) "format"

                            Expect.all (TestFiles.numbers tensor) Double.IsFinite "finite"))
        ]

let private variants: (string * (LoRASubSettings -> LoRASubSettings)) list =
    [
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
    ]

/// Every setting of a method, with a value other than the tiny run's.
let private changed =
    [
        "rank", "3"
        "lr", "0.03"
        "head-lr", "0.3"
        "weight-decay", "0.1"
        "adam-beta1", "0.5"
        "adam-beta2", "0.5"
        "adam-epsilon", "0.1"
        "amsgrad", "true"
        "b-init", "sparse"
        "margin", "0"
        "triplet-weight", "3"
        "norm-order", "3"
        "energy", "0.5"
        "update-scale", "none"
        "projection", "false"
        "subtraction", "false"
        "triplet", "false"
    ]

/// What two tasks leave under some settings.
let private learned (row: MethodRow) (settings: RunSettings) =
    Scope.run (fun () ->
        let plan = Tiny.plan settings

        let learner =
            learnerOf plan (row.Create plan.Backbone settings.Tasks settings.Method)

        let after =
            plan.Stream.Tasks
            |> Array.fold
                (Experiment.learnTask learner plan)
                (Learner.start learner (Rng.ofSeed plan.Settings.Seed))

        bits (Hidden.leaves after.Method))

[<Tests>]
let settingsUsed =
    testList
        "Contract of settings"
        [
            testCase "the table holds every setting of a method" (fun () ->
                Expect.equal
                    (Methods.all |> List.collect _.Uses |> List.distinct |> List.sort)
                    (changed |> List.map fst |> List.sort)
                    "names")

            for row in Methods.all do
                testCase $"{row.Info.Name} reads the settings that its row names, and no other" (fun () ->
                    let before = learned row Tiny.settings

                    let read =
                        changed
                        |> List.filter (fun (name, value) ->
                            learned row (Settings.set name value Tiny.settings) <> before)
                        |> List.map fst

                    Expect.equal (List.sort read) (List.sort row.Uses) "settings with an effect")
        ]

[<Tests>]
let tests =
    testList
        "Contract"
        [
            for row in Methods.all do
                contract row.Info.Name (fun vit -> row.Create vit Tiny.settings.Tasks Tiny.settings.Method)

            contract "linear-probe" (ToyMethod.method' >> Method.hide)
            contract "linear-probe of images" (ToyMethod.ofImages >> Method.hide)

            for name, change in variants do
                contract name (fun vit -> Method.hide (LoRASubDrs.method' vit (change Tiny.settings.Method)))
        ]
