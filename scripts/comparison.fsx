// The page that compare.fsx writes: tables and a figure from the finished runs of a grid.

#load "load.fsx"

open System
open System.Globalization
open System.IO
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Report
open LoRASub.Run

type Row =
    {
        Name: string
        /// Settings of `lorasub run`, which replace those of the protocol.
        Settings: string
    }

type Grid =
    {
        /// The folder of its runs.
        Folder: string
        Title: string
        /// Settings of every row; DIR is the folder of the data set.
        Protocol: string
        /// Of the runs, unless --seeds names others.
        Seed: string
        Rows: Row list
    }

let published, cosineLda, ranPac =
    "nearest-mean@class-token", "cosine-lda@all-blocks", "rp-ridge:10000@class-token"

/// The head of the preset `recommended`, at a fixed ε.
let recommended = "cosine-lda@texture"

/// The finished runs of a row, one for each seed.
type Found = { Name: string; Runs: RunData[] }

/// The classifier of a method's paper, where it is not the nearest mean.
let ownHead (method: string) =
    match method with
    | "inflora"
    | "sd-lora"
    | "e2-lora"
    | "ease" -> Some "logits@class-token"
    | "ranpac" -> Some ranPac
    | _ -> None

/// A rate at which training matters, so that drift shows.
let fast = "--lr 5e-3"

let orders = [ "seed1993"; "natural" ]

// ------------------------------------------------------------------------------------------------- numbers

/// The rows whose names begin with the prefix, and what follows it.
let private rowsOf (found: Found list) (prefix: string) : (string * Found) list =
    found
    |> List.filter (fun row -> row.Name.StartsWith(prefix, StringComparison.Ordinal))
    |> List.map (fun row -> row.Name.Substring(prefix.Length).TrimStart '-', row)

let private find (found: Found list) (name: string) : Found option =
    found |> List.tryFind (fun row -> row.Name = name)

let private none = "–"

let private fixedPoint (digits: int) (x: float) =
    if Double.IsFinite x then
        (Math.Round(x, digits) + 0.0).ToString($"F{digits}", CultureInfo.InvariantCulture)
    else
        none

/// Their mean, and half of its 95 % interval where there are several.
let private meanText (signed: bool) (values: float seq) =
    let moments = Moments.ofValues values
    let sign = if signed && moments.Mean >= 0.05 then "+" else ""

    match Statistics.interval 0.95 moments with
    | _ when moments.Count = 0L -> none
    | None -> sign + fixedPoint 1 moments.Mean
    | Some(struct (low, high)) -> $"{sign}{fixedPoint 1 moments.Mean} ± {fixedPoint 1 ((high - low) / 2.0)}"

let private lines (row: Found) (head: string) =
    row.Runs
    |> Array.choose (fun run -> run.Heads |> Array.tryFind (fun line -> line.Head = head))

let private cell (value: HeadLine -> float option) (row: Found) head =
    lines row head |> Array.choose value |> meanText false

let private last row head = cell (_.Last >> Some) row head

/// Points lost because the head's sums are of older networks.
let private costOfDrift row head =
    lines row head
    |> Array.choose (fun line -> line.Recomputed |> Option.map (fun all -> all - line.Last))
    |> meanText false

/// Of one head over another, on the same images in the same order of classes. Over several seeds the interval is over
/// seeds; over one it is over the tasks, each with classes of its own.
let private gain (row: Found) head (baseRow: Found) baseHead =
    let protocol (run: RunData) =
        run.Tasks, run.Settings |> Option.map _.ClassOrder

    let pairs =
        [|
            for run in row.Runs do
                for other in baseRow.Runs do
                    let line = run.Heads |> Array.tryFind (fun l -> l.Head = head)
                    let otherLine = other.Heads |> Array.tryFind (fun l -> l.Head = baseHead)

                    match line, otherLine with
                    | Some line, Some otherLine when run.Seed = other.Seed ->
                        line, otherLine, protocol run = protocol other
                    | _ -> ()
        |]

    match pairs with
    | [| line, other, true |] when line.CorrectAndTotal.Length >= 5 ->
        Array.map2
            (fun a b -> 100.0 * (Metrics.accuracy a - Metrics.accuracy b))
            (Array.last line.CorrectAndTotal)
            (Array.last other.CorrectAndTotal)
        |> meanText true
    | pairs ->
        pairs
        |> Array.map (fun (line, other, _) -> line.Last - other.Last)
        |> meanText true

