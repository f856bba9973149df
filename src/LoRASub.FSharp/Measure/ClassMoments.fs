namespace LoRASub.Measure

open LoRASub.Core
open LoRASub.Backbone
open TorchSharp

/// Sums over the class tokens of each class, at every block and at the output: a monoid, so that batches, threads and
/// machines can be merged.
[<ReferenceEquality>]
type ClassMoments =
    {
        /// [c, blocks + 1, d], float64: sums of the blocks' class tokens in order, then of the output's.
        Sums: torch.Tensor
        /// [c, blocks + 1], float64: sums of their squared norms.
        Squares: torch.Tensor
        /// [c], int64: images.
        Counts: torch.Tensor
    }

    /// <summary>Merges the moments of disjoint images.</summary>
    /// <param name="left">Borrowed.</param>
    /// <param name="right">Borrowed; of the same classes, layers and width.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The shapes, types or devices differ.</exception>
    static member (+)(left: ClassMoments, right: ClassMoments) : ClassMoments =
        Shape.expect "class moments to add" [ for n in left.Sums.shape -> Axis.Is n ] right.Sums // one class would be broadcast
        Shape.expectLike "class moments to add" left.Sums right.Sums

        {
            Sums = left.Sums.plus right.Sums
            Squares = left.Squares.plus right.Squares
            Counts = left.Counts.plus right.Counts
        }

/// Class moments: sums over batches, then means and spreads.
[<RequireQualifiedAccess>]
module ClassMoments =

    /// <summary>Lists the tensors of class moments.</summary>
    /// <param name="m">Borrowed.</param>
    /// <returns>Its three tensors, borrowed.</returns>
    let leaves: Leaves<ClassMoments> = fun m -> [ m.Sums; m.Squares; m.Counts ]

    /// <summary>The moments of no image.</summary>
    /// <param name="classes">c, the number of classes.</param>
    /// <param name="blocks">The number of blocks of the network.</param>
    /// <param name="width">d, the width of a token.</param>
    /// <param name="device">Where the sums are kept.</param>
    /// <returns>Zeros: sums [c, blocks + 1, d], squares [c, blocks + 1] and counts [c]. Owned by the
    /// caller.</returns>
    let zero (classes: int) (blocks: int) (width: int64) (device: torch.Device) : ClassMoments =
        let classes, layers = int64 classes, int64 blocks + 1L

        let zeros (shape: int64[]) (dtype: torch.ScalarType) =
            torch.zeros (shape, dtype = dtype, device = device)

        {
            Sums = zeros [| classes; layers; width |] torch.ScalarType.Float64
            Squares = zeros [| classes; layers |] torch.ScalarType.Float64
            Counts = zeros [| classes |] torch.ScalarType.Int64
        }

    /// <summary>The parts of a network that are measured: the class token of each block, then that of the
    /// output.</summary>
    /// <param name="vit">Borrowed.</param>
    /// <returns>blocks + 1 parts, for an embedding.</returns>
    let parts (vit: VisionTransformer) : EmbeddingPart[] =
        [|
            for block in 1 .. vit.Blocks.Length do
                {
                    Block = block
                    Tokens = Tokens.Class
                    FinalNorm = false
                }

            yield! (Embedding.output vit).Parts
        |]

    /// <summary>Adds a batch.</summary>
    /// <param name="layers">The tokens [n, d] of n images for each of `parts`, of any floating-point type.
    /// Borrowed.</param>
    /// <param name="labels">[n], int64, in [0, classes), on the device of the moments. Borrowed.</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>The moments with the batch. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The number of layers, the width, or the device differs from
    /// that of the moments.</exception>
    let observe (layers: torch.Tensor[]) (labels: torch.Tensor) (moments: ClassMoments) : ClassMoments =
        let count, width = int moments.Sums.shape[1], moments.Sums.shape[2]

        if layers.Length <> count then
            Errors.reject "features" $"must be of {count} layers" $"{layers.Length}" ""

        let n = labels.shape[0]

        for tokens in layers do
            Shape.expect "features of a layer" [ Axis.Is n; Axis.Is width ] tokens
            Shape.expectDevice "features" moments.Sums tokens

        Shape.expect "labels" [ Axis.Is n ] labels
        Shape.expectLike "labels" moments.Counts labels

        Scope.noGrad leaves (fun () ->
            let tokens =
                [| for t in layers -> t.``to`` moments.Sums.dtype |]
                |> fun all -> torch.stack (all, 1L) // [n, blocks + 1, d]

            let add (sums: torch.Tensor) (rows: torch.Tensor) =
                sums.index_add (0L, labels, rows, Number.Of 1.0)

            {
                Sums = add moments.Sums tokens
                Squares = add moments.Squares ((tokens.mul tokens).sum -1L)
                Counts = moments.Counts.index_add (0L, labels, torch.ones_like labels, Number.Of 1L)
            })

    // [c, 1]
    let private column (counts: torch.Tensor) =
        counts.``to``(torch.ScalarType.Float64).unsqueeze 1L

    /// <summary>The mean class token of each class and layer.</summary>
    /// <param name="nameOf">Names a class, by its row, in the error.</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>[c, blocks + 1, d], float64. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A class has no image.</exception>
    let means (nameOf: int -> string) (moments: ClassMoments) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            match
                moments.Counts.cpu().data<int64>().ToArray()
                |> Array.tryFindIndex (fun count -> count < 1L)
            with
            | Some empty -> Errors.reject (nameOf empty) "needs at least one image for its mean" "none" ""
            | None -> moments.Sums.div ((column moments.Counts).unsqueeze 2L))

    /// <summary>The spread of each class and layer: the root of the mean squared distance of its images to their
    /// mean. Differences within rounding error count as 0.</summary>
    /// <param name="nameOf">Names a class, by its row, in the error.</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>[c, blocks + 1], float64. Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A class has no image.</exception>
    let spreads (nameOf: int -> string) (moments: ClassMoments) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let mean = means nameOf moments
            let square = moments.Squares.div (column moments.Counts)
            let variance = square.sub ((mean.mul mean).sum -1L)
            // the difference of two nearly equal numbers, each a sum over the images in any order
            let share = (column moments.Counts).mul(Number.Of 4e-16).plus(Number.Of 1e-13)

            let rounding = square.mul share
            torch.where(variance.gt rounding, variance, torch.zeros_like variance).sqrt())
