namespace LoRASub

open System
open System.IO
open System.Text

/// Files that are never seen half-written: the content goes to a temporary name in the same folder, is flushed to
/// disk, and takes the target's name in one step.
[<RequireQualifiedAccess>]
module WholeFile =

    let private create (path: string) (temporary: string) =
        try
            new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None)
        with
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must lie in a folder that can be written" e.Message ""

    let private rename (path: string) (temporary: string) =
        try
            File.Move(temporary, path, overwrite = true)
        with
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must be a file that can be replaced" e.Message ""

    /// Writes what `fill` puts into the stream as the whole of a file, over an older one. When `fill` or the disk
    /// fails, the target is as before and nothing else is left. Rejects a target that is a folder, and a folder that
    /// does not exist or cannot be written.
    let write (path: string) (fill: Stream -> unit) : unit =
        if String.IsNullOrWhiteSpace path then
            Errors.reject "file to write" "must have a name" "an empty one" ""

        let target = Path.GetFullPath path

        if Directory.Exists target then
            Errors.reject path "must be a file" "a folder" "add a file name"

        let folder = Path.GetDirectoryName target

        if not (Directory.Exists folder) then
            Errors.reject path "must lie in a folder that exists" $"no folder '{folder}'" "make it first"

        let temporary = Path.Combine(folder, $".{Guid.NewGuid():N}.tmp")

        try
            (use stream = create path temporary
             fill stream
             stream.Flush true)

            rename path temporary
        with e ->
            File.Delete temporary

            match e with
            | :? IOException -> Errors.reject path "must fit on its disk" e.Message "make room"
            | _ -> reraise ()

    /// Writes a text in UTF-8, without a byte order mark, as the whole of a file. Rejects as `write`.
    let writeText (path: string) (text: string) : unit =
        let bytes = UTF8Encoding(false).GetBytes text
        write path _.Write(bytes, 0, bytes.Length)

/// A file that grows piece by piece, each in one write, so that a crash tears the last piece at most; others may read
/// it meanwhile. Rejects a file that cannot be appended to, and a disk that takes no more.
type AppendFile(path: string) =

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
