/// Runs of several seeds at once: each in a process of its own, at most one on each device.
module LoRASub.Cli.Series

open System
open System.Diagnostics
open System.IO
open System.Reflection
open System.Threading
open System.Threading.Tasks
open LoRASub.Core

/// Set for such a process. It saves and stops when its standard input ends, which also happens when its parent is killed.
[<Literal>]
let StopVariable = "LORASUB_STOP_WITH_INPUT"

/// One process.
type Job =
    {
        /// The seed that it runs.
        Seed: int64
        /// Jobs of one line run one after the other.
        Line: int
        /// Of the program.
        Arguments: string list
    }

/// This program: `dotnet lorasub.dll`, or an executable of its own.
let private program () : struct (string * string list) =
    let host = Environment.ProcessPath
    let name (path: string) = Path.GetFileNameWithoutExtension path

    match Assembly.GetExecutingAssembly().Location with
    | "" -> struct (host, [])
    | dll when name host = name dll -> struct (host, [])
    | dll -> struct ((if name host = "dotnet" then host else "dotnet"), [ dll ])

// Its lines go to the shell's streams, each with the seed.
let private start (shell: Shell) (gate: obj) (job: Job) : Process =
    let struct (file, first) = program ()
    let info = ProcessStartInfo(file, first @ job.Arguments)
    info.Environment[StopVariable] <- "1"
    info.RedirectStandardInput <- true
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true
    let child = Process.Start info

    let pass (write: string -> unit) (line: DataReceivedEventArgs) =
        if not (String.IsNullOrEmpty line.Data) then
            lock gate (fun () -> write $"seed {job.Seed}: {line.Data}")

    child.OutputDataReceived.Add(pass (fun line -> Shell.say shell [ line ]))
    child.ErrorDataReceived.Add(pass (Shell.complain shell.Error))
    child.BeginOutputReadLine()
    child.BeginErrorReadLine()
    child

/// Runs the jobs, all lines at once. If the shell is asked to stop, the processes save and end, and no other is started.
/// Returns the seeds whose process did not end with 0 or was never started.
let run (shell: Shell) (jobs: Job[]) : int64[] =
    let gate = obj ()
    let mutable stopping = false
    let running = ResizeArray<Process>()

    // None once the series is to stop: nothing starts between that decision and the end of the inputs
    let tryStart job =
        lock running (fun () ->
            if stopping then
                None
            else
                let child = start shell gate job
                running.Add child
                Some child)

    let carryOut (job: Job) =
        match tryStart job with
        | None -> false
        | Some child ->
            use child = child
            child.WaitForExit()
            lock running (fun () -> running.Remove child |> ignore)
            child.ExitCode = 0

    let line (mine: Job[]) () =
        mine |> Array.filter (carryOut >> not) |> Array.map _.Seed

    let tasks =
        jobs
        |> Array.groupBy _.Line
        |> Array.map (fun (_, mine) -> Task.Factory.StartNew(line mine, TaskCreationOptions.LongRunning))

    let all = Task.WhenAll tasks

    while not (all.Wait 100) do
        if shell.Interruption.IsRequested && not stopping then
            // a terminal's Ctrl-C has reached them as well, and a second request would end them unsaved
            Thread.Sleep 1000

            lock running (fun () ->
                stopping <- true

                for child in running do
                    try
                        child.StandardInput.Close()
                    with :? IOException ->
                        ())

    Array.concat all.Result
