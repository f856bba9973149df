namespace LoRASub.Run

open System
open System.Collections.Generic
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// The records of checkpoint.json.
module CheckpointFormat =

    type Retained =
        {
            Rank: int
            Energy: float
            /// None: infinite.
            Condition: float option
        }

    type Task =
        {
            Row: Score[]
            Others: Score[][]
            Before: Score option
            Retained: Retained[]
            MemoryBefore: MemoryUse
            MemoryAfter: MemoryUse
            /// By phase.
            Seconds: Dictionary<string, float>
        }

    type Open =
        {
            MemoryBefore: MemoryUse
            Seconds: Dictionary<string, float>
            Before: Score option
            /// observing, training or learned.
            Stage: string
            Batches: int
            Epoch: int
            Retained: Retained[]
        }

    type Run =
        {
            Settings: JsonObject
            Inputs: Dictionary<string, string>
            /// Name of the file of tensors.
            Tensors: string
            TensorsSha256: string
            MetricLines: int
            State: SavedState
            Tasks: Task[]
            Drift: bool
            Open: Open option
        }

/// Between the records of checkpoint.json and those of a run.
[<RequireQualifiedAccess>]
module internal CheckpointRecord =

    let private ofSeconds (seconds: Map<Phase, float>) =
        Dictionary(dict [ for KeyValue(phase, spent) in seconds -> Phase.name phase, spent ])

    let toSeconds (saved: Dictionary<string, float>) : Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, saved[Phase.name phase])
        |> Map.ofList

    let private ofRetained (retained: Retained) : CheckpointFormat.Retained =
        {
            Rank = retained.Rank
            Energy = retained.Energy
            Condition =
                if retained.Condition = infinity then
                    None
                else
                    Some retained.Condition
        }

    let toRetained (saved: CheckpointFormat.Retained) : Retained =
        {
            Rank = saved.Rank
            Energy = saved.Energy
            Condition = defaultArg saved.Condition infinity
        }

    let ofTask (task: TaskRecord) : CheckpointFormat.Task =
        {
            Row = task.Row
            Others = task.Others
            Before = task.Before
            Retained = Array.map ofRetained task.Retained
            MemoryBefore = task.MemoryBefore
            MemoryAfter = task.MemoryAfter
            Seconds = ofSeconds task.Seconds
        }

    let toTask (task: CheckpointFormat.Task) : TaskRecord =
        {
            Row = task.Row
            Others = task.Others
            Before = task.Before
            Retained = Array.map toRetained task.Retained
            MemoryBefore = task.MemoryBefore
            MemoryAfter = task.MemoryAfter
            Seconds = toSeconds task.Seconds
        }

    let ofOpen (task: OpenTask) : CheckpointFormat.Open =
        let saved: CheckpointFormat.Open =
            {
                MemoryBefore = task.MemoryBefore
                Seconds = ofSeconds task.Seconds
                Before = task.Before
                Stage = "learned"
                Batches = 0
                Epoch = 0
                Retained = [||]
            }

        match task.Progress with
        | InLoop(Observing(_, batches)) ->
            { saved with
                Stage = "observing"
                Batches = batches
            }
        | InLoop(Training(_, epoch, _)) ->
            { saved with
                Stage = "training"
                Epoch = epoch
            }
        | Learned(diagnostics, _) ->
            { saved with
                Retained = Array.map ofRetained diagnostics.Retained
            }
