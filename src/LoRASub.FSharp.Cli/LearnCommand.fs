/// `lorasub learn`: the classes of a folder of images into a learner.
module LoRASub.Cli.LearnCommand

open System
open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Cli.LearnerFolder

/// What `learn` takes.
type Request =
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

let private read (shell: Shell) (request: Request) : Named =
    let found = labelled shell request.Settings request.Images

    for folder in request.Skip @ List.map fst request.Rename do
        if not (Array.contains folder found.Names) then
            let advice = Errors.didYouMean (List.ofArray found.Names) folder
            Errors.reject $"class '{folder}'" $"must be a folder of {request.Images}" "no such folder" advice

    let all = ofClasses (fun name -> not (List.contains name request.Skip)) found

    if all.Names.Length = 0 then
        Errors.reject "--skip" "must leave a folder to learn" $"every folder of {request.Images}" ""

    let labels = Set.ofArray all.Images.Labels

    // all of its images were broken
    match all.Names |> Array.indexed |> Array.tryFind (fst >> labels.Contains >> not) with
    | Some(_, name) ->
        Errors.reject
            $"class '{name}'"
            "must hold an image that can be read"
            "none"
            "fix its images, or leave it out with --skip"
    | None -> ()

    let names =
        all.Names
        |> Array.map (fun name ->
            request.Rename
            |> List.tryFind (fst >> (=) name)
            |> Option.map snd
            |> Option.defaultValue name)

    match
        names
        |> Array.groupBy ImageFolder.canonical
        |> Array.tryFind (fun (_, folders) -> folders.Length > 1)
    with
    | Some(_, same) ->
        Errors.reject
            $"class '{same[0]}'"
            "must be the name of one folder, whatever its case"
            (same |> Array.map (fun name -> $"'{name}'") |> String.concat ", ")
            "change --rename"
    | None -> { all with Names = names }

let private fresh (shell: Shell) (request: Request) : KeptLearner =
    let preset = KeptLearner.settings (defaultArg request.Preset "recommended")

    let ofMethod =
        given "method" request.Settings
        |> Option.map Methods.defaults
        |> Option.defaultValue []

    let settings =
        { change (ofMethod @ request.Settings) preset with
            Backbone =
                Some(
                    given "backbone" request.Settings
                    |> Option.map Backbones.find
                    |> Option.defaultValue Assets.backbone
                    |> absolute
                )
        }

    Shell.loadNative shell request.LibTorch settings
    let isGiven name = (given name request.Settings).IsSome
    KeptLearner.create (Recipe.fitted isGiven settings)

let private refuseLasting (request: Request) =
    let named =
        [
            if request.Preset.IsSome then
                "preset"
            for name, text in request.Settings do
                if List.contains name lasting then
                    if text = "false" then $"no-{name}" else name
        ]

    match named with
    | [] -> ()
    | name :: _ ->
        Errors.reject
            $"--{name}"
            "must be given when a learner is made"
            $"a learner in {request.Folder}"
            $"leave out --{name}: the learner keeps what it was made with"

// A method's own classifier keeps no sums to add images to.
let private keepsSums (kept: KeptLearner) =
    not (Learner.isLogits kept.Learner.Head)

// How long it will take, by what a few of the images take.
let private time (shell: Shell) (request: Request) folder (kept: KeptLearner) (news: Named) (more: Named) =
    let work = LearnTime.work request.HoldOut news.Images more.Images kept
    let named = if work.New > 0 then news else more

    let cost =
        Display.working (Shell.canvas shell) (fun show ->
            show "measuring"
            LearnTime.measure work named.Names named.Images kept)

    match cost with
    | None -> []
    | Some cost ->
        let struct (still, adapted) = LearnTime.seconds cost work
        let least, most = Layout.about still, Layout.about adapted
        let about = if OpenLesson.exists folder then "at most" else "about"

        line
            "time"
            (if least = most then
                 $"{about} {most}"
             else
                 $"{about} {least}, or {most} if the network adapts")

