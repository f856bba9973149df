namespace LoRASub.Learn

open System
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// Identifies a class for as long as the learner lives. The row of a class in tensors changes when another is
/// forgotten, its identity never.
[<Struct>]
type ClassId =
    /// A number from 0 that no other class of the learner has or had.
    | ClassId of int

    /// <summary>The number.</summary>
    member this.Value = let (ClassId value) = this in value
    override this.ToString() = string this.Value

/// A learned class.
type ClassInfo =
    {
        /// Its identity.
        Id: ClassId
        /// Its name, which no other class of the learner has.
        Name: string
        /// The task that it was learned in, from 0.
        Task: int
        /// Training images seen.
        Images: int64
    }

/// All that outlives a task: no image, no feature, no task's classifier.
[<ReferenceEquality>]
type TaskState =
    {
        /// Tasks finished so far.
        Finished: int
        /// By row.
        Classes: ClassInfo[]
        /// The identity of the next class: those of forgotten classes are not used again.
        NextId: ClassId
        /// What the method keeps.
        Method: MethodState
        /// What the head keeps: a row per class.
        Head: HeadState
        /// What each of the other heads keeps.
        Others: HeadState[]
        /// The root of every random number to come.
        Key: RandomKey
    }

/// A head and what it sees of an image.
[<ReferenceEquality>]
type Readout =
    {
        /// Under which its scores are listed.
        Label: string
        /// What predicts from the embeddings; `Heads.logits` asks the method.
        Head: AnyHead
        /// What the head sees of an image.
        Embedding: Embedding
    }

/// A method, a head and an embedding over one frozen backbone. Borrows the backbone.
[<ReferenceEquality>]
type Learner =
    {
        /// Frozen; borrowed.
        Backbone: VisionTransformer
        /// What trains the network.
        Method: AnyMethod
        /// The head that predicts, and what it sees.
        Readout: Readout
        /// Heads that learn and are scored in the same passes, for comparison.
        Others: Readout[]
        /// Whether heads that can be transported follow a network that moves.
        Transport: bool
    }

    /// The head that predicts.
    member this.Head: AnyHead = this.Readout.Head
    /// What that head sees of an image.
    member this.Embedding: Embedding = this.Readout.Embedding

    /// Every head with its embedding: first the one that predicts.
    member this.Readouts: Readout[] = Array.append [| this.Readout |] this.Others

/// Heads with embeddings.
[<RequireQualifiedAccess>]
module Readout =
    /// <summary>The readout of two names.</summary>
    /// <param name="backbone">Borrowed.</param>
    /// <param name="names">Of a head and of an embedding: see `Heads.find` and `Embedding.named`.</param>
    /// <returns>The readout under the label HEAD@EMBEDDING.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no such head or embedding.</exception>
    let named (backbone: VisionTransformer) (names: struct (string * string)) : Readout =
        let struct (head, embedding) = names

        {
            Label = $"{head}@{embedding}"
            Head = Heads.find head
            Embedding = Embedding.named embedding backbone
        }

/// The networks that embeddings are read from.
[<ReferenceEquality>]
type Networks =
    {
        /// As the method has adapted it.
        Adapted: Adapters
        /// As it was loaded, where an embedding reads it.
        Frozen: Adapters option
    }

/// A state made ready to predict.
[<ReferenceEquality>]
type Model =
    {
        /// What embeddings are read from.
        Networks: Networks
        /// The classifier: of the embeddings of its head, or of images.
        Scorer: OwnScores
        /// The other heads of the learner, made ready.
        Others: OwnScores[]
        /// Number of classes.
        Classes: int
    }

/// Children of a state's root key, so that the method and its data never share a stream.
[<RequireQualifiedAccess>]
module internal RandomBranch =
    [<Literal>]
    let Method = 0L

    [<Literal>]
    let Data = 1L

/// States between tasks.
[<RequireQualifiedAccess>]
module TaskState =
    /// <summary>Lists the tensors of a state.</summary>
    /// <param name="state">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<TaskState> =
        fun state ->
            Seq.concat
                [
                    Hidden.leaves state.Method
                    Hidden.leaves state.Head
                    Seq.collect Hidden.leaves state.Others
                ]

    /// The states of every head: first of the one that predicts.
    let internal heads (state: TaskState) : HeadState[] =
        Array.append [| state.Head |] state.Others

    /// <summary>The number of classes known.</summary>
    /// <param name="state">Borrowed.</param>
    /// <returns>Without those that were forgotten.</returns>
    let classes (state: TaskState) = state.Classes.Length

    /// <summary>The classes of each finished task that are still known.</summary>
    /// <param name="state">Borrowed.</param>
    /// <returns>One number per finished task.</returns>
    let taskSizes (state: TaskState) : int[] =
        let sizes = Array.zeroCreate state.Finished

        for one in state.Classes do
            sizes[one.Task] <- sizes[one.Task] + 1

        sizes

