/// The flags of every command. Those of settings are the rows of `Settings.all`; Argu reads the others. `Help` says what
/// the words beside them are.
module LoRASub.Cli.Flags

open System
open LoRASub.Core
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Report
open Argu

/// One setting, as a name and a value: `settingsApart` writes --rank 4 and --no-triplet in this form, so that the rows of
/// `Settings.all` alone say which flags there are. No name of a setting can begin with two dashes.
[<Literal>]
let SettingFlag = "----setting"

[<Literal>]
let private ASetting = "a setting of the library"

// joined, not formatted: see Errors.message
let private byDefault (share: float) =
    String.Concat(" (default ", Layout.atMost 4 share, ")")

let private falseAlarmsUsage =
    "share of known images that may be called unknown"
    + byDefault Calibration.usualFalseAlarms

[<Literal>]
let private AnotherLibTorch = "folder of another LibTorch, such as a CUDA build"

/// The options of `lorasub run`; those that `--help` leaves to `--help-all` are hidden.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type RunFlag =
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Seeds of LIST: string
    | [<Unique; Hidden>] Devices of LIST: string
    | [<Unique>] Preset of NAME: string
    | [<Unique>] Config of FILE: string
    | [<Unique>] Out of DIR: string
    | [<Unique>] Resume of DIR: string
    | [<Unique; Hidden>] Overwrite
    | [<Unique; Hidden>] Dry_Run
    | [<Unique; Hidden>] Largest_Batch of LIMIT: string option
    | [<Unique; Hidden>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Setting _ -> ASetting
            | Seeds _ -> "run once per seed, such as 1,2,3"
            | Devices _ -> "share the seeds among devices, such as 0,1 or cuda:0,cuda:1"
            | Preset _ -> "recommended, small, large, libcontinual or official"
            | Config _ -> "settings from YAML or JSON, also published ones"
            | Out _ -> "folder for the results (default: not saved)"
            | Resume _ -> "resume the run in this folder"
            | Overwrite -> "replace an existing run in the --out folder"
            | Dry_Run -> "print the settings and their sources, then stop"
            | Largest_Batch _ -> "find the largest --batch that fits in LIMIT, such as 8GiB, then stop"
            | Libtorch _ -> AnotherLibTorch

/// The options of `lorasub evaluate`: settings that may differ from those of the run, and more.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type EvaluateFlag =
    | [<MainCommand>] Folders of DIR_IMAGES: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique; CustomCommandLine("--false-alarms")>] False_Alarms of SHARE: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "folders"
            | Setting _ -> ASetting
            | False_Alarms _ -> falseAlarmsUsage
            | Libtorch _ -> AnotherLibTorch

/// The options of `lorasub learn`.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type LearnFlag =
    | [<MainCommand>] Folders of LEARNER_IMAGES: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Preset of NAME: string
    | [<Unique>] Holdout of SHARE: string
    | [<Unique>] More
    | [<Unique>] Skip of LIST: string
    | [<Unique>] Rename of LIST: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "folders"
            | Setting _ -> ASetting
            | Preset _ -> "recommended, small, large, libcontinual or official"
            | Holdout _ ->
                "share of images held out to measure and calibrate"
                + byDefault Calibration.usualHoldOut
            | More -> "also learn the images of known classes"
            | Skip _ -> "folders to leave out, separated by commas"
            | Rename _ -> "other names for classes: FOLDER=NAME, separated by commas"
            | Libtorch _ -> AnotherLibTorch

/// The options of `lorasub predict`.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type PredictFlag =
    | [<MainCommand>] Paths of LEARNER_IMAGES: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Top of K: int
    | [<Unique; CustomCommandLine("--false-alarms")>] False_Alarms of SHARE: string
    | [<Unique>] Format of NAME: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Paths _ -> "a folder and images"
            | Setting _ -> ASetting
            | Top _ -> "classes per image, best first (default 1)"
            | False_Alarms _ -> falseAlarmsUsage
            | Format _ -> "table, csv or jsonl (default table)"
            | Libtorch _ -> AnotherLibTorch

/// What `inspect`, `forget` and `rename` take.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type LearnerFlag =
    | [<MainCommand>] Words of LEARNER_NAMES: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Words _ -> "a folder and names"
            | Setting _ -> ""
            | Libtorch _ -> AnotherLibTorch

/// The options of `lorasub export`.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type ExportFlag =
    | [<MainCommand>] Folders of LEARNER_DIR: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Rank of R: int
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "folders"
            | Setting _ -> ASetting
            | Rank _ -> "rank of the adapter (default: smallest without loss)"
            | Libtorch _ -> AnotherLibTorch

