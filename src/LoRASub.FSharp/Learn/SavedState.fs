namespace LoRASub.Learn

open System
open System.Collections.Generic
open System.Globalization
open System.Text.Json.Serialization
open LoRASub.Core
open LoRASub.Backbone
open TorchSharp

/// A learned class in files.
type SavedClass =
    {
        /// `ClassId`.
        Id: int
        /// Its name.
        Name: string
        /// The task that it was learned in, from 0.
        Task: int
        /// Training images seen.
        Images: int64
    }

/// What a file of tensors does not hold of a task state.
type SavedState =
    {
        /// Tasks finished so far.
        FinishedTasks: int
        /// By row.
        Classes: SavedClass[]
        /// The identity of the next class.
        NextId: int
        /// 16 hexadecimal digits.
        RandomKey: string
    }

/// A part of an embedding in files.
type SavedPart =
    {
        /// Counted from 1.
        Block: int
        /// class, patch-mean, patch-spread, patch-centre, patch-change or patch-quadrants.
        Tokens: string
        /// Whether the tokens pass the network's final norm first.
        FinalNorm: bool
    }

/// An embedding in files.
type SavedEmbedding =
    {
        /// Tokens of the network as it was loaded, which stand first; None for none.
        [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
        Frozen: SavedPart[] option
        /// Tokens of the adapted network, side by side.
        Parts: SavedPart[]
        /// Whether each d columns are brought to mean 0 and variance 1.
        Standardise: bool
        /// Whether the mean is taken with the mirrored image.
        Flip: bool
        /// Whether the mean is taken with the image moved half a patch down and right; None where it is not.
        [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
        Shift: bool option
    }

/// A head and its embedding in files.
type SavedReadout =
    {
        /// Under which its scores are listed.
        Label: string
        /// Name of the head.
        Head: string
        /// What it sees.
        Embedding: SavedEmbedding
    }

[<RequireQualifiedAccess>]
module internal SavedEmbedding =

    let private kinds =
        [
            "class", Tokens.Class
            "patch-mean", Tokens.PatchMean
            "patch-spread", Tokens.PatchSpread
            "patch-centre", Tokens.PatchCentre
            "patch-change", Tokens.PatchChange
            "patch-quadrants", Tokens.PatchQuadrants
        ]

    let ofEmbedding (embedding: Embedding) : SavedEmbedding =
        let saved (part: EmbeddingPart) : SavedPart =
            {
                Block = part.Block
                Tokens = kinds |> List.find (fun (_, tokens) -> tokens = part.Tokens) |> fst
                FinalNorm = part.FinalNorm
            }

        {
            Frozen =
                match embedding.Frozen with
                | [||] -> None
                | parts -> Some(Array.map saved parts)
            Parts = Array.map saved embedding.Parts
            Standardise = embedding.Standardise
            Flip = embedding.Flip
            Shift = if embedding.Shift then Some true else None
        }

    /// Rejects an unknown kind of tokens; `subject` names the file.
    let toEmbedding (subject: string) (saved: SavedEmbedding) : Embedding =
        let tokens (name: string) =
            match kinds |> List.tryFind (fun (kind, _) -> kind = name) with
            | Some(_, tokens) -> tokens
            | None ->
                let known = kinds |> List.map fst |> String.concat ", "
                Errors.reject $"{subject}, embedding" $"must be of {known}" $"'{name}'" ""

        let part (saved: SavedPart) : EmbeddingPart =
            {
                Block = saved.Block
                Tokens = tokens saved.Tokens
                FinalNorm = saved.FinalNorm
            }

        {
            Frozen = saved.Frozen |> Option.defaultValue [||] |> Array.map part
            Parts = Array.map part saved.Parts
            Standardise = saved.Standardise
            Flip = saved.Flip
            Shift = saved.Shift = Some true
        }

[<RequireQualifiedAccess>]
module internal SavedState =

    let ofState (state: TaskState) : SavedState =
        {
            FinishedTasks = state.Finished
            Classes =
                state.Classes
                |> Array.map (fun one ->
                    {
                        Id = one.Id.Value
                        Name = one.Name
                        Task = one.Task
                        Images = one.Images
                    })
            NextId = state.NextId.Value
            RandomKey = state.Key.Bits.ToString "x16"
        }

    /// Rejects numbers that no learner has; `subject` names the file.
    let check (subject: string) (saved: SavedState) =
        let ids = HashSet<int>()
        let most = 1_000_000

        for name, value in [ "finishedTasks", saved.FinishedTasks; "nextId", saved.NextId ] do
            if value < 0 || value > most then
                Errors.reject $"{subject}, {name}" $"must be 0 to {most}" $"{value}" ""

        for one in saved.Classes do
            let subject = $"{subject}, class '{one.Name}'"

            if one.Task < 0 || one.Task >= saved.FinishedTasks then
                Errors.reject subject $"must be of one of {saved.FinishedTasks} tasks" $"task {one.Task}" ""

            if System.String.IsNullOrWhiteSpace one.Name then
                Errors.reject $"{subject}" "must have a name that is not blank" "a blank name" ""

            if one.Images < 0L then
                Errors.reject subject "must be of 0 images or more" $"{one.Images}" ""

            if one.Id < 0 || one.Id >= saved.NextId || not (ids.Add one.Id) then
                let rule = $"must have an id of its own, from 0 to {saved.NextId - 1}"
                Errors.reject subject rule $"id {one.Id}" ""

        for name, count in saved.Classes |> Array.countBy _.Name do
            if count > 1 then
                Errors.reject
                    $"{subject}, class '{name}'"
                    "must have a name of its own"
                    $"{count} of that name"
                    ""

    let private keyOf (subject: string) (text: string) : RandomKey =
        match UInt64.TryParse(text, NumberStyles.HexNumber, CultureInfo.InvariantCulture) with
        | true, bits -> { Bits = bits }
        | _ -> Errors.reject $"{subject}, randomKey" "must be 16 hexadecimal digits" "another text" ""

    // Rejects tensors of other shapes than a fresh state's; an axis that is empty there counts classes.
    let private checkShapes (learner: Learner) (state: TaskState) =
        Scope.run (fun () ->
            let fresh = Learner.start learner state.Key
            let classes = int64 state.Classes.Length
            let tree = Learner.tree learner state
            let expected = tree.Write "" fresh |> Map.ofList

            let found = tree.Write "" state |> Map.ofList

            for KeyValue(name, like) in expected do
                match Map.tryFind name found with
                | Some tensor ->
                    let axes = [ for n in like.shape -> Axis.Is(if n = 0L then classes else n) ]

                    Shape.expect name axes tensor
                | None -> Errors.reject name "must be there for this backbone" "no such tensor" "")

    /// The state whose tensors are below a path; it takes them over. Rejects as `check`, and tensors that are absent or
    /// that do not fit the learner's backbone.
    let toState
        (subject: string)
        (learner: Learner)
        (saved: SavedState)
        (tensors: NamedTensors)
        (path: string)
        =
        check subject saved

        let known =
            { Learner.start learner (keyOf subject saved.RandomKey) with
                Finished = saved.FinishedTasks
                Classes =
                    saved.Classes
                    |> Array.map (fun one ->
                        {
                            Id = ClassId one.Id
                            Name = one.Name
                            Task = one.Task
                            Images = one.Images
                        })
                NextId = ClassId saved.NextId
            }

        let state = (Learner.tree learner known).Read tensors path

        try
            checkShapes learner state
            state
        with :? InputException as e ->
            raise (InputException($"{subject}: {e.Message}", e))
