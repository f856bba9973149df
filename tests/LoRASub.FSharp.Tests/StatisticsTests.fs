module LoRASub.Tests.StatisticsTests

open System
open LoRASub.Files
open LoRASub.Measure
open LoRASub.Report
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Statistics" name law

// Two-sided critical values at 50, 90, 95, 99 and 99.9 %, from the regularised incomplete beta function with 40 digits.
let private table =
    [
        1,
        [
            1.0
            6.3137515146750431
            12.706204736174705
            63.656741162871581
            636.61924876871962
        ]
        2,
        [
            0.81649658092772603
            2.9199855803537257
            4.3026527297494639
            9.9248432009182931
            31.599054576443621
        ]
        3,
        [
            0.76489232840434528
            2.3533634348018239
            3.1824463052837096
            5.8409093097333573
            12.923978636687483
        ]
        4,
        [
            0.74069708411268263
            2.1318467863266503
            2.7764451051977944
            4.6040948713499932
            8.6103015813792751
        ]
        5,
        [
            0.72668684380042265
            2.0150483733330242
            2.5705818356363155
            4.0321429835552281
            6.8688266258811102
        ]
        9,
        [
            0.70272214675132637
            1.8331129326562372
            2.2621571627982055
            3.2498355415921263
            4.7809125859311391
        ]
        10,
        [
            0.69981206131243163
            1.8124611228116764
            2.2281388519862747
            3.1692726726169512
            4.5868938587026359
        ]
        29,
        [
            0.68304386082161315
            1.6991270265334978
            2.0452296421327043
            2.7563859036706055
            3.6594050194663329
        ]
        30,
        [
            0.68275569332129255
            1.6972608865939578
            2.0422724563012383
            2.7499956535672253
            3.6459586350420218
        ]
        99,
        [
            0.67697598554615263
            1.6603911560169909
            1.9842169515864175
            2.6264054572808275
            3.3915288333636506
        ]
        100,
        [
            0.67695104301147148
            1.6602343260853396
            1.9839715185235523
            2.6258905214380178
            3.3904913111642299
        ]
        1000,
        [
            0.67473516460700944
            1.6463788172854647
            1.9623390808264085
            2.5807546980659511
            3.3002826484239129
        ]
    ]

let private levels = [ 0.5; 0.9; 0.95; 0.99; 0.999 ]

type Sample =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(0, 12)>]
        Count: int
        [<Between(0, 12)>]
        Cut: int
        /// 1e9 beside a spread of 1: where sums of squares lose everything
        Far: bool
    }

    member c.Values =
        normals c.Seed c.Count |> Array.map (fun x -> if c.Far then x + 1e9 else x)

let private slow (values: float[]) =
    let n = float values.Length
    // exact enough for a mean of 1e9: deviations from the first value
    let shift = if values.Length = 0 then 0.0 else values[0]
    let mean = (values |> Array.sumBy (fun x -> x - shift)) / n

    let squares =
        values |> Array.sumBy (fun x -> (x - shift - mean) * (x - shift - mean))

    struct (shift + mean, squares)

let private same (expected: Moments) (actual: Moments) =
    Expect.equal actual.Count expected.Count "count"
    closeTo 1e-12 "mean" [ expected.Mean ] [ actual.Mean ]
    // the mean of a billion has an ulp of 1e-7
    closeTo 1e-5 "squared deviations" [ expected.SquaredDeviations ] [ actual.SquaredDeviations ]

let private matrix (rows: (int * int) list list) : AccuracyMatrix =
    rows
    |> List.map (
        List.map (fun (correct, total) -> { Correct = correct; Total = total })
        >> Array.ofList
    )
    |> Array.ofList

// two tasks of 100 images, `last` of 200 right in the end
let private result seed last =
    Statistics.ofMatrix seed (matrix [ [ 90, 100 ]; [ last - 70, 100; 70, 100 ] ])

let private measure name (statistics: SeedStatistics) =
    statistics.Measures
    |> Array.find (fun (measure, _) -> measure.Name = name)
    |> snd

