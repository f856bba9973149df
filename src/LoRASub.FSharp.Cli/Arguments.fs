/// The command line, from text to a command. Reads no file but that of --config and loads no native library.
module LoRASub.Cli.Arguments

open System
open Argu
open LoRASub

/// Every case but those from Out on is a setting of the library's under the same name.
[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type RunFlag =
    | [<Unique>] Data of NAME: string
    | [<Unique>] Data_Path of DIR: string
    | [<Unique>] Backbone of FILE: string
    | [<Unique>] Variant of NAME: string
    | [<Unique>] Tasks of N: string
    | [<Unique>] Initial_Classes of N: string
    | [<Unique>] Class_Order of ORDER: string
    | [<Unique>] Stop_After of N: string
    | [<Unique>] Epochs of N: string
    | [<Unique>] Initial_Epochs of N: string
    | [<Unique>] Schedule_Epochs of N: string
    | [<Unique>] Batch of N: string
    | [<Unique>] Rank of N: string
    | [<Unique>] B_Init of KIND: string
    | [<Unique>] Lr of X: string
    | [<Unique>] Head_Lr of X: string
    | [<Unique>] Weight_Decay of X: string
    | [<Unique>] Adam_Beta1 of X: string
    | [<Unique>] Adam_Beta2 of X: string
    | [<Unique>] Adam_Epsilon of X: string
    | [<Unique>] Amsgrad of BOOLEAN: string
    | [<Unique>] Margin of X: string
    | [<Unique>] Triplet_Weight of X: string
    | [<Unique>] Norm_Order of X: string
    | [<Unique>] Energy of X: string
    | [<Unique>] Update_Scale of KIND: string
    | [<Unique>] No_Projection
    | [<Unique>] No_Subtraction
    | [<Unique>] No_Triplet
    | [<Unique>] No_Training
    | [<Unique>] Heads of N: string
    | [<Unique>] Image_Size of N: string
    | [<Unique>] Norm_Epsilon of X: string
    | [<Unique>] Input_Range of RANGE: string
    | [<Unique>] Augment of KIND: string
    | [<Unique>] Crop_Scale of RANGE: string
    | [<Unique>] Crop_Ratio of RANGE: string
    | [<Unique>] Test_Resize of N: string
    | [<Unique>] Split_Ratio of X: string
    | [<Unique>] Split_Seed of N: string
    | [<Unique>] Skip_Broken
    | [<Unique>] Prototype_Transform of KIND: string
    | [<Unique>] Seeding of KIND: string
    | [<Unique>] Seed of N: string
    | [<Unique>] Precision of KIND: string
    | [<Unique>] Checkpoint_Activations
    | [<Unique>] Device of NAME: string
    | [<Unique>] Threads of N: string
    | [<Unique>] Checkpoint_Minutes of X: string
    | [<Unique>] No_Drift
    | [<Unique>] Tensorboard
    | [<Unique>] Reference of DIR: string
    | [<Unique>] Out of DIR: string
    | [<Unique>] Overwrite
    | [<Unique>] Resume of DIR: string
    | [<Unique>] Config of FILE: string
    | [<Unique>] Seeds of LIST: string
    | [<Unique>] Dry_Run
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Data _ -> "fashion-mnist (default) or another: lorasub data list"
            | Data_Path _ -> "folder with the published files of the data set"
            | Backbone _ -> "ViT weights: a safetensors file in timm's names"
            | Variant _ -> "defaults as in: official (default) or libcontinual"
            | Tasks _ -> "number of tasks (default 2; cifar100: 10)"
            | Initial_Classes _ -> "classes of the first task, if not like the rest"
            | Class_Order _ -> "natural, seed1993 or a JSON file"
            | Stop_After _ -> "stop after this many tasks"
            | Epochs _ -> "epochs of a task (default 4; cifar100: 20)"
            | Initial_Epochs _ -> "epochs of the first task, if not like the rest"
            | Schedule_Epochs _ -> "epochs the schedule is cut for (default: epochs)"
            | Batch _ -> "images in a batch (default 128)"
            | Rank _ -> "rank of each low-rank pair (default 10)"
            | B_Init _ -> "B at the start of a task: zeros or sparse"
            | Lr _ -> "learning rate of the low-rank pairs (default 5e-4)"
            | Head_Lr _ -> "learning rate of the heads (default 2e-3)"
            | Weight_Decay _ -> "added to the gradient (default 0)"
            | Adam_Beta1 _ -> "decay of Adam's first moment (default 0.9)"
            | Adam_Beta2 _ -> "decay of Adam's second moment (default 0.999)"
            | Adam_Epsilon _ -> "added to Adam's root (default 1e-8)"
            | Amsgrad _ -> "largest second moment so far: true or false"
            | Margin _ -> "margin of the triplet loss (default 1)"
            | Triplet_Weight _ -> "weight of the triplet loss (default 0.05)"
            | Norm_Order _ -> "norm of prototype distances (default 2)"
            | Energy _ -> "energy share the projection retains (default 0.99)"
            | Update_Scale _ -> "norm of the projection: frobenius (1) or none"
            | No_Projection -> "do not project updates"
            | No_Subtraction -> "observe with the old tasks' weights added"
            | No_Triplet -> "train with cross-entropy alone"
            | No_Training -> "prototypes of the frozen backbone"
            | Heads _ -> "attention heads, where the weights do not say"
            | Image_Size _ -> "pixels of an image's side, resampling positions"
            | Norm_Epsilon _ -> "layer-norm epsilon: BLOCKS or BLOCKS,FINAL"
            | Input_Range _ -> "LO,HI: black and white for the net (default 0,1)"
            | Augment _ -> "none, flip (default) or crop-flip (cifar100)"
            | Crop_Scale _ -> "LO,HI: area of random crops (default 0.08,1)"
            | Crop_Ratio _ -> "LO,HI: width / height of crops (default 3/4,4/3)"
            | Test_Resize _ -> "shorter side before the test images' centre crop"
            | Split_Ratio _ -> "share that trains, where unsplit (default 0.8)"
            | Split_Seed _ -> "decides that split (default 1993)"
            | Skip_Broken -> "leave out images that cannot be decoded"
            | Prototype_Transform _ -> "images for prototypes as in: train or test"
            | Seeding _ -> "restart random numbers: every-epoch or once"
            | Seed _ -> "root of all random numbers (default 1993)"
            | Precision _ -> "of the network: float32, bfloat16 or float64"
            | Checkpoint_Activations -> "compute activations again for the gradient: slower, in less memory"
            | Device _ -> "cpu (default) or cuda:N"
            | Threads _ -> "threads of LibTorch (default: LibTorch's choice)"
            | Checkpoint_Minutes _ -> "time between checkpoints (default 10; 0: per task)"
            | No_Drift -> "do not measure how far class means move"
            | Tensorboard -> "write TensorBoard event files as well"
            | Reference _ -> "finished run to measure transfer against"
            | Out _ -> "folder for the results (default: not saved)"
            | Overwrite -> "replace the run that --out's folder holds"
            | Resume _ -> "go on with the run in this folder"
            | Config _ -> "settings from YAML or JSON, also published ones"
            | Seeds _ -> "a run for each seed: 1,2,3"
            | Dry_Run -> "print the merged settings and their sources"
            | Libtorch _ -> "folder of another LibTorch, as for CUDA"

/// What may differ between the machine that ran and the one that evaluates.
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
            | Folder _ -> "what --out named in the run"
            | Data_Path _ -> "folder with the data set, if moved"
            | Backbone _ -> "the backbone's weights, if moved"
            | Batch _ -> "images in a batch"
            | Device _ -> "cpu or cuda:N"
            | Threads _ -> "threads of LibTorch"
            | Libtorch _ -> "folder of another LibTorch, as for CUDA"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DoctorFlag =
    | [<Unique>] Libtorch of DIR: string

    interface IArgParserTemplate with
        member _.Usage = "folder of another LibTorch, as for CUDA"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type CheckFlag =
    | [<MainCommand; Unique>] Name_And_Folder of NAME_DIR: string list

    interface IArgParserTemplate with
        member _.Usage = "data set, and the folder that should hold it"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type DataFlag =
    | [<SubCommand; CliPrefix(CliPrefix.None)>] List
    | [<CliPrefix(CliPrefix.None)>] Check of ParseResults<CheckFlag>

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | List -> "the known data sets, where they are published, their files"
            | Check _ -> "what a folder holds of a data set, and what is wrong"

[<HelpFlags("--help", "-h"); HelpDescription "show this help">]
type ReportFlag =
    | [<MainCommand>] Folders of DIR: string list
    | [<Unique>] Out of FILE: string
    | [<Unique>] Figures of DIR: string
    | [<Unique>] Tables of DIR: string

    interface IArgParserTemplate with
        member flag.Usage =
            match flag with
            | Folders _ -> "what --out named in the runs; several are compared"
            | Out _ -> "the page to write (default: report.html)"
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
            | Run _ -> "learn the classes of a data set, task by task"
            | Evaluate _ -> "score a saved learner again"
            | DataSets _ -> "list the data sets, check a folder for one"
            | Report _ -> "show runs as an HTML page, figures and tables"
            | Doctor _ -> "check this installation and measure its speed"
            | Version -> "print the version"

/// What `lorasub run` is asked for.
type RunCommand =
    {
        Config: MergedConfig
        /// Folder for the results.
        Out: string option
        /// Whether a run that stands there is replaced.
        Overwrite: bool
        LibTorch: string option
        DryRun: bool
    }

/// The runs to report on, and where to.
type ReportRequest =
    {
        Folders: string list
        Page: string
        Figures: string option
        Tables: string option
    }

/// What to do.
[<RequireQualifiedAccess>]
type Command =
    /// Show this text.
    | Help of string
    | Version
    | Run of RunCommand
    /// A run's folder and the settings that say where its files lie now.
    | Resume of folder: string * changes: (string * string) list * libTorch: string option
    /// A run's folder and the settings that replace its own.
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

// The tests check the structure: here it would cost every command a third of its start.
let private parser =
    lazy
        ArgumentParser.Create<Flag>(
            programName = "lorasub",
            usageStringCharacterWidth = 80,
            checkStructure = false
        )

let private names (parser: ArgumentParser) =
    parser.GetArgumentCases() |> List.collect _.CommandLineNames.Value

/// Rejects the first argument that nobody knows, with the nearest known one.
let private refuseUnknown (parser: ArgumentParser) (what: string) (unknown: string list) =
    match unknown with
    | [] -> ()
    | name :: _ ->
        let known =
            names parser |> List.filter (fun n -> n.StartsWith '-' = name.StartsWith '-')

        Errors.reject name $"must be {what}" "no such name" (Errors.didYouMean known name)

/// A flag as the command line has it: its name without dashes, and its value; --X switches X on and --no-X off.
let private pair (results: ParseResults<'Flag>) (flag: 'Flag) =
    match results.Parser.PrintCommandLineArguments [ flag ] with
    | [| name; value |] -> name.TrimStart '-', value
    | other when other[0].StartsWith "--no-" -> other[0].Substring "--no-".Length, "false"
    | other -> other[0].TrimStart '-', "true"

let private pairsWithout (shellOnly: 'Flag -> bool) (results: ParseResults<'Flag>) =
    results.GetAllResults()
    |> List.filter (shellOnly >> not)
    |> List.map (pair results)

// A run that goes on has its folder and settings already.
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
    | name :: _ ->
        Errors.reject "--resume" "goes on with the run as it was saved" $"{name} as well" $"leave {name} out"

let private command (results: ParseResults<Flag>) : Command =
    refuseUnknown results.Parser "a command or option of lorasub" results.UnrecognizedCliParams

    match results.TryGetSubCommand() with
    | Some(Run flags) ->
        refuseUnknown flags.Parser "an option of lorasub run" flags.UnrecognizedCliParams

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
        refuseUnknown flags.Parser "an option of lorasub evaluate" flags.UnrecognizedCliParams

        let changes =
            flags
            |> pairsWithout (function
                | Folder _
                | EvaluateFlag.Libtorch _ -> true
                | _ -> false)

        match flags.TryGetResult Folder with
        | Some folder -> Command.Evaluate(folder, changes, flags.TryGetResult EvaluateFlag.Libtorch)
        | None -> Errors.reject "lorasub evaluate" "needs the folder of a run" "none" ""
    | Some(DataSets flags) ->
        refuseUnknown flags.Parser "a command of lorasub data" flags.UnrecognizedCliParams

        match flags.TryGetSubCommand() with
        | Some List -> Command.DataList
        | Some(Check check) ->
            refuseUnknown check.Parser "an option of lorasub data check" check.UnrecognizedCliParams

            match check.GetResult(Name_And_Folder, []) with
            | [ name; folder ] -> Command.DataCheck(name, folder)
            | other ->
                let given = if other.IsEmpty then "none" else String.concat " " other
                Errors.reject "lorasub data check" "needs a data set and a folder" given ""
        | None -> Command.Help(flags.Parser.PrintUsage())
    | Some(Report flags) ->
        // a list of folders takes all that follows, misspelt options too
        let options, folders =
            flags.GetResults Folders |> List.concat |> List.partition _.StartsWith('-')

        refuseUnknown flags.Parser "an option of lorasub report" (flags.UnrecognizedCliParams @ options)

        Command.Report
            {
                Folders = folders
                Page = flags.TryGetResult ReportFlag.Out |> Option.defaultValue "report.html"
                Figures = flags.TryGetResult Figures
                Tables = flags.TryGetResult Tables
            }
    | Some(Doctor flags) ->
        refuseUnknown flags.Parser "an option of lorasub doctor" flags.UnrecognizedCliParams
        Command.Doctor(flags.TryGetResult DoctorFlag.Libtorch)
    | Some Version
    | None when results.GetAllResults() |> List.exists _.IsVersion -> Command.Version
    | _ -> Command.Help(results.Parser.PrintUsage())

/// The command that the arguments ask for. Rejects what is unknown, given twice or without its value, and values of
/// the wrong kind.
let parse (argv: string[]) : Command =
    // F# Interactive takes --help for itself, so that build.fsx could not pass it on
    let argv =
        match argv with
        | [| "help" |] -> [| "--help" |]
        | [| "version" |] -> [| "--version" |]
        | [| "help"; command |] -> [| command; "--help" |]
        | [| "help"; command; part |] -> [| command; part; "--help" |]
        | _ -> argv

    // help for a command that is not there would be the help for all
    match Array.tryHead argv with
    | Some first when not (first.StartsWith '-') ->
        [ first ]
        |> List.filter (fun name -> not (List.contains name (names parser.Value)))
        |> refuseUnknown parser.Value "a command or option of lorasub"
    | _ -> ()

    try
        // Parse would look for an app.config as well, with all of System.Configuration
        parser.Value.ParseCommandLine(Array.collect splitEquals argv, ignoreUnrecognized = true)
        |> command
    with :? ArguParseException as e ->
        match e.ErrorCode with
        | ErrorCode.HelpText -> Command.Help e.Message
        | _ ->
            // the first line says what is wrong, the rest is the usage
            let said = e.Message.Split('\n')[0]
            raise (InputException(said.Replace("ERROR: ", ""), e))
