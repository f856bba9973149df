namespace LoRASub.Cli

open System
open System.IO
open System.Runtime.InteropServices
open LoRASub.Core
open LoRASub.Files
open LoRASub.Native
open LoRASub.Settings
open LoRASub.Run
open Spectre.Console
open TorchSharp

/// Requests to stop, made by signals. Mutable: signals arrive on their own threads.
type Interruption() =
    let mutable guarded = false
    let mutable code = 0

    /// While `work` runs, it handles the first request itself.
    member _.Guard(work: unit -> 'T) : 'T =
        guarded <- true

        try
            work ()
        finally
            guarded <- false

    /// Requests a stop with an exit code; false if no guarded work handles it.
    member _.Request(exitCode: int) : bool =
        let first = code = 0
        code <- exitCode
        guarded && first

    member _.IsRequested = code <> 0

    /// Printed when the process ends at once.
    member val Message = "interrupted" with get, set

    /// The exit code of the last request.
    member _.Code = code

/// The streams of a command, its terminal if it can draw on one, and requests to stop it.
type Shell =
    {
        Out: TextWriter
        Error: TextWriter
        Terminal: IAnsiConsole option
        Interruption: Interruption
    }

/// Standard output cannot be written, and the command is of no use without it: its exit code.
exception OutputLost of int

/// Standard output that survives a full disk or a closed pipe: reports the first failure, then drops later text, or ends a
/// command that is of no use without it. Mutable.
type Output(inner: TextWriter, isNeeded: bool, report: string -> unit) =
    inherit TextWriter()
    let mutable failed = false

    let guard (work: unit -> unit) =
        if not failed then
            try
                work ()
            with
            | :? IOException
            | :? UnauthorizedAccessException
            | :? ObjectDisposedException as e ->
                failed <- true

                match e with
                // who closes a pipe, as `head` does, has read enough
                | :? EndOfStreamException when isNeeded -> raise (OutputLost 141)
                | _ ->
                    report e.Message

                    if isNeeded then
                        raise (OutputLost 1)

    override _.Encoding = inner.Encoding
    override _.Write(c: char) = guard (fun () -> inner.Write c)
    override _.Write(text: string) = guard (fun () -> inner.Write text)
    override _.WriteLine() = guard inner.WriteLine
    override _.WriteLine(text: string) = guard (fun () -> inner.WriteLine text)
    override _.Flush() = guard inner.Flush

module private Pipe =

    [<Struct; StructLayout(LayoutKind.Sequential)>]
    type PollFd =
        {
            File: int
            Events: int16
            Found: int16
        }

    [<DllImport("libc", EntryPoint = "poll")>]
    extern int private poll(PollFd& files, unativeint count, int milliseconds)

    /// Whether standard output is a pipe that nobody reads any more.
    let isUnread () : bool =
        let mutable output = { File = 1; Events = 0s; Found = 0s }
        let failedOrHungUp = 0x18s
        poll (&output, 1un, 0) > 0 && output.Found &&& failedOrHungUp <> 0s

/// Standard output in a pipe. The console's own writer drops text in silence once nobody reads it; this one throws.
type private PipeWriter(inner: TextWriter) =
    inherit TextWriter()

    let read () =
        if Pipe.isUnread () then
            raise (EndOfStreamException "nobody reads it")

        inner

    override _.Encoding = inner.Encoding
    override _.Write(c: char) = (read ()).Write c
    override _.Write(text: string) = (read ()).Write text
    override _.WriteLine() = (read ()).WriteLine()
    override _.WriteLine(text: string) = (read ()).WriteLine text
    override _.Flush() = inner.Flush()

/// Escapes control characters, so that names of files and folders cannot act on the terminal. Only WriteLine ends a
/// line.
type private VisibleWriter(inner: TextWriter) =
    inherit TextWriter()
    override _.Encoding = inner.Encoding
    override _.Write(c: char) = inner.Write(Text.visible (string c))
    override _.Write(text: string) = inner.Write(Text.visible text)
    override _.WriteLine() = inner.WriteLine()
    override _.WriteLine(text: string) = inner.WriteLine(Text.visible text)
    override _.Flush() = inner.Flush()

[<RequireQualifiedAccess>]
module Shell =

    let standardOutput () : TextWriter =
        if Console.IsOutputRedirected && not (OperatingSystem.IsWindows()) then
            new PipeWriter(Console.Out)
        else
            Console.Out

    /// Held while results are written: an interruption waits for it.
    let saving = obj ()

    /// Writes a line to standard error; a closed or full one is ignored, so that the exit code is the command's.
    let complain (error: TextWriter) (text: string) : unit =
        try
            error.WriteLine text
        with
        | :? IOException
        | :? UnauthorizedAccessException
        | :? ObjectDisposedException -> ()

    /// The shell with control characters escaped.
    let visible (shell: Shell) : Shell =
        { shell with
            Out = new VisibleWriter(shell.Out)
            Error = new VisibleWriter(shell.Error)
        }

    let say (shell: Shell) (lines: string seq) =
        for line in lines do
            shell.Out.WriteLine line

        shell.Out.Flush()

    /// The terminal, if it is high enough for the live block; some report no size at all.
    let canvas (shell: Shell) : IAnsiConsole option =
        shell.Terminal |> Option.filter (fun console -> console.Profile.Height >= 10)

    let notes (shell: Shell) (some: string seq) =
        say
            shell
            [
                for note in some do
                    yield! Layout.row 6 "note:" note
            ]

    /// Downloads that say what they try.
    let internal patient (shell: Shell) : DownloadOptions =
        { Download.patient with
            Note = fun text -> say shell [ text ]
        }

    let warnings (shell: Shell) (some: string seq) =
        for warning in some do
            complain shell.Error $"warning: {warning}"

    /// Loads the given or bundled LibTorch and sets its threads. Prints a note if it is not the tested version.
    let loadNative (shell: Shell) (libTorch: string option) (settings: RunSettings) =
        Option.iter NativeBackend.useLibTorch libTorch
        NativeBackend.ensureLoaded().Note |> Option.toList |> notes shell

        if settings.Precision = Precision.TF32 && settings.Device = "cpu" then
            notes shell [ "a CPU has no TF32: products are in float32" ]

        if
            settings.Precision = Precision.BFloat16
            && settings.Device = "cpu"
            && Machine.lacksBfloat16 (Machine.instructions ())
        then
            notes shell [ "this processor has no bfloat16 instructions, so float32 is faster" ]

        Product.route () |> ignore // rejects a wrong setting before anything is made
        Option.iter torch.set_num_threads settings.Threads
