namespace LoRASub.Core

open TorchSharp

/// Operations that LibTorch fuses into one kernel on a CPU and on CUDA. Devices without these kernels, such as the meta
/// device (shapes without numbers), get the same mathematics composed of plain operations, so that a whole training
/// step can be checked on them.
[<RequireQualifiedAccess>]
module internal Fused =

    let private number (x: float) = Number.Of x

    let private isFused (x: torch.Tensor) =
        match x.device.``type`` with
        | DeviceType.CPU
        | DeviceType.CUDA -> true
        | _ -> false

    /// The same mathematics in plain operations.
    module Composed =

        let standardise (epsilon: float) (x: torch.Tensor) =
            let centred = x.sub (x.mean ([| -1L |], true))
            let variance = centred.mul(centred).mean([| -1L |], true)
            centred.mul (variance.plus(number epsilon).rsqrt())

        let layerNorm (weight: torch.Tensor) (bias: torch.Tensor) (epsilon: float) (x: torch.Tensor) =
            (standardise epsilon x).mul(weight).plus bias

        let attention (q: torch.Tensor) (k: torch.Tensor) (v: torch.Tensor) =
            let scale = number (1.0 / sqrt (float q.shape[3]))
            let weights = torch.einsum("bhnd,bhmd->bhnm", q, k).mul(scale).softmax -1L
            torch.einsum ("bhnm,bhmd->bhnd", weights, v)

        let distances (order: float) (left: torch.Tensor) (right: torch.Tensor) =
            left.unsqueeze(1L).sub(right.unsqueeze 0L).norm(2, p = float32 order)

    /// Rows of x [.., d] brought to mean 0 and variance 1.
    let standardise (epsilon: float) (x: torch.Tensor) : torch.Tensor =
        if isFused x then
            torch.nn.functional.layer_norm (x, [| x.shape[x.shape.Length - 1] |], null, null, epsilon)
        else
            Composed.standardise epsilon x

    /// Rows of x [.., d] brought to mean 0 and variance 1, then scaled and shifted.
    let layerNorm
        (weight: torch.Tensor)
        (bias: torch.Tensor)
        (epsilon: float)
        (x: torch.Tensor)
        : torch.Tensor =
        if isFused x then
            torch.nn.functional.layer_norm (x, [| x.shape[x.shape.Length - 1] |], weight, bias, epsilon)
        else
            Composed.layerNorm weight bias epsilon x

    /// softmax(q·kᵀ/√d)·v over [B, h, N, d], in bfloat16 on a CPU by the given route: LibTorch's fused kernel calls
    /// oneDNN anew for every head of every image, and its backward pass takes 2 to 5 times as long as that in float32.
    let attentionBy
        (route: ProductRoute)
        (q: torch.Tensor)
        (k: torch.Tensor)
        (v: torch.Tensor)
        : torch.Tensor =
        let attend q k v =
            torch.nn.functional.scaled_dot_product_attention (q, k, v)

        if not (isFused q) then
            Composed.attention q k v
        elif q.dtype <> torch.ScalarType.BFloat16 || q.device.``type`` <> DeviceType.CPU then
            attend q k v
        // Processors of this route are fast in bfloat16. N² weights of 2 bytes take no more memory than q, k and v in
        // float32.
        elif route = ProductRoute.OneDnn && k.shape[2] <= 6L * k.shape[3] then
            let scale = number (1.0 / sqrt (float q.shape[3]))
            q.mul(scale).matmul(k.transpose (-2L, -1L)).softmax(-1L).matmul v
        else
            let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float32
            (attend (wide q) (wide k) (wide v)).``to`` q.dtype

    /// `attentionBy` the route of this machine.
    let attention q k v = attentionBy (Product.route ()) q k v

    /// Distances between the rows of two matrices in a norm, [n, d] and [c, d] -> [n, c].
    let distances (order: float) (left: torch.Tensor) (right: torch.Tensor) : torch.Tensor =
        if isFused left then
            torch.cdist (left, right, order)
        else
            Composed.distances order left right

    /// Position of the smallest number of each row, the first where several tie, [n, c] -> [n] int64. A GPU's argmin
    /// gives any of them.
    let firstSmallest (x: torch.Tensor) : torch.Tensor =
        let last = x.shape[1] - 1L

        let positions =
            torch.arange (
                Number.Of 0L,
                Number.Of x.shape[1],
                Number.Of 1L,
                dtype = torch.ScalarType.Int64,
                device = x.device
            )

        let isLarger = x.ne (x.amin ([| 1L |], keepdim = true))
        // a row of NaN has no smallest
        positions.expand(x.shape).masked_fill(isLarger, Number.Of last).amin [| 1L |]

    /// max(x, low), with slope 1 at `low` as in torch's clamp.
    let atLeast (low: float) (x: torch.Tensor) : torch.Tensor =
        x.masked_fill (x.lt (number low), number low)
