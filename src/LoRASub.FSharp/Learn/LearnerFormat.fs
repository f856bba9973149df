namespace LoRASub.Learn

open System.Collections.Generic
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// The record of learner.json, and the older one.
module LearnerFormat =

    /// A learner on disk: all it needs to predict and to learn more, except the backbone and the tensors.
    type Record =
        {
            Version: int
            Method: string
            Head: string
            /// None: the class token at the output, as in version 1.
            Embedding: SavedEmbedding option
            /// Heads that learned in the same passes; None for none.
            [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
            Others: SavedReadout[] option
            /// Whether heads follow a network that moves; None where they do.
            [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
            Transport: bool option
            State: SavedState
            /// What calibrates its scores; None where no image was held out.
            [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
            HeldOut: HeldOut[] option
            /// The data set's label of the class learned i-th, for all classes of a run; the ids otherwise.
            ClassOrder: int[]
            ImageSize: int
            Channels: int
            /// Black and white as the network sees them.
            InputRange: float[]
            Heads: int
            /// Of the blocks' norms and of the final one.
            NormEpsilon: float[]
            /// The settings that it was trained with, by name.
            Settings: Dictionary<string, string>
            /// SHA-256 of the backbone's file, in lower-case hexadecimal.
            BackboneSha256: string
            TensorsSha256: string
        }

    /// Version 1: one method, one head, one mean per class.
    type Version1 =
        {
            Method: string
            FinishedTasks: int
            TaskSizes: int[]
            ClassNames: string[]
            ClassOrder: int[]
            PrototypeClasses: int[]
            RandomKey: string
            ImageSize: int
            Channels: int
            InputRange: float[]
            Heads: int
            NormEpsilon: float[]
            BackboneSha256: string
            TensorsSha256: string
        }

/// A learner as read from its folder: its tensors wait, on the CPU, for the backbone that they belong to.
[<ReferenceEquality>]
type SavedLearner =
    {
        Record: LearnerFormat.Record
        Tensors: Map<string, torch.Tensor>
        /// Of learner.json.
        Path: string
    }

    /// <summary>How images become the inputs that it was trained on.</summary>
    member this.Input: ImageFormat =
        {
            Size = this.Record.ImageSize
            Channels = this.Record.Channels
            Low = this.Record.InputRange[0]
            High = this.Record.InputRange[1]
        }

    /// <summary>The layer-norm epsilons of the backbone.</summary>
    member this.NormEpsilon: NormEpsilon =
        {
            Blocks = this.Record.NormEpsilon[0]
            Final = this.Record.NormEpsilon[1]
        }

/// Reads learners of version 1.
module internal LearnerVersion1 =

    let private checkClasses path (old: LearnerFormat.Version1) =
        let classes = old.PrototypeClasses

        if old.ClassNames.Length <> old.ClassOrder.Length then
            let rule = $"needs a name for each of {old.ClassOrder.Length} classes"
            Errors.reject path rule $"{old.ClassNames.Length}" ""

        if
            classes.Length > old.ClassOrder.Length
            || classes <> Array.init classes.Length id
        then
            let rule =
                $"prototype classes must be 0, 1, … in order, at most {old.ClassOrder.Length} of them"

            Errors.reject path rule $"{List.ofArray classes}" ""

        if
            old.TaskSizes.Length <> old.FinishedTasks
            || Array.sum old.TaskSizes <> classes.Length
        then
            let rule =
                $"task sizes must be {old.FinishedTasks}, one per finished task, and add up to {classes.Length}"

            Errors.reject path rule $"{List.ofArray old.TaskSizes}" ""

    /// The record in today's form. Rejects a record that no program wrote.
    let migrate (path: string) (old: LearnerFormat.Version1) : LearnerFormat.Record =
        checkClasses path old

        let tasks =
            old.TaskSizes
            |> Array.mapi (fun task size -> Array.create size task)
            |> Array.concat

        {
            Version = 2
            // its prototypes were those of a method then
            Method =
                if old.Method = "frozen-prototypes" then
                    Frozen.info.Name
                else
                    old.Method
            Head = NearestMean.head.Info.Name
            Embedding = None
            Others = None
            Transport = None
            State =
                {
                    FinishedTasks = old.FinishedTasks
                    Classes =
                        tasks
                        |> Array.mapi (fun row task ->
                            {
                                Id = row
                                Name = old.ClassNames[row]
                                Task = task
                                Images = 1L // not known
                            })
                    NextId = tasks.Length
                    RandomKey = old.RandomKey
                }
            HeldOut = None
            ClassOrder = old.ClassOrder
            ImageSize = old.ImageSize
            Channels = old.Channels
            InputRange = old.InputRange
            Heads = old.Heads
            NormEpsilon = old.NormEpsilon
            Settings = Dictionary()
            BackboneSha256 = old.BackboneSha256
            TensorsSha256 = old.TensorsSha256
        }

    /// The tensors under today's names: a mean is the sum of one image.
    let rename (tensors: Map<string, torch.Tensor>) : Map<string, torch.Tensor> =
        let mine =
            tensors
            |> Map.toList
            |> List.map (fun (name, tensor) -> $"method.{name}", tensor)

        let sums =
            match Map.tryFind "prototypes" tensors with
            | Some means ->
                [
                    "head.sums", means
                    "head.counts", torch.ones ([| means.shape[0] |], dtype = torch.ScalarType.Int64)
                ]
            | None -> []

        Map.ofList (mine @ sums)

[<RequireQualifiedAccess>]
module internal LearnerRecord =

    /// Of the format that is written.
    [<Literal>]
    let Version = 3

    /// The record of a learner, to be saved with its state. `order` holds the data set's label of the class learned i-th.
    let create
        (learner: Learner)
        (state: TaskState)
        (order: int[])
        (input: ImageFormat)
        (epsilon: NormEpsilon)
        (backboneSha256: string)
        (settings: (string * string) list)
        : LearnerFormat.Record =
        {
            Version = Version
            Method = learner.Method.Info.Name
            Head = learner.Head.Info.Name
            Embedding = Some(SavedEmbedding.ofEmbedding learner.Embedding)
            Others =
                match learner.Others with
                | [||] -> None
                | others ->
                    others
                    |> Array.map (fun readout ->
                        {
                            Label = readout.Label
                            Head = readout.Head.Info.Name
                            Embedding = SavedEmbedding.ofEmbedding readout.Embedding
                        })
                    |> Some
            Transport = if learner.Transport then None else Some false
            State = SavedState.ofState state
            HeldOut = None
            ClassOrder = order
            ImageSize = input.Size
            Channels = input.Channels
            InputRange = [| input.Low; input.High |]
            Heads = learner.Backbone.Heads
            NormEpsilon = [| epsilon.Blocks; epsilon.Final |]
            Settings = Dictionary(dict settings)
            BackboneSha256 = backboneSha256
            TensorsSha256 = "" // known once they are written
        }

    /// Rejects a record whose values no program wrote.
    let check (path: string) (record: LearnerFormat.Record) : unit =
        let two name (numbers: float[]) =
            if numbers.Length <> 2 then
                Errors.reject $"{path}, {name}" "must hold 2 numbers" $"{numbers.Length}" ""

        two "inputRange" record.InputRange
        two "normEpsilon" record.NormEpsilon

        if record.Channels <> 1 && record.Channels <> 3 then
            Errors.reject $"{path}, channels" "must be 1 or 3" $"{record.Channels}" ""

        SavedState.check path record.State

        try
            Methods.find record.Method |> ignore
        with :? InputException as e ->
            raise (InputException($"{path}: {e.Message}", e))

        if not (defaultArg record.HeldOut [||] |> Array.forall Calibration.isValid) then
            Errors.reject
                $"{path}, heldOut"
                "must hold positive counts, a positive temperature and ascending support"
                "other values"
                "remove heldOut: the learner then gives no probabilities"
