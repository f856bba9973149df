/// The command line, from text to a command. Reads no file but that of --config and loads no native library.
module LoRASub.Cli.Arguments

open System
open Argu
open LoRASub

/// One setting, as a name and a value: `settingsApart` writes --rank 4 and --no-triplet in this form, so that the rows of
/// `Settings.all` alone say which flags there are. No name of a setting can begin with two dashes.
[<Literal>]
let private SettingFlag = "----setting"

/// The options of `lorasub run`; those that `--help` leaves to `--help-all` are hidden.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type RunFlag =
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Seeds of LIST: string
    | [<Unique>] Config of FILE: string
    | [<Unique>] Out of DIR: string
    | [<Unique>] Resume of DIR: string
    | [<Unique; Hidden>] Overwrite
    | [<Unique; Hidden>] Dry_Run
    | [<Unique; Hidden>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Setting _ -> "a setting of the library"
            | Seeds _ -> "run once per seed, such as 1,2,3"
            | Config _ -> "settings from YAML or JSON, also published ones"
            | Out _ -> "folder for the results (default: not saved)"
            | Resume _ -> "resume the run in this folder"
            | Overwrite -> "replace an existing run in the --out folder"
            | Dry_Run -> "print the settings and their sources, then stop"
            | Libtorch _ -> "folder of another LibTorch, such as a CUDA build"

/// The options of `lorasub evaluate`: settings that may differ from those of the run, and more.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type EvaluateFlag =
    | [<MainCommand; Unique>] Folder of DIR: string
    | [<CustomCommandLine(SettingFlag)>] Setting of NAME: string * VALUE: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folder _ -> "run folder (from run --out)"
            | Setting _ -> "a setting of the library"
            | Libtorch _ -> "folder of another LibTorch, such as a CUDA build"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DoctorFlag =
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member _.Usage = "folder of another LibTorch, such as a CUDA build"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type CheckFlag =
    | [<MainCommand; Unique>] Name_And_Folder of NAME_DIR: string list

    interface IArgParserTemplate with
        member _.Usage = "name of the data set and its folder"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DataFlag =
    | [<SubCommand; CliPrefix(CliPrefix.None)>] List
    | [<CliPrefix(CliPrefix.None)>] Check of ParseResults<CheckFlag>

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | List -> "list the data sets with their sources and files"
            | Check _ -> "validate a data set folder"

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
            | Figures _ -> "folder for figures: SVG and PNG"
            | Tables _ -> "folder for tables: report.md and tables.tex"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type Flag =
    | [<CliPrefix(CliPrefix.None)>] Run of ParseResults<RunFlag>
    | [<CliPrefix(CliPrefix.None)>] Evaluate of ParseResults<EvaluateFlag>
    | [<CliPrefix(CliPrefix.None); CustomCommandLine "data">] DataSets of ParseResults<DataFlag>
    | [<CliPrefix(CliPrefix.None)>] Report of ParseResults<ReportFlag>
    | [<CliPrefix(CliPrefix.None)>] Doctor of ParseResults<DoctorFlag>
    | Version

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Run _ -> "learn a data set's classes task by task"
            | Evaluate _ -> "test a saved learner again"
            | DataSets _ -> "list data sets or check a folder"
            | Report _ -> "make an HTML page, figures and tables of runs"
            | Doctor _ -> "check the installation and measure its speed"
            | Version -> "print the version"

/// The arguments of `lorasub run`.
type RunCommand =
    {
        Config: MergedConfig
        /// Folder for the results.
        Out: string option
        /// Whether an existing run in that folder is replaced.
        Overwrite: bool
        LibTorch: string option
        DryRun: bool
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
    | DataList
    | DataCheck of name: string * folder: string
    | Report of ReportRequest
    | Doctor of libTorch: string option

// A test checks the structure: here it would add a third to every start.
let private parser =
    lazy
        ArgumentParser.Create<Flag>(
            programName = "lorasub",
            usageStringCharacterWidth = 80,
            checkStructure = false
        )

let private parserOf (path: string list) : ArgumentParser =
    (parser.Value :> ArgumentParser, path)
    ||> List.fold (fun parser word ->
        parser.GetSubCommandParsers()
        |> List.tryFind (fun p ->
            p.ParentInfo
            |> Option.exists (fun c -> List.contains word c.CommandLineNames.Value))
        |> Option.defaultValue parser)

// ---------------------------------------------------------------------------------------------- settings

/// The settings that a command takes as flags.
let private settingsOf (command: string) : Setting list =
    match command with
    | "run" -> Settings.all
    | "evaluate" ->
        let names = [ "data-path"; "backbone"; "batch"; "device"; "threads" ]
        Settings.all |> List.filter (fun s -> List.contains s.Name names)
    | _ -> []

let private isSwitch (s: Setting) = s.Kind = SettingKind.Switch

let private ownNames (parser: ArgumentParser) =
    parser.GetArgumentCases()
    |> List.collect _.CommandLineNames.Value
    |> List.filter ((<>) SettingFlag)

/// Every name that a command knows.
let private names (command: string) (parser: ArgumentParser) : string list =
    [
        yield! ownNames parser
        for s in settingsOf command do
            "--" + s.Name

            if isSwitch s then
                "--no-" + s.Name
    ]

/// The arguments of a command with each setting as `SettingFlag`, and --name=value as two arguments. A switch needs no
/// value: --X is true, --no-X false. Rejects a setting without its value.
let private settingsApart (command: string) (arguments: string list) : string list =
    let settings = settingsOf command
    let known = "--help" :: "-h" :: names command (parserOf [ command ])

    let isValue (s: Setting) (argument: string) =
        if isSwitch s then
            not (argument.StartsWith '-')
        else
            not (List.contains (argument.Split('=')[0]) known)

    let rec apart (arguments: string list) =
        match arguments with
        | [] -> []
        | argument :: rest ->
            let name, value =
                match argument.IndexOf '=' with
                | at when at > 0 && argument.StartsWith "--" -> argument[.. at - 1], [ argument[at + 1 ..] ]
                | _ -> argument, []

            let set (s: Setting) value rest =
                SettingFlag :: s.Name :: value :: apart rest

            let isNamed prefix (s: Setting) = prefix + s.Name = name

            match List.tryFind (isNamed "--") settings, value @ rest with
            | Some s, given :: rest when not value.IsEmpty || isValue s given -> set s given rest
            | Some s, _ when isSwitch s -> set s "true" rest
            | Some s, next ->
                let but =
                    next
                    |> List.tryHead
                    |> Option.map (fun next -> ", but was " + next)
                    |> Option.defaultValue ""

                let value = SettingDoc.placeholder s.Kind
                raise (InputException(String.Concat [| name; " must be followed by "; value; but |]))
            | None, _ ->
                match settings |> List.tryFind (fun s -> isSwitch s && isNamed "--no-" s) with
                | Some s -> set s "false" (value @ rest)
                | None -> name :: value @ apart rest

    apart arguments

/// The settings given, in order. Rejects one that is given twice.
let private pairs (given: (string * string) list) : (string * string) list =
    match given |> List.countBy fst |> List.tryFind (fun (_, times) -> times > 1) with
    | Some(name, _) ->
        raise (InputException $"--{name} has been specified more than once; remove one of them")
    | None -> given

// ---------------------------------------------------------------------------------------------- help

/// What the help of a command shows beside its flags, which describe themselves.
type private Page =
    {
        Usage: string
        About: string
        Examples: string list
    }

let private pageOf (path: string list) : Page =
    let page usage about examples =
        {
            Usage = usage
            About = about
            Examples = examples
        }

    match path with
    | "run" :: _ ->
        page
            "run [OPTIONS]"
            "Learn a data set's classes task by task and print the accuracy."
            [
                "lorasub run                                    # bundled data, about a minute"
                "lorasub run --data folder --data-path photos --out results"
                "lorasub run --data cifar100 --data-path cifar --seeds 1,2,3"
                "lorasub run --resume results"
            ]
    | "evaluate" :: _ ->
        page
            "evaluate DIR [OPTIONS]"
            "Test a saved learner again and compare with the saved accuracy."
            [
                "lorasub evaluate results"
                "lorasub evaluate results --data-path /new/place"
            ]
    | "report" :: _ ->
        page
            "report DIR... [OPTIONS]"
            "Make an HTML page, figures and tables of one or more runs."
            [
                "lorasub report results"
                "lorasub report with without --out compare.html --tables tables"
            ]
    | "doctor" :: _ ->
        page
            "doctor [OPTIONS]"
            "Check the installation, suggest fixes and measure the speed."
            [ "lorasub doctor" ]
    | "data" :: "check" :: _ ->
        page
            "data check NAME DIR"
            "Validate a data set folder."
            [ "lorasub data check cifar100 cifar"; "lorasub data check folder photos" ]
    | "data" :: _ ->
        page
            "data COMMAND"
            "List data sets or check a folder."
            [ "lorasub data list"; "lorasub data check folder photos" ]
    | _ ->
        page
            "COMMAND [OPTIONS]"
            "Learn new image classes over time without keeping the old images."
            [
                "lorasub run --out results                      # bundled data, about a minute"
                "lorasub report results"
                "lorasub run --help"
            ]

/// A flag in the help.
type private HelpLine =
    {
        Group: string
        Flag: string
        Text: string
        /// Shown without --help-all.
        Common: bool
    }

let private lineOfSetting (s: Setting) =
    {
        Group = s.Group
        Flag = SettingDoc.flag s
        Text = SettingDoc.usage s
        Common = s.Common
    }

let private lineOfCase (flag: ArgumentCaseInfo) =
    let name =
        if flag.IsMainCommand then
            ""
        else
            flag.CommandLineNames.Value.Head

    let value =
        match flag.UnionCaseInfo.GetFields() with
        | [| field |] when flag.ArgumentType <> ArgumentType.SubCommand -> field.Name.Replace('_', ' ')
        | _ -> ""

    {
        Group =
            match name with
            | "--seeds"
            | "--config" -> "Protocol"
            | "--libtorch" -> "Machine"
            | _ -> "Output"
        Flag = String.Concat(name, " ", value).Trim()
        Text = flag.Description.Value
        Common = not flag.IsHidden.Value
    }

/// Longer flags have their text on the next line.
[<Literal>]
let private FlagColumn = 20

let private columns = 80

/// Words in lines of at most `width` characters.
let private wrap (width: int) (text: string) : string list =
    let add (lines: string list) (word: string) =
        match lines with
        | line :: others when line.Length + 1 + word.Length <= width ->
            String.Concat(line, " ", word) :: others
        | _ -> word :: lines

    text.Split ' ' |> Array.fold add [] |> List.rev

let private show (group: string) (line: HelpLine) : string list =
    let text = wrap (columns - group.Length - FlagColumn) line.Text

    let indented =
        List.map (fun t -> String.Concat("".PadRight(group.Length + FlagColumn), t))

    if line.Flag.Length < FlagColumn then
        String.Concat(group, line.Flag.PadRight FlagColumn, text.Head)
        :: indented text.Tail
    else
        group + line.Flag :: indented text

/// The help of the command that `path` names, at most 80 columns wide; without `all`, common flags only.
let private help (all: bool) (path: string list) : string =
    let page, parser = pageOf path, parserOf path

    let cases =
        parser.GetArgumentCases()
        |> List.filter (fun c -> c.CommandLineNames.Value <> [ SettingFlag ])
        |> List.map lineOfCase

    let settings = path |> List.collect settingsOf |> List.map lineOfSetting

    let shown, hidden =
        settings @ cases |> List.partition (fun line -> all || line.Common)

    let isRun = path = [ "run" ]

    let lines =
        if isRun then
            Settings.all
            |> List.map _.Group
            |> List.distinct
            |> List.collect (fun group ->
                shown
                |> List.filter (fun line -> line.Group = group)
                // the common ones first
                |> List.sortBy (fun line -> not line.Common)
                |> List.mapi (fun i line -> show ((if i = 0 then group else "").PadRight 9) line)
                |> List.concat)
        else
            shown
            |> List.sortBy (fun line -> line.Flag.StartsWith '-')
            |> List.collect (show "  ")

    String.concat
        "\n"
        [
            "Usage: lorasub " + page.Usage
            page.About
            ""
            "Examples:"
            for example in page.Examples do
                "  " + example
            ""
            yield! lines
            if isRun && not hidden.IsEmpty then
                "All options: lorasub run --help-all"
            elif path.IsEmpty then
                "  --help               show this help"
                ""
                "Help for a command: lorasub COMMAND --help"
        ]

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
            if flags.Contains Config then
                "--config"
            if flags.Contains Seeds then
                "--seeds"
            if flags.Contains Dry_Run then
                "--dry-run"
        ]

    match given with
    | [] -> ()
    | name :: _ -> raise (InputException $"--resume cannot be combined with {name}; remove {name}")

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

            Command.Run
                {
                    Config = Config.merge file given seeds
                    Out = flags.TryGetResult RunFlag.Out
                    Overwrite = flags.Contains Overwrite
                    LibTorch = libTorch
                    DryRun = flags.Contains Dry_Run
                }
    | Some(Evaluate flags) ->
        refuseUnknown flags.Parser "lorasub evaluate" flags.UnrecognizedCliParams

        let changes = pairs (flags.GetResults EvaluateFlag.Setting)

        match flags.TryGetResult Folder with
        | Some folder -> Command.Evaluate(folder, changes, flags.TryGetResult EvaluateFlag.Libtorch)
        | None ->
            raise (InputException "lorasub evaluate needs the folder of a run; see lorasub evaluate --help")
    | Some(DataSets flags) ->
        refuseUnknown flags.Parser "lorasub data" flags.UnrecognizedCliParams

        match flags.TryGetSubCommand() with
        | Some List -> Command.DataList
        | Some(Check check) ->
            refuseUnknown check.Parser "lorasub data check" check.UnrecognizedCliParams

            match check.GetResult(Name_And_Folder, []) with
            | [ name; folder ] -> Command.DataCheck(name, folder)
            | other ->
                let given = if other.IsEmpty then "none" else String.concat " " other

                Errors.reject
                    "lorasub data check"
                    "needs a data set and a folder"
                    given
                    "see lorasub data list"
        | None -> Command.Help(help false [ "data" ])
    | Some(Report flags) ->
        // the list of folders also takes misspelt options
        let options, folders =
            flags.GetResults Folders |> List.concat |> List.partition _.StartsWith('-')

        refuseUnknown flags.Parser "lorasub report" (flags.UnrecognizedCliParams @ options)

        Command.Report
            {
                Folders = folders
                Page = flags.TryGetResult ReportFlag.Out |> Option.defaultValue "report.html"
                Figures = flags.TryGetResult Figures
                Tables = flags.TryGetResult Tables
            }
    | Some(Doctor flags) ->
        refuseUnknown flags.Parser "lorasub doctor" flags.UnrecognizedCliParams
        Command.Doctor(flags.TryGetResult DoctorFlag.Libtorch)
    | Some Version
    | None when results.GetAllResults() |> List.exists _.IsVersion -> Command.Version
    | _ -> Command.Help(help false [])

/// The command that the arguments ask for. Rejects unknown and repeated arguments, missing values, and values of the
/// wrong kind.
let parse (argv: string[]) : Command =
    // F# Interactive takes --help for itself, so build.fsx passes help on as a word
    let argv =
        match List.ofArray argv with
        | "help" :: words -> Array.ofList (List.filter ((<>) "help") words @ [ "--help" ])
        | [ "version" ] -> [| "--version" |]
        | _ -> argv

    // Argu would show the general help for an unknown command with --help
    match Array.tryHead argv with
    | Some first when not (first.StartsWith '-') ->
        [ first ]
        |> List.filter (fun name -> not (List.contains name (ownNames parser.Value)))
        |> refuseUnknown parser.Value "lorasub"
    | _ -> ()

    let helpOf all =
        let words = argv |> Array.takeWhile (fun word -> not (word.StartsWith '-'))
        Command.Help(help all (List.ofArray words))

    if Array.contains "--help-all" argv then
        helpOf true
    else
        try
            // Parse would look for an app.config as well, with all of System.Configuration
            let command' = Array.tryHead argv |> Option.defaultValue ""
            let arguments = settingsApart command' (List.ofArray argv) |> Array.ofList

            parser.Value.ParseCommandLine(arguments, ignoreUnrecognized = true) |> command
        with :? ArguParseException as e ->
            match e.ErrorCode with
            | ErrorCode.HelpText -> helpOf false
            | _ ->
                // the first line names the error, the rest is the usage
                let error = e.Message.Split('\n')[0]
                raise (InputException(error.Replace("ERROR: ", ""), e))
