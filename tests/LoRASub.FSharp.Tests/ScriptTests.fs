/// The example scripts, run as a reader runs them: on the library's build folder.
module LoRASub.Tests.ScriptTests

open System
open System.Diagnostics
open System.IO
open System.Text
open System.Text.RegularExpressions
open System.Threading.Tasks
open Expecto

type private Ended =
    {
        Code: int
        Lines: string[]
        Error: string
    }

let private start (script: string) : Task<Ended> =
    task {
        let info =
            ProcessStartInfo(Probe.dotnet, [ "fsi"; Path.Combine(Probe.repository (), "scripts", script) ])

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

let private names =
    [|
        "two-tasks.fsx"
        "ablation.fsx"
        "retained-space.fsx"
        "drift.fsx"
        "own-method.fsx"
        "own-head.fsx"
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

            for script, name in [ "own-method.fsx", "fading"; "own-head.fsx", "centred" ] do
                testCase $"{script} learns two tasks" (fun () ->
                    let accuracy = line script $@"^{name}: accuracy ([\d.]+) %%$"
                    // four classes: chance is 25
                    Expect.isGreaterThan (float accuracy.Groups[1].Value) 50.0 "accuracy")

            testCase "retained-space states invariants that hold" (fun () ->
                line "retained-space.fsx" @"^x ⟂ U_k keeps its image: A x = A₀ x +\d\.\de[+-]\d+$"
                |> ignore)
        ]
