namespace LoRASub.Heads

open LoRASub.Core
open TorchSharp

/// What a head is, for lists and errors.
type HeadInfo =
    {
        /// On the command line and in files.
        Name: string
        /// One sentence.
        Summary: string
        /// Paper or origin.
        Source: string
    }

/// A classifier made ready: what scores are computed from, and how.
[<ReferenceEquality>]
type Scorer =
    {
        /// The tensors that the scorer owns.
        Owned: torch.Tensor[]
        /// Embeddings [n, D] -> scores [n, classes], the largest for the predicted class. Uses no tensor but those of
        /// `Owned`: the state that they were made from may be freed. Borrows; owned by the caller.
        Score: torch.Tensor -> torch.Tensor
    }

[<RequireQualifiedAccess>]
module Scorer =
    let leaves: Leaves<Scorer> = fun scorer -> scorer.Owned

    /// The row of each best score, [n, classes] -> [n] int64: the first score within rounding error of the
    /// largest, because a matrix product gives equal classes different last digits. Borrows; owned by the caller.
    let best (scores: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let top = scores.amax ([| 1L |], keepdim = true)
            let size = torch.maximum (top, top.neg ())
            let scale = size.clamp_min (Scalar.op_Implicit 1.0)

            let rounding =
                scale.mul (Scalar.op_Implicit (16.0 * Precision.epsilon scores.dtype))

            let isLower = scores.lt (top.sub rounding)
            Fused.firstSmallest (isLower.``to`` torch.ScalarType.Int64))

/// A classifier made of sums over embeddings, so that it learns in one pass, merges, and forgets. Rows are classes in
/// the order learned. Each function borrows its arguments and owns its result.
type Head<'H> =
    {
        Info: HeadInfo
        Tree: Tree<'H>
        /// The state without classes: embedding width, dtype and device.
        Zero: int64 -> torch.ScalarType -> torch.Device -> 'H
        /// With rows for this many more classes.
        Grow: int -> 'H -> 'H
        /// Adds a batch: embeddings [n, D] and rows [n] int64.
        Observe: torch.Tensor -> torch.Tensor -> 'H -> 'H
        /// The sums of two disjoint sets of images over the same classes.
        Merge: 'H -> 'H -> 'H
        /// Without the class in a row; later rows move up.
        Forget: int -> 'H -> 'H
        Scores: 'H -> Scorer
    }

/// The role of a head's hidden state.
type HeadRole = class end

/// A head's state, of whatever type.
type HeadState = Hidden<HeadRole>

/// A head whose state is hidden, to be chosen at run time.
type AnyHead = Head<HeadState>

[<RequireQualifiedAccess>]
module Head =

    let private subject (head: Head<_>) = $"head {head.Info.Name}"

    /// A hidden state, for the head that made it. Rejects another head's.
    let reveal (head: Head<'H>) (state: HeadState) : 'H = Hidden.reveal (subject head) state

    /// Hides the type of a head's state.
    let hide (head: Head<'H>) : AnyHead =
        let subject = subject head
        let hide = Hidden.hide subject head.Tree
        let reveal = Hidden.reveal subject

        {
            Info = head.Info
            Tree = Hidden.tree subject head.Tree
            Zero = fun width dtype device -> hide (head.Zero width dtype device)
            Grow = fun classes state -> hide (head.Grow classes (reveal state))
            Observe = fun embeddings rows state -> hide (head.Observe embeddings rows (reveal state))
            Merge = fun left right -> hide (head.Merge (reveal left) (reveal right))
            Forget = fun row state -> hide (head.Forget row (reveal state))
            Scores = reveal >> head.Scores
        }
