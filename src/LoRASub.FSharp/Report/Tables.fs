namespace LoRASub.Reports

open System
open System.Text
open LoRASub

/// A table as a value, whatever prints it.
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
        Marked: bool[]
    }

/// The tables of a report, and their text in Markdown and LaTeX.
[<RequireQualifiedAccess>]
module Tables =

    /// A measure of a run in percent or points of percent; NaN where the run has none.
    type internal Measure =
        {
            Title: string
            HigherIsBetter: bool
            Of: RunData -> float
        }

    let internal measures: Measure list =
        let measured (f: Measures -> float option) (run: RunData) =
            if run.Matrix.Length = 0 then
                nan
            else
                f (Metrics.measure run.Matrix)
                |> Option.map ((*) 100.0)
                |> Option.defaultValue nan

        let measure title higher f =
            {
                Title = title
                HigherIsBetter = higher
                Of = f
            }

        [
            measure "last accuracy (%)" true (measured (_.Last >> Some))
            measure "average accuracy (%)" true (measured (_.Average >> Some))
            measure "last accuracy, mean of tasks (%)" true (measured (_.LastByTask >> Some))
            measure "average accuracy, mean of tasks (%)" true (measured (_.AverageByTask >> Some))
            measure "forgetting (points)" false (measured _.Forgetting)
            measure "backward transfer (points)" true (measured _.BackwardTransfer)
            measure "forward transfer (points)" true _.ForwardTransfer.Points
            measure "intransigence (points)" false _.Intransigence.Points
        ]

    /// The runs whose measures compare: the finished ones, or what there is.
    let internal counted (study: Study) : RunData[] =
        match study.Runs |> Array.filter _.Finished with
        | [||] -> study.Runs |> Array.filter (fun run -> run.Matrix.Length > 0)
        | finished -> finished

    let internal overSeeds (measure: Measure) (study: Study) : Interval =
        counted study |> Seq.map measure.Of |> Interval.ofValues

    let internal estimate (decimals: int) (interval: Interval) : string =
        let mean = Markup.fixedPoint decimals interval.Mean

        if interval.N < 2 then
            mean
        else
            $"{mean} ± {Markup.fixedPoint decimals interval.Half}"

    let private table id title note header rows =
        {
            Id = id
            Title = title
            Note = note
            Header = header
            Rows = rows
            Marked = rows |> Array.map (fun _ -> false)
        }

    let private arrow (measure: Measure) =
        if measure.HigherIsBetter then "↑" else "↓"

    let private unfinished (studies: Study[]) =
        [
            for study in studies do
                for run in study.Runs do
                    if not run.Finished then
                        $" {study.Name}, seed {run.Seed}, is not finished."
        ]
        |> String.concat ""

    /// Why measures that need a reference run have no number.
    let private referenceNote (studies: Study[]) =
        studies
        |> Seq.collect _.Runs
        |> Seq.collect (fun run ->
            [ "Forward transfer", run.ForwardTransfer; "Intransigence", run.Intransigence ])
        |> Seq.choose (fun (name, referred) ->
            referred.Note |> Option.map (fun note -> $" {name}: {note.TrimEnd '.'}."))
        |> Seq.distinct
        |> String.concat ""

    /// Every measure that some run has, with intervals over seeds.
    let results (studies: Study[]) : Table =
        let rows =
            [|
                for measure in measures do
                    let intervals = studies |> Array.map (overSeeds measure)

                    if intervals |> Array.exists (fun i -> i.N > 0) then
                        [|
                            $"{measure.Title} {arrow measure}"
                            yield! intervals |> Array.map (estimate 2)
                        |]
                [|
                    "seeds"
                    for study in studies do
                        match counted study with
                        | [||] -> "none"
                        | runs -> runs |> Array.map (fun run -> string run.Seed) |> String.concat ", "
                |]
            |]

        let intervals =
            if studies |> Array.exists (fun s -> (counted s).Length > 1) then
                " ± is half of the 95% interval of the mean over seeds (Student's t)."
            else
                ""

        let note =
            $"↑ higher is better, ↓ lower is better.{intervals}{unfinished studies}{referenceNote studies}"

        table "measures" "Measures" note [| "measure"; yield! studies |> Array.map _.Name |] rows

    /// Differences to the first study, seed by seed; none where no other study shares a seed with it.
    let differences (studies: Study[]) : Table option =
        let bySeed study =
            counted study |> Array.map (fun run -> run.Seed, run) |> Map.ofArray

        let first = bySeed studies[0]

        let pairs (study: Study) =
            [|
                for seed, run in Map.toArray (bySeed study) do
                    match Map.tryFind seed first with
                    // measures of fewer tasks are others
                    | Some baseline when baseline.Matrix.Length = run.Matrix.Length -> baseline, run
                    | _ -> ()
            |]

        let others =
            studies
            |> Array.skip 1
            |> Array.map (fun study -> study, pairs study)
            |> Array.filter (fun (_, pairs) -> pairs.Length > 0)

        let cell (measure: Measure) (pairs: (RunData * RunData)[]) =
            let difference =
                Interval.paired
                    (pairs |> Array.map (snd >> measure.Of))
                    (pairs |> Array.map (fst >> measure.Of))

            let signed (x: float) =
                (if Math.Round(x, 2) > 0.0 then "+" else "") + Markup.fixedPoint 2 x

            match difference.N with
            | 0 -> Markup.none
            | 1 -> $"{signed difference.Mean} (n = 1)"
            | n -> $"{signed difference.Mean} ({signed difference.Low} to {signed difference.High}, n = {n})"

        if others.Length = 0 then
            None
        else
            let rows =
                [|
                    for measure in measures do
                        let cells = others |> Array.map (snd >> cell measure)

                        if cells |> Array.exists ((<>) Markup.none) then
                            [| $"{measure.Title} {arrow measure}"; yield! cells |]
                |]

            let note =
                "Each seed's run minus the same seed's, then the mean with its 95% interval (Student's t, n seeds). An interval that leaves out 0 is a difference that the seeds do not explain."

            Some(
                table
                    "differences"
                    $"Paired differences to {studies[0].Name}"
                    note
                    [| "measure"; yield! others |> Array.map (fun (study, _) -> study.Name) |]
                    rows
            )

    /// The accuracy matrix of one study in percent, averaged over seeds.
    let matrix (studies: Study[]) (study: Study) : Table =
        let tasks = study.Runs |> Array.map _.Matrix.Length |> Array.max

        let cell t j =
            if j > t then
                ""
            else
                [
                    for run in study.Runs do
                        if t < run.Matrix.Length then
                            let row = run.Matrix[t]
                            100.0 * Metrics.accuracy (row[j])
                ]
                |> Interval.ofValues
                |> estimate 1

        let id, title =
            if studies.Length = 1 then
                "matrix", "Accuracy matrix"
            else
                $"matrix-{1 + Array.findIndex (fun (other: Study) -> other.Name = study.Name) studies}",
                $"Accuracy matrix: {study.Name}"

        table
            id
            title
            "Accuracy in % on the test images of each task (columns) after learning each task (rows)."
            [| "after task"; yield! Array.init tasks (fun j -> string (j + 1)) |]
            (Array.init tasks (fun t -> [| string (t + 1); yield! Array.init tasks (cell t) |]))

    // A setting of a study: that of its runs, or all of them where seeds differ.
    let private settingOf (study: Study) (name: string) =
        study.Runs
        |> Array.map (fun run ->
            run.Settings
            |> Array.tryFind (fst >> (=) name)
            |> Option.map snd
            |> Option.defaultValue Markup.none)
        |> Array.distinct
        |> String.concat ", "

    let private settingNames (studies: Study[]) =
        studies
        |> Seq.collect _.Runs
        |> Seq.collect (_.Settings >> Seq.map fst)
        |> Seq.distinct
        |> Array.ofSeq

    let private settingRows (studies: Study[]) =
        settingNames studies
        |> Array.map (fun name -> name, studies |> Array.map (fun study -> settingOf study name))

    let private differs (values: string[]) = (Array.distinct values).Length > 1

    /// The settings in which the studies differ; none for one study and where all are the same.
    let settingDifferences (studies: Study[]) : Table option =
        match settingRows studies |> Array.filter (snd >> differs) with
        | [||] -> None
        | rows ->
            table
                "setting-differences"
                "Settings that differ"
                ""
                [| "setting"; yield! studies |> Array.map _.Name |]
                (rows |> Array.map (fun (name, values) -> Array.append [| name |] values))
            |> Some

    /// Every setting; of one study with its source, of several side by side with the differing rows marked.
    let settings (studies: Study[]) : Table option =
        match settingRows studies, studies with
        | [||], _ -> None
        | rows, [| study |] ->
            let source name =
                study.Runs[0].Sources |> Map.tryFind name |> Option.defaultValue ""

            let known = study.Runs[0].Sources.Count > 0

            table
                "settings"
                "Settings"
                ""
                [|
                    "setting"
                    "value"
                    if known then
                        "from"
                |]
                (rows
                 |> Array.map (fun (name, values) ->
                     [|
                         name
                         values[0]
                         if known then
                             source name
                     |]))
            |> Some
        | rows, _ ->
            { table
                  "settings"
                  "Settings"
                  "Rows in which runs differ are marked with ≠."
                  [| "setting"; yield! studies |> Array.map _.Name |]
                  (rows
                   |> Array.map (fun (name, values) ->
                       Array.append [| (if differs values then $"≠ {name}" else name) |] values)) with
                Marked = rows |> Array.map (snd >> differs)
            }
            |> Some

    // "memoryBytes" as people read it
    let private words (name: string) =
        name
        |> String.collect (fun c ->
            if Char.IsUpper c then
                $" {Char.ToLowerInvariant c}"
            else
                string c)

    let private gibibytes (bytes: float) =
        Markup.fixedPoint 2 (bytes / 1073741824.0) + " GiB"

    let private fact (name: string, value: string) =
        match Double.TryParse(value, Globalization.CultureInfo.InvariantCulture) with
        | true, bytes when name.EndsWith("Bytes", StringComparison.Ordinal) ->
            words (name.Substring(0, name.Length - "Bytes".Length)), gibibytes bytes
        | _ -> words name, value

    let private resourcesOf (study: Study) = study.Runs |> Array.choose _.Resources

    /// The machine and software of each study's first run that says so.
    let environment (studies: Study[]) : Table option =
        let facts (study: Study) =
            match resourcesOf study |> Array.tryHead with
            | None -> [||]
            | Some r ->
                [|
                    yield! r.Environment |> Array.map fact
                    if Double.IsFinite r.PeakMemoryBytes then
                        "peak memory", gibibytes r.PeakMemoryBytes
                    if r.Started <> "" then
                        "started (UTC)", r.Started
                    if r.Finished <> "" then
                        "finished (UTC)", r.Finished
                |]

        let all = studies |> Array.map facts
        let names = all |> Seq.collect (Seq.map fst) |> Seq.distinct |> Array.ofSeq

        let value name facts =
            facts
            |> Array.tryFind (fst >> (=) name)
            |> Option.map snd
            |> Option.defaultValue Markup.none

        if names.Length = 0 then
            None
        else
            table
                "environment"
                "Environment"
                ""
                [|
                    "fact"
                    if studies.Length = 1 then
                        "value"
                    else
                        yield! studies |> Array.map _.Name
                |]
                (names
                 |> Array.map (fun name -> [| name; yield! all |> Array.map (value name) |]))
            |> Some

    /// Wall seconds of each phase, all tasks together.
    let seconds (studies: Study[]) : Table option =
        let names =
            studies
            |> Seq.collect resourcesOf
            |> Seq.collect (_.PhaseSeconds >> Seq.map fst)
            |> Seq.distinct
            |> Array.ofSeq

        let of' (pick: (string * float)[] -> float) study =
            resourcesOf study
            |> Seq.map (_.PhaseSeconds >> pick)
            |> Interval.ofValues
            |> estimate 1

        let phase name phases =
            phases
            |> Array.tryFind (fst >> (=) name)
            |> Option.map snd
            |> Option.defaultValue nan

        if names.Length = 0 then
            None
        else
            table
                "seconds"
                "Seconds per phase"
                "Wall time of all tasks together, in seconds."
                [| "phase"; yield! studies |> Array.map _.Name |]
                [|
                    for name in names do
                        [| name; yield! studies |> Array.map (of' (phase name)) |]
                    [| "all"; yield! studies |> Array.map (of' (Array.sumBy snd)) |]
                |]
            |> Some

    // wider tables fit no page; the figure shows them
    [<Literal>]
    let private MostColumns = 20

    /// What a paper needs: measures, paired differences, accuracy matrices, settings that differ, seconds.
    let forPapers (studies: Study[]) : Table[] =
        [|
            results studies
            if studies.Length > 1 then
                yield! Option.toArray (differences studies)
            for study in studies do
                let tasks = study.Runs |> Array.map _.Matrix.Length |> Array.max

                if tasks > 0 && tasks <= MostColumns then
                    matrix studies study
            if studies.Length > 1 then
                yield! Option.toArray (settingDifferences studies)
            yield! Option.toArray (seconds studies)
        |]

    /// What all reports begin with: one line on what a study reached.
    let verdict (study: Study) : string =
        let shown title =
            let measure = measures |> List.find (fun m -> m.Title = title)
            overSeeds measure study

        let runs = counted study

        if runs.Length = 0 then
            "No task is finished yet."
        else
            let run = runs[0]
            let tasks = runs |> Array.map _.Matrix.Length |> Array.max

            let seeds =
                if runs.Length = 1 then
                    ""
                else
                    $", mean of {runs.Length} seeds"

            let method = if run.Method = "" then "the run" else run.Method
            let data = if run.Data = "" then "" else $" on {run.Data}"
            let average = shown "average accuracy (%)"
            let forgetting = shown "forgetting (points)"

            let lost =
                if forgetting.N = 0 then
                    ""
                else
                    $"; {estimate 1 forgetting} points forgotten"

            let learned =
                if tasks = 1 then "1 task"
                elif runs |> Array.forall _.Finished then $"{tasks} tasks"
                else $"{tasks} of {run.Tasks} tasks"

            let last = shown "last accuracy (%)"
            $"{method}{data}: {estimate 1 last} %% right after {learned} ({estimate 1 average} %% on average{seeds}){lost}."

    // Text forms

    let private oneLine (text: string) =
        Text.visible (text.ReplaceLineEndings " ")

    /// A text that Markdown shows as it is, in one line.
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
        | '–' -> "--"
        | '…' -> @"\dots{}"
        | c -> string c

    /// A text that LaTeX sets as it is, in one line. Letters outside the preamble's fonts need a Unicode engine.
    let latexText (text: string) : string = String.collect latexOf (oneLine text)

    let private markdownTable (table: Table) =
        let row (cells: string seq) =
            "| " + String.concat " | " (Seq.map markdownText cells) + " |"

        [
            $"## {markdownText table.Title}"
            ""
            if table.Note <> "" then
                markdownText table.Note
                ""
            row table.Header
            "|---|" + String.replicate (table.Header.Length - 1) "---:|"
            yield! table.Rows |> Array.map row
            ""
        ]

    let private title (studies: Study[]) =
        if studies.Length = 1 then
            $"Run {studies[0].Name}"
        else
            $"Comparison of {studies.Length} runs"

    /// The tables for papers as one Markdown text.
    let markdown (studies: Study[]) : string =
        [
            $"# {markdownText (title studies)}"
            ""
            for study in studies do
                if studies.Length = 1 then
                    markdownText (verdict study)
                else
                    $"- {markdownText study.Name}: {markdownText (verdict study)}"
            ""
            yield! forPapers studies |> Seq.collect markdownTable
        ]
        |> String.concat "\n"

    let private latexTable (table: Table) =
        let row (cells: string seq) =
            "    " + String.concat " & " (Seq.map latexText cells) + @" \\"

        let columns = "l" + String.replicate (table.Header.Length - 1) "r"
        let caption = $"{table.Title}. {table.Note}".TrimEnd()

        [
            @"\begin{table}"
            @"  \centering"
            $@"  \caption{{{latexText caption}}}"
            $@"  \label{{tab:{table.Id}}}"
            $@"  \begin{{tabular}}{{{columns}}}"
            @"    \toprule"
            row table.Header
            @"    \midrule"
            yield! table.Rows |> Array.map row
            @"    \bottomrule"
            @"  \end{tabular}"
            @"\end{table}"
            ""
        ]

    /// The tables for papers in LaTeX, for a document that loads booktabs.
    let latex (studies: Study[]) : string =
        [
            "% Needs \\usepackage{booktabs}; \\input this file."
            ""
            yield! forPapers studies |> Seq.collect latexTable
        ]
        |> String.concat "\n"
