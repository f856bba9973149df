namespace LoRASub.Train

open System
open LoRASub.Core
open TorchSharp

/// Batch-hard triplet loss whose negatives include the old classes' prototypes (Liu & Chang 2025, "ATL").
[<RequireQualifiedAccess>]
module AugmentedTriplet =

    let private number (x: float) = Number.Of x

    // Rows are unit vectors: |a|² + |b|² − 2ab, clamped under the root where its slope is infinite.
    let private pairwise (rows: torch.Tensor) =
        let squares = rows.pow(number 2.0).sum(1L, keepdim = true) // [n, 1]
        let squared = squares.plus(squares.t ()).sub(rows.mm(rows.t ()).mul(number 2.0))
        (Fused.atLeast 1e-12 squared).sqrt() // [n, n]

    /// <summary>The mean over i of max(0, d⁺ᵢ − d⁻ᵢ + margin). d⁺ᵢ is the largest distance to the same class;
    /// d⁻ᵢ the smallest to another class of the batch (d⁺ᵢ + margin where there is none) or to a prototype
    /// scaled to unit length. Distances that tie for the extreme share the gradient evenly; among duplicate
    /// rows rounding may choose, and their summed gradient is the same.</summary>
    /// <param name="margin">m, at least 0.</param>
    /// <param name="normOrder">Order of the norm between features and prototypes, at least 1.</param>
    /// <param name="prototypes">[c, d], the old classes' raw means, of the features' type and device; c may
    /// be 0. Borrowed.</param>
    /// <param name="labels">[n] int64, on the features' device; borrowed.</param>
    /// <param name="features">[n, d], unit rows, floating point; borrowed.</param>
    /// <returns>A scalar of the features' type, owned by the caller; differentiable in the
    /// features.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A tensor has another shape, type or device, or the order is
    /// below 1.</exception>
    let loss
        (margin: float)
        (normOrder: float)
        (prototypes: torch.Tensor)
        (labels: torch.Tensor)
        (features: torch.Tensor)
        : torch.Tensor =
        Shape.expect "triplet features" [ Axis.Any "batch"; Axis.Any "width" ] features
        let n, width = features.shape[0], features.shape[1]
        Shape.expect "triplet labels" [ Axis.Is n ] labels
        Shape.expectDevice "triplet labels" features labels
        Shape.expect "triplet prototypes" [ Axis.Any "classes"; Axis.Is width ] prototypes
        Shape.expectLike "triplet prototypes" features prototypes

        if not (normOrder >= 1.0) then
            Errors.reject "norm order" "must be at least 1" $"{normOrder}" ""

        Scope.keep Leaves.tensor (fun () ->
            let far, near = number Double.NegativeInfinity, number Double.PositiveInfinity
            let distances = pairwise features
            let same = labels.unsqueeze(1L).eq(labels.unsqueeze 0L) // [n, n]
            let other = labels.unsqueeze(1L).ne(labels.unsqueeze 0L) // [n, n]
            let hardestPositive = distances.masked_fill(other, far).amax [| 1L |] // [n]

            // for a row whose batch holds no other class
            let accompanied = other.any(1L).unsqueeze 1L // [n, 1]

            let fallback =
                hardestPositive.plus(number margin).unsqueeze(1L).masked_fill(accompanied, near)

            let toPrototypes =
                if prototypes.shape[0] = 0L then
                    [||]
                else
                    let unit = prototypes.div (prototypes.norm (1, keepdim = true))
                    [| Fused.atLeast 1e-12 (Fused.distances normOrder features unit) |] // [n, c]

            // one minimum over all candidates, so that ties share evenly wherever they come from
            let candidates =
                Array.append [| distances.masked_fill (same, near); fallback |] toPrototypes

            let hardestNegative = torch.cat(candidates, 1L).amin [| 1L |] // [n]
            // the published ranking loss clamps: unlike relu, its slope at exactly 0 is 1
            (Fused.atLeast 0.0 (hardestPositive.sub(hardestNegative).plus(number margin))).mean())
