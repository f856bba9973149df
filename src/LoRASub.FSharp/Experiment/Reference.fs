namespace LoRASub

open System.Text.Json

/// Finished runs that another run is measured against.
[<RequireQualifiedAccess>]
module Reference =

    let private get (name: string) (json: JsonElement) = json.GetProperty name

    let private items (read: JsonElement -> 'T) (json: JsonElement) =
        [| for item in json.EnumerateArray() -> read item |]

    let private score correct total : Score = { Correct = correct; Total = total }

    let private matrix (folder: string) : AccuracyMatrix =
        let entry (pair: JsonElement) =
            match items _.GetInt32() pair with
            | [| correct; total |] -> score correct total
            | other -> Errors.reject (RunFiles.summary folder) "must hold pairs" $"{other.Length} numbers" ""

        Json.read "the summary of a finished run" (RunFiles.summary folder) (fun root ->
            get "correctAndTotal" root |> items (items entry))

    let private classes (folder: string) : ClassScore[] =
        let number name json = (get name json).GetInt32()

        Json.read "the classes of a finished run" (RunFiles.classes folder) (fun root ->
            get "classes" root
            |> items (fun one ->
                {
                    Position = number "position" one
                    Label = number "label" one
                    Name = (get "name" one).GetString()
                    Task = number "task" one
                    Score = score (number "correct" one) (number "total" one)
                }))

    /// Reads the scores of a finished run. Rejects a folder without a finished run, and damage.
    let read (folder: string) : RunScores =
        let path = RunFiles.settings folder

        let settings =
            Json.read "the settings of a finished run" path (Settings.ofJson path)

        let matrix = matrix folder
        Metrics.check matrix

        {
            Trained = settings.Method.Training
            Matrix = matrix
            Classes = classes folder
        }

    /// The folders that a setting names, separated by commas.
    let folders (setting: string option) : string[] =
        match setting with
        | Some text -> text.Split(',', System.StringSplitOptions.TrimEntries)
        | None -> [||]
