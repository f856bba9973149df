/// `lorasub report`: shows runs as an HTML page, figures and tables. Does not load LibTorch.
module LoRASub.Cli.ReportCommand

open System.IO
open LoRASub.Report
open LoRASub.Cli.Arguments

let private size (bytes: int64) =
    if bytes < 1000000L then
        $"{(bytes + 999L) / 1000L} kB"
    else
        let megabytes = Layout.fixed' 1 (float bytes / 1e6)

        $"{megabytes} MB"

/// Writes the report and prints the files written.
let run (out: TextWriter) (request: ReportRequest) : int =
    let groups = RunData.loadAll (Array.ofList request.Folders)

    request.Figures
    |> Option.iter (fun folder -> Report.requireOutsideData folder groups)

    let say (what: string) (file: WrittenFile) =
        out.WriteLine $"{what, -18} {file.Path} ({size file.Bytes})"

    // one line for all files
    let sayAll (what: string) folder (files: WrittenFile[]) =
        let total = files |> Array.sumBy _.Bytes
        out.WriteLine $"{what, -18} {folder} ({files.Length} files, {size total})"

    say "report" (Report.writeHtml request.Page groups)

    match request.Tables with
    | Some folder -> Report.writeTables folder groups |> Array.iter (say "tables")
    | None -> ()

    match request.Figures with
    | Some folder ->
        let struct (files, note) = Report.writeFigures folder groups
        sayAll "figures" folder files
        note |> Option.iter (fun note -> out.WriteLine $"note               {note}")
    | None -> ()

    Report.warning groups
    |> Option.iter (fun text -> out.WriteLine $"warning            {text}")

    for group in groups do
        for run in group.Runs do
            if not run.Finished then
                out.WriteLine
                    $"""note               {run.Folder} is not finished: {run.Matrix.Length} of {run.Tasks} tasks"""

    out.Flush()
    0
