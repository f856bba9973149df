namespace LoRASub.Subspace

open LoRASub.Core
open TorchSharp

/// The directions that a task retained in one block, and the spectrum they were cut from.
[<ReferenceEquality>]
type Subspace =
    {
        /// [d, k]
        Basis: torch.Tensor
        /// [d]: eigenvalues of the task's second moment, descending.
        Spectrum: torch.Tensor
    }

    /// k: how many directions are retained.
    member this.Rank = int this.Basis.shape[1]

[<RequireQualifiedAccess>]
module Subspace =

    let tree: Tree<Subspace> =
        tree {
            let! basis = Tree.field "basis" _.Basis Tree.tensor
            and! spectrum = Tree.field "spectrum" _.Spectrum Tree.tensor
            return { Basis = basis; Spectrum = spectrum }
        }

    let leaves = tree.Leaves

    /// The same numbers on the CPU. Borrows; owned by the caller.
    let copy (subspace: Subspace) : Subspace =
        let copy (t: torch.Tensor) = t.detach().clone().cpu()

        Scope.keep leaves (fun () ->
            {
                Basis = copy subspace.Basis
                Spectrum = copy subspace.Spectrum
            })

    /// What a projection retains, on the CPU. Borrows; owned by the caller.
    let ofProjection (projection: Projection) : Subspace =
        copy
            {
                Basis = projection.Basis
                Spectrum = projection.Spectrum
            }

    /// Each eigenvalue's share of their sum: of the task's energy, in float64.
    let shares (subspace: Subspace) : float[] =
        Scope.run (fun () ->
            let spectrum = subspace.Spectrum.detach().``to``(torch.ScalarType.Float64).cpu()
            spectrum.div(spectrum.sum ()).data<float>().ToArray())
