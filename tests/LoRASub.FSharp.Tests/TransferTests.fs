module LoRASub.Tests.TransferTests

open LoRASub.Measure
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Transfer" name law

let private score (correct, total) = { Correct = correct; Total = total }

let private matrix (rows: (int * int) list list) : AccuracyMatrix =
    rows |> List.map (List.map score >> Array.ofList) |> Array.ofList

// a class for each of `tasks`: task, label, right, all
let private run trained rows (classes: (int * int * int * int) list) : RunScores =
    {
        Trained = trained
        Head = "nearest-mean@class-token"
        Matrix = matrix rows
        Classes =
            classes
            |> List.mapi (fun position (task, label, correct, total) ->
                {
                    Position = position
                    Label = label
                    Name = $"class {label}"
                    Task = task
                    Score = score (correct, total)
                })
            |> Array.ofList
    }

// three tasks of 10, 5 and 4 test images; the first has two classes
let private own =
    run
        true
        [ [ 8, 10 ]; [ 7, 10; 4, 5 ]; [ 7, 10; 3, 5; 3, 4 ] ]
        [ 0, 6, 4, 6; 0, 2, 3, 4; 1, 9, 3, 5; 2, 0, 3, 4 ]

let private frozen =
    run
        false
        [ [ 6, 10 ]; [ 6, 10; 2, 5 ]; [ 5, 10; 2, 5; 1, 4 ] ]
        // the classes of a task in another order
        [ 0, 2, 2, 4; 0, 6, 3, 6; 1, 9, 2, 5; 2, 0, 1, 4 ]

let private joint =
    run true [ [ 16, 19 ] ] [ 0, 0, 4, 4; 0, 2, 3, 4; 0, 6, 5, 6; 0, 9, 4, 5 ]

let private before = [| score (3, 5); score (1, 4) |]

let private value (result: Result<float, string>) =
    match result with
    | Ok value -> value
    | Error reason -> failtest $"no value: {reason}"

let private because (words: string list) (result: Result<float, string>) =
    match result with
    | Ok value -> failtest $"has a value: {value}"
    | Error reason ->
        for word in words do
            Expect.stringContains reason word "reason"

let private lacks name pick words references before run =
    testCase name (fun () -> Transfer.measure references before run |> pick |> because words)

let private noForward name =
    lacks $"no forward transfer: {name}" _.ForwardTransfer

let private noIntransigence name =
    lacks $"no intransigence: {name}" _.Intransigence

type Tasks =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 5)>]
        Count: int
    }

    // one class of a task, with 1 to 9 test images
    member c.Totals = integers c.Seed 9 c.Count |> Array.map ((+) 1)

    member c.Run trained shift : RunScores =
        let random = System.Random(c.Seed + shift)

        let rows =
            [
                for t in 0 .. c.Count - 1 -> [ for j in 0..t -> random.Next(c.Totals[j] + 1), c.Totals[j] ]
            ]

        run
            trained
            rows
            [
                for t in 0 .. c.Count - 1 -> let correct, total = (List.last rows)[t] in t, t, correct, total
            ]

    member c.Joint =
        let scores = integers (c.Seed + 5) 9 c.Count |> Array.map2 min c.Totals

        run
            true
            [ [ Array.sum scores, Array.sum c.Totals ] ]
            [ for t in 0 .. c.Count - 1 -> 0, t, scores[t], c.Totals[t] ]

