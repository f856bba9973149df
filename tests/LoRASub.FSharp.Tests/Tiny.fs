/// Experiments of milliseconds: networks of random weights and data sets of coloured squares.
module LoRASub.Tests.Tiny

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Tests.Generators
open TorchSharp

let shape (width: int) (depth: int) : BackboneShape =
    {
        Width = width
        Depth = depth
        Heads = 2
        PatchSize = 4
        ImageSize = 8
        Channels = 3
        MlpRatio = 2.0
        QkvBias = true
    }

let backboneOptions (precision: Precision) : BackboneOptions =
    {
        Heads = Some 2
        ImageSize = None
        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
        Precision = precision
        Device = device
        CheckpointActivations = false
    }

/// Random tensors in timm's names, large enough for images and training to show.
let tensors (width: int) (depth: int) (seed: int) : Map<string, torch.Tensor> =
    Scope.noGrad _.Values (fun () ->
        Weights.randomTensors (shape width depth) torch.ScalarType.Float64 (Rng.ofSeed (int64 seed))
        |> Map.map (fun name t ->
            if name.Contains "norm" then
                t
            else
                t.mul (Scalar.op_Implicit 15.0)))

let vit (precision: Precision) width depth seed : VisionTransformer =
    Scope.keep VisionTransformer.leaves (fun () ->
        Weights.ofTensors (backboneOptions precision) "tiny backbone" Map.empty (tensors width depth seed))

/// A backbone file that tells its heads.
let writeBackbone (path: string) width depth seed =
    Scope.run (fun () -> Safetensors.write path (Map [ "heads", "2" ]) (Map.toSeq (tensors width depth seed)))

/// Images of 8 x 8: each class has colours of its own, each image noise of its own.
let pixels (seed: int) (labels: int[]) : byte[] =
    let noise = Random seed

    [|
        for label in labels do
            for channel in 0..2 do
                for position in 0..63 do
                    let quarter = (position / 32) * 2 + (position % 8) / 4
                    let colour = (label * 97 + channel * 61 + quarter * (31 + 17 * label)) % 216
                    byte (colour + 20 + noise.Next 41 - 20)
    |]

let images (source: string) (seed: int) (labels: int[]) : ImageSet =
    ImageSet.ofBytes source labels 3 8 8 (pixels seed labels)

/// Labels 0, 1, …, classes − 1, 0, 1, …
let labels (classes: int) (each: int) =
    Array.init (classes * each) (fun i -> i % classes)

/// `train` and `test` images of each class.
let dataset (classes: int) (train: int) (test: int) : Dataset =
    Dataset.create
        "tiny"
        (Array.init classes (fun c -> $"colour {c}"))
        (images "tiny training images" 1 (labels classes train))
        (images "tiny test images" 2 (labels classes test))

/// LibContinual's settings cut down: two tasks of two epochs, images as they are.
let settings: RunSettings =
    let quick = Preset.quick Variant.LibContinual

    { quick with
        Data = "tiny"
        Tasks = 2
        Epochs = 2
        Batch = 5
        Heads = Some 2
        OtherHeads = []
        Device = deviceName
        Augmentation = Augmentation.None
        Method =
            { quick.Method with
                Rank = 2
                LearningRate = 5e-3
                HeadLearningRate = 1e-2
                Energy = 0.9
            }
    }

let ofMethod (change: LoRASubSettings -> LoRASubSettings) (settings: RunSettings) =
    { settings with
        Method = change settings.Method
    }

let planWith (settings: RunSettings) (dataset: Dataset) (backbone: VisionTransformer) : Plan =
    {
        Settings = settings
        Stream = TaskStream.create dataset ClassOrder.Natural settings.Tasks settings.InitialClasses
        Backbone = backbone
        BackboneSha256 = ""
        References = [||]
    }

/// Four classes over a network of width 8 and 2 blocks.
let plan (settings: RunSettings) : Plan =
    planWith settings (dataset 4 4 3) (vit settings.Precision 8 2 7)

let learner (plan: Plan) : Learner = Plan.learner plan

