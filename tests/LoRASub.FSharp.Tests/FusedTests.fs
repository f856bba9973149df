module LoRASub.Tests.FusedTests

open LoRASub.Core
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

type Draw =
    {
        [<Between(0, 1000)>]
        Seed: int
    }

let private normal shape seed =
    Rng.normal shape torch.ScalarType.Float64 device (Rng.ofSeed seed)

/// Value and gradients of Σ f², which sees every entry of f.
let private both (f: torch.Tensor[] -> torch.Tensor) (inputs: torch.Tensor[]) =
    let struct (value, gradients) =
        Grad.valueAndGrad (fun ps -> (f ps).square().sum()) inputs

    value :: [ for g in gradients -> g.Value ]

let private same
    name
    (fused: torch.Tensor[] -> torch.Tensor)
    (composed: torch.Tensor[] -> torch.Tensor)
    inputs
    =
    List.iter2 (closeTensors name) (both fused inputs) (both composed inputs)

[<Tests>]
let tests =
    testList
        "Fused"
        [
            property "Fused" "composed layer norm ≡ the kernel, in value and gradient" (fun (draw: Draw) ->
                let seed = int64 draw.Seed

                let inputs =
                    [|
                        normal [| 3L; 5L |] seed
                        normal [| 5L |] (seed + 1L)
                        normal [| 5L |] (seed + 2L)
                    |]

                same
                    "layer norm"
                    (fun ps -> Fused.layerNorm ps[1] ps[2] 1e-5 ps[0])
                    (fun ps -> Fused.Composed.layerNorm ps[1] ps[2] 1e-5 ps[0])
                    inputs)

            property "Fused" "composed standardising ≡ the kernel, in value and gradient" (fun (draw: Draw) ->
                same
                    "standardised"
                    (fun ps -> Fused.standardise 1e-5 ps[0])
                    (fun ps -> Fused.Composed.standardise 1e-5 ps[0])
                    [| normal [| 3L; 5L |] (int64 draw.Seed) |])

            property "Fused" "composed attention ≡ the kernel, in value and gradient" (fun (draw: Draw) ->
                let inputs =
                    Array.init 3 (fun i -> normal [| 2L; 2L; 5L; 3L |] (int64 draw.Seed + int64 i))

                same
                    "attention"
                    (fun ps -> Fused.attention ps[0] ps[1] ps[2])
                    (fun ps -> Fused.Composed.attention ps[0] ps[1] ps[2])
                    inputs)

            if hasKernels then
                property
                    "Fused"
                    "attention in bfloat16 is off by no more than its last rounding"
                    (fun (draw: Draw) ->
                        let inputs =
                            Array.init 3 (fun i ->
                                (normal [| 2L; 2L; 9L; 4L |] (int64 draw.Seed + int64 i)).``to``
                                    torch.bfloat16)

                        let exact =
                            inputs
                            |> Array.map _.``to``(torch.float64)
                            |> fun ps -> Fused.attention ps[0] ps[1] ps[2]

                        let found = Fused.attentionBy ProductRoute.Blas inputs[0] inputs[1] inputs[2]
                        Expect.equal found.dtype torch.bfloat16 "type"
                        // half a unit in the last of 8 binary digits, and float32's own error; a GPU rounds the weights too
                        let error = found.``to``(torch.float64).sub(exact).abs()
                        let allowed = exact.abs().mul(Scalar.op_Implicit (1.0 / 256.0))
                        let slack = if onCpu then 1e-5 else 1.0 / 32.0

                        Expect.isTrue
                            (error.le(allowed.add (Scalar.op_Implicit slack)).all().item<bool>())
                            "error")

                property
                    "Fused"
                    "attention in bfloat16 by batched products: value and gradients of float64, but for roundings"
                    (fun (draw: Draw) ->
                        let inputs =
                            Array.init 3 (fun i ->
                                (normal [| 2L; 2L; 9L; 4L |] (int64 draw.Seed + int64 i)).``to``
                                    torch.bfloat16)

                        let attend route (ps: torch.Tensor[]) =
                            (Fused.attentionBy route ps[0] ps[1] ps[2]).``to`` torch.float64

                        let exact =
                            both (attend ProductRoute.Blas) (inputs |> Array.map _.``to``(torch.float64))

                        let found = both (attend ProductRoute.OneDnn) inputs

                        for expected, found in List.zip exact found do
                            let error = found.``to``(torch.float64).sub(expected).norm().item<float>()
                            // each step keeps 8 binary digits
                            Expect.isLessThan error (0.1 * expected.norm().item<float>()) "error")

            property
                "Fused"
                "the first of the smallest numbers of a row, also where all tie"
                (fun (draw: Draw) ->
                    let rows = Array.init 4 (fun i -> Generators.integers (draw.Seed + i) (i + 1) 9)

                    let expected =
                        rows |> Array.map (fun row -> int64 (Array.findIndex ((=) (Array.min row)) row))

                    for dtype in [ torch.int64; torch.float32 ] do
                        let x =
                            Generators
                                .labelTensor(Array.concat rows)
                                .reshape(4L, 9L)
                                .``to``(dtype: torch.ScalarType)

                        Expect.equal (Generators.wholeNumbers (Fused.firstSmallest x)) expected "positions"

                    let none = Generators.vector [| nan; nan |]

                    Expect.equal
                        (Generators.wholeNumbers (Fused.firstSmallest (none.unsqueeze 0L)))
                        [| 1L |]
                        "a position")

            property "Fused" "composed distances ≡ the kernel, in value and gradient" (fun (draw: Draw) ->
                let inputs =
                    [|
                        normal [| 4L; 3L |] (int64 draw.Seed)
                        normal [| 5L; 3L |] (int64 draw.Seed + 1L)
                    |]

                for order in [ 1.0; 2.0; 3.0 ] do
                    same
                        $"distances of order {order}"
                        (fun ps -> Fused.distances order ps[0] ps[1])
                        (fun ps -> Fused.Composed.distances order ps[0] ps[1])
                        inputs)

            property "Fused" "atLeast ≡ clamp, in value and gradient" (fun (draw: Draw) ->
                let inputs = [| normal [| 4L; 3L |] (int64 draw.Seed) |]

                same
                    "atLeast"
                    (fun ps -> Fused.atLeast 0.25 ps[0])
                    (fun ps -> ps[0].clamp_min(Scalar.op_Implicit 0.25))
                    inputs)

            testCase "atLeast has slope 1 at its bound" (fun () ->
                let struct (_, gradients) =
                    Grad.valueAndGrad
                        (fun ps -> (Fused.atLeast 0.5 ps[0]).sum())
                        [| vector [| 0.5; 0.4; 0.6 |] |]

                Expect.equal (numbers gradients[0].Value) [| 1.0; 0.0; 1.0 |] "slopes")
        ]
