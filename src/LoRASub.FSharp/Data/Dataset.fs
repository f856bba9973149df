namespace LoRASub.Data

open System
open System.IO
open System.Runtime.InteropServices
open System.Security.Cryptography
open System.Text.RegularExpressions
open LoRASub.Core
open LoRASub.Files

/// One split of a data set, in its original order.
[<ReferenceEquality>]
type ImageSet =
    {
        /// The file or folder that its errors name.
        Source: string
        /// One label per image, in [0, classes).
        Labels: int[]
        /// The image at a position. May be called from any thread.
        Read: int -> Picture
    }

/// A labelled data set with its two published splits.
[<ReferenceEquality>]
type Dataset =
    {
        /// As the settings name it.
        Name: string
        /// The name of each label.
        ClassNames: string[]
        /// The images that are learned.
        Train: ImageSet
        /// The images that are predicted.
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

/// Sets of images.
[<RequireQualifiedAccess>]
module ImageSet =

    /// Rejects the first label outside [0, classes), with its position.
    let internal requireLabels (source: string) (classes: int) (labels: int[]) =
        match labels |> Array.tryFindIndex (fun label -> label < 0 || label >= classes) with
        | Some at ->
            Errors.reject source $"labels must be in 0 to {classes - 1}" $"{labels[at]} at position {at}" ""
        | None -> ()

    /// Rejects an output folder in a folder that images are read from: it would be one of their classes from then on.
    /// `source` is `ImageSet.Source`, which may name a file instead.
    let internal requireOutside (source: string) (output: string) =
        if Directory.Exists source && RealPath.isWithin source output then
            Errors.reject
                output
                "must be outside the folder that images are read from, where it would be taken for a class"
                $"a folder in {source}"
                "choose another folder"

    let internal requirePosition (source: string) (count: int) (position: int) =
        if position < 0 || position >= count then
            Errors.reject source $"positions must be in 0 to {count - 1}" $"{position}" ""

    let private requireShape
        (source: string)
        (count: int)
        (channels: int)
        (height: int)
        (width: int)
        (bytes: byte[])
        =
        if channels <> 1 && channels <> 3 then
            Errors.reject source "channels must be 1 (grey) or 3 (RGB)" $"{channels}" ""

        if height < 1 || width < 1 then
            Errors.reject source "height and width must be at least 1" $"{height} x {width}" ""

        let needed = int64 count * int64 channels * int64 height * int64 width

        if bytes.LongLength <> needed then
            let images = Text.counted count "image" "images"

            Errors.reject
                source
                $"{images} of {channels} x {height} x {width} need {needed} bytes"
                $"{bytes.LongLength}"
                ""

    /// <summary>Images of one size in one array.</summary>
    /// <param name="source">Names the set in errors, such as a file.</param>
    /// <param name="labels">One per image, in [0, classes).</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels, at least 1.</param>
    /// <param name="width">Pixels, at least 1.</param>
    /// <param name="pixels">n·channels·height·width bytes, each image plane by plane, each plane row by row.
    /// Shared, not copied.</param>
    /// <returns>The set; grey is repeated to red, green and blue when an image is read.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The number of bytes does not fit, or a size is out of
    /// range.</exception>
    let ofBytes
        (source: string)
        (labels: int[])
        (channels: int)
        (height: int)
        (width: int)
        (pixels: byte[])
        : ImageSet =
        requireShape source labels.Length channels height width pixels
        let size = channels * height * width

        {
            Source = source
            Labels = labels
            Read =
                fun position ->
                    requirePosition source labels.Length position
                    Picture.ofPlanes channels height width (ReadOnlySpan(pixels, position * size, size))
        }

    /// <summary>Images of one size, read one at a time.</summary>
    /// <param name="source">Names the set in errors.</param>
    /// <param name="labels">One per image, in [0, classes).</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels, at least 1.</param>
    /// <param name="width">Pixels, at least 1.</param>
    /// <param name="read">The channels·height·width bytes of the image at a position, plane by plane. May be
    /// called from several threads at once.</param>
    /// <returns>The set.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: another number of bytes, or a position that
    /// the set does not have.</exception>
    let ofReader
        (source: string)
        (labels: int[])
        (channels: int)
        (height: int)
        (width: int)
        (read: int -> byte[])
        : ImageSet =
        {
            Source = source
            Labels = labels
            Read =
                fun position ->
                    requirePosition source labels.Length position
                    let planes = read position
                    requireShape source 1 channels height width planes
                    Picture.ofPlanes channels height width (ReadOnlySpan planes)
        }

    /// <summary>The images at some positions, in that order.</summary>
    /// <param name="positions">Positions in the set; one may be there several times.</param>
    /// <param name="set">Borrowed.</param>
    /// <returns>A set as long as the positions.</returns>
    let select (positions: int[]) (set: ImageSet) : ImageSet =
        { set with
            Labels = positions |> Array.map (fun i -> set.Labels[i])
            Read = fun i -> set.Read positions[i]
        }

    /// The first `each` images of each label.
    let internal firstOfEach (each: int) (set: ImageSet) : ImageSet =
        let positions =
            Array.indexed set.Labels
            |> Array.groupBy snd
            |> Array.collect (fun (_, found) -> found |> Array.truncate each |> Array.map fst)

        select (Array.sort positions) set

    /// <summary>The images with some labels.</summary>
    /// <param name="labels">The first becomes label 0, the next label 1, and so on.</param>
    /// <param name="set">Borrowed.</param>
    /// <returns>Its images with these labels, in their order.</returns>
    let ofLabels (labels: int[]) (set: ImageSet) : ImageSet =
        let place = labels |> Array.mapi (fun i label -> label, i) |> readOnlyDict

        let chosen =
            select
                (Array.indexed set.Labels
                 |> Array.filter (fun (_, label) -> place.ContainsKey label)
                 |> Array.map fst)
                set

        { chosen with
            Labels = chosen.Labels |> Array.map (fun label -> place[label])
        }

    let private hexSha256 (bytes: byte[]) =
        Convert.ToHexStringLower(SHA256.HashData bytes)

    /// The SHA-256 of a set's labels.
    let internal labelsSha256 (set: ImageSet) : string =
        hexSha256 (MemoryMarshal.AsBytes(ReadOnlySpan set.Labels).ToArray())

    /// The SHA-256 of sixteen images, which represent all.
    let internal imagesSha256 (set: ImageSet) : string =
        let n = set.Labels.Length

        Array.init (min n 16) (fun i -> (set.Read(i * n / min n 16)).Pixels)
        |> Array.concat
        |> hexSha256

    /// A set cut in two: the images that stay, and a share of each class's that are held out. At least one of a class of
    /// two images or more, none of a class of one; none at all for a share of 0. The seed and the label decide which.
    let internal divide (share: float) (seed: int64) (set: ImageSet) : struct (ImageSet * ImageSet) =
        let isHeld = Array.create set.Labels.Length false

        if share > 0.0 then
            for label, positions in Array.indexed set.Labels |> Array.groupBy snd do
                let count = positions.Length

                let held = min (count - 1) (max 1 (int (Math.Round(share * float count))))

                for i in
                    Rng.permutation count (Rng.ofSeed seed |> Rng.fold (int64 label))
                    |> Array.truncate held do
                    isHeld[fst positions[i]] <- true

        let part held =
            Array.indexed isHeld
            |> Array.filter (snd >> (=) held)
            |> Array.map fst
            |> fun positions -> select positions set

        struct (part false, part true)

/// Data sets.
[<RequireQualifiedAccess>]
module Dataset =

    /// <summary>The number of classes.</summary>
    /// <param name="dataset">A data set.</param>
    /// <returns>The number of its class names.</returns>
    let classes (dataset: Dataset) = dataset.ClassNames.Length

    /// <summary>A data set whose labels are its answers, without notes.</summary>
    /// <param name="name">As the settings name it.</param>
    /// <param name="classNames">The name of each label.</param>
    /// <param name="train">Training images.</param>
    /// <param name="test">Test images.</param>
    /// <returns>The data set, which is not validated.</returns>
    let create (name: string) (classNames: string[]) (train: ImageSet) (test: ImageSet) : Dataset =
        {
            Name = name
            ClassNames = classNames
            Train = train
            Test = test
            Answers = Array.init classNames.Length id
            Notes = [||]
        }

    /// <summary>Checks a data set.</summary>
    /// <param name="dataset">The data set.</param>
    /// <returns>The data set itself.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">It has no class or a blank name, an empty split, a label that names no class,
    /// or an answer too few or too many.</exception>
    let validate (dataset: Dataset) : Dataset =
        if Array.isEmpty dataset.ClassNames then
            Errors.reject dataset.Name "must have at least one class" "none" ""

        if Array.exists String.IsNullOrWhiteSpace dataset.ClassNames then
            Errors.reject dataset.Name "must have class names that are not blank" "a blank name" ""

        for split, set in [ "training", dataset.Train; "test", dataset.Test ] do
            if Array.isEmpty set.Labels then
                Errors.reject set.Source $"must hold at least one {split} image" "none" ""

            ImageSet.requireLabels set.Source (classes dataset) set.Labels

        if dataset.Answers.Length <> classes dataset then
            let rule = $"must have an answer for each of {classes dataset} labels"
            Errors.reject dataset.Name rule $"{dataset.Answers.Length}" ""

        dataset

    /// <summary>Holds out training images in place of the test images, so that choices do not see the test
    /// images.</summary>
    /// <param name="share">Of each class's training images, in (0, 1); at least one of a class that has two.</param>
    /// <param name="seed">With the label decides which.</param>
    /// <param name="dataset">The data set.</param>
    /// <returns>The data set with the other training images, tested on those held out.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The share is not in (0, 1), or a class has a single training
    /// image.</exception>
    let holdOut (share: float) (seed: int64) (dataset: Dataset) : Dataset =
        if not (share > 0.0 && share < 1.0) then
            Errors.reject "share of the images to hold out" "must be between 0 and 1" $"{share}" ""

        for label, count in dataset.Train.Labels |> Array.countBy id do
            if count = 1 then
                Errors.reject
                    $"class '{dataset.ClassNames[label]}'"
                    "must have two training images, of which one can be held out"
                    "1"
                    "do not use validate"

        let struct (train, held) = ImageSet.divide share seed dataset.Train

        { dataset with
            Train = train
            Test = held
        }
