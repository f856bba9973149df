namespace LoRASub

open System
open System.IO
open TorchSharp

/// One split of a data set, in its original order.
[<ReferenceEquality>]
type ImageSet =
    {
        /// The file or folder that its errors name.
        Source: string
        /// One label per image, in [0, classes).
        Labels: int[]
        /// The images at some positions as uint8 [n, c, H, W] (RGB or grey) on the CPU, owned by the caller; may be
        /// called from any thread.
        Read: int[] -> torch.Tensor
    }

/// A labelled data set with its two published splits.
[<ReferenceEquality>]
type Dataset =
    {
        Name: string
        ClassNames: string[]
        Train: ImageSet
        Test: ImageSet
    }

/// Files of a data set, with errors that name them.
[<RequireQualifiedAccess>]
module internal DataFile =

    let requireFolder (dataset: string) (folder: string) =
        if not (Directory.Exists folder) then
            Errors.reject folder $"must be the folder with the files of {dataset}" "no such folder" ""

    /// The first of the names that is a file in the folder.
    let find (dataset: string) (folder: string) (names: string list) =
        requireFolder dataset folder

        match
            names
            |> List.map (fun name -> Path.Combine(folder, name))
            |> List.tryFind File.Exists
        with
        | Some path -> path
        | None ->
            let wanted = String.Join(" or ", names)
            let rule = $"{dataset} needs this file ({wanted})"

            Errors.reject
                (Path.Combine(folder, names.Head))
                rule
                "no such file"
                "give the folder that holds it"

    /// Runs `read` on the opened file; what the system or a decoder says against it becomes an InputException.
    let openRead (path: string) (read: FileStream -> 'T) : 'T =
        try
            use stream = File.OpenRead path
            read stream
        with
        | :? IOException
        | :? InvalidDataException
        | :? UnauthorizedAccessException as e ->
            raise (InputException($"{path}: cannot be read; {e.Message}", e))

    /// All bytes of a file.
    let bytes (path: string) : byte[] =
        openRead path (fun stream ->
            if stream.Length > int64 Array.MaxLength then
                Errors.reject path $"must have at most {Array.MaxLength} bytes" $"{stream.Length}" ""

            let all = Array.zeroCreate<byte>(int stream.Length)
            stream.ReadExactly(all, 0, all.Length)
            all)

    /// SHA-256 of a file, in lower-case hexadecimal.
    let sha256 (path: string) : string =
        openRead path (fun stream -> Convert.ToHexStringLower(Security.Cryptography.SHA256.HashData stream))

    /// The lines of a text file, trimmed, without empty ones.
    let lines (path: string) : string[] =
        (Text.Encoding.UTF8.GetString(bytes path)).Split('\n', StringSplitOptions.TrimEntries)
        |> Array.filter ((<>) "")

[<RequireQualifiedAccess>]
module ImageSet =

    /// Rejects the first label outside [0, classes), with its position.
    let requireLabels (source: string) (classes: int) (labels: int[]) =
        match labels |> Array.tryFindIndex (fun label -> label < 0 || label >= classes) with
        | Some at ->
            Errors.reject source $"labels must lie in 0 to {classes - 1}" $"{labels[at]} at position {at}" ""
        | None -> ()

    /// Images held in one managed array of n·c·H·W bytes, which is shared, not copied; reading gathers rows.
    let ofBytes
        (source: string)
        (labels: int[])
        (channels: int)
        (height: int)
        (width: int)
        (pixels: byte[])
        : ImageSet =
        if channels < 1 || height < 1 || width < 1 then
            Errors.reject
                source
                "channels, height and width must be at least 1"
                $"{channels} x {height} x {width}"
                ""

        let size = int64 channels * int64 height * int64 width

        if pixels.LongLength <> labels.LongLength * size then
            let rule =
                $"{labels.Length} images of {channels} x {height} x {width} need {labels.LongLength * size} bytes"

            Errors.reject source rule $"{pixels.LongLength}" ""

        let read (positions: int[]) =
            match positions |> Array.tryFind (fun i -> i < 0 || i >= labels.Length) with
            | Some bad -> Errors.reject source $"positions must lie in 0 to {labels.Length - 1}" $"{bad}" ""
            | None -> ()

            let shape = [| positions.LongLength; int64 channels; int64 height; int64 width |]
            let images = torch.empty (shape, dtype = torch.ScalarType.Byte, device = torch.CPU)

            if positions.Length > 0 then
                let rows = images.bytes
                let size = int size

                for row in 0 .. positions.Length - 1 do
                    pixels.AsSpan(positions[row] * size, size).CopyTo(rows.Slice(row * size, size))

            images

        {
            Source = source
            Labels = labels
            Read = read
        }

[<RequireQualifiedAccess>]
module Dataset =

    /// Number of classes.
    let classes (dataset: Dataset) = dataset.ClassNames.Length

    /// The data set itself; rejects an empty split, a data set without classes, and a label that names no class.
    let validate (dataset: Dataset) : Dataset =
        if Array.isEmpty dataset.ClassNames then
            Errors.reject dataset.Name "must have at least one class" "none" ""

        for split, set in [ "training", dataset.Train; "test", dataset.Test ] do
            if Array.isEmpty set.Labels then
                Errors.reject set.Source $"must hold at least one {split} image" "none" ""

            ImageSet.requireLabels set.Source (classes dataset) set.Labels

        dataset
