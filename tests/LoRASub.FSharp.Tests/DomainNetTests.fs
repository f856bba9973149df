module LoRASub.Tests.DomainNetTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private badInputs: BadInput list =
    let row name file (change: string[] -> string[]) words : BadInput =
        name,
        words,
        fun folder ->
            Layouts.domainNet folder
            let path = Path.Combine(folder, file)
            File.WriteAllLines(path, change (File.ReadAllLines path))
            DomainNet.scan folder |> FileScan.require |> ignore

    let replaced (a: string) (b: string) =
        Array.map (fun (line: string) -> line.Replace(a, b))

    [
        row
            "a split list that names absent files"
            "sketch_train.txt"
            (replaced "airplane/" "airplane/x")
            [ "sketch_train.txt"; "3 of 9 absent"; "sketch_train_1.jpg" ]
        row
            "a label that stands for two classes"
            "sketch_test.txt"
            (replaced "airplane/sketch_test_1.jpg 1" "airplane/sketch_test_1.jpg 2")
            [ "sketch_test.txt"; "the same class in every list"; "airplane"; "alarm_clock" ]
        row
            "no label"
            "sketch_train.txt"
            (fun _ -> [| "picture.jpg" |])
            [ "sketch_train.txt"; "path and a label"; "line 1" ]
        row "a label in words" "sketch_train.txt" (replaced ".jpg 1" ".jpg one") [ "whole numbers"; "'one'" ]
        row "a huge label" "sketch_train.txt" (replaced ".jpg 1" ".jpg 2000000000") [ "0 to 1000000" ]
        row "a negative label" "sketch_train.txt" (replaced ".jpg 1" ".jpg -1") [ "0 to 1000000"; "-1" ]
        row
            "a way out"
            "sketch_train.txt"
            (replaced "sketch/air" "../air")
            [ "sketch_train.txt"; "below its folder" ]
        "a missing test list",
        [ "sketch_test.txt"; "no such file" ],
        fun folder ->
            Layouts.domainNet folder
            File.Delete(Path.Combine(folder, "sketch_test.txt"))
            DomainNet.scan folder |> ignore
        "a gap in the labels",
        [ "0 to 4 without a gap"; "label 2" ],
        fun folder ->
            Layouts.domainNet folder

            for list in Directory.GetFiles(folder, "*.txt") do
                File.WriteAllLines(list, File.ReadAllLines list |> replaced ".jpg 2" ".jpg 4")

            DomainNet.scan folder |> ignore
    ]

[<Tests>]
let tests =
    testList
        "DomainNet"
        [
            refusals badInputs

            testCase "one prototype per class and domain, right when the class is" (fun () ->
                inFolder (fun folder ->
                    Layouts.domainNet folder
                    let data = Datasets.load "domainnet-domains" folder
                    Expect.equal data.Answers [| 0; 1; 2; 0; 1; 2 |] "answers"
                    let stream = TaskStream.create data ClassOrder.Natural 2 None

                    let domains =
                        stream.Tasks
                        |> Array.map (fun task ->
                            task.Classes
                            |> Array.map (fun c -> data.ClassNames[c].Split('/').[0])
                            |> Array.distinct)

                    Expect.equal domains [| [| "clipart" |]; [| "sketch" |] |] "a domain is a task"
                    Expect.equal (TaskStream.answers stream) [| 0; 1; 2; 0; 1; 2 |] "in natural order"

                    let mixed =
                        TaskStream.create data (ClassOrder.Explicit("given", [| 5; 0; 4; 1; 3; 2 |])) 2 None

                    Expect.equal (TaskStream.answers mixed) [| 2; 0; 1; 1; 0; 2 |] "in another order"))

            testCase "byte order marks in the lists, and what macOS leaves beside them" (fun () ->
                inFolder (fun folder ->
                    Layouts.domainNet folder
                    let before = DomainNet.scan folder
                    Directory.GetFiles(folder, "*.txt") |> Array.iter marked
                    write folder "._sketch_train.txt" [| 0uy |]
                    Expect.equal (DomainNet.scan folder) before "the same"))

            testCase "all domains together have each class once" (fun () ->
                inFolder (fun folder ->
                    Layouts.domainNet folder
                    let data = Datasets.load "domainnet" folder
                    Expect.equal data.Answers [| 0; 1; 2 |] "answers"

                    Expect.equal
                        (Array.countBy id data.Train.Labels |> Array.sort)
                        [| 0, 6; 1, 6; 2, 6 |]
                        "both domains"))
        ]
