/// The command line, from text to a command. Reads no file but that of --config and loads no native library.
module LoRASub.Cli.Arguments

open System
open LoRASub.Core
open LoRASub.Native
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Report
open Argu
open LoRASub.Cli.Flags

/// A search for the largest batch, within a limit in bytes or, without one, in the memory that is free.
type BatchSearch = { Limit: int64 option }

/// The arguments of `lorasub run`.
type RunCommand =
    {
        Config: MergedConfig
        /// Devices that share the seeds; none where they run in turn in this process.
        Devices: string[]
        /// Folder for the results.
        Out: string option
        /// Whether an existing run in that folder is replaced.
        Overwrite: bool
        LibTorch: string option
        DryRun: bool
        LargestBatch: BatchSearch option
    }

/// The runs to report on and the files to write.
type ReportRequest =
    {
        Folders: string list
        Page: string
        Figures: string option
        Tables: string option
    }

/// One command with its arguments.
[<RequireQualifiedAccess>]
type Command =
    /// Print this text.
    | Help of string
    | Version
    | Run of RunCommand
    /// A run folder, and settings with the new paths of its files.
    | Resume of folder: string * changes: (string * string) list * libTorch: string option
    /// A run folder, and settings that replace the saved ones.
    | Evaluate of folder: string * changes: (string * string) list * libTorch: string option
    /// A learner's folder, and images of its classes.
    | EvaluateLearner of PredictCommand.Test
    | Learn of LearnCommand.Request
    | Predict of PredictCommand.Request
    | Inspect of folder: string
    | Forget of folder: string * name: string * settings: (string * string) list * libTorch: string option
    | Rename of
        folder: string *
        name: string *
        newName: string *
        settings: (string * string) list *
        libTorch: string option
    | Merge of into: string * from: string * settings: (string * string) list * libTorch: string option
    | Diff of left: string * right: string * libTorch: string option
    | Export of ExportCommand.Request
    | DataList
    | MethodList
    | HeadList
    | DataCheck of name: string * folder: string
    | DataGet of name: string * folder: string option
    | BackboneList
    | BackboneGet of name: string * folder: string option
    | BackboneInfo of file: string
    | Report of ReportRequest
    | Doctor of libTorch: string option

/// The settings given, in order. Rejects one that is given twice.
let private pairs (given: (string * string) list) : (string * string) list =
    match given |> List.countBy fst |> List.tryFind (fun (_, times) -> times > 1) with
    | Some(name, _) ->
        raise (InputException $"--{name} has been specified more than once; remove one of them")
    | None -> given

/// Rejects the first unknown argument of a command, with the nearest known name.
let private refuseUnknown (parser: ArgumentParser) (command: string) (unknown: string list) =
    match unknown with
    | [] -> ()
    | name :: _ ->
        let isOption = name.StartsWith '-'

        let what =
            if isOption then "option"
            elif parser.GetSubCommandParsers().IsEmpty then "argument"
            else "command"

        let known =
            names (Array.last (command.Split ' ')) parser
            |> List.filter (fun n -> n.StartsWith '-' = isOption)

        let place = if command = "lorasub" then "" else " of " + command

        let hint =
            match Errors.didYouMean known name with
            | "" -> String.Concat("see ", command, " --help")
            | meant -> meant

        raise (InputException(String.Concat [| "unknown "; what; " '"; name; "'"; place; "; "; hint |]))

// A resumed run has its folder and settings already.
let private refuseBesideResume (flags: ParseResults<RunFlag>) =
    let given =
        [
            if flags.Contains RunFlag.Out then
                "--out"
            if flags.Contains Overwrite then
                "--overwrite"
            if flags.Contains RunFlag.Preset then
                "--preset"
            if flags.Contains Config then
                "--config"
            if flags.Contains Seeds then
                "--seeds"
            if flags.Contains Devices then
                "--devices"
            if flags.Contains Dry_Run then
                "--dry-run"
            if flags.Contains Largest_Batch then
                "--largest-batch"
        ]

    match given with
    | [] -> ()
    | name :: _ -> raise (InputException $"--resume cannot be combined with {name}; remove {name}")

