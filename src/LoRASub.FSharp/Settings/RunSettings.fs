namespace LoRASub.Settings

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Measure

/// The two published codes, whose defaults differ (see `Preset`).
[<RequireQualifiedAccess>]
type Variant =
    | LibContinual
    | Official

/// How training images are prepared for the prototypes, which average their features.
[<RequireQualifiedAccess>]
type PrototypeTransform =
    /// Augmented, as in training.
    | Train
    /// As at test time.
    | Test

/// When the random numbers for shuffling and augmentation restart.
[<RequireQualifiedAccess>]
type Seeding =
    /// From seed + epoch at every epoch, the same in every task (LibContinual).
    | EveryEpoch
    /// Once per run (the authors' code).
    | Once

/// Everything that decides a run's numbers: the same settings give the same results on one machine and thread count.
type RunSettings =
    {
        Variant: Variant
        /// Name of a data set; see `Datasets.names`.
        Data: string
        DataPath: string option
        /// A file of weights (`Weights.load`), or the name of a downloaded backbone (`Backbones.resolve`).
        Backbone: string option
        Tasks: int
        /// Classes of the first task, where it differs from the later ones.
        InitialClasses: int option
        /// natural, seed1993 or an order file.
        ClassOrder: string
        Epochs: int
        /// Epochs of the first task, where they differ.
        InitialEpochs: int option
        /// K of the learning rate's schedule, the same in every task; None: the epochs of the later tasks.
        ScheduleEpochs: int option
        Batch: int
        /// Name of a method; see `Methods.names`.
        MethodName: string
        /// If false, the frozen method runs, whatever the name.
        Training: bool
        Method: LoRASubSettings
        /// Name of a head; see `Heads.find`.
        Head: string
        /// Name of an embedding; see `Embedding.named`.
        Embedding: string
        /// More heads to score in the same passes: HEAD, or HEAD@EMBEDDING.
        OtherHeads: string list
        /// Whether heads that can be transported follow a network that moves.
        Transport: bool
        /// Also score heads computed again from the training images of old tasks: a diagnosis.
        Recompute: bool
        /// Share of the training images that stands in for the test images.
        Validate: float option
        /// The first test images of each class, to score before the last task. None: all. Without drift, which needs all.
        InterimImages: int option
        /// Attention heads of the network.
        Heads: int option
        ImageSize: int option
        NormEpsilon: NormEpsilon
        /// Black and white as the network sees them.
        InputRange: struct (float * float)
        Augmentation: Augmentation
        /// Smallest and largest share of the image's area in a random crop.
        CropScale: struct (float * float)
        /// Smallest and largest width / height of a random crop.
        CropRatio: struct (float * float)
        /// Pixels of the shorter side before the centre crop of test images, where larger than the network's.
        TestResize: int option
        /// Share of each class's images that train, for data sets published without a split.
        SplitRatio: float
        SplitSeed: int64
        /// Leave out image files that cannot be decoded instead of stopping.
        SkipBroken: bool
        PrototypeTransform: PrototypeTransform
        Seeding: Seeding
        Precision: Precision
        /// Compute activations again for the gradient instead of keeping them.
        CheckpointActivations: bool
        /// cpu or cuda:N.
        Device: string
        /// Kernels that repeat every bit on a CUDA device; those of a CPU always do.
        Deterministic: bool
        Threads: int option
        Seed: int64
        /// Tasks to learn before stopping early.
        StopAfter: int option
        /// Minutes between checkpoints within a task; 0 saves after each task only.
        CheckpointMinutes: float
        /// Measure how far class means move.
        Drift: bool
        /// Write TensorBoard's event files beside the results.
        TensorBoard: bool
        /// Folders of finished runs to measure forward transfer or intransigence against.
        Reference: string list
    }

    /// Whether the first task is still to decide if the network adapts.
    member this.IsUndecided = this.Training && this.MethodName = Methods.Auto

    /// The method that runs; until it is decided whether the network adapts, the one that adapts.
    member this.ChosenMethod: MethodRow =
        if not this.Training then Frozen.info.Name
        elif this.IsUndecided then FirstSession.info.Name
        else this.MethodName
        |> Methods.find

    /// Number of tasks and classes of the first one: all classes are one task for a joint method.
    member this.Split: struct (int * int option) =
        if this.ChosenMethod.Info.Joint then
            struct (1, None)
        else
            struct (this.Tasks, this.InitialClasses)

    /// <summary>The epochs of a task.</summary>
    /// <param name="task">The task; only its index counts.</param>
    /// <returns>0 where the method does not train.</returns>
    member this.EpochsOf(task: LearningTask) =
        if not this.ChosenMethod.Info.Trains then
            0
        else
            match this.InitialEpochs with
            | Some epochs when task.Index = 0 && not this.ChosenMethod.Info.Joint -> epochs
            | _ -> this.Epochs

    /// K of the learning rate's schedule.
    member this.ScheduleLength = defaultArg this.ScheduleEpochs this.Epochs

