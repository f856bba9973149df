module LoRASub.Tests.ConfigTreeTests

open System
open System.IO
open System.Text
open LoRASub.Core
open LoRASub.Settings
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private parse (text: string) =
    ConfigTree.parse "some.yaml" (Encoding.UTF8.GetBytes text)

/// A tree as nested text with lines: [1:a 2:{2:k=v}].
let rec private shown (node: ConfigNode) : string =
    let inner =
        match node.Value with
        | Text text -> text
        | Nothing -> "-"
        | Items items -> "[" + String.Join(" ", Array.map shown items) + "]"
        | Entries entries ->
            "{"
            + String.Join(" ", entries |> Array.map (fun (name, node) -> $"{name}={shown node}"))
            + "}"

    $"{node.Line}:{inner}"

/// Ten lists of ten aliases each of the one before: 10¹⁰ leaves, were they copied.
let laughs =
    String.Join(
        "\n",
        [
            "l0: &l0 [x, x, x, x, x, x, x, x, x, x]"
            for i in 1..9 do
                let aliases = String.Join(", ", List.replicate 10 $"*l{i - 1}")
                $"l{i}: &l{i} [{aliases}]"
        ]
    )

let nested (opening: string) (levels: int) (closing: string) =
    String.replicate levels opening + "1" + String.replicate levels closing

/// A text, cut, overwritten and repeated at random.
type Damage =
    {
        [<Between(0, 1_000_000)>]
        Seed: int
        [<Between(0, 12)>]
        Changes: int
    }

    member d.Of(bytes: byte[]) : byte[] =
        let random = Random d.Seed
        let pieces = "{}[]&*:,-?|>'\"#%@!<~\n\t \u0000x0123.e"

        let change (bytes: byte[]) =
            let at = random.Next(bytes.Length + 1)

            match random.Next 4 with
            | 0 -> Array.take at bytes
            | 1 -> Array.insertAt at (byte pieces[random.Next pieces.Length]) bytes
            | 2 when at < bytes.Length -> Array.updateAt at (byte (random.Next 256)) bytes
            | _ ->
                let length = min (bytes.Length - at) (random.Next 40)
                Array.insertManyAt at (Array.sub bytes at length) bytes

        Seq.fold (fun bytes _ -> change bytes) bytes (seq { 1 .. d.Changes })

/// The call may refuse, and do nothing else wrong.
let orRefused (call: unit -> unit) =
    try
        call ()
    with :? InputException as e ->
        Expect.isNotEmpty e.Message "a reason"
        Expect.isLessThan e.Message.Length 1000 "a message to read"
        Expect.isFalse (e.Message.Contains '\n') "one line"

