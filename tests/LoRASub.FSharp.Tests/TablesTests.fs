module LoRASub.Tests.TablesTests

open System
open System.Text.RegularExpressions
open Expecto
open FsCheck
open FsCheck.FSharp
open LoRASub
open LoRASub.Reports
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
    Markup.clean (text.ReplaceLineEndings " ")

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

                    let studies = RunData.loadAll [| a; b |]
                    let differences = (Tables.differences studies).Value

                    let forgetting =
                        differences.Rows |> Array.find (fun row -> row[0].StartsWith "forgetting")

                    Expect.stringContains forgetting[1] "n = 2" "seeds in common"
                    Expect.stringStarts forgetting[1] "+" "more decay forgets more"

                    let settings = (Tables.settingDifferences studies).Value

                    Expect.equal
                        settings.Rows
                        [| [| "projection"; "true"; "false" |]; [| "seed"; "1, 2, 3"; "2, 3, 4" |] |]
                        "settings that differ"

                    let all = (Tables.settings studies).Value
                    Expect.equal (Array.filter id all.Marked).Length 2 "marked"

                    Expect.isTrue
                        (all.Rows |> Array.exists (fun row -> row[0] = "≠ projection"))
                        "not by colour alone"

                    let markdown = Tables.markdown studies
                    Expect.stringContains markdown @"b\|2" "escaped names"
                    Expect.stringContains markdown "±" "intervals"
                    let rows = markdown.Split '\n' |> Array.filter _.StartsWith("| ")
                    Expect.all rows (fun row -> row.EndsWith " |") "closed rows"

                    let latex = Tables.latex studies
                    Expect.stringContains latex @"a\_1 & b\textbar{}2 \\" "header"
                    Expect.stringContains latex @"$\pm$" "intervals"

                    Expect.equal
                        (Regex.Matches(latex, @"\\begin")).Count
                        (Regex.Matches(latex, @"\\end")).Count
                        "ends"))

            testCase "every row of every table is as long as its header" (fun () ->
                let other = FiguresTests.studiesOf [ "other", small ] id

                for name, studies in FiguresTests.shapeStudies.Value do
                    for studies in [ studies; Array.append studies other ] do
                        let tables =
                            [
                                yield! Tables.forPapers studies
                                yield! Option.toList (Tables.settings studies)
                                yield! Option.toList (Tables.environment studies)
                            ]

                        for table in tables do
                            for row in table.Rows do
                                Expect.equal row.Length table.Header.Length $"{name}: {table.Id}")

            testCase "runs of other lengths and seeds are not paired" (fun () ->
                let paired other =
                    FiguresTests.studiesOf [ "a", small; "b", other ] Tables.differences

                Expect.isNone (paired { small with Tasks = 2; Learned = 2 }) "fewer tasks"
                Expect.isNone (paired { small with Seed = 2L }) "another seed"
                let same = (paired small).Value
                let row = same.Rows[0]
                Expect.equal (row[1]) "0.00 (n = 1)" "no difference to itself")

            testCase "one line says what came out" (fun () ->
                FiguresTests.studiesOf [ "run", small ] (fun studies ->
                    let verdict = Tables.verdict studies[0]
                    Expect.stringContains verdict "lora-sub-drs on fashion-mnist" "what ran"
                    Expect.stringContains verdict "after 3 tasks" "tasks")

                FiguresTests.studiesOf [ "run", { small with Learned = 0 } ] (fun studies ->
                    Expect.equal (Tables.verdict studies[0]) "No task is finished yet." "nothing yet"))

            testCase "why a measure is missing is said" (fun () ->
                FiguresTests.studiesOf [ "run", small ] (fun studies ->
                    let table = Tables.results studies

                    Expect.isFalse
                        (table.Rows |> Array.exists (fun row -> row[0].StartsWith "forward"))
                        "no row"

                    Expect.stringContains table.Note "Forward transfer: needs a reference run" "note"))
        ]
