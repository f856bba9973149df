// How far the first task's class means move while a second task is learned, as published and with parts of the method
// disabled. Run after a build: dotnet fsi scripts/ablation.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open TorchSharp
open Load

let settings =
    let preset = Preset.quick Variant.LibContinual

    { preset with
        Epochs = 1
        Batch = 16
        PrototypeTransform = PrototypeTransform.Test
        // ten times the published rate, so that a few steps show an effect
        Method =
            { preset.Method with
                LearningRate = 5e-3
            }
    }

let plan = smallPlan 2 settings
let first, second = plan.Stream.Tasks[0], plan.Stream.Tasks[1]

let methods =
    [
        "as published", settings.Method
        "no subtraction",
        { settings.Method with
            Subtraction = false
        }
        "no projection",
        { settings.Method with
            Projection = false
        }
    ]

let learnerOf (settings: LoRASubSettings) =
    Learner.create
        plan.Backbone
        (Method.hide (LoRASubDrs.method' plan.Backbone settings))
        (Head.hide NearestMean.head)
        (Embedding.output plan.Backbone)

let learn settings (state: TaskState) task =
    Experiment.learnTask (learnerOf settings) plan state task

/// Mean feature of each of the first task's classes over its test images, [classes, d].
let classMeans (state: TaskState) : torch.Tensor =
    Scope.noGrad Leaves.tensor (fun () ->
        let model = Learner.deploy (learnerOf settings.Method) state
        let options = Plan.batchOptions plan Augmentation.None

        let zero =
            ClassSums.zero
                first.Classes.Length
                plan.Backbone.Width
                torch.ScalarType.Float32
                plan.Backbone.Device

        let add sums (load: BatchLoader) =
            let batch = load ()

            let features =
                VisionTransformer.features model.Networks.Adapted plan.Backbone batch.Images

            ClassSums.observe features batch.Labels sums

        TaskStream.testBatches options plan.Stream first
        |> Scope.fold ClassSums.leaves add zero
        |> ClassSums.means (fun c -> plan.Stream.Dataset.ClassNames[c]))

/// Euclidean distance between corresponding rows, mean over the rows.
let distance (left: torch.Tensor) (right: torch.Tensor) =
    Scope.run (fun () -> (left.sub right).norm(1).mean().item<single>())

// The first task is the same in all three, because nothing is projected yet. Each starts from this state.
let start = Learner.start (learnerOf settings.Method) (Rng.ofSeed settings.Seed)
let afterFirst = learn settings.Method start first
let before = classMeans afterFirst

let prototypes =
    Head.reveal NearestMean.head afterFirst.Head |> ClassSums.means string

printfn "%-16s %14s %24s" "" "means moved by" "distance to prototypes"
printfn "%-16s %14.4f %24.4f" "after task 0" 0.0 (distance before prototypes)

for name, method in methods do
    Scope.run (fun () ->
        // the next state outlives the call; this scope frees it
        let now = learn method afterFirst second |> classMeans
        printfn "%-16s %14.4f %24.4f" name (distance now before) (distance now prototypes))

Scope.free Leaves.tensors [| before; prototypes |]
Scope.free TaskState.leaves afterFirst
Scope.free TaskState.leaves start
Scope.free Plan.leaves plan