/// What `merge` and `diff` take.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type PairFlag =
    | [<MainCommand>] Folders of LEARNER_OTHER: string list
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "folders"
            | Setting _ -> ASetting
            | Libtorch _ -> AnotherLibTorch

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DoctorFlag =
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member _.Usage = AnotherLibTorch

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type CheckFlag =
    | [<MainCommand; Unique>] Name_And_Folder of NAME_DIR: string list

    interface IArgParserTemplate with
        member _.Usage = "name of the data set and its folder"

/// What `data get` and `backbone get` take.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type GetFlag =
    | [<MainCommand; Unique>] Name_And_Folder of NAME_DIR: string list

    interface IArgParserTemplate with
        member _.Usage = "name, and a folder (default: the cache)"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DataFlag =
    | [<SubCommand; CliPrefix(CliPrefix.None)>] List
    | [<CliPrefix(CliPrefix.None)>] Get of ParseResults<GetFlag>
    | [<CliPrefix(CliPrefix.None)>] Check of ParseResults<CheckFlag>

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | List -> "list the data sets, their sources and files"
            | Get _ -> "download a data set"
            | Check _ -> "validate a data set folder"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type InfoFlag =
    | [<MainCommand; Unique>] File of FILE: string

    interface IArgParserTemplate with
        member _.Usage = "weights, or the name of a downloaded backbone"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type BackboneFlag =
    | [<SubCommand; CliPrefix(CliPrefix.None)>] List
    | [<CliPrefix(CliPrefix.None)>] Get of ParseResults<GetFlag>
    | [<CliPrefix(CliPrefix.None)>] Info of ParseResults<InfoFlag>

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | List -> "list published backbones"
            | Get _ -> "download a published backbone"
            | Info _ -> "show what a file of weights is and whether it can be used"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type ListFlag =
    | [<CliPrefix(CliPrefix.None)>] List

    interface IArgParserTemplate with
        member _.Usage = "print the list; the word may be left out"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type ReportFlag =
    | [<MainCommand>] Folders of DIR: string list
    | [<Unique>] Out of FILE: string
    | [<Unique>] Figures of DIR: string
    | [<Unique>] Tables of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "run folders (from run --out), compared if several"
            | Out _ -> "HTML file to write (default: report.html)"
            | Figures _ -> "folder for figures, SVG and PNG; older files are replaced"
            | Tables _ -> "folder for report.md and tables.tex; older files are replaced"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type Flag =
    | [<CliPrefix(CliPrefix.None)>] Learn of ParseResults<LearnFlag>
    | [<CliPrefix(CliPrefix.None)>] Predict of ParseResults<PredictFlag>
    | [<CliPrefix(CliPrefix.None)>] Evaluate of ParseResults<EvaluateFlag>
    | [<CliPrefix(CliPrefix.None)>] Inspect of ParseResults<LearnerFlag>
    | [<CliPrefix(CliPrefix.None)>] Forget of ParseResults<LearnerFlag>
    | [<CliPrefix(CliPrefix.None)>] Rename of ParseResults<LearnerFlag>
    | [<CliPrefix(CliPrefix.None)>] Merge of ParseResults<PairFlag>
    | [<CliPrefix(CliPrefix.None)>] Diff of ParseResults<PairFlag>
    | [<CliPrefix(CliPrefix.None)>] Export of ParseResults<ExportFlag>
    | [<CliPrefix(CliPrefix.None)>] Run of ParseResults<RunFlag>
    | [<CliPrefix(CliPrefix.None); CustomCommandLine "data">] DataSets of ParseResults<DataFlag>
    | [<CliPrefix(CliPrefix.None)>] Backbone of ParseResults<BackboneFlag>
    | [<CliPrefix(CliPrefix.None)>] Methods of ParseResults<ListFlag>
    | [<CliPrefix(CliPrefix.None)>] Heads of ParseResults<ListFlag>
    | [<CliPrefix(CliPrefix.None)>] Report of ParseResults<ReportFlag>
    | [<CliPrefix(CliPrefix.None)>] Doctor of ParseResults<DoctorFlag>
    | Version

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Run _ -> "learn a data set's classes task by task"
            | Learn _ -> "learn the classes of a folder of images"
            | Predict _ -> "name the class of images"
            | Inspect _ -> "show what a learner is and knows"
            | Forget _ -> "remove a class from a learner"
            | Rename _ -> "give a class another name"
            | Merge _ -> "add what another learner knows to a learner"
            | Diff _ -> "show what differs between two learners"
            | Export _ -> "write weights, adapter and classes for other programs"
            | Evaluate _ -> "measure the accuracy of a learner or a run"
            | Methods _ -> "list the methods"
            | Heads _ -> "list heads, embeddings and presets"
            | DataSets _ -> "list or download data sets, or check a folder"
            | Backbone _ -> "list or download backbones, or show what a file is"
            | Report _ -> "make an HTML page, figures and tables of runs"
            | Doctor _ -> "check the installation and measure its speed"
            | Version -> "print the version"

