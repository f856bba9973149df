namespace LoRASub.Run

open System
open System.Collections.Generic
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open TorchSharp

/// The tensors of a run between two steps, by name.
[<RequireQualifiedAccess>]
module internal CheckpointTensors =

    let private subspaces = Tree.array Subspace.tree

    let private taskOf (plan: Plan) (state: TaskState) = plan.Stream.Tasks[state.Finished]

    let private progressTensors learner plan state progress =
        match progress with
        | InLoop progress -> TaskProgress.write learner (taskOf plan state) state progress
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
            InLoop(TaskProgress.read learner (taskOf plan state) state tensors true saved.Batches)
        | "training" -> InLoop(TaskProgress.read learner (taskOf plan state) state tensors false saved.Epoch)
        | _ ->
            Learned(
                {
                    Retained = Array.map CheckpointRecord.toRetained saved.Retained
                    Subspaces = subspaces.Read tensors "subspaces" |> Array.map Subspace.copy
                },
                tensors.Find "means"
            )

    let leaves: Leaves<RunState> =
        fun run ->
            let progress =
                match run.Open |> Option.map _.Progress with
                | Some(InLoop progress) -> TaskProgress.leaves progress
                | Some(Learned(diagnostics, means)) ->
                    Seq.append (Diagnostics.leaves diagnostics) (Seq.singleton means)
                | None -> Seq.empty

            Seq.concat [ TaskState.leaves run.State; Leaves.option Drift.leaves run.Drift; progress ]

    /// Borrows; those made for numbers belong to the caller's scope.
    let write (learner: Learner) (plan: Plan) (run: RunState) : (string * torch.Tensor) list =
        let progress =
            match run.Open with
            | Some task -> progressTensors learner plan run.State task.Progress
            | None -> []

        (Learner.tree learner run.State).Write "state" run.State
        @ (Tree.option Drift.tree).Write "drift" run.Drift
        @ progress

    /// The run of a record and its tensors; `path` names the record in errors. Owned by the caller.
    let read
        learner
        (plan: Plan)
        (path: string)
        (run: CheckpointFormat.Run)
        (tensors: Map<string, torch.Tensor>)
        : RunState =
        let tensors =
            NamedTensors(path, tensors |> Map.map (fun _ tensor -> tensor.``to`` plan.Backbone.Device))

        let state = SavedState.toState path learner run.State tensors "state"

        let opened (task: CheckpointFormat.Open) : OpenTask =
            {
                MemoryBefore = task.MemoryBefore
                Seconds = CheckpointRecord.toSeconds task.Seconds
                Before = task.Before
                Progress = toProgress learner plan state tensors task
            }

        {
            State = state
            Tasks = Array.map CheckpointRecord.toTask run.Tasks
            Drift =
                if run.Drift then
                    Some(Drift.tree.Read tensors "drift")
                else
                    None
            Open = Option.map opened run.Open
        }
