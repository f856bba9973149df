/// A method of a user's own: one linear classifier over all classes, trained on the frozen features of each task in turn.
/// One file, and one line in ContractTests.
module LoRASub.Tests.ToyMethod

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// A task in training: the classifier [classes, d] of all classes so far.
type Training = { Weight: torch.Tensor }

let private training: Tree<Training> =
    tree {
        let! weight = Tree.field "weight" _.Weight Tree.tensor
        return { Weight = weight }
    }

let private grown (key: RandomKey) (task: LearningTask) (weight: torch.Tensor) =
    Scope.noGrad Leaves.tensor (fun () ->
        let shape = [| task.Classes.LongLength; weight.shape[1] |]
        torch.cat ([| weight; Rng.uniform -0.1 0.1 shape weight.dtype weight.device key |], 0L))

let private update (vit: VisionTransformer) (rates: Rates) (batch: Batch) (before: Training) =
    Scope.keep (Leaves.both training.Leaves StepReport.leaves) (fun () ->
        let features =
            Scope.noGrad Leaves.tensor (fun () ->
                VisionTransformer.features (VisionTransformer.frozen vit) vit batch.Images)

        let struct (loss, logits, gradients) =
            Grad.valueAndGradWith
                (fun weight ->
                    let logits = features.mm (weight[0].t())
                    struct (torch.nn.functional.cross_entropy (logits, batch.Labels), [| logits |]))
                [| before.Weight |]

        let step = gradients[0].Value.mul(Scalar.op_Implicit -rates.Classifier)
        let predictions = logits[0].argmax 1L

        struct ({ Weight = before.Weight.add step },
                {
                    Loss = loss
                    Predictions = predictions
                    Correct = predictions.eq(batch.Labels).sum()
                }))

let private logits (weight: torch.Tensor) : OwnScores =
    Scope.noGrad OwnScores.leaves (fun () ->
        let weight = weight.clone ()

        OwnScores.OfFeatures(
            Scorer.create [| weight |] (fun features ->
                Scope.noGrad Leaves.tensor (fun () -> features.mm (weight.t ())))
        ))

let method' (vit: VisionTransformer) : Method<torch.Tensor, torch.Tensor, Training> =
    let master = Precision.master vit.Precision

    {
        Info =
            {
                Name = "linear-probe"
                Summary = "a linear classifier on frozen features"
                Source = "none"
                Stores = "one weight vector per class"
                Trains = true
                Joint = false
            }
        State = Tree.tensor
        Observing = fun _ _ -> Tree.tensor
        Training = fun _ _ -> training
        Start = fun _ -> torch.zeros ([| 0L; vit.Width |], dtype = master, device = vit.Device)
        Observes = fun _ -> false
        Trains = fun _ -> true
        BeginTask = grown
        Observe = fun _ weight -> Scope.noGrad Leaves.tensor weight.clone
        Prepare = fun weight -> Scope.noGrad training.Leaves (fun () -> { Weight = weight.clone () })
        Update = update vit
        Diagnostics = fun _ -> Diagnostics.none
        Merge = fun trained -> Scope.noGrad Leaves.tensor trained.Weight.clone
        Consolidate = fun _ _ weight -> weight
        Finish = id
        Forget = fun row weight -> Scope.noGrad Leaves.tensor (fun () -> ClassSums.withoutRow row weight)
        Adapters = fun _ -> VisionTransformer.frozen vit
        Logits = Some logits
    }

/// The same with a classifier of images.
let ofImages (vit: VisionTransformer) : Method<torch.Tensor, torch.Tensor, Training> =
    let logits (weight: torch.Tensor) =
        Scope.noGrad OwnScores.leaves (fun () ->
            let weight = weight.clone ()
            let network = VisionTransformer.frozen vit

            OwnScores.OfImages(
                Scorer.create [| weight; yield! Adapters.leaves network |] (fun images ->
                    Scope.noGrad Leaves.tensor (fun () ->
                        (VisionTransformer.features network vit images).mm(weight.t ())))
            ))

    { method' vit with
        Logits = Some logits
    }
