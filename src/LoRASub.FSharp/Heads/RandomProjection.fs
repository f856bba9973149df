namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// A head's state over random features of the embeddings.
[<ReferenceEquality>]
type RandomFeatures<'H> =
    {
        /// [d, M]; drawn anew where a state is read.
        Projection: torch.Tensor
        /// What the head keeps of the random features.
        Inner: 'H
    }

/// Heads over relu(xᵀR) with R normal numbers [d, M] (McDonnell et al. 2023, RanPAC). R follows from d and M, so that
/// it is not saved and states merge. Such a head does not follow a network that moves: no affine map passes the relu.
[<RequireQualifiedAccess>]
module RandomProjection =

    let private projection (inputs: int64) (width: int) (dtype: torch.ScalarType) (device: torch.Device) =
        let key = Rng.ofSeed 0L |> Rng.fold inputs |> Rng.fold (int64 width)

        // the same numbers in every precision
        Scope.noGrad Leaves.tensor (fun () ->
            (Rng.normal [| inputs; int64 width |] torch.ScalarType.Float32 device key).``to`` dtype)

    let private features (projection: torch.Tensor) (embeddings: torch.Tensor) =
        Shape.expect "embeddings" [ Axis.Any "batch"; Axis.Is projection.shape[0] ] embeddings
        Shape.expectDevice "embeddings" projection embeddings

        Scope.noGrad Leaves.tensor (fun () -> (embeddings.``to`` projection.dtype).mm(projection).relu())

    let private treeOf (width: int) (inner: Tree<'H>) : Tree<RandomFeatures<'H>> =
        let inputs = Tree.field "inputs" (fun one -> one.Projection.shape[0]) Tree.int64
        let inner' = Tree.field "features" _.Inner inner

        {
            Collect =
                fun all one ->
                    all.Add one.Projection
                    inner'.Collect all one
            Map =
                fun f one ->
                    let projection = f one.Projection

                    {
                        Projection = projection
                        Inner = inner'.Map f one
                    }
            Write = fun path one -> inputs.Write path one @ inner'.Write path one
            Read =
                fun tensors path ->
                    let state = inner'.Read tensors path

                    let like =
                        inner.Leaves state
                        |> Seq.find (fun (tensor: torch.Tensor) -> torch.is_floating_point tensor)

                    {
                        Projection = projection (inputs.Read tensors path) width like.dtype like.device
                        Inner = state
                    }
        }

    /// <summary>A head over random features.</summary>
    /// <param name="info">Name, meaning and source.</param>
    /// <param name="width">M, the number of features.</param>
    /// <param name="inner">What learns from the features.</param>
    /// <returns>The head over embeddings of any width.</returns>
    let over (info: HeadInfo) (width: int) (inner: Head<'H>) : Head<RandomFeatures<'H>> =
        let tree = treeOf width inner.Tree

        let with' (one: RandomFeatures<'H>) (change: 'H -> 'H) = { one with Inner = change one.Inner }

        {
            Info = info
            Tree = tree
            Zero =
                fun inputs dtype device ->
                    {
                        Projection = projection inputs width dtype device
                        Inner = inner.Zero (int64 width) dtype device
                    }
            Grow = fun classes one -> with' one (inner.Grow classes)
            Observe =
                fun embeddings rows one ->
                    Scope.noGrad tree.Leaves (fun () ->
                        with' one (inner.Observe (features one.Projection embeddings) rows))
            Merge = fun left right -> with' left (fun one -> inner.Merge one right.Inner)
            Forget = fun row one -> with' one (inner.Forget row)
            Transport = None
            Scores =
                fun one ->
                    Scope.noGrad Scorer.leaves (fun () ->
                        let scorer, projection = inner.Scores one.Inner, one.Projection.clone ()

                        { scorer with
                            Owned = [| projection; yield! scorer.Owned |]
                            Score =
                                fun embeddings ->
                                    Scope.noGrad Leaves.tensor (fun () ->
                                        scorer.Score(features projection embeddings))
                        })
        }

    /// <summary>What ridge regression of random features is.</summary>
    let ridgeInfo: HeadInfo =
        {
            Name = "rp-ridge"
            Summary = "ridge regression of random features"
            Source = "McDonnell et al. 2023, arXiv 2307.02251 (RanPAC), with a fixed relative λ"
        }

    /// <summary>What the cosine discriminant of random features is.</summary>
    let cosineInfo: HeadInfo =
        {
            Name = "rp-cosine-lda"
            Summary = "cosine-lda of random features"
            Source = "McDonnell et al. 2023, arXiv 2307.02251, with this project's cosine-lda"
        }
