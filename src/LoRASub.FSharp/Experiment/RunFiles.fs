namespace LoRASub

open System.IO

/// Where the files of a run lie in its folder; docs/formats.md says what they hold.
[<RequireQualifiedAccess>]
module RunFiles =

    let private at name (folder: string) = Path.Combine(folder, name)

    /// The settings, saved before the first batch.
    let settings = at "settings.json"
    /// Where each setting came from.
    let sources = at "sources.json"
    /// One line an event, while the run goes on.
    let metrics = at "metrics.jsonl"
    /// Confusion counts and sample predictions.
    let classes = at "classes.json"
    let drift = at "drift.json"
    /// Seconds, memory and the machine.
    let resources = at "resources.json"
    /// The results, written last.
    let summary = at "summary.json"
    let lock' = at ".lock"
