namespace LoRASub.Files

open System
open System.Formats.Tar
open System.IO
open System.IO.Compression
open LoRASub.Core

/// Archives of data sets, as files in a folder of their own.
[<RequireQualifiedAccess>]
module internal Unpack =

    /// Of a data set of many small images.
    [<Literal>]
    let private MostFiles = 1_000_000

    let private quoted (name: string) = "'" + Text.cut "..." 80 name + "'"

    /// The parts of a name. Rejects one that leads elsewhere, or that is not a name on every system.
    let private partsOf (subject: string) (name: string) : string list =
        let parts =
            name.Split '/'
            |> List.ofArray
            |> List.filter (fun part -> part <> "" && part <> ".")

        let isBad (part: string) =
            // Windows drops dots and spaces at the end
            part.EndsWith '.'
            || part.EndsWith ' '
            || part.IndexOfAny [| '\\'; ':' |] >= 0
            || Seq.exists Char.IsControl part

        if name.StartsWith '/' || List.exists isBad parts then
            Errors.reject subject "must name files of its own folder" (quoted name) "do not use it"

        parts

    /// Bytes of an archive, no more than may be unpacked.
    type private Limited(inner: Stream, subject: string, most: int64) =
        inherit Stream()
        let mutable left = most

        let count (read: int) =
            left <- left - int64 read

            if left < 0L then
                Errors.reject subject $"must unpack to at most {most} bytes" "more" "do not use it"

            read

        override _.CanRead = true
        override _.CanSeek = false
        override _.CanWrite = false
        override _.Length = raise (NotSupportedException())

        override _.Position
            with get () = raise (NotSupportedException())
            and set _ = raise (NotSupportedException())

        override _.Flush() = ()
        override _.Seek(_, _) = raise (NotSupportedException())
        override _.SetLength _ = raise (NotSupportedException())
        override _.Write(_: byte[], _: int, _: int) : unit = raise (NotSupportedException())

        override _.Read(buffer: byte[], offset: int, length: int) =
            count (inner.Read(buffer, offset, length))

        override _.Read(buffer: Span<byte>) = count (inner.Read buffer)

    let private copy (subject: string) (entry: TarEntry) (path: string) =
        Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore

        if Path.Exists path then
            Errors.reject subject "must name each file once" $"{quoted entry.Name} again" ""

        use file = new FileStream(path, FileMode.CreateNew)

        if not (isNull entry.DataStream) then
            entry.DataStream.CopyTo file

    /// Unpacks the files below one folder of a tar or tar.gz archive into `target`, which must not exist and appears
    /// when all are there. Rejects a damaged archive; one with links, devices or names that lead elsewhere; one of more
    /// than `most` bytes; one without the folder; and a full disk.
    let tar (most: int64) (archive: string) (inside: string) (target: string) : unit =
        let work = target + ".unpacking"

        let unpack (stream: Stream) =
            use reader = new TarReader(new Limited(stream, archive, most))

            let rec next (entries: int) =
                if entries > MostFiles then
                    Errors.reject archive $"must hold at most {MostFiles} files" "more" "do not use it"

                match reader.GetNextEntry() with
                | null -> ()
                | entry ->
                    match entry.EntryType, partsOf archive entry.Name with
                    | (TarEntryType.RegularFile | TarEntryType.V7RegularFile), first :: rest when
                        first = inside && not rest.IsEmpty
                        ->
                        copy archive entry (Path.Combine(work, Path.Combine(Array.ofList rest)))
                    | (TarEntryType.RegularFile | TarEntryType.V7RegularFile | TarEntryType.Directory | TarEntryType.GlobalExtendedAttributes),
                      _ -> ()
                    | kind, _ ->
                        Errors.reject
                            archive
                            "must hold files and folders only"
                            $"{quoted entry.Name}, of the kind {kind}"
                            "do not use it"

                    next (entries + 1)

            next 0

        let clear () =
            if Directory.Exists work then
                Directory.Delete(work, true)

        try
            try
                // left by an interrupted call
                clear ()
                use file = File.OpenRead archive
                let isGzip = file.ReadByte() = 0x1F && file.ReadByte() = 0x8B
                file.Position <- 0L

                if isGzip then
                    use stream = new GZipStream(file, CompressionMode.Decompress)
                    unpack stream
                else
                    unpack file

                if not (Directory.Exists work) then
                    Errors.reject archive $"must hold files in a folder '{inside}'" "none" ""

                Directory.Move(work, target)
            with
            | :? InvalidDataException
            | :? EndOfStreamException
            | :? FormatException as e ->
                Errors.reject archive "must be a tar archive without damage" e.Message "download it again"
            | :? IOException
            | :? UnauthorizedAccessException as e ->
                Errors.reject
                    target
                    "must fit on its disk, in a folder that can be written"
                    e.Message
                    "make room"
        finally
            try
                clear ()
            with
            | :? IOException
            | :? UnauthorizedAccessException -> ()
