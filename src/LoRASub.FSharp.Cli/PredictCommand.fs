/// `lorasub predict` and `lorasub evaluate LEARNER IMAGES`.
module LoRASub.Cli.PredictCommand

open System
open System.IO
open System.Text.Json
open System.Threading.Tasks
open LoRASub.Core
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Run
open LoRASub.Fluent
open LoRASub.Cli.LearnerFolder

/// The form of `predict`'s output.
[<RequireQualifiedAccess>]
type Form =
    | Table
    | Csv
    | Json

/// What `predict` takes.
type Request =
    {
        Folder: string
        /// Files, folders, or `-` for paths on standard input.
        Images: string list
        Settings: (string * string) list
        Top: int
        /// The share of images of known classes that may be called unknown, where it was given.
        FalseAlarms: float option
        Form: Form
        LibTorch: string option
    }

/// What `evaluate` takes for a learner.
type Test =
    {
        Learner: string
        /// A folder with a folder of images for each class.
        Labelled: string
        Changes: (string * string) list
        /// The share of images of known classes that may be called unknown.
        Rate: float
        LibTorch: string option
    }

// `report` receives what is wrong with a folder.
let private filesOf (report: string -> unit) (given: string) : string seq =
    if given = "-" then
        Seq.initInfinite (fun _ -> Console.In.ReadLine())
        |> Seq.takeWhile (isNull >> not)
        // find -print0
        |> Seq.collect _.Split('\000')
        |> Seq.filter (String.IsNullOrWhiteSpace >> not)
    elif Directory.Exists(absolute given) then
        let place = ImageListing.place given
        let struct (files, findings, _) = ImageListing.images place place
        ImageListing.problems findings |> Array.iter report
        files
    else
        [ given ]

let private number = Layout.atMost 4

let private shown (form: Form) (classes: ClassInfo[]) (file: string) (answer: Answer) : string list =
    let name (guess: BestClass) = classes[guess.Row].Name

    match form with
    | Form.Table ->
        let word (guess: BestClass) =
            match guess.Probability with
            | Some p -> $"{name guess} {percent p}%%"
            | None -> $"{name guess} {number guess.Score}"

        let words = answer.Best |> Array.map word |> String.concat ", "

        [
            if answer.IsKnown then
                $"{file}: {words}"
            else
                $"{file}: unknown ({words})"
        ]
    | Form.Csv ->
        [
            for rank, guess in Array.indexed answer.Best do
                let probability = guess.Probability |> Option.map number |> Option.defaultValue ""
                let known = if answer.IsKnown then "yes" else "no"

                $"{Csv.field file},{rank + 1},{Csv.field (name guess)},{number guess.Score},{probability},{known}"
        ]
    | Form.Json ->
        [
            JsonSerializer.Serialize
                {|
                    file = file
                    known = answer.IsKnown
                    classes =
                        answer.Best
                        |> Array.map (fun guess ->
                            {|
                                name = name guess
                                score = guess.Score
                                probability = Option.toNullable guess.Probability
                            |})
                |}
        ]

// Why no image is called unknown.
let private noThreshold (falseAlarms: float) (kept: KeptLearner) =
    let held = kept.HeldOut |> Array.sumBy (fun one -> int64 one.Images)
    let needed = int64 (ceil (1.0 / falseAlarms)) - 1L

    let share = percent falseAlarms

    let reason =
        if held < needed then
            $"at {share}%% false alarms that needs {needed} held-out images, and the learner had {held}"
        elif falseAlarms < 0.01 then
            $"{share}%% false alarms is less than a learner can state; ask for 1%% or more"
        else
            $"at {share}%% false alarms that needs more held-out images of the newest classes"

    $"no image is called unknown: {reason}"

