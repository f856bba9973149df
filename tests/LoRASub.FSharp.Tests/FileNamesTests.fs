module LoRASub.Tests.FileNamesTests

open System.IO
open System.Text
open LoRASub.Files
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

[<Tests>]
let tests =
    testList
        "FileNames"
        [
            testCase "bytes that are not UTF-8 are escaped, all else is kept" (fun () ->
                for bytes, expected in
                    [
                        "caf\xE9.png", @"caf\xE9.png"
                        "\xB9\xB7", @"\xB9\xB7"
                        "caf\xC3\xA9", "café"
                        // an encoded surrogate, and a character that is cut off
                        "a\xED\xA0\x80b", @"a\xED\xA0\x80b"
                        "\xF0\x9F\x90", @"\xF0\x9F\x90"
                        "", ""
                    ] do
                    Expect.equal (FileNames.escaped (Encoding.Latin1.GetBytes bytes)) expected bytes)

            law "a name in UTF-8 is itself" (fun (NonNull(name: string)) ->
                // half of a surrogate pair is no text
                let name = Encoding.UTF8.GetString(Encoding.UTF8.GetBytes name)
                Expect.equal (FileNames.escaped (Encoding.UTF8.GetBytes name)) name "name")

            testCase "a name with a replacement character of its own is not foreign" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "caf\uFFFD.png")
                    File.WriteAllText(path, "")
                    Expect.isEmpty (FileNames.foreign folder) "foreign names"
                    Expect.isTrue (FileNames.isFile path) "a file"))

            testCase "why a path leads to nothing" (fun () ->
                inFolder (fun folder ->
                    let at name = Path.Combine(folder, name)
                    let why name = FileNames.whyAbsent "file" (at name)
                    File.WriteAllText(at "there", "")
                    File.CreateSymbolicLink(at "good", "there") |> ignore
                    File.CreateSymbolicLink(at "dangling", "nowhere") |> ignore
                    File.CreateSymbolicLink(at "chained", "dangling") |> ignore
                    File.CreateSymbolicLink(at "one", "two") |> ignore
                    File.CreateSymbolicLink(at "two", "one") |> ignore
                    Expect.isTrue (FileNames.isFile (at "good")) "a link to a file"

                    Expect.equal
                        (RealPath.tryOfPath (at "good"))
                        (RealPath.tryOfPath (at "there"))
                        "one place"

                    for name in [ "dangling"; "chained"; "one"; "two"; "absent" ] do
                        Expect.isFalse (FileNames.isFile (at name)) name

                    Expect.equal (why "dangling") "a link to nowhere, which does not exist" "dangling"
                    Expect.equal (why "chained") "a link to dangling, which does not exist" "chained"
                    Expect.equal (why "one") "a link to two, which leads back to itself" "a loop"
                    Expect.equal (why "absent") "no such file" "absent"))
        ]
