// How far do the true class means move from their prototypes, with the update confined to the retained space and without?
// Two short runs on a subset of the bundled data, then a report of both.
//
//     dotnet fsi scripts/drift.fsx [REPORT.html]

#load "load.fsx"

open System.IO
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open Load

let settings =
    { Preset.quick Variant.LibContinual with
        Tasks = 3
        Epochs = 2
        Batch = 16
        CheckpointMinutes = 0.0
    }

let withMethod change (settings: RunSettings) =
    { settings with
        Method = change settings.Method
    }

/// A run in its own folder, and its drift over the old classes.
let measure (folder: string) (settings: RunSettings) =
    use _ = RunFolder.hold folder
    let plan = smallPlan settings.Tasks settings
    let learner = Plan.learner plan
    let began = System.DateTime.UtcNow

    let outcome =
        Session.start folder learner plan (CheckpointInputs.ofPlan plan) ignore (fun () -> false)

    SavedRun.save folder plan began outcome
    (Drift.summary outcome.Drift.Value).Value

let runs = Directory.CreateTempSubdirectory("lorasub-drift-").FullName
let folder name = Path.Combine(runs, name)

// a rate high enough that so few images move the features
let quick = settings |> withMethod (fun m -> { m with LearningRate = 5e-3 })

let confined = measure (folder "confined") quick

let free =
    measure (folder "free") (quick |> withMethod (fun m -> { m with Projection = false }))

for name, drift in [ "confined", confined; "free", free ] do
    let moved = drift.OutputSinceLearned

    printfn
        $"{name, -9} {drift.Classes} old classes moved by {moved.Relative:F3} spreads (cosine {moved.Cosine:F4}) since they were learned"

let page =
    match fsi.CommandLineArgs with
    | [| _; page |] -> page
    | _ -> Path.Combine(runs, "report.html")

let written =
    [| folder "confined"; folder "free" |]
    |> RunData.loadAll
    |> Report.writeHtml page

printfn $"report: {written.Path}, {written.Bytes} bytes"
