namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Sums of embeddings per class and their counts: a monoid, so that batches, threads and machines can be merged.
[<ReferenceEquality>]
type ClassSums =
    {
        /// [c, d]
        Sums: torch.Tensor
        /// [c], int64
        Counts: torch.Tensor
    }

    /// Merges the sums of disjoint images. Owned by the caller.
    static member (+)(left: ClassSums, right: ClassSums) : ClassSums =
        Shape.expect "class sums to add" [ for n in left.Sums.shape -> Axis.Is n ] right.Sums // one class would broadcast
        Shape.expectLike "class sums to add" left.Sums right.Sums

        {
            Sums = left.Sums.add right.Sums
            Counts = left.Counts.add right.Counts
        }

[<RequireQualifiedAccess>]
module ClassSums =

    let tree: Tree<ClassSums> =
        tree {
            let! sums = Tree.field "sums" _.Sums Tree.tensor
            and! counts = Tree.field "counts" _.Counts Tree.tensor
            return { Sums = sums; Counts = counts }
        }

    let leaves = tree.Leaves

    /// The sums of no image. Owned by the caller.
    let zero (classes: int) (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : ClassSums =
        {
            Sums = torch.zeros ([| int64 classes; width |], dtype = dtype, device = device)
            Counts = torch.zeros ([| int64 classes |], dtype = torch.ScalarType.Int64, device = device)
        }

    /// With rows for more classes. Borrows; owned by the caller.
    let grow (classes: int) (sums: ClassSums) : ClassSums =
        Scope.noGrad leaves (fun () ->
            let fresh = zero classes sums.Sums.shape[1] sums.Sums.dtype sums.Sums.device

            {
                Sums = torch.cat ([| sums.Sums; fresh.Sums |], 0L)
                Counts = torch.cat ([| sums.Counts; fresh.Counts |], 0L)
            })

    /// A tensor [c, ...] without one row. Borrows; owned by the caller. Rejects a row outside [0, c).
    let withoutRow (row: int) (tensor: torch.Tensor) : torch.Tensor =
        let rows = tensor.shape[0]

        if row < 0 || int64 row >= rows then
            Errors.reject "class row" $"must be in [0, {rows - 1L}]" $"{row}" ""

        let first = int64 row

        torch.cat (
            [|
                tensor.narrow (0L, 0L, first)
                tensor.narrow (0L, first + 1L, rows - first - 1L)
            |],
            0L
        )

    /// Without the class in a row. Borrows; owned by the caller.
    let forget (row: int) (sums: ClassSums) : ClassSums =
        Scope.noGrad leaves (fun () ->
            {
                Sums = withoutRow row sums.Sums
                Counts = withoutRow row sums.Counts
            })

    /// Adds a batch: embeddings [n, d] and labels [n] in [0, classes). Borrows; owned by the caller.
    let observe (embeddings: torch.Tensor) (labels: torch.Tensor) (sums: ClassSums) : ClassSums =
        Shape.expect "features" [ Axis.Any "batch"; Axis.Is sums.Sums.shape[1] ] embeddings
        Shape.expectDevice "features" sums.Sums embeddings
        Shape.expect "labels" [ Axis.Is embeddings.shape[0] ] labels
        Shape.expectLike "labels" sums.Counts labels

        Scope.noGrad leaves (fun () ->
            {
                Sums =
                    sums.Sums.index_add (
                        0L,
                        labels,
                        embeddings.``to`` sums.Sums.dtype,
                        Scalar.op_Implicit 1.0
                    )
                Counts = sums.Counts.index_add (0L, labels, torch.ones_like labels, Scalar.op_Implicit 1L)
            })

    /// Images per class, on the host.
    let counts (sums: ClassSums) : int64[] =
        Scope.run (fun () -> sums.Counts.cpu().data<int64>().ToArray())

    /// Mean embedding per class, [c, d]. `nameOf` names a class without images in the error. Owned by the caller.
    let means (nameOf: int -> string) (sums: ClassSums) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            match Array.tryFindIndex ((=) 0L) (counts sums) with
            | Some empty ->
                Errors.reject (nameOf empty) "needs at least one training image for its prototype" "none" ""
            | None -> sums.Sums.div (sums.Counts.``to``(sums.Sums.dtype).unsqueeze 1L))
