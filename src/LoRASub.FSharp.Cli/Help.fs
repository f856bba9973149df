/// What `--help` prints.
module LoRASub.Cli.Help

open System
open LoRASub.Settings
open Argu
open LoRASub.Cli.Flags

/// The help of a command above its flags.
let private introduction (path: string list) : string =
    match path with
    | "run" :: _ ->
        """run [OPTIONS]
Learn a data set's classes task by task and print the accuracy.

Examples:
  lorasub run                                    # bundled data, about a minute
  lorasub run --data folder --data-path photos --out results
  lorasub run --data cifar100 --data-path cifar --seeds 1,2,3
  lorasub run --resume results
"""
    | "learn" :: _ ->
        """learn LEARNER IMAGES [OPTIONS]
Learn the classes of a folder of images. The first call creates the learner.
IMAGES has one folder per class. The images are not needed afterwards.
An unreadable image stops the command, unless --skip-broken is given.

Examples:
  lorasub learn shop photos/january
  lorasub learn shop photos/february             # more classes
  lorasub learn shop photos/march --more         # more images as well
"""
    | "predict" :: _ ->
        """predict LEARNER IMAGES... [OPTIONS]
Name the class of images: files, folders, or - for a list on standard input.
Unreadable files are skipped, and the exit code is then 1.

Examples:
  lorasub predict shop new.jpg
  lorasub predict shop inbox --top 3 --format csv
"""
    | "inspect" :: _ ->
        """inspect LEARNER
Show what a learner is and which classes it knows.

Examples:
  lorasub inspect shop
"""
    | "forget" :: _ ->
        """forget LEARNER CLASS [OPTIONS]
Remove a class from a learner: it is no longer predicted.

Examples:
  lorasub forget shop mug
  lorasub forget shop -- -odd-name               # after --, words are names
"""
    | "rename" :: _ ->
        """rename LEARNER CLASS NAME [OPTIONS]
Give a class another name.

Examples:
  lorasub rename shop mug cup
"""
    | "merge" :: _ ->
        """merge LEARNER OTHER [OPTIONS]
Add what OTHER knows to LEARNER, as if LEARNER had learned those images too.
Both must have the same backbone, network and head, and different images.

Examples:
  lorasub merge shop branch
"""
    | "diff" :: _ ->
        """diff LEARNER OTHER [OPTIONS]
Show what differs between two learners.

Examples:
  lorasub diff shop backup/shop
"""
    | "export" :: _ ->
        """export LEARNER DIR [OPTIONS]
Write a learner for other programs: weights.safetensors (timm's names),
adapter/ (LoRA for PEFT), classes.csv and class-means.npy.

Examples:
  lorasub export shop files
  lorasub export shop small --rank 4
"""
    | "evaluate" :: _ ->
        """evaluate LEARNER IMAGES [OPTIONS], or evaluate RUN [OPTIONS]
Measure a learner on test images, one folder per class: accuracy, calibration
and unknown classes. Or score the learner of a run again and compare with the
saved scores. An unreadable image stops the command, unless --skip-broken is
given.

Examples:
  lorasub evaluate shop photos/test
  lorasub evaluate results --data-path /new/place
"""
    | "report" :: _ ->
        """report DIR... [OPTIONS]
Make an HTML page, figures and tables of one or more runs.

Examples:
  lorasub report results
  lorasub report with without --out compare.html --tables tables
"""
    | "doctor" :: _ ->
        """doctor [OPTIONS]
Check the installation, suggest fixes and measure the speed.

Examples:
  lorasub doctor
"""
    | "methods" :: _ ->
        """methods [COMMAND]
List the methods and what they store.

Examples:
  lorasub methods
"""
    | "heads" :: _ ->
        """heads [COMMAND]
List heads, embeddings and presets.

Examples:
  lorasub heads
"""
    | "data" :: "check" :: _ ->
        """data check NAME DIR
Validate a data set folder.

Examples:
  lorasub data check cifar100 cifar
  lorasub data check folder photos
"""
    | "data" :: "get" :: _ ->
        """data get NAME [DIR]
Download a data set, check it, and unpack it. If interrupted, repeat the command
to continue.

Examples:
  lorasub data get cifar100                      # into the cache
  lorasub run --data cifar100
  lorasub data get cifar100 data/cifar100
"""
    | "data" :: _ ->
        """data COMMAND
List or download data sets, or check a folder.

Examples:
  lorasub data list
  lorasub data get cifar100
  lorasub data check folder photos
"""
    | "backbone" :: "info" :: _ ->
        """backbone info FILE
Show what a file of weights is: format, network, unused tensors, problems.

Examples:
  lorasub backbone info vit.safetensors
"""
    | "backbone" :: "get" :: _ ->
        """backbone get NAME [DIR]
Download a published backbone and check it. If interrupted, repeat the command
to continue. Afterwards --backbone NAME works in every command.

Examples:
  lorasub backbone get vit_base_patch16_224.augreg_in21k
  lorasub learn shop photos --backbone vit_base_patch16_224.augreg_in21k
"""
    | "backbone" :: _ ->
        """backbone COMMAND
List or download published backbones, or show what a file of weights is.

Examples:
  lorasub backbone list
  lorasub backbone get vit_base_patch16_224.augreg_in21k
  lorasub backbone info vit.safetensors
"""
    | _ ->
        """COMMAND [OPTIONS]
Learn new image classes over time without keeping the old images.
  lorasub learn shop photos                      # a folder for each class
  lorasub predict shop new.jpg
"""

