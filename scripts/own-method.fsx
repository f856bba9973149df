// A method of your own: low-rank training in which every task halves what earlier tasks changed.
// Run after a build: dotnet fsi scripts/own-method.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open TorchSharp
open Load

let plan = smallPlan 2 quick
let vit = plan.Backbone
let sequential = SequentialLora.method' vit quick.Method
let half (delta: torch.Tensor) = delta.mul (Scalar.op_Implicit 0.5)
let halves = Array.map (Tree.map half (Lora.deltaTree Lora.keyValue))

let merge training =
    Scope.noGrad sequential.State.Leaves (fun () -> halves (sequential.Merge training))

let method = Method.hide { sequential with Merge = merge }
tryOut "fading" (Learner.create vit method (Heads.find "nearest-mean") (Embedding.output vit)) plan
