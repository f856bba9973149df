// A gradient transformation of your own: only the signs of the gradients, chained with momentum.
// Run after a build: dotnet fsi scripts/own-transform.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Train
open TorchSharp
open Load

let momentum = Sgd.transform 1e-3 { Momentum = 0.9; WeightDecay = 0.0 }
let signs = Transform.stateless (fun _ gradient _ -> gradient.sign ())
let optimizer = Transform.chain signs momentum

// a linear classifier of two classes
let features, labels = frozenFeatures (smallPlan 1 quick)

let loss (w: torch.Tensor[]) =
    torch.nn.functional.cross_entropy (features.mm w[0], labels)

let step struct (weights, state) _ =
    let struct (value, gradients) = Grad.valueAndGrad loss weights
    printfn "loss %.4f" (value.item<float32>())
    Transform.step optimizer gradients state weights

let start = [| torch.zeros (features.shape[1], 2L) |]
List.fold step struct (start, optimizer.Init start) [ 1..20 ] |> ignore
