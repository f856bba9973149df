namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Ridge regression of one-hot labels on embeddings: W = (G + λ·tr(G)/d·I)⁻¹Q with G = Σxxᵀ and Q the class sums; scores
/// xᵀW. Of a forgotten class, G keeps the scatter around its mean.
[<RequireQualifiedAccess>]
module Ridge =

    let private scorer (lambda: float) (moments: PooledMoments) : Scorer =
        Scope.noGrad Scorer.leaves (fun () ->
            let sums = moments.Classes
            PooledMoments.means sums |> ignore // each class has an image
            let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64

            // a Gram matrix may fill much of the memory: only its factor outlives this
            let factor =
                Scope.keep Leaves.tensor (fun () ->
                    let rows = (wide sums.Sums).div(wide(sums.Counts).sqrt().unsqueeze 1L)

                    let gram =
                        moments.Scatter
                            .``to``(torch.ScalarType.Float64, copy = true)
                            .addmm_(rows.t (), rows)

                    let mean = gram.diagonal().mean().item<float>()
                    let ridge = if mean > 0.0 then lambda * mean else 1.0
                    gram.diagonal().plus_(Number.Of ridge) |> ignore
                    Symmetric.cholesky "Gram matrix" gram)

            let weights =
                torch.cholesky_solve((wide sums.Sums).t(), factor).``to`` moments.Scatter.dtype

            let score (embeddings: torch.Tensor) =
                Shape.expect "embeddings" [ Axis.Any "batch"; Axis.Is weights.shape[0] ] embeddings
                Shape.expectLike "embeddings" weights embeddings
                Scope.noGrad Leaves.tensor (fun () -> embeddings.mm weights)

            Scorer.create [| weights |] score)

    /// <summary>What the head is.</summary>
    let info: HeadInfo =
        {
            Name = "ridge"
            Summary = "ridge regression of the labels"
            Source = "McDonnell et al. 2023, arXiv 2307.02251, without the random projection"
        }

    /// <summary>The head.</summary>
    /// <param name="lambda">λ, in units of the mean diagonal of the Gram matrix; above 0.</param>
    /// <returns>The head.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">From `Scores`: a class has no image.</exception>
    let head (lambda: float) : Head<PooledMoments> =
        {
            Info = info
            Tree = PooledMoments.tree
            Zero = PooledMoments.zero
            Grow = PooledMoments.grow
            Observe = PooledMoments.observe
            Merge = PooledMoments.merge
            Forget = PooledMoments.forget
            Transport = Some PooledMoments.transport
            Scores = scorer lambda
        }
