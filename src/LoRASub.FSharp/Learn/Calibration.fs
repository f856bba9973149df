namespace LoRASub.Learn

open System
open LoRASub.Core

/// What images that were held out while a group was learned say of scores to come. It holds quantiles, no image.
type HeldOut =
    {
        /// Classes known when the images were scored.
        Classes: int
        /// How many images.
        Images: int
        /// Of the softmax that makes probabilities of their scores.
        Temperature: float
        /// Quantiles of their support (`Scorer.Support`), ascending.
        Support: float[]
    }

/// How the scores of a state are read.
type Calibration =
    {
        /// Of the softmax that makes probabilities of scores. None: no image was held out.
        Temperature: float option
        /// An image with less support is of no known class. None: too few images were held out to say so at the rate asked
        /// for.
        Threshold: float option
    }

/// Probabilities and a threshold for unknown images, from the scores of images that were held out.
/// Gaussians with a head's means and covariance cannot replace such images: real deviations from a class mean point to
/// other classes, theirs do not, and a threshold for one false alarm in twenty then gives ten.
[<RequireQualifiedAccess>]
module Calibration =

    /// The share of each class's images that is held out unless another is given.
    [<Literal>]
    let internal usualHoldOut = 0.1

    /// The share of images of known classes that may be called unknown unless another is given.
    [<Literal>]
    let internal usualFalseAlarms = 0.05

    /// Rejects a share that is not in [0, 1).
    let internal requireShare (name: string) (share: float) : unit =
        if not (share >= 0.0 && share < 1.0) then
            Errors.reject name "must be at least 0 and below 1" $"{share}" ""

    /// <summary>Reads scores without probabilities; every image is of a known class.</summary>
    let none: Calibration = { Temperature = None; Threshold = None }

    /// Quantiles kept: they state rates down to one in a hundred.
    let private most = 201

    // The file of a learner is read by people.
    let private rounded (x: float) =
        Double.Parse(
            x.ToString("G6", Globalization.CultureInfo.InvariantCulture),
            Globalization.CultureInfo.InvariantCulture
        )

    // Softmax of scores over T.
    let private softmax (temperature: float) (scores: float[]) : float[] =
        let top = Array.max scores
        let terms = scores |> Array.map (fun score -> exp ((score - top) / temperature))
        let sum = Array.sum terms
        terms |> Array.map (fun term -> term / sum)

    // The T of the largest likelihood (Guo et al. 2017), as if one image more had a label drawn at random: the likelihood
    // of few images that are all right would grow for ever.
    let private temperatureOf (scores: float[][]) (rows: int[]) : float =
        let random = 1.0 / float (rows.Length + 1)
        let means = scores |> Array.map Array.average

        let targets =
            Array.map3
                (fun (s: float[]) row mean -> (1.0 - random) * s[row] + random * mean)
                scores
                rows
                means

        let spread =
            Array.map2 (fun s mean -> s |> Array.averageBy (fun x -> (x - mean) * (x - mean))) scores means
            |> Array.average
            |> sqrt

        // the slope in 1/T grows with 1/T
        let isTooSharp inverse =
            let slope (s: float[]) target =
                Array.map2 (*) (softmax (1.0 / inverse) s) s
                |> Array.sum
                |> fun mean -> mean - target

            Array.map2 slope scores targets |> Array.sum > 0.0

        let rec search low high left =
            let middle = 0.5 * (low + high)

            if left = 0 then
                middle
            elif isTooSharp (exp middle) then
                search low middle (left - 1)
            else
                search middle high (left - 1)

        if spread > 0.0 then
            exp (-(search (log (1e-3 / spread)) (log (1e4 / spread)) 40))
        else
            1.0

    /// <summary>What held-out images show.</summary>
    /// <param name="scores">For each image, of every class known; finite.</param>
    /// <param name="support">For each image.</param>
    /// <param name="rows">The class of each image.</param>
    /// <returns>None for no image.</returns>
    let ofScores (scores: float[][]) (support: float[]) (rows: int[]) : HeldOut option =
        if rows.Length = 0 then
            None
        else
            let sorted = Array.sort support

            Some
                {
                    Classes = scores[0].Length
                    Images = rows.Length
                    Temperature = rounded (temperatureOf scores rows)
                    Support =
                        if sorted.Length <= most then
                            sorted
                        else
                            Array.init most (fun i -> sorted[i * (sorted.Length - 1) / (most - 1)])
                        |> Array.map rounded
                }

    /// Whether a record could have been written by `ofScores`.
    let internal isValid (one: HeldOut) : bool =
        not (isNull (box one))
        && one.Classes > 0
        && one.Images > 0
        && one.Temperature > 0.0
        && one.Temperature < infinity
        && not (isNull one.Support)
        && one.Support.Length > 0
        && one.Support.Length <= most
        && Array.forall Double.IsFinite one.Support
        && one.Support = Array.sort one.Support

    // Scores change as classes arrive, so a group counts less the fewer classes were known. Of the powers 0, 1, 2,
    // 4 and 8 and of the newest group alone, the fourth brings false alarms nearest to the rate asked for: 5.0 for 5%
    // (mean of 10 tasks and 3 class orders of cifar-100-lite).
    let private weight (classes: int) (one: HeldOut) =
        let share = min 1.0 (float one.Classes / float (max 1 classes))
        float one.Images * share ** 4.0

    /// <summary>Without the groups that no longer count: those with less than a hundredth of the weight.</summary>
    /// <param name="classes">Known now.</param>
    /// <param name="groups">In the order learned.</param>
    /// <returns>In the same order.</returns>
    let prune (classes: int) (groups: HeldOut[]) : HeldOut[] =
        let all = groups |> Array.sumBy (weight classes)
        groups |> Array.filter (fun one -> weight classes one >= 0.01 * all)

    // The largest support such that a new image has less with a chance of at most the rate: with the image itself there
    // is one support more, and each is as likely to be its own (split conformal prediction, Vovk et al. 2005).
    let private threshold (rate: float) (classes: int) (groups: HeldOut[]) : float option =
        let ofGroup (one: HeldOut) =
            one.Support
            |> Array.map (fun x -> x, weight classes one / float one.Support.Length)

        let all = groups |> Array.collect ofGroup |> Array.sortBy fst
        let total = Array.sumBy snd all * (1.0 + 1.0 / float all.Length)

        let below = all |> Array.map snd |> Array.scan (+) 0.0 |> Array.tail

        Array.zip all below
        |> Array.takeWhile (fun (_, sum) -> sum <= rate * total * (1.0 + 1e-9))
        |> Array.tryLast
        |> Option.map (fun ((support, _), _) -> support)

    /// <summary>How the scores of a state are read.</summary>
    /// <param name="falseAlarms">The share of images of known classes that may be called unknown, in [0, 1); 0 calls none
    /// unknown.</param>
    /// <param name="classes">Known now.</param>
    /// <param name="groups">What held-out images of each group showed.</param>
    /// <returns>The mean of the groups, weighted by images and by how many of today's classes they were scored
    /// against.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The share is out of range.</exception>
    let ofGroups (falseAlarms: float) (classes: int) (groups: HeldOut[]) : Calibration =
        requireShare "the share of false alarms" falseAlarms

        if Array.isEmpty groups then
            none
        else
            let weights = groups |> Array.map (weight classes)
            let logs = groups |> Array.map (fun one -> log one.Temperature)

            {
                Temperature = Some(exp (Array.sum (Array.map2 (*) weights logs) / Array.sum weights))
                Threshold = threshold falseAlarms classes groups
            }

    /// <summary>The probability of each class.</summary>
    /// <param name="scores">Of one image, for every class.</param>
    /// <param name="calibration">Of the state that gave them.</param>
    /// <returns>They add up to 1. None without a temperature.</returns>
    let probabilities (scores: float[]) (calibration: Calibration) : float[] option =
        calibration.Temperature
        |> Option.map (fun temperature -> softmax temperature scores)

    /// <summary>Whether an image is of a class that the state knows.</summary>
    /// <param name="support">Of the image (`Scorer.Support`).</param>
    /// <param name="calibration">Of the state that gave it.</param>
    /// <returns>True without a threshold.</returns>
    let isKnown (support: float) (calibration: Calibration) : bool =
        match calibration.Threshold with
        | Some threshold -> support >= threshold
        | None -> true
