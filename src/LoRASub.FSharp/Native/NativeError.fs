namespace LoRASub.Native

open System
open System.Globalization
open System.IO
open System.Runtime.InteropServices
open System.Text.RegularExpressions
open LoRASub.Core

/// <summary>Out of memory: the message names what was running, how much was requested and free, and how to use less.
/// Programs answer it with exit code 1.</summary>
/// <param name="message">That text.</param>
/// <param name="inner">The native exception.</param>
type MemoryException(message: string, inner: exn) =
    inherit OutOfMemoryException(message, inner)

/// Numbers of bytes for people.
[<RequireQualifiedAccess>]
module internal Bytes =

    /// In the largest binary unit that leaves at least 1.
    let text (n: int64) : string =
        let rec scale (x: float) units =
            match units with
            | unit :: larger when x < 1024.0 || List.isEmpty larger ->
                x.ToString("F1", CultureInfo.InvariantCulture) + " " + unit
            | _ :: larger -> scale (x / 1024.0) larger
            | [] -> ""

        scale (float n) [ "B"; "KiB"; "MiB"; "GiB"; "TiB" ]

    /// Such as 512MiB or 1.5GiB.
    let tryParse (text: string) : int64 option =
        match Regex.Match(text, @"^([0-9]{1,9}(?:\.[0-9]+)?) ?(MiB|GiB)$") with
        | found when found.Success ->
            let number = Double.Parse(found.Groups[1].Value, CultureInfo.InvariantCulture)

            Some(
                int64 (
                    number
                    * (if found.Groups[2].Value = "GiB" then
                           1073741824.0
                       else
                           1048576.0)
                )
            )
        | _ -> None

/// Which memory ran out.
[<RequireQualifiedAccess>]
type internal MemoryKind =
    | Main
    /// Of the GPU with this number, where it is known.
    | Gpu of int option

/// The amounts of a failed allocation, in bytes.
type internal Shortage =
    {
        Kind: MemoryKind
        Requested: int64 option
        Free: int64 option
    }

