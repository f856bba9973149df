// Compares methods, heads and presets on one backbone, and writes docs/comparison.md:
//
//     dotnet fsi build.fsx -t Compare [--cifar DIR] [--only WORD] [--quick]
//
// Each row of the grid is a run in artifacts/compare. Finished rows are kept and stopped ones resumed, so the command can be
// repeated. --only WORD runs the rows whose name holds the word. --quick is a short form on the bundled data, for tests: it
// writes artifacts/compare/quick.md.

#load "load.fsx"

open System
open System.Diagnostics
open System.Globalization
open System.IO
open LoRASub.Methods
open LoRASub.Report
open LoRASub.Run

let root = Path.GetFullPath(Path.Combine(__SOURCE_DIRECTORY__, ".."))

let rec private options (arguments: string list) =
    match arguments with
    | "--quick" :: rest -> ("quick", "") :: options rest
    | ("--cifar" | "--only" as name) :: value :: rest -> (name.Substring 2, value) :: options rest
    | [] -> []
    | other :: _ ->
        failwith $"compare: found '{other}' where --cifar DIR, --only WORD or --quick was expected"

let given =
    fsi.CommandLineArgs |> List.ofArray |> List.tail |> options |> Map.ofList

let isQuick = given.ContainsKey "quick"

// ------------------------------------------------------------------------------------------------- the grid

type Row =
    {
        Name: string
        /// Arguments of `lorasub run` beside those of the data set.
        Arguments: string
    }

type Grid =
    {
        /// The folder of its runs.
        Folder: string
        Title: string
        /// Arguments of every row.
        Protocol: string
        Rows: Row list
    }

let published, recommended = "nearest-mean@class-token", "cosine-lda@rich"
let row name arguments = { Name = name; Arguments = arguments }

/// Methods whose papers classify with a layer of their own.
let ownClassifier = set [ "inflora"; "sd-lora"; "e2-lora"; "ease" ]

let methods: Row list =
    [
        for one in Methods.all do
            let name = one.Info.Name

            let own =
                if ownClassifier.Contains name then
                    ",logits@class-token"
                else
                    ""

            let rival =
                if name = "ranpac" then
                    ",rp-ridge:10000@class-token"
                else
                    ""

            // the upper bound at the rate that suits it best
            let rate = if name = "joint" then "--lr 3e-3 " else ""

            row $"method-{name}" $"--method {name} {rate}--heads {recommended}{own}{rival} --recompute"
    ]

let heads: Row list =
    [
        row
            "heads"
            ("--method frozen --heads cosine-lda:0.03@class-token,lda@class-token,ridge@class-token,rda@class-token,"
             + "fecam@class-token,rp-ridge@class-token,cosine-lda:0.003@last-blocks,lda@rich,ridge@rich,"
             + recommended)
        row
            "heads-large"
            "--method frozen --heads rp-ridge:10000@class-token,rp-ridge:8192@rich,rp-cosine-lda:8192@rich"
    ]

let presets: Row list =
    [
        for name in [ "recommended"; "small"; "large" ] -> row $"preset-{name}" $"--preset {name}"
    ]

/// A rate at which training matters, so that drift shows.
let fast = "--lr 5e-3"

let follow =
    $"--heads cosine-lda:0.03@class-token,cosine-lda:0.003@last-blocks,cosine-lda:0.003@frozen+last-blocks,{recommended} --recompute"

let drift: Row list =
    [
        for order in [ "seed1993"; "natural" ] do
            row $"drift-{order}" $"{fast} {follow} --class-order {order}"
            row $"drift-{order}-stale" $"{fast} {follow} --class-order {order} --no-transport"
            row $"drift-{order}-null-space" $"--method null-space {fast} {follow} --class-order {order}"
    ]

let ablations: Row list =
    [
        for name, arguments in
            [
                "published", ""
                "no-projection", "--no-projection"
                "no-projection-slow", "--no-projection --lr 3.6e-4" // 5e-3/√192
                "unscaled", "--update-scale none"
                "no-subtraction", "--no-subtraction"
                "no-triplet", "--no-triplet"
            ] -> row $"ablation-{name}" $"{fast} --heads lda@rich,{recommended} --recompute {arguments}"
    ]

