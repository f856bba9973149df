namespace LoRASub.Report

open System
open System.Text
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run

/// A table as a value, independent of what prints it.
type internal Table =
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
module internal Tables =

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

    let private unlessEmpty (table: Table) =
        if table.Rows.Length = 0 then None else Some table

    /// A column for each group beside the names of the rows; none without rows.
    let private sideBySide
        id
        title
        note
        (corner: string)
        (groups: RunGroup[])
        (rows: (string * string[]) seq)
        =
        table
            id
            title
            note
            [| corner; yield! groups |> Array.map _.Name |]
            [| for name, cells in rows -> Array.append [| name |] cells |]
        |> unlessEmpty

    // wider accuracy matrices fit no page
    [<Literal>]
    let private MostTasks = 20

    // ------------------------------------------------------------------------------------------ measures

    let private valueOf (measure: Measure) (run: RunData) =
        Map.tryFind measure.Name run.Measures
        |> Option.map ((*) 100.0)
        |> Option.defaultValue nan

    let private overSeeds (measure: Measure) (group: RunGroup) : Interval =
        RunGroup.counted group |> Seq.map (valueOf measure) |> Interval.ofValues

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
            match RunGroup.counted group with
            | [||] -> "none"
            | runs -> runs |> Array.map (_.Seed >> string) |> String.concat ", "

        let notes =
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
              (String.concat "" notes)
              [| "measure"; yield! groups |> Array.map _.Name |]
              [|
                  for measure, intervals in rows do
                      [| rowName measure; yield! intervals |> Array.map (Interval.text 2) |]
                  [| "seeds"; yield! groups |> Array.map seeds |]
              |] with
            Bold = bold
        }

    /// Differences from the first group, seed by seed; none where no other group shares a seed and the tasks with it.
    let differences (groups: RunGroup[]) : Table option =
        let bySeed = RunGroup.counted >> Array.map (fun run -> run.Seed, run) >> Map.ofArray

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

        let others =
            groups
            |> Array.skip 1
            |> Array.map (fun group -> group, pairs group)
            |> Array.filter (fun (_, pairs) -> pairs.Length > 0)

        sideBySide
            "differences"
            $"Differences from “{groups[0].Name}”, paired by seed"
            "Mean over seeds of the run minus the run of the same seed, with its 95% interval (Student's t, n seeds). An interval that excludes 0 is a difference beyond seed variation."
            "measure"
            (Array.map fst others)
            [
                for measure in Metrics.all do
                    let cells = others |> Array.map (fun (_, pairs) -> cell pairs measure)

                    if cells |> Array.exists ((<>) Format.none) then
                        rowName measure, cells
            ]

    /// Every head of each group, with intervals over seeds; none where no run scored more than the one that predicts.
    let heads (groups: RunGroup[]) : Table option =
        let line (group: RunGroup) (head: string) =
            let mine =
                group.Runs
                |> Array.choose (_.Heads >> Array.tryFind (fun line -> line.Head = head))

            let over digits (value: HeadLine -> float option) =
                mine |> Seq.choose value |> Interval.ofValues |> Interval.text digits

            [|
                if groups.Length > 1 then
                    group.Name
                head
                over 2 (_.Last >> Some)
                over 2 (_.Average >> Some)
                over 2 _.Forgetting
                over 2 _.Recomputed
                Format.fixedPoint 1 (float mine[0].Bytes / 1e6)
            |]

        if
            groups
            |> Array.forall (fun group -> group.Runs |> Array.forall (fun run -> run.Heads.Length < 2))
        then
            None
        else
            table
                "heads"
                "Heads"
                "Last and average accuracy in %, points forgotten, and the last accuracy if the head's sums are computed again from all training images, where that was asked for: what the drift of the network costs it. MB: size in a saved learner."
                [|
                    if groups.Length > 1 then
                        "run"
                    "head"
                    "last"
                    "average"
                    "forgetting"
                    "recomputed"
                    "MB"
                |]
                [|
                    for group in groups do
                        for head in group.Runs |> Seq.collect _.Heads |> Seq.map _.Head |> Seq.distinct do
                            line group head
                |]
            |> unlessEmpty

    /// The accuracy matrix of each group in percent, averaged over seeds; none where it is too wide for a page: the figure
    /// shows it.
    let private matrices (groups: RunGroup[]) : Table[] =
        let matrix id title (cells: Interval[][]) =
            // no later task is tested
            let cell t j interval =
                if j > t then "" else Interval.text 1 interval

            table
                id
                title
                "Accuracy in % on the test images of each task (columns) after learning each task (rows)."
                [| "after task"; yield! Array.init cells.Length (fun j -> string (j + 1)) |]
                (cells
                 |> Array.mapi (fun t row -> [| string (t + 1); yield! Array.mapi (cell t) row |]))

        [|
            for number, group in Array.indexed groups do
                let cells = RunGroup.accuracies group

                if cells.Length > 0 && cells.Length <= MostTasks then
                    if groups.Length = 1 then
                        matrix "matrix" "Accuracy matrix" cells
                    else
                        matrix $"matrix-{number + 1}" $"Accuracy matrix of “{group.Name}”" cells
        |]

    // ------------------------------------------------------------------------------------------ settings

    /// The settings that some run has, with the text in each group, or all texts where seeds differ.
    let private settingRows (groups: RunGroup[]) : (Setting * string[])[] =
        let textIn (setting: Setting) (group: RunGroup) =
            group.Runs
            |> Array.map (_.Settings >> Option.bind setting.Get >> Option.defaultValue Format.none)
            |> Array.distinct
            |> String.concat ", "

        Settings.all
        |> Seq.map (fun setting -> setting, groups |> Array.map (textIn setting))
        |> Seq.filter (snd >> Array.exists ((<>) Format.none))
        |> Array.ofSeq

    /// What is only recorded is no difference, nor is where files lie; which files are is one.
    let private differ (setting: Setting, texts: string[]) =
        let texts =
            if setting.FreeOnResume then
                texts |> Array.map Protocol.fileName
            else
                texts

        setting.Group <> "Output" && (Array.distinct texts).Length > 1

    /// The settings in which the groups differ, but for those that cannot change a result; none where there are none.
    let settingDifferences (groups: RunGroup[]) : Table option =
        settingRows groups
        |> Seq.filter differ
        |> Seq.map (fun (setting, texts) -> setting.Name, texts)
        |> sideBySide "setting-differences" "Settings that differ" "" "setting" groups

    /// Every setting; with its source for one group, side by side with the differing rows marked for several.
    let settings (groups: RunGroup[]) : Table option =
        let rows = settingRows groups

        if groups.Length = 1 then
            let source name =
                Map.tryFind name groups[0].Runs[0].Sources |> Option.defaultValue ""

            table
                "settings"
                "Settings"
                ""
                [| "setting"; "value"; "from" |]
                [|
                    for setting, texts in rows -> [| setting.Name; texts[0]; source setting.Name |]
                |]
            |> unlessEmpty
        else
            let marked = rows |> Array.map differ

            rows
            |> Array.mapi (fun i (setting, texts) -> (if marked[i] then "≠ " else "") + setting.Name, texts)
            |> sideBySide "settings" "Settings" "≠ marks settings in which the runs differ." "setting" groups
            |> Option.map (fun table ->
                { table with
                    Marked = [ 0 .. rows.Length - 1 ] |> List.filter (fun i -> marked[i]) |> Set.ofList
                })

    // ------------------------------------------------------------------------------------------ machine

    let private gibibytes (bytes: float) =
        Format.fixedPoint 2 (bytes / 1073741824.0) + " GiB"

    /// The machine and software of the first run of each group that recorded them.
    let environment (groups: RunGroup[]) : Table option =
        let fact (name: string, value: string) =
            match Double.TryParse(value, Globalization.CultureInfo.InvariantCulture) with
            | true, bytes when name.EndsWith("Bytes", StringComparison.Ordinal) ->
                Format.words name[.. name.Length - 6], gibibytes bytes
            | _ -> Format.words name, value

        let facts (group: RunGroup) =
            [
                for r in group.Runs |> Seq.choose _.Resources |> Seq.truncate 1 do
                    for pair in r.Environment do
                        fact (pair.Key, (if isNull pair.Value then Format.none else string pair.Value))

                    "peak memory", gibibytes (float r.PeakMemoryBytes)

                    match r.PeakDeviceBytes with
                    | Some bytes -> "peak device memory", gibibytes (float bytes)
                    | None -> ()

                    "started (UTC)", r.StartedUtc
                    "finished (UTC)", r.FinishedUtc
            ]

        let all = groups |> Array.map facts

        let value name facts =
            List.tryFind (fst >> (=) name) facts
            |> Option.map snd
            |> Option.defaultValue Format.none

        all
        |> Seq.collect (List.map fst)
        |> Seq.distinct
        |> Seq.map (fun name -> name, all |> Array.map (value name))
        |> sideBySide "environment" "Environment" "" "fact" groups

    /// Wall time of each phase, all tasks together.
    let seconds (groups: RunGroup[]) : Table option =
        let total (group: RunGroup) =
            group.Runs
            |> Seq.choose _.Resources
            |> Seq.map (_.PhaseSeconds.Values >> Seq.sum)
            |> Interval.ofValues

        let row of' =
            groups |> Array.map (of' >> Interval.text 1)

        let phases = RunGroup.phases groups

        [
            for phase in phases do
                phase, row (RunGroup.seconds phase)
            if phases.Length > 0 then
                "all", row total
        ]
        |> sideBySide
            "seconds"
            "Time of each phase"
            "Wall time of all tasks together, in seconds. Compare timings only on the same idle machine."
            "phase"
            groups

    // ------------------------------------------------------------------------------------------ whole reports

    /// What a paper needs: measures, paired differences, accuracy matrices, settings that differ, time.
    let forPapers (groups: RunGroup[]) : Table[] =
        [|
            results groups
            yield! Option.toArray (heads groups)
            yield! Option.toArray (differences groups)
            yield! matrices groups
            yield! Option.toArray (settingDifferences groups)
            yield! Option.toArray (seconds groups)
        |]

    /// One sentence: method, protocol and result of a group.
    let verdict (group: RunGroup) : string =
        match RunGroup.counted group with
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

    /// The rows of a table for a format that writes a text by `text`, and one in bold by `bold` around it.
    let private body (text: string -> string) (bold: string -> string) (table: Table) : string[][] =
        let cell row column content =
            if table.Bold.Contains(row, column) then
                bold (text content)
            else
                text content

        table.Rows |> Array.mapi (fun row -> Array.mapi (cell row))

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
            yield! body markdownText (fun text -> $"**{text}**") table |> Seq.map line
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
            yield! body latexText (fun text -> $@"\textbf{{{text}}}") table |> Seq.map line
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
