namespace LoRASub.Run

open LoRASub.Files
open LoRASub.Measure
open LoRASub.Settings

/// Finished runs that another run is measured against.
[<RequireQualifiedAccess>]
module Reference =

    /// Reads the scores of a finished run's folder. Rejects a folder without a finished run, and damage.
    let read (folder: string) : RunScores =
        let path = RunFiles.settings folder

        let settings =
            Json.read "the settings of a finished run" path (Settings.ofJson path)

        let struct (summary, _) = SummaryFile.load (RunFiles.summary folder)

        let classes =
            Json.load<ClassesFile> "the classes of a finished run" (RunFiles.classes folder)

        {
            Trained = settings.ChosenMethod.Info.Trains
            Matrix = summary.CorrectAndTotal
            Classes = classes.Classes |> Array.map _.ClassScore
        }
