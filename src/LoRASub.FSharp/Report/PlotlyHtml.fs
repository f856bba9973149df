namespace LoRASub.Reports

open System
open System.IO
open System.Reflection
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub

/// A report as one HTML page that holds all it needs: it asks the network for nothing.
[<RequireQualifiedAccess>]
module PlotlyHtml =

    let private resource (assembly: Assembly) (name: string) =
        use stream = assembly.GetManifestResourceStream name
        use reader = new StreamReader(stream)
        reader.ReadToEnd()

    // Plotly.NET carries the JavaScript library that it is made for
    let private plotly (ending: string) =
        let assembly = typeof<Plotly.NET.Trace>.Assembly

        assembly.GetManifestResourceNames()
        |> Array.find (fun name -> name.EndsWith(ending, StringComparison.Ordinal))
        |> resource assembly

    let private own (name: string) =
        resource (Assembly.GetExecutingAssembly()) name

    // Figures as Plotly's data and layout. Colours are names that the page's script replaces by the theme's: @kind:2,
    // @kind:2:0.16 (with opacity), @along:0.5, @ramp.

    let private number (value: float) : JsonNode =
        // JSON has no NaN; Plotly draws nothing for null
        if Double.IsFinite value then Json.float value else null

    let private numbers: float seq -> JsonNode = Json.array number
    let private bool (value: bool) : JsonNode = JsonValue.Create value

    /// A text that Plotly shows as it is: it reads some markup in texts.
    let private plain (text: string) =
        (Markup.clean text).Replace("&", "&amp;").Replace("<", "&lt;").Replace(">", "&gt;")

    let private text = plain >> Json.text
    let private texts: string seq -> JsonNode = Json.array text

    let private colour (ink: Ink) =
        match ink with
        | Ink.Kind i -> $"@kind:{i}"
        | Ink.Along at -> $"@along:{Markup.fixedPoint 3 at}"

    let private invariant (value: float) =
        value.ToString(Globalization.CultureInfo.InvariantCulture)

    let private faded (opacity: float) ink = $"{colour ink}:{invariant opacity}"

    let private symbols =
        [| "circle"; "square"; "diamond"; "triangle-up"; "cross"; "x"; "star" |]

    let private isInterval (low: float) high =
        Double.IsFinite low && Double.IsFinite high

    let private errors (values: float[]) (low: float[]) (high: float[]) =
        Json.object
            [
                "type", Json.text "data"
                "symmetric", bool false
                "array", numbers (Array.map2 (-) high values)
                "arrayminus", numbers (Array.map2 (-) values low)
                "color", Json.text "@ink"
                "thickness", Json.int 1L
                "width", Json.int 3L
            ]

    let private curve (several: bool) (c: Curve) : JsonNode list =
        let banded =
            [| 0 .. c.X.Length - 1 |]
            |> Array.filter (fun i -> isInterval c.Low[i] c.High[i])

        let pick (values: float[]) =
            banded |> Array.map (fun i -> values[i])

        let kind =
            match c.Ink with
            | Ink.Kind i -> i
            | Ink.Along _ -> 0

        let name = Markup.shorten 40 c.Name

        [
            if banded.Length > 1 then
                Json.object
                    [
                        "type", Json.text "scatter"
                        "x", numbers (Array.append (pick c.X) (Array.rev (pick c.X)))
                        "y", numbers (Array.append (pick c.High) (Array.rev (pick c.Low)))
                        "fill", Json.text "toself"
                        "mode", Json.text "none"
                        "fillcolor", Json.text (faded 0.16 c.Ink)
                        "hoverinfo", Json.text "skip"
                        "showlegend", bool false
                        "legendgroup", text c.Name
                    ]
            Json.object
                [
                    "type", Json.text "scatter"
                    "name", text name
                    "legendgroup", text c.Name
                    "showlegend", bool several
                    "mode",
                    Json.text (
                        if c.X.Length <= 60 || c.DotAt.IsSome then
                            "lines+markers"
                        else
                            "lines"
                    )
                    "x", numbers c.X
                    "y", numbers c.Y
                    "customdata", texts c.Hover
                    "hovertemplate",
                    Json.text (
                        if several then
                            "%{customdata}<extra>%{fullData.name}</extra>"
                        else
                            "%{customdata}<extra></extra>"
                    )
                    "line",
                    Json.object
                        [
                            "color", Json.text (colour c.Ink)
                            "width", Json.int 2L
                            "dash", Json.text (if kind >= Palette.light.Length then "dash" else "solid")
                        ]
                    "marker",
                    Json.object
                        [
                            "color", Json.text (colour c.Ink)
                            "size",
                            (match c.DotAt with
                             | Some at -> Json.array (fun x -> Json.int (if x = at then 8L else 0L)) c.X
                             | None -> Json.int 7L)
                            "symbol", Json.text symbols[kind % symbols.Length]
                        ]
                    if banded.Length = 1 then
                        "error_y", errors c.Y c.Low c.High
                ]
        ]

    let private bar (bars: Bars) (s: BarSeries) : JsonNode =
        let positions = [ for i in 0 .. bars.Categories.Length - 1 -> float i ]
        let hasErrors = Array.exists2 isInterval s.Low s.High

        let isLabelled =
            bars.Series.Length = 1 && bars.Categories.Length <= 12 && not hasErrors

        Json.object
            [
                "type", Json.text "bar"
                "name", text (Markup.shorten 40 s.Name)
                "x", numbers positions
                "y", numbers s.Values
                "customdata", texts s.Hover
                "hovertemplate", Json.text "%{customdata}<extra></extra>"
                "marker", Json.object [ "color", Json.text (colour s.Ink) ]
                if hasErrors then
                    "error_y", errors s.Values s.Low s.High
                if isLabelled then
                    "text", texts (s.Values |> Array.map (Markup.fixedPoint 1))
                    "textposition", Json.text "outside"
                    "cliponaxis", bool false
            ]

    let private heat (grid: Grid) : JsonNode =
        let from, till = grid.Range
        let isLabelled = grid.Rows.Length <= 25 && grid.Columns.Length <= 25

        Json.object
            [
                "type", Json.text "heatmap"
                "z", Json.array numbers grid.Values
                "customdata", Json.array texts grid.Hover
                "hovertemplate", Json.text "%{customdata}<extra></extra>"
                "hoverongaps", bool false
                "zmin", number from
                "zmax", number till
                "colorscale", Json.text "@ramp"
                if isLabelled then
                    "text", Json.array texts grid.Texts
                    "texttemplate", Json.text "%{text}"
                "colorbar",
                Json.object
                    [
                        "title", Json.object [ "text", text grid.Unit; "side", Json.text "right" ]
                        "thickness", Json.int 10L
                        "outlinewidth", Json.int 0L
                        "len", Json.float 0.9
                    ]
            ]

    let private arrowGroup (labelled: bool) (group: ArrowGroup) : JsonNode list =
        let trace mode (x: float seq) (y: float seq) (hover: string seq) more =
            Json.object
                [
                    "type", Json.text "scatter"
                    "name", text group.Name
                    "legendgroup", text group.Name
                    "mode", Json.text mode
                    "x", numbers x
                    "y", numbers y
                    "customdata", texts hover
                    "hovertemplate", Json.text "%{customdata}<extra></extra>"
                    "line", Json.object [ "color", Json.text (colour group.Ink); "width", Json.float 1.5 ]
                    yield! more
                ]

        let marker more =
            "marker",
            Json.object
                [
                    "color", Json.text (colour group.Ink)
                    "line", Json.object [ "width", Json.int 0L ]
                    yield! more
                ]

        // from, to, gap; an arrow's head looks away from the point before it
        let along (from: 'T) (till: 'T) (gap: 'T) = [ from; till; gap ]

        let gone =
            [
                for a in group.Arrows do
                    match a.To with
                    | Some till -> a, till
                    | None -> ()
            ]

        [
            trace
                "lines+markers"
                (gone |> List.collect (fun (a, till) -> along (fst a.From) (fst till) nan))
                (gone |> List.collect (fun (a, till) -> along (snd a.From) (snd till) nan))
                (gone |> List.collect (fun (a, _) -> along a.Hover a.Hover ""))
                [
                    "showlegend", bool false
                    marker
                        [
                            "symbol", Json.text "arrow"
                            "angleref", Json.text "previous"
                            "opacity", Json.int 1L
                            "size", Json.array Json.int (gone |> List.collect (fun _ -> along 0L 9L 0L))
                        ]
                ]
            trace
                (if labelled then "markers+text" else "markers")
                (group.Arrows |> Seq.map (fun a -> fst a.From))
                (group.Arrows |> Seq.map (fun a -> snd a.From))
                (group.Arrows |> Seq.map _.Hover)
                [
                    marker [ "size", Json.int 7L ]
                    if labelled then
                        "text", texts (group.Arrows |> Seq.map _.Label)
                        "textposition", Json.text "top center"
                        "textfont", Json.object [ "size", Json.int 11L ]
                ]
        ]

    let private title (axis: PlotAxis) =
        Json.object [ "text", text axis.Title; "standoff", Json.int 8L ]

    let private axis (axis: PlotAxis) more =
        Json.object
            [
                "title", title axis
                "automargin", bool true
                if axis.Log then
                    "type", Json.text "log"
                    "dtick", Json.int 1L
                    "exponentformat", Json.text "power"
                if axis.FromZero then
                    "rangemode", Json.text "tozero"
                match axis.Range with
                | Some(low, high) -> "range", numbers [ low; high ]
                | None -> ()
                yield! more
            ]

    /// Ticks at some of many names.
    let private named (names: string[]) =
        let skip = max 1 ((names.Length + 39) / 40)
        let shown = [ 0..skip .. names.Length - 1 ]

        [
            "tickmode", Json.text "array"
            "tickvals", numbers (shown |> List.map float)
            "ticktext", texts (shown |> List.map (fun i -> Markup.shorten 18 names[i]))
            "showgrid", bool false
            "zeroline", bool false
        ]

    // whole numbers: a step that leaves about ten ticks
    let private wholeTicks (curves: Curve[]) (axis: PlotAxis) =
        [
            if axis.Whole && curves |> Array.forall (fun c -> Array.max c.X <= 12.0) then
                "dtick", Json.int 1L
            elif axis.Whole then
                "tickformat", Json.text "d"
        ]

    /// A line across a grid of `count` rows and columns.
    let private gridLine (count: int) horizontal at =
        let across, along = if horizontal then "y", "x" else "x", "y"

        let ends =
            [
                across + "0", number at
                across + "1", number at
                along + "0", number -0.5
                along + "1", number (float count - 0.5)
            ]

        Json.object
            [
                "type", Json.text "line"
                yield! ends
                "line", Json.object [ "color", Json.text "@ink"; "width", Json.float 0.6 ]
            ]

    let private constrained () =
        [ "constrain", Json.text "domain"; "constraintoward", Json.text "left" ]

    let private squared more =
        [
            "scaleanchor", Json.text "x"
            "constrain", Json.text "domain"
            "constraintoward", Json.text "top"
            yield! more
        ]

    /// The name of a curve at its last point; of curves in an order the first and last tell the rest.
    let private endLabel (y: PlotAxis) (c: Curve) =
        let value = Array.last c.Y

        Json.object
            [
                "text", text c.Name
                "x", number (Array.last c.X)
                "y", number (if y.Log then log10 value else value)
                "showarrow", bool false
                "xanchor", Json.text "left"
                "xshift", Json.int 6L
                "yanchor", Json.text "middle"
                "font", Json.object [ "color", Json.text "@ink" ]
            ]

    /// A figure's data, layout, and its height as a share of the width up to a limit of pixels.
    let private plot (figure: Figure) : JsonNode =
        let made data layout (aspect: float) (limit: float) =
            Json.object
                [
                    "id", Json.text figure.Id
                    "data", Json.array id data
                    "layout", Json.object layout
                    "aspect", Json.float aspect
                    "limit", Json.float limit
                ]

        match figure.Marks with
        | Marks.Curves curves ->
            let several = curves.Length > 1
            let ordered = several && curves |> Array.forall _.Ink.IsAlong

            made
                (curves |> Seq.collect (curve several))
                [
                    "xaxis", axis figure.X (wholeTicks curves figure.X)
                    "yaxis", axis figure.Y []
                    "showlegend", bool (several && not ordered)
                    if ordered then
                        "annotations", Json.array (endLabel figure.Y) [ curves[0]; Array.last curves ]
                        "margin", Json.object [ "r", Json.int 66L ]
                ]
                0.8
                380.0
        | Marks.Bars bars ->
            made
                (bars.Series |> Seq.map (bar bars))
                [
                    "xaxis", axis figure.X (named bars.Categories)
                    "yaxis", axis figure.Y []
                    "barmode", Json.text (if bars.Stacked then "stack" else "group")
                    "showlegend", bool (bars.Series.Length > 1)
                ]
                0.8
                380.0
        | Marks.Grid grid ->
            let isSquare = grid.Rows.Length = grid.Columns.Length
            let breaks = grid.Breaks |> Array.map (fun at -> float at - 0.5)

            let rows = [ yield! named grid.Rows; "autorange", Json.text "reversed" ]

            made
                [ heat grid ]
                [
                    "xaxis", axis figure.X (constrained () @ named grid.Columns)
                    "yaxis", axis figure.Y (if isSquare then squared rows else rows)
                    "shapes",
                    Json.array
                        id
                        [
                            for at in breaks do
                                gridLine grid.Rows.Length true at
                                gridLine grid.Rows.Length false at
                        ]
                ]
                (if isSquare then 0.76 else 0.8)
                (if isSquare then
                     (if grid.Columns.Length > 30 then 960.0 else 620.0)
                 else
                     max 320.0 (min 560.0 (120.0 + 26.0 * float grid.Rows.Length)))
        | Marks.Arrows groups ->
            // as high as the points lie apart
            let span (pick: float * float -> float) =
                let values =
                    groups
                    |> Array.collect _.Arrows
                    |> Array.collect (fun a -> [| pick a.From; a.To |> Option.defaultValue a.From |> pick |])

                max 1e-9 (Array.max values - Array.min values)

            let aspect = 0.15 + 0.7 * max 0.5 (min 1.1 (span snd / span fst))
            let isLabelled = (groups |> Array.sumBy _.Arrows.Length) <= 20

            made
                (groups |> Seq.collect (arrowGroup isLabelled))
                [
                    "xaxis", axis figure.X (constrained ())
                    "yaxis", axis figure.Y (squared [])
                    "showlegend", bool true
                ]
                aspect
                620.0

    /// JSON that may stand inside a script element: no "</" and no "<!--" in it.
    let private embedded (node: JsonNode) =
        // the default encoder writes < as \u003C; this holds whatever encoder is the default
        node.ToJsonString().Replace("<", "\\u003C")

    // HTML

    let private el = Markup.element
    let private said text = Markup.escape text

    /// A text of a user's: its direction stays its own.
    let private isolated (text: string) = el "bdi" [] [ said text ]

    let private cell (column: int) (content: string) =
        if column = 0 then
            el "th" [ "scope", "row" ] [ isolated content ]
        else
            el "td" [] [ isolated content ]

    let private tableHtml (table: Table) =
        let rows =
            Array.map2
                (fun marked row ->
                    el
                        "tr"
                        [
                            if marked then
                                "class", "marked"
                        ]
                        (Array.mapi cell row))
                table.Marked
                table.Rows

        el
            "div"
            [
                "class", "scroll"
                "tabindex", "0"
                "role", "region"
                "aria-label", table.Title
            ]
            [
                el
                    "table"
                    [ "class", $"table-{table.Id}" ]
                    [
                        el
                            "thead"
                            []
                            [
                                el
                                    "tr"
                                    []
                                    (table.Header
                                     |> Array.map (fun h -> el "th" [ "scope", "col" ] [ isolated h ]))
                            ]
                        el "tbody" [] rows
                    ]
            ]

    let private tableBlock (table: Table) =
        el
            "div"
            [ "class", "block"; "id", table.Id ]
            [
                el "h3" [] [ isolated table.Title ]
                tableHtml table
                if table.Note <> "" then
                    el "p" [ "class", "note" ] [ isolated table.Note ]
            ]

    let private folded (table: Table) =
        el
            "details"
            [ "id", table.Id ]
            [
                el "summary" [] [ isolated table.Title ]
                tableHtml table
                el "p" [ "class", "note" ] [ isolated table.Note ]
            ]

    let private isWide (figure: Figure) =
        match figure.Marks with
        | Marks.Bars bars -> bars.Categories.Length > 24
        | Marks.Grid grid -> grid.Columns.Length > 30
        | Marks.Curves curves -> curves |> Array.exists (fun c -> c.X.Length > 150)
        | Marks.Arrows _ -> false

    let private figureHtml (figure: Figure) =
        el
            "figure"
            [
                "id", $"figure-{figure.Id}"
                if isWide figure then
                    "class", "wide"
            ]
            [
                el "h3" [] [ isolated figure.Title ]
                el
                    "div"
                    [
                        "class", "chart"
                        "role", "img"
                        "aria-label", $"Chart: {figure.Title}. {figure.Caption}"
                        "data-figure", figure.Id
                    ]
                    []
                el "figcaption" [] [ isolated figure.Caption ]
            ]

    // more pictures than this say nothing new and make the file large
    [<Literal>]
    let private MostSamples = 24

    let private sample (report: ClassReport) (s: Sample) =
        let nameOf position = report.Classes[position].Name
        let isRight = report.Classes[s.True].Label = report.Classes[s.Predicted].Label

        let line word position =
            el "span" [] [ el "small" [] [ said word ]; isolated (Markup.shorten 40 (nameOf position)) ]

        el
            "li"
            [ "class", (if isRight then "right" else "wrong") ]
            [
                Markup.lone
                    "img"
                    [
                        "src", "data:image/png;base64," + s.Png
                        "alt", $"Test image of {Markup.shorten 80 (nameOf s.True)}"
                        "loading", "lazy"
                    ]
                el
                    "p"
                    []
                    [
                        el "b" [] [ (if isRight then "✓ right" else "✗ wrong") ]
                        line (if isRight then "" else "true ") s.True
                        if not isRight then
                            line "taken for " s.Predicted
                    ]
            ]

    let private samples (studies: Study[]) (study: Study) : string option =
        study.Runs
        |> Array.tryPick (fun run ->
            run.Classes
            |> Option.filter (fun report -> report.Samples.Length > 0)
            |> Option.map (fun report -> run, report))
        |> Option.map (fun (run, report) ->
            let isRight (s: Sample) =
                report.Classes[s.True].Label = report.Classes[s.Predicted].Label

            let right, wrong = Array.partition isRight report.Samples
            let half = MostSamples / 2
            // each side lends the room that it does not need
            let wrong = Array.truncate (max half (MostSamples - right.Length)) wrong
            let shown = Array.append wrong (Array.truncate (MostSamples - wrong.Length) right)

            let heading =
                if studies.Length = 1 then
                    "Sample predictions"
                else
                    $"Sample predictions: {study.Name}"

            let seed = if study.Runs.Length = 1 then "" else $" of seed {run.Seed}"

            let note =
                $"{shown.Length} of the {report.Samples.Length} test images{seed} that were kept for show, wrong ones first; they are chosen for variety, so their shares are not the accuracy."

            el
                "div"
                [ "class", "block" ]
                [
                    el "h3" [] [ isolated heading ]
                    el "ul" [ "class", "samples" ] (shown |> Array.map (sample report))
                    el "p" [ "class", "note" ] [ said note ]
                ])

    let private anchor (section: string) =
        section.ToLowerInvariant().Replace(' ', '-')

    let private section (name: string) (content: string list) =
        match content |> List.filter ((<>) "") with
        | [] -> None
        | content ->
            Some(
                name,
                el
                    "section"
                    [ "id", anchor name; "aria-labelledby", $"h-{anchor name}" ]
                    [ el "h2" [ "id", $"h-{anchor name}" ] [ said name ]; yield! content ]
            )

    let private figuresOf (figures: Figure[]) (name: string) =
        match figures |> Array.filter (fun f -> f.Section = name) with
        | [||] -> ""
        | found -> el "div" [ "class", "figures" ] (found |> Array.map figureHtml)

    let private notes (studies: Study[]) =
        let ofStudy (study: Study) =
            let notes =
                [|
                    yield! study.Notes
                    for run in study.Runs do
                        for note in run.Notes ->
                            if study.Runs.Length = 1 then
                                note
                            else
                                $"seed {run.Seed}: {note}"
                |]

            if notes.Length = 0 then
                ""
            else
                el
                    "div"
                    [ "class", "block" ]
                    [
                        if studies.Length > 1 then
                            el "h3" [] [ isolated study.Name ]
                        el "ul" [] (notes |> Array.map (fun note -> el "li" [] [ isolated note ]))
                    ]

        studies |> Array.map ofStudy |> String.concat ""

    let private options f = Option.map f >> Option.defaultValue ""

    let private pageTitle (studies: Study[]) =
        match studies with
        | [| study |] -> study.Name
        | _ -> studies |> Array.map _.Name |> String.concat " · " |> Markup.shorten 120

    let private header (studies: Study[]) =
        let verdicts =
            match studies with
            | [| study |] -> el "p" [ "class", "verdict" ] [ isolated (Tables.verdict study) ]
            | _ ->
                el
                    "ul"
                    [ "class", "verdict" ]
                    [
                        for study in studies ->
                            el
                                "li"
                                []
                                [ el "b" [] [ isolated study.Name ]; " "; isolated (Tables.verdict study) ]
                    ]

        let unfinished =
            studies
            |> Array.filter (fun study -> study.Runs |> Array.exists (fun run -> not run.Finished))
            |> Array.map _.Name
            |> String.concat ", "

        let kind =
            if studies.Length = 1 then
                "Class-incremental learning: report of a run"
            else
                $"Class-incremental learning: comparison of {studies.Length} runs"

        el
            "header"
            []
            [
                el
                    "div"
                    [ "class", "top" ]
                    [
                        el "p" [ "class", "kind" ] [ said kind ]
                        el "button" [ "type", "button"; "id", "theme"; "aria-pressed", "false" ] [ "Dark" ]
                    ]
                el "h1" [] [ isolated (pageTitle studies) ]
                verdicts
                if unfinished <> "" then
                    el
                        "p"
                        [ "class", "unfinished"; "role", "note" ]
                        [
                            "Not finished: "
                            isolated unfinished
                            ". This report shows what is written so far."
                        ]
            ]

    let private palettes () =
        let theme kinds ramp ink faint paper muted =
            Json.object
                [
                    "kinds", Json.array Json.text kinds
                    "ramp", Json.array Json.text ramp
                    "ink", Json.text ink
                    "faint", Json.text faint
                    "paper", Json.text paper
                    "muted", Json.text muted
                ]

        Json.object
            [
                "light", theme Palette.light Palette.lightRamp "#1b1f24" "#e3e6ea" "#ffffff" "#57606a"
                "dark", theme Palette.dark Palette.darkRamp "#e6e9ed" "#2f363e" "#12161b" "#9aa4af"
            ]

    // The library's own file names the licence; the licence asks for its text.
    let private mit =
        """plotly.js, Copyright 2012-2024, Plotly, Inc.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

"""

    // No source but this page itself: a browser that reads this asks the network for nothing.
    let private policy =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

    /// The page for one study or, side by side, several. Needs at least one.
    let page (studies: Study[]) : string =
        let figures = Figures.all studies
        let ofSection = figuresOf figures

        let sections =
            [
                section
                    "Results"
                    [
                        tableBlock (Tables.results studies)
                        options
                            tableBlock
                            (if studies.Length > 1 then
                                 Tables.differences studies
                             else
                                 None)
                        options
                            tableBlock
                            (if studies.Length > 1 then
                                 Tables.settingDifferences studies
                             else
                                 None)
                    ]
                section Section.accuracy [ ofSection Section.accuracy ]
                section Section.drift [ ofSection Section.drift ]
                section Section.subspace [ ofSection Section.subspace ]
                section
                    Section.classes
                    [ ofSection Section.classes; yield! studies |> Array.choose (samples studies) ]
                section
                    Section.training
                    [ ofSection Section.training; options tableBlock (Tables.seconds studies) ]
                section
                    "Settings and environment"
                    [
                        options folded (Tables.settings studies)
                        options folded (Tables.environment studies)
                    ]
                section "Notes" [ notes studies ]
            ]
            |> List.choose id

        let contents =
            el
                "nav"
                [ "aria-label", "Contents" ]
                [
                    el
                        "ul"
                        []
                        [
                            for name, _ in sections ->
                                el "li" [] [ el "a" [ "href", $"#{anchor name}" ] [ said name ] ]
                        ]
                ]

        let licence =
            el
                "details"
                [ "id", "licences" ]
                [
                    el "summary" [] [ "Licences of the software in this page" ]
                    el
                        "p"
                        [ "class", "note" ]
                        [
                            "The charts are drawn by plotly.js under the MIT licence below; the parts that it is made of follow."
                        ]
                    el "pre" [ "tabindex", "0" ] [ said mit; said (plotly ".js.LICENSE.txt") ]
                ]

        let body =
            [
                el "a" [ "class", "skip"; "href", "#results" ] [ "Skip to the results" ]
                header studies
                contents
                el "main" [] [ yield! List.map snd sections ]
                el "footer" [] [ el "p" [] [ "Made by lorasub report from the files of the run." ]; licence ]
                el
                    "noscript"
                    []
                    [
                        el
                            "p"
                            [ "class", "note" ]
                            [ "The charts need JavaScript; tables and captions do not." ]
                    ]
                el
                    "script"
                    [ "type", "application/json"; "id", "figures" ]
                    [ embedded (Json.array plot figures) ]
                el "script" [ "type", "application/json"; "id", "palettes" ] [ embedded (palettes ()) ]
                el "script" [] [ plotly ".min.js" ]
                el "script" [] [ own "report.js" ]
            ]

        let head =
            [
                Markup.lone "meta" [ "charset", "utf-8" ]
                Markup.lone "meta" [ "http-equiv", "Content-Security-Policy"; "content", policy ]
                Markup.lone "meta" [ "name", "viewport"; "content", "width=device-width, initial-scale=1" ]
                Markup.lone "meta" [ "name", "color-scheme"; "content", "light dark" ]
                Markup.lone "meta" [ "name", "generator"; "content", "lorasub report" ]
                Markup.lone "link" [ "rel", "icon"; "href", "data:," ]
                el "title" [] [ said (pageTitle studies) ]
                el "style" [] [ own "report.css" ]
            ]

        "<!DOCTYPE html>\n"
        + el "html" [ "lang", "en" ] [ el "head" [] head; el "body" [] body ]
        + "\n"
