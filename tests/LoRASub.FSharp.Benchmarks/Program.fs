/// `dotnet fsi build.fsx -t Bench`: measures sections, files them and rebuilds docs/performance.md.
module LoRASub.Benchmarks.Program

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Native
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Fluent
open LoRASub.Benchmarks.Results
open TorchSharp

/// In the order of the page.
let private sections: Section list =
    List.concat
        [
            Parts.sections
            [
                Step.section
                EndToEnd.section
                EndToEnd.peerSection
                Growth.section
                Waiting.section
                Predicting.section
                Memory.section
                Startup.section
                Gpu.section
            ]
        ]

let private usage =
    """dotnet fsi build.fsx -t Bench [SECTION...] [OPTIONS]

Without a section, all are measured whose --data, --peer or CUDA device is there. Results go to docs/performance/SECTION.json, the page to docs/performance.md.

  --rounds N     rounds of each comparison, at least 5 (7)
  --threads N    LibTorch's threads (all cores)
  --data DIR     folder of CIFAR-100's binary files, for run, peer and growth
  --peer DIR     folder of a Python peer, run_peer.py, for peer
  --images N     training images of a task in the end-to-end runs (128)
  --tasks N      tasks of the end-to-end runs (all 10; 3 beside the peer)
  --list         name the sections
  --page         rebuild the page alone
  --check        hold what is measured against the library's numbers, in small shapes; measures nothing

A Python peer takes BACKBONE.safetensors DATA --code vectorised|published --tasks N --stop N --epochs N --batch N
--limit N --threads N, and its last line is JSON: {"seconds": {"observe": S, "project": S, ...}, "last": PERCENT}.

All sections take about an hour on two cores: run 20 minutes, peer 20, the others 1 to 8.
"""

[<RequireQualifiedAccess>]
type private Mode =
    | Measure
    | Page
    | Check
    | List
    | Help
    /// What the memory section starts a process for: a format, what becomes of activations, and the images of a batch.
    | Peak of string * string * int

let private root () =
    let rec above (folder: string) =
        match folder with
        | null ->
            Errors.reject
                AppContext.BaseDirectory
                "must lie in the repository"
                "no LoRASub.FSharp.sln above it"
                ""
        | folder when File.Exists(Path.Combine(folder, "LoRASub.FSharp.sln")) -> folder
        | folder -> above (Path.GetDirectoryName folder)

    above (AppContext.BaseDirectory.TrimEnd Path.DirectorySeparatorChar)

let private wholeNumber (name: string) (least: int) (text: string) =
    match Int32.TryParse text with
    | true, number when number >= least && number <= 1024 -> number
    | _ -> Errors.reject name $"must be a whole number of {least} to 1024" $"'{text}'" ""

let private folder (name: string) (path: string) =
    if not (Directory.Exists path) then
        Errors.reject name "must be a folder" $"'{path}'" ""

    Some(Path.GetFullPath path)

/// Whether nothing that a section needs was left out; what is left out by name is told when the section is asked for.
let private canMeasure (options: Options) (section: Section) =
    (options.Data.IsSome || not section.NeedsData)
    && (options.Peer.IsSome || section.Id <> EndToEnd.peerSection.Id)
    && (section.Id <> Gpu.section.Id || Gpu.isThere ())

