namespace LoRASub

open System
open System.Globalization

/// Count, mean and sum of squared deviations of numbers. A monoid under +, with `Moments.zero` (the pairwise update of
/// Chan, Golub & LeVeque 1983): seeds, threads and machines are merged without keeping their numbers. The mean of no
/// number is 0 here and none in an `Estimate`.
[<Struct>]
type Moments =
    {
        Count: int64
        Mean: float
        SquaredDeviations: float
    }

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

[<RequireQualifiedAccess>]
module Moments =

    let zero: Moments =
        {
            Count = 0L
            Mean = 0.0
            SquaredDeviations = 0.0
        }

    let single (value: float) : Moments =
        {
            Count = 1L
            Mean = value
            SquaredDeviations = 0.0
        }

    let ofValues (values: float seq) : Moments =
        values |> Seq.fold (fun moments value -> moments + single value) zero

    /// Standard deviation of the sample, with n − 1; none below two numbers.
    let deviation (moments: Moments) : float option =
        if moments.Count < 2L then
            None
        else
            Some(sqrt (moments.SquaredDeviations / float (moments.Count - 1L)))

/// Mean over seeds with its confidence interval.
type Estimate =
    {
        /// Seeds that have a value.
        Count: int
        /// None without a value.
        Mean: float option
        /// Of the sample, with n − 1; none for fewer than two values.
        Deviation: float option
        /// Ends of the 95 % interval of the mean by Student's t; none for fewer than two values.
        Low: float option
        High: float option
        /// In the order of the seeds.
        Values: float option[]
    }

/// What one seed's run reached, as fractions.
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
        /// By their names in files, in their order.
        Measures: (string * Estimate)[]
        /// After each task.
        Curve: Estimate[]
    }

