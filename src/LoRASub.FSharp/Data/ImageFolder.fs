namespace LoRASub

open System
open System.IO
open System.Text
open System.Text.RegularExpressions

/// A folder of images by class, as torchvision's ImageFolder takes it: `train/<class>/*` with `test/<class>/*` or
/// `val/<class>/*`, or `<class>/*` alone, which is then split class by class. Nothing is moved, renamed or deleted.
[<RequireQualifiedAccess>]
module ImageFolder =

    let private isHidden (path: string) = (Path.GetFileName path).StartsWith '.'

    let private listed (folder: string) (list: string -> string[]) =
        try
            list folder
            |> Array.filter (isHidden >> not)
            |> Array.sortWith (fun a b -> String.CompareOrdinal(Path.GetFileName a, Path.GetFileName b))
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Errors.reject folder "must be a readable folder" e.Message ""

    // A link to a folder that holds it would never end.
    let private leadsBack (folder: string) =
        match Directory.ResolveLinkTarget(folder, returnFinalTarget = true) with
        | null -> false
        | target -> (Path.GetFullPath folder + "/").StartsWith(target.FullName.TrimEnd '/' + "/")

    // Runs were once saved among the classes.
    let private holdsRun (folder: string) =
        File.Exists(Path.Combine(folder, "settings.json"))
        && File.Exists(Path.Combine(folder, ".lock"))

    let private folders (folder: string) =
        listed
            folder
            (Directory.GetDirectories
             >> Array.filter (fun one -> not (leadsBack one || holdsRun one)))

    /// Image files at any depth up to 8, in ordinal order of their paths below the folder.
    let rec private images (depth: int) (folder: string) : string[] =
        let own =
            listed folder Directory.GetFiles
            |> Array.filter (fun file ->
                ImageFile.extensions.Contains((Path.GetExtension file).ToLowerInvariant()))

        if depth = 0 then
            own
        else
            Array.append own (folders folder |> Array.collect (images (depth - 1)))

    /// Combining marks, the Latin letters that take them, and the two as one letter: a runtime without globalisation
    /// data normalises nothing.
    let private compositions =
        [
            '\u0300', "AEIOUaeiou", "ÀÈÌÒÙàèìòù"
            '\u0301', "AEIOUYCNSZaeiouycnsz", "ÁÉÍÓÚÝĆŃŚŹáéíóúýćńśź"
            '\u0302', "AEIOUaeiou", "ÂÊÎÔÛâêîôû"
            '\u0303', "ANOano", "ÃÑÕãñõ"
            '\u0308', "AEIOUaeiouy", "ÄËÏÖÜäëïöüÿ"
            '\u030A', "AUau", "ÅŮåů"
            '\u030C', "CDENRSTZcenrsz", "ČĎĚŇŘŠŤŽčěňřšž"
            '\u0327', "CSTcst", "ÇŞŢçşţ"
            '\u0328', "AEae", "ĄĘąę"
        ]

    let private composed (name: string) =
        compositions
        |> Seq.collect (fun (mark, letters, whole) ->
            Seq.map2 (fun (letter: char) (one: char) -> $"{letter}{mark}", string one) letters whole)
        |> Seq.fold
            (fun (name: string) (two, one) -> name.Replace(two, one))
            (name.Normalize NormalizationForm.FormC)

    /// Names that some file systems cannot hold apart are one.
    let private canonical (name: string) = (composed name).ToLowerInvariant()

    let private requireDistinct (folder: string) (names: string[]) =
        match
            names
            |> Array.groupBy canonical
            |> Array.tryFind (fun (_, same) -> same.Length > 1)
        with
        | Some(_, same) ->
            let kind =
                if same[0].ToLowerInvariant() = same[1].ToLowerInvariant() then
                    "which differ by case alone"
                else
                    "which differ by Unicode normalisation alone"

            Errors.reject
                folder
                "each class must have a name of its own"
                $"'{same[0]}' and '{same[1]}', {kind}"
                "rename or merge one of the folders"
        | None -> ()

    /// Name and files of each class folder, in ordinal order.
    let private classes (name: string) (folder: string) : (string * string[])[] =
        let found = folders folder

        if Array.isEmpty found then
            Errors.reject folder $"{name} needs one folder of images for each class" "no folder" ""

        requireDistinct folder (found |> Array.map (fun (one: string) -> Path.GetFileName one))

        found
        |> Array.map (fun one ->
            match images 8 one with
            | [||] ->
                Errors.reject
                    one
                    "a class must hold at least one image"
                    "none"
                    "remove the folder or fill it"
            | files -> Path.GetFileName one, files)

    /// Images that train of a class of n, so that both splits have one where n allows.
    let private trained (ratio: float) (n: int) =
        if n = 1 then
            1
        else
            Math.Clamp(int (Math.Round(ratio * float n)), 1, n - 1)

    /// Splits the n sorted files of a class: seed and class name decide, whatever the other classes and the order in
    /// which a system lists files.
    let private divide
        (options: ReadOptions)
        (className: string)
        (files: string[])
        : struct (string[] * string[]) =
        let key =
            Encoding.UTF8.GetBytes className
            |> Array.fold (fun key b -> Rng.fold (int64 b) key) (Rng.ofSeed options.SplitSeed)

        let chosen =
            Rng.permutation files.Length key
            |> Array.truncate (trained options.SplitRatio files.Length)
            |> Set.ofArray

        let part isTrained =
            files
            |> Array.indexed
            |> Array.filter (fun (i, _) -> chosen.Contains i = isTrained)
            |> Array.map snd

        struct (part true, part false)

    let private label (files: string[]) (label: int) : LabelledFile[] =
        files |> Array.map (fun path -> { Path = path; Label = label })

    /// The split that stands beside `train`, if this folder is one of splits.
    let private heldOut (name: string) (folder: string) : string option =
        let train = Path.Combine(folder, "train")

        if Directory.Exists train && not (Array.isEmpty (folders train)) then
            match
                [ "test"; "val" ]
                |> List.map (fun split -> Path.Combine(folder, split))
                |> List.tryFind Directory.Exists
            with
            | Some split -> Some split
            | None ->
                Errors.reject
                    folder
                    $"{name} needs test/ or val/ beside train/"
                    "train/ alone"
                    "give train/ itself to have it split"
        else
            None

    /// `n01443537 goldfish` in a README, as the renditions and adversarial examples of ImageNet come with.
    let private readmeNames (folder: string) (ids: string[]) : string[] =
        let path = Path.Combine(folder, "README.txt")

        let names =
            if File.Exists path then
                DataFile.lines path
                |> Array.map (fun line -> Regex.Match(line, @"^(n\d{8})\s+(\S.*)$"))
                |> Array.filter _.Success
                |> Array.map (fun m -> m.Groups[1].Value, m.Groups[2].Value)
                |> Map.ofArray
            else
                Map.empty

        ids
        |> Array.map (fun id -> id, defaultArg (names.TryFind id) id)
        |> ScanFiles.distinctNames

    /// Files and classes of a folder. Rejects a folder without classes, a class without images, classes whose names
    /// differ by case or Unicode normalisation alone, and a class in the test split that training lacks.
    let scan (name: string) (options: ReadOptions) (folder: string) : FileScan =
        DataFile.requireFolder name folder

        // the archives of published sets make a folder of the set's name
        let root =
            ScanFiles.enter name (fun folder -> Directory.Exists folder && (folders folder).Length > 1) folder

        match heldOut name root with
        | Some testFolder ->
            let trainFolder = Path.Combine(root, "train")
            let train = classes name trainFolder
            let ids = Array.map fst train

            let test =
                classes name testFolder
                |> Array.map (fun (id, files) ->
                    match Array.IndexOf(ids, id) with
                    | -1 ->
                        let rule = "each class of the test images must have training images"
                        Errors.reject testFolder rule $"'{id}', which {trainFolder} lacks" ""
                    | place -> label files place)

            {
                ClassNames = readmeNames root ids
                Answers = Array.init ids.Length id
                TrainSource = trainFolder
                Train = train |> Array.mapi (fun i (_, files) -> label files i) |> Array.concat
                TestSource = testFolder
                Test = Array.concat test
            }
        | None ->
            let found = classes name root

            let parts =
                found |> Array.map (fun (className, files) -> divide options className files)

            let files pick =
                parts |> Array.mapi (fun i part -> label (pick part) i) |> Array.concat

            {
                ClassNames = readmeNames root (Array.map fst found)
                Answers = Array.init found.Length id
                TrainSource = root
                Train = files (fun struct (train, _) -> train)
                TestSource = root
                Test = files (fun struct (_, test) -> test)
            }

    /// All images of a folder of `<class>/*`, without a split: class names in ordinal order, and the files, labelled
    /// by their place in it.
    let all (folder: string) : struct (string[] * LabelledFile[]) =
        DataFile.requireFolder "images" folder
        let found = classes "images" folder
        struct (Array.map fst found, found |> Array.mapi (fun i (_, files) -> label files i) |> Array.concat)
