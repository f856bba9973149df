namespace LoRASub.Files

open System
open System.IO
open System.Text
open LoRASub.Core

/// Files that are never seen half-written: the content goes to a temporary name in the same folder, is flushed to
/// disk, and takes the target's name in one step.
[<RequireQualifiedAccess>]
module internal WholeFile =

    /// Whether an exception means that another handle has the file locked: EWOULDBLOCK on Linux and macOS, a sharing
    /// violation on Windows.
    let internal isLocked (e: IOException) =
        e.HResult = 11 || e.HResult = 35 || e.HResult = 0x80070020

    // No other program makes such names.
    [<Literal>]
    let private Pattern = ".lorasub-*.tmp"

    // The system's reason without the name of the temporary file, which no longer exists when it is read.
    let private reason (temporary: string) (e: exn) =
        e.Message.Replace($" : '{temporary}'", "").Replace($" '{temporary}'", "")

    let private rejectFolder (path: string) (temporary: string) (e: exn) =
        Errors.reject path "must be in a folder that can be written" (reason temporary e) ""

    // A temporary file and its name. The system locks it for as long as it is open, which a killed process's is not.
    let rec private create (path: string) (folder: string) : struct (FileStream * string) =
        let temporary =
            Path.Combine(folder, Pattern.Replace("*", Guid.NewGuid().ToString "N"))

        let opened =
            try
                // to be renamed while it is open; others may read it under its new name
                Some(new FileStream(temporary, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.Delete))
            with
            | :? IOException as e when isLocked e -> None
            | :? UnauthorizedAccessException
            | :? IOException as e -> rejectFolder path temporary e

        match opened with
        | Some stream when File.Exists temporary -> struct (stream, temporary)
        | taken ->
            // removed as a killed process's before it was locked
            taken |> Option.iter _.Dispose()
            create path folder

    // Whether a second handle is refused, as it is not on every network file system.
    let private isProtected (temporary: string) =
        try
            (new FileStream(temporary, FileMode.Open, FileAccess.ReadWrite, FileShare.None)).Dispose()
            false
        with
        | :? IOException as e when isLocked e -> true
        | _ -> false

    // Removes files that killed processes left beside `mine`, which is open: they are not locked.
    let private sweep (folder: string) (mine: string) =
        try
            let others = Directory.GetFiles(folder, Pattern) |> Array.filter ((<>) mine)

            if others.Length > 0 && isProtected mine then
                for other in others do
                    try
                        // removed before its lock is given up
                        (new FileStream(
                            other,
                            FileMode.Open,
                            FileAccess.ReadWrite,
                            FileShare.None,
                            1,
                            FileOptions.DeleteOnClose
                        ))
                            .Dispose()
                    with
                    | :? IOException
                    | :? UnauthorizedAccessException -> ()
        with
        | :? IOException
        | :? UnauthorizedAccessException -> ()

    let private rename (path: string) (temporary: string) =
        try
            File.Move(temporary, path, overwrite = true)
        with
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must be a file that can be replaced" e.Message ""

    // Removes a file where that is possible.
    let internal discard (path: string) =
        try
            File.Delete path
        with
        | :? IOException
        | :? UnauthorizedAccessException -> ()

    /// Writes what `fill` puts into the stream as the whole of a file, over an older one. When `fill` or the disk
    /// fails, the target is as before and nothing else is left. Removes what killed processes left in the folder.
    /// Rejects a target that is a folder or a device, and a folder that does not exist or cannot be written.
    let write (path: string) (fill: Stream -> unit) : unit =
        if String.IsNullOrWhiteSpace path then
            Errors.reject "file to write" "must have a name" "an empty one" ""

        let target = Path.GetFullPath path

        if Directory.Exists target then
            Errors.reject path "must be a file" "a folder" "add a file name"

        let folder = Path.GetDirectoryName target

        // the new file would take the place of the device
        if folder = "/dev" then
            Errors.reject path "must not be in /dev" "a path in it" "choose another folder"

        if not (Directory.Exists folder) then
            Errors.reject path "must be in a folder that exists" $"no folder '{folder}'" "make it first"

        let struct (stream, temporary) = create path folder

        try
            use stream = stream
            sweep folder temporary
            fill stream
            stream.Flush true
            // while it is locked, so that no other process removes it
            rename path temporary
        with e ->
            discard temporary

            match e with
            | :? IOException -> Errors.reject path "must fit on its disk" (reason temporary e) "make room"
            | _ -> reraise ()

    /// Rejects a folder that cannot be written, or whose disk is full; `path` is what the error names.
    let probe (path: string) (folder: string) : unit =
        let struct (stream, temporary) = create path folder

        try
            use stream = stream

            try
                stream.Write(Array.zeroCreate 65536, 0, 65536)
                stream.Flush true
            with :? IOException as e ->
                Errors.reject path "must fit on its disk" (reason temporary e) "make room"
        finally
            discard temporary

    /// Makes a folder where there is none. Rejects one that cannot be made.
    let makeFolder (folder: string) : unit =
        try
            Directory.CreateDirectory folder |> ignore
        with
        | :? IOException
        | :? UnauthorizedAccessException as e ->
            Errors.reject folder "must be a folder that can be written" e.Message ""

    /// Writes a text in UTF-8, without a byte order mark, as the whole of a file. Rejects as `write`.
    let writeText (path: string) (text: string) : unit =
        let bytes = UTF8Encoding(false).GetBytes text
        write path _.Write(bytes, 0, bytes.Length)

/// A file that grows piece by piece, each in one write, so that a crash tears the last piece at most; others may read
/// it meanwhile. Rejects a file that cannot be appended to, and a full disk.
type internal AppendFile(path: string) =

    let failed (e: exn) =
        Errors.reject path "must be a file that can be appended to" e.Message ""

    let stream =
        try
            // without a buffer a write reaches the system as a whole
            new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.Read, bufferSize = 0)
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> failed e

    /// Adds bytes, flushed to disk.
    member _.Write(bytes: byte[]) : unit =
        try
            stream.Write(bytes, 0, bytes.Length)
            stream.Flush true
        with :? IOException as e ->
            failed e

    interface IDisposable with
        member _.Dispose() = stream.Dispose()
