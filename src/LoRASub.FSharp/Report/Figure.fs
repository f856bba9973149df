namespace LoRASub.Report

open System
open System.Text.Json
open System.Text.Json.Serialization
open FSharp.Reflection
open LoRASub.Settings

// These types are public because the serializer writes no other records.

/// JSON lacks unions: an object with one member, named after the case, that holds its only field.
type internal UnionConverter<'T>() =
    inherit JsonConverter<'T>()
    override _.Read(_, _, _) = invalidOp "figures are only written"

    override _.Write(writer, value, options) =
        let case, fields = FSharpValue.GetUnionFields(value, typeof<'T>)
        writer.WriteStartObject()
        writer.WritePropertyName(JsonNamingPolicy.CamelCase.ConvertName case.Name)
        JsonSerializer.Serialize(writer, fields[0], options)
        writer.WriteEndObject()

/// What a mark's colour means.
[<RequireQualifiedAccess; JsonConverter(typeof<UnionConverter<Ink>>)>]
type Ink =
    /// One of several things without an order, from 0.
    | Kind of int
    /// A place in an order, from 0 to 1.
    | Along of float

/// What is written along an axis, and where it begins and ends.
type PlotAxis =
    {
        Title: string
        Log: bool
        /// Ticks at whole numbers only.
        Whole: bool
        /// Begins at 0 unless values lie below, so that lengths can be compared.
        FromZero: bool
        /// Ends of the axis; without them the data decides.
        Range: (float * float) option
    }

/// Points with the interval around each of them: of a line, or bars at x = 0, 1, …. A NaN interval is not drawn.
type DataSeries =
    {
        Name: string
        Ink: Ink
        X: float[]
        Y: float[]
        Low: float[]
        High: float[]
        /// The tooltip of each point.
        Hover: string[]
        /// The x of the only point of a line with a marker; without it every point of a short line has one.
        DotAt: float option
    }

/// One or several bars in each category.
type Bars =
    {
        Categories: string[]
        Series: DataSeries[]
        /// On top of each other instead of side by side.
        Stacked: bool
    }

/// A matrix of coloured cells. The first row is on top; NaN cells are empty.
type Heatmap =
    {
        Rows: string[]
        Columns: string[]
        Values: float[][]
        /// The text of each cell, shown where there is room.
        Texts: string[][]
        Hover: string[][]
        /// Values at the ends of the colour ramp.
        Range: float * float
        /// Name and unit of the values.
        Unit: string
    }

/// A point, and where it moved.
type Arrow =
    {
        From: float * float
        To: (float * float) option
        Label: string
        Hover: string
    }

/// Arrows of one colour.
type ArrowGroup =
    {
        Name: string
        Ink: Ink
        Arrows: Arrow[]
    }

/// What a figure draws between its axes.
[<RequireQualifiedAccess; JsonConverter(typeof<UnionConverter<Marks>>)>]
type Marks =
    | Curves of DataSeries[]
    | Bars of Bars
    | Heatmap of Heatmap
    /// Both axes have the same scale.
    | Arrows of ArrowGroup[]

/// A figure as a value, independent of what draws it.
type Figure =
    {
        /// Lower-case words joined by dashes, unique in a report: the name of its files.
        Id: string
        Section: string
        Title: string
        /// How to read it, and which direction is better.
        Caption: string
        X: PlotAxis
        Y: PlotAxis
        /// Where a task begins: x values of curves, rows and columns of a heat map.
        Borders: float[]
        Marks: Marks
    }

/// Marks made of a report's numbers.
[<RequireQualifiedAccess>]
module internal Marks =

    /// A series without intervals.
    let series name ink (x: float[]) (y: float[]) (hover: string[]) (dotAt: float option) : DataSeries =
        let none = y |> Array.map (fun _ -> nan)

        {
            Name = name
            Ink = ink
            X = x
            Y = y
            Low = none
            High = none
            Hover = hover
            DotAt = dotAt
        }

    /// A group's intervals, each with its index, from which its x and its tooltip follow.
    let private ofGroup (group: RunGroup) number firstX hover (points: (int * Interval)[]) : DataSeries =
        let x = points |> Array.map (fun (i, _) -> firstX + float i)
        let hover = points |> Array.map (fun (i, interval) -> hover i interval)
        let pick f = points |> Array.map (snd >> f)

        { series group.Name (Ink.Kind number) x (pick _.Mean) hover None with
            Low = pick _.Low
            High = pick _.High
        }

    /// Intervals over a group's runs of what some of them have at 0, 1, …
    let overRuns (values: RunData -> float[]) (group: RunGroup) : Interval[] =
        match RunGroup.counted group with
        | [||] -> group.Runs // in their first task
        | counted -> counted
        |> Array.map values
        |> Interval.ofColumns

    /// One curve for each group, at x = 1, 2, …; `hover` describes the point at an index.
    let curves (groups: RunGroup[]) (hover: int -> Interval -> string) (values: RunData -> float[]) : Marks =
        let curve number group =
            overRuns values group
            |> Array.indexed
            // what no run has, such as drift before the second task, is not a point
            |> Array.filter (fun (_, interval) -> interval.N > 0)
            |> ofGroup group number 1.0 hover

        groups
        |> Array.mapi curve
        |> Array.filter (fun curve -> curve.X.Length > 0)
        |> Marks.Curves

    /// One bar for each group, side by side in each category; `hover` describes the bar at an index.
    let bars
        (groups: RunGroup[])
        (categories: string[])
        (hover: int -> Interval -> string)
        (values: RunData -> float[])
        : Marks =
        let hover i (interval: Interval) =
            if interval.N = 0 then "" else hover i interval

        let bars number group =
            let known = overRuns values group

            // other groups may have more
            Array.init categories.Length (fun i ->
                i, known |> Array.tryItem i |> Option.defaultWith (fun () -> Interval.ofValues []))
            |> ofGroup group number 0.0 hover

        Marks.Bars
            {
                Categories = categories
                Stacked = false
                Series = groups |> Array.mapi bars
            }

    /// Cells of these values, which `text` and `hover` describe; an undefined value has neither.
    let heatmap rows columns range unit text hover (values: float[][]) : Marks =
        let cells describe =
            let cell i j value =
                if Double.IsFinite value then describe i j value else ""

            values |> Array.mapi (fun i row -> row |> Array.mapi (cell i))

        Marks.Heatmap
            {
                Rows = rows
                Columns = columns
                Values = values
                Texts = cells (fun _ _ value -> text value)
                Hover = cells hover
                Range = range
                Unit = unit
            }

    /// The finite numbers along the y axis or, of a heat map, those of its cells.
    let values (marks: Marks) : float seq =
        match marks with
        | Marks.Curves curves -> curves |> Seq.collect (fun c -> Seq.concat [ c.Y; c.Low; c.High ])
        | Marks.Bars bars -> bars.Series |> Seq.collect (fun s -> Seq.concat [ s.Y; s.Low; s.High ])
        | Marks.Heatmap heatmap -> Seq.concat heatmap.Values
        | Marks.Arrows groups -> groups |> Seq.collect _.Arrows |> Seq.map (_.From >> snd)
        |> Seq.filter Double.IsFinite

    /// Ends of an axis for values that cannot lie outside of `lowest` and `highest`; the interval of two seeds often
    /// does, by far.
    let ends (lowest: float) (highest: float) (marks: Marks) : (float * float) option =
        match Array.ofSeq (values marks) with
        | [||] -> None
        | numbers ->
            let low, high = Array.min numbers, Array.max numbers
            let air = 0.05 * (high - low) + 1e-3 * abs high
            Some(max lowest (low - air), min highest (high + air))

    /// Of values that are never negative, although their intervals can be.
    let endsFromZero (marks: Marks) : (float * float) option =
        // a single point has no spread to leave room by
        ends 0.0 infinity marks |> Option.map (fun (_, high) -> 0.0, 1.05 * high)

    /// Ends of a ramp up to 100 %, the same for all matrices that are compared: it begins at the tens below the lowest.
    let upToHundred (values: float seq) : float * float =
        let lowest = values |> Seq.filter Double.IsFinite |> Seq.fold min 100.0
        max 0.0 (min 90.0 (10.0 * floor (lowest / 10.0))), 100.0
