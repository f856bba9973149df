// Opens the library in F# Interactive: native backend, paths of the small data set and backbone, a printer for tensors.
// Build first (dotnet fsi build.fsx -t Build), or #r fails; then: dotnet fsi --load:scripts/load.fsx; open Load

#r "../src/LoRASub.FSharp/bin/Release/net10.0/TorchSharp.dll"
#r "../src/LoRASub.FSharp/bin/Release/net10.0/LoRASub.FSharp.dll"

open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
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

/// A plan on the first classes of Fashion-MNIST and the small backbone, two classes to a task. Owned by the caller.
let smallPlan (tasks: int) (settings: RunSettings) : Plan =
    let classes = 2 * tasks
    let whole = Datasets.load "fashion-mnist" fashionMnist

    let part =
        Dataset.create
            whole.Name
            (Array.truncate classes whole.ClassNames)
            (firstImages classes 32 whole.Train)
            (firstImages classes 25 whole.Test)

    Plan.ofStream
        (TaskStream.create part ClassOrder.Natural tasks None)
        { settings with
            Backbone = Some microVit
        }
