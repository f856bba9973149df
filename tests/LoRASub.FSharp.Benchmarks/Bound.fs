/// The matrix products that a phase needs, in their own shapes, and the time of these products alone.
///
/// Counted is what no implementation can leave out: frozen weights get no gradient; nothing flows below the first
/// block's keys and values; in the last block the class token alone is read, so its queries, attention output and MLP
/// are needed for one row per image; a pair's product B·A joins its weight, which costs less than a second path over
/// all tokens; what reaches one entry of a row alone, as the hardest triplet's gradient does, is no product.
module LoRASub.Benchmarks.Bound

open System
open System.Diagnostics
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Fluent
open LoRASub.Benchmarks.Measure
open TorchSharp

/// `Count` products [M, K]·[K, N] at once, `Times` times.
type Product =
    {
        M: int64
        K: int64
        N: int64
        /// Matrices in one batched product; 1 for a plain one.
        Count: int64
        Times: int64
        Layout: Layout
        Dtype: torch.ScalarType
    }

/// How the operands lie in memory.
and [<RequireQualifiedAccess>] Layout =
    | Plain
    /// The second is stored as [N, K]: a linear layer, queries times keys.
    | RightTransposed
    /// The first is stored as [K, M]: Gram matrices, gradients of weights, of keys and of values.
    | LeftTransposed

/// Rows of the last block that are counted.
[<RequireQualifiedAccess>]
type Rows =
    | Needed
    /// Every token: for reference.
    | All

/// The sizes that decide the products of a phase.
type Sizes =
    {
        Images: int64
        /// The class token included.
        Tokens: int64
        Width: int64
        Heads: int64
        Depth: int64
        /// Columns between the two layers of an MLP.
        Hidden: int64
        /// Numbers in a patch.
        Patch: int64
        Rank: int64
        /// Classes of the task.
        Classes: int64
        /// Prototypes: of earlier tasks in a step, of all classes in a prediction.
        Prototypes: int64
        /// Whether updates are projected, as in every task but the first.
        Projected: bool
        Precision: Precision
    }

[<RequireQualifiedAccess>]
module Sizes =

    /// Of a batch of images on a network, with pairs of this rank.
    let create (vit: VisionTransformer) (rank: int) (classes: int) (prototypes: int) (images: int) : Sizes =
        {
            Images = int64 images
            Tokens = vit.Positions.shape[1]
            Width = vit.Width
            Heads = int64 vit.Heads
            Depth = int64 vit.Blocks.Length
            Hidden = vit.Blocks[0].Fc1.Weight.shape[0]
            Patch = int64 (vit.Channels * vit.PatchSize * vit.PatchSize)
            Rank = int64 rank
            Classes = int64 classes
            Prototypes = int64 prototypes
            Projected = prototypes > 0
            Precision = vit.Precision
        }

let private plain dtype layout times (m: int64) (k: int64) (n: int64) : Product =
    {
        M = m
        K = k
        N = n
        Count = 1L
        Times = times
        Layout = layout
        Dtype = dtype
    }

/// Products of the network, in its format.
let private network (s: Sizes) = plain (Precision.compute s.Precision)

/// Products of statistics, losses and updates.
let private master (s: Sizes) = plain (Precision.master s.Precision)

let private linear (s: Sizes) times (rows: int64) (inputs: int64) (outputs: int64) =
    network s Layout.RightTransposed times rows inputs outputs

/// What reaches the inputs of a linear layer.
let private toInputs (s: Sizes) times (rows: int64) (outputs: int64) (inputs: int64) =
    network s Layout.Plain times rows outputs inputs

let private perHead (s: Sizes) layout times (m: int64) (k: int64) (n: int64) =
    { network s layout times m k n with
        Count = s.Images * s.Heads
    }

let private headWidth (s: Sizes) = s.Width / s.Heads

/// Rows of the last block behind its attention.
let private lastRows (rows: Rows) (s: Sizes) =
    match rows with
    | Rows.Needed -> 1L
    | Rows.All -> s.Tokens

