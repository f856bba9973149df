module LoRASub.Tests.RunsTests

open System
open System.Diagnostics
open System.IO
open System.Text.Json.Nodes
open LoRASub.Native
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Run
open Expecto
open LoRASub.Cli
open LoRASub.Tests.CliTests
open Spectre.Console

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

/// Text that a full disk takes up to a number of characters.
type private FullDisk(room: int) =
    inherit StringWriter()
    let mutable left = room

    let take (n: int) =
        left <- left - n

        if left < 0 then
            raise (IOException "No space left on device")

    override _.Write(c: char) =
        take 1
        base.Write c

    override _.Write(text: string) =
        take text.Length
        base.Write text

    override _.WriteLine(text: string) =
        take (text.Length + 1)
        base.WriteLine text

/// Runs in this process with an output that takes so many characters, drawn on as a terminal or not.
let private withRoom (room: int) (isTerminal: bool) (given: string list) : Ended =
    use out = new FullDisk(room)
    use error = new StringWriter()

    let terminal () =
        let settings = AnsiConsoleSettings(Out = AnsiConsoleOutput out)
        settings.Ansi <- AnsiSupport.Yes
        settings.Interactive <- InteractionSupport.Yes
        let console = AnsiConsole.Create settings
        console.Profile.Width <- 80
        console.Profile.Height <- 24
        console

    let code =
        Program.start
            {
                Out = out
                Error = error
                Terminal = if isTerminal then Some(terminal ()) else None
                Interruption = Interruption()
            }
            (Array.ofList given)

    {
        Code = code
        Out = out.ToString()
        Error = error.ToString()
    }

/// Four classes of pictures in `world`/images, and a run on them.
let private onImages (world: string) (more: string list) =
    for red, name in List.indexed [ "ant"; "bee"; "cat"; "dog" ] do
        for i in 1..4 do
            TestFiles.writePicture
                (under (under (under world "images") name) $"{i}.png")
                (TestFiles.plainPicture 8 8 (60 * red) (20 * i) 90)

    arguments world ([ "--data"; "folder"; "--data-path"; under world "images" ] @ more)

// Of noise, so that the middle of the file lies in the packed pixels.
let private writeNoise (path: string) =
    let noise = Array.zeroCreate<byte>(3 * 32 * 32)
    Random(1).NextBytes noise

    TestFiles.writePicture
        path
        {
            Height = 32
            Width = 32
            Pixels = noise
        }

let private damage (path: string) =
    let bytes = File.ReadAllBytes path
    bytes[bytes.Length / 2] <- ~~~bytes[bytes.Length / 2]
    File.WriteAllBytes(path, bytes)

