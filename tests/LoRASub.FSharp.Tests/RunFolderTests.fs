module LoRASub.Tests.RunFolderTests

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check

let private percent (fraction: float) = Math.Round(100.0 * fraction, 10)

let private run (settings: RunSettings) (use': Plan -> Outcome -> unit) =
    Scope.run (fun () ->
        let plan = Plan.load settings
        use' plan (Tiny.run plan))

/// A finished run in `folder`/out, learned from files in `folder`.
let private withRun
    (change: RunSettings -> RunSettings)
    (test: string -> string -> RunSettings -> Outcome -> unit)
    ()
    =
    Probe.inFolder (fun folder ->
        let settings = change (Tiny.onFiles folder)
        let out = Path.Combine(folder, "out", "deep")

        run settings (fun plan outcome ->
            SavedRun.save out plan DateTime.UtcNow outcome
            test folder out settings outcome))

let private summary (out: string) =
    (JsonNode.Parse(File.ReadAllText(RunFiles.summary out))).AsObject()

let private number (json: JsonObject) (name: string) = json[name].GetValue<float>()

let private evaluate out settings = Evaluation.run out settings ignore

let private sameScores (outcome: Outcome) (rechecks: Recheck[]) =
    Expect.equal (rechecks |> Array.map _.Now) (Array.last outcome.Matrix) "scores"

    for r in rechecks do
        Expect.equal r.Saved r.Now "exactly the saved row"

[<Tests>]
let tests =
    testList
        "RunFolder"
        [
            testCase
                "the summary holds the run's measures"
                (withRun id (fun _ out settings outcome ->
                    let json = summary out
                    let measures = Metrics.measure outcome.Matrix
                    let text (name: string) = json[name].GetValue<string>()
                    Expect.equal (text "method") "lora-sub-drs" "method"
                    Expect.equal (text "variant") "libcontinual" "variant"
                    Expect.equal (text "data") "fashion-mnist" "data"
                    Expect.equal (number json "tasks") 2.0 "tasks"
                    Expect.equal (number json "learnedTasks") 2.0 "learned tasks"
                    Expect.equal (number json "seed") (float settings.Seed) "seed"

                    Expect.equal measures.Count 6 "all that need no other run"

                    for KeyValue(name, value) in measures do
                        Expect.equal (number json name) (percent value) name

                    let rows (name: string) (read: JsonNode -> 'T) =
                        [|
                            for row in json[name].AsArray() -> [| for entry in row.AsArray() -> read entry |]
                        |]

                    Expect.equal
                        (rows "accuracyMatrix" _.GetValue<float>())
                        (outcome.Matrix |> Array.map (Array.map (Metrics.accuracy >> percent)))
                        "rows in percent"

                    Expect.equal
                        (rows "correctAndTotal" (fun pair ->
                            {
                                Correct = (pair.AsArray()[0]).GetValue<int>()
                                Total = (pair.AsArray()[1]).GetValue<int>()
                            }))
                        outcome.Matrix
                        "counts"

                    Expect.equal
                        (rows "retainedRank" _.GetValue<int>())
                        (outcome.Retained |> Array.map (Array.map _.Rank))
                        "retained ranks"

                    for clock in [ "phaseSeconds"; "peakMemoryBytes"; "memory" ] do
                        Expect.isFalse (json.ContainsKey clock) $"{clock} stands apart"))

            testCase
                "time, memory and the machine stand in a file of their own"
                (withRun id (fun _ out _ _ ->
                    let json = (JsonNode.Parse(File.ReadAllText(RunFiles.resources out))).AsObject()

                    let seconds = json["phaseSeconds"].AsObject()
                    Expect.equal [ for p in seconds -> p.Key ] (Phase.all |> List.map Phase.name) "phases"
                    Expect.isGreaterThan (number seconds "train") 0.0 "seconds of training"

                    let byTask =
                        [
                            for task in json["taskSeconds"].AsArray() -> number (task.AsObject()) "train"
                        ]

                    Expect.floatClose
                        Accuracy.high
                        (List.sum byTask)
                        (number seconds "train")
                        "sum over tasks"

                    Expect.isGreaterThan (number json "peakMemoryBytes") 1e6 "peak memory"
                    Expect.equal (json["memory"].AsArray()).Count 2 "memory of each task"
                    let environment = json["environment"].AsObject()
                    Expect.isGreaterThan (number environment "cores") 0.0 "cores"
                    Expect.isNotEmpty (environment["processor"].GetValue<string>()) "processor"))

            testCase
                "one task has neither forgetting nor transfer, and says so"
                (withRun
                    (fun s ->
                        { s with
                            StopAfter = Some 1
                            Variant = Variant.Official
                        })
                    (fun _ out _ _ ->
                        let json = summary out
                        Expect.isTrue (json.ContainsKey "forgetting") "named"
                        Expect.isNull json["forgetting"] "forgetting"
                        Expect.isNull json["backwardTransfer"] "backward transfer"
                        Expect.equal (number json "tasks") 2.0 "tasks of the sequence"
                        Expect.equal (number json "learnedTasks") 1.0 "learned"
                        Expect.equal (json["variant"].GetValue<string>()) "official" "variant"))

            testCase
                "settings come back as they were"
                (withRun id (fun _ out settings _ ->
                    let saved = RunFolder.settings out
                    Expect.equal (Settings.toPairs saved) (Settings.toPairs settings) "every setting"))

            testCase
                "evaluation gives the last row exactly, whatever the batch, and leaves nothing"
                (withRun id (fun _ out _ outcome ->
                    let settings = RunFolder.settings out

                    for batch in [ settings.Batch; 1; 7; 128 ] do
                        Probe.leavesNothing (fun () ->
                            sameScores outcome (evaluate out { settings with Batch = batch }))))

            testCase
                "evaluation counts its batches"
                (withRun id (fun _ out settings _ ->
                    let mutable batches = 0
                    Evaluation.run out settings (fun () -> batches <- batches + 1) |> ignore
                    Expect.equal batches 2 "15 test images in each of 2 tasks"))

            testCase "a stopped run is evaluated on what it learned" (fun () ->
                withRun
                    (fun s ->
                        { s with
                            StopAfter = Some 1
                            Precision = Precision.Float64
                        })
                    (fun _ out settings outcome -> sameScores outcome (evaluate out settings))
                    ())

            testCase
                "a run is evaluated where its reference is gone"
                (withRun id (fun folder out settings outcome ->
                    let gone = Path.Combine(folder, "gone")
                    sameScores outcome (evaluate out { settings with Reference = [ gone ] })))

            testCase "the saved class order is used where its file is gone" (fun () ->
                Probe.inFolder (fun folder ->
                    let order = Path.Combine(folder, "order.json")
                    File.WriteAllText(order, "[9, 1, 8, 2, 7, 3, 6, 4, 5, 0]")

                    let settings =
                        { Tiny.onFiles folder with
                            ClassOrder = order
                        }

                    let out = Path.Combine(folder, "out")

                    run settings (fun plan outcome ->
                        SavedRun.save out plan DateTime.UtcNow outcome
                        File.Delete order
                        sameScores outcome (evaluate out (RunFolder.settings out))
                        // another order at its place does not count either
                        File.WriteAllText(order, "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
                        sameScores outcome (evaluate out (RunFolder.settings out)))))

            testCase
                "a moved backbone and a moved data set are found where they are said to be"
                (withRun id (fun folder out settings outcome ->
                    let moved = Path.Combine(folder, "moved.safetensors")
                    File.Move(settings.Backbone.Value, moved)
                    sameScores outcome (evaluate out { settings with Backbone = Some moved })))

            testCase
                "another backbone is refused"
                (withRun id (fun folder out settings _ ->
                    let other = Path.Combine(folder, "other.safetensors")
                    Tiny.writeBackbone other 8 2 8

                    Probe.refused [ other; "SHA-256" ] (fun () ->
                        evaluate out { settings with Backbone = Some other } |> ignore)))

            testCase
                "settings that cut the classes otherwise are refused"
                (withRun (fun s -> { s with InitialClasses = Some 4 }) (fun _ out settings _ ->
                    Probe.refused [ "settings.json"; "[4; 6]"; "[5; 5]" ] (fun () ->
                        evaluate out { settings with InitialClasses = None } |> ignore)))

            testCase
                "a row of another length is refused"
                (withRun id (fun _ out settings _ ->
                    let json = summary out
                    json["correctAndTotal"] <- JsonNode.Parse "[[[1,2]]]"
                    File.WriteAllText(RunFiles.summary out, json.ToJsonString())

                    Probe.refused [ "summary.json"; "2 tasks"; "1" ] (fun () ->
                        evaluate out settings |> ignore)

                    json["correctAndTotal"] <- JsonNode.Parse "[]"
                    File.WriteAllText(RunFiles.summary out, json.ToJsonString())

                    Probe.refused [ "summary.json"; "at least one task" ] (fun () ->
                        evaluate out settings |> ignore)))

            testCase
                "a finished run is not overwritten"
                (withRun id (fun _ out settings outcome ->
                    refused [ out; "must not hold a run"; "--overwrite" ] (fun () -> RunFolder.check out)

                    run settings (fun plan outcome ->
                        refused [ out; "must not hold a run"; "--overwrite" ] (fun () ->
                            SavedRun.save out plan DateTime.UtcNow outcome))))

            testCase "a folder that cannot be one is refused, and a good one left untouched" (fun () ->
                Probe.inFolder (fun folder ->
                    let file = Path.Combine(folder, "file")
                    File.WriteAllText(file, "")
                    refused [ file; "folder" ] (fun () -> RunFolder.check file)

                    refused [ file; "folder" ] (fun () ->
                        RunFolder.check (Path.Combine(file, "deep", "er")))

                    refused [ "output folder"; "name" ] (fun () -> RunFolder.check "")
                    RunFolder.check (Path.Combine(folder, "new", "deep"))
                    Expect.equal (Directory.GetFileSystemEntries folder) [| file |] "nothing made"))

            testCase "a run cut off while it was saved has no summary" (fun () ->
                Probe.inFolder (fun folder ->
                    let settings = Tiny.onFiles folder
                    let out = Path.Combine(folder, "out")
                    // a folder where a file should go
                    Directory.CreateDirectory(LearnerFile.jsonPath out) |> ignore

                    run settings (fun plan outcome ->
                        refused [ "learner.json" ] (fun () ->
                            SavedRun.save out plan DateTime.UtcNow outcome)

                        Expect.isFalse (File.Exists(RunFiles.summary out)) "summary"
                        Directory.Delete(LearnerFile.jsonPath out)
                        SavedRun.save out plan DateTime.UtcNow outcome
                        sameScores outcome (evaluate out settings))))

            testCase "a folder without a run is refused" (fun () ->
                Probe.inFolder (fun folder ->
                    refused [ "settings.json"; "settings of a run"; "no such file" ] (fun () ->
                        RunFolder.settings folder |> ignore)

                    refused [ "summary.json"; "finished run"; "no such file" ] (fun () ->
                        Evaluation.lastRow folder |> ignore)

                    File.WriteAllText(RunFiles.settings folder, "{\"rnak\": 3}")
                    refused [ "did you mean rank?" ] (fun () -> RunFolder.settings folder |> ignore)))

            testCase "runs that start together below a new folder do not take it from each other" (fun () ->
                Probe.inFolder (fun folder ->
                    for round in 1..30 do
                        use start = new Threading.Barrier 4

                        let one i () =
                            let out = Path.Combine(folder, $"{round}", "exp", $"{i}")
                            start.SignalAndWait()
                            RunFolder.check out
                            (RunFolder.hold out).Dispose()
                            File.Exists(RunFiles.lock' out)

                        let threads =
                            [|
                                for i in 1..4 ->
                                    Threading.Tasks.Task.Factory.StartNew(
                                        one i,
                                        Threading.Tasks.TaskCreationOptions.LongRunning
                                    )
                            |]

                        Expect.all (Threading.Tasks.Task.WhenAll(threads).Result) id "all are held"))

            testCase "the root of the file system is no run's folder" (fun () ->
                refused [ "/"; "a folder of its own" ] (fun () -> RunFolder.check "/"))

            testCase "a run is removed from its results to its settings" (fun () ->
                withRun
                    id
                    (fun _ out _ _ ->
                        use watcher = new FileSystemWatcher(out)
                        let gone = Collections.Concurrent.ConcurrentQueue<string>()
                        watcher.Deleted.Add(fun e -> gone.Enqueue e.Name)
                        watcher.EnableRaisingEvents <- true
                        RunFolder.clear out

                        let finished () =
                            Array.contains "settings.json" (gone.ToArray())

                        Expect.isTrue (Threading.SpinWait.SpinUntil(finished, 20000)) "removed"
                        let names = gone.ToArray()

                        Expect.equal
                            (names[0], Array.last names)
                            ("summary.json", "settings.json")
                            "first and last"

                        Expect.isEmpty (RunFiles.present out) "nothing left")
                    ())

            testCase "someone else's settings.json is not taken for a run" (fun () ->
                Probe.inFolder (fun folder ->
                    File.WriteAllText(RunFiles.settings folder, "{\"editor.tabSize\": 4}")

                    refused [ folder; "settings.json"; "a run would replace" ] (fun () ->
                        RunFolder.checkNames folder)))
        ]
