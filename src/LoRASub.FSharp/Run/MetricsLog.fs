namespace LoRASub.Run

open System
open System.Globalization
open System.IO
open System.Text.Encodings.Web
open System.Text.Json
open System.Text.Json.Nodes
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// Description of a run, written once before its first batch.
type RunStart =
    {
        Method: string
        Variant: string
        Data: string
        Seed: int64
        /// Classes of each task of the whole stream.
        TaskSizes: int[]
    }

/// One task learned and tested.
type TaskReport =
    {
        Task: int
        /// The accuracy matrix's row: a score for each task so far.
        Row: Score[]
        /// Wall time of this task.
        [<JsonPropertyOrder(1)>]
        Seconds: float
    }

    /// Accuracy on all classes seen so far, in percent.
    member this.Seen = Metrics.percent (Metrics.accuracy (Metrics.seen this.Row))

    /// Accuracy on the classes of this task, in percent.
    member this.New = Metrics.percent (Metrics.accuracy (Array.last this.Row))

/// The rank retained and its share of energy, per block.
type RetainedLine =
    {
        Task: int
        Ranks: int[]
        Energies: float[]
    }

type NoticeLine = { Text: string }

/// What every line begins with; the fields of the event's own record follow.
type LineHead = { Time: DateTimeOffset; Event: string }

/// The end of a run without its measures, which lie flat beside it.
type EndLine = { Seconds: float }

/// An event of a run, logged when it happens.
[<RequireQualifiedAccess>]
type MetricsEvent =
    | Start of RunStart
    /// The rank retained and its share of energy, per block.
    | Retained of task: int * ranks: int[] * energies: float[]
    | Epoch of EpochReport
    | Task of TaskReport
    | End of measures: Measures * seconds: float
    | Notice of text: string

/// An event and when it happened.
type MetricsLine =
    {
        Time: DateTimeOffset
        Event: MetricsEvent
    }

/// Appends to a metrics.jsonl that ends in a whole line: each line is one write, flushed to disk, so that a crash
/// damages the last line at most. Made by `MetricsLog.start` and `MetricsLog.resume`; mutable.
type internal MetricsWriter(path: string, count: int, encode: MetricsLine -> byte[]) =
    let mutable count = count

    let file = new AppendFile(path)

    /// Lines in the file: what `MetricsLog.resume` needs to return to this point.
    member _.Count = count

    /// Adds a line. Rejects a disk that cannot store it.
    member _.Write(line: MetricsLine) : unit =
        file.Write(encode line)
        count <- count + 1

    interface IDisposable with
        member _.Dispose() = (file :> IDisposable).Dispose()

