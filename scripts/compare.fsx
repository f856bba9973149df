// Compares methods, heads and presets on one backbone, and writes docs/comparison.md:
//
//     dotnet fsi build.fsx -t Compare [--cifar DIR] [--only WORD] [--seeds 0,1,2] [--write] [--list] [--quick]
//
// Each row of the grid is a run in artifacts/compare, or one for each seed. Finished rows are kept and stopped ones resumed, so
// the command can be repeated. --only WORD runs the rows whose name holds the word; --write runs none and writes the page from
// what is finished; --list prints the commands. --quick is a short form on the bundled data: it writes artifacts/compare/quick.md. --runs DIR and
// --page FILE name other places for the runs and the page.

#load "comparison.fsx"

open System
open System.Diagnostics
open System.IO
open LoRASub.Methods
open LoRASub.Report
open Comparison

let root = Path.GetFullPath(Path.Combine(__SOURCE_DIRECTORY__, ".."))

let rec private options (arguments: string list) =
    match arguments with
    | ("--quick" | "--write" | "--list" as name) :: rest -> (name.Substring 2, "") :: options rest
    | ("--cifar" | "--only" | "--seeds" | "--runs" | "--page" as name) :: value :: rest ->
        (name.Substring 2, value) :: options rest
    | [] -> []
    | other :: _ ->
        eprintfn
            $"compare: found '{other}' where --cifar DIR, --only WORD, --seeds N,N, --write, --list, --quick, --runs DIR or --page FILE was expected"

        exit 2

let given =
    fsi.CommandLineArgs |> List.ofArray |> List.tail |> options |> Map.ofList

let isQuick = given.ContainsKey "quick"

let option name otherwise =
    defaultArg (Map.tryFind name given) otherwise

let runs = option "runs" (Path.Combine(root, "artifacts", "compare"))

// ------------------------------------------------------------------------------------------------- the grid

let row name settings = { Name = name; Settings = settings }

/// A method with the published head, cosine LDA and its own.
let methodSettings (name: string) =
    let heads = cosineLda :: Option.toList (ownHead name) |> String.concat ","
    // the upper bound at the rate that suits it best
    let rate = if name = "joint" then "--lr 3e-3 " else ""
    $"--method {name} {rate}--heads {heads}"

let methods: Row list =
    [
        for name in Methods.names do
            row $"method-{name}" $"{methodSettings name} --recompute"
        row "method-official" $"--variant official --heads {cosineLda} --recompute"
    ]

let heads: Row list =
    [
        "heads",
        "cosine-lda:0.03@class-token,lda@class-token,ridge@class-token,rda@class-token,fecam@class-token,cosine-lda:0.003@last-blocks,cosine-lda:0.003@small-texture,cosine-lda@all-blocks,cosine-lda@texture"
        "heads-more", "lda:0.03@class-token,rp-ridge@class-token,cosine-lda@full"
        "heads-shift",
        "nearest-mean@class-token+shift,cosine-lda:0.03@class-token+shift,cosine-lda:0.003@small-texture+shift,nearest-mean@texture+shift,lda@texture+shift,ridge@texture+shift,cosine-lda@texture+shift,cosine-lda@full+shift"
        "heads-large", $"{ranPac},rp-cosine-lda:10000@class-token"
        "heads-large-shift", "rp-ridge:8192@texture+shift"
        "heads-larger-shift", $"{ranPac}+shift,rp-cosine-lda:8192@texture+shift"
    ]
    |> List.map (fun (name, heads) -> row name $"--method frozen --heads {heads}")

let presets: Row list =
    [
        for name in [ "recommended"; "small"; "large" ] do
            row $"preset-{name}" $"--preset {name}"
        row
            "preset-ranpac-head"
            ("--method frozen --heads none --head " + ranPac.Replace("@", " --embedding "))
        row "preset-published" "--heads none"
    ]

