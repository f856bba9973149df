/// `lorasub run`: new runs, resumed runs, and runs of several seeds.
module LoRASub.Cli.Runs

open System
open System.IO
open System.Runtime.ExceptionServices
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open TorchSharp

/// Executes a run, given a progress callback and whether to stop.
type private Carry = (RunEvent -> unit) -> (unit -> bool) -> Outcome

// A run must be saved even if its terminal disappears.
let private despite (shell: Shell) (show: Display.Show) (carry: (RunEvent -> unit) -> Outcome) : Outcome =
    let mutable ended: Result<Outcome, ExceptionDispatchInfo> option = None
    let mutable shown = true

    let quietly (onProgress: RunEvent -> unit) progress =
        if shown then
            try
                onProgress progress
            with :? IOException as e ->
                shown <- false
                Shell.complain shell.Error $"lorasub: cannot show progress ({e.Message})"

    let work onProgress =
        try
            let outcome = carry (quietly onProgress)
            ended <- Some(Ok outcome)
            outcome
        with e ->
            ended <- Some(Error(ExceptionDispatchInfo.Capture e))
            reraise ()

    try
        show work
    with :? IOException when ended.IsSome ->
        match ended.Value with
        | Ok outcome -> outcome
        | Error e ->
            e.Throw()
            raise e.SourceException

// The plan with the choice made that the settings leave to the first task.
let private decided (shell: Shell) (plan: Plan) : Plan =
    if plan.Settings.IsUndecided then
        let stopIfAsked _ =
            if shell.Interruption.IsRequested then
                raise (OperationCanceledException "interrupted; nothing was learned yet")

        Shell.say shell [ "trial of adapting the network, on the training images of the first task" ]
        let struct (plan, trial) = Decision.ofPlan stopIfAsked plan
        Shell.say shell [ $"note: {Decision.describe trial}"; "" ]
        plan
    else
        plan

// One run from its plan to its saved and printed results.
let private one (shell: Shell) (plan: Plan) (folder: string option) (carry: Plan -> Learner -> Carry) =
    let plan = decided shell plan
    let learner = Plan.learner plan
    let workload = Display.Workload.ofPlan learner plan
    let began = DateTime.UtcNow

    let show =
        match Shell.canvas shell with
        | Some console -> Display.live console workload plan
        | None -> Display.plain shell.Out workload plan

    let outcome =
        despite shell show (fun onProgress ->
            carry plan learner onProgress (fun () -> shell.Interruption.IsRequested))

    use _ = Scope.own Outcome.leaves outcome
    let results = Display.results plan outcome

    // save before printing, so that a closed pipe does not lose the run; print even if saving fails
    try
        folder
        |> Option.iter (fun folder -> lock Shell.saving (fun () -> SavedRun.save folder plan began outcome))
    with _ ->
        Shell.say shell results
        reraise ()

    Shell.say shell results
    let struct (measures, _) = Results.measures plan outcome

    { Statistics.ofMatrix plan.Settings.Seed outcome.Matrix with
        Measures = measures
    }

let private saved (shell: Shell) (folder: string) =
    Shell.say shell [ $"saved in           {folder}" ]

