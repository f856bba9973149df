/// Downloads from a server on this machine, which misbehaves in every way that is known.
module LoRASub.Tests.DownloadTests

open System
open System.Diagnostics
open System.IO
open System.Security.Cryptography
open LoRASub.Core
open LoRASub.Files
open Expecto
open FsCheck
open FsCheck.FSharp
open LoRASub.Tests.Probe
open LoRASub.Tests.LoopbackServer

let content =
    let bytes = Array.zeroCreate<byte> 300_000
    Random(7).NextBytes bytes
    bytes

let private hash (bytes: byte[]) =
    Convert.ToHexStringLower(SHA256.HashData bytes)

/// Three tries, without waiting.
let internal quick: DownloadOptions =
    {
        Pauses = [ TimeSpan.Zero; TimeSpan.Zero ]
        Patience = TimeSpan.FromSeconds 20.0
        Note = ignore
    }

let private getWith options expected (server: LoopbackServer) path =
    Download.file options "file" expected (server.Address "file") path ignore (fun _ _ -> ())

let private get server path =
    getWith quick Download.unknown server path

/// Runs a test with a server and the path of a file to download.
let private on reply (test: LoopbackServer -> string -> unit) () =
    inFolder (fun folder ->
        use server = new LoopbackServer(reply)
        test server (Path.Combine(folder, "file")))

let private files (path: string) =
    Directory.GetFiles(Path.GetDirectoryName path)
    |> Array.map Path.GetFileName
    |> Array.sort
    |> List.ofArray

let private isWhole (bytes: byte[]) (path: string) =
    Expect.equal (hash (File.ReadAllBytes path)) (hash bytes) "content"
    Expect.equal (files path) [ "file"; "file.lock.json" ] "files"

/// Nothing that could be taken for the file is there.
let private leavesNoFile (path: string) = Expect.isEmpty (files path) "files"

let private unavailable =
    answer "503 Service Unavailable" [ "Content-Length", "0" ] [||]