let longer: Row list =
    [
        for tasks in [ 20; 50 ] do
            for name in [ "frozen"; "lora-sub-drs"; "null-space" ] ->
                row $"tasks-{tasks}-{name}" $"--tasks {tasks} --method {name} --heads {recommended}"
    ]

let grids: Grid list =
    [
        if isQuick then
            {
                Folder = "quick"
                Title = "Quick form"
                Protocol = "--epochs 1 --seed 0 --no-drift"
                Rows = [ row "method-frozen" $"--method frozen --heads {recommended}"; methods.Head ]
            }
        else
            {
                Folder = "fashion-mnist"
                Title = "Fashion-MNIST subset, 2 tasks"
                Protocol = "--seed 0 --no-drift"
                Rows = methods @ presets @ heads
            }

            match Map.tryFind "cifar" given with
            | Some folder ->
                {
                    Folder = "cifar100"
                    Title = "CIFAR-100 subset, 10 tasks"
                    Protocol =
                        $"--data cifar100 --data-path {folder} --input-range=-1,1 --norm-epsilon 1e-6 --variant libcontinual --epochs 5 --augment none --tasks 10 --no-drift"
                    Rows = heads @ methods @ presets @ drift @ ablations @ longer
                }
            | None -> ()
    ]

// ------------------------------------------------------------------------------------------------- the runs

let program =
    Path.Combine(root, "src", "LoRASub.FSharp.Cli", "bin", "Release", "net10.0", "lorasub.dll")

let folderOf (grid: Grid) (row: Row) =
    Path.Combine(root, "artifacts", "compare", grid.Folder, row.Name)

let isFinished folder =
    File.Exists(Path.Combine(folder, "summary.json"))

// the program ends by itself when Ctrl-C reaches it, with a checkpoint; then so does this
let run (grid: Grid) (row: Row) =
    let folder = folderOf grid row

    if not (isFinished folder) then
        let arguments =
            if File.Exists(Path.Combine(folder, "settings.json")) then
                $"run --resume {folder}"
            else
                $"run {grid.Protocol} {row.Arguments} --out {folder}"

        eprintfn "%s %s/%s" (DateTime.Now.ToString "HH:mm:ss") grid.Folder row.Name
        let words = arguments.Split(' ', StringSplitOptions.RemoveEmptyEntries)
        let info = ProcessStartInfo("dotnet", Array.append [| program |] words)
        info.RedirectStandardOutput <- true
        use child = Process.Start info
        child.StandardOutput.ReadToEnd() |> ignore
        child.WaitForExit()

        if child.ExitCode <> 0 then
            eprintfn $"{row.Name} ended with exit code {child.ExitCode}"
            exit child.ExitCode

for grid in grids do
    for row in grid.Rows do
        if given |> Map.tryFind "only" |> Option.forall row.Name.Contains then
            run grid row

// ------------------------------------------------------------------------------------------------- the page

let writeWhole (path: string) (text: string) =
    let next = path + ".tmp"
    File.WriteAllText(next, text)
    File.Move(next, path, overwrite = true)

let fixedPoint (digits: int) (x: float) =
    x.ToString($"F{digits}", CultureInfo.InvariantCulture)

let table (header: string list) (rows: string list list) =
    let line (cells: string list) = $"""| {String.concat " | " cells} |"""

    [
        line header
        "|---|" + String.replicate (header.Length - 1) "---:|"
        yield! List.map line rows
        ""
    ]

let runOf (folder: string) : RunData =
    let groups = RunData.loadAll [| folder |]
    groups[0].Runs[0]

let readRows (grid: Grid) (prefix: string) : (string * RunData) list =
    [
        for row in grid.Rows do
            let folder = folderOf grid row

            if row.Name.StartsWith(prefix, StringComparison.Ordinal) && isFinished folder then
                row.Name.Substring(prefix.Length).TrimStart '-', runOf folder
    ]

let lineOf (run: RunData) (head: string) =
    run.Heads |> Array.tryFind (fun line -> line.Head = head)

let cell (value: HeadLine -> float option) (run: RunData) head =
    lineOf run head
    |> Option.bind value
    |> Option.map (fixedPoint 1)
    |> Option.defaultValue "–"

