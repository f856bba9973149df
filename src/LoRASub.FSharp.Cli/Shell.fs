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

[<RequireQualifiedAccess>]
module Shell =

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
