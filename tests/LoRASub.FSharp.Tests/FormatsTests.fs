module LoRASub.Tests.FormatsTests

open System
open System.IO
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open Expecto

/// Two seeds, stopped after two of five tasks, written before the files had record types.
let folder = Path.Combine(AppContext.BaseDirectory, "saved-runs")

type SamplesOnly =
    {
        Samples: SampleLine[]
        Scores: Score[]
    }

let private seed3 name = Path.Combine(folder, "seed-3", name)

/// The file's record, written again.
let private again<'T> (path: string) : string =
    Probe.inFolder (fun folder ->
        let copy = Path.Combine(folder, "copy.json")
        Json.save copy (Json.load<'T> "a file of a run" path)
        File.ReadAllText copy)

[<Tests>]
let tests =
    testList
        "Formats"
        [
            for name, again in
                [
                    "classes.json", again<ClassesFile>
                    "drift.json", again<DriftFile>
                    "resources.json", again<ResourcesFile>
                    "sources.json", again<SourcesFile>
                    "../statistics.json", again<StatisticsFile>
                    "../seeds.json", again<SeedsFile>
                ] do
                testCase $"a saved file is read, and written to the same bytes: {name}" (fun () ->
                    Expect.equal (again (seed3 name)) (File.ReadAllText(seed3 name)) "text")

            testCase "a saved summary is read, and written to the same bytes with its measures" (fun () ->
                Probe.inFolder (fun folder ->
                    let copy = Path.Combine(folder, "summary.json")
                    let struct (summary, measures) = SummaryFile.load (seed3 "summary.json")
                    Json.write copy (SummaryFile.toJson measures summary)
                    Expect.equal (File.ReadAllText copy) (File.ReadAllText(seed3 "summary.json")) "text"

                    for KeyValue(name, value) in Metrics.measure summary.CorrectAndTotal do
                        Check.closeTo 1e-12 name [ value ] [ measures[name] ]))

            testCase "a summary with several heads is read as it was written" (fun () ->
                Probe.inFolder (fun folder ->
                    let copy = Path.Combine(folder, "summary.json")
                    let struct (older, measures) = SummaryFile.load (seed3 "summary.json")
                    Expect.equal older.Heads None "older files have none"

                    let line name recomputed forgetting : HeadLine =
                        {
                            Head = name
                            Last = 61.5
                            Average = 70.25
                            Forgetting = forgetting
                            Bytes = 123456789012L
                            Recomputed = recomputed
                            CorrectAndTotal = older.CorrectAndTotal
                        }

                    let heads =
                        [|
                            line "lda@rich" None (Some 1.5)
                            line "nearest-mean@class-token" (Some 62.0) None
                        |]

                    Json.write copy (SummaryFile.toJson measures { older with Heads = Some heads })
                    let struct (again, measuresAgain) = SummaryFile.load copy
                    Expect.equal again.Heads (Some heads) "heads"
                    Expect.equal measuresAgain measures "measures"))

            testCase "saved metrics are read, and written to the same lines" (fun () ->
                let path = seed3 "metrics.jsonl"

                Expect.equal
                    (MetricsLog.read path |> Array.map MetricsLog.encode)
                    (File.ReadAllLines path)
                    "lines")

            testCase "a saved run is reported, referred to and counted" (fun () ->
                let group = RunData.loadAll [| folder |] |> Array.exactlyOne
                Expect.equal (group.Runs |> Array.map _.Seed) [| 3L; 4L |] "seeds"
                let run = group.Runs[0]
                Expect.equal (run.Tasks, run.Matrix.Length) (5, 2) "tasks"
                Expect.equal run.Epochs.Length 2 "epochs"
                let settings = run.Settings.Value
                Expect.equal (settings.Tasks, settings.StopAfter, settings.Seed) (5, Some 2, 3L) "settings"
                Expect.equal settings.Method.Adam.Epsilon 1e-8 "a number in another form"
                Expect.isSome run.Drift "drift"
                Expect.isNonEmpty (Figures.all [| group |]) "figures"
                let reference = Reference.read (Path.Combine(folder, "seed-3"))
                Expect.isTrue reference.Trained "trained"

                Expect.equal
                    (reference.Classes |> Array.map _.Name)
                    [| "T-shirt/top"; "Trouser"; "Pullover"; "Dress" |]
                    "classes"

                Expect.equal
                    (Evaluation.lastRow (Path.Combine(folder, "seed-3")))
                    (Array.last run.Matrix)
                    "last row"

                let statistics =
                    Statistics.ofSeeds
                        [| for seed in SeedFolders.seeds folder -> SeedFolders.result folder seed |]

                let saved =
                    JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "statistics.json")))

                let now = Json.ofRecord (Statistics.toFile statistics)

                for measure in Metrics.all do
                    for field in [ "n"; "mean"; "deviation"; "values" ] do
                        let text (file: JsonNode) =
                            match file["measures"].[measure.Name].[field] with
                            | null -> "null"
                            | node -> node.ToJsonString()

                        Expect.equal (text now) (text saved) $"{measure.Name}, {field}")

            testCase "what is undefined is null, and NaN when read" (fun () ->
                let movement: DriftFile.Movement =
                    {
                        Euclidean = -0.0
                        Cosine = nan
                        Relative = infinity
                    }

                let json = (Json.ofRecord movement).ToJsonString()
                Expect.equal json """{"euclidean":0,"cosine":null,"relative":null}""" "text"
                use document = JsonDocument.Parse json
                let back = Json.toRecord<DriftFile.Movement> document.RootElement
                Expect.equal back.Euclidean 0.0 "number"
                Expect.isTrue (Double.IsNaN back.Cosine && Double.IsNaN back.Relative) "undefined")

            testCase "a missing field, a null and another kind of value are refused by name" (fun () ->
                let refused (json: string) words =
                    Check.refused words (fun () ->
                        Json.parse
                            "classes"
                            "c.json"
                            (ReadOnlyMemory(Text.Encoding.UTF8.GetBytes json))
                            Json.toRecord<SamplesOnly>
                        |> ignore)

                refused """{"samples":[]}""" [ "c.json"; "no 'scores'" ]
                refused """{"samples":null,"scores":[]}""" [ "'samples' is null" ]
                refused """{"samples":[null],"scores":[]}""" [ "'samples' holds null" ]
                refused """{"samples":[],"scores":[[1]]}""" [ "[correct, total]" ]
                refused """{"samples":[],"scores":7}""" [ "another kind"; "scores" ]
                refused """{"samples":[],"scores":[],}""" [ "must be JSON" ]
                refused "null" [ "must be classes" ])
        ]
