namespace LoRASub

open System
open System.Globalization
open System.IO
open System.Text.Encodings.Web
open System.Text.Json
open System.Text.Json.Nodes

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

/// One epoch of training.
type EpochReport =
    {
        Task: int
        Epoch: int
        /// Mean over the epoch's batches.
        Loss: float
        /// On the training batches as they were learned, a fraction.
        Accuracy: float
        /// Base rate of the pairs in this epoch.
        LearningRate: float
        /// Wall time of this epoch.
        Seconds: float
    }

/// One task learned and tested.
type TaskReport =
    {
        Task: int
        /// The accuracy matrix's row: a score for each task so far.
        Row: Score[]
        /// Wall time of this task.
        Seconds: float
    }

/// An event of a run.
[<RequireQualifiedAccess>]
type MetricsEvent =
    | Start of RunStart
    /// Rank kept and its share of energy, per block.
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
/// tears the last line at most. Made by `MetricsLog.start` and `MetricsLog.resume`; mutable.
type MetricsWriter internal (path: string, count: int, encode: MetricsLine -> byte[]) =
    let mutable count = count

    let file = new AppendFile(path)

    /// Lines in the file: what `MetricsLog.resume` needs to come back to this point.
    member _.Count = count

    /// Adds a line. Rejects a disk that does not take it.
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

    let private number (value: float) =
        if Double.IsFinite value then Json.float value else null

    let private percent (fraction: float) = number (Metrics.percent fraction)

    let private integers: int[] -> _ = Json.array (int64 >> Json.int)

    let private members (event: MetricsEvent) : (string * JsonNode) list =
        match event with
        | MetricsEvent.Start start ->
            [
                "event", Json.text "start"
                "method", Json.text start.Method
                "variant", Json.text start.Variant
                "data", Json.text start.Data
                "seed", Json.int start.Seed
                "taskSizes", integers start.TaskSizes
            ]
        | MetricsEvent.Retained(task, ranks, energies) ->
            [
                "event", Json.text "retained"
                "task", Json.int (int64 task)
                "ranks", integers ranks
                "energies", Json.array number energies
            ]
        | MetricsEvent.Epoch epoch ->
            [
                "event", Json.text "epoch"
                "task", Json.int (int64 epoch.Task)
                "epoch", Json.int (int64 epoch.Epoch)
                "loss", number epoch.Loss
                "accuracy", percent epoch.Accuracy
                "learningRate", number epoch.LearningRate
                "seconds", number epoch.Seconds
            ]
        | MetricsEvent.Task task ->
            [
                "event", Json.text "task"
                "task", Json.int (int64 task.Task)
                "row", Json.array (fun (score: Score) -> integers [| score.Correct; score.Total |]) task.Row
                "seen", percent (Metrics.accuracy (Metrics.seen task.Row))
                "new", percent (Metrics.accuracy (Array.last task.Row))
                "seconds", number task.Seconds
            ]
        | MetricsEvent.End(measures, seconds) ->
            [
                "event", Json.text "end"
                for name, value in Measures.named measures do
                    name, Json.option percent value
                "seconds", number seconds
            ]
        | MetricsEvent.Notice text -> [ "event", Json.text "notice"; "text", Json.text text ]

    // readable where a browser never reads: quotes and control characters are still escaped
    let private options =
        JsonSerializerOptions(Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping)

    let private timeFormat = "yyyy-MM-dd'T'HH:mm:ss.fff'Z'"

    /// A line of the file, without its end.
    let encode (line: MetricsLine) : string =
        let time = line.Time.UtcDateTime.ToString(timeFormat, CultureInfo.InvariantCulture)
        let node = Json.object [ "time", Json.text time; yield! members line.Event ]
        // invisible characters are escaped as well, so that the file is safe to print
        Text.visible (node.ToJsonString options)

    let private encoded (line: MetricsLine) =
        Text.UTF8Encoding(false).GetBytes(encode line + "\n")

    // The other way; what System.Text.Json throws for other kinds of values is `Json.parse`'s to reject.

    let private items (read: JsonElement -> 'T) (element: JsonElement) =
        [| for item in element.EnumerateArray() -> read item |]

    let private toInt (element: JsonElement) = element.GetInt32()

    let private toFloat (element: JsonElement) =
        if element.ValueKind = JsonValueKind.Null then
            nan
        else
            element.GetDouble()

    let private decodeEvent (subject: string) (root: JsonElement) : MetricsEvent =
        let get (name: string) = root.GetProperty name
        let text name = (get name).GetString()
        let int = get >> toInt
        let float = get >> toFloat
        let fraction name = float name / 100.0

        let row task =
            let score (element: JsonElement) =
                match items toInt element with
                | [| correct; total |] when correct >= 0 && total > 0 && correct <= total ->
                    { Correct = correct; Total = total }
                | _ -> Errors.reject subject "must count right answers among all" $"{element.GetRawText()}" ""

            let scores = items score (get "row")

            if scores.Length <> task + 1 then
                Errors.reject subject $"must hold {task + 1} scores" $"{scores.Length}" ""

            scores

        match text "event" with
        | "start" ->
            MetricsEvent.Start
                {
                    Method = text "method"
                    Variant = text "variant"
                    Data = text "data"
                    Seed = (get "seed").GetInt64()
                    TaskSizes = items toInt (get "taskSizes")
                }
        | "retained" ->
            MetricsEvent.Retained(int "task", items toInt (get "ranks"), items toFloat (get "energies"))
        | "epoch" ->
            MetricsEvent.Epoch
                {
                    Task = int "task"
                    Epoch = int "epoch"
                    Loss = float "loss"
                    Accuracy = fraction "accuracy"
                    LearningRate = float "learningRate"
                    Seconds = float "seconds"
                }
        | "task" ->
            MetricsEvent.Task
                {
                    Task = int "task"
                    Row = row (int "task")
                    Seconds = float "seconds"
                }
        | "end" ->
            let optional name =
                if (get name).ValueKind = JsonValueKind.Null then
                    None
                else
                    Some(fraction name)

            MetricsEvent.End(
                {
                    Last = fraction "last"
                    Average = fraction "average"
                    LastByTask = fraction "lastByTask"
                    AverageByTask = fraction "averageByTask"
                    Forgetting = optional "forgetting"
                    BackwardTransfer = optional "backwardTransfer"
                    ForwardTransfer = optional "forwardTransfer"
                    Intransigence = optional "intransigence"
                },
                float "seconds"
            )
        | "notice" -> MetricsEvent.Notice(text "text")
        | other ->
            Errors.reject
                subject
                "must be a known event"
                $"'{other}'"
                "read it with the program that wrote it"

    let private decode (subject: string) (bytes: ReadOnlyMemory<byte>) : MetricsLine =
        Json.parse purpose subject bytes (fun root ->
            let time = (root.GetProperty "time").GetDateTimeOffset()

            {
                Time = time
                Event = decodeEvent subject root
            })

    // the bytes of each whole line, its end included; a torn last line is left out
    let private wholeLines (bytes: byte[]) : ReadOnlyMemory<byte>[] =
        let rec from start lines =
            match Array.IndexOf(bytes, byte '\n', start) with
            | -1 -> lines
            | at -> from (at + 1) (ReadOnlyMemory(bytes, start, at + 1 - start) :: lines)

        from 0 [] |> List.rev |> Array.ofList

    let private decodeAll path (lines: ReadOnlyMemory<byte>[]) =
        lines |> Array.mapi (fun i line -> decode $"{path}, line {i + 1}" line)

    /// Every whole line of a file. A last line without its end, as a crash leaves it, is dropped; rejects any other
    /// damage by file and line.
    let read (path: string) : MetricsLine[] =
        Json.bytes "the metrics of a run" path |> wholeLines |> decodeAll path

    /// Opens a new file. Rejects one that exists and a folder that cannot be written.
    let start (path: string) : MetricsWriter =
        if File.Exists path then
            Errors.reject path "must not exist" "a file" "resume that run, or choose another folder"

        WholeFile.writeText path ""
        new MetricsWriter(path, 0, encoded)

    /// Cuts a file to its first `count` lines, whole, and opens it for more; a run resumed from a checkpoint then
    /// writes what followed again. Gives the lines that were kept. A missing file is one without lines. Rejects a file
    /// of fewer whole lines and damage in those kept.
    let resume (path: string) (count: int) : struct (MetricsLine[] * MetricsWriter) =
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
        let decoded = decodeAll path kept
        WholeFile.write path (fun stream -> kept |> Array.iter (fun line -> stream.Write line.Span))
        struct (decoded, new MetricsWriter(path, count, encoded))
