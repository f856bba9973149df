/// The method's meaning in slow, obvious float64 loops over plain arrays, written from its description, without torch.
module LoRASub.Tests.Oracles

open System
open LoRASub.Backbone

let private length1, length2 = Array2D.length1, Array2D.length2

let transpose (m: float[,]) =
    Array2D.init (length2 m) (length1 m) (fun i j -> m[j, i])

let multiply (a: float[,]) (b: float[,]) : float[,] =
    Array2D.init (length1 a) (length2 b) (fun i j ->
        let mutable sum = 0.0

        for k in 0 .. length2 a - 1 do
            sum <- sum + a[i, k] * b[k, j]

        sum)

let combine f (a: float[,]) (b: float[,]) =
    a |> Array2D.mapi (fun i j x -> f x b[i, j])

let add a b = combine (+) a b
let subtract a b = combine (-) a b
let scale (s: float) (m: float[,]) = Array2D.map (fun x -> s * x) m

let identity n =
    Array2D.init n n (fun i j -> if i = j then 1.0 else 0.0)

let frobenius (m: float[,]) =
    sqrt (Seq.sumBy (fun x -> x * x) (Seq.cast<float> m))

let trace (m: float[,]) =
    Seq.sum (seq { for i in 0 .. length1 m - 1 -> m[i, i] })

/// (1/n) Σ x xᵀ over the rows; zeros for no row.
let secondMoment (x: float[,]) : float[,] =
    let n, d = length1 x, length2 x

    Array2D.init d d (fun i j ->
        let mutable sum = 0.0

        for s in 0 .. n - 1 do
            sum <- sum + x[s, i] * x[s, j]

        sum / float (max n 1))

/// Eigenvalues (descending) and eigenvectors (columns) of a symmetric matrix by cyclic Jacobi rotations.
let eigen (symmetric: float[,]) : float[] * float[,] =
    let n = length1 symmetric
    let a, v = Array2D.copy symmetric, identity n

    let offDiagonal () =
        Seq.sum (
            seq {
                for i in 0 .. n - 1 do
                    for j in 0 .. n - 1 do
                        if i <> j then
                            a[i, j] * a[i, j]
            }
        )

    let mutable sweeps = 0

    while sweeps < 60 && offDiagonal () > 1e-60 do
        sweeps <- sweeps + 1

        for p in 0 .. n - 2 do
            for q in p + 1 .. n - 1 do
                if a[p, q] <> 0.0 then
                    let theta = (a[q, q] - a[p, p]) / (2.0 * a[p, q])

                    let t =
                        (if theta >= 0.0 then 1.0 else -1.0) / (abs theta + sqrt (theta * theta + 1.0))

                    let c = 1.0 / sqrt (t * t + 1.0)
                    let s = t * c

                    for k in 0 .. n - 1 do
                        let x, y = a[k, p], a[k, q]
                        a[k, p] <- c * x - s * y
                        a[k, q] <- s * x + c * y

                    for k in 0 .. n - 1 do
                        let x, y = a[p, k], a[q, k]
                        a[p, k] <- c * x - s * y
                        a[q, k] <- s * x + c * y

                    for k in 0 .. n - 1 do
                        let x, y = v[k, p], v[k, q]
                        v[k, p] <- c * x - s * y
                        v[k, q] <- s * x + c * y

    let order = Array.init n id |> Array.sortByDescending (fun i -> a[i, i])
    order |> Array.map (fun i -> a[i, i]), Array2D.init n n (fun i j -> v[i, order[j]])

/// Share of the spectrum's sum in the first j + 1 eigenvalues, negative ones counted as 0.
let energyShares (spectrum: float[]) : float[] =
    let spectrum = spectrum |> Array.map (max 0.0)
    let total = Array.sum spectrum

    spectrum
    |> Array.scan (+) 0.0
    |> Array.tail
    |> Array.map (fun sum -> sum / total)

/// k: the least j whose share reaches the threshold, d where rounding never does.
let retainedRank (threshold: float) (spectrum: float[]) : int =
    match energyShares spectrum |> Array.tryFindIndex (fun share -> share >= threshold) with
    | Some i -> i + 1
    | None -> spectrum.Length

/// Π = Σ u uᵀ over the first k eigenvectors.
let projector (vectors: float[,]) (k: int) : float[,] =
    let leading = vectors[*, 0 .. k - 1]
    multiply leading (transpose leading)

type Confined =
    | Anywhere
    | Nowhere
    | FromLeft of float[,]
    | FromRight of float[,]

type AdamSettings =
    {
        Rate: float
        Beta1: float
        Beta2: float
        Epsilon: float
        WeightDecay: float
        AmsGrad: bool
    }

