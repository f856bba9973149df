namespace LoRASub.Settings

open System
open System.Collections.Generic
open System.IO
open System.Text
open System.Text.Json
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open YamlDotNet.Core

/// A value in a YAML or JSON file.
type internal ConfigValue =
    /// A number, a truth value or a text, as written.
    | Text of string
    | Nothing
    | Items of ConfigNode[]
    /// In the order of the file, repeated keys included.
    | Entries of (string * ConfigNode)[]

and internal ConfigNode =
    {
        /// The line of its key, or of the value without one; from 1.
        Line: int64
        Value: ConfigValue
    }

/// YAML and JSON files as trees that know their lines. YAML's aliases share nodes, so that a tree never takes more
/// memory than its text.
[<RequireQualifiedAccess>]
module internal ConfigTree =

    let private largest = 1 <<< 20

    let private deepest = 64

    /// A text from a file as a message shows it, cut to a number of characters.
    let cut (most: int) (text: string) = Text.cut "…" most text

    /// A key or value from a file as a message shows it.
    let shortened (text: string) = cut 60 text

    // parsers quote the offending text in full
    let private said (e: exn) = cut 200 e.Message

    /// The bytes of a file. Rejects what is not a file or is larger than 1 MiB.
    let bytes (path: string) : byte[] =
        if Directory.Exists path || not (File.Exists path) then
            let found = if Directory.Exists path then "a folder" else "no such file"
            Errors.reject path "must be a configuration in YAML or JSON" found ""

        // the length of a device is meaningless
        DataFile.openRead path (fun stream ->
            let buffer = Array.zeroCreate<byte>(largest + 1)

            let read =
                stream.ReadAtLeast(Span buffer, buffer.Length, throwOnEndOfStream = false)

            if read > largest then
                Errors.reject path $"must have at most {largest} bytes" "more" ""

            buffer[.. read - 1])

    let private requireDepth (path: string) (line: int64) (depth: int) =
        if depth > deepest then
            Errors.reject $"{path}, line {line}" $"must be at most {deepest} levels deep" "more" ""

    // A key's node carries the key's line, whatever line its value starts on.
    let private under (line: int64) (node: ConfigNode) = { node with Line = line }

    // ------------------------------------------------------------------------------------------ YAML

    /// The value of a scalar without quotes (YAML 1.2's core schema, as far as settings differ from it).
    let private plain (text: string) : ConfigValue =
        match text with
        | ""
        | "~"
        | "null"
        | "Null"
        | "NULL" -> Nothing
        | "True"
        | "TRUE" -> Text "true"
        | "False"
        | "FALSE" -> Text "false"
        | ".inf"
        | ".Inf"
        | ".INF" -> Text "Infinity"
        | _ -> Text text

    type private Yaml(path: string, text: string) =
        let parser = Parser(new StringReader(text))
        let anchors = Dictionary<string, ConfigNode>()

        let refuse (line: int64) rule received fix =
            Errors.reject $"{path}, line {line}" rule received fix

        member _.Refuse line rule received fix : 'T = refuse line rule received fix

        /// The first line from the given one on that is indented with a tab.
        member private _.TabFrom(line: int64) : int64 option =
            text.Split '\n'
            |> Array.indexed
            |> Array.tryFind (fun (i, content) ->
                int64 i + 1L >= line
                && content.Length > content.TrimStart().Length
                && content.Substring(0, content.Length - content.TrimStart().Length).Contains '\t')
            |> Option.map (fun (i, _) -> int64 i + 1L)

        /// The next event.
        member yaml.Next() : Events.ParsingEvent =
            try
                if parser.MoveNext() then
                    parser.Current
                else
                    refuse 1L "must hold one YAML document" "none" ""
            with
            | :? InputException -> reraise ()
            | :? YamlException as e ->
                // the parser names the line on which the mapping or text before the tab begins
                match yaml.TabFrom e.Start.Line with
                | Some line when line = e.Start.Line || e.Message.Contains " tab " ->
                    refuse line "must be indented with spaces" "a tab" ""
                | _ -> refuse e.Start.Line "must be YAML" (said e) ""
            // the parser also throws InvalidOperationException and others for some malformed texts
            | _ ->
                let line =
                    if isNull parser.Current then
                        1L
                    else
                        parser.Current.End.Line

                refuse
                    line
                    "must be YAML"
                    "text that cannot be parsed from here on"
                    "look for a bracket or quote that is not closed"

        /// The node that an event begins.
        member yaml.Node (depth: int) (event: Events.ParsingEvent) : ConfigNode =
            let line = event.Start.Line
            requireDepth path line depth

            let finish (node: Events.NodeEvent) value =
                // a plain scalar's tag is "?", a quoted one's "!"
                if not node.Tag.IsEmpty && not node.Tag.IsNonSpecific then
                    refuse line "must be YAML without tags" "one" "remove the tag"

                let made = { Line = line; Value = value }

                if not node.Anchor.IsEmpty then
                    anchors[node.Anchor.Value] <- made

                made

            match event with
            | :? Events.AnchorAlias as alias ->
                match anchors.TryGetValue alias.Value.Value with
                | true, node -> node
                | _ -> refuse line "an alias must follow its anchor" "an unknown anchor" ""
            | :? Events.Scalar as scalar ->
                finish
                    scalar
                    (if scalar.Style = ScalarStyle.Plain then
                         plain scalar.Value
                     else
                         Text scalar.Value)
            | :? Events.SequenceStart as start ->
                let items = ResizeArray()
                let mutable next = yaml.Next()

                while not (next :? Events.SequenceEnd) do
                    items.Add(yaml.Node (depth + 1) next)
                    next <- yaml.Next()

                finish start (Items(items.ToArray()))
            | :? Events.MappingStart as start ->
                let entries = ResizeArray()
                let mutable next = yaml.Next()

                while not (next :? Events.MappingEnd) do
                    entries.Add(yaml.Entry depth next)
                    next <- yaml.Next()

                finish start (Entries(entries.ToArray()))
            | other -> refuse line "must be YAML" $"{other.GetType().Name}" ""

        member private yaml.Entry (depth: int) (event: Events.ParsingEvent) : string * ConfigNode =
            let key = yaml.Node (depth + 1) event
            let line = event.Start.Line

            match key.Value with
            | Text "<<" -> refuse line "must name every key" "a merge key (<<)" "write the keys out"
            | Text name -> name, yaml.Node (depth + 1) (yaml.Next()) |> under line
            | _ -> refuse line "a key must be a text" "another kind" ""

    let rec private yamlDocument (yaml: Yaml) : ConfigNode =
        match yaml.Next() with
        | :? Events.StreamStart
        | :? Events.DocumentStart -> yamlDocument yaml
        | :? Events.StreamEnd -> { Line = 1L; Value = Nothing }
        | event ->
            let node = yaml.Node 0 event
            yaml.Next() |> ignore

            match yaml.Next() with
            | :? Events.StreamEnd -> node
            | other -> yaml.Refuse other.Start.Line "must hold one YAML document" "another" ""

    // ------------------------------------------------------------------------------------------ JSON

    let rec private jsonNode (lineOf: int64 -> int64) (reader: byref<Utf8JsonReader>) : ConfigNode =
        let line = lineOf reader.TokenStartIndex

        let value =
            match reader.TokenType with
            | JsonTokenType.StartObject ->
                let entries = ResizeArray()
                reader.Read() |> ignore

                while reader.TokenType <> JsonTokenType.EndObject do
                    let name, line = reader.GetString(), lineOf reader.TokenStartIndex
                    reader.Read() |> ignore
                    entries.Add(name, under line (jsonNode lineOf &reader))
                    reader.Read() |> ignore

                Entries(entries.ToArray())
            | JsonTokenType.StartArray ->
                let items = ResizeArray()
                reader.Read() |> ignore

                while reader.TokenType <> JsonTokenType.EndArray do
                    items.Add(jsonNode lineOf &reader)
                    reader.Read() |> ignore

                Items(items.ToArray())
            | JsonTokenType.Null -> Nothing
            | JsonTokenType.String -> Text(reader.GetString())
            | _ -> Text(Encoding.UTF8.GetString reader.ValueSpan)

        { Line = line; Value = value }

    let private json (path: string) (bytes: byte[]) : ConfigNode =
        let ends =
            [|
                for i in 0 .. bytes.Length - 1 do
                    if bytes[i] = 10uy then
                        int64 i
            |]

        // line ends before a position, from 1
        let lineOf (position: int64) =
            match Array.BinarySearch(ends, position) with
            | found when found >= 0 -> int64 found + 1L
            | missing -> int64 ~~~missing + 1L

        try
            let options = JsonReaderOptions(MaxDepth = deepest)
            let mutable reader = Utf8JsonReader(ReadOnlySpan bytes, options)
            reader.Read() |> ignore
            let node = jsonNode lineOf &reader
            // anything but white space would be refused here
            reader.Read() |> ignore
            node
        with
        | :? JsonException as e ->
            let received = cut 200 (Json.reason e)
            Errors.reject (Json.place path e) "must be JSON, as it begins with '{'" received ""
        // a string that is not Unicode
        | :? InvalidOperationException as e -> Errors.reject path "must be JSON in UTF-8" (said e) ""

    /// The tree of a file's bytes: JSON where they begin with '{', YAML otherwise. Rejects what is neither, or nested
    /// more than 64 levels deep.
    let parse (path: string) (bytes: byte[]) : ConfigNode =
        let text =
            try
                UTF8Encoding(false, true).GetString(bytes).TrimStart '\uFEFF'
            with :? DecoderFallbackException as e ->
                Errors.reject path "must be text in UTF-8" (said e) ""

        if text.TrimStart().StartsWith '{' then
            json path (Encoding.UTF8.GetBytes text)
        else
            yamlDocument (Yaml(path, text))
