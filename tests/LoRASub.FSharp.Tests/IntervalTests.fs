module LoRASub.Tests.IntervalTests

open System
open LoRASub.Report
open Expecto

/// P(|T| < t) for Student's t, by adding up its density in small steps.
let private probability (degrees: int) (t: float) =
    let v = float degrees
    let density x = (1.0 + x * x / v) ** (-(v + 1.0) / 2.0)
    // x = tan(angle) turns the whole line into a finite one
    let integral till =
        let n = 20000
        let step = till / float n

        Seq.sum (
            seq {
                for i in 0 .. n - 1 ->
                    let a = (float i + 0.5) * step in density (tan a) / (cos a ** 2.0) * step
            }
        )

    integral (atan t) / integral (Math.PI / 2.0)

[<Tests>]
let tests =
    testList
        "Interval"
        [
            testCase "the interval holds 95% of Student's distribution" (fun () ->
                for n in [ 2; 3; 5; 11; 12; 31; 200 ] do
                    // values of mean 0 and variance 1
                    let values = Array.init n (fun i -> if i % 2 = 0 then 1.0 else -1.0)
                    let mean = Array.average values

                    let deviation =
                        sqrt ((values |> Array.sumBy (fun x -> (x - mean) ** 2.0)) / float (n - 1))

                    let interval = Interval.ofValues values
                    let t = interval.Half / (deviation / sqrt (float n))
                    Check.closeTo 1e-4 $"{n} values" [ 0.95 ] [ probability (n - 1) t ])

            testCase "what is not finite is left out, and one value has no interval" (fun () ->
                let interval = Interval.ofValues [ 3.0; nan; infinity ]
                Expect.equal interval.N 1 "count"
                Expect.equal interval.Mean 3.0 "mean"
                Expect.isTrue (Double.IsNaN interval.Low && Double.IsNaN interval.High) "no interval"
                Expect.isTrue (Double.IsNaN (Interval.ofValues []).Mean) "no mean of nothing")

            testCase "equal values have no interval, and no ±" (fun () ->
                let interval = Interval.ofValues [ 54.8; 54.8; 54.8 ]
                Expect.equal (interval.N, interval.Mean) (3, 54.8) "mean"
                Expect.isFalse interval.HasEnds "no interval"
                Expect.equal (Interval.text 1 interval) "54.8" "text")

            testCase "± is half of the 95% interval" (fun () ->
                // mean 3, deviation 2: 4.3027 · 2 / √3 = 4.968
                Expect.equal (Interval.text 2 (Interval.ofValues [ 1.0; 3.0; 5.0 ])) "3.00 ± 4.97" "text")

            testCase "a column is of the rows that reach it" (fun () ->
                let columns = Interval.ofColumns [| [| 1.0; 2.0 |]; [||]; [| 3.0 |] |]

                Expect.equal
                    (columns |> Array.map (fun c -> c.N, c.Mean))
                    [| 2, 2.0; 1, 2.0 |]
                    "counts and means"

                Expect.isEmpty (Interval.ofColumns [||]) "no row")

            testCase "pairs cancel what they share" (fun () ->
                let shared = [| 10.0; 70.0; 40.0 |]
                let paired = Interval.paired [| 11.0; 72.0; 43.0 |] shared

                Check.close
                    "mean and half"
                    [ 2.0; 4.3026527297494639 / sqrt 3.0 ]
                    [ paired.Mean; paired.Half ])
        ]
