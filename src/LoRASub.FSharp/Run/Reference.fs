namespace LoRASub.Run

open LoRASub.Files
open LoRASub.Measure
open LoRASub.Settings

/// Finished runs with which another run is compared.
[<RequireQualifiedAccess>]
module Reference =

    /// <summary>Reads the scores of a finished run.</summary>
    /// <param name="folder">Of the run.</param>
    /// <returns>Its scores, for `Transfer.measure`.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no finished run, or a file is
    /// damaged.</exception>
    let read (folder: string) : RunScores =
        let path = RunFiles.settings folder

        let settings =
            Json.read "the settings of a finished run" path (Settings.ofJson path)

        let struct (summary, _) = SummaryFile.load (RunFiles.summary folder)

        let classes =
            Json.load<ClassesFile> "the classes of a finished run" (RunFiles.classes folder)

        let head =
            match summary.Heads with
            | Some heads when heads.Length > 0 -> heads[0].Head
            | _ ->
                let struct (head, embedding) = Settings.readout settings.Embedding settings.Head
                $"{head}@{embedding}"

        {
            Trained = settings.ChosenMethod.Info.Trains
            Head = head
            Matrix = summary.CorrectAndTotal
            Classes = classes.Classes |> Array.map _.ClassScore
        }
