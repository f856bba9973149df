/// `lorasub run`: fresh runs, runs that are taken up again, and runs of several seeds.
module LoRASub.Cli.Runs

open System
open System.IO
open TorchSharp
open LoRASub

/// Held while results are written: an interruption waits for it.
let saving = obj ()

/// How a run is carried out: it hears of the progress and is asked whether to stop.
type private Carry = (Progress -> unit) -> (unit -> bool) -> Outcome

// One run from its plan to its saved and printed results.
let private one (shell: Shell) (plan: Plan) (folder: string option) (carry: Learner<_, _> -> Carry) =
    let learner = LoRASubDrs.learner plan.Backbone plan.Settings.Method
    let workload = Display.Workload.ofPlan learner plan
    let began = DateTime.UtcNow

    let show =
        match Shell.canvas shell with
        | Some console -> Display.live console workload plan
        | None -> Display.plain shell.Out workload plan

    let outcome =
        show (fun listen -> carry learner listen (fun () -> shell.Interruption.IsRequested))

    use _ = Scope.own Outcome.leaves outcome
    let results = Display.results plan outcome

    // saved before anything is printed: a closed pipe must not cost a run, nor a full disk its results
    try
        folder
        |> Option.iter (fun folder -> lock saving (fun () -> RunFolder.save folder plan began outcome))
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

// ---------------------------------------------------------------------------------------------- fresh

let private fresh (shell: Shell) (plan: Plan) (config: MergedConfig) folder =
    let from = Session.start folder

    one shell plan (Some folder) (fun learner listen stopping ->
        Json.write (RunFiles.sources folder) (Config.toJson config)
        shell.Interruption.Guard(fun () -> from learner plan listen stopping))

let private unsaved (shell: Shell) (plan: Plan) =
    one shell plan None (fun learner listen _ -> Experiment.run learner plan listen)

let private ofSeed (plan: Plan) seed =
    { plan with
        Settings = { plan.Settings with Seed = seed }
    }

// What is taken up again is the whole, not the one seed.
let private stoppingIn folder (work: unit -> unit) =
    try
        work ()
    with :? RunStoppedException ->
        raise (RunStoppedException folder)

/// Runs `work` on the run in a folder; where memory runs out, says which checkpoint is kept and how to resume.
let keeping (folder: string) (work: unit -> unit) =
    let checkpoint () =
        if SeedFolders.holdsSeeds folder then
            SeedFolders.seeds folder |> Array.map (SeedFolders.folderOf folder)
        else
            [| folder |]
        |> Array.filter Checkpoint.exists
        |> Array.tryLast

    try
        work ()
    with :? MemoryException as e ->
        match checkpoint () with
        | Some where ->
            let kept =
                $"the last checkpoint, {Checkpoint.path where}, is kept: with more free memory, resume with the same settings by lorasub run --resume {folder}"

            raise (MemoryException($"{e.Message}; {kept}", e))
        | None -> reraise ()

let private inFolder (shell: Shell) overwrite (plan: Plan) (config: MergedConfig) (folder: string) =
    use _ = RunFolder.hold folder

    if overwrite then
        RunFolder.checkNames folder
        SeedFolders.clear folder
    else
        RunFolder.check folder

    keeping folder (fun () ->
        match config.Seeds with
        | [| _ |] -> fresh shell plan config folder |> ignore
        | seeds ->
            SeedFolders.start folder seeds plan.Settings
            Json.write (RunFiles.sources folder) (Config.toJson config)

            for seed in seeds do
                let mine = SeedFolders.folderOf folder seed
                use _ = RunFolder.hold mine
                Shell.say shell [ ""; $"seed {seed}" ]
                stoppingIn folder (fun () -> fresh shell (ofSeed plan seed) config mine |> ignore)

            Shell.say shell (Display.statistics (SeedFolders.finish folder)))

    saved shell folder

