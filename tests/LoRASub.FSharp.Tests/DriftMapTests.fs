/// Maps of drift against slow fits, one with each image left out.
module LoRASub.Tests.DriftMapTests

open LoRASub.Core
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "DriftMap" name law

/// Embeddings that move by an affine map, by noise, or by both.
type Drifting =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 9)>]
        Images: int
        [<Between(1, 5)>]
        Width: int
        /// In tenths.
        [<Between(0, 10)>]
        Turn: int
        /// In tenths.
        [<Between(0, 10)>]
        Noise: int
    }

    member c.Before =
        normalMatrix c.Seed c.Images c.Width |> Array2D.map (fun x -> x + 2.0)

    member c.After =
        let turn =
            normalMatrix (c.Seed + 1) c.Width c.Width
            |> Oracles.scale (float c.Turn / 10.0)
            |> Oracles.add (Oracles.identity c.Width)

        let noise =
            normalMatrix (c.Seed + 2) c.Images c.Width
            |> Oracles.scale (float c.Noise / 10.0)

        let shift = normals (c.Seed + 3) c.Width

        Oracles.multiply c.Before turn
        |> Oracles.add noise
        |> Array2D.mapi (fun _ j x -> x + shift[j])

let private mean (x: float[,]) =
    Array.init (Array2D.length2 x) (fun j -> Array.average x[*, j])

let private centred (x: float[,]) =
    let mean = mean x
    x |> Array2D.mapi (fun _ j v -> v - mean[j])

let private times a b =
    Oracles.multiply (Oracles.transpose a) b

let private inverse (symmetric: float[,]) =
    let values, vectors = Oracles.eigen symmetric

    vectors
    |> Array2D.mapi (fun _ j v -> v / values[j])
    |> fun scaled -> Oracles.multiply scaled (Oracles.transpose vectors)

let private square (x: float[,]) = Oracles.frobenius x ** 2.0

/// The mean diagonal of X0ᵀX0.
let private gamma (x0: float[,]) =
    max 1e-12 (square x0 / float (Array2D.length2 x0))

/// P = (X0ᵀX0 + γI)⁻¹(X0ᵀX1 + γI), of centred embeddings.
let private primal gamma (x0: float[,]) (x1: float[,]) =
    let ridge = Oracles.scale gamma (Oracles.identity (Array2D.length2 x0))
    Oracles.multiply (inverse (Oracles.add (times x0 x0) ridge)) (Oracles.add (times x0 x1) ridge)

/// What the map of the other images leaves of each image.
let private leftOut gamma (x0: float[,]) (x1: float[,]) =
    array2D
        [
            for i in 0 .. Array2D.length1 x0 - 1 ->
                let others = [| 0 .. Array2D.length1 x0 - 1 |] |> Array.except [ i ]
                let map = primal gamma (pick others x0) (pick others x1)
                row (Oracles.subtract (pick [| i |] x1) (Oracles.multiply (pick [| i |] x0) map)) 0
        ]

let private fit (c: Drifting) =
    DriftMap.fit (tensor c.Before) (tensor c.After)

let private residualOf (rest: float[,]) =
    Oracles.scale (1.0 / float (Array2D.length1 rest)) (times rest rest)

/// 30 images of four columns.
let private many turn noise : Drifting =
    {
        Seed = 5
        Images = 30
        Width = 4
        Turn = turn
        Noise = noise
    }

