namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Sums of embeddings per class and the scatter around the class means, pooled over classes: a monoid. What
/// discriminants and ridge regression are made of.
[<ReferenceEquality>]
type PooledMoments =
    {
        /// Sums and counts per class.
        Classes: ClassSums
        /// Σ(x − μ)(x − μ)ᵀ with μ the mean of the image's class, [d, d]; also over classes that were forgotten.
        Scatter: torch.Tensor
        /// Images in the scatter.
        Images: int64
    }

/// Class sums and pooled scatter. The scatter is updated around the means (Chan et al. 1983), so that it is exact in
/// float32 where a difference of second moments would cancel.
[<RequireQualifiedAccess>]
module PooledMoments =

    /// <summary>The tensors of the moments; the scatter is written as its lower triangle.</summary>
    let tree: Tree<PooledMoments> =
        tree {
            let! classes = Tree.field "classes" _.Classes ClassSums.tree
            and! scatter = Symmetric.field "scatter" _.Scatter
            and! images = Tree.field "images" _.Images Tree.int64

            return
                {
                    Classes = classes
                    Scatter = scatter classes.Sums.shape[1]
                    Images = images
                }
        }

    /// <summary>Lists the tensors of the moments.</summary>
    let leaves = tree.Leaves

    /// <summary>The moments of no class.</summary>
    /// <param name="width">d.</param>
    /// <param name="dtype">float32 or float64.</param>
    /// <param name="device">Where they are.</param>
    /// <returns>Zeros, owned by the caller.</returns>
    let zero (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : PooledMoments =
        {
            Classes = ClassSums.zero 0 width dtype device
            Scatter = torch.zeros ([| width; width |], dtype = dtype, device = device)
            Images = 0L
        }

    /// <summary>The moments with rows for more classes, which come last.</summary>
    /// <param name="classes">How many more.</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>The moments, which share the scatter.</returns>
    let grow (classes: int) (moments: PooledMoments) : PooledMoments =
        { moments with
            Classes = ClassSums.grow classes moments.Classes
        }

    /// <summary>The moments without the class in a row. Its share of the pooled scatter stays: it is not kept per
    /// class.</summary>
    /// <param name="row">In [0, c).</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>The moments, which share the scatter.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no such row.</exception>
    let forget (row: int) (moments: PooledMoments) : PooledMoments =
        { moments with
            Classes = ClassSums.forget row moments.Classes
        }

    /// √(n·m/(n + m))·(mean of the right − mean of the left) per class, [c, d]: what the scatter gains where the two are
    /// joined. Zero where either has no image. Owned by the caller's scope.
    let internal apart (left: ClassSums) (right: ClassSums) : torch.Tensor =
        let count (sums: ClassSums) =
            sums.Counts.``to``(sums.Sums.dtype).unsqueeze 1L

        let some (n: torch.Tensor) = n.clamp_min (Number.Of 1.0)
        let n, m = count left, count right
        let weight = n.mul(m).div(some (n.plus m)).sqrt()
        (right.Sums.div(some m).sub(left.Sums.div (some n))).mul weight

    /// Rows whose squares are what a batch adds to the scatter, and the row of each in `present`: deviations from the
    /// batch's own class means, and the means' from those so far. Owned by the caller's scope.
    let internal deviations (embeddings: torch.Tensor) (rows: torch.Tensor) (sums: ClassSums) =
        let struct (present, position, _) = rows.unique (true, true, false)
        let x = embeddings.``to`` sums.Sums.dtype

        let batch =
            ClassSums.observe x position (ClassSums.zero (int present.shape[0]) x.shape[1] x.dtype x.device)

        let means = ClassSums.means string<int> batch

        let before =
            {
                Sums = sums.Sums.index_select (0L, present)
                Counts = sums.Counts.index_select (0L, present)
            }

        struct (present, position, x.sub (means.index_select (0L, position)), apart before batch)

    /// <summary>Adds a batch.</summary>
    /// <param name="embeddings">[n, d], cast to the type of the sums; borrowed.</param>
    /// <param name="rows">[n] int64: rows in [0, c); borrowed.</param>
    /// <param name="moments">On the device of the embeddings; borrowed.</param>
    /// <returns>The moments with the batch, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The embeddings have another width or device, or the rows
    /// another shape, type or device.</exception>
    let observe (embeddings: torch.Tensor) (rows: torch.Tensor) (moments: PooledMoments) : PooledMoments =
        Scope.noGrad leaves (fun () ->
            let classes = ClassSums.observe embeddings rows moments.Classes
            let struct (_, _, within, between) = deviations embeddings rows moments.Classes
            let all = torch.cat ([| within; between |], 0L)

            {
                Classes = classes
                Scatter = moments.Scatter.addmm (all.t (), all)
                Images = moments.Images + rows.shape[0]
            })

    /// <summary>The moments of two disjoint sets of images over the same classes.</summary>
    /// <param name="left">Borrowed.</param>
    /// <param name="right">Of the same shape, type and device; borrowed.</param>
    /// <returns>The moments of all, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">They differ in shape, type or device.</exception>
    let merge (left: PooledMoments) (right: PooledMoments) : PooledMoments =
        Scope.noGrad leaves (fun () ->
            let classes = left.Classes + right.Classes
            let between = apart left.Classes right.Classes

            {
                Classes = classes
                Scatter = left.Scatter.plus(right.Scatter).addmm(between.t (), between)
                Images = left.Images + right.Images
            })

    /// <summary>The moments after a map of drift: means through the map, scatter PᵀSP plus the residual of each
    /// image.</summary>
    /// <param name="map">Of the same width; borrowed.</param>
    /// <param name="moments">Borrowed.</param>
    /// <returns>The moments, owned by the caller.</returns>
    let transport (map: DriftMap) (moments: PooledMoments) : PooledMoments =
        Scope.noGrad leaves (fun () ->
            let moved = map.Map.t().mm(Symmetric.mirror moments.Scatter).mm map.Map
            let residual = map.Residual.mul (Number.Of(float moments.Images))

            {
                Classes = DriftMap.sums map moments.Classes
                Scatter = moved.plus residual
                Images = moments.Images
            })

    /// Class means, [c, d] float64. Rejects a class without images. Owned by the caller's scope.
    let internal means (sums: ClassSums) : torch.Tensor =
        (ClassSums.means (fun row -> $"class in row {row}") sums).``to`` torch.ScalarType.Float64
