namespace LoRASub.Run

open System.Collections.Generic
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings

/// summary.json but for the measures, which lie flat beside these fields; see docs/formats.md.
type SummaryFile =
    {
        Method: string
        Variant: string
        Data: string
        /// Of the whole stream.
        Tasks: int
        LearnedTasks: int
        Seed: int64
        /// Why a measure that needs a reference run is missing.
        ForwardTransferNote: string option
        IntransigenceNote: string option
        /// In percent.
        AccuracyMatrix: float[][]
        CorrectAndTotal: AccuracyMatrix
        /// By task and block.
        RetainedRank: int[][]
        RetainedEnergy: float[][]
        /// NaN where infinite.
        ConditionNumber: float[][]
        Threads: int
    }

[<RequireQualifiedAccess>]
module SummaryFile =

    let private purpose = "the summary of a finished run"

    /// summary.json.
    let toJson (measures: Measures) (summary: SummaryFile) : JsonNode =
        let node = Json.ofRecord summary
        Json.insert (node.AsObject().IndexOf "seed" + 1) (Metrics.members measures) node

    /// Reads summary.json, with the measures that it holds. Rejects as `Json.read`, and an invalid accuracy matrix.
    let load (path: string) : struct (SummaryFile * Measures) =
        let struct (summary, measures) =
            Json.read purpose path (fun root ->
                struct (Json.toRecord<SummaryFile> root, Metrics.ofMembers root))

        try
            Metrics.check summary.CorrectAndTotal
        with :? InputException as e ->
            Errors.reject path "must hold a valid accuracy matrix" e.Message ""

        struct (summary, measures)

/// Test scores of one class in classes.json.
type ClassLine =
    {
        Position: int
        Label: int
        Name: string
        Task: int
        Correct: int
        Total: int
    }

    member internal this.ClassScore: ClassScore =
        {
            Position = this.Position
            Label = this.Label
            Name = this.Name
            Task = this.Task
            Score =
                {
                    Correct = this.Correct
                    Total = this.Total
                }
        }

/// A test image in classes.json, and the class that it was taken for.
type SampleLine =
    {
        Task: int
        /// Positions of classes.
        True: int
        Predicted: int
        /// A PNG file, in base64.
        Png: string
    }

/// classes.json: what became of each class's test images.
type ClassesFile =
    {
        /// By position.
        Classes: ClassLine[]
        Samples: SampleLine[]
        /// Test images by true position (row) and predicted position (column).
        Confusion: int[][]
    }

type TaskMemory =
    {
        TaskStart: MemoryUse
        TaskEnd: MemoryUse
    }

/// resources.json: time, memory and the machine.
type ResourcesFile =
    {
        PhaseSeconds: Dictionary<string, float>
        TaskSeconds: Dictionary<string, float>[]
        PeakMemoryBytes: int64
        Memory: TaskMemory[]
        /// Names and values, as `Machine.describe` gives them.
        Environment: JsonObject
        StartedUtc: string
        FinishedUtc: string
    }
