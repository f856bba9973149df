module LoRASub.Tests.CheckpointTests

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check

/// Ends a run.
exception private PutDown

let private settings =
    { Tiny.settings with
        Tasks = 3
        Batch = 4
        Augmentation = Augmentation.CropFlip
        Seeding = Seeding.Once
    }

let private planOf (settings: RunSettings) =
    Tiny.planWith settings (Tiny.dataset 6 3 2) (Tiny.vit settings.Precision 8 2 7)

/// A reference for which tasks are scored before they are learned.
let private untrained: RunScores =
    {
        Trained = false
        Head = "nearest-mean@class-token"
        Matrix = [| [| { Correct = 1; Total = 4 } |] |]
        Classes = [||]
    }

/// Runs to the `stop`-th moment between two steps and puts the run down in `folder`; false where there is none.
let private putDown (folder: string) (plan: Plan) (stop: int) =
    let learner = Tiny.learner plan
    let mutable moment = 0

    let pause _ state =
        if moment = stop then
            Checkpoint.save folder learner plan (CheckpointInputs.ofPlan plan) stop (state ())
            raise PutDown

        moment <- moment + 1

    try
        Experiment.start learner plan
        |> Experiment.resume learner plan Tiny.silent pause
        |> ignore

        false
    with PutDown ->
        true

let private pickUp (folder: string) (plan: Plan) : Outcome =
    let learner = Tiny.learner plan

    let struct (state, _) =
        Checkpoint.load folder learner plan (CheckpointInputs.ofPlan plan)

    Experiment.resume learner plan Tiny.silent (fun _ _ -> ()) state

let private sameOutcome (what: string) (expected: Outcome) (actual: Outcome) =
    Tiny.sameState what expected.State actual.State
    Expect.equal actual.Matrices expected.Matrices $"{what}: matrices"
    Expect.equal actual.Retained expected.Retained $"{what}: retained"
    Expect.equal (actual.Tasks |> Array.map _.Before) (expected.Tasks |> Array.map _.Before) $"{what}: before"

    List.iter2
        (fun (name, e) (_, a) -> repeated $"{what}: drift, {name}" e a)
        (Tree.write Drift.tree expected.Drift.Value)
        (Tree.write Drift.tree actual.Drift.Value)

    Expect.equal
        (actual.Predictions |> Array.map (fun p -> p.Predicted, p.Others))
        (expected.Predictions |> Array.map (fun p -> p.Predicted, p.Others))
        $"{what}: predictions"

/// Puts a run down at `stop` and gives the folder to `test`.
let private withCheckpoint (stop: int) (test: string -> Plan -> unit) () =
    Probe.inFolder (fun folder ->
        Scope.run (fun () ->
            let plan = planOf settings
            Expect.isTrue (putDown folder plan stop) "put down"
            test folder plan))

let private rewrite (folder: string) (change: JsonObject -> unit) =
    let json = (JsonNode.Parse(File.ReadAllText(Checkpoint.path folder))).AsObject()
    change json
    File.WriteAllText(Checkpoint.path folder, json.ToJsonString())

let private tensorFile (folder: string) =
    Directory.GetFiles(folder, "checkpoint-*.safetensors") |> Array.exactlyOne