/// metrics.jsonl: one JSON object a line, in the order of events. Fractions are in percent there, and what is not
/// finite is null; see docs/metrics.md for the fields.
[<RequireQualifiedAccess>]
module MetricsLog =

    let private purpose = "a line of metrics that lorasub wrote"

    /// An event's name and its record.
    let private record (event: MetricsEvent) : string * JsonNode =
        match event with
        | MetricsEvent.Start start -> "start", Json.ofRecord start
        | MetricsEvent.Retained(task, ranks, energies) ->
            "retained",
            Json.ofRecord
                {
                    Task = task
                    Ranks = ranks
                    Energies = energies
                }
        | MetricsEvent.Epoch epoch -> "epoch", Json.ofRecord epoch
        | MetricsEvent.Task task -> "task", Json.ofRecord task
        | MetricsEvent.End(measures, seconds) ->
            "end", Json.ofRecord { Seconds = seconds } |> Json.insert 0 (Metrics.members measures)
        | MetricsEvent.Notice text -> "notice", Json.ofRecord { Text = text }

    // no browser reads this file, so only quotes and control characters are escaped here
    let private options =
        JsonSerializerOptions(Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping)

    let private timeFormat = "yyyy-MM-dd'T'HH:mm:ss.fff'Z'"

    /// A line of the file, without its end.
    let internal encode (line: MetricsLine) : string =
        let time = line.Time.UtcDateTime.ToString(timeFormat, CultureInfo.InvariantCulture)
        let name, node = record line.Event
        let node = Json.insert 0 [ "time", Json.text time; "event", Json.text name ] node
        // invisible characters are escaped as well, so that the file is safe to print
        Text.visible (node.ToJsonString options)

    let private encoded (line: MetricsLine) =
        Text.UTF8Encoding(false).GetBytes(encode line + "\n")

    let private event (subject: string) (name: string) (root: JsonElement) : MetricsEvent option =
        match name with
        | "start" -> Some(MetricsEvent.Start(Json.toRecord root))
        | "retained" ->
            let line = Json.toRecord<RetainedLine> root
            Some(MetricsEvent.Retained(line.Task, line.Ranks, line.Energies))
        | "epoch" -> Some(MetricsEvent.Epoch(Json.toRecord root))
        | "task" ->
            let task = Json.toRecord<TaskReport> root

            if task.Row.Length <> task.Task + 1 then
                Errors.reject subject $"must hold {task.Task + 1} scores" $"{task.Row.Length}" ""

            for score in task.Row do
                if score.Correct < 0 || score.Total < 1 || score.Correct > score.Total then
                    Errors.reject
                        subject
                        "must count correct answers among at least one image"
                        $"{score.Correct} of {score.Total}"
                        ""

            Some(MetricsEvent.Task task)
        | "end" -> Some(MetricsEvent.End(Metrics.ofMembers root, (Json.toRecord<EndLine> root).Seconds))
        | "notice" -> Some(MetricsEvent.Notice (Json.toRecord<NoticeLine> root).Text)
        // of a later version
        | _ -> None

    let private decode (subject: string) (bytes: ReadOnlyMemory<byte>) : MetricsLine option =
        Json.parse purpose subject bytes (fun root ->
            let head = Json.toRecord<LineHead> root

            event subject head.Event root
            |> Option.map (fun event -> { Time = head.Time; Event = event }))

    // the bytes of each whole line, its end included; an incomplete last line is left out
    let private wholeLines (bytes: byte[]) : ReadOnlyMemory<byte>[] =
        let rec from start lines =
            match Array.IndexOf(bytes, byte '\n', start) with
            | -1 -> lines
            | at -> from (at + 1) (ReadOnlyMemory(bytes, start, at + 1 - start) :: lines)

        from 0 [] |> List.rev |> Array.ofList

    let private decodeAll path (lines: ReadOnlyMemory<byte>[]) : MetricsLine option[] =
        lines |> Array.mapi (fun i line -> decode $"{path}, line {i + 1}" line)

    /// <summary>Every whole line of a file. Skips events that this version does not know, and a last line without its
    /// end, as a crash leaves it.</summary>
    /// <param name="path">A metrics.jsonl.</param>
    /// <returns>The lines, in the order of events.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is absent or a line is damaged; the message names the
    /// line.</exception>
    let read (path: string) : MetricsLine[] =
        Json.bytes "the metrics of a run" path
        |> wholeLines
        |> decodeAll path
        |> Array.choose id

    /// Opens a new file. Rejects one that exists and a folder that cannot be written.
    let internal start (path: string) : MetricsWriter =
        if File.Exists path then
            Errors.reject path "must not exist" "a file" "resume that run, or choose another folder"

        WholeFile.writeText path ""
        new MetricsWriter(path, 0, encoded)

    /// Cuts a file to its first `count` lines, whole, and opens it for more; a run that resumes from a checkpoint
    /// writes the later lines again. Returns the lines that were kept. A missing file is one without lines. Rejects a file
    /// of fewer whole lines and damage in those kept.
    let internal resume (path: string) (count: int) : struct (MetricsLine[] * MetricsWriter) =
        let lines =
            if File.Exists path then
                wholeLines (Json.bytes "the metrics of a run" path)
            else
                [||]

        if count < 0 || lines.Length < count then
            Errors.reject
                path
                $"must hold the {count} lines of the checkpoint"
                $"{lines.Length}"
                "start the run again"

        let kept = Array.truncate count lines

        let decoded =
            decodeAll path kept
            |> Array.mapi (fun i line ->
                match line with
                | Some line -> line
                | None ->
                    Errors.reject
                        $"{path}, line {i + 1}"
                        "must be a known event"
                        "another"
                        "resume with the program that wrote it")

        WholeFile.write path (fun stream -> kept |> Array.iter (fun line -> stream.Write line.Span))
        struct (decoded, new MetricsWriter(path, count, encoded))
