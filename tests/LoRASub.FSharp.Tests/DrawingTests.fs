module LoRASub.Tests.DrawingTests

open System.IO
open System.Text.RegularExpressions
open System.Xml.Linq
open LoRASub.Report
open Expecto
open LoRASub.Tests.SampleRuns

let private texts (svg: string) =
    [
        for e in (XDocument.Parse svg).Descendants() do
            if e.Name.LocalName = "text" then
                e.Value
    ]

let private find id groups =
    Figures.all groups |> Array.find (fun f -> f.Id = id)

[<Tests>]
let tests =
    testList
        "Drawing"
        [
            testCase
                "every figure of every shape is well-formed SVG with its axes, title and caption"
                (fun () ->
                    for name, groups in FiguresTests.shapeGroups.Value do
                        for figure in Figures.all groups do
                            let svg = Drawing.svg figure
                            let what = $"{name}, {figure.Id}"
                            Expect.isFalse (Regex.IsMatch(svg, "NaN|Infinity|∞")) what
                            Expect.contains (texts svg) figure.X.Title what
                            Expect.contains (texts svg) figure.Y.Title what
                            let root = (XDocument.Parse svg).Root
                            let inside = [ for e in root.Elements() -> e.Name.LocalName, e.Value ]

                            Expect.equal
                                (List.truncate 2 inside)
                                [ "title", figure.Title; "desc", figure.Caption ]
                                what)

            testCase "hostile names are text" (fun () ->
                let name position =
                    [|
                        "</text><script>alert(1)</script>"
                        "a & b \"c\" 'd'"
                        "כלב\u202E"
                        "\u0000x"
                    |][position % 4]

                FiguresTests.groupsOf [ "<script>", { small with Name = name } ] (fun groups ->
                    for figure in Figures.all groups do
                        let document = XDocument.Parse(Drawing.svg figure)
                        let names = document.Descendants() |> Seq.map _.Name.LocalName |> Set.ofSeq
                        Expect.isFalse (names.Contains "script") figure.Id))

            testCase "a comparison has a legend, cells have digits, tasks have borders" (fun () ->
                FiguresTests.groupsOf [ "first", small; "second", small ] (fun groups ->
                    let drawn id = texts (Drawing.svg (find id groups))
                    Expect.containsAll (drawn "accuracy") [ "first"; "second" ] "legend"

                    let matrix =
                        match (find "accuracy-matrix-1" groups).Marks with
                        | Marks.Heatmap heatmap -> heatmap.Texts |> Seq.concat |> Seq.filter ((<>) "")
                        | other -> failtest $"{other}"

                    Expect.containsAll (drawn "accuracy-matrix-1") matrix "digits"

                    let lines id =
                        let svg = XDocument.Parse(Drawing.svg (find id groups))

                        svg.Descendants()
                        |> Seq.filter (fun e -> List.contains e.Name.LocalName [ "line"; "polyline" ])
                        |> Seq.length

                    Expect.isGreaterThan (lines "confusion-1") (lines "accuracy-matrix-1") "borders"))

            testCase "axes of percentages have round ticks" (fun () ->
                FiguresTests.groupsOf [ "run", small ] (fun groups ->
                    let svg = texts (Drawing.svg (find "classes" groups))

                    for tick in [ "0"; "20"; "40"; "60"; "80"; "100" ] do
                        Expect.contains svg tick "percent"))

            testCase "a PNG is twice the size" (fun () ->
                match Drawing.missingForPng () with
                | Some missing -> skiptest missing
                | None ->
                    FiguresTests.groupsOf [ "run", small ] (fun groups ->
                        use stream = new MemoryStream()
                        Drawing.png stream (find "accuracy" groups)
                        let bytes = stream.ToArray()

                        let number at =
                            int bytes[at + 2] * 256 + int bytes[at + 3]

                        Expect.equal bytes[1..3] "PNG"B "kind"
                        Expect.equal (number 16, number 20) (1280, 760) "pixels"))
        ]
