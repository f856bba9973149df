module LoRASub.Tests.DualGpmTests

open LoRASub.Core
open LoRASub.Subspace
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

/// Second moments of tasks whose inputs decay by column, in an order of their own.
type Tasks =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(2, 8)>]
        Width: int
        [<Between(1, 5)>]
        Count: int
        /// ε in thousandths.
        [<Between(600, 999)>]
        Threshold: int
        /// Of 10: how much of a column's size the next one has.
        [<Between(3, 9)>]
        Decay: int
    }

    member c.Epsilon = float c.Threshold / 1000.0

    member c.Moments =
        Array.init c.Count (fun task ->
            let place = order (c.Seed + task) c.Width

            normalMatrix (c.Seed + 10 * task) (c.Width + 4) c.Width
            |> Array2D.mapi (fun _ j x -> x * (float c.Decay / 10.0) ** float place[j])
            |> Oracles.secondMoment)

let private moment (m: float[,]) = { Moment = tensor m; Count = 1L }

let private zero width =
    DualGpm.zero (int64 width) torch.float64 device

let private extend epsilon (space: DualGpm) (m: float[,]) =
    DualGpm.extend epsilon "second moment of block 2" (moment m) space

/// The projector on the allowed directions.
let private allowed (space: DualGpm) =
    let basis = matrix space.Basis
    let d = Array2D.length1 basis

    let onBasis =
        Array2D.init d d (fun i j ->
            Seq.sum (seq { for k in 0 .. Array2D.length2 basis - 1 -> basis[i, k] * basis[j, k] }))

    if space.IsAllowed then
        onBasis
    else
        Oracles.subtract (Oracles.identity d) onBasis

/// The published update in slow loops: the projector on what is allowed and whether its directions are kept themselves. None
/// where rounding decides.
let private slowExtend epsilon (q: float[,], isFirst, isAllowed) (c: float[,]) =
    let d = Array2D.length1 c
    let part = Oracles.multiply q c

    let squares, vectors =
        Oracles.eigen (Oracles.multiply part (Oracles.transpose part))

    let total = Oracles.frobenius c ** 2.0
    let shares = squares |> Array.map (fun s -> max s 0.0 / total)
    let rank = shares |> Array.filter (fun s -> s > 1e-20) |> Array.length
    let mutable r = 0

    if isFirst then
        let sums = Array.scan (+) 0.0 shares |> Array.tail
        r <- max 1 (sums |> Array.filter (fun sum -> sum < epsilon) |> Array.length)
    elif isAllowed then
        let mutable left = Array.sum shares

        while left >= 1.0 - epsilon && r < rank do
            left <- left - shares[r]
            r <- r + 1
    else
        let mutable reached = 1.0 - Array.sum shares

        while reached < epsilon && r < rank do
            reached <- reached + shares[r]
            r <- r + 1

    let left = Array.scanBack (+) shares 0.0

    let isEdge =
        left |> Array.exists (fun share -> abs (share - (1.0 - epsilon)) < 1e-7)

    let hasGap = r = 0 || r = d || sqrt shares[r - 1] - sqrt (max shares[r] 0.0) > 1e-4

    if isEdge || not hasGap then
        None
    else
        let next = Oracles.subtract q (Oracles.projector vectors r)
        Some(next, isAllowed || 2.0 * (float d - Oracles.trace next) > float d + 1e-6)

let private property name law = propertyOf<Tasks> 60 "DualGpm" name law