let private shell (command: string) =
    use child = Process.Start("sh", [ "-c"; command ])
    child.WaitForExit()
    child.ExitCode = 0

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
                        Expect.stringContains again.Out "Resuming from the checkpoint" "where from"
                        stops <- stops + 1

                    good (inside [ "run"; "--resume"; out ])
                    Expect.equal (results out) (results (under world "whole")) "results"
                    Expect.equal (events out) (events (under world "whole")) "metrics"
                    Expect.isFalse (Checkpoint.exists out) "the checkpoint is gone"

                    let finished = listing out
                    let again = inside [ "run"; "--resume"; out ]
                    good again
                    Expect.stringContains again.Out "already finished" "a finished run"
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
                    Expect.stringContains ended.Out "Starting again" "said"
                    Expect.equal (results out) (results (under world "whole")) "results"
                    Expect.equal (events out) (events (under world "whole")) "metrics"))

            testCase
                "a preset's resize is fitted to a backbone of 8 pixels, and saved with the run"
                (inWorld (fun world ->
                    onImages world [] |> ignore

                    let ended =
                        [
                            "--data"
                            "imagenet-r"
                            "--data-path"
                            under world "images"
                            "--initial-epochs"
                            "1"
                        ]
                        |> arguments world
                        |> inside

                    good ended
                    Expect.stringContains ended.Out "test-resize 256 is meant for images of 224 px" "note"
                    Expect.equal (RunFolder.settings (under world "out")).TestResize (Some 9) "256 x 8/224"
                    good (inside [ "evaluate"; under world "out" ])))

            testCase
                "a moved data set is found where it is said to be; other settings are refused by name"
                (inWorld (fun world ->
                    let out = under world "out"
                    interrupted 130 (five world []) |> ignore
                    let moved = under world "moved"
                    Directory.Move(under world "data", moved)

                    refused
                        [ out; "lr = 0.0005, not 0.1"; "rank = 2, not 3"; "remove these options" ]
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

                    let learner () =
                        File.ReadAllBytes(LearnerFile.tensorPath out)

                    let first = learner ()
                    good (inside (five world [ "--overwrite"; "--seed"; "8" ]))
                    Expect.notEqual (learner ()) first "another run"

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

                    Expect.stringContains
                        ended.Out
                        "seeds 1, 2, 3: mean ± half of the 95% interval"
                        "statistics"

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
                    Expect.stringContains again.Out "already finished" "finished"
                    refused [ out; "must not hold a run" ] (inside (five world []))
                    good (inside (five world [ "--overwrite" ]))
                    Expect.isFalse (Directory.Exists(under out "seed-2")) "replaced"))

            testCase
                "the largest batch is searched in a limit, and nothing is saved"
                (inWorld (fun world ->
                    let unsaved more =
                        five world more
                        |> List.filter (fun word -> word <> "--out" && word <> under world "out")

                    let ended = inside (unsaved [ "--largest-batch"; "--batch"; "2" ])
                    good ended
                    // two classes of four images in each task
                    Expect.stringContains ended.Out "batch 8      fits" "the whole task"
                    Expect.stringEnds ended.Out "largest batch      8; use --batch 8\n" "the answer"
                    let none = inside (unsaved [ "--largest-batch"; "1MiB" ])
                    Expect.equal none.Code 1 none.Error
                    Expect.stringContains none.Error "not even one image fits" "why"
                    refused [ "--largest-batch"; "'8'" ] (inside (unsaved [ "--largest-batch"; "8" ]))
                    refused [ "--largest-batch"; "--out" ] (inside (five world [ "--largest-batch" ]))
                    Expect.isFalse (Directory.Exists(under world "out")) "nothing is written"))

            testCase
                "bfloat16 is said to be slow where the processor has none"
                (inWorld (fun world ->
                    for lacking, instructions in
                        [
                            true, "fma avx2 avx512f"
                            false, "avx2 avx512f avx512_bf16"
                            false, "avx2 amx_bf16 amx_tile"
                            false, ""
                        ] do
                        instructions.Split(' ', StringSplitOptions.RemoveEmptyEntries)
                        |> Set.ofArray
                        |> Machine.lacksBfloat16
                        |> fun found -> Expect.equal found lacking instructions

                    let ended = inside (five world [ "--device"; "cpu"; "--precision"; "bfloat16" ])

                    good ended

                    Expect.equal
                        (ended.Out.Contains "note: this processor has no bfloat16")
                        (Machine.lacksBfloat16 (Machine.instructions ()))
                        ended.Out))

            testCase
                "TF32 and repeatable kernels change nothing on a CPU, which is said"
                (inWorld (fun world ->
                    let out, plain = under world "out", under world "plain"
                    let cpu = [ "--device"; "cpu" ]
                    let ended = inside (five world (cpu @ [ "--precision"; "tf32"; "--deterministic" ]))
                    good ended
                    Expect.stringContains ended.Out "note: a CPU has no TF32" "note"
                    good (inside (five world (cpu @ [ "--out"; plain ])))

                    let summary folder =
                        File.ReadAllText(RunFiles.summary folder)

                    Expect.equal (summary out) (summary plain) "summary"

                    let resources = json (RunFiles.resources out)
                    let environment = resources["environment"].AsObject()
                    Expect.isTrue (environment["repeatable"].GetValue<bool>()) "repeatable"))

            testCase
                "seeds shared among devices have the results of runs of their own"
                (inWorld (fun world ->
                    let out, alone = under world "out", under world "alone"
                    let device = Generators.deviceName
                    good (inside (five world [ "--seeds"; "1,2,3"; "--out"; alone ]))

                    let ended =
                        inside (five world [ "--seeds"; "1,2,3"; "--devices"; $"{device},{device}" ])

                    good ended

                    for seed in 1..3 do
                        let mine = $"seed-{seed}"
                        Expect.stringContains ended.Out $"{mine.Replace('-', ' ')}: task 5/5" "its lines"
                        Expect.equal (results (under out mine)) (results (under alone mine)) mine
                        Expect.equal (events (under out mine)) (events (under alone mine)) mine

                    let statistics folder =
                        File.ReadAllText(SeedFolders.statisticsPath folder)

                    Expect.equal (statistics out) (statistics alone) "statistics"
                    let again = inside [ "run"; "--resume"; out ]
                    Expect.stringContains again.Out "already finished" "finished"))

            testCase
                "a series on several devices saves all its runs when it is stopped, however, and goes on"
                (inWorld (fun world ->
                    let out, alone = under world "out", under world "alone"
                    let device = Generators.deviceName
                    let long = [ "--seeds"; "1,2"; "--tasks"; "2"; "--epochs"; "300" ]
                    good (inside (arguments world (long @ [ "--out"; alone ])))

                    let ended (signal: string) (given: string list) =
                        use parent = processOf [] given
                        let error = parent.StandardError.ReadToEndAsync()
                        let mutable begun = Set.empty

                        while begun.Count < 2 do
                            let line = parent.StandardOutput.ReadLine()

                            if line.Contains ": task " && line.Contains "epoch" then
                                begun <- begun.Add(line.Substring(0, line.IndexOf ':'))

                        let rest = parent.StandardOutput.ReadToEndAsync()
                        use kill = Process.Start("kill", [ signal; string parent.Id ])
                        kill.WaitForExit()
                        Expect.isTrue (parent.WaitForExit 60_000) "it ends"
                        rest.Wait()

                        // the processes of a killed one end by themselves
                        for seed in 1..2 do
                            let mine = SeedFolders.folderOf out (int64 seed)

                            let free () =
                                try
                                    (RunFolder.hold mine).Dispose()
                                    true
                                with :? LoRASub.Core.InputException ->
                                    false

                            Expect.isTrue (Threading.SpinWait.SpinUntil(free, 60_000)) "the folder is free"
                            Expect.isTrue (Checkpoint.exists mine) $"checkpoint of seed {seed}"

                        parent.ExitCode, error.Result

                    let code, error =
                        ended "-TERM" (arguments world (long @ [ "--devices"; $"{device},{device}" ]))

                    Expect.equal code 143 error
                    Expect.stringContains error $"--resume {out}" "how to go on"
                    ended "-KILL" [ "run"; "--resume"; out ] |> ignore
                    good (inside [ "run"; "--resume"; out ])

                    for seed in [ "seed-1"; "seed-2" ] do
                        Expect.equal (results (under out seed)) (results (under alone seed)) seed))

            testCase
                "devices need several seeds and a folder, and the seeds that fail are named"
                (inWorld (fun world ->
                    let given more = inside (five world more)
                    refused [ "--devices"; "several seeds" ] (given [ "--devices"; "0,1" ])

                    refused
                        [ "device cuda:99" ]
                        (given [ "--seeds"; "1,2"; "--devices"; $"{Generators.deviceName},99" ])

                    refused
                        [ "--devices"; "--device" ]
                        (given [ "--seeds"; "1,2"; "--devices"; "cpu"; "--device"; "cpu"; "--overwrite" ])

                    refused
                        [ "--devices"; "--out" ]
                        (inside [ "run"; "--seeds"; "1,2"; "--devices"; "cpu,cpu" ])

                    use out = new StringWriter()
                    use error = new StringWriter()

                    let left =
                        Series.run
                            {
                                Out = out
                                Error = error
                                Terminal = None
                                Interruption = Interruption()
                            }
                            [|
                                {
                                    Seed = 5L
                                    Line = 0
                                    Arguments = [ "--version" ]
                                }
                                {
                                    Seed = 6L
                                    Line = 1
                                    Arguments = [ "--nothing" ]
                                }
                                {
                                    Seed = 7L
                                    Line = 0
                                    Arguments = [ "--version" ]
                                }
                            |]

                    Expect.equal left [| 6L |] "the one that failed"
                    Expect.stringContains (error.ToString()) "seed 6: lorasub: unknown option" "its message"
                    Expect.stringContains (out.ToString()) "seed 7: lorasub " "the next in its line"))

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
                    Expect.stringContains error "Saving after this step" "on the signal"
                    Expect.stringContains error $"--resume {out}" "how to go on"
                    Expect.isTrue (Checkpoint.exists out) "a checkpoint"
                    terminated 2 |> ignore
                    Expect.isTrue (File.Exists(RunFiles.settings out)) "the run is there"))

            testCase
                "a terminated process without a folder reports that nothing was saved"
                (inWorld (fun world ->
                    let unsaved =
                        arguments world [ "--epochs"; "100000" ]
                        |> List.filter (fun word -> word <> "--out" && word <> under world "out")

                    use child = processOf [] unsaved
                    let error = child.StandardError.ReadToEndAsync()

                    while not (child.StandardOutput.ReadLine().StartsWith "task 1/2: epoch") do
                        ()

                    let rest = child.StandardOutput.ReadToEndAsync()
                    use kill = Process.Start("kill", [ "-TERM"; string child.Id ])
                    kill.WaitForExit()
                    Expect.isTrue (child.WaitForExit 30_000) "it ends"
                    rest.Wait()
                    Expect.equal child.ExitCode 143 "exit code"

                    Expect.equal
                        error.Result
                        "lorasub: interrupted; nothing was saved (run with --out DIR to save)\n"
                        "the message"))

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
                    Expect.stringStarts (message out) "out of memory; the last checkpoint is " "message"
                    Expect.stringContains (message out) (Checkpoint.path out) "checkpoint"
                    Expect.stringEnds (message out) $"lorasub run --resume {out}" "resume"
                    let several = under world "several"
                    interrupted 130 (five world [ "--out"; several; "--seeds"; "1,2" ]) |> ignore

                    Expect.stringContains
                        (message several)
                        (Checkpoint.path (SeedFolders.folderOf several 1L))
                        "checkpoint of a seed"

                    Expect.stringEnds (message several) $"lorasub run --resume {several}" "resume"))

            testCase
                "a damaged image among those that a checkpoint is compared with is refused before anything is learned"
                (inWorld (fun world ->
                    let given = onImages world []
                    let victim = under (under (under world "images") "dog") "3.png"
                    writeNoise victim
                    let bytes = File.ReadAllBytes victim
                    damage victim
                    let ended = inside given
                    refused [ "3.png" ] ended
                    Expect.isFalse (ended.Out.Contains "task 1/2") "nothing is learned"
                    Expect.isFalse (Directory.Exists(under world "out")) "nothing is written"
                    File.WriteAllBytes(victim, bytes)
                    good (inside given)))

            testCase
                "an output folder among the images is refused before the run, by any name"
                (inWorld (fun world ->
                    let images = under world "images"
                    let link = under world "link"
                    onImages world [] |> ignore
                    Directory.CreateSymbolicLink(link, images) |> ignore

                    for out in
                        [
                            under images "run"
                            under images "runs/exp/0"
                            under images "cat/run"
                            under link "run"
                            under images "../images/run"
                            Path.GetRelativePath(Environment.CurrentDirectory, under images "run")
                            images
                        ] do
                        for more in [ []; [ "--seeds"; "1,2" ] ] do
                            refused
                                [ out; "outside the folder that images are read from" ]
                                (inside (onImages world ([ "--out"; out ] @ more)))

                    Expect.equal (Directory.GetFileSystemEntries images).Length 4 "four classes"
                    // beside them
                    good (inside (onImages world []))))

            testCase
                "what a run reads is not replaced, by whatever name"
                (inWorld (fun world ->
                    let out, link = under world "out", under world "link"
                    good (inside (five world []))
                    Directory.CreateSymbolicLink(link, out) |> ignore
                    let weights = under out "learner.safetensors"
                    File.Copy(under world "vit.safetensors", weights, overwrite = true)
                    let before = listing out
                    let relative = Path.GetRelativePath(Environment.CurrentDirectory, out)

                    for more, word in
                        [
                            [ "--reference"; out ], "--reference"
                            [ "--reference"; link ], "--reference"
                            [ "--reference"; under world "x/../out" ], "--reference"
                            [ "--reference"; relative ], "--reference"
                            [ "--out"; link; "--reference"; out ], "--reference"
                            [ "--config"; RunFiles.settings link ], "--config"
                            [ "--backbone"; weights ], "--backbone"
                        ] do
                        refused
                            [ word; "--overwrite replaces" ]
                            (inside (five world ("--overwrite" :: more)))

                        Expect.equal (listing out) before "untouched"))

            testCase
                "seeds do not run over single runs, and replace their own alone"
                (inWorld (fun world ->
                    let out = under world "out"
                    let single = under out "seed-1"
                    good (inside (five world [ "--out"; single; "--seed"; "1" ]))
                    let before = listing single

                    for more in [ []; [ "--overwrite" ] ] do
                        refused
                            [ single; "must not hold a run" ]
                            (inside (five world ([ "--seeds"; "1,2" ] @ more)))

                    Expect.equal (listing single) before "untouched"
                    good (inside (five world [ "--seeds"; "3,4" ]))
                    good (inside (five world [ "--seeds"; "3,5"; "--overwrite" ]))
                    Expect.equal (listing single) before "beside those that are replaced"
                    Expect.isFalse (Directory.Exists(under out "seed-4")) "replaced"))

            testCase
                "what a process killed at once has written is in nobody's way"
                (inWorld (fun world ->
                    let out = under world "out"
                    Directory.CreateDirectory out |> ignore

                    for name in [ ".lock"; "sources.json"; "seeds.json" ] do
                        File.WriteAllText(under out name, "")

                    good (inside (five world []))
                    Expect.isFalse (SeedFolders.holdsSeeds out) "one run"
                    // killed between its last two steps
                    File.WriteAllText(Checkpoint.path out, "")
                    File.WriteAllText(under out "checkpoint-3.safetensors", "")
                    good (inside [ "run"; "--resume"; out ])
                    Expect.isEmpty (Directory.GetFiles(out, "checkpoint*")) "the checkpoint"))

            testCase
                "a saved run goes on without its output; other commands fail without theirs"
                (inWorld (fun world ->
                    let out = under world "out"

                    let expectSaved (name: string) (ended: Ended) =
                        Expect.equal ended.Code 0 $"{name}: {ended.Error}"
                        Expect.stringContains ended.Error "No space left on device" name
                        Expect.hasLength (ended.Error.TrimEnd('\n').Split '\n') 1 $"{name}: one line"
                        Expect.isTrue (RunFolder.isFinished out) $"{name}: saved"

                    for room in [ 0; 300; 700 ] do
                        withRoom room false (arguments world [ "--overwrite" ])
                        |> expectSaved $"a file with room for {room}"

                    let unsaved =
                        withRoom
                            300
                            false
                            (arguments world [] |> List.filter (fun word -> word <> "--out" && word <> out))

                    Expect.equal unsaved.Code 1 "results that are neither saved nor shown"
                    Expect.equal (withRoom 10 false [ "data"; "list" ]).Code 1 "a list"

                    let report = under world "r.html"

                    Expect.equal
                        (withRoom 10 false [ "report"; out; "--out"; report ]).Code
                        0
                        "a report, which is saved"

                    Expect.isTrue (File.Exists report) "it is"))

            testCase
                "a run is saved when its terminal goes away"
                (inWorld (fun world ->
                    // room for the lines before the display, and some of it
                    let shown = (withRoom 1000000 true (arguments world [])).Out.Length

                    for share in [ 2; 3; 4 ] do
                        let room = shown * share / 5
                        let ended = withRoom room true (arguments world [ "--overwrite" ])
                        Expect.equal ended.Code 0 $"{room} of {shown}: {ended.Error}"
                        Expect.isTrue (RunFolder.isFinished (under world "out")) $"{room} of {shown}: saved"))

            testCase
                "a run whose disk is full at the end keeps its checkpoint, names the file and can be resumed"
                (inWorld (fun world ->
                    let disk = Directory.CreateDirectory(under world "disk").FullName

                    if
                        not (
                            Environment.IsPrivilegedProcess
                            && shell $"mount -t tmpfs -o size=256k tmpfs {disk}"
                        )
                    then
                        skiptest "cannot mount"

                    try
                        let out = under disk "out"
                        // leaves room for the start and a checkpoint
                        File.WriteAllBytes(under disk "ballast", Array.zeroCreate 65536)
                        let ended = inside (onImages world [ "--out"; out ])
                        let more = onImages world [ "--out"; out; "--overwrite"; "--epochs"; "3" ]

                        // fill the disk by and by until the end does not fit
                        let rec untilFull (kilobytes: int) =
                            File.WriteAllBytes(under disk "ballast", Array.zeroCreate (1024 * kilobytes))
                            let ended = inside more

                            if ended.Code = 0 then untilFull (kilobytes + 8) else ended

                        let full = if ended.Code = 0 then untilFull 72 else ended
                        Expect.equal full.Code 2 full.Error
                        Expect.stringContains full.Error "must fit on its disk" "why"
                        Expect.stringContains full.Error out "which file"
                        File.Delete(under disk "ballast")

                        if RunFolder.holdsRun out then
                            Expect.stringContains full.Error $"--resume {out}" "how to go on"
                            good (inside [ "run"; "--resume"; out ])
                    finally
                        shell $"umount {disk}" |> ignore))

            testCase
                "an image that turns out to be damaged late leaves a checkpoint to resume from"
                (inWorld (fun world ->
                    let out = under world "out"

                    let given more =
                        onImages world ([ "--class-order"; "natural" ] @ more)

                    given [] |> ignore

                    for i in 1..20 do
                        writeNoise (under (under (under world "images") "dog") $"noise{i}.png")

                    // of the last class, and not among the sixteen that a checkpoint is compared with
                    let files =
                        (ImageFolder.scan "folder" ReadOptions.standard (under world "images")).Train

                    let compared = [ for i in 0..15 -> i * files.Length / 16 ]

                    let victim =
                        Array.indexed files
                        |> Array.findBack (fun (i, file) ->
                            not (List.contains i compared) && file.Path.Contains "noise")
                        |> fun (_, file) -> file.Path

                    let whole = File.ReadAllBytes victim
                    damage victim

                    for more in [ []; [ "--seeds"; "1,2"; "--overwrite" ] ] do
                        let ended = inside (given more)
                        refused [ Path.GetFileName victim ] ended

                        Expect.stringEnds
                            ended.Error
                            $"resume with: lorasub run --resume {out}\n"
                            "the run, or the series"

                        File.WriteAllBytes(victim, whole)
                        let resumed = inside [ "run"; "--resume"; out ]
                        good resumed
                        Expect.stringContains resumed.Out "Resuming from the checkpoint" "where from"
                        damage victim))
        ]
