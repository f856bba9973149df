/// Learners kept in folders: opened, claimed, measured; and the commands that change or show one in a moment.
module LoRASub.Cli.LearnerFolder

open System
open System.IO
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run

let holdsLearner folder =
    File.Exists(LearnerFile.jsonPath folder)

let absolute (path: string) =
    if path = "" then
        Errors.reject "a path" "must not be empty" "an empty argument" "is a shell variable unset?"

    Path.GetFullPath path

/// The names in a folder; none where there is no folder. Rejects one that this user may not read.
let entries (folder: string) : string[] =
    try
        if Directory.Exists folder then
            Directory.GetFileSystemEntries folder
        else
            [||]
    with
    | :? IOException
    | :? UnauthorizedAccessException as e ->
        Errors.reject
            folder
            "must be a folder that this user can read"
            e.Message
            "ask its owner to change its permissions, or choose another folder"

let requireLearner (folder: string) =
    if File.Exists folder then
        Errors.reject folder "must be the folder of a learner" "a file" ""

    if not (holdsLearner folder) then
        entries folder |> ignore

        Errors.reject
            folder
            "must hold a learner"
            "no learner.json"
            $"make one with: lorasub learn {folder} IMAGES"

/// A run's results are those of its learner as it is.
let requireOwn (folder: string) =
    if RunFolder.holdsRun folder then
        Errors.reject
            folder
            "must be a learner made by lorasub learn"
            "a run"
            "copy learner.json and learner.safetensors to another folder"

/// What decides how a learner sees, which does not change later.
let lasting =
    [
        "method"
        "head"
        "embedding"
        "training"
        "input-range"
        "image-size"
        "attention-heads"
        "norm-epsilon"
        "precision"
        "seed"
    ]

/// The backbone of a saved learner and its hash: the file named, or the one that it was made with, or the program's own.
let backboneOf (given: string option) (saved: SavedLearner) : struct (string * string) =
    let remembered =
        match saved.Record.Settings.TryGetValue "backbone" with
        | true, path -> [ path ]
        | _ -> []

    let isIt path =
        File.Exists path && Weights.sha256 path = saved.Record.BackboneSha256

    match given with
    | Some path -> Backbones.identified path
    | None ->
        match remembered @ [ Assets.backbone ] |> List.tryFind isIt with
        | Some path -> struct (path, saved.Record.BackboneSha256)
        | None ->
            let place =
                match remembered with
                | path :: _ -> $"not at {path}"
                | [] -> "not among the program's own"

            Errors.reject
                saved.Path
                $"needs its backbone, the file with the SHA-256 {saved.Record.BackboneSha256}"
                place
                "pass it with --backbone FILE"

let change (pairs: (string * string) list) (settings: RunSettings) =
    pairs
    |> List.fold (fun s (name, text) -> Settings.set name text s) settings
    |> fun settings ->
        Settings.check settings
        settings

let given name (pairs: (string * string) list) =
    pairs |> List.tryFind (fst >> (=) name) |> Option.map snd

/// A saved learner under settings of this call, owned by the caller. LibTorch is loaded before its tensors are.
let openSaved (shell: Shell) libTorch pairs (folder: string) : KeptLearner =
    requireLearner folder
    Shell.loadNative shell libTorch (change pairs (KeptLearner.settings "recommended"))

    Scope.keep KeptLearner.leaves (fun () ->
        let saved = LearnerFile.load folder

        KeptLearner.ofSaved
            (change pairs (KeptLearner.savedSettings saved))
            (backboneOf (given "backbone" pairs) saved)
            saved)

/// Images with the names of their classes.
type Named = { Names: string[]; Images: ImageSet }

// Images whose errors say what to do.
let private advising (advice: string) (images: ImageSet) : ImageSet =
    { images with
        Read =
            fun i ->
                try
                    images.Read i
                with :? InputException as e ->
                    raise (InputException($"{e.Message}; {advice}", e))
    }

/// The images of a folder with a folder for each class. If settings say so, those that cannot be decoded are reported
/// and left out.
let labelled (shell: Shell) settings (folder: string) : Named =
    let folder = absolute folder
    let found = FileScan.require (ImageFolder.all folder)
    Shell.notes shell found.Notes

    let files =
        if given "skip-broken" settings = Some "true" then
            let broken = ImageFiles.verify (found.Train |> Array.map _.Path)

            for file in broken do
                Shell.warnings shell [ $"{file.Path} is skipped: {file.Reason}" ]

            let isBroken = broken |> Array.map _.Path |> Set.ofArray
            found.Train |> Array.filter (fun file -> not (isBroken.Contains file.Path))
        else
            found.Train

    if files.Length = 0 then
        Errors.reject folder "must hold an image that can be read" "none" "fix its images"

    {
        Names = found.ClassNames
        Images =
            ImageFiles.set folder files
            |> advising "fix or remove the file, or pass --skip-broken"
    }

