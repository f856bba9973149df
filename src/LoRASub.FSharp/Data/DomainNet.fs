namespace LoRASub.Data

open System
open System.IO
open LoRASub.Core

/// DomainNet (Peng et al. 2019) as published: `<domain>/<class>/*` with `<domain>_train.txt` and `<domain>_test.txt`,
/// whose lines are a path and a label. Source: http://ai.bu.edu/M3SDA/.
[<RequireQualifiedAccess>]
module internal DomainNet =

    let private domains =
        [ "clipart"; "infograph"; "painting"; "quickdraw"; "real"; "sketch" ]

    let private trainList (folder: string) domain =
        Path.Combine(folder, $"{domain}_train.txt")

    /// Domains whose training list is there, the published ones and others, in ordinal order.
    let private present (folder: string) =
        let found =
            Directory.GetFiles(folder, "*_train.txt")
            |> Array.map (fun (path: string) -> Path.GetFileName path)
            |> Array.filter (ImageListing.isLeftBehind >> not)
            |> Array.map (fun file -> file.Substring(0, file.Length - "_train.txt".Length))
            |> Array.sortWith (fun a b -> String.CompareOrdinal(a, b))

        if Array.isEmpty found then
            Errors.reject
                (trainList folder domains.Head)
                "domainnet needs the split lists of at least one domain"
                "no such file"
                "give the folder that holds them and the domains' folders"

        found

    /// Label, path and class folder of each line.
    let private entries (folder: string) (list: string) =
        DataFile.numberedLines list
        |> Array.map (fun struct (number, line) ->
            match line.LastIndexOf ' ' with
            | -1 ->
                Errors.reject
                    list
                    "must have a path and a label in each line"
                    $"'{line}' in line {number}"
                    ""
            | at ->
                let entry, label = line[.. at - 1].TrimEnd(), ScanFiles.number list line[at + 1 ..]

                if label < 0 || label > 1_000_000 then
                    Errors.reject list "labels must be in 0 to 1000000" $"{label} in line {number}" ""

                let className = Path.GetFileName(Path.GetDirectoryName entry)
                struct (label, ScanFiles.below list folder entry, className))

    /// The class of each label, the same in every list.
    let private classNames (lists: (string * struct (int * string * string)[])[]) : string[] =
        let all =
            lists
            |> Array.collect (fun (list, entries) ->
                entries
                |> Array.map (fun struct (label, _, name) -> struct (label, name, list))
                |> Array.distinct)

        let classes =
            1 + (all |> Array.map (fun struct (label, _, _) -> label) |> Array.max)

        let names = Array.zeroCreate<string> classes

        for struct (label, name, list) in all do
            if isNull names[label] then
                names[label] <- name
            elif names[label] <> name then
                let rule = $"label {label} must name the same class in every list"
                Errors.reject list rule $"'{name}' and '{names[label]}'" ""

        match Array.tryFindIndex isNull names with
        | Some gap ->
            let list = fst lists[0]

            Errors.reject
                list
                $"labels must be 0 to {classes - 1} without a gap"
                $"no image of label {gap}"
                ""
        | None ->
            match names |> Array.countBy id |> Array.tryFind (fun (_, n) -> n > 1) with
            | Some(name, _) ->
                Errors.reject
                    (fst lists[0])
                    "each class must have one label"
                    $"several labels for '{name}'"
                    ""
            | None -> names

    let private read (folder: string) =
        DataFile.requireFolder "domainnet" folder

        let root =
            folder
            |> ScanFiles.enter "domainnet" (fun folder ->
                Directory.Exists folder
                && not (Array.isEmpty (Directory.GetFiles(folder, "*_train.txt"))))

        let domains = present root

        let lists split =
            domains
            |> Array.map (fun domain ->
                let list = DataFile.find "domainnet" root [ $"{domain}_{split}.txt" ]
                list, entries root list)

        let train, test = lists "train", lists "test"
        let both = Array.append train test

        if both |> Array.forall (fun (_, entries) -> Array.isEmpty entries) then
            Errors.reject (fst train[0]) "must name at least one image" "none" ""

        struct (root, domains, train, test, classNames both)

    /// Files of some lists, and the problems of absent ones; `label` makes a label of the domain's place and the class.
    let private files (label: int -> int -> int) (lists: (string * struct (int * string * string)[])[]) =
        let parts =
            lists
            |> Array.mapi (fun domain (list, entries) ->
                entries
                |> Array.map (fun struct (c, path, _) ->
                    ({ Path = path; Label = label domain c }: LabelledFile))
                |> ScanFiles.present list)

        struct (parts |> Array.collect (fun struct (files, _) -> files),
                parts |> Array.collect (fun struct (_, problems) -> problems))

    let private scanWith label names answers folder : FileScan =
        let struct (root, domains, train, test, classes) = read folder
        let struct (trainFiles, trainProblems) = files (label classes) train
        let struct (testFiles, testProblems) = files (label classes) test

        {
            ClassNames = names domains classes
            Answers = answers domains classes
            TrainSource = root
            Train = trainFiles
            TestSource = root
            Test = testFiles
            Notes = [||]
            Problems = Array.append trainProblems testProblems
        }
        |> FileScan.noteUntested

    /// Class-incremental: the images of all domains together. Rejects missing lists and labels that name several
    /// classes; files that are not there are a problem of the scan.
    let scan (folder: string) : FileScan =
        scanWith
            (fun _ _ c -> c)
            (fun _ classes -> classes)
            (fun _ classes -> Array.init classes.Length id)
            folder

    /// Domain-incremental: label d·classes + c for class c in the d-th domain, right when the class is; in natural
    /// order with as many tasks as domains, each task is a domain. Rejects as `scan`.
    let scanDomains (folder: string) : FileScan =
        scanWith
            (fun classes domain c -> domain * classes.Length + c)
            (fun domains classes ->
                domains
                |> Array.collect (fun domain -> classes |> Array.map (fun name -> $"{domain}/{name}")))
            (fun domains classes -> domains |> Array.collect (fun _ -> Array.init classes.Length id))
            folder