let last run head = cell (_.Last >> Some) run head

/// Seconds of learning: every phase but the tests.
let seconds (run: RunData) =
    match run.Resources with
    | Some resources ->
        resources.PhaseSeconds
        |> Seq.filter (fun pair -> pair.Key <> "predict")
        |> Seq.sumBy _.Value
        |> fixedPoint 0
    | None -> "–"

let megabytes (line: HeadLine) = fixedPoint 1 (float line.Bytes / 1e6)

let private section title (text: string) (lines: string list) =
    if lines.IsEmpty then
        []
    else
        [ $"### {title}"; ""; text; ""; yield! lines ]

let methodTable (grid: Grid) =
    let rows = readRows grid "method-"

    let find name =
        rows |> List.tryFind (fst >> (=) name) |> Option.map snd

    // of the way from frozen nearest means to joint training
    let share =
        match find "frozen", find "joint" with
        | Some frozen, Some joint ->
            let low = (lineOf frozen published).Value.Last
            let high = joint.Heads |> Array.map _.Last |> Array.max
            fun (run: RunData) -> ((run.Heads |> Array.map _.Last |> Array.max) - low) / (high - low)
        | _ -> fun _ -> nan

    match rows with
    | [] -> []
    | _ ->
        table
            [
                "method"
                "`nearest-mean`"
                "`cosine-lda@rich`"
                "…if recomputed"
                "own classifier"
                "…forgetting, `cosine-lda`"
                "share of the way to joint training"
                "seconds to learn"
            ]
            [
                for name, run in rows ->
                    [
                        $"`{name}`"
                        last run published
                        last run recommended
                        cell _.Recomputed run recommended
                        last
                            run
                            (if name = "ranpac" then
                                 "rp-ridge:10000@class-token"
                             else
                                 "logits@class-token")
                        cell _.Forgetting run recommended
                        $"{fixedPoint 0 (100.0 * share run)} %%"
                        seconds run
                    ]
            ]

let headTable (grid: Grid) =
    let lines =
        [
            for _, run in readRows grid "heads" do
                yield! run.Heads
        ]
        |> List.distinctBy _.Head
        |> List.sortBy _.Last

    match lines with
    | [] -> []
    | _ ->
        table
            [ "head"; "last"; "average"; "forgetting"; "MB" ]
            [
                for line in lines ->
                    [
                        $"`{line.Head}`"
                        fixedPoint 1 line.Last
                        fixedPoint 1 line.Average
                        line.Forgetting |> Option.map (fixedPoint 1) |> Option.defaultValue "–"
                        megabytes line
                    ]
            ]

let everyHead prefix (grid: Grid) =
    match readRows grid prefix with
    | [] -> []
    | rows ->
        table
            [ "run"; "head"; "last"; "…if recomputed"; "average"; "seconds to learn"; "MB" ]
            [
                for name, run in rows do
                    for line in run.Heads ->
                        [
                            name
                            $"`{line.Head}`"
                            fixedPoint 1 line.Last
                            line.Recomputed |> Option.map (fixedPoint 1) |> Option.defaultValue "–"
                            fixedPoint 1 line.Average
                            seconds run
                            megabytes line
                        ]
            ]

