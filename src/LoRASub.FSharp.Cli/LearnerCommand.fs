/// The commands of a learner that is kept in a folder: `learn`, `predict`, `evaluate`, `inspect`, `forget` and `rename`.
module LoRASub.Cli.LearnerCommand

open System
open System.Diagnostics
open System.IO
open System.Text.Json
open System.Threading.Tasks
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run

// ---------------------------------------------------------------------------------------------- opening

let private holdsLearner folder =
    File.Exists(LearnerFile.jsonPath folder)

let private absolute (path: string) =
    Path.GetFullPath(path, Environment.CurrentDirectory)

let private requireLearner (folder: string) =
    if not (holdsLearner folder) then
        Errors.reject
            folder
            "must hold a learner"
            "no learner.json"
            $"make one with: lorasub learn {folder} IMAGES"

// A run's results are those of its learner as it is.
let private requireOwn (folder: string) =
    if RunFolder.holdsRun folder then
        Errors.reject
            folder
            "must hold a learner of its own"
            "a run, whose learner may not change"
            "copy learner.json and learner.safetensors to another folder"

/// What decides how a learner sees, which does not change later.
let private lasting =
    [
        "method"
        "head"
        "embedding"
        "input-range"
        "image-size"
        "attention-heads"
        "norm-epsilon"
        "precision"
        "seed"
    ]

/// The backbone of a saved learner: the file named, or the one that it was made with, or the program's own.
let private backboneOf (given: string option) (saved: SavedLearner) : string =
    let remembered =
        match saved.Record.Settings.TryGetValue "backbone" with
        | true, path -> [ path ]
        | _ -> []

    let isIt path =
        File.Exists path && DataFile.sha256 path = saved.Record.BackboneSha256

    match given with
    | Some path -> absolute path
    | None ->
        match remembered @ [ Assets.backbone ] |> List.tryFind isIt with
        | Some path -> path
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

let private change (pairs: (string * string) list) (settings: RunSettings) =
    pairs
    |> List.fold (fun s (name, text) -> Settings.set name text s) settings
    |> fun settings ->
        Settings.check settings
        settings

let private given name (pairs: (string * string) list) =
    pairs |> List.tryFind (fst >> (=) name) |> Option.map snd

// LibTorch is loaded before the learner's tensors are.
let private openSaved (shell: Shell) libTorch pairs (folder: string) : KeptLearner =
    requireLearner folder
    Shell.loadNative shell libTorch (change pairs (KeptLearner.settings "recommended"))

    Scope.keep KeptLearner.leaves (fun () ->
        let saved = LearnerFile.load folder

        let settings =
            { change pairs (KeptLearner.savedSettings saved) with
                Backbone = Some(backboneOf (given "backbone" pairs) saved)
            }

        KeptLearner.ofSaved settings saved)

// ---------------------------------------------------------------------------------------------- learn

/// What `learn` takes.
type LearnRequest =
    {
        Folder: string
        /// A folder with a folder of images for each class.
        Images: string
        /// For a new learner.
        Preset: string option
        Settings: (string * string) list
        /// Of each class, kept out of training to measure the accuracy, and learned by the head afterwards.
        HoldOut: float
        /// Whether the images of known classes are learned as well.
        More: bool
        /// Folders of images that are left out.
        Skip: string list
        /// Class names in place of names of folders.
        Rename: (string * string) list
        LibTorch: string option
    }

/// Images with the names of their classes.
type private Named = { Names: string[]; Images: ImageSet }

// The images of some classes, labelled by place.
let private ofClasses (isChosen: string -> bool) (all: Named) : Named =
    let names = Array.filter isChosen all.Names

    let place = all.Names |> Array.map (fun name -> Array.IndexOf(names, name))

    let positions =
        Array.indexed all.Images.Labels
        |> Array.filter (fun (_, label) -> place[label] >= 0)
        |> Array.map fst

    let images = ImageSet.select positions all.Images

    {
        Names = names
        Images =
            { images with
                Labels = images.Labels |> Array.map (fun label -> place[label])
            }
    }

