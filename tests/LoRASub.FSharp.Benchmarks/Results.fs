/// What a section of the benchmarks found: data, its JSON file, and the page of all sections.
module LoRASub.Benchmarks.Results

open System
open System.Globalization
open System.IO
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Fluent
open LoRASub.Benchmarks.Measure

/// An entry of a table.
[<RequireQualifiedAccess>]
type Cell =
    | Text of string
    | Number of float
    | Measured of Spread

type Table =
    {
        Caption: string
        /// Units stand here.
        Columns: string list
        Rows: Cell list list
    }

/// A goal that was set before measuring.
type Target =
    {
        /// What is measured.
        Text: string
        Goal: string
        Value: string
        Reached: bool
    }

/// What a section finds.
type Findings =
    {
        /// Paragraphs: what is measured, in which shapes.
        Text: string list
        Tables: Table list
        Targets: Target list
    }

/// What the command line asks for.
type Options =
    {
        Rounds: int
        Threads: int
        /// Folder of a data set for the end-to-end runs.
        Data: string option
        /// Folder of the Python peer.
        Peer: string option
        /// Training images of a task in the end-to-end runs, at most.
        Images: int
        /// Tasks of the end-to-end runs, where not all.
        Tasks: int option
        /// Folder of the repository.
        Root: string
    }

/// A part of the page that can be measured by itself.
type Section =
    {
        /// Names it on the command line and its file.
        Id: string
        Title: string
        /// Whether it reads Options.Data.
        NeedsData: bool
        Measure: Options -> Findings
        /// Raises where an opponent does not compute what the library does; shapes of milliseconds.
        Check: unit -> unit
    }

/// A measured section as it is filed.
type Filed =
    {
        Findings: Findings
        /// Name and value of each fact.
        Machine: (string * string) list
        Command: string
    }

/// Three digits, or all those before the point.
let number (value: float) : string =
    if abs value >= 100.0 then
        value.ToString("F0", CultureInfo.InvariantCulture)
    else
        value.ToString("G3", CultureInfo.InvariantCulture)

let private shown (suffix: string) (s: Spread) =
    $"{number s.Median}{suffix} ({number s.Lower} to {number s.Upper})"

[<RequireQualifiedAccess>]
module Target =

    let private create text goal suffix reached value : Target =
        {
            Text = text
            Goal = $"{goal}{suffix}"
            Value = shown suffix value
            Reached = reached
        }

    /// Reached where the median is at least `limit`; `suffix` is the unit of both, such as "x" or "%".
    let atLeast (text: string) (limit: float) (suffix: string) (value: Spread) : Target =
        create text $"at least {number limit}" suffix (value.Median >= limit) value

    /// Reached where the median is at most `limit`.
    let atMost (text: string) (limit: float) (suffix: string) (value: Spread) : Target =
        create text $"at most {number limit}" suffix (value.Median <= limit) value

/// A fraction as a percentage.
let percent: Spread -> Spread = Spread.map ((*) 100.0)

/// Seconds as milliseconds, for a table's cell.
let milliseconds (seconds: Spread) : Cell =
    Cell.Measured(Spread.map ((*) 1e3) seconds)

// ---------------------------------------------------------------- files

let private cellNode (cell: Cell) : JsonNode =
    match cell with
    | Cell.Text text -> Json.text text
    | Cell.Number value -> Json.float value
    | Cell.Measured s ->
        Json.object
            [
                "median", Json.float s.Median
                "lower", Json.float s.Lower
                "upper", Json.float s.Upper
            ]

let private readCell (element: JsonElement) : Cell =
    let float (name: string) = element.GetProperty(name).GetDouble()

    match element.ValueKind with
    | JsonValueKind.String -> Cell.Text(element.GetString())
    | JsonValueKind.Number -> Cell.Number(element.GetDouble())
    | _ ->
        Cell.Measured
            {
                Median = float "median"
                Lower = float "lower"
                Upper = float "upper"
            }

let private tableNode (table: Table) =
    Json.object
        [
            "caption", Json.text table.Caption
            "columns", Json.array Json.text table.Columns
            "rows", Json.array (Json.array cellNode) table.Rows
        ]

let private targetNode (target: Target) =
    Json.object
        [
            "text", Json.text target.Text
            "goal", Json.text target.Goal
            "value", Json.text target.Value
            "reached", JsonValue.Create target.Reached
        ]

