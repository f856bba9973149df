namespace LoRASub.Files

open System
open System.Buffers.Binary
open System.IO
open System.Runtime.InteropServices

/// Where a path leads: one file or folder can have several names, through symbolic links, bind mounts and file systems
/// that ignore case.
[<RequireQualifiedAccess>]
module internal RealPath =

    [<DllImport("libc", EntryPoint = "statx")>]
    extern int private statx(
        int folder,
        [<MarshalAs(UnmanagedType.LPUTF8Str)>] string path,
        int flags,
        uint32 wanted,
        byte[] found
    )

    // Device and inode of what a path leads to; unlike those of stat, statx's fields are at the same offsets on every
    // processor.
    let private identity (path: string) : struct (uint64 * uint64) voption =
        if not (OperatingSystem.IsLinux()) then
            ValueNone
        else
            let found = Array.zeroCreate<byte> 256
            let currentFolder, inode = -100, 0x100u

            if statx (currentFolder, path, 0, inode, found) = 0 then
                let number (at: int) =
                    BinaryPrimitives.ReadUInt64LittleEndian(ReadOnlySpan(found, at, 8))

                ValueSome(struct (number 136, number 32))
            else
                ValueNone

    let private comparison =
        if OperatingSystem.IsLinux() then
            StringComparison.Ordinal
        else
            StringComparison.OrdinalIgnoreCase

    // as many links as Linux follows
    let rec private follow (links: int) (path: string) : string option =
        match Path.GetDirectoryName path with
        | _ when links < 0 -> None
        | null -> Some path
        | parent ->
            follow links parent
            |> Option.bind (fun parent ->
                let here = Path.Combine(parent, Path.GetFileName path)

                match FileInfo(here).LinkTarget with
                | null -> Some here
                | target -> follow (links - 1) (Path.GetFullPath(target, parent)))

    /// The absolute path without symbolic links; what does not exist yet keeps its name. None for a link that leads back
    /// to itself. .NET follows a link from where its path says it is, which is another place below a folder that is a
    /// link.
    let internal tryOfPath (path: string) : string option =
        follow 40 (Path.TrimEndingDirectorySeparator(Path.GetFullPath path))

    let private ofPath (path: string) : string =
        tryOfPath path |> Option.defaultWith (fun () -> Path.GetFullPath path)

    let private sameReal (a: string) (b: string) =
        String.Equals(a, b, comparison)
        || (match identity a with
            | ValueSome one -> identity b = ValueSome one
            | ValueNone -> false)

    /// Whether two paths lead to the same file or folder.
    let same (a: string) (b: string) : bool = sameReal (ofPath a) (ofPath b)

    /// Whether a path leads to a folder or into it; the path need not exist.
    let isWithin (folder: string) (path: string) : bool =
        let folder = ofPath folder

        Seq.unfold
            (fun (here: string) ->
                if isNull here then
                    None
                else
                    Some(here, Path.GetDirectoryName here))
            (ofPath path)
        |> Seq.exists (sameReal folder)