/// Of some phases, mean over runs; NaN where none is known.
let private seconds (isCounted: string -> bool) (row: Found) : float =
    let each =
        row.Runs
        |> Array.choose _.Resources
        |> Array.map (fun r -> r.PhaseSeconds |> Seq.filter (_.Key >> isCounted) |> Seq.sumBy _.Value)

    if Array.isEmpty each then nan else Array.average each

let private learning, testing = seconds ((<>) "predict"), seconds ((=) "predict")

let private epochsPerTask (row: Found) =
    row.Runs
    |> Array.averageBy (fun run -> float run.Epochs.Length / float run.Matrix.Length)
    |> fixedPoint 1

let private megabytes (bytes: int64) = fixedPoint 1 (float bytes / 1e6)

/// A saved learner, and what of it is not a head's.
let private savedBytes (row: Found) : struct (int64 * int64) option =
    let run = row.Runs[0]
    let file = FileInfo(Path.Combine(run.Folder, "learner.safetensors"))

    if file.Exists then
        let heads = run.Heads |> Array.sumBy _.Bytes
        Some(struct (file.Length, max 0L (file.Length - heads)))
    else
        None

// ------------------------------------------------------------------------------------------------- the page

let private table (header: string list) (rows: string list list) : string list =
    let line (cells: string list) = $"""| {String.concat " | " cells} |"""

    if rows.IsEmpty then
        []
    else
        [
            line header
            "|---|" + String.replicate (header.Length - 1) "---:|"
            yield! List.map line rows
            ""
        ]

/// The sections of a page: their lines after the heading, by the headings of the grid and of the section.
let sections (page: string) : Map<string * string, string list> =
    let add (kept, grid, title) (line: string) =
        if line.StartsWith "## " then
            kept, line.Substring 3, ""
        elif line.StartsWith "### " then
            kept, grid, line.Substring 4
        else
            let key = grid, title
            Map.add key (line :: (Map.tryFind key kept |> Option.defaultValue [])) kept, grid, title

    let kept, _, _ = page.Split '\n' |> Array.fold add (Map.empty, "", "")
    kept |> Map.map (fun _ lines -> List.rev lines)

/// A section with its table, or as it was where no run of it is here.
let private section (kept: Map<string * string, string list>) grid title (text: string) (table: string list) =
    let lines =
        if table.IsEmpty then
            kept |> Map.tryFind (grid.Title, title) |> Option.defaultValue []
        else
            [ ""; text; ""; yield! table ]

    if lines.IsEmpty then [] else $"### {title}" :: lines

let private methodTables (found: Found list) =
    let rows = rowsOf found "method-"

    let joint = find found "method-joint"
    // each row of heads is frozen as well
    let frozen = find found "method-frozen" |> Option.orElse (find found "heads")

    let mean row head =
        match lines row head with
        | [||] -> nan
        | found -> found |> Array.averageBy _.Last

    // of the way from frozen nearest means to joint training
    let share row =
        match frozen, joint with
        | Some frozen, Some joint when mean joint cosineLda > mean frozen published ->
            let low, high = mean frozen published, mean joint cosineLda
            fixedPoint 0 (100.0 * (mean row cosineLda - low) / (high - low)) + " %"
        | _ -> none

    table
        [
            "method"
            "`nearest-mean`"
            $"`{cosineLda}`"
            "over `frozen`"
            "own classifier"
            "share of the way to `joint`"
        ]
        [
            for name, row in rows ->
                [
                    $"`{name}`"
                    last row published
                    last row cosineLda
                    (match frozen with
                     | Some frozen when name <> "frozen" -> gain row cosineLda frozen cosineLda
                     | _ -> none)
                    (match ownHead name with
                     | Some head -> last row head
                     | None -> none)
                    share row
                ]
        ]
    @ table
        [
            "method"
            $"average, `{cosineLda}`"
            "forgetting"
            "cost of drift, `nearest-mean`"
            $"…`{cosineLda}`"
            "epochs per task"
            "seconds to learn"
            "MB beside the heads"
        ]
        [
            for name, row in rows ->
                [
                    $"`{name}`"
                    cell (_.Average >> Some) row cosineLda
                    cell _.Forgetting row cosineLda
                    costOfDrift row published
                    costOfDrift row cosineLda
                    epochsPerTask row
                    fixedPoint 0 (learning row)
                    (match savedBytes row with
                     | Some(struct (_, method)) -> megabytes method
                     | None -> none)
                ]
        ]

