namespace LoRASub.Measure

open LoRASub.Core

/// How many test images of each class (row) were predicted as each class (column), by position. A monoid under +:
/// batches, threads and machines count separately, and their counts add up. The smaller of two matrices is padded
/// with zeros.
type Confusion =
    {
        Counts: int[][]
    }

    /// <summary>Adds the counts of disjoint images.</summary>
    /// <param name="left">Of any number of classes.</param>
    /// <param name="right">Of any number of classes.</param>
    /// <returns>Counts over the larger number of classes.</returns>
    static member (+)(left: Confusion, right: Confusion) : Confusion =
        let at (confusion: Confusion) i j =
            if i < confusion.Counts.Length && j < confusion.Counts.Length then
                confusion.Counts[i][j]
            else
                0

        let size = max left.Counts.Length right.Counts.Length

        {
            Counts = Array.init size (fun i -> Array.init size (fun j -> at left i j + at right i j))
        }

/// The score of one class on its test images.
type ClassScore =
    {
        /// In the order of learning, from 0.
        Position: int
        /// Its label in the data set.
        Label: int
        Name: string
        /// The task in which it was learned, from 0.
        Task: int
        Score: Score
    }

/// `answers` gives the answer of each position: a prediction is correct if its answer is that of the true class.
/// Positions are their own answers unless several prototypes belong to one class, as in domain-incremental learning.
[<RequireQualifiedAccess>]
module Confusion =

    /// <summary>The counts of no image.</summary>
    /// <param name="classes">The number of classes.</param>
    /// <returns>A square of zeros.</returns>
    let zero (classes: int) : Confusion =
        {
            Counts = Array.init classes (fun _ -> Array.zeroCreate classes)
        }

    /// <summary>Counts predictions, image by image.</summary>
    /// <param name="truth">The true position of each image.</param>
    /// <param name="predicted">The predicted position of each image.</param>
    /// <param name="classes">The number of positions.</param>
    /// <returns>The counts.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The arrays differ in length, or a position is not in [0,
    /// classes).</exception>
    let ofPredictions (truth: int[]) (predicted: int[]) (classes: int) : Confusion =
        if truth.Length <> predicted.Length then
            Errors.reject "predictions" $"must be as many as labels, {truth.Length}" $"{predicted.Length}" ""

        let inRange what position =
            if position < 0 || position >= classes then
                Errors.reject what $"must be in 0 to {classes - 1}" $"{position}" ""

        Array.iter (inRange "true position") truth
        Array.iter (inRange "predicted position") predicted

        // mutable inside only: one count per image
        let confusion = zero classes

        for image in 0 .. truth.Length - 1 do
            let row = confusion.Counts[truth[image]]
            row[predicted[image]] <- row[predicted[image]] + 1

        confusion

    /// <summary>The correct and all test images of each position.</summary>
    /// <param name="answers">By position; more than the counted positions are allowed.</param>
    /// <param name="confusion">The counts.</param>
    /// <returns>One score per position counted.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There are fewer answers than positions.</exception>
    let scores (answers: int[]) (confusion: Confusion) : Score[] =
        let size = confusion.Counts.Length

        if answers.Length < size then
            Errors.reject "answers of the classes" $"must be at least {size}" $"{answers.Length}" ""

        confusion.Counts
        |> Array.mapi (fun i row ->
            {
                Correct =
                    Seq.sum (seq { for j in 0 .. size - 1 -> if answers[j] = answers[i] then row[j] else 0 })
                Total = Array.sum row
            })

    /// <summary>Every class with its score.</summary>
    /// <param name="answers">By position.</param>
    /// <param name="labels">Labels of the data set, by position.</param>
    /// <param name="names">By position.</param>
    /// <param name="tasks">The task that learned each class, by position.</param>
    /// <param name="confusion">The counts.</param>
    /// <returns>One entry per position counted.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An array is shorter than the number of positions
    /// counted.</exception>
    let classes
        (answers: int[])
        (labels: int[])
        (names: string[])
        (tasks: int[])
        (confusion: Confusion)
        : ClassScore[] =
        let byClass = scores answers confusion

        for what, length in [ "labels", labels.Length; "names", names.Length; "tasks", tasks.Length ] do
            if length < byClass.Length then
                Errors.reject $"{what} of the classes" $"must be at least {byClass.Length}" $"{length}" ""

        byClass
        |> Array.mapi (fun position score ->
            {
                Position = position
                Label = labels[position]
                Name = names[position]
                Task = tasks[position]
                Score = score
            })