let drift: Row list =
    let heads =
        $"cosine-lda:0.03@class-token,cosine-lda:0.003@last-blocks,cosine-lda:0.003@frozen+last-blocks,{cosineLda}"

    [
        for order in orders do
            let row name settings =
                row
                    $"drift-{order}{name}"
                    $"{fast} --heads {heads} --recompute --class-order {order}{settings}"

            row "" ""
            row "-stale" " --no-transport"
            row "-null-space" " --method null-space"
    ]

let ablations: Row list =
    [
        for order in orders do
            for name, settings in
                [
                    "published", ""
                    "no-projection", " --no-projection"
                    "no-projection-slow", " --no-projection --lr 3.6e-4" // 5e-3/√192
                    "unscaled", " --update-scale none"
                    "no-subtraction", " --no-subtraction"
                    "no-triplet", " --no-triplet"
                ] ->
                row
                    $"ablation-{order}-{name}"
                    $"--interim-images 1 --epochs 2 {fast} --heads {cosineLda} --recompute --class-order {order}{settings}"
    ]

/// Settings of runs of few images, in small batches, so that each task takes several steps.
let few = "--data-path FEW --batch 16 --interim-images 1"

/// Without the upper bound, which learns all classes as one task.
let longer: Row list =
    [
        for tasks in taskCounts do
            for name in Methods.names |> List.except [ "joint" ] do
                let own = defaultArg (ownHead name) "none"

                row $"few-{tasks}-{name}" $"{few} --epochs 1 --method {name} --heads {own} --tasks {tasks}"
    ]

let grids: Grid list =
    [
        if isQuick then
            {
                Folder = "quick"
                Title = "Quick form"
                Protocol = "--epochs 1 --no-drift"
                Seed = "0"
                Rows =
                    [
                        for name in [ LoRASubDrs.info.Name; Frozen.info.Name ] ->
                            row $"method-{name}" (methodSettings name)
                    ]
            }
        else
            {
                Folder = "fashion-mnist"
                Title = "Fashion-MNIST subset, 2 tasks"
                Protocol = "--no-drift"
                Seed = "0"
                Rows = methods @ presets @ heads
            }

            {
                Folder = "cifar100"
                Title = "CIFAR-100 subset, 10 tasks"
                Protocol =
                    "--data cifar100 --data-path DIR --input-range=-1,1 --norm-epsilon 1e-6 --variant libcontinual --epochs 5 --augment none --tasks 10 --no-drift"
                Seed = "1993"
                Rows = heads @ methods @ presets @ drift @ ablations @ longer
            }
    ]

// ------------------------------------------------------------------------------------------------- the runs

let program =
    Path.Combine(root, "src", "LoRASub.FSharp.Cli", "bin", "Release", "net10.0", "lorasub.dll")

let folderOf (grid: Grid) (row: Row) (seed: string) =
    let name =
        if seed = grid.Seed then
            row.Name
        else
            $"{row.Name}.seed-{seed}"

    Path.Combine(runs, grid.Folder, name)

let isFinished folder =
    File.Exists(Path.Combine(folder, "summary.json"))

/// Whole, as several of these may run at a time.
let writeWhole (path: string) (bytes: byte[]) =
    let next = $"{path}.{Environment.ProcessId}"
    File.WriteAllBytes(next, bytes)
    File.Move(next, path, overwrite = true)

/// Where `writeFew` puts its images.
let fewFolder = Path.Combine(runs, "few")

/// The first 30 training and 10 test images of each class of the CIFAR-100 folder, for runs of many tasks.
let writeFew () =
    Directory.CreateDirectory fewFolder |> ignore

    let given name =
        File.ReadAllBytes(Path.Combine(given["cifar"], name))

    for name in [ "coarse_label_names.txt"; "fine_label_names.txt" ] do
        writeWhole (Path.Combine(fewFolder, name)) (given name)

    for name, each in [ "train.bin", 30; "test.bin", 10 ] do
        given name
        |> Array.chunkBySize 3074 // coarse label, fine label, 3 planes of 32 x 32
        |> Array.groupBy (fun record -> record[1])
        |> Array.collect (fun (_, records) -> Array.truncate each records |> Array.concat)
        |> writeWhole (Path.Combine(fewFolder, name))