let private list (read: JsonElement -> 'T) (element: JsonElement) : 'T list =
    element.EnumerateArray() |> Seq.map read |> List.ofSeq

let private readFiled (element: JsonElement) : Filed =
    let text (name: string) (element: JsonElement) = element.GetProperty(name).GetString()

    let table (element: JsonElement) : Table =
        {
            Caption = text "caption" element
            Columns = list _.GetString() (element.GetProperty "columns")
            Rows = list (list readCell) (element.GetProperty "rows")
        }

    let target (element: JsonElement) : Target =
        {
            Text = text "text" element
            Goal = text "goal" element
            Value = text "value" element
            Reached = element.GetProperty("reached").GetBoolean()
        }

    {
        Findings =
            {
                Text = list _.GetString() (element.GetProperty "text")
                Tables = list table (element.GetProperty "tables")
                Targets = list target (element.GetProperty "targets")
            }
        Machine =
            [
                for fact in element.GetProperty("machine").EnumerateObject() do
                    fact.Name, fact.Value.GetString()
            ]
        Command = text "command" element
    }

let private folder (root: string) =
    Path.Combine(root, "docs", "performance")

let private fileOf (root: string) (section: Section) =
    Path.Combine(folder root, $"{section.Id}.json")

/// Writes docs/performance/ID.json below the repository's folder.
let save (root: string) (section: Section) (filed: Filed) : unit =
    Directory.CreateDirectory(folder root) |> ignore
    let findings = filed.Findings

    Json.write
        (fileOf root section)
        (Json.object
            [
                "title", Json.text section.Title
                "text", Json.array Json.text findings.Text
                "tables", Json.array tableNode findings.Tables
                "targets", Json.array targetNode findings.Targets
                "machine", Json.object [ for name, value in filed.Machine -> name, Json.text value ]
                "command", Json.text filed.Command
            ])

// ---------------------------------------------------------------- the page

let private rows (cells: string list list) =
    cells
    |> List.map (fun row ->
        let cells = row |> List.map _.Replace("|", "\\|") |> String.concat " | "
        $"| {cells} |")

let private grid (columns: string list) (cells: string list list) : string list =
    rows (columns :: List.map (fun _ -> "---") columns :: cells) @ [ "" ]

let private cellText (cell: Cell) =
    match cell with
    | Cell.Text text -> text
    | Cell.Number value -> number value
    | Cell.Measured spread -> shown "" spread

let private targetRow (target: Target) =
    [
        target.Text
        target.Goal
        target.Value
        (if target.Reached then "reached" else "**missed**")
    ]

let private machineLines (facts: (string * string) list) =
    facts |> List.map (fun (name, value) -> $"- {name}: {value}")

let private preface =
    [
        "# Performance"
        ""
        "Every figure that counts is a ratio of two things measured in one process or in turns, never a time by itself:"
        "*ours* is this library, *literal* the published code's loops on the same LibTorch, *bound* the matrix products"
        "that the work needs, in its own shapes, and nothing else. Things measured in turns are divided round by round,"
        "things that BenchmarkDotNet measured one after the other iteration by iteration, each with each; shown is the"
        "median (lower quartile to upper quartile). Times are there to be compared with each other, on this machine."
        ""
        "```sh"
        "dotnet fsi build.fsx -t Bench --data DIR     # every section; DIR holds CIFAR-100's binary files"
        "dotnet fsi build.fsx -t Bench SECTION...     # some sections; --list names them, help all options"
        "```"
        ""
    ]

/// docs/performance.md of every section that has a file, in the given order.
let render (root: string) (sections: Section list) : unit =
    let filed =
        sections
        |> List.filter (fileOf root >> File.Exists)
        |> List.map (fun section -> section, Json.read "a measured section" (fileOf root section) readFiled)

    let machines = filed |> List.map (fun (_, f) -> f.Machine) |> List.distinct

    let summary =
        [
            for section, f in filed do
                for target in f.Findings.Targets do
                    $"[{section.Title}](#{section.Id})" :: targetRow target
        ]

    let part (section: Section, filed: Filed) =
        [
            $"<a id=\"{section.Id}\"></a>"
            $"## {section.Title}"
            ""
            for paragraph in filed.Findings.Text do
                paragraph
                ""
            for table in filed.Findings.Tables do
                if table.Caption <> "" then
                    $"{table.Caption}:"
                    ""

                yield! grid table.Columns (List.map (List.map cellText) table.Rows)
            if not filed.Findings.Targets.IsEmpty then
                yield! grid [ "target"; "goal"; "measured"; "" ] (List.map targetRow filed.Findings.Targets)
            if machines.Length > 1 then
                "On this machine:"
                ""
                yield! machineLines filed.Machine
                ""
            $"Measured with `{filed.Command}`."
            ""
        ]

    let lines =
        [
            yield! preface
            match machines with
            | [ only ] ->
                yield! machineLines only
                ""
            | _ -> ()
            "## Targets"
            ""
            yield! grid [ "section"; "target"; "goal"; "measured"; "" ] summary
            yield! List.collect part filed
        ]

    let text = String.Join('\n', lines).TrimEnd() + "\n"
    WholeFile.writeText (Path.Combine(root, "docs", "performance.md")) text
