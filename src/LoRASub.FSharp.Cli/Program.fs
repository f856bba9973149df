module LoRASub.Cli.Program

open System
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Threading
open LoRASub.Core
open LoRASub.Native
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open Spectre.Console
open TorchSharp

let private version () =
    Assembly.GetExecutingAssembly().GetName().Version.ToString 3

let private evaluate (shell: Shell) folder (changes: (string * string) list) libTorch =
    if not (RunFolder.holdsRun folder) && LearnerFolder.holdsLearner folder then
        Errors.reject
            folder
            "must be the folder of a run where no images are given"
            "a learner"
            $"give a folder of images: lorasub evaluate {folder} IMAGES"

    let settings =
        List.fold (fun s (name, text) -> Settings.set name text s) (RunFolder.settings folder) changes

    Settings.check settings
    Shell.loadNative shell libTorch settings

    let score onBatch =
        NativeError.during
            (fun () -> $"while scoring the learner in {folder}")
            $"use less memory with --batch below {settings.Batch}"
            (fun () -> Evaluation.run folder settings onBatch)

    let rows =
        match Shell.canvas shell with
        | Some console -> Display.counting console score
        | None -> score ignore

    Shell.say shell (Display.evaluation rows)

    if Array.forall Display.isReproduced rows then
        0
    else
        Shell.complain shell.Error $"lorasub: the scores differ from the saved scores in {folder}"
        1

// Whether a command saves its results and can do without standard output.
let private isSaved (command: Arguments.Command) =
    match command with
    | Arguments.Command.Run run -> run.Out.IsSome && not run.DryRun
    | Arguments.Command.Resume _
    | Arguments.Command.Learn _
    | Arguments.Command.Forget _
    | Arguments.Command.Rename _
    | Arguments.Command.Merge _
    | Arguments.Command.Export _
    | Arguments.Command.Report _
    | Arguments.Command.DataGet _
    | Arguments.Command.BackboneGet _ -> true
    | _ -> false

let private carryOut (shell: Shell) (command: Arguments.Command) : int =
    match command with
    | Arguments.Command.Help text ->
        Shell.say shell (text.TrimEnd().Split '\n')
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
    | Arguments.Command.EvaluateLearner test -> PredictCommand.evaluate shell test
    | Arguments.Command.Learn request -> LearnCommand.learn shell request
    | Arguments.Command.Predict request -> PredictCommand.predict shell request
    | Arguments.Command.Inspect folder -> LearnerFolder.inspect shell folder
    | Arguments.Command.Forget(folder, name, settings, libTorch) ->
        LearnerFolder.forget shell folder name settings libTorch
    | Arguments.Command.Rename(folder, name, newName, settings, libTorch) ->
        LearnerFolder.rename shell folder name newName settings libTorch
    | Arguments.Command.Merge(into, from, settings, libTorch) ->
        MergeCommand.merge shell into from settings libTorch
    | Arguments.Command.Diff(left, right, libTorch) -> MergeCommand.diff shell left right libTorch
    | Arguments.Command.Export request -> ExportCommand.export shell request
    | Arguments.Command.DataList ->
        Shell.say shell (DataCommand.list ())
        0
    | Arguments.Command.MethodList ->
        Shell.say shell (ListCommand.methods ())
        0
    | Arguments.Command.HeadList ->
        Shell.say shell (ListCommand.heads ())
        0
    | Arguments.Command.DataCheck(name, folder) -> DataCommand.check (Shell.say shell) name folder
    | Arguments.Command.DataGet(name, folder) -> DataCommand.get shell name folder
    | Arguments.Command.BackboneList ->
        Shell.say shell (BackboneCommand.list ())
        0
    | Arguments.Command.BackboneGet(name, folder) -> BackboneCommand.get shell name folder
    | Arguments.Command.BackboneInfo file -> BackboneCommand.info (Shell.say shell) file
    | Arguments.Command.Report request -> ReportCommand.run shell.Out request
    | Arguments.Command.Doctor libTorch -> Doctor.run shell.Out libTorch

/// Runs the command of `argv` and returns its exit code: 0 done, 1 failed, 2 invalid arguments or input. If standard
/// output cannot be written, commands that save their results continue; others fail.
let start (shell: Shell) (argv: string[]) : int =
    let shell = Shell.visible shell

    let guarded (isNeeded: bool) =
        let report why =
            let after = if isNeeded then "" else "; further output is not shown"
            Shell.complain shell.Error $"lorasub: cannot write to standard output ({why}){after}"

        { shell with
            Out = new Output(shell.Out, isNeeded, report)
        }

    try
        let command = Arguments.parse argv
        carryOut (guarded (not (isSaved command))) command
    with
    | OutputLost code -> code
    | e ->
        let e =
            match NativeError.ofException e with
            | Some shortage -> NativeError.memory "" "" shortage e
            | None when e :? FileNotFoundException && not (Directory.Exists ".") ->
                InputException(
                    "the current folder: must exist; found a deleted one; change to another folder",
                    e
                )
            | None -> e

        if Environment.GetEnvironmentVariable "LORASUB_DEBUG" = "1" then
            (string e).Split '\n' |> Array.iter (Shell.complain shell.Error)
        else
            Shell.complain shell.Error ("lorasub: " + NativeError.describe e)

        match e with
        | :? OperationCanceledException when shell.Interruption.IsRequested -> shell.Interruption.Code
        | :? InputException -> 2
        | _ -> 1

/// Ends the process at once: an orderly exit would free memory that LibTorch's threads still use.
[<DllImport("libc", EntryPoint = "_exit")>]
extern void private leave(int code)

[<EntryPoint>]
let main argv =
    // no console if nothing can be drawn
    let terminal =
        if Console.IsOutputRedirected then
            None
        else
            Some AnsiConsole.Console |> Option.filter _.Profile.Capabilities.Ansi

    let interruption = Interruption()

    let stop (code: int) =
        if interruption.Request code then
            Shell.complain Console.Error "lorasub: Saving after this step; press Ctrl-C again to quit now"
        else
            lock Shell.saving (fun () ->
                if terminal.IsSome then
                    Shell.complain Console.Out "\x1b[?25h"

                Shell.complain Console.Error $"lorasub: {interruption.Message}"
                leave code)

    let on (signal: PosixSignal) (code: int) =
        PosixSignalRegistration.Create(
            signal,
            fun context ->
                context.Cancel <- true
                stop code
        )

    use _ = on PosixSignal.SIGINT 130
    use _ = on PosixSignal.SIGTERM 143
    use _ = on PosixSignal.SIGHUP 129

    if Environment.GetEnvironmentVariable Series.StopVariable = "1" then
        let untilInputEnds () =
            while Console.In.Read() >= 0 do
                ()

            if not interruption.IsRequested then
                stop 143

        Thread(untilInputEnds, IsBackground = true).Start()

    start
        {
            Out = Shell.standardOutput ()
            Error = Console.Error
            Terminal = terminal
            Interruption = interruption
        }
        argv
