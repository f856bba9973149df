namespace LoRASub.Learn

open System
open System.Collections.Generic
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// How tasks are learned from images.
type LearnOptions =
    {
        /// Passes over a task's images; ignored by a method that does not train.
        Epochs: int
        /// Of an epoch, from 0.
        Rates: int -> Rates
        /// How training images become batches.
        Batch: BatchOptions
        /// Whether the pass after training augments its images as well.
        AugmentLast: bool
        /// The key of a pass's shuffling and augmentation, from the state's root key, the task and the epoch; -1 is the
        /// observation, and the number of epochs the pass after training.
        PassKey: RandomKey -> LearningTask -> int -> RandomKey
    }

/// A class that an image may be of.
[<Struct>]
type BestClass =
    {
        /// Of the learner's classes.
        Row: int
        Score: float
        /// None where no image was held out to calibrate scores.
        Probability: float option
    }

/// The answer for an image.
type Answer =
    {
        /// Best first.
        Best: BestClass[]
        /// False where the image is of no class that the learner knows.
        IsKnown: bool
    }

/// The scores of an image by row, its best row, and its support.
type internal Scored =
    {
        Scores: float[]
        Best: int
        Support: float
    }

/// Tasks made of labelled images, and predictions for images.
[<RequireQualifiedAccess>]
module ImageTask =

    /// A pass key that no other task or epoch shares.
    let internal passKey (root: RandomKey) (task: LearningTask) (epoch: int) : RandomKey =
        root
        |> Rng.fold RandomBranch.Data
        |> Rng.fold (int64 task.Index)
        |> Rng.fold (int64 epoch)

    /// What a task is learned from: the images of a set at some positions, which belong to the task's classes.
    let internal context
        learner
        (options: LearnOptions)
        (set: ImageSet)
        positions
        names
        task
        (state: TaskState)
        clock
        =
        let epochs = if learner.Method.Trains task then options.Epochs else 0

        let epoch number =
            TaskStream.epochBatches options.Batch (options.PassKey state.Key task number) set task positions

        {
            Learner = learner
            Task = task
            Names = names
            Batches =
                fun pass ->
                    match pass with
                    | Pass.Observe -> epoch -1
                    | Pass.Epoch number -> epoch number
                    | Pass.Consolidate when options.AugmentLast -> epoch epochs
                    | Pass.Consolidate -> TaskStream.plainBatches options.Batch set task positions
            Epochs = epochs
            Rates = options.Rates
            Clock = clock
            OnEvent = ignore
            OnStep = ignore
        }

    let private checkNames (state: TaskState) (names: string[]) =
        if Array.isEmpty names then
            Errors.reject "new classes" "must be at least one" "none" ""

        let known = state.Classes |> Array.map _.Name

        for name in names do
            if String.IsNullOrWhiteSpace name then
                Errors.reject $"class '{name}'" "must have a name that is not blank" "a blank name" ""

        for name, count in Array.countBy id (Array.append known names) do
            if count > 1 then
                Errors.reject
                    $"class '{name}'"
                    "must be new"
                    "a class of that name"
                    "give each class a name of its own"

    let private checkImages (names: string[]) (images: ImageSet) =
        ImageSet.requireLabels images.Source names.Length images.Labels
        let present = HashSet images.Labels

        for label, name in Array.indexed names do
            if not (present.Contains label) then
                Errors.reject $"class '{name}'" "needs at least one image" $"none in {images.Source}" ""

    /// Rejects names that are blank, known or there twice, labels out of range, and a class without images.
    let internal check (names: string[]) (images: ImageSet) (state: TaskState) =
        checkNames state names
        checkImages names images

    /// The next task, of some classes.
    let internal nextTask (names: string[]) (state: TaskState) : LearningTask =
        {
            Index = state.Finished
            FirstClass = TaskState.classes state
            Classes = Array.init names.Length id
        }

    /// `learn`, from a saved progress if there is one, of which it takes ownership; `onStep` as `TaskContext.OnStep`.
    let internal learnFrom
        (from: TaskProgress option)
        onStep
        learner
        options
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        state
        : TaskState =
        check names images state
        let task = nextTask names state
        let clock = PhaseClock()

        let context =
            { context learner options images (Array.init images.Labels.Length id) names task state clock with
                OnEvent = onEvent
                OnStep = onStep
            }

        let where () =
            match clock.Current with
            | Some phase -> $"in task {task.Index + 1}, phase {Phase.name phase}"
            | None -> $"in task {task.Index + 1}"

        NativeError.during
            where
            "use less memory with a smaller batch, with activations computed again (CheckpointActivations) or in bfloat16"
            (fun () -> Scope.keep TaskState.leaves (fun () -> (TaskLoop.learn context state from).State))

    /// <summary>Learns a group of new classes from their images, which are not kept.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="options">How the images become batches, and how long they are learned.</param>
    /// <param name="names">Of the new classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`; read several times.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <param name="state">Before the task; borrowed.</param>
    /// <returns>The state after the task, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A name is known already or there twice, labels are out of
    /// range, a class has no image, or what `TaskLoop.learn` rejects.</exception>
    let learn
        learner
        options
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        state
        : TaskState =
        learnFrom None ignore learner options names images onEvent state

    /// The rows of known classes. Rejects what `addImages` rejects of them.
    let internal checkMore
        (learner: Learner)
        (names: string[])
        (images: ImageSet)
        (state: TaskState)
        : int[] =
        if learner.Readouts |> Array.exists (fun readout -> Learner.isLogits readout.Head) then
            Errors.reject
                $"method {learner.Method.Info.Name} with its own classifier"
                "cannot learn more images of a known class"
                "images"
                "use a head that keeps sums: see lorasub heads"

        checkImages names images

        names
        |> Array.map (fun name ->
            match state.Classes |> Array.tryFindIndex (fun one -> one.Name = name) with
            | Some row -> row
            | None -> Errors.reject $"class '{name}'" "must be known" "a new class" "learn it first")

    /// <summary>Adds images of known classes to the sums of every head. The network and what the method keeps stay as
    /// they are.</summary>
    /// <param name="learner">Borrowed.</param>
    /// <param name="options">How images become batches.</param>
    /// <param name="names">Of known classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <param name="state">Borrowed.</param>
    /// <returns>The state, owned by the caller. It shares tensors with the old one: free that with `Scope.supersede`.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A name is not known, labels are out of range, an image cannot be
    /// read, or a head is the method's own classifier, which keeps no sums.</exception>
    let addImages
        (learner: Learner)
        (options: BatchOptions)
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        (state: TaskState)
        : TaskState =
        let rows = checkMore learner names images state
        let labels = images.Labels |> Array.map (fun label -> rows[label])

        // all classes as one task, whose rows are the labels
        let task =
            {
                Index = max 0 (state.Finished - 1)
                FirstClass = 0
                Classes = Array.init state.Classes.Length id
            }

        let loaders =
            TaskStream.plainBatches options { images with Labels = labels } task (Array.init labels.Length id)

        let added = labels |> Array.countBy id |> Map.ofArray

        NativeError.during (fun () -> "while adding images") "use less memory with a smaller batch" (fun () ->
            Scope.noGrad TaskState.leaves (fun () ->
                let networks = Learner.networks learner state.Method

                let step heads i =
                    onEvent (
                        Steps
                            {
                                Task = task
                                Phase = Phase.Prototypes
                                Done = i
                                Steps = loaders.Length
                                Epoch = 0
                                Epochs = 0
                                Loss = None
                                Accuracy = None
                            }
                    )

                    let batch = loaders[i]()
                    let struct (_, embedded) = Learner.embed learner networks [||] batch.Images
                    Learner.observe learner embedded batch.Labels heads

                let heads =
                    Scope.fold
                        (Seq.collect Hidden.leaves)
                        step
                        (TaskState.heads state)
                        [ 0 .. loaders.Length - 1 ]

                { state with
                    Head = heads[0]
                    Others = heads[1..]
                    Classes =
                        state.Classes
                        |> Array.mapi (fun row one ->
                            { one with
                                Images =
                                    one.Images + int64 (Map.tryFind row added |> Option.defaultValue 0)
                            })
                }))

    /// The scores of some images of a set. Rejects what `Learner.predict` rejects, and images that cannot be read.
    let internal scored
        learner
        (options: BatchOptions)
        (model: Model)
        (set: ImageSet)
        (positions: int[])
        : Scored[] =
        let ofBatch (input: unit -> torch.Tensor) =
            Scope.run (fun () ->
                let numbers (t: torch.Tensor) =
                    t.``to``(torch.ScalarType.Float64).cpu().data<float>().ToArray()

                let scores = Learner.predict learner model (input ())
                let best = (Scorer.best scores).cpu().data<int64>().ToArray()
                let support = numbers (model.Scorer.Scorer.Support scores)

                Array.map3
                    (fun scores best support ->
                        {
                            Scores = scores
                            Best = int best
                            Support = support
                        })
                    (Array.chunkBySize model.Classes (numbers scores))
                    best
                    support)

        NativeError.during
            (fun () -> "while predicting")
            "use less memory with a smaller batch (BatchSize)"
            (fun () ->
                positions
                |> Array.chunkBySize options.BatchSize
                |> TaskStream.inputs options Augmentation.None (Rng.ofSeed 0L) set
                |> Array.collect ofBatch)

    /// <summary>The best classes of each of some images of a set.</summary>
    /// <param name="count">How many; all where there are fewer.</param>
    /// <param name="learner">Borrowed.</param>
    /// <param name="options">How images become batches.</param>
    /// <param name="model">Of one of the learner's states; borrowed.</param>
    /// <param name="calibration">How its scores are read.</param>
    /// <param name="set">Its labels are not used.</param>
    /// <param name="positions">Positions in the set.</param>
    /// <returns>For each position its best classes, best first, and whether it is of a known class.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `Learner.predict` rejects, or an image cannot be
    /// read.</exception>
    let best
        (count: int)
        learner
        (options: BatchOptions)
        (model: Model)
        (calibration: Calibration)
        (set: ImageSet)
        (positions: int[])
        : Answer[] =
        // the best as the scorer has it, the others by score and then by row
        let answer (one: Scored) =
            let others =
                if count = 1 then
                    [||]
                else
                    [| 0 .. one.Scores.Length - 1 |]
                    |> Array.filter (fun row -> row <> one.Best)
                    |> Array.sortBy (fun row -> struct (-one.Scores[row], row))

            let probabilities = Calibration.probabilities one.Scores calibration

            {
                Best =
                    Array.append [| one.Best |] (Array.truncate (count - 1) others)
                    |> Array.map (fun row ->
                        {
                            Row = row
                            Score = one.Scores[row]
                            Probability = probabilities |> Option.map (Array.item row)
                        })
                IsKnown = Calibration.isKnown one.Support calibration
            }

        scored learner options model set positions |> Array.map answer
