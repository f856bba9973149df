/// A head of a user's own: the nearest mean by Euclidean distance. One file, and one line in HeadContractTests.
module LoRASub.Tests.ToyHead

open LoRASub.Core
open LoRASub.Heads
open TorchSharp

let private scorer (sums: ClassSums) : Scorer =
    Scope.noGrad Scorer.leaves (fun () ->
        let means = ClassSums.means (fun row -> $"class in row {row}") sums

        Scorer.create [| means |] (fun embeddings ->
            Scope.noGrad Leaves.tensor (fun () -> (torch.cdist (embeddings, means)).neg())))

let head: Head<ClassSums> =
    {
        Info =
            {
                Name = "nearest-euclidean"
                Summary = "the class whose mean embedding is nearest"
                Source = "Mensink et al. 2013"
            }
        Tree = ClassSums.tree
        Zero = ClassSums.zero 0
        Grow = ClassSums.grow
        Observe = ClassSums.observe
        Merge = fun left right -> Scope.noGrad ClassSums.leaves (fun () -> left + right)
        Forget = ClassSums.forget
        Transport = None
        Scores = scorer
    }