[<Tests>]
let tests =
    testList
        "Checkpoint"
        [
            for name, stride, settings in
                [
                    "as LibContinual learns", 1, settings
                    "as the authors' code learns",
                    4,
                    { settings with
                        Variant = Variant.Official
                        PrototypeTransform = PrototypeTransform.Test
                    }
                    |> Tiny.ofMethod (fun m -> { m with BInit = BInit.Sparse })
                    "with AMSGrad and free updates",
                    4,
                    Tiny.ofMethod
                        (fun m ->
                            { m with
                                Projection = false
                                Adam = { m.Adam with AmsGrad = true }
                            })
                        settings
                    "with several heads that follow the network",
                    4,
                    { settings with
                        OtherHeads = [ "cosine-lda@rich"; "ridge@frozen+class-token+flip" ]
                    }
                    "without training",
                    3,
                    { settings with
                        MethodName = Frozen.info.Name
                    }
                ] do
                testCase $"a run put down at any moment ends as if it had not been: {name}" (fun () ->
                    Scope.run (fun () ->
                        let plan =
                            { planOf settings with
                                References = [| untrained |]
                            }

                        let whole = Tiny.run plan

                        let rec from stop =
                            let wasPutDown =
                                Probe.inFolder (fun folder ->
                                    let wasPutDown = putDown folder plan stop

                                    if wasPutDown then
                                        Scope.run (fun () ->
                                            sameOutcome $"moment {stop}" whole (pickUp folder plan))

                                    wasPutDown)

                            if wasPutDown then from (stop + stride) else stop

                        Expect.isGreaterThan (from 0) (3 * plan.Stream.Tasks.Length) "moments"))

            testCase "a checkpoint replaces the one before it, which goes last" (fun () ->
                Probe.inFolder (fun folder ->
                    Scope.run (fun () ->
                        let plan = planOf settings
                        Expect.isFalse (Checkpoint.exists folder) "before"
                        Expect.isTrue (putDown folder plan 3) "first"
                        let first = tensorFile folder
                        Expect.isTrue (putDown folder plan 7) "second"
                        let second = tensorFile folder

                        Expect.notEqual
                            second
                            first
                            "another file, so that the first stands until the second is whole"

                        let struct (_, lines) =
                            Checkpoint.load folder (Tiny.learner plan) plan (CheckpointInputs.ofPlan plan)

                        Expect.equal lines 7 "lines of metrics"
                        Checkpoint.delete folder
                        Expect.equal (Directory.GetFileSystemEntries folder) [||] "deleted")))

            testCase
                "saving and loading leave no tensor behind"
                (withCheckpoint 5 (fun folder plan ->
                    Probe.leavesNothing (fun () -> Scope.run (fun () -> pickUp folder plan |> ignore))))

            testCase
                "other settings are refused by name"
                (withCheckpoint 5 (fun folder plan ->
                    let other =
                        { plan with
                            Settings =
                                { plan.Settings with Epochs = 7 }
                                |> Tiny.ofMethod (fun m -> { m with LearningRate = 0.5 })
                        }

                    refused [ "checkpoint.json"; "lr: 0.005, 0.5"; "epochs: 2, 7" ] (fun () ->
                        pickUp folder other |> ignore)

                    let moved =
                        { plan with
                            Settings =
                                { plan.Settings with
                                    DataPath = Some "elsewhere"
                                    CheckpointMinutes = 0.5
                                }
                        }

                    pickUp folder moved |> ignore))

            testCase
                "other data, another order and another backbone are refused by name"
                (withCheckpoint 5 (fun folder plan ->
                    let stream = plan.Stream

                    refused [ "checkpoint.json"; "backbone" ] (fun () ->
                        pickUp folder { plan with BackboneSha256 = "0a" } |> ignore)

                    refused [ "checkpoint.json"; "training labels" ] (fun () ->
                        let dataset =
                            { stream.Dataset with
                                Train = Tiny.images "others" 1 (Tiny.labels 6 4)
                            }

                        pickUp
                            folder
                            { plan with
                                Stream = { stream with Dataset = dataset }
                            }
                        |> ignore)

                    refused [ "checkpoint.json"; "class order" ] (fun () ->
                        pickUp
                            folder
                            { plan with
                                Stream =
                                    { stream with
                                        Order = Array.rev stream.Order
                                    }
                            }
                        |> ignore)))

            testCase
                "another version is refused"
                (withCheckpoint 5 (fun folder plan ->
                    rewrite folder (fun json -> json["version"] <- JsonValue.Create 99)
                    refused [ "checkpoint.json"; "version 7"; "99" ] (fun () -> pickUp folder plan |> ignore)))

            testCase
                "one changed character is refused"
                (withCheckpoint 5 (fun folder plan ->
                    rewrite folder (fun json ->
                        let run = json["run"].AsObject()
                        run["metricLines"] <- JsonValue.Create 6)

                    refused [ "checkpoint.json"; "as it was written" ] (fun () ->
                        pickUp folder plan |> ignore)))

            testCase
                "damaged, exchanged and missing tensors are refused"
                (withCheckpoint 5 (fun folder plan ->
                    let file = tensorFile folder
                    let bytes = File.ReadAllBytes file
                    let damaged = Array.copy bytes
                    damaged[bytes.Length - 3] <- damaged[bytes.Length - 3] ^^^ 1uy
                    File.WriteAllBytes(file, damaged)

                    refused [ Path.GetFileName file; "as it was written" ] (fun () ->
                        pickUp folder plan |> ignore)

                    File.WriteAllBytes(file, bytes[.. bytes.Length / 2])
                    refused [ Path.GetFileName file ] (fun () -> pickUp folder plan |> ignore)
                    File.Delete file

                    refused [ Path.GetFileName file; "no such file" ] (fun () ->
                        pickUp folder plan |> ignore)))

            testCase
                "what is no JSON, or none of ours, is refused"
                (withCheckpoint 5 (fun folder plan ->
                    for text in [ ""; "{"; "[]"; "{}"; "{\"version\":1}"; "\000\001" ] do
                        File.WriteAllText(Checkpoint.path folder, text)
                        refused [ "checkpoint.json" ] (fun () -> pickUp folder plan |> ignore)))

            testCase "a run without a task left is refused" (fun () ->
                Scope.run (fun () ->
                    let plan = planOf settings
                    let learner = Tiny.learner plan
                    let whole = Tiny.run plan

                    let finished =
                        { Experiment.start learner plan with
                            Tasks = whole.Tasks
                        }

                    refused [ "run"; "task left"; "3" ] (fun () ->
                        Experiment.resume learner plan Tiny.silent (fun _ _ -> ()) finished |> ignore)))

            testCase "a checkpoint is saved where no image can be read any more" (fun () ->
                Probe.inFolder (fun folder ->
                    Scope.run (fun () ->
                        let plan = planOf settings
                        let inputs = CheckpointInputs.ofPlan plan

                        let gone: ImageSet -> ImageSet =
                            fun set ->
                                { set with
                                    Read = fun _ -> failwith "unmounted"
                                }

                        let dataset = plan.Stream.Dataset

                        let unmounted =
                            { plan with
                                Stream =
                                    { plan.Stream with
                                        Dataset =
                                            { dataset with
                                                Train = gone dataset.Train
                                                Test = gone dataset.Test
                                            }
                                    }
                            }

                        let learner = Tiny.learner plan
                        let start = Experiment.start learner plan
                        Checkpoint.save folder learner unmounted inputs 3 start
                        let struct (_, lines) = Checkpoint.load folder learner plan inputs
                        Expect.equal lines 3 "loaded")))

            testCase
                "a checkpoint that cannot be written leaves the one before and nothing else"
                (withCheckpoint 5 (fun folder plan ->
                    let before = Directory.GetFileSystemEntries folder |> Array.sort
                    let json = File.ReadAllBytes(Checkpoint.path folder)
                    // a folder in the way of the second of its two files
                    File.Delete(Checkpoint.path folder)
                    Directory.CreateDirectory(Checkpoint.path folder) |> ignore

                    refused [ "checkpoint.json"; "must be a file" ] (fun () ->
                        putDown folder plan 7 |> ignore)

                    Directory.Delete(Checkpoint.path folder)
                    File.WriteAllBytes(Checkpoint.path folder, json)
                    Expect.equal (Directory.GetFileSystemEntries folder |> Array.sort) before "files"
                    pickUp folder plan |> ignore))
        ]
