namespace LoRASub

open System
open System.IO

/// Tiny-ImageNet-200 as published: wnids.txt, words.txt, `train/<wnid>/images/*`, and val/images with
/// val_annotations.txt, which serve as test images, because the test images have no labels.
/// Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip.
[<RequireQualifiedAccess>]
module TinyImageNet =

    let private name = "tiny-imagenet"

    /// The first of each identifier's words.
    let private words (path: string) =
        DataFile.lines path
        |> Array.choose (fun line ->
            match line.Split '\t' with
            | [| id; words |] -> Some(id, words.Split(',').[0].Trim())
            | _ -> None)
        |> Map.ofArray

    /// Files and classes, the classes in ordinal order of their identifiers. Rejects missing lists and folders, and
    /// annotations of absent files or unknown classes.
    let scan (folder: string) : FileScan =
        let root =
            folder
            |> ScanFiles.enter "tiny-imagenet-200" (fun folder ->
                File.Exists(Path.Combine(folder, "wnids.txt")))

        let list = DataFile.find name root [ "wnids.txt" ]

        let ids =
            DataFile.lines list
            |> ScanFiles.requireDistinct list
            |> Array.sortWith (fun a b -> String.CompareOrdinal(a, b))

        let words = words (DataFile.find name root [ "words.txt" ])
        let trainFolder = Path.Combine(root, "train")

        let train =
            ids
            |> Array.mapi (fun label id ->
                let images = Path.Combine(ScanFiles.below "wnids.txt" trainFolder id, "images")

                DataFile.requireFolder $"class {id} of {name}" images

                match
                    Directory.GetFiles images
                    |> Array.filter (fun file ->
                        ImageFile.extensions.Contains((Path.GetExtension file).ToLowerInvariant()))
                    |> Array.sortWith (fun a b -> String.CompareOrdinal(a, b))
                with
                | [||] -> Errors.reject images "a class must hold at least one image" "none" ""
                | files -> files |> Array.map (fun path -> ({ Path = path; Label = label }: LabelledFile)))
            |> Array.concat

        let annotations =
            DataFile.find name root [ Path.Combine("val", "val_annotations.txt") ]

        let test =
            DataFile.lines annotations
            |> Array.map (fun line ->
                match line.Split '\t' with
                | fields when fields.Length >= 2 ->
                    match Array.IndexOf(ids, fields[1]) with
                    | -1 -> Errors.reject annotations "must name classes of wnids.txt" $"'{fields[1]}'" ""
                    | label ->
                        ({
                            Path =
                                ScanFiles.below annotations (Path.Combine(root, "val", "images")) fields[0]
                            Label = label
                        }
                        : LabelledFile)
                | _ -> Errors.reject annotations "must have a file and a class in each line" $"'{line}'" "")

        ScanFiles.requirePresent annotations test

        {
            ClassNames =
                ids
                |> Array.map (fun id -> id, defaultArg (words.TryFind id) id)
                |> ScanFiles.distinctNames
            Answers = Array.init ids.Length id
            TrainSource = trainFolder
            Train = train
            TestSource = annotations
            Test = test
        }
