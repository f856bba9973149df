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

/// Retained spaces, for measurements and files.
[<RequireQualifiedAccess>]
module Subspace =

    /// <summary>The tensors of a space.</summary>
    let tree: Tree<Subspace> =
        tree {
            let! basis = Tree.field "basis" _.Basis Tree.tensor
            and! spectrum = Tree.field "spectrum" _.Spectrum Tree.tensor
            return { Basis = basis; Spectrum = spectrum }
        }

    /// <summary>Lists the tensors of a space.</summary>
    let leaves = tree.Leaves

    /// <summary>The same numbers on the CPU.</summary>
    /// <param name="subspace">On any device; borrowed.</param>
    /// <returns>The copy, owned by the caller.</returns>
    let copy (subspace: Subspace) : Subspace =
        let copy (t: torch.Tensor) = t.detach().clone().cpu()

        Scope.keep leaves (fun () ->
            {
                Basis = copy subspace.Basis
                Spectrum = copy subspace.Spectrum
            })

    /// <summary>The space that a projection retains.</summary>
    /// <param name="projection">On any device; borrowed.</param>
    /// <returns>Its basis and spectrum on the CPU, owned by the caller.</returns>
    let ofProjection (projection: Projection) : Subspace =
        copy
            {
                Basis = projection.Basis
                Spectrum = projection.Spectrum
            }

    /// <summary>Each eigenvalue's share of the energy of the task.</summary>
    /// <param name="subspace">Borrowed.</param>
    /// <returns>d numbers in descending order whose sum is 1, computed in float64.</returns>
    let shares (subspace: Subspace) : float[] =
        Scope.run (fun () ->
            let spectrum = subspace.Spectrum.detach().``to``(torch.ScalarType.Float64).cpu()
            spectrum.div(spectrum.sum ()).data<float>().ToArray())
