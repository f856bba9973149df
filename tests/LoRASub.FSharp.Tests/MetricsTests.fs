module LoRASub.Tests.MetricsTests

open System
open Expecto
open LoRASub
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Metrics" name law

let private matrix (rows: (int * int) list list) : AccuracyMatrix =
    rows
    |> List.map (
        List.map (fun (correct, total) -> { Correct = correct; Total = total })
        >> Array.ofList
    )
    |> Array.ofList

type Run =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 7)>]
        Tasks: int
        [<Between(1, 40)>]
        Largest: int
        EqualSizes: bool
    }

    member c.Totals =
        if c.EqualSizes then
            Array.create c.Tasks c.Largest
        else
            integers c.Seed c.Largest c.Tasks |> Array.map ((+) 1)

    member c.Matrix: AccuracyMatrix =
        let random = Random(c.Seed + 1)

        Array.init c.Tasks (fun t ->
            Array.init (t + 1) (fun j ->
                {
                    Correct = random.Next(c.Totals[j] + 1)
                    Total = c.Totals[j]
                }))

    /// The same, each column falling from its diagonal on.
    member c.Falling: AccuracyMatrix =
        let m = c.Matrix

        m
        |> Array.mapi (fun t row ->
            row
            |> Array.mapi (fun j score ->
                { score with
                    Correct = Seq.min (seq { for s in j..t -> (Array.item j m[s]: Score).Correct })
                }))

// The definitions, by hand.

let private acc (m: AccuracyMatrix) t j =
    let score: Score = m[t][j]
    float score.Correct / float score.Total

let private slow (m: AccuracyMatrix) =
    let tasks = m.Length

    let seen t =
        let row: Score[] = m[t]
        float (row |> Array.sumBy _.Correct) / float (row |> Array.sumBy _.Total)

    let byTask t =
        Seq.average (seq { for j in 0..t -> acc m t j })

    let earlier f =
        if tasks = 1 then
            None
        else
            Some(Seq.average (seq { for j in 0 .. tasks - 2 -> f j }))

    {
        Last = seen (tasks - 1)
        Average = Seq.average (seq { for t in 0 .. tasks - 1 -> seen t })
        LastByTask = byTask (tasks - 1)
        AverageByTask = Seq.average (seq { for t in 0 .. tasks - 1 -> byTask t })
        Forgetting =
            earlier (fun j -> Seq.max (seq { for t in j .. tasks - 2 -> acc m t j }) - acc m (tasks - 1) j)
        BackwardTransfer = earlier (fun j -> acc m (tasks - 1) j - acc m j j)
        ForwardTransfer = None
        Intransigence = None
    }

let private sameMeasures (expected: Measures) (actual: Measures) =
    let numbers (m: Measures) =
        [ m.Last; m.Average; m.LastByTask; m.AverageByTask ]
        @ Option.toList m.Forgetting
        @ Option.toList m.BackwardTransfer

    closeTo 1e-12 "measures" (numbers expected) (numbers actual)

