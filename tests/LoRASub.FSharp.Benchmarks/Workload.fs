/// Networks and inputs that are measured.
module LoRASub.Benchmarks.Workload

open System
open System.IO
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Settings
open LoRASub.Fluent
open TorchSharp

let private options (device: torch.Device) (precision: Precision) : BackboneOptions =
    {
        Heads = None
        ImageSize = None
        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
        Precision = precision
        Device = device
        CheckpointActivations = false
    }

/// The file of the small backbone that comes with the program.
let bundledFile (root: string) =
    Path.Combine(root, "src", "LoRASub.FSharp.Cli", "assets", "vit_micro_patch4_32.safetensors")

/// The small backbone that comes with the program: width 192, 6 blocks, 65 tokens. Owned by the caller.
let bundledOn (device: torch.Device) (root: string) (precision: Precision) : VisionTransformer =
    Weights.load (options device precision) (bundledFile root)

/// `bundledOn` the CPU.
let bundled (root: string) (precision: Precision) : VisionTransformer = bundledOn torch.CPU root precision

/// ViT-B/16 at 224 pixels: width 768, 12 blocks, 197 tokens.
let vitBaseShape: BackboneShape =
    {
        Width = 768
        Depth = 12
        Heads = 12
        PatchSize = 16
        ImageSize = 224
        Channels = 3
        MlpRatio = 4.0
        QkvBias = true
    }

/// Random weights of a shape. Owned by the caller.
let randomOn (device: torch.Device) (shape: BackboneShape) (precision: Precision) : VisionTransformer =
    Weights.random (options device precision) shape (Rng.ofSeed 1L)

/// `randomOn` the CPU.
let random (shape: BackboneShape) (precision: Precision) : VisionTransformer =
    randomOn torch.CPU shape precision

let private tinyShape: BackboneShape =
    {
        Width = 32
        Depth = 3
        Heads = 2
        PatchSize = 4
        ImageSize = 16
        Channels = 3
        MlpRatio = 2.0
        QkvBias = true
    }

/// For checks: a network of milliseconds, with weights large enough for images to show. Owned by the caller.
let tiny () : VisionTransformer =
    Scope.keep VisionTransformer.leaves (fun () ->
        Weights.randomTensors tinyShape torch.float32 (Rng.ofSeed 2L)
        |> Map.map (fun name t ->
            if name.Contains "norm" then
                t
            else
                t.mul (Scalar.op_Implicit 8.0))
        |> Weights.ofTensors
            { options torch.CPU Precision.Float32 with
                Heads = Some tinyShape.Heads
            }
            "tiny backbone"
            Map.empty)

/// The published choices for CIFAR-100.
let settings: LoRASubSettings = (Preset.cifar100 Variant.LibContinual).Method

let key (number: int64) : RandomKey = Rng.fold number (Rng.ofSeed 3L)

/// `n` random images of a network's size, in [0, 1), labelled first, first + 1, … by turns. Owned by the caller.
let batch (vit: VisionTransformer) (n: int) (first: int) (classes: int) (number: int64) : Batch =
    let side = int64 vit.ImageSize
    let shape = [| int64 n; int64 vit.Channels; side; side |]

    Scope.keep Batch.leaves (fun () ->
        {
            Images = Rng.uniform 0.0 1.0 shape (Precision.master vit.Precision) vit.Device (key number)
            Labels = torch.tensor(Array.init n (fun i -> int64 (first + i % classes))).``to`` vit.Device
        })

/// Random unit rows [n, d] in float32. Owned by the caller.
let unitRows (n: int) (width: int) (number: int64) : torch.Tensor =
    Scope.noGrad Leaves.tensor (fun () ->
        let rows =
            Rng.normal [| int64 n; int64 width |] torch.float32 torch.CPU (key number)

        rows.div (rows.norm (1, keepdim = true)))

let private method' vit = LoRASubDrs.method' vit settings

/// The state of a method that has seen so many classes, with random prototypes and no deltas. Owned by the caller.
let stateOf (vit: VisionTransformer) (classes: int) : LoRASubDrs.State =
    Scope.noGrad (method' vit).State.Leaves (fun () ->
        let start = LoRASubDrs.start vit

        if classes = 0 then
            start
        else
            let shape = [| int64 classes; vit.Width |]
            let means = Rng.normal shape (Precision.master vit.Precision) vit.Device (key 1L)

            { start with Prototypes = means })

/// The task after so many classes: the first where there are none.
let taskAfter (known: int) (classes: int) : LearningTask =
    {
        Index = (if known = 0 then 0 else 1)
        FirstClass = known
        Classes = Array.init classes ((+) known)
    }

/// A task ready to train, observed on one batch where it is not the first. Owned by the caller; borrows the state.
let training vit settings (task: LearningTask) (state: LoRASubDrs.State) (seen: Batch) =
    let method = LoRASubDrs.method' vit settings

    Scope.keep (method.Training task state).Leaves (fun () ->
        let begun = method.BeginTask (key 9L) task state

        (if method.Observes task then
             method.Observe seen begun
         else
             begun)
        |> method.Prepare)

/// The rates of the first epoch.
let rates: Rates =
    {
        Network = settings.LearningRate
        Classifier = settings.HeadLearningRate
    }

/// A second moment [width, width] of twice as many rows whose variance falls by 4% from one direction to the next, in a
/// random frame. Owned by the caller.
let decayingMoment (width: int) (number: int64) : SecondMoment =
    Scope.noGrad SecondMoment.leaves (fun () ->
        let random rows child =
            Rng.normal [| int64 rows; int64 width |] torch.float32 torch.CPU (Rng.fold child (key number))

        let struct (frame, _) = torch.linalg.qr (random width 0L)

        let scales =
            torch.tensor (Array.init width (fun i -> float32 (Math.Pow(0.98, float i))))

        (random (2 * width) 1L).mul(scales).mm frame
        |> SecondMoment.ofInputs torch.float32)
