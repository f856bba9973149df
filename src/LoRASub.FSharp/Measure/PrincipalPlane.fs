namespace LoRASub.Measure

open LoRASub.Core
open TorchSharp

/// The plane in which some points differ most.
[<ReferenceEquality>]
type PrincipalPlane =
    {
        /// [d], float64: mean of the points.
        Centre: torch.Tensor
        /// [d, 2], float64: orthonormal columns, zeros for a direction that the points lack.
        Axes: torch.Tensor
        /// Share of the points' variance along each axis; NaN where they do not vary.
        Explained: float[]
    }

[<RequireQualifiedAccess>]
module PrincipalPlane =

    let leaves: Leaves<PrincipalPlane> = fun p -> [ p.Centre; p.Axes ]

    // The sign of the largest entry, of the first among those that differ by rounding only.
    let private orientation (axis: torch.Tensor) =
        let sizes = axis.abs ()
        let isSmaller = sizes.lt (sizes.max().mul(Scalar.op_Implicit (1.0 - 1e-9)))

        let first =
            Fused.firstSmallest (isSmaller.``to``(torch.ScalarType.Int64).unsqueeze 0L)

        axis[first[0]].sign()

    /// The first two principal components of points [n, d], n ≥ 1, in float64 (Pearson 1901). The largest entry of each
    /// axis, the first where several are equal up to rounding, is positive. Two points span one axis, equal points none.
    /// Borrows; owned by the caller. Rejects points that are not finite.
    let fit (points: torch.Tensor) : PrincipalPlane =
        Shape.expect "points" [ Axis.Any "points"; Axis.Any "width" ] points

        if points.numel () = 0L then
            Errors.reject "points" "must be at least one" (Shape.text points.shape) ""

        Scope.noGrad leaves (fun () ->
            let x = points.``to`` torch.ScalarType.Float64

            if not (x.isfinite().all().item<bool>()) then
                Errors.reject "points" "must be finite" "NaN or infinity" ""

            let centre = x.mean [| 0L |]
            let struct (_, s, axes) = torch.linalg.svd (x.sub centre, fullMatrices = false)
            let singular = s.cpu().data<float>().ToArray()
            let total = singular |> Array.sumBy (fun s -> s * s)
            // rounding against the points themselves: centred equal points are not quite 0
            let norm = x.norm().item<float>()
            let least = 1e-15 * float (max x.shape[0] x.shape[1]) * norm

            let axis i =
                if i < singular.Length && singular[i] > least then
                    let row = axes[int64 i]
                    row.mul (orientation row)
                else
                    torch.zeros_like centre

            let explained i =
                if not (singular[0] > least) then
                    nan
                elif i < singular.Length && singular[i] > least then
                    singular[i] * singular[i] / total
                else
                    0.0

            {
                Centre = centre
                Axes = torch.stack ([| axis 0; axis 1 |], 1L)
                Explained = [| explained 0; explained 1 |]
            })

    /// Coordinates of points [n, d] on the axes, [n, 2]. Borrows; owned by the caller.
    let coordinates (plane: PrincipalPlane) (points: torch.Tensor) : torch.Tensor =
        Shape.expect "points" [ Axis.Any "points"; Axis.Is plane.Centre.shape[0] ] points
        Shape.expectDevice "points" plane.Centre points

        Scope.noGrad Leaves.tensor (fun () ->
            points.``to``(plane.Centre.dtype).sub(plane.Centre).mm plane.Axes)
