module LoRASub.Tests.ExperimentTests

open System
open System.Collections.Generic
open System.Runtime.InteropServices
open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check

let private inScope (test: unit -> unit) () = Scope.run test

/// A run and all that it told.
let private told (plan: Plan) =
    let events = ResizeArray<RunEvent>()
    let outcome = Experiment.run (Tiny.learner plan) plan events.Add
    struct (outcome, List.ofSeq events)

let private threeTasks =
    { Tiny.settings with
        Tasks = 3
        Epochs = 2
        Batch = 4
    }

let private planOf settings =
    Tiny.planWith settings (Tiny.dataset 6 3 2) (Tiny.vit settings.Precision 8 2 7)

/// "task 1 train 3/4 epoch 1/2" and so on.
let private line (progress: RunEvent) =
    match progress with
    | TaskBegins(task, _) -> $"begin {task.Index}"
    | Learning(Retains(task, all)) -> $"retain {task.Index}: {all.Length}"
    | TaskEnds(task, row, _, _) -> $"end {task.Index}: {row.Length}"
    | Learning(EpochEnds epoch) -> $"epoch {epoch.Task}: {epoch.Epoch}"
    | Notice text -> text
    | Learning(Steps s) ->
        $"{Phase.name s.Phase} {s.Task.Index}: {s.Done}/{s.Steps} epoch {s.Epoch}/{s.Epochs} loss {s.Loss.IsSome}"

let private task i : LearningTask =
    {
        Index = i
        FirstClass = 2 * i
        Classes = [| 2 * i; 2 * i + 1 |]
    }