/// Parameter after each step, as a [rows, rest] matrix; a missing gradient changes neither parameter nor state.
let projectedAdam (o: AdamSettings) (confined: Confined) (start: float[,]) (gradients: float[,] option list) =
    let zeros () = Array2D.map (fun _ -> 0.0) start
    let mutable w, m, v, vMax, s = start, zeros (), zeros (), zeros (), 0

    [
        for gradient in gradients do
            match gradient with
            | None -> ()
            | Some g ->
                let g = combine (fun g w -> g + o.WeightDecay * w) g w
                s <- s + 1
                m <- combine (fun m g -> o.Beta1 * m + (1.0 - o.Beta1) * g) m g
                v <- combine (fun v g -> o.Beta2 * v + (1.0 - o.Beta2) * g * g) v g
                vMax <- combine max vMax v

                let correction =
                    sqrt (1.0 - Math.Pow(o.Beta2, float s)) / (1.0 - Math.Pow(o.Beta1, float s))

                let spread = if o.AmsGrad then vMax else v

                let u =
                    combine (fun m v -> -o.Rate * correction * m / (sqrt v + o.Epsilon)) m spread

                let u =
                    match confined with
                    | Anywhere -> u
                    | Nowhere -> scale 0.0 u
                    | FromLeft p -> multiply p u
                    | FromRight p -> multiply u p

                w <- add w u

            w
    ]

/// η_e = η₀ cos(99π max(e−1, 0) / (200 max(K−1, 1))), held at its last value before it first stops being positive.
let learningRate (baseRate: float) (k: int) (e: int) : float =
    let rate e =
        baseRate
        * cos (99.0 * Math.PI * float (max (e - 1) 0) / (200.0 * float (max (k - 1) 1)))

    Seq.init (e + 1) rate |> Seq.takeWhile (fun rate -> rate > 0.0) |> Seq.last

/// Augmented triplet loss of order `p` and its gradient in the features; extremes that tie share it evenly.
/// Also says whether a row of the batch and a prototype are so equally near that rounding decides between them.
let augmentedTriplet (margin: float) (p: float) (prototypes: float[,]) (labels: int[]) (f: float[,]) =
    let n, d, c = length1 f, length2 f, length1 prototypes
    let unit = Generators.unitRows prototypes
    let gradient = Array2D.zeroCreate n d
    let mutable loss, torn = 0.0, false

    // A distance, and how to add a multiple of its slope to the gradient.
    let between i j =
        let squared = Seq.sum (seq { for k in 0 .. d - 1 -> (f[i, k] - f[j, k]) ** 2.0 })
        let distance = sqrt (max squared 1e-12)

        let slope weight =
            if squared > 1e-12 then
                for k in 0 .. d - 1 do
                    let step = weight * (f[i, k] - f[j, k]) / distance
                    gradient[i, k] <- gradient[i, k] + step
                    gradient[j, k] <- gradient[j, k] - step

        distance, slope

    let toPrototype i q =
        let difference = Array.init d (fun k -> f[i, k] - unit[q, k])

        let distance =
            if Double.IsInfinity p then
                Array.max (Array.map abs difference)
            else
                Math.Pow(difference |> Array.sumBy (fun x -> Math.Pow(abs x, p)), 1.0 / p)

        let slope weight =
            if distance > 1e-12 then
                for k in 0 .. d - 1 do
                    let x = difference[k]
                    let step = float (sign x) * Math.Pow(abs x / distance, p - 1.0)
                    gradient[i, k] <- gradient[i, k] + weight * step

        max distance 1e-12, slope

    let share weight extreme candidates =
        let tied = candidates |> List.filter (fun (distance, _) -> distance = extreme)

        for _, slope in tied do
            slope (weight / float tied.Length)

    for i in 0 .. n - 1 do
        let positives =
            [
                for j in 0 .. n - 1 do
                    if labels[j] = labels[i] then
                        between i j
            ]

        let positive = positives |> List.map fst |> List.max

        let others =
            [
                for j in 0 .. n - 1 do
                    if labels[j] <> labels[i] then
                        between i j
            ]

        let others =
            if others.IsEmpty then
                [ positive + margin, (fun weight -> share weight positive positives) ]
            else
                others

        let toPrototypes = [ for q in 0 .. c - 1 -> toPrototype i q ]
        let negatives = others @ toPrototypes
        let negative = negatives |> List.map fst |> List.min
        let near = List.exists (fun (distance, _) -> distance < negative + 1e-9)
        torn <- torn || (near others && near toPrototypes)
        let hinge = positive - negative + margin

        if hinge >= 0.0 then
            loss <- loss + hinge / float n
            share (1.0 / float n) positive positives
            share (-1.0 / float n) negative negatives

    loss, gradient, torn

