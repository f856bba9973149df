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
        /// Scores [n, classes] -> [n]: the evidence that an image is of a known class; an image with little is of none.
        /// Borrows; owned by the caller.
        Support: torch.Tensor -> torch.Tensor
    }

/// Classifiers made ready.
[<RequireQualifiedAccess>]
module Scorer =
    /// <summary>Lists the tensors of a scorer.</summary>
    /// <param name="scorer">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<Scorer> = fun scorer -> scorer.Owned

    /// <summary>A scorer whose support is the largest score.</summary>
    /// <param name="owned">The tensors that it owns.</param>
    /// <param name="score">As `Scorer.Score`.</param>
    /// <returns>The scorer.</returns>
    let create (owned: torch.Tensor[]) (score: torch.Tensor -> torch.Tensor) : Scorer =
        {
            Owned = owned
            Score = score
            Support = fun scores -> scores.amax [| 1L |]
        }

    /// <summary>The row of each best score: the first of those that rounding cannot tell from the largest,
    /// because a matrix product gives equal classes unequal last digits.</summary>
    /// <param name="scores">[n, classes], floating point, classes at least 1; borrowed.</param>
    /// <returns>[n] int64, owned by the caller.</returns>
    let best (scores: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let top = scores.amax ([| 1L |], keepdim = true)
            let size = torch.maximum (top, top.neg ())
            let scale = size.clamp_min (Number.Of 1.0)

            let rounding = scale.mul (Number.Of(16.0 * Precision.epsilon scores.dtype))

            let isLower = scores.lt (top.sub rounding)
            Fused.firstSmallest (isLower.``to`` torch.ScalarType.Int64))

/// A classifier made of sums over embeddings, so that it learns in one pass, merges, and forgets. Rows are classes in
/// the order learned. Each function borrows its arguments and owns its result.
type Head<'H> =
    {
        /// Its name, for lists, files and errors.
        Info: HeadInfo
        /// The tensors of a state: what is saved. Each has a row per class first, or no axis that depends on
        /// the classes.
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
        /// The state as if its images had been embedded by the network after a map of drift, where the head's sums allow
        /// it.
        Transport: (DriftMap -> 'H -> 'H) option
        /// The state made ready; the scorer owns its tensors and shares none with the state.
        Scores: 'H -> Scorer
    }

/// The role of a head's hidden state.
type HeadRole = class end

/// A head's state, of whatever type.
type HeadState = Hidden<HeadRole>

/// A head whose state is hidden, to be chosen at run time.
type AnyHead = Head<HeadState>

/// Heads with their types and without.
[<RequireQualifiedAccess>]
module Head =

    let private subject (head: Head<_>) = $"head {head.Info.Name}"

    /// <summary>A hidden state, for the head that made it.</summary>
    /// <param name="head">The head with its type.</param>
    /// <param name="state">Hidden.</param>
    /// <returns>The state itself, borrowed.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The state is another head's.</exception>
    let reveal (head: Head<'H>) (state: HeadState) : 'H = Hidden.reveal (subject head) state

    /// <summary>Hides the type of a head's state, so that heads of different types fit one list.</summary>
    /// <param name="head">The head with its type.</param>
    /// <returns>The same head over hidden states. Its functions fail on another head's state, as `reveal`
    /// does.</returns>
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
            Transport =
                head.Transport
                |> Option.map (fun transport -> fun map state -> hide (transport map (reveal state)))
            Scores = reveal >> head.Scores
        }
