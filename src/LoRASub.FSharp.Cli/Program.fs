module LoRASub.Cli.Program

open System
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Threading
open Spectre.Console
open TorchSharp
open LoRASub

/// Where a command writes to, and whether that is a terminal to draw on.
type Shell =
    {
        Out: TextWriter
        Error: TextWriter
        Terminal: IAnsiConsole option
    }

let private version () =
    Assembly.GetExecutingAssembly().GetName().Version.ToString 3

/// Held while results are written: an interruption waits for it.
let private saving = obj ()

let private loadNative (libTorch: string option) (settings: RunSettings) =
    Option.iter NativeBackend.useLibTorch libTorch
    NativeBackend.ensureLoaded () |> ignore
    Option.iter torch.set_num_threads settings.Threads

let private say (shell: Shell) (lines: string list) =
    for line in lines do
        shell.Out.WriteLine line

    shell.Out.Flush()

let private run (shell: Shell) settings (out: string option) libTorch =
    Settings.check settings
    let settings = Assets.fill settings
    Option.iter RunFolder.check out
    loadNative libTorch settings
    let plan = Plan.load settings
    use _ = Scope.own Plan.leaves plan
    let learner = LoRASubDrs.learner plan.Backbone settings.Method
    let workload = Display.Workload.ofPlan learner plan
    say shell (Display.header plan (torch.get_num_threads ()))

    let show =
        match shell.Terminal with
        | Some console -> Display.live console workload plan
        | None -> Display.plain shell.Out workload plan

    let outcome = show (Experiment.run learner plan)
    use _ = Scope.own (fun o -> TaskState.leaves o.State) outcome

    let results = Display.results outcome

    // saved before anything is printed: a closed pipe must not cost a run, nor a full disk its results
    try
        out
        |> Option.iter (fun folder -> lock saving (fun () -> RunFolder.save folder plan outcome))
    with _ ->
        say shell results
        reraise ()

    say shell results

    match out with
    | Some folder -> say shell [ $"saved in           {folder}" ]
    | None -> say shell [ "not saved          give --out DIR to keep results and learner" ]

    0

let private evaluate (shell: Shell) folder (changes: (string * string) list) libTorch =
    let settings =
        List.fold (fun s (name, text) -> Settings.set name text s) (RunFolder.settings folder) changes

    Settings.check settings
    loadNative libTorch settings

    let rows =
        match shell.Terminal with
        | Some console -> Display.counting console (RunFolder.evaluate folder settings)
        | None -> RunFolder.evaluate folder settings ignore

    say shell (Display.evaluation rows)

    if Array.forall Display.isReproduced rows then
        0
    else
        shell.Error.WriteLine $"lorasub: the scores differ from those saved in {folder}"
        1

// A closed or full standard error must not turn an exit code into a crash.
let private complain (error: TextWriter) (text: string) =
    try
        error.WriteLine text
    with
    | :? IOException
    | :? UnauthorizedAccessException
    | :? ObjectDisposedException -> ()

/// Runs the command of `argv` to its exit code: 0 done, 1 failed, 2 refused usage or input.
let start (shell: Shell) (argv: string[]) : int =
    try
        match Arguments.parse argv with
        | Arguments.Command.Help text ->
            shell.Out.WriteLine(text.TrimEnd())
            0
        | Arguments.Command.Version ->
            shell.Out.WriteLine $"lorasub {version ()}"
            0
        | Arguments.Command.Run(settings, out, libTorch) -> run shell settings out libTorch
        | Arguments.Command.Evaluate(folder, changes, libTorch) -> evaluate shell folder changes libTorch
        | Arguments.Command.Report request -> ReportCommand.run shell.Out request
        | Arguments.Command.Doctor libTorch -> Doctor.run shell.Out libTorch
    with e ->
        complain
            shell.Error
            (if Environment.GetEnvironmentVariable "LORASUB_DEBUG" = "1" then
                 string e
             else
                 "lorasub: " + e.Message.ReplaceLineEndings " ")

        match e with
        | :? InputException -> 2
        | _ -> 1

/// Ends the process at once: LibTorch's threads may be at work, under which an orderly exit takes their memory away.
[<DllImport("libc", EntryPoint = "_exit")>]
extern void private leave(int code)

[<EntryPoint>]
let main argv =
    let console = AnsiConsole.Console

    let terminal =
        if Console.IsOutputRedirected || not console.Profile.Capabilities.Ansi then
            None
        else
            Some console

    let stop (code: int) (context: PosixSignalContext) =
        context.Cancel <- true

        lock saving (fun () ->
            if terminal.IsSome then
                complain Console.Out "\x1b[?25h"

            complain Console.Error "lorasub: interrupted"
            leave code)

    use _ = PosixSignalRegistration.Create(PosixSignal.SIGINT, stop 130)
    use _ = PosixSignalRegistration.Create(PosixSignal.SIGTERM, stop 143)
    use _ = PosixSignalRegistration.Create(PosixSignal.SIGHUP, stop 129)

    start
        {
            Out = Console.Out
            Error = Console.Error
            Terminal = terminal
        }
        argv
