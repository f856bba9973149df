namespace LoRASub.Fluent

open System.Collections.Generic
open LoRASub.Measure

/// How the images of one class were predicted.
[<RequireQualifiedAccess>]
type ClassResult =
    {
        ClassName: string
        /// Images of the class.
        Images: int
        /// Those that were predicted as it.
        Correct: int
    }

    /// <summary>The share that is correct, from 0 to 1.</summary>
    member this.Accuracy: float = float this.Correct / float this.Images

/// Images of one class that were taken for another.
[<RequireQualifiedAccess>]
type ConfusedClasses =
    {
        /// The class that they are of.
        ClassName: string
        /// The class that was predicted.
        PredictedName: string
        /// How many, at least 1.
        Images: int
    }

/// Predictions of labelled images, counted.
[<RequireQualifiedAccess>]
type EvaluationResult =
    {
        /// All images.
        Images: int
        /// Those predicted as the class that they are of.
        Correct: int
        /// The classes of the images, in the order learned.
        Classes: IReadOnlyList<ClassResult>
        /// Every mistake that was made, the most frequent first.
        Confusions: IReadOnlyList<ConfusedClasses>
    }

    /// <summary>The share that is correct, from 0 to 1.</summary>
    member this.Accuracy: float = float this.Correct / float this.Images

[<RequireQualifiedAccess>]
module internal EvaluationResult =

    /// Counts predictions, of at least one image: true and predicted rows, and the names of all rows.
    let ofRows (names: string[]) (truth: int[]) (predicted: int[]) : EvaluationResult =
        let counts = (Confusion.ofPredictions truth predicted names.Length).Counts

        {
            EvaluationResult.Images = truth.Length
            EvaluationResult.Correct = Array.sum [| for row in 0 .. names.Length - 1 -> counts[row][row] |]
            EvaluationResult.Classes =
                [|
                    for row in 0 .. names.Length - 1 do
                        if Array.sum counts[row] > 0 then
                            {
                                ClassResult.ClassName = names[row]
                                ClassResult.Images = Array.sum counts[row]
                                ClassResult.Correct = counts[row][row]
                            }
                |]
            EvaluationResult.Confusions =
                [
                    for row in 0 .. names.Length - 1 do
                        for other in 0 .. names.Length - 1 do
                            if row <> other && counts[row][other] > 0 then
                                {
                                    ConfusedClasses.ClassName = names[row]
                                    ConfusedClasses.PredictedName = names[other]
                                    ConfusedClasses.Images = counts[row][other]
                                }
                ]
                // a stable sort, unlike that of arrays
                |> List.sortByDescending _.Images
                |> Array.ofList
        }
