/// The published algorithm with its own way of spending time, on the same LibTorch: loops of the host language that
/// wait for a number each turn, second moments through a matrix per image, one decomposition per parameter, one pass
/// over the data per class, weight gradients of full size. After LibContinual's LoRA-Sub-DRS; the mathematics is the
/// library's, which `Check` holds it to.
module LoRASub.Benchmarks.Literal

open System
open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open TorchSharp

let private number (x: float) = Scalar.op_Implicit x

let private linear (layer: Linear) (x: torch.Tensor) =
    torch.nn.functional.linear (x, layer.Weight, Option.toObj layer.Bias)

let private isLess (a: torch.Tensor) (b: torch.Tensor) =
    use less = a.lt b
    less.item<bool>()

/// The augmented triplet loss row by row and prototype by prototype. `centres` are raw and live in the host's memory.
/// features [n, d], unit rows; labels [n]. Scalar, owned by the caller.
let triplet
    (margin: float)
    (order: float)
    (centres: float32[][])
    (labels: torch.Tensor)
    (features: torch.Tensor)
    : torch.Tensor =
    Scope.keep Leaves.tensor (fun () ->
        let n = features.shape[0]
        let squares = features.pow(number 2.0).sum(1L, keepdim = true).expand(n, n)

        let distances =
            squares
                .add(squares.t ())
                .addmm(features, features.t (), 1.0f, -2.0f)
                .clamp_min(number 1e-12)
                .sqrt()

        let same = labels.expand(n, n).eq(labels.expand(n, n).t())

        let positives =
            [| for i in 0L .. n - 1L -> distances[i].masked_select(same[i]).max() |]

        let negatives =
            [|
                for i in 0L .. n - 1L do
                    let others = distances[i].masked_select(same[i].logical_not())

                    if others.numel () = 0L then
                        positives[int i].add(number margin)
                    else
                        others.min ()
            |]

        let scaled (centre: float32[]) =
            let length = centre |> Array.sumBy (fun x -> float x * float x) |> sqrt
            centre |> Array.map (fun x -> float32 (float x / length))

        let unit: torch.Tensor =
            (torch.tensor (centres |> Array.collect scaled)).reshape(-1L, features.shape[1])

        // the published code keeps each row's minimum as a vector of one, opened and closed in every turn
        for i in 0 .. int n - 1 do
            let mutable nearest = negatives[i].unsqueeze 0L

            for j in 0 .. centres.Length - 1 do
                let candidate =
                    features[int64 i]
                        .unsqueeze(0L)
                        .sub(unit[int64 j])
                        .norm(float32 order)
                        .clamp_min(number 1e-12)

                let known = nearest.squeeze 0L
                nearest <- (if isLess candidate known then candidate else known).unsqueeze 0L

            negatives[i] <- nearest.squeeze 0L

        let nearest, farthest = torch.stack negatives, torch.stack positives
        farthest.sub(nearest).add(number margin).clamp_min(number 0.0).mean())

/// The matrix that updates are multiplied with, of a second moment [d, d], by a singular value decomposition. Owned by
/// the caller.
let transform (threshold: float) (moment: torch.Tensor) : torch.Tensor =
    Scope.noGrad Leaves.tensor (fun () ->
        let struct (_, values, rows) = torch.linalg.svd (moment, true)
        let shares = values.cumsum(0L).div(values.sum ())
        let reached = shares.ge(number threshold).nonzero()
        let rank = reached[0L, 0L].item<int64>() + 1L
        let basis = rows.t().narrow(1L, 0L, rank)
        let projector = basis.mm (basis.t ())
        projector.div (projector.norm ()))

/// Rows of a float32 matrix, in the host's memory.
let rowsOf (matrix: torch.Tensor) : float32[][] =
    if matrix.shape[0] = 0L then
        [||]
    else
        Scope.run (fun () -> matrix.cpu().contiguous().data<float32>().ToArray())
        |> Array.chunkBySize (int matrix.shape[1])


/// The mean feature of each class from `first` on, with a pass over the data for every class. Images enter the network
/// 128 at a time.
let prototypes
    (features: torch.Tensor -> torch.Tensor)
    (first: int)
    (classes: int)
    (loaders: unit -> BatchLoader[])
    : float32[][] =
    [|
        for c in first .. first + classes - 1 do
            Scope.run (fun () ->
                use _ = torch.no_grad ()

                let mine =
                    [|
                        for load in loaders () do
                            let batch = load ()
                            let rows = batch.Labels.eq(number (float c)).nonzero().squeeze 1L
                            batch.Images.index_select (0L, rows)
                    |]

                let found =
                    [|
                        for images in (torch.cat (mine, 0L)).split 128L do
                            yield! rowsOf (features images)
                    |]

                Array.init found[0].Length (fun j -> found |> Array.averageBy (fun row -> row[j])))
    |]

