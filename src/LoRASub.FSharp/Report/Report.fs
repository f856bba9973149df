namespace LoRASub.Report

open System
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Data
open LoRASub.Settings
open LoRASub.Run

/// A file that was written, and its size.
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

        WholeFile.makeFolder path

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

    /// <summary>Why the groups' numbers cannot be compared: they differ in data, tasks or backbone, or one stopped
    /// early.</summary>
    /// <param name="groups">What <c>RunData.loadAll</c> read.</param>
    /// <returns>None where they can be compared.</returns>
    let warning (groups: RunGroup[]) : string option = Protocol.warning groups

    /// <summary>Writes the page of one group of runs or, side by side, several.</summary>
    /// <param name="path">A new file, or an older page, which is replaced. Its folder must exist.</param>
    /// <param name="groups">What <c>RunData.loadAll</c> read: at least one.</param>
    /// <returns>The page's path and size.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is of another kind, belongs to a run, or cannot be
    /// written.</exception>
    let writeHtml (path: string) (groups: RunGroup[]) : WrittenFile =
        if String.IsNullOrWhiteSpace path then
            Errors.reject "report" "must have a name" "an empty one" ""

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

    /// <summary>Writes report.md and tables.tex, the tables for papers, over older ones.</summary>
    /// <param name="path">Their folder, which is made where it is missing.</param>
    /// <param name="groups">What <c>RunData.loadAll</c> read: at least one.</param>
    /// <returns>The two files.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder or a file cannot be written.</exception>
    let writeTables (path: string) (groups: RunGroup[]) : WrittenFile[] =
        folder path

        [|
            writeText (Path.Combine(path, "report.md")) (Tables.markdown groups)
            writeText (Path.Combine(path, "tables.tex")) (Tables.latex groups)
        |]

    /// Rejects a folder for figures among the images that a run reads: they would be images of later runs.
    let internal requireOutsideData (path: string) (groups: RunGroup[]) : unit =
        for group in groups do
            for run in group.Runs do
                match run.Settings with
                | Some settings when Datasets.takesEveryImage settings.Data ->
                    settings.DataPath
                    |> Option.iter (fun images -> ImageSet.requireOutside images path)
                | _ -> ()

    /// <summary>Writes each figure as SVG, and as PNG where Skia and a font are installed, over older ones.</summary>
    /// <param name="path">Their folder, which is made where it is missing.</param>
    /// <param name="groups">What <c>RunData.loadAll</c> read: at least one.</param>
    /// <returns>The files, and why there is no PNG, which is not an error.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder is among the images that a run reads, or it or a file cannot be
    /// written.</exception>
    let writeFigures (path: string) (groups: RunGroup[]) : struct (WrittenFile[] * string option) =
        requireOutsideData path groups
        folder path
        let figures = Figures.all groups
        let file (figure: Figure) ending = Path.Combine(path, figure.Id + ending)

        let svg (figure: Figure) =
            writeText (file figure ".svg") (Drawing.svg figure)

        let png (figure: Figure) =
            let path = file figure ".png"
            WholeFile.write path (fun stream -> Drawing.png stream figure)
            written path

        let svgs = Array.map svg figures

        match Drawing.missingForPng () with
        | Some missing -> struct (svgs, Some $"no PNG files: {missing}")
        | None -> struct (Array.append svgs (Array.map png figures), None)
