module LoRASub.Tests.SecondMomentTests

open LoRASub.Core
open LoRASub.Subspace
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "SecondMoment" name law
let private float64 = torch.ScalarType.Float64

let private ofRows (x: float[,]) =
    SecondMoment.ofInputs float64 (tensor x)

let private zero (width: int) =
    SecondMoment.zero (int64 width) float64 device

let private same what (expected: SecondMoment) (actual: SecondMoment) =
    Expect.equal actual.Count expected.Count $"{what}: count"
    closeTensors what expected.Moment actual.Moment

type Inputs =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 20)>]
        Rows: int
        [<Between(1, 7)>]
        Width: int
    }

    member c.X = normalMatrix c.Seed c.Rows c.Width

/// Three batches, each of which may be empty.
type Batches =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(0, 6)>]
        First: int
        [<Between(0, 6)>]
        Second: int
        [<Between(0, 6)>]
        Third: int
        [<Between(1, 5)>]
        Width: int
    }

    member c.All = normalMatrix c.Seed (c.First + c.Second + c.Third) c.Width

    member c.Parts =
        [
            c.All[.. c.First - 1, *]
            c.All[c.First .. c.First + c.Second - 1, *]
            c.All[c.First + c.Second .., *]
        ]

[<Tests>]
let tests =
    testList
        "SecondMoment"
        [
            property "one product ≡ the loops" (fun (c: Inputs) ->
                let m = ofRows c.X
                Expect.equal m.Count (int64 c.Rows) "count"
                closeMatrix "moment" (Oracles.secondMoment c.X) m.Moment)

            property "symmetric and positive semi-definite" (fun (c: Inputs) ->
                let m = matrix (ofRows c.X).Moment
                close "symmetric" (Seq.cast<float>(Oracles.transpose m)) (Seq.cast<float> m)
                let spectrum, _ = Oracles.eigen m
                atMost "minus the smallest eigenvalue" 1e-12 -(Array.min spectrum))

            property "trace = mean ‖x‖²" (fun (c: Inputs) ->
                let mean = rows c.X |> Array.averageBy (fun x -> norm x ** 2.0)
                close "trace" [ mean ] [ Oracles.trace (matrix (ofRows c.X).Moment) ])

            property "independent of how rows are split into batches" (fun (c: Batches) ->
                let observed =
                    (zero c.Width, c.Parts)
                    ||> List.fold (fun m x -> SecondMoment.observe (tensor x) m)

                same "split" (ofRows c.All) observed)

            property "independent of the order of batches and rows" (fun (c: Batches) ->
                let observe parts =
                    (zero c.Width, parts)
                    ||> List.fold (fun m x -> SecondMoment.observe (tensor x) m)

                same "batches" (observe c.Parts) (observe (List.rev c.Parts))
                same "rows" (ofRows c.All) (ofRows (pick (order c.Seed (Array2D.length1 c.All)) c.All)))

            property "⊕ is associative" (fun (c: Batches) ->
                let m = c.Parts |> List.map ofRows
                same "grouping" ((m[0] + m[1]) + m[2]) (m[0] + (m[1] + m[2])))

            property "⊕ is commutative" (fun (c: Batches) ->
                let m = c.Parts |> List.map ofRows
                same "swap" (m[0] + m[1]) (m[1] + m[0]))

            property "(0, 0) is the identity of ⊕, and (0, 0) ⊕ (0, 0) = (0, 0)" (fun (c: Inputs) ->
                let m = ofRows c.X
                same "right" m (m + zero c.Width)
                same "left" m (zero c.Width + m)
                same "nothing" (zero c.Width) (zero c.Width + zero c.Width))

            property "C(XQ) = Qᵀ C(X) Q" (fun (c: Inputs) ->
                let q = orthogonal (c.Seed + 1) c.Width

                let rotated =
                    Oracles.multiply (Oracles.multiply (Oracles.transpose q) (Oracles.secondMoment c.X)) q

                closeMatrix "rotated" rotated (ofRows (Oracles.multiply c.X q)).Moment)

            property "leading axes are flattened to rows" (fun (c: Inputs) ->
                let x = normals c.Seed (2 * c.Rows * c.Width)
                let batched = SecondMoment.observe (shaped [ 2; c.Rows; c.Width ] x) (zero c.Width)
                same "[B, N, d]" (SecondMoment.ofInputs float64 (shaped [ 2 * c.Rows; c.Width ] x)) batched)

            property "borrows: inputs and the earlier moment keep their bits" (fun (c: Inputs) ->
                let x, earlier = tensor c.X, ofRows c.X
                let xBefore, momentBefore = x.clone (), earlier.Moment.clone ()
                let later = SecondMoment.observe x earlier
                identical "inputs" xBefore x
                identical "moment" momentBefore earlier.Moment
                Expect.isFalse (obj.ReferenceEquals(later.Moment, earlier.Moment)) "a new tensor")

            testCase "statistics of bfloat16 inputs are kept in float32" (fun () ->
                Scope.run (fun () ->
                    let x = (tensor (normalMatrix 1 6 3)).``to`` torch.bfloat16
                    let m = SecondMoment.observe x (SecondMoment.zero 3L torch.float32 device)
                    Expect.equal m.Moment.dtype torch.float32 "type"
                    let exact = x.``to`` torch.float64

                    closeTo
                        1e-6
                        "no bfloat16 sums"
                        (numbers (ofRows (matrix exact)).Moment)
                        (numbers (m.Moment.``to`` torch.float64))))

            testCase "observation carries no graph" (fun () ->
                Scope.run (fun () ->
                    let x = (tensor (normalMatrix 1 6 3)).requires_grad_()
                    Expect.isFalse (SecondMoment.observe x (zero 3)).Moment.requires_grad "detached"))

            rejects "inputs of another width" [ "second moment"; "3 columns"; "[6, 4]" ] (fun () ->
                SecondMoment.observe (tensor (normalMatrix 1 6 4)) (zero 3) |> ignore)

            rejects "inputs on another device" [ "second moment"; string device; "meta" ] (fun () ->
                SecondMoment.observe (onMeta (tensor (normalMatrix 1 6 3))) (zero 3) |> ignore)

            // width 1 would broadcast silently
            rejects "moments of different widths" [ "second moment"; "[1, 1]"; "[3, 3]" ] (fun () ->
                ofRows (normalMatrix 1 6 1) + ofRows (normalMatrix 1 6 3) |> ignore)

            testCase "observe on the meta device" (fun () ->
                Scope.run (fun () ->
                    let x = onMeta (tensor (normalMatrix 1 6 3))
                    let m = SecondMoment.observe x (SecondMoment.zero 3L float64 torch.META)
                    Expect.equal m.Count 6L "count"
                    expectMeta [ 3L; 3L ] m.Moment))

            noLeaks "zero" ignore (fun () -> SecondMoment.leaves (zero 3))
            noLeaks "ofInputs" (fun () -> tensor (normalMatrix 1 6 3)) (fun x ->
                SecondMoment.leaves (SecondMoment.ofInputs float64 x))

            noLeaks "observe" (fun () -> tensor (normalMatrix 1 6 3), zero 3) (fun (x, m) ->
                SecondMoment.leaves (SecondMoment.observe x m))

            noLeaks "⊕" (fun () -> ofRows (normalMatrix 1 6 3), zero 3) (fun (a, b) ->
                SecondMoment.leaves (a + b))

            noLeaks "⊕ of nothing" (fun () -> zero 3, zero 3) (fun (a, b) -> SecondMoment.leaves (a + b))
        ]