/// One block forward whose attention is asked by `queries` tokens per image.
let private blockForward (s: Sizes) times (queries: int64) =
    let d, tokens, read = s.Width, s.Images * s.Tokens, s.Images * queries

    [
        if queries = s.Tokens then
            linear s times tokens d (3L * d)
        else
            linear s times tokens d (2L * d)
            linear s times read d d

        perHead s Layout.RightTransposed times queries (headWidth s) s.Tokens
        perHead s Layout.Plain times queries s.Tokens (headWidth s)
        linear s times read d d
        linear s times read d s.Hidden
        linear s times read s.Hidden d
    ]

let private embed (s: Sizes) =
    linear s 1L (s.Images * (s.Tokens - 1L)) s.Patch s.Width

/// Images to features.
let features (rows: Rows) (s: Sizes) : Product list =
    embed s :: blockForward s (s.Depth - 1L) s.Tokens
    @ blockForward s 1L (lastRows rows s)

/// One batch observed: forward to the last block's first norm, and one Gram matrix per block.
let observe (rows: Rows) (s: Sizes) : Product list =
    let forward =
        match rows with
        | Rows.Needed -> embed s :: blockForward s (s.Depth - 1L) s.Tokens
        | Rows.All -> features rows s

    forward
    @ [ master s Layout.LeftTransposed s.Depth s.Width (s.Images * s.Tokens) s.Width ]

/// B·A of keys and values, in every block.
let private deltas (s: Sizes) =
    [ master s Layout.Plain (2L * s.Depth) s.Width s.Rank s.Width ]

/// Gradients of both pairs, of what reaches keys and values.
let private pairGradients (s: Sizes) times =
    let d, r, tokens = s.Width, s.Rank, s.Images * s.Tokens

    [
        linear s times tokens d (2L * r) // x·Aᵀ of both
        network s Layout.LeftTransposed (2L * times) d tokens r // of B
        network s Layout.Plain (2L * times) tokens d r // what reaches x·Aᵀ
        network s Layout.LeftTransposed times (2L * r) tokens d // of both A
    ]

/// One block backward; in the `first` nothing goes on to the input, nor to the queries, in which nothing trains.
let private blockBackward (s: Sizes) times (first: bool) (queries: int64) =
    let d, e, tokens, read =
        s.Width, headWidth s, s.Images * s.Tokens, s.Images * queries

    [
        toInputs s times read d s.Hidden
        toInputs s times read s.Hidden d
        toInputs s times read d d
        perHead s Layout.LeftTransposed times s.Tokens queries e // values
        perHead s Layout.RightTransposed times queries e s.Tokens // attention weights
        perHead s Layout.LeftTransposed times s.Tokens queries e // keys

        if not first then
            perHead s Layout.Plain times queries s.Tokens e // queries

            if queries = s.Tokens then
                toInputs s times tokens (3L * d) d
            else
                toInputs s times tokens (2L * d) d
                toInputs s times read d d

        yield! pairGradients s times
    ]

/// Distances to the batch and to the prototypes, the head's logits and its gradients.
let private losses (s: Sizes) =
    [
        master s Layout.RightTransposed 1L s.Images s.Width s.Images
        if s.Prototypes > 0L then
            master s Layout.RightTransposed 1L s.Images s.Width s.Prototypes
        master s Layout.RightTransposed 1L s.Images s.Width s.Classes
        master s Layout.Plain 1L s.Images s.Classes s.Width
        master s Layout.LeftTransposed 1L s.Classes s.Images s.Width
    ]

/// Updates of both A from the right, of both B from the left.
let private projections (s: Sizes) =
    if s.Projected then
        [
            master s Layout.Plain s.Depth (2L * s.Rank) s.Width s.Width
            master s Layout.Plain s.Depth s.Width s.Width (2L * s.Rank)
        ]
    else
        []

/// One training step: forward, backward and update.
let step (rows: Rows) (s: Sizes) : Product list =
    let last = lastRows rows s

    deltas s
    @ features rows s
    @ losses s
    @ blockBackward s 1L (s.Depth = 1L) last
    @ (if s.Depth > 1L then
           blockBackward s (s.Depth - 2L) false s.Tokens @ blockBackward s 1L true s.Tokens
       else
           [])
    @ projections s

/// One batch of the prototype stage: sums of features are no product.
let prototypes (rows: Rows) (s: Sizes) : Product list = features rows s

/// One batch predicted: features, and their products with all prototypes.
let predict (rows: Rows) (s: Sizes) : Product list =
    features rows s
    @ [ master s Layout.RightTransposed 1L s.Images s.Width s.Prototypes ]