let private good =
    [
        testCase
            "a file, its lock, and no second download"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                let fetched = get server path
                isWhole content path
                Expect.isTrue fetched.IsNew "new"
                Expect.equal fetched.Lock.Sha256 (hash content) "hash"
                Expect.equal fetched.Lock.Bytes 300_000L "bytes"
                Expect.equal fetched.Lock.Address (string (server.Address "file")) "address"
                Expect.equal (FileLock.tryRead path) (Some fetched.Lock) "lock"
                Expect.isEmpty fetched.CheckedBy "no checksum was stated"
                let again = get server path
                Expect.equal (again.IsNew, again.Lock) (false, fetched.Lock) "again"
                Expect.hasLength server.Requests 1 "requests"))

        testCase
            "redirects are followed, and what they state is checked"
            (on
                (fun _ request ->
                    match request.Path with
                    | "/file" -> redirect "/second" []
                    | "/second" ->
                        redirect
                            "third?signature=secret"
                            [ "X-Linked-Etag", $"\"{hash content}\""; "X-Linked-Size", "300000" ]
                    | _ -> ofFile "\"a\"" content request)
                (fun server path ->
                    let fetched = get server path
                    isWhole content path
                    Expect.equal fetched.CheckedBy [ "127.0.0.1" ] "checked by"

                    Expect.equal
                        (server.Requests |> List.map _.Path)
                        [ "/file"; "/second"; "/third?signature=secret" ]
                        "paths"))

        testCase
            "Google's checksum is checked"
            (on
                (fun _ _ ->
                    let md5 = Convert.ToBase64String(MD5.HashData content)
                    whole [ "x-goog-hash", "crc32c=AAAAAA=="; "x-goog-hash", $"md5={md5}" ] content)
                (fun server path -> Expect.equal (get server path).CheckedBy [ "127.0.0.1" ] "checked by"))

        testCase
            "a broken transfer continues where it broke"
            (on
                (fun number request ->
                    let answer = ofFile "\"a\"" content request
                    if number = 0 then broken 100_000 answer else answer)
                (fun server path ->
                    get server path |> ignore
                    isWhole content path
                    let second = server.Requests[1]
                    Expect.equal second.From (Some 100_000L) "range"
                    Expect.equal (second.Headers.TryFind "if-range") (Some "\"a\"") "if-range"))

        testCase
            "a transfer that breaks for good is continued by the next call"
            (on
                (fun number request ->
                    let answer = ofFile "\"a\"" content request
                    if number < 3 then broken 50_000 answer else answer)
                (fun server path ->
                    isRefused
                        [ "must send the whole file"; "ended after 150000 bytes"; "continues" ]
                        (fun () -> get server path |> ignore)

                    Expect.hasLength server.Requests 3 "tries"
                    Expect.equal (files path) [ "file.part"; "file.part.json" ] "kept"
                    get server path |> ignore
                    isWhole content path
                    Expect.equal server.Requests[3].From (Some 150_000L) "range"))

        testCase
            "progress makes room for more tries"
            (on
                (fun number request ->
                    let long = Array.create 5_000_000 7uy
                    let answer = ofFile "\"a\"" long request
                    if number < 4 then broken 1_100_000 answer else answer)
                (fun server path ->
                    get server path |> ignore
                    Expect.hasLength server.Requests 5 "tries"))

        testCase
            "a server without ranges sends all of it again"
            (on
                (fun number _ ->
                    let answer = whole [ "ETag", "\"a\"" ] content
                    if number = 0 then broken 100_000 answer else answer)
                (fun server path ->
                    get server path |> ignore
                    isWhole content path))

        testCase
            "without a tag nothing is continued"
            (on
                (fun number _ ->
                    let answer = whole [ "ETag", "W/\"a\"" ] content
                    if number = 0 then broken 100_000 answer else answer)
                (fun server path ->
                    get server path |> ignore
                    isWhole content path
                    Expect.isNone server.Requests[1].From "range"))

        testCase
            "a date is as good as a tag"
            (on
                (fun number request ->
                    let date = "Wed, 21 Oct 2015 07:28:00 GMT"
                    let answer = ofFile date content request

                    let answer =
                        { answer with
                            Headers =
                                ("Last-Modified", date)
                                :: List.filter (fun (name, _) -> name <> "ETag") answer.Headers
                        }

                    if number = 0 then broken 100_000 answer else answer)
                (fun server path ->
                    get server path |> ignore
                    isWhole content path
                    Expect.equal server.Requests[1].From (Some 100_000L) "range"))

        let other = Array.rev content

        for name, ignoresTags in [ "a", false; "a server without If-Range and a", true ] do
            testCase
                $"{name} file that changed between the parts is downloaded again"
                (on
                    (fun number request ->
                        match number with
                        | 0 -> broken 100_000 (ofFile "\"a\"" content request)
                        | _ when ignoresTags && request.From.IsSome ->
                            let headers = request.Headers.Add("if-range", "\"b\"")
                            ofFile "\"b\"" other { request with Headers = headers }
                        | _ -> ofFile "\"b\"" other request)
                    (fun server path ->
                        get server path |> ignore
                        isWhole other path))

        testCase
            "a file that was complete when the program ended is not downloaded again"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                let getWith accept =
                    Download.file
                        quick
                        "file"
                        Download.unknown
                        (server.Address "file")
                        path
                        accept
                        (fun _ _ -> ())
                    |> ignore

                Expect.throws (fun () -> getWith (fun _ -> failwith "the program ends")) "ended"
                Expect.equal (files path) [ "file.part"; "file.part.json" ] "kept"
                getWith ignore
                isWhole content path
                Expect.equal server.Requests[1].From (Some 300_000L) "range"))

        testCase
            "passing errors are tried again"
            (on
                (fun number request ->
                    if number < 2 then
                        unavailable
                    else
                        ofFile "\"a\"" content request)
                (fun server path ->
                    get server path |> ignore
                    isWhole content path
                    Expect.hasLength server.Requests 3 "tries"))

        Check.propertyWith
            (Gen.listOf (Gen.choose (0, 300_000)) |> Gen.resize 4 |> Arb.fromGen)
            20
            "Download"
            "broken anywhere, the parts make the file"
            (fun cuts ->
                let pauses = List.replicate cuts.Length TimeSpan.Zero

                on
                    (fun number request ->
                        let answer = ofFile "\"a\"" content request

                        match List.tryItem number cuts with
                        | Some length -> broken length answer
                        | None -> answer)
                    (fun server path ->
                        getWith { quick with Pauses = pauses } Download.unknown server path |> ignore

                        isWhole content path)
                    ())
    ]

/// One way to go wrong: the answers, words of the message, and how many requests it takes.
let private bad name reply words requests =
    testCase
        name
        (on reply (fun server path ->
            isRefused words (fun () -> get server path |> ignore)
            Expect.isFalse (File.Exists path) "no file"

            for file in Directory.GetFiles(Path.GetDirectoryName path) do
                Expect.isGreaterThan (FileInfo file).Length 0L "nothing is left without bytes"

            Expect.equal server.Requests.Length requests "requests"))

