namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
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
        /// What the run is measured against; one without training has each task scored before it is learned.
        References: RunScores[]
    }

/// Reads and checks what settings name.
[<RequireQualifiedAccess>]
module Plan =

    let leaves: Leaves<Plan> = fun plan -> VisionTransformer.leaves plan.Backbone

    /// natural, seed1993 or an order file.
    let classOrder (text: string) : ClassOrder =
        match text with
        | "natural" -> ClassOrder.Natural
        | "seed1993" -> ClassOrder.Seed1993
        | path -> ClassOrder.readFile path

    /// The backbone options of the settings. Rejects a device that is absent.
    let backboneOptions (settings: RunSettings) : BackboneOptions =
        {
            Heads = settings.Heads
            ImageSize = settings.ImageSize
            NormEpsilon = settings.NormEpsilon
            Precision = settings.Precision
            Device = Device.parse settings.Device
            CheckpointActivations = settings.CheckpointActivations
        }

    /// The learner that settings name, over a backbone, which it borrows. Rejects settings that do not fit it.
    let learnerOver (backbone: VisionTransformer) (settings: RunSettings) : Learner =
        Learner.create
            backbone
            (settings.ChosenMethod.Create backbone settings.Method)
            (Heads.find settings.Head)
            (Embedding.named settings.Embedding backbone)

    // All classes are one task for the upper bound.
    let private streamOf order (settings: RunSettings) dataset : TaskStream =
        if settings.ChosenMethod.Info.Joint then
            TaskStream.create dataset order 1 None
        else
            TaskStream.create dataset order settings.Tasks settings.InitialClasses

    let private loadFrom (checkClasses: int -> unit) (order: ClassOrder) (settings: RunSettings) : Plan =
        Settings.check settings

        let needed name value =
            match value with
            | Some path -> path
            | None -> Errors.reject name "must be given" "none" $"set {name}"

        let options = backboneOptions settings
        let references = settings.Reference |> List.map Reference.read |> Array.ofList

        let dataset =
            Datasets.loadWith (Settings.reading settings) settings.Data (needed "data-path" settings.DataPath)

        checkClasses dataset.ClassNames.Length
        let stream = streamOf order settings dataset

        let backboneFile = needed "backbone" settings.Backbone
        let backbone = Weights.load options backboneFile

        try
            learnerOver backbone settings |> ignore // rejects what does not fit the backbone

            {
                Settings = settings
                Stream = stream
                Backbone = backbone
                BackboneSha256 = DataFile.sha256 backboneFile
                References = references
            }
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

    /// `load` with a class order that is at hand.
    let loadWith (order: ClassOrder) (settings: RunSettings) : Plan = loadFrom ignore order settings

    /// `load` with a check of the number of classes, before they are cut into tasks.
    let loadChecking (checkClasses: int -> unit) (settings: RunSettings) : Plan =
        loadFrom checkClasses (classOrder settings.ClassOrder) settings

    /// Reads the data set and the backbone that settings name. Rejects settings out of range and files that do not
    /// fit; see `Datasets.load`, `TaskStream.create`, `Weights.load`, `Learner.create`. Owned by the caller.
    let load (settings: RunSettings) : Plan =
        loadWith (classOrder settings.ClassOrder) settings

    /// How images become batches for a backbone; the test transform where `augmentation` is None.
    let batchOptionsFor (settings: RunSettings) (backbone: VisionTransformer) augmentation : BatchOptions =
        let struct (low, high) = settings.InputRange

        {
            Format =
                {
                    Size = backbone.ImageSize
                    Channels = backbone.Channels
                    Low = low
                    High = high
                }
            BatchSize = settings.Batch
            Augmentation = augmentation
            Cropping =
                {
                    Scale = settings.CropScale
                    Ratio = settings.CropRatio
                    TestResize = settings.TestResize
                }
            Device = backbone.Device
            Dtype = Precision.compute backbone.Precision
        }

    /// How this plan's images become batches; the test transform where `augmentation` is None.
    let batchOptions (plan: Plan) (augmentation: Augmentation) : BatchOptions =
        batchOptionsFor plan.Settings plan.Backbone augmentation

    /// The key of an epoch's shuffling and augmentation under a run's root key; epoch -1 is the observation.
    let epochKey (settings: RunSettings) (root: RandomKey) (task: LearningTask) (epoch: int) : RandomKey =
        match settings.Seeding with
        | Seeding.EveryEpoch -> Rng.ofSeed (settings.Seed + int64 epoch) |> Rng.fold RandomBranch.Data
        | Seeding.Once -> ImageTask.passKey root task epoch

    /// The learner that the plan's settings name; borrows the plan's backbone.
    let learner (plan: Plan) : Learner = learnerOver plan.Backbone plan.Settings

    /// The learning rates of an epoch.
    let rates (settings: RunSettings) (epoch: int) : Rates =
        let rate baseRate =
            Schedule.cosine baseRate settings.ScheduleLength epoch

        {
            Network = rate settings.Method.LearningRate
            Classifier = rate settings.Method.HeadLearningRate
        }

    /// How tasks of this many epochs are learned over a backbone.
    let learnOptions (settings: RunSettings) (backbone: VisionTransformer) (epochs: int) : LearnOptions =
        {
            Epochs = epochs
            Rates = rates settings
            Batch = batchOptionsFor settings backbone settings.Augmentation
            AugmentLast = settings.PrototypeTransform = PrototypeTransform.Train
            PassKey = epochKey settings
        }

    /// What a task of the plan is learned from.
    let taskContext
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
            (learnOptions plan.Settings plan.Backbone (plan.Settings.EpochsOf task))
            set
            (TaskStream.trainIndices plan.Stream task)
            names
            task
            state
            clock
