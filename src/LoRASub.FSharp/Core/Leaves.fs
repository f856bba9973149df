namespace LoRASub

open TorchSharp

/// Lists the tensors that a value holds, so that `Scope` can hand exactly those to the caller.
type Leaves<'T> = 'T -> torch.Tensor seq

[<RequireQualifiedAccess>]
module Leaves =
    let none: Leaves<'T> = fun _ -> Seq.empty
    let tensor: Leaves<torch.Tensor> = Seq.singleton
    let tensors: Leaves<torch.Tensor[]> = fun all -> all
    let first (leaves: Leaves<'A>) : Leaves<struct ('A * 'B)> = fun struct (a, _) -> leaves a

    let both (left: Leaves<'A>) (right: Leaves<'B>) : Leaves<struct ('A * 'B)> =
        fun struct (a, b) -> Seq.append (left a) (right b)

    let array (leaves: Leaves<'T>) : Leaves<'T[]> = Seq.collect leaves
    let option (leaves: Leaves<'T>) : Leaves<'T option> = Option.toList >> Seq.collect leaves
