namespace LoRASub.Reports

open System

/// Figures as SVG for papers: black on white, without a drawn title, with text as text. Sizes are CSS pixels.
[<RequireQualifiedAccess>]
module Svg =

    let private ink = "#222222"
    let private faint = "#dddddd"
    let private fontSize = 12.0

    let private n (value: float) =
        // two decimals are below what any printer shows
        (Math.Round(value, 2) + 0.0).ToString("0.##", Globalization.CultureInfo.InvariantCulture)

    /// The room a text takes, without knowing the font: letters of Helvetica are 0.55 em wide on average.
    let private widthOf (size: float) (text: string) = 0.56 * size * float text.Length

    let private text (x: float) (y: float) (anchor: string) (more: (string * string) list) (content: string) =
        Markup.element "text" ([ "x", n x; "y", n y; "text-anchor", anchor ] @ more) [ Markup.escape content ]

    let private line (x1: float) y1 x2 y2 colour (more: (string * string) list) =
        Markup.lone "line" ([ "x1", n x1; "y1", n y1; "x2", n x2; "y2", n y2; "stroke", colour ] @ more)

    let private rect (x: float) y width height fill (more: (string * string) list) =
        Markup.lone
            "rect"
            ([ "x", n x; "y", n y; "width", n width; "height", n height; "fill", fill ]
             @ more)

    let private path (points: (float * float) seq) =
        points
        |> Seq.mapi (fun i (x, y) -> (if i = 0 then "M" else "L") + n x + " " + n y)
        |> String.concat ""

    /// An axis on the page: where a value stands, and which ticks it has.
    type private Scale =
        {
            Place: float -> float
            Ticks: (float * string) list
        }

    // 1, 2 or 5 times a power of ten, for about `count` steps
    let private step (count: int) (span: float) =
        let raw = span / float count
        let power = 10.0 ** floor (log10 raw)

        [ 1.0; 2.0; 5.0; 10.0 ]
        |> List.map ((*) power)
        |> List.find (fun candidate -> candidate >= raw * 0.999)

    let private linear (whole: bool) (count: int) (low, high) (from, till) : Scale =
        let step =
            if whole then
                max 1.0 (ceil (step count (high - low)))
            else
                step count (high - low)

        // steps below one need their decimals
        let decimals = max 0 (int (ceil (-(log10 step) - 1e-9)))
        let first = ceil (low / step - 1e-9)
        let last = floor (high / step + 1e-9)

        {
            Place = fun value -> from + (value - low) / (high - low) * (till - from)
            Ticks =
                [
                    for i in 0 .. int (last - first) ->
                        let value = (first + float i) * step
                        value, Markup.fixedPoint decimals value
                ]
        }

    let private logarithmic (low: float, high: float) (from, till) : Scale =
        let bottom, top = floor (log10 low + 1e-9), ceil (log10 high - 1e-9)
        let top = max top (bottom + 1.0)
        let every = max 1 (int (top - bottom) / 6)

        {
            Place = fun value -> from + (log10 value - bottom) / (top - bottom) * (till - from)
            Ticks =
                [
                    for power in int bottom .. every .. int top ->
                        10.0 ** float power, Markup.significant 3 (10.0 ** float power)
                ]
        }

    /// Ends that hold all values with some air.
    let private ends (axis: PlotAxis) (values: float seq) =
        match axis.Range with
        | Some range -> range
        | None ->
            let values = values |> Seq.filter Double.IsFinite |> Array.ofSeq

            if values.Length = 0 then
                0.0, 1.0
            else
                let low, high = Array.min values, Array.max values

                if low = high && not (axis.FromZero && low > 0.0) then
                    let air = max 0.5 (abs low * 0.1)
                    low - air, high + air
                elif axis.FromZero && low >= 0.0 then
                    0.0, 1.05 * high
                else
                    let air = 0.05 * (high - low)
                    low - air, high + air

    let private scale (axis: PlotAxis) count range page =
        if axis.Log then
            logarithmic range page
        else
            linear axis.Whole count range page

    type private Box =
        {
            Left: float
            Top: float
            Right: float
            Bottom: float
        }

    let private yAxis (box: Box) (axis: PlotAxis) (scale: Scale) =
        [
            for value, label in scale.Ticks do
                let y = scale.Place value
                line box.Left y box.Right y faint []
                text (box.Left - 7.0) (y + 4.0) "end" [] label
            let middle = (box.Top + box.Bottom) / 2.0
            text 0.0 0.0 "middle" [ "transform", $"translate(14 {n middle}) rotate(-90)" ] axis.Title
        ]

    let private xTitle (box: Box) (height: float) (axis: PlotAxis) =
        text ((box.Left + box.Right) / 2.0) (height - 8.0) "middle" [] axis.Title

    let private xAxis (box: Box) height (axis: PlotAxis) (scale: Scale) =
        [
            line box.Left box.Bottom box.Right box.Bottom ink []
            for value, label in scale.Ticks do
                let x = scale.Place value
                line x box.Bottom x (box.Bottom + 4.0) ink []
                text x (box.Bottom + 17.0) "middle" [] label
            xTitle box height axis
        ]

    let private colourOf = Palette.ink Palette.light Palette.lightRamp

    /// Swatches below each other; names are cut where the room ends.
    let private legend (x: float) (top: float) (entries: (string * Ink) seq) =
        [
            for i, (name, ink) in Seq.indexed entries do
                let y = top + 16.0 * float i
                rect x (y - 8.0) 12.0 8.0 (colourOf ink) []
                text (x + 18.0) y "start" [] (Markup.shorten 24 name)
        ]

    let private legendWidth (names: string seq) =
        names
        |> Seq.map (Markup.shorten 24 >> widthOf fontSize)
        |> Seq.fold max 0.0
        |> (+) 32.0

    /// Places at least `gap` apart, each as near to where it wants to be as going down the page allows.
    let private apart (gap: float) (bottom: float) (wanted: float[]) : float[] =
        let order = Array.init wanted.Length id |> Array.sortBy (fun i -> wanted[i])
        let places = Array.copy wanted

        for a, b in Array.pairwise order do
            places[b] <- max places[b] (places[a] + gap)

        // what was pushed off the page comes back up
        let mutable limit = bottom

        for i in Array.rev order do
            places[i] <- min places[i] limit
            limit <- places[i] - gap

        places

    /// The points of a curve that carry a dot.
    let private dotted (c: Curve) (points: (float * float)[]) =
        match c.DotAt with
        | Some at ->
            points
            |> Array.indexed
            |> Array.filter (fun (i, _) -> c.X[i] = at)
            |> Array.map snd
        | None when c.X.Length <= 30 -> points
        | None -> [||]

    let private dashes (kind: Ink) =
        match kind with
        | Ink.Kind i when i >= Palette.light.Length -> [ "stroke-dasharray", "6 3" ]
        | _ -> []

    let private curves (width: float) height (figure: Figure) (curves: Curve[]) =
        let isMany = curves.Length > 6
        let names = curves |> Array.map _.Name
        let right = if curves.Length = 1 then 16.0 else legendWidth names

        let ys =
            curves
            |> Seq.collect (fun c -> Seq.concat [ c.Y; c.Low; c.High ])
            |> Array.ofSeq

        let box =
            {
                Left = 62.0
                Top = 12.0
                Right = width - right
                Bottom = height - 46.0
            }

        let xs = curves |> Seq.collect _.X |> Array.ofSeq

        let xRange =
            match Array.min xs, Array.max xs with
            | low, high when low = high -> low - 1.0, high + 1.0
            | low, high -> low - 0.02 * (high - low), high + 0.02 * (high - low)

        let yRange =
            if figure.Y.Log then
                Array.min ys, Array.max ys
            else
                ends figure.Y ys

        let x = scale figure.X 10 xRange (box.Left, box.Right)
        let y = scale figure.Y 6 yRange (box.Bottom, box.Top)

        let one (c: Curve) =
            let colour = colourOf c.Ink

            let at values =
                Array.map2 (fun a b -> x.Place a, y.Place b) c.X values

            let banded =
                [| 0 .. c.X.Length - 1 |]
                |> Array.filter (fun i -> Double.IsFinite c.Low[i] && Double.IsFinite c.High[i])

            let edge (values: float[]) =
                banded |> Array.map (fun i -> x.Place c.X[i], y.Place values[i])

            [
                if banded.Length > 1 then
                    Markup.lone
                        "path"
                        [
                            "d", path (Array.append (edge c.High) (Array.rev (edge c.Low))) + "Z"
                            "fill", colour
                            "fill-opacity", "0.16"
                        ]
                elif banded.Length = 1 then
                    let at, low = (edge c.Low)[0]
                    let _, high = (edge c.High)[0]
                    line at low at high colour []
                Markup.lone
                    "path"
                    ([ "d", path (at c.Y); "fill", "none"; "stroke", colour; "stroke-width", "1.8" ]
                     @ dashes c.Ink)
                for px, py in dotted c (at c.Y) do
                    Markup.lone "circle" [ "cx", n px; "cy", n py; "r", "2.6"; "fill", colour ]
            ]

        let labels () =
            let last (c: Curve) = y.Place(Array.last c.Y) + 4.0
            let places = curves |> Array.map last |> apart 15.0 (box.Bottom + 4.0)

            [
                for c, place in Array.zip curves places do
                    text (box.Right + 8.0) place "start" [ "fill", colourOf c.Ink ] (Markup.shorten 24 c.Name)
            ]

        [
            yield! yAxis box figure.Y y
            yield! xAxis box height figure.X x
            for c in curves do
                yield! one c
            if isMany then
                yield! legend (box.Right + 12.0) (box.Top + 10.0) [ for c in curves -> c.Name, c.Ink ]
            elif curves.Length > 1 then
                yield! labels ()
        ]

    /// Which of many labels there is room for.
    let private every (room: float) (count: int) =
        max 1 (int (ceil (float count * 14.0 / room)))

    let private slantedNames (box: Box) (centre: int -> float) (names: string[]) =
        let skip = every (box.Right - box.Left) names.Length
        let short = names |> Array.map (Markup.shorten 18)
        let longest = short |> Array.map (widthOf fontSize) |> Array.max
        let isSlanted = longest > (box.Right - box.Left) / float names.Length * float skip

        [
            for i in 0..skip .. names.Length - 1 do
                let x = centre i

                if isSlanted then
                    text
                        0.0
                        0.0
                        "end"
                        [ "transform", $"translate({n (x + 4.0)} {n (box.Bottom + 10.0)}) rotate(-60)" ]
                        short[i]
                else
                    text x (box.Bottom + 17.0) "middle" [] short[i]
        ]

    /// Height that names below the plot take.
    let private roomForNames (width: float) (names: string[]) =
        let longest =
            names |> Array.map (Markup.shorten 18 >> widthOf fontSize) |> Array.fold max 0.0

        let isSlanted =
            longest > width / float names.Length * float (every width names.Length)

        if isSlanted then 0.87 * longest + 18.0 else 22.0

    let private bars (width: float) height (figure: Figure) (bars: Bars) =
        let isOne = bars.Series.Length = 1

        let right =
            if isOne then
                16.0
            else
                legendWidth (bars.Series |> Seq.map _.Name)

        let box =
            {
                Left = 62.0
                Top = 12.0
                Right = width - right
                Bottom = height - 24.0 - roomForNames (width - right - 62.0) bars.Categories
            }

        let count = bars.Categories.Length

        let value (s: BarSeries) i =
            if Double.IsFinite s.Values[i] then s.Values[i] else 0.0

        let below k i =
            if bars.Stacked then
                bars.Series |> Seq.take k |> Seq.sumBy (fun s -> value s i)
            else
                0.0

        let tops =
            [
                yield 0.0
                for k, s in Array.indexed bars.Series do
                    for i in 0 .. count - 1 do
                        yield below k i + value s i
                        yield s.Low[i]
                        yield s.High[i]
            ]

        let y = scale figure.Y 6 (ends figure.Y tops) (box.Bottom, box.Top)
        let slot = (box.Right - box.Left) / float count
        let centre i = box.Left + slot * (float i + 0.5)
        let side = if bars.Stacked then 1 else bars.Series.Length
        let thick = slot * 0.76 / float side

        let bar k (s: BarSeries) i =
            let bottom = below k i
            let a, b = y.Place bottom, y.Place(bottom + value s i)
            let offset = if bars.Stacked then 0.0 else float k * thick
            let x = centre i - slot * 0.38 + offset
            let middle = x + thick / 2.0

            [
                rect x (min a b) thick (abs (a - b)) (colourOf s.Ink) []
                if Double.IsFinite s.Low[i] && Double.IsFinite s.High[i] then
                    line middle (y.Place s.Low[i]) middle (y.Place s.High[i]) ink []
                elif isOne && count <= 12 && Double.IsFinite s.Values[i] then
                    text middle (min a b - 4.0) "middle" [] (Markup.fixedPoint 1 s.Values[i])
            ]

        [
            yield! yAxis box figure.Y y
            for k, s in Array.indexed bars.Series do
                for i in 0 .. count - 1 do
                    yield! bar k s i
            line box.Left (y.Place 0.0) box.Right (y.Place 0.0) ink []
            yield! slantedNames box centre bars.Categories
            xTitle box height figure.X
            if not isOne then
                yield! legend (box.Right + 12.0) (box.Top + 10.0) [ for s in bars.Series -> s.Name, s.Ink ]
        ]

    let private isSquare (grid: Grid) = grid.Rows.Length = grid.Columns.Length

    let private gridNames (grid: Grid) =
        grid.Rows
        |> Array.map (Markup.shorten 18 >> widthOf fontSize)
        |> Array.fold max 8.0

    let private grid (width: float) height (figure: Figure) (grid: Grid) =
        let rows, columns = grid.Rows.Length, grid.Columns.Length
        let left = 34.0 + gridNames grid
        let room = width - left - 100.0

        let bottom = height - 24.0 - roomForNames room grid.Columns

        let cell =
            if isSquare grid then
                let side = min (room / float columns) ((bottom - 12.0) / float rows)
                side, side
            else
                room / float columns, (bottom - 12.0) / float rows

        let wide, high = cell

        let box =
            {
                Left = left
                Top = 12.0
                Right = left + wide * float columns
                Bottom = 12.0 + high * float rows
            }

        let from, till = grid.Range

        let colour value =
            Palette.along Palette.lightRamp ((value - from) / (till - from))

        let labelSize = min 11.0 (min (high * 0.62) (wide / 2.5))

        let legendLeft = box.Right + 22.0
        let legendHeight = min 160.0 (box.Bottom - box.Top)

        let isFitting = labelSize >= 5.5
        let skip = every (box.Bottom - box.Top) rows

        [
            for i in 0 .. rows - 1 do
                for j in 0 .. columns - 1 do
                    let row, texts = grid.Values[i], grid.Texts[i]
                    let value = row[j]

                    if Double.IsFinite value then
                        let x, y = box.Left + wide * float j, box.Top + high * float i
                        let fill = colour value
                        // a hair wider, so that no gap shows between neighbours
                        rect x y (wide + 0.2) (high + 0.2) fill []

                        if isFitting && texts[j] <> "" then
                            text
                                (x + wide / 2.0)
                                (y + high / 2.0 + labelSize * 0.36)
                                "middle"
                                [
                                    "font-size", n labelSize
                                    "fill", (if Palette.luminance fill < 0.3 then "#ffffff" else ink)
                                ]
                                (texts[j])
            for at in grid.Breaks do
                let x, y = box.Left + wide * float at, box.Top + high * float at
                line x box.Top x box.Bottom ink [ "stroke-width", "0.5" ]
                line box.Left y box.Right y ink [ "stroke-width", "0.5" ]
            for i in 0..skip .. rows - 1 do
                text
                    (box.Left - 6.0)
                    (box.Top + high * (float i + 0.5) + 4.0)
                    "end"
                    []
                    (Markup.shorten 18 grid.Rows[i])
            yield! slantedNames box (fun j -> box.Left + wide * (float j + 0.5)) grid.Columns
            xTitle box height figure.X
            let middle = (box.Top + box.Bottom) / 2.0
            text 0.0 0.0 "middle" [ "transform", $"translate(14 {n middle}) rotate(-90)" ] figure.Y.Title
            // the ramp, with its ends and unit
            for i in 0..39 do
                let y = box.Top + legendHeight * float (39 - i) / 40.0

                rect
                    legendLeft
                    y
                    12.0
                    (legendHeight / 40.0 + 0.3)
                    (Palette.along Palette.lightRamp (float i / 39.0))
                    []

            text (legendLeft + 17.0) (box.Top + 9.0) "start" [] (Markup.significant 4 till)
            text (legendLeft + 17.0) (box.Top + legendHeight) "start" [] (Markup.significant 4 from)

            text
                0.0
                0.0
                "middle"
                [
                    "transform",
                    $"translate({n (legendLeft + 56.0)} {n (box.Top + legendHeight / 2.0)}) rotate(90)"
                ]
                grid.Unit
        ]

    let private arrows (width: float) height (figure: Figure) (groups: ArrowGroup[]) =
        let right = legendWidth (groups |> Seq.map _.Name)
        let all = groups |> Array.collect _.Arrows

        let ends' pick =
            all
            |> Seq.collect (fun a -> pick a.From :: (a.To |> Option.map pick |> Option.toList))
            |> Array.ofSeq

        let box =
            {
                Left = 62.0
                Top = 12.0
                Right = width - right
                Bottom = height - 46.0
            }

        // one scale for both axes, with air around
        let span (values: float[]) =
            max 1e-12 ((Array.max values - Array.min values) * 1.15)

        let xs, ys = ends' fst, ends' snd

        let unit = max (span xs / (box.Right - box.Left)) (span ys / (box.Bottom - box.Top))

        let around (values: float[]) (pixels: float) =
            let middle = (Array.max values + Array.min values) / 2.0
            middle - unit * pixels / 2.0, middle + unit * pixels / 2.0

        let x = linear false 6 (around xs (box.Right - box.Left)) (box.Left, box.Right)

        let y = linear false 6 (around ys (box.Bottom - box.Top)) (box.Bottom, box.Top)

        let place (px, py) = x.Place px, y.Place py

        let head colour (x1: float, y1: float) (x2: float, y2: float) =
            let length = sqrt ((x2 - x1) ** 2.0 + (y2 - y1) ** 2.0)

            if length < 1.0 then
                []
            else
                let size = min 7.0 (0.6 * length)
                let dx, dy = (x2 - x1) / length * size, (y2 - y1) / length * size

                let corners =
                    [
                        x2, y2
                        x2 - dx - 0.45 * dy, y2 - dy + 0.45 * dx
                        x2 - dx + 0.45 * dy, y2 - dy - 0.45 * dx
                    ]

                [
                    line x1 y1 x2 y2 colour [ "stroke-width", "1.4" ]
                    Markup.lone "path" [ "d", path corners + "Z"; "fill", colour ]
                ]

        [
            yield! yAxis box figure.Y y
            yield! xAxis box height figure.X x
            for group in groups do
                let colour = colourOf group.Ink

                for arrow in group.Arrows do
                    let from = place arrow.From
                    Markup.lone "circle" [ "cx", n (fst from); "cy", n (snd from); "r", "3"; "fill", colour ]

                    match arrow.To with
                    | Some till -> yield! head colour from (place till)
                    | None -> ()

                    if all.Length <= 20 then
                        text (fst from + 5.0) (snd from - 5.0) "start" [ "font-size", "10" ] arrow.Label
            yield! legend (box.Right + 12.0) (box.Top + 10.0) [ for g in groups -> g.Name, g.Ink ]
        ]

    /// Width and height of a figure.
    let internal size (figure: Figure) : float * float =
        match figure.Marks with
        | Marks.Curves curves when curves.Length > 6 -> 640.0, max 380.0 (40.0 + 16.0 * float curves.Length)
        | Marks.Curves _
        | Marks.Bars _ -> 640.0, 380.0
        | Marks.Arrows groups -> 640.0, max 460.0 (40.0 + 16.0 * float groups.Length)
        | Marks.Grid grid when isSquare grid ->
            // as high as square cells make it
            let left = 34.0 + gridNames grid
            let room = 640.0 - left - 100.0
            640.0, 36.0 + min 560.0 room + roomForNames room grid.Columns
        | Marks.Grid grid -> 640.0, max 240.0 (min 640.0 (80.0 + 26.0 * float grid.Rows.Length))

    /// A figure as the text of an SVG file, its title and caption inside for those who cannot see it.
    let render (figure: Figure) : string =
        let width, height = size figure

        let marks =
            match figure.Marks with
            | Marks.Curves found -> curves width height figure found
            | Marks.Bars found -> bars width height figure found
            | Marks.Grid found -> grid width height figure found
            | Marks.Arrows found -> arrows width height figure found

        let content =
            [
                Markup.element "title" [] [ Markup.escape figure.Title ]
                Markup.element "desc" [] [ Markup.escape figure.Caption ]
                rect 0.0 0.0 width height "#ffffff" []
                Markup.element
                    "g"
                    [
                        "font-family", "Helvetica, Arial, 'Liberation Sans', sans-serif"
                        "font-size", n fontSize
                        "fill", ink
                    ]
                    marks
            ]

        Markup.element
            "svg"
            [
                "xmlns", "http://www.w3.org/2000/svg"
                "role", "img"
                "width", n width
                "height", n height
                "viewBox", $"0 0 {n width} {n height}"
            ]
            content
        + "\n"
