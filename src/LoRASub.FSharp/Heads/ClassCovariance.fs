namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Discriminants with a covariance per class.
[<RequireQualifiedAccess>]
module ClassCovariance =

    // −½(‖L⁻¹(x − μ)‖² + offset) per class, from lower factors [c, d, d] of covariances
    let private scorer
        (dtype: torch.ScalarType)
        (means: torch.Tensor)
        (factors: torch.Tensor)
        (offsets: torch.Tensor)
        : Scorer =
        let eye =
            torch.eye (factors.shape[1], dtype = factors.dtype, device = factors.device)

        let white =
            torch.linalg.solve_triangular (factors, eye.expand factors.shape, upper = false)

        let means, white, offsets =
            means.``to`` dtype, white.``to`` dtype, offsets.``to`` dtype

        let score (embeddings: torch.Tensor) =
            Shape.expect "embeddings" [ Axis.Any "batch"; Axis.Is means.shape[1] ] embeddings
            Shape.expectLike "embeddings" means embeddings

            Scope.noGrad Leaves.tensor (fun () ->
                let distances (c: int64) =
                    let y = embeddings.sub(means[c]).mm(white[c].t())
                    y.mul(y).sum 1L

                torch
                    .stack(Array.init (int means.shape[0]) (int64 >> distances), 1L)
                    .plus(offsets)
                    .mul(Number.Of -0.5))

        Scorer.create [| means; white; offsets |] score

    let private covariances (one: ClassScatters) =
        let counts = one.Classes.Counts.``to`` torch.ScalarType.Float64
        (one.Scatters.``to`` torch.ScalarType.Float64).div(counts.view (-1L, 1L, 1L))

    let private mixedScorer (beta: float) (epsilon: float) (one: ClassScatters) : Scorer =
        Scope.noGrad Scorer.leaves (fun () ->
            let means = PooledMoments.means one.Classes
            let images = one.Classes.Counts.sum().item<int64>()

            let pooled =
                (one.Scatters.``to`` torch.ScalarType.Float64).sum(0L).div(Number.Of(float images))

            let mixed =
                (covariances one).mul(Number.Of beta).plus(pooled.mul (Number.Of(1.0 - beta)))

            // a class without spread of its own takes the shared covariance, so that determinants stay comparable
            let spread = (Symmetric.traces mixed).gt(Number.Of 0.0)
            let mixed = torch.where (spread, mixed, pooled)
            let factors = Symmetric.cholesky "class covariance" (Symmetric.shrink epsilon mixed)

            let logDeterminants =
                factors.diagonal(0L, -2L, -1L).log().sum(1L).mul(Number.Of 2.0)

            scorer one.Scatters.dtype means factors logDeterminants)

    /// <summary>What `mixed` is.</summary>
    let mixedInfo: HeadInfo =
        {
            Name = "rda"
            Summary = "quadratic discriminant, each class's covariance mixed with the shared one"
            Source = "Friedman 1989, regularized discriminant analysis"
        }

    /// <summary>Regularized discriminant analysis: −½(δᵀΣ⁻¹δ + log |Σ|) with Σ the class's covariance times β plus the shared
    /// one times 1 − β, shrunk.</summary>
    /// <param name="beta">β, in [0, 1].</param>
    /// <param name="epsilon">Shrinkage to a multiple of the identity, in (0, 1].</param>
    /// <returns>The head.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">From `Zero`: an embedding has more than 1024 columns. From
    /// `Scores`: a class has no image.</exception>
    let mixed (beta: float) (epsilon: float) : Head<ClassScatters> =
        {
            Info = mixedInfo
            Tree = ClassScatters.tree
            Zero = ClassScatters.zero
            Grow = ClassScatters.grow
            Observe = ClassScatters.observe
            Merge = ClassScatters.merge
            Forget = ClassScatters.forget
            Transport = Some ClassScatters.transport
            Scores = mixedScorer beta epsilon
        }

    // a zero embedding stays zero
    let private unit (embeddings: torch.Tensor) =
        Scope.noGrad Leaves.tensor (fun () ->
            let norms = embeddings.norm (1, keepdim = true)
            embeddings.div (norms.clamp_min (Number.Of 1e-12)))

    let private fecamScorer (one: ClassScatters) : Scorer =
        Scope.noGrad Scorer.leaves (fun () ->
            let means = PooledMoments.means one.Classes
            let shrunk = Symmetric.shrink 0.5 (covariances one)
            let deviations = shrunk.diagonal(0L, -2L, -1L).sqrt()

            let correlations = shrunk.div(deviations.unsqueeze 2L).div(deviations.unsqueeze 1L)

            let factors = Symmetric.cholesky "class correlation" correlations
            let none = torch.zeros_like (means.select (1L, 0L))
            let scorer = scorer one.Scatters.dtype means factors none
            let width = means.shape[1]

            let score (embeddings: torch.Tensor) =
                Shape.expect "embeddings" [ Axis.Any "batch"; Axis.Is width ] embeddings
                Scope.noGrad Leaves.tensor (fun () -> scorer.Score(unit embeddings))

            { scorer with Score = score })

    /// <summary>What `fecam` is.</summary>
    let fecamInfo: HeadInfo =
        {
            Name = "fecam"
            Summary = "Mahalanobis distance of unit embeddings by each class's correlations"
            Source = "Goswami et al. 2023, arXiv 2309.14062 (FeCAM), its rule for transformers"
        }

    /// <summary>FeCAM as published for vision transformers: δᵀR⁻¹δ with δ the unit embedding minus the mean of the class's,
    /// and R the correlations of Σ plus its mean variance on the diagonal. It does not follow a network that moves:
    /// no affine map passes the division by the norm.</summary>
    /// <returns>The head.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">From `Zero`: an embedding has more than 1024 columns. From
    /// `Scores`: a class has no image.</exception>
    let fecam: Head<ClassScatters> =
        { mixed 1.0 0.5 with
            Info = fecamInfo
            Observe =
                fun embeddings rows one ->
                    Scope.noGrad ClassScatters.leaves (fun () ->
                        Shape.expect
                            "embeddings"
                            [ Axis.Any "batch"; Axis.Is one.Classes.Sums.shape[1] ]
                            embeddings

                        ClassScatters.observe (unit embeddings) rows one)
            Transport = None
            Scores = fecamScorer
        }
