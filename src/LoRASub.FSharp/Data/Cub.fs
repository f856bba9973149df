namespace LoRASub.Data

open System.Collections.Generic
open System.IO
open LoRASub.Core

/// Caltech-UCSD Birds-200-2011 (Wah et al. 2011) as published: images.txt, image_class_labels.txt, train_test_split.txt
/// and classes.txt, whose lines begin with an identifier, and images/.
/// Source: https://www.vision.caltech.edu/datasets/cub_200_2011/.
[<RequireQualifiedAccess>]
module internal Cub =

    /// "001.Black_footed_Albatross" as a name to read.
    let private readable (className: string) =
        className.Substring(className.IndexOf '.' + 1).Replace('_', ' ')

    /// Files and classes. Rejects missing lists and entries without image, class or split; files that are not there are a
    /// problem of the scan.
    let scan (folder: string) : FileScan =
        let root =
            folder
            |> ScanFiles.enter "CUB_200_2011" (fun folder -> File.Exists(Path.Combine(folder, "images.txt")))

        let list name = DataFile.find "cub200" root [ name ]

        let table name =
            let path = list name
            let pairs = ScanFiles.pairs path

            pairs |> Array.map fst |> ScanFiles.requireDistinct path |> ignore
            dict pairs

        let classes = ScanFiles.pairs (list "classes.txt")

        classes
        |> Array.map fst
        |> ScanFiles.requireDistinct (list "classes.txt")
        |> ignore

        let places =
            classes |> Array.mapi (fun i (id, _) -> KeyValuePair(id, i)) |> Dictionary

        let labels, splits = table "image_class_labels.txt", table "train_test_split.txt"
        let images = list "images.txt"

        let entry (file: string) (table: IDictionary<string, string>) (id: string) =
            match table.TryGetValue id with
            | true, value -> value
            | false, _ ->
                Errors.reject (list file) "must have each image of images.txt" $"none for image {id}" ""

        ScanFiles.pairs images
        |> Array.map fst
        |> ScanFiles.requireDistinct images
        |> ignore

        let files =
            ScanFiles.pairs images
            |> Array.map (fun (id, name) ->
                let label =
                    match places.TryGetValue(entry "image_class_labels.txt" labels id) with
                    | true, place -> place
                    | false, _ ->
                        let rule = "must name classes of classes.txt"
                        Errors.reject (list "image_class_labels.txt") rule labels[id] ""

                let isTrained =
                    match entry "train_test_split.txt" splits id with
                    | "1" -> true
                    | "0" -> false
                    | other ->
                        Errors.reject
                            (list "train_test_split.txt")
                            "must be 1 (training) or 0 (test)"
                            $"'{other}' for image {id}"
                            ""

                struct (isTrained,
                        ({
                            Path = ScanFiles.below images (Path.Combine(root, "images")) name
                            Label = label
                        }
                        : LabelledFile)))

        let struct (present, problems) =
            files |> Array.map (fun struct (_, file) -> file) |> ScanFiles.present images

        let present = HashSet present

        let part wanted =
            files
            |> Array.choose (fun struct (isTrained, file) ->
                if isTrained = wanted && present.Contains file then
                    Some file
                else
                    None)

        {
            ClassNames =
                classes
                |> Array.map (fun (id, name) -> id, readable name)
                |> ScanFiles.distinctNames
            Answers = Array.init classes.Length id
            TrainSource = images
            Train = part true
            TestSource = images
            Test = part false
            Notes = [||]
            Problems = problems
        }
        |> FileScan.noteUntested
