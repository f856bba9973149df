namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// Symmetric matrices: square in memory, written as their lower triangles. A product gives the two triangles unequal last
/// digits on some processors, so only the lower one counts: a matrix that was saved must act like one that was not.
[<RequireQualifiedAccess>]
module internal Symmetric =

    /// The lower triangles, row by row: [.., n, n] -> [.., n(n + 1)/2]. Borrows; owned by the caller's scope.
    let pack (matrix: torch.Tensor) : torch.Tensor =
        let n = matrix.shape[matrix.shape.Length - 1]

        torch.cat ([| for i in 0L .. n - 1L -> matrix.select(-2L, i).narrow(-1L, 0L, i + 1L) |], -1L)

    /// The inverse of `pack` for matrices of width n. Rejects another number of columns.
    let unpack (name: string) (n: int64) (packed: torch.Tensor) : torch.Tensor =
        let batch = packed.shape[.. packed.shape.Length - 2]

        Shape.expect
            name
            [
                for size in batch do
                    Axis.Is size
                Axis.Is(n * (n + 1L) / 2L)
            ]
            packed

        Scope.noGrad Leaves.tensor (fun () ->
            let full =
                torch.empty ([| yield! batch; n; n |], dtype = packed.dtype, device = packed.device)

            for i in 0L .. n - 1L do
                let row = packed.narrow (-1L, i * (i + 1L) / 2L, i + 1L)
                full.select(-2L, i).narrow(-1L, 0L, i + 1L).copy_ row |> ignore
                full.select(-1L, i).narrow(-1L, 0L, i + 1L).copy_ row |> ignore

            full)

    /// A member of a record whose width is known: symmetric matrices that are written packed.
    let field (name: string) (get: 'Owner -> torch.Tensor) : Part<'Owner, int64 -> torch.Tensor> =
        let tensor = Tree.field name get Tree.tensor

        {
            Collect = tensor.Collect
            Map =
                fun f owner ->
                    let mapped = tensor.Map f owner
                    fun _ -> mapped
            Write =
                fun path owner -> tensor.Write path owner |> List.map (fun (name, full) -> name, pack full)
            Read =
                fun tensors path ->
                    let packed = tensor.Read tensors path
                    fun width -> unpack name width packed
        }

    /// The lower triangles in both places. Owned by the caller's scope.
    let mirror (matrix: torch.Tensor) : torch.Tensor =
        matrix.tril().plus(matrix.tril(-1L).transpose(-2L, -1L))

    // In float64: for the factor of a covariance, whose small eigenvalues matter.
    let private wide (t: torch.Tensor) =
        t.``to`` (torch.ScalarType.Float64, copy = true)

    /// The trace of each, [.., 1, 1]. Owned by the caller's scope.
    let traces (matrix: torch.Tensor) : torch.Tensor =
        matrix.diagonal(0L, -2L, -1L).sum(-1L).unsqueeze(-1L).unsqueeze -1L

    /// (1 − ε)A + ε·tr(A)/d·I in float64, [.., d, d]; the identity where A is zero. Owned by the caller's scope.
    let shrink (epsilon: float) (matrix: torch.Tensor) : torch.Tensor =
        let result = wide matrix
        let diagonal = result.diagonal (0L, -2L, -1L)
        let mean = diagonal.mean ([| -1L |], keepdim = true)

        let ridge =
            torch.where (mean.gt (Number.Of 0.0), mean.mul (Number.Of epsilon), torch.ones_like mean)

        result.mul_ (Number.Of(1.0 - epsilon)) |> ignore
        diagonal.plus_ ridge |> ignore
        result

    /// The ε that minimises the expected squared error of a normal covariance (oracle approximating shrinkage, Chen et
    /// al. 2010). Waits for the device.
    let oas (images: int64) (covariance: torch.Tensor) : float =
        Scope.run (fun () ->
            let d, n = float covariance.shape[0], float images
            let covariance = mirror covariance
            let trace = covariance.trace().item<float>()
            let squares = covariance.mul(covariance).sum().item<float>()
            let square = trace * trace
            let numerator = (1.0 - 2.0 / d) * squares + square
            let denominator = (n + 1.0 - 2.0 / d) * (squares - square / d)

            if denominator <= numerator then
                1.0
            else
                numerator / denominator)

    /// The lower factors of positive definite matrices, from their lower triangles. Rejects others.
    let cholesky (subject: string) (matrix: torch.Tensor) : torch.Tensor =
        let struct (factor, info) = torch.linalg.cholesky_ex matrix

        if info.any().item<bool>() then
            Errors.reject
                subject
                "must be positive definite"
                "a matrix that is not"
                "raise the head's shrinkage"

        factor
