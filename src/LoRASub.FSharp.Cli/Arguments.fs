/// The command line, from text to a command. Reads no file but that of --config and loads no native library.
module LoRASub.Cli.Arguments

open System
open Argu
open LoRASub

/// The options of `lorasub run`, in the order of its help; those that `--help` leaves to `--help-all` are hidden. Every
/// one but Seeds, Config, Out, Resume, Overwrite, Dry_Run and Libtorch is a setting of the library under the same name.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type RunFlag =
    // data
    | [<Unique>] Data of NAME: string
    | [<Unique>] Data_Path of DIR: string
    | [<Unique>] Backbone of FILE: string
    | [<Unique>] Input_Range of RANGE: string
    | [<Unique; Hidden>] Augment of KIND: string
    | [<Unique; Hidden>] Crop_Scale of RANGE: string
    | [<Unique; Hidden>] Crop_Ratio of RANGE: string
    | [<Unique; Hidden>] Test_Resize of N: string
    | [<Unique; Hidden>] Split_Ratio of X: string
    | [<Unique; Hidden>] Split_Seed of N: string
    | [<Unique; Hidden>] Skip_Broken
    | [<Unique; Hidden>] Heads of N: string
    | [<Unique; Hidden>] Image_Size of N: string
    | [<Unique; Hidden>] Norm_Epsilon of X: string
    // protocol
    | [<Unique>] Tasks of N: string
    | [<Unique>] Seeds of LIST: string
    | [<Unique>] Config of FILE: string
    | [<Unique; Hidden>] Initial_Classes of N: string
    | [<Unique; Hidden>] Class_Order of ORDER: string
    | [<Unique; Hidden>] Stop_After of N: string
    | [<Unique; Hidden>] Seed of N: string
    // method
    | [<Unique>] Rank of N: string
    | [<Unique; Hidden>] Variant of NAME: string
    | [<Unique; Hidden>] B_Init of KIND: string
    | [<Unique; Hidden>] Margin of X: string
    | [<Unique; Hidden>] Triplet_Weight of X: string
    | [<Unique; Hidden>] Norm_Order of X: string
    | [<Unique; Hidden>] Energy of X: string
    | [<Unique; Hidden>] Update_Scale of KIND: string
    | [<Unique; Hidden>] Prototype_Transform of KIND: string
    | [<Unique; Hidden>] No_Projection
    | [<Unique; Hidden>] No_Subtraction
    | [<Unique; Hidden>] No_Triplet
    | [<Unique; Hidden>] No_Training
    // training
    | [<Unique>] Epochs of N: string
    | [<Unique>] Lr of X: string
    | [<Unique; Hidden>] Batch of N: string
    | [<Unique; Hidden>] Head_Lr of X: string
    | [<Unique; Hidden>] Initial_Epochs of N: string
    | [<Unique; Hidden>] Schedule_Epochs of N: string
    | [<Unique; Hidden>] Weight_Decay of X: string
    | [<Unique; Hidden>] Adam_Beta1 of X: string
    | [<Unique; Hidden>] Adam_Beta2 of X: string
    | [<Unique; Hidden>] Adam_Epsilon of X: string
    | [<Unique; Hidden>] Amsgrad of BOOLEAN: string
    | [<Unique; Hidden>] Seeding of KIND: string
    // output
    | [<Unique>] Out of DIR: string
    | [<Unique>] Resume of DIR: string
    | [<Unique; Hidden>] Overwrite
    | [<Unique; Hidden>] Dry_Run
    | [<Unique; Hidden>] Checkpoint_Minutes of X: string
    | [<Unique; Hidden>] No_Drift
    | [<Unique; Hidden>] Tensorboard
    | [<Unique; Hidden>] Reference of DIR: string
    // machine
    | [<Unique>] Device of NAME: string
    | [<Unique; Hidden>] Threads of N: string
    | [<Unique; Hidden>] Precision of KIND: string
    | [<Unique; Hidden>] Checkpoint_Activations
    | [<Unique; Hidden>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Data _ -> "fashion-mnist (default); others: lorasub data list"
            | Data_Path _ -> "folder with the data set's files"
            | Backbone _ -> "timm ViT as safetensors (default: bundled ViT)"
            | Input_Range _ -> "LOW,HIGH: pixel range of the network (default 0,1)"
            | Augment _ -> "none, flip (default) or crop-flip (cifar100)"
            | Crop_Scale _ -> "LOW,HIGH: area of random crops (default 0.08,1)"
            | Crop_Ratio _ -> "LOW,HIGH: width/height of crops (default 3/4,4/3)"
            | Test_Resize _ -> "shorter side of test images before centre crop"
            | Split_Ratio _ -> "training fraction of unsplit data (default 0.8)"
            | Split_Seed _ -> "seed of that split (default 1993)"
            | Skip_Broken -> "skip images that cannot be decoded"
            | Heads _ -> "attention heads (default: from the weights)"
            | Image_Size _ -> "image side in pixels (default: from the weights)"
            | Norm_Epsilon _ -> "layer-norm epsilon: BLOCKS or BLOCKS,FINAL"
            | Tasks _ -> "number of tasks (default 2; cifar100: 10)"
            | Seeds _ -> "run once per seed, such as 1,2,3"
            | Config _ -> "settings from YAML or JSON, also published ones"
            | Initial_Classes _ -> "classes in the first task, if different"
            | Class_Order _ -> "natural, seed1993 or a JSON file"
            | Stop_After _ -> "stop after N tasks"
            | Seed _ -> "random seed (default 1993)"
            | Rank _ -> "rank of the low-rank updates (default 10)"
            | Variant _ -> "official (default) or libcontinual defaults"
            | B_Init _ -> "initial B of each task: zeros or sparse"
            | Margin _ -> "margin of the triplet loss (default 1)"
            | Triplet_Weight _ -> "weight of the triplet loss (default 0.05)"
            | Norm_Order _ -> "norm of prototype distances (default 2)"
            | Energy _ -> "energy share the projection keeps (default 0.99)"
            | Update_Scale _ -> "norm of the projection: frobenius (1) or none"
            | Prototype_Transform _ -> "image transform for prototypes: train or test"
            | No_Projection -> "do not project updates"
            | No_Subtraction -> "observe with the old tasks' weights added"
            | No_Triplet -> "train with cross-entropy only"
            | No_Training -> "use the frozen backbone with class prototypes"
            | Epochs _ -> "epochs per task (default 4; cifar100: 20)"
            | Lr _ -> "learning rate of the low-rank pairs (default 5e-4)"
            | Batch _ -> "batch size (default 128)"
            | Head_Lr _ -> "learning rate of the heads (default 2e-3)"
            | Initial_Epochs _ -> "epochs of the first task, if different"
            | Schedule_Epochs _ -> "length of the learning-rate schedule, in epochs"
            | Weight_Decay _ -> "weight decay, added to the gradient (default 0)"
            | Adam_Beta1 _ -> "Adam's beta1 (default 0.9)"
            | Adam_Beta2 _ -> "Adam's beta2 (default 0.999)"
            | Adam_Epsilon _ -> "Adam's epsilon (default 1e-8)"
            | Amsgrad _ -> "use AMSGrad: true or false"
            | Seeding _ -> "restart random numbers: every-epoch or once"
            | Out _ -> "folder for the results (default: not saved)"
            | Resume _ -> "resume the run in this folder"
            | Overwrite -> "replace an existing run in the --out folder"
            | Dry_Run -> "print the settings and their sources, then stop"
            | Checkpoint_Minutes _ -> "minutes between checkpoints (default 10)"
            | No_Drift -> "do not measure how far class means move"
            | Tensorboard -> "also write TensorBoard event files"
            | Reference _ -> "finished run to measure transfer against"
            | Device _ -> "cpu (default) or cuda:N"
            | Threads _ -> "LibTorch threads (default: LibTorch's choice)"
            | Precision _ -> "float32 (default), bfloat16 or float64"
            | Checkpoint_Activations -> "recompute activations: slower, less memory"
            | Libtorch _ -> "folder of another LibTorch, such as a CUDA build"

/// The options of `lorasub evaluate`: what may differ from the machine of the run.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type EvaluateFlag =
    | [<MainCommand; Unique>] Folder of DIR: string
    | [<Unique>] Data_Path of DIR: string
    | [<Unique>] Backbone of FILE: string
    | [<Unique>] Batch of N: string
    | [<Unique>] Device of NAME: string
    | [<Unique>] Threads of N: string
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folder _ -> "run folder (from run --out)"
            | Data_Path _ -> "folder with the data set, if it moved"
            | Backbone _ -> "backbone weights, if they moved"
            | Batch _ -> "batch size"
            | Device _ -> "cpu or cuda:N"
            | Threads _ -> "LibTorch threads"
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

/// --name=value as two arguments.
let private splitEquals (argument: string) =
    match argument.IndexOf '=' with
    | at when at > 0 && argument.StartsWith "--" -> [| argument[.. at - 1]; argument[at + 1 ..] |]
    | _ -> [| argument |]

// A test checks the structure: here it would add a third to every start.
let private parser =
    lazy
        ArgumentParser.Create<Flag>(
            programName = "lorasub",
            usageStringCharacterWidth = 80,
            checkStructure = false
        )

let private names (parser: ArgumentParser) =
    parser.GetArgumentCases() |> List.collect _.CommandLineNames.Value

// ---------------------------------------------------------------------------------------------- help

/// What the help of a command shows beside its flags, which describe themselves.
type private Page =
    {
        Usage: string
        About: string
        Examples: string list
        /// First flag and title of each group.
        Groups: (string * string) list
    }

let private pageOf (path: string list) : Page =
    let page usage about examples =
        {
            Usage = usage
            About = about
            Examples = examples
            Groups = []
        }

    match path with
    | "run" :: _ ->
        { page
              "run [OPTIONS]"
              "Learn a data set's classes task by task and print the accuracy."
              [
                  "lorasub run                                    # bundled data, about a minute"
                  "lorasub run --data folder --data-path photos --out results"
                  "lorasub run --data cifar100 --data-path cifar --seeds 1,2,3"
                  "lorasub run --resume results"
              ] with
            Groups =
                [
                    "--data", "Data"
                    "--tasks", "Protocol"
                    "--rank", "Method"
                    "--epochs", "Training"
                    "--out", "Output"
                    "--device", "Machine"
                ]
        }
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

/// Longer flags have their text on the next line.
[<Literal>]
let private FlagColumn = 21

let private flagLines (groups: (string * string) list) (flag: ArgumentCaseInfo) : string list =
    let name =
        if flag.IsMainCommand then
            ""
        else
            flag.CommandLineNames.Value.Head

    let value =
        match flag.UnionCaseInfo.GetFields() with
        | [| field |] when flag.ArgumentType <> ArgumentType.SubCommand -> field.Name.Replace('_', ' ')
        | _ -> ""

    let group =
        match groups with
        | [] -> "  "
        | _ ->
            groups
            |> List.tryFind (fun (first, _) -> first = name)
            |> Option.map snd
            |> Option.defaultValue ""
            |> _.PadRight(9)

    let flag', text = String.Concat(name, " ", value).Trim(), flag.Description.Value

    if flag'.Length < FlagColumn then
        [ String.Concat(group, flag'.PadRight FlagColumn, text) ]
    else
        [ group + flag'; String.Concat("".PadRight(group.Length + FlagColumn), text) ]

/// The help of the command that `path` names, at most 80 columns wide; without `all`, common flags only.
let private help (all: bool) (path: string list) : string =
    let page = pageOf path

    let parser =
        (parser.Value :> ArgumentParser, path)
        ||> List.fold (fun parser word ->
            parser.GetSubCommandParsers()
            |> List.tryFind (fun p ->
                p.ParentInfo
                |> Option.exists (fun c -> List.contains word c.CommandLineNames.Value))
            |> Option.defaultValue parser)

    let shown, hidden =
        parser.GetArgumentCases()
        |> List.partition (fun c -> all || not c.IsHidden.Value)

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
            yield! List.collect (flagLines page.Groups) shown
            if not hidden.IsEmpty then
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

        let known = names parser |> List.filter (fun n -> n.StartsWith '-' = isOption)
        let place = if command = "lorasub" then "" else " of " + command

        let hint =
            match Errors.didYouMean known name with
            | "" -> String.Concat("see ", command, " --help")
            | meant -> meant

        raise (InputException(String.Concat [| "unknown "; what; " '"; name; "'"; place; "; "; hint |]))

/// A flag's setting and value: --X is true, --no-X is X = false.
let private pair (results: ParseResults<'Flag>) (flag: 'Flag) =
    match results.Parser.PrintCommandLineArguments [ flag ] with
    | [| name; value |] -> name.TrimStart '-', value
    | other when other[0].StartsWith "--no-" -> other[0].Substring "--no-".Length, "false"
    | other -> other[0].TrimStart '-', "true"

let private pairsWithout (shellOnly: 'Flag -> bool) (results: ParseResults<'Flag>) =
    results.GetAllResults()
    |> List.filter (shellOnly >> not)
    |> List.map (pair results)

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

        let pairs =
            flags
            |> pairsWithout (function
                | RunFlag.Out _
                | Overwrite
                | Resume _
                | Config _
                | Seeds _
                | Dry_Run
                | RunFlag.Libtorch _ -> true
                | _ -> false)

        let libTorch = flags.TryGetResult RunFlag.Libtorch

        match flags.TryGetResult Resume with
        | Some folder ->
            refuseBesideResume flags
            Command.Resume(folder, pairs, libTorch)
        | None ->
            let file = flags.TryGetResult Config |> Option.map ConfigFile.read
            let seeds = flags.TryGetResult Seeds |> Option.map (ConfigFile.seeds "--seeds")

            Command.Run
                {
                    Config = Config.merge file pairs seeds
                    Out = flags.TryGetResult RunFlag.Out
                    Overwrite = flags.Contains Overwrite
                    LibTorch = libTorch
                    DryRun = flags.Contains Dry_Run
                }
    | Some(Evaluate flags) ->
        refuseUnknown flags.Parser "lorasub evaluate" flags.UnrecognizedCliParams

        let changes =
            flags
            |> pairsWithout (function
                | Folder _
                | EvaluateFlag.Libtorch _ -> true
                | _ -> false)

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
        |> List.filter (fun name -> not (List.contains name (names parser.Value)))
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
            parser.Value.ParseCommandLine(Array.collect splitEquals argv, ignoreUnrecognized = true)
            |> command
        with :? ArguParseException as e ->
            match e.ErrorCode with
            | ErrorCode.HelpText -> helpOf false
            | _ ->
                // the first line names the error, the rest is the usage
                let error = e.Message.Split('\n')[0]
                raise (InputException(error.Replace("ERROR: ", ""), e))