let private refusals =
    [
        bad
            "endless redirects"
            (fun number _ -> redirect $"/{number}" [])
            [ "at most 10 redirects"; "/9"; "browser" ]
            11
        bad "a redirect to itself" (fun _ _ -> redirect "/file" []) [ "at most 10 redirects" ] 11
        bad "a redirect to nowhere" (fun _ _ -> answer "302 Found" [] [||]) [ "redirects"; "no address" ] 1
        bad
            "a redirect to an address that is not encrypted"
            (fun _ _ -> redirect "http://example.com/file?secret" [])
            [ "must lead to an https address"; "found http://example.com/file;" ]
            1
        bad
            "a redirect to a file of this machine"
            (fun _ _ -> redirect "file:///etc/passwd" [])
            [ "must lead to an https address"; "/etc/passwd" ]
            1
        bad
            "no such file"
            (fun _ _ -> answer "404 Not Found" [] [||])
            [ "/file"; "404 Not Found"; "no longer there" ]
            1
        bad "a login" (fun _ _ -> answer "403 Forbidden" [] [||]) [ "403"; "login" ] 1
        bad "passing errors that do not pass" (fun _ _ -> unavailable) [ "must send the whole file"; "503" ] 3
        bad
            "another length than the redirect stated"
            (fun _ request ->
                if request.Path = "/file" then
                    redirect "/next" [ "X-Linked-Size", "299999" ]
                else
                    whole [] content)
            [ "299999 bytes that was announced"; "found 300000" ]
            2
        bad
            "more bytes than stated"
            (fun _ _ -> answer "200 OK" [ "X-Linked-Size", "299999" ] content)
            [ "must send 299999 bytes"; "found more" ]
            1
        bad
            "fewer bytes than stated"
            (fun _ _ -> answer "200 OK" [ "X-Linked-Size", "300001" ] content)
            [ "ended after 300000 of 300001" ]
            3
        bad
            "an absurd length"
            (fun _ _ -> answer "200 OK" [ "Content-Length", "999999999999" ] content)
            [ "at most" ]
            1
        bad
            "no HTTP"
            (fun _ _ ->
                { answer "" [] [||] with
                    Status = "\000\001"
                })
            [ "must send the whole file" ]
            3
        bad
            "a range that was not asked for"
            (fun _ _ ->
                { whole [ "Content-Range", "bytes 5-300004/300005" ] content with
                    Status = "206 Partial Content"
                })
            [ "must send the whole file"; "changed" ]
            3

        testCase
            "a wrong checksum"
            (on
                (fun _ _ -> whole [ "X-Linked-Etag", "\"" + String('0', 64) + "\""; "ETag", "\"a\"" ] content)
                (fun server path ->
                    isRefused
                        [
                            path
                            "must have the SHA256 0000"
                            "as 127.0.0.1 states"
                            hash content
                            "was removed"
                        ]
                        (fun () -> get server path |> ignore)

                    leavesNoFile path))

        testCase
            "a published checksum that is another"
            (on (fun _ _ -> whole [] content) (fun server path ->
                let expected =
                    { Download.unknown with
                        Checksums = [ Download.md5 "its publication" (String('0', 32)) ]
                    }

                isRefused [ "must have the MD5 0000"; "as its publication states" ] (fun () ->
                    getWith quick expected server path |> ignore)

                leavesNoFile path))

        testCase
            "a server that says nothing, before and after the first bytes"
            (on
                (fun number _ ->
                    { whole [ "ETag", "\"a\"" ] content with
                        Body = if number = 0 then content[..999] else [||]
                        Stalls = true
                    })
                (fun server path ->
                    let impatient =
                        { quick with
                            Patience = TimeSpan.FromMilliseconds 200.0
                        }

                    isRefused [ "no answer for 0.2 seconds"; "run the same command again" ] (fun () ->
                        getWith impatient Download.unknown server path |> ignore)

                    Expect.hasLength server.Requests 3 "tries"))

        testCase "a server that is not there" (fun () ->
            inFolder (fun folder ->
                let address =
                    use server = new LoopbackServer(fun _ _ -> unavailable)
                    server.Address "file"

                isRefused [ string address; "must send the whole file"; "check the network" ] (fun () ->
                    Download.file
                        quick
                        "file"
                        Download.unknown
                        address
                        (Path.Combine(folder, "file"))
                        ignore
                        (fun _ _ -> ())
                    |> ignore)))

        testCase
            "a file that was damaged since"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                get server path |> ignore
                let damaged = Array.copy content
                damaged[1000] <- damaged[1000] ^^^ 1uy
                File.WriteAllBytes(path, damaged)

                isRefused [ path; "with the SHA-256"; hash content; hash damaged; "delete it" ] (fun () ->
                    get server path |> ignore)

                File.WriteAllBytes(path, content[1..])
                isRefused [ path; "of 300000 bytes"; "found 299999" ] (fun () -> get server path |> ignore)
                Expect.hasLength server.Requests 1 "requests"))

        testCase
            "a file that someone put there by hand"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                File.WriteAllBytes(path, content[1..])

                let known =
                    { Download.unknown with
                        Checksums = [ Download.sha256 "its page" (hash content) ]
                    }

                isRefused [ path; "as its page states"; hash content[1..]; "move it away" ] (fun () ->
                    getWith quick known server path |> ignore)

                Expect.equal (files path) [ "file" ] "it stays, without a lock"
                File.WriteAllBytes(path, content)
                let fetched = getWith quick known server path
                Expect.equal (fetched.IsNew, fetched.CheckedBy) (true, [ "its page" ]) "checked"
                isWhole content path
                Expect.isEmpty server.Requests "requests"))

        testCase
            "what is tried is said"
            (on (fun _ _ -> unavailable) (fun server path ->
                let said = ResizeArray<string>()

                isRefused [ "503"; "browser"; $"save it as {path}" ] (fun () ->
                    getWith { quick with Note = said.Add } Download.unknown server path |> ignore)

                let again = "503 Service Unavailable; trying again in 0 s"
                Expect.equal (List.ofSeq said) [ "connecting to 127.0.0.1 ..."; again; again ] "said"))

        testCase
            "another file than an older lock describes"
            (on
                (fun number -> ofFile $"\"{number}\"" (if number = 0 then content else Array.rev content))
                (fun server path ->
                    get server path |> ignore
                    File.Delete path

                    isRefused [ "must have the SHA256"; hash content; "file.lock.json states" ] (fun () ->
                        get server path |> ignore)

                    Expect.equal (files path) [ "file.lock.json" ] "the lock stays"))

        testCase
            "a file that is not what it should be"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                let accept (part: string) =
                    Expect.equal (hash (File.ReadAllBytes part)) (hash content) "complete"
                    Errors.reject part "must be a network" "noise" ""

                isRefused [ "must be a network" ] (fun () ->
                    Download.file
                        quick
                        "file"
                        Download.unknown
                        (server.Address "file")
                        path
                        accept
                        (fun _ _ -> ())
                    |> ignore)

                leavesNoFile path))

        testCase
            "two downloads of one file at once"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                use _ =
                    new FileStream(path + ".part", FileMode.Create, FileAccess.Write, FileShare.None)

                isRefused [ "once at a time"; "wait" ] (fun () -> get server path |> ignore)
                Expect.isEmpty server.Requests "requests"))

        testCase
            "no folder"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                isRefused [ "in a folder that can be written" ] (fun () ->
                    get server (path + "/none/file") |> ignore)))

        testCase
            "a full disk, and then room"
            (on (fun _ -> ofFile "\"a\"" content) (fun server path ->
                let disk = Directory.CreateDirectory(path + ".disk").FullName

                let shell (command: string) =
                    use child = Process.Start("sh", [ "-c"; command + " 2>/dev/null" ])
                    child.WaitForExit()
                    child.ExitCode = 0

                if
                    not (
                        Environment.IsPrivilegedProcess
                        && shell $"mount -t tmpfs -o size=256k tmpfs {disk}"
                    )
                then
                    skiptest "cannot mount"

                try
                    let path = Path.Combine(disk, "file")

                    isRefused [ path; "must fit on its disk"; "make room"; "continues" ] (fun () ->
                        get server path |> ignore)

                    Expect.isFalse (File.Exists path) "no file"
                    Expect.isTrue (shell $"mount -o remount,size=1m {disk}") "more room"
                    get server path |> ignore
                    isWhole content path
                    Expect.isGreaterThan server.Requests[1].From.Value 100_000L "continued"
                finally
                    shell $"umount {disk}" |> ignore))
    ]

