module LoRASub.Tests.ReportTests

open System
open System.IO
open LoRASub.Methods
open LoRASub.Settings
open Expecto
open LoRASub.Tests.SampleRuns

/// Runs `lorasub` in this process: exit code, output, complaints.
let private lorasub (arguments: string list) =
    let ended = CliTests.inside arguments
    ended.Code, ended.Out, ended.Error

let private inRun (test: string -> string -> unit) () =
    Probe.inFolder (fun folder ->
        let run = Path.Combine(folder, "run")
        write run small
        test folder run)

[<Tests>]
let tests =
    testList
        "Report"
        [
            testCase
                "the command writes the page, tables and figures and says so"
                (inRun (fun folder run ->
                    let at name = Path.Combine(folder, name)

                    let code, out, error =
                        lorasub
                            [
                                "report"
                                run
                                "--out"
                                at "r.html"
                                "--tables"
                                at "t"
                                "--figures"
                                at "new/f"
                            ]

                    Expect.equal (code, error) (0, "") "done"

                    for word in [ "r.html ("; "MB)"; "report.md"; "tables.tex"; "new/f (" ] do
                        Expect.stringContains out word "what was written"

                    Expect.stringStarts (File.ReadAllText(at "r.html")) "<!DOCTYPE html>" "page"
                    Expect.stringStarts (File.ReadAllText(at "t/report.md")) "# Run run" "Markdown"
                    Expect.stringContains (File.ReadAllText(at "t/tables.tex")) @"\toprule" "LaTeX"

                    let named ending =
                        Directory.GetFiles(at "new/f", "*" + ending)
                        |> Array.map Path.GetFileNameWithoutExtension
                        |> Array.sort

                    Expect.equal (named ".svg").Length 17 "figures"

                    // without Skia or a font the command says so
                    if not (out.Contains "no PNG files") then
                        Expect.equal (named ".png") (named ".svg") "a picture of each"

                    // over an older one
                    let again, _, _ = lorasub [ "report"; run; "--out"; at "r.html" ]
                    Expect.equal again 0 "again"))

            testCase "the run's folder is left as it is"
            <| inRun (fun folder run ->
                let listing () =
                    [
                        for f in Directory.GetFiles run |> Array.sort -> f, File.GetLastWriteTimeUtc f
                    ]

                let before = listing ()
                lorasub [ "report"; run; "--out"; Path.Combine(folder, "r.html") ] |> ignore
                Expect.equal (listing ()) before "files")

            testCase "an unfinished run is reported with a note" (fun () ->
                Probe.inFolder (fun folder ->
                    let run = Path.Combine(folder, "run")
                    write run { small with Tasks = 9; Learned = 2 }

                    let code, out, _ =
                        lorasub [ "report"; run; "--out"; Path.Combine(folder, "r.html") ]

                    Expect.equal code 0 "done"
                    Expect.stringContains out "not finished: 2 of 9 tasks" "note"))

            testCase "runs of different protocols are compared with a warning" (fun () ->
                Probe.inFolder (fun folder ->
                    let at name = Path.Combine(folder, name)
                    write (at "a") small
                    write (at "b") { small with ClassesPerTask = 2 }
                    let code, out, _ = lorasub [ "report"; at "a"; at "b"; "--out"; at "r.html" ]
                    Expect.equal code 0 "done"

                    Expect.stringContains
                        out
                        "warning            The runs follow different protocols"
                        "warning"))

            testCase "a report needs no LibTorch" (fun () ->
                Probe.inFolder (fun folder ->
                    let run = Path.Combine(folder, "run")
                    write run small

                    let info =
                        Diagnostics.ProcessStartInfo(
                            Probe.dotnet,
                            [
                                Path.Combine(AppContext.BaseDirectory, "lorasub.dll")
                                "report"
                                run
                                "--out"
                                Path.Combine(folder, "r.html")
                            ]
                        )

                    info.RedirectStandardOutput <- true
                    info.Environment["LORASUB_LIBTORCH"] <- "/no/such/folder"
                    use child = Diagnostics.Process.Start info
                    child.StandardOutput.ReadToEnd() |> ignore
                    child.WaitForExit()
                    Expect.equal child.ExitCode 0 "exit code"))

            testCase "wrong arguments are refused" (fun () ->
                Probe.inFolder (fun folder ->
                    let run = Path.Combine(folder, "run")
                    write run small

                    for arguments, words in
                        [
                            [], [ "needs the folder of a run" ]
                            [ "--out"; "x.html" ], [ "needs the folder of a run" ]
                            [ folder ], [ folder; "neither" ]
                            [ run; "--output"; "x" ], [ "did you mean --out?" ]
                            [ run; "--out"; folder ], [ "must be a file"; "add a file name" ]
                            [ run; "--out"; folder + "/no/r.html" ], [ "make it first" ]
                            [ run; "--out"; folder + "/r.html"; "--tables"; run + "/summary.json" ],
                            [ "summary.json" ]
                        ] do
                        let code, _, error = lorasub ("report" :: arguments)
                        Expect.equal code 2 $"{arguments}"

                        for word in words do
                            Expect.stringContains error word $"{arguments}"))

            testCase "a page replaces an older page and nothing else"
            <| inRun (fun folder run ->
                let other = Path.Combine(folder, "weights.safetensors")
                File.WriteAllText(other, "not a page")
                let code, _, error = lorasub [ "report"; run; "--out"; other ]
                Expect.equal code 2 "refused"
                Expect.stringContains error "a new file or an older page" "message"
                Expect.equal (File.ReadAllText other) "not a page" "kept")

            testCase "a page needs a name"
            <| inRun (fun _ run ->
                let code, _, error = lorasub [ "report"; run; "--out"; "" ]
                Expect.equal code 2 "refused"
                Expect.stringContains error "must have a name" "message")

            testCase "figures are not written among the images of a run" (fun () ->
                Probe.inFolder (fun folder ->
                    let data, run = Path.Combine(folder, "data"), Path.Combine(folder, "run")
                    Directory.CreateDirectory(Path.Combine(data, "cat")) |> ignore

                    write
                        run
                        { small with
                            Settings = [ "data", "folder"; "data-path", data ]
                        }

                    let page = Path.Combine(folder, "r.html")
                    let figures = Path.Combine(data, "figures")
                    let code, _, error = lorasub [ "report"; run; "--out"; page; "--figures"; figures ]
                    Expect.equal code 2 "refused"
                    Expect.stringContains error "outside the folder that images are read from" "message"
                    Expect.isFalse (File.Exists page || Directory.Exists figures) "nothing is written"))
        ]