// Before a word after `--`, so that Argu takes it for none of its own. No argument of a program can hold this character.
[<Literal>]
let private Mark = '\000'

let private unmarked (word: string) = word.TrimStart Mark

/// Words and misspelt options, as the main argument of a command takes both.
let private words (parser: ArgumentParser) command unknown (given: string list list) : string list =
    let options, words =
        List.concat given
        |> List.partition (fun word -> word.StartsWith '-' && word <> "-")

    refuseUnknown parser command (unknown @ options)
    List.map unmarked words

let private refuseWords (command: string) (needs: string) (words: string list) =
    let given = if words.IsEmpty then "none" else String.concat " " words
    Errors.reject ("lorasub " + command) $"needs {needs}" given $"see lorasub {command} --help"

let private listOf (text: string option) : string list =
    match text with
    | Some text ->
        text.Split(',', StringSplitOptions.TrimEntries ||| StringSplitOptions.RemoveEmptyEntries)
        |> List.ofArray
    | None -> []

// The devices that share the seeds: cpu, cuda:N, or N for cuda:N.
let private devicesOf (flags: ParseResults<RunFlag>) (given: (string * string) list) (config: MergedConfig) =
    let devices =
        listOf (flags.TryGetResult Devices)
        |> List.map (fun name ->
            if Seq.forall Char.IsAsciiDigit name then
                "cuda:" + name
            else
                name)

    if flags.Contains Devices then
        let refuse rule found fix =
            Errors.reject "--devices" rule found fix

        if devices.IsEmpty then
            refuse "must name devices" "none" "write 0,1"

        if config.Seeds.Length < 2 then
            refuse "needs several seeds" "one" "add --seeds, or use --device"

        if not (flags.Contains RunFlag.Out) then
            refuse "needs a folder for the results" "none" "add --out DIR"

        if List.exists (fst >> (=) "device") given then
            refuse "cannot be combined with --device" "both" "remove --device"

    Array.ofList devices

let private batchSearch (flags: ParseResults<RunFlag>) (limit: string option) : BatchSearch =
    if flags.Contains RunFlag.Out then
        Errors.reject "--largest-batch" "saves nothing" "--out" "remove --out"

    {
        Limit =
            limit
            |> Option.map (fun text ->
                match Bytes.tryParse text with
                | Some bytes -> bytes
                | None ->
                    Errors.reject "--largest-batch" "must be a size such as 512MiB or 8GiB" $"'{text}'" "")
    }

let private share (name: string) (text: string option) : float option =
    text
    |> Option.map (fun text ->
        // without thousands: 0,05 is no 5
        match
            Double.TryParse(
                text,
                Globalization.NumberStyles.Float,
                Globalization.CultureInfo.InvariantCulture
            )
        with
        | true, share when share >= 0.0 && share < 1.0 -> share
        | _ -> Errors.reject name "must be at least 0 and less than 1" $"'{text}'" "")

let private learn (flags: ParseResults<LearnFlag>) : Command =
    let needs = "a learner's folder and a folder of images"

    match
        words flags.Parser "lorasub learn" flags.UnrecognizedCliParams (flags.GetResults LearnFlag.Folders)
    with
    | [ folder; images ] ->
        let renamed (text: string) =
            match text.Split '=' with
            | [| folder; name |] when folder <> "" && name <> "" -> folder, name
            | _ -> Errors.reject "--rename" "must be FOLDER=NAME, separated by commas" $"'{text}'" ""

        Command.Learn
            {
                Folder = folder
                Images = images
                Preset = flags.TryGetResult LearnFlag.Preset
                Settings = pairs (flags.GetResults LearnFlag.Setting)
                HoldOut =
                    share "--holdout" (flags.TryGetResult Holdout)
                    |> Option.defaultValue Calibration.usualHoldOut
                More = flags.Contains More
                Skip = listOf (flags.TryGetResult Skip)
                Rename = listOf (flags.TryGetResult LearnFlag.Rename) |> List.map renamed
                LibTorch = flags.TryGetResult LearnFlag.Libtorch
            }
    | other -> refuseWords "learn" needs other

