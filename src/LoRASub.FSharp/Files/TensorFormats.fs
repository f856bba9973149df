namespace LoRASub.Files

open System
open System.IO
open System.Security.Cryptography
open System.Text
open LoRASub.Core

/// A format of named tensors.
type internal TensorFormat =
    {
        /// For people.
        Name: string
        /// By which it is recognised; None for safetensors, which has no signature.
        Kind: FileKind option
        /// What a file holds, without the numbers.
        Header: string -> TensorFileHeader
        /// The tensors of wanted names, on the CPU, owned by the caller.
        ReadOnly: (string -> bool) -> string -> TensorFile
        /// The other files that a file names.
        Others: string -> string list
    }

/// The formats of weights, recognised by their first bytes.
[<RequireQualifiedAccess>]
module internal TensorFormats =

    let private format name kind header readOnly =
        {
            Name = name
            Kind = kind
            Header = header
            ReadOnly = readOnly
            Others = fun _ -> []
        }

    let private single =
        [
            format "safetensors" None Safetensors.header Safetensors.readOnly
            format
                "NumPy archive (.npz)"
                (Some FileKind.numpyArchive)
                NumpyArchive.header
                NumpyArchive.readOnly
            format
                "PyTorch archive (.pth, .pt, .bin)"
                (Some FileKind.torchArchive)
                TorchArchive.header
                TorchArchive.readOnly
        ]

    let private among (formats: TensorFormat list) (path: string) : TensorFormat =
        let kind =
            use stream = TensorBytes.open' "a file of weights" path
            let start = Array.zeroCreate<byte>(int (min stream.Length (int64 FileKind.Needed)))
            TensorBytes.fill path stream (Span start)
            FileKind.identify start

        match formats |> List.tryFind (fun one -> one.Kind = kind), kind with
        | Some found, _ -> found
        | None, Some kind ->
            let names = formats |> List.map _.Name |> String.concat ", "
            Errors.reject path $"must be weights in one of the formats {names}" kind.Name kind.Advice
        | None, None -> formats.Head

    /// Every format.
    let all =
        let shard = among single

        let index =
            format
                "index of shards (.index.json)"
                (Some FileKind.shardIndex)
                (ShardIndex.header (fun path -> (shard path).Header path))
                (ShardIndex.readOnly (fun path -> (shard path).Header path) (fun wanted path ->
                    (shard path).ReadOnly wanted path))

        single @ [ { index with Others = ShardIndex.files } ]

    /// The format of a file. Rejects a file of another known kind; one of no known kind is read as safetensors.
    let ofFile (path: string) : TensorFormat = among all path

    /// What a file holds, without the numbers.
    let header (path: string) : TensorFileHeader = (ofFile path).Header path

    /// The tensors of wanted names, on the CPU, owned by the caller.
    let readOnly (wanted: string -> bool) (path: string) : TensorFile = (ofFile path).ReadOnly wanted path

    /// SHA-256 of a file, in lower-case hexadecimal. For an index, that of the hashes of itself and its shards, one a line.
    let sha256 (path: string) : string =
        let hash (path: string) =
            use stream = TensorBytes.open' "a file of weights" path

            try
                Convert.ToHexStringLower(SHA256.HashData stream)
            with :? IOException as e ->
                Errors.reject path "must be readable up to its end" e.Message ""

        match (ofFile path).Others path with
        | [] -> hash path
        | others ->
            path :: others
            |> List.map (fun file -> hash file + "\n")
            |> String.concat ""
            |> Encoding.ASCII.GetBytes
            |> SHA256.HashData
            |> Convert.ToHexStringLower