/// Runs what the command line asks for.
let start (shell: Shell) (command: Arguments.RunCommand) =
    let config =
        Config.complete "comes with the program" (Assets.fill command.Config.Settings) command.Config

    match command.Out with
    | Some out when command.Overwrite ->
        RunFolder.checkNames out

        for reference in Reference.folders config.Settings.Reference do
            if reference = Path.GetFullPath out then
                Errors.reject "--reference" "must be another run than the one that is replaced" out ""
    | Some out -> RunFolder.check out
    | None -> ()

    Shell.loadNative shell command.LibTorch config.Settings
    // so that it is the same wherever the run is taken up again
    let threads = Some(torch.get_num_threads ())

    let settings =
        { config.Settings with
            Threads = threads
        }

    let config = Config.complete "this machine" settings config
    Shell.notes shell config.Notes
    let plan = Plan.loadChecking (Config.checkClasses config.Expected) settings
    use _ = Scope.own Plan.leaves plan

    Config.backboneNotes config.Expected (int plan.Backbone.Width) (int plan.Backbone.Heads)
    |> Shell.notes shell

    Shell.say shell (Display.header plan (torch.get_num_threads ()))

    match command.Out with
    | Some folder -> inFolder shell command.Overwrite plan config folder
    | None ->
        let results =
            config.Seeds
            |> Array.map (fun seed ->
                if config.Seeds.Length > 1 then
                    Shell.say shell [ ""; $"seed {seed}" ]

                unsaved shell (ofSeed plan seed))

        if results.Length > 1 then
            Shell.say shell (Display.statistics (Statistics.ofSeeds results))

        Shell.say shell [ "not saved          give --out DIR to keep results and learner" ]

    0

// ---------------------------------------------------------------------------------------------- taken up again

// What the command line says beside --resume may move files, but not change the run.
let private moved (folder: string) (changes: (string * string) list) =
    let saved = RunFolder.settings folder
    let now = List.fold (fun s (name, text) -> Settings.set name text s) saved changes

    match Checkpoint.differences saved now with
    | [] -> Assets.fill now
    | some ->
        let told = String.concat "; " some

        Errors.reject
            folder
            "goes on with its own settings"
            $"{told} (saved, given)"
            "leave them out, or start another run"

// From the checkpoint of a run's folder, or from its beginning where it has got no further.
let private takeUp (shell: Shell) (plan: Plan) folder =
    Shell.say
        shell
        [
            if Checkpoint.exists folder then
                $"goes on from the checkpoint in {folder}"
            else
                $"starts again: no checkpoint yet in {folder}"
        ]

    one shell plan (Some folder) (fun learner listen stopping ->
        shell.Interruption.Guard(fun () -> Session.resume folder learner plan listen stopping))

let private takeUpSeed (shell: Shell) (plan: Plan) (folder: string) (seed: int64) =
    let mine = SeedFolders.folderOf folder seed
    let plan = ofSeed plan seed
    use _ = RunFolder.hold mine
    Shell.say shell [ ""; $"seed {seed}" ]

    if RunFolder.isFinished mine then
        Shell.say shell [ "finished already" ]
    elif RunFolder.holdsRun mine then
        takeUp shell plan mine |> ignore
    else
        let sources = RunFiles.sources folder

        if File.Exists sources then
            WholeFile.writeText (RunFiles.sources mine) (File.ReadAllText sources)

        one shell plan (Some mine) (fun learner listen stopping ->
            shell.Interruption.Guard(fun () -> Session.start mine learner plan listen stopping))
        |> ignore

let private isFinished folder =
    if SeedFolders.holdsSeeds folder then
        SeedFolders.isFinished folder
    else
        RunFolder.isFinished folder

/// Goes on with the run, or the runs of several seeds, in a folder.
let resume (shell: Shell) (folder: string) (changes: (string * string) list) (libTorch: string option) =
    if not (RunFolder.holdsRun folder) then
        Errors.reject
            folder
            "must hold a run"
            "no settings.json"
            "name the folder that --out named in the run"

    use _ = RunFolder.hold folder
    let settings = moved folder changes
    Settings.check settings

    if isFinished folder then
        Shell.say shell [ $"finished already   {folder}" ]
    else
        Shell.loadNative shell libTorch settings
        let plan = Plan.load settings
        use _ = Scope.own Plan.leaves plan
        Shell.say shell (Display.header plan (torch.get_num_threads ()))

        keeping folder (fun () ->
            if SeedFolders.holdsSeeds folder then
                SeedFolders.seeds folder
                |> Array.iter (fun seed -> stoppingIn folder (fun () -> takeUpSeed shell plan folder seed))

                Shell.say shell (Display.statistics (SeedFolders.finish folder))
            else
                takeUp shell plan folder |> ignore)

        saved shell folder

    0
