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
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// A stopped run on disk: `checkpoint-N.safetensors` holds its tensors, `checkpoint.json` the rest and the hashes of
/// both. The JSON names the file of tensors and gets its own name last, so that at every moment one whole checkpoint is
/// there.
[<RequireQualifiedAccess>]
module Checkpoint =

    [<Literal>]
    let private Version = 7L

    /// The JSON file of the checkpoint in a folder.
    let internal path (folder: string) = Path.Combine(folder, "checkpoint.json")

    let private tensorFiles (folder: string) =
        if Directory.Exists folder then
            Directory.GetFiles(folder, "checkpoint-*.safetensors")
        else
            [||]

    /// Whether a folder holds a checkpoint.
    let internal exists (folder: string) = File.Exists(path folder)

    /// Removes a folder's checkpoint, if it has one.
    let internal delete (folder: string) =
        File.Delete(path folder)
        Array.iter File.Delete (tensorFiles folder)

    let private sha256 (bytes: byte[]) =
        Convert.ToHexStringLower(SHA256.HashData bytes)

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
            Tasks = Array.map CheckpointRecord.ofTask run.Tasks
            Drift = run.Drift.IsSome
            Open = run.Open |> Option.map CheckpointRecord.ofOpen
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
            Safetensors.write
                file
                (Map [ "format", "lorasub checkpoint" ])
                (CheckpointTensors.write learner plan run))

    /// Writes the state of a run into an existing folder, then removes what the new checkpoint replaces; one that
    /// cannot be written leaves nothing behind. `inputs` are those of the run's start, so that no image is needed now.
    /// `metricLines` counts the lines of metrics.jsonl so far. Borrows all.
    let internal save
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

        // what cannot be removed now is removed with the next checkpoint
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
        match CheckpointInputs.differences (Settings.ofJson path settings) plan.Settings with
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

    /// Reads what `save` wrote, and the lines of metrics.jsonl at that time; `inputs` are the plan's. Owned by the caller.
    /// Rejects a checkpoint that is damaged, of another version, or of a run with other settings, data or backbone.
    let internal load
        (folder: string)
        (learner: Learner)
        (plan: Plan)
        (inputs: (string * string) list)
        : struct (RunState * int) =
        let path = path folder

        Scope.keep (Leaves.first CheckpointTensors.leaves) (fun () ->
            Json.read "a run's checkpoint" path (fun root ->
                checkVersion path root
                checkHash path root
                let json = get "run" root
                let run = Json.toRecord<CheckpointFormat.Run> json
                checkSettings path plan inputs (get "settings" json) run
                struct (CheckpointTensors.read learner plan path run (tensorsOf folder run), run.MetricLines)))
