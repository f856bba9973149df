/// A whole task on the meta device, where tensors have shapes but no numbers: an operation that meets a tensor of
/// another device fails there, so that a passing run holds no tensor made in the wrong place.
module LoRASub.Tests.MetaTests

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private shape: BackboneShape =
    {
        Width = 8
        Depth = 2
        Heads = 2
        PatchSize = 4
        ImageSize = 8
        Channels = 3
        MlpRatio = 2.0
        QkvBias = true
    }

let private onMetaDevice (vit: VisionTransformer) : VisionTransformer =
    let linear (l: Linear) : Linear =
        {
            Weight = onMeta l.Weight
            Bias = Option.map onMeta l.Bias
        }

    let norm (n: LayerNorm) =
        { n with
            Weight = onMeta n.Weight
            Bias = onMeta n.Bias
        }

    let block (b: Block) =
        {
            Norm1 = norm b.Norm1
            Qkv = linear b.Qkv
            Projection = linear b.Projection
            Norm2 = norm b.Norm2
            Fc1 = linear b.Fc1
            Fc2 = linear b.Fc2
        }

    { vit with
        PatchEmbedding = linear vit.PatchEmbedding
        ClassToken = onMeta vit.ClassToken
        Positions = onMeta vit.Positions
        Blocks = Array.map block vit.Blocks
        Norm = norm vit.Norm
    }

let private backbone precision =
    let options =
        {
            Heads = None
            ImageSize = None
            NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
            Precision = precision
            Device = torch.CPU
            CheckpointActivations = false
        }

    onMetaDevice (Weights.random options shape (Rng.ofSeed 1L))

let private everywhere (leaves: torch.Tensor seq) =
    for leaf in leaves do
        Expect.equal leaf.device.``type`` DeviceType.META "device of a leaf"

let private wholeTask precision (variant: Variant) =
    Scope.run (fun () ->
        let vit = backbone precision
        let master = Precision.master precision
        let settings = (Preset.cifar100 variant).Method
        let method = LoRASubDrs.method' vit { settings with Rank = 2 }

        let batch: Batch =
            {
                Images = torch.zeros ([| 4L; 3L; 8L; 8L |], dtype = master, device = torch.META)
                Labels = torch.zeros ([| 4L |], dtype = torch.int64, device = torch.META)
            }

        // a state with classes, as after a first task: its means would need numbers
        let state =
            { method.Start(Rng.ofSeed 2L) with
                Prototypes = torch.ones ([| 2L; 8L |], dtype = master, device = torch.META)
            }

        let task =
            {
                Index = 1
                FirstClass = 2
                Classes = [| 2; 3 |]
            }

        let observing = method.BeginTask (Rng.ofSeed 3L) task state |> method.Observe batch
        everywhere ((method.Observing task state).Leaves observing)

        // eigenvectors need numbers as well: projections of the right shape stand in
        let training =
            let free =
                LoRASubDrs.method'
                    vit
                    { settings with
                        Rank = 2
                        Projection = false
                    }

            let projection: Projection =
                {
                    Matrix = torch.eye (8L, dtype = master, device = torch.META)
                    Basis = torch.eye (8L, dtype = master, device = torch.META)
                    Spectrum = torch.ones ([| 8L |], dtype = master, device = torch.META)
                    Energy = 1.0
                    Condition = 1.0
                }

            { free.Prepare observing with
                Projections = Array.create 2 projection
            }

        let rates = { Network = 1e-3; Classifier = 1e-3 }
        let struct (next, report) = method.Update rates batch training
        everywhere ((method.Training task state).Leaves next)
        everywhere (StepReport.leaves report)
        let merged = method.Merge next
        everywhere ((method.State).Leaves merged)
        let adapters = method.Adapters merged
        let features = VisionTransformer.features adapters vit batch.Images
        let consolidated = method.Consolidate batch features merged
        everywhere (method.State.Leaves consolidated)
        expectMeta [ 4L ] (Scorer.best ((NearestMean.ofMeans state.Prototypes).Score features)))

[<Tests>]
let tests =
    testList
        "Meta device"
        [
            for precision in [ Precision.Float32; Precision.BFloat16; Precision.Float64 ] do
                for variant in [ Variant.LibContinual; Variant.Official ] do
                    testCase $"observe, update, merge and predict, {variant}, {precision}" (fun () ->
                        wholeTask precision variant)
        ]