let private predict (flags: ParseResults<PredictFlag>) : Command =
    match words flags.Parser "lorasub predict" flags.UnrecognizedCliParams (flags.GetResults Paths) with
    | folder :: (_ :: _ as images) ->
        let top = flags.TryGetResult Top |> Option.defaultValue 1

        if top < 1 then
            Errors.reject "--top" "must be at least 1" $"{top}" ""

        let forms =
            [
                "table", PredictCommand.Form.Table
                "csv", PredictCommand.Form.Csv
                "jsonl", PredictCommand.Form.Json
            ]

        let form = flags.TryGetResult Format |> Option.defaultValue "table"

        match forms |> List.tryFind (fst >> (=) form) with
        | Some(_, form) ->
            Command.Predict
                {
                    Folder = folder
                    Images = images
                    Settings = pairs (flags.GetResults PredictFlag.Setting)
                    Top = top
                    FalseAlarms = share "--false-alarms" (flags.TryGetResult PredictFlag.False_Alarms)
                    Form = form
                    LibTorch = flags.TryGetResult PredictFlag.Libtorch
                }
        | None ->
            let advice = Errors.didYouMean (List.map fst forms) form
            Errors.reject "--format" "must be table, csv or jsonl" $"'{form}'" advice
    | other -> refuseWords "predict" "a learner's folder and images" other

let private ofLearner (name: string) (flags: ParseResults<LearnerFlag>) : Command =
    let command = "lorasub " + name
    let libTorch = flags.TryGetResult LearnerFlag.Libtorch
    let settings = pairs (flags.GetResults LearnerFlag.Setting)

    match name, words flags.Parser command flags.UnrecognizedCliParams (flags.GetResults Words) with
    | "inspect", [ folder ] -> Command.Inspect folder
    | "forget", [ folder; one ] -> Command.Forget(folder, one, settings, libTorch)
    | "rename", [ folder; one; newName ] -> Command.Rename(folder, one, newName, settings, libTorch)
    | "inspect", other -> refuseWords name "a learner's folder" other
    | "forget", other -> refuseWords name "a learner's folder and a class" other
    | _, other -> refuseWords name "a learner's folder, a class and its new name" other

let private ofPair (name: string) (flags: ParseResults<PairFlag>) : Command =
    let libTorch = flags.TryGetResult PairFlag.Libtorch

    match
        name,
        words flags.Parser ("lorasub " + name) flags.UnrecognizedCliParams (flags.GetResults PairFlag.Folders)
    with
    | "merge", [ into; from ] ->
        Command.Merge(into, from, pairs (flags.GetResults PairFlag.Setting), libTorch)
    | "diff", [ left; right ] -> Command.Diff(left, right, libTorch)
    | _, other -> refuseWords name "the folders of two learners" other

let private export (flags: ParseResults<ExportFlag>) : Command =
    match
        words flags.Parser "lorasub export" flags.UnrecognizedCliParams (flags.GetResults ExportFlag.Folders)
    with
    | [ folder; out ] ->
        Command.Export
            {
                Folder = folder
                Out = out
                Rank = flags.TryGetResult Rank
                Settings = pairs (flags.GetResults ExportFlag.Setting)
                LibTorch = flags.TryGetResult ExportFlag.Libtorch
            }
    | other -> refuseWords "export" "a learner's folder and a new folder" other

