module LoRASub.Tests.RunDataTests

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Report
open Expecto
open LoRASub.Tests.SampleRuns

let private under (folder: string) (name: string) = Path.Combine(folder, name)

/// Changes the JSON of one file of a sample run.
let private edit (folder: string) (name: string) (change: JsonNode -> unit) =
    let path = under folder name
    let node = JsonNode.Parse(File.ReadAllText path)
    change node
    File.WriteAllText(path, node.ToJsonString())

/// The node at a path like "confusion/3".
let private at (path: string) (root: JsonNode) : JsonNode =
    (root, path.Split '/')
    ||> Array.fold (fun node key ->
        match Int32.TryParse key with
        | true, index -> node.AsArray().Item index
        | _ -> node[key])

/// Puts a value where another is.
let private put (path: string) (value: JsonNode) (root: JsonNode) = (at path root).ReplaceWith value

let private load (folder: string) =
    RunData.loadAll [| folder |] |> Array.exactlyOne

let private inSample (sample: Sample) (test: string -> unit) () =
    Probe.inFolder (fun folder ->
        write folder sample
        test folder)

let private spoiled name words (spoil: string -> unit) : TestFiles.BadInput =
    name,
    words,
    fun folder ->
        write folder small
        spoil folder
        load folder |> ignore

let private json name file words change =
    spoiled name (file :: words) (fun folder -> edit folder file change)

