// Opens the library in F# Interactive: native backend, paths of the small data set and backbone, a printer for tensors.
// Build first (dotnet fsi build.fsx -t Build), or #r fails; then: dotnet fsi --load:scripts/load.fsx; open Load

#r "../src/LoRASub.FSharp/bin/Release/net10.0/TorchSharp.dll"
#r "../src/LoRASub.FSharp/bin/Release/net10.0/LoRASub.FSharp.dll"

open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open TorchSharp

NativeBackend.ensureLoaded () |> ignore

/// The bundled data set and backbone.
let assets =
    Path.GetFullPath(Path.Combine(__SOURCE_DIRECTORY__, "..", "src", "LoRASub.FSharp.Cli", "assets"))

/// 300 training and 100 test images of each class of Fashion-MNIST.
let fashionMnist = Path.Combine(assets, "fashion-mnist")

/// A small Vision Transformer for RGB images of 32 x 32.
let microVit = Path.Combine(assets, "vit_micro_patch4_32.safetensors")

/// How F# Interactive shows a tensor: type, shape and first values.
let show (tensor: torch.Tensor) =
    Scope.run (fun () ->
        let few = tensor.detach().flatten().narrow(0L, 0L, min 6L (tensor.numel ()))
        let values = few.cpu().``to``(torch.ScalarType.Float64).data<float>().ToArray()
        let dots = if tensor.numel () > 6L then " ..." else ""
        let shown = values |> Array.map (sprintf "%.4g") |> String.concat " "
        $"""{tensor.dtype} [{String.concat ", " (Array.map string tensor.shape)}] {shown}{dots}""")

fsi.AddPrinter show

/// The first `each` images of every class below `classes`: enough to try an idea on.
let firstImages (classes: int) (each: int) (set: ImageSet) : ImageSet =
    let positions =
        Array.indexed set.Labels
        |> Array.groupBy snd
        |> Array.filter (fun (label, _) -> label < classes)
        |> Array.collect (snd >> Array.truncate each >> Array.map fst)

    ImageSet.select positions set

/// Settings of a run of seconds.
let quick =
    { Preset.quick Variant.LibContinual with
        Epochs = 2
        Batch = 16
    }

/// A data set, its classes in equal tasks, on the small backbone. Owned by the caller.
let planOf (dataset: Dataset) (tasks: int) (settings: RunSettings) : Plan =
    Plan.ofStream
        (TaskStream.create dataset ClassOrder.Natural tasks None)
        { settings with
            Backbone = Some microVit
        }

/// The first classes of Fashion-MNIST, two to a task.
let smallPlan (tasks: int) (settings: RunSettings) : Plan =
    let classes = 2 * tasks
    let whole = Datasets.load "fashion-mnist" fashionMnist

    let part =
        Dataset.create
            whole.Name
            (Array.truncate classes whole.ClassNames)
            (firstImages classes 32 whole.Train)
            (firstImages classes 25 whole.Test)

    planOf part tasks settings

/// Learns a plan and prints the accuracy over all classes in the end.
let tryOut (name: string) (learner: Learner) (plan: Plan) : unit =
    Scope.run (fun () ->
        let outcome = Experiment.run learner plan ignore
        printfn "%s: accuracy %.1f %%" name (100.0 * (Metrics.measure outcome.Matrix)["last"]))

/// Features [n, d] of the training images of a plan's first task by the frozen network, and their labels [n].
let frozenFeatures (plan: Plan) : torch.Tensor * torch.Tensor =
    let options =
        { Plan.testOptions plan with
            BatchSize = 1000
        }

    let load = TaskStream.plainTrainBatches options plan.Stream plan.Stream.Tasks[0]
    let batch = load[0]()
    let vit = plan.Backbone
    VisionTransformer.features (VisionTransformer.frozen vit) vit batch.Images, batch.Labels