/// Mean cross entropy of logits and its gradient.
let crossEntropy (labels: int[]) (logits: float[,]) : float * float[,] =
    let n = length1 logits
    let sums = Array.init n (fun i -> logits[i, *] |> Array.sumBy exp)

    let loss =
        Seq.average (seq { for i in 0 .. n - 1 -> log sums[i] - logits[i, labels[i]] })

    let oneHot i j = if labels[i] = j then 1.0 else 0.0
    loss, logits |> Array2D.mapi (fun i j x -> (exp x / sums[i] - oneHot i j) / float n)

// The network.

type PlainPair = { A: float[,]; B: float[,] }
type PlainLora = Map<Site, PlainPair>

type PlainMlp =
    {
        Down: float[,] * float[]
        Up: float[,] * float[]
        Scale: float
    }

/// x Wᵀ + b, row by row.
let linear (weight: float[,]) (bias: float[]) (x: float[,]) : float[,] =
    multiply x (transpose weight) |> Array2D.mapi (fun _ j y -> y + bias[j])

/// x Aᵀ Bᵀ added to y where there is a pair.
let private through (lora: PlainLora) (site: Site) (x: float[,]) (y: float[,]) =
    match Map.tryFind site lora with
    | None -> y
    | Some pair -> add y (multiply (multiply x (transpose pair.A)) (transpose pair.B))

let private softmax (scores: float[]) =
    let largest = Array.max scores
    let powers = scores |> Array.map (fun s -> exp (s - largest))
    let total = Array.sum powers
    powers |> Array.map (fun p -> p / total)

/// Attention over the tokens [N, d] of one image: `qkv` [3d, d] holds the effective rows of query, key and value.
let attention
    (heads: int)
    (qkv: float[,], qkvBias)
    (projection, projectionBias)
    (lora: PlainLora)
    (x: float[,])
    =
    let tokens, d = length1 x, length2 x
    let width = d / heads
    let fused = linear qkv qkvBias x

    let rows site first =
        through lora site x fused[*, first .. first + d - 1]

    let q, k, v = rows Site.Query 0, rows Site.Key d, rows Site.Value (2 * d)

    let mixed = Array2D.zeroCreate tokens d

    for h in 0 .. heads - 1 do
        for i in 0 .. tokens - 1 do
            let columns = [ h * width .. (h + 1) * width - 1 ]

            let score j =
                (columns |> List.sumBy (fun c -> q[i, c] * k[j, c])) / sqrt (float width)

            let weights = softmax (Array.init tokens score)

            for c in columns do
                mixed[i, c] <- Seq.sum (seq { for j in 0 .. tokens - 1 -> weights[j] * v[j, c] })

    linear projection projectionBias mixed |> through lora Site.Projection mixed

/// erf(x) = 2/√π e^{−x²} Σ 2ⁿ x^{2n+1} / (2n+1)!!, all terms of one sign.
let erf (x: float) =
    if abs x > 6.0 then
        float (sign x)
    else
        let mutable term, sum, n = x, x, 0

        while abs term > 1e-18 * abs sum do
            n <- n + 1
            term <- term * 2.0 * x * x / float (2 * n + 1)
            sum <- sum + term

        2.0 / sqrt Math.PI * exp (-x * x) * sum

let gelu x = 0.5 * x * (1.0 + erf (x / sqrt 2.0))

let layerNorm (epsilon: float) (weight: float[]) (bias: float[]) (x: float[,]) : float[,] =
    let moments =
        Generators.rows x
        |> Array.map (fun r ->
            let mean = Array.average r
            mean, r |> Array.averageBy (fun v -> (v - mean) ** 2.0))

    x
    |> Array2D.mapi (fun i j v ->
        let mean, variance = moments[i]
        (v - mean) / sqrt (variance + epsilon) * weight[j] + bias[j])

type PlainBlock =
    {
        Norm1: float[] * float[]
        Qkv: float[,] * float[]
        Projection: float[,] * float[]
        Norm2: float[] * float[]
        Fc1: float[,] * float[]
        Fc2: float[,] * float[]
    }

type PlainVit =
    {
        Patch: int
        Channels: int
        Size: int
        Heads: int
        /// [d, channels · patch · patch]
        Embedding: float[,] * float[]
        ClassToken: float[]
        /// [1 + tokens, d]
        Positions: float[,]
        Blocks: PlainBlock[]
        Norm: float[] * float[]
        BlockEpsilon: float
        Epsilon: float
    }

