module LoRASub.Tests.ProtocolTests

open LoRASub.Settings
open LoRASub.Report
open Expecto
open LoRASub.Tests.SampleRuns

let private warning (a: Sample) (b: Sample) =
    FiguresTests.groupsOf [ "a", a; "b", b ] Report.warning

let private differIn name words (other: Sample) =
    testCase $"runs that differ in {name} are compared under a warning" (fun () ->
        match warning small other with
        | None -> failtest "no warning"
        | Some text ->
            Expect.stringContains text "not comparable" "warning"

            for word in words do
                Expect.stringContains text word "what differs")

[<Tests>]
let tests =
    testList
        "Protocol"
        [
            testCase "runs of one protocol need no warning, whatever else differs" (fun () ->
                let other =
                    { small with
                        Decay = 0.1
                        Seed = 5L
                        Epochs = 1
                        Settings =
                            [
                                "lr", "1"
                                "projection", "false"
                                "backbone", "other/folder/vit_micro.safetensors"
                            ]
                    }

                Expect.isNone (warning small other) "comparable"
                Expect.isNone (FiguresTests.groupsOf [ "a", small ] Report.warning) "one run")

            differIn
                "data"
                [ "data (fashion-mnist; cifar100)" ]
                { small with
                    Settings = [ "data", "cifar100" ]
                }

            differIn
                "the number of tasks"
                [ "tasks (3 tasks of 4 classes; 2 tasks of 4 classes)" ]
                { small with Tasks = 2; Learned = 2 }

            differIn
                "the size of tasks"
                [ "3 tasks of 4 classes; 3 tasks of 2 classes"; "test images (1200; 600)" ]
                { small with ClassesPerTask = 2 }

            differIn
                "the backbone"
                [ "backbone (vit_micro; vit_base)" ]
                { small with
                    Settings = [ "backbone", "somewhere/vit_base.safetensors" ]
                }

            differIn
                "the folder of images"
                [ "data (fashion-mnist; folder birds)" ]
                { small with
                    Settings = [ "data", "folder"; "data-path", "photos/birds/" ]
                }

            testCase "a run that stopped early is named as such" (fun () ->
                let stopped =
                    { small with
                        Tasks = 5
                        Settings = [ "stop-after", "3" ]
                    }

                let text = (warning { small with Tasks = 5; Learned = 5 } stopped).Value
                Expect.stringContains text "tasks learned (5 tasks; 3 of 5 tasks (stopped early))" "stopped")

            testCase "the page, the Markdown, the LaTeX and the command all warn" (fun () ->
                FiguresTests.groupsOf [ "a", small; "b", { small with ClassesPerTask = 2 } ] (fun groups ->
                    Expect.stringContains (Page.html groups) "different protocols" "page"
                    Expect.stringContains (Tables.markdown groups) "**Warning:**" "Markdown"
                    Expect.stringContains (Tables.latex groups) "% Warning: The runs follow" "LaTeX"))
        ]
