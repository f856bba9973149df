module LoRASub.Tests.FiguresTests

open System
open LoRASub.Files
open LoRASub.Measure
open LoRASub.Report
open Expecto
open LoRASub.Tests.SampleRuns

/// The groups of one folder per sample.
let groupsOf (samples: (string * Sample) list) (test: RunGroup[] -> 'T) : 'T =
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

/// The groups of each shape, made once for all tests.
let shapeGroups: Lazy<(string * RunGroup[]) list> =
    lazy [ for name, sample in shapes -> name, groupsOf [ name, sample ] id ]

let private find id (figures: Figure[]) =
    figures |> Array.find (fun figure -> figure.Id = id)

let private curves (figure: Figure) =
    match figure.Marks with
    | Marks.Curves curves -> curves
    | other -> failtest $"{other}"

let private heatmap (figure: Figure) =
    match figure.Marks with
    | Marks.Heatmap grid -> grid
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
                groupsOf [ "run", small ] (fun groups ->
                    Expect.equal
                        (Figures.all groups |> Array.map _.Id)
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

                groupsOf [ "a", small; "b", small ] (fun groups ->
                    let ids = Figures.all groups |> Array.map _.Id
                    Expect.equal (Array.distinct ids) ids "distinct"
                    Expect.contains ids "confusion-2" "one for each run"))

            testCase "accuracy and forgetting are those of the measures" (fun () ->
                groupsOf [ "run", { small with Tasks = 5; Learned = 5 } ] (fun groups ->
                    let figures = Figures.all groups
                    let measures = Metrics.measure groups[0].Runs[0].Matrix
                    let accuracy = (curves (find "accuracy" figures))[0]
                    Check.close "last" [ 100.0 * measures["last"] ] [ Array.last accuracy.Y ]
                    Check.close "average" [ 100.0 * measures["average"] ] [ Array.average accuracy.Y ]
                    let forgetting = (bars (find "forgetting" figures)).Series[0]

                    Check.close "mean" [ 100.0 * measures["forgetting"] ] [ Array.average forgetting.Y ]

                    let matrix = heatmap (find "accuracy-matrix" figures)

                    Check.close
                        "row"
                        [ 100.0 * measures["lastByTask"] ]
                        [ Array.average (Array.last matrix.Values) ]

                    let firstRow = matrix.Values[0]
                    Expect.isTrue (Double.IsNaN(firstRow[1])) "nothing above the diagonal"))

            testCase "drift is the mean over classes of earlier tasks" (fun () ->
                groupsOf [ "run", small ] (fun groups ->
                    let drift = groups[0].Runs[0].Drift.Value
                    let drawn = (curves (find "drift-relative" (Figures.all groups)))[0]
                    Expect.equal drawn.X [| 2.0; 3.0 |] "none before the second task"

                    for t in 1..2 do
                        let old = drift.AfterTask[t].Classes |> Array.take (4 * t)
                        let mean = old |> Array.averageBy _.Output.Relative
                        Check.close $"after task {t}" [ mean ] [ drawn.Y[t - 1] ]))

            testCase "several seeds are averaged, with an interval" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 1L; 2L; 3L ] small
                    let groups = RunData.loadAll [| folder |]
                    let drawn = (curves (find "accuracy" (Figures.all groups)))[0]
                    let runs = groups[0].Runs

                    let mean = runs |> Array.averageBy (fun run -> (Metrics.measure run.Matrix)["last"])

                    Check.close "mean" [ 100.0 * mean ] [ Array.last drawn.Y ]
                    Expect.isLessThan (Array.last drawn.Low) (Array.last drawn.Y) "interval"
                    let confusion = heatmap (find "confusion" (Figures.all groups))
                    let hover = confusion.Hover[0]
                    Expect.stringContains (hover[0]) "of 300" "counts of all seeds"))

            testCase "every shape gives figures with something in them" (fun () ->
                for name, groups in shapeGroups.Value do
                    for figure in Figures.all groups do
                        match figure.Marks with
                        | Marks.Curves curves ->
                            for c in curves do
                                Expect.isNonEmpty c.X $"{name}, {figure.Id}"
                                Expect.all c.Y Double.IsFinite $"{name}, {figure.Id}"

                                let lengths = [ c.Y.Length; c.Low.Length; c.High.Length; c.Hover.Length ]

                                Expect.all lengths ((=) c.X.Length) $"{name}, {figure.Id}: lengths"
                        | Marks.Heatmap grid ->
                            Expect.equal grid.Values.Length grid.Rows.Length $"{name}, {figure.Id}: rows"

                            let low, high = grid.Range
                            Expect.isLessThan low high $"{name}, {figure.Id}: range"
                        | Marks.Bars bars -> Expect.isNonEmpty bars.Categories $"{name}, {figure.Id}"
                        | Marks.Arrows groups -> Expect.isNonEmpty groups $"{name}, {figure.Id}")

            testCase "what is compared has one colour scale" (fun () ->
                groupsOf [ "a", { small with Decay = 0.0 }; "b", { small with Decay = 0.2 } ] (fun groups ->
                    let figures = Figures.all groups

                    for id in [ "accuracy-matrix"; "retained-rank"; "energy-inside" ] do
                        let range n =
                            (heatmap (find $"{id}-{n}" figures)).Range

                        Expect.equal (range 1) (range 2) id

                    let lowest =
                        figures
                        |> Array.filter _.Id.StartsWith("accuracy-matrix")
                        |> Seq.collect (heatmap >> _.Values >> Seq.concat)
                        |> Seq.filter Double.IsFinite
                        |> Seq.min

                    Expect.isLessThanOrEqual
                        (fst (heatmap (find "accuracy-matrix-1" figures)).Range)
                        lowest
                        "holds all"))

            testCase "energy is not shown where the required share decides every cell" (fun () ->
                Probe.inFolder (fun folder ->
                    write folder small
                    let path = IO.Path.Combine(folder, "drift.json")
                    let file = Json.load<DriftFile> "drift" path

                    let level (task: DriftFile.TaskSubspaces) =
                        { task with
                            Blocks =
                                task.Blocks
                                |> Array.mapi (fun b block ->
                                    { block with
                                        EnergyInside = 0.99 + 0.0005 * float b
                                        EnergyOutside = 0.01 - 0.0005 * float b
                                    })
                        }

                    let ids () =
                        Figures.all (RunData.loadAll [| folder |]) |> Array.map _.Id

                    Expect.contains (ids ()) "energy-inside" "where it differs"

                    Json.save
                        path
                        { file with
                            Subspaces = file.Subspaces |> Array.map level
                        }

                    Expect.isFalse (Array.contains "energy-inside" (ids ())) "constant by construction"))

            testCase "classes of compared runs are in one order, one bar each" (fun () ->
                groupsOf [ "a", small; "b", { small with Decay = 0.2 } ] (fun groups ->
                    let figure = find "classes" (Figures.all groups)
                    let drawn = bars figure
                    Expect.equal (drawn.Series |> Array.map _.Name) [| "a"; "b" |] "series"
                    let first = drawn.Series[0].Y
                    Expect.equal first (Array.sortDescending first) "best first"

                    for series, group in Array.zip drawn.Series groups do
                        for name, value in Array.zip drawn.Categories series.Y do
                            let one =
                                group.Runs[0].Classes.Value.Classes |> Array.find (fun c -> c.Name = name)

                            Check.close name [ 100.0 * float one.Correct / float one.Total ] [ value ])

                groupsOf [ "a", small; "b", { small with ClassesPerTask = 2 } ] (fun groups ->
                    let ids = Figures.all groups |> Array.map _.Id

                    Expect.containsAll
                        ids
                        [ "classes-1"; "classes-2" ]
                        "other classes have their own figures"))

            testCase "the loss shows where tasks begin" (fun () ->
                groupsOf [ "run", small ] (fun groups ->
                    Expect.equal
                        (find "loss" (Figures.all groups)).Borders
                        [| 4.5; 8.5 |]
                        "after 4 epochs each")

                groupsOf [ "a", small; "b", { small with Epochs = 2 } ] (fun groups ->
                    Expect.isEmpty
                        (find "loss" (Figures.all groups)).Borders
                        "other epochs: no common border"))

            testCase "intervals do not stretch an axis over impossible values" (fun () ->
                Probe.inFolder (fun folder ->
                    writeSeeds folder [ 1L; 2L ] small
                    let figures = Figures.all (RunData.loadAll [| folder |])
                    let low, high = (find "accuracy" figures).Y.Range.Value
                    Expect.isTrue (low >= 0.0 && high <= 101.0) "percent"
                    Expect.equal (fst (find "drift-relative" figures).Y.Range.Value) 0.0 "a distance"))

            testCase "text in a palette's colours, and digits on a ramp, can be read" (fun () ->
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
                        "monotone"

                    for value in 0.0..0.05..1.0 do
                        let fill = Palette.along ramp value

                        let ratio =
                            contrast (Palette.luminance fill) (Palette.luminance (Palette.textOn fill))

                        Expect.isGreaterThan ratio 4.5 $"a digit on {fill}")
        ]
