namespace LoRASub.Measure

open System
open System.Collections.Generic
open System.Globalization
open LoRASub.Core

/// Count, mean and sum of squared deviations of numbers. A monoid under +, with `Moments.zero` (the pairwise update of
/// Chan, Golub & LeVeque 1983): seeds, threads and machines are merged without keeping their numbers. The mean of no
/// number is 0 here and None in an `Estimate`.
[<Struct>]
type Moments =
    {
        Count: int64
        Mean: float
        SquaredDeviations: float
    }

    /// <summary>Merges the moments of two sets of numbers.</summary>
    /// <param name="left">Of the first.</param>
    /// <param name="right">Of the second.</param>
    /// <returns>Those of all numbers.</returns>
    static member (+)(left: Moments, right: Moments) : Moments =
        if left.Count = 0L then
            right
        elif right.Count = 0L then
            left
        else
            let count = left.Count + right.Count
            let difference = right.Mean - left.Mean
            let share = float right.Count / float count

            {
                Count = count
                Mean = left.Mean + difference * share
                SquaredDeviations =
                    left.SquaredDeviations
                    + right.SquaredDeviations
                    + difference * difference * float left.Count * share
            }

/// Count, mean and spread of numbers.
[<RequireQualifiedAccess>]
module Moments =

    /// <summary>The moments of no number.</summary>
    let zero: Moments =
        {
            Count = 0L
            Mean = 0.0
            SquaredDeviations = 0.0
        }

    /// <summary>The moments of one number.</summary>
    /// <param name="value">The number.</param>
    /// <returns>Count 1, without deviation.</returns>
    let single (value: float) : Moments =
        {
            Count = 1L
            Mean = value
            SquaredDeviations = 0.0
        }

    /// <summary>The moments of several numbers.</summary>
    /// <param name="values">The numbers; may be empty.</param>
    /// <returns>Their moments.</returns>
    let ofValues (values: float seq) : Moments =
        values |> Seq.fold (fun moments value -> moments + single value) zero

    /// <summary>The standard deviation of a sample, with n − 1.</summary>
    /// <param name="moments">Of the sample.</param>
    /// <returns>None for fewer than two numbers.</returns>
    let deviation (moments: Moments) : float option =
        if moments.Count < 2L then
            None
        else
            Some(sqrt (moments.SquaredDeviations / float (moments.Count - 1L)))

/// A mean over seeds with its 95 % interval.
type Estimate =
    {
        /// Seeds that have a value.
        Count: int
        /// None without a value.
        Mean: float option
        /// Of the sample, with n − 1; None for fewer than two values.
        Deviation: float option
        /// Ends of the 95 % interval of the mean by Student's t; None for fewer than two values, and where all values
        /// are equal, because then the seed makes no difference.
        Low: float option
        High: float option
        /// In the order of the seeds.
        Values: float option[]
    }

/// The results of one seed's run, as fractions.
type SeedResult =
    {
        Seed: int64
        Measures: Measures
        /// Accuracy on all classes seen, after each task.
        Curve: float[]
    }

/// Runs that differ in their seed only.
type SeedStatistics =
    {
        Seeds: int64[]
        /// In the order of `Metrics.all`.
        Measures: (Measure * Estimate)[]
        /// After each task.
        Curve: Estimate[]
    }

/// A measure in statistics.json, in percent.
type MeasureEstimate =
    {
        N: int
        Mean: float option
        Deviation: float option
        Low: float option
        High: float option
        Values: float option[]
    }

/// The accuracy after a task in statistics.json, in percent.
type TaskEstimate =
    {
        Task: int
        N: int
        Mean: float option
        Deviation: float option
        Low: float option
        High: float option
    }

/// statistics.json; see docs/metrics.md.
type StatisticsFile =
    {
        Seeds: int64[]
        /// By name.
        Measures: Dictionary<string, MeasureEstimate>
        Curve: TaskEstimate[]
    }