let private download (command: string) what (make: string * string option -> Command) flags =
    let flags: ParseResults<GetFlag> = flags
    let given = flags.GetResults GetFlag.Name_And_Folder

    match words flags.Parser ("lorasub " + command) flags.UnrecognizedCliParams given with
    | [ name ] -> make (name, None)
    | [ name; folder ] -> make (name, Some folder)
    | other -> refuseWords command $"the name of a {what}, and at most a folder" other

let private command (results: ParseResults<Flag>) : Command =
    refuseUnknown results.Parser "lorasub" results.UnrecognizedCliParams

    match results.TryGetSubCommand() with
    | Some(Run flags) ->
        refuseUnknown flags.Parser "lorasub run" flags.UnrecognizedCliParams

        let given = pairs (flags.GetResults RunFlag.Setting)
        let libTorch = flags.TryGetResult RunFlag.Libtorch

        match flags.TryGetResult Resume with
        | Some folder ->
            refuseBesideResume flags
            Command.Resume(folder, given, libTorch)
        | None ->
            let file = flags.TryGetResult Config |> Option.map ConfigFile.read
            let seeds = flags.TryGetResult Seeds |> Option.map (ConfigFile.seeds "--seeds")

            let config = Config.merge (flags.TryGetResult RunFlag.Preset) file given seeds

            Command.Run
                {
                    Config = config
                    Devices = devicesOf flags given config
                    Out = flags.TryGetResult RunFlag.Out
                    Overwrite = flags.Contains Overwrite
                    LibTorch = libTorch
                    DryRun = flags.Contains Dry_Run
                    LargestBatch = flags.TryGetResult Largest_Batch |> Option.map (batchSearch flags)
                }
    | Some(Evaluate flags) ->
        let changes = pairs (flags.GetResults EvaluateFlag.Setting)
        let libTorch = flags.TryGetResult EvaluateFlag.Libtorch

        match
            words
                flags.Parser
                "lorasub evaluate"
                flags.UnrecognizedCliParams
                (flags.GetResults EvaluateFlag.Folders)
        with
        | [ folder ] ->
            if flags.Contains EvaluateFlag.False_Alarms then
                Errors.reject "--false-alarms" "needs a learner and images" "a run" "remove it"

            Command.Evaluate(folder, changes, libTorch)
        | [ folder; images ] ->
            Command.EvaluateLearner
                {
                    Learner = folder
                    Labelled = images
                    Changes = changes
                    Rate =
                        share "--false-alarms" (flags.TryGetResult EvaluateFlag.False_Alarms)
                        |> Option.defaultValue Calibration.usualFalseAlarms
                    LibTorch = libTorch
                }
        | other -> refuseWords "evaluate" "the folder of a run, or a learner and images" other
    | Some(Learn flags) -> learn flags
    | Some(Predict flags) -> predict flags
    | Some(Inspect flags) -> ofLearner "inspect" flags
    | Some(Forget flags) -> ofLearner "forget" flags
    | Some(Flag.Rename flags) -> ofLearner "rename" flags
    | Some(Merge flags) -> ofPair "merge" flags
    | Some(Diff flags) -> ofPair "diff" flags
    | Some(Export flags) -> export flags
    | Some(DataSets flags) ->
        refuseUnknown flags.Parser "lorasub data" flags.UnrecognizedCliParams

        match flags.TryGetSubCommand() with
        | Some DataFlag.List -> Command.DataList
        | Some(DataFlag.Get get) -> download "data get" "data set" Command.DataGet get
        | Some(Check check) ->
            refuseUnknown check.Parser "lorasub data check" check.UnrecognizedCliParams

            match check.GetResult(CheckFlag.Name_And_Folder, []) |> List.map unmarked with
            | [ name; folder ] -> Command.DataCheck(name, folder)
            | other ->
                let given = if other.IsEmpty then "none" else String.concat " " other

                Errors.reject
                    "lorasub data check"
                    "needs a data set and a folder"
                    given
                    "see lorasub data list"
        | None -> Command.Help(Help.text false [ "data" ])
    | Some(Backbone flags) ->
        refuseUnknown flags.Parser "lorasub backbone" flags.UnrecognizedCliParams

        match flags.TryGetSubCommand() with
        | Some BackboneFlag.List -> Command.BackboneList
        | Some(BackboneFlag.Get get) -> download "backbone get" "backbone" Command.BackboneGet get
        | Some(Info info) ->
            refuseUnknown info.Parser "lorasub backbone info" info.UnrecognizedCliParams

            match info.TryGetResult File with
            | Some file -> Command.BackboneInfo(unmarked file)
            | None ->
                raise (InputException "lorasub backbone info needs a file; see lorasub backbone info --help")
        | None -> Command.Help(Help.text false [ "backbone" ])
    | Some(Methods flags) ->
        refuseUnknown flags.Parser "lorasub methods" flags.UnrecognizedCliParams
        Command.MethodList
    | Some(Heads flags) ->
        refuseUnknown flags.Parser "lorasub heads" flags.UnrecognizedCliParams
        Command.HeadList
    | Some(Report flags) ->
        Command.Report
            {
                Folders =
                    words
                        flags.Parser
                        "lorasub report"
                        flags.UnrecognizedCliParams
                        (flags.GetResults ReportFlag.Folders)
                Page = flags.TryGetResult ReportFlag.Out |> Option.defaultValue "report.html"
                Figures = flags.TryGetResult Figures
                Tables = flags.TryGetResult Tables
            }
    | Some(Doctor flags) ->
        refuseUnknown flags.Parser "lorasub doctor" flags.UnrecognizedCliParams
        Command.Doctor(flags.TryGetResult DoctorFlag.Libtorch)
    | Some Version
    | None when results.GetAllResults() |> List.exists _.IsVersion -> Command.Version
    | _ -> Command.Help(Help.text false [])

