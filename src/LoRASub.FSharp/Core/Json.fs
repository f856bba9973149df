namespace LoRASub

open System
open System.Collections.Generic
open System.IO
open System.Text.Json
open System.Text.Json.Nodes

/// JSON files: built from small pieces, written whole, and read with errors that name the file.
[<RequireQualifiedAccess>]
module Json =

    let int (value: int64) : JsonNode = JsonValue.Create value
    let float (value: float) : JsonNode = JsonValue.Create value
    let text (value: string) : JsonNode = JsonValue.Create value
    let bool (value: bool) : JsonNode = JsonValue.Create value
    /// null for None.
    let option (node: 'T -> JsonNode) (value: 'T option) : JsonNode = Option.toObj (Option.map node value)

    let array (node: 'T -> JsonNode) (items: 'T seq) : JsonNode =
        JsonArray(items |> Seq.map node |> Array.ofSeq)

    let object (members: (string * JsonNode) seq) : JsonNode =
        JsonObject(members |> Seq.map KeyValuePair)

    /// Writes a node as the whole of a file.
    let write (path: string) (node: JsonNode) : unit =
        WholeFile.writeText path (node.ToJsonString(JsonSerializerOptions(WriteIndented = true)) + "\n")

    /// A parser's error for the writer of the text: without the position, and without advice to the
    /// program's own programmer.
    let reason (e: JsonException) : string =
        let said = e.Message

        let said =
            match said.IndexOf(" LineNumber:", StringComparison.Ordinal) with
            | -1 -> said
            | at -> said.Substring(0, at)

        said
            .Replace(" at the end which is not supported in this mode. Change the reader options", "")
            .Replace("The JSON object contains ", "")
            .Replace("The JSON array contains ", "")
            .Replace(", when isFinalBlock is true", "")
            .TrimEnd
            '.'

    /// The subject with the line of an error, from 1.
    let place (subject: string) (e: JsonException) : string =
        if e.LineNumber.HasValue then
            $"{subject}, line {e.LineNumber.Value + 1L}"
        else
            subject

    // a byte order mark is not part of the text
    let private withoutMark (bytes: ReadOnlyMemory<byte>) =
        if bytes.Span.StartsWith(ReadOnlySpan [| 0xEFuy; 0xBBuy; 0xBFuy |]) then
            bytes.Slice 3
        else
            bytes

    /// Reads one JSON value from bytes. Rejects, under the name `subject`, bytes that are not JSON and whatever of a
    /// wrong kind `read` stumbles on; `what` names their purpose. The line is named where the text has several.
    let parse (what: string) (subject: string) (bytes: ReadOnlyMemory<byte>) (read: JsonElement -> 'T) : 'T =
        let bytes = withoutMark bytes

        try
            use document = JsonDocument.Parse bytes
            read document.RootElement
        with
        | :? JsonException as e ->
            let text = bytes.Span.TrimEnd(ReadOnlySpan [| 32uy; 9uy; 10uy; 13uy |])
            let subject = if text.IndexOf 10uy >= 0 then place subject e else subject
            Errors.reject subject "must be JSON" (if text.IsEmpty then "no text" else reason e) ""
        // what JsonElement throws for a missing member or a value of another kind
        | :? KeyNotFoundException
        | :? InvalidOperationException
        | :? FormatException as e -> Errors.reject subject $"must be {what}" e.Message ""

    /// The bytes of a file. Rejects one that is missing or unreadable; `what` names its purpose.
    let bytes (what: string) (path: string) : byte[] =
        if not (File.Exists path) then
            Errors.reject path $"must be {what}" "no such file" ""

        try
            File.ReadAllBytes path
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Errors.reject path "must be readable" e.Message ""

    /// Reads a file. Rejects as `bytes` and `parse`.
    let read (what: string) (path: string) (read: JsonElement -> 'T) : 'T =
        parse what path (ReadOnlyMemory(bytes what path)) read
