namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Train
open LoRASub.Data
open TorchSharp

/// A task that trains by stochastic gradient descent, with a classifier of its own classes as the last two leaves of what
/// it trains.
[<RequireQualifiedAccess>]
module internal LocalTask =

    let private transform (sgd: SgdOptions) (rates: Rates) (leaves: int) =
        Transform.partition
            (Array.init leaves (fun i -> if i < leaves - 2 then 0 else 1))
            [| Sgd.transform rates.Network sgd; Sgd.transform rates.Classifier sgd |]

    /// The optimizer before the first step.
    let optimizer (sgd: SgdOptions) (tree: Tree<'Trained>) (trained: 'Trained) : SgdState[] =
        let leaves = Array.ofSeq (tree.Leaves trained)
        (transform sgd { Network = 0.0; Classifier = 0.0 } leaves.Length).Init leaves

    /// One step on a batch with labels [n] int64. `lossOf` gets what is trained and the labels as positions in the task,
    /// and gives the loss and the logits of the task's classes, [n, classes].
    let step
        (sgd: SgdOptions)
        (rates: Rates)
        (tree: Tree<'Trained>)
        (task: LearningTask)
        (labels: torch.Tensor)
        (lossOf: 'Trained -> torch.Tensor -> struct (torch.Tensor * torch.Tensor))
        (optimizer: SgdState[])
        (trained: 'Trained)
        : struct ('Trained * SgdState[] * StepReport) =
        let local = labels.sub (Number.Of(int64 task.FirstClass))
        let before = Array.ofSeq (tree.Leaves trained)

        let struct (loss, predicted, gradients) =
            before
            |> Grad.valueAndGradWith (fun variables ->
                let struct (loss, logits) = lossOf (Tree.withLeaves tree variables trained) local
                struct (loss, [| logits.argmax 1L |]))

        let struct (after, optimizer) =
            Transform.step (transform sgd rates before.Length) gradients optimizer before

        struct (Tree.withLeaves tree after trained, optimizer, StepReport.ofTask task loss local predicted[0])