let private read (shell: Shell) (request: LearnRequest) skipBroken : Named =
    let found = FileScan.require (ImageFolder.all (absolute request.Images))
    Shell.notes shell found.Notes

    for folder in request.Skip @ List.map fst request.Rename do
        if not (Array.contains folder found.ClassNames) then
            let advice = Errors.didYouMean (List.ofArray found.ClassNames) folder
            Errors.reject $"class '{folder}'" $"must be a folder of {request.Images}" "no such folder" advice

    let files =
        if skipBroken then
            let broken = ImageFiles.verify (found.Train |> Array.map _.Path)

            for file in broken do
                Shell.warnings shell [ $"{file.Path} is skipped: {file.Reason}" ]

            let isBroken = broken |> Array.map _.Path |> Set.ofArray
            found.Train |> Array.filter (fun file -> not (isBroken.Contains file.Path))
        else
            found.Train

    let all =
        {
            Names = found.ClassNames
            Images = ImageFiles.set (absolute request.Images) files
        }
        |> ofClasses (fun name -> not (List.contains name request.Skip))

    { all with
        Names =
            all.Names
            |> Array.map (fun name ->
                request.Rename
                |> List.tryFind (fst >> (=) name)
                |> Option.map snd
                |> Option.defaultValue name)
    }

let private fresh (shell: Shell) (request: LearnRequest) : KeptLearner =
    let preset = KeptLearner.settings (defaultArg request.Preset "recommended")

    let settings =
        { change request.Settings preset with
            Backbone =
                Some(
                    given "backbone" request.Settings
                    |> Option.defaultValue Assets.backbone
                    |> absolute
                )
        }

    Shell.loadNative shell request.LibTorch settings
    let isGiven name = (given name request.Settings).IsSome
    KeptLearner.create (KeptLearner.fitted isGiven settings)

let private refuseLasting (request: LearnRequest) =
    let named =
        [
            if request.Preset.IsSome then
                "preset"
            for name, _ in request.Settings do
                if List.contains name lasting then
                    name
        ]

    match named with
    | [] -> ()
    | name :: _ ->
        Errors.reject
            $"--{name}"
            "must be given when a learner is made"
            $"a learner in {request.Folder}"
            "remove it, or choose another folder"

