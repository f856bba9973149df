/// Low-rank training against slow loops, whatever the method.
module LoRASub.Tests.LoraSteps

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

/// The trained parameters: A and B of key and value per block, then the head's weight and bias.
let parameters (training: LoraTraining<_, _>) =
    [|
        yield! Seq.collect Lora.leaves training.Lora
        yield! Linear.leaves training.Head
    |]

let batchOf (plan: Plan) task step =
    let all = Tiny.batches plan task
    all[step % all.Length]

let asMatrix (t: torch.Tensor) = matrix (t.reshape (t.shape[0], -1L))

/// A task of the plan, observed and prepared, with the state before it.
let prepared (plan: Plan) (method: Method<'State, LoraObserving<'State>, LoraTraining<'State, 'O>>) index =
    let learner = Tiny.learnerOf plan method
    let task = plan.Stream.Tasks[index]

    let before =
        plan.Stream.Tasks[.. index - 1]
        |> Array.fold
            (Experiment.learnTask learner plan)
            (Learner.start learner (Rng.ofSeed plan.Settings.Seed))

    let state = Method.reveal method before.Method
    let begun = method.BeginTask (Tiny.taskKey plan task) task state

    let observed =
        if method.Observes task then
            Array.fold (fun o batch -> method.Observe batch o) begun (Tiny.batches plan index)
        else
            begun

    struct (state, observed, method.Prepare observed)

/// A training before, between and after so many steps on its task's batches in turn.
let path (plan: Plan) (method: Method<_, _, LoraTraining<'State, 'O>>) steps training =
    List.scan
        (fun (training: LoraTraining<'State, 'O>) step ->
            let batch = batchOf plan training.Task.Index step
            let struct (next, _) = method.Update (Tiny.rates plan) batch training
            next)
        training
        [ 0 .. steps - 1 ]

/// Gradients at a training's parameters of cross-entropy plus what `more` makes of local labels and features, put together
/// here from the network and the head.
let private gradients
    (plan: Plan)
    (deltas: 'State -> LayerDelta[])
    more
    (batch: Batch)
    (training: LoraTraining<'State, _>)
    =
    let blocks = plan.Backbone.Blocks.Length
    let local = batch.Labels.sub (Scalar.op_Implicit (int64 training.Task.FirstClass))

    let lossOf (all: torch.Tensor[]) =
        let pair i : LoraPair = { A = all[i]; B = all[i + 1] }

        let lora =
            Array.init blocks (fun b -> Map.ofList [ Site.Key, pair (4 * b); Site.Value, pair (4 * b + 2) ])

        let features =
            VisionTransformer.features
                { VisionTransformer.forTraining (deltas training.State) plan.Backbone with
                    Lora = lora
                }
                plan.Backbone
                batch.Images

        let logits =
            torch.nn.functional.linear (features, all[4 * blocks], all[4 * blocks + 1])

        match more training.State local features with
        | None -> torch.nn.functional.cross_entropy (logits, local)
        | Some(term: torch.Tensor) -> torch.nn.functional.cross_entropy(logits, local).add term

    let struct (_, found) = Grad.valueAndGrad lossOf (parameters training)
    found |> Array.map (Option.map asMatrix) |> List.ofArray

/// The method's path ≡ Adam in slow loops over those gradients, each parameter confined by `confinedBy`.
let against
    (plan: Plan)
    (method: Method<'State, _, LoraTraining<'State, 'O>>)
    (deltas: 'State -> LayerDelta[])
    (more: 'State -> torch.Tensor -> torch.Tensor -> torch.Tensor option)
    (steps: int)
    (confinedBy: int -> Oracles.Confined)
    (training: LoraTraining<'State, 'O>)
    =
    let path = path plan method steps training

    let found =
        List.init steps (fun step ->
            gradients plan deltas more (batchOf plan training.Task.Index step) path[step])

    let settings = plan.Settings.Method
    let before, after = parameters training, parameters (List.last path)

    for i in 0 .. before.Length - 1 do
        let options: Oracles.AdamSettings =
            {
                Rate =
                    if i < before.Length - 2 then
                        settings.LearningRate
                    else
                        settings.HeadLearningRate
                Beta1 = 0.9
                Beta2 = 0.999
                Epsilon = 1e-8
                WeightDecay = settings.Adam.WeightDecay
                AmsGrad = settings.Adam.AmsGrad
            }

        let expected =
            Oracles.projectedAdam
                options
                (confinedBy i)
                (asMatrix before[i])
                (found |> List.map (fun g -> g[i]))
            |> List.last

        // Adam divides by √v, which magnifies rounding where a gradient is nearly nothing
        closeTo 1e-6 $"parameter {i}" (Seq.cast<float> expected) (numbers after[i])

/// No term beside cross-entropy.
let noMore _ (_: torch.Tensor) (_: torch.Tensor) : torch.Tensor option = None

/// A network with deltas added to its own weights by hand.
let baked (sign: float) (deltas: LayerDelta[]) (vit: VisionTransformer) =
    { vit with
        Blocks =
            Array.map2
                (fun (block: Block) (delta: LayerDelta) ->
                    let d = vit.Width
                    let weight = block.Qkv.Weight.clone ()

                    for rows, part in [ d, delta[Site.Key]; 2L * d, delta[Site.Value] ] do
                        weight.narrow(0L, rows, d).add_(part.mul (Scalar.op_Implicit sign)) |> ignore

                    { block with
                        Qkv = { block.Qkv with Weight = weight }
                    })
                vit.Blocks
                deltas
    }

let bare (vit: VisionTransformer) : Adapters =
    {
        Qkv = vit.Blocks |> Array.map _.Qkv.Weight
        Weights = [||]
        Lora = [||]
        Mlp = [||]
    }

/// Attention inputs [n, d] of each block over some batches of a plain network.
let inputs (vit: VisionTransformer) (batches: Batch[]) : float[,][] =
    let seen =
        batches
        |> Array.map (fun batch ->
            VisionTransformer.foldInputs
                Leaves.tensors
                (fun all _ x -> Array.append all [| x |])
                [||]
                (bare vit)
                vit
                batch.Images)

    Array.init vit.Blocks.Length (fun block ->
        seen
        |> Array.collect (fun seen -> rows (matrix (seen[block].reshape(-1L, vit.Width))))
        |> array2D)

/// Their second moments, in slow loops.
let slowMoments vit batches =
    inputs vit batches |> Array.map Oracles.secondMoment

/// A plan in float64 of three tasks of two classes.
let plan (seed: int) (width: int) (change: LoRASubSettings -> LoRASubSettings) : Plan =
    let settings =
        { Tiny.settings with
            Precision = Precision.Float64
            Seed = int64 seed
            Tasks = 3
        }
        |> Tiny.ofMethod (fun m -> change { m with LearningRate = 0.05 })

    Tiny.planWith settings (Tiny.dataset 6 3 1) (Tiny.vit Precision.Float64 width 2 seed)