// A test checks the structure: here it would add a third to every start.
let parser =
    lazy
        ArgumentParser.Create<Flag>(
            programName = "lorasub",
            usageStringCharacterWidth = 80,
            checkStructure = false
        )

/// The parser of the command that words name.
let parserOf (path: string list) : ArgumentParser =
    (parser.Value :> ArgumentParser, path)
    ||> List.fold (fun parser word ->
        parser.GetSubCommandParsers()
        |> List.tryFind (fun p ->
            p.ParentInfo
            |> Option.exists (fun c -> List.contains word c.CommandLineNames.Value))
        |> Option.defaultValue parser)

// ---------------------------------------------------------------------------------------------- settings

/// The settings that a command takes as flags.
let settingsOf (command: string) : Setting list =
    match command with
    | "run" -> Settings.all
    | "evaluate" ->
        let names = [ "data-path"; "skip-broken"; "backbone"; "batch"; "device"; "threads" ]
        Settings.all |> List.filter (fun s -> List.contains s.Name names)
    | "forget"
    | "rename"
    | "merge"
    | "export" ->
        let names = [ "backbone"; "device"; "threads" ]
        Settings.all |> List.filter (fun s -> List.contains s.Name names)
    | "predict" ->
        let names = [ "backbone"; "batch"; "device"; "threads" ]
        Settings.all |> List.filter (fun s -> List.contains s.Name names)
    | "learn" ->
        // all but those of data sets, tasks and runs
        let isOfRun (s: Setting) =
            s.Group = "Protocol" && s.Name <> "seed"
            || s.Group = "Output"
            || List.contains
                s.Name
                [
                    "data"
                    "data-path"
                    "variant"
                    "split-ratio"
                    "split-seed"
                    "heads"
                    "recompute"
                    "initial-epochs"
                    "seeding"
                ]

        Settings.all |> List.filter (isOfRun >> not)
    | _ -> []

let private isSwitch (s: Setting) = s.Kind = SettingKind.Switch

/// The flags and commands that Argu reads.
let argumentsOf (parser: ArgumentParser) : ArgumentCaseInfo list =
    parser.GetArgumentCases()
    |> List.filter (fun flag -> flag.CommandLineNames.Value <> [ SettingFlag ])

/// Every name that a command knows.
let names (command: string) (parser: ArgumentParser) : string list =
    [
        yield! argumentsOf parser |> List.collect _.CommandLineNames.Value
        for s in settingsOf command do
            "--" + s.Name

            if isSwitch s then
                "--no-" + s.Name
    ]

/// The arguments of a command with each setting as `SettingFlag`, and --name=value as two arguments. A switch needs no
/// value: --X is true, --no-X false. Rejects a setting without its value.
let settingsApart (command: string) (arguments: string list) : string list =
    let settings = settingsOf command
    // takes time, and most commands have no settings
    let known = lazy ("--help" :: "-h" :: names command (parserOf [ command ]))

    let isValue (s: Setting) (argument: string) =
        if isSwitch s then
            not (argument.StartsWith '-')
        else
            not (List.contains (argument.Split('=')[0]) known.Value)

    let rec apart (arguments: string list) =
        match arguments with
        | [] -> []
        | argument :: rest ->
            let name, value =
                match argument.IndexOf '=' with
                | at when at > 0 && argument.StartsWith "--" -> argument[.. at - 1], [ argument[at + 1 ..] ]
                | _ -> argument, []

            let named prefix =
                settings |> List.tryFind (fun s -> prefix + s.Name = name)

            let set (s: Setting) value rest =
                SettingFlag :: s.Name :: value :: apart rest

            match named "--", named "--no-", value @ rest with
            | Some s, _, given :: rest when not value.IsEmpty || isValue s given -> set s given rest
            | Some s, _, _ when isSwitch s -> set s "true" rest
            | Some s, _, _ ->
                let placeholder = SettingDoc.placeholder s.Kind
                raise (InputException(String.Concat [| name; " must be followed by "; placeholder |]))
            | None, Some s, rest when isSwitch s -> set s "false" rest
            | _ -> name :: value @ apart rest

    apart arguments
