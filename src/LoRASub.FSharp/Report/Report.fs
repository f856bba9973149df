namespace LoRASub.Reports

open System
open System.IO
open LoRASub

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

        writeText path (Page.html groups)

    /// Writes report.md and tables.tex into a folder, over older ones; makes the folder.
    let writeTables (path: string) (groups: RunGroup[]) : WrittenFile[] =
        folder path

        [|
            writeText (Path.Combine(path, "report.md")) (Tables.markdown groups)
            writeText (Path.Combine(path, "tables.tex")) (Tables.latex groups)
        |]

    /// Writes each figure as SVG, and as PNG where Skia and a font are installed, into a folder; makes the folder. The
    /// second part says why there is no PNG, which is not an error.
    let writeFigures (path: string) (groups: RunGroup[]) : struct (WrittenFile[] * string option) =
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
