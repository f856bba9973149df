module LoRASub.Tests.TensorBoardTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "TensorBoard" name law

// An independent reader: CRC-32C bit by bit from its polynomial, TFRecord frames, and the fields of the protobuf
// messages from their wire format.

let private crc32c (bytes: byte[]) : uint32 =
    let mutable crc = 0xFFFFFFFFu

    for b in bytes do
        crc <- crc ^^^ uint32 b

        for _ in 1..8 do
            // the Castagnoli polynomial, its bits reversed
            crc <-
                if crc &&& 1u = 1u then
                    (crc >>> 1) ^^^ 0x82F63B78u
                else
                    crc >>> 1

    ~~~crc

let private masked (bytes: byte[]) =
    let crc = crc32c bytes
    ((crc >>> 15) ||| (crc <<< 17)) + 0xA282EAD8u

let private little (bytes: byte[]) =
    bytes |> Array.rev |> Array.fold (fun sum b -> (sum <<< 8) ||| uint64 b) 0UL

let rec private frames (bytes: byte[]) : byte[] list =
    if bytes.Length = 0 then
        []
    else
        let length = bytes[0..7]
        Expect.equal (little bytes[8..11]) (uint64 (masked length)) "checksum of the length"
        let size = int (little length)
        let data = bytes[12 .. 11 + size]
        Expect.equal data.Length size "data"
        Expect.equal (little bytes[12 + size .. 15 + size]) (uint64 (masked data)) "checksum of the data"
        data :: frames bytes[16 + size ..]

let rec private varint (bytes: byte[]) at : struct (uint64 * int) =
    if bytes[at] < 128uy then
        struct (uint64 bytes[at], at + 1)
    else
        let struct (rest, next) = varint bytes (at + 1)
        struct ((rest <<< 7) ||| uint64 (bytes[at] &&& 127uy), next)

/// The fields of a message: number, wire type and the raw bytes (of a varint, its value's).
let private fields (message: byte[]) : (int * int * byte[]) list =
    let rec from at =
        if at = message.Length then
            []
        else
            let struct (key, at) = varint message at
            let number, wire = int (key >>> 3), int (key &&& 7UL)

            let struct (value, next) =
                match wire with
                | 0 ->
                    let struct (value, next) = varint message at
                    struct (BitConverter.GetBytes value, next)
                | 1 -> struct (message[at .. at + 7], at + 8)
                | 2 ->
                    let struct (length, at) = varint message at
                    struct (message[at .. at + int length - 1], at + int length)
                | 5 -> struct (message[at .. at + 3], at + 4)
                | other -> failtest $"wire type {other}"

            (number, wire, value) :: from next

    from 0

let private field number wire message =
    fields message
    |> List.tryPick (fun (n, w, value) -> if n = number && w = wire then Some value else None)

let private utf8 (bytes: byte[]) = Text.Encoding.UTF8.GetString bytes

/// Event: wall_time = 1 (double), step = 2 (varint), file_version = 3 (text), summary = 5 of values 1 with tag = 1 (text)
/// and simple_value = 2 (float); fields of value 0 are left out.
type private Seen =
    {
        WallTime: float
        Step: int64
        Version: string option
        Values: (string * float32) list
    }

let private decode (message: byte[]) : Seen =
    {
        WallTime =
            field 1 1 message
            |> Option.map (fun bytes -> BitConverter.ToDouble(bytes, 0))
            |> Option.get
        Step =
            field 2 0 message
            |> Option.map (fun bytes -> BitConverter.ToInt64(bytes, 0))
            |> Option.defaultValue 0L
        Version = field 3 2 message |> Option.map utf8
        Values =
            match field 5 2 message with
            | None -> []
            | Some summary ->
                [
                    for number, wire, value in fields summary do
                        Expect.equal (number, wire) (1, 2) "a value of the summary"
                        let tag = field 1 2 value |> Option.get |> utf8
                        // simple_value is one of a choice, so that 0 is written
                        tag, field 2 5 value |> Option.get |> (fun bytes -> BitConverter.ToSingle(bytes, 0))
                ]
    }

let private read (path: string) =
    File.ReadAllBytes path |> frames |> List.map decode

let private time = DateTimeOffset(2025, 3, 18, 12, 34, 56, 789, TimeSpan.Zero)

let private line seconds event : MetricsLine =
    {
        Time = time.AddSeconds seconds
        Event = event
    }

let private epoch task number loss =
    MetricsEvent.Epoch
        {
            Task = task
            Epoch = number
            Loss = loss
            Accuracy = 0.25
            LearningRate = 0.5
            Seconds = 1.0
        }

let private run: MetricsLine[] =
    [|
        line
            0.0
            (MetricsEvent.Start
                {
                    Method = "m"
                    Variant = "v"
                    Data = "d"
                    Seed = 1L
                    TaskSizes = [| 1; 1 |]
                })
        line 1.0 (epoch 0 0 2.0)
        line 2.0 (epoch 0 1 nan)
        line
            3.0
            (MetricsEvent.Task
                {
                    Task = 0
                    Row = [| { Correct = 0; Total = 4 } |]
                    Seconds = 2.0
                })
        line 4.0 (MetricsEvent.Retained(1, [| 3; 4 |], [| 0.9; 0.9 |]))
        line 5.0 (MetricsEvent.Retained(1, [||], [||]))
        line 6.0 (epoch 1 0 1.0)
        line
            7.0
            (MetricsEvent.Task
                {
                    Task = 1
                    Row = [| { Correct = 1; Total = 4 }; { Correct = 4; Total = 4 } |]
                    Seconds = 2.0
                })
        line 8.0 (MetricsEvent.Notice "n")
    |]

