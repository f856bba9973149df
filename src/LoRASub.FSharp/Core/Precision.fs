namespace LoRASub.Core

open TorchSharp

/// The number format of the network's products. Parameters that train, statistics, losses and small linear
/// algebra keep `Precision.master`, float32 or wider.
[<RequireQualifiedAccess>]
type Precision =
    /// 32 bits.
    | Float32
    /// 32 bits, but products on a CUDA device round their factors to 11 bits of precision: all products in float32 there,
    /// those of statistics and losses with them. On a CPU the same as Float32.
    | TF32
    /// Products in 16 bits; whatever trains stays in 32.
    | BFloat16
    /// 64 bits.
    | Float64

/// The tensor types of a precision.
[<RequireQualifiedAccess>]
module Precision =

    /// <summary>The type of weights and activations inside the network.</summary>
    /// <param name="precision">The number format of the products.</param>
    /// <returns>Float32 (for TF32 as well), BFloat16 or Float64.</returns>
    let compute precision =
        match precision with
        | Precision.Float32
        | Precision.TF32 -> torch.ScalarType.Float32
        | Precision.BFloat16 -> torch.ScalarType.BFloat16
        | Precision.Float64 -> torch.ScalarType.Float64

    /// <summary>The type of trained parameters, statistics and losses.</summary>
    /// <param name="precision">The number format of the products.</param>
    /// <returns>Float64 for Float64, otherwise Float32.</returns>
    let master precision =
        match precision with
        | Precision.Float64 -> torch.ScalarType.Float64
        | Precision.Float32
        | Precision.TF32
        | Precision.BFloat16 -> torch.ScalarType.Float32

    /// <summary>The distance from 1 to the next number of a master type.</summary>
    /// <param name="master">Float32 or Float64.</param>
    /// <returns>2^-23 or 2^-52.</returns>
    let epsilon (master: torch.ScalarType) : float =
        if master = torch.ScalarType.Float64 then
            2.0 ** -52.0
        else
            2.0 ** -23.0
