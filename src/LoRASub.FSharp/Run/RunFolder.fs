namespace LoRASub.Run

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// A task's score now, beside the one that was saved.
type Recheck =
    {
        Task: LearningTask
        Now: Score
        Saved: Score
    }

/// The folder of one run: settings.json before the first batch, a checkpoint and metrics.jsonl during the run, then
/// learner and results and, last of all, summary.json. Each is written whole.
[<RequireQualifiedAccess>]
module RunFolder =

    /// Whether a folder holds a run, finished or not.
    let holdsRun (folder: string) = File.Exists(RunFiles.settings folder)

    /// Whether a folder holds a finished run.
    let isFinished (folder: string) = File.Exists(RunFiles.summary folder)

    let private writable (folder: string) (work: unit -> 'T) : 'T =
        try
            work ()
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Errors.reject folder "must be writable" e.Message ""

    let private refuse (folder: string) (what: string) =
        Errors.reject
            folder
            "must not hold a run"
            what
            "choose another folder, resume the run with --resume DIR, or replace it with --overwrite"

    // settings.json is a common name.
    let private isOurs (folder: string) =
        File.Exists(RunFiles.lock' folder)
        || (try
                let path = RunFiles.settings folder
                Json.read "the settings of a run" path (Settings.ofJson path) |> ignore
                true
            with :? InputException ->
                false)

    // Files that a run writes before its settings: on their own, they are from a run that was killed at once.
    let private begun (folder: string) =
        if File.Exists(RunFiles.lock' folder) then
            [ RunFiles.seeds folder; RunFiles.sources folder ]
        else
            []

    /// Rejects a folder that holds files of the names that a run writes, and that are someone else's.
    let checkNames (folder: string) =
        if not (holdsRun folder && isOurs folder) then
            match RunFiles.present folder |> Array.except (begun folder) with
            | [||] -> ()
            | others ->
                Errors.reject
                    folder
                    "must not hold files that a run would replace"
                    (Path.GetFileName others[0])
                    "move them, or choose another folder"

    /// Rejects a folder that is a file or below one, cannot be written, holds a run, or files of the names that one writes,
    /// and the root of the file system. Makes no folder: another process may be about to use it.
    let check (folder: string) =
        if String.IsNullOrWhiteSpace folder then
            Errors.reject "output folder" "must have a name" "an empty one" ""

        if isFinished folder then
            refuse folder "a finished one"

        if holdsRun folder then
            refuse folder "one that can be resumed"

        checkNames folder

        let full = Path.GetFullPath folder

        if isNull (Path.GetDirectoryName full) then
            Errors.reject folder "must be a folder of its own" "the root of the file system" "add a name"

        // the folder itself, or the one in which it would be made
        let rec nearest (path: string) =
            if Directory.Exists path then
                path
            elif File.Exists path then
                Errors.reject folder "must be a folder" $"a file, {path}" "choose another output folder"
            else
                nearest (Path.GetDirectoryName path)

        writable folder (fun () ->
            try
                // finds a name that is too long
                File.GetAttributes full |> ignore
            with
            | :? FileNotFoundException
            | :? DirectoryNotFoundException -> ()

            WholeFile.probe folder (nearest full))

    /// Claims a folder, which it makes where needed, until disposed or until this process ends, however it ends: the
    /// lock is the system's on an open file, not the file itself. Rejects a folder that another process holds.
    let hold (folder: string) : IDisposable =
        writable folder (fun () -> Directory.CreateDirectory folder |> ignore)

        try
            // exclusive: the system refuses a second handle
            new FileStream(RunFiles.lock' folder, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None)
        with
        | :? IOException as e when WholeFile.isLocked e ->
            Errors.reject folder "must not be in use" "another process runs in it" "wait for it, or end it"
        | :? IOException as e -> Errors.reject folder "must be writable" e.Message ""
        | :? UnauthorizedAccessException as e -> Errors.reject folder "must be writable" e.Message ""

    /// Removes what a run has left in a folder, and nothing else: to be called while the folder is held. Killed at any
    /// moment, it leaves a run that can be resumed or replaced.
    let clear (folder: string) =
        writable folder (fun () ->
            // first, so that a run is never finished in half
            File.Delete(RunFiles.summary folder)
            Checkpoint.delete folder
            // last: without settings the other files are someone else's
            let last = [ RunFiles.seeds folder; RunFiles.settings folder ]
            RunFiles.present folder |> Array.except last |> Array.iter File.Delete
            List.iter File.Delete last)

    // By position in the class order.
    let private savedNames (plan: Plan) =
        plan.Stream.Order
        |> Array.map (fun label -> plan.Stream.Dataset.ClassNames[label])

    // A finished run's learner as it is saved.
    let private learnerRecord (plan: Plan) (outcome: Outcome) : LearnerFormat.Record =
        LearnerFile.record
            outcome.Learner
            outcome.State
            plan.Stream.Order
            (Plan.batchOptions plan Augmentation.None).Format
            plan.Settings.NormEpsilon
            plan.BackboneSha256
            [
                for setting in Settings.all do
                    match setting.Get plan.Settings with
                    | Some text when not setting.FreeOnResume -> setting.Name, text
                    | _ -> ()
            ]

    /// Writes a finished run that began at a time; summary.json comes last, so that its presence means the run is
    /// complete, and the checkpoint goes. Makes the folder. Rejects one that holds a finished run.
    let save (folder: string) (plan: Plan) (started: DateTime) (outcome: Outcome) : unit =
        if isFinished folder then
            refuse folder "a finished one"

        writable folder (fun () -> Directory.CreateDirectory folder |> ignore)
        Json.write (RunFiles.settings folder) (Settings.toJson plan.Settings)
        LearnerFile.save folder outcome.Learner (learnerRecord plan outcome) outcome.State
        let names = savedNames plan
        let classes = Results.classScores plan outcome
        Json.write (RunFiles.classes folder) (Results.classes plan outcome)
        Csv.write folder outcome.Matrix classes (Results.confusion outcome)

        outcome.Drift
        |> Option.iter (fun drift -> Json.write (RunFiles.drift folder) (Drift.toJson names drift))

        Json.write (RunFiles.resources folder) (Results.resources plan started outcome)
        Json.write (RunFiles.summary folder) (Results.summary plan outcome)
        Checkpoint.delete folder

    /// The settings of a saved run, finished or not.
    let settings (folder: string) : RunSettings =
        let path = RunFiles.settings folder
        Json.read "the settings of a run" path (Settings.ofJson path)

    /// The last row of a saved run's accuracy matrix.
    let lastRow (folder: string) : Score[] =
        let struct (summary, _) = SummaryFile.load (RunFiles.summary folder)
        Array.last summary.CorrectAndTotal

    /// Scores a saved learner again on every task it has learned, under `settings` (the saved ones, except what
    /// belongs to the machine: paths, device, batch). `listen` counts test batches.
    let evaluate (folder: string) (settings: RunSettings) (listen: unit -> unit) : Recheck[] =
        let row = lastRow folder

        // the order that was learned, even if its file was deleted
        Scope.run (fun () ->
            let saved = LearnerFile.load folder
            let record = saved.Record
            let order = ClassOrder.Explicit(saved.Path, record.ClassOrder)
            let plan = Plan.loadWith order settings
            LearnerFile.checkBackbone saved plan.BackboneSha256 (Option.get settings.Backbone)

            if
                saved.Input <> (Plan.batchOptions plan Augmentation.None).Format
                || record.Heads <> plan.Backbone.Heads
            then
                let rule =
                    "must agree with settings.json on image size, channels, input range and heads"

                Errors.reject saved.Path rule "other values" ""

            let learner = LearnerFile.learner plan.Backbone settings.Method saved
            let state = LearnerFile.restore learner saved
            let model = Learner.deploy learner state
            let tasks = plan.Stream.Tasks |> Array.truncate state.Finished

            if row.Length <> tasks.Length then
                let rule = $"must have a last row of {tasks.Length} tasks, as the learner has"
                Errors.reject (RunFiles.summary folder) rule $"{row.Length}" ""

            let sizes = tasks |> Array.map _.Classes.Length

            let learned = TaskState.taskSizes state

            if sizes <> learned then
                let rule = $"must cut the classes into tasks of {List.ofArray learned}"
                Errors.reject (RunFiles.settings folder) rule $"{List.ofArray sizes}" ""

            Experiment.score learner plan listen model tasks
            |> Array.mapi (fun i score ->
                {
                    Task = tasks[i]
                    Now = score
                    Saved = row[i]
                }))