/// Runs `work` on the run in a folder; adds the last checkpoint and how to resume to an error.
let keeping (folder: string) (work: unit -> 'T) : 'T =
    let checkpoint () =
        if SeedFolders.holdsSeeds folder then
            SeedFolders.seeds folder |> Array.map (SeedFolders.folderOf folder)
        else
            [| folder |]
        |> Array.filter Checkpoint.exists
        |> Array.tryLast

    let message (e: exn) =
        checkpoint ()
        |> Option.map Checkpoint.path
        // an error about the checkpoint itself has its own advice
        |> Option.filter (e.Message.Contains >> not)
        |> Option.map (fun path ->
            $"{e.Message}; the last checkpoint is {path}; resume with: lorasub run --resume {folder}")

    try
        work ()
    with
    | :? MemoryException as e ->
        match message e with
        | Some message -> raise (MemoryException(message, e))
        | None -> reraise ()
    | :? InputException as e ->
        match message e with
        | Some message -> raise (InputException(message, e))
        | None -> reraise ()

// ---------------------------------------------------------------------------------------------- new runs

let private fresh (shell: Shell) (plan: Plan) inputs (config: MergedConfig) folder =
    let from = Session.start folder

    one shell plan (Some folder) (fun plan learner onProgress stopping ->
        Json.write (RunFiles.sources folder) (Config.toJson config)
        shell.Interruption.Guard(fun () -> from learner plan inputs onProgress stopping))

let private unsaved (shell: Shell) (plan: Plan) =
    shell.Interruption.Message <- "interrupted; nothing was saved (run with --out DIR to save)"

    one shell plan None (fun plan learner onProgress _ -> Experiment.run learner plan onProgress)

let private ofSeed (plan: Plan) seed =
    { plan with
        Settings = { plan.Settings with Seed = seed }
    }

// The sources of a seed's settings are those of its series.
let private copySources (folder: string) (mine: string) =
    let sources = RunFiles.sources folder

    if File.Exists sources then
        WholeFile.writeText (RunFiles.sources mine) (File.ReadAllText sources)

let private withLibTorch (libTorch: string option) =
    libTorch |> Option.map (fun folder -> $"--libtorch={folder}") |> Option.toList

// The whole series is resumed, not one seed.
let private stoppingIn folder (work: unit -> unit) =
    try
        work ()
    with :? RunStoppedException ->
        raise (RunStoppedException folder)

// Rejects an output folder that cannot be used or that holds other runs.
let private check overwrite (config: MergedConfig) (folder: string) =
    if overwrite then
        RunFolder.checkNames folder
    else
        RunFolder.check folder

    if config.Seeds.Length > 1 then
        let replaced = if overwrite then SeedFolders.runs folder else [||]

        config.Seeds
        |> Array.map (SeedFolders.folderOf folder)
        |> Array.except replaced
        |> Array.iter RunFolder.check

// Seed i of a series runs on device i, counted round the devices, also where other seeds are finished: otherwise two
// could meet on one device. Each process resumes its seed, begun or not, with the results of a run of its own.
let private onDevices (shell: Shell) (folder: string) (settings: RunSettings) (more: string list) =
    let devices = SeedFolders.devices folder

    let jobs: Series.Job[] =
        [|
            for i, seed in Array.indexed (SeedFolders.seeds folder) do
                let line = i % devices.Length
                let mine = SeedFolders.folderOf folder seed

                if not (RunFolder.holdsRun mine) then
                    use _ = RunFolder.hold mine
                    copySources folder mine

                    Json.write
                        (RunFiles.settings mine)
                        (Settings.toJson
                            { settings with
                                Seed = seed
                                Device = devices[line]
                            })

                if not (RunFolder.isFinished mine) then
                    {
                        Series.Job.Seed = seed
                        Series.Job.Line = line
                        Series.Job.Arguments = "run" :: "--resume" :: mine :: more
                    }
        |]

    let left = shell.Interruption.Guard(fun () -> Series.run shell jobs)

    if left.Length > 0 then
        if shell.Interruption.IsRequested then
            raise (RunStoppedException folder)

        let seeds = left |> Array.map string |> String.concat ", "

        failwith $"not finished: seed {seeds}; resume with: lorasub run --resume {folder}"

let private inFolder
    (shell: Shell)
    (command: Arguments.RunCommand)
    (plan: Plan)
    inputs
    (config: MergedConfig)
    folder
    =
    use _ = RunFolder.hold folder
    check command.Overwrite config folder

    if command.Overwrite then
        SeedFolders.clear folder
    else
        // a run was killed before its settings were saved
        SeedFolders.forget folder

    keeping folder (fun () ->
        match config.Seeds with
        | [| _ |] -> fresh shell plan inputs config folder |> ignore
        | seeds ->
            SeedFolders.start folder seeds command.Devices plan.Settings
            Json.write (RunFiles.sources folder) (Config.toJson config)

            if command.Devices.Length > 0 then
                onDevices shell folder plan.Settings (withLibTorch command.LibTorch)
            else
                for seed in seeds do
                    let mine = SeedFolders.folderOf folder seed
                    use _ = RunFolder.hold mine
                    Shell.say shell [ ""; $"seed {seed}" ]
                    stoppingIn folder (fun () -> fresh shell (ofSeed plan seed) inputs config mine |> ignore)

            Shell.say shell (Display.statistics (SeedFolders.finish folder)))

    saved shell folder

// Rejects replacing a file that the run itself reads, under any name.
let private requireKept (config: MergedConfig) (folder: string) =
    let replaced = SeedFolders.files folder

    let require (name: string) (path: string) (file: string) =
        if replaced |> Array.exists (RealPath.same file) then
            Errors.reject
                name
                "must not be among the files that --overwrite replaces"
                path
                "choose another folder"

    let settings = config.Settings

    if config.Expected.File <> "" then
        require "--config" config.Expected.File config.Expected.File

    for name, path in [ "--backbone", settings.Backbone; "--class-order", Some settings.ClassOrder ] do
        path |> Option.iter (fun path -> require name path path)

    for reference in settings.Reference do
        require "--reference" reference (RunFiles.summary reference)

// Rejects an output folder inside the images of the run.
let private requireOutside (plan: Plan) (folder: string) =
    for set in [ plan.Stream.Dataset.Train; plan.Stream.Dataset.Test ] do
        ImageSet.requireOutside set.Source folder

let private isGiven (config: MergedConfig) name =
    config.Sources
    |> Array.exists (fun s -> s.Name = name && not (Config.isAssumed s))

// Notes about data and backbone, after reading them.
let private planNotes (config: MergedConfig) (plan: Plan) (header: TensorFileHeader) (card: WeightsCard) =
    let settings, vit = plan.Settings, plan.Backbone

    [
        yield! Config.backboneNotes config.Expected (int vit.Width) (int vit.Heads)
        yield! Weights.notes (Recipe.backboneOptions settings) card header
        yield! Config.assumed config card header.Metadata
        yield!
            plan.Stream.Tasks
            |> Array.map _.Classes.Length
            |> TaskStream.sizeNote settings.InitialClasses
            |> Option.toList
    ]

// The plan of a run. Where devices share its seeds, this process only checks it: the network stays off their memory. The
// devices are checked here, before --overwrite deletes anything.
let private planned (devices: string[]) (settings: RunSettings) (load: RunSettings -> Plan) : Plan =
    devices |> Array.iter (Device.parse >> ignore)

    if devices.Length = 0 then
        load settings
    else
        { load { settings with Device = "cpu" } with
            Settings = settings
        }

let private largestBatch (shell: Shell) (plan: Plan) (limit: int64 option) =
    let report (trial: BatchTrial) =
        let memory =
            match trial.Bytes with
            | Some bytes when trial.Ran -> Bytes.text bytes
            | Some bytes -> $"would take about {Bytes.text bytes}"
            | None when trial.Fits -> ""
            | None -> "out of memory"

        let verdict = if trial.Fits then "fits" else "does not fit"
        Shell.say shell [ $"batch {trial.Batch, -6} {verdict, -13} {memory}" ]

    match LargestBatch.find plan limit report with
    | 0 -> failwith $"not even one image fits; {Plan.lessMemory plan}"
    | batch -> Shell.say shell [ ""; $"largest batch      {batch}; use --batch {batch}" ]

/// Runs what the command line asks for.
let start (shell: Shell) (command: Arguments.RunCommand) =
    let complete source settings (config: MergedConfig) =
        Config.complete source (settings config.Settings) config

    let config =
        command.Config
        |> complete "downloaded" Assets.downloaded
        |> complete "comes with the program" Assets.fill

    match command.Out with
    | Some out ->
        check command.Overwrite config out

        if command.Overwrite then
            requireKept config out
    | None -> ()

    Shell.loadNative shell command.LibTorch config.Settings
    // saved, so that a resumed run uses as many threads
    let threads = Some(torch.get_num_threads ())

    let settings =
        { config.Settings with
            Threads = threads
            Device = Array.tryHead command.Devices |> Option.defaultValue config.Settings.Device
        }

    let config = Config.complete "this machine" settings config
    Shell.notes shell config.Notes

    let plan =
        planned command.Devices settings (Plan.loadChecking (Config.checkClasses config.Expected))

    use _ = Scope.own Plan.leaves plan
    command.Out |> Option.iter (requireOutside plan)
    let already = config.Notes.Length
    let config = Config.fitToBackbone plan.Backbone.ImageSize config
    Shell.notes shell config.Notes[already..]
    let settings = config.Settings

    let plan =
        { plan with
            Settings.TestResize = settings.TestResize
        }

    let inputs = CheckpointInputs.ofPlan plan
    let header = TensorFormats.header settings.Backbone.Value
    let card = Weights.card header
    let found = planNotes config plan header card
    Shell.notes shell found
    // the program's own data and backbone go with its own defaults
    let isOwn name =
        config.Sources
        |> Array.exists (fun s -> s.Name = name && s.Source = "comes with the program")

    let warnings =
        if isOwn "data-path" && isOwn "backbone" && not (isGiven config "input-range") then
            []
        else
            Config.contradiction settings card |> Option.toList

    Shell.warnings shell warnings

    // saved with the run as well
    let config =
        { config with
            Notes = Array.append config.Notes (Array.ofList (found @ warnings))
        }

    Shell.say shell (Display.header plan (torch.get_num_threads ()))

    match command.Out with
    | _ when command.LargestBatch.IsSome -> largestBatch shell plan command.LargestBatch.Value.Limit
    | Some folder -> inFolder shell command plan inputs config folder
    | None ->
        let results =
            config.Seeds
            |> Array.map (fun seed ->
                if config.Seeds.Length > 1 then
                    Shell.say shell [ ""; $"seed {seed}" ]

                unsaved shell (ofSeed plan seed))

        if results.Length > 1 then
            Shell.say shell (Display.statistics (Statistics.ofSeeds results))

        Shell.say shell [ "not saved          use --out DIR to save the results and the learner" ]

    0

// ---------------------------------------------------------------------------------------------- resumed runs

// Arguments beside --resume may give new paths of files, but not change the run.
let private moved (folder: string) (changes: (string * string) list) =
    let saved = RunFolder.settings folder
    let now = List.fold (fun s (name, text) -> Settings.set name text s) saved changes

    match CheckpointInputs.differences saved now with
    | [] -> Assets.fill now
    | some ->
        let differences =
            some
            |> List.map (fun d -> $"{d.Name} = {d.Left}, not {d.Right}")
            |> String.concat "; "

        raise (
            InputException
                $"--resume uses the saved settings of {folder} ({differences}); remove these options or start a new run"
        )

// From the checkpoint of a run folder, or from the start if there is none.
let private continueRun (shell: Shell) (plan: Plan) inputs folder =
    Shell.say
        shell
        [
            if Checkpoint.exists folder then
                $"Resuming from the checkpoint in {folder}"
            else
                $"Starting again: there is no checkpoint in {folder} yet"
        ]

    one shell plan (Some folder) (fun plan learner onProgress stopping ->
        shell.Interruption.Guard(fun () -> Session.resume folder learner plan inputs onProgress stopping))

let private continueSeed (shell: Shell) (plan: Plan) inputs (folder: string) (seed: int64) =
    let mine = SeedFolders.folderOf folder seed
    let plan = ofSeed plan seed
    use _ = RunFolder.hold mine
    Shell.say shell [ ""; $"seed {seed}" ]

    if RunFolder.isFinished mine then
        // left by a process that was killed right after its last file
        Checkpoint.delete mine
        Shell.say shell [ "already finished" ]
    elif RunFolder.holdsRun mine then
        // the seed's own, which may have been decided
        let settings =
            { plan.Settings with
                MethodName = (RunFolder.settings mine).MethodName
            }

        continueRun shell { plan with Settings = settings } inputs mine |> ignore
    else
        copySources folder mine

        one shell plan (Some mine) (fun plan learner onProgress stopping ->
            shell.Interruption.Guard(fun () -> Session.start mine learner plan inputs onProgress stopping))
        |> ignore

let private isFinished folder =
    if SeedFolders.holdsSeeds folder then
        SeedFolders.isFinished folder
    else
        RunFolder.isFinished folder

/// Resumes the run, or the runs of several seeds, in a folder.
let resume (shell: Shell) (folder: string) (changes: (string * string) list) (libTorch: string option) =
    if not (RunFolder.holdsRun folder) then
        Errors.reject folder "must hold a run" "no settings.json" "give the folder of the run's --out"

    use _ = RunFolder.hold folder
    let settings = moved folder changes
    Settings.check settings

    if isFinished folder then
        Checkpoint.delete folder
        Shell.say shell [ $"already finished   {folder}" ]
    else
        Shell.loadNative shell libTorch settings
        let isSeries = SeedFolders.holdsSeeds folder

        let devices = if isSeries then SeedFolders.devices folder else [||]

        let plan = planned devices settings Plan.load
        use _ = Scope.own Plan.leaves plan
        requireOutside plan folder
        let inputs = CheckpointInputs.ofPlan plan
        Shell.say shell (Display.header plan (torch.get_num_threads ()))

        keeping folder (fun () ->
            if isSeries then
                if devices.Length > 0 then
                    [ for name, text in changes -> $"--{name}={text}" ] @ withLibTorch libTorch
                    |> onDevices shell folder plan.Settings
                else
                    SeedFolders.seeds folder
                    |> Array.iter (fun seed ->
                        stoppingIn folder (fun () -> continueSeed shell plan inputs folder seed))

                Shell.say shell (Display.statistics (SeedFolders.finish folder))
            else
                continueRun shell plan inputs folder |> ignore)

        saved shell folder

    0
