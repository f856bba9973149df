namespace LoRASub

open System
open System.Globalization
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open TorchSharp

/// A setting in which two runs differ, with its text in each.
type SettingDifference =
    {
        Name: string
        Left: string
        Right: string
    }

/// A stopped run on disk: `checkpoint-N.safetensors` holds its tensors, `checkpoint.json` the
/// rest and the hashes that vouch for both. The JSON takes its name last and names the tensors, so that at every moment
/// one whole checkpoint is there.
[<RequireQualifiedAccess>]
module Checkpoint =

    [<Literal>]
    let private Version = 2L

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

    // They may change when a run is resumed: they affect no number, or the files they name are checked.
    let private ofTheMachine =
        [
            "data-path"
            "backbone"
            "class-order"
            "reference"
            "checkpoint-minutes"
            "tensorboard"
        ]

    /// The settings in which two runs differ; paths of files and what else is written do not count.
    let differences (left: RunSettings) (right: RunSettings) : SettingDifference list =
        Settings.all
        |> List.filter (fun s -> not (List.contains s.Name ofTheMachine))
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

    // ------------------------------------------------------------------------------------------ JSON of the records

    let private count (n: int) = Json.int (int64 n)

    let private ofScore (score: Score) =
        Json.array count [ score.Correct; score.Total ]

    let private ofMemory (memory: MemoryUse) =
        Json.array Json.int [ memory.Tensors; memory.ResidentBytes ]

    // JSON has no infinity
    let private ofFloat (x: float) =
        Json.text (x.ToString("R", CultureInfo.InvariantCulture))

    let private ofRetained (retained: Retained) =
        Json.object
            [
                "rank", count retained.Rank
                "energy", ofFloat retained.Energy
                "condition", ofFloat retained.Condition
            ]

    let private ofSeconds (seconds: Map<Phase, float>) =
        Json.object [ for phase in Phase.all -> Phase.name phase, Json.float seconds[phase] ]

    let private ofTask (task: TaskRecord) =
        Json.object
            [
                "row", Json.array ofScore task.Row
                "before", Json.option ofScore task.Before
                "retained", Json.array ofRetained task.Retained
                "memoryBefore", ofMemory task.MemoryBefore
                "memoryAfter", ofMemory task.MemoryAfter
                "seconds", ofSeconds task.Seconds
            ]

    let private get (name: string) (json: JsonElement) = json.GetProperty name

    let private items (read: JsonElement -> 'T) (json: JsonElement) =
        [| for item in json.EnumerateArray() -> read item |]

    let private toScore (json: JsonElement) =
        {
            Correct = json[0].GetInt32()
            Total = json[1].GetInt32()
        }

    let private optional (read: JsonElement -> 'T) (json: JsonElement) =
        if json.ValueKind = JsonValueKind.Null then
            None
        else
            Some(read json)

    let private toMemory (json: JsonElement) =
        {
            Tensors = json[0].GetInt64()
            ResidentBytes = json[1].GetInt64()
        }

    let private toFloat (json: JsonElement) =
        Double.Parse(json.GetString(), CultureInfo.InvariantCulture)

    let private toRetained (json: JsonElement) : Retained =
        {
            Rank = (get "rank" json).GetInt32()
            Energy = toFloat (get "energy" json)
            Condition = toFloat (get "condition" json)
        }

    let private toSeconds (json: JsonElement) : Map<Phase, float> =
        Phase.all
        |> List.map (fun phase -> phase, (get (Phase.name phase) json).GetDouble())
        |> Map.ofList

    let private toTask (json: JsonElement) : TaskRecord =
        {
            Row = items toScore (get "row" json)
            Before = optional toScore (get "before" json)
            Retained = items toRetained (get "retained" json)
            MemoryBefore = toMemory (get "memoryBefore" json)
            MemoryAfter = toMemory (get "memoryAfter" json)
            Seconds = toSeconds (get "seconds" json)
        }

    // ------------------------------------------------------------------------------------------ progress of a task

    // The tensors of a task under way.
    let private standingTensors (learner: Learner<_, _>) (plan: Plan) (state: TaskState) standing =
        let task () = plan.Stream.Tasks[state.Finished]

        match standing with
        | Observing(observing, _) -> (learner.ObservingTree (task ()) state).Write "observing" observing
        | Training(training, _, tally) ->
            Tally.tree.Write "tally" tally
            @ (learner.TrainingTree (task ()) state).Write "training" training
        | Learned(_, subspaces) -> (Tree.array Subspace.tree).Write "subspaces" subspaces

    let private ofStanding standing =
        match standing with
        | Observing(_, batches) -> [ "standing", Json.text "observing"; "batches", count batches ]
        | Training(_, epoch, _) -> [ "standing", Json.text "training"; "epoch", count epoch ]
        | Learned(retained, _) ->
            [ "standing", Json.text "learned"; "retained", Json.array ofRetained retained ]

    let private ofOpen (task: OpenTask<_, _>) =
        Json.object
            [
                "memoryBefore", ofMemory task.MemoryBefore
                "seconds", ofSeconds task.Seconds
                "before", Json.option ofScore task.Before
                yield! ofStanding task.Standing
            ]

    let private toStanding
        (learner: Learner<_, _>)
        (plan: Plan)
        (state: TaskState)
        tensors
        (json: JsonElement)
        =
        let number name = (get name json).GetInt32()

        match (get "standing" json).GetString() with
        | "learned" ->
            let subspaces = (Tree.array Subspace.tree).Read tensors "subspaces"
            Learned(items toRetained (get "retained" json), Array.map Subspace.copy subspaces)
        | standing ->
            let task = plan.Stream.Tasks[state.Finished]

            if standing = "observing" then
                Observing((learner.ObservingTree task state).Read tensors "observing", number "batches")
            else
                Training(
                    (learner.TrainingTree task state).Read tensors "training",
                    number "epoch",
                    Tally.tree.Read tensors "tally"
                )

    let private leaves (learner: Learner<_, _>) (plan: Plan) : Leaves<RunState<_, _>> =
        fun run ->
            let task () = plan.Stream.Tasks[run.State.Finished]

            let standing =
                match run.Open |> Option.map _.Standing with
                | Some(Observing(observing, _)) ->
                    (learner.ObservingTree (task ()) run.State).Leaves observing
                | Some(Training(training, _, tally)) ->
                    Seq.append
                        ((learner.TrainingTree (task ()) run.State).Leaves training)
                        (Tally.leaves tally)
                | Some(Learned(_, subspaces)) -> Leaves.array Subspace.leaves subspaces
                | None -> Seq.empty

            Seq.concat [ TaskState.leaves run.State; Leaves.option Drift.leaves run.Drift; standing ]

    // ------------------------------------------------------------------------------------------ save

    let private stateTree (state: TaskState) =
        TaskState.tree state.Finished state.Prototypes.Classes state.Key

    let private describe (plan: Plan) inputs metricLines (run: RunState<_, _>) tensors : JsonNode =
        let state = run.State

        Json.object
            [
                "settings", Settings.toJson plan.Settings
                "inputs", Json.object (inputs |> List.map (fun (name, text) -> name, Json.text text))
                "tensors", Json.text (Path.GetFileName(tensors: string))
                "tensorsSha256", Json.text (DataFile.sha256 tensors)
                "metricLines", count metricLines
                "finishedTasks", count state.Finished
                "classes", count (TaskState.classes state)
                "randomKey", Json.text (state.Key.Bits.ToString "x16")
                "tasks", Json.array ofTask run.Tasks
                "drift", JsonValue.Create run.Drift.IsSome
                "open", Json.option ofOpen run.Open
            ]

    let private nextFile (folder: string) =
        let number (file: string) =
            match Int64.TryParse((Path.GetFileNameWithoutExtension file).Substring "checkpoint-".Length) with
            | true, n when n >= 0L && n < Int64.MaxValue -> n
            | _ -> 0L

        let last =
            tensorFiles folder |> Array.map number |> Array.append [| 0L |] |> Array.max

        Path.Combine(folder, $"checkpoint-{last + 1L}.safetensors")

    let private writeTensors (file: string) (learner: Learner<_, _>) plan (run: RunState<_, _>) =
        Scope.run (fun () ->
            let standing =
                match run.Open with
                | Some task -> standingTensors learner plan run.State task.Standing
                | None -> []

            Safetensors.write
                file
                (Map [ "format", "lorasub checkpoint" ])
                ((stateTree run.State).Write "state" run.State
                 @ (Tree.option Drift.tree).Write "drift" run.Drift
                 @ standing))

    /// Writes the state of a run into an existing folder, then removes what the new checkpoint replaces; one that
    /// cannot be written leaves nothing behind. `inputs` are those of the run's start, so that no image is needed now.
    /// `metricLines` counts the lines of metrics.jsonl so far. Borrows all.
    let save
        (folder: string)
        (learner: Learner<'Observing, 'Training>)
        (plan: Plan)
        (inputs: (string * string) list)
        (metricLines: int)
        (run: RunState<'Observing, 'Training>)
        : unit =
        let old = tensorFiles folder
        let file = nextFile folder

        try
            writeTensors file learner plan run
            let text = (describe plan inputs metricLines run file).ToJsonString()

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

    let private checkSettings path (plan: Plan) inputs (run: JsonElement) =
        let saved = Settings.ofJson path (get "settings" run)

        match differences saved plan.Settings with
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
            let saved = (get name (get "inputs" run)).GetString()

            if saved <> now then
                let short (text: string) = text.Substring(0, min 64 text.Length)
                let rule = $"must be of a run on the same data and backbone ({name} {short saved})"
                Errors.reject path rule (short now) "give the files that the run began with"

    let private tensorsOf folder (run: JsonElement) : Map<string, torch.Tensor> =
        let file = Path.Combine(folder, (get "tensors" run).GetString())

        if not (File.Exists file) then
            Errors.reject file "must be beside checkpoint.json" "no such file" ""

        if DataFile.sha256 file <> (get "tensorsSha256" run).GetString() then
            damaged file "other content"

        (Safetensors.read file).Tensors

    let private toRun learner (plan: Plan) folder (json: JsonElement) : RunState<_, _> =
        let tensors = tensorsOf folder json

        let tensors =
            NamedTensors(path folder, tensors |> Map.map (fun _ tensor -> tensor.``to`` plan.Backbone.Device))

        let state =
            let classes = (get "classes" json).GetInt32()

            let key =
                UInt64.Parse(
                    (get "randomKey" json).GetString(),
                    NumberStyles.HexNumber,
                    CultureInfo.InvariantCulture
                )

            let finished = (get "finishedTasks" json).GetInt32()
            (TaskState.tree finished (Array.init classes id) { Bits = key }).Read tensors "state"

        let open' (task: JsonElement) =
            {
                MemoryBefore = toMemory (get "memoryBefore" task)
                Seconds = toSeconds (get "seconds" task)
                Before = optional toScore (get "before" task)
                Standing = toStanding learner plan state tensors task
            }

        {
            State = state
            Tasks = items toTask (get "tasks" json)
            Drift =
                if (get "drift" json).GetBoolean() then
                    Some(Drift.restore tensors "drift")
                else
                    None
            Open = optional open' (get "open" json)
        }

    /// Reads what `save` wrote, and the lines of metrics.jsonl at that time; `inputs` are the plan's. Owned by the caller.
    /// Rejects a checkpoint that is damaged, of another version, or of a run with other settings, data or backbone.
    let load
        (folder: string)
        (learner: Learner<'Observing, 'Training>)
        (plan: Plan)
        (inputs: (string * string) list)
        : struct (RunState<'Observing, 'Training> * int) =
        let path = path folder

        Scope.keep (Leaves.first (leaves learner plan)) (fun () ->
            Json.read "a run's checkpoint" path (fun root ->
                checkVersion path root
                checkHash path root
                let run = get "run" root
                checkSettings path plan inputs run
                struct (toRun learner plan folder run, (get "metricLines" run).GetInt32())))
