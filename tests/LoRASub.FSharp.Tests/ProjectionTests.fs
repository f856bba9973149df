module LoRASub.Tests.ProjectionTests

open LoRASub.Core
open LoRASub.Subspace
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Projection" name law

/// The moment of `Rows` random rows with decaying columns: rank-deficient where Rows < Width.
type Moment =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 10)>]
        Rows: int
        [<Between(1, 8)>]
        Width: int
        /// In thousandths of the energy.
        [<Between(1, 1000)>]
        Threshold: int
    }

    member c.Share = float c.Threshold / 1000.0

    member c.Matrix =
        normalMatrix c.Seed c.Rows c.Width
        |> Array2D.mapi (fun _ j x -> x * 0.6 ** float j)
        |> Oracles.secondMoment

let private moment (m: float[,]) = { Moment = tensor m; Count = 1L }

let private retainAt share m =
    Projection.retain UpdateScale.Frobenius share "second moment of block 3" (moment m)

let private retain (c: Moment) = retainAt c.Share c.Matrix

/// Π itself, without the division by √k.
let private projector (p: Projection) =
    matrix p.Matrix |> Oracles.scale (sqrt (float p.Rank))

/// A share so close to the threshold that rounding decides.
let private onEdge share spectrum =
    Oracles.energyShares spectrum |> Array.exists (fun s -> abs (s - share) < 1e-9)

let private example = normalMatrix 1 6 4 |> Oracles.secondMoment
let private flat (m: float[,]) = Seq.cast<float> m