[<Tests>]
let tests =
    testList
        "Experiment"
        [
            testCase
                "the matrix is lower-triangular and counts each task's test images"
                (inScope (fun () ->
                    let settings =
                        { threeTasks with
                            InitialClasses = Some 4
                            Tasks = 2
                        }

                    let plan = planOf settings
                    let struct (outcome, _) = told plan
                    Metrics.check outcome.Matrix
                    let totals = outcome.Matrix |> Array.map (Array.map _.Total)
                    Expect.equal totals [| [| 8 |]; [| 8; 4 |] |] "2 test images of each class"

                    Expect.equal
                        (plan.Stream.Tasks |> Array.collect _.Classes |> Array.sort)
                        [| 0..5 |]
                        "tasks partition the classes"))

            testCase
                "the scores are those of predicting each test image"
                (inScope (fun () ->
                    let plan = planOf threeTasks
                    let learner = Tiny.learner plan
                    let struct (outcome, _) = told plan
                    let model = Learner.deploy learner outcome.State
                    let options = Plan.batchOptions plan Augmentation.None

                    let expected =
                        plan.Stream.Tasks
                        |> Array.map (fun task ->
                            TaskStream.testBatches { options with BatchSize = 1 } plan.Stream task
                            |> Array.sumBy (fun load ->
                                let batch = load ()
                                let predicted = (Tiny.predict learner model batch.Images).item<int64>()
                                if predicted = batch.Labels.item<int64>() then 1 else 0))

                    Expect.equal (Array.last outcome.Matrix |> Array.map _.Correct) expected "right answers"))

            testCase
                "coloured squares are learned"
                (inScope (fun () ->
                    let settings = { Tiny.settings with Epochs = 6 }

                    let plan =
                        Tiny.planWith settings (Tiny.dataset 4 8 8) (Tiny.vit Precision.Float32 16 2 7)

                    let measures = Metrics.measure (Tiny.run plan).Matrix
                    Expect.isGreaterThan measures["last"] 0.7 "last accuracy, where guessing gives 0.25"))

            testCase
                "progress comes in order"
                (inScope (fun () ->
                    let settings =
                        { threeTasks with
                            Tasks = 2
                            StopAfter = Some 2
                        }

                    let struct (_, events) = told (planOf settings)

                    // 9 images of a task in 3 batches; 6 test images in 2
                    let steps phase task total epoch epochs =
                        [
                            for i in 0 .. total - 1 ->
                                $"{phase} {task}: {i}/{total} epoch {epoch}/{epochs} loss False"
                        ]

                    let train task =
                        [
                            for step in 1..6 do
                                let epoch = (step - 1) / 3
                                $"train {task}: {step}/6 epoch {epoch}/2 loss {step % 3 = 0}"

                                if step % 3 = 0 then
                                    $"epoch {task}: {epoch}"
                        ]

                    // whether a loss was read in between depends on the clock, so only an epoch's last step is compared
                    let stable (text: string) =
                        if text.StartsWith "train" && not (text.Contains " 3/6" || text.Contains " 6/6") then
                            text.Substring(0, text.IndexOf " loss")
                        else
                            text

                    let expected =
                        [
                            "begin 0"
                            yield! train 0
                            yield! steps "prototypes" 0 3 0 2
                            yield! steps "predict" 0 2 0 2
                            "end 0: 1"
                            "begin 1"
                            yield! steps "observe" 1 3 0 2
                            "retain 1: 2"
                            yield! train 1
                            yield! steps "prototypes" 1 3 0 2
                            yield! steps "predict" 1 4 0 2
                            "end 1: 2"
                        ]

                    Expect.equal (events |> List.map (line >> stable)) (List.map stable expected) "events"))

            testCase
                "losses and accuracies told are those of the epoch"
                (inScope (fun () ->
                    let struct (_, events) = told (planOf threeTasks)

                    for event in events do
                        match event with
                        | Learning(Steps {
                                             Loss = Some loss
                                             Accuracy = Some accuracy
                                         }) ->
                            Expect.isGreaterThan loss 0.0 "loss"
                            Check.between "accuracy" 0.0 1.0 accuracy
                        | Learning(Steps s) -> Expect.equal s.Accuracy.IsSome s.Loss.IsSome "both or none"
                        | _ -> ()))

            testCase
                "a run stops early as a shorter sequence would end"
                (inScope (fun () ->
                    let struct (whole, _) = told (planOf threeTasks)
                    let struct (cut, _) = told (planOf { threeTasks with StopAfter = Some 2 })
                    Expect.equal cut.Matrix whole.Matrix[..1] "scores"
                    Expect.equal cut.State.Finished 2 "finished tasks"
                    Expect.equal (TaskState.classes cut.State) 4 "classes"
                    let struct (long, _) = told (planOf { threeTasks with StopAfter = Some 99 })
                    Expect.equal long.Matrix whole.Matrix "a stop past the end"))

            testCase
                "interim images are the first images of each class after each task but the last"
                (inScope (fun () ->
                    let struct (whole, _) = told (planOf threeTasks)

                    let few =
                        { threeTasks with
                            InterimImages = Some 1
                        }

                    let struct (cut, events) = told (planOf few)
                    Tiny.sameState "state" whole.State cut.State

                    Expect.equal
                        (Array.last cut.Matrix)
                        (Array.last whole.Matrix)
                        "scores after the last task"

                    Expect.isNone cut.Drift "drift"

                    let notices =
                        events
                        |> List.choose (fun event ->
                            match event with
                            | Notice text -> Some text
                            | _ -> None)

                    Expect.exists
                        notices
                        _.Contains("interim-images")
                        "a notice of why drift is not measured"

                    for row in cut.Matrix[..1] do
                        for score in row do
                            Expect.equal score.Total 2 "images of two classes"

                    let struct (stopped, _) = told (planOf { few with StopAfter = Some 2 })

                    Expect.equal stopped.Matrix[1] whole.Matrix[1] "scores where the run stops"
                    Expect.equal stopped.Matrix[0] cut.Matrix[0] "scores before"))

            testCase
                "the same seed gives the same state and scores, bit for bit"
                (inScope (fun () ->
                    for settings in
                        [
                            threeTasks
                            { threeTasks with
                                Seeding = Seeding.Once
                                Augmentation = Augmentation.CropFlip
                            }
                        ] do
                        let struct (first, _) = told (planOf settings)
                        let struct (second, _) = told (planOf settings)
                        Tiny.sameState "state" first.State second.State
                        Expect.equal second.Matrix first.Matrix "matrix"
                        Expect.equal second.Retained first.Retained "retained"
                        let struct (other, _) = told (planOf { settings with Seed = 4L })

                        Expect.notEqual
                            (Tiny.stateNumbers other.State)
                            (Tiny.stateNumbers first.State)
                            "another seed"))

            testCase
                "random numbers start anew at every epoch, the same in every task, or once per run"
                (fun () ->
                    let keys seeding =
                        [
                            for t in 0..2 do
                                for epoch in -1 .. 3 ->
                                    Recipe.epochKey
                                        { threeTasks with
                                            Seeding = seeding
                                            Seed = 10L
                                        }
                                        (Rng.ofSeed 10L)
                                        (task t)
                                        epoch
                        ]

                    let everyEpoch, once = keys Seeding.EveryEpoch, keys Seeding.Once
                    Expect.equal everyEpoch[..4] everyEpoch[5..9] "every epoch: tasks share keys"
                    Expect.equal (List.distinct everyEpoch).Length 5 "every epoch: one key per epoch"
                    Expect.equal (List.distinct once).Length 15 "once: one key per task and epoch"

                    let at seed epoch =
                        Recipe.epochKey
                            { threeTasks with
                                Seeding = Seeding.EveryEpoch
                                Seed = seed
                            }
                            (Rng.ofSeed seed)
                            (task 0)
                            epoch

                    Expect.equal (at 10L 3) (at 12L 1) "seed + epoch"
                    Expect.notEqual (keys Seeding.Once) (keys Seeding.EveryEpoch) "the two differ")

            testCase
                "prototypes see training images as trained on, or as tested on"
                (inScope (fun () ->
                    let state transform augmentation =
                        // without training only the prototypes' images can make a difference
                        let settings =
                            { threeTasks with
                                PrototypeTransform = transform
                                Augmentation = augmentation
                                MethodName = Frozen.info.Name
                            }

                        let struct (outcome, _) = told (planOf settings)
                        Tiny.stateNumbers outcome.State

                    let plain = state PrototypeTransform.Test Augmentation.None
                    Expect.equal (state PrototypeTransform.Test Augmentation.CropFlip) plain "test transform"

                    Expect.notEqual
                        (state PrototypeTransform.Train Augmentation.CropFlip)
                        plain
                        "training transform"

                    closeTo 1e-5 "no augmentation" plain (state PrototypeTransform.Train Augmentation.None)))

            testCase
                "epochs are begun in order, and observing, training and prototypes see each training image once"
                (inScope (fun () ->
                    let settings =
                        { threeTasks with
                            Tasks = 2
                            InitialEpochs = Some 3
                        }

                    let plan = planOf settings
                    let learner = Tiny.learner plan
                    let calls = ResizeArray<string>()

                    let method = learner.Method

                    let counted =
                        { learner with
                            Method =
                                { method with
                                    Observe =
                                        fun batch o ->
                                            calls.Add $"observe {batch.Labels.shape[0]}"
                                            method.Observe batch o
                                    Update =
                                        fun rates batch t ->
                                            calls.Add $"update {batch.Labels.shape[0]} at {rates.Network}"
                                            method.Update rates batch t
                                    Consolidate =
                                        fun batch features state ->
                                            calls.Add $"consolidate {batch.Labels.shape[0]}"
                                            method.Consolidate batch features state
                                }
                        }

                    Experiment.run counted plan Tiny.silent |> ignore

                    let batches what =
                        [ $"{what 4}"; $"{what 4}"; $"{what 1}" ]

                    let epoch number =
                        let rate = (Recipe.rates settings number).Network
                        batches (fun n -> $"update {n} at {rate}")

                    Expect.equal
                        (List.ofSeq calls)
                        [
                            yield! List.collect epoch [ 0..2 ]
                            yield! batches (fun n -> $"consolidate {n}")
                            yield! batches (fun n -> $"observe {n}")
                            yield! List.collect epoch [ 0..1 ]
                            yield! batches (fun n -> $"consolidate {n}")
                        ]
                        "calls"))

            testCase
                "memory that runs out is reported with task, phase, batch and what needs less"
                (inScope (fun () ->
                    let plan = planOf threeTasks
                    let learner = Tiny.learner plan
                    let observed, updated = ref 0, ref 0

                    let message =
                        "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 1 has a total capacity of 139.80 GiB of which 12.31 MiB is free."

                    let failing (calls: int ref) at work =
                        calls.Value <- calls.Value + 1

                        if calls.Value = at then
                            raise (ExternalException message)

                        work ()

                    let failsWith where settings learner =
                        let call () =
                            Experiment.run learner { plan with Settings = settings } Tiny.silent |> ignore

                        Expect.throwsC call (fun e ->
                            Expect.isTrue (e :? MemoryException) $"{e.GetType().Name}"

                            Expect.stringStarts
                                e.Message
                                $"out of memory on GPU 1 in task 2 of 3, {where}: 1.5 GiB requested, 12.3 MiB free; "
                                "message"

                            let named = [ "--batch"; "--checkpoint-activations"; "--precision" ]
                            let allowed = not settings.CheckpointActivations
                            let expected = if allowed then named else [ "--batch"; "--precision" ]
                            Expect.equal (named |> List.filter e.Message.Contains) expected "options")

                    // two batches in each of two epochs
                    let method = learner.Method

                    failsWith
                        "phase train, batch 2 of 4"
                        threeTasks
                        { learner with
                            Method =
                                { method with
                                    Update =
                                        fun rates batch t ->
                                            failing updated 6 (fun () -> method.Update rates batch t)
                                }
                        }

                    failsWith
                        "phase observe, batch 1 of 2"
                        { threeTasks with
                            CheckpointActivations = true
                        }
                        { learner with
                            Method =
                                { method with
                                    Observe =
                                        fun batch o -> failing observed 1 (fun () -> method.Observe batch o)
                                }
                        }))

            testCase
                "tasks leave nothing behind but their state"
                (inScope (fun () ->
                    let struct (struct (outcome, events), left) =
                        // the measurement of drift keeps more of each task
                        Probe.counting (fun () -> told (planOf { threeTasks with Drift = false }))

                    let backbone = Tiny.vit Precision.Float32 8 2 7

                    let kept =
                        Seq.length (TaskState.leaves outcome.State)
                        + Seq.length (VisionTransformer.leaves backbone)

                    Expect.equal left (int64 kept) "tensors after the run"

                    let at pick =
                        events |> List.choose pick |> List.map (fun (use': MemoryUse) -> use'.Tensors)

                    let starts =
                        at (function
                            | TaskBegins(_, m) -> Some m
                            | _ -> None)

                    let ends =
                        at (function
                            | TaskEnds(_, _, m, _) -> Some m
                            | _ -> None)

                    Expect.equal
                        (List.distinct (starts @ ends)).Length
                        1
                        $"tensors at each task: {starts}, {ends}"

                    Expect.equal outcome.Tasks.Length 3 "memory of each task"

                    for task in outcome.Tasks do
                        Expect.isGreaterThan task.MemoryBefore.ResidentBytes 1000000L "resident bytes"
                        Expect.isGreaterThan task.MemoryAfter.Tensors 0L "tensors"))

            testCase
                "whoever listens may stop the run at any moment without a leak"
                (inScope (fun () ->
                    let plan = planOf { threeTasks with Tasks = 2 }
                    let struct (_, events) = told plan

                    for stop in 0..3 .. events.Length - 1 do
                        let mutable heard = 0

                        let listen _ =
                            if heard = stop then
                                raise (OperationCanceledException())

                            heard <- heard + 1

                        Probe.leavesNothing (fun () ->
                            Expect.throwsT<OperationCanceledException>
                                (fun () -> Experiment.run (Tiny.learner plan) plan listen |> ignore)
                                $"event {stop}")))

            testCase
                "every phase is timed"
                (inScope (fun () ->
                    let struct (outcome, _) = told (planOf threeTasks)
                    Expect.equal (outcome.PhaseSeconds.Keys |> Set.ofSeq) (Set.ofList Phase.all) "phases"

                    for KeyValue(phase, seconds) in outcome.PhaseSeconds do
                        Expect.isGreaterThan seconds 0.0 (Phase.name phase)

                    Expect.equal
                        (Phase.all |> List.map Phase.name)
                        [ "observe"; "project"; "train"; "prototypes"; "predict" ]
                        "names"))

            testCase "a clock adds up, and tells 0 for what did not run" (fun () ->
                let clock = PhaseClock()
                Expect.equal (clock.Time Phase.Train (fun () -> 41 + 1)) 42 "result"
                let once = clock.Seconds[Phase.Train]
                clock.Time Phase.Train (fun () -> Threading.Thread.Sleep 5)
                Expect.isGreaterThan clock.Seconds[Phase.Train] (once + 0.004) "the sum"
                Expect.equal clock.Seconds[Phase.Observe] 0.0 "not run")

            testCase
                "a rate held past the schedule's end is told before the first task"
                (inScope (fun () ->
                    let settings =
                        { threeTasks with
                            Tasks = 2
                            Epochs = 2
                            InitialEpochs = Some 4
                            ScheduleEpochs = Some 1
                        }

                    let struct (_, events) = told (planOf settings)

                    match events with
                    | Notice text :: TaskBegins _ :: _ ->
                        Expect.stringContains
                            text
                            "task 1: the learning rate stays constant from epoch 3"
                            "notice"
                    | other -> failtest $"{List.truncate 3 other}"))

            testList
                "plan"
                [
                    testCase "a plan is loaded from what settings name" (fun () ->
                        Probe.inFolder (fun folder ->
                            let settings = Tiny.onFiles folder

                            Probe.leavesNothing (fun () ->
                                let plan = Plan.load settings
                                use _ = Scope.own Plan.leaves plan
                                Expect.equal plan.Backbone.Heads 2 "the file's heads"

                                Expect.equal
                                    plan.Stream.Order
                                    (ClassOrder.numpyPermutation 1993u 10)
                                    "class order"

                                Expect.equal plan.Stream.Tasks.Length 2 "tasks"
                                let options = Plan.batchOptions plan Augmentation.Flip
                                Expect.equal (options.Format.Size, options.Format.Channels) (8, 3) "format"
                                Expect.equal (options.Format.Low, options.Format.High) (0.0, 1.0) "range"
                                Expect.equal options.BatchSize 15 "batch")))

                    for name, words, change in
                        [
                            "no data", [ "data-path"; "set data-path" ], (fun s -> { s with DataPath = None })
                            "no backbone",
                            [ "backbone"; "set backbone" ],
                            (fun s -> { s with Backbone = None })
                            "an unknown data set",
                            [ "data set"; "did you mean" ],
                            (fun (s: RunSettings) -> { s with Data = "fashion" })
                            "tasks that do not divide",
                            [ "tasks"; "10 classes" ],
                            (fun s -> { s with Tasks = 6 })
                            "a device of another kind",
                            [ "device"; "'tpu'" ],
                            (fun s -> { s with Device = "tpu" })
                            "a rank above the width",
                            [ "rank"; "[1, 8]" ],
                            Tiny.ofMethod (fun m -> { m with Rank = 9 })
                            "no such order file",
                            [ "nowhere.json"; "no such file" ],
                            (fun s -> { s with ClassOrder = "nowhere.json" })
                            "a setting out of range", [ "batch"; "0" ], (fun s -> { s with Batch = 0 })
                        ] do
                        testCase $"{name} is refused and nothing left" (fun () ->
                            Probe.inFolder (fun folder ->
                                let settings = change (Tiny.onFiles folder)
                                Probe.refused words (fun () -> Plan.load settings |> ignore)))
                ]
        ]