/// Per block its attention input and the tokens that leave it, [N, d] each, of one image [channels][size, size].
/// Pairs and MLP adapters are one per block, or none.
let run
    (vit: PlainVit)
    (lora: PlainLora[])
    (mlp: PlainMlp[])
    (image: float[,][])
    : (float[,] * float[,]) list =
    let side = vit.Size / vit.Patch
    let weight, bias = vit.Embedding

    let token index =
        let top, left = index / side * vit.Patch, index % side * vit.Patch

        let pixels =
            [|
                for c in 0 .. vit.Channels - 1 do
                    for y in 0 .. vit.Patch - 1 do
                        for x in 0 .. vit.Patch - 1 -> image[c][top + y, left + x]
            |]

        Array.init (length1 weight) (fun i ->
            bias[i] + Array.fold2 (fun s w p -> s + w * p) 0.0 weight[i, *] pixels)

    let embedded =
        array2D [ vit.ClassToken; yield! [ for i in 0 .. side * side - 1 -> token i ] ]

    let norm epsilon (weight, bias) x = layerNorm epsilon weight bias x

    let step (x, found) (i, block: PlainBlock) =
        let input = norm vit.BlockEpsilon block.Norm1 x
        let lora = lora |> Array.tryItem i |> Option.defaultValue Map.empty
        let x = add x (attention vit.Heads block.Qkv block.Projection lora input)
        let normed = norm vit.BlockEpsilon block.Norm2 x
        let apply (weight, bias) x = linear weight bias x

        let hidden =
            apply block.Fc1 normed |> through lora Site.Fc1 normed |> Array2D.map gelu

        let output = apply block.Fc2 hidden |> through lora Site.Fc2 hidden |> add x

        let x =
            match Array.tryItem i mlp with
            | None -> output
            | Some adapter ->
                apply adapter.Down x
                |> Array2D.map (max 0.0)
                |> apply adapter.Up
                |> scale adapter.Scale
                |> add output

        x, (input, x) :: found

    Array.fold step (add embedded vit.Positions, []) (Array.indexed vit.Blocks)
    |> snd
    |> List.rev

/// One part of an embedding, from the tokens that leave each block of one image.
let part (vit: PlainVit) (outputs: float[,] list) (part: EmbeddingPart) : float[] =
    let side = vit.Size / vit.Patch

    let tokens =
        if part.FinalNorm then
            layerNorm vit.Epsilon (fst vit.Norm) (snd vit.Norm) outputs[part.Block - 1]
        else
            outputs[part.Block - 1]

    let mean (patches: (int * int) list) =
        Array.init (length2 tokens) (fun j ->
            patches |> List.averageBy (fun (y, x) -> tokens[1 + y * side + x, j]))

    let square top left size =
        [
            for y in top .. top + size - 1 do
                for x in left .. left + size - 1 -> y, x
        ]

    match part.Tokens with
    | Tokens.Class -> tokens[0, *]
    | Tokens.PatchMean -> mean (square 0 0 side)
    | Tokens.PatchSpread ->
        let all = square 0 0 side

        Array.mapi
            (fun j m ->
                let squares =
                    all |> List.averageBy (fun (y, x) -> (tokens[1 + y * side + x, j] - m) ** 2.0)

                sqrt (squares + 1e-6))
            (mean all)
    | Tokens.PatchCentre ->
        let edge = side / 4
        mean (square edge edge (side - 2 * edge))
    | Tokens.PatchChange ->
        let token (y, x) j = tokens[1 + y * side + x, j]

        let meanSquare pairs j =
            match pairs with
            | [] -> 0.0
            | _ -> pairs |> List.averageBy (fun (a, b) -> (token b j - token a j) ** 2.0)

        let all = square 0 0 side

        let across =
            all
            |> List.filter (fun (_, x) -> x + 1 < side)
            |> List.map (fun (y, x) -> (y, x), (y, x + 1))

        let down =
            all
            |> List.filter (fun (y, _) -> y + 1 < side)
            |> List.map (fun (y, x) -> (y, x), (y + 1, x))

        Array.init (length2 tokens) (fun j -> sqrt (meanSquare across j + meanSquare down j + 1e-6))
    | Tokens.PatchQuadrants ->
        let half = side / 2

        Array.concat
            [
                for top in [ 0; half ] do
                    for left in [ 0; half ] -> mean (square top left half)
            ]

// Classification.

/// Mean feature of each class.
let prototypes (classes: int) (labels: int[]) (features: float[,]) : float[,] =
    array2D
        [
            for c in 0 .. classes - 1 do
                let mine =
                    [
                        for i in 0 .. labels.Length - 1 do
                            if labels[i] = c then
                                features[i, *]
                    ]

                [ for j in 0 .. length2 features - 1 -> mine |> List.averageBy (fun f -> f[j]) ]
        ]

/// ‖f/(‖f‖ + 1e-8) − p/‖p‖‖² of each row and prototype.
let squaredDistances (prototypes: float[,]) (features: float[,]) : float[,] =
    let p = Generators.unitRows prototypes
    let lengths = Generators.rows features |> Array.map Generators.norm

    Array2D.init (length1 features) (length1 p) (fun i c ->
        Seq.sum (
            seq { for j in 0 .. length2 p - 1 -> (features[i, j] / (lengths[i] + 1e-8) - p[c, j]) ** 2.0 }
        ))
