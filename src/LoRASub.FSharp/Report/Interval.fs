namespace LoRASub.Report

open System
open LoRASub.Measure

/// A mean over runs and its 95% interval by Student's t. The ends are NaN for fewer than two values, and where all
/// values are equal: then the seed decides nothing, and an interval would promise a precision that is not there.
type internal Interval =
    {
        N: int
        Mean: float
        Low: float
        High: float
    }

    member this.HasEnds = Double.IsFinite this.Low

    /// What ± means in every report: half of the interval's width.
    member this.Half = (this.High - this.Low) / 2.0

[<RequireQualifiedAccess>]
module internal Interval =

    /// Over the finite values.
    let ofValues (values: float seq) : Interval =
        let moments = values |> Seq.filter Double.IsFinite |> Moments.ofValues

        let struct (low, high) =
            Statistics.interval 0.95 moments |> Option.defaultValue (struct (nan, nan))

        {
            N = int moments.Count
            Mean = if moments.Count = 0L then nan else moments.Mean
            Low = low
            High = high
        }

    /// Over each column of rows of unequal lengths.
    let ofColumns (rows: float[][]) : Interval[] =
        let longest = rows |> Seq.map _.Length |> Seq.fold max 0
        Array.init longest (fun i -> rows |> Seq.choose (Array.tryItem i) |> ofValues)

    /// Over left − right.
    let paired (left: float[]) (right: float[]) : Interval = ofValues (Array.map2 (-) left right)

    /// "56.5 ± 2.1", or only the mean where there is no interval.
    let text (decimals: int) (interval: Interval) : string =
        let mean = Format.fixedPoint decimals interval.Mean

        if interval.HasEnds then
            $"{mean} ± {Format.fixedPoint decimals interval.Half}"
        else
            mean
