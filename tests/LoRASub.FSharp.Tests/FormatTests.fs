module LoRASub.Tests.FormatTests

open System
open System.Globalization
open LoRASub.Report
open Expecto
open FsCheck
open FsCheck.FSharp

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

    Check.propertyWith (Arb.fromGen texts) 200 "Format" name property

[<Tests>]
let tests =
    testList
        "Format"
        [
            law "a cleaned text is one that XML can hold" (fun text ->
                Format.clean text |> System.Xml.XmlConvert.VerifyXmlChars |> ignore)

            law "cleaning twice changes nothing more" (fun text ->
                Expect.equal (Format.clean (Format.clean text)) (Format.clean text) "twice")

            law "a shortened text is short, whole, and keeps its ends" (fun text ->
                let letters = (StringInfo text).LengthInTextElements
                let short = Format.shorten 7 text
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
                    (Format.clean ("a\u202Eb\u2066c\u0000" + string '\uD800' + "\nאב"))
                    "a\\u202Eb\\u2066c\\u0000\\uD800\nאב"
                    "clean")

            testCase "numbers as people read them" (fun () ->
                Expect.equal (Format.fixedPoint 2 -1.005) "−1.00" "a true minus"
                Expect.equal (Format.fixedPoint 1 -0.01) "0.0" "no minus zero"
                Expect.equal (Format.fixedPoint 1 nan) "–" "none"
                Expect.equal (Format.fixedPoint 0 1234567.0) "1234567" "no grouping"
                Expect.equal (Format.significant 3 0.0012345) "0.00123" "digits"
                Expect.equal (Format.significant 3 infinity) "–" "infinite")

            testCase "names of fields as words" (fun () ->
                Expect.equal (Format.words "peakMemory") "peak memory" "camel case"
                Expect.equal (Format.words "seeds") "seeds" "one word")
        ]
