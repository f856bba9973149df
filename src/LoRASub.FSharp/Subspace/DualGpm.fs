namespace LoRASub.Subspace

open LoRASub.Core
open TorchSharp

/// The space of old inputs, by an orthonormal basis of the smaller of two spaces: the directions that are excluded, as long
/// as they are at most half of all, and then those that are allowed. DualGPM: Liang &amp; Li, CVPR 2023; as used by
/// InfLoRA (Liang &amp; Li, CVPR 2024, arXiv 2404.00228).
[<ReferenceEquality>]
type DualGpm =
    {
        /// [d, k], orthonormal columns; k may be 0.
        Basis: torch.Tensor
        /// Whether the basis spans the allowed directions; otherwise the excluded ones.
        IsAllowed: bool
    }

/// Spaces of old inputs.
[<RequireQualifiedAccess>]
module DualGpm =

    /// <summary>The tensors of a space.</summary>
    let tree: Tree<DualGpm> =
        tree {
            let! basis = Tree.field "basis" _.Basis Tree.tensor

            and! isAllowed =
                Tree.field
                    "allowed"
                    _.IsAllowed
                    (Tree.convert ((<>) 0) (fun yes -> if yes then 1 else 0) Tree.int)

            return { Basis = basis; IsAllowed = isAllowed }
        }

    /// <summary>The space of no inputs: nothing is excluded.</summary>
    /// <param name="width">d.</param>
    /// <param name="dtype">float32 or float64.</param>
    /// <param name="device">Where the basis is.</param>
    /// <returns>An empty basis [d, 0], owned by the caller.</returns>
    let zero (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : DualGpm =
        {
            Basis = torch.zeros ([| width; 0L |], dtype = dtype, device = device)
            IsAllowed = false
        }

    let private double (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64

    // Orthonormal allowed directions, float64 [d, m].
    let private allowedBasis (space: DualGpm) =
        let basis = double space.Basis
        let d, k = basis.shape[0], basis.shape[1]

        if space.IsAllowed then
            basis
        elif k = 0L then
            torch.eye (d, dtype = basis.dtype, device = basis.device)
        else
            let struct (all, _, _) = torch.linalg.svd (basis, true)
            all.narrow (1L, k, d - k)

    // All allowed directions [d, m]: the left singular vectors of the allowed part of a moment; the share of its squared
    // singular values in each; and how many are more than rounding, by the rule of numpy's matrix_rank. In coordinates of
    // the allowed basis, so that directions without energy are allowed as well.
    let private decompose subject (moment: SecondMoment) (space: DualGpm) =
        Projection.energyOf subject moment |> ignore
        Shape.expect "basis of old inputs" [ Axis.Is moment.Moment.shape[0]; Axis.Any "k" ] space.Basis
        let whole, allowed = double moment.Moment, allowedBasis space
        let struct (vectors, values, _) = torch.linalg.svd (allowed.t().mm whole, false)
        let norm = whole.norm().item<float>()
        let values = values.cpu().data<float>().ToArray() |> Array.map (fun s -> s / norm)
        let rounding = float whole.shape[0] * Precision.epsilon moment.Moment.dtype
        let rank = values |> Array.filter (fun s -> s > rounding) |> Array.length
        struct (allowed.mm vectors, values |> Array.map (fun s -> s * s), rank)

    /// <summary>The leading allowed directions of inputs: the left singular vectors of the allowed part of
    /// their second moment. Where the part has fewer directions than asked for, the published code takes
    /// arbitrary ones, which may be excluded; here they are zero.</summary>
    /// <param name="count">r, at most d.</param>
    /// <param name="subject">Names the moment in errors.</param>
    /// <param name="moment">[d, d], borrowed.</param>
    /// <param name="space">Of old inputs of the same width; borrowed.</param>
    /// <returns>[r, d]: orthonormal rows, then rows of zeros, in the moment's type; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The moment is all zero or not finite.</exception>
    let leading (count: int) (subject: string) (moment: SecondMoment) (space: DualGpm) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let struct (directions, _, rank) = decompose subject moment space
            let found = min count rank
            let rows = directions.narrow(1L, 0L, int64 found).t() // [found, d]

            let zeros = rows.new_zeros ([| int64 (count - found); rows.shape[1] |])

            torch.cat([| rows; zeros |], 0L).``to`` moment.Moment.dtype)

    /// <summary>Excludes the fewest leading directions of new inputs that leave at most 1 − ε of their energy
    /// allowed, up to rounding; of the first inputs one fewer, but at least one. Energy is ‖C‖², so that a
    /// direction counts by its squared eigenvalue.</summary>
    /// <param name="threshold">ε in (0, 1].</param>
    /// <param name="subject">Names the moment in errors.</param>
    /// <param name="moment">C, [d, d], of the new inputs; borrowed.</param>
    /// <param name="space">Of the old inputs; borrowed.</param>
    /// <returns>The space of old and new inputs, owned by the caller. Its basis may be that of the old
    /// one.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The threshold is outside (0, 1], or the moment is all zero
    /// or not finite.</exception>
    let extend (threshold: float) (subject: string) (moment: SecondMoment) (space: DualGpm) : DualGpm =
        Projection.checkThreshold threshold

        Scope.noGrad tree.Leaves (fun () ->
            let struct (directions, shares, _) = decompose subject moment space
            let d, k, m = space.Basis.shape[0], space.Basis.shape[1], shares.Length
            let allowed = 1.0 - threshold + 8.0 * Precision.epsilon moment.Moment.dtype
            // allowed energy after the exclusion of 0, 1, …, m directions
            let left = Array.scanBack (+) shares 0.0
            let fewest = left |> Array.findIndex (fun share -> share <= allowed)
            let isFirst = k = 0L && not space.IsAllowed
            let count = if isFirst then max 1 (fewest - 1) else fewest

            let part first count =
                directions.narrow(1L, int64 first, int64 count).``to`` space.Basis.dtype

            if count = 0 then
                space
            elif space.IsAllowed || 2L * (k + int64 count) > d then
                {
                    Basis = (part count (m - count)).contiguous()
                    IsAllowed = true
                }
            else
                { space with
                    Basis = torch.cat ([| space.Basis; part 0 count |], 1L)
                })
