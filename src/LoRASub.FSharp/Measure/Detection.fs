namespace LoRASub.Measure

open System

/// How well confidence tells right answers from wrong ones, and known classes from unknown ones.
[<RequireQualifiedAccess>]
module Detection =

    /// <summary>The area under the receiver operating characteristic: the chance that an image of a known class has more
    /// support than an image of an unknown one; equal support counts half.</summary>
    /// <param name="known">The support of images of known classes.</param>
    /// <param name="unknown">Of images of unknown classes.</param>
    /// <returns>In [0, 1]; 0.5 for a guess. None where either has no image.</returns>
    let auroc (known: float[]) (unknown: float[]) : float option =
        if Array.isEmpty known || Array.isEmpty unknown then
            None
        else
            let sorted = Array.sort unknown

            // how many are below, and how many are not above
            let place (x: float) isBefore =
                let mutable low, high = 0, sorted.Length

                while low < high do
                    let middle = (low + high) / 2

                    if isBefore sorted[middle] x then
                        low <- middle + 1
                    else
                        high <- middle

                float low

            let wins = known |> Array.sumBy (fun x -> 0.5 * (place x (<) + place x (<=)))
            Some(wins / (float known.Length * float unknown.Length))

    /// Of the calibration error.
    let private bins = 15

    /// <summary>The expected calibration error: the mean difference between the probability of the predicted class and the
    /// share of right answers, over 15 bins of equal width (Guo et al. 2017).</summary>
    /// <param name="probabilities">Of the class predicted for each image, in [0, 1].</param>
    /// <param name="isRight">Whether it is the image's class.</param>
    /// <returns>In [0, 1]; 0 for no image.</returns>
    let calibrationError (probabilities: float[]) (isRight: bool[]) : float =
        Array.zip probabilities isRight
        |> Array.groupBy (fun (p, _) -> Math.Clamp(int (ceil (p * float bins)) - 1, 0, bins - 1))
        |> Array.sumBy (fun (_, inBin) ->
            let right = inBin |> Array.sumBy (fun (_, right) -> if right then 1.0 else 0.0)
            abs (Array.sumBy fst inBin - right) / float probabilities.Length)
