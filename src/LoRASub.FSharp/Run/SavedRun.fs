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

    /// Writes a finished run that began at a time; summary.json comes last, so that its presence means the run is
    /// complete, and the checkpoint goes. Makes the folder. Rejects one that holds a finished run.
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
