// The pure parts by hand, without images: second moments from shards, the retained space, and Adam confined to it.
// Run after a build: dotnet fsi scripts/retained-space.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open TorchSharp
open Load

let float64 = torch.ScalarType.Float64
let number (x: float) = Scalar.op_Implicit x

let normal shape i =
    Rng.normal shape float64 torch.CPU (Rng.fold i (Rng.ofSeed 1L))

/// Largest absolute entry: 0 up to rounding if an invariant holds.
let largest (t: torch.Tensor) = t.abs().max().item<float>()

let check name (residual: float) =
    printfn "%-46s %8.1e" name residual

    if residual > 1e-10 then
        failwith $"{name} does not hold"

let d, r = 12L, 3L

// Inputs close to 4 of 12 directions.
let inputs =
    let near = (normal [| 600L; 4L |] 0L).mm(normal [| 4L; d |] 1L)
    near.add ((normal [| 600L; d |] 2L).mul(number 0.01))

// 1. Second moments form a monoid: three shards, in any grouping, are the whole.
let whole = SecondMoment.ofInputs float64 inputs

let shards =
    [ 0L, 100L; 100L, 350L; 450L, 150L ]
    |> List.map (fun (from, count) -> SecondMoment.ofInputs float64 (inputs.narrow (0L, from, count)))

let merged = List.fold (+) (SecondMoment.zero d float64 torch.CPU) shards
check "moments of shards add up to the whole's" (largest (merged.Moment.sub whole.Moment))

// 2. The retained space: the fewest directions with 99% of the energy.
let space = Projection.retain UpdateScale.Frobenius 0.99 "these inputs" whole
printfn "retained %d of %d directions with %.2f%% of the energy" space.Rank d (100.0 * space.Energy)

let projector = space.Basis.mm (space.Basis.t ()) // Π
check "the projector is idempotent" (largest ((projector.mm projector).sub projector))
check "P has Frobenius norm 1" (abs (space.Matrix.norm().item<float>() - 1.0))

// 3. Ten steps of Adam whose updates are confined: A from the right, B from the left.
let start = [| normal [| r; d |] 3L; normal [| d; r |] 4L |]

let transform =
    Transform.chain
        (Adam.transform 0.1 Adam.defaults)
        (Projected.transform
            [|
                Confinement.Within(Side.Right, space.Matrix)
                Confinement.Within(Side.Left, space.Matrix)
            |])

let target = normal [| d; d |] 5L

let step struct (parameters, state) _ =
    let struct (_, gradients) =
        Grad.valueAndGrad
            (fun p ->
                let error = (p[1].mm p[0]).sub target
                error.mul(error).sum())
            parameters

    Transform.step transform gradients state parameters

let struct (trained, _) =
    List.fold step struct (start, transform.Init start) [ 1..10 ]

let moved i = trained[i].sub start[i]
let outside = torch.eye(d, dtype = float64).sub projector // I − Π
printfn "A moved by up to %.3f, B by up to %.3f" (largest (moved 0)) (largest (moved 1))
check "(A − A₀)(I − Π) = 0" (largest ((moved 0).mm outside))
check "(I − Π)(B − B₀) = 0" (largest (outside.mm (moved 1)))

let x = outside.mm (normal [| d; 1L |] 6L) // orthogonal to every retained direction
check "x ⟂ U_k keeps its image: A x = A₀ x" (largest (((trained[0]).mm x).sub(start[0].mm x)))
