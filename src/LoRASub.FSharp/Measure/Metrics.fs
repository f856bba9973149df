namespace LoRASub.Measure

open System
open System.Text.Json
open System.Text.Json.Nodes
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Files

/// Correctly classified test images of some task; [correct, total] in files.
[<Struct; JsonConverter(typeof<ScoreConverter>)>]
type Score =
    {
        Correct: int
        Total: int
    }

    /// <summary>Adds the counts of two sets of images.</summary>
    /// <param name="left">Of the first.</param>
    /// <param name="right">Of the second.</param>
    /// <returns>Of both.</returns>
    static member (+)(left: Score, right: Score) =
        {
            Correct = left.Correct + right.Correct
            Total = left.Total + right.Total
        }

/// The one reader and writer of scores.
and ScoreConverter() =
    inherit JsonConverter<Score>()

    override _.Read(reader, _, options) =
        match JsonSerializer.Deserialize<int[]>(&reader, options) with
        | [| correct; total |] -> { Correct = correct; Total = total }
        | _ -> raise (JsonException "a score that is not [correct, total]")

    override _.Write(writer, score, _) =
        writer.WriteStartArray()
        writer.WriteNumberValue score.Correct
        writer.WriteNumberValue score.Total
        writer.WriteEndArray()

/// Row t, column j: the score on task j's test images after learning task t, for j ≤ t.
type AccuracyMatrix = Score[][]

[<RequireQualifiedAccess>]
type Better =
    | Higher
    | Lower

/// A measure of a class-incremental run: one row of `Metrics.all`.
type Measure =
    {
        /// As written in files.
        Name: string
        Title: string
        /// `%`, or `points` for differences of percentages.
        Unit: string
        Better: Better
        /// As a fraction; None where the matrix has too few tasks, or is not enough to compute it.
        Of: AccuracyMatrix -> float option
        Source: string
    }

/// The measures that a run has, by name, as fractions.
type Measures = Map<string, float>