/// Readable messages of native exceptions. LibTorch appends where an error was raised and its native stack: some
/// 3000 characters.
[<RequireQualifiedAccess>]
module internal NativeError =

    let private unknown kind =
        {
            Kind = kind
            Requested = None
            Free = None
        }

    // as LibTorch and glibc write sizes: 512 bytes, 20.00 MiB
    let private size (number: string) (unit: string) =
        let factor =
            match unit with
            | "KiB" -> 1024.0
            | "MiB" -> 1024.0 ** 2.0
            | "GiB" -> 1024.0 ** 3.0
            | _ -> 1.0

        int64 (Double.Parse(number, CultureInfo.InvariantCulture) * factor)

    let private cuda =
        Regex(
            @"Tried to allocate ([\d.]+) (\w+)\. GPU (\d+) has a total capacity of .*? of which ([\d.]+) (\w+) is free"
        )

    let private cpu = Regex @"you tried to allocate (\d+) bytes"

    // the driver and CUDA's libraries
    let private otherGpu =
        Regex @"\bCUDA\b.*\bout of memory\b|\bCU[A-Z]+_STATUS_ALLOC_FAILED"

    // C++, glibc and its linker
    let private otherMain =
        Regex
            @"\bout of memory\b|std::bad_alloc|Cannot allocate memory|failed to map segment from shared object(?!: Operation not permitted)"

    /// What to do where no option of a run needs less.
    let moreMemory =
        "give this process more memory (ulimit -v, or the batch system's limit)"

    /// The failed allocation in a native message; None for other errors.
    let shortage (message: string) : Shortage option =
        let gpu, main = cuda.Match message, cpu.Match message
        let text (found: Match) (i: int) = found.Groups[i].Value

        if gpu.Success then
            Some
                {
                    Kind = MemoryKind.Gpu(Some(int (text gpu 3)))
                    Requested = Some(size (text gpu 1) (text gpu 2))
                    Free = Some(size (text gpu 4) (text gpu 5))
                }
        elif main.Success then
            Some
                { unknown MemoryKind.Main with
                    Requested = Some(size (text main 1) "bytes")
                }
        elif otherGpu.IsMatch message then
            Some(unknown (MemoryKind.Gpu None))
        elif otherMain.IsMatch message then
            Some(unknown MemoryKind.Main)
        else
            None

    /// The first line of a native message, without where it was raised and the native stack.
    let internal text (message: string) : string =
        let stack = Regex.Match(message, @"\s*(Exception raised from|frame #\d+:)")

        let message =
            if stack.Success then
                message[.. stack.Index - 1]
            else
                message

        let message = Regex.Replace(message, @"^\[enforce fail at [^\]]*\] (\. )?", "")

        let lines =
            message.Split('\n', StringSplitOptions.RemoveEmptyEntries ||| StringSplitOptions.TrimEntries)

        if Array.isEmpty lines then "no message" else lines[0]

    // what a thread's, a task's or a static initialiser's exception wraps
    let rec private innermost (e: exn) =
        match e with
        | :? AggregateException
        | :? TypeInitializationException when not (isNull e.InnerException) -> innermost e.InnerException
        | _ -> e

    /// The failed allocation behind an exception; None for other exceptions, and where a MemoryException reports it.
    let ofException (e: exn) : Shortage option =
        match innermost e with
        | :? InputException
        | :? MemoryException -> None
        | :? OutOfMemoryException as e ->
            Some(shortage e.Message |> Option.defaultValue (unknown MemoryKind.Main))
        | :? ExternalException
        | :? DllNotFoundException
        | :? IOException as e -> shortage e.Message
        | _ -> None

    /// An exception as one short line.
    let describe (e: exn) : string =
        match innermost e with
        | :? ExternalException as e -> $"LibTorch: {text e.Message}"
        | e -> e.Message.ReplaceLineEndings " "

    // kB of a line such as "VmPeak:    123 kB"
    let private kilobytes (path: string) (name: string) =
        if File.Exists path then
            File.ReadLines path
            |> Seq.tryFind _.StartsWith(name + ":", StringComparison.Ordinal)
            |> Option.map (fun line -> 1024L * Int64.Parse(Regex.Match(line, @"\d+").Value))
        else
            None

    let private addressSpace () =
        let path = "/proc/self/limits"

        if File.Exists path then
            File.ReadLines path
            |> Seq.map (fun line -> Regex.Match(line, @"^Max address space\s+(\d+)"))
            |> Seq.tryFind _.Success
            |> Option.map (fun limit -> Int64.Parse limit.Groups[1].Value)
        else
            None

    /// Address space that this process has left; None without a limit (ulimit -v).
    let addressSpaceLeft () : int64 option =
        match addressSpace (), kilobytes "/proc/self/status" "VmSize" with
        | Some limit, Some size -> Some(max 0L (limit - size))
        | _ -> None

    /// Main memory that this process had left at its peak, if the system reports it: of its limit of address space
    /// (ulimit -v), else of the machine.
    let freeMain () : int64 option =
        match addressSpace (), kilobytes "/proc/self/status" "VmPeak" with
        | Some limit, Some peak -> Some(max 0L (limit - peak))
        | _ -> kilobytes "/proc/meminfo" "MemAvailable"

    /// "out of memory {what}: how much was requested and free; {fix}", where `what` begins with a preposition or is empty.
    let internal explain (what: string) (shortage: Shortage) (fix: string) : string =
        let where =
            match shortage.Kind with
            | MemoryKind.Main -> ""
            | MemoryKind.Gpu None -> " on the GPU"
            | MemoryKind.Gpu(Some number) -> $" on GPU {number}"

        let amounts =
            [
                shortage.Requested |> Option.map (fun n -> $"{Bytes.text n} requested")
                shortage.Free |> Option.map (fun n -> $"{Bytes.text n} free")
            ]
            |> List.choose id

        let what = if what = "" then "" else " " + what

        String.concat
            ""
            [
                $"out of memory{where}{what}"
                if not amounts.IsEmpty then
                    ": " + String.concat ", " amounts
                if fix <> "" then
                    "; " + fix
            ]

    /// A MemoryException for a shortage; adds how much main memory is free.
    let memory (what: string) (fix: string) (shortage: Shortage) (inner: exn) : exn =
        let shortage =
            { shortage with
                Free =
                    match shortage with
                    | { Kind = MemoryKind.Main; Free = None } -> freeMain ()
                    | known -> known.Free
            }

        MemoryException(explain what shortage fix, inner)

    /// f (); if it runs out of memory, raises a MemoryException with `what` was running and the `fix`.
    let during (what: unit -> string) (fix: string) (f: unit -> 'T) : 'T =
        try
            f ()
        with e ->
            match ofException e with
            | Some shortage -> raise (memory (what ()) fix shortage e)
            | None -> reraise ()
