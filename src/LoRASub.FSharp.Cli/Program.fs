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

let private loadNative (libTorch: string option) =
    Option.iter NativeBackend.useLibTorch libTorch
    NativeBackend.ensureLoaded ()

let private run (shell: Shell) settings (out: string option) libTorch =
    let say (lines: string list) =
        for line in lines do
            shell.Out.WriteLine line

        shell.Out.Flush()

    Settings.check settings
    let settings = Assets.fill settings
    Option.iter OutFolder.check out
    loadNative libTorch |> ignore
    Option.iter torch.set_num_threads settings.Threads
    let plan = Plan.load settings
    use _ = Scope.own Plan.leaves plan
    let learner = LoRASubDrs.learner plan.Backbone settings.Method
    let workload = Display.Workload.ofPlan learner plan
    say (Display.header plan (torch.get_num_threads ()))

    let show =
        match shell.Terminal with
        | Some console -> Display.live console workload plan
        | None -> Display.plain shell.Out workload plan

    let outcome = show (Experiment.run learner plan)
    use _ = Scope.own TaskState.leaves outcome.State
    say (Display.results outcome)

    match out with
    | Some folder -> lock saving (fun () -> say [ $"saved in           {folder}" ])
    | None -> say [ "not saved          --out DIR saves results and learner" ]

    0

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
        | Arguments.Command.Evaluate _ -> 1
        | Arguments.Command.Doctor libTorch -> 1
    with e ->
        if Environment.GetEnvironmentVariable "LORASUB_DEBUG" = "1" then
            shell.Error.WriteLine(string e)
        else
            let oneLine = e.Message.ReplaceLineEndings " "
            shell.Error.WriteLine $"lorasub: {oneLine}"

        match e with
        | :? InputException -> 2
        | _ -> 1

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
                Console.Out.Write "\x1b[?25h\n"

            Console.Error.WriteLine "lorasub: interrupted"
            exit code)

    use _ = PosixSignalRegistration.Create(PosixSignal.SIGINT, stop 130)
    use _ = PosixSignalRegistration.Create(PosixSignal.SIGTERM, stop 143)

    start
        {
            Out = Console.Out
            Error = Console.Error
            Terminal = terminal
        }
        argv
