module LoRASub.Tests.OverlapTests

open System
open LoRASub.Core
open LoRASub.Subspace
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Overlap" name law

type Bases =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 7)>]
        Width: int
        [<Between(1, 7)>]
        First: int
        [<Between(1, 7)>]
        Second: int
    }

    interface IConstrained with
        member c.Holds = c.First <= c.Width && c.Second <= c.Width

    /// Orthonormal columns, [d, k].
    member c.A = (orthogonal c.Seed c.Width)[*, .. c.First - 1]
    member c.B = (orthogonal (c.Seed + 1) c.Width)[*, .. c.Second - 1]

let private ofBases a b = Overlap.ofBases (tensor a) (tensor b)

let private numbers (o: Overlap) =
    [ o.MeanSquaredCosine; o.SmallestAngle; o.LargestAngle ]

// cosines near 1 tell angles to the root of their own rounding
let private same expected actual =
    closeTo 1e-5 "cosine, angles" (numbers expected) (numbers actual)

let private equalSpans =
    {
        MeanSquaredCosine = 1.0
        SmallestAngle = 0.0
        LargestAngle = 0.0
    }

let private line (degrees: float) =
    let angle = degrees * Math.PI / 180.0
    array2D [ [ cos angle ]; [ sin angle ] ]

let private ones rows columns =
    tensor (Array2D.create rows columns 1.0)

[<Tests>]
let tests =
    testList
        "Overlap"
        [
            property "≡ Jacobi rotations on the Gram matrix of the product" (fun (c: Bases) ->
                let product = Oracles.multiply (Oracles.transpose c.A) c.B

                let gram =
                    if c.First < c.Second then
                        Oracles.multiply product (Oracles.transpose product)
                    else
                        Oracles.multiply (Oracles.transpose product) product

                let squares = fst (Oracles.eigen gram) |> Array.map (max 0.0 >> min 1.0)
                Expect.hasLength squares (min c.First c.Second) "as many as the smaller one has dimensions"
                let degrees (square: float) = acos (sqrt square) * 180.0 / Math.PI

                same
                    {
                        MeanSquaredCosine = Array.average squares
                        SmallestAngle = degrees (Array.max squares)
                        LargestAngle = degrees (Array.min squares)
                    }
                    (ofBases c.A c.B))

            property "the order of the two does not matter" (fun (c: Bases) ->
                same (ofBases c.A c.B) (ofBases c.B c.A))

            property "other bases of the same spans overlap alike" (fun (c: Bases) ->
                // a rotation within the span, and columns that are neither orthogonal nor of unit length
                let turned = Oracles.multiply c.A (orthogonal (c.Seed + 2) c.First)

                let skewed =
                    Oracles.multiply
                        c.B
                        (Array2D.init c.Second c.Second (fun i j -> if i <= j then 0.5 + float i else 0.0))

                same (ofBases c.A c.B) (ofBases turned c.B)
                same (ofBases c.A c.B) (ofBases c.A skewed))

            property "turning the whole space changes nothing" (fun (c: Bases) ->
                let turn = Oracles.multiply (orthogonal (c.Seed + 3) c.Width)
                same (ofBases c.A c.B) (ofBases (turn c.A) (turn c.B)))

            property "a subspace lies in itself and in larger ones, also in float32" (fun (c: Bases) ->
                same equalSpans (ofBases c.A c.A)
                let single = (tensor c.A).``to`` torch.float32
                same equalSpans (Overlap.ofBases single (single.clone ()))
                same equalSpans (ofBases c.A (orthogonal c.Seed c.Width)))

            property "orthogonal subspaces: 0 and 90 degrees" (fun (c: Bases) ->
                if c.First < c.Width then
                    let rest = (orthogonal c.Seed c.Width)[*, c.First ..]

                    same
                        {
                            MeanSquaredCosine = 0.0
                            SmallestAngle = 90.0
                            LargestAngle = 90.0
                        }
                        (ofBases c.A rest))

            testCase "two lines at 30 degrees" (fun () ->
                Scope.run (fun () ->
                    close "cosine, angles" [ 0.75; 30.0; 30.0 ] (numbers (ofBases (line 20.0) (line 50.0)))
                    // lines have no direction
                    close "cosine, angles" [ 0.75; 30.0; 30.0 ] (numbers (ofBases (line 20.0) (line 230.0)))))

            testCase "planes that share a line: 0 and the angle between them" (fun () ->
                Scope.run (fun () ->
                    let plane degrees =
                        let l = line degrees
                        array2D [ [ 1.0; 0.0 ]; [ 0.0; l[0, 0] ]; [ 0.0; l[1, 0] ] ]

                    closeTo 1e-5 "angles" [ 0.625; 0.0; 60.0 ] (numbers (ofBases (plane 0.0) (plane 60.0)))))

            testCase "the bases keep their bits" (fun () ->
                Scope.run (fun () ->
                    let c =
                        {
                            Seed = 1
                            Width = 4
                            First = 2
                            Second = 3
                        }

                    let a, b = tensor c.A, tensor c.B
                    Overlap.ofBases a b |> ignore
                    identical "first" (tensor c.A) a
                    identical "second" (tensor c.B) b))

            rejects "bases of different widths" [ "second basis"; "[3, directions]"; "[4, 1]" ] (fun () ->
                Overlap.ofBases (ones 3 1) (ones 4 1) |> ignore)

            rejects "a basis without columns" [ "second basis"; "1 to 3 columns"; "0" ] (fun () ->
                Overlap.ofBases (ones 3 1) (ones 3 0) |> ignore)

            rejects "more columns than rows" [ "first basis"; "1 to 2 columns"; "3" ] (fun () ->
                Overlap.ofBases (ones 2 3) (ones 2 1) |> ignore)

            rejects "NaN" [ "second basis"; "finite" ] (fun () ->
                Overlap.ofBases (ones 2 1) ((ones 2 1).mul(Scalar.op_Implicit nan)) |> ignore)

            rejects "bases on different devices" [ "second basis"; string device; "meta" ] (fun () ->
                Overlap.ofBases (ones 2 1) (onMeta (ones 2 1)) |> ignore)

            noLeaks "ofBases" (fun () -> ones 3 1, tensor (normalMatrix 1 3 2)) (fun (a, b) ->
                Overlap.ofBases a b |> ignore
                [])
        ]
