namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Files
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// What settings mean for a backbone: its options, the learner, its batches, keys and rates.
[<RequireQualifiedAccess>]
module internal Recipe =

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

    /// The settings with what the backbone's file states of its input range and norm epsilon, where the caller gave none.
    /// `isGiven` knows the names of the settings given. Rejects a file or card that is damaged.
    let fitted (isGiven: string -> bool) (settings: RunSettings) : RunSettings =
        let card =
            Weights.card (TensorFormats.header (Backbones.find settings.Backbone.Value))

        let stated name (value: 'T option) now =
            if isGiven name then now else defaultArg value now

        { settings with
            InputRange = stated "input-range" (WeightsCard.range card) settings.InputRange
            NormEpsilon = stated "norm-epsilon" (card.NormEpsilon |> Option.map _.Value) settings.NormEpsilon
        }

    /// As `Backbones.identified`.
    let identified (backbone: string) : struct (string * string) = Backbones.identified backbone

    /// The network of a file, owned by the caller. Rejects what `Settings.check` and `Weights.load` reject.
    let loadBackbone (settings: RunSettings) (file: string) : VisionTransformer =
        Settings.check settings
        let options = backboneOptions settings
        Kernels.choose options.Device options.Precision settings.Deterministic
        Weights.load options file

    /// The network of a path or a name, and its file's SHA-256. Owned by the caller. Rejects what `Backbones.identified` and
    /// `loadBackbone` reject.
    let openBackbone (settings: RunSettings) (backbone: string) : struct (VisionTransformer * string) =
        let struct (file, sha256) = identified backbone
        struct (loadBackbone settings file, sha256)

    /// The learner that settings name, over a backbone, which it borrows. Rejects settings that do not fit it.
    let learner (backbone: VisionTransformer) (settings: RunSettings) : Learner =
        let readout text =
            Settings.readout settings.Embedding text |> Readout.named backbone

        let first = readout settings.Head

        // each head once, though it be named twice
        let others =
            settings.OtherHeads
            |> List.map readout
            |> List.distinctBy _.Label
            |> List.filter (fun other -> other.Label <> first.Label)

        let struct (tasks, _) = settings.Split

        let learner =
            Learner.ofReadout backbone (settings.ChosenMethod.Create backbone tasks settings.Method) first
            |> Learner.withOthers (Array.ofList others)

        { learner with
            Transport = settings.Transport
        }

    /// How images become batches for a backbone; the test transform where `augmentation` is None.
    let batchOptions (settings: RunSettings) (backbone: VisionTransformer) augmentation : BatchOptions =
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

    /// `batchOptions` by the test transform.
    let testOptions (settings: RunSettings) (backbone: VisionTransformer) : BatchOptions =
        batchOptions settings backbone Augmentation.None

    /// The key of an epoch's shuffling and augmentation under a run's root key; epoch -1 is the observation.
    let epochKey (settings: RunSettings) (root: RandomKey) (task: LearningTask) (epoch: int) : RandomKey =
        match settings.Seeding with
        | Seeding.EveryEpoch -> Rng.ofSeed (settings.Seed + int64 epoch) |> Rng.fold RandomBranch.Data
        | Seeding.Once -> ImageTask.passKey root task epoch

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
            Batch = batchOptions settings backbone settings.Augmentation
            AugmentLast = settings.PrototypeTransform = PrototypeTransform.Train
            PassKey = epochKey settings
        }

    /// The first epoch of a task that holds the schedule's last rate, if there is one.
    let heldFrom (settings: RunSettings) (epochs: int) : int option =
        Schedule.heldFrom settings.ScheduleLength epochs