let private inFile (test: string -> 'T) =
    Probe.inFolder (fun folder -> test (TensorBoard.path folder time "a.host"))

type Split =
    {
        [<Between(0, 9)>]
        Kept: int
        [<Between(0, 9)>]
        Lost: int
    }

[<Tests>]
let tests =
    testList
        "TensorBoard"
        [
            testCase "the reader's checksum is CRC-32C" (fun () ->
                // the check value of the algorithm, and 32 zeros of RFC 3720
                Expect.equal (crc32c "123456789"B) 0xE3069283u "digits"
                Expect.equal (crc32c (Array.zeroCreate 32)) 0x8A9136AAu "zeros")

            testCase "a run of two tasks, read back" (fun () ->
                inFile (fun path ->
                    TensorBoard.write path run |> ignore
                    let events = read path
                    let first = time.ToUnixTimeMilliseconds() |> float |> (fun ms -> ms / 1000.0)

                    Expect.equal
                        events.Head
                        {
                            WallTime = first
                            Step = 0L
                            Version = Some "brain.Event:2"
                            Values = []
                        }
                        "opening"

                    let rates = [ "epoch/accuracy", 25.0f; "epoch/learning_rate", 0.5f ]

                    let expected =
                        [
                            1.0, 1L, ("epoch/loss", 2.0f) :: rates
                            2.0, 2L, ("epoch/loss", nanf) :: rates
                            3.0, 1L, [ "task/seen", 0.0f; "task/new", 0.0f; "accuracy/task_1", 0.0f ]
                            4.0, 2L, [ "task/retained_rank", 3.5f ]
                            6.0, 3L, ("epoch/loss", 1.0f) :: rates
                            7.0,
                            2L,
                            [
                                "task/seen", 62.5f
                                "task/new", 100.0f
                                "accuracy/task_1", 25.0f
                                "accuracy/task_2", 100.0f
                            ]
                        ]

                    // NaN is not equal to itself, its text is
                    Expect.equal
                        (events.Tail |> List.map (fun e -> sprintf "%A" (e.WallTime, e.Step, e.Values)))
                        (expected
                         |> List.map (fun (s, step, values) -> sprintf "%A" (first + s, step, values)))
                        "events"

                    Expect.all events.Tail (fun e -> e.Version.IsNone) "one opening"))

            property "stopped and gone on anywhere, the file is that of one writing" (fun (c: Split) ->
                inFile (fun path ->
                    TensorBoard.write path run |> ignore
                    let whole = File.ReadAllBytes path
                    let kept, lost = Array.truncate c.Kept run, Array.skip (min c.Kept run.Length) run

                    // what was written after the checkpoint is written over
                    (use writer = new TensorBoardWriter(path, kept)
                     lost |> Array.truncate c.Lost |> Array.iter writer.Write)

                    (use writer = new TensorBoardWriter(path, kept)
                     Array.iter writer.Write lost)

                    Expect.equal (File.ReadAllBytes path) whole "bytes"
                    Expect.hasLength (Directory.GetFiles(Path.GetDirectoryName path)) 1 "nothing else left"))

            testCase "made from the log of metrics, the file is the same" (fun () ->
                inFile (fun path ->
                    let log = Path.Combine(Path.GetDirectoryName path, "metrics.jsonl")

                    (use writer = MetricsLog.start log
                     Array.iter writer.Write run)

                    TensorBoard.write path run |> ignore
                    let written = File.ReadAllBytes path
                    TensorBoard.write path (MetricsLog.read log) |> ignore
                    Expect.equal (File.ReadAllBytes path) written "bytes"))

            testCase "every line is in the file when it is written, for readers meanwhile" (fun () ->
                inFile (fun path ->
                    use writer = new TensorBoardWriter(path, [||])
                    Expect.isEmpty (read path) "nothing yet"
                    writer.Write run[0]
                    Expect.hasLength (read path) 1 "opening"
                    writer.Write run[1]
                    Expect.hasLength (read path) 2 "epoch"))

            testCase "a loss of infinity is shown as no number, as the log keeps it" (fun () ->
                inFile (fun path ->
                    TensorBoard.write path [| line 0.0 (epoch 0 0 infinity) |] |> ignore
                    Expect.isTrue (Single.IsNaN(snd (List.last (read path)).Values.Head)) "loss"))

            testCase "the name says when and where; a folder keeps its file" (fun () ->
                Probe.inFolder (fun folder ->
                    let name = TensorBoard.path folder time "a.b/c-1"

                    Expect.equal
                        name
                        (Path.Combine(folder, "events.out.tfevents.1742301296.a_b_c-1"))
                        "name"

                    TensorBoard.write name run |> ignore
                    Expect.equal (TensorBoard.path folder (time.AddDays 1.0) "other") name "resumed"))

            testCase "a folder that does not exist is refused" (fun () ->
                Probe.inFolder (fun folder ->
                    let lost = Path.Combine(folder, "none")
                    refused [ lost ] (fun () -> TensorBoard.path lost time "h" |> ignore)
                    let path = Path.Combine(lost, "events.out.tfevents.1.h")
                    refused [ path; "folder that exists" ] (fun () -> TensorBoard.write path run |> ignore)))
        ]