[<Tests>]
let tests =
    testList
        "Metrics"
        [
            testCase "two tasks of different sizes, by hand" (fun () ->
                sameMeasures
                    {
                        Last = 9.0 / 12.0
                        Average = (0.9 + 0.75) / 2.0
                        LastByTask = 0.65
                        AverageByTask = (0.9 + 0.65) / 2.0
                        Forgetting = Some 0.1
                        BackwardTransfer = Some -0.1
                        ForwardTransfer = None
                        Intransigence = None
                    }
                    (Metrics.measure (matrix [ [ 9, 10 ]; [ 8, 10; 1, 2 ] ])))

            testCase "forgetting takes the best earlier accuracy, transfer the diagonal" (fun () ->
                let measures =
                    Metrics.measure (matrix [ [ 2, 4 ]; [ 4, 4; 4, 8 ]; [ 3, 4; 2, 8; 1, 1 ] ])

                // task 0: 1.0 -> 0.75 (diagonal 0.5); task 1: 0.5 -> 0.25
                Expect.equal measures.Forgetting (Some 0.25) "forgetting"
                Expect.equal measures.BackwardTransfer (Some 0.0) "backward transfer")

            testCase "one task has neither forgetting nor transfer" (fun () ->
                let measures = Metrics.measure (matrix [ [ 3, 4 ] ])

                Expect.equal
                    measures
                    {
                        Last = 0.75
                        Average = 0.75
                        LastByTask = 0.75
                        AverageByTask = 0.75
                        Forgetting = None
                        BackwardTransfer = None
                        ForwardTransfer = None
                        Intransigence = None
                    }
                    "measures")

            for name, correct, accuracy in [ "a perfect run", 5, 1.0; "a run without a right answer", 0, 0.0 ] do
                testCase name (fun () ->
                    Expect.equal
                        (Metrics.measure (matrix [ for t in 0..3 -> [ for _ in 0..t -> correct, 5 ] ]))
                        {
                            Last = accuracy
                            Average = accuracy
                            LastByTask = accuracy
                            AverageByTask = accuracy
                            Forgetting = Some 0.0
                            BackwardTransfer = Some 0.0
                            ForwardTransfer = None
                            Intransigence = None
                        }
                        "measures")

            property "measures ≡ their definitions" (fun (c: Run) ->
                sameMeasures (slow c.Matrix) (Metrics.measure c.Matrix))

            property "backward transfer = −forgetting when peaks lie on the diagonal" (fun (c: Run) ->
                let measures = Metrics.measure c.Falling

                closeTo
                    1e-12
                    "backward transfer"
                    (measures.Forgetting |> Option.map (~-) |> Option.toList)
                    (Option.toList measures.BackwardTransfer))

            property "images and tasks weigh the same where tasks are of one size" (fun (c: Run) ->
                let measures = Metrics.measure { c with EqualSizes = true }.Matrix
                closeTo 1e-12 "last" [ measures.LastByTask ] [ measures.Last ]
                closeTo 1e-12 "average" [ measures.AverageByTask ] [ measures.Average ])

            property
                "forgetting is at least −backward transfer, and all shares lie in [0, 1]"
                (fun (c: Run) ->
                    let m = Metrics.measure c.Matrix

                    for share in [ m.Last; m.Average; m.LastByTask; m.AverageByTask ] do
                        Check.between "share" 0.0 1.0 share

                    match m.Forgetting, m.BackwardTransfer with
                    | Some forgetting, Some transfer -> atMost "−transfer" (forgetting + 1e-12) -transfer
                    | None, None -> Expect.equal c.Tasks 1 "one task"
                    | other -> failtest $"one without the other: {other}")

            testCase "scores add up in whole numbers" (fun () ->
                let sum = { Correct = 1; Total = 3 } + { Correct = 2000000; Total = 3000000 }
                Expect.equal sum { Correct = 2000001; Total = 3000003 } "sum"
                Expect.equal (Metrics.accuracy { Correct = 1; Total = 3 }) (1.0 / 3.0) "accuracy")

            testCase "wrong numbers of tasks under a mean, as some published code has them, differ" (fun () ->
                let m = matrix [ [ 2, 4 ]; [ 4, 4; 4, 8 ]; [ 3, 4; 2, 8; 1, 1 ] ]
                let measures = Metrics.measure m
                // over all 3 tasks instead of the 2 earlier ones
                let falls = (1.0 - 0.75) + (0.5 - 0.25)
                closeTo 1e-12 "forgetting" [ falls / 2.0 ] [ measures.Forgetting.Value ]
                Expect.notEqual measures.Forgetting.Value (falls / 3.0) "not over all tasks"

                let m = matrix [ [ 2, 3 ]; [ 1, 3; 5, 7 ] ]
                let measures = Metrics.measure m
                closeTo 1e-12 "transfer" [ -1.0 / 3.0 ] [ measures.BackwardTransfer.Value ]
                Expect.notEqual measures.BackwardTransfer.Value (-1.0 / 6.0) "not over all tasks"
                closeTo 1e-12 "last, by images" [ 6.0 / 10.0 ] [ measures.Last ]
                closeTo 1e-12 "last, by tasks" [ (1.0 / 3.0 + 5.0 / 7.0) / 2.0 ] [ measures.LastByTask ])

            testCase
                "accuracy times images, cut to a whole number, loses right answers; integers do not"
                (fun () ->
                    let score = { Correct = 29; Total = 50 }
                    Expect.equal (int (Metrics.accuracy score * 50.0)) 28 "cut"
                    Expect.equal (Metrics.seen [| score; score |]) { Correct = 58; Total = 100 } "counted")

            testCase "forward transfer by hand: two tasks, three tasks, one task" (fun () ->
                let transfer = Metrics.forwardTransfer
                closeTo 1e-12 "two tasks" [ 0.1 ] [ (transfer [| 0.6 |] [| 0.5 |]).Value ]
                closeTo 1e-12 "three tasks" [ -0.05 ] [ (transfer [| 0.6; 0.3 |] [| 0.5; 0.5 |]).Value ]
                Expect.isNone (transfer [||] [||]) "one task")

            rejects "a baseline of another length" [ "baseline"; "2 tasks"; "found 1" ] (fun () ->
                Metrics.forwardTransfer [| 0.1; 0.2 |] [| 0.1 |] |> ignore)

            property "the curve begins at the first task and averages to the average" (fun (c: Run) ->
                let curve = Metrics.curve c.Matrix
                let measures = Metrics.measure c.Matrix
                Expect.equal curve.Length c.Tasks "tasks"
                closeTo 1e-12 "average" [ measures.Average ] [ Array.average curve ]
                closeTo 1e-12 "ends" [ acc c.Matrix 0 0; measures.Last ] [ curve[0]; Array.last curve ])

            testCase "every measure has a name of its own" (fun () ->
                let named = Measures.named (Metrics.measure (matrix [ [ 9, 10 ]; [ 8, 10; 1, 2 ] ]))
                Expect.equal (named |> Array.distinctBy fst) named "names"

                Expect.equal
                    (named |> Array.filter (snd >> Option.isNone) |> Array.map fst)
                    [| "forwardTransfer"; "intransigence" |]
                    "what needs other runs")

            rejects "no task" [ "accuracy matrix"; "at least one task" ] (fun () -> Metrics.check [||])

            rejects "a square matrix" [ "row 0"; "1 entries"; "2" ] (fun () ->
                Metrics.measure (matrix [ [ 1, 1; 1, 1 ]; [ 1, 1; 1, 1 ] ]) |> ignore)

            rejects "a missing entry" [ "row 1"; "2 entries"; "1" ] (fun () ->
                Metrics.measure (matrix [ [ 1, 1 ]; [ 1, 1 ] ]) |> ignore)

            for name, score in
                [
                    "no image", (0, 0)
                    "more right than images", (3, 2)
                    "a negative count", (-1, 2)
                ] do
                rejects name [ "row 1, task 0"; $"{fst score} of {snd score}" ] (fun () ->
                    Metrics.measure (matrix [ [ 1, 1 ]; [ score; 1, 1 ] ]) |> ignore)
        ]
