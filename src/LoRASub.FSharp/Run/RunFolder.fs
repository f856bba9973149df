namespace LoRASub.Run

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Settings

/// The folder of one run: settings.json before the first batch, a checkpoint and metrics.jsonl during the run, then
/// learner and results and, last of all, summary.json. Each is written whole.
[<RequireQualifiedAccess>]
module RunFolder =

    /// <summary>Whether a folder holds a run, finished or not.</summary>
    /// <param name="folder">May be absent.</param>
    /// <returns>Whether it has saved settings.</returns>
    let holdsRun (folder: string) = File.Exists(RunFiles.settings folder)

    /// <summary>Whether a folder holds a finished run.</summary>
    /// <param name="folder">May be absent.</param>
    /// <returns>Whether it has a summary.</returns>
    let isFinished (folder: string) = File.Exists(RunFiles.summary folder)

    let private refuseLocked (folder: string) (e: exn) =
        if File.Exists folder then
            Errors.reject folder "must be a folder" "a file" "choose another name"

        Errors.reject
            folder
            "must be writable"
            e.Message
            "ask its owner to change its permissions, or choose another folder"

    let private writable (folder: string) (work: unit -> 'T) : 'T =
        try
            work ()
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> refuseLocked folder e

    let private refuse (folder: string) (what: string) =
        Errors.reject
            folder
            "must not hold a run"
            what
            "choose another folder, resume the run with --resume DIR, or replace it with --overwrite"

    // settings.json is a common name.
    let private isOurs (folder: string) =
        File.Exists(RunFiles.lock' folder)
        || (try
                let path = RunFiles.settings folder
                Json.read "the settings of a run" path (Settings.ofJson path) |> ignore
                true
            with :? InputException ->
                false)

    // Files that a run writes before its settings. Without settings, they are from a run that was killed at once.
    let private begun (folder: string) =
        if File.Exists(RunFiles.lock' folder) then
            [ RunFiles.seeds folder; RunFiles.sources folder ]
        else
            []

    /// Rejects a folder that holds files with names that a run writes, but not written by a run.
    let internal checkNames (folder: string) =
        if not (holdsRun folder && isOurs folder) then
            match RunFiles.present folder |> Array.except (begun folder) with
            | [||] -> ()
            | others ->
                Errors.reject
                    folder
                    "must not hold files that a run would replace"
                    (Path.GetFileName others[0])
                    "move them, or choose another folder"

    /// Rejects a folder that is a file or below one, cannot be written, holds a run or files with names that a run
    /// writes, and the root of the file system. Creates no folder: another process may be about to use it.
    let internal check (folder: string) =
        if String.IsNullOrWhiteSpace folder then
            Errors.reject "output folder" "must have a name" "an empty one" ""

        if isFinished folder then
            refuse folder "a finished one"

        if holdsRun folder then
            refuse folder "one that can be resumed"

        checkNames folder

        let full = Path.GetFullPath folder

        if isNull (Path.GetDirectoryName full) then
            Errors.reject folder "must be a folder of its own" "the root of the file system" "add a name"

        // the folder itself, or the one in which it would be made
        let rec nearest (path: string) =
            if Directory.Exists path then
                path
            elif File.Exists path then
                Errors.reject folder "must be a folder" $"a file, {path}" "choose another output folder"
            else
                nearest (Path.GetDirectoryName path)

        writable folder (fun () ->
            try
                // finds a name that is too long
                File.GetAttributes full |> ignore
            with
            | :? FileNotFoundException
            | :? DirectoryNotFoundException -> ()

            WholeFile.probe folder (nearest full))

    /// Makes a folder for a run. Rejects one that cannot be made.
    let internal make (folder: string) =
        writable folder (fun () -> Directory.CreateDirectory folder |> ignore)

    /// Rejects a folder that holds a finished run.
    let internal refuseFinished (folder: string) =
        if isFinished folder then
            refuse folder "a finished one"

    /// <summary>Claims a folder until it is disposed or this process ends, however it ends: the lock is the system's
    /// on an open file, not the file itself.</summary>
    /// <param name="folder">Made where it is absent.</param>
    /// <returns>Releases the folder when disposed.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Another process holds the folder, or it cannot be
    /// written.</exception>
    let hold (folder: string) : IDisposable =
        make folder

        try
            // exclusive: the system refuses a second handle
            new FileStream(RunFiles.lock' folder, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None)
        with
        | :? IOException as e when WholeFile.isLocked e ->
            Errors.reject folder "must not be in use" "another process runs in it" "wait for it, or end it"
        | :? IOException
        | :? UnauthorizedAccessException as e -> refuseLocked folder e

    /// Removes what a run has left in a folder, and nothing else: to be called while the folder is held. Killed at any
    /// moment, it leaves a run that can be resumed or replaced.
    let internal clear (folder: string) =
        writable folder (fun () ->
            // first, so that a run without all of its files never looks finished
            File.Delete(RunFiles.summary folder)
            Checkpoint.delete folder
            // last: without settings the other files would not count as a run's
            let last = [ RunFiles.seeds folder; RunFiles.settings folder ]
            RunFiles.present folder |> Array.except last |> Array.iter File.Delete
            List.iter File.Delete last)

    /// <summary>The settings of a saved run, finished or not.</summary>
    /// <param name="folder">Of the run.</param>
    /// <returns>The settings.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">settings.json is absent or damaged.</exception>
    let settings (folder: string) : RunSettings =
        let path = RunFiles.settings folder
        Json.read "the settings of a run" path (Settings.ofJson path)