[<Tests>]
let tests =
    testList
        "Transfer"
        [
            testCase "both by hand" (fun () ->
                let transfer = Transfer.measure [| joint; frozen |] before own
                // (3/5 − 2/5 + 1/4 − 1/4) / 2; 4/4 − 3/4
                closeTo 1e-12 "forward transfer" [ 0.1 ] [ value transfer.ForwardTransfer ]
                closeTo 1e-12 "intransigence" [ 0.25 ] [ value transfer.Intransigence ]
                // the sum over all three tasks, or over all of their number, is not the definition
                Expect.notEqual (value transfer.ForwardTransfer) (0.2 / 3.0) "not over all tasks"
                let measures = Transfer.complete transfer (Metrics.measure own.Matrix)

                Expect.equal
                    (Map.tryFind "forwardTransfer" measures)
                    (Result.toOption transfer.ForwardTransfer)
                    "completed"

                Expect.equal (Map.tryFind "intransigence" measures) (Some 0.25) "completed"
                Expect.isNone (Transfer.note transfer.Intransigence) "no note")

            testCase "one task has intransigence and no forward transfer" (fun () ->
                let one = run true [ [ 3, 4 ] ] [ 0, 5, 3, 4 ]
                let all = run true [ [ 2, 4 ] ] [ 0, 5, 2, 4 ]
                let transfer = Transfer.measure [| all; { all with Trained = false } |] [||] one
                Expect.equal (value transfer.Intransigence) -0.25 "worse than alone"
                because [ "one task" ] transfer.ForwardTransfer
                Expect.isSome (Transfer.note transfer.ForwardTransfer) "note")

            testCase "two tasks by hand" (fun () ->
                let two = run true [ [ 1, 2 ]; [ 1, 2; 1, 1 ] ] [ 0, 0, 1, 2; 1, 1, 1, 1 ]

                let zero =
                    { two with
                        Trained = false
                        Matrix = matrix [ [ 1, 2 ]; [ 1, 2; 0, 1 ] ]
                    }

                let transfer = Transfer.measure [| zero |] [| score (1, 1) |] two
                Expect.equal (value transfer.ForwardTransfer) 1.0 "forward transfer")

            testCase "a run that stopped early takes what its reference has of the same tasks" (fun () ->
                let short =
                    { own with
                        Matrix = Array.truncate 2 own.Matrix
                        Classes = Array.truncate 3 own.Classes
                    }

                let transfer = Transfer.measure [| frozen; joint |] [| before[0] |] short
                closeTo 1e-12 "forward transfer" [ 0.2 ] [ value transfer.ForwardTransfer ]
                because [ "other classes" ] transfer.Intransigence)

            testCase "the first reference that fits counts" (fun () ->
                let other (reference: RunScores) = { reference with Head = "ridge@rich" }
                let of' references = Transfer.measure references before own
                let expected = of' [| frozen; joint |]
                let found = of' [| other frozen; other joint; frozen; joint |]
                Expect.equal found expected "measures"
                let none = of' [| other frozen; other joint |]
                because [ "scored with ridge@rich, not nearest-mean@class-token" ] none.ForwardTransfer
                because [ "scored with ridge@rich" ] none.Intransigence)

            noForward "no reference" [ "needs a reference run"; "without training" ] [||] before own
            noForward
                "a trained one only"
                [ "without training" ]
                [| { frozen with Trained = true } |]
                before
                own
            noForward "nothing was scored before" [ "not scored before" ] [| frozen |] [||] own
            noForward
                "other images before"
                [ "not scored before" ]
                [| frozen |]
                [| score (3, 5); score (1, 5) |]
                own
            noForward
                "too few tasks"
                [ "2 of the 3 tasks" ]
                [|
                    { frozen with
                        Matrix = Array.truncate 2 frozen.Matrix
                    }
                |]
                before
                own

            noForward
                "other classes in a task"
                [ "other classes"; "task 2" ]
                [|
                    { frozen with
                        Classes =
                            frozen.Classes
                            |> Array.map (fun one -> if one.Label = 9 then { one with Label = 8 } else one)
                    }
                |]
                before
                own

            noForward
                "other test images"
                [ "test images"; "task 3" ]
                [|
                    { frozen with
                        Matrix = matrix [ [ 6, 10 ]; [ 6, 10; 2, 5 ]; [ 5, 10; 2, 5; 1, 9 ] ]
                    }
                |]
                before
                own

            noIntransigence "no reference" [ "needs a reference run"; "one task" ] [||] before own
            // I_k compares with joint learning; a run of the same tasks is none
            noIntransigence "a reference of the same tasks" [ "one task" ] [| own |] before own
            noIntransigence
                "an untrained joint run"
                [ "one task" ]
                [| { joint with Trained = false } |]
                before
                own

            noIntransigence
                "a joint run of more classes"
                [ "other classes" ]
                [|
                    { joint with
                        Classes = Array.append joint.Classes [| { joint.Classes[0] with Label = 50 } |]
                    }
                |]
                before
                own

            noIntransigence
                "other test images"
                [ "8 test images"; "not 4" ]
                [|
                    { joint with
                        Classes = joint.Classes |> Array.map (fun one -> { one with Score = score (4, 8) })
                    }
                |]
                before
                own

            property "a run is its own baseline: forward transfer of its diagonal is 0" (fun (c: Tasks) ->
                let frozen = c.Run false 3
                let diagonal = frozen.Matrix |> Array.map Array.last |> Array.skip 1
                let transfer = Transfer.measure [| frozen |] diagonal (c.Run true 4)

                if c.Count = 1 then
                    because [ "one task" ] transfer.ForwardTransfer
                else
                    Expect.equal (value transfer.ForwardTransfer) 0.0 "forward transfer")

            property "both ≡ their definitions" (fun (c: Tasks) ->
                let own, frozen, joint = c.Run true 4, c.Run false 3, c.Joint
                let before = c.Run (true) 6 |> _.Matrix |> Array.map Array.last |> Array.skip 1
                let transfer = Transfer.measure [| frozen; joint |] before own
                let share (s: Score) = float s.Correct / float s.Total
                let last = c.Count - 1
                let diagonal t = share (Array.last own.Matrix[t])

                closeTo
                    1e-12
                    "intransigence"
                    [ share joint.Classes[last].Score - diagonal last ]
                    [ value transfer.Intransigence ]

                if c.Count > 1 then
                    let terms =
                        [
                            for t in 1..last -> share before[t - 1] - share (Array.last frozen.Matrix[t])
                        ]

                    closeTo
                        1e-12
                        "forward transfer"
                        [ List.average terms ]
                        [ value transfer.ForwardTransfer ])

            rejects "a matrix that is none" [ "accuracy matrix" ] (fun () ->
                Transfer.measure [| { joint with Matrix = [||] } |] before own |> ignore)
        ]