/// Prints the best classes of each image. Files that cannot be read are reported and skipped; then the exit code is 1.
let predict (shell: Shell) (request: Request) : int =
    let kept =
        openSaved shell request.LibTorch request.Settings (absolute request.Folder)

    use _ = Scope.own KeptLearner.leaves kept
    let model = Learner.deploy kept.Learner kept.State
    use _ = Scope.own Model.leaves model
    let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone
    let size = batching.Format.Size
    // once, as an image is read: a batch of large pictures may not fit in memory
    let shrink = Augment.centred batching.Cropping size

    let batching =
        { batching with
            BatchOptions.Cropping.TestResize = None
        }

    let calibration =
        KeptLearner.calibration (defaultArg request.FalseAlarms Calibration.usualFalseAlarms) kept

    match request.FalseAlarms with
    | Some rate when rate > 0.0 && calibration.Threshold.IsNone ->
        Shell.complain shell.Error $"note: {noThreshold rate kept}"
    | _ -> ()

    if request.Form = Form.Csv then
        Shell.say shell [ "file,rank,class,score,probability,known" ]

    let skipped = ref 0

    let skip (why: string) =
        skipped.Value <- skipped.Value + 1
        Shell.complain shell.Error $"lorasub: {why}"

    let mutable found = 0

    for files in
        request.Images
        |> Seq.collect (filesOf skip)
        |> Seq.chunkBySize batching.BatchSize do
        found <- found + files.Length
        let pictures = Array.zeroCreate<Result<Picture, string>> files.Length

        Parallel.For(0, files.Length, fun i -> pictures[i] <- ImageFile.tryRead files[i] |> Result.map shrink)
        |> ignore

        let read =
            [|
                for file, picture in Array.zip files pictures do
                    match picture with
                    | Ok picture -> file, picture
                    | Error reason -> skip $"{file} is skipped: {reason}"
            |]

        let set =
            {
                Source = "the images"
                Labels = Array.zeroCreate read.Length
                Read = fun i -> snd read[i]
            }

        let answers =
            Array.init read.Length id
            |> ImageTask.best request.Top kept.Learner batching model calibration set

        Shell.say
            shell
            [
                for (file, _), answer in Array.zip read answers do
                    yield! shown request.Form kept.Classes file answer
            ]

    if found = 0 && skipped.Value = 0 then
        Errors.reject (String.concat ", " request.Images) "must hold an image" "none" ""

    min 1 skipped.Value

// The lines of a table of accuracies by class.
let private table (result: EvaluationResult) =
    let width =
        result.Classes |> Seq.map _.ClassName.Length |> Seq.max |> max 5 |> min 30

    let line (name: string) (images: int) (correct: int) (mistake: string) =
        $"{(Display.fit width name).PadRight width}  {images, 6}  {percentOf correct images, 8}  {Display.fit 28 mistake}"
            .TrimEnd()

    [
        $"""{"class".PadRight width}  {"images", 6}  {"accuracy", 8}  most often taken for"""

        for one in result.Classes do
            let mistake =
                result.Confusions
                |> Seq.tryFind (fun mistake -> mistake.ClassName = one.ClassName)
                |> Option.map (fun most -> $"{most.PredictedName} ({most.Images})")

            line one.ClassName one.Images one.Correct (defaultArg mistake "")

        line "all" result.Images result.Correct ""
    ]

let private sentence (text: string) : string list = Layout.wrap Layout.Columns text

/// Prints the accuracy of a learner on a folder with a folder of images for each class, how far its probabilities are to be
/// trusted, and how it handles unknown classes.
let evaluate (shell: Shell) (test: Test) : int =
    let found = labelled shell test.Changes test.Labelled
    let labels = Set.ofArray found.Images.Labels
    // without classes whose images are all broken
    let found =
        found
        |> ofClasses (fun name -> labels.Contains(Array.IndexOf(found.Names, name)))

    let kept = openSaved shell test.LibTorch test.Changes (absolute test.Learner)

    use _ = Scope.own KeptLearner.leaves kept
    let known = kept.Classes |> Array.map _.Name

    if not (found.Names |> Array.exists (fun name -> Array.contains name known)) then
        Errors.reject test.Labelled "must hold a class that the learner knows" "none" "see lorasub inspect"

    let result =
        Display.working (Shell.canvas shell) (fun show ->
            show "predicting"
            Assessment.ofImages test.Rate found.Names found.Images kept)

    let strangers = found.Names |> Array.except known

    Shell.say
        shell
        [
            yield!
                EvaluationResult.ofRows
                    known
                    [| for struct (row, _) in result.Answers -> row |]
                    [| for struct (_, best) in result.Answers -> best |]
                |> table
            ""
            match result.CalibrationError with
            | Some error -> $"probabilities are off by {percent error} points on average"
            | None -> "no probabilities: no images were held out during learning"

            match result.FalseAlarms with
            | Some count ->
                let share = percentOf count result.Answers.Length

                yield!
                    sentence
                        $"called unknown: {share}%% of the images of known classes (stated: at most {percent test.Rate}%%)"
            | None when test.Rate > 0.0 -> yield! sentence (noThreshold test.Rate kept)
            | None -> ()

            if strangers.Length > 0 then
                let names = strangers |> Array.truncate 5 |> String.concat ", "
                let dots = if strangers.Length > 5 then ", ..." else ""

                let detected =
                    match result.Detected with
                    | Some count -> $"{percentOf count result.Strangers}%% called unknown, "
                    | None -> ""

                yield!
                    sentence
                        $"""{counted result.Strangers "image" "images"} of {counted strangers.Length "class" "classes"} that it does not know ({names}{dots}): {detected}AUROC {Layout.fixed' 3 result.Auroc.Value}"""
        ]

    0
