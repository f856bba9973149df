namespace LoRASub.Files

open System
open System.Collections.Generic
open System.IO
open System.Text.Json
open System.Text.Json.Nodes
open System.Text.Json.Serialization
open System.Text.Json.Serialization.Metadata
open System.Text.RegularExpressions
open LoRASub.Core

/// JSON has neither NaN nor infinity: null there, NaN here. Numbers too large to be a measurement become NaN as well,
/// because their sums and squares would overflow.
type private FloatConverter() =
    inherit JsonConverter<float>()
    override _.HandleNull = true

    override _.Read(reader, _, _) =
        if reader.TokenType = JsonTokenType.Null then
            nan
        else
            let value = reader.GetDouble()
            if abs value < 1e100 then value else nan

    override _.Write(writer, value, _) =
        if Double.IsFinite value then
            writer.WriteNumberValue(value + 0.0) // no minus zero
        else
            writer.WriteNullValue()

/// A fraction that files hold in percent.
type internal PercentConverter() =
    inherit JsonConverter<float>()
    override _.HandleNull = true

    override _.Read(reader, _, options) =
        JsonSerializer.Deserialize<float>(&reader, options) / 100.0

    override _.Write(writer, value, options) =
        JsonSerializer.Serialize(writer, Math.Round(100.0 * value, 10), options)

/// JSON files: built from small pieces, written whole, and read with errors that name the file.
[<RequireQualifiedAccess>]
module internal Json =

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

    /// An object with more members before those from a position on.
    let insert (at: int) (members: (string * JsonNode) list) (object: JsonNode) : JsonNode =
        members
        |> List.iteri (fun i (name, value) -> object.AsObject().Insert(at + i, name, value))

        object

    // Records as JSON: every field must be there, and only options may be null. An option that is left out where it is
    // None, as `JsonIgnore` says, may be absent: the field is newer than some files.
    let private strict (info: JsonTypeInfo) =
        let isLeftOut (field: JsonPropertyInfo) =
            field.AttributeProvider.IsDefined(typeof<JsonIgnoreAttribute>, true)

        let mayBeNull (field: Type) =
            field.IsValueType
            || field.IsGenericType && field.GetGenericTypeDefinition() = typedefof<option<_>>

        let fields =
            info.Properties
            |> Seq.filter (fun field -> not (isNull field.AssociatedParameter))
            |> Array.ofSeq

        for field in fields do
            if isLeftOut field then
                field.IsRequired <- false

        if info.Kind = JsonTypeInfoKind.Object && fields.Length > 0 then
            info.OnDeserialized <-
                fun record ->
                    for field in fields do
                        match field.Get.Invoke record with
                        | null when not (mayBeNull field.PropertyType) ->
                            raise (JsonException $"'{field.Name}' is null")
                        | :? Array as items when not (mayBeNull (items.GetType().GetElementType())) ->
                            if items |> Seq.cast<obj> |> Seq.exists isNull then
                                raise (JsonException $"'{field.Name}' holds null")
                        | _ -> ()

    // made when needed: a command that reads no record should not wait for reflection
    let private records =
        lazy
            (let options =
                JsonSerializerOptions(
                    PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
                    RespectRequiredConstructorParameters = true,
                    TypeInfoResolver = DefaultJsonTypeInfoResolver().WithAddedModifier strict
                )

             options.Converters.Add(FloatConverter())
             options)

    /// A record as JSON, its fields in their order under camel-case names.
    let ofRecord (record: 'T) : JsonNode =
        JsonSerializer.SerializeToNode(record, records.Value)

    /// The inverse of `ofRecord`; members that the record lacks are ignored. Throws what `parse` rejects where a field
    /// is missing or of another kind.
    let toRecord<'T> (json: JsonElement) : 'T =
        if json.ValueKind = JsonValueKind.Null then
            raise (JsonException "null")

        json.Deserialize<'T> records.Value

    /// A node as the text of a file.
    let toText (node: JsonNode) : string =
        node.ToJsonString(JsonSerializerOptions(WriteIndented = true)) + "\n"

    /// Writes a node as the whole of a file.
    let write (path: string) (node: JsonNode) : unit = WholeFile.writeText path (toText node)

    // The serializer's messages name our types; people know the file's fields.
    let private mismatch (e: JsonException) =
        let missing =
            Regex.Match(e.Message, "missing required properties including: (.*)\\.")

        if missing.Success then
            $"no {missing.Groups[1].Value}"
        elif e.Message.StartsWith "The JSON value could not be converted" then
            $"a value of another kind at {e.Path}"
        else
            e.Message

    // JsonElement's message names the kinds that it wants and has.
    let private kinds (e: InvalidOperationException) =
        let found = Regex.Match(e.Message, "type '(\\w+)'.* type '(\\w+)'")

        if found.Success then
            let kind (i: int) =
                found.Groups[i].Value.ToLowerInvariant()

            $"a value of the kind {kind 2} in place of {kind 1}"
        else
            e.Message

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
        // the serializer throws JsonException itself; the parser throws a type derived from it
        | :? JsonException as e when e.GetType() = typeof<JsonException> ->
            Errors.reject subject $"must be {what}" (mismatch e) ""
        | :? JsonException as e ->
            let text = bytes.Span.TrimEnd(ReadOnlySpan [| 32uy; 9uy; 10uy; 13uy |])
            let subject = if text.IndexOf 10uy >= 0 then place subject e else subject

            Errors.reject
                subject
                "must be JSON"
                (if text.IsEmpty then "no text" else reason e)
                "correct it if you wrote it; else restore it or make it again"
        // what JsonElement throws for a missing member or a value of another kind
        | :? KeyNotFoundException ->
            Errors.reject subject $"must be {what}" "an object that lacks a member" ""
        | :? InvalidOperationException as e -> Errors.reject subject $"must be {what}" (kinds e) ""
        | :? FormatException -> Errors.reject subject $"must be {what}" "a number that does not fit" ""

    /// The bytes of a file. Rejects one that is missing or unreadable; `what` names its purpose.
    let bytes (what: string) (path: string) : byte[] =
        if not (File.Exists path) then
            Errors.reject path $"must be {what}" "no such file" ""

        try
            File.ReadAllBytes path
        with
        | :? IOException
        | :? UnauthorizedAccessException as e ->
            Errors.reject path "must be readable" e.Message "change its permissions"

    /// Reads a file. Rejects as `bytes` and `parse`.
    let read (what: string) (path: string) (read: JsonElement -> 'T) : 'T =
        parse what path (ReadOnlyMemory(bytes what path)) read

    /// Writes a record as the whole of a file.
    let save (path: string) (record: 'T) : unit = write path (ofRecord record)

    /// Reads the file of a record. Rejects as `read`.
    let load<'T> (what: string) (path: string) : 'T = read what path toRecord<'T>