[<Tests>]
let tests =
    testList
        "DriftMap"
        [
            property "the map and its residual ≡ slow fits" (fun (c: Drifting) ->
                let x0, x1 = centred c.Before, centred c.After
                let gamma = gamma x0
                let rest, moved = leftOut gamma x0 x1, Oracles.subtract x1 x0
                let ours, plain = square rest, square moved
                let found = fit c
                closeMatrix "mean before" (array2D [ mean c.Before ]) (found.Before.unsqueeze 0L)
                closeMatrix "mean after" (array2D [ mean c.After ]) (found.After.unsqueeze 0L)

                // where both are as good, rounding decides
                if abs (ours - plain) > 1e-9 * plain + 1e-20 then
                    if ours < plain then
                        closeMatrix "map" (primal gamma x0 x1) found.Map
                        closeMatrix "residual" (residualOf rest) found.Residual
                    else
                        closeMatrix "identity" (Oracles.identity c.Width) found.Map
                        closeMatrix "residual" (residualOf moved) found.Residual)

            property "where nothing moved it is the identity without residual" (fun (c: Drifting) ->
                let found = DriftMap.fit (tensor c.Before) (tensor c.Before)
                closeMatrix "map" (Oracles.identity c.Width) found.Map
                closeMatrix "residual" (Array2D.zeroCreate c.Width c.Width) found.Residual
                closeTensors "means" found.Before found.After)

            property "where all moved alike it is the identity without residual" (fun (c: Drifting) ->
                let found = fit { c with Turn = 0; Noise = 0 }
                closeMatrix "map" (Oracles.identity c.Width) found.Map
                closeMatrix "residual" (Array2D.zeroCreate c.Width c.Width) found.Residual)

            testCase "a drift that is affine is found in the directions that images have" (fun () ->
                Scope.run (fun () ->
                    // of 200 columns one varies: γ is a two-hundredth of its square
                    let direction = normals 1 200
                    let lengths = normals 2 50
                    let before = Array2D.init 50 200 (fun i j -> lengths[i] * direction[j])
                    let after = before |> Array2D.map (fun x -> 3.0 * x + 1.0)
                    let found = DriftMap.fit (tensor before) (tensor after)

                    let moved = (tensor before).sub(found.Before).mm(found.Map).add found.After

                    let scale = (tensor after).abs().max().item<float>()
                    let worst = moved.sub(tensor after).abs().max().item<float>()
                    atMost "farthest of what the map gives" (0.01 * scale) worst))

            testCase "the map is kept where it explains, and the identity where it does not" (fun () ->
                Scope.run (fun () ->
                    let apart (c: Drifting) =
                        (fit c).Map.sub(tensor (Oracles.identity c.Width)).abs().max().item<float>()

                    Expect.isGreaterThan (apart (many 5 0)) 0.01 "a turn"
                    Expect.equal (apart (many 0 10)) 0.0 "noise"))

            rejects "embeddings of a network that diverged" [ "finite"; "lower lr" ] (fun () ->
                let still = tensor (Array2D.create 2 3 1.0)
                DriftMap.fit still (still.mul (Number.Of nan)) |> ignore)

            testCase "it has the type of the embeddings" (fun () ->
                Scope.run (fun () ->
                    let c = many 5 1
                    let single (x: float[,]) = (tensor x).``to`` torch.float32
                    let found = DriftMap.fit (single c.Before) (single c.After)

                    for (wide: torch.Tensor), (narrow: torch.Tensor) in
                        Seq.zip (DriftMap.leaves (fit c)) (DriftMap.leaves found) do
                        Expect.equal narrow.dtype torch.ScalarType.Float32 "type"

                        closeTo
                            1e-5
                            "numbers"
                            (numbers wide)
                            (numbers (narrow.``to`` torch.ScalarType.Float64))))

            noLeaks
                "fit"
                (fun () -> struct (tensor (many 5 1).Before, tensor (many 5 1).After))
                (fun (struct (before, after)) -> DriftMap.leaves (DriftMap.fit before after))

            for name, rows, columns in [ "another number of images", 29, 4; "another width", 30, 3 ] do
                rejects name [ "embeddings of both networks"; "[30, 4]"; $"[{rows}, {columns}]" ] (fun () ->
                    DriftMap.fit (tensor (many 1 1).Before) (tensor (normalMatrix 1 rows columns))
                    |> ignore)

            rejects "another type" [ "embeddings of both networks"; "Float32" ] (fun () ->
                let before = tensor (many 1 1).Before
                DriftMap.fit before (before.``to`` torch.float32) |> ignore)

            rejects "no image" [ "at least one image"; "none" ] (fun () ->
                let none = tensor (Array2D.zeroCreate 0 4)
                DriftMap.fit none none |> ignore)
        ]
