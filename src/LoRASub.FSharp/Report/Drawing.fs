namespace LoRASub.Report

open System
open System.IO
open System.Security
open LoRASub.Core
open LoRASub.Data
open OxyPlot
open OxyPlot.Annotations
open OxyPlot.Axes
open OxyPlot.Legends
open OxyPlot.Series

/// Figures for papers, drawn by OxyPlot: black on white, without a drawn title. Sizes are CSS pixels.
[<RequireQualifiedAccess>]
module internal Drawing =

    let private colour (hex: string) = OxyColor.Parse hex
    let private ink = colour "#222222"
    let private faint = colour "#dddddd"
    let private colourOf = Palette.ink Palette.light Palette.lightRamp >> colour

    [<Literal>]
    let private Width = 640.0

    // more names than this would overlap
    [<Literal>]
    let private MostNames = 40

    let private style (horizontal: bool) (axis: Axis) : Axis =
        axis.Position <-
            if horizontal then
                AxisPosition.Bottom
            else
                AxisPosition.Left

        axis.AxisTitleDistance <- 8.0
        axis.MajorGridlineStyle <- if horizontal then LineStyle.None else LineStyle.Solid
        axis.MajorGridlineColor <- faint
        axis.MinorTickSize <- 0.0
        axis.AxislineStyle <- if horizontal then LineStyle.Solid else LineStyle.None
        axis.AxislineColor <- ink
        axis.TicklineColor <- ink
        axis

    /// An axis of numbers, wide enough for the marks.
    let private numeric (horizontal: bool) (axis: PlotAxis) (marks: Marks) : Axis =
        let made: Axis =
            if axis.Log then
                LogarithmicAxis(MinimumPadding = 0.02, MaximumPadding = 0.02)
            else
                LinearAxis(MinimumPadding = 0.04, MaximumPadding = 0.04)

        made.Title <- Format.clean axis.Title
        made.IntervalLength <- if horizontal then 50.0 else 45.0

        if axis.Whole then
            made.MinimumMajorStep <- 1.0

        match axis.Range with
        | Some(low, high) ->
            made.Minimum <- low
            made.Maximum <- high
        | None when axis.FromZero && Marks.values marks |> Seq.forall (fun value -> value >= 0.0) ->
            made.Minimum <- 0.0
        | None -> ()

        style horizontal made

    /// An axis of names, some of them left out where there are many.
    let private named (horizontal: bool) (title: string) (names: string[]) : Axis =
        let every = (names.Length + MostNames - 1) / MostNames
        let short = names |> Array.map (Format.clean >> Format.shorten 18)
        let axis = CategoryAxis(Title = Format.clean title, GapWidth = 0.0)
        axis.Labels.AddRange(short |> Array.mapi (fun i name -> if i % max 1 every = 0 then name else ""))
        let longest = short |> Seq.map String.length |> Seq.fold max 0

        if horizontal && longest * min names.Length MostNames > 70 then
            axis.Angle <- -60.0

        let axis = style horizontal axis
        axis.MajorGridlineStyle <- LineStyle.None
        axis.TickStyle <- TickStyle.None
        axis

    let private legendName = Format.clean >> Format.shorten 24

    let private points (x: float[]) (y: float[]) =
        Array.map2 (fun x y -> DataPoint(x, y)) x y

    /// A text in the middle of a point or, `above` it, with a little room below.
    let private label (above: bool) (x: float) (y: float) (size: float) (colour: OxyColor) (text: string) =
        TextAnnotation(
            TextPosition = DataPoint(x, y),
            Text = Format.clean text,
            TextColor = colour,
            FontSize = size,
            Stroke = OxyColors.Transparent,
            Padding = OxyThickness 0.0,
            TextHorizontalAlignment = HorizontalAlignment.Center,
            TextVerticalAlignment =
                (if above then
                     VerticalAlignment.Bottom
                 else
                     VerticalAlignment.Middle),
            Offset = ScreenVector(0.0, (if above then -3.0 else 0.0))
        )

    let private lineSeries (colour: OxyColor) (thickness: float) (data: DataPoint seq) =
        let line = LineSeries(Color = colour, StrokeThickness = thickness)
        line.Points.AddRange data
        line

    let private dots (colour: OxyColor) =
        ScatterSeries(MarkerType = MarkerType.Circle, MarkerSize = 3.0, MarkerFill = colour)

    /// Intervals as vertical lines at some x.
    let private whiskers colour (x: float[]) (low: float[]) (high: float[]) =
        lineSeries
            colour
            1.0
            [
                for i in 0 .. x.Length - 1 do
                    if Double.IsFinite low[i] && Double.IsFinite high[i] then
                        DataPoint(x[i], low[i])
                        DataPoint(x[i], high[i])
                        DataPoint(nan, nan)
            ]

    let private curve (c: DataSeries) : Series list =
        let colour = colourOf c.Ink

        let hasBand i =
            Double.IsFinite c.Low[i] && Double.IsFinite c.High[i]

        let banded = [| 0 .. c.X.Length - 1 |] |> Array.filter hasBand

        let pick (values: float[]) =
            banded |> Array.map (fun i -> values[i])

        let line = lineSeries colour 1.8 (points c.X c.Y)
        line.Title <- legendName c.Name

        match c.Ink with
        | Ink.Kind i when i >= Palette.light.Length -> line.LineStyle <- LineStyle.Dash
        | _ -> ()

        if c.DotAt.IsNone && c.X.Length <= 30 then
            line.MarkerType <- MarkerType.Circle
            line.MarkerSize <- 2.8
            line.MarkerFill <- colour

        [
            if banded.Length > 1 then
                let band = AreaSeries(Color = OxyColors.Transparent, Color2 = OxyColors.Transparent)
                band.Fill <- OxyColor.FromAColor(41uy, colour)
                band.Points.AddRange(points (pick c.X) (pick c.Low))
                band.Points2.AddRange(points (pick c.X) (pick c.High))
                band
            elif banded.Length = 1 then
                whiskers colour (pick c.X) (pick c.Low) (pick c.High)
            line
            match c.DotAt |> Option.bind (fun at -> Array.tryFindIndex ((=) at) c.X) with
            | Some i ->
                let dot = dots colour
                dot.Points.Add(ScatterPoint(c.X[i], c.Y[i]))
                dot
            | None -> ()
        ]

    let private bars (model: PlotModel) (bars: Bars) =
        let count = bars.Categories.Length
        let width = 0.76 / float (if bars.Stacked then 1 else bars.Series.Length)
        let below = Array.zeroCreate<float> count

        for number, series in Array.indexed bars.Series do
            let left = if bars.Stacked then -0.38 else -0.38 + width * float number

            let drawn =
                RectangleBarSeries(FillColor = colourOf series.Ink, StrokeThickness = 0.0)

            drawn.Title <- legendName series.Name

            for i in 0 .. count - 1 do
                if Double.IsFinite series.Y[i] then
                    let top = below[i] + series.Y[i]
                    let x = float i + left
                    drawn.Items.Add(RectangleBarItem(x, below[i], x + width, top))

                    if bars.Stacked then
                        below[i] <- top
                    elif bars.Series.Length = 1 && count <= 12 && not (Double.IsFinite series.Low[i]) then
                        Format.fixedPoint 1 series.Y[i]
                        |> label true (float i) top 11.0 ink
                        |> model.Annotations.Add

            model.Series.Add drawn
            let middles = Array.init count (fun i -> float i + left + width / 2.0)
            model.Series.Add(whiskers ink middles series.Low series.High)

    let private heatmap (model: PlotModel) (heatmap: Heatmap) =
        let from, till = heatmap.Range
        let ramp = Palette.lightRamp

        model.Axes.Add(
            LinearColorAxis(
                Position = AxisPosition.Right,
                Palette = OxyPalette.Interpolate(256, Array.map colour ramp),
                Minimum = from,
                Maximum = till,
                Title = Format.clean heatmap.Unit,
                AxisDistance = 8.0,
                MinorTickSize = 0.0
            )
        )

        let cells = RectangleSeries()
        // in pixels, about
        let cell = 460.0 / float (max heatmap.Rows.Length heatmap.Columns.Length)
        let size = min 11.0 (cell / 2.4)

        for i, row in Array.indexed heatmap.Values do
            for j, value in Array.indexed row do
                if Double.IsFinite value then
                    let x, y = float j, float i
                    cells.Items.Add(RectangleItem(x - 0.5, x + 0.5, y - 0.5, y + 0.5, value))

                    if size >= 5.5 && heatmap.Texts[i].[j] <> "" then
                        let fill = Palette.along ramp ((value - from) / (till - from))

                        label false x y size (colour (Palette.textOn fill)) heatmap.Texts[i].[j]
                        |> model.Annotations.Add

        model.Series.Add cells

    let private arrows (model: PlotModel) (groups: ArrowGroup[]) =
        let labelled = (groups |> Array.sumBy _.Arrows.Length) <= 20

        for group in groups do
            let colour = colourOf group.Ink
            let dots = dots colour
            dots.Title <- group.Name

            for arrow in group.Arrows do
                let x, y = arrow.From
                dots.Points.Add(ScatterPoint(x, y))

                match arrow.To with
                | Some(toX, toY) when arrow.To <> Some arrow.From ->
                    // not a point of a series: the axes would not count it
                    dots.Points.Add(ScatterPoint(toX, toY, 0.0))

                    model.Annotations.Add(
                        ArrowAnnotation(
                            StartPoint = DataPoint(x, y),
                            EndPoint = DataPoint(toX, toY),
                            Color = colour,
                            StrokeThickness = 1.4,
                            HeadLength = 5.0,
                            HeadWidth = 2.0
                        )
                    )
                | _ -> ()

                if labelled then
                    model.Annotations.Add(label true x y 10.0 ink arrow.Label)

            model.Series.Add dots

    let private border vertical at =
        LineAnnotation(
            Type =
                (if vertical then
                     LineAnnotationType.Vertical
                 else
                     LineAnnotationType.Horizontal),
            X = at,
            Y = at,
            Color = ink,
            LineStyle = LineStyle.Solid,
            StrokeThickness = 0.6
        )

    /// The figure as OxyPlot has it, and its height.
    let private model (figure: Figure) : struct (PlotModel * float) =
        let model =
            PlotModel(
                Background = OxyColors.White,
                PlotAreaBorderThickness = OxyThickness 0.0,
                TextColor = ink,
                DefaultFont = "Helvetica",
                DefaultFontSize = 12.0,
                Padding = OxyThickness 10.0
            )

        let axes (x: Axis) (y: Axis) =
            model.Axes.Add x
            model.Axes.Add y

        let legend count =
            if count > 1 then
                model.Legends.Add(
                    Legend(
                        LegendPlacement = LegendPlacement.Outside,
                        LegendPosition = LegendPosition.RightTop,
                        LegendBorderThickness = 0.0
                    )
                )

            // a legend's line takes 16 pixels
            max 380.0 (40.0 + 16.0 * float count)

        let height =
            match figure.Marks with
            | Marks.Curves curves ->
                axes (numeric true figure.X figure.Marks) (numeric false figure.Y figure.Marks)
                curves |> Seq.collect curve |> Seq.iter model.Series.Add
                figure.Borders |> Seq.iter (border true >> model.Annotations.Add)
                legend curves.Length
            | Marks.Bars found ->
                axes (named true figure.X.Title found.Categories) (numeric false figure.Y figure.Marks)
                bars model found
                legend found.Series.Length
            | Marks.Heatmap found ->
                let rows = named false figure.Y.Title found.Rows
                rows.StartPosition <- 1.0
                rows.EndPosition <- 0.0
                axes (named true figure.X.Title found.Columns) rows
                heatmap model found

                for at in figure.Borders do
                    model.Annotations.Add(border true (at - 0.5))
                    model.Annotations.Add(border false (at - 0.5))

                if found.Rows.Length = found.Columns.Length then
                    model.PlotType <- PlotType.Cartesian
                    560.0
                else
                    max 240.0 (min 640.0 (80.0 + 26.0 * float found.Rows.Length))
            | Marks.Arrows groups ->
                axes (numeric true figure.X figure.Marks) (numeric false figure.Y figure.Marks)
                model.PlotType <- PlotType.Cartesian
                arrows model groups
                max 460.0 (legend groups.Length)

        struct (model, height)

    /// OxyPlot lays out an SVG by the widths of PDF's Helvetica, but takes points for pixels.
    type private Measurer(height) =
        inherit PdfRenderContext(Width, height, OxyColors.White)

        override _.MeasureText(text, family, size, weight) =
            base.MeasureText(text, family, size * 96.0 / 72.0, weight)

    /// A figure as the text of an SVG file, its title and caption inside for those who cannot see it.
    let svg (figure: Figure) : string =
        let struct (model, height) = model figure

        let exporter =
            SvgExporter(Width = Width, Height = height, TextMeasurer = Measurer height)

        let drawn = exporter.ExportToString model

        let root = drawn.IndexOf("<svg", StringComparison.Ordinal)
        let inside = drawn.IndexOf('>', root) + 1
        let text = Format.clean >> SecurityElement.Escape

        drawn[root .. inside - 1]
        + $"<title>{text figure.Title}</title><desc>{text figure.Caption}</desc>"
        + drawn[inside..]
        + "\n"

    /// What this system lacks to draw PNG files.
    let missingForPng () : string option =
        if not (ImageFile.isAvailable ()) then
            Some "SkiaSharp's native library is missing"
        elif Seq.isEmpty (SkiaSharp.SKFontManager.Default.GetFontFamilies()) then
            Some "no font is installed"
        else
            None

    /// A figure as a PNG file of twice its size, written into a stream. Needs Skia and a font.
    let png (stream: Stream) (figure: Figure) : unit =
        let struct (model, height) = model figure

        OxyPlot.SkiaSharp
            .PngExporter(Width = 2 * int Width, Height = 2 * int height, Dpi = 192.0f, UseTextShaping = false)
            .Export(model, stream)
