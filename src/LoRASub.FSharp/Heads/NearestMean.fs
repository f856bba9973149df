namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// The nearest class mean on unit vectors, as LoRA-Sub-DRS predicts: argmin ‖f/(‖f‖ + 1e-8) − p/‖p‖‖², with p the mean of
/// a class's raw features (Liu & Chang 2025).
[<RequireQualifiedAccess>]
module NearestMean =

    /// <summary>A scorer from class means. Its score is 1 − ½‖f/(‖f‖ + 1e-8) − p/‖p‖‖², the cosine, in [-1,
    /// 1].</summary>
    /// <param name="means">[c, d], no row of zeros; borrowed.</param>
    /// <returns>The scorer, owned by the caller; it rejects embeddings of another width, type or
    /// device.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The means have another number of axes than two.</exception>
    let ofMeans (means: torch.Tensor) : Scorer =
        Shape.expect "class means" [ Axis.Any "classes"; Axis.Any "width" ] means
        let squares (t: torch.Tensor) = t.mul(t).sum 1L

        Scope.noGrad Scorer.leaves (fun () ->
            let units = means.div (means.norm (1, keepdim = true))
            let lengths = squares units

            let score (embeddings: torch.Tensor) =
                Shape.expect "features" [ Axis.Any "batch"; Axis.Is units.shape[1] ] embeddings
                Shape.expectLike "features" units embeddings

                Scope.noGrad Leaves.tensor (fun () ->
                    let f = embeddings.div (embeddings.norm(1, keepdim = true).plus(Number.Of 1e-8))

                    // |f|² + |p|² − 2fp: one product for all classes
                    let distances =
                        (squares f).unsqueeze(1L).plus(lengths).sub(f.mm(units.t ()).mul(Number.Of 2.0))

                    distances.mul(Number.Of -0.5).plus(Number.Of 1.0))

            Scorer.create [| units; lengths |] score)

    /// <summary>The head over sums per class. `Scores` needs an image of each class.</summary>
    let head: Head<ClassSums> =
        {
            Info =
                {
                    Name = "nearest-mean"
                    Summary = "the class whose mean embedding has the largest cosine"
                    Source = "Liu & Chang 2025; Mensink et al. 2013"
                }
            Tree = ClassSums.tree
            Zero = ClassSums.zero 0
            Grow = ClassSums.grow
            Observe = ClassSums.observe
            Merge = fun left right -> Scope.noGrad ClassSums.leaves (fun () -> left + right)
            Forget = ClassSums.forget
            Transport = None
            Scores =
                fun sums ->
                    Scope.noGrad Scorer.leaves (fun () ->
                        sums |> ClassSums.means (fun row -> $"class in row {row}") |> ofMeans)
        }
