namespace LoRASub.Reports

/// What a mark's colour says.
[<RequireQualifiedAccess>]
type Ink =
    /// One of several things without an order, counted from 0.
    | Kind of int
    /// A place in an order, from 0 to 1.
    | Along of float

type PlotAxis =
    {
        Title: string
        Log: bool
        /// Ticks at whole numbers alone.
        Whole: bool
        /// Begins at 0, so that lengths compare, unless values lie below.
        FromZero: bool
        /// Ends of the axis, where the data shall not choose them.
        Range: (float * float) option
    }

/// A line over x, with the interval around each of its points. A NaN interval is not drawn.
type Curve =
    {
        Name: string
        Ink: Ink
        X: float[]
        Y: float[]
        Low: float[]
        High: float[]
        /// What pointing at each point says.
        Hover: string[]
        /// The x of the one point that carries a dot; without it every point of a short curve does.
        DotAt: float option
    }

/// One bar in each category; a NaN interval is not drawn.
type BarSeries =
    {
        Name: string
        Ink: Ink
        Values: float[]
        Low: float[]
        High: float[]
        Hover: string[]
    }

type Bars =
    {
        Categories: string[]
        Series: BarSeries[]
        /// On top of each other instead of side by side.
        Stacked: bool
    }

/// A heat map; the first row is on top, NaN cells are empty.
type Grid =
    {
        Rows: string[]
        Columns: string[]
        Values: float[][]
        /// What stands in each cell, where there is room for it.
        Texts: string[][]
        Hover: string[][]
        /// Values at the ends of the colour ramp.
        Range: float * float
        /// Name and unit of the values.
        Unit: string
        /// Rows and columns before which a group begins.
        Breaks: int[]
    }

/// A point, and where it went.
type Arrow =
    {
        From: float * float
        To: (float * float) option
        Label: string
        Hover: string
    }

type ArrowGroup =
    {
        Name: string
        Ink: Ink
        Arrows: Arrow[]
    }

[<RequireQualifiedAccess>]
type Marks =
    | Curves of Curve[]
    | Bars of Bars
    | Grid of Grid
    /// Both axes have one scale.
    | Arrows of ArrowGroup[]

/// A figure as a value, whatever draws it.
type Figure =
    {
        /// Lower-case words joined by dashes, unique in a report: the name of its files.
        Id: string
        Section: string
        Title: string
        /// How to read it, and what is better.
        Caption: string
        X: PlotAxis
        Y: PlotAxis
        Marks: Marks
    }

/// Colours that people with colour-blindness tell apart as well; each has at least 3:1 against its background.
[<RequireQualifiedAccess>]
module internal Palette =

    /// On white.
    let light =
        [|
            "#0067a5"
            "#c8500a"
            "#00805c"
            "#9a3d94"
            "#8a6a00"
            "#3b7fb8"
            "#5a5a5a"
        |]

    /// The same hues on near-black.
    let dark =
        [|
            "#5db4f0"
            "#ff8f4d"
            "#35c79b"
            "#e08fdb"
            "#e3c14a"
            "#9ec6ff"
            "#b4b4b4"
        |]

    /// The ramp from little to much on white, and its dark counterpart: one hue, monotone in lightness.
    let lightRamp = [| "#eef4fa"; "#b5d3ea"; "#6aa8d4"; "#2373ae"; "#08306b" |]
    let darkRamp = [| "#16202b"; "#1d4368"; "#2d73ad"; "#6cb0e6"; "#d3eaff" |]

    let private channels (colour: string) =
        [| for i in [ 1; 3; 5 ] -> System.Convert.ToInt32(colour.Substring(i, 2), 16) |]

    /// The colour at `at` (0 to 1) of a ramp of evenly spaced colours.
    let along (ramp: string[]) (at: float) : string =
        let place = (max 0.0 (min 1.0 at)) * float (ramp.Length - 1)
        let left = min (int place) (ramp.Length - 2)
        let share = place - float left

        let mixed =
            Array.map2
                (fun a b -> int (round (float a + share * float (b - a))))
                (channels ramp[left])
                (channels ramp[left + 1])

        $"#{mixed[0]:x2}{mixed[1]:x2}{mixed[2]:x2}"

    /// Relative luminance as WCAG 2 defines it.
    let luminance (colour: string) : float =
        let linear (channel: int) =
            let c = float channel / 255.0

            if c <= 0.04045 then
                c / 12.92
            else
                ((c + 0.055) / 1.055) ** 2.4

        let c = channels colour |> Array.map linear
        0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]

    /// A curve that stands for a place in an order keeps clear of the background's end of the ramp.
    let ink (kinds: string[]) (ramp: string[]) (ink: Ink) : string =
        match ink with
        | Ink.Kind i -> kinds[i % kinds.Length]
        | Ink.Along at -> along ramp (0.4 + 0.6 * at)