[<Tests>]
let tests =
    testList
        "Projection"
        [
            property "spectrum, rank, energy and P ≡ Jacobi rotations" (fun (c: Moment) ->
                let spectrum, vectors = Oracles.eigen c.Matrix
                let p = retain c
                close "spectrum" (spectrum |> Array.map (max 0.0)) (numbers p.Spectrum)

                if not (onEdge c.Share spectrum) then
                    let k = Oracles.retainedRank c.Share spectrum
                    Expect.equal p.Rank k "rank"
                    close "energy" [ (Oracles.energyShares spectrum)[k - 1] ] [ p.Energy ]

                    // the space is well defined only where the next eigenvalue is smaller
                    if k = c.Width || spectrum[k - 1] - spectrum[k] > 1e-4 * spectrum[0] then
                        closeMatrix
                            "P"
                            (Oracles.scale (1.0 / sqrt (float k)) (Oracles.projector vectors k))
                            p.Matrix)

            property "Π = Πᵀ = Π²" (fun (c: Moment) ->
                let pi = projector (retain c)
                close "symmetric" (flat (Oracles.transpose pi)) (flat pi)
                close "idempotent" (flat pi) (flat (Oracles.multiply pi pi)))

            property "the trace of Π is k" (fun (c: Moment) ->
                let p = retain c
                close "trace" [ float p.Rank ] [ Oracles.trace (projector p) ])

            property "Π commutes with C" (fun (c: Moment) ->
                let pi = projector (retain c)
                close "ΠC = CΠ" (flat (Oracles.multiply c.Matrix pi)) (flat (Oracles.multiply pi c.Matrix)))

            property "Π does not depend on the signs of the eigenvectors" (fun (c: Moment) ->
                let p = retain c

                let flipped =
                    matrix p.Basis
                    |> Array2D.mapi (fun _ j x -> if (c.Seed >>> j) % 2 = 0 then -x else x)

                close "Π" (flat (projector p)) (flat (Oracles.multiply flipped (Oracles.transpose flipped))))

            property "Π turns with the inputs: Π(QᵀCQ) = Qᵀ Π(C) Q" (fun (c: Moment) ->
                let spectrum, _ = Oracles.eigen c.Matrix
                let p = retain c

                let gap =
                    if p.Rank = c.Width then
                        1.0
                    else
                        (spectrum[p.Rank - 1] - spectrum[p.Rank]) / spectrum[0]

                if gap > 1e-4 && not (onEdge c.Share spectrum) then
                    let q = orthogonal (c.Seed + 1) c.Width

                    let turn m =
                        Oracles.multiply (Oracles.multiply (Oracles.transpose q) m) q

                    close
                        "Π"
                        (flat (turn (projector p)))
                        (flat (projector (retainAt c.Share (turn c.Matrix)))))

            property "‖P‖ = 1" (fun (c: Moment) ->
                close "Frobenius norm" [ 1.0 ] [ Oracles.frobenius (matrix (retain c).Matrix) ])

            property "unscaled, the matrix is Π" (fun (c: Moment) ->
                let unscaled = Projection.retain UpdateScale.Unscaled c.Share "m" (moment c.Matrix)
                closeMatrix "Π" (projector (retain c)) unscaled.Matrix)

            property "k is minimal" (fun (c: Moment) ->
                let p = retain c
                let shares = Oracles.energyShares (numbers p.Spectrum)

                Expect.isTrue
                    (p.Rank = c.Width || shares[p.Rank - 1] >= c.Share - 1e-12)
                    "k reaches the threshold"

                Expect.isTrue (p.Rank = 1 || shares[p.Rank - 2] < c.Share + 1e-12) "k − 1 does not"
                Expect.isTrue (p.Energy > 0.0 && p.Energy <= 1.0) $"energy {p.Energy}")

            property "k is monotone in the threshold" (fun (c: Moment) ->
                let ranks =
                    [
                        for share in [ 0.1; 0.5; c.Share; 0.9; 0.99; 1.0 ] |> List.sort ->
                            (retainAt share c.Matrix).Rank
                    ]

                Expect.equal ranks (List.sort ranks) "ranks of rising thresholds")

            testCase "of d equal energies, k hold a share of k/d" (fun () ->
                Scope.run (fun () ->
                    for d in 1..12 do
                        for energy in [ 0.1; 0.7; 1.0; 3.3 ] do
                            let m = Oracles.scale energy (Oracles.identity d)

                            for k in 1..d do
                                for dtype in [ torch.float64; torch.float32 ] do
                                    let moment: SecondMoment =
                                        {
                                            Moment = (tensor m).``to`` dtype
                                            Count = 1L
                                        }

                                    let p =
                                        Projection.retain
                                            UpdateScale.Frobenius
                                            (float k / float d)
                                            "m"
                                            moment

                                    Expect.equal p.Rank k $"{k} of {d} times {energy} in {dtype}"))

            property "k does not depend on the moment's scale" (fun (c: Moment) ->
                if not (onEdge c.Share (fst (Oracles.eigen c.Matrix))) then
                    Expect.equal
                        (retainAt c.Share (Oracles.scale 1e-12 c.Matrix)).Rank
                        (retain c).Rank
                        "tiny"

                    Expect.equal (retainAt c.Share (Oracles.scale 1e12 c.Matrix)).Rank (retain c).Rank "huge")

            property "k = d ⇒ P = I/√d" (fun (c: Moment) ->
                // the identity is added so that every direction is needed
                let p = retainAt 1.0 (Oracles.add c.Matrix (Oracles.identity c.Width))
                Expect.equal p.Rank c.Width "rank"

                closeMatrix
                    "P"
                    (Oracles.scale (1.0 / sqrt (float c.Width)) (Oracles.identity c.Width))
                    p.Matrix)

            property
                "the basis is orthonormal and the spectrum descending, without negatives"
                (fun (c: Moment) ->
                    let p = retain c
                    let basis = matrix p.Basis

                    close
                        "UᵀU = I"
                        (flat (Oracles.identity p.Rank))
                        (flat (Oracles.multiply (Oracles.transpose basis) basis))

                    let spectrum = numbers p.Spectrum
                    Expect.equal spectrum (Array.sortDescending spectrum) "descending"
                    Expect.all spectrum (fun s -> s >= 0.0) "not negative"

                    let condition =
                        if Array.last spectrum > 0.0 then
                            spectrum[0] / Array.last spectrum
                        else
                            infinity

                    closeTo 1e-6 "condition" [ condition ] [ p.Condition ])

            property "the moment keeps its bits" (fun (c: Moment) ->
                let m = moment c.Matrix
                let before = m.Moment.clone ()
                Projection.retain UpdateScale.Frobenius c.Share "m" m |> ignore
                identical "moment" before m.Moment)

            property "what is left out and what is retained are all directions" (fun (c: Moment) ->
                let retained = projector (retain c)
                let rest = Projection.leaveOut c.Share "moment" (moment c.Matrix)

                if Oracles.trace retained < float c.Width - 0.5 then
                    close
                        "Π + NNᵀ = I"
                        (flat (Oracles.identity c.Width))
                        (flat (Oracles.add retained (matrix rest.Matrix)))

                    close "energy" [ 1.0 ] [ rest.Energy + (retain c).Energy ]
                else
                    Expect.equal rest.Rank 1 "the last direction is kept")

            testCase "one dominant direction: Π projects on it" (fun () ->
                Scope.run (fun () ->
                    let p = retainAt 0.99 (array2D [ [ 1.0; 1.0 ]; [ 1.0; 1.0 ] ])
                    Expect.equal p.Rank 1 "rank"
                    closeMatrix "P" (array2D [ [ 0.5; 0.5 ]; [ 0.5; 0.5 ] ]) p.Matrix))

            rejects "a threshold of 0" [ "energy threshold"; "(0, 1]"; "found 0" ] (fun () ->
                Projection.checkThreshold 0.0)
            rejects "a threshold above 1" [ "energy threshold"; "1.001" ] (fun () ->
                Projection.checkThreshold 1.001)
            rejects "a threshold that is NaN" [ "energy threshold"; "NaN" ] (fun () ->
                Projection.checkThreshold nan)
            rejects "retain checks its threshold" [ "energy threshold" ] (fun () ->
                retainAt 1.5 example |> ignore)

            rejects "zero inputs" [ "second moment of block 3"; "positive energy"; "all-zero" ] (fun () ->
                retainAt 0.99 (Array2D.zeroCreate 4 4) |> ignore)

            rejects "NaN" [ "second moment of block 3"; "finite" ] (fun () ->
                retainAt 0.99 (Array2D.create 4 4 nan) |> ignore)

            rejects "one infinity off the diagonal" [ "second moment of block 3"; "finite" ] (fun () ->
                retainAt
                    0.99
                    (example |> Array2D.mapi (fun i j x -> if (i, j) = (2, 1) then infinity else x))
                |> ignore)

            rejects
                "a moment that is not square"
                [ "second moment of block 3"; "[4, 4]"; "[4, 3]" ]
                (fun () -> retainAt 0.99 example[*, 0..2] |> ignore)

            // Not run on the meta device: the rank is read on the host, to size the basis.
            noLeaks "retain" (fun () -> moment example) (fun m ->
                Projection.leaves (Projection.retain UpdateScale.Frobenius 0.9 "m" m))

            noLeaks "a refused moment" (fun () -> moment (Array2D.zeroCreate 3 3)) (fun m ->
                refused [ "energy" ] (fun () -> Projection.retain UpdateScale.Frobenius 0.9 "m" m |> ignore)
                [])
        ]
