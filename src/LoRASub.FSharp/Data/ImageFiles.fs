namespace LoRASub.Data

open System
open System.Collections.Concurrent
open System.Collections.Generic
open System.IO
open System.Threading.Tasks
open LoRASub.Core

/// How data sets of image files are read.
type ReadOptions =
    {
        /// Share of each class's images that train, if no split is published.
        SplitRatio: float
        /// Decides which images train, if no split is published.
        SplitSeed: int64
        /// Leave out files that cannot be decoded; each file is then decoded once before anything else.
        SkipBroken: bool
        /// Share of each class's training images that takes the place of the test images, chosen by `SplitSeed`.
        HoldOut: float option
    }

/// Read options.
[<RequireQualifiedAccess>]
module ReadOptions =

    /// <summary>80% of each class train, by seed 1993; a broken file is an error.</summary>
    let standard =
        {
            SplitRatio = 0.8
            SplitSeed = 1993L
            SkipBroken = false
            HoldOut = None
        }

/// An image file of a class.
[<Struct>]
type LabelledFile =
    {
        /// Absolute, or from the current folder.
        Path: string
        /// In [0, classes).
        Label: int
    }

/// A file that cannot be decoded, and why.
type BrokenFile =
    {
        /// Absolute, or from the current folder.
        Path: string
        /// In a few words.
        Reason: string
    }

/// A data set of image files from its folder and lists; no image is read yet.
type FileScan =
    {
        /// The name of each label.
        ClassNames: string[]
        /// The correct answer for each label; see `Dataset.Answers`.
        Answers: int[]
        /// The file or folder that errors of the training split name.
        TrainSource: string
        /// The files that are learned.
        Train: LabelledFile[]
        /// The file or folder that errors of the test split name.
        TestSource: string
        /// The files that are predicted.
        Test: LabelledFile[]
        /// Notes for readers of the results: the role of each folder, and what was skipped.
        Notes: string[]
        /// What keeps the set from being used, each as the message of an error; none where it can be.
        Problems: string[]
    }

[<RequireQualifiedAccess>]
module internal FileScan =

    /// The scan itself; rejects one with problems by the first of them.
    let require (scan: FileScan) : FileScan =
        match scan.Problems with
        | [||] -> scan
        | [| only |] -> raise (InputException only)
        | several ->
            let more = several.Length - 1

            let rest =
                if more = 1 then
                    "another problem"
                else
                    $"{more} more problems"

            raise (InputException $"{several[0]}; and {rest} (see data check)")

    /// The scan with a note of the classes without test images, if any.
    let internal noteUntested (scan: FileScan) : FileScan =
        let tested = scan.Test |> Array.map _.Label |> Set.ofArray

        let untested =
            scan.ClassNames
            |> Array.indexed
            |> Array.filter (fun (label, _) -> not (tested.Contains label))
            |> Array.map snd

        if untested.Length = 0 || scan.Test.Length = 0 then
            scan
        else
            let named = untested |> Array.truncate 5 |> String.concat ", "
            let dots = if untested.Length > 5 then ", ..." else ""

            let note =
                $"no test image for {untested.Length} of {scan.ClassNames.Length} classes (each task needs at least one): {named}{dots}"

            { scan with
                Notes = Array.append scan.Notes [| note |]
            }

/// Decoded pictures, kept up to a number of bytes; the oldest leave first. Safe to use from several threads.
type internal PictureCache(limit: int64) =
    let pictures = ConcurrentDictionary<string, Picture>()
    let ages = Queue<string>()
    let mutable held = 0L

    // with what a dictionary and a queue hold of it
    let size (picture: Picture) = picture.Pixels.LongLength + 256L

    let keep (path: string) (picture: Picture) =
        lock ages (fun () ->
            if size picture <= limit && pictures.TryAdd(path, picture) then
                ages.Enqueue path
                held <- held + size picture

                while held > limit do
                    match pictures.TryRemove(ages.Dequeue()) with
                    | true, oldest -> held <- held - size oldest
                    | false, _ -> ())

    /// The picture of a file, read where it is not at hand.
    member _.Read(path: string) : Picture =
        match pictures.TryGetValue path with
        | true, picture -> picture
        | false, _ ->
            let picture = ImageFile.read path
            keep path picture
            picture

    /// Bytes of the pictures at hand.
    member _.Held = lock ages (fun () -> held)

