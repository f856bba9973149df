namespace LoRASub.Report

open System
open System.Text
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run

/// A table as a value, independent of what prints it.
type Table =
    {
        /// Lower-case words joined by dashes, unique in a report.
        Id: string
        Title: string
        /// What must be known to read it; may be empty.
        Note: string
        Header: string[]
        /// As long as the header each; the first column names the row.
        Rows: string[][]
        /// Rows that stand out.
        Marked: Set<int>
        /// Cells in bold, by row and column: the best values.
        Bold: Set<int * int>
    }

/// The tables of a report, and their text in Markdown and LaTeX.
[<RequireQualifiedAccess>]
module Tables =

    let private table id title note header rows =
        {
            Id = id
            Title = title
            Note = note
            Header = header
            Rows = rows
            Marked = Set.empty
            Bold = Set.empty
        }

    let private names (groups: RunGroup[]) = groups |> Array.map _.Name

    // ------------------------------------------------------------------------------------------ measures

    let private valueOf (measure: Measure) (run: RunData) =
        Map.tryFind measure.Name run.Measures
        |> Option.map ((*) 100.0)
        |> Option.defaultValue nan

    let internal overSeeds (measure: Measure) (group: RunGroup) : Interval =
        Protocol.counted group |> Seq.map (valueOf measure) |> Interval.ofValues

    let private rowName (measure: Measure) =
        let arrow =
            match measure.Better with
            | Better.Higher -> "↑"
            | Better.Lower -> "↓"

        $"{measure.Title} ({measure.Unit}) {arrow}"

    /// The columns of the best means; those that round alike are equally good.
    let private best (measure: Measure) (intervals: Interval[]) =
        let rounded = intervals |> Array.map (fun i -> Math.Round(i.Mean, 2))

        match rounded |> Array.filter Double.IsFinite with
        | [||]
        | [| _ |] -> [||]
        | known ->
            let top =
                match measure.Better with
                | Better.Higher -> Array.max known
                | Better.Lower -> Array.min known

            [| 0 .. rounded.Length - 1 |] |> Array.filter (fun i -> rounded[i] = top)

    let private unfinished (groups: RunGroup[]) =
        [
            for group in groups do
                for run in group.Runs do
                    if not run.Finished then
                        $" {group.Name}, seed {run.Seed}, is not finished."
        ]
        |> String.concat ""

    /// Why measures that need a reference run have no number.
    let private missing (groups: RunGroup[]) =
        groups
        |> Seq.collect _.Runs
        |> Seq.collect _.Missing
        |> Seq.map (fun (name, why) -> $" No {name}: {why.TrimEnd '.'}.")
        |> Seq.distinct
        |> String.concat ""

    /// Every measure that some run has, with intervals over seeds; the best of comparable runs in bold.
    let results (groups: RunGroup[]) : Table =
        let rows =
            [|
                for measure in Metrics.all do
                    let intervals = groups |> Array.map (overSeeds measure)

                    if intervals |> Array.exists (fun i -> i.N > 0) then
                        measure, intervals
            |]

        let bold =
            if (Protocol.differences groups).Length > 0 then
                Set.empty
            else
                Set.ofSeq
                    [
                        for i, (measure, intervals) in Array.indexed rows do
                            for column in best measure intervals -> i, column + 1
                    ]

        let intervals condition =
            rows |> Array.exists (snd >> Array.exists condition)

        let seeds group =
            match Protocol.counted group with
            | [||] -> "none"
            | runs -> runs |> Array.map (fun run -> string run.Seed) |> String.concat ", "

        let note =
            String.concat
                ""
                [
                    "↑ higher is better, ↓ lower is better."
                    if not bold.IsEmpty then
                        " Bold: best value of a row."
                    if intervals (fun i -> i.HasEnds) then
                        " ± is half of the 95% interval of the mean over seeds (Student's t)."
                    if intervals (fun i -> i.N > 1 && not i.HasEnds) then
                        " A value without ± is the same for all seeds."
                    unfinished groups
                    missing groups
                ]

        { table
              "measures"
              "Measures"
              note
              [| "measure"; yield! names groups |]
              [|
                  for measure, intervals in rows do
                      [| rowName measure; yield! intervals |> Array.map (Interval.text 2) |]
                  [| "seeds"; yield! groups |> Array.map seeds |]
              |] with
            Bold = bold
        }

    /// Differences from the first group, seed by seed; none where no other group shares a seed and the tasks with it.
    let differences (groups: RunGroup[]) : Table option =
        let bySeed group =
            Protocol.counted group |> Array.map (fun run -> run.Seed, run) |> Map.ofArray

        let first = bySeed groups[0]

        let pairs (group: RunGroup) =
            [|
                for seed, run in Map.toArray (bySeed group) do
                    match Map.tryFind seed first with
                    | Some baseline when
                        baseline.TaskSizes = run.TaskSizes && baseline.Matrix.Length = run.Matrix.Length
                        ->
                        baseline, run
                    | _ -> ()
            |]

        let cell (pairs: (RunData * RunData)[]) (measure: Measure) =
            let difference =
                Interval.paired
                    (pairs |> Array.map (snd >> valueOf measure))
                    (pairs |> Array.map (fst >> valueOf measure))

            let signed (x: float) =
                (if Math.Round(x, 2) > 0.0 then "+" else "") + Format.fixedPoint 2 x

            if difference.N = 0 then
                Format.none
            elif difference.HasEnds then
                $"{signed difference.Mean} ({signed difference.Low} to {signed difference.High}, n = {difference.N})"
            else
                $"{signed difference.Mean} (n = {difference.N})"

        match
            groups
            |> Array.skip 1
            |> Array.map (fun group -> group, pairs group)
            |> Array.filter (fun (_, pairs) -> pairs.Length > 0)
        with
        | [||] -> None
        | others ->
            table
                "differences"
                $"Differences from “{groups[0].Name}”, paired by seed"
                "Mean over seeds of the run minus the run of the same seed, with its 95% interval (Student's t, n seeds). An interval that excludes 0 is a difference beyond seed variation."
                [| "measure"; yield! others |> Array.map (fun (group, _) -> group.Name) |]
                [|
                    for measure in Metrics.all do
                        let cells = others |> Array.map (fun (_, pairs) -> cell pairs measure)

                        if cells |> Array.exists ((<>) Format.none) then
                            [| rowName measure; yield! cells |]
                |]
            |> Some

    /// The accuracy matrix of one group in percent, averaged over seeds.
    let matrix (groups: RunGroup[]) (group: RunGroup) : Table =
        let tasks = group.Runs |> Array.map _.Matrix.Length |> Array.max

        let cell t j =
            if j > t then
                ""
            else
                group.Runs
                |> Seq.choose (fun run -> Array.tryItem t run.Matrix)
                |> Seq.map (fun row -> 100.0 * Metrics.accuracy row[j])
                |> Interval.ofValues
                |> Interval.text 1

        let id, title =
            if groups.Length = 1 then
                "matrix", "Accuracy matrix"
            else
                let number =
                    1 + Array.findIndex (fun (other: RunGroup) -> other.Name = group.Name) groups

                $"matrix-{number}", $"Accuracy matrix of “{group.Name}”"

        table
            id
            title
            "Accuracy in % on the test images of each task (columns) after learning each task (rows)."
            [| "after task"; yield! Array.init tasks (fun j -> string (j + 1)) |]
            (Array.init tasks (fun t -> [| string (t + 1); yield! Array.init tasks (cell t) |]))

    // ------------------------------------------------------------------------------------------ settings

    /// These decide what is recorded, not what comes out.
    let private recording =
        set [ "tensorboard"; "checkpoint-minutes"; "drift"; "reference" ]

    /// Each setting with its text in each group, or all texts where seeds differ.
    let private settingRows (groups: RunGroup[]) : (string * string[])[] =
        let textIn name (group: RunGroup) =
            group.Runs
            |> Array.map (fun run ->
                run.Settings
                |> Array.tryFind (fst >> (=) name)
                |> Option.map snd
                |> Option.defaultValue Format.none)
            |> Array.distinct
            |> String.concat ", "

        groups
        |> Seq.collect _.Runs
        |> Seq.collect (_.Settings >> Seq.map fst)
        |> Seq.distinct
        |> Seq.map (fun name -> name, groups |> Array.map (textIn name))
        |> Array.ofSeq

    /// Where files lie is no difference; which files are is one.
    let private differ (name: string, values: string[]) =
        let values =
            match name with
            | "data-path"
            | "backbone"
            | "class-order" -> values |> Array.map Protocol.fileName
            | _ -> values

        not (recording.Contains name) && (Array.distinct values).Length > 1

    /// The settings in which the groups differ, but for those that cannot change a result; none where there are none.
    let settingDifferences (groups: RunGroup[]) : Table option =
        match settingRows groups |> Array.filter differ with
        | [||] -> None
        | rows ->
            table
                "setting-differences"
                "Settings that differ"
                ""
                [| "setting"; yield! names groups |]
                (rows |> Array.map (fun (name, values) -> [| name; yield! values |]))
            |> Some

    /// Every setting; with its source for one group, side by side with the differing rows marked for several.
    let settings (groups: RunGroup[]) : Table option =
        match settingRows groups with
        | [||] -> None
        | rows when groups.Length = 1 ->
            let sources = groups[0].Runs[0].Sources

            table
                "settings"
                "Settings"
                ""
                [| "setting"; "value"; "from" |]
                (rows
                 |> Array.map (fun (name, values) ->
                     [| name; values[0]; Map.tryFind name sources |> Option.defaultValue "" |]))
            |> Some
        | rows ->
            { table
                  "settings"
                  "Settings"
                  "≠ marks settings in which the runs differ."
                  [| "setting"; yield! names groups |]
                  (rows
                   |> Array.map (fun row -> [| (if differ row then "≠ " else "") + fst row; yield! snd row |])) with
                Marked =
                    Set.ofSeq (
                        seq {
                            for i, row in Array.indexed rows do
                                if differ row then
                                    i
                        }
                    )
            }
            |> Some

    // ------------------------------------------------------------------------------------------ machine

    let private resourcesOf (group: RunGroup) = group.Runs |> Array.choose _.Resources

    let private gibibytes (bytes: float) =
        Format.fixedPoint 2 (bytes / 1073741824.0) + " GiB"

    /// The machine and software of the first run of each group that recorded them.
    let environment (groups: RunGroup[]) : Table option =
        let fact (name: string, value: string) =
            match Double.TryParse(value, Globalization.CultureInfo.InvariantCulture) with
            | true, bytes when name.EndsWith("Bytes", StringComparison.Ordinal) ->
                Format.words name[.. name.Length - 6], gibibytes bytes
            | _ -> Format.words name, value

        let facts group =
            match Array.tryHead (resourcesOf group) with
            | None -> [||]
            | Some r ->
                [|
                    for pair in r.Environment do
                        fact (pair.Key, (if isNull pair.Value then Format.none else string pair.Value))
                    "peak memory", gibibytes (float r.PeakMemoryBytes)
                    "started (UTC)", r.StartedUtc
                    "finished (UTC)", r.FinishedUtc
                |]

        let all = groups |> Array.map (facts >> Map.ofArray)

        match groups |> Seq.collect facts |> Seq.map fst |> Seq.distinct |> Array.ofSeq with
        | [||] -> None
        | facts ->
            table
                "environment"
                "Environment"
                ""
                [| "fact"; yield! names groups |]
                (facts
                 |> Array.map (fun name ->
                     [|
                         name
                         yield! all |> Array.map (Map.tryFind name >> Option.defaultValue Format.none)
                     |]))
            |> Some

    /// Wall time of each phase, all tasks together.
    let seconds (groups: RunGroup[]) : Table option =
        let phases =
            groups
            |> Seq.collect resourcesOf
            |> Seq.collect _.PhaseSeconds.Keys
            |> Seq.distinct
            |> Array.ofSeq

        let row (name: string) (pick: ResourcesFile -> float) =
            [|
                name
                for group in groups do
                    resourcesOf group |> Seq.map pick |> Interval.ofValues |> Interval.text 1
            |]

        if phases.Length = 0 then
            None
        else
            table
                "seconds"
                "Time of each phase"
                "Wall time of all tasks together, in seconds. Compare timings only on the same idle machine."
                [| "phase"; yield! names groups |]
                [|
                    for name in phases do
                        row name (fun r ->
                            match r.PhaseSeconds.TryGetValue name with
                            | true, seconds -> seconds
                            | _ -> nan)
                    row "all" (_.PhaseSeconds.Values >> Seq.sum)
                |]
            |> Some

    // ------------------------------------------------------------------------------------------ whole reports

    // wider tables fit no page; the figure shows them
    [<Literal>]
    let private MostColumns = 20

    /// What a paper needs: measures, paired differences, accuracy matrices, settings that differ, time.
    let forPapers (groups: RunGroup[]) : Table[] =
        [|
            results groups
            yield! Option.toArray (differences groups)
            for group in groups do
                let tasks = group.Runs |> Array.map _.Matrix.Length |> Array.max

                if tasks > 0 && tasks <= MostColumns then
                    matrix groups group
            if groups.Length > 1 then
                yield! Option.toArray (settingDifferences groups)
            yield! Option.toArray (seconds groups)
        |]

    /// One sentence: method, protocol and result of a group.
    let verdict (group: RunGroup) : string =
        match Protocol.counted group with
        | [||] -> "No task is finished yet."
        | runs ->
            let run = runs |> Array.maxBy _.Matrix.Length
            let method = if run.Method = "" then "run" else run.Method

            let shown unit label (interval: Interval) =
                let half =
                    if interval.HasEnds then
                        $" ({label}± {Format.fixedPoint 1 interval.Half})"
                    else
                        ""

                $"{Format.fixedPoint 1 interval.Mean} {unit}{half}"

            let last = overSeeds Metrics.last group
            let average = overSeeds Metrics.average group
            let forgetting = overSeeds Metrics.forgetting group

            let forgotten =
                if forgetting.N = 0 then
                    ""
                else
                    $""", {shown "points" "" forgetting} forgotten"""

            let seeds =
                if runs.Length = 1 then ""
                elif last.HasEnds then $"; mean of {runs.Length} seeds"
                else $"; the same for {runs.Length} seeds"

            let accuracy = shown "% accuracy" "95% interval " last
            $"""{method} {Protocol.describe run}: {accuracy} after {Protocol.learned run}, {shown "%" "" average} on average{forgotten}{seeds}."""

    // ------------------------------------------------------------------------------------------ Markdown and LaTeX

    let private oneLine (text: string) =
        Format.clean (text.ReplaceLineEndings " ")

    /// A text that Markdown shows literally, in one line.
    let markdownText (text: string) : string =
        let escaped = StringBuilder()

        for c in oneLine text do
            if @"\`*_{}[]<>#|~!$&@:".Contains c then
                escaped.Append '\\' |> ignore

            escaped.Append c |> ignore

        string escaped

    let private latexOf (c: char) =
        match c with
        | '\\' -> @"\textbackslash{}"
        | '{' -> @"\{"
        | '}' -> @"\}"
        | '$' -> @"\$"
        | '&' -> @"\&"
        | '#' -> @"\#"
        | '_' -> @"\_"
        | '%' -> @"\%"
        | '^' -> @"\textasciicircum{}"
        | '~' -> @"\textasciitilde{}"
        | '<' -> @"\textless{}"
        | '>' -> @"\textgreater{}"
        | '|' -> @"\textbar{}"
        | '"' -> @"\textquotedbl{}"
        | '[' -> "{[}"
        | ']' -> "{]}"
        | '*' -> "{*}"
        | '±' -> @"$\pm$"
        | '↑' -> @"$\uparrow$"
        | '↓' -> @"$\downarrow$"
        | '≠' -> @"$\neq$"
        | '−' -> "$-$"
        | '“' -> "``"
        | '”' -> "''"
        | '–' -> "--"
        | '…' -> @"\dots{}"
        | c -> string c

    /// A text that LaTeX prints literally, in one line. Letters outside the preamble's fonts need a Unicode engine.
    let latexText (text: string) : string = String.collect latexOf (oneLine text)

    let private cells (bold: string -> string) (text: string -> string) (table: Table) (row: int) =
        table.Rows[row]
        |> Array.mapi (fun column cell ->
            if table.Bold.Contains(row, column) then
                bold (text cell)
            else
                text cell)

    let private markdownTable (table: Table) =
        let line (cells: string seq) = "| " + String.concat " | " cells + " |"

        [
            $"## {markdownText table.Title}"
            ""
            if table.Note <> "" then
                markdownText table.Note
                ""
            line (Seq.map markdownText table.Header)
            "|---|" + String.replicate (table.Header.Length - 1) "---:|"
            for row in 0 .. table.Rows.Length - 1 do
                line (cells (fun text -> $"**{text}**") markdownText table row)
            ""
        ]

    /// The tables for papers as one Markdown text.
    let markdown (groups: RunGroup[]) : string =
        let title =
            if groups.Length = 1 then
                $"Run {groups[0].Name}"
            else
                $"Comparison of {groups.Length} runs"

        [
            $"# {markdownText title}"
            ""
            match Protocol.warning groups with
            | Some warning ->
                "**Warning:** " + markdownText warning
                ""
            | None -> ()
            for group in groups do
                if groups.Length = 1 then
                    markdownText (verdict group)
                else
                    $"- {markdownText group.Name}: {markdownText (verdict group)}"
            ""
            yield! forPapers groups |> Seq.collect markdownTable
        ]
        |> String.concat "\n"

    let private latexTable (table: Table) =
        let line (cells: string seq) =
            "    " + String.concat " & " cells + @" \\"

        let columns = "l" + String.replicate (table.Header.Length - 1) "r"
        let caption = $"{table.Title}. {table.Note}".TrimEnd()

        [
            @"\begin{table}"
            @"  \centering\small"
            $@"  \caption{{{latexText caption}}}"
            $@"  \label{{tab:{table.Id}}}"
            $@"  \begin{{tabular}}{{{columns}}}"
            @"    \toprule"
            line (Seq.map latexText table.Header)
            @"    \midrule"
            for row in 0 .. table.Rows.Length - 1 do
                line (cells (fun text -> $@"\textbf{{{text}}}") latexText table row)
            @"    \bottomrule"
            @"  \end{tabular}"
            @"\end{table}"
            ""
        ]

    /// The tables for papers in LaTeX, for a document that loads booktabs.
    let latex (groups: RunGroup[]) : string =
        [
            "% Needs \\usepackage{booktabs}; \\input this file."
            match Protocol.warning groups with
            | Some warning -> "% Warning: " + oneLine warning
            | None -> ()
            ""
            yield! forPapers groups |> Seq.collect latexTable
        ]
        |> String.concat "\n"
