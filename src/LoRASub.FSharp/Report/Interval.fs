namespace LoRASub.Reports

open System
open LoRASub

/// A mean over runs and its 95% interval; low and high are NaN for fewer than two values.
type internal Interval =
    {
        N: int
        Mean: float
        Low: float
        High: float
    }

    /// Half of the interval's width.
    member this.Half = (this.High - this.Low) / 2.0

/// Student's t intervals, with NaN for what is missing, as figures want them.
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

    /// Over left − right.
    let paired (left: float[]) (right: float[]) : Interval = ofValues (Array.map2 (-) left right)
