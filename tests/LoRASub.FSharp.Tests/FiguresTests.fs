module LoRASub.Tests.FiguresTests

open System
open Expecto
open LoRASub
open LoRASub.Reports
open LoRASub.Tests.SampleRuns

/// The studies of one folder per sample.
let studiesOf (samples: (string * Sample) list) (test: Study[] -> 'T) : 'T =
    Probe.inFolder (fun folder ->
        let folders = samples |> List.map (fun (name, _) -> IO.Path.Combine(folder, name))
        List.iter2 (fun folder (_, sample) -> write folder sample) folders samples
        RunData.loadAll (Array.ofList folders) |> test)

/// The shapes that reports must bear: few and many tasks and classes, files that are not there.
let shapes: (string * Sample) list =
    [
        "one task", { small with Tasks = 1; Learned = 1 }
        "two tasks", { small with Tasks = 2; Learned = 2 }
        "one class a task", { small with ClassesPerTask = 1 }
        "many tasks",
        { small with
            Tasks = 100
            Learned = 100
            ClassesPerTask = 1
            Blocks = 1
            Epochs = 2
            Decay = 0.002
        }
        "many classes",
        { small with
            Tasks = 2
            Learned = 2
            ClassesPerTask = 100
            Blocks = 1
        }
        "cut off", { small with Tasks = 9; Learned = 2 }
        "nothing done yet", { small with Learned = 0 }
        "the summary alone",
        { small with
            Without =
                [
                    "settings.json"
                    "sources.json"
                    "resources.json"
                    "metrics.jsonl"
                    "classes.json"
                    "drift.json"
                ]
        }
    ]

/// The studies of each shape, made once for all tests.
let shapeStudies: Lazy<(string * Study[]) list> =
    lazy [ for name, sample in shapes -> name, studiesOf [ name, sample ] id ]

let private find id (figures: Figure[]) =
    figures |> Array.find (fun figure -> figure.Id = id)

let private curves (figure: Figure) =
    match figure.Marks with
    | Marks.Curves curves -> curves
    | other -> failtest $"{other}"

let private grid (figure: Figure) =
    match figure.Marks with
    | Marks.Grid grid -> grid
    | other -> failtest $"{other}"

let private bars (figure: Figure) =
    match figure.Marks with
    | Marks.Bars bars -> bars
    | other -> failtest $"{other}"

[<Tests>]
let tests =
    testList
        "Figures"
        [
            testCase "a full run has every figure, each with a name of its own" (fun () ->
                studiesOf [ "run", small ] (fun studies ->
                    Expect.equal
                        (Figures.all studies |> Array.map _.Id)
                        [|
                            "accuracy"
                            "forgetting"
                            "accuracy-matrix"
                            "drift-relative"
                            "drift-euclidean"
                            "drift-cosine"
                            "drift-since-learned"
                            "drift-blocks"
                            "drift-picture"
                            "retained-rank"
                            "energy-inside"
                            "overlap"
                            "spectra"
                            "confusion"
                            "classes"
                            "loss"
                            "seconds"
                        |]
                        "figures")

                studiesOf [ "a", small; "b", small ] (fun studies ->
                    let ids = Figures.all studies |> Array.map _.Id
                    Expect.equal (Array.distinct ids) ids "distinct"
                    Expect.contains ids "confusion-2" "one for each run"))

            testCase "accuracy and forgetting are those of the measures" (fun () ->
                studiesOf [ "run", { small with Tasks = 5; Learned = 5 } ] (fun studies ->
                    let figures = Figures.all studies
                    let measures = Metrics.measure studies[0].Runs[0].Matrix
                    let accuracy = (curves (find "accuracy" figures))[0]
                    Check.close "last" [ 100.0 * measures.Last ] [ Array.last accuracy.Y ]
                    Check.close "average" [ 100.0 * measures.Average ] [ Array.average accuracy.Y ]
                    let forgetting = (bars (find "forgetting" figures)).Series[0]

                    Check.close
                        "mean"
                        [ 100.0 * measures.Forgetting.Value ]
                        [ Array.average forgetting.Values ]

                    let matrix = grid (find "accuracy-matrix" figures)

                    Check.close
                        "row"
                        [ 100.0 * measures.LastByTask ]
                        [ Array.average (Array.last matrix.Values) ]

                    let firstRow = matrix.Values[0]
                    Expect.isTrue (Double.IsNaN(firstRow[1])) "nothing above the diagonal"))

            testCase "drift is the mean over classes of earlier tasks" (fun () ->
                studiesOf [ "run", small ] (fun studies ->
                    let drift = studies[0].Runs[0].Drift.Value
                    let drawn = (curves (find "drift-relative" (Figures.all studies)))[0]
                    Expect.equal drawn.X [| 2.0; 3.0 |] "none before the second task"

                    for t in 1..2 do
                        let old = snd drift.AfterTask[t] |> Array.take (4 * t)
                        let mean = old |> Array.averageBy _.Output.Relative
                        Check.close $"after task {t}" [ mean ] [ drawn.Y[t - 1] ]))

            testCase "several seeds are averaged, with an interval" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 1L; 2L; 3L ] small
                    let studies = RunData.loadAll [| folder |]
                    let drawn = (curves (find "accuracy" (Figures.all studies)))[0]
                    let runs = studies[0].Runs

                    let mean = runs |> Array.averageBy (fun run -> (Metrics.measure run.Matrix).Last)

                    Check.close "mean" [ 100.0 * mean ] [ Array.last drawn.Y ]
                    Expect.isLessThan (Array.last drawn.Low) (Array.last drawn.Y) "interval"
                    let confusion = grid (find "confusion" (Figures.all studies))
                    let hover = confusion.Hover[0]
                    Expect.stringContains (hover[0]) "of 300" "counts of all seeds"))

            testCase "every shape gives figures with something in them" (fun () ->
                for name, studies in shapeStudies.Value do
                    for figure in Figures.all studies do
                        match figure.Marks with
                        | Marks.Curves curves ->
                            for c in curves do
                                Expect.isNonEmpty c.X $"{name}, {figure.Id}"
                                Expect.all c.Y Double.IsFinite $"{name}, {figure.Id}"

                                let lengths = [ c.Y.Length; c.Low.Length; c.High.Length; c.Hover.Length ]

                                Expect.all lengths ((=) c.X.Length) $"{name}, {figure.Id}: lengths"
                        | Marks.Grid grid ->
                            Expect.equal grid.Values.Length grid.Rows.Length $"{name}, {figure.Id}: rows"

                            let low, high = grid.Range
                            Expect.isLessThan low high $"{name}, {figure.Id}: range"
                        | Marks.Bars bars -> Expect.isNonEmpty bars.Categories $"{name}, {figure.Id}"
                        | Marks.Arrows groups -> Expect.isNonEmpty groups $"{name}, {figure.Id}")

            testCase "text in a palette's colours can be read" (fun () ->
                let contrast a b =
                    let light, dark = max a b, min a b
                    (light + 0.05) / (dark + 0.05)

                for kinds, paper in [ Palette.light, "#ffffff"; Palette.dark, "#12161b" ] do
                    for colour in kinds do
                        let ratio = contrast (Palette.luminance colour) (Palette.luminance paper)
                        Expect.isGreaterThan ratio 3.0 $"{colour} on {paper}"

                for ramp in [ Palette.lightRamp; Palette.darkRamp ] do
                    let steps = ramp |> Array.map Palette.luminance |> Array.pairwise
                    let isFalling (a, b) = a > b

                    Expect.isTrue
                        (Array.forall isFalling steps || Array.forall (isFalling >> not) steps)
                        "monotone")
        ]
