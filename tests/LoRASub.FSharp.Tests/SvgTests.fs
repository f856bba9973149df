module LoRASub.Tests.SvgTests

open System.Text.RegularExpressions
open System.Xml.Linq
open Expecto
open LoRASub.Reports
open LoRASub.Tests.SampleRuns

let private texts (svg: string) =
    [
        for e in (XDocument.Parse svg).Descendants() do
            if e.Name.LocalName = "text" then
                e.Value
    ]

/// Numbers in attributes that place something.
let private coordinates (svg: string) =
    [
        for e in (XDocument.Parse svg).Descendants() do
            for a in e.Attributes() do
                if
                    List.contains
                        a.Name.LocalName
                        [ "x"; "y"; "x1"; "x2"; "y1"; "y2"; "cx"; "cy"; "width"; "height" ]
                then
                    float a.Value
    ]

[<Tests>]
let tests =
    testList
        "Svg"
        [
            testCase "every figure of every shape is well-formed and within its page" (fun () ->
                for name, studies in FiguresTests.shapeStudies.Value do
                    for figure in Figures.all studies do
                        let svg = Svg.render figure
                        let what = $"{name}, {figure.Id}"
                        let width, height = Svg.size figure

                        Expect.all (coordinates svg) (fun c -> c >= -1.0 && c <= 1.0 + max width height) what

                        Expect.isFalse (Regex.IsMatch(svg, "NaN|Infinity")) what
                        Expect.contains (texts svg) figure.X.Title what
                        Expect.contains (texts svg) figure.Y.Title what)

            testCase "hostile names are text" (fun () ->
                let name position =
                    [|
                        "</text><script>alert(1)</script>"
                        "a & b \"c\" 'd'"
                        "כלב\u202E"
                        "\u0000x"
                    |][position % 4]

                FiguresTests.studiesOf [ "run", { small with Name = name } ] (fun studies ->
                    for figure in Figures.all studies do
                        let document = XDocument.Parse(Svg.render figure)
                        let names = document.Descendants() |> Seq.map _.Name.LocalName |> Set.ofSeq

                        let known =
                            set [ "svg"; "g"; "title"; "desc"; "rect"; "text"; "line"; "path"; "circle" ]

                        Expect.isTrue (Set.isSubset names known) $"{names}"))

            testCase "lines of a comparison carry their names, apart from each other" (fun () ->
                let samples = [ for n in 1..5 -> $"run {n}", small ]

                FiguresTests.studiesOf samples (fun studies ->
                    let figure = Figures.all studies |> Array.find (fun f -> f.Id = "accuracy")

                    let labels =
                        [
                            for e in (XDocument.Parse(Svg.render figure)).Descendants() do
                                if e.Value.StartsWith "run " && e.Name.LocalName = "text" then
                                    float (e.Attribute(XName.Get "y")).Value
                        ]
                        |> List.sort

                    Expect.equal labels.Length 5 "labels"

                    for a, b in List.pairwise labels do
                        Expect.isGreaterThan (b - a) 14.9 "room between labels"))

            testCase "axes have round ticks" (fun () ->
                FiguresTests.studiesOf [ "run", small ] (fun studies ->
                    let figure = Figures.all studies |> Array.find (fun f -> f.Id = "classes")
                    let svg = texts (Svg.render figure)

                    for tick in [ "0"; "20"; "40"; "60"; "80"; "100" ] do
                        Expect.contains svg tick "percent"))
        ]
