module LoRASub.Tests.DataCommandTests

open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Run
open Expecto
open LoRASub.Tests.Probe

let private run (arguments: string list) =
    let ended = CliTests.inside arguments
    ended.Code, CliTests.unwrapped ended.Out, ended.Error

[<Tests>]
let tests =
    testList
        "DataCommand"
        [
            testCase "list names every data set, where it is published, and its files" (fun () ->
                let code, out, error = run [ "data"; "list" ]
                Expect.equal (code, error) (0, "") "ended well"

                for known in Datasets.known do
                    for word in [ known.Name; known.Title; known.Published; known.Layout ] do
                        Expect.stringContains out word known.Name)

            testCase "check ends with 0 where all is well, with 2 where not" (fun () ->
                inFolder (fun folder ->
                    Layouts.cub folder
                    let code, out, error = run [ "data"; "check"; "cub200"; folder ]
                    Expect.equal (code, error) (0, "") "good"

                    for word in
                        [
                            "2 classes, 4 training and 2 test images"
                            "vision.caltech.edu"
                            "2 of 200 classes, 6 of 11788 images"
                            "No problems found"
                        ] do
                        Expect.stringContains out word "good"

                    let image =
                        Path.Combine(
                            folder,
                            "CUB_200_2011",
                            "images",
                            "002.Laysan_Albatross",
                            "Image_2.jpg"
                        )

                    File.WriteAllText(image, "no image")
                    let code, out, _ = run [ "data"; "check"; "cub200"; folder ]
                    Expect.equal code 2 "broken"

                    for word in [ "1 of 6 image files"; "Image_2.jpg: text"; "2 classes" ] do
                        Expect.stringContains out word "broken"

                    File.Delete image
                    let code, out, _ = run [ "data"; "check"; "cub200"; folder ]
                    Expect.equal code 2 "absent"
                    Expect.stringContains out "1 of 6 absent" "absent"
                    Expect.isFalse (out.Contains "No problems") "absent"))

            testCase "notes of check are those of a dry run and of a run" (fun () ->
                inFolder (fun folder ->
                    let data, backbone =
                        Path.Combine(folder, "data"), Path.Combine(folder, "vit.safetensors")

                    Tiny.writeBackbone backbone 8 2 7

                    for split in [ "Train"; "Test" ] do
                        for label, name in List.indexed [ "a"; "b" ] do
                            for i in 0..3 do
                                Layouts.image data $"{split}/{name}/{i}.png" label (split = "Train")

                    File.WriteAllText(Path.Combine(data, "Train", "a", "x.tga"), "")

                    let notes =
                        [
                            "training images are read from Train/, test images from Test/"
                            "left out by their extensions: .tga"
                        ]

                    let out = Path.Combine(folder, "run")

                    let arguments =
                        [
                            "run"
                            "--data"
                            "folder"
                            "--data-path"
                            data
                            "--tasks"
                            "2"
                            "--epochs"
                            "1"
                        ]
                        @ [ "--rank"; "2"; "--backbone"; backbone ]

                    for command in
                        [
                            [ "data"; "check"; "folder"; data ]
                            arguments @ [ "--dry-run" ]
                            arguments @ [ "--out"; out ]
                        ] do
                        let code, text, error = run command
                        Expect.equal (code, error) (0, "") (String.concat " " command)

                        for note in notes do
                            Expect.stringContains text note (String.concat " " command)

                    let log = File.ReadAllText(RunFiles.metrics out)

                    for note in notes do
                        Expect.stringContains log note "the run's record"

                    Directory.CreateDirectory(Path.Combine(data, "Train", "c")) |> ignore

                    for command in
                        [ [ "data"; "check"; "folder"; data ]; arguments @ [ "--dry-run" ]; arguments ] do
                        let code, text, error = run command
                        Expect.equal code 2 "an empty class"
                        Expect.stringContains (text + error) "at least one image" "an empty class"))

            testCase "what is wrong with the words is told" (fun () ->
                for arguments, words in
                    [
                        [ "data"; "check" ], [ "needs a data set and a folder" ]
                        [ "data"; "check"; "cub200" ], [ "needs a data set and a folder"; "cub200" ]
                        [ "data"; "check"; "cub-200"; "." ], [ "data set"; "did you mean cub200" ]
                        [ "data"; "chek" ], [ "chek"; "did you mean check" ]
                    ] do
                    let code, _, error = run arguments
                    Expect.equal code 2 (String.concat " " arguments)

                    for word in words do
                        Expect.stringContains error word (String.concat " " arguments)

                let code, out, _ = run [ "data" ]
                Expect.equal code 0 "help"
                Expect.stringContains out "check" "help")

            testCase "hostile names reach no terminal, log or page" (fun () ->
                inFolder (fun folder ->
                    let data, backbone, out =
                        Path.Combine(folder, "data"),
                        Path.Combine(folder, "vit.safetensors"),
                        Path.Combine(folder, "out")

                    Tiny.writeBackbone backbone 8 2 7

                    let names =
                        [
                            "\u001B[31mred"
                            "\u001B]0;title\u0007"
                            "\u009B31m"
                            "cr\rlf\n"
                            "rtl\u202Egnp"
                            "zero\u200Bwidth"
                            "[red]markup[-]"
                        ]

                    for label, name in List.indexed names do
                        for i in 0..2 do
                            Layouts.image data $"{name}/{i}.png" label true

                    let arguments =
                        [ "run"; "--data"; "folder"; "--data-path"; data; "--backbone"; backbone ]
                        @ [ "--tasks"; "2"; "--epochs"; "1"; "--rank"; "2"; "--overwrite"; "--out"; out ]

                    let isClean (where: string) (text: string) =
                        for part in text.Split '\n' do
                            Expect.equal (Text.visible part) part where

                    let code, said, error = run arguments
                    Expect.equal (code, error) (0, "") "learned"
                    isClean "plain lines" said
                    Expect.stringContains said @"\u001B[31mred" "shown as an escape"

                    let drawn = CliTests.insideOn (CliTests.terminalOf 24) arguments
                    Expect.equal (drawn.Code, drawn.Error) (0, "") "on a terminal"

                    for raw in [ "\u001B[31mred"; "\u0007"; "\u009B"; "\r\n"; "\u202E"; "\u200B" ] do
                        Expect.isFalse (drawn.Out.Contains raw) (Text.visible raw)

                    Expect.stringContains drawn.Out "[red]" "no markup"
                    isClean "metrics.jsonl" (File.ReadAllText(Path.Combine(out, "metrics.jsonl")))

                    let tables = Path.Combine(folder, "tables")
                    let page = Path.Combine(folder, "page.html")
                    let code, said, error = run [ "report"; out; "--out"; page; "--tables"; tables ]
                    Expect.equal (code, error) (0, "") "report"
                    isClean "report's lines" said

                    for table in Directory.GetFiles tables do
                        isClean table (File.ReadAllText table)

                    // the script library in the page holds some of them itself
                    let html = File.ReadAllText page

                    for raw in [ "\u001B[31mred"; "\u009B31m"; "rtl\u202E"; "zero\u200B" ] do
                        Expect.isFalse (html.Contains raw) (Text.visible raw)

                    File.WriteAllText(Path.Combine(data, names[0], "broken.png"), "")
                    let code, said, _ = run [ "data"; "check"; "folder"; data ]
                    Expect.equal code 2 "broken"
                    isClean "data check" said
                    let code, _, error = run arguments
                    Expect.equal code 2 "refused"
                    isClean "an error" error
                    Expect.stringContains error @"\u001B[31mred/broken.png" "the file"))

            testCase "a run on image files learns, and tells what it left out" (fun () ->
                inFolder (fun folder ->
                    let data, backbone =
                        Path.Combine(folder, "data"), Path.Combine(folder, "vit.safetensors")

                    Tiny.writeBackbone backbone 8 2 7
                    Layouts.domainNet data

                    let arguments extra =
                        [
                            "run"
                            "--data"
                            "domainnet-domains"
                            "--data-path"
                            data
                            "--backbone"
                            backbone
                        ]
                        @ [ "--tasks"; "2"; "--epochs"; "1"; "--rank"; "2"; "--augment"; "crop-flip" ]
                        @ [ "--test-resize"; "10"; "--crop-scale"; "0.5,1"; "--class-order"; "natural" ]
                        @ extra

                    let code, out, error = run (arguments [])
                    Expect.equal (code, error) (0, "") "all is well"
                    Expect.stringContains out "18 training and 12 test images" "header"

                    let image = Path.Combine(data, "sketch", "airplane", "sketch_train_2.jpg")
                    File.WriteAllText(image, "no image")
                    let code, _, error = run (arguments [])
                    Expect.equal code 2 "broken"

                    for word in [ "1 broken of 30"; "sketch_train_2.jpg"; "skip-broken" ] do
                        Expect.stringContains error word "broken"

                    let code, out, error = run (arguments [ "--skip-broken" ])
                    Expect.equal (code, error) (0, "") "left out"

                    for word in [ "17 training"; "1 of 30 image files"; "sketch_train_2.jpg" ] do
                        Expect.stringContains out word "left out"))
        ]
