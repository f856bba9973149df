// A method of your own in a few lines: low-rank training in which every task halves what earlier tasks changed.
// Run after a build: dotnet fsi scripts/own-method.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Run
open TorchSharp
open Load

let fading (vit: VisionTransformer) settings =
    let base' = SequentialLora.method' vit settings
    let half (delta: torch.Tensor) = delta.mul (Scalar.op_Implicit 0.5)

    let merge training =
        Scope.noGrad base'.State.Leaves (fun () ->
            base'.Merge training |> Array.map (Tree.map half (Lora.deltaTree Lora.keyValue)))

    { base' with
        Info = { base'.Info with Name = "fading" }
        Merge = merge
    }

let plan = smallPlan 2 quick
let vit, head = plan.Backbone, Heads.find "nearest-mean"
let method = Method.hide (fading vit quick.Method)
let learner = Learner.create vit method head (Embedding.output vit)
let outcome = Experiment.run learner plan ignore
printfn "%s: accuracy %.1f %%" method.Info.Name (100.0 * (Metrics.measure outcome.Matrix)["last"])
