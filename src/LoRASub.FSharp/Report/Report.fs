namespace LoRASub.Report

open System
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Data
open LoRASub.Settings
open LoRASub.Run

/// A file that was written.
type WrittenFile = { Path: string; Bytes: int64 }

/// Reports on runs: one HTML page, figures and tables for papers. Reads run folders only; does not need LibTorch.
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

    /// Why the groups' numbers cannot be compared: they differ in data, tasks or backbone, or one stopped early. None
    /// where they can.
    let warning (groups: RunGroup[]) : string option = Protocol.warning groups

    /// Writes the page of one or several groups of runs, over an older one. Rejects a file that cannot be written.
    let writeHtml (path: string) (groups: RunGroup[]) : WrittenFile =
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

        writeText path (Page.html groups)

    /// Writes report.md and tables.tex into a folder, over older ones; makes the folder.
    let writeTables (path: string) (groups: RunGroup[]) : WrittenFile[] =
        folder path

        [|
            writeText (Path.Combine(path, "report.md")) (Tables.markdown groups)
            writeText (Path.Combine(path, "tables.tex")) (Tables.latex groups)
        |]

    /// Rejects a folder for figures among the images that a run reads: they would be images of later runs.
    let requireOutsideData (path: string) (groups: RunGroup[]) : unit =
        for group in groups do
            for run in group.Runs do
                let settings = Map.ofArray run.Settings

                match settings.TryFind "data", settings.TryFind "data-path" with
                | Some data, Some images when Datasets.takesEveryImage data ->
                    ImageSet.requireOutside images path
                | _ -> ()

    /// Writes each figure as SVG, and as PNG where Skia and a font are installed, into a folder; makes the folder. The
    /// second part says why there is no PNG, which is not an error. Rejects a folder among the images that a run reads.
    let writeFigures (path: string) (groups: RunGroup[]) : struct (WrittenFile[] * string option) =
        requireOutsideData path groups
        folder path
        let figures = Figures.all groups
        let file (figure: Figure) ending = Path.Combine(path, figure.Id + ending)

        let svgs =
            figures
            |> Array.map (fun figure -> writeText (file figure ".svg") (Drawing.svg figure))

        match Drawing.missingForPng () with
        | Some missing -> struct (svgs, Some $"no PNG files: {missing}")
        | None ->
            let pngs =
                figures
                |> Array.map (fun figure ->
                    let path = file figure ".png"
                    WholeFile.write path (fun stream -> Drawing.png stream figure)
                    written path)

            struct (Array.append svgs pngs, None)
