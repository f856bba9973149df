namespace LoRASub

open System
open System.IO
open System.Text.RegularExpressions
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
        /// called from any thread. Rejects images that differ in size.
        Read: int[] -> torch.Tensor
        /// One image by itself, from any thread, for sets whose images may differ in size; None where all are of one
        /// size, which `Read` gathers at once.
        Decode: (int -> Picture) option
    }

/// A labelled data set with its two published splits.
[<ReferenceEquality>]
type Dataset =
    {
        Name: string
        ClassNames: string[]
        Train: ImageSet
        Test: ImageSet
        /// The correct answer for each label: the label itself, except for domain-incremental sets, where a
        /// class has a label in each domain.
        Answers: int[]
        /// What a reader of the results should know, such as files left out; mostly none.
        Notes: string[]
    }

/// Files of a data set, with errors that name them.
[<RequireQualifiedAccess>]
module internal DataFile =

    let requireFolder (dataset: string) (folder: string) =
        if not (Directory.Exists folder) then
            let found =
                if File.Exists folder then
                    "a file"
                else
                    FileNames.whyAbsent "folder" folder

            let content =
                match dataset with
                | "folder"
                | "images" -> "images"
                | name -> $"files of {name}"

            raise (InputException $"{folder}: {found}; give the folder with the {content}")

    /// Names of the archives in a folder, which the user may have forgotten to unpack.
    let archives (folder: string) : string[] =
        Directory.GetFiles folder
        |> Array.map (fun (path: string) -> Path.GetFileName path)
        |> Array.filter (fun name ->
            Regex.IsMatch(name, @"^[^.].*\.(zip|tar|tgz|tbz2?|txz|7z|rar|tar\.\w+)$"))
        |> Array.sortWith (fun a b -> String.CompareOrdinal(a, b))

    /// Where files that a folder lacks may be.
    let private advice (folder: string) (names: string list) : string =
        let holds (place: string) =
            names |> List.exists (fun name -> File.Exists(Path.Combine(place, name)))

        let options =
            EnumerationOptions(RecurseSubdirectories = true, MaxRecursionDepth = 1)

        let places =
            [
                yield! Directory.GetDirectories(folder, "*", options) |> Array.sort
                match Path.GetDirectoryName(Path.GetFullPath(folder).TrimEnd '/') with
                | null -> ()
                | parent -> parent
            ]

        let splits =
            Directory.GetDirectories folder
            |> Array.map (fun (path: string) -> Path.GetFileName path)
            |> SplitNames.groups

        match List.tryFind holds places, archives folder, splits with
        | Some place, _, _ -> $"give {place}, which holds it"
        | None, archives, _ when archives.Length > 0 ->
            let named = archives |> Array.truncate 3 |> String.concat ", "
            $"unpack {named} first"
        | None, _, [| group |] ->
            let there =
                Array.concat [ group.TrainingNames; group.TestNames; group.ValidationNames ]
                |> SplitNames.listed

            $"the data set folder reads {there} as they are (--data folder)"
        | _ -> "give the folder that holds it"

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

            let path = Path.Combine(folder, names.Head)
            Errors.reject path rule (FileNames.whyAbsent "file" path) (advice folder names)

    /// Runs `read` on the opened file; an error of the system or a decoder becomes an InputException.
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

    /// The lines of a text file with their numbers, trimmed, without empty ones. A byte order mark is skipped, wherever
    /// joined files have left one; lines may end as on any system. Rejects UTF-16.
    let numberedLines (path: string) : struct (int * string)[] =
        let all = bytes path

        if all.AsSpan().IndexOf 0uy >= 0 then
            let isMarked =
                all.Length > 1
                && (all[0] = 0xFFuy && all[1] = 0xFEuy || all[0] = 0xFEuy && all[1] = 0xFFuy)

            let found = if isMarked then "UTF-16" else "zero bytes, as in UTF-16"
            Errors.reject path "must be text in UTF-8" found "save it as UTF-8"

        (Text.Encoding.UTF8.GetString all).Replace("\r\n", "\n").Split('\n', '\r')
        |> Array.mapi (fun i line -> struct (i + 1, line.Trim().TrimStart('\uFEFF').TrimStart()))
        |> Array.filter (fun struct (_, line) -> line <> "")

    /// The `numberedLines` without their numbers.
    let lines (path: string) : string[] =
        numberedLines path |> Array.map (fun struct (_, line) -> line)