/// Floating-point operations: a multiplication and an addition each.
let operations (products: Product list) : float =
    products
    |> List.sumBy (fun p -> 2.0 * float p.M * float p.K * float p.N * float p.Count * float p.Times)

// ---------------------------------------------------------------- their time

/// Products on operands that are made already.
type Ready =
    {
        /// Every product once, as often as it is needed.
        Run: unit -> unit
        Operands: torch.Tensor[]
    }

    interface IDisposable with
        member this.Dispose() = this.Operands |> Array.iter _.Dispose()

/// Ways of LibTorch to the same product, in the best layout for each: the first into memory that is there already.
let private forms (p: Product) : struct (torch.Tensor[] * (unit -> unit) list) =
    let random (rows: int64) (columns: int64) =
        let shape =
            if p.Count = 1L then
                [| rows; columns |]
            else
                [| p.Count; rows; columns |]

        (torch.randn (shape, dtype = p.Dtype)).DetachFromDisposeScope()

    let turned (t: torch.Tensor) =
        (t.transpose (-2L, -1L)).DetachFromDisposeScope()

    let left, leftView =
        match p.Layout with
        | Layout.LeftTransposed ->
            let stored = random p.K p.M
            stored, turned stored
        | _ ->
            let stored = random p.M p.K
            stored, stored.alias().DetachFromDisposeScope()

    let right, rightView =
        match p.Layout with
        | Layout.RightTransposed ->
            let stored = random p.N p.K
            stored, turned stored
        | _ ->
            let stored = random p.K p.N
            stored, stored.alias().DetachFromDisposeScope()

    // views on the way to a result would keep its memory until they are collected
    let fresh (product: unit -> torch.Tensor) () = Scope.run (product >> ignore)

    if p.Count > 1L then
        // many processors are slow with small matrices of bfloat16
        let wide (t: torch.Tensor) =
            if p.Dtype = torch.bfloat16 then
                [ (t.``to`` torch.float32).DetachFromDisposeScope() ]
            else
                []

        let wideLeft, wideRight = wide leftView, wide rightView

        struct ([| left; leftView; right; rightView; yield! wideLeft; yield! wideRight |],
                [
                    fresh (fun () -> leftView.bmm rightView)
                    for left, right in List.zip wideLeft wideRight do
                        fresh (fun () -> left.bmm right)
                ])
    else
        let result = random p.M p.N
        // oneDNN turns the operands of its other passes itself
        let rows = leftView.contiguous().DetachFromDisposeScope()
        let weight = rightView.t().contiguous().DetachFromDisposeScope()

        struct ([| left; leftView; right; rightView; result; rows; weight |],
                [
                    fun () -> result.addmm_ (leftView, rightView, 0.0f, 1.0f) |> ignore
                    fresh (fun () -> leftView.mm rightView)
                    fresh (fun () -> torch.nn.functional.linear (rows, weight))
                    fresh (fun () -> Product.linearBy ProductRoute.OneDnn weight null rows)
                ])

/// Makes the operands of products and picks the fastest way to each; equal products share operands. To be disposed of.
let ready (products: Product list) : Ready =
    use _ = torch.no_grad ()

    let distinct =
        products
        |> List.filter (fun p -> p.Times > 0L)
        |> List.groupBy (fun p -> { p with Times = 1L })

    let made =
        [
            for product, same in distinct do
                let struct (operands, forms) = forms product

                let fastest =
                    forms
                    |> List.minBy (fun form ->
                        form ()

                        // long enough for a moment's load not to decide
                        let clock = Stopwatch.StartNew()

                        Seq.initInfinite (fun _ ->
                            let struct ((), seconds) = timed form
                            seconds)
                        |> Seq.indexed
                        |> Seq.takeWhile (fun (i, _) -> i < 3 || clock.Elapsed.TotalSeconds < 0.05)
                        |> Seq.map snd
                        |> Seq.min)

                operands, fastest, same |> List.sumBy _.Times
        ]

    {
        Operands = made |> Seq.collect (fun (operands, _, _) -> operands) |> Array.ofSeq
        Run =
            fun () ->
                use _ = torch.no_grad ()

                for _, product, times in made do
                    for _ in 1L .. times do
                        product ()
    }
