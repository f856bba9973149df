namespace LoRASub.Data

open System
open System.Collections.Generic
open System.IO
open System.Text.RegularExpressions
open LoRASub.Core
open LoRASub.Files

/// What a walk through folders of images met beside plain images and folders.
[<RequireQualifiedAccess>]
type internal Finding =
    /// A name that systems and tools leave behind, or that begins with a dot.
    | Ignored of name: string
    /// A file that does not end like an image.
    | LeftOut of extension: string
    /// An image that torchvision's ImageFolder would leave out.
    | Unusual of extension: string
    /// An image beside the class folders.
    | Loose of path: string
    /// A link to a folder, or to an image out of the data set's folder.
    | Followed of path: string * target: string
    /// A link to a folder that holds it.
    | LeadsBack of path: string
    /// A folder deeper than is read.
    | TooDeep of path: string
    /// What keeps the data set from being used.
    | Problem of message: string

/// A folder and where it is without links.
type internal DiskFolder = { Path: string; Real: string }

/// What one folder holds, each in ordinal order of its names.
type internal Listing =
    {
        Folders: DiskFolder[]
        ImagePaths: string[]
        Findings: Finding[]
    }

/// Folders of images as they are on disks: with what archives, storage devices and systems leave in them, and links.
[<RequireQualifiedAccess>]
module internal ImageListing =

    /// Folders below a class that are read.
    [<Literal>]
    let private Depth = 8

    /// Names that no data set gave, in lower case. Names that begin with a dot need no entry.
    let private leftBehind =
        set
            [
                // macOS
                "__macosx"
                "icon\r"
                "network trash folder"
                "temporary items"
                // Windows
                "$recycle.bin"
                "recycler"
                "recycled"
                "system volume information"
                "desktop.ini"
                "thumbs.db"
                "ehthumbs.db"
                "ehthumbs_vista.db"
                // Linux
                "lost+found"
                // storage devices by Synology, QNAP and NetApp
                "@eadir"
                "@tmp"
                "@recycle"
                "@recently-snapshot"
                "#recycle"
                "#snapshot"
                "~snapshot"
                // Python
                "__pycache__"
            ]

    /// Whether a name is one that systems and tools leave behind.
    let isLeftBehind (name: string) : bool =
        name.StartsWith '.'
        || leftBehind.Contains(name.ToLowerInvariant())
        // by Windows' chkdsk
        || Regex.IsMatch(name, @"^found\.\d{3}$", RegexOptions.IgnoreCase)

    let private isBelow (folder: string) (path: string) =
        (path + "/").StartsWith(folder.TrimEnd '/' + "/", StringComparison.Ordinal)

    let place (folder: string) : DiskFolder =
        {
            Path = folder
            Real = RealPath.tryOfPath folder |> Option.defaultValue folder
        }

    let private extension (name: string) =
        match (Path.GetExtension name).ToLowerInvariant() with
        | "" -> "no extension"
        | extension -> extension

    type private Entry =
        | Folder of DiskFolder
        | Image of string
        | Nothing

    let private file (path: string) (name: string) : struct (Entry * Finding list) =
        let extension = extension name

        if ImageFile.unusualExtensions.Contains extension then
            struct (Image path, [ Finding.Unusual extension ])
        elif ImageFile.extensions.Contains extension then
            struct (Image path, [])
        else
            struct (Nothing, [ Finding.LeftOut extension ])

    // Runs were once saved among the classes.
    let private holdsRun (folder: string) =
        File.Exists(Path.Combine(folder, "settings.json"))
        && File.Exists(Path.Combine(folder, ".lock"))

    /// One entry of `folder`, in the data set's folder `root`, found on the way of `above`.
    let private entry
        (root: DiskFolder)
        (above: DiskFolder list)
        (folder: DiskFolder)
        (entry: FileSystemInfo)
        =
        let name = entry.Name
        let path = Path.Combine(folder.Path, name)

        match
            (if isLeftBehind name then
                 None
             else
                 FileNames.link entry.FullName)
        with
        | None when isLeftBehind name -> struct (Nothing, [ Finding.Ignored name ])
        | None when (entry :? DirectoryInfo) && holdsRun entry.FullName ->
            struct (Nothing, [ Finding.Ignored name ])
        | None when (entry :? DirectoryInfo) -> struct (Folder { Path = path; Real = entry.FullName }, [])
        | None -> file path name
        | Some(Ok real) when Directory.Exists real ->
            if (folder :: above) |> List.exists (fun folder -> isBelow real folder.Real) then
                struct (Nothing, [ Finding.LeadsBack path ])
            else
                struct (Folder { Path = path; Real = real }, [ Finding.Followed(path, real) ])
        | Some(Ok real) ->
            match file path name with
            | struct (Image image, findings) when not (isBelow root.Real real) ->
                struct (Image image, Finding.Followed(path, real) :: findings)
            | other -> other
        // reported when it is opened, like any broken file
        | Some(Error _) when ImageFile.extensions.Contains(extension name) -> file path name
        | Some(Error link) ->
            let problem =
                Errors.message
                    path
                    "a link must lead to a folder or a file"
                    link
                    "restore what it leads to, or remove the link"

            struct (Nothing, [ Finding.Problem problem ])

    let private foreignProblem (folder: DiskFolder) (names: string[]) =
        let named = names |> Array.truncate 3 |> String.concat ", "
        let dots = if names.Length > 3 then ", ..." else ""

        Finding.Problem(
            Errors.message
                folder.Path
                "names must be UTF-8"
                $"{names.Length} that are not: {named}{dots}"
                FileNames.Convert
        )

    /// Folders and images of a folder in the data set's folder `root`; links to folders that hold it, or one of those
    /// `above`, are not followed.
    let list (root: DiskFolder) (above: DiskFolder list) (folder: DiskFolder) : Listing =
        try
            let found =
                DirectoryInfo(folder.Real).GetFileSystemInfos()
                |> Array.sortWith (fun a b -> String.CompareOrdinal(a.Name, b.Name))

            let foreign =
                if found |> Array.exists _.Name.Contains('\uFFFD') then
                    FileNames.foreign folder.Real
                else
                    Map.empty

            let isWanted (entry: FileSystemInfo) =
                not (isLeftBehind entry.Name)
                && (entry :? DirectoryInfo || ImageFile.extensions.Contains(extension entry.Name))

            let unreadable, readable =
                found
                |> Array.partition (fun entry -> foreign.ContainsKey entry.Name && isWanted entry)

            let entries = readable |> Array.map (entry root above folder)

            {
                Folders =
                    entries
                    |> Array.choose (function
                        | struct (Folder place, _) -> Some place
                        | _ -> None)
                ImagePaths =
                    entries
                    |> Array.choose (function
                        | struct (Image path, _) -> Some path
                        | _ -> None)
                Findings =
                    [|
                        if unreadable.Length > 0 then
                            unreadable
                            |> Array.map (fun entry -> foreign[entry.Name])
                            |> foreignProblem folder
                        for struct (_, findings) in entries do
                            yield! findings
                    |]
            }
        with
        | :? IOException
        | :? UnauthorizedAccessException as e ->
            let problem = Errors.message folder.Path "must be a readable folder" e.Message ""

            {
                Folders = [||]
                ImagePaths = [||]
                Findings = [| Finding.Problem problem |]
            }

    /// The images below a folder, at any depth up to 8, each folder's own before those of its folders; and the names of
    /// its folders.
    let images (root: DiskFolder) (folder: DiskFolder) : struct (string[] * Finding[] * string[]) =
        let rec walk depth above folder =
            let listing = list root above folder

            if depth = 0 then
                let deeper = listing.Folders |> Array.map (fun place -> Finding.TooDeep place.Path)
                struct (listing.ImagePaths, Array.append listing.Findings deeper, [||])
            else
                let below = listing.Folders |> Array.map (walk (depth - 1) (folder :: above))

                struct (Array.append
                            listing.ImagePaths
                            (below |> Array.collect (fun struct (images, _, _) -> images)),
                        Array.append
                            listing.Findings
                            (below |> Array.collect (fun struct (_, findings, _) -> findings)),
                        listing.Folders |> Array.map (fun place -> Path.GetFileName place.Path))

        walk Depth [] folder

    /// What is met where folders, not images, are looked for: lists and descriptions are not left out, images are.
    let around (listing: Listing) : Finding[] =
        [|
            for finding in listing.Findings do
                match finding with
                | Finding.LeftOut _ -> ()
                | _ -> finding
            for path in listing.ImagePaths do
                Finding.Loose path
        |]

    /// "a (3), b": each name with its number, the most frequent first.
    let counted (names: string[]) : string =
        let counts =
            names
            |> Array.countBy id
            |> Array.sortWith (fun (a, n) (b, m) ->
                if n = m then String.CompareOrdinal(a, b) else compare m n)

        let first =
            counts
            |> Array.truncate 8
            |> Array.map (fun (name, n) -> if n = 1 then name else $"{name} ({n})")
            |> String.concat ", "

        if counts.Length > 8 then
            $"{first} and {counts.Length - 8} more names"
        else
            first

    /// What a class folder without images holds.
    let contents (findings: Finding[]) : string =
        match
            findings
            |> Array.choose (function
                | Finding.LeftOut extension -> Some extension
                | _ -> None)
        with
        | [||] -> "none"
        | extensions -> $"only other files: {counted extensions}"

    let problems (findings: Finding[]) : string[] =
        findings
        |> Array.choose (function
            | Finding.Problem message -> Some message
            | _ -> None)

    /// What a reader of the results should know of the findings, a line for each kind.
    let notes (root: DiskFolder) (findings: Finding[]) : string[] =
        let some (pick: Finding -> string option) (line: string[] -> string) =
            match Array.choose pick findings with
            | [||] -> []
            | found -> [ line found ]

        let such (first: string[]) =
            if first.Length = 1 then
                first[0]
            else
                $"{first[0]} and {first.Length - 1} more"

        let below (path: string) = Path.GetRelativePath(root.Path, path)

        let ignored, leftOut =
            (function
            | Finding.Ignored name -> Some name
            | _ -> None),
            (function
            | Finding.LeftOut extension -> Some extension
            | _ -> None)

        let unusual, loose =
            (function
            | Finding.Unusual extension -> Some extension
            | _ -> None),
            (function
            | Finding.Loose path -> Some(below path)
            | _ -> None)

        let followed, notFollowed, tooDeep =
            (function
            | Finding.Followed(path, target) -> Some $"{below path} -> {target}"
            | _ -> None),
            (function
            | Finding.LeadsBack path -> Some(below path)
            | _ -> None),
            (function
            | Finding.TooDeep path -> Some(below path)
            | _ -> None)

        [|
            yield! some ignored (fun names -> $"ignored files of the system and other tools: {counted names}")
            yield! some leftOut (fun names -> $"left out by their extensions: {counted names}")
            yield!
                some unusual (fun names ->
                    $"read, although torchvision's ImageFolder leaves them out: {counted names}")
            yield! some loose (fun paths -> $"left out, as images outside the class folders: {such paths}")
            yield! some followed (fun paths -> $"links are followed: {such paths}")
            yield! some notFollowed (fun paths -> $"links that lead back are not followed: {such paths}")
            yield!
                some tooDeep (fun paths ->
                    $"left out, as more than {Depth} folders deep in a class: {such paths}")
        |]
