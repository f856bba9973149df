namespace LoRASub.Run

open System
open System.Collections.Generic
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// A setting in which two runs differ, with its text in each.
type SettingDifference =
    {
        Name: string
        Left: string
        Right: string
    }

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

/// A stopped run on disk: `checkpoint-N.safetensors` holds its tensors, `checkpoint.json` the
/// rest and the hashes that vouch for both. The JSON takes its name last and names the tensors, so that at every moment
/// one whole checkpoint is there.
[<RequireQualifiedAccess>]
module Checkpoint =

    [<Literal>]
    let private Version = 3L

    let path (folder: string) = Path.Combine(folder, "checkpoint.json")

    let private tensorFiles (folder: string) =
        if Directory.Exists folder then
            Directory.GetFiles(folder, "checkpoint-*.safetensors")
        else
            [||]

    /// Whether a folder holds one.
    let exists (folder: string) = File.Exists(path folder)

    /// Removes a folder's checkpoint, if it has one.
    let delete (folder: string) =
        File.Delete(path folder)
        Array.iter File.Delete (tensorFiles folder)

    // ------------------------------------------------------------------------------------------ what it must match

    let private sha256 (bytes: byte[]) =
        Convert.ToHexStringLower(SHA256.HashData bytes)

    let private labelsSha256 (set: ImageSet) =
        sha256 (Runtime.InteropServices.MemoryMarshal.AsBytes(ReadOnlySpan set.Labels).ToArray())

    // Sixteen images represent all.
    let private imagesSha256 (set: ImageSet) =
        let n = set.Labels.Length

        let pixels = Array.init (min n 16) (fun i -> (set.Read(i * n / min n 16)).Pixels)

        sha256 (Array.concat pixels)

    let private referenceScores (reference: RunScores) =
        let scores =
            seq {
                yield! Seq.concat reference.Matrix
                for one in reference.Classes -> one.Score
            }

        let counts = scores |> Seq.map (fun score -> $"{score.Correct}/{score.Total}")
        $"{reference.Trained}:{String.Join(',', counts)}"

    /// What decides a run's numbers beside its settings, by name: a checkpoint is compared with it. Reads sixteen images
    /// of each split, and rejects those that are damaged: to be computed once, before the first batch.
    let inputs (plan: Plan) : (string * string) list =
        [
            "backbone's SHA-256", plan.BackboneSha256
            "training labels' SHA-256", labelsSha256 plan.Stream.Dataset.Train
            "test labels' SHA-256", labelsSha256 plan.Stream.Dataset.Test
            "training images' SHA-256", imagesSha256 plan.Stream.Dataset.Train
            "test images' SHA-256", imagesSha256 plan.Stream.Dataset.Test
            "class order", String.Join(' ', plan.Stream.Order)
            "scores of the references", String.Join(' ', plan.References |> Seq.map referenceScores)
            // sums are added in another order
            "number of threads", string (torch.get_num_threads ())
        ]

    /// The settings in which two runs differ; paths of files and what else is written do not count.
    let differences (left: RunSettings) (right: RunSettings) : SettingDifference list =
        Settings.all
        |> List.filter (fun s -> not s.FreeOnResume)
        |> List.choose (fun s ->
            match s.Get left, s.Get right with
            | a, b when a = b -> None
            | a, b ->
                let shown = Option.defaultValue "not set"

                Some
                    {
                        Name = s.Name
                        Left = shown a
                        Right = shown b
                    })

    // ------------------------------------------------------------------------------------------ the record

    let private ofSeconds (seconds: Map<Phase, float>) =
        Dictionary(dict [ for KeyValue(phase, spent) in seconds -> Phase.name phase, spent ])

    let private toSeconds (saved: Dictionary<string, float>) : Map<Phase, float> =
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

    let private toRetained (saved: CheckpointFormat.Retained) : Retained =
        {
            Rank = saved.Rank
            Energy = saved.Energy
            Condition = defaultArg saved.Condition infinity
        }

    let private ofTask (task: TaskRecord) : CheckpointFormat.Task =
        {
            Row = task.Row
            Before = task.Before
            Retained = Array.map ofRetained task.Retained
            MemoryBefore = task.MemoryBefore
            MemoryAfter = task.MemoryAfter
            Seconds = ofSeconds task.Seconds
        }

    let private toTask (task: CheckpointFormat.Task) : TaskRecord =
        {
            Row = task.Row
            Before = task.Before
            Retained = Array.map toRetained task.Retained
            MemoryBefore = task.MemoryBefore
            MemoryAfter = task.MemoryAfter
            Seconds = toSeconds task.Seconds
        }

    let private ofOpen (task: OpenTask) : CheckpointFormat.Open =
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

    // ------------------------------------------------------------------------------------------ the tensors

    let private subspaces = Tree.array Subspace.tree

    let private observing (learner: Learner) (plan: Plan) (state: TaskState) =
        learner.Method.Observing plan.Stream.Tasks[state.Finished] state.Method

    let private training (learner: Learner) (plan: Plan) (state: TaskState) =
        learner.Method.Training plan.Stream.Tasks[state.Finished] state.Method

    let private progressTensors learner plan state progress =
        match progress with
        | InLoop(Observing(task, _)) -> (observing learner plan state).Write "observing" task
        | InLoop(Training(task, _, tally)) ->
            Tally.tree.Write "tally" tally
            @ (training learner plan state).Write "training" task
        | Learned(diagnostics, means) ->
            subspaces.Write "subspaces" diagnostics.Subspaces
            @ Tree.tensor.Write "means" means

    let private toProgress
        learner
        plan
        state
        (tensors: NamedTensors)
        (saved: CheckpointFormat.Open)
        : OpenProgress =
        match saved.Stage with
        | "observing" ->
            InLoop(Observing((observing learner plan state).Read tensors "observing", saved.Batches))
        | "training" ->
            InLoop(
                Training(
                    (training learner plan state).Read tensors "training",
                    saved.Epoch,
                    Tally.tree.Read tensors "tally"
                )
            )
        | _ ->
            Learned(
                {
                    Retained = Array.map toRetained saved.Retained
                    Subspaces = subspaces.Read tensors "subspaces" |> Array.map Subspace.copy
                },
                tensors.Find "means"
            )

    let private leaves: Leaves<RunState> =
        fun run ->
            let progress =
                match run.Open |> Option.map _.Progress with
                | Some(InLoop progress) -> TaskProgress.leaves progress
                | Some(Learned(diagnostics, means)) ->
                    Seq.append (Diagnostics.leaves diagnostics) (Seq.singleton means)
                | None -> Seq.empty

            Seq.concat [ TaskState.leaves run.State; Leaves.option Drift.leaves run.Drift; progress ]

    // ------------------------------------------------------------------------------------------ save

    let private describe
        (plan: Plan)
        inputs
        metricLines
        (run: RunState)
        (tensors: string)
        : CheckpointFormat.Run =
        {
            Settings = (Settings.toJson plan.Settings).AsObject()
            Inputs = Dictionary(dict inputs)
            Tensors = Path.GetFileName tensors
            TensorsSha256 = DataFile.sha256 tensors
            MetricLines = metricLines
            State = SavedState.ofState run.State
            Tasks = Array.map ofTask run.Tasks
            Drift = run.Drift.IsSome
            Open = run.Open |> Option.map ofOpen
        }

    let private nextFile (folder: string) =
        let number (file: string) =
            match Int64.TryParse((Path.GetFileNameWithoutExtension file).Substring "checkpoint-".Length) with
            | true, n when n >= 0L && n < Int64.MaxValue -> n
            | _ -> 0L

        let last =
            tensorFiles folder |> Array.map number |> Array.append [| 0L |] |> Array.max

        Path.Combine(folder, $"checkpoint-{last + 1L}.safetensors")

    let private writeTensors (file: string) (learner: Learner) plan (run: RunState) =
        Scope.run (fun () ->
            let progress =
                match run.Open with
                | Some task -> progressTensors learner plan run.State task.Progress
                | None -> []

            Safetensors.write
                file
                (Map [ "format", "lorasub checkpoint" ])
                ((Learner.tree learner run.State).Write "state" run.State
                 @ (Tree.option Drift.tree).Write "drift" run.Drift
                 @ progress))

    /// Writes the state of a run into an existing folder, then removes what the new checkpoint replaces; one that
    /// cannot be written leaves nothing behind. `inputs` are those of the run's start, so that no image is needed now.
    /// `metricLines` counts the lines of metrics.jsonl so far. Borrows all.
    let save
        (folder: string)
        (learner: Learner)
        (plan: Plan)
        (inputs: (string * string) list)
        (metricLines: int)
        (run: RunState)
        : unit =
        let old = tensorFiles folder
        let file = nextFile folder

        try
            writeTensors file learner plan run

            let text =
                (Json.ofRecord (describe plan inputs metricLines run file)).ToJsonString()

            WholeFile.writeText
                (path folder)
                $"{{\"version\":{Version},\"sha256\":\"{sha256 (Encoding.UTF8.GetBytes text)}\",\"run\":{text}}}\n"
        with _ ->
            WholeFile.discard file
            reraise ()

        // what cannot be removed now goes with the next checkpoint
        Array.iter WholeFile.discard old

    // ------------------------------------------------------------------------------------------ load

    let private damaged path received =
        Errors.reject path "must be as it was written" received "restore it, or start again with --overwrite"

    let private get (name: string) (json: JsonElement) = json.GetProperty name

    let private checkVersion path (root: JsonElement) =
        let version = (get "version" root).GetInt64()

        if version <> Version then
            Errors.reject
                path
                $"must be of version {Version}"
                $"version {version}"
                "resume with the program that wrote it"

    let private checkHash path (root: JsonElement) =
        let actual = sha256 (Encoding.UTF8.GetBytes((get "run" root).GetRawText()))

        if actual <> (get "sha256" root).GetString() then
            damaged path "other content"

    let private checkSettings path (plan: Plan) inputs (settings: JsonElement) (run: CheckpointFormat.Run) =
        match differences (Settings.ofJson path settings) plan.Settings with
        | [] -> ()
        | some ->
            let found =
                some
                |> List.map (fun d -> $"{d.Name}: {d.Left}, {d.Right}")
                |> String.concat "; "

            Errors.reject
                path
                "must be of a run with the same settings"
                found
                "resume with the saved settings"

        for name, now in inputs do
            let saved = run.Inputs[name]

            if saved <> now then
                let short (text: string) = text.Substring(0, min 64 text.Length)
                let rule = $"must be of a run on the same data and backbone ({name} {short saved})"
                Errors.reject path rule (short now) "give the files that the run began with"

    let private tensorsOf folder (run: CheckpointFormat.Run) : Map<string, torch.Tensor> =
        let file = Path.Combine(folder, run.Tensors)

        if not (File.Exists file) then
            Errors.reject file "must be beside checkpoint.json" "no such file" ""

        if DataFile.sha256 file <> run.TensorsSha256 then
            damaged file "other content"

        (Safetensors.read file).Tensors

    let private toRun learner (plan: Plan) folder (run: CheckpointFormat.Run) : RunState =
        let tensors =
            NamedTensors(
                path folder,
                tensorsOf folder run
                |> Map.map (fun _ tensor -> tensor.``to`` plan.Backbone.Device)
            )

        let state = SavedState.toState (path folder) learner run.State tensors "state"

        let opened (task: CheckpointFormat.Open) : OpenTask =
            {
                MemoryBefore = task.MemoryBefore
                Seconds = toSeconds task.Seconds
                Before = task.Before
                Progress = toProgress learner plan state tensors task
            }

        {
            State = state
            Tasks = Array.map toTask run.Tasks
            Drift =
                if run.Drift then
                    Some(Drift.restore tensors "drift")
                else
                    None
            Open = Option.map opened run.Open
        }

    /// Reads what `save` wrote, and the lines of metrics.jsonl at that time; `inputs` are the plan's. Owned by the caller.
    /// Rejects a checkpoint that is damaged, of another version, or of a run with other settings, data or backbone.
    let load
        (folder: string)
        (learner: Learner)
        (plan: Plan)
        (inputs: (string * string) list)
        : struct (RunState * int) =
        let path = path folder

        Scope.keep (Leaves.first leaves) (fun () ->
            Json.read "a run's checkpoint" path (fun root ->
                checkVersion path root
                checkHash path root
                let json = get "run" root
                let run = Json.toRecord<CheckpointFormat.Run> json
                checkSettings path plan inputs (get "settings" json) run
                struct (toRun learner plan folder run, run.MetricLines)))