/// A learner of a method with its types, over the nearest mean of the class token.
let learnerOf (plan: Plan) (method: Method<'S, 'O, 'T>) : Learner =
    Learner.create
        plan.Backbone
        (Method.hide method)
        (Head.hide NearestMean.head)
        (Embedding.output plan.Backbone)

/// The plan's method with its types.
let drs (plan: Plan) =
    LoRASubDrs.method' plan.Backbone plan.Settings.Method

let drsState (plan: Plan) (state: TaskState) : LoRASubDrs.State = Method.reveal (drs plan) state.Method

/// [c, d]: the means that the nearest-mean head predicts with.
let prototypes (state: TaskState) : torch.Tensor =
    Head.reveal NearestMean.head state.Head |> ClassSums.means string

let rates (plan: Plan) = Recipe.rates plan.Settings 0

/// A task's own key.
let taskKey (plan: Plan) (task: LearningTask) =
    Rng.ofSeed plan.Settings.Seed
    |> Rng.fold RandomBranch.Method
    |> Rng.fold (int64 task.Index)

let silent: RunEvent -> unit = ignore

let run (plan: Plan) : Outcome =
    Experiment.run (learner plan) plan silent

/// The state after the first task.
let learnFirst (learner: Learner) (plan: Plan) : TaskState =
    Scope.keep TaskState.leaves (fun () ->
        Experiment.learnTask
            learner
            plan
            (Learner.start learner (Rng.ofSeed plan.Settings.Seed))
            plan.Stream.Tasks[0])

let predict learner model images : torch.Tensor =
    Learner.predict learner model images |> Scorer.best

/// Every training batch of a task, in order.
let batches (plan: Plan) (task: int) : Batch[] =
    TaskStream.plainTrainBatches
        (Plan.batchOptions plan Augmentation.None)
        plan.Stream
        plan.Stream.Tasks[task]
    |> Array.map (fun load -> load ())

let stateNumbers (state: TaskState) : float[] =
    TaskState.leaves state |> Seq.map TestFiles.numbers |> Array.concat

/// As the same computation gives it again.
let sameState (what: string) (expected: TaskState) (actual: TaskState) =
    let written (state: TaskState) =
        [
            yield! Hidden.written state.Method
            for head in TaskState.heads state do
                yield! Hidden.written head
        ]

    Scope.run (fun () ->
        List.iter2
            (fun (name, e) (_, a) -> Check.repeated $"{what}, {name}" e a)
            (written expected)
            (written actual))

    Expecto.Expect.equal
        (actual.Finished, actual.Classes, actual.NextId, actual.Key)
        (expected.Finished, expected.Classes, expected.NextId, expected.Key)
        what

/// The record of a state as it would be saved.
let record (plan: Plan) (state: TaskState) : LearnerFormat.Record =
    LearnerRecord.create
        (learner plan)
        state
        plan.Stream.Order
        (Plan.batchOptions plan Augmentation.None).Format
        plan.Settings.NormEpsilon
        (String('0', 64))
        []

let save (folder: string) (plan: Plan) (state: TaskState) =
    LearnerFile.save folder (learner plan) (record plan state) state

let load (folder: string) (plan: Plan) : TaskState =
    Scope.keep TaskState.leaves (fun () -> LearnerFile.restore (learner plan) (LearnerFile.load folder))

/// Fashion-MNIST's four files with `train` and `test` grey images of 8 x 8 per class.
let writeFashion (folder: string) (train: int) (test: int) =
    for name, each, seed in [ "train", train, 3; "t10k", test, 4 ] do
        let labels = labels 10 each

        let grey =
            pixels seed labels |> Array.chunkBySize 192 |> Array.collect (Array.take 64)

        TestFiles.write folder $"{name}-images-idx3-ubyte" (TestFiles.idx 2051 [ labels.Length; 8; 8 ] grey)

        TestFiles.write
            folder
            $"{name}-labels-idx1-ubyte"
            (TestFiles.idx 2049 [ labels.Length ] (Array.map byte labels))

/// A run on files: settings that name a backbone and a data set in `folder`.
let onFiles (folder: string) : RunSettings =
    let backbone = Path.Combine(folder, "backbone.safetensors")
    writeBackbone backbone 8 2 7
    writeFashion folder 3 3

    { settings with
        Data = "fashion-mnist"
        DataPath = Some folder
        Backbone = Some backbone
        Heads = None
        ClassOrder = "seed1993"
        Epochs = 1
        Batch = 15
    }
