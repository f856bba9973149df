// A head of your own: the nearest class mean after the mean of all images is subtracted.
// Run after a build: dotnet fsi scripts/own-head.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open TorchSharp
open Load

let ready (sums: ClassSums) =
    Scope.noGrad Scorer.leaves (fun () ->
        let centre = sums.Sums.sum(0L).div(sums.Counts.sum ()) // [D]
        let nearest = NearestMean.ofMeans ((ClassSums.means string sums).sub centre)
        let owned = Array.append [| centre |] nearest.Owned
        let score (x: torch.Tensor) = nearest.Score(x.sub centre)
        Scorer.create owned score)

let plan = smallPlan 2 quick
let vit = plan.Backbone
let method = Method.hide (Frozen.method' vit)
let head = Head.hide { NearestMean.head with Scores = ready }
tryOut "centred" (Learner.create vit method head (Embedding.lastBlocks vit)) plan
