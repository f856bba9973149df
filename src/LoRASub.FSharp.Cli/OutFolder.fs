/// The folder that results go to.
module LoRASub.Cli.OutFolder

open System
open System.IO
open LoRASub

/// Rejects a path that is or lies in a file, a folder that cannot be written, and one that holds a finished run.
/// Makes nothing.
let check (folder: string) : unit =
    let rec existing (path: string) =
        if File.Exists path then
            Errors.reject $"out {folder}" "must be a folder" $"a file, {path}" "choose another --out"
        elif Directory.Exists path then
            path
        else
            existing (Path.GetDirectoryName path)

    if String.IsNullOrWhiteSpace folder then
        Errors.reject "out" "must be a folder" "an empty name" ""

    if File.Exists(Path.Combine(folder, "summary.json")) then
        Errors.reject
            $"out {folder}"
            "must not hold a finished run"
            "its summary.json"
            "choose another --out or remove it"

    try
        let probe =
            Path.Combine(existing (Path.GetFullPath folder), $".{Guid.NewGuid():N}.tmp")

        use _ = File.Create(probe, 1, FileOptions.DeleteOnClose)
        ()
    with
    | :? IOException
    | :? UnauthorizedAccessException as e ->
        Errors.reject $"out {folder}" "must be a folder that can be written" e.Message ""
