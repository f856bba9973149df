namespace LoRASub.Measure

open LoRASub.Core

/// How many test images of each class (row) were taken for each class (column), by position. A monoid under +:
/// batches, threads and machines count apart and add up; the smaller of two grows to the larger.
type Confusion =
    {
        Counts: int[][]
    }

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

/// What became of one class's test images.
type ClassScore =
    {
        /// In the order of learning, from 0.
        Position: int
        /// The data set's.
        Label: int
        Name: string
        /// Where it was learned, from 0.
        Task: int
        Score: Score
    }

/// `answers` gives the answer of each position: a prediction is correct if its answer
/// is the true class's. Positions are their own answers unless several prototypes belong to one class,
/// as in domain-incremental learning.
[<RequireQualifiedAccess>]
module Confusion =

    /// No image, of a number of classes.
    let zero (classes: int) : Confusion =
        {
            Counts = Array.init classes (fun _ -> Array.zeroCreate classes)
        }

    /// Counts predictions, image by image, among positions below `classes`. Rejects labels out of range and arrays of
    /// different lengths.
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

    /// Right and all test images of each position. Rejects fewer answers than positions.
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

    /// Every class with its score; `labels`, `names` and `tasks` are by position. Rejects arrays that do not cover the
    /// positions counted.
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
