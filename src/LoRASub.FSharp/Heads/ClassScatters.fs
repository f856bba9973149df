namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Sums of embeddings and a scatter matrix per class: a monoid.
[<ReferenceEquality>]
type ClassScatters =
    {
        /// Sums and counts per class.
        Classes: ClassSums
        /// Σ(x − μ)(x − μ)ᵀ of each class, [c, d, d].
        Scatters: torch.Tensor
    }

/// Sums and scatter per class.
[<RequireQualifiedAccess>]
module ClassScatters =

    /// <summary>The tensors; each scatter is written as its lower triangle.</summary>
    let tree: Tree<ClassScatters> =
        tree {
            let! classes = Tree.field "classes" _.Classes ClassSums.tree
            and! scatters = Symmetric.field "scatters" _.Scatters

            return
                {
                    Classes = classes
                    Scatters = scatters classes.Sums.shape[1]
                }
        }

    /// <summary>Lists the tensors.</summary>
    let leaves = tree.Leaves

    /// Embeddings at most: each class keeps the square of this.
    [<Literal>]
    let internal MaxWidth = 1024L

    /// <summary>No class.</summary>
    /// <param name="width">d, at most 1024: a class keeps d² numbers.</param>
    /// <param name="dtype">float32 or float64.</param>
    /// <param name="device">Where they are.</param>
    /// <returns>Without rows, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The width is larger.</exception>
    let zero (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : ClassScatters =
        if width > MaxWidth then
            Errors.reject
                "embedding of a head with a covariance per class"
                $"must have at most {MaxWidth} columns"
                $"{width}"
                "choose a smaller embedding, such as class-token, or another head"

        {
            Classes = ClassSums.zero 0 width dtype device
            Scatters = torch.zeros ([| 0L; width; width |], dtype = dtype, device = device)
        }

    /// <summary>With rows for more classes, which come last.</summary>
    /// <param name="classes">How many more.</param>
    /// <param name="one">Borrowed.</param>
    /// <returns>Owned by the caller.</returns>
    let grow (classes: int) (one: ClassScatters) : ClassScatters =
        Scope.noGrad leaves (fun () ->
            let shape = [| int64 classes; yield! one.Scatters.shape[1..] |]

            let fresh =
                torch.zeros (shape, dtype = one.Scatters.dtype, device = one.Scatters.device)

            {
                Classes = ClassSums.grow classes one.Classes
                Scatters = torch.cat ([| one.Scatters; fresh |], 0L)
            })

    /// <summary>Without the class in a row; later rows move up.</summary>
    /// <param name="row">In [0, c).</param>
    /// <param name="one">Borrowed.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no such row.</exception>
    let forget (row: int) (one: ClassScatters) : ClassScatters =
        Scope.noGrad leaves (fun () ->
            {
                Classes = ClassSums.forget row one.Classes
                Scatters = ClassSums.withoutRow row one.Scatters
            })

    // rows [c, d] -> their outer products [c, d, d]
    let private squares (rows: torch.Tensor) =
        rows.unsqueeze(2L).mul(rows.unsqueeze 1L)

    /// <summary>Adds a batch.</summary>
    /// <param name="embeddings">[n, d], cast to the type of the sums; borrowed.</param>
    /// <param name="rows">[n] int64: rows in [0, c); borrowed.</param>
    /// <param name="one">On the device of the embeddings; borrowed.</param>
    /// <returns>With the batch, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The embeddings have another width or device, or the rows
    /// another shape, type or device.</exception>
    let observe (embeddings: torch.Tensor) (rows: torch.Tensor) (one: ClassScatters) : ClassScatters =
        Scope.noGrad leaves (fun () ->
            let classes = ClassSums.observe embeddings rows one.Classes

            let struct (present, position, within, between) =
                PooledMoments.deviations embeddings rows one.Classes

            let ofClass (j: int64) =
                let mine = within[position.eq (Number.Of j)]
                mine.t().mm mine

            let gained =
                torch.stack(Array.init (int present.shape[0]) (int64 >> ofClass)).plus(squares between)

            {
                Classes = classes
                Scatters = one.Scatters.index_add (0L, present, gained, Number.Of 1.0)
            })

    /// <summary>Adds the sums of two disjoint sets of images of the same classes.</summary>
    /// <param name="left">Borrowed.</param>
    /// <param name="right">Of the same shape, type and device; borrowed.</param>
    /// <returns>Of all images, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">They differ in shape, type or device.</exception>
    let merge (left: ClassScatters) (right: ClassScatters) : ClassScatters =
        Scope.noGrad leaves (fun () ->
            let classes = left.Classes + right.Classes
            let between = squares (PooledMoments.apart left.Classes right.Classes)

            {
                Classes = classes
                Scatters = left.Scatters.plus(right.Scatters).plus between
            })

    /// <summary>After a map of drift: means through the map, each scatter PᵀSP plus the residual of each of its
    /// images.</summary>
    /// <param name="map">Of the same width; borrowed.</param>
    /// <param name="one">Borrowed.</param>
    /// <returns>Owned by the caller.</returns>
    let transport (map: DriftMap) (one: ClassScatters) : ClassScatters =
        Scope.noGrad leaves (fun () ->
            let moved = map.Map.t().matmul(Symmetric.mirror one.Scatters).matmul map.Map
            let counts = one.Classes.Counts.``to``(moved.dtype).view(-1L, 1L, 1L)

            {
                Classes = DriftMap.sums map one.Classes
                Scatters = moved.plus (map.Residual.mul counts)
            })
