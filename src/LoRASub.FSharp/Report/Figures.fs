namespace LoRASub.Report

open System
open LoRASub.Subspace
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run

/// Sections of a report.
[<RequireQualifiedAccess>]
module internal Section =
    let accuracy = "Accuracy"
    let drift = "Drift"
    let subspace = "Retained subspace"
    let classes = "Classes"
    let training = "Training and time"

/// The figures of a report.
[<RequireQualifiedAccess>]
module Figures =

    // ------------------------------------------------------------------------------------------ parts of figures

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

    let private percent (value: float) = Format.fixedPoint 1 value + " %"
    let private points (value: float) = Format.fixedPoint 1 value
    let private short (value: float) = Format.significant 3 value

    /// A mean with its interval, for a tooltip.
    let private described (show: float -> string) (interval: Interval) =
        if interval.HasEnds then
            $"{show interval.Mean} (95%% interval {show interval.Low} to {show interval.High}, {interval.N} seeds)"
        else
            show interval.Mean

    let private severalSeeds (groups: RunGroup[]) =
        groups |> Array.exists (fun group -> group.Runs.Length > 1)

    let private bands (groups: RunGroup[]) =
        if severalSeeds groups then
            " Lines are means over seeds, bands their 95% intervals (Student's t)."
        else
            ""

    let private whiskers (groups: RunGroup[]) =
        if severalSeeds groups then
            " Whiskers: 95% intervals over seeds (Student's t)."
        else
            ""

    // Figures of one group have its name in the title and its number in the identifier where there are several groups.

    let private titleOf (groups: RunGroup[]) (group: RunGroup) (title: string) =
        if groups.Length = 1 then
            title
        else
            $"{title}: {group.Name}"

    let private idOf (groups: RunGroup[]) (group: RunGroup) (id: string) =
        if groups.Length = 1 then
            id
        else
            // by name: records that hold NaN do not equal themselves
            $"{id}-{1 + Array.findIndex (fun (other: RunGroup) -> other.Name = group.Name) groups}"

    let private numbered n = [| for i in 1..n -> string i |]

    /// Intervals over a group's runs of what some of them have at 0, 1, …
    let private overRuns (group: RunGroup) (values: RunData -> float[]) : Interval[] =
        let all = group.Runs |> Array.map values
        let longest = all |> Array.map _.Length |> Array.max
        Array.init longest (fun i -> all |> Seq.choose (Array.tryItem i) |> Interval.ofValues)

    let private noEnds (values: 'T[]) = values |> Array.map (fun _ -> nan)

    /// One curve for each group, at x = 1, 2, …; `hover` describes the point at an index.
    let private compared
        (groups: RunGroup[])
        (hover: int -> Interval -> string)
        (values: RunData -> float[])
        =
        groups
        |> Array.mapi (fun number group ->
            // what no run has, such as drift before the second task, is not a point
            let known =
                overRuns group values
                |> Array.indexed
                |> Array.filter (fun (_, interval) -> interval.N > 0)

            let pick f = known |> Array.map (snd >> f)

            {
                Name = group.Name
                Ink = Ink.Kind number
                X = known |> Array.map (fun (i, _) -> float (i + 1))
                Y = pick _.Mean
                Low = pick _.Low
                High = pick _.High
                Hover = known |> Array.map (fun (i, interval) -> hover i interval)
                DotAt = None
            })
        |> Array.filter (fun curve -> curve.X.Length > 0)
        |> Marks.Curves

    let private afterTask show t interval =
        $"after task {t + 1}: {described show interval}"

    let private mapCells f (cells: 'T[][]) = cells |> Array.map (Array.map f)

    let private finite (cells: float[][]) =
        cells |> Seq.concat |> Seq.filter Double.IsFinite

    /// A heat map of these values, which `text` and `hover` describe; an undefined value has neither.
    let private heatmap rows columns range unit text hover (values: float[][]) =
        let cells describe =
            values
            |> Array.mapi (fun i row ->
                row
                |> Array.mapi (fun j value -> if Double.IsFinite value then describe i j value else ""))

        Marks.Heatmap
            {
                Rows = rows
                Columns = columns
                Values = values
                Texts = cells (fun _ _ value -> text value)
                Hover = cells hover
                Range = range
                Unit = unit
            }

    /// Ends of a ramp up to 100 %, the same for all matrices that are compared: it begins at the tens below the lowest.
    let private upToHundred (matrices: float[][][]) =
        let lowest = matrices |> Seq.collect finite |> Seq.fold min 100.0
        max 0.0 (min 90.0 (10.0 * floor (lowest / 10.0))), 100.0

    /// The first run that has what a figure of one run needs.
    let private first (group: RunGroup) (choose: RunData -> 'T option) : (RunData * 'T) option =
        group.Runs
        |> Array.tryPick (fun run -> choose run |> Option.map (fun found -> run, found))

    let private nonEmpty (items: 'T[]) =
        if items.Length = 0 then None else Some items

    let private ofSeed (group: RunGroup) (run: RunData) =
        if group.Runs.Length = 1 then "" else $" Seed {run.Seed}."

    /// Positions at which another task begins.
    let private changes (tasks: int[]) =
        [| 1 .. tasks.Length - 1 |] |> Array.filter (fun i -> tasks[i] <> tasks[i - 1])

    // ------------------------------------------------------------------------------------------ accuracy

    /// Ends of an axis for values that cannot lie outside of `lowest` and `highest`; the interval of two seeds often
    /// does, by far.
    let private within (lowest: float) (highest: float) (marks: Marks) =
        match marks with
        | Marks.Curves curves when curves.Length > 0 ->
            let ends =
                curves
                |> Seq.collect (fun c -> Seq.concat [ c.Y; c.Low; c.High ])
                |> Seq.filter Double.IsFinite
                |> Array.ofSeq

            if ends.Length = 0 then
                None
            else
                let low, high = Array.min ends, Array.max ends
                let air = 0.05 * (high - low) + 1e-3 * abs high
                Some(max lowest (low - air), min highest (high + air))
        | _ -> None

    /// For values that are never negative, although their intervals can be.
    let private fromZeroTo marks title =
        { axis title with
            // a single point has no spread to leave room by
            Range = within 0.0 infinity marks |> Option.map (fun (_, high) -> 0.0, 1.05 * high)
        }

    let private accuracyOverTasks (groups: RunGroup[]) : Figure =
        let marks =
            compared groups (afterTask percent) (_.Matrix >> Metrics.curve >> Array.map ((*) 100.0))

        {
            Id = "accuracy"
            Section = Section.accuracy
            Title = "Accuracy on all classes seen so far"
            Caption =
                "Accuracy on the test images of all classes seen, after each task. Higher is better; a curve that falls slowly forgets little."
                + bands groups
            X = whole "tasks learned"
            Y =
                { axis "accuracy (%)" with
                    Range = within 0.0 101.0 marks
                }
            Borders = [||]
            Marks = marks
        }

    let private accuracyMatrices (groups: RunGroup[]) : Figure[] =
        let cells (group: RunGroup) =
            let tasks = group.Runs |> Array.map _.Matrix.Length |> Array.max

            Array.init tasks (fun t ->
                Array.init tasks (fun j ->
                    group.Runs
                    |> Seq.choose (fun run -> Array.tryItem t run.Matrix |> Option.bind (Array.tryItem j))
                    |> Seq.map (Metrics.accuracy >> (*) 100.0)
                    |> Interval.ofValues))

        let all = groups |> Array.map cells
        let range = upToHundred (all |> Array.map (mapCells _.Mean))

        Array.map2
            (fun (group: RunGroup) (cells: Interval[][]) ->
                let meaning =
                    if group.Runs.Length = 1 then
                        "Accuracy"
                    else
                        $"Mean accuracy over {group.Runs.Length} seeds"

                {
                    Id = idOf groups group "accuracy-matrix"
                    Section = Section.accuracy
                    Title = titleOf groups group "Accuracy of each task after each task"
                    Caption =
                        $"{meaning} in %% on the test images of each task (columns) after learning each task (rows), among all classes seen by then. Read down a column to see how a task is forgotten."
                    X = axis "test images of task"
                    Y = axis "after task"
                    Borders = [||]
                    Marks =
                        cells
                        |> mapCells _.Mean
                        |> heatmap
                            (numbered cells.Length)
                            (numbered cells.Length)
                            range
                            "accuracy (%)"
                            points
                            (fun t j _ -> $"task {j + 1} {afterTask percent t (cells[t][j])}")
                })
            groups
            all

    /// Side by side for each group: intervals by category.
    let private barsOf (groups: RunGroup[]) (categories: string[]) hover (intervals: Interval[][]) =
        Marks.Bars
            {
                Categories = categories
                Stacked = false
                Series =
                    Array.map2
                        (fun (number, group: RunGroup) (intervals: Interval[]) ->
                            let at f =
                                Array.init categories.Length (fun i ->
                                    intervals |> Array.tryItem i |> Option.map f |> Option.defaultValue nan)

                            {
                                Name = group.Name
                                Ink = Ink.Kind number
                                Values = at _.Mean
                                Low = at _.Low
                                High = at _.High
                                Hover =
                                    Array.init categories.Length (fun i ->
                                        match Array.tryItem i intervals with
                                        | Some interval -> hover i interval
                                        | None -> "")
                            })
                        (Array.indexed groups)
                        intervals
            }

    let private forgetting (groups: RunGroup[]) : Figure =
        let intervals =
            groups
            |> Array.map (fun group ->
                overRuns group (_.Matrix >> Metrics.forgotten >> Array.map ((*) 100.0)))

        let tasks = intervals |> Array.map _.Length |> Array.max

        {
            Id = "forgetting"
            Section = Section.accuracy
            Title = "Forgetting of each task"
            Caption =
                "Best accuracy that a task ever had minus its accuracy after the last task, in percentage points (Chaudhry et al. 2018). Lower is better; a negative value means that the task improved."
                + whiskers groups
            X = axis "task"
            Y = fromZero "forgetting (points)"
            Borders = [||]
            Marks =
                barsOf
                    groups
                    (numbered tasks)
                    (fun j c -> $"task {j + 1}: {described points c} points")
                    intervals
        }

    // ------------------------------------------------------------------------------------------ drift

    let private meanOf (values: float seq) = (Interval.ofValues values).Mean

    /// The classes of earlier tasks: their prototypes are older than the weights.
    let private oldClasses (file: DriftFile) (after: DriftFile.AfterTask) =
        let learned = Map.ofArray (file.Classes |> Array.map (fun c -> c.Position, c.Task))

        after.Classes
        |> Array.filter (fun c ->
            match Map.tryFind c.Position learned with
            | Some task -> task < after.Task
            | None -> false)

    let private ofDrift (f: DriftFile -> float[]) (run: RunData) =
        run.Drift |> Option.map f |> Option.defaultValue [||]

    let private meanDrift (measure: DriftFile.ClassDrift -> float) =
        ofDrift (fun file -> file.AfterTask |> Array.map (oldClasses file >> Seq.map measure >> meanOf))

    let private driftByBlock =
        ofDrift (fun file ->
            match Array.tryLast file.AfterTask with
            | None -> [||]
            | Some last ->
                let classes = oldClasses file last
                let blocks = classes |> Seq.map _.Blocks.Length |> Seq.fold max 0

                Array.init blocks (fun b ->
                    classes
                    |> Seq.choose (fun c -> Array.tryItem b c.Blocks)
                    |> Seq.map _.Relative
                    |> meanOf))

    let private driftCurves groups =
        let figure id title caption x unit hover values =
            let marks = compared groups hover values

            {
                Id = id
                Section = Section.drift
                Title = title
                Caption = $"{caption} Lower is better.{bands groups}"
                X = whole x
                Y = fromZeroTo marks unit
                Borders = [||]
                Marks = marks
            }

        let fromPrototype id title unit reading measure =
            figure
                id
                $"Drift of old classes, {title}"
                $"Distance from the stored prototype of an old class to its true mean feature (of test images) after each task, averaged over old classes. {reading}"
                "tasks learned"
                unit
                (afterTask short)
                (meanDrift (fun c -> measure c.Output))

        [
            fromPrototype
                "drift-relative"
                "relative to the class's spread"
                "drift / class spread"
                "Euclidean distance divided by the class's own spread: at 1 a class has moved as far as its images typically lie from its mean."
                _.Relative
            fromPrototype
                "drift-euclidean"
                "Euclidean distance"
                "drift (feature units)"
                "Euclidean distance in feature units, which grow with the features themselves."
                _.Euclidean
            fromPrototype
                "drift-cosine"
                "cosine distance"
                "drift (1 − cosine)"
                "Cosine distance, which is what matters for prediction: it compares directions only."
                _.Cosine
            figure
                "drift-since-learned"
                "Drift of old classes since they were learned"
                "Distance that the true mean feature of an old class has moved since the end of its own task, divided by the class's spread, averaged over old classes. It does not include the difference between a prototype, a mean of training images, and the mean of test images."
                "tasks learned"
                "drift / class spread"
                (afterTask short)
                (meanDrift _.OutputSinceLearned.Relative)
            figure
                "drift-blocks"
                "Drift of old classes in each block"
                "Distance that the true mean of an old class has moved since it was learned, after the last task, divided by the class's spread, after each block of the network: it shows at which depth drift arises."
                "block"
                "drift / class spread"
                (fun b interval -> $"block {b + 1}: {described short interval}")
                driftByBlock
        ]

    let private driftPicture (groups: RunGroup[]) (group: RunGroup) : Figure option =
        first group _.Drift
        |> Option.map (fun (run, file) ->
            let classes = Map.ofArray (file.Classes |> Array.map (fun c -> c.Position, c))

            // the latest mean of each class
            let means =
                file.Picture.Means
                |> Array.sortBy _.AfterTask
                |> Array.map (fun mean -> mean.Position, mean)
                |> Map.ofArray

            let arrow (prototype: DriftFile.Point) =
                let name, task =
                    match Map.tryFind prototype.Position classes with
                    | Some c -> c.Name, c.Task
                    | None -> $"class {prototype.Position + 1}", 0

                let mean = Map.tryFind prototype.Position means

                let after =
                    match mean with
                    | Some mean -> $", mean after task {mean.AfterTask + 1}"
                    | None -> ""

                task,
                {
                    From = prototype.X, prototype.Y
                    To = mean |> Option.map (fun mean -> mean.X, mean.Y)
                    Label = Format.shorten 16 name
                    Hover = $"{name} (task {task + 1}){after}"
                }

            let tasks =
                file.Picture.Prototypes
                |> Array.filter (fun p -> Double.IsFinite p.X && Double.IsFinite p.Y)
                |> Array.map arrow
                |> Array.groupBy fst
                |> Array.sortBy fst

            let last = tasks |> Array.map fst |> Array.fold max 1
            let x, y = file.Picture.Explained[0], file.Picture.Explained[1]
            let share value = Format.fixedPoint 0 (100.0 * value)

            {
                Id = idOf groups group "drift-picture"
                Section = Section.drift
                Title = titleOf groups group "Prototypes and true class means"
                Caption =
                    $"Dots: stored prototypes on the plane of their two largest principal components. Arrows lead to the true class means after the last task. Colours show the tasks. Short arrows are better. The plane shows {share (x + y)}%% of the prototypes' variance.{ofSeed group run}"
                X = axis $"first component ({share x}%% of variance)"
                Y = axis $"second component ({share y}%%)"
                Borders = [||]
                Marks =
                    tasks
                    |> Array.map (fun (task, arrows) ->
                        {
                            Name = $"task {task + 1}"
                            Ink =
                                if tasks.Length <= 5 then
                                    Ink.Kind task
                                else
                                    Ink.Along(float task / float last)
                            Arrows = Array.map snd arrows
                        })
                    |> Marks.Arrows
            })

    // ------------------------------------------------------------------------------------------ subspaces

    /// A heat map of blocks and tasks for each group that has `rows` (a task and its blocks), on one colour scale.
    let private byBlock
        groups
        id
        title
        caption
        unit
        range
        text
        (rows: RunData -> (int * float[])[])
        : Figure[] =
        let found =
            groups
            |> Array.choose (fun group ->
                first group (rows >> nonEmpty)
                |> Option.map (fun (run, rows) ->
                    let blocks = rows |> Seq.map (snd >> Array.length) |> Seq.fold max 0

                    let cells =
                        Array.init blocks (fun b ->
                            rows
                            |> Array.map (fun (_, row) -> Array.tryItem b row |> Option.defaultValue nan))

                    group, run, Array.map fst rows, cells))

        let range = range (found |> Array.map (fun (_, _, _, cells) -> cells))

        found
        |> Array.map (fun (group, run, tasks: int[], cells) ->
            {
                Id = idOf groups group id
                Section = Section.subspace
                Title = titleOf groups group title
                Caption = caption + ofSeed group run
                X = axis "task"
                Y = axis "block"
                Borders = [||]
                Marks =
                    cells
                    |> heatmap
                        (numbered cells.Length)
                        (tasks |> Array.map (fun task -> string (task + 1)))
                        range
                        unit
                        text
                        (fun b i value -> $"block {b + 1}, task {tasks[i] + 1}: {text value}")
            })

    let private retainedRank (groups: RunGroup[]) : Figure[] =
        byBlock
            groups
            "retained-rank"
            "Retained rank"
            "Number of directions that hold the required share of the second moment of a new task's inputs, under the model without the earlier updates. Updates of a block are restricted to these directions: the fewer, the stronger the restriction. The first task is not restricted."
            "directions"
            (fun cells -> 0.0, cells |> Seq.collect finite |> Seq.fold max 1.0)
            (Format.fixedPoint 0)
            (fun run ->
                [|
                    for task, ranks in Array.indexed run.RetainedRank do
                        if ranks.Length > 0 then
                            task, Array.map float ranks
                |])

    let private energy (groups: RunGroup[]) : Figure[] =
        let figures =
            byBlock
                groups
                "energy-inside"
                "Energy of new data in the retained subspace"
                "Share of the second moment of each task's inputs that lies in the retained directions of a block, in %. Updates of that block ignore the rest."
                "energy inside (%)"
                upToHundred
                points
                (fun run ->
                    match run.Drift with
                    | None -> [||]
                    | Some file ->
                        [|
                            for task in file.Subspaces do
                                if task.Blocks.Length > 0 then
                                    task.Task,
                                    task.Blocks
                                    |> Array.map (fun b ->
                                        100.0 * b.EnergyInside / (b.EnergyInside + b.EnergyOutside))
                        |])

        // the rank is the smallest that holds the required share: where many directions decide, all cells show that share
        let values =
            figures
            |> Seq.collect (fun figure ->
                match figure.Marks with
                | Marks.Heatmap heatmap -> finite heatmap.Values
                | _ -> Seq.empty)

        if Seq.isEmpty values || Seq.max values - Seq.min values < 1.0 then
            [||]
        else
            figures

    let private spectra (groups: RunGroup[]) (group: RunGroup) : Figure option =
        let last (file: DriftFile) =
            file.Subspaces
            |> Array.filter (fun task -> task.Blocks |> Array.exists (fun b -> b.Spectrum.Length > 0))
            |> Array.tryLast

        first group (_.Drift >> Option.bind last)
        |> Option.map (fun (run, task) ->
            let curve b (block: DriftFile.BlockSpectrum) : Curve =
                let top = block.Spectrum |> Array.filter Double.IsFinite |> Array.fold max 0.0

                // a logarithm has no zero
                let kept =
                    block.Spectrum
                    |> Array.indexed
                    |> Array.filter (fun (_, s) -> s > 0.0 && Double.IsFinite s)

                let y = kept |> Array.map (fun (_, s) -> s / top)

                {
                    Name = $"block {b + 1}"
                    Ink = Ink.Along(float b / float (max 1 (task.Blocks.Length - 1)))
                    X = kept |> Array.map (fun (i, _) -> float (i + 1))
                    Y = y
                    Low = noEnds y
                    High = noEnds y
                    Hover =
                        kept
                        |> Array.mapi (fun n (i, _) ->
                            $"block {b + 1} (k = {block.Rank}), direction {i + 1}: {short y[n]}")
                    DotAt = Some(float block.Rank)
                }

            {
                Id = idOf groups group "spectra"
                Section = Section.subspace
                Title = titleOf groups group $"Energy spectra of task {task.Task + 1}"
                Caption =
                    $"Eigenvalues of each block's second moment divided by the largest, on a logarithmic axis. Each line is a block; its dot is the last retained direction. A steep fall means that few directions carry the data.{ofSeed group run}"
                X = whole "direction"
                Y =
                    { axis "eigenvalue / largest" with
                        Log = true
                    }
                Borders = [||]
                Marks =
                    task.Blocks
                    |> Array.mapi curve
                    |> Array.filter (fun c -> c.X.Length > 0)
                    |> Marks.Curves
            })

    let private overlap (groups: RunGroup[]) (group: RunGroup) : Figure option =
        first group (_.Drift >> Option.bind (_.Overlap >> nonEmpty))
        |> Option.map (fun (run, pairs) ->
            let ends (p: DriftFile.Overlap) =
                min p.First p.Second, max p.First p.Second

            let earlier = pairs |> Array.map (ends >> fst) |> Array.distinct |> Array.sort
            let later = pairs |> Array.map (ends >> snd) |> Array.distinct |> Array.sort
            let byPair = pairs |> Array.groupBy ends |> Map.ofArray

            let mean (f: DriftFile.Overlap -> float) i j =
                match Map.tryFind (earlier[j], later[i]) byPair with
                | Some blocks -> blocks |> Seq.map f |> meanOf
                | None -> nan

            let hover i j value =
                let degrees f = Format.fixedPoint 0 (mean f i j)
                $"tasks {later[i] + 1} and {earlier[j] + 1}: {Format.fixedPoint 3 value}, angles {degrees _.SmallestAngle}° to {degrees _.LargestAngle}°"

            let names = Array.map (fun task -> string (task + 1))

            {
                Id = idOf groups group "overlap"
                Section = Section.subspace
                Title = titleOf groups group "Overlap of the tasks' subspaces"
                Caption =
                    $"Mean squared cosine of the principal angles between the retained subspaces of two tasks, averaged over blocks: 1 if one contains the other, 0 if they are orthogonal. Tasks that share directions can interfere.{ofSeed group run}"
                X = axis "earlier task"
                Y = axis "later task"
                Borders = [||]
                Marks =
                    Array.init later.Length (fun i -> Array.init earlier.Length (mean _.MeanSquaredCosine i))
                    |> heatmap
                        (names later)
                        (names earlier)
                        (0.0, 1.0)
                        "mean squared cosine"
                        (Format.fixedPoint 2)
                        hover
            })

    // ------------------------------------------------------------------------------------------ classes

    let private namesOf (file: ClassesFile) = file.Classes |> Array.map _.Name

    /// Confusion counts of all runs together where their classes are the same, of the first run otherwise.
    let private pooled (group: RunGroup) : (ClassesFile * int[][] * string) option =
        match group.Runs |> Array.choose _.Classes with
        | [||] -> None
        | files when
            files.Length > 1
            && files |> Array.forall (fun f -> namesOf f = namesOf files[0])
            ->
            let sum =
                files |> Array.map _.Confusion |> Array.reduce (Array.map2 (Array.map2 (+)))

            Some(files[0], sum, $" Counts of {files.Length} seeds together.")
        | files ->
            let run = group.Runs |> Array.find _.Classes.IsSome
            Some(files[0], files[0].Confusion, ofSeed group run)

    let private confusion (groups: RunGroup[]) (group: RunGroup) : Figure option =
        pooled group
        |> Option.map (fun (file, counts, note) ->
            let names = namesOf file
            // a thousand long names in a row would be most of the page
            let short = names |> Array.map (Format.shorten 32)

            let starts =
                file.Classes |> Array.map _.Task |> changes |> Array.map (fun i -> float i)

            // more lines than this would hide the cells
            let borders = if starts.Length <= 25 then starts else [||]
            let lines = if borders.Length > 0 then "; lines separate tasks" else ""

            let share total n =
                if total = 0 then nan else 100.0 * float n / float total

            let shares =
                counts |> Array.map (fun row -> row |> Array.map (share (Array.sum row)))

            {
                Id = idOf groups group "confusion"
                Section = Section.classes
                Title = titleOf groups group "Confusion after the last task"
                Caption =
                    $"Share in %% of each true class's test images (rows) that were classified as each class (columns), in the order of learning{lines}. Correct answers are on the diagonal. A strong column off the diagonal is a class that attracts others.{note}"
                X = axis "predicted class"
                Y = axis "true class"
                Borders = borders
                Marks =
                    shares
                    |> heatmap
                        names
                        names
                        (0.0, 100.0)
                        "share of the true class (%)"
                        (fun s -> if s >= 0.5 then Format.fixedPoint 0 s else "")
                        (fun i j share ->
                            $"{short[i]} classified as {short[j]}: {counts[i].[j]} of {Array.sum counts[i]} ({percent share})")
            })

    /// Accuracy of each class for groups of the same classes, in the order of the first group: best first.
    let private classAccuracy (groups: RunGroup[]) : Figure[] =
        let figure id title (groups: RunGroup[]) =
            let file = groups[0].Runs |> Array.pick _.Classes

            let accuracies (run: RunData) =
                match run.Classes with
                | Some other when namesOf other = namesOf file ->
                    other.Classes
                    |> Array.map (fun c ->
                        if c.Total = 0 then
                            nan
                        else
                            100.0 * float c.Correct / float c.Total)
                | _ -> [||]

            let intervals = groups |> Array.map (fun group -> overRuns group accuracies)

            let sorting =
                [| 0 .. file.Classes.Length - 1 |]
                |> Array.sortByDescending (fun i -> (intervals[0][i]).Mean)

            let sorted (items: 'T[]) =
                sorting |> Array.map (fun i -> items[i])

            let classes = sorted file.Classes

            let order =
                if groups.Length > 1 then
                    ", in the order of the first run"
                else
                    ""

            {
                Id = id
                Section = Section.classes
                Title = title
                Caption =
                    $"Accuracy on each class's test images, among all classes, best first{order}. Higher is better.{whiskers groups}"
                X = axis "class"
                Y =
                    { axis "accuracy (%)" with
                        Range = Some(0.0, 100.0)
                    }
                Borders = [||]
                Marks =
                    barsOf
                        groups
                        (classes |> Array.map _.Name)
                        (fun i c -> $"{classes[i].Name} (task {classes[i].Task + 1}): {described percent c}")
                        (intervals |> Array.map sorted)
            }

        let title = "Accuracy of each class after the last task"

        match
            groups
            |> Array.filter (fun group -> group.Runs |> Array.exists _.Classes.IsSome)
        with
        | [||] -> [||]
        | known ->
            let names =
                known |> Array.map (fun group -> group.Runs |> Array.pick _.Classes |> namesOf)

            if names |> Array.forall ((=) names[0]) then
                [| figure "classes" title known |]
            else
                known
                |> Array.map (fun group ->
                    figure (idOf groups group "classes") (titleOf groups group title) [| group |])

    // ------------------------------------------------------------------------------------------ training and time

    let private losses (groups: RunGroup[]) : Figure =
        let epochs = groups |> Seq.collect _.Runs |> Seq.map _.Epochs |> Seq.maxBy _.Length

        // between the last epoch of a task and the first of the next
        let borders (epochs: EpochReport[]) =
            epochs |> Array.map _.Task |> changes |> Array.map (fun i -> float i + 0.5)

        // runs of other epochs per task have other borders
        let agree =
            groups
            |> Seq.collect _.Runs
            |> Seq.map (fun run -> borders run.Epochs)
            |> Seq.forall (fun mine -> mine = Array.truncate mine.Length (borders epochs))

        let borders = if agree then borders epochs else [||]

        let marks =
            compared
                groups
                (fun i interval ->
                    if agree then
                        $"task {epochs[i].Task + 1}, epoch {epochs[i].Epoch + 1}: {described short interval}"
                    else
                        $"epoch {i + 1} of all tasks: {described short interval}")
                (_.Epochs >> Array.map _.Loss)

        {
            Id = "loss"
            Section = Section.training
            Title = "Training loss"
            Caption =
                "Mean loss of each epoch, all tasks in sequence."
                + (if borders.Length > 0 then
                       " Vertical lines separate tasks."
                   else
                       "")
                + bands groups
            X = whole "epochs of all tasks"
            Y = fromZeroTo marks "loss"
            Borders = borders
            Marks = marks
        }

    let private timings (groups: RunGroup[]) : Figure option =
        let figure caption x (categories: string[]) (seconds: Map<string, float>[]) (names: string[]) =
            {
                Id = "seconds"
                Section = Section.training
                Title = "Time of each phase"
                Caption = caption
                X = axis x
                Y = fromZero "wall time (s)"
                Borders = [||]
                Marks =
                    Marks.Bars
                        {
                            Categories = categories
                            Stacked = true
                            Series =
                                names
                                |> Array.mapi (fun i name ->
                                    let values =
                                        seconds |> Array.map (Map.tryFind name >> Option.defaultValue nan)

                                    {
                                        Name = name
                                        Ink = Ink.Kind i
                                        Values = values
                                        Low = noEnds values
                                        High = noEnds values
                                        Hover = values |> Array.map (fun v -> $"{name}: {short v} s")
                                    })
                        }
            }

        let toMap (phases: Collections.Generic.Dictionary<string, float>) =
            Map.ofSeq (phases |> Seq.map (fun p -> p.Key, p.Value))

        let namesOf phases =
            phases
            |> Seq.collect (Seq.map (fun (p: Collections.Generic.KeyValuePair<string, float>) -> p.Key))
            |> Seq.distinct
            |> Array.ofSeq

        match groups with
        | [| group |] ->
            first group (_.Resources >> Option.bind (_.TaskSeconds >> nonEmpty))
            |> Option.map (fun (run, tasks) ->
                figure
                    $"Wall time of each phase in each task, in seconds: observe the new data, compute the projection, train, compute prototypes, predict. Prediction grows with the number of classes seen.{ofSeed group run}"
                    "task"
                    (numbered tasks.Length)
                    (Array.map toMap tasks)
                    (namesOf tasks))
        | _ ->
            let phases (group: RunGroup) =
                group.Runs |> Array.choose _.Resources |> Array.map _.PhaseSeconds

            match groups |> Seq.collect phases |> namesOf with
            | [||] -> None
            | names ->
                let means group =
                    let runs = phases group |> Array.map toMap
                    Map.ofSeq [ for name in names -> name, runs |> Seq.choose (Map.tryFind name) |> meanOf ]

                figure
                    "Wall time of each phase, all tasks together, in seconds (means over seeds). Compare timings only on the same idle machine."
                    "run"
                    (groups |> Array.map _.Name)
                    (groups |> Array.map means)
                    names
                |> Some

    let private hasContent (figure: Figure) =
        match figure.Marks with
        | Marks.Curves curves -> curves.Length > 0
        | Marks.Bars bars -> bars.Categories.Length > 0 && bars.Series.Length > 0
        | Marks.Heatmap heatmap -> not (Seq.isEmpty (finite heatmap.Values))
        | Marks.Arrows groups -> groups.Length > 0

    /// All figures for which the groups' files have numbers, in the order of the report.
    let all (groups: RunGroup[]) : Figure[] =
        let each (build: RunGroup[] -> RunGroup -> Figure option) = Array.choose (build groups) groups

        [|
            accuracyOverTasks groups
            forgetting groups
            yield! accuracyMatrices groups
            yield! driftCurves groups
            yield! each driftPicture
            yield! retainedRank groups
            yield! energy groups
            yield! each overlap
            yield! each spectra
            yield! each confusion
            yield! classAccuracy groups
            losses groups
            yield! Option.toArray (timings groups)
        |]
        |> Array.filter hasContent
