/// `lorasub run`: fresh runs, runs that are taken up again, and runs of several seeds.
module LoRASub.Cli.Runs

open System
open System.IO
open System.Runtime.ExceptionServices
open TorchSharp
open LoRASub

/// Held while results are written: an interruption waits for it.
let saving = obj ()

let private notes (shell: Shell) (some: string seq) =
    Shell.say shell [ for note in some -> $"note: {note}" ]

/// How a run is carried out: it hears of the progress and is asked whether to stop.
type private Carry = (Progress -> unit) -> (unit -> bool) -> Outcome

// A terminal can go away during a run, which has to be saved all the same.
let private despite (shell: Shell) (show: Display.Show) (carry: (Progress -> unit) -> Outcome) : Outcome =
    let mutable ended: Result<Outcome, ExceptionDispatchInfo> option = None
    let mutable shown = true

    let quietly (listen: Progress -> unit) progress =
        if shown then
            try
                listen progress
            with :? IOException as e ->
                shown <- false
                Shell.complain shell.Error $"lorasub: progress cannot be shown ({e.Message})"

    let work listen =
        try
            let outcome = carry (quietly listen)
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
        despite shell show (fun listen -> carry learner listen (fun () -> shell.Interruption.IsRequested))

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

// What ends a run of `whole`, one run or one of several seeds, says what is kept and how to resume it.
let private keeping (whole: string) (folder: string) (work: unit -> unit) =
    try
        work ()
    with
    | :? RunStoppedException -> raise (RunStoppedException whole)
    | :? InputException as e when Checkpoint.exists folder ->
        raise (InputException($"{e.Message}; the last checkpoint is kept, resume with --resume {whole}", e))

// ---------------------------------------------------------------------------------------------- fresh

let private fresh (shell: Shell) (plan: Plan) inputs (config: MergedConfig) folder =
    let from = Session.start folder

    one shell plan (Some folder) (fun learner listen stopping ->
        Json.write (RunFiles.sources folder) (Config.toJson config)
        shell.Interruption.Guard(fun () -> from learner plan inputs listen stopping))
    |> ignore

let private unsaved (shell: Shell) (plan: Plan) =
    one shell plan None (fun learner listen _ -> Experiment.run learner plan listen)

let private ofSeed (plan: Plan) seed =
    { plan with
        Settings = { plan.Settings with Seed = seed }
    }

// Rejects an output folder that cannot be used, or whose runs would be someone else's.
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

let private inFolder (shell: Shell) overwrite (plan: Plan) inputs (config: MergedConfig) (folder: string) =
    use _ = RunFolder.hold folder
    check overwrite config folder

    if overwrite then
        SeedFolders.clear folder
    else
        // of a run that was killed before its settings were saved
        SeedFolders.forget folder

    match config.Seeds with
    | [| _ |] -> keeping folder folder (fun () -> fresh shell plan inputs config folder)
    | seeds ->
        SeedFolders.start folder seeds plan.Settings
        Json.write (RunFiles.sources folder) (Config.toJson config)

        for seed in seeds do
            let mine = SeedFolders.folderOf folder seed
            use _ = RunFolder.hold mine
            Shell.say shell [ ""; $"seed {seed}" ]
            keeping folder mine (fun () -> fresh shell (ofSeed plan seed) inputs config mine)

        Shell.say shell (Display.statistics (SeedFolders.finish folder))

    saved shell folder

// Rejects to replace what the run itself reads, under whatever name.
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

    for reference in Reference.folders settings.Reference do
        require "--reference" reference (RunFiles.summary reference)

// Rejects an output folder among the images that a run reads.
let private requireOutside (plan: Plan) (folder: string) =
    for set in [ plan.Stream.Dataset.Train; plan.Stream.Dataset.Test ] do
        ImageSet.requireOutside set.Source folder

/// Runs what the command line asks for.
let start (shell: Shell) (command: Arguments.RunCommand) =
    let config =
        Config.complete "comes with the program" (Assets.fill command.Config.Settings) command.Config

    match command.Out with
    | Some out ->
        check command.Overwrite config out

        if command.Overwrite then
            requireKept config out
    | None -> ()

    Shell.loadNative command.LibTorch config.Settings
    // so that it is the same wherever the run is taken up again
    let threads = Some(torch.get_num_threads ())

    let settings =
        { config.Settings with
            Threads = threads
        }

    let config = Config.complete "this machine" settings config
    notes shell config.Notes
    let plan = Plan.loadChecking (Config.checkClasses config.Expected) settings
    use _ = Scope.own Plan.leaves plan
    command.Out |> Option.iter (requireOutside plan)
    let inputs = Checkpoint.inputs plan

    Config.backboneNotes config.Expected (int plan.Backbone.Width) (int plan.Backbone.Heads)
    |> notes shell

    Shell.say shell (Display.header plan (torch.get_num_threads ()))

    match command.Out with
    | Some folder -> inFolder shell command.Overwrite plan inputs config folder
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
let private takeUp (shell: Shell) (plan: Plan) inputs folder =
    Shell.say
        shell
        [
            if Checkpoint.exists folder then
                $"goes on from the checkpoint in {folder}"
            else
                $"starts again: no checkpoint yet in {folder}"
        ]

    one shell plan (Some folder) (fun learner listen stopping ->
        shell.Interruption.Guard(fun () -> Session.resume folder learner plan inputs listen stopping))
    |> ignore

let private takeUpSeed (shell: Shell) (plan: Plan) inputs (folder: string) (seed: int64) =
    let mine = SeedFolders.folderOf folder seed
    let plan = ofSeed plan seed
    use _ = RunFolder.hold mine
    Shell.say shell [ ""; $"seed {seed}" ]

    if RunFolder.isFinished mine then
        // a process killed right after its last file leaves it
        Checkpoint.delete mine
        Shell.say shell [ "finished already" ]
    elif RunFolder.holdsRun mine then
        takeUp shell plan inputs mine
    else
        let sources = RunFiles.sources folder

        if File.Exists sources then
            WholeFile.writeText (RunFiles.sources mine) (File.ReadAllText sources)

        one shell plan (Some mine) (fun learner listen stopping ->
            shell.Interruption.Guard(fun () -> Session.start mine learner plan inputs listen stopping))
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
        Checkpoint.delete folder
        Shell.say shell [ $"finished already   {folder}" ]
    else
        Shell.loadNative libTorch settings
        let plan = Plan.load settings
        use _ = Scope.own Plan.leaves plan
        requireOutside plan folder
        let inputs = Checkpoint.inputs plan
        Shell.say shell (Display.header plan (torch.get_num_threads ()))

        if SeedFolders.holdsSeeds folder then
            SeedFolders.seeds folder
            |> Array.iter (fun seed ->
                keeping folder (SeedFolders.folderOf folder seed) (fun () ->
                    takeUpSeed shell plan inputs folder seed))

            Shell.say shell (Display.statistics (SeedFolders.finish folder))
        else
            keeping folder folder (fun () -> takeUp shell plan inputs folder)

        saved shell folder

    0
