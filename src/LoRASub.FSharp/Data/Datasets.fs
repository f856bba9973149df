namespace LoRASub

/// The data sets known by name.
[<RequireQualifiedAccess>]
module Datasets =

    let private known: (string * (string -> Dataset)) list =
        [
            "fashion-mnist", Idx.load "fashion-mnist" Idx.fashionMnistClasses
            "mnist", Idx.load "mnist" Idx.mnistClasses
            "cifar10", Cifar.load10
            "cifar100", Cifar.load100
        ]

    /// Names that `load` takes.
    let names: string list = List.map fst known

    /// Reads a data set in its published files from a folder. Rejects an unknown name with the nearest known one.
    let load (name: string) (folder: string) : Dataset =
        match List.tryFind (fun (known, _) -> known = name) known with
        | Some(_, load) -> load folder
        | None ->
            let all = String.concat ", " names
            Errors.reject "data set" $"must be one of {all}" name $"did you mean {Errors.nearest names name}?"