/// Each head over the frozen network, once, with the row that has it.
let private frozenHeads (found: Found list) : (HeadLine * Found) list =
    [
        for _, row in rowsOf found "heads" do
            for line in row.Runs[0].Heads -> line, row
    ]
    |> List.distinctBy (fun (line, _) -> line.Head)
    |> List.sortBy (fun (line, _) -> line.Last)

let private headTable (found: Found list) =
    table
        [ "head"; "last"; "over `nearest-mean`"; "average"; "forgetting"; "MB" ]
        [
            for line, row in frozenHeads found ->
                [
                    $"`{line.Head}`"
                    last row line.Head
                    (if line.Head = published then
                         none
                     else
                         gain row line.Head row published)
                    cell (_.Average >> Some) row line.Head
                    cell _.Forgetting row line.Head
                    megabytes line.Bytes
                ]
        ]

let private stepTable (found: Found list) =
    let heads =
        frozenHeads found |> List.map (fun (line, row) -> line.Head, row) |> Map.ofList

    table
        [ "step"; "from"; "to"; "gain" ]
        [
            for what, before, after in
                [
                    "covariance", published, "lda:0.03@class-token"
                    "cosine rule", "lda:0.03@class-token", "cosine-lda:0.03@class-token"
                    "tokens of three blocks", "cosine-lda:0.03@class-token", "cosine-lda:0.003@last-blocks"
                    "tokens of all blocks", "cosine-lda:0.003@last-blocks", cosineLda
                    "how patches vary, not their means", cosineLda, recommended
                    "shifted image", recommended, "cosine-lda@texture+shift"
                    "means of the patches as well", "cosine-lda@texture+shift", "cosine-lda@full+shift"
                    "random features", "cosine-lda@texture+shift", "rp-cosine-lda:8192@texture+shift"
                    "shifted image alone", "cosine-lda:0.03@class-token", "cosine-lda:0.03@class-token+shift"
                    "more tokens without covariance", published, "nearest-mean@texture+shift"
                    "shifted image for RanPAC's head", ranPac, $"{ranPac}+shift"
                    "more tokens for RanPAC's head", $"{ranPac}+shift", "rp-ridge:8192@texture+shift"
                    "cosine rule for RanPAC's features", ranPac, "rp-cosine-lda:10000@class-token"
                    "cosine rule, both with more tokens",
                    "rp-ridge:8192@texture+shift",
                    "rp-cosine-lda:8192@texture+shift"
                    "RanPAC's head to cosine LDA", ranPac, recommended
                ] do
                match heads.TryFind before, heads.TryFind after with
                | Some beforeRow, Some row ->
                    [ what; $"`{before}`"; $"`{after}`"; gain row after beforeRow before ]
                | _ -> ()
        ]

let private presetTable (found: Found list) =
    let published' = find found "preset-published"

    table
        [
            "preset"
            "method"
            "last"
            "over `published`"
            "over `ranpac-head`"
            "average"
            "forgetting"
            "seconds to learn"
            "times as fast as `published`"
            "seconds to test"
            "MB saved"
        ]
        [
            for name, row in rowsOf found "preset-" do
                let head = row.Runs[0].Heads[0].Head

                let over other baseHead =
                    match other with
                    | Some other when head <> baseHead -> gain row head other baseHead
                    | _ -> none

                [
                    $"`{name}`"
                    $"`{row.Runs[0].Method}`"
                    last row head
                    over published' published
                    over (find found "preset-ranpac-head") ranPac
                    cell (_.Average >> Some) row head
                    cell _.Forgetting row head
                    fixedPoint 0 (learning row)
                    (match published' with
                     | Some other -> fixedPoint 1 (learning other / learning row)
                     | None -> none)
                    fixedPoint 0 (testing row)
                    (match savedBytes row with
                     | Some(struct (all, _)) -> megabytes all
                     | None -> none)
                ]
        ]