// Claims the folder; one that was made for nothing is removed again.
let private holding (folder: string) (work: unit -> 'T) : 'T =
    let isNew = not (Directory.Exists folder)

    try
        use _ = RunFolder.hold folder
        work ()
    finally
        if isNew && not (holdsLearner folder) then
            try
                Directory.Delete(folder, recursive = true)
            with
            | :? IOException
            | :? UnauthorizedAccessException -> ()

let private percent (right: int) (all: int) =
    (100.0 * float right / float all).ToString "0.0"

let private counted = Text.counted

/// The row of the class predicted for each image.
let private rows (kept: KeptLearner) (images: ImageSet) : int[] =
    Scope.run (fun () ->
        let model = Learner.deploy kept.Learner kept.State
        let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone

        ImageTask.best 1 kept.Learner batching model images (Array.init images.Labels.Length id)
        |> Array.map (fun best -> best[0].Row))

let private rightOf (kept: KeptLearner) (all: Named) =
    rows kept all.Images
    |> Array.map2 (fun label row -> kept.Classes[row].Name = all.Names[label]) all.Images.Labels
    |> Array.filter id
    |> Array.length

/// Learns the classes of a folder of images into a learner, which is made where there is none.
let learn (shell: Shell) (request: LearnRequest) : int =
    let folder = absolute request.Folder

    if holdsLearner folder then
        refuseLasting request
        requireOwn folder

    ImageSet.requireOutside (absolute request.Images) folder

    let skipBroken = given "skip-broken" request.Settings = Some "true"
    let all = read shell request skipBroken

    holding folder (fun () ->
        let before =
            if holdsLearner folder then
                openSaved shell request.LibTorch request.Settings folder
            else
                fresh shell request

        use _ = Scope.own KeptLearner.leaves before
        let known = before.Classes |> Array.map _.Name |> Set.ofArray
        let news = all |> ofClasses (known.Contains >> not)
        let more = all |> ofClasses (fun name -> request.More && known.Contains name)
        let left = all.Names.Length - news.Names.Length - more.Names.Length

        if news.Names.Length = 0 && more.Names.Length = 0 then
            Errors.reject
                request.Images
                "must hold a class that the learner does not know"
                $"""{counted all.Names.Length "known class" "known classes"}"""
                "add their images with --more"

        let images (named: Named) =
            $"""{counted named.Names.Length "class" "classes"}, {counted named.Images.Labels.Length "image" "images"}"""

        Shell.say
            shell
            [
                $"""learner     {folder}, knows {counted known.Count "class" "classes"}"""
                if news.Names.Length > 0 then
                    $"new         {images news}"
                if more.Names.Length > 0 then
                    $"more        {images more}"
                if left > 0 then
                    $"known       {left} left out; add their images with --more"
            ]

        let clock = Stopwatch.StartNew()

        let onEvent (show: string -> unit) event =
            if shell.Interruption.IsRequested then
                raise (OperationCanceledException $"interrupted; the learner in {folder} is as it was")

            match event with
            | Steps step -> show $"{Phase.name step.Phase} {step.Done + 1}/{step.Steps}"
            | _ -> ()

        let held = request.HoldOut

        let struct (newTrain, newHeld) =
            ImageSet.divide held before.Settings.SplitSeed news.Images

        let struct (moreTrain, moreHeld) =
            ImageSet.divide held before.Settings.SplitSeed more.Images

        let struct (after, decision, right) =
            Display.working (Shell.canvas shell) (fun show ->
                let onEvent = onEvent show

                Scope.keep (fun struct (kept: KeptLearner, _, _) -> TaskState.leaves kept.State) (fun () ->
                    let struct (kept, decision) =
                        if news.Names.Length > 0 then
                            KeptLearner.learn news.Names newTrain onEvent before
                        else
                            struct (before, None)

                    let add (named: Named) images kept =
                        let present =
                            ofClasses
                                (fun name ->
                                    Array.contains (Array.IndexOf(named.Names, name)) images.Labels)
                                { named with Images = images }

                        if present.Names.Length = 0 then
                            kept
                        else
                            KeptLearner.addImages present.Names present.Images onEvent kept

                    let kept = add more moreTrain kept
                    show "measuring"

                    let right =
                        rightOf kept { news with Images = newHeld }
                        + rightOf kept { more with Images = moreHeld }

                    let kept = kept |> add news newHeld |> add more moreHeld
                    struct (kept, decision, right)))

        lock Shell.saving (fun () -> KeptLearner.save folder after)
        let tested = newHeld.Labels.Length + moreHeld.Labels.Length

        Shell.say
            shell
            [
                match decision with
                | Some text -> $"note        {text}"
                | None -> ()

                let learned = news.Images.Labels.Length + more.Images.Labels.Length
                $"""learned     {counted learned "image" "images"} in {Display.duration clock.Elapsed.TotalSeconds}; knows {counted after.Classes.Length "class" "classes"}"""

                if tested > 0 then
                    $"""accuracy    {percent right tested}%% of {counted tested "image" "images"}, held out and then learned as well"""

                $"saved in    {folder}; the images are no longer needed"
            ]

        0)

// ---------------------------------------------------------------------------------------------- predict

/// The form of `predict`'s output.
[<RequireQualifiedAccess>]
type Form =
    | Table
    | Csv
    | Json

/// What `predict` takes.
type PredictRequest =
    {
        Folder: string
        /// Files, folders, or `-` for paths on standard input.
        Images: string list
        Settings: (string * string) list
        Top: int
        Form: Form
        LibTorch: string option
    }

let private filesOf (given: string) : string seq =
    if given = "-" then
        Seq.initInfinite (fun _ -> Console.In.ReadLine())
        |> Seq.takeWhile (isNull >> not)
        |> Seq.filter (String.IsNullOrWhiteSpace >> not)
    elif Directory.Exists given then
        let place = ImageListing.place given
        let struct (files, _, _) = ImageListing.images place place
        files
    else
        [ given ]

type private Guess = { ClassName: string; Score: float }

let private csvField (text: string) =
    if text.IndexOfAny [| ','; '"'; '\r'; '\n' |] < 0 then
        text
    else
        "\"" + text.Replace("\"", "\"\"") + "\""

let private number (score: float) =
    score.ToString("0.####", Globalization.CultureInfo.InvariantCulture)

let private shown (form: Form) (file: string) (guesses: Guess[]) : string list =
    match form with
    | Form.Table ->
        let words =
            guesses |> Array.map (fun guess -> $"{guess.ClassName} {number guess.Score}")

        [ $"""{file}: {String.concat ", " words}""" ]
    | Form.Csv ->
        [
            for rank, guess in Array.indexed guesses do
                $"{csvField file},{rank + 1},{csvField guess.ClassName},{number guess.Score}"
        ]
    | Form.Json ->
        [
            JsonSerializer.Serialize
                {|
                    file = file
                    classes =
                        guesses
                        |> Array.map (fun guess ->
                            {|
                                name = guess.ClassName
                                score = guess.Score
                            |})
                |}
        ]

/// Prints the best classes of each image. Files that cannot be read are reported and skipped; then the exit code is 1.
let predict (shell: Shell) (request: PredictRequest) : int =
    let kept =
        openSaved shell request.LibTorch request.Settings (absolute request.Folder)

    use _ = Scope.own KeptLearner.leaves kept
    let model = Learner.deploy kept.Learner kept.State
    use _ = Scope.own Model.leaves model
    let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone

    if request.Form = Form.Csv then
        Shell.say shell [ "file,rank,class,score" ]

    let mutable skipped = 0

    for files in request.Images |> Seq.collect filesOf |> Seq.chunkBySize batching.BatchSize do
        let pictures = Array.zeroCreate<Result<Picture, string>> files.Length

        Parallel.For(0, files.Length, fun i -> pictures[i] <- ImageFile.tryRead files[i])
        |> ignore

        let read =
            [|
                for file, picture in Array.zip files pictures do
                    match picture with
                    | Ok picture -> file, picture
                    | Error reason ->
                        skipped <- skipped + 1
                        Shell.complain shell.Error $"lorasub: {file} is skipped: {reason}"
            |]

        let set =
            {
                Source = "the images"
                Labels = Array.zeroCreate read.Length
                Read = fun i -> snd read[i]
            }

        let best =
            ImageTask.best request.Top kept.Learner batching model set (Array.init read.Length id)

        Shell.say
            shell
            [
                for (file, _), best in Array.zip read best do
                    yield!
                        best
                        |> Array.map (fun one ->
                            {
                                ClassName = kept.Classes[one.Row].Name
                                Score = one.Score
                            })
                        |> shown request.Form file
            ]

    if skipped > 0 then 1 else 0

// ---------------------------------------------------------------------------------------------- evaluate

/// Prints the accuracy of a learner on a folder with a folder of images for each class.
let evaluate (shell: Shell) (folder: string) (images: string) pairs libTorch : int =
    let found = FileScan.require (ImageFolder.all (absolute images))
    Shell.notes shell found.Notes
    let kept = openSaved shell libTorch pairs (absolute folder)
    use _ = Scope.own KeptLearner.leaves kept
    let known = kept.Classes |> Array.map _.Name |> Set.ofArray

    let all =
        {
            Names = found.ClassNames
            Images = ImageFiles.set (absolute images) found.Train
        }

    let tested = ofClasses known.Contains all

    if tested.Names.Length = 0 then
        Errors.reject images "must hold a class that the learner knows" "none" "see lorasub inspect"

    let unknown = all.Names |> Array.filter (known.Contains >> not)

    let predicted =
        Display.working (Shell.canvas shell) (fun show ->
            show "predicting"
            rows kept tested.Images)
        |> Array.map (fun row -> kept.Classes[row].Name)

    let pairs =
        Array.zip (tested.Images.Labels |> Array.map (fun label -> tested.Names[label])) predicted

    let isRight (name, guess) = name = guess
    let width = tested.Names |> Array.map _.Length |> Array.max |> max 5 |> min 40

    let line (name: string) (images: string) (accuracy: string) (mistake: string) =
        $"{(Display.fit width name).PadRight width}  {images, 6}  {accuracy, 8}  {mistake}".TrimEnd()

    Shell.say
        shell
        [
            line "class" "images" "accuracy" "most often taken for"

            for name, mine in pairs |> Array.groupBy fst do
                let wrong = mine |> Array.filter (isRight >> not)

                let mistake =
                    if wrong.Length = 0 then
                        ""
                    else
                        let guess, times = wrong |> Array.countBy snd |> Array.maxBy snd
                        $"{guess} ({times})"

                line name (string mine.Length) (percent (mine.Length - wrong.Length) mine.Length) mistake

            line
                "all"
                (string pairs.Length)
                (percent (pairs |> Array.filter isRight |> Array.length) pairs.Length)
                ""

            if unknown.Length > 0 then
                let names = unknown |> Array.truncate 5 |> String.concat ", "
                let dots = if unknown.Length > 5 then ", ..." else ""
                $"""note: {counted unknown.Length "class" "classes"} not known and left out: {names}{dots}"""
        ]

    0

// ---------------------------------------------------------------------------------------------- inspect, forget, rename

/// Prints what a learner is and knows. Loads no native library.
let inspect (shell: Shell) (folder: string) : int =
    let folder = absolute folder
    requireLearner folder
    let record = LearnerFile.record folder
    let classes = record.State.Classes

    let setting name otherwise =
        match record.Settings.TryGetValue name with
        | true, text -> text
        | _ -> otherwise

    let bytes = FileInfo(LearnerFile.tensorPath folder)
    let size = if bytes.Exists then float bytes.Length / 1e6 else 0.0
    let total = classes |> Array.sumBy _.Images
    let groups = record.State.FinishedTasks

    Shell.say
        shell
        [
            $"learner     {folder}, format {record.Version}, {number size} MB"
            $"""method      {record.Method}, {record.Head} on {setting "embedding" "its embedding"}"""
            $"""backbone    {setting "backbone" "the file"} with SHA-256 {record.BackboneSha256}"""
            $"images      {record.ImageSize} px, {record.Channels} channels, black {record.InputRange[0]}, white {record.InputRange[1]}"
            $"""knows       {counted classes.Length "class" "classes"} of {counted groups "group" "groups"}, from {total} images"""
            ""
            "group  images  class"
            for one in classes do
                $"{one.Task + 1, 5}  {one.Images, 6}  {one.Name}"
        ]

    0

// Loads a learner, changes it and saves it.
let private changing (shell: Shell) libTorch (folder: string) (work: KeptLearner -> KeptLearner) =
    let folder = absolute folder
    requireLearner folder
    requireOwn folder

    holding folder (fun () ->
        let kept = openSaved shell libTorch [] folder
        use _ = Scope.own KeptLearner.leaves kept

        Scope.run (fun () ->
            let next = work kept
            lock Shell.saving (fun () -> KeptLearner.save folder next)))

/// Removes a class from a learner.
let forget (shell: Shell) (folder: string) (name: string) libTorch : int =
    changing shell libTorch folder (KeptLearner.forget name)

    Shell.say
        shell
        [
            $"forgot      {name}; what it contributed to shared statistics and to the network stays"
        ]

    0

/// Gives a class of a learner another name.
let rename (shell: Shell) (folder: string) (name: string) (newName: string) libTorch : int =
    changing shell libTorch folder (KeptLearner.rename name newName)
    Shell.say shell [ $"renamed     {name} to {newName}" ]
    0
