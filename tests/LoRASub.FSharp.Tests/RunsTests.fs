module LoRASub.Tests.RunsTests

open System
open System.Diagnostics
open System.IO
open System.Text.Json.Nodes
open Expecto
open LoRASub
open LoRASub.Cli
open LoRASub.Tests.CliTests

let private five world more =
    arguments world ([ "--tasks"; "5"; "--epochs"; "2" ] @ more)

/// Runs in this process until its first step is done, as after a signal.
let private interrupted (code: int) (given: string list) : Ended =
    use out = new StringWriter()
    use error = new StringWriter()
    let interruption = Interruption()
    interruption.Request code |> ignore

    let code =
        Program.start
            {
                Out = out
                Error = error
                Terminal = None
                Interruption = interruption
            }
            (Array.ofList given)

    {
        Code = code
        Out = out.ToString()
        Error = error.ToString()
    }

let private good (ended: Ended) =
    Expect.equal (ended.Code, ended.Error) (0, "") ended.Out

let private refused (words: string list) (ended: Ended) =
    Expect.equal ended.Code 2 ended.Error
    Expect.hasLength (ended.Error.TrimEnd('\n').Split '\n') 1 "one line"

    for word in words do
        Expect.stringContains ended.Error word "message"

/// What a run must leave whatever happened to it: the same bytes on a CPU. A GPU may take a sum in another order, and
/// there the same answers.
let private results (folder: string) =
    [
        "accuracy.csv"

        if Generators.onCpu then
            "summary.json"
            "learner.json"
            "learner.safetensors"
            "classes.json"
            "drift.json"
    ]
    |> List.map (fun name -> name, Convert.ToHexString(File.ReadAllBytes(under folder name)))

let private json (path: string) =
    (JsonNode.Parse(File.ReadAllText path)).AsObject()

/// The events of a run, without what depends on the clock; on a GPU without what depends on the order of a sum.
let private events (folder: string) =
    File.ReadAllLines(RunFiles.metrics folder)
    |> Array.map (fun line ->
        let node = (JsonNode.Parse line).AsObject()

        for name in
            [
                "time"
                "seconds"
                if not Generators.onCpu then
                    yield! [ "loss"; "energies" ]
            ] do
            node.Remove name |> ignore

        node.ToJsonString())

