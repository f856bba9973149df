namespace LoRASub.Run

open System.Collections.Generic
open System.Text.Json.Nodes
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Files
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings

/// A head's results in summary.json.
type HeadLine =
    {
        /// HEAD@EMBEDDING.
        Head: string
        /// In percent, over the classes seen, after the last task.
        Last: float
        /// In percent, over the tasks.
        Average: float
        /// In points; None where there is one task.
        Forgetting: float option
        /// Of its sums.
        Bytes: int64
        /// Last accuracy in percent, had its sums been computed again from all training images; a diagnosis.
        Recomputed: float option
        CorrectAndTotal: AccuracyMatrix
    }

/// summary.json without the measures, which lie flat beside these fields; see docs/formats.md.
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
        /// Every head of the run; first the one that predicts. None in runs of older programs.
        [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
        Heads: HeadLine[] option
        /// By task and block.
        RetainedRank: int[][]
        RetainedEnergy: float[][]
        /// NaN where infinite.
        ConditionNumber: float[][]
        Threads: int
    }

/// Reads and writes summary.json.
[<RequireQualifiedAccess>]
module SummaryFile =

    let private purpose = "the summary of a finished run"

    /// summary.json.
    let internal toJson (measures: Measures) (summary: SummaryFile) : JsonNode =
        let node = Json.ofRecord summary
        Json.insert (node.AsObject().IndexOf "seed" + 1) (Metrics.members measures) node

    /// <summary>Reads summary.json.</summary>
    /// <param name="path">Of the file.</param>
    /// <returns>The summary and the measures that it holds, as fractions.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is absent or damaged, or its accuracy matrix is not
    /// valid.</exception>
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

/// A test image in classes.json, and the class predicted for it.
type SampleLine =
    {
        Task: int
        /// Positions of classes.
        True: int
        Predicted: int
        /// A PNG file, in base64.
        Png: string
    }

/// classes.json: predictions for the test images of each class.
type ClassesFile =
    {
        /// By position.
        Classes: ClassLine[]
        Samples: SampleLine[]
        /// Test images by true position (row) and predicted position (column).
        Confusion: int[][]
    }

/// Memory at the start and end of a task.
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
        /// On a CUDA device, of all processes there.
        [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
        PeakDeviceBytes: int64 option
        Memory: TaskMemory[]
        /// Names and values, as `Machine.describe` gives them.
        Environment: JsonObject
        StartedUtc: string
        FinishedUtc: string
    }