/// The command that the arguments ask for. Rejects unknown and repeated arguments, missing values, and values of the
/// wrong kind.
let parse (argv: string[]) : Command =
    // F# Interactive takes --help for itself, so build.fsx passes help on as a word
    let argv =
        match List.ofArray argv with
        | "help" :: words -> Array.ofList (List.filter ((<>) "help") words @ [ "--help" ])
        | [ "version" ] -> [| "--version" |]
        | _ -> argv

    // after the first word that is only `--`, every word is a name
    let argv, names' =
        match Array.tryFindIndex ((=) "--") argv with
        | Some at when at > 0 -> argv[.. at - 1], argv[at + 1 ..] |> Array.map (fun word -> $"{Mark}{word}")
        | _ -> argv, [||]

    // Argu would show the general help for an unknown command with --help
    match Array.tryHead argv with
    | Some first when not (first.StartsWith '-') ->
        [ first ]
        |> List.filter (fun name -> not (List.contains name (names "" parser.Value)))
        |> refuseUnknown parser.Value "lorasub"
    | _ -> ()

    let helpOf all =
        let words = argv |> Array.takeWhile (fun word -> not (word.StartsWith '-'))
        Command.Help(Help.text all (List.ofArray words))

    if Array.contains "--help-all" argv then
        helpOf true
    elif Array.exists (fun word -> word = "--help" || word = "-h") argv then
        helpOf false
    else
        try
            // Parse would look for an app.config as well, with all of System.Configuration
            let arguments =
                match List.ofArray argv with
                | name :: rest when not (name.StartsWith '-') ->
                    Array.ofList (name :: settingsApart name rest)
                | _ -> argv

            parser.Value.ParseCommandLine(Array.append arguments names', ignoreUnrecognized = true)
            |> command
        with :? ArguParseException as e ->
            // the first line names the error, the rest is the usage
            let error = e.Message.Split('\n')[0]

            let error =
                error.Replace("ERROR: ", "").Replace((", but was '" + SettingFlag + "'"), "")

            raise (InputException(error, e))
