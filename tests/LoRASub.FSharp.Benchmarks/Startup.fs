/// How long the program takes to say anything.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Startup

open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Heads
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Report
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results

[<Literal>]
let private Rounds = 15

/// Seconds from a process's start to its end; raises where it fails.
let private seconds (program: string) (arguments: string list) () : float =
    let info = ProcessStartInfo(program, arguments)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true

    let struct (code, seconds) =
        timed (fun () ->
            use child = Process.Start info
            let errors = child.StandardError.ReadToEndAsync()
            child.StandardOutput.ReadToEnd() |> ignore
            child.WaitForExit()
            errors.Wait()
            child.ExitCode)

    if code <> 0 then
        failwith $"{program} ended with {code}"

    seconds

let private measure (options: Options) : Findings =
    let folder =
        Path.Combine(options.Root, "src", "LoRASub.FSharp.Cli", "bin", "Release", "net10.0")

    let assembly = Path.Combine(folder, "lorasub.dll")

    if not (File.Exists assembly) then
        Errors.reject assembly "must be built" "no such file" "run dotnet fsi build.fsx -t Build"

    let contestants =
        [
            "dotnet --version", seconds "dotnet" [ "--version" ]
            "dotnet lorasub.dll --help", seconds "dotnet" [ assembly; "--help" ]
            "lorasub --help", seconds (Path.Combine(folder, "lorasub")) [ "--help" ]
        ]

    for _, start in contestants do
        start () |> ignore

    let timings =
        inTurns (max Rounds options.Rounds) contestants
        |> List.map (fun (name, seconds) -> { Name = name; Seconds = seconds })

    {
        Text =
            [
                "Processes from their start to their end, in turns, after one start of each that does not count. The"
                + " program is what a Release build leaves; a published one is compiled ahead and starts faster."
            ]
        Tables =
            [
                {
                    Caption = "Milliseconds"
                    Columns = [ "command"; "ms"; "/ dotnet --version" ]
                    Rows =
                        [
                            for timing in timings do
                                [
                                    Cell.Text $"`{timing.Name}`"
                                    milliseconds (Timing.spread timing)
                                    Cell.Measured(Timing.ratio timing timings.Head)
                                ]
                        ]
                }
            ]
        Targets =
            [
                for timing in timings.Tail do
                    Target.atMost
                        $"`{timing.Name}` / `dotnet --version`"
                        2.0
                        "x"
                        (Timing.ratio timing timings.Head)
            ]
    }

let section: Section =
    {
        Id = "startup"
        Title = "Start of the program"
        NeedsData = false
        Measure = measure
        Check = fun () -> seconds "dotnet" [ "--version" ] () |> ignore
    }
