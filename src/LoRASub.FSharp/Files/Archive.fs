namespace LoRASub.Files

open System
open System.IO
open System.IO.Compression
open LoRASub.Core

/// The checksum of zip's members, eight bytes at a time.
[<RequireQualifiedAccess>]
module private Crc32 =

    /// Row k: the checksum of a byte and k zero bytes after it.
    let private table =
        let rows = Array.zeroCreate<uint32>(8 * 256)

        for i in 0..255 do
            let mutable crc = uint32 i

            for _ in 1..8 do
                crc <-
                    if crc &&& 1u = 1u then
                        (crc >>> 1) ^^^ 0xEDB88320u
                    else
                        crc >>> 1

            rows[i] <- crc

        for i in 256 .. rows.Length - 1 do
            rows[i] <- (rows[i - 256] >>> 8) ^^^ rows[int (rows[i - 256] &&& 255u)]

        rows

    /// The state after more bytes; it begins as 2^32 - 1 and ends as the complement of the checksum.
    let update (state: uint32) (bytes: ReadOnlySpan<byte>) : uint32 =
        let mutable crc = state
        let mutable i = 0

        while i + 8 <= bytes.Length do
            let word =
                Buffers.Binary.BinaryPrimitives.ReadUInt64LittleEndian(bytes.Slice i)
                ^^^ uint64 crc

            crc <- 0u

            for k in 0..7 do
                crc <- crc ^^^ table[256 * (7 - k) + int ((word >>> (8 * k)) &&& 255UL)]

            i <- i + 8

        while i < bytes.Length do
            crc <- (crc >>> 8) ^^^ table[int ((crc ^^^ uint32 bytes[i]) &&& 255u)]
            i <- i + 1

        crc

/// An open zip archive.
[<ReferenceEquality>]
type internal Archive =
    {
        /// The file.
        Path: string
        /// By name.
        Members: Map<string, ZipArchiveEntry>
    }

/// Zip archives, in which NumPy and PyTorch save. Checked before anything is unpacked, and unpacked into memory only: a
/// member's name is never a file's.
[<RequireQualifiedAccess>]
module internal Archive =

    /// Weights hardly shrink; what would grow further is no archive of weights.
    let private mostGrowth = 32L

    /// Small archives may grow by this much in any case.
    let private freeGrowth = 1L <<< 24

    let private damaged path (f: unit -> 'T) : 'T =
        try
            f ()
        with
        | :? InvalidDataException
        | :? IOException
        | :? NotSupportedException
        | :? ArgumentException
        | :? OverflowException as e ->
            Errors.reject
                path
                "must be a whole zip archive"
                e.Message
                "the file is damaged; download it again"

    let private memberOf (path: string) (name: string) =
        $"{path}: member '{TensorBytes.shown name}'"

    let private check (path: string) (length: int64) (members: ZipArchiveEntry[]) =
        match members |> Array.countBy _.FullName |> Array.tryFind (fun (_, n) -> n > 1) with
        | Some(name, n) -> Errors.reject (memberOf path name) "must be there once" $"{n} times" ""
        | None -> ()

        match members |> Array.tryFind _.IsEncrypted with
        | Some one -> Errors.reject (memberOf path one.FullName) "must not be encrypted" "an encrypted one" ""
        | None -> ()

        // sums of untrusted numbers, which could exceed 64 bits
        let total (size: ZipArchiveEntry -> int64) = members |> Array.sumBy (size >> bigint)
        let packed, unpacked = total _.CompressedLength, total _.Length

        if packed > bigint length then
            let received = $"members of {packed} bytes, which overlap"
            Errors.reject path $"must hold its members in its {length} bytes" received "do not use it"

        if unpacked > bigint (freeGrowth + mostGrowth * length) then
            let rule = $"must not unpack to more than {mostGrowth} times its {length} bytes"
            Errors.reject path rule $"{unpacked} bytes" "do not use it"

    /// Opens an archive for `f`. Rejects one that is damaged, encrypted, holds a name twice or would grow too far.
    let using (path: string) (f: Archive -> 'T) : 'T =
        use stream = TensorBytes.open' "a zip archive" path
        use zip = damaged path (fun () -> new ZipArchive(stream, ZipArchiveMode.Read))
        let members = damaged path (fun () -> Array.ofSeq zip.Entries)
        check path stream.Length members

        f
            {
                Path = path
                Members = members |> Array.map (fun one -> one.FullName, one) |> Map.ofArray
            }

    /// The member of a name. Rejects an archive without it.
    let find (name: string) (archive: Archive) : ZipArchiveEntry =
        match Map.tryFind name archive.Members with
        | Some found -> found
        | None ->
            Errors.reject
                (memberOf archive.Path name)
                "must be there"
                "no member of this name"
                "download it again"

    let private fillFrom (archive: Archive) (one: ZipArchiveEntry) (stream: Stream) (bytes: Span<byte>) =
        // a span cannot enter a closure
        try
            stream.ReadExactly bytes
        with
        | :? InvalidDataException
        | :? IOException as e ->
            let fix = "the file is damaged; download it again"
            Errors.reject (memberOf archive.Path one.FullName) $"must hold {one.Length} bytes" e.Message fix

    /// Reads the start of a member.
    let start (one: ZipArchiveEntry) (read: Fill -> 'T) (archive: Archive) : 'T =
        use stream = damaged archive.Path one.Open
        read (Fill(fun bytes -> fillFrom archive one stream bytes))

    /// Reads a member to its end. Rejects one that is longer than `read` reads, or has another checksum.
    let whole (one: ZipArchiveEntry) (read: Fill -> 'T) (archive: Archive) : 'T =
        use stream = damaged archive.Path one.Open
        let state = ref UInt32.MaxValue

        let result =
            read (
                Fill(fun bytes ->
                    fillFrom archive one stream bytes
                    state.Value <- Crc32.update state.Value (Span.op_Implicit bytes))
            )

        let crc = ~~~state.Value

        if damaged archive.Path stream.ReadByte <> -1 || crc <> one.Crc32 then
            Errors.reject
                (memberOf archive.Path one.FullName)
                $"must have the checksum {one.Crc32:X8} that the archive gives"
                $"{crc:X8}"
                "the file is damaged; download it again"

        result

    /// All bytes of a small member. Rejects one of more than `most` bytes.
    let bytes (most: int) (one: ZipArchiveEntry) (archive: Archive) : byte[] =
        if one.Length > int64 most then
            let subject = memberOf archive.Path one.FullName
            Errors.reject subject $"must have at most {most} bytes" $"{one.Length}" ""

        archive
        |> whole one (fun fill ->
            let bytes = Array.zeroCreate<byte>(int one.Length)
            fill.Invoke(Span bytes)
            bytes)