[<Tests>]
let tests =
    testList
        "Runs"
        [
            testCase
                "an interrupted run says how to go on, ends with the signal's code, and ends equal when resumed, again and again"
                (inWorld (fun world ->
                    good (inside (five world [ "--out"; under world "whole" ]))
                    let out = under world "out"
                    let first = interrupted 143 (five world [])
                    Expect.equal first.Code 143 first.Error
                    Expect.stringContains first.Error $"--resume {out}" "how to go on"
                    Expect.isTrue (Checkpoint.exists out) "a checkpoint"
                    Expect.isFalse (File.Exists(RunFiles.summary out)) "no results"
                    let mutable stops = 1

                    // one step at a time for a while, which crosses epochs, phases and tasks
                    while stops < 15 do
                        let again = interrupted 130 [ "run"; "--resume"; out ]
                        Expect.equal again.Code 130 again.Error
                        Expect.stringContains again.Out "goes on from the checkpoint" "where from"
                        stops <- stops + 1

                    good (inside [ "run"; "--resume"; out ])
                    Expect.equal (results out) (results (under world "whole")) "results"
                    Expect.equal (events out) (events (under world "whole")) "metrics"
                    Expect.isFalse (Checkpoint.exists out) "the checkpoint is gone"

                    let finished = listing out
                    let again = inside [ "run"; "--resume"; out ]
                    good again
                    Expect.stringContains again.Out "finished already" "a finished run"
                    Expect.equal (listing out) finished "nothing is done"))

            testCase
                "a run without a checkpoint starts again from its saved settings"
                (inWorld (fun world ->
                    good (inside (five world [ "--out"; under world "whole"; "--seed"; "5" ]))
                    let out = under world "out"
                    interrupted 130 (five world [ "--seed"; "5" ]) |> ignore
                    Checkpoint.delete out
                    let ended = inside [ "run"; "--resume"; out ]
                    good ended
                    Expect.stringContains ended.Out "starts again" "said"
                    Expect.equal (results out) (results (under world "whole")) "results"
                    Expect.equal (events out) (events (under world "whole")) "metrics"))

            testCase
                "a moved data set is found where it is said to be; other settings are refused by name"
                (inWorld (fun world ->
                    let out = under world "out"
                    interrupted 130 (five world []) |> ignore
                    let moved = under world "moved"
                    Directory.Move(under world "data", moved)

                    refused
                        [ out; "lr: 0.0005, 0.1"; "rank: 2, 3" ]
                        (inside [ "run"; "--resume"; out; "--lr"; "0.1"; "--rank"; "3" ])

                    refused [ "data" ] (inside [ "run"; "--resume"; out ])
                    good (inside [ "run"; "--resume"; out; "--data-path"; moved ])))

            testCase
                "a folder that holds a run needs --resume or --overwrite, which removes the run alone"
                (inWorld (fun world ->
                    let out = under world "out"
                    interrupted 130 (five world []) |> ignore
                    refused [ out; "can be resumed"; "--resume"; "--overwrite" ] (inside (five world []))
                    File.WriteAllText(under out "notes.txt", "mine")
                    good (inside (five world [ "--overwrite"; "--tensorboard" ]))
                    refused [ out; "a finished one"; "--overwrite" ] (inside (five world []))
                    let first = results out
                    good (inside (five world [ "--overwrite"; "--seed"; "8" ]))
                    Expect.notEqual (results out) first "another run"

                    Expect.isEmpty
                        (Directory.GetFiles(out, "events*"))
                        "TensorBoard's file of the run before"

                    Expect.equal (File.ReadAllText(under out "notes.txt")) "mine" "a file of the user's"))

            testCase
                "a folder in use is refused, also by another process"
                (inWorld (fun world ->
                    let out = under world "out"
                    use hold = RunFolder.hold out
                    refused [ out; "in use" ] (inside (five world []))
                    refused [ out; "in use" ] (outside [] (five world []))
                    hold.Dispose()
                    good (inside (five world []))))

            testCase
                "what is no run, and what stands beside --resume, is refused"
                (inWorld (fun world ->
                    let out = under world "out"
                    refused [ out; "must hold a run" ] (inside [ "run"; "--resume"; out ])

                    for more in
                        [
                            [ "--out"; "a" ]
                            [ "--overwrite" ]
                            [ "--seeds"; "1,2" ]
                            [ "--dry-run" ]
                            [ "--config"; "a" ]
                        ] do
                        refused [ "--resume"; more.Head ] (inside ([ "run"; "--resume"; out ] @ more))

                    interrupted 130 (five world []) |> ignore
                    let path = Checkpoint.path out
                    File.WriteAllText(path, File.ReadAllText(path).Replace("\"epoch\":0", "\"epoch\":1"))
                    refused [ "checkpoint.json"; "as it was written" ] (inside [ "run"; "--resume"; out ])
                    File.WriteAllText(RunFiles.settings out, "{}x")
                    refused [ "settings.json" ] (inside [ "run"; "--resume"; out ])))

            testCase
                "each seed runs in a folder of its own, with statistics over all, and an interrupted series goes on"
                (inWorld (fun world ->
                    let out = under world "out"
                    good (inside (five world [ "--out"; under world "single"; "--seed"; "2" ]))
                    let stopped = interrupted 130 (five world [ "--seeds"; "1,2,3" ])
                    Expect.equal stopped.Code 130 stopped.Error
                    let ended = inside [ "run"; "--resume"; out ]
                    good ended
                    Expect.stringContains ended.Out "over seeds 1, 2, 3" "statistics"

                    Expect.equal
                        (results (under out "seed-2"))
                        (results (under world "single"))
                        "as a run of its own"

                    let statistics = json (under out "statistics.json")
                    let measures = statistics["measures"].AsObject()
                    let last = measures["last"].AsObject()
                    Expect.equal (last["n"].GetValue<int>()) 3 "n"

                    let values = [ for v in last["values"].AsArray() -> v.GetValue<float>() ]

                    let saved =
                        [
                            for seed in 1..3 do
                                let summary = json (under out $"seed-{seed}/summary.json")
                                summary["last"].GetValue<float>()
                        ]

                    Expect.equal values saved "values"

                    Expect.floatClose
                        Accuracy.high
                        (last["mean"].GetValue<float>())
                        (List.average saved)
                        "mean"

                    let again = inside [ "run"; "--resume"; out ]
                    Expect.stringContains again.Out "finished already" "finished"
                    refused [ out; "must not hold a run" ] (inside (five world []))
                    good (inside (five world [ "--overwrite" ]))
                    Expect.isFalse (Directory.Exists(under out "seed-2")) "replaced"))

            testCase
                "references give forward transfer and intransigence"
                (inWorld (fun world ->
                    let frozen, joint = under world "frozen", under world "joint"
                    good (inside (five world [ "--out"; frozen; "--no-training" ]))
                    good (inside (arguments world [ "--out"; joint; "--tasks"; "1" ]))
                    let out = under world "out"
                    let ended = inside (five world [ "--reference"; $"{frozen},{joint}" ])
                    good ended
                    Expect.stringContains ended.Out "forward transfer" "shown"
                    let summary = json (RunFiles.summary out)
                    Expect.isNotNull summary["forwardTransfer"] "forward transfer"
                    Expect.isNotNull summary["intransigence"] "intransigence"
                    Expect.isNull summary["forwardTransferNote"] "no reason"

                    // the frozen run against itself: the network never moves
                    good (
                        inside (
                            five
                                world
                                [ "--out"; under world "self"; "--no-training"; "--reference"; frozen ]
                        )
                    )

                    let self = json (RunFiles.summary (under world "self"))

                    Expect.equal
                        (self["forwardTransfer"].GetValue<float>())
                        0.0
                        "no transfer without training"

                    refused
                        [ "settings.json" ]
                        (inside (five world [ "--overwrite"; "--reference"; under world "data" ]))))

            testCase
                "a terminated process saves, says so and leaves a run that goes on; a second signal ends it at once"
                (inWorld (fun world ->
                    let out = under world "out"

                    let terminated (signals: int) =
                        use child = processOf [] (arguments world [ "--epochs"; "100000"; "--overwrite" ])
                        let error = child.StandardError.ReadToEndAsync()

                        while not (child.StandardOutput.ReadLine().StartsWith "task 1/2: epoch") do
                            ()

                        let said = child.StandardOutput.ReadToEndAsync()

                        for _ in 1..signals do
                            use kill = Process.Start("kill", [ "-TERM"; string child.Id ])
                            kill.WaitForExit()

                        Expect.isTrue (child.WaitForExit 30_000) "it ends"
                        said.Wait()
                        Expect.equal child.ExitCode 143 "exit code"
                        error.Result

                    let error = terminated 1
                    Expect.stringContains error "saving after this step" "on the signal"
                    Expect.stringContains error $"--resume {out}" "how to go on"
                    Expect.isTrue (Checkpoint.exists out) "a checkpoint"
                    terminated 2 |> ignore
                    Expect.isTrue (File.Exists(RunFiles.settings out)) "the run is there"))

            testCase
                "files of others under a run's names are refused and kept, with --overwrite as well"
                (inWorld (fun world ->
                    let out = under world "out"
                    Directory.CreateDirectory out |> ignore

                    for name in
                        [
                            "learner.safetensors"
                            "checkpoint-500.safetensors"
                            "classes.csv"
                            "metrics.jsonl"
                        ] do
                        let mine = under out name
                        File.WriteAllText(mine, "mine")

                        for more in [ []; [ "--overwrite" ] ] do
                            refused [ out; name; "a run would replace" ] (inside (five world more))

                        Expect.equal (Directory.GetFiles out) [| mine |] "nothing beside it"
                        Expect.equal (File.ReadAllText mine) "mine" "kept"
                        File.Delete mine))

            testCase
                "a series in use is not replaced, and an interrupted one names the whole"
                (inWorld (fun world ->
                    let out = under world "out"
                    let stopped = interrupted 130 (five world [ "--seeds"; "1,2" ])
                    Expect.stringEnds stopped.Error $"--resume {out}\n" "the series, not the seed"
                    Expect.isTrue (File.Exists(RunFiles.sources out)) "its sources"
                    let before = listing out

                    (use _ = RunFolder.hold (under out "seed-1")
                     refused [ "seed-1"; "in use" ] (inside (five world [ "--overwrite" ])))

                    Expect.equal (listing out) before "untouched"
                    good (inside [ "run"; "--resume"; out ])

                    Expect.isTrue
                        (File.Exists(RunFiles.sources (under out "seed-2")))
                        "sources of a seed begun later"))

            testCase
                "a run does not go on with other images, and keeps its settings when it is refused"
                (inWorld (fun world ->
                    let out = under world "out"
                    interrupted 130 (five world []) |> ignore
                    let settings = File.ReadAllText(RunFiles.settings out)
                    let other = under world "other"
                    Directory.CreateDirectory other |> ignore

                    for file in Directory.GetFiles(under world "data") do
                        let bytes = File.ReadAllBytes file

                        if file.Contains "train-images" then
                            bytes[20] <- bytes[20] ^^^ 1uy

                        File.WriteAllBytes(under other (Path.GetFileName file), bytes)

                    refused
                        [ "checkpoint.json"; "training images" ]
                        (inside [ "run"; "--resume"; out; "--data-path"; other ])

                    Expect.equal (File.ReadAllText(RunFiles.settings out)) settings "settings"
                    good (inside [ "run"; "--resume"; out ])

                    let page = inside [ "report"; out; "--out"; RunFiles.settings out ]
                    refused [ "settings.json"; "file of a run" ] page))

            testCase
                "where memory runs out, the checkpoint and how to resume are named"
                (inWorld (fun world ->
                    let out = under world "out"

                    let message folder =
                        try
                            Runs.keeping folder (fun () -> raise (MemoryException("out of memory", null)))
                            ""
                        with :? MemoryException as e ->
                            e.Message

                    Expect.equal (message out) "out of memory" "no run yet"
                    interrupted 130 (five world []) |> ignore
                    Expect.stringStarts (message out) "out of memory; the last checkpoint, " "message"
                    Expect.stringContains (message out) (Checkpoint.path out) "checkpoint"
                    Expect.stringEnds (message out) $"lorasub run --resume {out}" "resume"
                    let several = under world "several"
                    interrupted 130 (five world [ "--out"; several; "--seeds"; "1,2" ]) |> ignore

                    Expect.stringContains
                        (message several)
                        (Checkpoint.path (SeedFolders.folderOf several 1L))
                        "checkpoint of a seed"

                    Expect.stringEnds (message several) $"lorasub run --resume {several}" "resume"))
        ]
