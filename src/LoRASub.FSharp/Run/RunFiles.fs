namespace LoRASub.Run

open System.IO

/// The paths of a run's files in its folder; docs/formats.md describes them.
[<RequireQualifiedAccess>]
module internal RunFiles =

    let private at name (folder: string) = Path.Combine(folder, name)

    /// The settings, saved before the first batch.
    let settings = at "settings.json"
    /// Where each setting came from.
    let sources = at "sources.json"
    /// One line per event, written during the run.
    let metrics = at "metrics.jsonl"
    /// Confusion counts and sample predictions.
    let classes = at "classes.json"
    /// The movement of class means.
    let drift = at "drift.json"
    /// Seconds, memory and the machine.
    let resources = at "resources.json"
    /// The results, written last.
    let summary = at "summary.json"
    /// The seeds of a folder of several runs.
    let seeds = at "seeds.json"
    /// Held open by the process that runs in the folder.
    let lock' = at ".lock"

    let private patterns =
        [
            for path in [ settings; sources; metrics; classes; drift; resources; summary; seeds ] do
                path ""
            // in this order: tensors without the file that describes them would refuse a later learner
            "learner.safetensors"
            "learner.json"
            "learner.next.safetensors"
            "checkpoint.json"
            "checkpoint-*.safetensors"
            "accuracy.csv"
            "classes.csv"
            "confusion.csv"
            "events.out.tfevents.*"
            "statistics.json"
        ]

    /// The files in a folder whose names a run writes.
    let present (folder: string) : string[] =
        if Directory.Exists folder then
            patterns
            |> List.map (fun pattern -> Directory.GetFiles(folder, pattern))
            |> Array.concat
        else
            [||]
