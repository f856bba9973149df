/// What several tests need around the code under test: a folder of their own, and a count of tensors left behind.
module LoRASub.Tests.Probe

open System
open System.Diagnostics
open System.IO
open LoRASub.Core
open Expecto
open TorchSharp

/// Runs `f` in a fresh folder and removes it.
let inFolder (f: string -> 'T) : 'T =
    let folder = Directory.CreateTempSubdirectory "lorasub-"

    try
        f folder.FullName
    finally
        folder.Delete true

/// The result of `f` and how many tensors it left alive.
let counting (f: unit -> 'T) : struct ('T * int64) =
    // garbage of earlier tests must not be subtracted
    GC.Collect()
    GC.WaitForPendingFinalizers()
    let before = torch.Tensor.TotalCount
    let result = f ()
    struct (result, torch.Tensor.TotalCount - before)

/// Runs `f`, which must leave no tensor.
let leavesNothing (f: unit -> unit) =
    // a leaked tensor stays alive in a scope, out of the collector's reach
    use _ = torch.NewDisposeScope()
    let struct ((), left) = counting f
    Expect.equal left 0L "tensors left behind"

/// Runs `f`, which must be refused with a message that holds all `parts`.
let isRefused (parts: string list) (f: unit -> unit) =
    let message =
        try
            f ()
            None
        with :? InputException as e ->
            Some e.Message

    match message with
    | None -> failtest "was accepted"
    | Some message ->
        for part in parts do
            Expect.stringContains message part "message"

/// Runs `f`, which must be refused with a message that holds all `parts`, and leave no tensor.
let refused (parts: string list) (f: unit -> unit) =
    leavesNothing (fun () -> isRefused parts f)

/// The bytes of a tensor on the CPU.
let bytesOf (tensor: torch.Tensor) : byte[] =
    use _ = torch.NewDisposeScope()
    tensor.cpu().contiguous().bytes.ToArray()

/// The program that runs .NET assemblies: the one that runs the tests, where they were started by it.
let dotnet =
    if Path.GetFileNameWithoutExtension Environment.ProcessPath = "dotnet" then
        Environment.ProcessPath
    else
        "dotnet"

/// Skips a test of scripts where only the .NET runtime is installed.
let requireSdk: unit -> unit =
    let installed =
        lazy
            (let info =
                ProcessStartInfo(dotnet, [ "--list-sdks" ], RedirectStandardOutput = true)

             use child = Process.Start info
             let sdks = child.StandardOutput.ReadToEnd()
             child.WaitForExit()
             child.ExitCode = 0 && sdks.Trim() <> "")

    fun () ->
        if not installed.Value then
            skiptest "needs the .NET SDK, and only the runtime is installed"

/// The repository that holds the tests' build folder.
let repository () : string =
    let rec above (folder: DirectoryInfo) =
        if isNull folder then
            failwith "the tests run in their build folder, inside the repository"
        elif File.Exists(Path.Combine(folder.FullName, "LoRASub.FSharp.sln")) then
            folder.FullName
        else
            above folder.Parent

    above (DirectoryInfo AppContext.BaseDirectory)

/// The folder of golden files.
let goldenFolder =
    match Environment.GetEnvironmentVariable "LORASUB_GOLDEN" with
    | null
    | "" -> Path.Combine(AppContext.BaseDirectory, "golden")
    | folder -> folder