/// Positions of the nearest prototypes of feature rows [n, d], by loops over numbers.
let nearest (centres: float32[][]) (features: torch.Tensor) : int[] =
    let scaled (offset: float) (row: float32[]) =
        let length = sqrt (row |> Array.sumBy (fun x -> float x * float x)) + offset
        row |> Array.map (fun x -> float x / length)

    let means = centres |> Array.map (scaled 0.0)

    [|
        for row in rowsOf features do
            let feature = scaled 1e-8 row

            let squared (mean: float[]) =
                let mutable sum = 0.0

                for j in 0 .. mean.Length - 1 do
                    let difference = mean[j] - feature[j]
                    sum <- sum + difference * difference

                sum

            let distances = means |> Array.map squared
            Array.IndexOf(distances, Array.min distances)
    |]

// ---------------------------------------------------------------- the learner

/// Adam's state of one parameter, changed in place.
type private Parameter =
    {
        Value: torch.Tensor
        Rate: float
        Mean: torch.Tensor
        Square: torch.Tensor
        mutable Transform: torch.Tensor option
        mutable Steps: int
    }

/// A learner that changes in place, as the published one does. Of the backbone it borrows the frozen weights, in
/// float32; Dispose frees its own tensors.
type Learner(vit: VisionTransformer, settings: LoRASubSettings, scheduleEpochs: int) =
    let depth = vit.Blocks.Length
    let width = vit.Width

    let owned (t: torch.Tensor) =
        t.detach().clone().DetachFromDisposeScope()

    let zeros (shape: int64[]) =
        (torch.zeros shape).DetachFromDisposeScope()

    // key and value per block
    let deltas = Array.init (2 * depth) (fun _ -> zeros [| width; width |])
    let moments = Array.init depth (fun _ -> zeros [| width; width |])
    let mutable rows = 0L
    let mutable parameters: Parameter[] = [||]
    let mutable means: float32[][] = [||]

    let mutable task: LearningTask =
        {
            Index = 0
            FirstClass = 0
            Classes = [||]
        }

    let freeParameters () =
        for p in parameters do
            p.Value.Dispose()
            p.Mean.Dispose()
            p.Square.Dispose()
            p.Transform |> Option.iter _.Dispose()

        parameters <- [||]

    /// Adds what a block's keys or values have learned: sign · V, and B·A in training.
    let changed (sign: float) (training: bool) (place: int) (weight: torch.Tensor) =
        let merged = weight.add (deltas[place].mul(number sign))

        if training then
            merged.add (parameters[2 * place + 1].Value.mm parameters[2 * place].Value)
        else
            merged

    let attention (sign: float) training b (x: torch.Tensor) =
        let block = vit.Blocks[b]
        let heads = int64 vit.Heads
        let batch, tokens = x.shape[0], x.shape[1]
        let parts = block.Qkv.Weight.chunk (3L, dim = 0L)

        let weight =
            torch.cat (
                [|
                    parts[0]
                    changed sign training (2 * b) parts[1]
                    changed sign training (2 * b + 1) parts[2]
                |],
                0L
            )

        let qkv =
            torch.nn.functional
                .linear(x, weight, Option.toObj block.Qkv.Bias)
                .reshape(batch, tokens, 3L, heads, width / heads)
                .permute(2L, 0L, 3L, 1L, 4L) // [3, B, h, N, d/h]

        let scale = number (1.0 / sqrt (float (width / heads)))

        let shares = qkv[0L].matmul(qkv[1L].transpose(-2L, -1L)).mul(scale).softmax -1L

        shares.matmul(qkv[2L]).transpose(1L, 2L).reshape(batch, tokens, width)
        |> linear block.Projection

    let norm (norm: LayerNorm) (x: torch.Tensor) =
        torch.nn.functional.layer_norm (x, [| width |], norm.Weight, norm.Bias, norm.Epsilon)

    let collect b (x: torch.Tensor) =
        let grams = x.transpose(1L, 2L).bmm(x).sum(0L).cpu() // from [B, d, d]
        let total = rows + x.shape[0] * x.shape[1]
        let before = moments[b]

        moments[b] <-
            before.mul(number (float rows)).add(grams).div(number (float total)).DetachFromDisposeScope()

        before.Dispose()

    let forward (sign: float) training observing (images: torch.Tensor) =
        let patch = int64 vit.PatchSize

        let grid =
            torch.nn.functional.conv2d (
                images,
                vit.PatchEmbedding.Weight,
                Option.toObj vit.PatchEmbedding.Bias,
                [| patch; patch |]
            )

        let tokens = grid.flatten(2L).transpose(1L, 2L)
        let classToken = vit.ClassToken.expand (images.shape[0], 1L, -1L)
        let mutable x = torch.cat([| classToken; tokens |], 1L).add vit.Positions

        for b in 0 .. depth - 1 do
            let block = vit.Blocks[b]
            let input = norm block.Norm1 x

            if observing then
                collect b input

            x <- x.add (attention sign training b input)

            x <-
                norm block.Norm2 x
                |> linear block.Fc1
                |> torch.nn.functional.gelu
                |> linear block.Fc2
                |> x.add

        if observing then
            rows <- rows + x.shape[0] * x.shape[1]

        (norm vit.Norm x).select(1L, 0L)

    let update epoch (p: Parameter) =
        let grad = p.Value.grad
        let adam = settings.Adam
        p.Steps <- p.Steps + 1

        p.Mean.mul_(number adam.Beta1).add_(grad.mul (number (1.0 - adam.Beta1)))
        |> ignore

        p.Square.mul_(number adam.Beta2).addcmul_(grad, grad, number (1.0 - adam.Beta2))
        |> ignore

        let correction beta = 1.0 - Math.Pow(beta, float p.Steps)

        let size =
            Schedule.cosine p.Rate scheduleEpochs epoch * sqrt (correction adam.Beta2)
            / correction adam.Beta1

        let free = p.Mean.mul(number -size).div(p.Square.sqrt().add_(number adam.Epsilon))

        let change =
            match p.Transform with
            | None -> free
            | Some t when t.shape[0] = free.shape[0] -> t.mm free
            | Some t -> free.mm t

        p.Value.add_ change |> ignore

    /// Counted from 0, it sets the learning rates.
    member val Epoch = 0 with get, set

    /// Pairs per block as A, B of keys, then of values; the head's weight and bias. Borrowed.
    member _.Parameters: torch.Tensor[] = parameters |> Array.map _.Value

    /// One per block. Borrowed.
    member _.Moments: torch.Tensor[] = moments

    /// Mean raw features of the classes learned.
    member _.Prototypes: float32[][] = means

    /// Begins a task from copies of these pairs and this head.
    member _.BeginTask(next: LearningTask, lora: LayerLora[], head: Linear) : unit =
        task <- next
        freeParameters ()

        let parameter rate (start: torch.Tensor) =
            {
                Value = (owned start).requires_grad_()
                Rate = rate
                Mean = owned (torch.zeros_like start)
                Square = owned (torch.zeros_like start)
                Transform = None
                Steps = 0
            }

        parameters <-
            Scope.run (fun () ->
                [|
                    for pair in Seq.collect Lora.leaves lora do
                        parameter settings.LearningRate pair
                    for leaf in Linear.leaves head do
                        parameter settings.HeadLearningRate leaf
                |])

        for moment in moments do
            moment.zero_ () |> ignore

        rows <- 0L

    /// One batch through the subtracted network.
    member _.Observe(batch: Batch) : unit =
        Scope.run (fun () ->
            use _ = torch.no_grad ()
            forward -1.0 false true batch.Images |> ignore)

    /// Four decompositions of each block's matrix.
    member _.Prepare() : unit =
        for b in 0 .. depth - 1 do
            for p in 4 * b .. 4 * b + 3 do
                use copy = moments[b].clone()
                parameters[p].Transform <- Some((transform settings.Energy copy).DetachFromDisposeScope())

    /// One step on one batch; the loss and the number of right predictions, both read.
    member this.Step(batch: Batch) : struct (float * int64) =
        Scope.run (fun () ->
            let local = batch.Labels.sub (Scalar.op_Implicit (int64 task.FirstClass))
            let features = forward 1.0 true false batch.Images
            let count = parameters.Length

            let logits =
                torch.nn.functional.linear (
                    features,
                    parameters[count - 2].Value,
                    parameters[count - 1].Value
                )

            let unit = features.div (features.norm (1, keepdim = true))

            let loss =
                torch.nn.functional
                    .cross_entropy(logits, local)
                    .add(
                        (triplet settings.Margin settings.NormOrder means local unit)
                            .mul(number settings.TripletWeight)
                    )

            let right = logits.argmax(1L).eq(local).sum().item<int64>()

            for p in parameters do
                if not (isNull p.Value.grad) then
                    p.Value.grad.zero_ () |> ignore

            loss.backward ()
            use _ = torch.no_grad ()

            for p in parameters do
                update this.Epoch p

            struct (float (loss.item<float32>()), right))

    /// The network of the finished tasks: images -> features, owned by the caller.
    member _.Features(images: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () -> forward 1.0 false false images)

    /// Merges the pairs, and passes over the data once for each class.
    member this.EndTask(loaders: unit -> BatchLoader[]) : unit =
        Scope.run (fun () ->
            use _ = torch.no_grad ()

            for place in 0 .. 2 * depth - 1 do
                deltas[place].add_(parameters[2 * place + 1].Value.mm parameters[2 * place].Value)
                |> ignore)

        let fresh = prototypes this.Features task.FirstClass task.Classes.Length loaders

        means <- Array.append means fresh

    /// Positions of the nearest prototypes of images.
    member this.Predict(images: torch.Tensor) : int[] =
        use features = this.Features images
        nearest means features

    interface IDisposable with
        member _.Dispose() =
            freeParameters ()
            deltas |> Array.iter _.Dispose()
            moments |> Array.iter _.Dispose()
