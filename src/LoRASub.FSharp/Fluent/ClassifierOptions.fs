namespace LoRASub.Fluent

open System
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run

// C# can hand in null where F# cannot.
module internal Given =
    let value (name: string) (value: 'T) =
        if isNull (box value) then
            Errors.reject name "must be given" "null" ""

    let text (name: string) (text: string) =
        value name text

        if String.IsNullOrWhiteSpace text then
            Errors.reject name "must be given" "an empty text" ""

/// The progress of learning and of evaluation, for a progress bar.
[<Struct>]
type LearningProgress =
    {
        /// observe, train, prototypes or predict.
        Phase: string
        /// Steps done in this phase; images of an evaluation.
        Done: int
        /// Steps of this phase; images of an evaluation.
        Total: int
        /// Mean loss of the epoch so far; NaN where it was not read.
        Loss: float
    }

    static member internal Of(step: Step) : LearningProgress =
        {
            Phase = Phase.name step.Phase
            Done = step.Done
            Total = step.Steps
            Loss = defaultArg step.Loss nan
        }

/// Settings of a `ContinualClassifier`. Learning rates, rank, margin and weights default to the published ones of
/// CIFAR-100; the input range and epsilon to those of most timm checkpoints.
type ClassifierOptions() =
    /// Method, head and embedding: "recommended", "small", "large", "libcontinual" or "official"; see `Preset.named`. The
    /// other options here override what a preset says of them.
    member val Preset = "recommended" with get, set
    /// Passes over the images of each new group of classes.
    member val Epochs = 5 with get, set
    /// The share of each new class's images that calibrates probabilities, in [0, 1). The classifier learns them afterwards.
    member val HoldOut = Calibration.usualHoldOut with get, set
    /// The share of images of known classes that may be called unknown, in [0, 1). 0 calls none unknown.
    member val FalseAlarms = Calibration.usualFalseAlarms with get, set
    /// Images per step.
    member val BatchSize = 128 with get, set
    /// Rank of the low-rank pairs.
    member val Rank = 10 with get, set
    /// Base learning rate of the low-rank pairs.
    member val LearningRate = 5e-4 with get, set
    /// Base learning rate of the linear classifier that each group of classes is trained with.
    member val HeadLearningRate = 2e-3 with get, set
    /// Margin of the triplet loss.
    member val Margin = 1.0 with get, set
    /// Weight of the triplet loss.
    member val TripletWeight = 0.05 with get, set
    /// Share of the observed energy that the retained subspace captures, in (0, 1].
    member val Energy = 0.99 with get, set
    /// Random crops and flips of the training images; switch off for digits and text.
    member val Augment = true with get, set
    /// The value of a black pixel in the backbone's training. Null: as the weights state it, or else -1.
    member val InputLow = Nullable<float>() with get, set
    /// The value of a white pixel in the backbone's training. Null: as the weights state it, or else 1.
    member val InputHigh = Nullable<float>() with get, set
    /// Layer-norm epsilon that the backbone was trained with. Null: as the weights state it, or else 1e-6.
    member val NormEpsilon = Nullable<float>() with get, set
    /// Attention heads; 0: from the file or its width.
    member val Heads = 0 with get, set
    /// Height and width of the backbone's images in pixels; 0: from its positions.
    member val ImageSize = 0 with get, set
    /// "float32", "tf32", "bfloat16" or "float64".
    member val Precision = "float32" with get, set
    /// Recompute activations for the gradient instead of keeping them: slower, but uses less memory.
    member val CheckpointActivations = false with get, set
    /// "cpu" or "cuda:N".
    member val Device = "cpu" with get, set
    /// The same seed, options and images give the same classifier.
    member val Seed = 0L with get, set
    /// Called with the progress of learning, on the thread that learns.
    member val Progress: Action<LearningProgress> = null with get, set

    /// Whether a setting that the weights may state was given.
    member internal this.IsGiven(name: string) : bool =
        match name with
        | "input-range" -> this.InputLow.HasValue || this.InputHigh.HasValue
        | "norm-epsilon" -> this.NormEpsilon.HasValue
        | _ -> true

    member internal this.ToSettings(backbone: string) : RunSettings =
        Given.text "Preset" this.Preset
        Given.text "Precision" this.Precision
        Given.text "Device" this.Device
        Calibration.requireShare "HoldOut" this.HoldOut
        Calibration.requireShare "FalseAlarms" this.FalseAlarms
        let positive n = if n > 0 then Some n else None

        let preset = KeptLearner.settings this.Preset
        let struct (low, high) = preset.InputRange
        let value (given: Nullable<float>) otherwise = given.GetValueOrDefault otherwise
        let epsilon = preset.NormEpsilon

        { preset with
            Backbone = Some(Backbones.find backbone)
            Epochs = this.Epochs
            Batch = this.BatchSize
            Heads = positive this.Heads
            ImageSize = positive this.ImageSize
            NormEpsilon =
                {
                    Blocks = value this.NormEpsilon epsilon.Blocks
                    Final = value this.NormEpsilon epsilon.Final
                }
            InputRange = struct (value this.InputLow low, value this.InputHigh high)
            Augmentation =
                if this.Augment then
                    Augmentation.CropFlip
                else
                    Augmentation.None
            CheckpointActivations = this.CheckpointActivations
            Device = this.Device
            Seed = this.Seed
            Method =
                { preset.Method with
                    Rank = this.Rank
                    LearningRate = this.LearningRate
                    HeadLearningRate = this.HeadLearningRate
                    Energy = this.Energy
                    Margin = this.Margin
                    TripletWeight = this.TripletWeight
                }
        }
        |> Settings.set "precision" this.Precision