/// Published settings: the tables of docs/method.md, column by column.
[<RequireQualifiedAccess>]
module Preset =

    /// The head and embedding that are scored beside those of the published method.
    [<Literal>]
    let internal recommended = "cosine-lda:ratio@rich"

    /// <summary>CIFAR-100 in 10 tasks: 20 epochs, head rate 2e-3, margin 1, λ 0.05.</summary>
    /// <param name="variant">The published code whose defaults apply.</param>
    /// <returns>The settings, without data path and backbone.</returns>
    let cifar100 (variant: Variant) : RunSettings =
        let libcontinual = variant = Variant.LibContinual

        {
            Variant = variant
            Data = "cifar100"
            DataPath = None
            Backbone = None
            Tasks = 10
            InitialClasses = None
            ClassOrder = if libcontinual then "seed1993" else "natural"
            Epochs = 20
            InitialEpochs = None
            ScheduleEpochs = None
            Batch = 128
            MethodName = LoRASubDrs.info.Name
            Training = true
            Method =
                {
                    Rank = 10
                    BInit = if libcontinual then BInit.Zeros else BInit.Sparse
                    LearningRate = 5e-4
                    HeadLearningRate = 2e-3
                    Adam = Adam.defaults
                    Energy = 0.99
                    UpdateScale = UpdateScale.Frobenius
                    Projection = true
                    Subtraction = true
                    Triplet = true
                    Margin = 1.0
                    TripletWeight = 0.05
                    NormOrder = 2.0
                }
            Head = NearestMean.head.Info.Name
            Embedding = Embedding.names.Head
            OtherHeads = [ recommended ]
            Transport = true
            Recompute = false
            Validate = None
            InterimImages = None
            Heads = None
            ImageSize = None
            NormEpsilon =
                {
                    Blocks = if libcontinual then 1e-5 else 1e-6
                    Final = 1e-6
                }
            InputRange = struct (0.0, 1.0)
            Augmentation = Augmentation.CropFlip
            CropScale = struct (0.08, 1.0)
            CropRatio = struct (3.0 / 4.0, 4.0 / 3.0)
            TestResize = None
            SplitRatio = 0.8
            SplitSeed = 1993L
            SkipBroken = false
            PrototypeTransform =
                if libcontinual then
                    PrototypeTransform.Train
                else
                    PrototypeTransform.Test
            Seeding = if libcontinual then Seeding.EveryEpoch else Seeding.Once
            Precision = Precision.Float32
            CheckpointActivations = false
            Device = "cpu"
            Deterministic = false
            Threads = None
            Seed = 1993L
            StopAfter = None
            CheckpointMinutes = 10.0
            Drift = true
            TensorBoard = false
            Reference = []
        }

    /// <summary>ImageNet-R in 10 tasks: 40 epochs in the first task, 50 later, head rate 5e-4, margin 2, λ
    /// 0.2.</summary>
    /// <param name="variant">The published code whose defaults apply.</param>
    /// <returns>The settings, without data path and backbone.</returns>
    let imageNetR (variant: Variant) : RunSettings =
        let cifar = cifar100 variant

        { cifar with
            Data = "imagenet-r"
            Epochs = 50
            InitialEpochs = Some 40
            TestResize = Some 256
            Method =
                { cifar.Method with
                    HeadLearningRate = 5e-4
                    Margin = 2.0
                    TripletWeight = 0.2
                }
        }

    /// <summary>The command line's defaults for small data sets: CIFAR-100's settings in 2 tasks of 4 epochs, about a
    /// minute on two cores with the bundled subset of Fashion-MNIST. Flips only: crops down to 8% of an image, made
    /// for photographs, cost 2 points there.</summary>
    /// <param name="variant">The published code whose defaults apply.</param>
    /// <returns>The settings, without data path and backbone.</returns>
    let quick (variant: Variant) : RunSettings =
        { cifar100 variant with
            Data = "fashion-mnist"
            Tasks = 2
            Epochs = 4
            Augmentation = Augmentation.Flip
        }

    /// <summary>DomainNet's six domains, one per task; otherwise as `quick`.</summary>
    /// <param name="variant">The published code whose defaults apply.</param>
    /// <returns>The settings, without data path and backbone.</returns>
    let domains (variant: Variant) : RunSettings =
        { quick variant with
            Data = "domainnet-domains"
            Tasks = 6
            ClassOrder = "natural"
            Augmentation = Augmentation.CropFlip
        }

    /// Every preset by name: that of the data set for which it was published, or `quick`.
    let all: (string * (Variant -> RunSettings)) list =
        [
            "quick", quick
            "cifar100", cifar100
            "imagenet-r", imageNetR
            "domainnet-domains", domains
        ]

    /// <summary>The preset of a data set.</summary>
    /// <param name="data">Name of a data set; see `Datasets.names`.</param>
    /// <returns>The name of the preset and the preset; `quick` for a data set without a published one.</returns>
    let ofData (data: string) : string * (Variant -> RunSettings) =
        all |> List.tryFind (fst >> (=) data) |> Option.defaultValue all.Head

    /// Settings under a name, to be changed by others: on the command line `--preset NAME`.
    let named: (string * string * (string * string) list) list =
        let only head embedding =
            [
                "method", Methods.Auto
                "epochs", "5"
                "head", head
                "embedding", embedding
                "heads", "none"
            ]

        [
            "recommended",
            "cosine LDA on how tokens of all blocks vary over the image; adapts to the first task if that helps",
            only "cosine-lda:ratio" "rich"
            "small", "the same on the last four blocks", only "cosine-lda:ratio" "small-texture"
            "large",
            "the same on more of the tokens, up to 10,500 columns, and on two views of each image",
            only "cosine-lda:ratio" "richest+shift"
            "libcontinual", "LoRA-Sub-DRS as in LibContinual", [ "variant", "libcontinual"; "heads", "none" ]
            "official", "LoRA-Sub-DRS as in the authors' code", [ "variant", "official"; "heads", "none" ]
        ]

    /// <summary>The settings of a preset of `named`.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>(setting, text).</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no preset of this name.</exception>
    let pairs (name: string) : (string * string) list =
        match named |> List.tryFind (fun (known, _, _) -> known = name) with
        | Some(_, _, pairs) -> pairs
        | None ->
            let known = named |> List.map (fun (known, _, _) -> known)
            let rule = "must be one of " + String.concat ", " known
            Errors.reject "preset" rule $"'{name}'" (Errors.didYouMean known name)
