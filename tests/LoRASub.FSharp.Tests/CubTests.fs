module LoRASub.Tests.CubTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private badInputs: BadInput list =
    let changed file (change: string[] -> string[]) words : string list * (string -> unit) =
        words,
        fun folder ->
            Layouts.cub folder
            let path = Path.Combine(folder, "CUB_200_2011", file)
            File.WriteAllLines(path, change (File.ReadAllLines path))
            Cub.scan folder |> FileScan.require |> ignore

    let row name file change words : BadInput =
        let words, call = changed file change words
        name, words, call

    [
        row
            "images that are not there"
            "images.txt"
            (fun lines -> Array.append lines [| "7 001.Black_footed_Albatross/Other.jpg"; "8 x/y.jpg" |])
            [ "none for image 7" ]
        row
            "an absent file"
            "images.txt"
            (Array.map (fun line -> line.Replace("Image_2", "Image_7")))
            [ "images.txt"; "2 of 6 absent"; "Image_7.jpg" ]
        row
            "a class that is not there"
            "image_class_labels.txt"
            (Array.map (fun line -> line.Replace("3 1", "3 5")))
            [ "image_class_labels.txt"; "classes of classes.txt"; "5" ]
        row
            "a split of 2"
            "train_test_split.txt"
            (Array.map (fun line -> line.Replace("3 0", "3 2")))
            [ "train_test_split.txt"; "1 (training) or 0 (test)"; "'2' for image 3" ]
        row "an image without a split" "train_test_split.txt" (Array.truncate 4) [ "none for image 5" ]
        row
            "an identifier twice"
            "image_class_labels.txt"
            (fun lines -> Array.append lines [| "1 1" |])
            [ "image_class_labels.txt"; "each identifier once" ]
        row "one field" "images.txt" (fun _ -> [| "picture.jpg" |]) [ "images.txt"; "two fields"; "line 1" ]
        row
            "a way out of the folder"
            "images.txt"
            (fun _ -> [| "1 ../../etc/picture.jpg" |])
            [ "images.txt"; "below its folder" ]
        row "one field after a blank line" "images.txt" (fun _ -> [| ""; ""; "picture.jpg" |]) [ "line 3" ]
        "a list in UTF-16",
        [ "classes.txt"; "must be text in UTF-8"; "UTF-16" ],
        fun folder ->
            Layouts.cub folder
            let path = Path.Combine(folder, "CUB_200_2011", "classes.txt")
            File.WriteAllText(path, File.ReadAllText path, System.Text.Encoding.Unicode)
            Cub.scan folder |> ignore
        "a missing list",
        [ "train_test_split.txt"; "cub200"; "no such file" ],
        fun folder ->
            Layouts.cub folder
            File.Delete(Path.Combine(folder, "CUB_200_2011", "train_test_split.txt"))
            Cub.scan folder |> ignore
    ]

[<Tests>]
let tests =
    testList
        "Cub"
        [
            refusals badInputs

            testCase "labels, splits and files are those of the lists" (fun () ->
                inFolder (fun folder ->
                    Layouts.cub folder
                    let found = Cub.scan (Path.Combine(folder, "CUB_200_2011"))

                    let files (files: LabelledFile[]) =
                        files |> Array.map (fun f -> Path.GetFileName f.Path, f.Label)

                    Expect.equal
                        (files found.Train)
                        [| "Image_0.jpg", 0; "Image_0.jpg", 1; "Image_2.jpg", 0; "Image_2.jpg", 1 |]
                        "training"

                    Expect.equal (files found.Test) [| "Image_1.jpg", 0; "Image_1.jpg", 1 |] "test"))

            testCase "byte order marks, blank lines and line ends of other systems change nothing" (fun () ->
                inFolder (fun folder ->
                    Layouts.cub folder
                    let before = Cub.scan folder
                    let root = Path.Combine(folder, "CUB_200_2011")

                    for i, list in
                        List.indexed
                            [
                                "images.txt"
                                "image_class_labels.txt"
                                "train_test_split.txt"
                                "classes.txt"
                            ] do
                        let path = Path.Combine(root, list)
                        let lineEnd = [ "\n"; "\r\n"; "\r"; "\n\n" ][i]
                        File.WriteAllText(path, File.ReadAllText(path).Replace("\n", lineEnd))
                        marked path

                    Expect.equal (Cub.scan folder) before "the same"))
        ]