/// Accuracy against size, as an SVG.
let figure (grid: Grid) : string option =
    let points =
        [
            for _, run in readRows grid "heads" do
                for line in run.Heads -> line
        ]
        |> List.distinctBy _.Head

    if points.Length < 2 then
        None
    else
        let width, height, left, bottom = 760.0, 420.0, 60.0, 50.0
        let logs = points |> List.map (fun p -> log10 (float p.Bytes))
        let lowX, highX = List.min logs - 0.2, List.max logs + 1.2
        let lowY = floor ((points |> List.map _.Last |> List.min) - 1.0)
        let highY = ceil ((points |> List.map _.Last |> List.max) + 1.0)
        let n (x: float) = fixedPoint 1 x

        let x bytes =
            left + (log10 bytes - lowX) / (highX - lowX) * (width - left - 20.0)

        let y value =
            height - bottom - (value - lowY) / (highY - lowY) * (height - bottom - 20.0)

        [
            $"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n width} {n height}" font-family="sans-serif" font-size="12">"""
            $"""<rect width="100%%" height="100%%" fill="white"/>"""
            for exponent in int (ceil lowX) .. int (floor highX) do
                let at = x (10.0 ** float exponent)

                let label =
                    if exponent < 6 then
                        $"{10.0 ** float (exponent - 3)} kB"
                    else
                        $"{10.0 ** float (exponent - 6)} MB"

                $"""<line x1="{n at}" x2="{n at}" y1="20" y2="{n (height - bottom)}" stroke="#ddd"/>"""
                $"""<text x="{n at}" y="{n (height - bottom + 18.0)}" text-anchor="middle">{label}</text>"""
            for value in int lowY .. 2 .. int highY do
                let at = y (float value)
                $"""<line x1="{n left}" x2="{n (width - 20.0)}" y1="{n at}" y2="{n at}" stroke="#ddd"/>"""
                $"""<text x="{n (left - 8.0)}" y="{n (at + 4.0)}" text-anchor="end">{value}</text>"""
            $"""<text x="{n (width / 2.0)}" y="{n (height - 10.0)}" text-anchor="middle">size of the head in a saved learner</text>"""
            $"""<text transform="rotate(-90)" x="{n (-height / 2.0)}" y="16" text-anchor="middle">last accuracy in %%</text>"""
            for point in points do
                let px, py = x (float point.Bytes), y point.Last
                let colour = if point.Head = recommended then "#c0392b" else "#2c5f8a"
                $"""<circle cx="{n px}" cy="{n py}" r="4" fill="{colour}"/>"""
                $"""<text x="{n (px + 7.0)}" y="{n (py + 4.0)}" fill="{colour}">{point.Head}</text>"""
            "</svg>"
            ""
        ]
        |> String.concat "\n"
        |> Some

let page =
    [
        "# Comparison"
        ""
        "Methods, heads and presets on one small backbone (2.7 million parameters, trained on 32-pixel photographs). Accuracy in %"
        "over all classes after the last task. One seed: differences below a point mean nothing. `dotnet fsi build.fsx -t Compare`"
        "writes this page; `lorasub report artifacts/compare/*/*` shows the same runs with curves and matrices."
        ""
        for grid in grids do
            $"## {grid.Title}"
            ""
            $"""Every run: `lorasub run {grid.Protocol.Replace(Option.defaultValue "DIR" (Map.tryFind "cifar" given), "DIR")}`."""
            ""

            yield!
                section
                    "Methods"
                    "Each with the paper's nearest means, the recommended head, and its own classifier (RanPAC: its head with 10,000 random features). “If recomputed” is a diagnosis that reads old images: what would be reached if the network's drift cost the head nothing."
                    (methodTable grid)

            yield!
                section
                    "Heads over the frozen network"
                    "No training at all: one pass over each image."
                    (headTable grid)

            match figure grid with
            | Some _ when not isQuick ->
                $"![Accuracy against size](comparison-{grid.Folder}.svg)"
                ""
            | _ -> ()

            yield!
                section
                    "Presets"
                    "As in [choosing.md](choosing.md), with the trial on the first task."
                    (everyHead "preset-" grid)

            yield!
                section
                    "When the network moves"
                    $"LoRA-Sub-DRS and null-space LoRA at ten times the published rate (`{fast}`), for two class orders. Heads follow the network, except in the rows named stale."
                    (everyHead "drift-" grid)

            yield!
                section
                    "Ablations of LoRA-Sub-DRS"
                    $"At `{fast}`, so that there is drift to prevent. `no-projection-slow` divides the rate by √192: the step that the published projection takes on average."
                    (everyHead "ablation-" grid)

            yield! section "More tasks" "The same classes in 20 and 50 tasks." (everyHead "tasks-" grid)
    ]
    |> String.concat "\n"

if isQuick then
    writeWhole (Path.Combine(root, "artifacts", "compare", "quick.md")) page
    printfn $"{page}"
else
    for grid in grids do
        figure grid
        |> Option.iter (writeWhole (Path.Combine(root, "docs", $"comparison-{grid.Folder}.svg")))

    writeWhole (Path.Combine(root, "docs", "comparison.md")) page
    printfn "docs/comparison.md is written"
