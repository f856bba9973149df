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

    /// <summary>Merges the sums of disjoint images over the same classes.</summary>
    /// <param name="left">[c, d], borrowed.</param>
    /// <param name="right">Of the same shape, type and device; borrowed.</param>
    /// <returns>The sums of all images, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The sums differ in shape, type or device.</exception>
    static member (+)(left: ClassSums, right: ClassSums) : ClassSums =
        Shape.expect "class sums to add" [ for n in left.Sums.shape -> Axis.Is n ] right.Sums // one class would broadcast
        Shape.expectLike "class sums to add" left.Sums right.Sums

        {
            Sums = left.Sums.plus right.Sums
            Counts = left.Counts.plus right.Counts
        }

/// Sums of embeddings per class: what a head of class means is made of.
[<RequireQualifiedAccess>]
module ClassSums =

    /// <summary>The tensors of the sums.</summary>
    let tree: Tree<ClassSums> =
        tree {
            let! sums = Tree.field "sums" _.Sums Tree.tensor
            and! counts = Tree.field "counts" _.Counts Tree.tensor
            return { Sums = sums; Counts = counts }
        }

    /// <summary>Lists the tensors of the sums.</summary>
    let leaves = tree.Leaves

    /// <summary>The sums of no image.</summary>
    /// <param name="classes">c, may be 0.</param>
    /// <param name="width">d.</param>
    /// <param name="dtype">The type of the sums.</param>
    /// <param name="device">Where they are.</param>
    /// <returns>Zeros [c, d] and counts [c], owned by the caller.</returns>
    let zero (classes: int) (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : ClassSums =
        {
            Sums = torch.zeros ([| int64 classes; width |], dtype = dtype, device = device)
            Counts = torch.zeros ([| int64 classes |], dtype = torch.ScalarType.Int64, device = device)
        }

    /// <summary>The sums with rows for more classes, which come last.</summary>
    /// <param name="classes">How many more.</param>
    /// <param name="sums">[c, d], borrowed.</param>
    /// <returns>[c + classes, d], owned by the caller.</returns>
    let grow (classes: int) (sums: ClassSums) : ClassSums =
        Scope.noGrad leaves (fun () ->
            let fresh = zero classes sums.Sums.shape[1] sums.Sums.dtype sums.Sums.device

            {
                Sums = torch.cat ([| sums.Sums; fresh.Sums |], 0L)
                Counts = torch.cat ([| sums.Counts; fresh.Counts |], 0L)
            })

    /// <summary>A tensor without one row.</summary>
    /// <param name="row">In [0, c).</param>
    /// <param name="tensor">[c, ...], borrowed.</param>
    /// <returns>[c − 1, ...], owned by the caller's scope.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no such row.</exception>
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

    /// <summary>The sums without the class in a row; later rows move up.</summary>
    /// <param name="row">In [0, c).</param>
    /// <param name="sums">[c, d], borrowed.</param>
    /// <returns>[c − 1, d], owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no such row.</exception>
    let forget (row: int) (sums: ClassSums) : ClassSums =
        Scope.noGrad leaves (fun () ->
            {
                Sums = withoutRow row sums.Sums
                Counts = withoutRow row sums.Counts
            })

    /// <summary>Adds a batch.</summary>
    /// <param name="embeddings">[n, d], cast to the type of the sums; borrowed.</param>
    /// <param name="labels">[n] int64: rows in [0, c); borrowed.</param>
    /// <param name="sums">[c, d], on the device of the embeddings; borrowed.</param>
    /// <returns>The sums with the batch, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The embeddings have another width or device, or the labels
    /// another shape, type or device.</exception>
    let observe (embeddings: torch.Tensor) (labels: torch.Tensor) (sums: ClassSums) : ClassSums =
        Shape.expect "features" [ Axis.Any "batch"; Axis.Is sums.Sums.shape[1] ] embeddings
        Shape.expectDevice "features" sums.Sums embeddings
        Shape.expect "labels" [ Axis.Is embeddings.shape[0] ] labels
        Shape.expectLike "labels" sums.Counts labels

        Scope.noGrad leaves (fun () ->
            {
                Sums = sums.Sums.index_add (0L, labels, embeddings.``to`` sums.Sums.dtype, Number.Of 1.0)
                Counts = sums.Counts.index_add (0L, labels, torch.ones_like labels, Number.Of 1L)
            })

    /// <summary>The images of each class; waits for the device.</summary>
    /// <param name="sums">Borrowed.</param>
    /// <returns>c numbers.</returns>
    let counts (sums: ClassSums) : int64[] =
        Scope.run (fun () -> sums.Counts.cpu().data<int64>().ToArray())

    /// <summary>The mean embedding of each class.</summary>
    /// <param name="nameOf">Names the class of a row in the error.</param>
    /// <param name="sums">[c, d], borrowed.</param>
    /// <returns>[c, d], owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A class has no image.</exception>
    let means (nameOf: int -> string) (sums: ClassSums) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            match Array.tryFindIndex ((=) 0L) (counts sums) with
            | Some empty ->
                Errors.reject (nameOf empty) "needs at least one training image for its prototype" "none" ""
            | None -> sums.Sums.div (sums.Counts.``to``(sums.Sums.dtype).unsqueeze 1L))
