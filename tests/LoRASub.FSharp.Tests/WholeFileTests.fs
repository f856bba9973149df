module LoRASub.Tests.WholeFileTests

open System
open System.IO
open Expecto
open LoRASub
open LoRASub.Tests.Probe

let private filesIn folder =
    Directory.GetFileSystemEntries folder
    |> Array.map Path.GetFileName
    |> Array.sort

[<Tests>]
let tests =
    testList
        "WholeFile"
        [
            testCase "writes UTF-8 without a byte order mark" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "größe.txt")
                    WholeFile.writeText path "né"
                    Expect.equal (File.ReadAllBytes path) [| 0x6Euy; 0xC3uy; 0xA9uy |] "bytes"
                    Expect.equal (filesIn folder) [| "größe.txt" |] "only the target"))

            testCase "replaces a longer file, which stays readable until then" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.txt")
                    WholeFile.writeText path "a long old text"

                    WholeFile.write path (fun stream ->
                        stream.WriteByte(byte 'n')
                        stream.Flush()
                        Expect.equal (File.ReadAllText path) "a long old text" "while writing")

                    Expect.equal (File.ReadAllText path) "n" "afterwards"))

            testCase "a failure keeps the old file and leaves no other" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.txt")
                    WholeFile.writeText path "old"

                    let fails () =
                        WholeFile.write path (fun stream ->
                            stream.WriteByte 1uy
                            raise (InvalidOperationException "broken"))

                    Expect.throwsT<InvalidOperationException> fails "the exception of fill"
                    Expect.equal (File.ReadAllText path) "old" "content"
                    Expect.equal (filesIn folder) [| "a.txt" |] "files"))

            testCase "a relative path is taken from the current folder" (fun () ->
                let name = $"lorasub-{Guid.NewGuid():N}.txt"

                try
                    WholeFile.writeText name "x"
                    Expect.equal (File.ReadAllText(Path.GetFullPath name)) "x" "content"
                finally
                    File.Delete name)

            testCase "refuses a folder as target" (fun () ->
                inFolder (fun folder ->
                    refused [ folder; "must be a file"; "a folder" ] (fun () ->
                        WholeFile.writeText folder "x")

                    Expect.isEmpty (filesIn folder) "files"))

            testCase "refuses a folder that does not exist" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "no", "a.txt")
                    refused [ path; "folder that exists" ] (fun () -> WholeFile.writeText path "x")))

            testCase "refuses a folder that cannot be written" (fun () ->
                // also refused to root, unlike a folder without write permission
                if OperatingSystem.IsLinux() then
                    let path = "/proc/lorasub.txt"
                    refused [ path; "can be written" ] (fun () -> WholeFile.writeText path "x")
                else
                    skiptest "needs /proc")

            testCase "refuses an empty name" (fun () ->
                refused [ "must have a name" ] (fun () -> WholeFile.writeText "" "x"))
        ]