let private driftTable (found: Found list) =
    let rows =
        rowsOf found "drift-"
        |> List.filter (fun (name, _) -> not (name.EndsWith "-stale"))

    let frozen =
        frozenHeads found |> List.map (fun (line, row) -> line.Head, row) |> Map.ofList

    table
        [
            "run"
            "head"
            "stale"
            "followed"
            "recomputed"
            "recovered"
            "frozen network"
            "followed over frozen"
        ]
        [
            for name, row in rows do
                for line in row.Runs[0].Heads do
                    let stale =
                        find found $"drift-{name}-stale"
                        |> Option.bind (fun row -> lines row line.Head |> Array.tryHead)

                    let recovered =
                        match stale, line.Recomputed with
                        | Some stale, Some all when all - stale.Last >= 0.5 && line.Last <> stale.Last ->
                            fixedPoint 0 (100.0 * (line.Last - stale.Last) / (all - stale.Last)) + " %"
                        | _ -> none

                    [
                        name
                        $"`{line.Head}`"
                        stale |> Option.map (_.Last >> fixedPoint 1) |> Option.defaultValue none
                        fixedPoint 1 line.Last
                        line.Recomputed |> Option.map (fixedPoint 1) |> Option.defaultValue none
                        recovered
                        yield!
                            // the frozen network's tokens twice are as good as once
                            (let still = line.Head.Replace("@frozen+", "@")

                             match frozen.TryFind still with
                             | Some other -> [ last other still; gain row line.Head other still ]
                             | None -> [ none; none ])
                    ]
        ]

let private ablationTable (found: Found list) =
    let loss (run: RunData) =
        let ends =
            run.Epochs
            |> Array.filter (fun e -> e.Task > 0)
            |> Array.groupBy _.Task
            |> Array.map (fun (_, epochs) -> (Array.last epochs).Loss)

        if Array.isEmpty ends then nan else Array.average ends

    table
        [
            "class order, setting"
            "loss"
            for head in [ published; cosineLda ] do
                $"`{head}`"
                "over `published`"
                "cost of drift"
        ]
        [
            for order in orders do
                for name, row in rowsOf found $"ablation-{order}-" ->
                    [
                        $"{order}, `{name}`"
                        row.Runs |> Array.averageBy loss |> fixedPoint 2
                        for head in [ published; cosineLda ] do
                            last row head

                            match find found $"ablation-{order}-published" with
                            | Some other when name <> "published" -> gain row head other head
                            | _ -> none

                            costOfDrift row head
                    ]
        ]

/// In each number of tasks.
let taskCounts = [ 10; 20; 50 ]

let private taskTable (found: Found list) =
    let at tasks method = find found $"few-{tasks}-{method}"

    let rows =
        Methods.names
        |> List.filter (fun name -> taskCounts |> List.exists (fun tasks -> (at tasks name).IsSome))

    table
        [
            "method"
            "head"
            for tasks in taskCounts do
                $"{tasks} tasks"
        ]
        [
            for name in rows do
                for head in published :: Option.toList (ownHead name) ->
                    [
                        $"`{name}`"
                        $"`{head}`"
                        for tasks in taskCounts do
                            match at tasks name with
                            | Some row -> last row head
                            | None -> none
                    ]
        ]

