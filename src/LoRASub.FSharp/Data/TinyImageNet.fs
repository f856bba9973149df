namespace LoRASub.Data

open System
open System.IO
open LoRASub.Core

/// Tiny-ImageNet-200 as published: wnids.txt, words.txt, `train/<wnid>/images/*`, and val/images with
/// val_annotations.txt, which serve as test images, because the test images have no labels.
/// Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip.
[<RequireQualifiedAccess>]
module internal TinyImageNet =

    let private name = "tiny-imagenet"

    /// The first of each identifier's words.
    let private words (path: string) =
        DataFile.lines path
        |> Array.choose (fun line ->
            match line.Split '\t' with
            | [| id; words |] -> Some(id, words.Split(',').[0].Trim())
            | _ -> None)
        |> Map.ofArray

    /// The test images as published: val/images, by the annotations.
    let private annotated (root: string) (ids: string[]) =
        let annotations =
            DataFile.find name root [ Path.Combine("val", "val_annotations.txt") ]

        let files =
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

        let struct (files, problems) = ScanFiles.present annotations files
        struct (annotations, files, problems)

    /// Images below the folders of some classes, and the other files found there.
    let private ofFolders (root: DiskFolder) (folders: (int * string)[]) =
        let parts =
            folders
            |> Array.map (fun (label, folder) ->
                let struct (images, findings, _) =
                    ImageListing.images root (ImageListing.place folder)

                let files =
                    images |> Array.map (fun path -> ({ Path = path; Label = label }: LabelledFile))

                struct (folder, files, findings))

        struct (parts |> Array.collect (fun struct (_, files, _) -> files),
                parts |> Array.collect (fun struct (_, _, findings) -> findings),
                parts)

    /// Files and classes, the classes in ordinal order of their identifiers. Test images may also be in
    /// `val/<wnid>/*`, and training images in `train/<wnid>/*`, as common scripts leave them. Rejects missing lists and
    /// folders, and annotations of unknown classes; absent files and classes without images are problems of the scan.
    let scan (folder: string) : FileScan =
        let root =
            folder
            |> ScanFiles.enter "tiny-imagenet-200" (fun folder ->
                File.Exists(Path.Combine(folder, "wnids.txt")))

        let place = ImageListing.place root
        let list = DataFile.find name root [ "wnids.txt" ]

        let ids =
            DataFile.lines list
            |> ScanFiles.requireDistinct list
            |> Array.sortWith (fun a b -> String.CompareOrdinal(a, b))

        let words = words (DataFile.find name root [ "words.txt" ])
        let trainFolder, valFolder = Path.Combine(root, "train"), Path.Combine(root, "val")

        let struct (train, trainFindings, classes) =
            ids
            |> Array.mapi (fun label id ->
                let folder = ScanFiles.below "wnids.txt" trainFolder id
                DataFile.requireFolder $"class {id} of {name}" folder
                let images = Path.Combine(folder, "images")
                label, (if Directory.Exists images then images else folder))
            |> ofFolders place

        let reorganised =
            ids
            |> Array.mapi (fun label id -> label, Path.Combine(valFolder, id))
            |> Array.filter (snd >> Directory.Exists)

        // scripts move or copy the images, and may leave the list and an empty folder behind
        let isPublished =
            let images = Path.Combine(valFolder, "images")

            Directory.Exists images
            && Seq.length (Directory.EnumerateFiles images |> Seq.truncate 1) > 0

        let struct (testSource, test, testFindings, testProblems) =
            if isPublished || Array.isEmpty reorganised then
                let struct (annotations, files, problems) = annotated root ids
                struct (annotations, files, [||], problems)
            else
                let struct (files, findings, _) = ofFolders place reorganised
                struct (valFolder, files, findings, [||])

        {
            ClassNames =
                ids
                |> Array.map (fun id -> id, defaultArg (words.TryFind id) id)
                |> ScanFiles.distinctNames
            Answers = Array.init ids.Length id
            TrainSource = trainFolder
            Train = train
            TestSource = testSource
            Test = test
            Notes =
                [|
                    if reorganised.Length > 0 then
                        if isPublished then
                            "test images are read from val/images/, not from val/<wnid>/"
                        else
                            "test images are read from val/<wnid>/, as scripts reorganise them"
                    yield! ImageListing.notes place (Array.append trainFindings testFindings)
                |]
            Problems =
                [|
                    for struct (folder, files, findings) in classes do
                        if files.Length = 0 then
                            let held = ImageListing.contents findings
                            Errors.message folder "a class must hold at least one image" held ""
                    yield! ImageListing.problems (Array.append trainFindings testFindings)
                    yield! testProblems
                |]
        }
        |> FileScan.noteUntested