/// Sets of image files, decoded when they are read.
[<RequireQualifiedAccess>]
module internal ImageFiles =

    /// Decoded pictures of a data set that stay in memory: 2 GiB, or a quarter of the memory where that is less.
    let private cacheLimit =
        min (2L <<< 30) (GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 4L)

    [<Literal>]
    let private Listed = 5

    /// The first few of some broken files with their reasons.
    let internal listing (broken: BrokenFile[]) : string =
        let first =
            broken
            |> Array.truncate Listed
            |> Array.map (fun file -> $"{file.Path} ({file.Reason})")
            |> String.concat ", "

        if broken.Length > Listed then
            $"{first} and {broken.Length - Listed} more"
        else
            first

    /// That files are left out, and the first few by folder and name, each short enough for a line.
    let private notes (broken: BrokenFile[]) (files: int) : string[] =
        let short (path: string) =
            Path.Combine(Path.GetFileName(Path.GetDirectoryName path), Path.GetFileName path)

        [|
            if broken.Length > 0 then
                $"{broken.Length} of {files} image files cannot be decoded and are left out"

            for file in Array.truncate Listed broken do
                $"left out: {short file.Path} ({file.Reason})"

            if broken.Length > Listed then
                $"left out: {broken.Length - Listed} more"
        |]

    /// What is wrong with each file, `look` at it; on all cores, in the files' order.
    let private broken (look: string -> string option) (paths: string[]) : BrokenFile[] =
        let reasons = Array.zeroCreate<string option> paths.Length
        Parallel.For(0, paths.Length, fun i -> reasons[i] <- look paths[i]) |> ignore

        Array.zip paths reasons
        |> Array.choose (fun (path, reason) ->
            reason |> Option.map (fun reason -> { Path = path; Reason = reason }))

    let private decodeOnce (path: string) =
        match ImageFile.tryRead path with
        | Ok _ -> None
        | Error reason -> Some reason

    /// Decodes every file, on all cores; the broken ones in their order.
    let verify (paths: string[]) : BrokenFile[] = broken decodeOnce paths

    let private setWith (cache: PictureCache) (source: string) (files: LabelledFile[]) : ImageSet =
        {
            Source = source
            Labels = files |> Array.map _.Label
            Read =
                fun i ->
                    ImageSet.requirePosition source files.Length i
                    cache.Read files[i].Path
        }

    /// Images of differing sizes from files; `source` is what errors name. What is decoded stays in memory up to 2 GiB,
    /// or a quarter of the memory.
    let set (source: string) (files: LabelledFile[]) : ImageSet =
        setWith (PictureCache cacheLimit) source files

    /// The data set of a scan. Rejects a scan with problems. Rejects files whose header or end show that they are broken, with the first few and
    /// their number; with SkipBroken every file is decoded once, and the broken ones are left out and noted.
    let dataset (options: ReadOptions) (name: string) (scan: FileScan) : Dataset =
        let scan = FileScan.require scan
        let paths = Array.append scan.Train scan.Test |> Array.map _.Path |> Array.distinct

        let found =
            broken (if options.SkipBroken then decodeOnce else ImageFile.glance) paths

        if found.Length > 0 && not options.SkipBroken then
            Errors.reject
                name
                "must hold images that can be decoded"
                $"{found.Length} broken of {paths.Length}: {listing found}"
                "fix them or pass --skip-broken"

        let bad = found |> Seq.map _.Path |> HashSet

        let good (files: LabelledFile[]) =
            files |> Array.filter (fun file -> not (bad.Contains file.Path))

        let cache = PictureCache cacheLimit

        Dataset.validate
            {
                Name = name
                ClassNames = scan.ClassNames
                Train = setWith cache scan.TrainSource (good scan.Train)
                Test = setWith cache scan.TestSource (good scan.Test)
                Answers = scan.Answers
                Notes = Array.append scan.Notes (notes found paths.Length)
            }

/// What the readers of image folders and split lists share.
[<RequireQualifiedAccess>]
module internal ScanFiles =

    /// The folder itself, or the one inside it that the published archive makes.
    let enter (archive: string) (isRoot: string -> bool) (folder: string) =
        let inside = Path.Combine(folder, archive)

        if not (isRoot folder) && isRoot inside then
            inside
        else
            folder

    /// The path of a list's entry below a folder. Rejects one that leads out of it.
    let below (list: string) (folder: string) (entry: string) : string =
        if Path.IsPathRooted entry || Array.contains ".." (entry.Split('/', '\\')) then
            Errors.reject list "must name files below its folder" entry ""

        Path.Combine(folder, entry.Replace('/', Path.DirectorySeparatorChar))

    /// The identifiers of a list; rejects a repeated one.
    let requireDistinct (list: string) (ids: string[]) : string[] =
        match ids |> Array.countBy id |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(twice, n) -> Errors.reject list "must have each identifier once" $"{twice} {n} times" ""
        | None -> ids

    /// The existing files of a list, and a problem with the number and first few of the missing ones.
    let present (list: string) (files: LabelledFile[]) : struct (LabelledFile[] * string[]) =
        let present, absent =
            files |> Array.partition (fun file -> FileNames.isFile file.Path)

        struct (present,
                [|
                    if absent.Length > 0 then
                        let first =
                            absent
                            |> Array.truncate 3
                            |> Array.map (fun file ->
                                match FileNames.whyAbsent "file" file.Path with
                                | "no such file" -> file.Path
                                | reason -> $"{file.Path} ({reason})")
                            |> String.concat ", "

                        let dots = if absent.Length > 3 then ", ..." else ""

                        Errors.message
                            list
                            "must name files that are there"
                            $"{absent.Length} of {files.Length} absent: {first}{dots}"
                            "unpack the images beside the list"
                |])

    /// Two fields of each line, divided at its first white space.
    let pairs (path: string) : (string * string)[] =
        DataFile.numberedLines path
        |> Array.map (fun struct (number, line) ->
            match line.IndexOfAny [| ' '; '\t' |] with
            | -1 -> Errors.reject path "must have two fields in each line" $"'{line}' in line {number}" ""
            | at -> line[.. at - 1], line[at + 1 ..].Trim())

    let number (path: string) (text: string) : int =
        match Int32.TryParse text with
        | true, value -> value
        | false, _ -> Errors.reject path "must hold whole numbers" $"'{text}'" ""

    /// The name, or the name with its identifier where another class has the same.
    let distinctNames (names: (string * string)[]) : string[] =
        let counts = names |> Array.countBy snd |> dict

        names
        |> Array.map (fun (id, name) -> if counts[name] > 1 then $"{name} ({id})" else name)
