/// Archives of data sets, good and hostile.
module LoRASub.Tests.UnpackTests

open System
open System.Formats.Tar
open System.IO
open System.Text
open LoRASub.Files
open Expecto
open LoRASub.Tests.Probe

type Entry =
    | Regular of name: string * content: byte[]
    | Folder of name: string
    | Special of kind: TarEntryType * name: string * target: string

/// The names of files as they are given, whatever they are.
let tar (entries: Entry list) : byte[] =
    use stream = new MemoryStream()

    do
        use writer = new TarWriter(stream, TarEntryFormat.Ustar, leaveOpen = true)

        for entry in entries do
            writer.WriteEntry(
                match entry with
                | Regular(name, content) ->
                    UstarTarEntry(TarEntryType.RegularFile, name, DataStream = new MemoryStream(content))
                    :> TarEntry
                | Folder name -> UstarTarEntry(TarEntryType.Directory, name)
                | Special(kind, name, target) ->
                    let entry = UstarTarEntry(kind, name)

                    if target <> "" then
                        entry.LinkName <- target

                    entry
            )

    stream.ToArray()

let private text (words: string) = Encoding.UTF8.GetBytes words

let private usual =
    [
        Folder "set/"
        Regular("set/readme.txt", text "read me")
        Regular("./set/images/a/1.png", text "one")
        Regular("elsewhere.txt", text "not wanted")
    ]

/// Unpacks bytes; `test` gets the folder around the archive and its target.
let private unpacking most (bytes: byte[]) (test: (unit -> unit) -> string -> unit) =
    inFolder (fun folder ->
        let archive = Path.Combine(folder, "archive")
        File.WriteAllBytes(archive, bytes)
        test (fun () -> Unpack.tar most archive "set" (Path.Combine(folder, "set"))) folder)

let private names (folder: string) =
    Directory.GetFileSystemEntries(folder, "*", SearchOption.AllDirectories)
    |> Array.map (fun path -> Path.GetRelativePath(folder, path))
    |> Array.sort
    |> List.ofArray

let private bad name bytes words =
    testCase name (fun () ->
        unpacking 10_000L bytes (fun unpack folder ->
            isRefused words unpack
            Expect.equal (names folder) [ "archive" ] "nothing is left"))

[<Tests>]
let tests =
    testList
        "Unpack"
        [
            for name, pack in [ "tar", id; "tar.gz", TestFiles.gzip ] do
                testCase $"{name}: the files of one folder" (fun () ->
                    unpacking 100_000L (pack (tar usual)) (fun unpack folder ->
                        // left by an earlier call
                        Directory.CreateDirectory(Path.Combine(folder, "set.unpacking", "old"))
                        |> ignore

                        unpack ()

                        Expect.equal
                            (names folder)
                            [
                                "archive"
                                "set"
                                "set/images"
                                "set/images/a"
                                "set/images/a/1.png"
                                "set/readme.txt"
                            ]
                            "names"

                        Expect.equal
                            (File.ReadAllText(Path.Combine(folder, "set/images/a/1.png")))
                            "one"
                            "content"))

            for name in
                [
                    "../out.txt"
                    "set/../../out.txt"
                    "/tmp/lorasub-out.txt"
                    @"set\..\out.txt"
                    "set/c:out.txt"
                    "set/a\nb.txt"
                    "set/.. /out.txt"
                    "set/readme.txt."
                ] do
                bad
                    $"a name that leads elsewhere: {name}"
                    (tar (usual @ [ Regular(name, text "out") ]))
                    [ "archive"; "must name files of its own folder" ]

            for kind, target in
                [
                    TarEntryType.SymbolicLink, "/etc"
                    TarEntryType.HardLink, "../archive"
                    TarEntryType.Fifo, ""
                ] do
                bad
                    $"a {kind}"
                    (tar (
                        usual
                        @ [ Special(kind, "set/link", target); Regular("set/link/passwd", text "out") ]
                    ))
                    [ "must hold files and folders only"; "'set/link'"; string kind ]

            bad
                "a file twice"
                (tar (usual @ [ Regular("set/readme.txt", text "again") ]))
                [ "each file once"; "readme" ]
            bad
                "more than it may hold"
                (TestFiles.gzip (tar [ Regular("set/zeros", Array.zeroCreate 50_000) ]))
                [ "at most 10000 bytes" ]
            bad
                "more than it may hold, in a file that is not wanted"
                (TestFiles.gzip (tar [ Regular("zeros", Array.zeroCreate 50_000) ]))
                [ "at most 10000 bytes" ]
            bad "no such folder" (tar [ Regular("other/readme.txt", text "x") ]) [ "a folder 'set'"; "none" ]
            bad "no bytes" [||] [ "must be a tar archive" ]
            bad "no tar" (Array.create 5000 65uy) [ "must be a tar archive" ]

            let half (bytes: byte[]) = Array.truncate (bytes.Length / 2) bytes

            bad
                "cut off"
                (half (TestFiles.gzip (tar [ Regular("set/a", Array.init 5000 (fun i -> byte (i * i))) ])))
                [ "must be a tar archive" ]

            bad "cut off, not packed" (Array.truncate 1800 (tar usual)) [ "must be a tar archive" ]
        ]
