module LoRASub.Tests.MetricsLogTests

open System
open System.IO
open System.Text
open LoRASub.Core
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "MetricsLog" name law

let private time = DateTimeOffset(2025, 3, 18, 12, 34, 56, 789, TimeSpan.Zero)
let private at (event: MetricsEvent) : MetricsLine = { Time = time; Event = event }

let private start =
    MetricsEvent.Start
        {
            Method = "lora-sub-drs"
            Variant = "libcontinual"
            Data = "größe \"x\"\n"
            Seed = -7L
            TaskSizes = [| 5; 3 |]
        }

let private task =
    MetricsEvent.Task
        {
            Task = 1
            Row = [| { Correct = 1; Total = 3 }; { Correct = 2; Total = 2 } |]
            Seconds = 1.5
        }

let private epoch loss =
    MetricsEvent.Epoch
        {
            Task = 0
            Epoch = 2
            Loss = loss
            Accuracy = 0.3
            LearningRate = 5e-4
            Seconds = 0.25
        }

type Events =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(0, 8)>]
        Count: int
        [<Between(0, 8)>]
        Kept: int
        [<Between(0, 400)>]
        Torn: int
    }

    member c.Lines: MetricsLine[] =
        let random = Random c.Seed
        // 0, a fraction of many digits, and what JSON cannot hold
        let number () =
            match random.Next 6 with
            | 0 -> 0.0
            | 1 -> nan
            | _ -> random.NextDouble()

        let score () =
            let total = 1 + random.Next 50

            {
                Correct = random.Next(total + 1)
                Total = total
            }

        Array.init c.Count (fun i ->
            {
                Time = time.AddMilliseconds(float (i * random.Next 5000))
                Event =
                    match random.Next 6 with
                    | 0 -> start
                    | 1 ->
                        let blocks = random.Next 4

                        MetricsEvent.Retained(
                            i,
                            Array.init blocks random.Next,
                            Array.init blocks (fun _ -> number ())
                        )
                    | 2 ->
                        MetricsEvent.Epoch
                            {
                                Task = i
                                Epoch = random.Next()
                                Loss = number ()
                                Accuracy = number ()
                                LearningRate = number ()
                                Seconds = number ()
                            }
                    | 3 ->
                        let number = random.Next 4

                        MetricsEvent.Task
                            {
                                Task = number
                                Row = Array.init (number + 1) (fun _ -> score ())
                                Seconds = random.NextDouble()
                            }
                    | 4 ->
                        let measures = Metrics.measure [| [| score () |] |]

                        MetricsEvent.End(Map.add "forgetting" (random.NextDouble()) measures, 3.0)
                    | _ -> MetricsEvent.Notice $"line\n{i}: \u2028 \"quoted\", ä"
            })

    member c.Text = c.Lines |> Array.map MetricsLog.encode

