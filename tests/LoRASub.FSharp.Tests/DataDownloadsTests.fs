/// Data sets from the network.
module LoRASub.Tests.DataDownloadsTests

open System
open System.IO
open System.Security.Cryptography
open LoRASub.Files
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.LoopbackServer

let private md5 (bytes: byte[]) =
    Convert.ToHexStringLower(MD5.HashData bytes)

let private records (labels: byte list) =
    [|
        for label in labels do
            0uy
            label
            yield! Array.create 3072 label
    |]

let private cifar =
    lazy
        (let names = String.concat "\n" [ for i in 0..99 -> $"class {i}" ]

         UnpackTests.tar
             [
                 UnpackTests.Regular("cifar-100-binary/train.bin", records [ 1uy; 2uy ])
                 UnpackTests.Regular("cifar-100-binary/test.bin", records [ 3uy ])
                 UnpackTests.Regular(
                     "cifar-100-binary/fine_label_names.txt",
                     Text.Encoding.UTF8.GetBytes names
                 )
             ]
         |> TestFiles.gzip)

let private getFrom (server: LoopbackServer) (row: DataDownload) folder =
    let row =
        { row with
            Files =
                row.Files
                |> List.map (fun file ->
                    { file with
                        Address = server.Address(Path.GetFileName file.Address.LocalPath)
                    })
        }

    DataDownloads.get DownloadTests.quick row folder (fun _ _ _ -> ())

/// With the checksum of the small one in place of the published one.
let private cifarRow =
    lazy
        (let row = (DataDownloads.tryFind "cifar100").Value

         { row with
             Files =
                 row.Files
                 |> List.map (fun file ->
                     { file with
                         Md5 = Some(md5 cifar.Value)
                     })
         })

