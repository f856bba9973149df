namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// The progress of learning, for a progress bar.
[<Struct>]
type LearningProgress =
    {
        /// observe, train or prototypes.
        Phase: string
        /// Steps done in this phase.
        Done: int
        /// Steps of this phase.
        Total: int
        /// Mean loss of the epoch so far; NaN where it was not read.
        Loss: float
    }

/// Settings of a `ContinualClassifier`. Learning rates, rank, margin and weights default to the published ones of
/// CIFAR-100; the input range and epsilon to those of most timm checkpoints.
type ClassifierOptions() =
    /// Passes over the images of each new group of classes.
    member val Epochs = 5 with get, set
    /// Passes over the images of each new group of classes.
    member val BatchSize = 128 with get, set
    /// Passes over the images of each new group of classes.
    member val Rank = 10 with get, set
    /// Passes over the images of each new group of classes.
    member val LearningRate = 5e-4 with get, set
    /// Passes over the images of each new group of classes.
    member val HeadLearningRate = 2e-3 with get, set
    /// Passes over the images of each new group of classes.
    member val Margin = 1.0 with get, set
    /// Passes over the images of each new group of classes.
    member val TripletWeight = 0.05 with get, set
    /// Passes over the images of each new group of classes.
    member val Energy = 0.99 with get, set
    /// Passes over the images of each new group of classes.
    member val Augment = true with get, set
    /// Passes over the images of each new group of classes.
    member val InputLow = -1.0 with get, set
    /// Passes over the images of each new group of classes.
    member val InputHigh = 1.0 with get, set
    /// Passes over the images of each new group of classes.
    member val NormEpsilon = 1e-6 with get, set
    /// Passes over the images of each new group of classes.
    member val Heads = 0 with get, set
    /// Passes over the images of each new group of classes.
    member val ImageSize = 0 with get, set
    /// Passes over the images of each new group of classes.
    member val Precision = "float32" with get, set
    /// Passes over the images of each new group of classes.
    member val CheckpointActivations = false with get, set
    /// Passes over the images of each new group of classes.
    member val Device = "cpu" with get, set
    /// Passes over the images of each new group of classes.
    member val Seed = 0L with get, set
    /// Passes over the images of each new group of classes.
    member val Progress: Action<LearningProgress> = null with get, set

    member internal this.ToSettings(backbone: string) : RunSettings =
        let positive n = if n > 0 then Some n else None
        let preset = Preset.cifar100 Variant.LibContinual

        { preset with
            Backbone = Some backbone
            Epochs = this.Epochs
            Batch = this.BatchSize
            Heads = positive this.Heads
            ImageSize = positive this.ImageSize
            NormEpsilon =
                {
                    Blocks = this.NormEpsilon
                    Final = this.NormEpsilon
                }
            InputRange = struct (this.InputLow, this.InputHigh)
            Augmentation =
                if this.Augment then
                    Augmentation.CropFlip
                else
                    Augmentation.None
            PrototypeTransform = PrototypeTransform.Test
            Seeding = Seeding.Once
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