/// Means over seeds, with their spread and 95 % intervals.
[<RequireQualifiedAccess>]
module Statistics =

    // P(|T| < t) at θ = atan(t/√ν): the finite sums of Abramowitz & Stegun 1964, 26.7.3 (odd ν) and 26.7.4 (even ν),
    // whose terms are powers of cos θ from `first`, each the one before times cos²θ·(k − 1)/k.
    let private within (freedom: int) (angle: float) =
        let cosine = cos angle
        let squared = cosine * cosine

        let sum first from =
            let mutable term = first
            let mutable total = 0.0
            let mutable k = from

            while k <= freedom do
                total <- total + term
                term <- term * squared * float (k - 1) / float k
                k <- k + 2

            total

        if freedom % 2 = 1 then
            2.0 / Math.PI * (angle + sin angle * sum cosine 3)
        else
            sin angle * sum 1.0 2

    /// <summary>The t with P(|T| &lt; t) = level for Student's T, to 12 digits at levels up to 0.999: bisection of
    /// the finite sums of Abramowitz &amp; Stegun 1964, 26.7.3 and 26.7.4.</summary>
    /// <param name="level">In (0, 1).</param>
    /// <param name="freedom">Degrees of freedom, at least 1.</param>
    /// <returns>t, above 0.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The level is outside (0, 1), or there is no degree of
    /// freedom.</exception>
    let studentT (level: float) (freedom: int) : float =
        if not (level > 0.0 && level < 1.0) then
            Errors.reject "level of an interval" "must be between 0 and 1" $"{level}" ""

        if freedom < 1 then
            Errors.reject "degrees of freedom" "must be at least 1" $"{freedom}" ""

        let rec bisect low high =
            let middle = 0.5 * (low + high)

            if middle <= low || middle >= high then middle
            elif within freedom middle < level then bisect middle high
            else bisect low middle

        sqrt (float freedom) * tan (bisect 0.0 (0.5 * Math.PI))

    /// <summary>The interval that holds the mean at a level, by Student's t.</summary>
    /// <param name="level">In (0, 1), such as 0.95.</param>
    /// <param name="moments">Of the sample.</param>
    /// <returns>Its two ends; None for fewer than two numbers, and where all are equal.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The level is outside (0, 1).</exception>
    let interval (level: float) (moments: Moments) : struct (float * float) option =
        Moments.deviation moments
        |> Option.filter (fun deviation -> deviation > 0.0)
        |> Option.map (fun deviation ->
            let half =
                studentT level (int moments.Count - 1) * deviation / sqrt (float moments.Count)

            struct (moments.Mean - half, moments.Mean + half))

    /// <summary>The estimate from one value per seed.</summary>
    /// <param name="values">In the order of the seeds; some may be missing.</param>
    /// <returns>The mean with its 95 % interval over the values that are there.</returns>
    let estimate (values: float option[]) : Estimate =
        let moments = values |> Seq.choose id |> Moments.ofValues
        let interval = interval 0.95 moments

        {
            Count = int moments.Count
            Mean = if moments.Count = 0L then None else Some moments.Mean
            Deviation = Moments.deviation moments
            Low = interval |> Option.map (fun struct (low, _) -> low)
            High = interval |> Option.map (fun struct (_, high) -> high)
            Values = values
        }

    /// <summary>The result of one seed's accuracy matrix.</summary>
    /// <param name="seed">The seed.</param>
    /// <param name="matrix">Of its run.</param>
    /// <returns>Measures and accuracy after each task, as fractions.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The matrix breaks a rule of `Metrics.check`.</exception>
    let ofMatrix (seed: int64) (matrix: AccuracyMatrix) : SeedResult =
        {
            Seed = seed
            Measures = Metrics.measure matrix
            Curve = Metrics.curve matrix
        }

    /// <summary>Statistics over the runs of several seeds. Where a run ended early, later tasks count the other runs
    /// only.</summary>
    /// <param name="results">At least one, each of a seed of its own.</param>
    /// <returns>An estimate for each measure and each task.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no run, or a seed is repeated.</exception>
    let ofSeeds (results: SeedResult[]) : SeedStatistics =
        if Array.isEmpty results then
            Errors.reject "runs of several seeds" "must be at least one" "none" ""

        match results |> Array.countBy _.Seed |> Array.tryFind (fun (_, count) -> count > 1) with
        | Some(seed, count) -> Errors.reject $"seed {seed}" "must belong to one run" $"{count} runs" ""
        | None -> ()

        let tasks = results |> Array.map _.Curve.Length |> Array.max

        {
            Seeds = results |> Array.map _.Seed
            Measures =
                [|
                    for measure in Metrics.all ->
                        measure, estimate (results |> Array.map (_.Measures >> Map.tryFind measure.Name))
                |]
            Curve = Array.init tasks (fun t -> estimate (results |> Array.map (_.Curve >> Array.tryItem t)))
        }

    /// The statistics as they are saved.
    let internal toFile (statistics: SeedStatistics) : StatisticsFile =
        let percent = Option.map Metrics.percent

        {
            Seeds = statistics.Seeds
            Measures =
                Dictionary(
                    dict
                        [
                            for measure, e in statistics.Measures ->
                                measure.Name,
                                ({
                                    N = e.Count
                                    Mean = percent e.Mean
                                    Deviation = percent e.Deviation
                                    Low = percent e.Low
                                    High = percent e.High
                                    Values = Array.map percent e.Values
                                }
                                : MeasureEstimate)
                        ]
                )
            Curve =
                statistics.Curve
                |> Array.mapi (fun task e ->
                    {
                        Task = task
                        N = e.Count
                        Mean = percent e.Mean
                        Deviation = percent e.Deviation
                        Low = percent e.Low
                        High = percent e.High
                    })
        }

    // + 0 turns a −0 that rounding leaves into 0
    let private shown (fraction: float) =
        (Math.Round(100.0 * fraction, 2) + 0.0).ToString("0.00", CultureInfo.InvariantCulture)

    /// <summary>An estimate as text, in percent: "69.40 ± 0.75 (68.65 to 70.15, sd 0.30, n = 3)", where ± is half of
    /// the 95 % interval, as in reports, and sd the standard deviation.</summary>
    /// <param name="estimate">As fractions.</param>
    /// <returns>"69.40 (n = 1)" for one value, "none" without a value.</returns>
    let text (estimate: Estimate) : string =
        match estimate.Mean, estimate.Deviation, estimate.Low, estimate.High with
        | None, _, _, _ -> "none"
        | Some mean, Some deviation, Some low, Some high ->
            $"{shown mean} ± {shown (0.5 * (high - low))} ({shown low} to {shown high}, sd {shown deviation}, n = {estimate.Count})"
        | Some mean, Some _, _, _ -> $"{shown mean} (the same for {estimate.Count} seeds)"
        | Some mean, _, _, _ -> $"{shown mean} (n = {estimate.Count})"

    /// <summary>One aligned line for each measure that some seed has.</summary>
    /// <param name="statistics">Over the seeds.</param>
    /// <returns>The lines, in the order of `Metrics.all`.</returns>
    let lines (statistics: SeedStatistics) : string[] =
        let rows =
            [|
                for measure, estimate in statistics.Measures do
                    if estimate.Count > 0 then
                        measure.Title, text estimate
            |]

        let width = rows |> Array.map (fun (title, _) -> title.Length) |> Array.max
        rows |> Array.map (fun (title, text) -> $"{title.PadRight width}  {text}")