let private addresses =
    let uri (text: string) = Uri text

    let refused from address =
        Probe.isRefused [ "https" ] (fun () -> Download.requireSafe from address)

    [
        testCase "encrypted addresses, and this machine's" (fun () ->
            for address in
                [
                    "https://example.com/x"
                    "http://127.0.0.1:80/x"
                    "http://localhost/x"
                    "http://[::1]/x"
                ] do
                Download.requireSafe None (uri address)

            Download.requireSafe (Some(uri "http://127.0.0.1/")) (uri "https://example.com/")
            Download.requireSafe (Some(uri "https://example.org/")) (uri "https://example.com/"))

        testCase "no others" (fun () ->
            for address in
                [
                    "http://example.com/x"
                    "http://127.0.0.1.example.com/x"
                    "http://user:secret@127.0.0.1/x"
                    "https://user:secret@example.com/x"
                    "ftp://127.0.0.1/x"
                    "file:///etc/passwd"
                ] do
                refused None (uri address)

            for address in [ "http://example.com/"; "http://127.0.0.1/"; "file:///etc/passwd" ] do
                refused (Some(uri "https://example.com/")) (uri address))
    ]

[<Tests>]
let tests =
    testList
        "Download"
        [
            testList "gets" good
            testList "refuses" refusals
            testList "addresses" addresses
        ]