/// The measures of class-incremental learning, from accuracy matrices.
[<RequireQualifiedAccess>]
module Metrics =

    /// <summary>The accuracy of a score.</summary>
    /// <param name="score">Of at least one image.</param>
    /// <returns>A fraction.</returns>
    let accuracy (score: Score) = float score.Correct / float score.Total

    /// <summary>A fraction in percent, rounded where only floating-point noise is left.</summary>
    /// <param name="fraction">The fraction.</param>
    /// <returns>The percentage, to 10 digits after the point.</returns>
    let percent (fraction: float) = Math.Round(100.0 * fraction, 10)

    /// <summary>The score on all tasks of a row together.</summary>
    /// <param name="row">Of an accuracy matrix, at least one score.</param>
    /// <returns>Their sum.</returns>
    let seen (row: Score[]) : Score = Array.reduce (+) row

    /// <summary>Checks an accuracy matrix.</summary>
    /// <param name="matrix">Any.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The matrix is empty or not lower-triangular, or a score does
    /// not count correct answers among at least one test image.</exception>
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
                    let rule = "must count correct answers among at least one test image"

                    Errors.reject
                        $"accuracy matrix, row {t}, task {j}"
                        rule
                        $"{score.Correct} of {score.Total}"
                        ""))

    /// <summary>Accuracy on all classes seen so far, after each task.</summary>
    /// <param name="matrix">As `check` accepts it.</param>
    /// <returns>One fraction per task.</returns>
    let curve (matrix: AccuracyMatrix) : float[] = matrix |> Array.map (seen >> accuracy)

    // The tasks but the last, if each was tested on as many images every time: a difference between a few images and all
    // of them is not one of the network.
    let private earlier (matrix: AccuracyMatrix) : int[] =
        let last = matrix |> Array.tryLast |> Option.defaultValue [||]

        let isSame =
            matrix
            |> Array.forall (fun row ->
                Array.indexed row
                |> Array.forall (fun (j, score: Score) -> score.Total = last[j].Total))

        if isSame then [| 0 .. last.Length - 2 |] else [||]

    /// <summary>Accuracy lost on each task but the last since its best (Chaudhry et al. 2018).</summary>
    /// <param name="matrix">As `check` accepts it.</param>
    /// <returns>One fraction per task but the last; negative where a task gained. None if a task was not always tested on
    /// the same number of images.</returns>
    let forgotten (matrix: AccuracyMatrix) : float[] =
        let last = matrix.Length - 1
        let at t j = accuracy (matrix[t][j])

        earlier matrix
        |> Array.map (fun j -> Seq.max (seq { for t in j .. last - 1 -> at t j }) - at last j)

    /// <summary>Forward transfer (Lopez-Paz &amp; Ranzato 2017): the mean, over the tasks but the first, of accuracy
    /// right before learning the task minus accuracy before any learning.</summary>
    /// <param name="before">Accuracy on each of these tasks right before learning it, as a fraction.</param>
    /// <param name="baseline">Accuracy on each of them before any learning, as a fraction.</param>
    /// <returns>A fraction; None without a later task.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The arrays differ in length.</exception>
    let forwardTransfer (before: float[]) (baseline: float[]) : float option =
        if before.Length <> baseline.Length then
            let rule = $"must hold {before.Length} tasks, as the accuracies before learning do"
            Errors.reject "baseline of forward transfer" rule $"{baseline.Length}" ""

        if Array.isEmpty before then
            None
        else
            Some(Array.average (Array.map2 (-) before baseline))

    let private byTask (matrix: AccuracyMatrix) =
        matrix |> Array.map (Array.averageBy accuracy)

    let private backward (matrix: AccuracyMatrix) =
        earlier matrix
        |> Array.map (fun j -> accuracy ((Array.last matrix)[j]) - accuracy (matrix[j][j]))

    // the mean over the earlier tasks, which one task does not have
    let private overEarlier values =
        if Array.isEmpty values then
            None
        else
            Some(Array.average values)

    let private measured name title unit better source f =
        {
            Name = name
            Title = title
            Unit = unit
            Better = better
            Of = f
            Source = source
        }

    /// <summary>Accuracy on all classes after the last task.</summary>
    let last =
        measured "last" "last accuracy" "%" Better.Higher "Rebuffi et al. 2017" (fun m ->
            Some(Array.last (curve m)))

    /// <summary>The mean over tasks of the accuracy on all classes seen so far.</summary>
    let average =
        measured "average" "average accuracy" "%" Better.Higher "Rebuffi et al. 2017" (fun m ->
            Some(Array.average (curve m)))

    /// <summary>The mean over earlier tasks of the accuracy lost since the best; None with one task, or if a task was not
    /// always tested on the same number of images.</summary>
    let forgetting =
        measured
            "forgetting"
            "forgetting"
            "points"
            Better.Lower
            "Chaudhry et al. 2018"
            (forgotten >> overEarlier)

    let private byReference name title better source =
        measured name title "points" better source (fun _ -> None)

    /// Every measure, in the order of files and tables. A new one is one row.
    let all: Measure list =
        [
            last
            average
            // every task weighs the same, however many images it has
            measured
                "lastByTask"
                "last accuracy, mean of tasks"
                "%"
                Better.Higher
                "Lopez-Paz & Ranzato 2017"
                (fun m -> Some(Array.last (byTask m)))
            measured
                "averageByTask"
                "average accuracy, mean of tasks"
                "%"
                Better.Higher
                "Chaudhry et al. 2018"
                (fun m -> Some(Array.average (byTask m)))
            forgetting
            measured
                "backwardTransfer"
                "backward transfer"
                "points"
                Better.Higher
                "Lopez-Paz & Ranzato 2017"
                (backward >> overEarlier)
            // these need reference runs: see Transfer
            byReference "forwardTransfer" "forward transfer" Better.Higher "Lopez-Paz & Ranzato 2017"
            byReference "intransigence" "intransigence" Better.Lower "Chaudhry et al. 2018"
        ]

    /// <summary>All measures that need only a matrix.</summary>
    /// <param name="matrix">An accuracy matrix.</param>
    /// <returns>By name, as fractions.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The matrix breaks a rule of `check`.</exception>
    let measure (matrix: AccuracyMatrix) : Measures =
        check matrix

        Map.ofList
            [
                for one in all do
                    match one.Of matrix with
                    | Some value -> one.Name, value
                    | None -> ()
            ]

    /// Measures, with those of `stored` that no matrix gives.
    let internal complete (stored: Measures) (measures: Measures) : Measures =
        stored
        |> Map.fold
            (fun all name value -> if all.ContainsKey name then all else all.Add(name, value))
            measures

    /// The measures as members of a JSON object, in percent; null where there is none.
    let internal members (measures: Measures) : (string * JsonNode) list =
        [
            for one in all -> one.Name, Map.tryFind one.Name measures |> Json.option (percent >> Json.float)
        ]

    /// The inverse of `members`: what an object holds under the names of measures.
    let internal ofMembers (root: JsonElement) : Measures =
        Map.ofList
            [
                for one in all do
                    match root.TryGetProperty one.Name with
                    | true, value when value.ValueKind <> JsonValueKind.Null ->
                        one.Name, value.GetDouble() / 100.0
                    | _ -> ()
            ]
