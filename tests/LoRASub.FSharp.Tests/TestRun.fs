/// Runs the tests one after another and closes with a line of counts that a script can read.
module LoRASub.Tests.TestRun

open System
open Expecto
open Expecto.Impl

/// The closing line: "N passed, N failed", and the skipped ones when there are any.
let countsLine passed failed skipped =
    let ran = $"{passed} passed, {failed} failed"
    if skipped = 0 then ran else $"{ran}, {skipped} skipped"

/// Runs `tests` with Expecto's arguments, then prints `report`'s lines and the counts; 0 only when something ran and
/// nothing failed.
let run (argv: string[]) (report: unit -> string list) (tests: Test) : int =
    let mutable outcome: TestRunSummary option = None

    let settings =
        [
            // Random state, thread counts and tensor counts belong to the whole process.
            CLIArguments.Sequenced
            CLIArguments.Append_Summary_Handler(SummaryHandler(fun summary -> outcome <- Some summary))
            if Console.IsOutputRedirected then
                CLIArguments.No_Spinner
                CLIArguments.Colours 0
        ]

    let exitCode = runTestsWithCLIArgs settings argv (testSequenced tests)

    match outcome with
    | None -> exitCode // nothing was run: a listing, the help, or a wrong argument
    | Some summary ->
        let passed = List.length summary.passed
        let failed = List.length summary.failed + List.length summary.errored
        // Expecto's last line may end in a colour reset; the counts need a line of their own.
        Console.Out.WriteLine()
        List.iter (fun (line: string) -> Console.Out.WriteLine line) (report ())
        Console.Out.WriteLine(countsLine passed failed (List.length summary.ignored))
        Console.Out.Flush()
        if exitCode = 0 && passed = 0 then 2 else exitCode