/// Networks.
[<RequireQualifiedAccess>]
module internal Networks =
    let leaves: Leaves<Networks> =
        fun networks ->
            Seq.append (Adapters.leaves networks.Adapted) (Leaves.option Adapters.leaves networks.Frozen)

/// Models.
[<RequireQualifiedAccess>]
module Model =
    /// <summary>Lists the tensors of a model.</summary>
    /// <param name="model">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<Model> =
        fun model ->
            Seq.concat
                [
                    Networks.leaves model.Networks
                    OwnScores.leaves model.Scorer
                    Seq.collect OwnScores.leaves model.Others
                ]

/// Predicts and forgets; `TaskLoop` learns.
[<RequireQualifiedAccess>]
module Learner =

    /// Whether the method's own classifier gives the scores.
    let internal isLogits (head: AnyHead) = head.Info.Name = Heads.logits.Info.Name

    let private checkReadout (backbone: VisionTransformer) (method: AnyMethod) (readout: Readout) =
        let head, embedding = readout.Head, readout.Embedding
        Embedding.check backbone embedding

        if isLogits head && method.Logits.IsNone then
            let others = Heads.names |> List.except [ head.Info.Name ] |> String.concat ", "

            Errors.reject
                $"head {head.Info.Name}"
                "must be of a method with a classifier of its own"
                $"method {method.Info.Name}"
                $"use one of {others}"

        // a method's classifier takes the features that it was trained on
        let isOutput =
            Embedding.parts embedding = (Embedding.output backbone).Parts
            && not embedding.Standardise

        if isLogits head && not isOutput then
            Errors.reject
                $"head {head.Info.Name}"
                "must be used with the embedding class-token"
                "another embedding"
                "choose another head or that embedding"

    /// `create` for a head and embedding that have a label.
    let internal ofReadout (backbone: VisionTransformer) (method: AnyMethod) (readout: Readout) : Learner =
        checkReadout backbone method readout

        {
            Backbone = backbone
            Method = method
            Readout = readout
            Others = [||]
            Transport = true
        }

    /// <summary>A learner over a backbone.</summary>
    /// <param name="backbone">Borrowed for as long as the learner is used.</param>
    /// <param name="method">Over the same backbone.</param>
    /// <param name="head">Any, or `logits` for a method with a classifier of its own.</param>
    /// <param name="embedding">What the head sees of an image.</param>
    /// <returns>The learner, which owns no tensor. Heads follow a network that moves, where they can.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The backbone cannot give the embedding; or the head is
    /// `logits` and the method has no classifier, or the embedding is not the class token.</exception>
    let create
        (backbone: VisionTransformer)
        (method: AnyMethod)
        (head: AnyHead)
        (embedding: Embedding)
        : Learner =
        ofReadout
            backbone
            method
            {
                Label = head.Info.Name
                Head = head
                Embedding = embedding
            }

    /// <summary>The learner with more heads, which learn in the same passes and predict nothing.</summary>
    /// <param name="others">Heads and what they see, in place of those the learner has.</param>
    /// <param name="learner">Borrowed.</param>
    /// <returns>The learner, for states that it starts itself.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `create`.</exception>
    let withOthers (others: Readout[]) (learner: Learner) : Learner =
        Array.iter (checkReadout learner.Backbone learner.Method) others

        { learner with Others = others }

    let private master (learner: Learner) =
        Precision.master learner.Backbone.Precision

    /// The state of a head without classes.
    let internal noHead (learner: Learner) (readout: Readout) : HeadState =
        let width = Embedding.width learner.Backbone readout.Embedding
        readout.Head.Zero width (master learner) learner.Backbone.Device

    /// The bytes of what each head keeps: first of the one that predicts.
    let internal headBytes (learner: Learner) (state: TaskState) : int64[] =
        Array.map2
            (fun (readout: Readout) head -> Tree.bytes readout.Head.Tree head)
            learner.Readouts
            (TaskState.heads state)

    /// <summary>The state before the first task.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="key">The root of every random number of the learner.</param>
    /// <returns>Without classes, owned by the caller.</returns>
    let start (learner: Learner) (key: RandomKey) : TaskState =
        {
            Finished = 0
            Classes = [||]
            NextId = ClassId 0
            Method = learner.Method.Start key
            Head = noHead learner learner.Readout
            Others = Array.map (noHead learner) learner.Others
            Key = key
        }

    /// <summary>The tensors of a state, by the names that files give them.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="known">What a file of tensors does not hold: classes, tasks and key.</param>
    /// <returns>The tree; reading with it gives a state of `known` with other tensors.</returns>
    let tree (learner: Learner) (known: TaskState) : Tree<TaskState> =
        tree {
            let! method = Tree.field "method" _.Method learner.Method.State
            and! head = Tree.field "head" _.Head learner.Head.Tree

            and! others =
                Tree.field "others" _.Others (Tree.each (learner.Others |> Array.map _.Head.Tree))

            and! rest = Tree.given id known

            return
                { rest with
                    Method = method
                    Head = head
                    Others = others
                }
        }

    // Rejects scores of a user's classifier that are not [n, classes] of finite numbers, one row per embedding.
    let private checkScores
        (learner: Learner)
        (readout: Readout)
        (classes: int)
        (embeddings: torch.Tensor)
        (scores: torch.Tensor)
        =
        let subject =
            if isLogits readout.Head then
                $"scores of method {learner.Method.Info.Name}"
            else
                $"scores of head {readout.Head.Info.Name}"

        Shape.expect subject [ Axis.Is embeddings.shape[0]; Axis.Is(int64 classes) ] scores
        Shape.expectDevice subject embeddings scores

        if not (torch.is_floating_point scores) then
            Errors.reject subject "must be floating point" $"{scores.dtype}" ""

        if not (Scope.run (fun () -> scores.isfinite().all().item<bool>())) then
            Errors.reject
                subject
                "must be finite"
                "NaN or infinity"
                "lower lr or head-lr, or use a wider precision"

    /// <summary>The network of a method's state: `Method.Adapters`, checked against the backbone.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="state">The method's state, borrowed.</param>
    /// <returns>Fused weights [3d, d] for each block, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The method gave another number of weights than blocks, a weight of another
    /// shape, type or device, or pairs in training.</exception>
    let internal adapters (learner: Learner) (state: MethodState) : Adapters =
        let vit, adapters = learner.Backbone, learner.Method.Adapters state
        let subject = $"adapters of method {learner.Method.Info.Name}"
        let depth, dtype = vit.Blocks.Length, Precision.compute vit.Precision

        if adapters.Qkv.Length <> depth then
            Errors.reject subject $"must hold {depth} weights, one per block" $"{adapters.Qkv.Length}" ""

        for i, weight in Array.indexed adapters.Qkv do
            let subject = $"{subject}, block {i + 1}"
            Shape.expect subject [ Axis.Is(3L * vit.Width); Axis.Is vit.Width ] weight
            Shape.expectDevice subject vit.ClassToken weight

            if weight.dtype <> dtype then
                Errors.reject subject $"must be {dtype}" $"{weight.dtype}" ""

        if adapters.Lora.Length > 0 then
            let found = $"pairs on {adapters.Lora.Length} blocks"
            Errors.reject subject "must hold no pairs in training" found "merge them into the weights"

        adapters

    /// The networks of a method's state. Owned by the caller.
    let internal networks (learner: Learner) (state: MethodState) : Networks =
        Scope.noGrad Networks.leaves (fun () ->
            let reads =
                learner.Readouts
                |> Array.exists (fun readout -> not (Array.isEmpty readout.Embedding.Frozen))

            {
                Adapted = adapters learner state
                Frozen =
                    if reads then
                        Some(VisionTransformer.frozen learner.Backbone)
                    else
                        None
            })

    let private embedFor (readouts: Readout[]) (learner: Learner) (networks: Networks) parts images =
        Scope.noGrad (Leaves.both Leaves.tensors Leaves.tensors) (fun () ->
            Embedding.embedAll
                (readouts |> Array.map _.Embedding)
                parts
                networks.Frozen
                networks.Adapted
                learner.Backbone
                images)

    /// Tokens of some parts, and for each head the embeddings [n, D] of the images, in the master format.
    /// Borrows; owned by the caller.
    let internal embed (learner: Learner) networks (parts: EmbeddingPart[]) (images: torch.Tensor) =
        embedFor learner.Readouts learner networks parts images

    /// Adds a batch, the embeddings for each head and the rows, to the sums of every head. Owned by the caller.
    let internal observe
        (learner: Learner)
        (embedded: torch.Tensor[])
        rows
        (heads: HeadState[])
        : HeadState[] =
        let observe (readout: Readout) embeddings head =
            readout.Head.Observe embeddings rows head

        Scope.keep (Seq.collect Hidden.leaves) (fun () -> Array.map3 observe learner.Readouts embedded heads)

    /// <summary>Makes a state ready to predict.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="state">Borrowed.</param>
    /// <returns>The model, owned by the caller; it shares no tensor with the state.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The state has no class, or the method's adapters do not fit
    /// the backbone.</exception>
    let deploy (learner: Learner) (state: TaskState) : Model =
        if Array.isEmpty state.Classes then
            Errors.reject "prediction" "needs at least one learned class" "none" "learn a task first"

        let scorer (readout: Readout) (head: HeadState) =
            match learner.Method.Logits with
            | Some logits when isLogits readout.Head -> logits state.Method
            | _ -> OwnScores.OfFeatures(readout.Head.Scores head)

        Scope.noGrad Model.leaves (fun () ->
            {
                Networks = networks learner state.Method
                Scorer = scorer learner.Readout state.Head
                Others = Array.map2 scorer learner.Others state.Others
                Classes = state.Classes.Length
            })

    /// For each head the scores [n, classes] of images, by row; and the tokens of some parts of the network for them.
    /// Borrows; owned by the caller. Rejects scores of another shape and scores that are not finite.
    let internal predictWith (learner: Learner) (model: Model) parts (images: torch.Tensor) =
        Scope.noGrad (Leaves.both Leaves.tensors Leaves.tensors) (fun () ->
            let heads =
                Array.zip learner.Readouts (Array.append [| model.Scorer |] model.Others)

            let ofFeatures = heads |> Array.filter (fun (_, scores) -> scores.IsOfFeatures)

            let struct (tokens, embedded) =
                embedFor (Array.map fst ofFeatures) learner model.Networks parts images

            let checked' readout (scorer: Scorer) input =
                let scores = scorer.Score input
                checkScores learner readout model.Classes input scores
                scores

            let score i (readout: Readout, scores) =
                match scores with
                | OwnScores.OfImages scorer ->
                    Embedding.views readout.Embedding learner.Backbone images
                    |> Array.map (checked' readout scorer)
                    |> fun views -> torch.stack(views).mean [| 0L |]
                | OwnScores.OfFeatures scorer ->
                    let before =
                        heads[.. i - 1] |> Array.filter (fun (_, scores) -> scores.IsOfFeatures)

                    checked' readout scorer embedded[before.Length]

            struct (Array.mapi score heads, tokens))

    /// The learner without the heads that only compare.
    let internal alone (learner: Learner) : Learner = { learner with Others = [||] }

    /// <summary>The scores of images; where a method classifies images itself, the mean over the embedding's views.
    /// `Scorer.best` gives the predicted rows.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="model">Of one of the learner's states; borrowed.</param>
    /// <param name="images">[n, c, H, W], floating point, in the backbone's input range; borrowed.</param>
    /// <returns>[n, classes], a column per row of the state; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The images have another size or device, or the head's or
    /// method's scores are not [n, classes] of finite floating-point numbers on the device of the
    /// embeddings.</exception>
    let predict (learner: Learner) (model: Model) (images: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let struct (scores, _) =
                predictWith (alone learner) { model with Others = [||] } [||] images

            scores[0])

    /// <summary>The state without a class: its row leaves the head's sums and the method's state, and what
    /// the network learned from it stays.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="id">Of the class.</param>
    /// <param name="state">Borrowed.</param>
    /// <returns>The state, owned by the caller. It may share tensors with the old one: free that with `Scope.supersede`.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner does not know the class.</exception>
    let forget (learner: Learner) (id: ClassId) (state: TaskState) : TaskState =
        match state.Classes |> Array.tryFindIndex (fun one -> one.Id = id) with
        | None -> Errors.reject $"class {id}" "must be a class that the learner knows" "an unknown class" ""
        | Some row ->
            Scope.noGrad TaskState.leaves (fun () ->
                { state with
                    Classes = Array.removeAt row state.Classes
                    Method = learner.Method.Forget row state.Method
                    Head = learner.Head.Forget row state.Head
                    Others =
                        Array.map2
                            (fun (readout: Readout) head -> readout.Head.Forget row head)
                            learner.Others
                            state.Others
                })

    /// <summary>A model that knows a task's classes as well, learned by the head alone from the network as it
    /// is: what is known of them before training.</summary>
    /// <param name="learner">Its head has sums: not `logits`.</param>
    /// <param name="task">The next task.</param>
    /// <param name="loaders">Batches of the task's images.</param>
    /// <param name="state">Before the task; borrowed.</param>
    /// <returns>The model, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The head is `logits`, or the method's adapters do not fit
    /// the backbone.</exception>
    let foresee (learner: Learner) (task: LearningTask) (loaders: BatchLoader[]) (state: TaskState) : Model =
        let learner = alone learner

        Scope.noGrad Model.leaves (fun () ->
            let networks = networks learner state.Method

            let step heads (load: BatchLoader) =
                let batch = load ()
                let struct (_, embedded) = embed learner networks [||] batch.Images
                observe learner embedded batch.Labels heads

            let heads =
                Scope.fold
                    (Seq.collect Hidden.leaves)
                    step
                    [| learner.Head.Grow task.Classes.Length state.Head |]
                    loaders

            {
                Networks = networks
                Scorer = OwnScores.OfFeatures(learner.Head.Scores heads[0])
                Others = [||]
                Classes = state.Classes.Length + task.Classes.Length
            })
