module LoRASub.Tests.ImageFolderTests

open System
open System.IO
open System.Text
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private dot = plainPicture 2 3 10 20 30

/// Empty files suffice where nothing is decoded.
let private touch (folder: string) (names: string list) =
    for name in names do
        let path = Path.Combine(folder, name)
        Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore
        File.WriteAllBytes(path, [||])

let private found folder =
    ImageFolder.scan "folder" ReadOptions.standard folder

let private scan folder = FileScan.require (found folder)

let private names (folder: string) (files: LabelledFile[]) =
    files
    |> Array.map (fun f -> Path.GetRelativePath(folder, f.Path).Replace('\\', '/'), f.Label)

let private badInputs: BadInput list =
    let with' files words : string list * (string -> unit) =
        words,
        fun folder ->
            touch folder files
            scan folder |> ignore

    let row name files words : BadInput =
        let words, call = with' files words
        name, words, call

    [
        row "no class folder" [ "a.jpg" ] [ "one folder of images for each class"; "no folder" ]
        row
            "an empty class"
            [ "cat/1.jpg"; "dog/readme.txt" ]
            [ "dog"; "at least one image"; "only other files: .txt" ]
        "a class of an empty folder",
        [ "dog"; "at least one image"; "none" ],
        fun folder ->
            touch folder [ "cat/1.jpg"; "cat/2.jpg" ]
            Directory.CreateDirectory(Path.Combine(folder, "dog")) |> ignore
            scan folder |> ignore
        row
            "a class of films"
            [ "cat/1.jpg"; "dog/1.mp4"; "dog/2.MP4"; "dog/a.txt" ]
            [ "dog"; "at least one image"; "only other files: .mp4 (2), .txt" ]
        row
            "archives that are still packed"
            [ "n01.tar"; "n02.tar"; "readme.txt" ]
            [ "one folder of images for each class"; "n01.tar, n02.tar"; "unpack" ]
        row
            "files of another program"
            [ "train.parquet"; "test.parquet" ]
            [ "one folder of images for each class"; ".parquet (2)" ]
        row
            "classes that differ by case"
            [ "Cat/1.jpg"; "cat/1.jpg"; "dog/1.jpg" ]
            [ "'Cat' and 'cat'"; "differ only by case"; "rename or merge" ]
        row
            "classes that differ by Unicode normalisation"
            [ "caf\u00E9/1.jpg"; "cafe\u0301/1.jpg" ]
            [ "differ only by Unicode normalisation" ]
        row "a class without a name" [ "cat/1.jpg"; " /1.jpg" ] [ "a name that is not blank"; "' '" ]
        row
            "a test class without training images"
            [ "train/a/1.jpg"; "train/b/1.jpg"; "test/a/1.jpg"; "test/c/1.jpg" ]
            [ "test"; "must have training images"; "'c'" ]
        row
            "a test class in another spelling"
            [ "train/a/1.jpg"; "test/A/1.jpg" ]
            [ "must have training images"; "'A'"; "the training images are in 'a'" ]
        row "train without test" [ "train/a/1.jpg"; "train/b/1.jpg" ] [ "test/ or val/"; "only train/" ]
        row
            "two test folders"
            [ "train/a/1.jpg"; "test/a/2.jpg"; "Test/a/3.jpg" ]
            [ "one folder of test images"; "Test/ and test/" ]
        row
            "two training folders"
            [ "train/a/1.jpg"; "training/a/1.jpg"; "test/a/2.jpg" ]
            [ "one folder of training images"; "train/ and training/" ]
        row
            "splits without class folders"
            [ "train/cat.1.jpg"; "train/dog.1.jpg"; "test1/1.jpg" ]
            [ "train"; "one folder of images for each class"; "images (2)" ]
        row
            "test images beside the classes"
            [ "a/1.jpg"; "b/1.jpg"; "test/a/2.jpg"; "test/b/2.jpg" ]
            [ "test/ beside a/ and b/"; "train/" ]
        row "held-out images alone" [ "test/a/1.jpg"; "val/a/1.jpg" ] [ "test/ and val/"; "needs train/" ]
        row
            "splits inside the classes"
            [ "a/train/1.jpg"; "a/test/2.jpg"; "b/train/1.jpg"; "b/test/2.jpg" ]
            [ "a class must not hold training and test images"; "another problem" ]
        row
            "images and labels with the same splits"
            [ "images/train/a/1.jpg"; "images/val/a/1.jpg"; "labels/train/a/1.txt" ]
            [ "images"; "train/ and val/"; "give this folder" ]
        row
            "several splits"
            [
                "cats_train/a/1.jpg"
                "cats_test/a/1.jpg"
                "dogs_train/a/1.jpg"
                "dogs_test/a/1.jpg"
            ]
            [ "several splits"; "cats_train/ and dogs_train/" ]
        "a class that is a link to nothing",
        [ "elk"; "a link to /nowhere/elk, which does not exist" ],
        fun folder ->
            touch folder [ "a/1.jpg"; "a/2.jpg" ]

            Directory.CreateSymbolicLink(Path.Combine(folder, "elk"), "/nowhere/elk")
            |> ignore

            scan folder |> ignore
        "a class that is a link to itself",
        [ "elk"; "leads back to itself" ],
        fun folder ->
            touch folder [ "a/1.jpg"; "a/2.jpg" ]
            Directory.CreateSymbolicLink(Path.Combine(folder, "elk"), "elk") |> ignore
            scan folder |> ignore
        "a missing folder",
        [ "nowhere"; "no such folder" ],
        fun folder -> scan (Path.Combine(folder, "nowhere")) |> ignore
    ]

