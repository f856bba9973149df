namespace LoRASub.Cli

open System
open System.IO
open Spectre.Console
open TorchSharp
open LoRASub

/// Requests to stop, as signals make them. Mutable: signals come on threads of their own.
type Interruption() =
    let mutable guarded = false
    let mutable code = 0

    /// While `work` runs, the first request is left to it.
    member _.Guard(work: unit -> 'T) : 'T =
        guarded <- true

        try
            work ()
        finally
            guarded <- false

    /// Asks to stop with an exit code; false where nobody will see to it, or nobody has.
    member _.Request(exitCode: int) : bool =
        let first = code = 0
        code <- exitCode
        guarded && first

    member _.IsRequested = code <> 0

    /// Of the last request.
    member _.Code = code

/// Where a command writes to, whether that is a terminal to draw on, and what may stop it.
type Shell =
    {
        Out: TextWriter
        Error: TextWriter
        Terminal: IAnsiConsole option
        Interruption: Interruption
    }

/// Standard output, which may lie on a full disk or end in a closed pipe. The first failure is reported; later text is
/// left out. Mutable.
type Output(inner: TextWriter, report: string -> unit) =
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
                report e.Message

    /// Whether some text is missing.
    member _.HasFailed = failed

    override _.Encoding = inner.Encoding
    override _.Write(c: char) = guard (fun () -> inner.Write c)
    override _.Write(text: string) = guard (fun () -> inner.Write text)
    override _.WriteLine() = guard inner.WriteLine
    override _.WriteLine(text: string) = guard (fun () -> inner.WriteLine text)
    override _.Flush() = guard inner.Flush

/// Hands on what is written as visible text, so that no name from a file or folder can act on the terminal. A line end
/// comes from WriteLine only.
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

    /// Writes a line to standard error; one that is closed or full must not turn an exit code into a crash.
    let complain (error: TextWriter) (text: string) : unit =
        try
            error.WriteLine text
        with
        | :? IOException
        | :? UnauthorizedAccessException
        | :? ObjectDisposedException -> ()

    /// The shell whose texts are all visible.
    let visible (shell: Shell) : Shell =
        { shell with
            Out = new VisibleWriter(shell.Out)
            Error = new VisibleWriter(shell.Error)
        }

    let say (shell: Shell) (lines: string seq) =
        for line in lines do
            shell.Out.WriteLine line

        shell.Out.Flush()

    /// The terminal, where it is high enough to draw a block of lines on: some have no size at all.
    let canvas (shell: Shell) : IAnsiConsole option =
        shell.Terminal |> Option.filter (fun console -> console.Profile.Height >= 10)

    let notes (shell: Shell) (some: string seq) =
        say shell [ for note in some -> $"note: {note}" ]

    /// Loads LibTorch, the named one or the program's own, under the threads that settings ask for. Notes a LibTorch
    /// that is not the tested one.
    let loadNative (shell: Shell) (libTorch: string option) (settings: RunSettings) =
        Option.iter NativeBackend.useLibTorch libTorch
        NativeBackend.ensureLoaded().Note |> Option.toList |> notes shell
        Product.route () |> ignore // rejects a wrong setting before anything is made
        Option.iter torch.set_num_threads settings.Threads
