namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// How far a covariance is shrunk to a multiple of the identity.
[<RequireQualifiedAccess>]
type Shrinkage =
    /// (1 − ε)Σ + ε·tr(Σ)/d·I, ε in (0, 1].
    | Fixed of float
    /// ε estimated from the covariance itself (Chen et al. 2010).
    | Oas
    /// ε = k/(n + k) after n images, as if k more images varied equally in all directions. More images, less shrinkage.
    | Images of int
    /// ε = 1/(1 + (4n/d)^1.5) after n images of d columns: with few images for each column, nearly a multiple of the
    /// identity.
    | Ratio

/// Linear discriminants over class means and one covariance that all classes share. With Λ its inverse, ḡ the mean of
/// the class means and w = Λ(μ − ḡ), the plain score is wᵀ(x − ḡ) − ½wᵀ(μ − ḡ): streaming LDA (Hayes &amp; Kanan 2020)
/// with an exact covariance. The cosine score is wᵀ(x − ḡ)/√(wᵀ(μ − ḡ)): the cosine in the space that Λ makes white.
[<RequireQualifiedAccess>]
module Discriminant =

    // wide until the last step: small eigenvalues decide
    let private scorer cosine shrinkage (moments: PooledMoments) : Scorer =
        Scope.noGrad Scorer.leaves (fun () ->
            let dtype = moments.Scatter.dtype
            let means = PooledMoments.means moments.Classes
            let centre = means.mean [| 0L |]
            let apart = means.sub(centre).t() // [d, c]

            // a covariance may fill much of the memory: only its factor outlives this
            let factor =
                Scope.keep Leaves.tensor (fun () ->
                    let covariance = moments.Scatter.div (Number.Of(float (max 1L moments.Images)))

                    let epsilon =
                        match shrinkage with
                        | Shrinkage.Fixed epsilon -> epsilon
                        | Shrinkage.Oas ->
                            Symmetric.oas moments.Images (covariance.``to`` torch.ScalarType.Float64)
                        | Shrinkage.Images prior -> float prior / float (moments.Images + int64 prior)
                        | Shrinkage.Ratio ->
                            1.0 / (1.0 + (4.0 * float moments.Images / float covariance.shape[0]) ** 1.5)

                    Symmetric.cholesky "shared covariance" (Symmetric.shrink epsilon covariance))

            let weights = torch.cholesky_solve (apart, factor)
            let squares = apart.mul(weights).sum 0L // squared Mahalanobis norms

            // a class at the centre up to rounding, such as the only one, scores 0
            let column = centre.unsqueeze 1L
            let size = column.mul(torch.cholesky_solve (column, factor)).sum()
            let rounding = 16.0 * Precision.epsilon dtype

            let isApart = squares.gt(size.mul (Number.Of(rounding * rounding))).``to`` dtype

            let norms = squares.sqrt().clamp_min(Number.Of 1e-300)

            let centre, plain, bias =
                centre.``to`` dtype, weights.``to`` dtype, squares.mul(Number.Of -0.5).``to`` dtype

            let scorerOf weights (bias: torch.Tensor) =
                let score (embeddings: torch.Tensor) =
                    Shape.expect "embeddings" [ Axis.Any "batch"; Axis.Is centre.shape[0] ] embeddings
                    Shape.expectLike "embeddings" centre embeddings
                    Scope.noGrad Leaves.tensor (fun () -> bias.addmm (embeddings.sub centre, weights))

                Scorer.create [| centre; weights; bias |] score

            if cosine then
                let weights = weights.div(norms).``to``(dtype).mul isApart
                let scorer = scorerOf weights (torch.zeros_like bias)
                let norms = norms.``to``(dtype).mul isApart

                { scorer with
                    Owned = [| yield! scorer.Owned; norms; bias |]
                    // the plain score tells unknown images better than the cosine
                    Support =
                        fun scores ->
                            Scope.noGrad Leaves.tensor (fun () ->
                                (scores.mul(norms).plus bias).amax [| 1L |])
                }
            else
                scorerOf plain bias)

    let private head info cosine shrinkage : Head<PooledMoments> =
        {
            Info = info
            Tree = PooledMoments.tree
            Zero = PooledMoments.zero
            Grow = PooledMoments.grow
            Observe = PooledMoments.observe
            Merge = PooledMoments.merge
            Forget = PooledMoments.forget
            Transport = Some PooledMoments.transport
            Scores = scorer cosine shrinkage
        }

    /// <summary>What `lda` is.</summary>
    let info: HeadInfo =
        {
            Name = "lda"
            Summary = "linear discriminant with one covariance for all classes"
            Source = "Hayes & Kanan 2020, arXiv 1909.01520, with the exact covariance"
        }

    /// <summary>What `cosine` is.</summary>
    let cosineInfo: HeadInfo =
        {
            Name = "cosine-lda"
            Summary = "cosine to the class means after whitening by their shared covariance"
            Source = "this project: LDA divided by each class's Mahalanobis norm"
        }

    /// <summary>The plain discriminant.</summary>
    /// <param name="shrinkage">Of the covariance.</param>
    /// <returns>The head.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">From `Scores`: a class has no image, or the shrunk covariance is
    /// not positive definite.</exception>
    let lda (shrinkage: Shrinkage) : Head<PooledMoments> = head info false shrinkage

    /// <summary>The cosine rule.</summary>
    /// <param name="shrinkage">Of the covariance.</param>
    /// <returns>The head.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">From `Scores`: a class has no image, or the shrunk covariance is
    /// not positive definite.</exception>
    let cosine (shrinkage: Shrinkage) : Head<PooledMoments> = head cosineInfo true shrinkage
