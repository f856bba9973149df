module LoRASub.Tests.WholeFileTests

open System
open System.IO
open LoRASub.Files
open Expecto
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

            testCase "refuses to take the place of a device" (fun () ->
                refused [ "/dev/page.html"; "must not be in /dev" ] (fun () ->
                    WholeFile.writeText "/dev/page.html" "x"))

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

            testCase "what a killed process left goes with the next write, and nothing else does" (fun () ->
                inFolder (fun folder ->
                    let at name = Path.Combine(folder, name)
                    let left = $".lorasub-{Guid.NewGuid():N}.tmp"
                    File.WriteAllText(at left, "half")
                    File.WriteAllText(at ".other.tmp", "another program's")
                    WholeFile.writeText (at "a.txt") "x"
                    Expect.equal (filesIn folder) [| ".other.tmp"; "a.txt" |] "files"))

            testCase "what another writes just now is not removed" (fun () ->
                inFolder (fun folder ->
                    let at name = Path.Combine(folder, name)

                    WholeFile.write (at "slow.txt") (fun stream ->
                        stream.WriteByte(byte 's')
                        WholeFile.writeText (at "quick.txt") "q"
                        Expect.hasLength (filesIn folder) 2 "the temporary file and the quick one"
                        stream.WriteByte(byte 'l'))

                    Expect.equal (File.ReadAllText(at "slow.txt")) "sl" "the slow one"
                    Expect.equal (filesIn folder) [| "quick.txt"; "slow.txt" |] "files"))

            testCase "many writers in one folder do not disturb each other" (fun () ->
                inFolder (fun folder ->
                    let path i = Path.Combine(folder, $"{i % 3}.txt")

                    Threading.Tasks.Parallel.For(
                        0,
                        400,
                        Threading.Tasks.ParallelOptions(MaxDegreeOfParallelism = 8),
                        fun i -> WholeFile.writeText (path i) $"{i % 3}"
                    )
                    |> ignore

                    Expect.equal (filesIn folder) [| "0.txt"; "1.txt"; "2.txt" |] "files"

                    for i in 0..2 do
                        Expect.equal (File.ReadAllText(path i)) $"{i}" "content"))

            testCase "a probe leaves nothing" (fun () ->
                inFolder (fun folder ->
                    WholeFile.probe "out" folder
                    Expect.isEmpty (filesIn folder) "files"

                    if OperatingSystem.IsLinux() then
                        refused [ "out"; "can be written" ] (fun () -> WholeFile.probe "out" "/proc")))
        ]
