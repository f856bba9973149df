namespace LoRASub.Data

open System
open System.IO
open System.Text
open System.Text.RegularExpressions
open LoRASub.Core

/// A folder of images by class, as torchvision's ImageFolder takes it: `train/<class>/*` with `test/<class>/*` or
/// `val/<class>/*`, under their common names, or only `<class>/*`, which is then split class by class.
/// The role of each folder and the skipped files are notes of the scan. Nothing is moved, renamed or deleted.
[<RequireQualifiedAccess>]
module internal ImageFolder =

    let private nameOf (place: DiskFolder) = Path.GetFileName place.Path

    let private names (listing: Listing) = listing.Folders |> Array.map nameOf

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
    let internal canonical (name: string) = (composed name).ToLowerInvariant()

    let private nameProblems (folder: string) (names: string[]) : Finding[] =
        let blank =
            names
            |> Array.filter String.IsNullOrWhiteSpace
            |> Array.map (fun name ->
                Errors.message
                    folder
                    "each class must have a name that is not blank"
                    $"the folder '{name}'"
                    "rename it"
                |> Finding.Problem)

        names
        |> Array.groupBy canonical
        |> Array.filter (fun (_, same) -> same.Length > 1)
        |> Array.map (fun (_, same) ->
            let kind =
                if same[0].ToLowerInvariant() = same[1].ToLowerInvariant() then
                    "which differ only by case"
                else
                    "which differ only by Unicode normalisation"

            Errors.message
                folder
                "each class must have a name of its own"
                $"'{same[0]}' and '{same[1]}', {kind}"
                "rename or merge one of the folders"
            |> Finding.Problem)
        |> Array.append blank

    type private ClassFolder =
        {
            Id: string
            Path: string
            Files: string[]
            Findings: Finding[]
        }

    /// The class folders of a folder, in ordinal order, and what else was met there. A class folder that holds splits of
    /// its own is a problem: its images would be mixed.
    let private classFolders
        (name: string)
        (root: DiskFolder)
        (folder: DiskFolder)
        : struct (ClassFolder[] * Finding[]) =
        let listing = ImageListing.list root [] folder

        if
            Array.isEmpty listing.Folders
            && Array.isEmpty (ImageListing.problems listing.Findings)
        then
            let rule = $"{name} needs one folder of images for each class"
            let images = listing.ImagePaths.Length

            match DataFile.archives folder.Path, ImageListing.contents listing.Findings with
            | archives, _ when archives.Length > 0 ->
                let named = archives |> Array.truncate 3 |> String.concat ", "
                Errors.reject folder.Path rule $"no folder, but {named}" "unpack it first"
            | _ when images > 0 -> Errors.reject folder.Path rule $"no folder, but images ({images})" ""
            | _, "none" -> Errors.reject folder.Path rule "no folder" ""
            | _, held -> Errors.reject folder.Path rule $"no folder, but {held}" ""

        let classes =
            listing.Folders
            |> Array.map (fun place ->
                let struct (files, findings, inside) = ImageListing.images root place

                {
                    Id = nameOf place
                    Path = place.Path
                    Files = files
                    Findings =
                        [|
                            yield! findings
                            for group in SplitNames.groups inside do
                                let held =
                                    Array.concat
                                        [ group.TrainingNames; group.TestNames; group.ValidationNames ]

                                Errors.message
                                    place.Path
                                    "a class must not hold training and test images"
                                    (SplitNames.listed held)
                                    "give this folder if it is the data set; if it is a class, move its images to train/<class>/ and test/<class>/"
                                |> Finding.Problem
                        |]
                })

        struct (classes,
                [|
                    yield! ImageListing.around listing
                    yield! nameProblems folder.Path (names listing)
                    for one in classes do
                        yield! one.Findings
                |])

    let private emptyClass (one: ClassFolder) =
        Errors.message
            one.Path
            "a class must hold at least one image"
            (ImageListing.contents one.Findings)
            "remove the folder, or fill it with images that are read"
        |> Finding.Problem

    /// `classFolders` where each must hold images.
    let private classes
        (name: string)
        (root: DiskFolder)
        (folder: DiskFolder)
        : struct (ClassFolder[] * Finding[]) =
        let struct (found, findings) = classFolders name root folder
        let full, empty = found |> Array.partition (fun one -> one.Files.Length > 0)
        // what cannot be read is a problem already
        let unexplained =
            empty
            |> Array.filter (fun one -> Array.isEmpty (ImageListing.problems one.Findings))

        struct (full, Array.append findings (Array.map emptyClass unexplained))

    /// Images that train of a class of n, so that both splits have one where n allows.
    let private trained (ratio: float) (n: int) =
        if n = 1 then
            1
        else
            Math.Clamp(int (Math.Round(ratio * float n)), 1, n - 1)

    /// Splits the n sorted files of a class: only seed and class name decide, not the other classes and the order in
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

    // ------------------------------------------------------------------------------------------ which folders

    /// The first few of some folders.
    let private few (folders: string[]) =
        if folders.Length > 6 then
            SplitNames.listed folders[..4] + $" and {folders.Length - 5} more folders"
        else
            SplitNames.listed folders

    /// Where the images are.
    type private Layout =
        | Whole
        | Split of training: DiskFolder * test: DiskFolder

    let private child (listing: Listing) (name: string) =
        listing.Folders |> Array.find (fun place -> nameOf place = name)

    /// The folder itself, or the one inside it that repeats its name or role, as archives leave: seg_train/seg_train.
    let rec private enterSplit (root: DiskFolder) (place: DiskFolder) : DiskFolder =
        let listing = ImageListing.list root [] place

        match listing.Folders with
        | [| only |] when
            listing.ImagePaths.Length = 0
            && (SplitNames.isWrapper (nameOf only) || nameOf only = nameOf place)
            ->
            enterSplit root only
        | _ -> place

    let private onlyOne (folder: DiskFolder) (what: string) (some: string[]) : string option =
        if some.Length > 1 then
            Errors.reject
                folder.Path
                $"must have one folder of {what} images"
                (SplitNames.listed some)
                "rename or move all but one"

        Array.tryHead some

    /// Training and held-out images by their folders' names, with notes. Test images come from the test folder, and from
    /// the validation folder where there is no test folder with the classes of the training images.
    let private chooseSplit
        (root: DiskFolder)
        (listing: Listing)
        (group: SplitFolders)
        : struct (Layout * string list) =
        let training = (onlyOne root "training" group.TrainingNames).Value
        let trainPlace = enterSplit root (child listing training)
        let ids = names (ImageListing.list root [] trainPlace) |> Array.map canonical |> set

        let isUsable (name: string) =
            names (ImageListing.list root [] (enterSplit root (child listing name)))
            |> Array.exists (fun id -> ids.Contains(canonical id))

        let tests, validations =
            Array.partition isUsable group.TestNames, Array.partition isUsable group.ValidationNames

        let chosen =
            match fst tests, fst validations with
            // read anyway, to report its problems
            | [||], [||] -> Array.tryHead (Array.append group.TestNames group.ValidationNames)
            | [||], validations -> onlyOne root "validation" validations
            | tests, _ -> onlyOne root "test" tests

        let test = chosen.Value
        let testPlace = enterSplit root (child listing test)

        let below (place: DiskFolder) =
            Path.GetRelativePath(root.Path, place.Path)

        let notes =
            [
                if below trainPlace <> "train" || below testPlace <> "test" then
                    $"training images are read from {below trainPlace}/, test images from {below testPlace}/"

                match names listing |> Array.filter (fun name -> name <> training && name <> test) with
                | [||] -> ()
                | others -> $"not read: {few others}"
            ]

        struct (Split(trainPlace, testPlace), notes)

    /// A folder that holds nothing but one folder, which holds several, is only around it.
    let private inside (root: DiskFolder) (listing: Listing) : Listing option =
        match listing.Folders with
        | [| only |] when listing.ImagePaths.Length = 0 && not (SplitNames.isBare (nameOf only)) ->
            let below = ImageListing.list root [] only

            if below.ImagePaths.Length = 0 && below.Folders.Length > 0 then
                Some below
            else
                None
        | _ -> None

    /// Where the images of a data set are.
    type private Found =
        {
            Layout: Layout
            /// The folder of the layout's folders.
            Root: DiskFolder
            Notes: string list
            Findings: Finding[]
        }

    /// Rejects names of splits that do not fit together: read as classes, they would mix the splits.
    let rec private find (name: string) (data: DiskFolder) (root: DiskFolder) : Found =
        let listing = ImageListing.list data [] root
        let bare = names listing |> Array.filter SplitNames.isBare

        let holdsFolders name =
            (ImageListing.list data [] (child listing name)).Folders.Length > 0

        let refuse received fix =
            Errors.reject
                root.Path
                $"{name} needs train/ with test/ or val/, or one folder for each class"
                received
                fix

        let whole notes =
            {
                Layout = Whole
                Root = root
                Notes = notes
                Findings = [||]
            }

        match SplitNames.groups (names listing), inside data listing with
        | [| group |], _ ->
            let struct (layout, notes) = chooseSplit root listing group

            {
                Layout = layout
                Root = root
                Notes = notes
                Findings = ImageListing.around listing
            }
        | [||], Some below when below.Folders.Length > 1 || (inside data below).IsSome ->
            let only = listing.Folders[0]
            let found = find name data only

            { found with
                Notes =
                    [
                        // the archives of published sets make a folder of the set's name
                        if found.Root.Path = only.Path && nameOf only <> name then
                            $"the data set is read from {Path.GetRelativePath(data.Path, only.Path)}/, the only folder"
                        yield! found.Notes
                    ]
                Findings = Array.append (ImageListing.around listing) found.Findings
            }
        | [||], _ ->
            match bare with
            | [||] -> whole []
            | [| one |] when listing.Folders.Length > 1 && not (holdsFolders one) ->
                whole
                    [
                        $"{one}/ is read as a class, because there is no folder of the other split beside it"
                    ]
            | [| one |] when listing.Folders.Length = 1 ->
                refuse $"only {one}/" $"give {one}/ itself to have it split"
            | _ ->
                let others = names listing |> Array.except bare
                let beside = if others.Length = 0 then "" else $" beside {few others}"
                refuse $"{few bare}{beside}" "put the training images into train/, or rename what is a class"
        | groups, _ ->
            let some = groups |> Array.collect _.TrainingNames
            refuse $"several splits: {few some}" "give the folder of one of them"

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

    let private result (root: DiskFolder) (notes: string list) (findings: Finding[]) (scan: FileScan) =
        { scan with
            Notes = Array.append (Array.ofList notes) (ImageListing.notes root findings)
            Problems = ImageListing.problems findings
        }
        |> FileScan.noteUntested

    let private ofSplit
        name
        (data: DiskFolder)
        (at: Found)
        (trainPlace: DiskFolder)
        (testPlace: DiskFolder)
        : FileScan =
        let struct (train, trainFindings) = classes name data trainPlace
        let struct (test, testFindings) = classFolders name data testPlace
        let ids = train |> Array.map _.Id
        // an empty folder is a class without test images, as an absent one is
        let known, unknown =
            test
            |> Array.filter (fun one -> one.Files.Length > 0)
            |> Array.partition (fun one -> Array.contains one.Id ids)

        let unknown =
            unknown
            |> Array.map (fun one ->
                let fix =
                    match ids |> Array.tryFind (fun id -> canonical id = canonical one.Id) with
                    | Some id -> $"the training images are in '{id}': use one name"
                    | None -> ""

                Errors.message
                    testPlace.Path
                    "each class of the test images must have training images"
                    $"'{one.Id}', which {trainPlace.Path} lacks"
                    fix
                |> Finding.Problem)

        result
            data
            at.Notes
            (Array.concat [ at.Findings; trainFindings; testFindings; unknown ])
            {
                ClassNames = readmeNames at.Root.Path ids
                Answers = Array.init ids.Length id
                TrainSource = trainPlace.Path
                Train = train |> Array.mapi (fun i one -> label one.Files i) |> Array.concat
                TestSource = testPlace.Path
                Test =
                    known
                    |> Array.map (fun one -> label one.Files (Array.IndexOf(ids, one.Id)))
                    |> Array.concat
                Notes = [||]
                Problems = [||]
            }

    let private ofWhole name (options: ReadOptions) (data: DiskFolder) (at: Found) : FileScan =
        let struct (found, findings) = classes name data at.Root
        let parts = found |> Array.map (fun one -> divide options one.Id one.Files)

        let files pick =
            parts |> Array.mapi (fun i part -> label (pick part) i) |> Array.concat

        result
            data
            at.Notes
            (Array.append at.Findings findings)
            {
                ClassNames = readmeNames at.Root.Path (found |> Array.map _.Id)
                Answers = Array.init found.Length id
                TrainSource = at.Root.Path
                Train = files (fun struct (train, _) -> train)
                TestSource = at.Root.Path
                Test = files (fun struct (_, test) -> test)
                Notes = [||]
                Problems = [||]
            }

    /// Files and classes of a folder. Rejects a folder without classes, and folders named like splits that do not fit
    /// together. Problems of the scan: a class without images, classes whose names differ only by case or Unicode
    /// normalisation, a class in the test split that training lacks, names that are not UTF-8, links that lead to
    /// nothing, and folders that cannot be read.
    let scan (name: string) (options: ReadOptions) (folder: string) : FileScan =
        DataFile.requireFolder name folder
        let data = ImageListing.place folder
        let found = find name data data

        match found.Layout with
        | Whole -> ofWhole name options data found
        | Split(training, test) -> ofSplit name data found training test

    /// All images of a folder of `<class>/*` as training images, without a split. Rejects a folder of splits; problems
    /// as those of `scan`.
    let all (folder: string) : FileScan =
        DataFile.requireFolder "images" folder
        let root = ImageListing.place folder

        for group in SplitNames.groups (names (ImageListing.list root [] root)) do
            let there =
                Array.concat [ group.TrainingNames; group.TestNames; group.ValidationNames ]

            Errors.reject
                folder
                "must hold a folder for each class"
                (SplitNames.listed there)
                "give one of these folders"

        let struct (found, findings) = classes "it" root root

        result
            root
            []
            findings
            {
                ClassNames = found |> Array.map _.Id
                Answers = Array.init found.Length id
                TrainSource = folder
                Train = found |> Array.mapi (fun i one -> label one.Files i) |> Array.concat
                TestSource = folder
                Test = [||]
                Notes = [||]
                Problems = [||]
            }
