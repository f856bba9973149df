namespace LoRASub

/// Right answers among the test images of some task.
[<Struct>]
type Score =
    {
        Correct: int
        Total: int
    }

    static member (+)(left: Score, right: Score) =
        {
            Correct = left.Correct + right.Correct
            Total = left.Total + right.Total
        }

/// Row t, column j: the score on task j's test images after learning task t, for j ≤ t.
type AccuracyMatrix = Score[][]

/// The field's measures of a class-incremental run, as fractions.
type Measures =
    {
        /// Right / all test images seen, after the last task.
        Last: float
        /// Mean over tasks t of right / all seen after t.
        Average: float
        /// As Last, every task weighing the same.
        LastByTask: float
        /// As Average, every task weighing the same.
        AverageByTask: float
        /// Chaudhry et al. 2018; none for one task.
        Forgetting: float option
        /// Backward transfer, Lopez-Paz & Ranzato 2017; none for one task.
        BackwardTransfer: float option
        /// Lopez-Paz & Ranzato 2017; none without a reference run, see `Transfer.measure`.
        ForwardTransfer: float option
        /// Chaudhry et al. 2018, of the last task; none without a reference run, see `Transfer.measure`.
        Intransigence: float option
    }

[<RequireQualifiedAccess>]
module Measures =

    /// Every measure under its name in files, in their order.
    let named (measures: Measures) : (string * float option)[] =
        [|
            "last", Some measures.Last
            "average", Some measures.Average
            "lastByTask", Some measures.LastByTask
            "averageByTask", Some measures.AverageByTask
            "forgetting", measures.Forgetting
            "backwardTransfer", measures.BackwardTransfer
            "forwardTransfer", measures.ForwardTransfer
            "intransigence", measures.Intransigence
        |]

[<RequireQualifiedAccess>]
module Metrics =

    let accuracy (score: Score) = float score.Correct / float score.Total

    /// A fraction as written in files: in percent, rounded where only the noise of floating point is left.
    let percent (fraction: float) = System.Math.Round(100.0 * fraction, 10)

    /// The score on all tasks of a row together.
    let seen (row: Score[]) : Score = Array.reduce (+) row

    /// Rejects a matrix that is empty, not lower-triangular, or has a task without test images.
    let check (matrix: AccuracyMatrix) =
        if Array.isEmpty matrix then
            Errors.reject "accuracy matrix" "needs at least one task" "none" ""

        matrix
        |> Array.iteri (fun t row ->
            if row.Length <> t + 1 then
                Errors.reject $"accuracy matrix, row {t}" $"must have {t + 1} entries" $"{row.Length}" ""

            row
            |> Array.iteri (fun j score ->
                if score.Total < 1 || score.Correct < 0 || score.Correct > score.Total then
                    let rule = "must count right answers among at least one test image"

                    Errors.reject
                        $"accuracy matrix, row {t}, task {j}"
                        rule
                        $"{score.Correct} of {score.Total}"
                        ""))

    /// Accuracy on all classes seen so far, after each task.
    let curve (matrix: AccuracyMatrix) : float[] = matrix |> Array.map (seen >> accuracy)

    /// Forward transfer (Lopez-Paz & Ranzato 2017): the mean over the tasks but the first of accuracy right
    /// before learning the task minus `baseline`, its accuracy before any learning. Both hold one fraction for each of
    /// these later tasks; none without a later task. Rejects arrays of different lengths.
    let forwardTransfer (before: float[]) (baseline: float[]) : float option =
        if before.Length <> baseline.Length then
            let rule = $"must hold {before.Length} tasks, as the accuracies before learning do"
            Errors.reject "baseline of forward transfer" rule $"{baseline.Length}" ""

        if Array.isEmpty before then
            None
        else
            Some(Array.average (Array.map2 (-) before baseline))

    /// All measures of one matrix; forward transfer and intransigence are None.
    let measure (matrix: AccuracyMatrix) : Measures =
        check matrix
        let rows = matrix |> Array.map (Array.map accuracy)
        let seen = curve matrix
        let byTask = rows |> Array.map Array.average
        let last = matrix.Length - 1

        // the mean over the earlier tasks, which one task does not have
        let overEarlier (f: int -> float) =
            if last = 0 then
                None
            else
                Some(Seq.averageBy f (seq { 0 .. last - 1 }))

        let final j = rows[last][j]

        {
            Last = seen[last]
            Average = Array.average seen
            LastByTask = byTask[last]
            AverageByTask = Array.average byTask
            Forgetting =
                overEarlier (fun j ->
                    (seq { j .. last - 1 } |> Seq.map (fun t -> rows[t][j]) |> Seq.max) - final j)
            BackwardTransfer = overEarlier (fun j -> final j - rows[j][j])
            ForwardTransfer = None
            Intransigence = None
        }
