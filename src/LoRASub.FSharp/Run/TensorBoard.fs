namespace LoRASub.Run

open System
open System.Buffers.Binary
open System.IO
open System.Numerics
open LoRASub.Core
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open Google.Protobuf
open Tensorboard

/// TensorBoard event files, made from the lines of metrics.jsonl: TFRecords (length, masked CRC-32C of the length,
/// data, masked CRC-32C of the data; all little-endian) of protobuf Events. The messages are those that TorchSharp
/// brings. Its SummaryWriter is not used: it stamps clock ticks as single-precision numbers instead of seconds, opens
/// the file again for every value, and always starts a new file, so that a resumed run could not continue its own.
[<RequireQualifiedAccess>]
module internal TensorBoard =

    let private checksum (bytes: byte[]) =
        let crc =
            ~~~(bytes |> Array.fold (fun (crc: uint32) b -> BitOperations.Crc32C(crc, b)) ~~~0u)

        BitOperations.RotateRight(crc, 15) + 0xA282EAD8u

    let private record (event: Event) : byte[] =
        let data = event.ToByteArray()
        let length = Array.zeroCreate 8
        BinaryPrimitives.WriteInt64LittleEndian(length.AsSpan(), data.LongLength)

        let sealed' (bytes: byte[]) =
            let crc = Array.zeroCreate 4
            BinaryPrimitives.WriteUInt32LittleEndian(crc.AsSpan(), checksum bytes)
            Array.append bytes crc

        Array.append (sealed' length) (sealed' data)

    let private seconds (time: DateTimeOffset) =
        float (time.ToUnixTimeMilliseconds()) / 1000.0

    let private opening (time: DateTimeOffset) =
        record (Event(WallTime = seconds time, FileVersion = "brain.Event:2"))

    let private scalars time (step: int) (values: (string * float) seq) =
        let summary = Summary()

        for tag, value in values do
            // metrics.jsonl has null for values that are not finite, so a file rebuilt from it is the same
            let shown = if Double.IsFinite value then float32 value else nanf
            summary.Value.Add(Summary.Types.Value(Tag = tag, SimpleValue = shown))

        record (Event(WallTime = seconds time, Step = int64 step, Summary = summary))

    // The scalars of a line after a number of epochs. Counted from 1: epochs over the whole run, tasks in steps and tags.
    let private added (epochs: int) (line: MetricsLine) : struct (byte[] * int) =
        let percent score =
            Metrics.percent (Metrics.accuracy score)

        match line.Event with
        | MetricsEvent.Epoch epoch ->
            let values =
                [
                    "epoch/loss", epoch.Loss
                    "epoch/accuracy", Metrics.percent epoch.Accuracy
                    "epoch/learning_rate", epoch.LearningRate
                ]

            struct (scalars line.Time (epochs + 1) values, epochs + 1)
        | MetricsEvent.Retained(task, ranks, _) when ranks.Length > 0 ->
            let mean = ranks |> Array.averageBy float
            struct (scalars line.Time (task + 1) [ "task/retained_rank", mean ], epochs)
        | MetricsEvent.Task task ->
            let values =
                [
                    "task/seen", percent (Metrics.seen task.Row)
                    "task/new", percent (Array.last task.Row)
                    for j in 0 .. task.Row.Length - 1 do
                        $"accuracy/task_{j + 1}", percent task.Row[j]
                ]

            struct (scalars line.Time (task.Task + 1) values, epochs)
        | MetricsEvent.Start _
        | MetricsEvent.Retained _
        | MetricsEvent.End _
        | MetricsEvent.Notice _ -> struct ([||], epochs)

    /// The bytes that a line adds to a file, and the state after it: the epochs written so far, none before the first
    /// line, which opens the file.
    let encode (epochs: int option) (line: MetricsLine) : struct (byte[] * int option) =
        let struct (bytes, after) = added (defaultArg epochs 0) line

        match epochs with
        | None -> struct (Array.append (opening line.Time) bytes, Some after)
        | Some _ -> struct (bytes, Some after)

    let private prefix = "events.out.tfevents."

    /// The event files in a folder, oldest first.
    let files (folder: string) : string[] =
        Directory.GetFiles(folder, prefix + "*") |> Array.sort

    /// The latest event file of a folder, or the name of a new one with the time and machine of the start. Rejects a
    /// folder that does not exist.
    let path (folder: string) (started: DateTimeOffset) (host: string) : string =

        if not (Directory.Exists folder) then
            Errors.reject folder "must be a folder" "none" "make it first"

        match files folder |> Array.tryLast with
        | Some path -> path
        | None ->
            let host =
                String.collect (fun c -> if Char.IsLetterOrDigit c || c = '-' then string c else "_") host

            Path.Combine(folder, $"{prefix}{started.ToUnixTimeSeconds()}.{host}")

    /// Writes a file with the events of these lines, over an older one; returns the state after them.
    let write (path: string) (lines: MetricsLine[]) : int option =
        let chunks, epochs =
            lines
            |> Array.mapFold
                (fun epochs line ->
                    let struct (bytes, epochs) = encode epochs line
                    bytes, epochs)
                None

        WholeFile.write path (fun stream ->
            chunks |> Array.iter (fun bytes -> stream.Write(bytes, 0, bytes.Length)))

        epochs

/// An event file that grows with the run: first made whole from the lines kept so far, then one write per line.
/// Mutable.
type internal TensorBoardWriter(path: string, kept: MetricsLine[]) =
    let mutable epochs = TensorBoard.write path kept

    let file = new AppendFile(path)

    /// Adds the scalars of a line. Rejects a disk that cannot store them.
    member _.Write(line: MetricsLine) : unit =
        let struct (bytes, after) = TensorBoard.encode epochs line

        file.Write bytes
        epochs <- after

    interface IDisposable with
        member _.Dispose() = (file :> IDisposable).Dispose()