/// What the words of a command are.
let private operands (path: string list) : (string * string) list =
    let learner = "LEARNER", "folder of a learner"
    let name what = "NAME", $"see lorasub {what} list"
    let cache = "DIR", "folder for the files (default: the cache)"

    match path with
    | "learn" :: _ ->
        [
            "LEARNER", "folder of the learner; other files in it stay as they are"
            "IMAGES", "folder with one folder of images per class"
        ]
    | "predict" :: _ ->
        [
            learner
            "IMAGES", "files, folders with images at any depth, or - for standard input"
        ]
    | "evaluate" :: _ ->
        [
            learner
            "IMAGES", "folder with one folder of images per class"
            "RUN", "folder of a run, made with lorasub run --out"
        ]
    | "inspect" :: _ -> [ learner ]
    | "forget" :: _ -> [ learner; "CLASS", "name of the class, as lorasub inspect shows it" ]
    | "rename" :: _ ->
        [
            learner
            "CLASS", "name of the class, as lorasub inspect shows it"
            "NAME", "its new name, not used by another class of the learner"
        ]
    | "merge" :: _ ->
        [
            "LEARNER", "folder of the learner to change"
            "OTHER", "folder of the learner to add; it is not changed"
        ]
    | "diff" :: _ -> [ learner; "OTHER", "folder of the learner to compare it with" ]
    | "export" :: _ -> [ learner; "DIR", "new or empty folder for the files" ]
    | "report" :: _ -> [ "DIR", "folder of a run, made with lorasub run --out; several are compared" ]
    | [ "data"; "check" ] -> [ name "data"; "DIR", "folder of the data set" ]
    | [ "data"; "get" ] -> [ name "data"; cache ]
    | [ "backbone"; "get" ] -> [ name "backbone"; cache ]
    | [ "backbone"; "info" ] -> [ "FILE", "file of weights, or the name of a downloaded backbone" ]
    | _ -> []

/// A flag in the help.
type private Line =
    {
        /// Empty but for `run`.
        Group: string
        Flag: string
        Text: string
        /// Shown without --help-all.
        Common: bool
    }

let private ofArgument (flag: ArgumentCaseInfo) : Line =
    let name = flag.CommandLineNames.Value |> List.tryHead |> Option.defaultValue ""

    let value =
        match flag.UnionCaseInfo.GetFields() with
        | [| field |] when flag.ArgumentType <> ArgumentType.SubCommand -> field.Name.Replace('_', ' ')
        | _ -> ""

    {
        Group =
            match name with
            | "--preset" -> "Method"
            | "--seeds"
            | "--config" -> "Protocol"
            | "--libtorch" -> "Machine"
            | _ -> "Output"
        Flag = String.Concat(name, " ", value).Trim()
        Text = flag.Description.Value
        Common = not flag.IsHidden.Value
    }

let private ofSetting (s: Setting) : Line =
    {
        Group = s.Group
        Flag = SettingDoc.flag s
        Text = SettingDoc.usage s
        Common = s.Common
    }

/// As commands of a saved learner or run show it, where the defaults are the saved ones. The text of a switch says what
/// its flag does.
let private ofSavedSetting (s: Setting) : Line =
    match s.Kind with
    | SettingKind.Switch -> ofSetting s
    | _ -> { ofSetting s with Text = s.Doc }

/// Longer flags have their text on the next line.
[<Literal>]
let private FlagColumn = 20

/// A flag and its text in lines of 80 columns, after a label.
let private show (label: string) (line: Line) : string list =
    let before = "".PadRight(label.Length + FlagColumn)
    let text = Layout.wrap (Layout.Columns - before.Length) line.Text

    if line.Flag.Length < FlagColumn - 1 then
        String.Concat(label, line.Flag.PadRight FlagColumn, text.Head)
        :: List.map ((+) before) text.Tail
    else
        label + line.Flag :: List.map ((+) before) text

/// The lines of `run` under the headings of its settings, common flags first.
let private grouped (lines: Line list) : string list =
    [
        for group in Settings.all |> List.map _.Group |> List.distinct do
            let ofGroup = lines |> List.filter (fun line -> line.Group = group)

            for i, line in ofGroup |> List.sortBy (fun line -> not line.Common) |> List.indexed do
                yield! show ((if i = 0 then group else "").PadRight 9) line
    ]

/// The help of the command that `path` names, at most 80 columns wide; without `all`, common flags only.
let text (all: bool) (path: string list) : string =
    let arguments =
        parserOf path
        |> argumentsOf
        |> List.filter (fun flag -> not flag.IsMainCommand)
        |> List.map ofArgument

    let operand (name, meaning) =
        {
            Group = ""
            Flag = name
            Text = meaning
            Common = true
        }

    String.concat
        "\n"
        [
            "Usage: lorasub " + introduction path
            match path with
            | [ "run" ] ->
                yield!
                    List.map ofSetting Settings.all @ arguments
                    |> List.filter (fun line -> all || line.Common)
                    |> grouped

                if not all then
                    "All options: lorasub run --help-all"
            | _ ->
                let isShort = not all && path = [ "learn" ]

                let settings =
                    path
                    |> List.collect settingsOf
                    |> List.map ofSavedSetting
                    |> List.filter (fun line -> line.Common || not isShort)

                let words, flags =
                    arguments |> List.partition (fun line -> not (line.Flag.StartsWith '-'))

                yield!
                    List.map operand (operands path) @ words @ flags @ settings
                    |> List.collect (show "  ")

                if isShort then
                    "All options: lorasub learn --help-all"

            if path.IsEmpty then
                "Help for a command: lorasub COMMAND --help"
        ]
