// Exports a learner of LoRA-Sub-DRS after two tasks and computes its features again in Python with numpy alone: from the
// merged weights, and from the backbone with the adapter. Prints the largest difference from the library's features.
//
//     dotnet fsi scripts/compare-export.fsx [PYTHON]
//
// Needs the library's build (dotnet fsi build.fsx -t Build) and a Python 3 with numpy. PYTHON is its executable; the default
// is python3.

#load "load.fsx"

open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Run
open TorchSharp
open Load

let python =
    match List.tail (List.ofArray fsi.CommandLineArgs) with
    | [] -> "python3"
    | program :: _ -> program

let folder = Directory.CreateTempSubdirectory("lorasub-export-").FullName
let at name = Path.Combine(folder, name)

let settings =
    { KeptLearner.settings "recommended" with
        MethodName = "lora-sub-drs"
        Head = "nearest-mean"
        Embedding = "class-token"
        Backbone = Some microVit
        Precision = Precision.Float64
        Epochs = 2
    }

let shirts = Datasets.load "fashion-mnist" fashionMnist

/// Two classes as a task of their own.
let learn first kept =
    let names = shirts.ClassNames[first .. first + 1]
    let few = firstImages 4 32 shirts.Train

    let mine =
        Array.indexed few.Labels
        |> Array.filter (fun (_, label) -> label = first || label = first + 1)
        |> Array.map fst

    let images = ImageSet.select mine few

    let images =
        { images with
            Labels = images.Labels |> Array.map (fun label -> label - first)
        }

    let next = (Lesson.learn 0.0 names images ignore kept).After
    next

let kept = KeptLearner.create settings |> learn 0 |> learn 2
let vit = kept.Learner.Backbone
let size = int64 vit.ImageSize

let images =
    Rng.uniform -1.0 1.0 [| 8L; 3L; size; size |] torch.ScalarType.Float64 vit.Device (Rng.ofSeed 1L)

let features =
    VisionTransformer.features (kept.Learner.Method.Adapters kept.State.Method) vit images

let frozen = VisionTransformer.features (VisionTransformer.frozen vit) vit images
Safetensors.write (at "images.safetensors") Map.empty (Seq.singleton ("images", images))

let difference (a: torch.Tensor) (b: torch.Tensor) = a.sub(b).abs().max().item<float>()

/// The largest difference of the features that Python computes.
let compare what weights adapter =
    let script = Path.Combine(__SOURCE_DIRECTORY__, "numpy-vit.py")

    let files =
        [ script; at weights; at "images.safetensors"; at "features.safetensors" ]

    let run = Process.Start(python, files @ adapter)
    run.WaitForExit()

    if run.ExitCode <> 0 then
        eprintfn $"{python} must be a Python 3 with numpy: dotnet fsi scripts/compare-export.fsx PYTHON"
        exit 2

    let found = (Safetensors.read (at "features.safetensors")).Tensors["features"]
    printfn "%-36s largest difference %.1e" what (difference found features)

let fresh =
    { kept with
        State = Learner.start kept.Learner (Rng.ofSeed 0L)
    }

Export.weights torch.ScalarType.Float64 (at "float64.safetensors") kept
Export.weights torch.ScalarType.Float32 (at "float32.safetensors") kept
Export.weights torch.ScalarType.Float64 (at "frozen.safetensors") fresh
let adapter = (Export.adapter None folder kept).Value

printfn
    "%d images, features up to %.2f; adapting changed them by up to %.1e"
    images.shape[0]
    (features.abs().max().item<float>())
    (difference features frozen)

compare "merged weights in float64" "float64.safetensors" []
compare "merged weights in float32" "float32.safetensors" []
compare $"backbone and adapter of rank {adapter.Rank}" "frozen.safetensors" [ folder ]

for rank in [ adapter.Rank / 2; adapter.Rank / 4 ] do
    let low = (Export.adapter (Some rank) folder kept).Value
    compare (sprintf "rank %d, relative error %.3f" rank low.RelativeError) "frozen.safetensors" [ folder ]

Directory.Delete(folder, true)