[<Tests>]
let tests =
    testList
        "RunData"
        [
            testCase
                "everything of a run is read"
                (inSample small (fun folder ->
                    let run = (load folder).Runs[0]
                    Expect.isTrue run.Finished "finished"
                    Expect.equal run.Seed 1L "seed"
                    Expect.equal run.Method "lora-sub-drs" "method"
                    Expect.equal (run.Matrix |> Array.map _.Length) [| 1; 2; 3 |] "rows"
                    Expect.equal (run.RetainedRank |> Array.map _.Length) [| 0; 6; 6 |] "ranks"
                    Expect.equal run.Epochs.Length 12 "epochs"
                    Expect.equal run.Sources["seed"] "command line" "source"
                    Expect.equal run.Resources.Value.TaskSeconds.Length 3 "seconds of tasks"
                    Expect.equal run.Classes.Value.Classes.Length 12 "classes"
                    Expect.equal run.Drift.Value.AfterTask.Length 3 "drift"
                    Expect.equal run.Drift.Value.Overlap.Length 6 "overlaps"

                    Expect.equal
                        run.Notes
                        [| "The config's key 'workers' is not used by this method." |]
                        "notes"))

            testCase "without optional files the rest is read, and what is missing is noted" (fun () ->
                let names =
                    [
                        "settings.json"
                        "sources.json"
                        "resources.json"
                        "metrics.jsonl"
                        "classes.json"
                        "drift.json"
                    ]

                for without in names |> List.map List.singleton |> List.append [ names ] do
                    inSample
                        { small with Without = without }
                        (fun folder ->
                            let run = (load folder).Runs[0]
                            Expect.equal run.Matrix.Length 3 "rows"

                            for name in without do
                                let isSaid = run.Notes |> Array.exists _.StartsWith(name + " is missing")
                                Expect.isTrue isSaid name)
                        ())

            testCase
                "a run that is cut off is read as far as it got"
                (inSample { small with Tasks = 9; Learned = 2 } (fun folder ->
                    File.AppendAllText(under folder "metrics.jsonl", "{\"event\":\"epo")
                    let run = (load folder).Runs[0]
                    Expect.isFalse run.Finished "not finished"
                    Expect.equal run.Tasks 9 "tasks of the stream"
                    Expect.equal run.Matrix.Length 2 "rows"
                    Expect.equal (run.RetainedRank[1]).Length 6 "ranks"
                    Expect.equal run.Method "lora-sub-drs" "method"
                    Expect.stringContains run.Notes[0] "2 of 9 tasks" "said"
                    Expect.isTrue (run.Notes |> Array.exists _.Contains("cut off")) "torn line"))

            testCase "a joint run that is cut off has one task" (fun () ->
                let joint =
                    { small with
                        Tasks = 1
                        Learned = 0
                        Settings = [ "method", "joint"; "tasks", "5" ]
                    }

                inSample
                    joint
                    (fun folder -> Expect.equal (load folder).Runs[0].Tasks 1 "all classes are one")
                    ())

            testCase
                "after a resume the later line counts, and unknown events are skipped"
                (inSample small (fun folder ->
                    let epoch =
                        MetricsEvent.Epoch
                            {
                                Task = 2
                                Epoch = 3
                                Loss = nan
                                Accuracy = 0.5
                                LearningRate = 1e-3
                                Seconds = 1.0
                            }

                    let later = """{"time":"2026-01-02T03:04:05.000Z","event":"shutdown","why":1}"""
                    let more = line epoch + later + "\n" + line (MetricsEvent.Notice "slow disk")
                    File.AppendAllText(under folder "metrics.jsonl", more)
                    let run = (load folder).Runs[0]
                    Expect.equal run.Epochs.Length 12 "still 12"
                    Expect.isTrue (Double.IsNaN (Array.last run.Epochs).Loss) "null is no number"
                    Expect.contains run.Notes "slow disk" "notices are notes"))

            testCase "seeds are read in their order, and lost ones are noted" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 10L; 9L; 1L ] small
                    Directory.Delete(under folder "seed-9", true)
                    let group = load folder
                    Expect.equal (group.Runs |> Array.map _.Seed) [| 1L; 10L |] "seeds"
                    Expect.stringContains (Array.exactlyOne group.Notes) "seed 9" "note"))

            testCase "names are the shortest ends of paths that differ" (fun () ->
                Probe.inFolder (fun folder ->
                    let folders = [| "a/run"; "b/run"; "c/deep/run/" |] |> Array.map (under folder)

                    for one in folders do
                        write one small

                    let names folders =
                        RunData.loadAll folders |> Array.map _.Name

                    Expect.equal (names folders) [| "a/run"; "b/run"; "deep/run" |] "two parts"
                    Expect.equal (names folders[..0]) [| "run" |] "one"))

            testCase "a bad byte is refused or read, and never fails otherwise" (fun () ->
                let sample =
                    { small with
                        Blocks = 1
                        Epochs = 1
                        ClassesPerTask = 2
                    }

                Probe.inFolder (fun folder ->
                    write folder sample
                    let random = Random 7
                    let files = Directory.GetFiles folder |> Array.sort
                    // digits, signs and brackets do more harm than other bytes
                    let harmful = "0123456789-eE.[]{}\",:nt "B

                    for _ in 1..300 do
                        let path = files[random.Next files.Length]
                        let bytes = File.ReadAllBytes path
                        let spoiled = Array.copy bytes
                        spoiled[random.Next spoiled.Length] <- harmful[random.Next harmful.Length]
                        File.WriteAllBytes(path, spoiled)

                        try
                            let groups = RunData.loadAll [| folder |]
                            Page.html groups |> ignore
                            Figures.all groups |> Array.iter (Drawing.svg >> ignore)
                            Tables.markdown groups |> ignore
                        with :? InputException ->
                            ()

                        File.WriteAllBytes(path, bytes)))

            TestFiles.refusals
                [
                    "no folder", [ "needs the folder of a run" ], (fun _ -> RunData.loadAll [||] |> ignore)
                    "an empty name", [ "an empty name" ], (fun _ -> load "" |> ignore)
                    "no such folder",
                    [ "gone"; "no such folder"; "--out" ],
                    (fun folder -> load (under folder "gone") |> ignore)
                    "a folder that is no run",
                    [ "summary.json or metrics.jsonl"; "neither" ],
                    (fun folder -> load folder |> ignore)
                    "a folder twice",
                    [ "given once" ],
                    (fun folder ->
                        write folder small
                        RunData.loadAll [| folder; folder + "/" |] |> ignore)
                    "a seed twice",
                    [ "seed 1 in 2 folders" ],
                    (fun folder ->
                        write (under folder "seed-1") small
                        write (under folder "seed-2") small
                        load folder |> ignore)
                    spoiled "no JSON" [ "drift.json"; "JSON" ] (fun folder ->
                        File.WriteAllText(under folder "drift.json", "{\"classes\": [" + String('[', 5000)))
                    spoiled "a bad line" [ "metrics.jsonl, line 1"; "'time'" ] (fun folder ->
                        let path = under folder "metrics.jsonl"
                        File.WriteAllText(path, "{\"event\":\"epoch\"}\n" + File.ReadAllText path))
                    json "no counts" "summary.json" [ "correctAndTotal" ] (fun root ->
                        root.AsObject().Remove "correctAndTotal" |> ignore)
                    json
                        "a list where an object belongs"
                        "resources.json"
                        []
                        (put "phaseSeconds" (JsonArray()))
                    spoiled "an impossible score" [ "accuracy matrix"; "row 0" ] (fun folder ->
                        edit folder "summary.json" (put "correctAndTotal/0/0/0" (Json.int 1000000L)))
                    spoiled "a matrix that is no triangle" [ "accuracy matrix"; "row 1" ] (fun folder ->
                        edit folder "summary.json" (put "correctAndTotal/1" (JsonArray())))
                    json
                        "a setting that no run can have"
                        "settings.json"
                        [ "tasks"; "at least 1" ]
                        (put "tasks" (Json.text "0"))
                    json "a number that is none" "summary.json" [] (put "seed" (Json.text "one"))
                    json
                        "a confusion matrix of another size"
                        "classes.json"
                        [ "12 rows and columns" ]
                        (put "confusion/3" (JsonArray()))
                    json "a position twice" "classes.json" [ "once" ] (put "classes/1/position" (Json.int 0L))
                    json
                        "a sample of no class"
                        "classes.json"
                        [ "sample 0"; "12" ]
                        (put "samples/0/true" (Json.int 12L))
                    json
                        "a sample that is no PNG"
                        "classes.json"
                        [ "sample 2"; "PNG" ]
                        (put "samples/2/png" (Json.text "iVBORw0KGgo\"><script>"))
                    json
                        "drift after a task of another count"
                        "drift.json"
                        [ "after each task" ]
                        (put "afterTask/2/task" (Json.int 2000000000L))
                    json
                        "a class of a negative task"
                        "drift.json"
                        [ "from 0" ]
                        (put "classes/3/task" (Json.int -1L))
                    json
                        "more right answers than images"
                        "classes.json"
                        [ "among all images" ]
                        (put "classes/0/correct" (Json.int 101L))
                    json
                        "a plane of one component"
                        "drift.json"
                        [ "explained" ]
                        (put "picture/explained" (JsonArray()))
                ]
        ]
