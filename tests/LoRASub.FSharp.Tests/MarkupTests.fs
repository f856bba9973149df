module LoRASub.Tests.MarkupTests

open System
open System.Globalization
open System.Xml.Linq
open Expecto
open FsCheck
open FsCheck.FSharp
open LoRASub.Reports

let private law name (property: string -> unit) : Test =
    // any characters, whole or not, those that markup means something by among them
    let hostile =
        Gen.elements (List.ofSeq "<>&\"'\\/-{}[]%$#_^~|`*!\r\n\t\u0000\u202E\uD83D\uDE00\uFFFEאcé ")

    let texts =
        Gen.oneof
            [
                Gen.listOf hostile |> Gen.map (Array.ofList >> String)
                ArbMap.defaults |> ArbMap.generate<NonNull<string>> |> Gen.map _.Get
            ]

    Check.propertyWith (Arb.fromGen texts) 200 "Markup" name property

[<Tests>]
let tests =
    testList
        "Markup"
        [
            law "an XML reader gives back the cleaned text, as content and as attribute" (fun text ->
                let element = Markup.element "p" [ "title", text ] [ Markup.escape text ]
                let read = XElement.Parse(element, LoadOptions.PreserveWhitespace)
                let clean = Markup.clean text
                Expect.equal read.Value clean "content"

                // in attributes XML reads every white space as a blank
                let blank = clean.Replace('\n', ' ').Replace('\t', ' ')
                Expect.equal ((read.Attribute(XName.Get "title")).Value) blank "attribute")

            law "cleaning twice changes nothing more" (fun text ->
                Expect.equal (Markup.clean (Markup.clean text)) (Markup.clean text) "twice")

            law "a shortened text is short, whole, and keeps its ends" (fun text ->
                let letters = (StringInfo text).LengthInTextElements
                let short = Markup.shorten 7 text
                Expect.equal (StringInfo short).LengthInTextElements (min 7 letters) "length in letters"

                if letters <= 7 then
                    Expect.equal short text "left as it is"
                else
                    Expect.equal
                        (StringInfo.GetNextTextElement short)
                        (StringInfo.GetNextTextElement text)
                        "start")

            testCase "texts that turn the direction of others are shown as such" (fun () ->
                Expect.equal
                    (Markup.clean ("a\u202Eb\u2066c\u0000" + string '\uD800' + "\nאב"))
                    "a\\u202Eb\\u2066c\\u0000\\uD800\nאב"
                    "clean")

            testCase "numbers as people read them" (fun () ->
                Expect.equal (Markup.fixedPoint 2 -1.005) "−1.00" "a true minus"
                Expect.equal (Markup.fixedPoint 1 -0.01) "0.0" "no minus zero"
                Expect.equal (Markup.fixedPoint 1 nan) "–" "none"
                Expect.equal (Markup.fixedPoint 0 1234567.0) "1234567" "no grouping"
                Expect.equal (Markup.significant 3 0.0012345) "0.00123" "digits"
                Expect.equal (Markup.significant 3 infinity) "–" "infinite")
        ]
