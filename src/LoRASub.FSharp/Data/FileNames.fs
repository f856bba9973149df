namespace LoRASub.Data

open System
open System.Buffers
open System.IO
open System.Runtime.InteropServices
open System.Text
open LoRASub.Files

/// Why a path leads to no file. A name is bytes to Linux; .NET takes them for UTF-8 and puts U+FFFD where they are not,
/// so that it cannot open such a file.
[<RequireQualifiedAccess>]
module internal FileNames =

    [<DllImport("libc.so.6", EntryPoint = "opendir")>]
    extern nativeint private openFolder([<MarshalAs(UnmanagedType.LPUTF8Str)>] string path)

    [<DllImport("libc.so.6", EntryPoint = "readdir")>]
    extern nativeint private nextEntry(nativeint folder)

    [<DllImport("libc.so.6", EntryPoint = "closedir")>]
    extern int private closeFolder(nativeint folder)

    /// Where the name begins in glibc's 64-bit `struct dirent`.
    [<Literal>]
    let private NameOffset = 19

    let private nameOf (entry: nativeint) : byte[] =
        let mutable length = 0

        while Marshal.ReadByte(entry, NameOffset + length) <> 0uy do
            length <- length + 1

        let name = Array.zeroCreate<byte> length
        Marshal.Copy(entry + nativeint NameOffset, name, 0, length)
        name

    /// The names in a folder as bytes; none where the folder cannot be read.
    let private rawNames (folder: string) : byte[][] =
        match (if OperatingSystem.IsLinux() then openFolder folder else 0n) with
        | 0n -> [||]
        | stream ->
            try
                stream
                |> Array.unfold (fun stream ->
                    match nextEntry stream with
                    | 0n -> None
                    | entry -> Some(nameOf entry, stream))
            finally
                closeFolder stream |> ignore

    /// The bytes as text, those that are not UTF-8 as in `caf\xE9.png`.
    let escaped (name: byte[]) : string =
        let text = StringBuilder()

        let rec from (at: int) =
            if at < name.Length then
                let mutable rune = Rune()
                let mutable length = 0

                match Rune.DecodeFromUtf8(ReadOnlySpan(name, at, name.Length - at), &rune, &length) with
                | OperationStatus.Done -> text.Append(rune.ToString()) |> ignore
                | _ ->
                    for b in name[at .. at + length - 1] do
                        text.Append(@"\x").Append(b.ToString "X2") |> ignore

                from (at + length)

        from 0
        text.ToString()

    /// The names in a folder that are not UTF-8: as .NET reads them, and escaped.
    let foreign (folder: string) : Map<string, string> =
        rawNames folder
        |> Array.choose (fun raw ->
            let name = Encoding.UTF8.GetString raw

            if raw.AsSpan().SequenceEqual(ReadOnlySpan(Encoding.UTF8.GetBytes name)) then
                None
            else
                Some(name, escaped raw))
        |> Map.ofArray

    /// The first name of a path that is not UTF-8, escaped.
    let rec private foreignPart (path: string) : string option =
        match Path.GetDirectoryName path with
        | null
        | "" -> None
        | _ when not (path.Contains '\uFFFD') -> None
        | parent ->
            foreignPart parent
            |> Option.orElseWith (fun () -> Map.tryFind (Path.GetFileName path) (foreign parent))

    /// What to do about a name that is not UTF-8.
    [<Literal>]
    let Convert =
        "rename it, or convert all names, such as with: convmv -r -f latin1 -t utf8 --notest FOLDER"

    /// The target of a link, or why it has none. None if it is not a link.
    let link (path: string) : Result<string, string> option =
        match FileInfo(path).LinkTarget with
        | null -> None
        | target ->
            match RealPath.tryOfPath path with
            | Some found when Path.Exists found -> Some(Ok found)
            | Some _ -> Some(Error $"a link to {target}, which does not exist")
            | None -> Some(Error $"a link to {target}, which leads back to itself")

    /// Why there is no file or folder of this path.
    let whyAbsent (kind: string) (path: string) : string =
        match foreignPart path, link path with
        | Some name, _ -> $"a name that is not UTF-8 ({name}); {Convert}"
        | None, Some(Error link) -> link
        | None, _ -> $"no such {kind}"

    /// The file that a path leads to, through links too, or why there is none.
    let file (path: string) : Result<FileInfo, string> =
        // a link has its own length, and exists even without its target
        let found =
            match link path with
            | None -> FileInfo path
            | Some(Ok real) -> FileInfo real
            | Some(Error _) -> null

        if not (isNull found) && found.Exists then
            Ok found
        else
            Error(whyAbsent "file" path)

    /// Whether a path leads to a file.
    let isFile (path: string) : bool = Result.isOk (file path)