let private inFile (test: string -> 'T) =
    Probe.inFolder (fun folder -> test (Path.Combine(folder, "metrics.jsonl")))

let private writeAll (writer: MetricsWriter) (lines: MetricsLine[]) =
    use writer = writer
    Array.iter writer.Write lines

let private resumed path count =
    let struct (lines, writer) = MetricsLog.resume path count
    (writer :> IDisposable).Dispose()
    lines

let private encoded (lines: MetricsLine[]) = Array.map MetricsLog.encode lines

// one damaged line after a good one
let private damaged name (line: string) (words: string list) =
    testCase $"refused by file and line: {name}" (fun () ->
        inFile (fun path ->
            File.WriteAllText(path, MetricsLog.encode (at start) + "\n")
            File.AppendAllText(path, line + "\n", Encoding.Latin1)
            refused ($"{path}, line 2" :: words) (fun () -> MetricsLog.read path |> ignore)
            // what is cut off need not be whole
            Expect.equal (encoded (resumed path 1)) [| MetricsLog.encode (at start) |] "kept"))

[<Tests>]
let tests =
    testList
        "MetricsLog"
        [
            testCase "a notice with invisible characters is safe to print, and read back exactly" (fun () ->
                let text = "cat\u202Egnp \u200B\u001B[31m\u009B \U000E0041"
                let line = MetricsLog.encode (at (MetricsEvent.Notice text))
                Expect.equal (Text.visible line) line "printable"

                inFile (fun path ->
                    File.WriteAllText(path, line + "\n")

                    match (Array.exactlyOne (MetricsLog.read path)).Event with
                    | MetricsEvent.Notice read -> Expect.equal read text "text"
                    | other -> failtest $"{other}"))

            for name, event, expected in
                [
                    "start",
                    start,
                    """"event":"start","method":"lora-sub-drs","variant":"libcontinual","data":"größe \"x\"\n","seed":-7,"taskSizes":[5,3]}"""
                    "retained",
                    MetricsEvent.Retained(2, [| 3; 4 |], [| 0.5; infinity |]),
                    """"event":"retained","task":2,"ranks":[3,4],"energies":[0.5,null]}"""
                    "epoch",
                    epoch 1.5,
                    """"event":"epoch","task":0,"epoch":2,"loss":1.5,"accuracy":30,"learningRate":0.0005,"seconds":0.25}"""
                    "a loss that is no number",
                    epoch nan,
                    """"event":"epoch","task":0,"epoch":2,"loss":null,"accuracy":30,"learningRate":0.0005,"seconds":0.25}"""
                    "task",
                    task,
                    """"event":"task","task":1,"row":[[1,3],[2,2]],"seen":60,"new":100,"seconds":1.5}"""
                    "end",
                    MetricsEvent.End(Metrics.measure [| [| { Correct = 1; Total = 3 } |] |], 2.0),
                    """"event":"end","last":33.3333333333,"average":33.3333333333,"lastByTask":33.3333333333,"averageByTask":33.3333333333,"forgetting":null,"backwardTransfer":null,"forwardTransfer":null,"intransigence":null,"seconds":2}"""
                    "notice", MetricsEvent.Notice "a\nb", """"event":"notice","text":"a\nb"}"""
                ] do
                testCase $"the line of an event: {name}" (fun () ->
                    Expect.equal
                        (MetricsLog.encode (at event))
                        ("""{"time":"2025-03-18T12:34:56.789Z",""" + expected)
                        "line")

            testCase "times are in UTC, whatever the clock's zone" (fun () ->
                let local = time.ToOffset(TimeSpan.FromHours -5.0)

                Expect.equal
                    (MetricsLog.encode { at start with Time = local })
                    (MetricsLog.encode (at start))
                    "line")

            property "written, read and written again, a line is the same" (fun (c: Events) ->
                inFile (fun path ->
                    writeAll (MetricsLog.start path) c.Lines
                    let text = File.ReadAllText path

                    Expect.equal
                        text
                        (c.Text |> Array.map (fun line -> line + "\n") |> String.concat "")
                        "file"

                    let back = MetricsLog.read path
                    Expect.equal (encoded back) c.Text "lines"
                    Expect.equal (back |> Array.map _.Time) (c.Lines |> Array.map _.Time) "times"))

            testCase "numbers come back as fractions, null as NaN" (fun () ->
                inFile (fun path ->
                    writeAll (MetricsLog.start path) [| at (epoch nan); at task; at start |]

                    match MetricsLog.read path |> Array.map _.Event with
                    | [| MetricsEvent.Epoch epoch; task'; start' |] ->
                        Expect.isTrue (Double.IsNaN epoch.Loss) "loss"
                        closeTo 1e-12 "accuracy" [ 0.3 ] [ epoch.Accuracy ]
                        Expect.equal (task', start') (task, start) "the others"
                    | other -> failtest $"{other}"))

            testCase "each line is on disk when it is written" (fun () ->
                inFile (fun path ->
                    use writer = MetricsLog.start path
                    Expect.equal writer.Count 0 "none yet"

                    for count in 1..3 do
                        writer.Write(at task)
                        Expect.equal (MetricsLog.read path).Length count "read meanwhile"
                        Expect.equal writer.Count count "count"))

            property "torn anywhere in the last line, the others are read" (fun (c: Events) ->
                inFile (fun path ->
                    let whole = c.Text |> Array.map (fun line -> line + "\n") |> String.concat ""
                    let last = Encoding.UTF8.GetBytes(MetricsLog.encode (at start))
                    let torn = Array.truncate c.Torn last
                    File.WriteAllBytes(path, Array.append (Encoding.UTF8.GetBytes whole) torn)
                    Expect.equal (encoded (MetricsLog.read path)) c.Text "lines"
                    Expect.equal (encoded (resumed path c.Count)) c.Text "resumed"
                    Expect.equal (File.ReadAllText path) whole "the torn line is gone"))

            property
                "a run that goes on from a checkpoint has the file of one that never stopped"
                (fun (c: Events) ->
                    let kept = min c.Kept c.Count

                    inFile (fun path ->
                        writeAll (MetricsLog.start path) c.Lines
                        let whole = File.ReadAllText path
                        File.AppendAllText(path, whole.Substring(0, min c.Torn whole.Length))
                        let struct (lines, writer) = MetricsLog.resume path kept
                        Expect.equal (encoded lines) (Array.truncate kept c.Text) "kept"
                        Expect.equal writer.Count kept "count"
                        writeAll writer (Array.skip kept c.Lines)
                        Expect.equal (File.ReadAllText path) whole "file"

                        Expect.hasLength
                            (Directory.GetFiles(Path.GetDirectoryName path))
                            1
                            "nothing else left"))

            testCase "a missing file is one without lines, unless lines are needed" (fun () ->
                inFile (fun path ->
                    refused [ path; "the 1 lines"; "found 0" ] (fun () -> resumed path 1 |> ignore)
                    Expect.isFalse (File.Exists path) "not made"
                    Expect.isEmpty (resumed path 0) "no line"
                    Expect.equal (File.ReadAllText path) "" "made"
                    Expect.isEmpty (MetricsLog.read path) "nothing to read"))

            testCase "a file with fewer lines than the checkpoint is refused and kept" (fun () ->
                inFile (fun path ->
                    writeAll (MetricsLog.start path) [| at start |]
                    let before = File.ReadAllBytes path
                    refused [ path; "the 2 lines"; "found 1" ] (fun () -> resumed path 2 |> ignore)
                    Expect.equal (File.ReadAllBytes path) before "bytes"))

            testCase "a new file is refused where one is" (fun () ->
                inFile (fun path ->
                    File.WriteAllText(path, "mine")
                    refused [ path; "must not exist" ] (fun () -> MetricsLog.start path |> ignore)
                    Expect.equal (File.ReadAllText path) "mine" "kept"))

            testCase "a missing file cannot be read, nor a folder be missing" (fun () ->
                inFile (fun path ->
                    refused [ path; "no such file" ] (fun () -> MetricsLog.read path |> ignore)
                    let lost = Path.Combine(path, "metrics.jsonl")
                    refused [ lost; "folder that exists" ] (fun () -> MetricsLog.start lost |> ignore)))

            testCase "a folder is no file to write" (fun () ->
                Probe.inFolder (fun folder ->
                    refused [ folder; "a folder" ] (fun () -> MetricsLog.start folder |> ignore)
                    refused [ folder; "a folder" ] (fun () -> resumed folder 0 |> ignore)))

            let line = MetricsLog.encode (at task)
            damaged "no JSON" "{\"event\":" [ "must be JSON" ]
            damaged "an empty line" "" [ "must be JSON" ]
            damaged "zeros, as a lost block leaves them" (String('\000', 20)) [ "must be JSON" ]
            damaged "two objects" (line + line) [ "must be JSON" ]
            damaged "no object" "7" [ "a line of metrics" ]
            damaged "no UTF-8" (line.Replace("task", "t\xE9sk")) []

            damaged
                "no UTF-8 in a text"
                "{\"time\":\"2025-03-18T12:34:56.789Z\",\"event\":\"notice\",\"text\":\"\xE9\"}"
                []

            damaged "no time" (line.Replace("time", "tame")) [ "a line of metrics" ]
            damaged "a time that is none" (line.Replace("2025-03-18", "2025-13-18")) [ "a line of metrics" ]

            testCase "an event of a later version is skipped, but no run is resumed over it" (fun () ->
                inFile (fun path ->
                    let later = line.Replace("\"event\":\"task\"", "\"event\":\"tusk\"")
                    File.WriteAllText(path, line + "\n" + later + "\n" + line + "\n")
                    Expect.equal (encoded (MetricsLog.read path)) [| line; line |] "the others"
                    refused [ $"{path}, line 2"; "known event" ] (fun () -> resumed path 3 |> ignore)))

            damaged "a missing member" (line.Replace("\"row\"", "\"raw\"")) [ "a line of metrics" ]
            damaged "another kind" (line.Replace("\"task\":1", "\"task\":\"1\"")) [ "a line of metrics" ]
            damaged "a fraction" (line.Replace("\"task\":1", "\"task\":1.5")) [ "a line of metrics" ]

            damaged
                "a number too large"
                (line.Replace("\"task\":1", "\"task\":99999999999"))
                [ "a line of metrics" ]

            damaged "a short row" (line.Replace("[1,3],", "")) [ "2 scores"; "1" ]

            damaged
                "more correct than images"
                (line.Replace("[1,3]", "[4,3]"))
                [ "correct answers"; "4 of 3" ]

            damaged "half a score" (line.Replace("[1,3]", "[3]")) [ "[correct, total]" ]
            damaged "no image" (line.Replace("[1,3]", "[0,0]")) [ "correct answers"; "0 of 0" ]
            damaged "nested too deep" (String('[', 5000)) [ "must be JSON" ]

            property "any one byte changed is refused by file and line, or read" (fun (c: Events) ->
                inFile (fun path ->
                    writeAll (MetricsLog.start path) c.Lines
                    let bytes = File.ReadAllBytes path

                    if bytes.Length > 0 then
                        let random = Random c.Seed
                        bytes[random.Next bytes.Length] <- byte (random.Next 256)
                        File.WriteAllBytes(path, bytes)

                        try
                            MetricsLog.read path |> ignore
                        with :? InputException as e ->
                            Expect.stringContains e.Message path "the file's name"))
        ]
