/// The example scripts, run as a reader runs them: on the library's build folder.
module LoRASub.Tests.ScriptTests

open System
open System.Diagnostics
open System.IO
open System.Text
open System.Text.RegularExpressions
open System.Threading.Tasks
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Cli
open Expecto

type private Ended =
    {
        Code: int
        Lines: string[]
        Error: string
    }

let private startWith (arguments: string list) (script: string) : Task<Ended> =
    task {
        let path = Path.Combine(Probe.repository (), "scripts", script)
        let info = ProcessStartInfo(Probe.dotnet, "fsi" :: path :: arguments)

        info.RedirectStandardOutput <- true
        info.RedirectStandardError <- true
        info.StandardOutputEncoding <- Encoding.UTF8
        // they run side by side
        info.Environment["OMP_NUM_THREADS"] <- "1"
        info.Environment["DOTNET_NOLOGO"] <- "1"
        use child = Process.Start info
        use limit = new Threading.CancellationTokenSource(TimeSpan.FromMinutes 5.0)
        let out = child.StandardOutput.ReadToEndAsync()
        let error = child.StandardError.ReadToEndAsync()

        try
            do! child.WaitForExitAsync limit.Token
        with :? OperationCanceledException ->
            child.Kill true
            child.WaitForExit()

        let! out = out
        let! error = error

        return
            {
                Code = child.ExitCode
                Lines = out.Split('\n', StringSplitOptions.TrimEntries)
                Error = error
            }
    }

let private start = startWith []

let private names =
    [|
        "two-tasks.fsx"
        "ablation.fsx"
        "retained-space.fsx"
        "drift.fsx"
        "own-method.fsx"
        "own-head.fsx"
        "own-data.fsx"
        "own-transform.fsx"
    |]

let private all = lazy (names |> Array.map start |> Task.WhenAll)

/// The only line that fits, after the script ended well.
let private line (script: string) (pattern: string) : Match =
    Probe.requireSdk ()
    let ended = all.Value.Result[Array.IndexOf(names, script)]
    Expect.equal ended.Code 0 $"exit code; {ended.Error}"

    match
        ended.Lines
        |> Array.map (fun l -> Regex.Match(l, pattern))
        |> Array.filter _.Success
    with
    | [| found |] -> found
    | other -> failtest $"{other.Length} lines fit {pattern} in:\n{String.Join('\n', ended.Lines)}"

/// A finished run of six tasks of 400 images, with heads whose right answers on each task in the end are given.
let private writeRun (folder: string) (settings: (string * string) list) (heads: (string * int list) list) =
    let sample =
        { SampleRuns.small with
            Tasks = 6
            Learned = 6
            Seed = 0L
            Settings = ("tasks", "6") :: settings
        }

    SampleRuns.write folder sample
    let path = Path.Combine(folder, "summary.json")
    let struct (summary, measures) = SummaryFile.load path

    let line (name: string, correct: int list) =
        let last =
            correct |> List.map (fun n -> { Correct = n; Total = 400 }) |> Array.ofList

        let matrix = Array.append (Array.truncate 5 summary.CorrectAndTotal) [| last |]

        {
            Head = name
            Last = Metrics.percent (Metrics.accuracy (Metrics.seen last))
            Average = 50.0
            Forgetting = None
            Bytes = 2_000_000L
            Recomputed = None
            CorrectAndTotal = matrix
        }

    SummaryFile.toJson
        measures
        { summary with
            Heads = Some(heads |> List.map line |> Array.ofList)
        }
    |> Json.write path

