namespace LoRASub.Run

open System
open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Learn
open LoRASub.Settings

/// A run was asked to stop and has saved a checkpoint.
type RunStoppedException internal (folder: string) =
    inherit OperationCanceledException($"Stopped. Resume with: lorasub run --resume {folder}")

    /// The folder of the run.
    member _.Folder = folder

/// Runs in a folder: logged, checkpointed and resumable. The folder must be held (`RunFolder.hold`) meanwhile.
[<RequireQualifiedAccess>]
module Session =

    // The events of metrics.jsonl for a run's progress.
    let private eventOf (progress: RunEvent) : MetricsEvent option =
        match progress with
        | TaskBegins _
        | Learning(Steps _) -> None
        | Learning(Retains(task, retained)) ->
            Some(
                MetricsEvent.Retained(
                    task.Index,
                    retained |> Array.map _.Rank,
                    retained |> Array.map _.Energy
                )
            )
        | Learning(EpochEnds epoch) -> Some(MetricsEvent.Epoch epoch)
        | TaskEnds(task, row, _, seconds) ->
            Some(
                MetricsEvent.Task
                    {
                        Task = task.Index
                        Row = row
                        Seconds = seconds
                    }
            )
        | Notice text -> Some(MetricsEvent.Notice text)

    let private startEvent (learner: Learner) (plan: Plan) =
        MetricsEvent.Start
            {
                Method = learner.Method.Info.Name
                Variant = (string plan.Settings.Variant).ToLowerInvariant()
                Data = plan.Settings.Data
                Seed = plan.Settings.Seed
                TaskSizes = plan.Stream.Tasks |> Array.map _.Classes.Length
            }

    // Every event goes to the log and, where asked for, to TensorBoard.
    let private proceed
        (folder: string)
        (learner: Learner)
        (plan: Plan)
        (inputs: (string * string) list)
        (listen: RunEvent -> unit)
        (stopping: unit -> bool)
        (write: MetricsEvent -> unit)
        (lines: unit -> int)
        (from: RunState)
        : Outcome =
        let sinceSaved = Stopwatch.StartNew()
        let interval = TimeSpan.FromMinutes plan.Settings.CheckpointMinutes

        let report progress =
            eventOf progress |> Option.iter write
            listen progress

        let save state =
            Scope.run (fun () -> Checkpoint.save folder learner plan inputs (lines ()) (state ()))
            sinceSaved.Restart()

        // a full disk should not end a run that may find room later
        let trySave state =
            try
                save state
            with
            | :? InputException
            | :? IOException
            | :? UnauthorizedAccessException as e ->
                sinceSaved.Restart()
                report (Notice $"the checkpoint could not be saved: {e.Message}")

        let onCheckpoint point state =
            if stopping () then
                save state
                raise (RunStoppedException folder)
            elif
                point = CheckpointPoint.AfterLearning
                || interval > TimeSpan.Zero && sinceSaved.Elapsed >= interval
            then
                trySave state

        let outcome = Experiment.resume learner plan report onCheckpoint from
        let struct (measures, _) = Results.measures plan outcome
        write (MetricsEvent.End(measures, Seq.sum outcome.PhaseSeconds.Values))
        outcome

    let private openBoard (folder: string) (plan: Plan) (kept: MetricsLine[]) : TensorBoardWriter option =
        if plan.Settings.TensorBoard then
            let path = TensorBoard.path folder DateTimeOffset.UtcNow Environment.MachineName
            Some(new TensorBoardWriter(path, kept))
        else
            None

    // Passes to `work` a function that writes an event everywhere, and one that counts the lines so far. A full disk
    // should not end a run: events that cannot be written are lost, with one notice.
    let private log folder plan (listen: RunEvent -> unit) kept (writer: MetricsWriter) work =
        use writer = writer
        let board = openBoard folder plan kept
        use _ = Option.toObj board
        let mutable failed = false

        let write event =
            if not failed then
                let line =
                    {
                        Time = DateTimeOffset.UtcNow
                        Event = event
                    }

                try
                    writer.Write line
                    board |> Option.iter _.Write(line)
                with :? InputException as e ->
                    failed <- true
                    listen (Notice $"metrics are no longer written: {e.Message}")

        work write (fun () -> writer.Count)

    /// <summary>Runs a plan from its beginning. Saves the settings first, then learns as `Experiment.run`, with a
    /// checkpoint after each task and at an interval in minutes. `SavedRun.save` saves the results.</summary>
    /// <param name="folder">Holds no run. Held by the caller (`RunFolder.hold`).</param>
    /// <param name="learner">Over the backbone of the plan.</param>
    /// <param name="plan">Borrowed.</param>
    /// <param name="inputs">`CheckpointInputs.ofPlan` of the plan.</param>
    /// <param name="listen">Called with progress, on the calling thread.</param>
    /// <param name="stopping">Called between any two steps: where it returns true, the run is saved and ends.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A file cannot be written, or as `Experiment.run`.</exception>
    /// <exception cref="T:LoRASub.Run.RunStoppedException">`stopping` returned true; the run can be resumed.</exception>
    let start folder (learner: Learner) (plan: Plan) inputs listen stopping : Outcome =
        Json.write (RunFiles.settings folder) (Settings.toJson plan.Settings)

        Scope.keep Outcome.leaves (fun () ->
            log folder plan listen [||] (MetricsLog.start (RunFiles.metrics folder)) (fun write lines ->
                write (startEvent learner plan)

                Experiment.start learner plan
                |> proceed folder learner plan inputs listen stopping write lines))

    /// <summary>Resumes a stopped run from its checkpoint or, without one, from its beginning.</summary>
    /// <param name="folder">Of the run. Held by the caller (`RunFolder.hold`).</param>
    /// <param name="learner">Over the backbone of the plan.</param>
    /// <param name="plan">Of the saved settings. Borrowed.</param>
    /// <param name="inputs">`CheckpointInputs.ofPlan` of the plan.</param>
    /// <param name="listen">Called with progress, on the calling thread.</param>
    /// <param name="stopping">Called between any two steps: where it returns true, the run is saved and ends.</param>
    /// <returns>Owned by the caller; the same as without the interruption.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The checkpoint is damaged, or of a run with other settings,
    /// data or backbone; otherwise as `start`.</exception>
    /// <exception cref="T:LoRASub.Run.RunStoppedException">`stopping` returned true; the run can be resumed.</exception>
    let resume folder (learner: Learner) (plan: Plan) inputs listen stopping : Outcome =
        Scope.keep Outcome.leaves (fun () ->
            let struct (state, count) =
                if Checkpoint.exists folder then
                    Checkpoint.load folder learner plan inputs
                else
                    struct (Experiment.start learner plan, 0)

            // files may have moved
            Json.write (RunFiles.settings folder) (Settings.toJson plan.Settings)
            let struct (kept, writer) = MetricsLog.resume (RunFiles.metrics folder) count

            log folder plan listen kept writer (fun write lines ->
                if count = 0 then
                    write (startEvent learner plan)

                proceed folder learner plan inputs listen stopping write lines state))