/// The second of two groups of runs minus the first, seed by seed.
type PairedStatistics =
    {
        /// Over the seeds that both have.
        Differences: SeedStatistics
        OnlyFirst: int64[]
        OnlySecond: int64[]
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

    /// The t with P(|T| < t) = level for Student's T with that many degrees of freedom, to 12 digits at levels up to
    /// 0.999. Bisection of the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4. Rejects a level outside
    /// (0, 1) and no degree of freedom.
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

    /// The ends of the interval that holds the mean at a level, by Student's t; none below two numbers.
    let interval (level: float) (moments: Moments) : struct (float * float) option =
        Moments.deviation moments
        |> Option.map (fun deviation ->
            let half =
                studentT level (int moments.Count - 1) * deviation / sqrt (float moments.Count)

            struct (moments.Mean - half, moments.Mean + half))

    /// The estimate from one value per seed; some may be missing.
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

    /// The result of one seed's accuracy matrix.
    let ofMatrix (seed: int64) (matrix: AccuracyMatrix) : SeedResult =
        {
            Seed = seed
            Measures = Metrics.measure matrix
            Curve = Metrics.curve matrix
        }

    let private requireDistinct (results: SeedResult[]) =
        match results |> Array.countBy _.Seed |> Array.tryFind (fun (_, count) -> count > 1) with
        | Some(seed, count) -> Errors.reject $"seed {seed}" "must name one run" $"{count} runs" ""
        | None -> ()

    // one column per measure or task from one row per seed
    let private summarise (seeds: int64[]) (measures: (string * float option)[][]) (curves: float[][]) =
        let tasks = curves |> Array.map _.Length |> Array.max

        {
            Seeds = seeds
            Measures =
                measures[0]
                |> Array.mapi (fun i (name, _) ->
                    name, estimate (measures |> Array.map (fun row -> snd row[i])))
            Curve = Array.init tasks (fun t -> estimate (curves |> Array.map (Array.tryItem t)))
        }

    /// Statistics over the runs of several seeds, at least one. Where a run ended early, later tasks count the others.
    /// Rejects an empty list and a repeated seed.
    let ofSeeds (results: SeedResult[]) : SeedStatistics =
        if Array.isEmpty results then
            Errors.reject "runs of several seeds" "must be at least one" "none" ""

        requireDistinct results

        summarise
            (results |> Array.map _.Seed)
            (results |> Array.map (fun result -> Measures.named result.Measures))
            (results |> Array.map _.Curve)

    /// The second group minus the first over the seeds that both have: what is common to a seed (its class order, its
    /// random numbers) drops out. Rejects groups without a common seed and a repeated seed.
    let paired (first: SeedResult[]) (second: SeedResult[]) : PairedStatistics =
        requireDistinct first
        requireDistinct second
        let bySeed = second |> Seq.map (fun result -> result.Seed, result) |> Map.ofSeq
        let common = first |> Array.filter (fun result -> bySeed.ContainsKey result.Seed)

        if Array.isEmpty common then
            Errors.reject "runs to pair" "must have a seed in common" "none" "compare runs of the same seeds"

        let seeds = common |> Array.map _.Seed
        let pairs = common |> Array.map (fun result -> result, bySeed[result.Seed])

        let minus (name, before) (_, after) = name, Option.map2 (-) after before

        let without (others: int64[]) (results: SeedResult[]) =
            results |> Array.map _.Seed |> Array.except others

        {
            Differences =
                summarise
                    seeds
                    (pairs
                     |> Array.map (fun (a, b) ->
                         Array.map2 minus (Measures.named a.Measures) (Measures.named b.Measures)))
                    (pairs
                     |> Array.map (fun (a, b) ->
                         Array.map2
                             (-)
                             (Array.truncate a.Curve.Length b.Curve)
                             (Array.truncate b.Curve.Length a.Curve)))
            OnlyFirst = without seeds first
            OnlySecond = without seeds second
        }

    let private percents: float option -> _ =
        Json.option (Metrics.percent >> Json.float)

    let private members (estimate: Estimate) =
        [
            "n", Json.int (int64 estimate.Count)
            "mean", percents estimate.Mean
            "deviation", percents estimate.Deviation
            "low", percents estimate.Low
            "high", percents estimate.High
        ]

    /// statistics.json, in percent; see docs/metrics.md.
    let toJson (statistics: SeedStatistics) =
        Json.object
            [
                "seeds", Json.array Json.int statistics.Seeds
                "measures",
                Json.object
                    [
                        for name, estimate in statistics.Measures ->
                            name,
                            Json.object
                                [ yield! members estimate; "values", Json.array percents estimate.Values ]
                    ]
                "curve",
                statistics.Curve
                |> Array.indexed
                |> Json.array (fun (task, estimate) ->
                    Json.object [ "task", Json.int (int64 task); yield! members estimate ])
            ]

    // + 0 turns a −0 that rounding leaves into 0
    let private shown (fraction: float) =
        (Math.Round(100.0 * fraction, 2) + 0.0).ToString("0.00", CultureInfo.InvariantCulture)

    // "lastByTask" as people read it
    let private words (name: string) =
        name
        |> String.collect (fun c ->
            if Char.IsUpper c then
                $" {Char.ToLowerInvariant c}"
            else
                string c)

    /// Mean ± half of the 95 % interval in percent, "69.40 ± 0.75 (68.65 to 70.15, n = 3)"; "69.40 (n = 1)" for one
    /// value, "none" without.
    let text (estimate: Estimate) : string =
        match estimate.Mean, estimate.Low, estimate.High with
        | None, _, _ -> "none"
        | Some mean, Some low, Some high ->
            $"{shown mean} ± {shown (0.5 * (high - low))} ({shown low} to {shown high}, n = {estimate.Count})"
        | Some mean, _, _ -> $"{shown mean} (n = {estimate.Count})"

    // the measures that some seed has
    let private present (statistics: SeedStatistics) =
        statistics.Measures |> Array.filter (fun (_, estimate) -> estimate.Count > 0)

    /// One aligned line per measure: "last  69.40 ± 0.75 (68.65 to 70.15, n = 3)".
    let lines (statistics: SeedStatistics) : string[] =
        let rows =
            present statistics
            |> Array.map (fun (name, estimate) -> words name, text estimate)

        let width = rows |> Array.map (fun (name, _) -> name.Length) |> Array.max
        rows |> Array.map (fun (name, text) -> $"{name.PadRight width}  {text}")