[<Tests>]
let tests =
    testList
        "Scripts"
        [
            testCase "two-tasks shows the retained ranks and the accuracy matrix" (fun () ->
                let ranks = line "two-tasks.fsx" @"^retained rank per block:( \d+){6} of 192$"

                for rank in ranks.Groups[1].Captures do
                    Expect.isLessThan (int rank.Value) 192 "a proper subspace"

                line "two-tasks.fsx" @"^[\d.]+ +[\d.]+$" |> ignore
                line "two-tasks.fsx" @"^last [\d.]+, average [\d.]+$" |> ignore)

            testCase "ablation: old class means move less inside the retained space" (fun () ->
                let moved name =
                    float (line "ablation.fsx" $@"^{name} +([\d.]+) +[\d.]+$").Groups[1].Value

                Expect.isLessThan (moved "as published") (moved "no projection") "movement of the means"
                Expect.isGreaterThan (moved "no subtraction") 0.0 "movement without subtraction")

            testCase
                "drift: the retained space holds the class means, and a report shows both runs"
                (fun () ->
                    let moved name =
                        float
                            (line "drift.fsx" $@"^{name} +4 old classes moved by ([\d.]+) spreads")
                                .Groups[1].Value

                    Expect.isLessThan (moved "confined") (moved "free") "movement"
                    let report = line "drift.fsx" @"^report: (.+), (\d+) bytes$"
                    Expect.isGreaterThan (float report.Groups[2].Value) 1e6 "a page with Plotly inside")

            for script, name in
                [
                    "own-method.fsx", "fading"
                    "own-head.fsx", "centred"
                    "own-data.fsx", "stripes"
                ] do
                testCase $"{script} learns two tasks" (fun () ->
                    let accuracy = line script $@"^{name}: accuracy ([\d.]+) %%$"
                    // four classes: chance is 25
                    Expect.isGreaterThan (float accuracy.Groups[1].Value) 50.0 "accuracy")

            testCase "own-transform.fsx lowers the loss" (fun () ->
                Probe.requireSdk ()
                let ended = all.Value.Result[Array.IndexOf(names, "own-transform.fsx")]
                Expect.equal ended.Code 0 $"exit code; {ended.Error}"

                let losses =
                    ended.Lines
                    |> Array.map (fun l -> Regex.Match(l, @"^loss ([\d.]+)$"))
                    |> Array.filter _.Success
                    |> Array.map (fun found -> float found.Groups[1].Value)

                Expect.hasLength losses 20 "steps"
                // two classes: ln 2 where nothing is known
                Expect.floatClose Accuracy.low losses[0] 0.6931 "at first"
                Expect.isLessThan losses[19] 0.35 "in the end")

            testCase "what is shown as a few lines is under 30" (fun () ->
                Probe.requireSdk ()

                for script in names |> Array.filter _.StartsWith("own-", StringComparison.Ordinal) do
                    let lines = File.ReadAllLines(Path.Combine(Probe.repository (), "scripts", script))
                    Expect.isLessThan lines.Length 30 script)

            testCase "compare writes a table of the runs that are there, with paired intervals" (fun () ->
                Probe.requireSdk ()

                Probe.inFolder (fun folder ->
                    let run name =
                        Path.Combine(folder, "runs", "fashion-mnist", name)

                    let frozen = [ 200; 120; 160; 80; 240; 160 ] // 960 of 2,400
                    let nearest = "nearest-mean@class-token", [ for _ in 1..6 -> 100 ]

                    writeRun (run "method-frozen") [] [ nearest; "cosine-lda@all-blocks", frozen ]

                    // 1, 2, … 6 points more: 3.5 on average, and 2.571·√(3.5/6) = 1.96 to either side
                    writeRun
                        (run "method-lora-sub-drs")
                        []
                        [
                            nearest
                            "cosine-lda@all-blocks", frozen |> List.mapi (fun i n -> n + 4 * (i + 1))
                        ]

                    // another class order: the tasks are not the same
                    writeRun
                        (run "method-null-space")
                        [ "class-order", "seed1993" ]
                        [ nearest; "cosine-lda@all-blocks", List.rev frozen ]

                    let page = Path.Combine(folder, "page.md")

                    let ended =
                        (startWith
                            [ "--write"; "--runs"; Path.Combine(folder, "runs"); "--page"; page ]
                            "compare.fsx")
                            .Result

                    Expect.equal ended.Code 0 $"exit code; {ended.Error}"
                    let lines = File.ReadAllLines page

                    for row in
                        [
                            "| `frozen` | 25.0 | 40.0 | – | – | – |"
                            "| `lora-sub-drs` | 25.0 | 43.5 | +3.5 ± 2.0 | – | – |"
                            "| `null-space` | 25.0 | 40.0 | 0.0 | – | – |"
                        ] do
                        Expect.contains lines row "the table of methods"

                    Expect.isFalse (lines |> Array.exists _.Contains("CIFAR")) "no runs, no table"))

            testCase "each row of the comparison is a command that the program takes" (fun () ->
                Probe.requireSdk ()
                let ended = (startWith [ "--list"; "--cifar"; "some/folder" ] "compare.fsx").Result
                Expect.equal ended.Code 0 $"exit code; {ended.Error}"
                let commands = ended.Lines |> Array.filter ((<>) "")

                for command in commands do
                    match command.Split(' ', StringSplitOptions.RemoveEmptyEntries) with
                    | [||] -> ()
                    | words ->
                        match Arguments.parse (Array.tail words) with
                        | Arguments.Command.Run _ -> ()
                        | other -> failtest $"{command} is {other}"

                for name in Methods.names do
                    Expect.exists commands _.Contains($"--method {name} ") name)

            testCase "retained-space states invariants that hold" (fun () ->
                line "retained-space.fsx" @"^x ⟂ U_k keeps its image: A x = A₀ x +\d\.\de[+-]\d+$"
                |> ignore)
        ]