/// The images of some classes, labelled by place.
let ofClasses (isChosen: string -> bool) (all: Named) : Named =
    let names = Array.filter isChosen all.Names

    {
        Names = names
        Images =
            ImageSet.ofLabels (names |> Array.map (fun name -> Array.IndexOf(all.Names, name))) all.Images
    }

/// Claims the folder; one that was made for nothing is removed again.
let holding (folder: string) (work: unit -> 'T) : 'T =
    let isNew = not (Directory.Exists folder)
    use _ = RunFolder.hold folder

    try
        work ()
    finally
        // while it is held: nobody else's claim is removed
        if isNew && not (holdsLearner folder || OpenLesson.exists folder) then
            try
                File.Delete(RunFiles.lock' folder)
                // only if empty: someone else may have put a file there
                Directory.Delete folder
            with
            | :? IOException
            | :? UnauthorizedAccessException -> ()

/// A share in percent, to one decimal.
let percent = Layout.percent 1

/// A line of a learner's command beside its label.
let line = Layout.row 12

/// Some of all in percent, to one decimal.
let percentOf (some: int) (all: int) : string = percent (float some / float all)

let counted = Text.counted

/// Prints what a learner is and knows, if its files are whole. Loads no native library.
let inspect (shell: Shell) (folder: string) : int =
    let folder = absolute folder
    requireLearner folder
    let record = LearnerFile.verified folder
    let classes = record.State.Classes

    let setting name otherwise =
        match record.Settings.TryGetValue name with
        | true, text -> text
        | _ -> otherwise

    let bytes = FileInfo(LearnerFile.tensorPath folder)

    let size =
        if bytes.Exists then
            Layout.fixed' 1 (float bytes.Length / 1e6)
        else
            "no"

    let total = classes |> Array.sumBy _.Images
    let groups = record.State.FinishedTasks

    Shell.say
        shell
        [
            yield! line "learner" $"{folder}, format {record.Version}, {size} MB"

            yield!
                line "method" $"""{record.Method}, {record.Head} on {setting "embedding" "its embedding"}"""

            yield! line "backbone" (setting "backbone" "not remembered")
            yield! line "  SHA-256" record.BackboneSha256

            yield!
                line
                    "images"
                    $"{record.ImageSize} px, {record.Channels} channels, black {record.InputRange[0]}, white {record.InputRange[1]}"

            yield!
                match defaultArg record.HeldOut [||] |> Array.sumBy (fun one -> int64 one.Images) with
                | 0L -> line "calibrated" "no: no images were held out"
                | 1L -> line "calibrated" "by 1 held-out image"
                | held -> line "calibrated" $"by {held} held-out images"

            yield!
                line
                    "knows"
                    $"""{counted classes.Length "class" "classes"} of {counted groups "group" "groups"}, from {counted (int total) "image" "images"}"""

            ""
            "group  images  class"
            for one in classes do
                $"{one.Task + 1, 5}  {one.Images, 6}  {one.Name}"
        ]

    0

// Loads a learner, changes it and saves it.
let private changing (shell: Shell) settings libTorch (folder: string) (work: KeptLearner -> KeptLearner) =
    let folder = absolute folder
    requireLearner folder
    requireOwn folder

    holding folder (fun () ->
        let kept = openSaved shell libTorch settings folder
        use _ = Scope.own KeptLearner.leaves kept

        Scope.run (fun () ->
            let next = work kept

            lock Shell.saving (fun () ->
                KeptLearner.save folder next
                shell.Interruption.Message <- $"interrupted after {folder} was saved: the change is made")))

/// Removes a class from a learner.
let forget (shell: Shell) (folder: string) (name: string) settings libTorch : int =
    changing shell settings libTorch folder (KeptLearner.forget name)

    Shell.say
        shell
        [
            yield! line "forgot" $"{name}; what it contributed to shared statistics and to the network stays"
        ]

    0

/// Gives a class of a learner another name.
let rename (shell: Shell) (folder: string) (name: string) (newName: string) settings libTorch : int =
    changing shell settings libTorch folder (KeptLearner.rename name newName)
    Shell.say shell (line "renamed" $"{name} to {newName}")
    0
