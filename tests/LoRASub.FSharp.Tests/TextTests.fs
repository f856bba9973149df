module LoRASub.Tests.TextTests

open System
open System.Globalization
open System.Text
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open Expecto
open FsCheck
open FsCheck.FSharp

/// Any characters, whole or not, those among them that act on terminals and pages.
let private hostile =
    let marks =
        Gen.elements (
            [ '\uD83D'; '\uDE00'; '\uDB40'; '\uDC41' ]
            @ List.ofSeq
                "\u0000\u0007\u001B\u007F\u0085\u009B\r\n\t\u00AD\u061C\u200B\u200D\u200E\u2028\u202E\u2066\uFEFF\uFFFE[]<&\\a é犬"
        )

    Gen.oneof
        [
            Gen.listOf marks |> Gen.map (Array.ofList >> String)
            ArbMap.defaults |> ArbMap.generate<NonNull<string>> |> Gen.map _.Get
        ]
    |> Arb.fromGen

let private law name =
    Check.propertyWith hostile 300 "Text" name

let private isHarmless (rune: Rune) =
    match Rune.GetUnicodeCategory rune with
    | UnicodeCategory.Control
    | UnicodeCategory.Format
    | UnicodeCategory.LineSeparator
    | UnicodeCategory.ParagraphSeparator
    | UnicodeCategory.Surrogate -> false
    | _ -> true

[<Tests>]
let tests =
    testList
        "Text"
        [
            for name, text, shown in
                [
                    "a name", "ant [1] <b> é犬😀 אב", "ant [1] <b> é犬😀 אב"
                    "a colour", "\u001B[31mred", @"\u001B[31mred"
                    "a title of the window", "\u001B]0;x\u0007", @"\u001B]0;x\u0007"
                    "the one-byte form of a colour", "\u009B31m", @"\u009B31m"
                    "line ends and a tab", "a\r\nb\tc", @"a\r\nb\tc"
                    "lines of Unicode", "a\u2028b\u2029c\u0085", @"a\u2028b\u2029c\u0085"
                    "a turn of direction", "cat\u202Egnp.exe", @"cat\u202Egnp.exe"
                    "an isolate and marks",
                    "\u2066a\u2069\u200E\u200F\u061C",
                    @"\u2066a\u2069\u200E\u200F\u061C"
                    "zero-width characters", "ca\u200Bt\u200D\uFEFF\u00AD", @"ca\u200Bt\u200D\uFEFF\u00AD"
                    "letters of a tag", "a\U000E0041", @"a\uDB40\uDC41"
                    // the compiler writes half of a pair in a text as U+FFFD
                    "halves of a pair", String [| '\uD83D'; 'a'; '\uDE00' |], @"\uD83Da\uDE00"
                    "what XML forbids", "\u0000\uFFFE\uFFFF", @"\u0000\uFFFE\uFFFF"
                    "nothing", "", ""
                ] do
                testCase $"{name} is shown harmlessly" (fun () ->
                    Expect.equal (Text.visible text) shown "visible")

            law "what is shown holds whole, harmless characters only" (fun text ->
                // an unpaired half would be read as U+FFFD
                let shown = Text.visible text
                Expect.isTrue (shown.EnumerateRunes() |> Seq.forall isHarmless) "characters"

                Expect.equal
                    (Encoding.UTF8.GetString(Encoding.UTF8.GetBytes shown))
                    shown
                    "no half of a pair"

                Expect.equal (Text.visible shown) shown "twice")

            law "harmless text is shown as it is" (fun text ->
                let harmless =
                    text.EnumerateRunes()
                    |> Seq.filter (fun rune -> isHarmless rune && rune.Value &&& 0xFFFE <> 0xFFFE)
                    |> Seq.map string
                    |> String.concat ""

                Expect.equal (Text.visible harmless) harmless "unchanged")

            law "JSON made visible holds the same text" (fun text ->
                let json =
                    Json
                        .text(text)
                        .ToJsonString(
                            Text.Json.JsonSerializerOptions(
                                Encoder = Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping
                            )
                        )

                Expect.equal
                    ((JsonNode.Parse(Text.visible json)).GetValue<string>())
                    ((JsonNode.Parse json).GetValue<string>())
                    "text")

            law "a cut text is short, and whole" (fun text ->
                let cut = Text.cut "..." 8 text
                Expect.isLessThanOrEqual cut.Length 8 "length"
                Expect.equal (Text.visible cut) cut "visible"

                if (Text.visible text).Length > 8 then
                    Expect.stringEnds cut "..." "dots")

            testCase "one and many" (fun () ->
                Expect.equal (Text.counted 1 "class" "classes") "1 class" "one"
                Expect.equal (Text.counted 2 "class" "classes") "2 classes" "two"
                Expect.equal (Text.counted 0 "class" "classes") "0 classes" "none")
        ]