[<Tests>]
let tests =
    testList
        "ConfigTree"
        [
            for name, text, expected in
                [
                    "a mapping", "a: 1\nb:\n  c: x y\n", "1:{a=1:1 b=2:{c=3:x y}}"
                    "lists", "a: [1, 2]\nb:\n- x\n- y\n", "1:{a=1:[1:1 1:2] b=2:[3:x 4:y]}"
                    "repeated keys", "a: 1\na: 2\n", "1:{a=1:1 a=2:2}"
                    "an alias at its key's line", "a: &x 7\nb: *x\n", "1:{a=1:7 b=2:7}"
                    "an anchor defined again", "a: &x 1\nb: &x 2\nc: *x\n", "1:{a=1:1 b=2:2 c=3:2}"
                    "nothing", "a:\nb: ~\nc: null\nd: ''\n", "1:{a=1:- b=2:- c=3:- d=4:}"
                    "truth values", "a: True\nb: FALSE\nc: 'True'\n", "1:{a=1:true b=2:false c=3:True}"
                    "infinity", "a: .inf\nb: 0.\n", "1:{a=1:Infinity b=2:0.}"
                    "comments and blanks", "# note\n\na: 1  # more\n", "3:{a=3:1}"
                    "an empty text", "", "1:-"
                    "a byte order mark", "\uFEFFa: 1", "1:{a=1:1}"
                    "JSON",
                    "\n{\"a\": [1,\n2.5e-3], \"b\": null,\n \"a\": true}",
                    "2:{a=2:[2:1 3:2.5e-3] b=3:- a=4:true}"
                    "JSON's texts", "{\"a\": \"x\\u00e4\\n\"}", "1:{a=1:xä\n}"
                ] do
                testCase name (fun () -> Expect.equal (shown (parse text)) expected "tree")

            testCase "aliases share what they name, so that a tree is no larger than its text" (fun () ->
                match (parse laughs).Value with
                | Entries entries ->
                    match (snd entries[9]).Value with
                    | Items items ->
                        Expect.isTrue (obj.ReferenceEquals(items[0].Value, items[9].Value)) "one list"

                        Expect.isTrue
                            (obj.ReferenceEquals(items[0].Value, (snd entries[8]).Value))
                            "its source"
                    | other -> failtest $"{other}"
                | other -> failtest $"{other}")

            for name, text, words in
                [
                    "an unclosed list", "a: [1, 2\nb: 3", [ "some.yaml"; "must be YAML" ]
                    "a tab", "a:\n\t- 1", [ "some.yaml, line 2: must be indented with spaces; found a tab" ]
                    "half a character", "a: \"\\ud800\"", [ "line 1"; "must be YAML" ]
                    "two documents", "a: 1\n---\nb: 2", [ "line 2"; "one YAML document" ]
                    "a tag", "a: !!python/object x", [ "line 1"; "without tags"; "remove the tag" ]
                    "a merge key",
                    "a: &x {b: 1}\nc:\n  <<: *x",
                    [ "line 3"; "merge key"; "write the keys out" ]
                    "a list as a key", "? [1]\n: 2", [ "line 1"; "a key must be a text" ]
                    "an alias without anchor", "a: 1\nb: *x", [ "line 2"; "must follow its anchor" ]
                    "an anchor around itself", "a: &x [*x]", [ "must follow its anchor" ]
                    "a long word in JSON",
                    "{\"a\": t" + String('x', 9000),
                    [ "some.yaml"; "must be JSON"; "…" ]
                    "cut JSON", "{\"a\": 1", [ "some.yaml"; "must be JSON"; "'{'" ]
                    "two JSON values", "{} {}", [ "must be JSON" ]
                    "a tab under a key",
                    "a: 1\n\tb: 2",
                    [ "line 2: must be indented with spaces; found a tab" ]
                    "a tab before a list", "a: 1\nb:\n\t- 1", [ "line 3: must be indented with spaces" ]
                    "a tab late", "a: \"x\ty\"\nb: 1\n\n \tc: 2", [ "line 4: must be indented with spaces" ]
                    "an open bracket", "a: 1\nb: [1, 2\nc: 3", [ "line 2: must be YAML"; "bracket or quote" ]
                    "a comma too many in JSON",
                    "{\n \"a\": 1,\n \"b\": 1e-3,\n}",
                    [ "some.yaml, line 4: must be JSON"; "found a trailing comma" ]
                    "a comment in JSON", "{\n \"a\": 1 // x\n}", [ "some.yaml, line 2: must be JSON" ]
                    "a comma too few in JSON",
                    "{\n \"a\": 1\n \"b\": 2}",
                    [ "some.yaml, line 3: must be JSON" ]
                    "half a character in JSON", "{\"a\": \"\\ud800\"}", [ "some.yaml"; "must be JSON" ]
                    "deep YAML lists", "a: " + nested "[" 70 "]", [ "line 1"; "64 levels deep" ]
                    "very deep YAML", nested "[" 200_000 "]", [ "64 levels deep" ]
                    "very deep YAML mappings", "a: " + nested "{a: " 70 "}", [ "64 levels deep" ]
                    "very deep JSON",
                    "{\"a\": " + nested "[" 200_000 "]" + "}",
                    [ "must be JSON"; "depth of 64" ]
                ] do
                rejects name words (fun () -> parse text |> ignore)

            rejects "bytes that are no UTF-8" [ "some.yaml"; "must be text in UTF-8" ] (fun () ->
                ConfigTree.parse "some.yaml" [| 97uy; 58uy; 255uy |] |> ignore)

            testCase "only files of at most 1 MiB are read" (fun () ->
                Probe.inFolder (fun folder ->
                    let path = Path.Combine(folder, "large.yaml")
                    refused [ path; "no such file" ] (fun () -> ConfigTree.bytes path |> ignore)
                    refused [ folder; "a folder" ] (fun () -> ConfigTree.bytes folder |> ignore)
                    File.WriteAllBytes(path, Array.create (1 <<< 20) 32uy)
                    Expect.hasLength (ConfigTree.bytes path) (1 <<< 20) "bytes"
                    File.WriteAllBytes(path, Array.create ((1 <<< 20) + 1) 32uy)
                    refused [ path; "at most 1048576 bytes" ] (fun () -> ConfigTree.bytes path |> ignore))

                // its length reads as 0
                refused [ "/dev/zero"; "at most" ] (fun () -> ConfigTree.bytes "/dev/zero" |> ignore))

            propertyOf 300 "Config" "damaged YAML and JSON are read or refused" (fun (d: Damage) ->
                for text in [ laughs; "a: &x {b: [1, 'x']}\nc: *x\n"; "{\"a\": [1, {\"b\": \"x\"}]}" ] do
                    orRefused (fun () -> ConfigTree.parse "f" (d.Of(Encoding.UTF8.GetBytes text)) |> ignore))
        ]
