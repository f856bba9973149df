module LoRASub.Tests.JsonTests

open System.IO
open System.Text.Json
open Expecto
open LoRASub
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

            testCase
                "a refusal inside the reading passes as it is"
                (inFile "{}" (fun path ->
                    refused [ "inner: rule; found it" ] (fun () ->
                        Json.read "a file" path (fun _ -> Errors.reject "inner" "rule" "it" "")
                        |> ignore)))
        ]
