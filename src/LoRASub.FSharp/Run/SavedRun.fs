namespace LoRASub.Run

open System
open System.IO
open LoRASub.Files
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// The results and the learner of a finished run, in its folder.
[<RequireQualifiedAccess>]
module SavedRun =

    // By position in the class order.
    let private savedNames (plan: Plan) =
        plan.Stream.Order
        |> Array.map (fun label -> plan.Stream.Dataset.ClassNames[label])

    // A finished run's learner as it is saved.
    let private learnerRecord (plan: Plan) (outcome: Outcome) : LearnerFormat.Record =
        LearnerRecord.create
            outcome.Learner
            outcome.State
            plan.Stream.Order
            (Plan.testOptions plan).Format
            plan.Settings.NormEpsilon
            plan.BackboneSha256
            [
                for setting in Settings.all do
                    match setting.Get plan.Settings with
                    | Some text when not setting.FreeOnResume -> setting.Name, text
                    | _ -> ()
            ]

    /// <summary>Writes a finished run. summary.json comes last, so that its presence means that the run is complete;
    /// then the checkpoint is removed.</summary>
    /// <param name="folder">Made where it is absent.</param>
    /// <param name="plan">Of the run. Borrowed.</param>
    /// <param name="started">When the run began, in UTC.</param>
    /// <param name="outcome">Borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds a finished run, or cannot be written.</exception>
    let save (folder: string) (plan: Plan) (started: DateTime) (outcome: Outcome) : unit =
        RunFolder.refuseFinished folder

        RunFolder.make folder
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
