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
                $"{Csv.field file},{rank + 1},{Csv.field guess.ClassName},{number guess.Score}"
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
let predict (shell: Shell) (request: Request) : int =
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
