module LoRASub.Tests.PrincipalPlaneTests

open System
open LoRASub.Core
open LoRASub.Measure
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "PrincipalPlane" name law

type Points =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 9)>]
        Count: int
        [<Between(1, 6)>]
        Width: int
    }

    member c.X =
        normalMatrix c.Seed c.Count c.Width
        |> Array2D.mapi (fun _ j x -> 3.0 * float j + x * 0.5 ** float j)

let private fit (x: float[,]) = PrincipalPlane.fit (tensor x)

let private coordinates plane (x: float[,]) =
    matrix (PrincipalPlane.coordinates plane (tensor x))

/// Covariance by the loops.
let private covariance (x: float[,]) =
    let mean = Array.init (Array2D.length2 x) (fun j -> Array.average x[*, j])
    Oracles.secondMoment (x |> Array2D.mapi (fun _ j v -> v - mean[j]))

let private variance (x: float[]) =
    let mean = Array.average x
    x |> Array.averageBy (fun v -> (v - mean) ** 2.0)

[<Tests>]
let tests =
    testList
        "PrincipalPlane"
        [
            property "the variance on each axis and its share ≡ Jacobi rotations" (fun (c: Points) ->
                let spectrum = fst (Oracles.eigen (covariance c.X)) |> Array.map (max 0.0)

                let at i =
                    if i < spectrum.Length then spectrum[i] else 0.0

                let plane = fit c.X
                let xy = coordinates plane c.X
                close "variances" [ at 0; at 1 ] [ variance xy[*, 0]; variance xy[*, 1] ]

                if c.Count > 1 then
                    let total = Array.sum spectrum
                    close "shares" [ at 0 / total; at 1 / total ] plane.Explained)

            property
                "axes are orthonormal, or zeros where the points have no such direction"
                (fun (c: Points) ->
                    let axes = matrix (fit c.X).Axes
                    let gram = Oracles.multiply (Oracles.transpose axes) axes
                    let dimensions = min (c.Count - 1) c.Width
                    let length i = if i < dimensions then 1.0 else 0.0
                    close "AᵀA" [ length 0; 0.0; 0.0; length 1 ] (Seq.cast<float> gram))

            property "the largest entry of each axis is positive" (fun (c: Points) ->
                let axes = matrix (fit c.X).Axes

                for i in 0..1 do
                    let axis = axes[*, i]

                    if norm axis > 0.0 then
                        Expect.isGreaterThan (Array.maxBy abs axis) 0.0 "sign")

            testCase "of entries that only rounding tells apart, the first is positive" (fun () ->
                Scope.run (fun () ->
                    for slope in [ -1.0; -1.0 - 1e-14; -1.0 + 1e-14 ] do
                        let axes =
                            matrix
                                (fit (array2D [ [ 0.0; 0.0 ]; [ 1.0; slope ]; [ 3.0; 3.0 * slope ] ])).Axes

                        closeTo 1e-12 "axis" [ sqrt 0.5; -sqrt 0.5 ] axes[*, 0]))

            property "moving all points changes no coordinate" (fun (c: Points) ->
                let v = normals (c.Seed + 1) c.Width
                let moved = c.X |> Array2D.mapi (fun _ j x -> x + v[j])
                let spectrum = fst (Oracles.eigen (covariance c.X))

                // equal variances leave the axes open
                if c.Width < 2 || spectrum[0] - spectrum[1] > 1e-3 * spectrum[0] then
                    closeTo
                        1e-6
                        "x"
                        ((coordinates (fit c.X) c.X)[*, 0])
                        ((coordinates (fit moved) moved)[*, 0]))

            property "the centre of the points lies at the origin" (fun (c: Points) ->
                let xy = coordinates (fit c.X) c.X
                close "mean" [ 0.0; 0.0 ] [ Array.average xy[*, 0]; Array.average xy[*, 1] ])

            testCase "two points: all variance on x, none on y" (fun () ->
                Scope.run (fun () ->
                    let x = array2D [ [ 1.0; 1.0; 0.0 ]; [ 4.0; 5.0; 0.0 ] ]
                    let plane = fit x
                    close "shares" [ 1.0; 0.0 ] plane.Explained
                    close "coordinates" [ -2.5; 0.0; 2.5; 0.0 ] (Seq.cast<float>(coordinates plane x))
                    // what leaves their line is not seen
                    close
                        "aside"
                        [ -2.5; 0.0 ]
                        (Seq.cast<float>(coordinates plane (array2D [ [ 1.0; 1.0; 9.0 ] ])))))

            for name, x in
                [
                    "one point", array2D [ [ 0.1; 0.2 ] ]
                    "equal points", array2D (Array.create 5 [ 0.1; 0.2; 1e6 ])
                ] do
                testCase $"{name} explain nothing" (fun () ->
                    Scope.run (fun () ->
                        let plane = fit x
                        Expect.all plane.Explained Double.IsNaN "undefined"
                        Expect.all (numbers plane.Axes) ((=) 0.0) "no axis"))

            testCase "one column: y is 0" (fun () ->
                Scope.run (fun () ->
                    let plane = fit (array2D [ [ 1.0 ]; [ 2.0 ]; [ 6.0 ] ])
                    close "shares" [ 1.0; 0.0 ] plane.Explained
                    close "axes" [ 1.0; 0.0 ] (numbers plane.Axes)))

            rejects "no point" [ "points"; "at least one"; "[0, 3]" ] (fun () ->
                fit (Array2D.zeroCreate 0 3) |> ignore)

            rejects "NaN" [ "points"; "finite" ] (fun () -> fit (Array2D.create 3 2 nan) |> ignore)

            rejects "points of another width" [ "points"; "[points, 2]"; "[3, 4]" ] (fun () ->
                coordinates (fit (normalMatrix 1 3 2)) (normalMatrix 1 3 4) |> ignore)

            noLeaks "fit" (fun () -> tensor (normalMatrix 1 5 3)) (fun x ->
                PrincipalPlane.leaves (PrincipalPlane.fit x))

            noLeaks
                "coordinates"
                (fun () -> let x = tensor (normalMatrix 1 5 3) in PrincipalPlane.fit x, x)
                (fun (plane, x) -> [ PrincipalPlane.coordinates plane x ])
        ]