/// Accuracy of the frozen network's heads against their size, as an SVG. Named are those that no smaller one beats, and the recommended one.
let figure (title: string) (found: Found list) : string option =
    let points = frozenHeads found |> List.map fst

    if points.Length < 2 then
        None
    else
        let width, height, left, bottom = 700.0, 440.0, 50.0, 46.0
        let logs = points |> List.map (fun p -> log10 (float p.Bytes))
        let lowX, highX = List.min logs - 0.15, List.max logs + 0.25
        let lowY = floor ((points |> List.map _.Last |> List.min) - 1.0)
        let highY = ceil ((points |> List.map _.Last |> List.max) + 1.0)
        let n (x: float) = fixedPoint 1 x

        let x bytes =
            left + (log10 bytes - lowX) / (highX - lowX) * (width - left - 20.0)

        let y value =
            height - bottom - (value - lowY) / (highY - lowY) * (height - bottom - 20.0)

        // from the top: a name that would touch one above it moves down, and one that would leave the picture is on the left
        let place (placed: (HeadLine * float * float * float * float) list) (point: HeadLine) =
            let px, long = x (float point.Bytes), 6.6 * float point.Head.Length

            let from =
                if px + 7.0 + long < width then
                    px + 7.0
                else
                    px - 7.0 - long

            let below =
                placed
                |> List.filter (fun (other, _, otherFrom, _, _) ->
                    from < otherFrom + 6.6 * float other.Head.Length && otherFrom < from + long)
                |> List.map (fun (_, _, _, _, labelY) -> labelY + 13.0)

            (point, px, from, long, List.max (y point.Last :: below)) :: placed

        let isBest (point: HeadLine) =
            points
            |> List.forall (fun other ->
                other.Last < point.Last
                || other.Bytes > point.Bytes
                || (other.Last = point.Last && other.Bytes = point.Bytes))
            || point.Head = recommended

        let placed = points |> List.filter isBest |> List.rev |> List.fold place []

        [
            $"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n width} {n height}" font-family="sans-serif" font-size="12">"""
            $"<title>{title}: last accuracy of heads over the frozen network against their size</title>"
            """<rect width="100%" height="100%" fill="white"/>"""
            for exponent in int (ceil lowX) .. int (floor highX) do
                let at = x (10.0 ** float exponent)

                let label =
                    if exponent < 6 then
                        $"{10.0 ** float (exponent - 3)} kB"
                    else
                        $"{10.0 ** float (exponent - 6)} MB"

                $"""<line x1="{n at}" x2="{n at}" y1="20" y2="{n (height - bottom)}" stroke="#ddd"/>"""
                $"""<text x="{n at}" y="{n (height - bottom + 18.0)}" text-anchor="middle">{label}</text>"""
            for value in int lowY .. (int (highY - lowY) + 7) / 8 .. int highY do
                let at = y (float value)
                $"""<line x1="{n left}" x2="{n (width - 20.0)}" y1="{n at}" y2="{n at}" stroke="#ddd"/>"""
                $"""<text x="{n (left - 8.0)}" y="{n (at + 4.0)}" text-anchor="end">{value}</text>"""
            $"""<text x="{n (width / 2.0)}" y="{n (height - 8.0)}" text-anchor="middle">size of the head in a saved learner</text>"""
            $"""<text transform="rotate(-90)" x="{n (-height / 2.0)}" y="14" text-anchor="middle">last accuracy in %%</text>"""
            for point in points |> List.filter (isBest >> not) do
                $"""<circle cx="{n (x (float point.Bytes))}" cy="{n (y point.Last)}" r="4" fill="#a9b7c4"/>"""
            for point, px, from, long, labelY in placed do
                let colour = if point.Head = recommended then "#c0392b" else "#2c5f8a"

                let at =
                    if from > px then
                        $"x=\"{n from}\""
                    else
                        $"x=\"{n (from + long)}\" text-anchor=\"end\""

                $"""<circle cx="{n px}" cy="{n (y point.Last)}" r="4" fill="{colour}"/>"""

                $"""<text {at} y="{n (labelY + 4.0)}" fill="{colour}">{point.Head}</text>"""
            "</svg>"
            ""
        ]
        |> String.concat "\n"
        |> Some

/// The machines that the runs name.
let private machine (found: Found list) =
    found
    |> Seq.collect _.Runs
    |> Seq.choose _.Resources
    |> Seq.map (fun r -> $"""{r.Environment["processor"]}, {r.Environment["cores"]} cores""")
    |> Seq.distinct
    |> String.concat "; "

/// The page of several grids with their finished runs; a section without any stays as it was.
let page (previous: string) (grids: (Grid * Found list) list) : string =
    let kept = sections previous

    [
        "# Comparison"
        ""
        "Methods, heads and presets on one small backbone (2.7 million parameters, trained on 32-pixel photographs). Accuracy is in %"
        "over all classes after the last task, on test images, which were not used to choose settings. `dotnet fsi build.fsx -t Compare --cifar DIR`"
        "writes this page from the runs that are finished; `lorasub report artifacts/compare/cifar100/*` shows them with curves and"
        "matrices. `…-t Compare --only WORD --cifar DIR` runs the rows whose names hold WORD, such as `method`, `heads`, `preset`,"
        "`drift`, `ablation` or `few`. A table without finished runs stays as it is."
        ""
        "± is half of a 95 % interval: over seeds where there are several, else over the tasks of one run, each with its own classes,"
        "always of paired differences. Without ± there is one run, and a difference below a point means nothing. Machines are"
        "shared, so seconds compare roughly; factorising a covariance counts as test time."
        ""
        for grid, found in grids do
            let section title prefix text table =
                let rows = rowsOf found prefix |> List.map snd
                section kept grid title $"{text} On {machine rows}." table

            let filled =
                [
                    yield!
                        section
                            "Methods"
                            "method"
                            ($"Each with the published nearest means, `{cosineLda}`, and the classifier of its paper (RanPAC: ridge regression on 10,000 random features). The share is that of `{cosineLda}`, of the way from the frozen network's nearest means to `joint`, which sees all classes at once. "
                             + "Cost of drift: what sums recomputed from old images, a diagnosis, would gain. Learning rates are those of the rivals' papers, 3e-3 for `joint`, and else those of LoRA-Sub-DRS, as are the other settings, including the decay of the rates.")
                            (methodTables found)

                    yield!
                        section
                            "Heads over the frozen network"
                            "heads"
                            "No training: each image is read once, and twice with `+shift`. Such a head ends at the same accuracy in every class order and number of tasks. In the figure, heads that no smaller head beats are named, and the recommended one, at a fixed ε, is red."
                            [
                                yield! headTable found

                                if (figure grid.Title found).IsSome then
                                    $"![Accuracy against size](comparison-{grid.Folder}.svg)"
                                    ""
                            ]

                    yield!
                        section
                            "Where the gain comes from"
                            "heads"
                            "Frozen network, one change at a time. The order of the steps matters: each counts what those before it left."
                            (stepTable found)

                    yield!
                        section
                            "Presets"
                            "preset"
                            "As in [choosing.md](choosing.md), with the trial on the first task, whose seconds are not counted. Two rows are not presets: `published` is LoRA-Sub-DRS with nearest means alone; `ranpac-head` is ridge regression on 10,000 random features of the frozen class token, its best setting here."
                            (presetTable found)

                    yield!
                        section
                            "When the network moves"
                            "drift"
                            $"LoRA-Sub-DRS at ten times the published rate (`{fast}`), and null-space LoRA, in two class orders. Stale: heads keep the sums of older networks. Followed: sums pass through the fitted map, where a head allows it. Recovered: that gain as a share of what recomputing gains, where that is at least half a point."
                            (driftTable found)

                    yield!
                        section
                            "Ablations of LoRA-Sub-DRS"
                            "ablation"
                            $"At `{fast}`, so that there is drift to prevent, for two epochs: 16 steps in each task. `unscaled` projects without dividing by the root of the rank. `no-projection-slow` has the rate divided by √192 in all tasks, the first as well: the step that the published projection takes on average. Loss is that of the last epoch, mean over later tasks. One seed."
                            (ablationTable found)

                    yield!
                        section
                            "More tasks"
                            "few"
                            "Accuracy after the last task, the same classes in 10, 20 and 50 tasks: the published nearest means and the classifier of each paper. Each task trains for one epoch, in batches of 16, on the first 30 training images of each class: 19 steps in each of 10 tasks, 4 in each of 50. The test is the first 10 test images of each class, with a standard error of 1.5 points. `joint`, one task, is left out. Classifiers that are trained begin at random, and so few steps do not calibrate them across tasks: after three tasks of two epochs on all images, InfLoRA's own reaches 38.9 with `--head-lr 2e-3` and 49.3 with `--head-lr 2e-2`."
                            (taskTable found)
                ]

            if not filled.IsEmpty then
                $"## {grid.Title}"
                ""
                $"Every run: `lorasub run {grid.Protocol} --seed {grid.Seed}`."
                ""
                yield! filled
    ]
    |> String.concat "\n"
