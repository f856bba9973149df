namespace LoRASub

open TorchSharp

/// The number format of the network's products. Parameters that train, statistics, losses and small linear
/// algebra keep `Precision.master`, float32 or wider.
[<RequireQualifiedAccess>]
type Precision =
    | Float32
    | BFloat16
    | Float64

[<RequireQualifiedAccess>]
module Precision =

    /// Format of weights and activations inside the network.
    let compute precision =
        match precision with
        | Precision.Float32 -> torch.ScalarType.Float32
        | Precision.BFloat16 -> torch.ScalarType.BFloat16
        | Precision.Float64 -> torch.ScalarType.Float64

    /// Format of trained parameters, statistics and losses.
    let master precision =
        match precision with
        | Precision.Float64 -> torch.ScalarType.Float64
        | Precision.Float32
        | Precision.BFloat16 -> torch.ScalarType.Float32

    /// Distance from 1 to the next number of a master format.
    let epsilon (master: torch.ScalarType) : float =
        if master = torch.ScalarType.Float64 then
            2.0 ** -52.0
        else
            2.0 ** -23.0