[<Tests>]
let tests =
    testList
        "Statistics"
        [
            for freedom, expected in table do
                testCase $"Student's t with {freedom} degrees of freedom ≡ the table" (fun () ->
                    closeTo
                        1e-12
                        "critical values"
                        (List.map (fun t -> t / List.last expected) expected)
                        (levels
                         |> List.map (fun level -> Statistics.studentT level freedom / List.last expected))

                    closeTo 1e-12 "0.95" [ 1.0 ] [ Statistics.studentT 0.95 freedom / expected[2] ])

            testCase "Student's t: closed forms of one and two degrees of freedom" (fun () ->
                for level in [ 0.001; 0.3; 0.8; 0.95; 0.999 ] do
                    closeTo
                        1e-12
                        $"at {level}"
                        [ tan (0.5 * Math.PI * level); level * sqrt (2.0 / (1.0 - level * level)) ]
                        [ Statistics.studentT level 1; Statistics.studentT level 2 ])

            testCase
                "Student's t falls with the degrees of freedom towards the normal distribution's"
                (fun () ->
                    let values = [ for freedom in 1..60 -> Statistics.studentT 0.95 freedom ]
                    Expect.isTrue (List.pairwise values |> List.forall (fun (a, b) -> a > b)) "falling"
                    closeTo 1e-5 "limit" [ 1.959963984540054 ] [ Statistics.studentT 0.95 1000000 ])

            for level in [ 0.0; 1.0; -0.1; nan ] do
                rejects $"a level of {level}" [ "level of an interval"; "between 0 and 1" ] (fun () ->
                    Statistics.studentT level 3 |> ignore)

            rejects "no degree of freedom" [ "degrees of freedom"; "at least 1"; "0" ] (fun () ->
                Statistics.studentT 0.95 0 |> ignore)

            property "moments ≡ two passes over the numbers" (fun (c: Sample) ->
                let moments = Moments.ofValues c.Values

                if c.Count = 0 then
                    Expect.equal moments Moments.zero "none"
                else
                    let struct (mean, squares) = slow c.Values

                    same
                        {
                            Count = int64 c.Count
                            Mean = mean
                            SquaredDeviations = squares
                        }
                        moments)

            property "moments of parts add up, in either order and grouping" (fun (c: Sample) ->
                let cut = min c.Cut c.Count
                let a = Moments.ofValues (Array.take cut c.Values)
                let b = Moments.ofValues (Array.skip cut c.Values)
                let d = Moments.single 0.5
                same (Moments.ofValues c.Values) (a + b)
                same (a + b) (b + a)
                Expect.equal (a + Moments.zero) a "identity"
                Expect.equal (Moments.zero + a) a "identity"

                if not c.Far then
                    same ((a + b) + d) (a + (b + d)))

            testCase "three seeds by hand" (fun () ->
                // mean 3, deviation 2, t = 4.3026527297494639: half width 4.3026.../√3 · 2
                let estimate = Statistics.estimate [| Some 1.0; Some 3.0; Some 5.0 |]
                let half = 4.3026527297494639 * 2.0 / sqrt 3.0

                closeTo
                    1e-12
                    "estimate"
                    [ 3.0; 2.0; 3.0 - half; 3.0 + half ]
                    ([ estimate.Mean; estimate.Deviation; estimate.Low; estimate.High ]
                     |> List.map Option.get)

                Expect.equal estimate.Count 3 "n")

            testCase "one seed has a mean and nothing more, none has nothing" (fun () ->
                let one = Statistics.estimate [| None; Some 0.5 |]
                Expect.equal (one.Count, one.Mean, one.Values) (1, Some 0.5, [| None; Some 0.5 |]) "one"
                Expect.equal (one.Deviation, one.Low, one.High) (None, None, None) "one: no spread"
                let none = Statistics.estimate [| None |]
                Expect.equal (none.Count, none.Mean, none.Deviation) (0, None, None) "none")

            testCase "equal numbers have no interval: the seed decides nothing" (fun () ->
                let estimate = Statistics.estimate (Array.create 3 (Some 0.548))
                Expect.equal estimate.Deviation (Some 0.0) "deviation"
                Expect.equal (estimate.Low, estimate.High) (None, None) "interval"
                Expect.equal (Statistics.text estimate) "54.80 (the same for 3 seeds)" "text")

            property "the interval is centred on the mean and wider at a higher level" (fun (c: Sample) ->
                let moments = Moments.ofValues c.Values

                match Statistics.interval 0.9 moments, Statistics.interval 0.99 moments with
                | None, None -> atMost "values" 1.0 (c.Values |> Array.distinct |> Array.length |> float)
                | Some struct (low, high), Some struct (lower, higher) ->
                    closeTo 1e-12 "centre" [ moments.Mean ] [ 0.5 * (low + high) ]
                    Expect.isTrue (lower <= low && high <= higher) "wider"
                | other -> failtest $"one without the other: {other}")

            testCase "seeds: measures, curve, JSON and text by hand" (fun () ->
                let statistics = Statistics.ofSeeds [| result 1L 150; result 7L 160 |]
                let last = measure "last" statistics
                closeTo 1e-12 "last" [ 0.775; 0.025 * sqrt 2.0 ] [ last.Mean.Value; last.Deviation.Value ]
                Expect.equal (measure "forwardTransfer" statistics).Count 0 "needs a reference"
                Expect.equal statistics.Curve.Length 2 "tasks"
                closeTo 1e-12 "curve" [ 0.9; 0.775 ] (statistics.Curve |> Array.map _.Mean.Value)

                // ± is half of the 95 % interval: 12.7062 · 0.0353553 / √2 = 0.317655
                Expect.contains
                    (Statistics.lines statistics)
                    "last accuracy                    77.50 ± 31.77 (45.73 to 109.27, sd 3.54, n = 2)"
                    "lines"

                Expect.isFalse
                    (Statistics.lines statistics |> Array.exists _.Contains("intransigence"))
                    "without what no seed has"

                let json = Json.ofRecord (Statistics.toFile statistics)
                let last = json["measures"]["last"]
                Expect.equal (json["seeds"].ToJsonString()) "[1,7]" "seeds"
                Expect.equal (last["n"].GetValue<int64>()) 2L "n"
                Expect.equal (last["mean"].GetValue<float>()) 77.5 "mean in percent"
                Expect.equal (last["values"].ToJsonString()) "[75,80]" "values"
                let missing = json["measures"]["intransigence"]

                Expect.equal
                    (missing.ToJsonString())
                    """{"n":0,"mean":null,"deviation":null,"low":null,"high":null,"values":[null,null]}"""
                    "missing"

                let second = json["curve"][1]
                Expect.equal (second["task"].GetValue<int64>()) 1L "task"
                Expect.equal (second["mean"].GetValue<float>()) 77.5 "curve")

            testCase "one seed: no deviation, no interval, said so" (fun () ->
                let statistics = Statistics.ofSeeds [| result 3L 150 |]

                Expect.contains
                    (Statistics.lines statistics)
                    "last accuracy                    75.00 (n = 1)"
                    "line")

            testCase "no minus stands before a zero that rounding leaves" (fun () ->
                let line = Statistics.text (Statistics.estimate [| Some -0.00001 |])
                Expect.equal line "0.00 (n = 1)" "text"
                Expect.equal (Statistics.text (Statistics.estimate [||])) "none" "none")

            testCase "a run that ended early counts in its tasks only" (fun () ->
                let short = Statistics.ofMatrix 2L (matrix [ [ 80, 100 ] ])
                let statistics = Statistics.ofSeeds [| short; result 1L 150 |]
                Expect.equal (statistics.Curve |> Array.map _.Count) [| 2; 1 |] "n"
                Expect.equal (measure "forgetting" statistics).Values[0] None "no forgetting of one task")

            rejects "no run" [ "at least one"; "none" ] (fun () -> Statistics.ofSeeds [||] |> ignore)

            rejects "a seed that stands twice" [ "seed 4"; "one run"; "2 runs" ] (fun () ->
                Statistics.ofSeeds [| result 4L 150; result 4L 151 |] |> ignore)
        ]
