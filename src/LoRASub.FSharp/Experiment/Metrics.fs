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
    }

[<RequireQualifiedAccess>]
module Metrics =

    let accuracy (score: Score) = float score.Correct / float score.Total

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

    /// All measures of a matrix.
    let measure (matrix: AccuracyMatrix) : Measures =
        check matrix
        let rows = matrix |> Array.map (Array.map accuracy)
        let seen = matrix |> Array.map (Array.reduce (+) >> accuracy)
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
        }
