namespace LoRASub.Reports

open System

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

/// Student's t intervals of a mean.
[<RequireQualifiedAccess>]
module internal Statistics =

    // two-sided 95% quantiles for 1 to 10 degrees of freedom
    let private quantiles =
        [|
            12.7062
            4.3027
            3.1824
            2.7764
            2.5706
            2.4469
            2.3646
            2.3060
            2.2622
            2.2281
        |]

    let private quantile (degrees: int) =
        if degrees <= quantiles.Length then
            quantiles[degrees - 1]
        else
            // Cornish and Fisher's expansion around the normal quantile
            let z, v = 1.959964, float degrees

            z
            + (z ** 3.0 + z) / (4.0 * v)
            + (5.0 * z ** 5.0 + 16.0 * z ** 3.0 + 3.0 * z) / (96.0 * v ** 2.0)
            + (3.0 * z ** 7.0 + 19.0 * z ** 5.0 + 17.0 * z ** 3.0 - 15.0 * z)
              / (384.0 * v ** 3.0)

    /// The mean of the finite values.
    let interval (values: float seq) : Interval =
        let values = values |> Seq.filter Double.IsFinite |> Array.ofSeq
        let n = values.Length
        let mean = if n = 0 then nan else Array.average values

        let half =
            if n < 2 then
                nan
            else
                let squares = values |> Array.sumBy (fun x -> (x - mean) ** 2.0)
                quantile (n - 1) * sqrt (squares / float (n - 1) / float n)

        {
            N = n
            Mean = mean
            Low = mean - half
            High = mean + half
        }

    /// The mean of left − right over pairs.
    let paired (left: float[]) (right: float[]) : Interval =
        interval (Array.map2 (fun a b -> a - b) left right)
