namespace LoRASub.Settings

open System
open System.Globalization
open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads

/// A setting's text and its source.
type SettingSource =
    {
        Name: string
        Value: string
        /// As "command line", "FILE, line 12 (classifier.kwargs.fc_lrate)", "preset cifar100 libcontinual" or "default".
        Source: string
    }

/// Whose names a configuration file uses.
[<RequireQualifiedAccess>]
type ConfigFormat =
    /// This program's settings, flat, in YAML or JSON.
    | Own
    /// LibContinual's YAML.
    | LibContinual
    /// The authors' JSON.
    | Official

/// The data and backbone that a published configuration expects, to be checked once they are read.
type Expectations =
    {
        /// The configuration file; empty if there is none.
        File: string
        Classes: int option
        Width: int option
        Heads: int option
    }

/// A configuration file, read.
type ConfigFile =
    {
        Path: string
        Format: ConfigFormat
        Settings: SettingSource list
        /// The seeds that the file names, if it does, and their place.
        Seeds: (int64[] * string) option
        /// Keys of the file that have no effect here.
        Notes: string list
        Expected: Expectations
    }

/// A value under a key of a configuration file, and its place.
type internal Found =
    {
        Value: ConfigValue
        Source: string
    }

    member this.Refuse rule fix : 'T =
        let received =
            match this.Value with
            | Text text -> $"'{ConfigTree.shortened text}'"
            | Nothing -> "nothing"
            | Items _ -> "a list"
            | Entries _ -> "a mapping"

        Errors.reject this.Source rule received fix

    /// A single value. Rejects lists and mappings.
    member this.Text: string =
        match this.Value with
        | Text text -> text
        | _ -> this.Refuse "must be a single value" ""

    /// A finite number. Rejects anything else.
    member this.Number: float =
        match Double.TryParse(this.Text, NumberStyles.Float, CultureInfo.InvariantCulture) with
        | true, x when Double.IsFinite x -> x
        | _ -> this.Refuse "must be a number" ""

    /// A whole number of at least 1. Rejects anything else.
    member this.Count: int =
        match Int32.TryParse(this.Text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture) with
        | true, n when n >= 1 -> n
        | _ -> this.Refuse "must be a whole number of at least 1" ""

    /// The single values of a list. Rejects anything else.
    member this.Items: Found[] =
        match this.Value with
        | Items items when items.Length > 0 ->
            let found = items |> Array.map (fun item -> { this with Value = item.Value })
            found |> Array.iter (fun item -> ignore item.Text)
            found
        | _ -> this.Refuse "must be a list of single values" ""

/// A mapping of a configuration file. The last of a repeated key counts.
type internal Section =
    {
        File: string
        /// classifier.kwargs., or empty at the top.
        Prefix: string
        Entries: (string * ConfigNode)[]
    }

    member this.Find(name: string) : Found option =
        this.Entries
        |> Array.tryFindBack (fun (key, _) -> key = name)
        |> Option.map (fun (_, node) ->
            {
                Value = node.Value
                Source = $"{this.File}, line {node.Line} ({this.Prefix}{name})"
            })

    member this.Needed (name: string) (rule: string) : Found =
        match this.Find name with
        | Some found -> found
        | None -> Errors.reject $"{this.File}, {this.Prefix}{name}" rule "no such key" ""

    member this.Names = this.Entries |> Array.map fst |> Array.distinct |> List.ofArray

    /// Its names except the used ones, with the prefix.
    member this.Except(used: string list) : string list =
        List.except used this.Names |> List.map (fun name -> this.Prefix + name)

    /// The section under a key, empty without one.
    member this.Section(name: string) : Section =
        let entries =
            match this.Find name with
            | None -> [||]
            | Some found ->
                match found.Value with
                | Entries entries -> entries
                | Nothing -> [||]
                | _ -> found.Refuse "must be a mapping" ""

        { this with
            Prefix = $"{this.Prefix}{name}."
            Entries = entries
        }

/// How the keys of a configuration file become settings.
module internal ConfigSection =

    let private invariant = CultureInfo.InvariantCulture
    let listed (names: string seq) = String.Join(", ", names)

    let says name value source : SettingSource =
        {
            Name = name
            Value = value
            Source = source
        }

    let assign name (found: Found option) : SettingSource list =
        found |> Option.map (fun f -> says name f.Text f.Source) |> Option.toList

    /// The two numbers of a list, as one text or several settings.
    let assignPair (settings: string -> string -> (string * string) list) (found: Found option) =
        match found with
        | None -> []
        | Some f ->
            match f.Items with
            | [| low; high |] ->
                [ for name, value in settings low.Text high.Text -> says name value f.Source ]
            | _ -> f.Refuse "must be a list of two numbers" ""

    /// Rejects any text but the only possible one, where the key is given.
    let mustBe (possible: string) why (found: Found option) =
        found
        |> Option.iter (fun f ->
            if f.Text <> possible then
                f.Refuse $"must be {possible}{why}" "")

    /// Rejects a key that is not among the known ones.
    let only (known: string list) (s: Section) =
        for name in List.except known s.Names do
            let line, name = (s.Find name).Value.Source, ConfigTree.shortened name
            Errors.reject line $"must be one of {listed known}" $"'{name}'" (Errors.didYouMean known name)

    let refuseData subject name : 'T =
        Errors.reject
            subject
            $"must be one of {listed Datasets.names}"
            name
            (Errors.didYouMean Datasets.names (name.Trim '\''))

    /// Rejects texts that are not different whole numbers; `shown` is what messages say was found.
    let parseSeeds (subject: string) (shown: string) (fix: string) (texts: string[]) : int64[] =
        let refuse rule : 'T =
            Errors.reject subject rule $"'{ConfigTree.shortened shown}'" fix

        let parse (text: string) =
            match Int64.TryParse(text.Trim(), NumberStyles.AllowLeadingSign, invariant) with
            | true, seed -> seed
            | _ -> refuse "must be whole numbers of at most 64 bits"

        let seeds = Array.map parse texts

        if seeds.Length <> (Array.distinct seeds).Length then
            refuse "must name each seed once"

        seeds

    /// Seeds in a file: one, or a list.
    let seedsOf (found: Found) : int64[] * string =
        let texts =
            match found.Value with
            | Items _ -> found.Items |> Array.map _.Text
            | _ -> [| found.Text |]

        parseSeeds found.Source (listed texts) "" texts, found.Source

    let nothingExpected: Expectations =
        {
            File = ""
            Classes = None
            Width = None
            Heads = None
        }
