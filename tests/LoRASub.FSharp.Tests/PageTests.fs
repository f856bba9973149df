module LoRASub.Tests.PageTests

open System
open System.Text.Json
open System.Text.RegularExpressions
open LoRASub.Settings
open LoRASub.Report
open Expecto
open LoRASub.Tests.SampleRuns

let private page (samples: (string * Sample) list) = FiguresTests.groupsOf samples Page.html

/// The opening tag and content of each script, and the page without them.
let private scripts (html: string) =
    let rec next (from: int) found rest =
        match html.IndexOf("<script", from, StringComparison.Ordinal) with
        | -1 -> List.rev found, String.Concat(List.rev (html.Substring from :: rest))
        | start ->
            let inner = html.IndexOf('>', start) + 1
            let finish = html.IndexOf("</script>", inner, StringComparison.Ordinal)

            let script =
                html.Substring(start, inner - start), html.Substring(inner, finish - inner)

            next (finish + "</script>".Length) (script :: found) (html.Substring(from, start - from) :: rest)

    next 0 [] []

let private tag =
    Regex(@"<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s+[a-zA-Z-]+=""[^""<]*"")*)\s*(/?)>")

/// Every tag closes the one that it should; what is no tag holds neither < nor >.
let private checkBalance (html: string) =
    let html = html.Replace("<!DOCTYPE html>", "")
    let html = Regex.Replace(html, @"<style>.*?</style>", "", RegexOptions.Singleline)

    let left =
        (([]: string list), tag.Matches html)
        ||> Seq.fold (fun stack m ->
            let name = m.Groups[2].Value

            if m.Groups[4].Value = "/" || List.contains name [ "meta"; "link"; "img" ] then
                stack
            elif m.Groups[1].Value = "/" then
                Expect.equal (List.tryHead stack) (Some name) "the open tag that ends"
                List.tail stack
            else
                name :: stack)

    Expect.isEmpty left "all are closed"
    Expect.isFalse (Regex.IsMatch(tag.Replace(html, ""), "[<>]")) "nothing but text remains"

let private figuresOf (html: string) =
    scripts html
    |> fst
    |> List.find (fun (attributes, _) -> attributes.Contains "\"figures\"")
    |> snd
    |> JsonDocument.Parse

let private hostile (position: int) =
    [|
        "</script><script>alert(1)</script>"
        "<!--<script>"
        "\"><img src=x onerror=alert(1)>"
        "' onload='x"
        "@kind:0"
        "%{x} <b>bold</b> &amp;"
        "כלב \u202E gnirts"
        String('w', 4000)
        "\uD800\u0000"
    |][position % 9]

