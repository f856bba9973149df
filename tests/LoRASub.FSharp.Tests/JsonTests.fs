module LoRASub.Tests.JsonTests

open System.IO
open System.Text.Json
open LoRASub.Core
open LoRASub.Files
open Expecto
open LoRASub.Tests.Check

let private inFile (text: string) (test: string -> unit) () =
    Probe.inFolder (fun folder ->
        let path = Path.Combine(folder, "some.json")
        File.WriteAllText(path, text)
        test path)

let private readInt path =
    Json.read "a file of one number" path (fun root -> (root.GetProperty "n").GetInt32())

[<Tests>]
let tests =
    testList
        "Json"
        [
            testCase
                "what is built is read back"
                (inFile "" (fun path ->
                    Json.write
                        path
                        (Json.object
                            [
                                "n", Json.int -7L
                                "x", Json.float 0.1
                                "t", Json.text "ä \"quoted\""
                                "none", Json.option Json.int None
                                "some", Json.option Json.int (Some 3L)
                                "all", Json.array Json.int [ 1L; 2L ]
                            ])

                    Json.read "numbers" path (fun root ->
                        Expect.equal ((root.GetProperty "n").GetInt32()) -7 "int"
                        Expect.equal ((root.GetProperty "x").GetDouble()) 0.1 "float"
                        Expect.equal ((root.GetProperty "t").GetString()) "ä \"quoted\"" "text"
                        Expect.equal (root.GetProperty "none").ValueKind JsonValueKind.Null "none"
                        Expect.equal ((root.GetProperty "some").GetInt64()) 3L "some"

                        Expect.equal
                            [ for x in (root.GetProperty "all").EnumerateArray() -> x.GetInt32() ]
                            [ 1; 2 ]
                            "all")

                    Expect.stringEnds (File.ReadAllText path) "}\n" "a line end closes the file"))

            testCase "a missing file is refused" (fun () ->
                refused [ "absent.json"; "a file of one number"; "no such file" ] (fun () ->
                    readInt "absent.json" |> ignore))

            for name, text, words in
                [
                    "no JSON", "{", [ "must be JSON" ]
                    "nothing", "", [ "must be JSON" ]
                    "two values", "{} {}", [ "must be JSON" ]
                    "a missing member", "{}", [ "a file of one number" ]
                    "another kind", "{\"n\": \"7\"}", [ "a file of one number" ]
                    "no object", "7", [ "a file of one number" ]
                    "a fraction", "{\"n\": 7.5}", [ "a file of one number" ]
                    "a number too large", "{\"n\": 99999999999}", [ "a file of one number" ]
                ] do
                testCase
                    $"{name} is refused by file"
                    (inFile text (fun path -> refused (path :: words) (fun () -> readInt path |> ignore)))

            for name, text, words in
                [
                    "a comma too many",
                    "{\n \"n\": 7,\n}\n",
                    [ ", line 3: must be JSON"; "found a trailing comma" ]
                    "a comma too many in a list", "[1,\n2,]", [ ", line 2: must be JSON"; "a trailing comma" ]
                    "a comma too few", "{\n \"n\": 7\n \"m\": 8}", [ ", line 3: must be JSON" ]
                    "a comment", "{\n\n // why\n \"n\": 7}", [ ", line 3: must be JSON" ]
                    "one line", "{\"n\": 7,}\n", [ "some.json: must be JSON"; "a trailing comma" ]
                    "white space only", " \n\n", [ "some.json: must be JSON; found no text" ]
                ] do
                testCase
                    $"{name} is refused by its line, without advice to a programmer"
                    (inFile text (fun path ->
                        refused words (fun () -> readInt path |> ignore)

                        try
                            readInt path |> ignore
                        with :? InputException as e ->
                            for word in [ "LineNumber"; "BytePosition"; "reader options"; "isFinalBlock" ] do
                                Expect.isFalse (e.Message.Contains word) word))

            testCase
                "a byte order mark is skipped"
                (inFile "" (fun path ->
                    File.WriteAllText(path, "{\"n\": 7}", System.Text.UTF8Encoding true)
                    Expect.equal (readInt path) 7 "number"))

            testCase
                "a refusal inside the reading passes as it is"
                (inFile "{}" (fun path ->
                    refused [ "inner: rule; found it" ] (fun () ->
                        Json.read "a file" path (fun _ -> Errors.reject "inner" "rule" "it" "")
                        |> ignore)))
        ]