// The learner with new classes and more images of known ones, the decision if one was made, and how many of the images
// held out it got right before it learned them too.
let private teach (shell: Shell) (request: Request) folder (before: KeptLearner) (news: Named) (more: Named) =
    let recovery: Recovery =
        {
            Folder = folder
            Every = TimeSpan.FromMinutes before.Settings.CheckpointMinutes
            IsStopping = fun () -> shell.Interruption.IsRequested
            Note = fun note -> Shell.complain shell.Error $"note: {note}"
        }

    Display.working (Shell.canvas shell) (fun show ->
        let onEvent event =
            match event with
            | Steps step -> show $"{Phase.name step.Phase} {step.Done + 1}/{step.Steps}"
            | _ -> ()

        let part learn (named: Named) (lesson: Lesson) : Lesson =
            if named.Names.Length = 0 then
                lesson
            else
                let next: Lesson =
                    learn request.HoldOut named.Names named.Images onEvent lesson.After

                {
                    After = next.After
                    Decision = Option.orElse lesson.Decision next.Decision
                    Accuracy = lesson.Accuracy + next.Accuracy
                }

        Scope.keep (fun (lesson: Lesson) -> TaskState.leaves lesson.After.State) (fun () ->
            {
                After = before
                Decision = None
                Accuracy = { Correct = 0; Total = 0 }
            }
            |> part (Lesson.learnIn (Some recovery)) news
            |> part Lesson.addImages more))

/// Learns the classes of a folder of images into a learner, which is made where there is none.
let learn (shell: Shell) (request: Request) : int =
    let folder = absolute request.Folder

    LearnerFile.requireNoOrphan folder

    if holdsLearner folder then
        refuseLasting request
        requireOwn folder

    ImageSet.requireOutside (absolute request.Images) folder

    let others =
        if holdsLearner folder then
            0
        else
            // what a command killed before its first save left
            let isOurs path =
                path = RunFiles.lock' folder || OpenLesson.isOne path

            entries folder |> Array.filter (isOurs >> not) |> Array.length

    let all = read shell request

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

        for name in news.Names do
            // some file systems write the name of the same folder in another way
            match
                known
                |> Seq.tryFind (fun one -> ImageFolder.canonical one = ImageFolder.canonical name)
            with
            | Some one ->
                let folder =
                    request.Rename
                    |> List.tryFind (snd >> (=) name)
                    |> Option.map fst
                    |> Option.defaultValue name

                Errors.reject
                    $"class '{name}'"
                    "must differ from every known class by more than case or Unicode normalisation"
                    $"'{one}'"
                    $"for the same class, pass --more --rename \"{folder}={one}\"; else give it another name"
            | None -> ()

        if news.Names.Length = 0 && more.Names.Length = 0 then
            Errors.reject
                request.Images
                "must hold a class that the learner does not know"
                $"""{counted all.Names.Length "known class" "known classes"}"""
                "add their images with --more"

        if more.Names.Length > 0 && not (keepsSums before) then
            Errors.reject
                "--more"
                "needs a head that keeps sums"
                "the method's own classifier"
                "remove it, or start a learner with another --head"

        let images (named: Named) =
            $"""{counted named.Names.Length "class" "classes"}, {counted named.Images.Labels.Length "image" "images"}"""

        let plan =
            [
                yield! line "learner" $"""{folder}, knows {counted known.Count "class" "classes"}"""

                if others > 0 then
                    yield!
                        line
                            "note"
                            $"""the folder was not a learner; its {counted others "other file" "other files"} will not be changed"""

                if news.Names.Length > 0 then
                    yield! line "new" (images news)

                if more.Names.Length > 0 then
                    yield! line "more" (images more)

                if left > 0 then
                    yield! line "known" $"{left} left out; add their images with --more"
            ]

        // rather than after hours of training
        WholeFile.probe (LearnerFile.jsonPath folder) folder

        shell.Interruption.Message <- $"interrupted; nothing was saved in {folder}"
        let clock = Stopwatch.StartNew()

        let lesson =
            shell.Interruption.Guard(fun () ->
                Shell.say shell plan
                Shell.say shell (time shell request folder before news more)
                teach shell request folder before news more)

        let after, accuracy = lesson.After, lesson.Accuracy
        use _ = Scope.own TaskState.leaves after.State

        lock Shell.saving (fun () ->
            KeptLearner.save folder after
            OpenLesson.delete folder
            shell.Interruption.Message <- $"interrupted after {folder} was saved: the images are learned")

        Shell.say
            shell
            [
                yield! lesson.Decision |> Option.map (line "note") |> Option.defaultValue []

                let learned = news.Images.Labels.Length + more.Images.Labels.Length

                yield!
                    line
                        "learned"
                        $"""{counted learned "image" "images"} in {Display.duration clock.Elapsed.TotalSeconds}; knows {counted after.Classes.Length "class" "classes"}"""

                yield!
                    if accuracy.Total = 0 then
                        line
                            "calibrated"
                            "no: no images were held out, so predictions have scores but no probabilities"
                    else
                        let images = counted accuracy.Total "held-out image" "held-out images"

                        line
                            "accuracy"
                            $"{percentOf accuracy.Correct accuracy.Total}%% of {images}, which it then learned too"

                yield! line "saved in" $"{folder}; the images are no longer needed"
            ]

        0)
