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

/// Principal components in two dimensions, for pictures.
[<RequireQualifiedAccess>]
module PrincipalPlane =

    /// <summary>Lists the tensors of a plane.</summary>
    /// <param name="p">Borrowed.</param>
    /// <returns>Its two tensors, borrowed.</returns>
    let leaves: Leaves<PrincipalPlane> = fun p -> [ p.Centre; p.Axes ]

    // The sign of the largest entry; the first entry counts where several are equal up to rounding.
    let private orientation (axis: torch.Tensor) =
        let sizes = axis.abs ()
        let isSmaller = sizes.lt (sizes.max().mul(Number.Of(1.0 - 1e-9)))

        let first =
            Fused.firstSmallest (isSmaller.``to``(torch.ScalarType.Int64).unsqueeze 0L)

        axis[first[0]].sign()

    /// <summary>The first two principal components of points (Pearson 1901), in float64. The largest entry of each
    /// axis, the first where several are equal up to rounding, is positive. Two points span one axis, equal points
    /// none.</summary>
    /// <param name="points">[n, d], n ≥ 1, of any floating-point type. Borrowed.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no point, or one is not finite.</exception>
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

    /// <summary>The coordinates of points on the axes.</summary>
    /// <param name="plane">Borrowed.</param>
    /// <param name="points">[n, d], on the device of the plane. Borrowed.</param>
    /// <returns>[n, 2], float64. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The points have another width or device than the
    /// plane.</exception>
    let coordinates (plane: PrincipalPlane) (points: torch.Tensor) : torch.Tensor =
        Shape.expect "points" [ Axis.Any "points"; Axis.Is plane.Centre.shape[0] ] points
        Shape.expectDevice "points" plane.Centre points

        Scope.noGrad Leaves.tensor (fun () ->
            points.``to``(plane.Centre.dtype).sub(plane.Centre).mm plane.Axes)
