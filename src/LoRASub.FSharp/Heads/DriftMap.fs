namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// The drift of embeddings during a task: x becomes (x − m)P + n, plus a residual. Heads use it to update old classes
/// without their images.
[<ReferenceEquality>]
type DriftMap =
    {
        /// m: mean before, [D].
        Before: torch.Tensor
        /// n: mean after, [D].
        After: torch.Tensor
        /// P, [D, D].
        Map: torch.Tensor
        /// Second moment of what the map does not explain, per image, [D, D].
        Residual: torch.Tensor
    }

/// Fits maps of drift on the images of a new task.
[<RequireQualifiedAccess>]
module DriftMap =

    /// <summary>Lists the tensors of a map.</summary>
    /// <param name="map">Borrowed.</param>
    /// <returns>Its tensors, borrowed.</returns>
    let leaves (map: DriftMap) : torch.Tensor seq =
        [ map.Before; map.After; map.Map; map.Residual ]

    /// <summary>Class sums after a map: each mean through it.</summary>
    /// <param name="map">Of the same width; borrowed.</param>
    /// <param name="sums">[c, d], borrowed.</param>
    /// <returns>The sums, owned by the caller.</returns>
    let sums (map: DriftMap) (sums: ClassSums) : ClassSums =
        Scope.noGrad ClassSums.leaves (fun () ->
            let counts = sums.Counts.``to``(sums.Sums.dtype).unsqueeze 1L

            {
                Sums = (sums.Sums.sub (counts.mul map.Before)).mm(map.Map).plus(counts.mul map.After)
                Counts = sums.Counts.clone ()
            })

    /// <summary>Fits P = I + X₀ᵀ(X₀X₀ᵀ + γI)⁻¹(X₁ − X₀) on centred embeddings of the same images under both networks: ridge
    /// regression that shrinks to the identity. γ is the mean diagonal of X₀ᵀX₀. The residual is that of leaving one
    /// image out, in closed form. If the map then explains no more than the shift of the mean, it is the
    /// identity.</summary>
    /// <param name="before">[n, D], n at least 1, under the old network; borrowed.</param>
    /// <param name="after">[n, D], of the same images in the same order, under the new network; borrowed.</param>
    /// <returns>The map in the type of `before`, owned by the caller. It is the identity without residual where nothing
    /// moved.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The embeddings differ in shape, type or device, are not
    /// finite, or there is none.</exception>
    let fit (before: torch.Tensor) (after: torch.Tensor) : DriftMap =
        let subject = "embeddings of both networks"
        Shape.expect subject [ Axis.Any "images"; Axis.Any "width" ] before
        Shape.expect subject [ for n in before.shape -> Axis.Is n ] after
        Shape.expectLike subject before after
        let images, width = before.shape[0], before.shape[1]

        if images = 0L then
            Errors.reject subject "must be of at least one image" "none" ""

        for embeddings in [ before; after ] do
            if not (Scope.run (fun () -> embeddings.isfinite().all().item<bool>())) then
                Errors.reject
                    subject
                    "must be finite"
                    "NaN or infinity"
                    "lower lr or head-lr, or use a wider precision"

        Scope.noGrad leaves (fun () ->
            let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64
            let x0, x1 = wide before, wide after
            let m0, m1 = x0.mean [| 0L |], x1.mean [| 0L |]
            let centred = x0.sub m0
            let moved = x1.sub(m1).sub centred
            let kernel = centred.mm (centred.t ()) // [n, n]

            let ridge = (kernel.trace().div(Number.Of(float width))).clamp_min(Number.Of 1e-12)

            let identity = torch.eye (images, dtype = kernel.dtype, device = kernel.device)
            let factor = torch.linalg.cholesky (kernel.plus (identity.mul ridge))
            let inverse = torch.cholesky_inverse factor
            let dual = inverse.mm moved // [n, D]
            let leftOut = dual.div (inverse.diagonal().unsqueeze 1L)
            let square (t: torch.Tensor) = t.mul(t).sum().item<float>()
            let explains = square leftOut < square moved
            let residual = if explains then leftOut else moved
            let eye = torch.eye (width, dtype = kernel.dtype, device = kernel.device)

            let map = if explains then eye.plus (centred.t().mm dual) else eye

            let narrow (t: torch.Tensor) = t.``to`` before.dtype

            {
                Before = narrow m0
                After = narrow m1
                Map = narrow map
                Residual = residual.t().mm(residual).div(Number.Of(float images)) |> narrow
            })