[<RequireQualifiedAccess>]
module ImageSet =

    /// Rejects the first label outside [0, classes), with its position.
    let requireLabels (source: string) (classes: int) (labels: int[]) =
        match labels |> Array.tryFindIndex (fun label -> label < 0 || label >= classes) with
        | Some at ->
            Errors.reject source $"labels must be in 0 to {classes - 1}" $"{labels[at]} at position {at}" ""
        | None -> ()

    /// Rejects an output folder in a folder that images are read from: it would be one of their classes from then on.
    /// `source` is `ImageSet.Source`, which may name a file instead.
    let requireOutside (source: string) (output: string) =
        if Directory.Exists source && RealPath.isWithin source output then
            Errors.reject
                output
                "must be outside the folder that images are read from, where it would be taken for a class"
                $"a folder in {source}"
                "choose another folder"

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
            | Some bad -> Errors.reject source $"positions must be in 0 to {labels.Length - 1}" $"{bad}" ""
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
            Decode = None
        }

    /// The images at some positions, in that order.
    let select (positions: int[]) (set: ImageSet) : ImageSet =
        {
            Source = set.Source
            Labels = positions |> Array.map (fun i -> set.Labels[i])
            Read = Array.map (fun i -> positions[i]) >> set.Read
            Decode = set.Decode |> Option.map (fun decode i -> decode positions[i])
        }

    /// Bytes of n RGB images, plane by plane, as a tensor uint8 [n, 3, height, width], owned by the caller.
    let internal ofPlanes (n: int) (height: int) (width: int) (planes: byte[]) : torch.Tensor =
        let shape = [| int64 n; 3L; int64 height; int64 width |]
        let images = torch.empty (shape, dtype = torch.ScalarType.Byte, device = torch.CPU)

        if planes.Length > 0 then
            planes.AsSpan().CopyTo images.bytes

        images

    /// Images decoded one by one, which may differ in size.
    let internal ofPictures (source: string) (labels: int[]) (decode: int -> Picture) : ImageSet =
        let read (positions: int[]) =
            let pictures = positions |> Array.map decode

            match pictures |> Array.map (fun p -> p.Height, p.Width) |> Array.distinct with
            | [| height, width |] ->
                let size = 3 * height * width
                let planes = Array.zeroCreate<byte>(positions.Length * size)
                pictures |> Array.iteri (fun i p -> Picture.copyPlanes planes (i * size) p)
                ofPlanes positions.Length height width planes
            | [||] -> ofPlanes 0 0 0 [||]
            | several ->
                let (h0, w0), (h1, w1) = several[0], several[1]
                let rule = "images read at once must be of one size"
                Errors.reject source rule $"{h0} x {w0} and {h1} x {w1}" "decode them one by one"

        {
            Source = source
            Labels = labels
            Read = read
            Decode = Some decode
        }

    /// One image by itself; grey is repeated to red, green and blue.
    let picture (set: ImageSet) (position: int) : Picture =
        match set.Decode with
        | Some decode -> decode position
        | None ->
            use image = set.Read [| position |] // [1, c, H, W]

            let channels, height, width =
                int image.shape[1], int image.shape[2], int image.shape[3]

            let planes = image.bytes.ToArray()

            {
                Height = height
                Width = width
                Pixels =
                    Array.init (3 * height * width) (fun i ->
                        planes[(i % 3 % channels) * height * width + i / 3])
            }

[<RequireQualifiedAccess>]
module Dataset =

    /// Number of classes.
    let classes (dataset: Dataset) = dataset.ClassNames.Length

    /// A data set whose labels are its answers, without notes.
    let create (name: string) (classNames: string[]) (train: ImageSet) (test: ImageSet) : Dataset =
        {
            Name = name
            ClassNames = classNames
            Train = train
            Test = test
            Answers = Array.init classNames.Length id
            Notes = [||]
        }

    /// The data set itself; rejects an empty split, a data set without classes, and a label that names no class.
    let validate (dataset: Dataset) : Dataset =
        if Array.isEmpty dataset.ClassNames then
            Errors.reject dataset.Name "must have at least one class" "none" ""

        for split, set in [ "training", dataset.Train; "test", dataset.Test ] do
            if Array.isEmpty set.Labels then
                Errors.reject set.Source $"must hold at least one {split} image" "none" ""

            ImageSet.requireLabels set.Source (classes dataset) set.Labels

        if dataset.Answers.Length <> classes dataset then
            let rule = $"must have an answer for each of {classes dataset} labels"
            Errors.reject dataset.Name rule $"{dataset.Answers.Length}" ""

        dataset
