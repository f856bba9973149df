namespace LoRASub.Reports

open System
open System.Diagnostics
open System.IO
open LoRASub

/// A file that was written.
type WrittenFile = { Path: string; Bytes: int64 }

/// Reports on runs: one HTML page, figures and tables for papers. Reads run folders alone; needs no LibTorch.
[<RequireQualifiedAccess>]
module Report =

    let private written (path: string) : WrittenFile =
        {
            Path = path
            Bytes = FileInfo(path).Length
        }

    let private writeText (path: string) (text: string) =
        WholeFile.writeText path text
        written path

    /// Makes the folder where it is missing. Rejects one that cannot be made.
    let private folder (path: string) =
        if String.IsNullOrWhiteSpace path then
            Errors.reject "output folder" "must have a name" "an empty one" ""

        try
            Directory.CreateDirectory path |> ignore
        with
        | :? IOException
        | :? UnauthorizedAccessException as e ->
            Errors.reject path "must be a folder that can be written" e.Message ""

    // An image, weights or a configuration under the page's name would be lost.
    let private isPageOrAbsent (path: string) : bool =
        let file = FileInfo path

        if not file.Exists || file.Length = 0L then
            true
        else
            try
                use reader = file.OpenText()
                let start = Array.zeroCreate 15
                reader.ReadBlock(start, 0, start.Length) |> ignore
                String(start).Equals("<!doctype html>", StringComparison.OrdinalIgnoreCase)
            with
            | :? IOException
            | :? UnauthorizedAccessException as e -> Errors.reject path "must be readable" e.Message ""

    /// Writes the page of one or several studies, over an older one. Rejects a file of another kind, and one that cannot
    /// be written.
    let writeHtml (path: string) (studies: Study[]) : WrittenFile =
        let folder = Path.GetDirectoryName(Path.GetFullPath path)

        if
            RunFiles.present folder
            |> Array.exists (fun file -> Path.GetFileName file = Path.GetFileName path)
        then
            Errors.reject path "must not be a file of a run" (Path.GetFileName path) "name another file"

        if not (isPageOrAbsent path) then
            Errors.reject
                path
                "must be a new file or an older page"
                "a file of another kind"
                "name another file"

        writeText path (PlotlyHtml.page studies)

    /// Writes report.md and tables.tex into a folder, over older ones; makes the folder.
    let writeTables (path: string) (studies: Study[]) : WrittenFile[] =
        folder path

        [|
            writeText (Path.Combine(path, "report.md")) (Tables.markdown studies)
            writeText (Path.Combine(path, "tables.tex")) (Tables.latex studies)
        |]

    // Chromium under the names that distributions give it
    let private browser () =
        let folders =
            match Environment.GetEnvironmentVariable "PATH" with
            | null -> [||]
            | path -> path.Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries)

        [ "chromium"; "chromium-browser"; "google-chrome" ]
        |> Seq.collect (fun name -> folders |> Seq.map (fun folder -> Path.Combine(folder, name)))
        |> Seq.tryFind File.Exists

    let private browserLimit = TimeSpan.FromSeconds 30.0

    /// The browser's picture of an SVG file at twice its size; why not, where it fails.
    let private photograph
        (browser: string)
        (svg: string)
        (width: float, height: float)
        : Result<WrittenFile, string> =
        let png = Path.ChangeExtension(svg, ".png")
        let scratch = Directory.CreateTempSubdirectory "lorasub-report-"

        try
            try
                let shot = Path.Combine(scratch.FullName, "figure.png")
                let profile = Path.Combine(scratch.FullName, "profile")

                let start =
                    ProcessStartInfo(browser, RedirectStandardOutput = true, RedirectStandardError = true)

                for argument in
                    [
                        "--headless"
                        "--no-sandbox"
                        "--disable-gpu"
                        "--no-first-run"
                        "--disable-background-networking"
                        "--disable-component-update"
                        "--disable-sync"
                        "--hide-scrollbars"
                        "--force-device-scale-factor=2"
                        $"--user-data-dir={profile}"
                        $"--window-size={int (ceil width)},{int (ceil height)}"
                        $"--screenshot={shot}"
                        Uri(Path.GetFullPath svg).AbsoluteUri
                    ] do
                    start.ArgumentList.Add argument

                use chromium = Process.Start start
                // a full pipe would stop the browser
                chromium.OutputDataReceived.Add ignore
                chromium.ErrorDataReceived.Add ignore
                chromium.BeginOutputReadLine()
                chromium.BeginErrorReadLine()

                if not (chromium.WaitForExit browserLimit) then
                    chromium.Kill(entireProcessTree = true)
                    Error $"gave no picture within {browserLimit.TotalSeconds} s"
                elif not (File.Exists shot) then
                    Error $"ended with exit code {chromium.ExitCode} and no picture"
                else
                    let bytes = File.ReadAllBytes shot
                    WholeFile.write png _.Write(bytes, 0, bytes.Length)
                    Ok(written png)
            with
            | :? ComponentModel.Win32Exception
            | :? IOException
            | :? UnauthorizedAccessException
            | :? InvalidOperationException as e -> Error e.Message
        finally
            try
                scratch.Delete true
            with
            // the browser's last processes may still write there
            | :? IOException
            | :? UnauthorizedAccessException -> ()

    /// Rejects a folder for figures among the images that a run reads: they would be images of later runs.
    let requireOutsideData (path: string) (studies: Study[]) : unit =
        for study in studies do
            for run in study.Runs do
                let settings = Map.ofArray run.Settings

                match settings.TryFind "data", settings.TryFind "data-path" with
                | Some data, Some images when Datasets.takesEveryImage data ->
                    ImageSet.requireOutside images path
                | _ -> ()

    /// Writes each figure as SVG, and as PNG where a Chromium is installed, into a folder; makes the folder. The second
    /// part notes why there is no PNG, which is no error. Rejects a folder among the images that a run reads.
    let writeFigures (path: string) (studies: Study[]) : struct (WrittenFile[] * string option) =
        requireOutsideData path studies
        folder path

        let vectors =
            [|
                for figure in Figures.all studies ->
                    figure, writeText (Path.Combine(path, figure.Id + ".svg")) (Svg.render figure)
            |]

        let svgs = vectors |> Array.map snd

        match browser () with
        | None -> struct (svgs, Some "no PNG files: no chromium, chromium-browser or google-chrome on PATH")
        | Some browser ->
            // the first failure stands for all: a browser that does not start would cost its limit each time
            let rec photographs (left: (Figure * WrittenFile) list) (taken: WrittenFile list) =
                match left with
                | [] -> List.rev taken, None
                | (figure, svg) :: rest ->
                    match photograph browser svg.Path (Svg.size figure) with
                    | Ok png -> photographs rest (png :: taken)
                    | Error why ->
                        List.rev taken, Some $"no PNG of {figure.Id} and later figures: {browser} {why}"

            let pngs, note = photographs (List.ofArray vectors) []
            struct (Array.append svgs (Array.ofList pngs), note)
