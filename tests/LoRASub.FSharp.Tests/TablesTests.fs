module LoRASub.Tests.TablesTests

open System
open System.IO
open System.Text.RegularExpressions
open LoRASub.Files
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open Expecto
open FsCheck
open FsCheck.FSharp
open LoRASub.Tests.SampleRuns

let private law name (property: string -> unit) : Test =
    let hostile =
        Gen.listOf (Gen.elements (List.ofSeq "\\{}$&#_%^~<>|\"[]*`!@:\n\r\t ab−±é"))
        |> Gen.map (Array.ofList >> String)

    Check.propertyWith (Arb.fromGen hostile) 300 "Tables" name property

/// What a Markdown reader makes of backslashes.
let private unescaped (markdown: string) =
    Regex.Replace(markdown, @"\\([!-/:-@\[-`{-~])", "$1")

let private oneLine (text: string) =
    Format.clean (text.ReplaceLineEndings " ")

let private cells (row: string) = Regex.Split(row, @"(?<!\\)(?:\\\\)*\|")

[<Tests>]
let tests =
    testList
        "Tables"
        [
            law "Markdown shows the text itself, in one cell" (fun text ->
                let markdown = Tables.markdownText text
                Expect.equal (unescaped markdown) (oneLine text) "read back"
                Expect.equal (cells markdown).Length 1 "no cell ends in it"
                Expect.isFalse (markdown.Contains '\n') "one line")

            law "LaTeX is left no character that commands" (fun text ->
                let latex = Tables.latexText text
                // commands of our own taken out
                let rest =
                    Regex.Replace(
                        latex,
                        @"\\text[a-z]+\{\}|\\dots\{\}|\$\\[a-z]+\$|\$-\$|\\[{}$&#_%]|\{[\[\]*]\}",
                        ""
                    )

                Expect.isFalse (Regex.IsMatch(rest, @"[\\{}$&#_%^~<>|""\[\]*\n]")) $"{latex}")

            testCase "the tables of a comparison" (fun () ->
                Probe.inFolder (fun folder ->
                    let a, b = IO.Path.Combine(folder, "a_1"), IO.Path.Combine(folder, "b|2")
                    writeSeeds a [ 1L; 2L; 3L ] small

                    writeSeeds
                        b
                        [ 2L; 3L; 4L ]
                        { small with
                            Decay = 0.05
                            Settings = [ "projection", "false" ]
                        }

                    let groups = RunData.loadAll [| a; b |]
                    let differences = (Tables.differences groups).Value

                    let forgetting =
                        differences.Rows |> Array.find (fun row -> row[0].StartsWith "forgetting")

                    Expect.stringContains forgetting[1] "n = 2" "seeds in common"
                    Expect.stringStarts forgetting[1] "+" "more decay forgets more"

                    let settings = (Tables.settingDifferences groups).Value

                    Expect.equal
                        settings.Rows
                        [| [| "seed"; "1, 2, 3"; "2, 3, 4" |]; [| "projection"; "true"; "false" |] |]
                        "settings that differ"

                    let all = (Tables.settings groups).Value
                    Expect.equal all.Marked.Count 2 "marked"

                    Expect.isTrue
                        (all.Rows |> Array.exists (fun row -> row[0] = "≠ projection"))
                        "not by colour alone"

                    let markdown = Tables.markdown groups
                    Expect.stringContains markdown @"b\|2" "escaped names"
                    Expect.stringContains markdown "±" "intervals"
                    Expect.stringContains markdown "**" "best values"
                    let rows = markdown.Split '\n' |> Array.filter _.StartsWith("| ")
                    Expect.all rows (fun row -> row.EndsWith " |") "closed rows"

                    let latex = Tables.latex groups
                    Expect.stringContains latex @"a\_1 & b\textbar{}2 \\" "header"
                    Expect.stringContains latex @"$\pm$" "intervals"
                    Expect.stringContains latex @"\textbf{" "best values"

                    Expect.stringContains
                        latex
                        @"\caption{Differences from ``a\_1'', paired by seed."
                        "a caption in English"

                    Expect.equal
                        (Regex.Matches(latex, @"\\begin")).Count
                        (Regex.Matches(latex, @"\\end")).Count
                        "ends"))

            testCase "the heads of a run have a table where there are several" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 1L; 2L ] small
                    let groups = RunData.loadAll [| folder |]
                    Expect.isNone (Tables.heads groups) "runs of one head, or of older programs"

                    let line head last recomputed : HeadLine =
                        {
                            Head = head
                            Last = last
                            Average = 60.0
                            Forgetting = None
                            Bytes = 2_500_000L
                            Recomputed = recomputed
                            CorrectAndTotal = [||]
                        }

                    let withHeads (i: int) (run: RunData) =
                        { run with
                            Heads =
                                [|
                                    line "nearest-mean@class-token" (50.0 + float i) None
                                    line "cosine-lda@rich" 70.0 (Some 71.0)
                                |]
                        }

                    let of' name : RunGroup =
                        { groups[0] with
                            Name = name
                            Runs = groups[0].Runs |> Array.mapi withHeads
                        }

                    let table = (Tables.heads [| of' "a" |]).Value

                    Expect.equal
                        (Array.map (Array.item 0) table.Rows)
                        [| "nearest-mean@class-token"; "cosine-lda@rich" |]
                        "heads"

                    Expect.stringStarts (table.Rows[0][1]) "50.50 ± " "two seeds"

                    Expect.equal
                        table.Rows[1]
                        [| "cosine-lda@rich"; "70.00"; "60.00"; Format.none; "71.00"; "2.5" |]
                        "a head"

                    let both = (Tables.heads [| of' "a"; of' "b" |]).Value
                    Expect.equal (Array.map (Array.item 0) both.Rows) [| "a"; "a"; "b"; "b" |] "runs"))

            testCase "every row of every table is as long as its header" (fun () ->
                let other = FiguresTests.groupsOf [ "other", small ] id

                for name, groups in FiguresTests.shapeGroups.Value do
                    for groups in [ groups; Array.append groups other ] do
                        let tables =
                            [
                                yield! Tables.forPapers groups
                                yield! Option.toList (Tables.settings groups)
                                yield! Option.toList (Tables.environment groups)
                            ]

                        for table in tables do
                            for row in table.Rows do
                                Expect.equal row.Length table.Header.Length $"{name}: {table.Id}")

            testCase "runs of other lengths and seeds are not paired" (fun () ->
                let paired other =
                    FiguresTests.groupsOf [ "a", small; "b", other ] Tables.differences

                Expect.isNone (paired { small with Tasks = 2; Learned = 2 }) "fewer tasks"
                Expect.isNone (paired { small with Seed = 2L }) "another seed"
                let same = (paired small).Value
                let row = same.Rows[0]
                Expect.equal (row[1]) "0.00 (n = 1)" "no difference to itself")

            testCase "one sentence names method, protocol and result" (fun () ->
                FiguresTests.groupsOf [ "run", small ] (fun groups ->
                    let verdict = Tables.verdict groups[0]

                    Expect.stringStarts
                        verdict
                        "lora-sub-drs on fashion-mnist, 3 tasks of 4 classes, backbone vit_micro: "
                        "what ran"

                    Expect.stringContains verdict " % accuracy after 3 tasks, " "result"
                    Expect.isFalse (verdict.Contains "±") "one seed has no interval")

                FiguresTests.groupsOf
                    [
                        "run",
                        { small with
                            Tasks = 9
                            Settings = [ "stop-after", "3" ]
                        }
                    ]
                    (fun groups ->
                        Expect.stringContains
                            (Tables.verdict groups[0])
                            "after 3 of 9 tasks (stopped early)"
                            "stopped")

                FiguresTests.groupsOf [ "run", { small with Learned = 0 } ] (fun groups ->
                    Expect.equal (Tables.verdict groups[0]) "No task is finished yet." "nothing yet"))

            testCase "a seed that is not finished counts nowhere beside one that is" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 1L; 2L ] small
                    File.Delete(Path.Combine(folder, "seed-2", "summary.json"))
                    let group = (RunData.loadAll [| folder |])[0]
                    Expect.hasLength group.Runs 2 "both are read"

                    Expect.all
                        (RunGroup.accuracies group |> Array.concat)
                        (fun accuracy -> accuracy.N <= 1)
                        "matrix"

                    let curve = Marks.overRuns (fun run -> [| float run.Seed |]) group
                    Expect.equal curve[0].Mean 1.0 "curves"))

            testCase "several seeds have an interval, the same run under several seeds has none" (fun () ->
                let verdict seeds =
                    Probe.inFolder (fun folder ->
                        writeSeeds folder seeds small
                        let groups = RunData.loadAll [| folder |]
                        Tables.verdict groups[0], Tables.results groups)

                let verdict', results = verdict [ 1L; 2L; 3L ]
                Expect.stringContains verdict' "% accuracy (95% interval ± " "labelled"
                Expect.stringEnds verdict' "; mean of 3 seeds." "seeds"
                Expect.stringContains results.Note "± is half of the 95% interval" "its meaning"

                Probe.inFolder (fun folder ->
                    // no seed is used: each run gives the same numbers
                    for seed in [ 1L; 2L; 3L ] do
                        let one = IO.Path.Combine(folder, $"seed-{seed}")
                        write one small
                        let path = IO.Path.Combine(one, "summary.json")
                        let struct (summary, measures) = SummaryFile.load path
                        Json.write path (SummaryFile.toJson measures { summary with Seed = seed })

                    let groups = RunData.loadAll [| folder |]
                    let results = Tables.results groups
                    Expect.stringEnds (Tables.verdict groups[0]) "; the same for 3 seeds." "said so"

                    Expect.isFalse
                        (results.Rows |> Array.exists (Array.exists _.Contains("±")))
                        "no interval"

                    Expect.stringContains results.Note "the same for all seeds" "note"))

            testCase "the best value of each row is bold, by its measure's direction" (fun () ->
                let bold samples =
                    FiguresTests.groupsOf samples (fun groups ->
                        let table = Tables.results groups

                        Map.ofSeq
                            [
                                for row, column in table.Bold ->
                                    (table.Rows[row][0]).Split(' ')[0], table.Header[column]
                            ])

                let found = bold [ "worse", { small with Decay = 0.2 }; "better", small ]
                Expect.equal found["last"] "better" "higher is better"
                Expect.equal found["forgetting"] "better" "lower is better"
                Expect.equal found["backward"] "better" "higher is better, below zero"
                Expect.isEmpty (bold [ "run", small ]) "nothing to compare"
                Expect.isEmpty (bold [ "a", small; "b", { small with ClassesPerTask = 2 } ]) "not comparable")

            testCase "what is only recorded is no setting that differs" (fun () ->
                let differences (more: (string * string) list) =
                    let other =
                        { small with
                            Settings = ("lr", "0.1") :: more
                        }

                    FiguresTests.groupsOf [ "a", small; "b", other ] (fun groups ->
                        (Tables.settingDifferences groups).Value.Rows |> Array.map (fun row -> row[0]))

                let recording =
                    [
                        "tensorboard", "true"
                        "checkpoint-minutes", "1"
                        "drift", "false"
                        "reference", "elsewhere/reference"
                        "backbone", "elsewhere/vit_micro.safetensors"
                    ]

                Expect.equal (differences recording) [| "lr" |] "the learning rate only"

                Expect.equal
                    (differences [ "backbone", "vit_b.safetensors" ])
                    [| "backbone"; "lr" |]
                    "another network")

            testCase "why a measure is missing is noted" (fun () ->
                FiguresTests.groupsOf [ "run", small ] (fun groups ->
                    let table = Tables.results groups

                    Expect.isFalse
                        (table.Rows |> Array.exists (fun row -> row[0].StartsWith "forward"))
                        "no row"

                    Expect.stringContains table.Note "No forward transfer: needs a reference run" "note"))
        ]
