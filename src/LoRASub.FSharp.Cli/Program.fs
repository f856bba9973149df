module LoRASub.Cli.Program

open System
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Threading
open Spectre.Console
open TorchSharp
open LoRASub

let private version () =
    Assembly.GetExecutingAssembly().GetName().Version.ToString 3

let private evaluate (shell: Shell) folder (changes: (string * string) list) libTorch =
    let settings =
        List.fold (fun s (name, text) -> Settings.set name text s) (RunFolder.settings folder) changes

    Settings.check settings
    Shell.loadNative shell libTorch settings

    let score listen =
        NativeError.during
            (fun () -> $"while scoring the learner in {folder}")
            $"less memory is needed with --batch below {settings.Batch}"
            (fun () -> RunFolder.evaluate folder settings listen)

    let rows =
        match Shell.canvas shell with
        | Some console -> Display.counting console score
        | None -> score ignore

    Shell.say shell (Display.evaluation rows)

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
        | Arguments.Command.Run command ->
            Settings.check command.Config.Settings

            if command.DryRun then
                Shell.say shell (DryRun.lines command.Config)
                0
            else
                Runs.start shell command
        | Arguments.Command.Resume(folder, changes, libTorch) -> Runs.resume shell folder changes libTorch
        | Arguments.Command.Evaluate(folder, changes, libTorch) -> evaluate shell folder changes libTorch
        | Arguments.Command.DataList ->
            Shell.say shell (DataCommand.list ())
            0
        | Arguments.Command.DataCheck(name, folder) -> DataCommand.check (Shell.say shell) name folder
        | Arguments.Command.Report request -> ReportCommand.run shell.Out request
        | Arguments.Command.Doctor libTorch -> Doctor.run shell.Out libTorch
    with e ->
        let e =
            match NativeError.ofException e with
            | Some shortage -> NativeError.memory "" "" shortage e
            | None -> e

        complain
            shell.Error
            (if Environment.GetEnvironmentVariable "LORASUB_DEBUG" = "1" then
                 string e
             else
                 "lorasub: " + NativeError.describe e)

        match e with
        | :? RunStoppedException -> shell.Interruption.Code
        | :? InputException -> 2
        | _ -> 1

/// Ends the process at once: LibTorch's threads may be at work, under which an orderly exit takes their memory away.
[<DllImport("libc", EntryPoint = "_exit")>]
extern void private leave(int code)

[<EntryPoint>]
let main argv =
    // the console is not made where nothing can be drawn
    let terminal =
        if Console.IsOutputRedirected then
            None
        else
            Some AnsiConsole.Console |> Option.filter _.Profile.Capabilities.Ansi

    let interruption = Interruption()

    let stop (code: int) (context: PosixSignalContext) =
        context.Cancel <- true

        if interruption.Request code then
            complain Console.Error "lorasub: saving after this step; once more to stop at once"
        else
            lock Runs.saving (fun () ->
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
            Interruption = interruption
        }
        argv