[<Tests>]
let tests =
    testList
        "DataDownloads"
        [
            testCase "an archive becomes the data set's files" (fun () ->
                inFolder (fun folder ->
                    use server = new LoopbackServer(fun _ -> ofFile "\"a\"" cifar.Value)
                    let row = cifarRow.Value
                    Expect.isFalse (DataDownloads.isComplete row folder) "before"
                    getFrom server row folder
                    Expect.isTrue (DataDownloads.isComplete row folder) "after"
                    let data = Datasets.load "cifar100" (DataDownloads.pathOf row folder)
                    Expect.equal (data.Train.Labels, data.Test.Labels) ([| 1; 2 |], [| 3 |]) "labels"

                    Expect.equal
                        (Directory.GetFileSystemEntries folder
                         |> Array.map Path.GetFileName
                         |> Array.sort)
                        [| "cifar-100-binary"; "cifar-100-binary.tar.gz.lock.json" |]
                        "the archive is removed, its lock stays"

                    getFrom server row folder
                    Expect.hasLength server.Requests 1 "no second download"))

            testCase "two downloads of one set at once" (fun () ->
                inFolder (fun folder ->
                    use server = new LoopbackServer(fun _ -> ofFile "\"a\"" cifar.Value)
                    let row = cifarRow.Value

                    let second =
                        lazy
                            (isRefused [ folder; "once at a time"; "wait for it" ] (fun () ->
                                getFrom server row folder))

                    // while the first receives its file
                    let first =
                        { row with
                            Files =
                                row.Files
                                |> List.map (fun file ->
                                    { file with
                                        Address = server.Address(Path.GetFileName file.Address.LocalPath)
                                    })
                        }

                    DataDownloads.get DownloadTests.quick first folder (fun _ _ _ -> second.Force())
                    Expect.isTrue second.IsValueCreated "tried"
                    Expect.isTrue (DataDownloads.isComplete row folder) "the first is complete"))

            testCase "files that are read as they are" (fun () ->
                inFolder (fun folder ->
                    let row = (DataDownloads.tryFind "mnist").Value

                    let content (name: string) =
                        TestFiles.gzip (
                            if name.Contains "images" then
                                TestFiles.idx 0x803 [ 2; 4; 4 ] (Array.zeroCreate 32)
                            else
                                TestFiles.idx 0x801 [ 2 ] [| 3uy; 4uy |]
                        )

                    use server =
                        new LoopbackServer(fun number request ->
                            // the second file fails for good
                            if number >= 1 && number < 4 then
                                answer "503 Busy" [] [||]
                            else
                                ofFile "\"a\"" (content request.Path) request)

                    let row =
                        { row with
                            Files = row.Files |> List.map (fun file -> { file with Md5 = None })
                        }

                    isRefused [ "503" ] (fun () -> getFrom server row folder)
                    Expect.isFalse (DataDownloads.isComplete row folder) "one of four"
                    getFrom server row folder
                    Expect.hasLength server.Requests 7 "the first is not downloaded again"
                    let data = Datasets.load "mnist" folder
                    Expect.equal data.Train.Labels [| 3; 4 |] "labels"))

            testCase "another file than the published one is refused and removed" (fun () ->
                inFolder (fun folder ->
                    use server = new LoopbackServer(fun _ -> ofFile "\"a\"" cifar.Value)

                    isRefused
                        [ "must have the MD5 03b5dce0"; "its publication"; md5 cifar.Value ]
                        (fun () -> getFrom server (DataDownloads.tryFind "cifar100").Value folder)

                    Expect.isEmpty (Directory.GetFileSystemEntries folder) "nothing is left"))

            testCase "an archive that cannot be unpacked leaves no data set" (fun () ->
                inFolder (fun folder ->
                    let hostile =
                        UnpackTests.tar [ UnpackTests.Regular("cifar-100-binary/../../out", [| 1uy |]) ]

                    use server = new LoopbackServer(fun _ -> ofFile "\"a\"" hostile)

                    let row =
                        { cifarRow.Value with
                            Files = cifarRow.Value.Files |> List.map (fun file -> { file with Md5 = None })
                        }

                    isRefused [ "must name files of its own folder" ] (fun () -> getFrom server row folder)
                    Expect.isFalse (DataDownloads.isComplete row folder) "no data set"))

            testCase "every row is a known data set, with safe addresses and whole checksums" (fun () ->
                for row in DataDownloads.all do
                    Expect.contains Datasets.names row.Name "name"

                    for file in row.Files do
                        Download.requireSafe None file.Address

                        match file.Md5 with
                        | Some sum -> Expect.isMatch sum "^[0-9a-f]{32}$" (string file.Address)
                        | None -> ())

            testCase "a downloaded set needs no --data-path" (fun () ->
                inFolder (fun cache ->
                    let before = Environment.GetEnvironmentVariable "LORASUB_CACHE"
                    Environment.SetEnvironmentVariable("LORASUB_CACHE", cache)

                    try
                        let missing = CliTests.inside [ "run"; "--data"; "cifar100" ]
                        Expect.equal missing.Code 2 "not yet"
                        Expect.stringContains missing.Error "lorasub data get cifar100" "not yet"
                        use server = new LoopbackServer(fun _ -> ofFile "\"a\"" cifar.Value)
                        getFrom server cifarRow.Value (DataDownloads.folder "cifar100")

                        Expect.equal
                            (DataDownloads.cached "cifar100")
                            (Some(Path.Combine(cache, "data", "cifar100", "cifar-100-binary")))
                            "path"

                        let there = CliTests.inside [ "data"; "get"; "cifar100" ]
                        Expect.equal (there.Code, there.Error) (0, "") "already there"

                        for word in
                            [ "already there"; "100 classes, 2 training and 1 test"; "run --data cifar100" ] do
                            Expect.stringContains there.Out word "already there"

                        // this one has too few images for its tasks, which shows that it was read
                        let run = CliTests.inside [ "run"; "--data"; "cifar100" ]
                        Expect.stringContains run.Error "cifar" "read"
                        Expect.isFalse (run.Error.Contains "--data-path") "found"
                    finally
                        Environment.SetEnvironmentVariable("LORASUB_CACHE", before)))
        ]
