// Ends runs at random moments and takes them up again: each must end as the run that nobody disturbed, byte for byte.
//
//     dotnet fsi scripts/interrupt.fsx [KILLS] [TERMINATIONS] [SEED]
//
// 20 kills and 5 terminations of a short run on the program's own data take some 20 minutes. The program has to be
// built (`dotnet fsi build.fsx -t Build`).

open System
open System.Diagnostics
open System.IO
open System.Runtime.InteropServices

module Native =
    [<DllImport("libc", SetLastError = true)>]
    extern int kill(int pid, int signal)

let arguments = fsi.CommandLineArgs |> Array.skip 1

let number at otherwise =
    if at < arguments.Length then
        int arguments[at]
    else
        otherwise

let kills, terminations, seed = number 0 20, number 1 5, number 2 1

let program =
    Path.Combine(__SOURCE_DIRECTORY__, "../src/LoRASub.FSharp.Cli/bin/Release/net10.0/lorasub")

let folder = Directory.CreateTempSubdirectory("lorasub-interrupt-").FullName

let settings =
    "run --epochs 1 --tasks 5 --stop-after 3 --threads 1 --checkpoint-minutes 0.03 --tensorboard"

let start (command: string) =
    let info = ProcessStartInfo(program, command)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true
    let child = Process.Start info
    child.OutputDataReceived.Add ignore
    child.ErrorDataReceived.Add ignore
    child.BeginOutputReadLine()
    child.BeginErrorReadLine()
    child

let finish (command: string) =
    use child = start command
    child.WaitForExit()
    child.ExitCode

let under (run: string) (name: string) = Path.Combine(run, name)

/// What a run has to leave, whatever happened to it.
let results (run: string) =
    [
        "summary.json"
        "learner.safetensors"
        "learner.json"
        "drift.json"
        "classes.json"
    ]
    |> List.map (fun name -> name, Convert.ToHexString(File.ReadAllBytes(under run name)))

let clock = Stopwatch.StartNew()
let whole = under folder "whole"

if finish $"{settings} --out {whole}" <> 0 then
    failwith "the undisturbed run failed; is the program built?"

let length = clock.Elapsed.TotalSeconds
let expected = results whole
printfn $"undisturbed: {length:F1} s"

let random = Random seed

/// One run, ended after a random share of its time, and taken up again until it is done.
let disturbed (name: string) (signal: int) (expectedCode: int) i =
    let run = under folder $"{name}-{i}"
    let after = random.NextDouble() * length
    use child = start $"{settings} --out {run}"
    let ended = child.WaitForExit(TimeSpan.FromSeconds after)

    if not ended then
        Native.kill (child.Id, signal) |> ignore
        child.WaitForExit()

    let code = child.ExitCode
    let begun = File.Exists(under run "settings.json")
    let checkpoint = File.Exists(under run "checkpoint.json")

    let resumed =
        if begun then
            finish $"run --resume {run}"
        else
            finish $"{settings} --out {run} --overwrite"

    let different =
        List.zip expected (results run)
        |> List.filter (fun (a, b) -> a <> b)
        |> List.map (fst >> fst)

    let state =
        if ended then "finished before"
        elif checkpoint then "from a checkpoint"
        elif begun then "from its settings"
        else "from nothing"

    let good = different.IsEmpty && resumed = 0 && (ended || code = expectedCode)

    let told =
        if good then
            "equal"
        else
            let files = String.concat ", " different
            $"DIFFERENT: {files}; exit codes {code}, {resumed}"

    printfn $"{name} {i + 1}: after {after:F1} s, {state}: {told}"

    if good then
        Directory.Delete(run, true)

    good

let outcomes =
    [
        for i in 0 .. kills - 1 -> disturbed "kill" 9 137 i
        for i in 0 .. terminations - 1 -> disturbed "termination" 15 143 i
    ]

let good = outcomes |> List.filter id |> List.length
printfn $"{good} of {outcomes.Length} as the undisturbed run"

if good = outcomes.Length then
    Directory.Delete(folder, true)
    exit 0

printfn $"kept in {folder}"
exit 1
