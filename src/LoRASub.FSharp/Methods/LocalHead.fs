namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open TorchSharp

/// Linear heads of tasks, alone or with the rows of all tasks one below the other.
[<RequireQualifiedAccess>]
module internal LocalHead =

    let private ofRows (vit: VisionTransformer) classes (numbers: int64[] -> int64 -> torch.Tensor) : Linear =
        {
            Weight = numbers [| int64 classes; vit.Width |] 0L
            Bias = Some(numbers [| int64 classes |] 1L)
        }

    /// With nn.Linear's start: U(−1/√d, 1/√d).
    let fresh (vit: VisionTransformer) (classes: int) (key: RandomKey) : Linear =
        let bound = 1.0 / sqrt (float vit.Width)

        ofRows vit classes (fun shape number ->
            Rng.uniform -bound bound shape (Precision.master vit.Precision) vit.Device (Rng.fold number key))

    /// Of no class.
    let none (vit: VisionTransformer) : Linear =
        ofRows vit 0 (fun shape _ ->
            torch.zeros (shape, dtype = Precision.master vit.Precision, device = vit.Device))

    /// The rows of one head below those of another. Both have biases, as here.
    let append (head: Linear) (heads: Linear) : Linear =
        {
            Weight = torch.cat ([| heads.Weight; head.Weight |], 0L)
            Bias = Option.map2 (fun above below -> torch.cat ([| above; below |], 0L)) heads.Bias head.Bias
        }

    /// Without the row of a class.
    let withoutRow (row: int) (heads: Linear) : Linear =
        Tree.map (ClassSums.withoutRow row) Linear.tree heads

    /// Its logits of features [n, d], as a method's own classifier.
    let scores (heads: Linear) : OwnScores =
        Scope.noGrad OwnScores.leaves (fun () ->
            let heads = Tree.map _.clone() Linear.tree heads

            let score (features: torch.Tensor) =
                Scope.noGrad Leaves.tensor (fun () -> Linear.forward heads features)

            OwnScores.OfFeatures(Scorer.create (Array.ofSeq (Linear.leaves heads)) score))