/// Options with their values.
let rec private groups (words: string list) : string list list =
    match words with
    | name :: value :: rest when not (value.StartsWith "--") -> [ name; value ] :: groups rest
    | name :: rest -> [ name ] :: groups rest
    | [] -> []

/// The settings of a run: the last of each, so a row's replace those of the protocol.
let settingsOf (grid: Grid) (row: Row) : string list =
    $"{grid.Protocol} {row.Settings}".Split(' ', StringSplitOptions.RemoveEmptyEntries)
    |> List.ofArray
    |> groups
    |> List.rev
    |> List.distinctBy (fun option -> option.Head.Split('=')[0])
    |> List.rev
    |> List.concat
    |> List.map (fun word ->
        match word with
        | "DIR" -> given["cifar"]
        | "FEW" -> fewFolder
        | _ -> word)

let run (grid: Grid) (row: Row) (seed: string) =
    let folder = folderOf grid row seed

    if not (isFinished folder) then
        let arguments =
            if File.Exists(Path.Combine(folder, "settings.json")) then
                [ "--resume"; folder ]
            else
                settingsOf grid row @ [ "--seed"; seed; "--out"; folder ]

        if List.contains fewFolder (settingsOf grid row) then
            writeFew ()

        eprintfn "%s %s" (DateTime.Now.ToString "HH:mm:ss") (Path.GetRelativePath(runs, folder))
        let info = ProcessStartInfo("dotnet", program :: "run" :: arguments)
        info.RedirectStandardOutput <- true
        use child = Process.Start info
        // Ctrl-C reaches the program itself, which saves a checkpoint; a request to this process alone does not
        use _ =
            AppDomain.CurrentDomain.ProcessExit.Subscribe(fun _ ->
                if not child.HasExited then
                    child.Kill())

        child.StandardOutput.ReadToEnd() |> ignore
        child.WaitForExit()

        if child.ExitCode <> 0 then
            eprintfn $"{row.Name} ended with exit code {child.ExitCode}"
            exit child.ExitCode

let chosen =
    [
        for grid in grids do
            if grid.Folder <> "cifar100" || given.ContainsKey "cifar" then
                for row in grid.Rows do
                    if given |> Map.tryFind "only" |> Option.forall row.Name.Contains then
                        grid, row
    ]

if given.ContainsKey "list" then
    for grid, row in chosen do
        printfn $"""lorasub run {String.concat " " (settingsOf grid row)}"""

    exit 0

if not (given.ContainsKey "write") then
    for grid, row in chosen do
        for seed in (option "seeds" grid.Seed).Split ',' do
            run grid row seed

// ------------------------------------------------------------------------------------------------- the page

/// The finished runs of each row.
let finished (grid: Grid) : Found list =
    let parent = Path.Combine(runs, grid.Folder)

    [
        for row in grid.Rows do
            let folders =
                if Directory.Exists parent then
                    Array.append
                        [| Path.Combine(parent, row.Name) |]
                        (Directory.GetDirectories(parent, $"{row.Name}.seed-*") |> Array.sort)
                    |> Array.filter isFinished
                else
                    [||]

            if folders.Length > 0 then
                {
                    Name = row.Name
                    Runs = RunData.loadAll folders |> Array.collect _.Runs
                }
    ]

let target =
    Path.GetFullPath(
        option
            "page"
            (if isQuick then
                 Path.Combine(runs, "quick.md")
             else
                 Path.Combine(root, "docs", "comparison.md"))
    )

let all = grids |> List.map (fun grid -> grid, finished grid)

let text = page (if File.Exists target then File.ReadAllText target else "") all

for grid, found in all do
    figure grid.Title found
    |> Option.iter (
        writeWhole (Path.Combine(Path.GetDirectoryName target, $"comparison-{grid.Folder}.svg"))
        << Text.Encoding.UTF8.GetBytes
    )

writeWhole target (Text.Encoding.UTF8.GetBytes text)

if isQuick then
    printfn "%s" text

eprintfn $"{target} is written"
