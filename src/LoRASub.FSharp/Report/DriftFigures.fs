namespace LoRASub.Report

open System
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open FigureParts

/// The figures of how far class means drift, and of the subspaces that tasks retain.
[<RequireQualifiedAccess>]
module internal DriftFigures =

    // ------------------------------------------------------------------------------------------ drift

    let private meanOf (values: float seq) = (Interval.ofValues values).Mean

    let private ofDrift (f: DriftFile -> float[]) (run: RunData) =
        run.Drift |> Option.map f |> Option.defaultValue [||]

    /// The classes of earlier tasks: their prototypes are older than the weights.
    let private oldClasses (file: DriftFile) (after: DriftFile.AfterTask) =
        let old =
            set
                [
                    for c in file.Classes do
                        if c.Task < after.Task then
                            c.Position
                ]

        after.Classes |> Array.filter (fun c -> old.Contains c.Position)

    let private meanDrift (measure: DriftFile.ClassDrift -> float) =
        ofDrift (fun file -> file.AfterTask |> Array.map (oldClasses file >> Seq.map measure >> meanOf))

    let private driftByBlock =
        ofDrift (fun file ->
            match Array.tryLast file.AfterTask with
            | None -> [||]
            | Some last ->
                oldClasses file last
                |> Array.map (_.Blocks >> Array.map _.Relative)
                |> Interval.ofColumns
                |> Array.map _.Mean)

    let private driftCurves groups =
        let figure id title caption x unit hover values =
            let marks = Marks.curves groups hover values

            figure
                Section.drift
                id
                title
                $"{caption} Lower is better.{bands groups}"
                (whole x)
                (within (Marks.endsFromZero marks) unit)
                marks

        let overTasks id title caption unit measure =
            figure id title caption "tasks learned" unit (afterTask short) (meanDrift measure)

        let fromPrototype id title reading unit measure =
            let caption =
                "Distance from the stored prototype of an old class to its true mean feature (of test images) after each task, averaged over old classes."

            overTasks id $"Drift of old classes, {title}" $"{caption} {reading}" unit (fun c ->
                measure c.Output)

        [|
            fromPrototype
                "drift-relative"
                "relative to the class's spread"
                "Euclidean distance divided by the class's own spread: at 1 a class has moved as far as its images typically lie from its mean."
                "drift / class spread"
                _.Relative
            fromPrototype
                "drift-euclidean"
                "Euclidean distance"
                "Euclidean distance in feature units, which grow with the features themselves."
                "drift (feature units)"
                _.Euclidean
            fromPrototype
                "drift-cosine"
                "cosine distance"
                "Cosine distance, which is what matters for prediction: it compares directions only."
                "drift (1 − cosine)"
                _.Cosine
            overTasks
                "drift-since-learned"
                "Drift of old classes since they were learned"
                "Distance that the true mean feature of an old class has moved since the end of its own task, divided by the class's spread, averaged over old classes. It does not include the difference between a prototype, a mean of training images, and the mean of test images."
                "drift / class spread"
                _.OutputSinceLearned.Relative
            figure
                "drift-blocks"
                "Drift of old classes in each block"
                "Distance that the true mean of an old class has moved since it was learned, after the last task, divided by the class's spread, after each block of the network: it shows at which depth drift arises."
                "block"
                "drift / class spread"
                (fun b interval -> $"block {b + 1}: {described short interval}")
                driftByBlock
        |]

    let private driftPicture (file: DriftFile) : Figure =
        let classes = file.Classes |> Array.map (fun c -> c.Position, c) |> Map.ofArray

        // the latest mean of each class
        let means =
            file.Picture.Means
            |> Array.sortBy _.AfterTask
            |> Array.map (fun mean -> mean.Position, mean)
            |> Map.ofArray

        let arrow (prototype: DriftFile.Point) (ofClass: DriftFile.ClassOfTask) =
            let mean = Map.tryFind prototype.Position means

            let after =
                match mean with
                | Some mean -> $", mean after task {mean.AfterTask + 1}"
                | None -> ""

            {
                From = prototype.X, prototype.Y
                To = mean |> Option.map (fun mean -> mean.X, mean.Y)
                Label = Format.shorten 16 ofClass.Name
                Hover = $"{ofClass.Name} (task {ofClass.Task + 1}){after}"
            }

        let tasks =
            [|
                for prototype in file.Picture.Prototypes do
                    match Map.tryFind prototype.Position classes with
                    | Some ofClass when Double.IsFinite prototype.X && Double.IsFinite prototype.Y ->
                        ofClass.Task, arrow prototype ofClass
                    | _ -> ()
            |]
            |> Array.groupBy fst
            |> Array.sortBy fst

        let last = tasks |> Array.map fst |> Array.fold max 1
        let x, y = file.Picture.Explained[0], file.Picture.Explained[1]
        let share value = Format.fixedPoint 0 (100.0 * value)

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
        |> figure
            Section.drift
            "drift-picture"
            "Prototypes and true class means"
            $"Dots: stored prototypes on the plane of their two largest principal components. Arrows lead to the true class means after the last task. Colours show the tasks. Short arrows are better. The plane shows {share (x + y)}%% of the prototypes' variance."
            (axis $"first component ({share x}%% of variance)")
            (axis $"second component ({share y}%%)")

    // ------------------------------------------------------------------------------------------ subspaces

    /// A heat map of blocks and tasks for each group that has `rows` (a task and its blocks), on one colour scale.
    let private byBlock groups id title caption unit range text (rows: RunData -> (int * float[])[]) =
        let found = rows >> nonEmpty

        let range =
            groups
            |> Seq.choose (first found)
            |> Seq.collect (snd >> Seq.collect snd)
            |> Seq.filter Double.IsFinite
            |> range

        let draw (rows: (int * float[])[]) =
            let tasks = rows |> Array.map (fun (task, _) -> string (task + 1))
            let blocks = rows |> Seq.map (snd >> Array.length) |> Seq.fold max 0

            let valueOf b (_, row) =
                Array.tryItem b row |> Option.defaultValue nan

            Array.init blocks (fun b -> rows |> Array.map (valueOf b))
            |> Marks.heatmap (numbered blocks) tasks range unit text (fun b i value ->
                $"block {b + 1}, task {tasks[i]}: {text value}")
            |> figure Section.subspace id title caption (axis "task") (axis "block")

        ofFirstRun found draw groups

    let private retainedRank (groups: RunGroup[]) : Figure[] =
        byBlock
            groups
            "retained-rank"
            "Retained rank"
            "Number of directions that hold the required share of the second moment of a new task's inputs, under the model without the earlier updates. Updates of a block are restricted to these directions: the fewer, the stronger the restriction. The first task is not restricted."
            "directions"
            (fun ranks -> 0.0, Seq.fold max 1.0 ranks)
            (Format.fixedPoint 0)
            (fun run ->
                run.RetainedRank
                |> Array.indexed
                |> Array.filter (fun (_, ranks) -> ranks.Length > 0)
                |> Array.map (fun (task, ranks) -> task, Array.map float ranks))

    let private energy (groups: RunGroup[]) : Figure[] =
        let inside (block: DriftFile.BlockSpectrum) =
            100.0 * block.EnergyInside / (block.EnergyInside + block.EnergyOutside)

        let figures =
            byBlock
                groups
                "energy-inside"
                "Energy of new data in the retained subspace"
                "Share of the second moment of each task's inputs that lies in the retained directions of a block, in %. Updates of that block ignore the rest."
                "energy inside (%)"
                Marks.upToHundred
                points
                (fun run ->
                    run.Drift
                    |> Option.map _.Subspaces
                    |> Option.defaultValue [||]
                    |> Array.filter (fun task -> task.Blocks.Length > 0)
                    |> Array.map (fun task -> task.Task, Array.map inside task.Blocks))

        // the rank is the smallest that holds the required share: where many directions decide, all cells show that share
        let values = figures |> Seq.collect (_.Marks >> Marks.values) |> Array.ofSeq

        if values.Length = 0 || Array.max values - Array.min values < 1.0 then
            [||]
        else
            figures

    /// The last task that has spectra.
    let private lastSpectra (file: DriftFile) : DriftFile.TaskSubspaces option =
        file.Subspaces
        |> Array.tryFindBack (fun task -> task.Blocks |> Array.exists (fun b -> b.Spectrum.Length > 0))

    let private spectra (task: DriftFile.TaskSubspaces) : Figure =
        let curve b (block: DriftFile.BlockSpectrum) =
            // a logarithm has no zero
            let kept =
                block.Spectrum
                |> Array.indexed
                |> Array.filter (fun (_, s) -> s > 0.0 && Double.IsFinite s)

            let top = kept |> Array.map snd |> Array.fold max 0.0
            let x = kept |> Array.map (fun (i, _) -> float (i + 1))
            let y = kept |> Array.map (fun (_, s) -> s / top)
            let ink = Ink.Along(float b / float (max 1 (task.Blocks.Length - 1)))

            let hover =
                Array.map2 (fun x y -> $"block {b + 1} (k = {block.Rank}), direction {x}: {short y}") x y

            Marks.series $"block {b + 1}" ink x y hover (Some(float block.Rank))

        task.Blocks
        |> Array.mapi curve
        |> Array.filter (fun c -> c.X.Length > 0)
        |> Marks.Curves
        |> figure
            Section.subspace
            "spectra"
            $"Energy spectra of task {task.Task + 1}"
            $"Eigenvalues of each block's second moment divided by the largest, on a logarithmic axis. Each line is a block; its dot is the last retained direction. A steep fall means that few directions carry the data."
            (whole "direction")
            { axis "eigenvalue / largest" with
                Log = true
            }

    let private overlap (pairs: DriftFile.Overlap[]) : Figure =
        let earlier (pair: DriftFile.Overlap) = min pair.First pair.Second
        let later (pair: DriftFile.Overlap) = max pair.First pair.Second
        let columns = pairs |> Array.map earlier |> Array.distinct |> Array.sort
        let rows = pairs |> Array.map later |> Array.distinct |> Array.sort

        let blocks =
            pairs |> Array.groupBy (fun pair -> later pair, earlier pair) |> Map.ofArray

        let mean (f: DriftFile.Overlap -> float) i j =
            match Map.tryFind (rows[i], columns[j]) blocks with
            | Some blocks -> blocks |> Seq.map f |> meanOf
            | None -> nan

        let hover i j value =
            let degrees f = Format.fixedPoint 0 (mean f i j)
            $"tasks {rows[i] + 1} and {columns[j] + 1}: {Format.fixedPoint 3 value}, angles {degrees _.SmallestAngle}° to {degrees _.LargestAngle}°"

        let names = Array.map (fun task -> string (task + 1))

        Array.init rows.Length (fun i -> Array.init columns.Length (mean _.MeanSquaredCosine i))
        |> Marks.heatmap
            (names rows)
            (names columns)
            (0.0, 1.0)
            "mean squared cosine"
            (Format.fixedPoint 2)
            hover
        |> figure
            Section.subspace
            "overlap"
            "Overlap of the tasks' subspaces"
            $"Mean squared cosine of the principal angles between the retained subspaces of two tasks, averaged over blocks: 1 if one contains the other, 0 if they are orthogonal. Tasks that share directions can interfere."
            (axis "earlier task")
            (axis "later task")

    /// Those of the section on drift.
    let drift (groups: RunGroup[]) : Figure[] =
        Array.append (driftCurves groups) (groups |> ofFirstRun _.Drift driftPicture)

    /// Those of the section on the retained subspace.
    let subspaces (groups: RunGroup[]) : Figure[] =
        [|
            yield! retainedRank groups
            yield! energy groups
            yield! groups |> ofFirstRun (_.Drift >> Option.bind (_.Overlap >> nonEmpty)) overlap
            yield! groups |> ofFirstRun (_.Drift >> Option.bind lastSpectra) spectra
        |]
