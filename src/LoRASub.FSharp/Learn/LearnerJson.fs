namespace LoRASub.Learn

open System
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open LoRASub.Core
open LoRASub.Files

/// learner.json: a record, and in its last member `sha256` the SHA-256 of the whole file with zeros in place of those 64
/// digits. Programs that know no such member ignore it.
[<RequireQualifiedAccess>]
module internal LearnerJson =

    [<Literal>]
    let private Checksum = "sha256"

    /// What the file is, for errors.
    [<Literal>]
    let private Purpose = "the JSON half of a saved learner"

    let private blank = String('0', 64)

    // Latin-1 gives each byte a character of its own
    let private sha256 (digits: string) (bytes: byte[]) : string =
        (Encoding.Latin1.GetString bytes).Replace(digits, blank, StringComparison.Ordinal)
        |> Encoding.Latin1.GetBytes
        |> SHA256.HashData
        |> Convert.ToHexStringLower

    let private damaged (path: string) (rule: string) (received: string) =
        Errors.reject
            path
            rule
            received
            $"the file was changed: restore it, or remove '{Checksum}' from it if you changed it"

    /// The hash of the tensors that belong to a file; None where that is missing or damaged. Rejects a file that cannot be
    /// read.
    let tensorsHash (path: string) : string option =
        if File.Exists path then
            let bytes = ReadOnlyMemory(Json.bytes Purpose path)

            try
                Json.parse Purpose path bytes (fun root ->
                    Some((root.GetProperty "tensorsSha256").GetString()))
            with :? InputException ->
                None
        else
            None

    // The members that files without a checksum have: any other is a damaged name.
    let private members =
        lazy
            (typeof<LearnerFormat.Record>.GetProperties()
             |> Array.map (fun field -> JsonNamingPolicy.CamelCase.ConvertName field.Name)
             |> Set.ofArray)

    let private check (path: string) (bytes: byte[]) (root: JsonElement) (isOld: bool) =
        match root.TryGetProperty Checksum with
        | true, stated ->
            let digits = stated.GetString() |> Option.ofObj |> Option.defaultValue ""

            if digits.Length <> blank.Length then
                damaged path $"must state 64 hexadecimal digits as its '{Checksum}'" $"{digits.Length}"

            let found = sha256 digits bytes

            if found <> digits then
                damaged path $"must have the SHA-256 {digits} that it states" found
        | _ when isOld -> ()
        | _ ->
            for one in root.EnumerateObject() do
                if not (members.Value.Contains one.Name) then
                    let name = Text.cut ".." 40 one.Name
                    damaged path $"must have a '{Checksum}' or no unknown member" $"'{name}'"

    /// Writes a record as the whole of a file. Rejects as `WholeFile.write`.
    let write (path: string) (record: LearnerFormat.Record) : unit =
        let node = Json.ofRecord record
        node[Checksum] <- Json.text blank
        let text = Json.toText node
        let digits = sha256 blank (Encoding.UTF8.GetBytes text)
        // the last member: a record may hold zeros of its own
        let at = text.LastIndexOf(blank, StringComparison.Ordinal)
        WholeFile.writeText path (text.Remove(at, blank.Length).Insert(at, digits))

    /// The record of a file, and whether it is of version 1. Rejects a file that is missing, damaged or of a newer version.
    let read (path: string) : struct (LearnerFormat.Record * bool) =
        let bytes = Json.bytes Purpose path

        Json.parse Purpose path (ReadOnlyMemory bytes) (fun root ->
            let version =
                match root.TryGetProperty "version" with
                | true, stated when stated.ValueKind = JsonValueKind.Number && fst (stated.TryGetInt64()) ->
                    stated.GetInt64()
                | found, stated ->
                    Errors.reject
                        $"{path}, version"
                        $"must be a whole number from 1 to {LearnerRecord.Version}"
                        (if found then
                             Text.cut ".." 40 (stated.GetRawText())
                         else
                             "none")
                        "restore the file from a backup"

            if version < 1L || version > int64 LearnerRecord.Version then
                Errors.reject
                    path
                    $"must be of version 1 to {LearnerRecord.Version}"
                    $"version {version}"
                    "use the program that wrote it"

            let isOld = version = 1L
            check path bytes root isOld

            if isOld then
                struct (LearnerVersion1.migrate path (Json.toRecord<LearnerFormat.Version1> root), true)
            else
                struct (Json.toRecord<LearnerFormat.Record> root, false))
