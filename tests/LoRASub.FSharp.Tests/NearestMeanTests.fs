module LoRASub.Tests.NearestMeanTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Measure
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "NearestMean" name law
let private float64 = torch.ScalarType.Float64

type Features =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 12)>]
        Rows: int
        [<Between(1, 5)>]
        Width: int
        [<Between(1, 5)>]
        Classes: int
    }

    member c.X = normalMatrix c.Seed c.Rows c.Width |> Oracles.scale 3.0
    member c.Means = normalMatrix (c.Seed + 1) c.Classes c.Width |> Oracles.scale 5.0

let private learned (means: float[,]) : Scorer = NearestMean.ofMeans (tensor means)

/// Squared distances of unit vectors, of which the score is 1 − d/2.
let private distances (scorer: Scorer) (x: torch.Tensor) : torch.Tensor =
    (scorer.Score x).sub(Scalar.op_Implicit 1.0).mul(Scalar.op_Implicit -2.0)

let private nearest (scorer: Scorer) x =
    wholeNumbers (Scorer.best (scorer.Score(tensor x))) |> Array.map int

let private example: Features =
    {
        Seed = 1
        Rows = 6
        Width = 3
        Classes = 2
    }

[<Tests>]
let tests =
    testList
        "NearestMean"
        [
            property "squared distances ≡ the loops" (fun (c: Features) ->
                closeMatrix
                    "distances"
                    (Oracles.squaredDistances c.Means c.X)
                    (distances (learned c.Means) (tensor c.X)))

            property "the nearest prototype ≡ the loops" (fun (c: Features) ->
                let expected = Oracles.squaredDistances c.Means c.X

                nearest (learned c.Means) c.X
                |> Array.iteri (fun i position ->
                    // a row whose two nearest differ by rounding alone may go to either
                    atMost "its distance" (Array.min (row expected i) + 1e-12) expected[i, position]))

            property "nearest on unit vectors = largest cosine" (fun (c: Features) ->
                let cosines = Oracles.multiply (unitRows c.X) (Oracles.transpose (unitRows c.Means))

                nearest (learned c.Means) c.X
                |> Array.iteri (fun i position ->
                    closeTo 1e-9 "cosine" [ Array.max (row cosines i) ] [ cosines[i, position] ]))

            property "adding a class never changes or reorders the others' scores" (fun (c: Features) ->
                let old = learned c.Means

                let more =
                    NearestMean.ofMeans (
                        torch.cat [| tensor c.Means; tensor (normalMatrix (c.Seed + 9) 1 c.Width) |]
                    )

                let before = distances old (tensor c.X)
                let after = (distances more (tensor c.X)).narrow(1L, 0L, int64 c.Classes)
                closeTo 1e-12 "scores" (numbers before) (numbers after))

            property
                "the length of a prototype does not matter, that of a feature only through 1e-8"
                (fun (c: Features) ->
                    let plain = distances (learned c.Means) (tensor c.X)
                    let longer = c.Means |> Array2D.mapi (fun i _ v -> v * float (2 + i))
                    closeTensors "prototypes" plain (distances (learned longer) (tensor c.X))

                    // a row of length ‖f‖ is short of a unit vector by 1e-8/‖f‖, which moves its square by up to 4 times that
                    let shortest = rows c.X |> Array.map norm |> Array.min

                    closeTo
                        (1e-9 + 4e-8 / shortest)
                        "features"
                        (numbers plain)
                        (numbers (distances (learned c.Means) (tensor (Oracles.scale 7.0 c.X)))))

            property "of equal prototypes the first is nearest" (fun (c: Features) ->
                let twice =
                    pick
                        [|
                            for _ in 1..2 do
                                yield! [| 0 .. c.Classes - 1 |]
                        |]
                        c.Means

                Expect.all
                    (nearest (learned twice) c.X)
                    (fun position -> position < c.Classes)
                    "first copies")

            testCase "scores that rounding cannot tell apart tie, others do not" (fun () ->
                Scope.run (fun () ->
                    for dtype in [ float64; torch.float32 ] do
                        let unit = Precision.epsilon dtype

                        let rows =
                            array2D
                                [
                                    [ 0.5; 0.5 - 8.0 * unit; 0.5 + 8.0 * unit ]
                                    [ 0.5 - 64.0 * unit; 0.5; 0.5 + 8.0 * unit ]
                                    [ 0.5; 0.5 + 64.0 * unit; 0.75 ]
                                ]

                        let found = wholeNumbers (Scorer.best ((tensor rows).``to`` dtype))
                        Expect.equal found [| 0L; 1L; 2L |] $"{dtype}"))

            testCase "of many equal prototypes of a wide network the first is nearest" (fun () ->
                Scope.run (fun () ->
                    for dtype in [ float64; torch.float32 ] do
                        let one = normalMatrix 1 1 197
                        let copies = 333

                        let equal =
                            NearestMean.ofMeans ((tensor (pick (Array.zeroCreate copies) one)).``to`` dtype)

                        let x = (tensor (normalMatrix 2 65 197)).``to`` dtype
                        Expect.all (wholeNumbers (Scorer.best (equal.Score x))) ((=) 0L) $"{dtype}"))

            testCase "a feature of zeros has a distance to every class" (fun () ->
                Scope.run (fun () ->
                    let d = distances (learned example.Means) (tensor (Array2D.zeroCreate 1 3))

                    close "distances" [ 1.0; 1.0 ] (numbers d)))

            testCase "one class takes everything" (fun () ->
                Scope.run (fun () ->
                    Expect.equal
                        (nearest (learned example.Means[..0, *]) example.X)
                        (Array.zeroCreate 6)
                        "positions"))

            testCase "no feature, no prediction" (fun () ->
                Scope.run (fun () ->
                    Expect.equal (nearest (learned example.Means) example.X[.. -1, *]) [||] "positions"))

            testCase "the score is the cosine" (fun () ->
                Scope.run (fun () ->
                    let cosines =
                        Oracles.multiply (unitRows example.X) (Oracles.transpose (unitRows example.Means))

                    closeTo
                        1e-8
                        "scores"
                        (Seq.cast<float> cosines)
                        (numbers ((learned example.Means).Score(tensor example.X)))))

            testCase "the head's means are those of its images" (fun () ->
                Scope.run (fun () ->
                    let labels = [| 0; 1; 0; 1; 1; 0 |]

                    let head =
                        NearestMean.head.Zero 3L float64 device
                        |> NearestMean.head.Grow 2
                        |> NearestMean.head.Observe (tensor example.X) (labelTensor labels)

                    let expected = learned (Oracles.prototypes 2 labels example.X)

                    closeTensors
                        "scores"
                        (expected.Score(tensor example.X))
                        ((NearestMean.head.Scores head).Score(tensor example.X))))

            rejects "features of another width" [ "features"; "[batch, 3]"; "[6, 2]" ] (fun () ->
                (learned example.Means).Score(tensor example.X[*, ..1]) |> ignore)

            rejects "features of another type" [ "features"; "Float64"; "Float32" ] (fun () ->
                (learned example.Means).Score(torch.zeros (1L, 3L, device = device)) |> ignore)

            rejects "means of another shape" [ "class means"; "[3]" ] (fun () ->
                NearestMean.ofMeans (vector [| 1.0; 2.0; 3.0 |]) |> ignore)

            testCase "scores on the meta device" (fun () ->
                Scope.run (fun () ->
                    let scorer = NearestMean.ofMeans (onMeta (tensor example.Means))
                    let scores = scorer.Score(onMeta (tensor example.X))
                    expectMeta [ 6L; 2L ] scores
                    expectMeta [ 6L ] (Scorer.best scores)))

            testList
                "ownership"
                [
                    noLeaks "ofMeans" (fun () -> tensor example.Means) (fun means ->
                        Scorer.leaves (NearestMean.ofMeans means))
                    noLeaks "score" (fun () -> learned example.Means, tensor example.X) (fun (scorer, x) ->
                        [ scorer.Score x ])
                    noLeaks "best" (fun () -> (learned example.Means).Score(tensor example.X)) (fun scores ->
                        [ Scorer.best scores ])
                ]
        ]