[<Tests>]
let tests =
    testList
        "Page"
        [
            testCase "every shape gives a page whose tags balance and whose data is JSON" (fun () ->
                for name, groups in FiguresTests.shapeGroups.Value do
                    let html = Page.html groups
                    checkBalance (snd (scripts html))
                    use figures = figuresOf html

                    Expect.equal (figures.RootElement.GetArrayLength()) (Figures.all groups).Length name)

            testCase "a page asks the network for nothing" (fun () ->
                let html = page [ "run", small ]
                let _, rest = scripts html
                Expect.isFalse (Regex.IsMatch(rest, @"(src|href|action)=""(?!#|data:)")) "attributes"
                Expect.isFalse (Regex.IsMatch(rest, @"url\(|@import")) "styles"
                Expect.stringContains rest "default-src &#39;none&#39;" "and lets no one else"
                Expect.isFalse (rest.Contains "connect-src") "no exception")

            testCase "it holds the chart library with its licence" (fun () ->
                let html = page [ "run", small ]
                Expect.stringContains html "plotly.js v2" "the library"
                Expect.stringContains html "Permission is hereby granted" "its licence in full")

            testCase "hostile names stay text" (fun () ->
                let sample =
                    { small with
                        Name = hostile
                        Settings = [ "data-path", "</td><script>alert(2)</script>" ]
                    }

                let html = page [ "a<b>&\"'", sample; "plain", small ]
                let parts, rest = scripts html
                Expect.equal parts.Length 4 "figures, palettes, library, own script"
                checkBalance rest
                Expect.isFalse (rest.Contains "onerror=alert(1)>") "no attribute of theirs"
                Expect.stringContains rest "a&lt;b&gt;&amp;&quot;&#39;" "shown as written"
                use figures = figuresOf html
                Expect.isFalse (figures.RootElement.GetRawText().Contains "<") "none in the data")

            testCase "what is missing is noted, and what is there is shown" (fun () ->
                let html =
                    page
                        [
                            "run",
                            { small with
                                Without = [ "drift.json"; "classes.json" ]
                            }
                        ]

                Expect.stringContains html "drift.json is missing: no drift and subspaces." "drift"
                Expect.stringContains html "classes.json is missing" "classes"
                Expect.isFalse (html.Contains "id=\"drift\"") "no empty section"
                Expect.stringContains html "data-figure=\"accuracy\"" "the rest"
                Expect.isFalse (html.Contains "class=\"warning\"") "it is finished")

            testCase "an unfinished run is marked" (fun () ->
                let html = page [ "run", { small with Tasks = 9; Learned = 2 } ]
                Expect.stringContains html "Not finished" "header"
                Expect.stringContains html "2 of 9 tasks" "verdict")

            testCase "samples are shown with their answers, wrong ones first" (fun () ->
                let _, html = page [ "run", small ] |> scripts

                let kinds =
                    [
                        for m in Regex.Matches(html, @"<li class=""(correct|wrong)""") -> m.Groups[1].Value
                    ]

                Expect.equal kinds.Length 24 "a readable number"
                Expect.equal (List.distinct kinds) [ "wrong"; "correct" ] "order"
                Expect.equal (List.sortDescending kinds) kinds "grouped"
                Expect.stringContains html "data:image/png;base64,iVBORw0KGgo" "pictures inside")

            testCase "compared runs show the same samples, each with every run's answer" (fun () ->
                let html = page [ "first", small; "second", { small with Seed = 2L } ]
                let _, rest = scripts html

                let pictures =
                    [ for m in Regex.Matches(rest, @"base64,([^""]*)""") -> m.Groups[1].Value ]

                Expect.equal (List.distinct pictures) pictures "each once"
                Expect.equal pictures.Length 24 "a readable number"

                for run in [ "first"; "second" ] do
                    Expect.equal
                        (Regex.Matches(rest, $@"(correct|wrong) in </small><bdi>{run}<")).Count
                        24
                        run)

            testCase "the best value of a row is bold, whatever its column" (fun () ->
                let _, rest =
                    page [ "worse", { small with Decay = 0.2 }; "better", small ] |> scripts

                let row = Regex.Match(rest, @"<bdi>forgetting \(points\) ↓</bdi></th>(.*?)</tr>")
                Expect.isTrue row.Success "row"
                Expect.isTrue (Regex.IsMatch(row.Groups[1].Value, @"^<td><bdi>.*</td><td><b>")) row.Value)

            testCase "every figure has its caption as text, and every contents entry its section" (fun () ->
                let _, html = page [ "run", small ] |> scripts
                let count pattern = (Regex.Matches(html, pattern)).Count
                Expect.equal (count "<figcaption>") (count "data-figure=") "captions"
                let ids = [ for m in Regex.Matches(html, @" id=""([^""]*)""") -> m.Groups[1].Value ]
                Expect.equal (List.distinct ids) ids "identifiers are unique"

                for m in Regex.Matches(html, @"href=""#([^""]*)""") do
                    Expect.contains ids m.Groups[1].Value "leads somewhere")

            testCase "the same runs give the same page" (fun () ->
                FiguresTests.groupsOf [ "run", small ] (fun groups ->
                    Expect.isTrue (Page.html groups = Page.html groups) "same text"))
        ]