let private parse (arguments: string list) : struct (Mode * Section list * Options) =
    let rec read mode chosen (options: Options) arguments =
        let withOptions options rest = read mode chosen options rest
        let inMode mode rest = read mode chosen options rest

        match arguments with
        | [] -> struct (mode, List.rev chosen, options)
        | "--rounds" :: n :: rest ->
            withOptions
                { options with
                    Rounds = wholeNumber "--rounds" 5 n
                }
                rest
        | "--threads" :: n :: rest ->
            withOptions
                { options with
                    Threads = wholeNumber "--threads" 1 n
                }
                rest
        | "--data" :: path :: rest ->
            withOptions
                { options with
                    Data = folder "--data" path
                }
                rest
        | "--peer" :: path :: rest ->
            withOptions
                { options with
                    Peer = folder "--peer" path
                }
                rest
        | "--images" :: n :: rest ->
            withOptions
                { options with
                    Images = wholeNumber "--images" 1 n
                }
                rest
        | "--tasks" :: n :: rest ->
            withOptions
                { options with
                    Tasks = Some(wholeNumber "--tasks" 2 n)
                }
                rest
        | "--list" :: rest -> inMode Mode.List rest
        | "--page" :: rest -> inMode Mode.Page rest
        | "--check" :: rest -> inMode Mode.Check rest
        | "--peak" :: precision :: kept :: images :: rest ->
            inMode (Mode.Peak(precision, kept, wholeNumber "--peak" 1 images)) rest
        | ("help" | "--help" | "-h") :: rest -> inMode Mode.Help rest
        | name :: rest ->
            match sections |> List.tryFind (fun section -> section.Id = name) with
            | Some section -> read mode (section :: chosen) options rest
            | None ->
                let known = sections |> List.map _.Id |> String.concat ", "

                Errors.reject
                    $"'{name}'"
                    $"must be a section ({known}) or an option with its value"
                    "neither"
                    ""

    let options =
        {
            Rounds = 7
            Threads = Environment.ProcessorCount
            Data = None
            Peer = None
            Images = 128
            Tasks = None
            Root = root ()
        }

    match read Mode.Measure [] options arguments with
    | struct (mode, [], options) ->
        let all =
            sections
            |> List.filter (fun section -> mode <> Mode.Measure || canMeasure options section)

        struct (mode, all, options)
    | chosen -> chosen

/// What measures a section again; folders go by their kind, for theirs differ from machine to machine.
let private command (section: Section) (options: Options) =
    let given name folder =
        if Option.isSome folder then $" {name} DIR" else ""

    $"dotnet fsi build.fsx -t Bench {section.Id} --rounds {options.Rounds} --threads {options.Threads}"
    + given "--data" options.Data
    + given "--peer" options.Peer
    + (if options.Images = 128 then
           ""
       else
           $" --images {options.Images}")
    + (match options.Tasks with
       | Some tasks -> $" --tasks {tasks}"
       | None -> "")

let private machine (section: Section) : (string * string) list =
    let isGpu = section.Id = Gpu.section.Id
    let told = (Machine.describe (if isGpu then "cuda:0" else "cpu") false).AsObject()

    [
        for fact in told do
            match fact.Key with
            | "memoryBytes" -> "memory", $"{fact.Value.GetValue<int64>() >>> 20} MiB"
            | name -> name, string fact.Value

        if isGpu then
            yield! Gpu.facts ()
    ]

/// Whether a section went through; one that breaks does not keep the others from running.
let private guarded (section: Section) (what: string) (action: unit -> unit) : bool =
    try
        eprintfn $"{section.Id}: {what}"
        action ()
        true
    with
    | :? InputException as e ->
        eprintfn $"{section.Id}: {e.Message}"
        false
    | e ->
        // LibTorch adds a trace of its own
        eprintfn $"{section.Id}: failed: {e.Message.Split('\n')[0]}\n{e.StackTrace}"
        false

let private measure (options: Options) (section: Section) =
    guarded section section.Title (fun () ->
        section.Check()

        save
            options.Root
            section
            {
                Findings = section.Measure options
                Machine = machine section
                Command = command section options
            })

let private exitCode (passed: bool list) = if List.forall id passed then 0 else 1

[<EntryPoint>]
let main arguments =
    try
        let struct (mode, chosen, options) = parse (List.ofArray arguments)

        match mode with
        | Mode.Help ->
            printf "%s" usage
            0
        | Mode.List ->
            for section in sections do
                printfn $"  %-16s{section.Id} {section.Title}"

            0
        | Mode.Page ->
            render options.Root sections
            0
        | Mode.Peak(precision, kept, images) ->
            NativeBackend.ensureLoaded () |> ignore
            torch.set_num_threads options.Threads
            Memory.child precision kept images
            0
        | Mode.Check
        | Mode.Measure ->
            NativeBackend.ensureLoaded () |> ignore
            torch.set_num_threads options.Threads

            if mode = Mode.Check then
                chosen
                |> List.map (fun section -> guarded section "check" section.Check)
                |> exitCode
            else
                let passed = chosen |> List.map (measure options)
                render options.Root sections
                exitCode passed
    with :? InputException as e ->
        eprintfn $"{e.Message}"
        2
