namespace LoRASub.Subspace

open System
open LoRASub.Core
open TorchSharp

/// Principal angles between two subspaces: as many as the smaller one has dimensions.
[<Struct>]
type Overlap =
    {
        /// Mean of cos² over the angles: 1 if one subspace is in the other, 0 if they are orthogonal.
        MeanSquaredCosine: float
        /// In degrees.
        SmallestAngle: float
        /// In degrees.
        LargestAngle: float
    }

/// Principal angles.
[<RequireQualifiedAccess>]
module Overlap =

    /// <summary>The overlap of the spans of two bases, in float64: the cosines are the singular values of
    /// Q₁ᵀQ₂ (Björck &amp; Golub 1973). Angles below 1e-6 degrees count as 0.</summary>
    /// <param name="first">[d, k₁], k₁ independent columns, at least 1 and at most d; borrowed.</param>
    /// <param name="second">[d, k₂], likewise, on the same device; borrowed.</param>
    /// <returns>The mean of cos² and the angles in degrees.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A basis has no columns, more columns than rows, another
    /// width than the other, or numbers that are not finite.</exception>
    let ofBases (first: torch.Tensor) (second: torch.Tensor) : Overlap =
        Shape.expect "first basis" [ Axis.Any "width"; Axis.Any "directions" ] first
        Shape.expect "second basis" [ Axis.Is first.shape[0]; Axis.Any "directions" ] second
        Shape.expectDevice "second basis" first second

        for name, basis in [ "first basis", first; "second basis", second ] do
            if basis.shape[1] < 1L || basis.shape[1] > basis.shape[0] then
                Errors.reject name $"must have 1 to {basis.shape[0]} columns" $"{basis.shape[1]}" ""

        Scope.noGrad Leaves.none (fun () ->
            for name, basis in [ "first basis", first; "second basis", second ] do
                if not (basis.isfinite().all().item<bool>()) then
                    Errors.reject name "must be finite" "NaN or infinity" ""

            // columns that are orthonormal in float32 would be off by 0.02 degrees
            let orthonormal (basis: torch.Tensor) =
                let struct (q, _) = torch.linalg.qr (basis.``to`` torch.ScalarType.Float64)
                q

            let product = (orthonormal first).t().mm(orthonormal second) // [k₁, k₂]

            let cosines =
                (torch.linalg.svdvals product).cpu().data<float>().ToArray()
                |> Array.map (min 1.0)

            let degrees (cosine: float) = acos cosine * 180.0 / Math.PI

            {
                MeanSquaredCosine = cosines |> Array.averageBy (fun c -> c * c)
                SmallestAngle = degrees (Array.max cosines)
                LargestAngle = degrees (Array.min cosines)
            })
