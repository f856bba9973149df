module LoRASub.Tests.TinyImageNetTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private badInputs: BadInput list =
    let row name words (spoil: string -> unit) : BadInput =
        name,
        words,
        fun folder ->
            Layouts.tinyImageNet folder
            spoil (Path.Combine(folder, "tiny-imagenet-200"))
            TinyImageNet.scan folder |> FileScan.require |> ignore

    let under folder (name: string) = Path.Combine(folder, name)

    [
        for file in [ "words.txt"; "val/val_annotations.txt" ] do
            row $"no {file}" [ Path.GetFileName file; "tiny-imagenet"; "no such file" ] (fun root ->
                File.Delete(under root file))

        row "a class without a folder" [ "n01629819"; "no such folder" ] (fun root ->
            Directory.Delete(under root "train/n01629819", true))

        row "a class without images" [ "n01629819"; "at least one image" ] (fun root ->
            for file in Directory.GetFiles(under root "train/n01629819/images") do
                File.Delete file)

        row
            "an annotation of an unknown class"
            [ "val_annotations.txt"; "wnids.txt"; "'n00000001'" ]
            (fun root ->
                File.AppendAllText(
                    under root "val/val_annotations.txt",
                    "val_0.JPEG\tn00000001\t0\t0\t1\t1\n"
                ))

        row
            "an annotation of an absent file"
            [ "val_annotations.txt"; "1 of 4 absent"; "val_2.JPEG" ]
            (fun root -> File.Delete(under root "val/images/val_2.JPEG"))

        row "an annotation without a class" [ "val_annotations.txt"; "a file and a class" ] (fun root ->
            File.AppendAllText(under root "val/val_annotations.txt", "val_0.JPEG\n"))
    ]

[<Tests>]
let tests =
    testList
        "TinyImageNet"
        [
            refusals badInputs

            testCase "the validation images are the test, in the order of their annotations" (fun () ->
                inFolder (fun folder ->
                    Layouts.tinyImageNet folder
                    let found = TinyImageNet.scan folder

                    Expect.equal
                        (found.Test |> Array.map (fun f -> Path.GetFileName f.Path, f.Label))
                        [| "val_0.JPEG", 2; "val_1.JPEG", 0; "val_2.JPEG", 1; "val_3.JPEG", 0 |]
                        "test"

                    Expect.isEmpty found.Notes "as published"))

            for below, keepsList in [ "", false; "images", false; "", true ] do
                let list = if keepsList then "with" else "without"

                testCase $"val/<wnid>/{below} as scripts leave it, {list} the list" (fun () ->
                    inFolder (fun folder ->
                        Layouts.tinyImageNet folder
                        let root = Path.Combine(folder, "tiny-imagenet-200")
                        let list = Path.Combine(root, "val", "val_annotations.txt")

                        for line in File.ReadAllLines list do
                            let fields = line.Split '\t'
                            let place = Path.Combine(root, "val", fields[1], below)
                            Directory.CreateDirectory place |> ignore

                            File.Move(
                                Path.Combine(root, "val", "images", fields[0]),
                                Path.Combine(place, fields[0])
                            )

                        if not keepsList then
                            Directory.Delete(Path.Combine(root, "val", "images"))
                            File.Delete list

                        let found = FileScan.require (TinyImageNet.scan folder)

                        Expect.equal
                            (found.Test |> Array.map (fun f -> Path.GetFileName f.Path, f.Label))
                            [| "val_1.JPEG", 0; "val_3.JPEG", 0; "val_2.JPEG", 1; "val_0.JPEG", 2 |]
                            "test"

                        Expect.stringContains (Array.exactlyOne found.Notes) "val/<wnid>/" "said"))

            testCase "training images beside, not in, images/" (fun () ->
                inFolder (fun folder ->
                    Layouts.tinyImageNet folder
                    let before = (TinyImageNet.scan folder).Train.Length

                    for images in
                        Directory.GetDirectories(
                            Path.Combine(folder, "tiny-imagenet-200", "train"),
                            "images",
                            SearchOption.AllDirectories
                        ) do
                        for file in Directory.GetFiles images do
                            File.Move(
                                file,
                                Path.Combine(Path.GetDirectoryName images, Path.GetFileName file)
                            )

                        Directory.Delete images

                    let found = FileScan.require (TinyImageNet.scan folder)
                    Expect.equal found.Train.Length before "training"))

            testCase "lists with byte order marks" (fun () ->
                inFolder (fun folder ->
                    Layouts.tinyImageNet folder
                    let before = TinyImageNet.scan folder

                    for list in [ "wnids.txt"; "words.txt"; "val/val_annotations.txt" ] do
                        marked (Path.Combine(folder, "tiny-imagenet-200", list))

                    let found = TinyImageNet.scan folder
                    Expect.equal found before "the same"))
        ]
