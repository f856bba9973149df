namespace LoRASub.Report

open System.Collections.Generic
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open FigureParts

/// The figures of a report.
[<RequireQualifiedAccess>]
module internal Figures =

    // ------------------------------------------------------------------------------------------ accuracy

    let private accuracyOverTasks (groups: RunGroup[]) : Figure =
        let marks =
            Marks.curves groups (afterTask percent) (_.Matrix >> Metrics.curve >> inPercent)

        figure
            Section.accuracy
            "accuracy"
            "Accuracy on all classes seen so far"
            ("Accuracy on the test images of all classes seen, after each task. Higher is better; a curve that falls slowly forgets little."
             + bands groups)
            (whole "tasks learned")
            (within (Marks.ends 0.0 101.0 marks) "accuracy (%)")
            marks

    let private forgetting (groups: RunGroup[]) : Figure =
        let tasks = groups |> Array.map RunGroup.tasks |> Array.max

        Marks.bars
            groups
            (numbered (tasks - 1))
            (fun j interval -> $"task {j + 1}: {described points interval} points")
            (_.Matrix >> Metrics.forgotten >> inPercent)
        |> figure
            Section.accuracy
            "forgetting"
            "Forgetting of each task"
            ("Best accuracy that a task ever had minus its accuracy after the last task, in percentage points (Chaudhry et al. 2018). Lower is better; a negative value means that the task improved."
             + whiskers groups)
            (axis "task")
            (fromZero "forgetting (points)")

    let private accuracyMatrices (groups: RunGroup[]) : Figure[] =
        let range =
            groups
            |> Seq.collect (RunGroup.accuracies >> Seq.concat)
            |> Seq.map _.Mean
            |> Marks.upToHundred

        forEach groups (fun group ->
            let cells = RunGroup.accuracies group
            let tasks = numbered cells.Length
            let seeds = (RunGroup.counted group).Length

            let meaning =
                if seeds <= 1 then
                    "Accuracy"
                else
                    $"Mean accuracy over {seeds} seeds"

            Marks.heatmap
                tasks
                tasks
                range
                "accuracy (%)"
                points
                (fun t j _ -> $"task {j + 1} {afterTask percent t (cells[t][j])}")
                (cells |> Array.map (Array.map _.Mean))
            |> figure
                Section.accuracy
                "accuracy-matrix"
                "Accuracy of each task after each task"
                $"{meaning} in %% on the test images of each task (columns) after learning each task (rows), among all classes seen by then. Read down a column to see how a task is forgotten."
                (axis "test images of task")
                (axis "after task")
            |> Some)

    // ------------------------------------------------------------------------------------------ classes

    /// Positions at which another task begins.
    let private changes (tasks: int[]) =
        [| 1 .. tasks.Length - 1 |] |> Array.filter (fun i -> tasks[i] <> tasks[i - 1])

    let private namesOf (file: ClassesFile) = file.Classes |> Array.map _.Name

    let private shareOf total n =
        if total = 0 then nan else 100.0 * float n / float total

    let private confusion (group: RunGroup) : Figure option =
        first _.Classes group
        |> Option.map (fun (seed, file) ->
            let names = namesOf file
            let files = group.Runs |> Array.choose _.Classes

            // of all runs together where their classes are the same
            let counts, note =
                if files.Length > 1 && files |> Array.forall (fun other -> namesOf other = names) then
                    files |> Array.map _.Confusion |> Array.reduce (Array.map2 (Array.map2 (+))),
                    $" Counts of {files.Length} seeds together."
                else
                    file.Confusion, seed

            // a thousand long names in a row would be most of the page
            let short = names |> Array.map (Format.shorten 32)
            let starts = file.Classes |> Array.map _.Task |> changes |> Array.map float
            // more lines than this would hide the cells
            let borders = if starts.Length <= 25 then starts else [||]
            let lines = if borders.Length > 0 then "; lines separate tasks" else ""

            let figure =
                counts
                |> Array.map (fun row -> row |> Array.map (shareOf (Array.sum row)))
                |> Marks.heatmap
                    names
                    names
                    (0.0, 100.0)
                    "share of the true class (%)"
                    (fun s -> if s >= 0.5 then Format.fixedPoint 0 s else "")
                    (fun i j share ->
                        $"{short[i]} classified as {short[j]}: {counts[i].[j]} of {Array.sum counts[i]} ({percent share})")
                |> figure
                    Section.classes
                    "confusion"
                    "Confusion after the last task"
                    $"Share in %% of each true class's test images (rows) that were classified as each class (columns), in the order of learning{lines}. Correct answers are on the diagonal. A strong column off the diagonal is a class that attracts others.{note}"
                    (axis "predicted class")
                    (axis "true class")

            { figure with Borders = borders })

    /// Accuracy of each class for groups of the same classes, in the order of the first group: best first.
    let private accuracyByClass (file: ClassesFile) (groups: RunGroup[]) : Figure =
        let accuracies (run: RunData) =
            match run.Classes with
            | Some other when namesOf other = namesOf file ->
                other.Classes |> Array.map (fun c -> shareOf c.Total c.Correct)
            | _ -> Array.create file.Classes.Length nan

        let order =
            Marks.overRuns accuracies groups[0]
            |> Array.indexed
            |> Array.sortByDescending (fun (_, interval) -> interval.Mean)
            |> Array.map fst

        let ordered (items: 'T[]) = order |> Array.map (fun i -> items[i])

        let classes = ordered file.Classes

        let note =
            if groups.Length > 1 then
                ", in the order of the first run"
            else
                ""

        Marks.bars
            groups
            (classes |> Array.map _.Name)
            (fun i interval ->
                $"{classes[i].Name} (task {classes[i].Task + 1}): {described percent interval}")
            (accuracies >> ordered)
        |> figure
            Section.classes
            "classes"
            "Accuracy of each class after the last task"
            $"Accuracy on each class's test images, among all classes, best first{note}. Higher is better.{whiskers groups}"
            (axis "class")
            (within (Some(0.0, 100.0)) "accuracy (%)")

    /// One figure for all groups that know their classes or, where these differ, one for each.
    let private classAccuracy (groups: RunGroup[]) : Figure[] =
        let fileOf = first _.Classes >> Option.map snd
        let known = groups |> Array.filter (fileOf >> Option.isSome)

        match known |> Array.choose fileOf |> Array.distinctBy namesOf with
        | [| file |] -> [| accuracyByClass file known |]
        | _ ->
            forEach groups (fun group ->
                fileOf group |> Option.map (fun file -> accuracyByClass file [| group |]))

    // ------------------------------------------------------------------------------------------ training and time

    let private losses (groups: RunGroup[]) : Figure =
        let runs = groups |> Array.collect (_.Runs >> Array.map _.Epochs)
        let longest = runs |> Array.maxBy _.Length

        // between the last epoch of a task and the first of the next
        let borders (epochs: EpochReport[]) =
            epochs |> Array.map _.Task |> changes |> Array.map (fun i -> float i + 0.5)

        // runs of other epochs per task have other borders
        let agree =
            runs
            |> Array.map borders
            |> Array.forall (fun mine -> mine = Array.truncate mine.Length (borders longest))

        let borders = if agree then borders longest else [||]

        let lines =
            if borders.Length > 0 then
                " Vertical lines separate tasks."
            else
                ""

        let epochAt i =
            if agree then
                $"task {longest[i].Task + 1}, epoch {longest[i].Epoch + 1}"
            else
                $"epoch {i + 1} of all tasks"

        let marks =
            Marks.curves
                groups
                (fun i interval -> $"{epochAt i}: {described short interval}")
                (_.Epochs >> Array.map _.Loss)

        let figure =
            figure
                Section.training
                "loss"
                "Training loss"
                $"Mean loss of each epoch, all tasks in sequence.{lines}{bands groups}"
                (whole "epochs of all tasks")
                (within (Marks.endsFromZero marks) "loss")
                marks

        { figure with Borders = borders }

    /// Of each task for one group, of all tasks together for several.
    let private timings (groups: RunGroup[]) : Figure =
        let figure caption x (categories: string[]) phases (seconds: string -> float[]) =
            let series i phase =
                let x = Array.init categories.Length float
                let y = seconds phase
                let hover = y |> Array.map (fun value -> $"{phase}: {short value} s")
                Marks.series phase (Ink.Kind i) x y hover None

            Marks.Bars
                {
                    Categories = categories
                    Stacked = true
                    Series = phases |> Array.mapi series
                }
            |> figure
                Section.training
                "seconds"
                "Time of each phase"
                caption
                (axis x)
                (fromZero "wall time (s)")

        match groups with
        | [| group |] ->
            let seed, tasks =
                first (_.Resources >> Option.bind (_.TaskSeconds >> nonEmpty)) group
                |> Option.defaultValue ("", [||])

            figure
                $"Wall time of each phase in each task, in seconds: observe the new data, compute the projection, train, compute prototypes, predict. Prediction grows with the number of classes seen.{seed}"
                "task"
                (numbered tasks.Length)
                (tasks |> Seq.collect _.Keys |> Seq.distinct |> Array.ofSeq)
                (fun phase -> tasks |> Array.map (fun seconds -> seconds.GetValueOrDefault(phase, nan)))
        | _ ->
            figure
                "Wall time of each phase, all tasks together, in seconds (means over seeds). Compare timings only on the same idle machine."
                "run"
                (groups |> Array.map _.Name)
                (RunGroup.phases groups)
                (fun phase -> groups |> Array.map (fun group -> (RunGroup.seconds phase group).Mean))

    /// All figures for which the groups' files have numbers, in the order of the report.
    let all (groups: RunGroup[]) : Figure[] =
        [|
            accuracyOverTasks groups
            forgetting groups
            yield! accuracyMatrices groups
            yield! DriftFigures.drift groups
            yield! DriftFigures.subspaces groups
            yield! forEach groups confusion
            yield! classAccuracy groups
            losses groups
            timings groups
        |]
        |> Array.filter (fun figure -> not (Seq.isEmpty (Marks.values figure.Marks)))