[<Tests>]
let tests =
    testList
        "DualGpm"
        [
            property "≡ the published update in slow loops" (fun c ->
                let step (expected, space: DualGpm) m =
                    match expected with
                    | None -> None, space
                    | Some(q, isAllowed) ->
                        let isFirst = space.Basis.shape[1] = 0L && not space.IsAllowed
                        let expected = slowExtend c.Epsilon (q, isFirst, isAllowed) m
                        let space = extend c.Epsilon space m

                        expected
                        |> Option.iter (fun (q, isAllowed) ->
                            Expect.equal space.IsAllowed isAllowed "kind of basis"
                            closeTo 1e-6 "allowed" (Seq.cast q) (Seq.cast (allowed space)))

                        expected, space

                c.Moments
                |> Array.fold step (Some(Oracles.identity c.Width, false), zero c.Width)
                |> ignore)

            property "the basis is orthonormal, of the smaller space, and excludes more and more" (fun c ->
                let spaces = c.Moments |> Array.scan (extend c.Epsilon) (zero c.Width)

                for before, after in Array.pairwise spaces do
                    let basis = matrix after.Basis
                    let k = Array2D.length2 basis
                    Expect.isLessThanOrEqual (2 * k) c.Width "columns"

                    if k > 0 then
                        close
                            "MᵀM = I"
                            (Seq.cast (Oracles.identity k))
                            (Seq.cast (Oracles.multiply (Oracles.transpose basis) basis))

                    let q = allowed after

                    closeTo
                        1e-9
                        "only less is allowed"
                        (Seq.cast q)
                        (Seq.cast (Oracles.multiply (allowed before) q)))

            property "after later tasks, at most 1 − ε of the newest energy is allowed" (fun c ->
                let spaces = c.Moments |> Array.scan (extend c.Epsilon) (zero c.Width)

                for i in 1 .. c.Count - 1 do
                    let left = Oracles.frobenius (Oracles.multiply (allowed spaces[i + 1]) c.Moments[i])
                    let share = left ** 2.0 / Oracles.frobenius c.Moments[i] ** 2.0
                    atMost "share" (1.0 - c.Epsilon + 1e-9) share)

            property "leading directions are orthonormal, allowed, and those of most energy" (fun c ->
                let space = c.Moments[1..] |> Array.fold (extend c.Epsilon) (zero c.Width)
                let count = (c.Width + 1) / 2
                let rows = DualGpm.leading count "moment" (moment c.Moments[0]) space |> matrix
                let q = allowed space
                close "allowed" (Seq.cast rows) (Seq.cast (Oracles.multiply rows q))
                let found = min count (int (round (Oracles.trace q)))
                let gram = Oracles.multiply rows (Oracles.transpose rows)

                close
                    "orthonormal, then zeros"
                    (Seq.cast (Array2D.init count count (fun i j -> if i = j && i < found then 1.0 else 0.0)))
                    (Seq.cast gram)

                let part = Oracles.multiply q c.Moments[0]
                let squares, _ = Oracles.eigen (Oracles.multiply part (Oracles.transpose part))
                let held = Oracles.frobenius (Oracles.multiply rows part) ** 2.0
                closeTo 1e-8 "energy" [ Array.sum squares[.. found - 1] ] [ held ])

            testCase "the first inputs exclude one direction fewer than reaches ε" (fun () ->
                Scope.run (fun () ->
                    // squared eigenvalues: 0.8, 0.16 and 0.04 of the sum
                    let diagonal = [| sqrt 0.8; sqrt 0.16; sqrt 0.04 |]
                    let m = Array2D.init 3 3 (fun i j -> if i = j then diagonal[i] else 0.0)

                    let excluded epsilon start =
                        3.0 - Oracles.trace (allowed (extend epsilon start m))

                    close "ε of 0.5: at least one" [ 1.0 ] [ excluded 0.5 (zero 3) ]
                    close "ε of 0.9: one" [ 1.0 ] [ excluded 0.9 (zero 3) ]
                    close "ε of 0.99: two" [ 2.0 ] [ excluded 0.99 (zero 3) ]
                    close "the same inputs again reach it" [ 2.0 ] [ excluded 0.9 (extend 0.9 (zero 3) m) ]))

            testCase "where nothing is allowed any more, directions are zero and the space stays" (fun () ->
                Scope.run (fun () ->
                    let m = Oracles.identity 4
                    let space = extend 1.0 (extend 1.0 (zero 4) m) m
                    close "allowed" (Array.zeroCreate 16) (Seq.cast (allowed space))
                    let rows = DualGpm.leading 2 "moment" (moment m) space
                    close "directions" (Array.zeroCreate 8) (numbers rows)
                    let again = extend 0.9 space m
                    Expect.equal again.Basis.shape [| 4L; 0L |] "basis"))

            for name, call in
                [
                    "leading", (fun m -> DualGpm.leading 1 "second moment of block 2" m (zero 3) |> ignore)
                    "extend", (fun m -> DualGpm.extend 0.9 "second moment of block 2" m (zero 3) |> ignore)
                ] do
                rejects $"{name}: zero inputs" [ "block 2"; "all-zero" ] (fun () ->
                    call (moment (Array2D.zeroCreate 3 3)))

                rejects $"{name}: NaN" [ "block 2"; "finite" ] (fun () ->
                    call (moment (Array2D.create 3 3 nan)))

            rejects "an ε of 0" [ "energy threshold" ] (fun () ->
                extend 0.0 (zero 3) (Oracles.identity 3) |> ignore)

            noLeaks "extend" (fun () -> moment (Oracles.identity 4), zero 4) (fun (m, space) ->
                DualGpm.tree.Leaves(DualGpm.extend 0.9 "m" m space))
        ]
