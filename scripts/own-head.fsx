// A head of your own in a few lines: the nearest class mean after the mean of all images is subtracted.
// Run after a build: dotnet fsi scripts/own-head.fsx

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

let centred =
    let base' = NearestMean.head

    let scores (sums: ClassSums) =
        Scope.noGrad Scorer.leaves (fun () ->
            let centre = sums.Sums.sum(0L).div(sums.Counts.sum ()) // [D]
            let nearest = NearestMean.ofMeans ((ClassSums.means string sums).sub centre)
            let owned = Array.append [| centre |] nearest.Owned

            let score (x: torch.Tensor) =
                Scope.noGrad Leaves.tensor (fun () -> nearest.Score(x.sub centre))

            Scorer.create owned score)

    { base' with
        Info = { base'.Info with Name = "centred" }
        Scores = scores
    }

let plan = smallPlan 2 quick
let vit, head = plan.Backbone, Head.hide centred

let learner =
    Learner.create vit (Method.hide (Frozen.method' vit)) head (Embedding.lastBlocks vit)

let outcome = Experiment.run learner plan ignore
printfn "%s: accuracy %.1f %%" head.Info.Name (100.0 * (Metrics.measure outcome.Matrix)["last"])