[<Tests>]
let tests =
    testList
        "ImageFolder"
        [
            refusals badInputs

            testCase "train and test folders, in ordinal order, hidden and other files aside" (fun () ->
                inFolder (fun folder ->
                    touch
                        folder
                        [
                            "train/zebra/2.JPG"
                            "train/zebra/10.png"
                            "train/Ant/deep/er/x.webp"
                            "train/Ant/.hidden.jpg"
                            "train/Ant/notes.txt"
                            "train/.cache/y.jpg"
                            "train/bee/1.Bmp"
                            "test/zebra/1.jpeg"
                            "test/bee/1.jpg"
                            "val/bee/1.jpg"
                        ]

                    let found = scan folder
                    Expect.equal found.ClassNames [| "Ant"; "bee"; "zebra" |] "classes"
                    Expect.equal found.Answers [| 0; 1; 2 |] "answers"

                    Expect.equal
                        (names folder found.Train)
                        [|
                            "train/Ant/deep/er/x.webp", 0
                            "train/bee/1.Bmp", 1
                            "train/zebra/10.png", 2
                            "train/zebra/2.JPG", 2
                        |]
                        "training"

                    Expect.equal
                        (names folder found.Test)
                        [| "test/bee/1.jpg", 1; "test/zebra/1.jpeg", 2 |]
                        "test"))

            for train, test in
                [
                    "Train", "Test"
                    "TRAIN", "TEST"
                    "training", "testing"
                    "training_set", "test_set"
                    "TrainSet", "TestSet"
                    "train-images", "test-images"
                    "train2017", "val2017"
                    "train", "val"
                    "train", "valid"
                    "train", "Validation"
                    "flowers_train", "flowers_test"
                    "seg_train/seg_train", "seg_test/seg_test"
                    "train/images", "test/images"
                    "images/train", "images/test"
                    "archive/data/Train", "archive/data/Test"
                ] do
                testCase $"{train} and {test} are read as splits, as a note says" (fun () ->
                    inFolder (fun folder ->
                        touch
                            folder
                            [ $"{train}/a/1.jpg"; $"{train}/b/1.jpg"; $"{test}/a/2.jpg"; $"{test}/b/2.jpg" ]

                        let found = scan folder
                        Expect.equal found.ClassNames [| "a"; "b" |] "classes"

                        Expect.equal
                            (names folder found.Train)
                            [| $"{train}/a/1.jpg", 0; $"{train}/b/1.jpg", 1 |]
                            "training"

                        Expect.equal
                            (names folder found.Test)
                            [| $"{test}/a/2.jpg", 0; $"{test}/b/2.jpg", 1 |]
                            "test"

                        Expect.isNonEmpty found.Notes "notes"

                        for split in [ train.Split('/')[0]; test.Split('/')[0] ] do
                            Expect.stringContains (String.concat "; " found.Notes) $"{split}/" "note"))

            testCase "test before val; a test without the training's classes is not read" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/a/1.jpg"; "train/b/1.jpg"; "val/a/2.jpg"; "test/a/3.jpg" ]
                    let both = scan folder
                    Expect.equal (names folder both.Test) [| "test/a/3.jpg", 0 |] "test"
                    Expect.contains both.Notes "not read: val/" "said"
                    Directory.Delete(Path.Combine(folder, "test"), true)
                    touch folder [ "test/1.jpg"; "extra/c/1.jpg" ]
                    let unlabelled = scan folder
                    Expect.equal (names folder unlabelled.Test) [| "val/a/2.jpg", 0 |] "val"
                    Expect.contains unlabelled.Notes "not read: extra/ and test/" "said"))

            testCase "a class may be called train, as a note says" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/1.jpg"; "train/2.jpg"; "truck/1.jpg"; "truck/2.jpg" ]
                    let found = scan folder
                    Expect.equal found.ClassNames [| "train"; "truck" |] "classes"
                    Expect.stringContains (Array.exactlyOne found.Notes) "train/ is read as a class" "said"))

            testCase "an empty test folder is a class without test images, as an absent one is" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/a/1.jpg"; "train/b/1.jpg"; "test/a/2.jpg" ]
                    let absent = scan folder
                    Directory.CreateDirectory(Path.Combine(folder, "test", "b")) |> ignore
                    Directory.CreateDirectory(Path.Combine(folder, "test", "c")) |> ignore
                    let empty = scan folder
                    Expect.equal empty.Test absent.Test "test images"
                    Expect.equal empty.Notes absent.Notes "notes"
                    Expect.stringContains (Array.exactlyOne empty.Notes) "no test image" "said"))

            testCase "what systems leave behind is ignored at every depth, and reported" (fun () ->
                inFolder (fun folder ->
                    let plain = [ for c in [ "a"; "b" ] -> [ for i in 1..5 -> $"{c}/{i}.jpg" ] ]
                    touch folder (List.concat plain)
                    let before = scan folder
                    Expect.isEmpty before.Notes "nothing to say"

                    touch
                        folder
                        [
                            "__MACOSX/a/._1.jpg"
                            "$RECYCLE.BIN/$R1.jpg"
                            "System Volume Information/x.jpg"
                            "@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg"
                            "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"
                            "a/deep/@Recycle/1.jpg"
                            "#recycle/1.jpg"
                            "FOUND.000/1.jpg"
                            ".ipynb_checkpoints/1.jpg"
                            "b/._1.jpg"
                            "b/Thumbs.db"
                            "b/desktop.ini"
                        ]

                    Directory.CreateDirectory(Path.Combine(folder, "lost+found")) |> ignore
                    let found = scan folder
                    Expect.equal (found.Train, found.Test) (before.Train, before.Test) "the same images"

                    Expect.equal
                        found.Notes
                        [|
                            "ignored files of the system and other tools: @eaDir (2), #recycle, $RECYCLE.BIN, ._1.jpg, .ipynb_checkpoints, @Recycle, FOUND.000, System Volume Information and 4 more names"
                        |]
                        "said"))

            testCase
                "what is left out and what torchvision would leave out is counted by extension"
                (fun () ->
                    inFolder (fun folder ->
                        touch
                            folder
                            [
                                "a/1.jfif"
                                "a/2.JFIF"
                                "a/3.jpe"
                                "a/4.jpg"
                                "a/5.gif"
                                "a/6.gif"
                                "a/list"
                                "a/1.tga"
                                "a/2.tga"
                                "b/1.jpg"
                                "b/2.jpg"
                                "loose.jpg"
                                "readme.md"
                            ]

                        let found = scan folder

                        Expect.equal
                            (found.Train.Length + found.Test.Length)
                            8
                            "JPEG under three endings, and GIF"

                        Expect.equal
                            found.Notes
                            [|
                                "left out by their extensions: .tga (2), no extension"
                                "read, although torchvision's ImageFolder leaves them out: .gif (2), .jfif (2), .jpe"
                                "left out, as images outside the class folders: loose.jpg"
                            |]
                            "said"))

            testCase "all problems are found at once, and load names the first" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "train/a/1.jpg"; "train/b/1.txt"; "test/a/1.jpg"; "test/c/1.jpg" ]
                    let found = found folder
                    Expect.hasLength found.Problems 2 "an empty class and an unknown one"
                    Expect.equal found.Train.Length 1 "the rest is there"
                    Check.refused [ "train/b"; "another problem" ] (fun () -> scan folder |> ignore)))

            testCase "names that are not UTF-8 are problems, shown as their bytes" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "a/1.jpg"; "a/2.jpg"; "b/1.jpg"; "b/2.jpg" ]

                    let shell (command: string) =
                        use ended =
                            System.Diagnostics.Process.Start("sh", [ "-c"; $"cd '{folder}' && {command}" ])

                        ended.WaitForExit()
                        Expect.equal ended.ExitCode 0 command

                    shell @"mv a/1.jpg ""$(printf 'a/caf\351.jpg')"" && mv b ""$(printf '\271\267')"""

                    try
                        let problems = String.concat "; " (found folder).Problems

                        for word in [ @"caf\xE9.jpg"; @"\xB9\xB7"; "must be UTF-8"; "convmv" ] do
                            Expect.stringContains problems word "said"
                    finally
                        // .NET cannot remove what it cannot name
                        shell "rm -r a \"$(printf '\\271\\267')\""))

            testCase "one folder is split class by class, by names and seed" (fun () ->
                inFolder (fun folder ->
                    let files = [ for c in [ "a"; "b" ] -> [ for i in 10..29 -> $"{c}/{i}.jpg" ] ]
                    touch folder ("one/1.jpg" :: "two/1.jpg" :: "two/2.jpg" :: List.concat files)
                    let first = scan folder

                    let count label files =
                        files |> Array.filter (fun (f: LabelledFile) -> f.Label = label) |> Array.length

                    Expect.equal [ for c in 0..3 -> count c first.Train ] [ 16; 16; 1; 1 ] "80% train"

                    Expect.equal
                        [ for c in 0..3 -> count c first.Test ]
                        [ 4; 4; 0; 1 ]
                        "the rest is the test"

                    let all = Array.append (names folder first.Train) (names folder first.Test)
                    Expect.equal (Array.distinct all).Length 43 "each image once"
                    Expect.equal (names folder (scan folder).Train) (names folder first.Train) "again"

                    // what these names and this seed give on every system
                    Expect.equal
                        (first.Test |> names folder |> Array.map fst |> Array.filter _.StartsWith("a/"))
                        [| "a/16.jpg"; "a/18.jpg"; "a/22.jpg"; "a/28.jpg" |]
                        "the drawn ones"

                    let other =
                        ImageFolder.scan
                            "folder"
                            { ReadOptions.standard with
                                SplitSeed = 7L
                            }
                            folder

                    Expect.notEqual (names folder other.Test) (names folder first.Test) "another seed"

                    let half =
                        ImageFolder.scan
                            "folder"
                            { ReadOptions.standard with
                                SplitRatio = 0.5
                            }
                            folder

                    Expect.equal (count 0 half.Train) 10 "another ratio"))

            testCase "another class changes no split" (fun () ->
                inFolder (fun folder ->
                    let files = [ for i in 1..10 -> $"b/{i}.jpg" ]
                    touch folder ("c/1.jpg" :: files)
                    let before = names folder (scan folder).Test |> Array.map fst
                    touch folder [ "a/1.jpg"; "a/2.jpg" ]
                    let after = names folder (scan folder).Test |> Array.map fst

                    Expect.equal
                        (after |> Array.filter _.StartsWith("b/"))
                        (before |> Array.filter _.StartsWith("b/"))
                        "b"))

            testCase
                "the archive's folder may be given from outside, and its README names the classes"
                (fun () ->
                    inFolder (fun folder ->
                        touch
                            folder
                            [
                                "imagenet-r/n01443537/art_0.jpg"
                                "imagenet-r/n01443537/art_1.jpg"
                                "imagenet-r/n02012849/toy_0.jpg"
                                "imagenet-r/n02012849/toy_1.jpg"
                                "imagenet-r/n03126707/toy_1.jpg"
                                "imagenet-r/n09999999/toy_1.jpg"
                            ]

                        File.WriteAllText(
                            Path.Combine(folder, "imagenet-r", "README.txt"),
                            "ImageNet-R\n\nn01443537 goldfish\nn02012849 crane\nn03126707 crane\n"
                        )

                        for given in [ folder; Path.Combine(folder, "imagenet-r") ] do
                            let found = ImageFolder.scan "imagenet-r" ReadOptions.standard given

                            Expect.equal
                                found.ClassNames
                                [| "goldfish"; "crane (n02012849)"; "crane (n03126707)"; "n09999999" |]
                                "names, told apart where they are the same"))

            testCase "no file is moved or changed" (fun () ->
                inFolder (fun folder ->
                    for c in [ "a"; "b" ] do
                        for i in 1..4 do
                            writePicture (Path.Combine(folder, c, $"{i}.png")) dot

                    let state () =
                        Directory.GetFiles(folder, "*", SearchOption.AllDirectories)
                        |> Array.sort
                        |> Array.map (fun path -> path, File.ReadAllBytes path)

                    let before = state ()
                    let data = Datasets.load "folder" folder
                    data.Train.Read 0 |> ignore
                    Expect.equal (state ()) before "files"))

            testCase "all images of a folder, without a split" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "b/1.jpg"; "a/2.jpg"; "a/1.jpg" ]
                    let all = ImageFolder.all folder
                    Expect.equal all.ClassNames [| "a"; "b" |] "classes"

                    Expect.equal
                        (names folder all.Train)
                        [| "a/1.jpg", 0; "a/2.jpg", 0; "b/1.jpg", 1 |]
                        "files"

                    Expect.isEmpty all.Test "no split"
                    touch folder [ "train/a/1.jpg"; "test/a/1.jpg" ]

                    Check.refused [ "train/ and test/"; "give one" ] (fun () ->
                        ImageFolder.all folder |> ignore)))

            testCase "links that lead back are not followed, others are, and both are reported" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "data/a/1.jpg"; "data/b/1.jpg"; "elsewhere/2.jpg" ]
                    let at name = Path.Combine(folder, name)

                    for i in 1..8 do
                        Directory.CreateSymbolicLink(at $"data/a/up{i}", "..") |> ignore
                        Directory.CreateSymbolicLink(at $"data/b/self{i}", ".") |> ignore

                    Directory.CreateSymbolicLink(at "data/b/more", at "elsewhere") |> ignore
                    let all = ImageFolder.all (at "data")

                    Expect.equal
                        (names (at "data") all.Train)
                        [| "a/1.jpg", 0; "b/1.jpg", 1; "b/more/2.jpg", 1 |]
                        "files"

                    Expect.equal
                        all.Notes
                        [|
                            $"""links are followed: b/more -> {at "elsewhere"}"""
                            "links that lead back are not followed: a/up1 and 15 more"
                        |]
                        "said"))

            testCase "two classes that link to each other are read once" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "a/1.jpg"; "b/2.jpg" ]
                    Directory.CreateSymbolicLink(Path.Combine(folder, "a", "x"), "../b") |> ignore
                    Directory.CreateSymbolicLink(Path.Combine(folder, "b", "y"), "../a") |> ignore
                    let all = FileScan.require (ImageFolder.all folder)

                    Expect.equal
                        (names folder all.Train)
                        [| "a/1.jpg", 0; "a/x/2.jpg", 0; "b/2.jpg", 1; "b/y/1.jpg", 1 |]
                        "files"

                    Expect.hasLength all.Notes 2 "followed, and not followed back"))

            testCase "links below a linked folder lead from where they are" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "far/pool/1.jpg"; "data/b/1.jpg" ]
                    let at name = Path.Combine(folder, name)
                    Directory.CreateDirectory(at "far/elk") |> ignore
                    File.CreateSymbolicLink(at "far/elk/9.jpg", "../pool/1.jpg") |> ignore
                    File.CreateSymbolicLink(at "far/elk/8.jpg", "../pool/0.jpg") |> ignore
                    Directory.CreateSymbolicLink(at "data/elk", "../far/elk") |> ignore
                    let all = FileScan.require (ImageFolder.all (at "data"))

                    Expect.equal
                        (names (at "data") all.Train)
                        [| "b/1.jpg", 0; "elk/8.jpg", 1; "elk/9.jpg", 1 |]
                        "files"

                    Expect.equal (ImageFile.glance (at "data/elk/9.jpg")) (Some "empty") "opened"

                    Expect.equal
                        (ImageFile.glance (at "data/elk/8.jpg"))
                        (Some "a link to ../pool/0.jpg, which does not exist")
                        "leads nowhere"))

            testCase "folders deeper than eight below a class are reported" (fun () ->
                inFolder (fun folder ->
                    touch folder [ "a/1.jpg"; "b/1/2/3/4/5/6/7/8/in.jpg"; "b/1/2/3/4/5/6/7/8/9/out.jpg" ]
                    let all = ImageFolder.all folder
                    Expect.equal all.Train.Length 2 "files"
                    Expect.stringContains (Array.exactlyOne all.Notes) "b/1/2/3/4/5/6/7/8/9" "said"))

            testCase "a run that was saved among the classes is no class" (fun () ->
                inFolder (fun folder ->
                    touch
                        folder
                        [
                            "cat/1.jpg"
                            "cat/2.jpg"
                            "dog/1.jpg"
                            "dog/2.jpg"
                            "run/settings.json"
                            "run/.lock"
                            "run/figures/1.png"
                        ]

                    Expect.equal (scan folder).ClassNames [| "cat"; "dog" |] "classes"))
        ]
