module LoRASub.Tests.MetricsTests

open System
open LoRASub.Core
open LoRASub.Files
open LoRASub.Measure
open Expecto
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
        Seq.average (seq { for j in 0 .. tasks - 2 -> f j })

    Map.ofList
        [
            "last", seen (tasks - 1)
            "average", Seq.average (seq { for t in 0 .. tasks - 1 -> seen t })
            "lastByTask", byTask (tasks - 1)
            "averageByTask", Seq.average (seq { for t in 0 .. tasks - 1 -> byTask t })
            if tasks > 1 then
                "forgetting",
                earlier (fun j ->
                    Seq.max (seq { for t in j .. tasks - 2 -> acc m t j }) - acc m (tasks - 1) j)

                "backwardTransfer", earlier (fun j -> acc m (tasks - 1) j - acc m j j)
        ]

let private sameMeasures (expected: Measures) (actual: Measures) =
    Expect.equal (Seq.toList actual.Keys) (Seq.toList expected.Keys) "names"
    closeTo 1e-12 "measures" (Seq.toList expected.Values) (Seq.toList actual.Values)

[<Tests>]
let tests =
    testList
        "Metrics"
        [
            testCase "two tasks of different sizes, by hand" (fun () ->
                sameMeasures
                    (Map.ofList
                        [
                            "last", 9.0 / 12.0
                            "average", (0.9 + 0.75) / 2.0
                            "lastByTask", 0.65
                            "averageByTask", (0.9 + 0.65) / 2.0
                            "forgetting", 0.1
                            "backwardTransfer", -0.1
                        ])
                    (Metrics.measure (matrix [ [ 9, 10 ]; [ 8, 10; 1, 2 ] ])))

            testCase "forgetting takes the best earlier accuracy, transfer the diagonal" (fun () ->
                let measures =
                    Metrics.measure (matrix [ [ 2, 4 ]; [ 4, 4; 4, 8 ]; [ 3, 4; 2, 8; 1, 1 ] ])

                // task 0: 1.0 -> 0.75 (diagonal 0.5); task 1: 0.5 -> 0.25
                Expect.equal (Map.tryFind "forgetting" measures) (Some 0.25) "forgetting"
                Expect.equal (Map.tryFind "backwardTransfer" measures) (Some 0.0) "backward transfer")

            testCase "one task has neither forgetting nor transfer" (fun () ->
                let measures = Metrics.measure (matrix [ [ 3, 4 ] ])

                Expect.equal
                    measures
                    (Map.ofList [ "last", 0.75; "average", 0.75; "lastByTask", 0.75; "averageByTask", 0.75 ])
                    "measures")

            for name, correct, accuracy in [ "a perfect run", 5, 1.0; "a run without a right answer", 0, 0.0 ] do
                testCase name (fun () ->
                    Expect.equal
                        (Metrics.measure (matrix [ for t in 0..3 -> [ for _ in 0..t -> correct, 5 ] ]))
                        (Map.ofList
                            [
                                "last", accuracy
                                "average", accuracy
                                "lastByTask", accuracy
                                "averageByTask", accuracy
                                "forgetting", 0.0
                                "backwardTransfer", 0.0
                            ])
                        "measures")

            property "measures ≡ their definitions" (fun (c: Run) ->
                sameMeasures (slow c.Matrix) (Metrics.measure c.Matrix))

            property "backward transfer = −forgetting when peaks lie on the diagonal" (fun (c: Run) ->
                let measures = Metrics.measure c.Falling

                closeTo
                    1e-12
                    "backward transfer"
                    ((Map.tryFind "forgetting" measures) |> Option.map (~-) |> Option.toList)
                    (Option.toList (Map.tryFind "backwardTransfer" measures)))

            property "images and tasks weigh the same where tasks are of one size" (fun (c: Run) ->
                let measures = Metrics.measure { c with EqualSizes = true }.Matrix
                closeTo 1e-12 "last" [ measures["lastByTask"] ] [ measures["last"] ]
                closeTo 1e-12 "average" [ measures["averageByTask"] ] [ measures["average"] ])

            property
                "forgetting is at least −backward transfer, and all shares lie in [0, 1]"
                (fun (c: Run) ->
                    let m = Metrics.measure c.Matrix

                    for share in [ m["last"]; m["average"]; m["lastByTask"]; m["averageByTask"] ] do
                        Check.between "share" 0.0 1.0 share

                    match (Map.tryFind "forgetting" m), (Map.tryFind "backwardTransfer" m) with
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
                closeTo 1e-12 "forgetting" [ falls / 2.0 ] [ measures["forgetting"] ]
                Expect.notEqual measures["forgetting"] (falls / 3.0) "not over all tasks"

                let m = matrix [ [ 2, 3 ]; [ 1, 3; 5, 7 ] ]
                let measures = Metrics.measure m
                closeTo 1e-12 "transfer" [ -1.0 / 3.0 ] [ measures["backwardTransfer"] ]
                Expect.notEqual measures["backwardTransfer"] (-1.0 / 6.0) "not over all tasks"
                closeTo 1e-12 "last, by images" [ 6.0 / 10.0 ] [ measures["last"] ]
                closeTo 1e-12 "last, by tasks" [ (1.0 / 3.0 + 5.0 / 7.0) / 2.0 ] [ measures["lastByTask"] ])

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
                closeTo 1e-12 "average" [ measures["average"] ] [ Array.average curve ]
                closeTo 1e-12 "ends" [ acc c.Matrix 0 0; measures["last"] ] [ curve[0]; Array.last curve ])

            testCase "every measure is one row: a name, a title and a source of its own" (fun () ->
                let all = Metrics.all
                Expect.hasLength (List.distinctBy (fun (m: Measure) -> m.Name) all) all.Length "names"
                Expect.hasLength (List.distinctBy (fun (m: Measure) -> m.Title) all) all.Length "titles"
                Expect.all all (fun m -> m.Source <> "") "sources"

                let measures = Metrics.measure (matrix [ [ 9, 10 ]; [ 8, 10; 1, 2 ] ])

                Expect.equal
                    (all |> List.map _.Name |> List.filter (measures.ContainsKey >> not))
                    [ "forwardTransfer"; "intransigence" ]
                    "what needs other runs")

            testCase "measures lie flat in a JSON object, in percent, and come back" (fun () ->
                let measures =
                    Metrics.measure (matrix [ [ 9, 10 ]; [ 8, 10; 1, 2 ] ])
                    |> Map.add "intransigence" -0.125

                let node = Json.object (Metrics.members measures)
                Expect.equal (node["last"].ToJsonString()) "75" "percent"
                Expect.equal (node["intransigence"].ToJsonString()) "-12.5" "from other runs"
                Expect.isTrue (isNull node["forwardTransfer"]) "null for none"
                use document = System.Text.Json.JsonDocument.Parse(node.ToJsonString())
                sameMeasures measures (Metrics.ofMembers document.RootElement))

            property "forgetting is the mean over tasks of what is forgotten" (fun (c: Run) ->
                match Metrics.forgotten c.Matrix with
                | [||] -> Expect.equal c.Tasks 1 "one task"
                | tasks ->
                    Expect.equal tasks.Length (c.Tasks - 1) "tasks"
                    closeTo 1e-12 "mean" [ (Metrics.measure c.Matrix)["forgetting"] ] [ Array.average tasks ])

            testCase "what changes over time needs the same test images every time" (fun () ->
                let few = matrix [ [ 1, 1 ]; [ 8, 10; 1, 2 ] ]
                let measures = Metrics.measure few
                Expect.isEmpty (Metrics.forgotten few) "forgotten"

                for name in [ "forgetting"; "backwardTransfer" ] do
                    Expect.isFalse (measures.ContainsKey name) name

                closeTo 1e-12 "last" [ measures["last"] ] [ 0.75 ])

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
