module LoRASub.Tests.RealPathTests

open System
open System.Diagnostics
open System.IO
open LoRASub.Files
open Expecto
open LoRASub.Tests.Probe

let private under (folder: string) (name: string) = Path.Combine(folder, name)

let private make (path: string) =
    Directory.CreateDirectory(path).FullName

let private mounted (words: string list) =
    use child = Process.Start("mount", words)
    child.WaitForExit()
    child.ExitCode = 0

[<Tests>]
let tests =
    testList
        "RealPath"
        [
            testCase "links, dots and relative names lead to one place" (fun () ->
                inFolder (fun folder ->
                    let real = make (under folder "a/b")
                    File.CreateSymbolicLink(under folder "absolute", real) |> ignore
                    File.CreateSymbolicLink(under folder "relative", "a/b") |> ignore
                    File.CreateSymbolicLink(under folder "a/up", "..") |> ignore
                    File.CreateSymbolicLink(under folder "twice", "relative") |> ignore
                    let here = Environment.CurrentDirectory

                    for name in
                        [
                            under folder "a/b"
                            under folder "a/b/"
                            under folder "a/../a/./b"
                            under folder "absolute"
                            under folder "relative"
                            under folder "twice"
                            under folder "a/up/twice"
                            Path.GetRelativePath(here, real)
                        ] do
                        Expect.equal (RealPath.tryOfPath name) (RealPath.tryOfPath real) name
                        Expect.isTrue (RealPath.same real name) name

                        Expect.isTrue
                            (RealPath.isWithin (under folder "twice") (under name "new/deep"))
                            name

                    Expect.isFalse (RealPath.same real (under folder "a")) "another folder"))

            testCase "a folder holds itself and what lies in it, and no namesake" (fun () ->
                inFolder (fun folder ->
                    let data = make (under folder "data")
                    Expect.isTrue (RealPath.isWithin data data) "itself"
                    Expect.isTrue (RealPath.isWithin data (under data "x/y")) "in it"
                    Expect.isFalse (RealPath.isWithin data (under folder "data2")) "a longer name"
                    Expect.isFalse (RealPath.isWithin data folder) "the one around it"
                    Expect.isFalse (RealPath.isWithin data (under data "../out")) "beside it"))

            testCase "dangling links and links in a circle have an end" (fun () ->
                inFolder (fun folder ->
                    File.CreateSymbolicLink(under folder "a", under folder "b") |> ignore
                    File.CreateSymbolicLink(under folder "b", under folder "a") |> ignore
                    File.CreateSymbolicLink(under folder "gone", under folder "nowhere") |> ignore
                    Expect.isNone (RealPath.tryOfPath (under folder "a/x")) "a circle"
                    Expect.isFalse (RealPath.same (under folder "a/x") folder) "a circle is nowhere else"

                    Expect.equal
                        (RealPath.tryOfPath (under folder "gone"))
                        (RealPath.tryOfPath folder |> Option.map (fun real -> under real "nowhere"))
                        "where it would lead"))

            testCase "a folder mounted at a second place is the same" (fun () ->
                inFolder (fun folder ->
                    let data, other = make (under folder "data"), make (under folder "other")

                    if not (Environment.IsPrivilegedProcess && mounted [ "--bind"; data; other ]) then
                        skiptest "cannot mount"

                    try
                        Expect.isTrue (RealPath.same data other) "the same"
                        Expect.isTrue (RealPath.isWithin data (under other "run")) "in it"
                    finally
                        use child = Process.Start("umount", [ other ])
                        child.WaitForExit()))
        ]
