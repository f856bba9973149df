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

    /// Merges the moments of disjoint images. Owned by the caller.
    static member (+)(left: ClassMoments, right: ClassMoments) : ClassMoments =
        Shape.expect "class moments to add" [ for n in left.Sums.shape -> Axis.Is n ] right.Sums // one class would broadcast
        Shape.expectLike "class moments to add" left.Sums right.Sums

        {
            Sums = left.Sums.add right.Sums
            Squares = left.Squares.add right.Squares
            Counts = left.Counts.add right.Counts
        }

[<RequireQualifiedAccess>]
module ClassMoments =

    let leaves: Leaves<ClassMoments> = fun m -> [ m.Sums; m.Squares; m.Counts ]

    /// The moments of no image. Owned by the caller.
    let zero (classes: int) (blocks: int) (width: int64) (device: torch.Device) : ClassMoments =
        let classes, layers = int64 classes, int64 blocks + 1L

        let zeros (shape: int64[]) (dtype: torch.ScalarType) =
            torch.zeros (shape, dtype = dtype, device = device)

        {
            Sums = zeros [| classes; layers; width |] torch.ScalarType.Float64
            Squares = zeros [| classes; layers |] torch.ScalarType.Float64
            Counts = zeros [| classes |] torch.ScalarType.Int64
        }

    /// The parts of a network that are measured: the class token of each block, then that of the output.
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

    /// Adds a batch: the tokens [n, d] of each of `parts` for n images, and their labels [n] in [0, classes). Borrows;
    /// owned by the caller. Rejects tokens of another depth, width or device.
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
                sums.index_add (0L, labels, rows, Scalar.op_Implicit 1.0)

            {
                Sums = add moments.Sums tokens
                Squares = add moments.Squares ((tokens.mul tokens).sum -1L)
                Counts = moments.Counts.index_add (0L, labels, torch.ones_like labels, Scalar.op_Implicit 1L)
            })

    // [c, 1]
    let private column (counts: torch.Tensor) =
        counts.``to``(torch.ScalarType.Float64).unsqueeze 1L

    /// Mean class token per class and layer, [c, blocks + 1, d]. `nameOf` names a class without images in the error.
    /// Owned by the caller.
    let means (nameOf: int -> string) (moments: ClassMoments) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            match
                moments.Counts.cpu().data<int64>().ToArray()
                |> Array.tryFindIndex (fun count -> count < 1L)
            with
            | Some empty -> Errors.reject (nameOf empty) "needs at least one image for its mean" "none" ""
            | None -> moments.Sums.div ((column moments.Counts).unsqueeze 2L))

    /// Spread per class and layer, [c, blocks + 1]: the root of the mean squared distance of a class's images to their
    /// mean. Differences within rounding error count as 0. Owned by the caller.
    let spreads (nameOf: int -> string) (moments: ClassMoments) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let mean = means nameOf moments
            let square = moments.Squares.div (column moments.Counts)
            let variance = square.sub ((mean.mul mean).sum -1L)
            // the difference of two nearly equal numbers, each a sum over the images in any order
            let share =
                (column moments.Counts).mul(Scalar.op_Implicit 4e-16).add(Scalar.op_Implicit 1e-13)

            let rounding = square.mul share
            torch.where(variance.gt rounding, variance, torch.zeros_like variance).sqrt())
