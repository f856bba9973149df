namespace LoRASub.Run

open System
open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// A task's score now, and the one that was saved.
type Recheck =
    {
        Task: LearningTask
        Now: Score
        Saved: Score
    }

/// Scores the learner of a finished run again.
[<RequireQualifiedAccess>]
module Evaluation =

    /// <summary>The last row of a saved run's accuracy matrix.</summary>
    /// <param name="folder">Of a finished run.</param>
    /// <returns>The score on the test images of each task.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder has no valid summary.json.</exception>
    let lastRow (folder: string) : Score[] =
        let struct (summary, _) = SummaryFile.load (RunFiles.summary folder)
        Array.last summary.CorrectAndTotal

    /// <summary>Scores a saved learner again on every task that it has learned.</summary>
    /// <param name="folder">Of a finished run.</param>
    /// <param name="settings">The saved ones, except what belongs to the machine: paths, device, batch.</param>
    /// <param name="listen">Called before each test batch.</param>
    /// <returns>For each task, the score now and the saved one.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner, the backbone or the data are not those of the run.</exception>
    let run (folder: string) (settings: RunSettings) (listen: unit -> unit) : Recheck[] =
        let row = lastRow folder

        // the order that was learned, even if its file was deleted
        Scope.run (fun () ->
            let saved = LearnerFile.load folder
            let record = saved.Record
            let order = ClassOrder.Explicit(saved.Path, record.ClassOrder)
            // references affect only a run's own measures, and may be gone
            let plan = Plan.loadWith order { settings with Reference = [] }
            LearnerFile.checkBackbone saved plan.BackboneSha256 (Option.get settings.Backbone)

            if
                saved.Input <> (Plan.testOptions plan).Format
                || record.Heads <> plan.Backbone.Heads
            then
                let rule =
                    "must agree with settings.json on image size, channels, input range and heads"

                Errors.reject saved.Path rule "other values" ""

            let struct (planned, _) = settings.Split
            let learner = LearnerFile.learner plan.Backbone planned settings.Method saved
            let state = LearnerFile.restore learner saved
            let model = Learner.deploy learner state
            let tasks = plan.Stream.Tasks |> Array.truncate state.Finished

            if row.Length <> tasks.Length then
                let rule = $"must have a last row of {tasks.Length} tasks, as the learner has"
                Errors.reject (RunFiles.summary folder) rule $"{row.Length}" ""

            let names = plan.Stream.Dataset.ClassNames

            for known, label in
                Array.zip state.Classes (Array.truncate state.Classes.Length plan.Stream.Order) do
                if known.Name <> names[label] then
                    let rule =
                        $"must have class '{names[label]}', the data's label {label}, in that place"

                    Errors.reject saved.Path rule $"class '{known.Name}'" ""

            let sizes = tasks |> Array.map _.Classes.Length

            let learned = TaskState.taskSizes state

            if sizes <> learned then
                let rule = $"must cut the classes into tasks of {List.ofArray learned}"
                Errors.reject (RunFiles.settings folder) rule $"{List.ofArray sizes}" ""

            Scoring.score learner plan listen model tasks
            |> Array.mapi (fun i score ->
                {
                    Task = tasks[i]
                    Now = score
                    Saved = row[i]
                }))
