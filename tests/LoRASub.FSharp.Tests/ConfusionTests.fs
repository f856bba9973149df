module LoRASub.Tests.ConfusionTests

open LoRASub.Measure
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Confusion" name law

type Predictions =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(0, 40)>]
        Images: int
        [<Between(1, 6)>]
        Classes: int
        [<Between(0, 40)>]
        Cut: int
    }

    member c.Truth = integers c.Seed c.Classes c.Images
    member c.Predicted = integers (c.Seed + 1) c.Classes c.Images
    member c.Answers = integers (c.Seed + 2) c.Classes c.Classes
    member c.Confusion = Confusion.ofPredictions c.Truth c.Predicted c.Classes

let private of' (rows: int list list) : Confusion =
    {
        Counts = rows |> List.map Array.ofList |> Array.ofList
    }

[<Tests>]
let tests =
    testList
        "Confusion"
        [
            testCase "four images of two classes, by hand" (fun () ->
                let confusion = Confusion.ofPredictions [| 0; 0; 1; 0 |] [| 0; 1; 1; 1 |] 2
                Expect.equal confusion (of' [ [ 1; 2 ]; [ 0; 1 ] ]) "counts"

                Expect.equal
                    (Confusion.scores [| 0; 1 |] confusion)
                    [| { Correct = 1; Total = 3 }; { Correct = 1; Total = 1 } |]
                    "scores")

            testCase "a class's other domain is a right answer" (fun () ->
                // positions 0, 1: two classes of the first domain; 2, 3: the same classes of the second
                let confusion =
                    of' [ [ 5; 1; 2; 0 ]; [ 0; 4; 0; 3 ]; [ 1; 0; 6; 1 ]; [ 0; 0; 0; 0 ] ]

                Expect.equal
                    (Confusion.scores [| 0; 1; 0; 1 |] confusion)
                    [|
                        { Correct = 7; Total = 8 }
                        { Correct = 7; Total = 7 }
                        { Correct = 7; Total = 8 }
                        { Correct = 0; Total = 0 }
                    |]
                    "by class"

                Expect.equal
                    (Confusion.scores [| 0..3 |] confusion)
                    [|
                        { Correct = 5; Total = 8 }
                        { Correct = 4; Total = 7 }
                        { Correct = 6; Total = 8 }
                        { Correct = 0; Total = 0 }
                    |]
                    "positions as answers")

            property "counts ≡ a loop over the images" (fun (c: Predictions) ->
                let counts = c.Confusion.Counts
                let pairs = Array.zip c.Truth c.Predicted

                for i in 0 .. c.Classes - 1 do
                    for j in 0 .. c.Classes - 1 do
                        Expect.equal
                            (counts[i][j])
                            (pairs |> Array.filter ((=) (i, j)) |> Array.length)
                            $"{i} taken for {j}"

                Expect.equal (counts |> Array.sumBy Array.sum) c.Images "every image once")

            property "parts add up to the whole, in either order" (fun (c: Predictions) ->
                let cut = min c.Cut c.Images

                let half f =
                    Confusion.ofPredictions (f c.Truth) (f c.Predicted) c.Classes

                let first, second = half (Array.take cut), half (Array.skip cut)
                Expect.equal (first + second) c.Confusion "first + second"
                Expect.equal (second + first) c.Confusion "second + first")

            property "no image is the identity, of any size up to the other's" (fun (c: Predictions) ->
                for size in 0 .. c.Classes do
                    Expect.equal (c.Confusion + Confusion.zero size) c.Confusion "from the right"
                    Expect.equal (Confusion.zero size + c.Confusion) c.Confusion "from the left")

            property "adding up is associative where sizes differ" (fun (c: Predictions) ->
                let a = c.Confusion

                let b =
                    { c with
                        Classes = c.Classes + 2
                        Seed = c.Seed + 7
                    }
                        .Confusion

                let d =
                    { c with
                        Classes = 1
                        Seed = c.Seed + 9
                    }
                        .Confusion

                Expect.equal ((a + b) + d) (a + (b + d)) "sum"
                Expect.equal (a + d).Counts.Length c.Classes "the larger size")

            property "scores ≡ counting right answers image by image" (fun (c: Predictions) ->
                let right position =
                    Array.zip c.Truth c.Predicted
                    |> Array.filter (fun (t, p) -> t = position && c.Answers[t] = c.Answers[p])
                    |> Array.length

                let total position =
                    c.Truth |> Array.filter ((=) position) |> Array.length

                Expect.equal
                    (Confusion.scores c.Answers c.Confusion)
                    [| for i in 0 .. c.Classes - 1 -> { Correct = right i; Total = total i } |]
                    "scores")

            testCase "adding leaves its arguments as they were" (fun () ->
                let a = of' [ [ 1 ] ]
                let b = of' [ [ 2; 0 ]; [ 0; 3 ] ]
                let sum = a + b
                Expect.equal sum (of' [ [ 3; 0 ]; [ 0; 3 ] ]) "sum"
                sum.Counts[0][0] <- 99
                Expect.equal (a, b) (of' [ [ 1 ] ], of' [ [ 2; 0 ]; [ 0; 3 ] ]) "arguments")

            testCase "classes carry label, name and task" (fun () ->
                Expect.equal
                    (Confusion.classes
                        [| 0; 1 |]
                        [| 7; 3 |]
                        [| "cat"; "dog" |]
                        [| 0; 1 |]
                        (of' [ [ 1; 1 ]; [ 0; 0 ] ]))
                    [|
                        {
                            Position = 0
                            Label = 7
                            Name = "cat"
                            Task = 0
                            Score = { Correct = 1; Total = 2 }
                        }
                        {
                            Position = 1
                            Label = 3
                            Name = "dog"
                            Task = 1
                            Score = { Correct = 0; Total = 0 }
                        }
                    |]
                    "classes")

            rejects "fewer predictions than labels" [ "predictions"; "as many as labels, 2"; "1" ] (fun () ->
                Confusion.ofPredictions [| 0; 0 |] [| 0 |] 1 |> ignore)

            for name, truth, predicted, words in
                [
                    "a label too large", 2, 0, [ "true position"; "0 to 1"; "2" ]
                    "a negative prediction", 0, -1, [ "predicted position"; "-1" ]
                ] do
                rejects name words (fun () -> Confusion.ofPredictions [| truth |] [| predicted |] 2 |> ignore)

            rejects "too few answers" [ "answers"; "at least 2"; "1" ] (fun () ->
                Confusion.scores [| 0 |] (Confusion.zero 2) |> ignore)

            rejects "too few names" [ "names"; "at least 2"; "1" ] (fun () ->
                Confusion.classes [| 0; 1 |] [| 0; 1 |] [| "a" |] [| 0; 0 |] (Confusion.zero 2)
                |> ignore)
        ]
