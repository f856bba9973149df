namespace LoRASub.Reports

open System
open LoRASub

/// Sections of a report, in order.
[<RequireQualifiedAccess>]
module internal Section =
    let accuracy = "Accuracy"
    let drift = "Drift"
    let subspace = "Retained subspace"
    let classes = "Classes"
    let training = "Training and time"
    let figures = [ accuracy; drift; subspace; classes; training ]

/// The figures of a report.
[<RequireQualifiedAccess>]
module Figures =

    let private axis title =
        {
            Title = title
            Log = false
            Whole = false
            FromZero = false
            Range = None
        }

    let private fromZero title = { axis title with FromZero = true }
    let private whole title = { axis title with Whole = true }

    let private percent (value: float) = Markup.fixedPoint 1 value + " %"
    let private points (value: float) = Markup.fixedPoint 1 value

    let private seeds n =
        if n = 1 then "one seed" else $"{n} seeds"

    /// A mean with its interval, in words.
    let private said (show: float -> string) (interval: Interval) =
        if interval.N < 2 then
            show interval.Mean
        else
            $"{show interval.Mean} (95%% interval {show interval.Low} to {show interval.High}, {interval.N} seeds)"

    let private severalSeeds (studies: Study[]) =
        studies |> Array.exists (fun study -> study.Runs.Length > 1)

    let private bandNote (studies: Study[]) =
        if severalSeeds studies then
            " Lines are means over seeds, bands their 95% intervals (Student's t)."
        else
            ""

    /// Intervals over a study's runs of what some of them have at x = 0, 1, …
    let private overRuns (study: Study) (values: RunData -> float[]) : Interval[] =
        let all = study.Runs |> Array.map values
        let longest = all |> Array.map _.Length |> Array.max

        [|
            for i in 0 .. longest - 1 ->
                Interval.ofValues
                    [
                        for one in all do
                            if i < one.Length then
                                one[i]
                    ]
        |]

    let private curve
        (studies: Study[])
        (index: int)
        (x: int -> float)
        hover
        (intervals: Interval[])
        : Curve =
        // what no run has, such as drift before the second task, is no point
        let known =
            [|
                for i in 0 .. intervals.Length - 1 do
                    if intervals[i].N > 0 then
                        i
            |]

        {
            Name = studies[index].Name
            Ink = Ink.Kind index
            X = known |> Array.map x
            Y = known |> Array.map (fun i -> intervals[i].Mean)
            Low = known |> Array.map (fun i -> intervals[i].Low)
            High = known |> Array.map (fun i -> intervals[i].High)
            Hover = known |> Array.map (fun i -> hover i intervals[i])
            DotAt = None
        }

    let private hasPoints (figure: Figure) =
        match figure.Marks with
        | Marks.Curves curves -> curves |> Array.exists (fun c -> c.X.Length > 0)
        | Marks.Bars bars -> bars.Categories.Length > 0 && bars.Series.Length > 0
        | Marks.Grid grid -> grid.Values |> Array.exists (Array.exists Double.IsFinite)
        | Marks.Arrows groups -> groups |> Array.exists (fun g -> g.Arrows.Length > 0)

    /// One curve for each study.
    let private compared (studies: Study[]) x hover (values: RunData -> float[]) =
        studies
        |> Array.mapi (fun i study -> overRuns study values |> curve studies i x hover)
        |> Array.filter (fun c -> c.X.Length > 0)
        |> Marks.Curves

    // Titles name the study where there are several; identifiers do always the same.

    let private ofStudy (studies: Study[]) (study: Study) (title: string) =
        if studies.Length = 1 then
            title
        else
            $"{title}: {study.Name}"

    let private idOf (studies: Study[]) (study: Study) (id: string) =
        if studies.Length = 1 then
            id
        else
            // names are unique; records that hold NaN do not equal themselves
            $"{id}-{1 + Array.findIndex (fun (other: Study) -> other.Name = study.Name) studies}"

    let private named prefix n = [| for i in 1..n -> $"{prefix}{i}" |]

    /// The tens below a share in percent: where a colour ramp up to 100 begins.
    let private below (lowest: float) =
        max 0.0 (min 90.0 (10.0 * floor (lowest / 10.0)))

    // Accuracy

    let private accuracyOverTasks (studies: Study[]) : Figure =
        let seen (run: RunData) =
            run.Matrix |> Array.map (Array.reduce (+) >> Metrics.accuracy >> (*) 100.0)

        let hover t interval =
            $"after task {t + 1}: {said percent interval}"

        {
            Id = "accuracy"
            Section = Section.accuracy
            Title = "Accuracy on all classes seen so far"
            Caption =
                "Share of the test images of all classes seen that are recognised after each task. Higher is better; a flat line forgets little."
                + bandNote studies
            X = whole "tasks learned"
            Y = axis "accuracy (%)"
            Marks = compared studies (fun t -> float (t + 1)) hover seen
        }

    let private accuracyMatrix (studies: Study[]) (study: Study) : Figure =
        let tasks = study.Runs |> Array.map _.Matrix.Length |> Array.max

        let cell t j =
            Interval.ofValues
                [
                    for run in study.Runs do
                        if t < run.Matrix.Length && j <= t then
                            let row = run.Matrix[t]
                            100.0 * Metrics.accuracy (row[j])
                ]

        let cells = Array.init tasks (fun t -> Array.init tasks (cell t))
        let map f = cells |> Array.map (Array.map f)
        let means = map _.Mean

        let low = means |> Seq.concat |> Seq.filter Double.IsFinite |> Seq.fold min 100.0

        let meaning =
            if study.Runs.Length = 1 then
                "Accuracy"
            else
                $"Mean accuracy over {seeds study.Runs.Length}"

        {
            Id = idOf studies study "accuracy-matrix"
            Section = Section.accuracy
            Title = ofStudy studies study "Accuracy of each task after each task"
            Caption =
                $"{meaning} in %% on the test images of each task (columns) after learning each task (rows), among all classes seen by then. Read a column downwards to see one task being forgotten."
            X = axis "test images of task"
            Y = axis "after task"
            Marks =
                Marks.Grid
                    {
                        Rows = named "" tasks
                        Columns = named "" tasks
                        Values = means
                        Texts = map (fun c -> if c.N = 0 then "" else points c.Mean)
                        Hover =
                            cells
                            |> Array.mapi (fun t row ->
                                row
                                |> Array.mapi (fun j c ->
                                    if c.N = 0 then
                                        ""
                                    else
                                        $"task {j + 1} after task {t + 1}: {said percent c}"))
                        Range = below low, 100.0
                        Unit = "accuracy (%)"
                        Breaks = [||]
                    }
        }

    /// Points of % lost on each task but the last since its best (Chaudhry et al. 2018).
    let private forgotten (run: RunData) : float[] =
        let rows = run.Matrix |> Array.map (Array.map Metrics.accuracy)
        let last = rows.Length - 1

        [|
            for j in 0 .. last - 1 ->
                let best = Seq.max (seq { for t in j .. last - 1 -> rows[t][j] })
                100.0 * (best - rows[last][j])
        |]

    let private forgetting (studies: Study[]) : Figure =
        let tasks =
            studies
            |> Seq.collect _.Runs
            |> Seq.map (fun run -> run.Matrix.Length - 1)
            |> Seq.max
            |> max 0

        let series index (study: Study) : BarSeries =
            let intervals = overRuns study forgotten

            let at f =
                Array.init tasks (fun j -> if j < intervals.Length then f intervals[j] else nan)

            {
                Name = study.Name
                Ink = Ink.Kind index
                Values = at _.Mean
                Low = at _.Low
                High = at _.High
                Hover =
                    Array.init tasks (fun j ->
                        if j < intervals.Length then
                            $"task {j + 1}: {said points intervals[j]} points"
                        else
                            "")
            }

        {
            Id = "forgetting"
            Section = Section.accuracy
            Title = "Forgetting of each task"
            Caption =
                "Points of % between the best accuracy that a task ever had and its accuracy after the last task (Chaudhry et al. 2018). Lower is better; below zero a task has gained."
                + (if severalSeeds studies then
                       " Whiskers: 95% intervals over seeds."
                   else
                       "")
            X = axis "task"
            Y = fromZero "forgetting (points of %)"
            Marks =
                Marks.Bars
                    {
                        Categories = named "" tasks
                        Series = studies |> Array.mapi series
                        Stacked = false
                    }
        }

    // Drift

    let private driftOf (f: DriftReport -> 'T[]) (run: RunData) =
        run.Drift |> Option.map f |> Option.defaultValue [||]

    let private meanOf (values: float seq) = (Interval.ofValues values).Mean

    /// The classes of earlier tasks: their prototypes are older than the weights.
    let private oldClasses (report: DriftReport) (task: int, classes: ClassDrift[]) =
        classes
        |> Array.filter (fun c ->
            match Map.tryFind c.Position report.Classes with
            | Some(_, learned) -> learned < task
            | None -> false)

    let private meanDrift (measure: ClassDrift -> float) (report: DriftReport) : float[] =
        report.AfterTask
        |> Array.map (fun after -> oldClasses report after |> Seq.map measure |> meanOf)

    let private blockDrift (measure: Movement -> float) (report: DriftReport) : float[] =
        match Array.tryLast report.AfterTask with
        | None -> [||]
        | Some last ->
            let classes = oldClasses report last
            let blocks = classes |> Seq.map _.Blocks.Length |> Seq.fold max 0

            [|
                for b in 0 .. blocks - 1 ->
                    classes
                    |> Seq.filter (fun c -> b < c.Blocks.Length)
                    |> Seq.map (fun c -> measure c.Blocks[b])
                    |> meanOf
            |]

    /// A way to measure movement: key, title, axis, how to read it.
    let private movements =
        [
            "relative",
            "relative to the class's spread",
            "drift / class spread",
            "Euclidean distance in units of the class's own spread: at 1 a class has moved as far as its images lie apart.",
            (fun m -> m.Relative)
            "euclidean",
            "Euclidean distance",
            "drift (feature units)",
            "Euclidean distance in feature units, which grow with the features themselves.",
            (fun m -> m.Euclidean)
            "cosine",
            "cosine distance",
            "drift (1 − cosine)",
            "Cosine distance: what matters to prediction, which compares directions alone.",
            (fun (m: Movement) -> m.Cosine)
        ]

    let private show (value: float) = Markup.significant 3 value

    let private drifts (studies: Study[]) : Figure list =
        [
            for key, title, unit, reading, measure in movements do
                {
                    Id = $"drift-{key}"
                    Section = Section.drift
                    Title = $"Drift of old classes, {title}"
                    Caption =
                        $"How far the true mean feature of old classes (from test images) is from their stored prototype after each task, averaged over old classes. {reading} Lower is better.{bandNote studies}"
                    X = whole "tasks learned"
                    Y = fromZero unit
                    Marks =
                        compared
                            studies
                            (fun t -> float (t + 1))
                            (fun t interval -> $"after task {t + 1}: {said show interval}")
                            (driftOf (meanDrift (_.Output >> measure)))
                }
        ]

    let private driftSinceLearned (studies: Study[]) : Figure =
        {
            Id = "drift-since-learned"
            Section = Section.drift
            Title = "Drift of old classes since they were learned"
            Caption =
                "How far the true mean feature of old classes has moved since the end of their own task, in units of class spread, averaged over old classes. It leaves out that a prototype, a mean of training images, is not exactly the mean of test images. Lower is better."
                + bandNote studies
            X = whole "tasks learned"
            Y = fromZero "drift / class spread"
            Marks =
                compared
                    studies
                    (fun t -> float (t + 1))
                    (fun t interval -> $"after task {t + 1}: {said show interval}")
                    (driftOf (meanDrift _.SinceLearned.Relative))
        }

    let private driftByBlock (studies: Study[]) : Figure =
        {
            Id = "drift-blocks"
            Section = Section.drift
            Title = "Drift of old classes in each block"
            Caption =
                "How far the true mean of old classes has moved since they were learned, seen after the last task, in units of class spread, after each block of the network: where in its depth the drift arises. Lower is better."
                + bandNote studies
            X = whole "block"
            Y = fromZero "drift / class spread"
            Marks =
                compared
                    studies
                    (fun b -> float (b + 1))
                    (fun b interval -> $"block {b + 1}: {said show interval}")
                    (driftOf (blockDrift _.Relative))
        }

    /// The first run that has what a figure of one run needs.
    let private first (study: Study) (choose: RunData -> 'T option) : (RunData * 'T) option =
        study.Runs
        |> Array.tryPick (fun run -> choose run |> Option.map (fun found -> run, found))

    let private ofRun (study: Study) (run: RunData) =
        if study.Runs.Length = 1 then "" else $" Seed {run.Seed}."

    let private driftPicture (studies: Study[]) (study: Study) : Figure option =
        first study (fun run -> run.Drift |> Option.bind (fun d -> d.Picture |> Option.map (fun p -> d, p)))
        |> Option.map (fun (run, (report, picture)) ->
            // the latest mean of each class
            let means =
                picture.Means
                |> Array.sortBy fst
                |> Array.map (fun (task, place) -> place.Position, (task, place))
                |> Map.ofArray

            let arrow (prototype: Place) =
                let name, task =
                    Map.tryFind prototype.Position report.Classes
                    |> Option.defaultValue ($"class {prototype.Position + 1}", 0)

                let mean = Map.tryFind prototype.Position means

                task,
                {
                    From = prototype.X, prototype.Y
                    To = mean |> Option.map (fun (_, m) -> m.X, m.Y)
                    Label = Markup.shorten 16 name
                    Hover =
                        match mean with
                        | Some(after, _) -> $"{name} (task {task + 1}), mean after task {after + 1}"
                        | None -> $"{name} (task {task + 1})"
                }

            let isPlaced (place: Place) =
                Double.IsFinite place.X && Double.IsFinite place.Y

            let groups =
                picture.Prototypes
                |> Array.filter isPlaced
                |> Array.map arrow
                |> Array.groupBy fst
                |> Array.sortBy fst

            let last = groups |> Array.map fst |> Array.fold max 1
            let struct (x, y) = picture.Explained
            let share value = Markup.fixedPoint 0 (100.0 * value)

            {
                Id = idOf studies study "drift-picture"
                Section = Section.drift
                Title = ofStudy studies study "Prototypes and where their classes went"
                Caption =
                    $"Dots: stored prototypes on the plane of their two largest principal components; arrows lead to the true class means after the last task; colours tell the tasks. Short arrows are better. The plane shows {share (x + y)}%% of the prototypes' variance.{ofRun study run}"
                X = axis $"first component ({share x}%% of variance)"
                Y = axis $"second component ({share y}%%)"
                Marks =
                    groups
                    |> Array.map (fun (task, arrows) ->
                        {
                            Name = $"task {task + 1}"
                            Ink =
                                if groups.Length <= 5 then
                                    Ink.Kind task
                                else
                                    Ink.Along(float task / float last)
                            Arrows = Array.map snd arrows
                        })
                    |> Marks.Arrows
            })

    // Subspaces

    let private byBlock
        studies
        study
        id
        title
        caption
        unit
        range
        (text: float -> string)
        (rows: (int * float[])[])
        =
        let blocks = rows |> Seq.map (snd >> Array.length) |> Seq.fold max 0

        let cells =
            [|
                for b in 0 .. blocks - 1 ->
                    rows |> Array.map (fun (_, row) -> if b < row.Length then row[b] else nan)
            |]

        {
            Id = idOf studies study id
            Section = Section.subspace
            Title = ofStudy studies study title
            Caption = caption
            X = axis "task"
            Y = axis "block"
            Marks =
                Marks.Grid
                    {
                        Rows = named "" blocks
                        Columns = rows |> Array.map (fun (task, _) -> string (task + 1))
                        Values = cells
                        Texts = cells |> Array.map (Array.map text)
                        Hover =
                            cells
                            |> Array.mapi (fun b ->
                                Array.mapi (fun i value ->
                                    if Double.IsFinite value then
                                        $"block {b + 1}, task {fst rows[i] + 1}: {text value}"
                                    else
                                        ""))
                        Range =
                            match range with
                            | Some ends -> ends
                            | None ->
                                0.0, cells |> Seq.concat |> Seq.filter Double.IsFinite |> Seq.fold max 1.0
                        Unit = unit
                        Breaks = [||]
                    }
        }

    let private retainedRank (studies: Study[]) (study: Study) : Figure option =
        let ranks (run: RunData) =
            run.RetainedRank
            |> Array.indexed
            |> Array.filter (fun (_, row) -> row.Length > 0)

        first study (fun run -> ranks run |> Some |> Option.filter (Array.isEmpty >> not))
        |> Option.map (fun (run, rows) ->
            byBlock
                studies
                study
                "retained-rank"
                "Retained rank"
                $"Directions that hold the required share of the new task's second moment under the subtracted model: updates of a block are confined to them. Few directions mean tight confinement; the first task is free.{ofRun study run}"
                "directions"
                None
                (Markup.fixedPoint 0)
                rows)

    let private energy (studies: Study[]) (study: Study) : Figure option =
        let inside (report: DriftReport) =
            report.Subspaces
            |> Array.filter (fun (_, blocks) -> blocks.Length > 0)
            |> Array.map (fun (task, blocks) ->
                task,
                blocks
                |> Array.map (fun s -> 100.0 * s.EnergyInside / (s.EnergyInside + s.EnergyOutside)))

        first study (_.Drift >> Option.map inside >> Option.filter (Array.isEmpty >> not))
        |> Option.map (fun (run, rows) ->
            let lowest =
                rows |> Seq.collect snd |> Seq.filter Double.IsFinite |> Seq.fold min 100.0

            byBlock
                studies
                study
                "energy-inside"
                "Energy of new data inside the retained subspace"
                $"Share of the second moment of each task's inputs that lies in the retained directions of a block, in %%. Updates of that block leave out what lies outside.{ofRun study run}"
                "energy inside (%)"
                (Some(below lowest, 100.0))
                points
                rows)

    let private spectra (studies: Study[]) (study: Study) : Figure option =
        let last (report: DriftReport) =
            report.Subspaces
            |> Array.filter (fun (_, blocks) -> blocks |> Array.exists (fun b -> b.Spectrum.Length > 0))
            |> Array.tryLast

        first study (_.Drift >> Option.bind last)
        |> Option.map (fun (run, (task, blocks)) ->
            let curve b (block: BlockSpectrum) : Curve =
                let top = block.Spectrum |> Array.filter Double.IsFinite |> Array.fold max 0.0

                // a logarithm has no zero
                let kept =
                    block.Spectrum
                    |> Array.indexed
                    |> Array.filter (fun (_, s) -> s > 0.0 && Double.IsFinite s)

                let y = kept |> Array.map (fun (_, s) -> s / top)

                {
                    Name = $"block {b + 1}"
                    Ink = Ink.Along(float b / float (max 1 (blocks.Length - 1)))
                    X = kept |> Array.map (fun (i, _) -> float (i + 1))
                    Y = y
                    Low = Array.map (fun _ -> nan) y
                    High = Array.map (fun _ -> nan) y
                    Hover =
                        kept
                        |> Array.mapi (fun n (i, _) ->
                            $"block {b + 1} (k = {block.Rank}), direction {i + 1}: {show y[n]}")
                    DotAt = Some(float block.Rank)
                }

            {
                Id = idOf studies study "spectra"
                Section = Section.subspace
                Title = ofStudy studies study $"Energy spectra of task {task + 1}"
                Caption =
                    $"Eigenvalues of each block's second moment relative to the largest, on a logarithmic axis, one line for each block; its dot is the last retained direction. A steep fall means that few directions carry the data.{ofRun study run}"
                X = whole "direction"
                Y =
                    { axis "eigenvalue / largest" with
                        Log = true
                    }
                Marks =
                    blocks
                    |> Array.mapi curve
                    |> Array.filter (fun c -> c.X.Length > 0)
                    |> Marks.Curves
            })

    let private overlap (studies: Study[]) (study: Study) : Figure option =
        let pairs (report: DriftReport) =
            Some report.Overlaps |> Option.filter (Array.isEmpty >> not)

        first study (_.Drift >> Option.bind pairs)
        |> Option.map (fun (run, pairs) ->
            let tasks end' =
                pairs |> Array.map end' |> Array.distinct |> Array.sort

            let earlier = tasks (fun p -> min p.First p.Second)
            let later = tasks (fun p -> max p.First p.Second)
            let name (task: int) = string (task + 1)

            let byPair =
                pairs
                |> Array.groupBy (fun p -> min p.First p.Second, max p.First p.Second)
                |> Map.ofArray

            let cell late early =
                match Map.tryFind (early, late) byPair with
                | Some found ->
                    meanOf (found |> Array.map _.MeanSquaredCosine),
                    meanOf (found |> Array.map _.SmallestAngle),
                    meanOf (found |> Array.map _.LargestAngle)
                | None -> nan, nan, nan

            let cells = later |> Array.map (fun late -> earlier |> Array.map (cell late))
            let value (mean, _, _) = mean
            let degrees = Markup.fixedPoint 0

            {
                Id = idOf studies study "overlap"
                Section = Section.subspace
                Title = ofStudy studies study "Overlap of the tasks' subspaces"
                Caption =
                    $"Mean squared cosine of the principal angles between two tasks' retained subspaces, averaged over blocks: 1 where one lies within the other, 0 where they are orthogonal. Tasks that share directions can disturb each other.{ofRun study run}"
                X = axis "earlier task"
                Y = axis "later task"
                Marks =
                    Marks.Grid
                        {
                            Rows = later |> Array.map name
                            Columns = earlier |> Array.map name
                            Values = cells |> Array.map (Array.map value)
                            Texts =
                                cells
                                |> Array.map (
                                    Array.map (fun c ->
                                        if Double.IsFinite(value c) then
                                            Markup.fixedPoint 2 (value c)
                                        else
                                            "")
                                )
                            Hover =
                                cells
                                |> Array.mapi (fun i ->
                                    Array.mapi (fun j (mean, smallest, largest) ->
                                        if Double.IsFinite mean then
                                            $"tasks {name later[i]} and {name earlier[j]}: {Markup.fixedPoint 3 mean}, angles {degrees smallest}° to {degrees largest}°"
                                        else
                                            ""))
                            Range = 0.0, 1.0
                            Unit = "mean squared cosine"
                            Breaks = [||]
                        }
            })

    // Classes

    let private sameClasses (reports: ClassReport[]) =
        let names (report: ClassReport) = report.Classes |> Array.map _.Name
        reports |> Array.forall (fun r -> names r = names reports[0])

    /// The classes of all runs together where they are the same, those of the first run otherwise.
    let private pooled (study: Study) : (ClassReport * string) option =
        match study.Runs |> Array.choose _.Classes with
        | [||] -> None
        | reports when reports.Length > 1 && sameClasses reports ->
            let add = Array.map2 (Array.map2 (+))

            let classes =
                reports
                |> Array.map _.Classes
                |> Array.reduce (
                    Array.map2 (fun a b ->
                        { a with
                            ClassResult.Score = a.Score + b.Score
                        })
                )

            let all =
                { reports[0] with
                    Classes = classes
                    Confusion = reports |> Array.map _.Confusion |> Array.reduce add
                }

            Some(all, $" Counts of {seeds reports.Length} together.")
        | reports ->
            let run = study.Runs |> Array.find (fun run -> run.Classes.IsSome)
            Some(reports[0], ofRun study run)

    /// Positions at which a new task begins.
    let private taskStarts (report: ClassReport) =
        [|
            for i in 1 .. report.Classes.Length - 1 do
                if report.Classes[i].Task <> report.Classes[i - 1].Task then
                    i
        |]

    let private confusion (studies: Study[]) (study: Study) : Figure option =
        pooled study
        |> Option.map (fun (report, note) ->
            let names = report.Classes |> Array.map _.Name

            // more lines than this would hide the cells
            let starts =
                taskStarts report
                |> Some
                |> Option.filter (fun s -> s.Length <= 25)
                |> Option.defaultValue [||]

            let lines = if starts.Length > 0 then "; lines separate tasks" else ""

            // a thousand long names in a row would be most of the page
            let short = names |> Array.map (Markup.shorten 32)

            let share total n =
                if total = 0 then nan else 100.0 * float n / float total

            let shares =
                report.Confusion
                |> Array.map (fun row -> row |> Array.map (share (Array.sum row)))

            {
                Id = idOf studies study "confusion"
                Section = Section.classes
                Title = ofStudy studies study "Confusion after the last task"
                Caption =
                    $"Share in %% of each true class's test images (rows) that were taken for each class (columns), in the order of learning{lines}. Right answers are on the diagonal; a dark column (bright in dark mode) away from it is a class that draws others in.{note}"
                X = axis "predicted class"
                Y = axis "true class"
                Marks =
                    Marks.Grid
                        {
                            Rows = names
                            Columns = names
                            Values = shares
                            Texts =
                                shares
                                |> Array.map (
                                    Array.map (fun s -> if s >= 0.5 then Markup.fixedPoint 0 s else "")
                                )
                            Hover =
                                report.Confusion
                                |> Array.mapi (fun i row ->
                                    let total = Array.sum row

                                    row
                                    |> Array.mapi (fun j n ->
                                        $"{short[i]} taken for {short[j]}: {n} of {total} ({percent (share total n)})"))
                            Range = 0.0, 100.0
                            Unit = "share of the true class (%)"
                            Breaks = starts
                        }
            })

    let private classAccuracy (studies: Study[]) (study: Study) : Figure option =
        pooled study
        |> Option.map (fun (report, note) ->
            let accuracy (c: ClassResult) =
                if c.Score.Total = 0 then
                    nan
                else
                    100.0 * Metrics.accuracy c.Score

            let classes = report.Classes |> Array.sortByDescending accuracy

            let series =
                {
                    Name = "accuracy"
                    Ink = Ink.Kind 0
                    Values = classes |> Array.map accuracy
                    Low = classes |> Array.map (fun _ -> nan)
                    High = classes |> Array.map (fun _ -> nan)
                    Hover =
                        classes
                        |> Array.map (fun c ->
                            $"{c.Name} (task {c.Task + 1}): {c.Score.Correct} of {c.Score.Total} ({percent (accuracy c)})")
                }

            {
                Id = idOf studies study "classes"
                Section = Section.classes
                Title = ofStudy studies study "Accuracy of each class after the last task"
                Caption =
                    $"Share of each class's test images that were recognised among all classes, best first. Higher is better.{note}"
                X = axis "class"
                Y =
                    { axis "accuracy (%)" with
                        Range = Some(0.0, 100.0)
                    }
                Marks =
                    Marks.Bars
                        {
                            Categories = classes |> Array.map _.Name
                            Series = [| series |]
                            Stacked = false
                        }
            })

    // Training and time

    let private losses (studies: Study[]) : Figure =
        // runs of one study have the same epochs, unless one was cut off
        let hovers =
            studies
            |> Array.map (fun study ->
                study.Runs
                |> Array.map _.Epochs
                |> Array.maxBy _.Length
                |> Array.map (fun e -> $"task {e.Task + 1}, epoch {e.Epoch + 1}"))

        let curves =
            studies
            |> Array.mapi (fun index study ->
                overRuns study (_.Epochs >> Array.map _.Loss)
                |> curve studies index (fun i -> float (i + 1)) (fun i interval ->
                    $"{hovers[index][i]}: {said show interval}"))

        {
            Id = "loss"
            Section = Section.training
            Title = "Training loss"
            Caption =
                "Mean loss of each epoch, all tasks one after the other; every jump is the start of a task."
                + bandNote studies
            X = whole "epochs of all tasks"
            Y = fromZero "loss"
            Marks = curves |> Array.filter (fun c -> c.X.Length > 0) |> Marks.Curves
        }

    let private phases (names: string[]) (categories: string[]) (seconds: Map<string, float>[]) : Bars =
        {
            Categories = categories
            Stacked = true
            Series =
                names
                |> Array.mapi (fun i name ->
                    let values = seconds |> Array.map (Map.tryFind name >> Option.defaultValue nan)

                    {
                        Name = name
                        Ink = Ink.Kind i
                        Values = values
                        Low = values |> Array.map (fun _ -> nan)
                        High = values |> Array.map (fun _ -> nan)
                        Hover = values |> Array.map (fun v -> $"{name}: {Markup.significant 3 v} s")
                    })
        }

    let private phaseNames (entries: (string * float)[] seq) =
        entries |> Seq.collect (Seq.map fst) |> Seq.distinct |> Array.ofSeq

    let private timings (studies: Study[]) : Figure option =
        let figure caption x bars =
            {
                Id = "seconds"
                Section = Section.training
                Title = "Where the time goes"
                Caption = caption
                X = axis x
                Y = fromZero "wall time (s)"
                Marks = Marks.Bars bars
            }

        match studies with
        | [| study |] ->
            first study (fun run ->
                run.Resources
                |> Option.map _.TaskSeconds
                |> Option.filter (Array.isEmpty >> not))
            |> Option.map (fun (run, tasks) ->
                phases (phaseNames tasks) (named "" tasks.Length) (tasks |> Array.map Map.ofArray)
                |> figure
                    $"Wall seconds of each phase in each task: observe the new data, project, train, average prototypes, predict. Prediction grows with the classes seen.{ofRun study run}"
                    "task")
        | _ ->
            // the mean over seeds of each phase
            let means (study: Study) =
                let runs =
                    study.Runs
                    |> Array.choose (_.Resources >> Option.map (_.PhaseSeconds >> Map.ofArray))

                let names = runs |> Seq.collect Map.keys |> Seq.distinct

                Map.ofSeq [ for name in names -> name, meanOf (runs |> Array.choose (Map.tryFind name)) ]

            let names =
                studies
                |> Seq.collect _.Runs
                |> Seq.choose (_.Resources >> Option.map _.PhaseSeconds)
                |> phaseNames

            if names.Length = 0 then
                None
            else
                phases names (studies |> Array.map _.Name) (studies |> Array.map means)
                |> figure
                    "Wall seconds of each phase, all tasks together (means over seeds). Only runs on the same, otherwise idle machine compare."
                    "run"
                |> Some

    /// All figures that the studies' files have numbers for, in the order of the report's sections.
    let all (studies: Study[]) : Figure[] =
        let each (build: Study[] -> Study -> Figure option) =
            studies |> Array.choose (build studies) |> List.ofArray

        [
            accuracyOverTasks studies
            forgetting studies
            yield! each (fun studies study -> Some(accuracyMatrix studies study))
            yield! drifts studies
            driftSinceLearned studies
            driftByBlock studies
            yield! each driftPicture
            yield! each retainedRank
            yield! each energy
            yield! each overlap
            yield! each spectra
            yield! each confusion
            yield! each classAccuracy
            losses studies
            yield! Option.toList (timings studies)
        ]
        |> List.filter hasPoints
        |> Array.ofList
