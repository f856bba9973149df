namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// A run with everything it needs, read and checked.
[<ReferenceEquality>]
type Plan =
    {
        Settings: RunSettings
        Stream: TaskStream
        /// Owned by the creator of the plan.
        Backbone: VisionTransformer
        /// SHA-256 of the backbone's file when it was read, in lower-case hexadecimal; empty for a network in memory.
        BackboneSha256: string
        /// Runs with which this one is compared. If one of them is without training, each task is also scored before it
        /// is learned.
        References: RunScores[]
    }

/// Reads and checks what settings name.
[<RequireQualifiedAccess>]
module Plan =

    /// <summary>Lists the tensors of a plan.</summary>
    /// <param name="plan">Borrowed.</param>
    /// <returns>Those of its backbone, borrowed.</returns>
    let leaves: Leaves<Plan> = fun plan -> VisionTransformer.leaves plan.Backbone

    /// <summary>The class order that a setting names.</summary>
    /// <param name="text">natural, seed1993 or a JSON file.</param>
    /// <returns>The order.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is absent or holds no order.</exception>
    let classOrder (text: string) : ClassOrder =
        match text with
        | "natural" -> ClassOrder.Natural
        | "seed1993" -> ClassOrder.Seed1993
        | path -> ClassOrder.readFile path

    let private needed name value =
        match value with
        | Some path -> path
        | None -> Errors.reject name "must be given" "none" $"set {name}"

    let private create (stream: unit -> TaskStream) (settings: RunSettings) : Plan =
        Settings.check settings
        // rejects a device that is absent before anything is read
        Recipe.backboneOptions settings |> ignore
        let references = settings.Reference |> List.map Reference.read |> Array.ofList
        let stream = stream ()
        let backboneFile = needed "backbone" settings.Backbone
        let struct (backbone, sha256) = Recipe.openBackbone settings backboneFile

        try
            Recipe.learner backbone settings |> ignore // rejects what does not fit the backbone

            {
                Settings = settings
                Stream = stream
                Backbone = backbone
                BackboneSha256 = sha256
                References = references
            }
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

    let private loadFrom (checkClasses: int -> unit) (order: ClassOrder) (settings: RunSettings) : Plan =
        let stream () =
            let dataset =
                Datasets.loadWith
                    (Settings.reading settings)
                    settings.Data
                    (needed "data-path" settings.DataPath)

            checkClasses dataset.ClassNames.Length
            let struct (tasks, initial) = settings.Split
            TaskStream.create dataset order tasks initial

        create stream settings

    /// <summary>Plans a run over tasks in memory.</summary>
    /// <param name="stream">Takes the place of the data set, class order and tasks that the settings name.</param>
    /// <param name="settings">Of a run, with `Backbone`.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, the backbone is missing, or it does
    /// not fit; see `Weights.load` and `Learner.create`.</exception>
    let ofStream (stream: TaskStream) (settings: RunSettings) : Plan = create (fun () -> stream) settings

    /// <summary>`load`, with a class order of the caller.</summary>
    /// <param name="order">Takes the place of the order that the settings name.</param>
    /// <param name="settings">Of a run.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, a path is missing, or a file does
    /// not fit; see `Datasets.load`, `TaskStream.create`, `Weights.load` and `Learner.create`.</exception>
    let loadWith (order: ClassOrder) (settings: RunSettings) : Plan = loadFrom ignore order settings

    /// `load` with a check of the number of classes, before they are cut into tasks.
    let internal loadChecking (checkClasses: int -> unit) (settings: RunSettings) : Plan =
        loadFrom checkClasses (classOrder settings.ClassOrder) settings

    /// <summary>Reads the data set and the backbone that settings name.</summary>
    /// <param name="settings">Of a run, with `DataPath` and `Backbone`.</param>
    /// <returns>Owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, a path is missing, or a file does
    /// not fit; see `Datasets.load`, `TaskStream.create`, `Weights.load` and `Learner.create`.</exception>
    let load (settings: RunSettings) : Plan =
        loadWith (classOrder settings.ClassOrder) settings

    /// <summary>How the images of a plan become batches.</summary>
    /// <param name="plan">Borrowed.</param>
    /// <param name="augmentation">Of training images; None for the test transform.</param>
    /// <returns>The options; batches are on the device of the backbone, in its compute type.</returns>
    let batchOptions (plan: Plan) augmentation : BatchOptions =
        Recipe.batchOptions plan.Settings plan.Backbone augmentation

    /// <summary>How the images of a plan become batches by the test transform.</summary>
    /// <param name="plan">Borrowed.</param>
    /// <returns>The options; batches are on the device of the backbone, in its compute type.</returns>
    let testOptions (plan: Plan) : BatchOptions =
        Recipe.testOptions plan.Settings plan.Backbone

    /// <summary>What counts as the correct answer for the class of each row.</summary>
    /// <param name="plan">Borrowed.</param>
    /// <returns>By position in the class order.</returns>
    let answers (plan: Plan) : int[] = TaskStream.answers plan.Stream

    /// <summary>The learner that the plan's settings name.</summary>
    /// <param name="plan">Its backbone is borrowed for as long as the learner is used.</param>
    /// <returns>The learner.</returns>
    let learner (plan: Plan) : Learner =
        Recipe.learner plan.Backbone plan.Settings

    /// The tasks that a run learns.
    let internal tasks (plan: Plan) : LearningTask[] =
        plan.Stream.Tasks
        |> Array.truncate (defaultArg plan.Settings.StopAfter plan.Stream.Tasks.Length)

    /// The plan with the test images scored after a task.
    let internal testedAfter (task: LearningTask) (plan: Plan) : Plan =
        match plan.Settings.InterimImages with
        | Some each when task.Index + 1 < (tasks plan).Length ->
            { plan with
                Stream = TaskStream.firstTests each plan.Stream
            }
        | _ -> plan

    /// The context in which a task of the plan is learned.
    let internal taskContext
        (learner: Learner)
        (plan: Plan)
        clock
        (state: TaskState)
        (task: LearningTask)
        : TaskContext =
        let set = plan.Stream.Dataset.Train

        let names =
            task.Classes |> Array.map (fun label -> plan.Stream.Dataset.ClassNames[label])

        ImageTask.context
            learner
            (Recipe.learnOptions plan.Settings plan.Backbone (plan.Settings.EpochsOf task))
            set
            (TaskStream.trainIndices plan.Stream task)
            names
            task
            state
            clock

    /// Notices about the learning rates, if any, for the start of a run.
    let internal heldRates (plan: Plan) : string[] =
        plan.Stream.Tasks
        |> Array.truncate 2
        |> Array.choose (fun task ->
            Recipe.heldFrom plan.Settings (plan.Settings.EpochsOf task)
            |> Option.map (fun epoch ->
                $"task {task.Index + 1}: the learning rate stays constant from epoch {epoch} (end of schedule)"))

    /// Flags of the command line that need less memory.
    let internal lessMemory (plan: Plan) : string =
        let settings = plan.Settings

        let options =
            [
                if settings.Batch > 1 then
                    $"--batch below {settings.Batch}"
                if not settings.CheckpointActivations then
                    "--checkpoint-activations"
                if settings.Precision <> Precision.BFloat16 then
                    "--precision bfloat16"
            ]

        if options.IsEmpty then
            NativeError.moreMemory
        else
            "use less memory with " + String.concat ", or with " options
