module LoRASub.Tests.E2LoraTests

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "E2Lora" name law

/// A finished task's directions and those of a task that was just trained, which reads `Inputs` rows.
type Drift =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(2, 6)>]
        Outputs: int
        [<Between(1, 5)>]
        Width: int
        [<Between(1, 9)>]
        Inputs: int
        /// Modulo the outputs.
        [<Between(0, 5)>]
        Finished: int
    }

    member c.First = c.Finished % c.Outputs
    member c.X = normalMatrix c.Seed c.Inputs c.Width |> Array2D.map (fun x -> x + 0.5)

    member internal c.Deltas: OutputDeltas =
        {
            Basis = tensor (orthogonal (c.Seed + 1) c.Outputs)
            A = tensor (normalMatrix (c.Seed + 2) c.Outputs c.Width)
            Before = vector (Array.init c.First (fun i -> float i / 10.0))
        }

    member c.Moment: SecondMoment =
        let extended =
            Array2D.init c.Inputs (c.Width + 1) (fun i j -> if j < c.Width then c.X[i, j] else 1.0)

        SecondMoment.ofInputs torch.ScalarType.Float64 (tensor extended)

    member internal c.Ordered = OutputDeltas.ordered "test" c.Moment c.Deltas

let private columns first (m: float[,]) = m[*, first..]

let private gram (m: float[,]) =
    Oracles.multiply (Oracles.transpose m) m

/// Covariance of the rows.
let private covariance (rows: float[,]) : float[,] =
    let n = Array2D.length1 rows
    let mean = Array.init (Array2D.length2 rows) (fun j -> Array.average rows[*, j])
    Oracles.secondMoment (rows |> Array2D.mapi (fun _ j x -> x - mean[j]))

/// Shares of energies of some tasks, in descending order each.
type Energies =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 5)>]
        Tasks: int
        [<Between(2, 6)>]
        Each: int
        /// How steeply the energies fall.
        [<Between(0, 40)>]
        Slope: int
    }

    member c.All: float[][] =
        let random = System.Random c.Seed

        Array.init c.Tasks (fun _ ->
            Array.init c.Each (fun i -> (0.5 + random.NextDouble()) * exp (-0.2 * float (c.Slope * i)))
            |> Array.sortDescending)

    member c.Before: float[] =
        c.All
        |> Array.collect (fun e -> Array.init e.Length (fun i -> Array.sum e[.. i - 1] / Array.sum e))

/// The published loop, whose thresholds are lowered by the rounding of float32: the number that each task keeps.
let private published (all: float[][]) : int[] =
    let outputs, tasks = Array.sumBy Array.length all, all.Length

    let keep threshold (e: float[]) =
        Array.init e.Length (fun i -> Array.sum e[..i])
        |> Array.filter (fun sum -> sum <= threshold * Array.sum e)
        |> fun below -> max 1 (below.Length + 1)

    let mutable step = 1

    let counts () =
        all
        |> Array.map (keep (1.0 - 1e-5 * float step - 8.0 * Precision.epsilon torch.ScalarType.Float32))

    while Array.sum (counts ()) > tasks * outputs / (tasks + 1) do
        step <- step + 1

    counts ()

let private settings: E2LoraSettings =
    {
        Sgd = { Momentum = 0.0; WeightDecay = 0.0 }
        Distillation = 0.7
        Temperature = 2.0
    }

let private plan () =
    let settings =
        { Tiny.settings with
            Tasks = 3
            Precision = Precision.Float64
        }

    Tiny.planWith settings (Tiny.dataset 6 4 3) (Tiny.vit settings.Precision 8 2 7)

let private withPlan (test: Plan -> unit) () = Scope.run (fun () -> test (plan ()))
let private typed (plan: Plan) = E2Lora.typed plan.Backbone settings
let private rates: Rates = { Network = 0.5; Classifier = 0.2 }

let private begun (plan: Plan) state index =
    let task = plan.Stream.Tasks[index]
    (typed plan).BeginTask (Tiny.taskKey plan task) task state

let private step (plan: Plan) (batch: Batch) training =
    let struct (next, _) = (typed plan).Update rates batch training
    next

let private trained (plan: Plan) state index =
    Array.fold
        (fun training batch -> step plan batch training)
        (begun plan state index)
        (Tiny.batches plan index)

let private finished (plan: Plan) index (training: E2Lora.Training) =
    let method = typed plan

    Tiny.batches plan index
    |> Array.fold (fun state batch -> method.Consolidate batch batch.Images state) (method.Merge training)
    |> method.Finish

/// The states before the first task and after each of `count`.
let private states (plan: Plan) count =
    [ 0 .. count - 1 ]
    |> List.scan
        (fun state index -> finished plan index (trained plan state index))
        ((typed plan).Start(Rng.ofSeed 1L))

let private features (plan: Plan) (network: Adapters) images =
    VisionTransformer.features network plan.Backbone images

let private firstImages plan = ((Tiny.batches plan 0)[0]).Images

/// The logits of a state's classifier in a network.
let private logits (plan: Plan) (classifier: Linear) network (batch: Batch) =
    Oracles.linear
        (matrix classifier.Weight)
        (numbers classifier.Bias.Value)
        (matrix (features plan network batch.Images))

/// Cross-entropy of the task's own classes and the distillation of the others, through the merged network.
let private lossThroughMerged (plan: Plan) (batch: Batch) (training: E2Lora.Training) =
    let state = (typed plan).Merge training
    let all = logits plan state.Classifier ((typed plan).Adapters state) batch
    let old = plan.Stream.Tasks[training.Task.Index].FirstClass
    let labels = wholeNumbers batch.Labels |> Array.map (fun l -> int l - old)
    let crossEntropy = fst (Oracles.crossEntropy labels all[*, old .. old + 1])
    let teacher = logits plan training.State.Classifier training.Network batch

    let softmax (row: float[]) =
        let powers = row |> Array.map (fun x -> exp (x / settings.Temperature))
        powers |> Array.map (fun p -> p / Array.sum powers)

    let divergence image =
        let p, q = softmax teacher[image, *], softmax all[image, 0 .. old - 1]
        Array.fold2 (fun sum p q -> sum + p * log (p / q)) 0.0 p q

    let lost =
        if old = 0 then
            0.0
        else
            List.average [ for image in 0 .. labels.Length - 1 -> divergence image ]

    crossEntropy + settings.Distillation * settings.Temperature ** 2.0 * lost

/// The training with one number of one of its tensors moved.
let private moved
    (training: E2Lora.Training)
    (leaf: torch.Tensor)
    (index: int64)
    (by: float)
    : E2Lora.Training =
    let change (t: torch.Tensor) =
        if System.Object.ReferenceEquals(t, leaf) then
            let flat = t.clone().flatten()

            flat.index_add_ (
                0L,
                torch.tensor ([| index |], device = t.device),
                vector [| by |],
                Scalar.op_Implicit 1.0
            )
            |> ignore

            flat.reshape t.shape
        else
            t

    let trained = training.Trained

    { training with
        Trained =
            {
                A = Array.map change trained.A
                B = Array.map change trained.B
                Classifier = Tree.map change Linear.tree trained.Classifier
            }
    }

[<Tests>]
let tests =
    testList
        "E2Lora"
        [
            property
                "ordering keeps the sum of the deltas and the directions of other tasks"
                (fun (c: Drift) ->
                    let before, after = c.Deltas, c.Ordered
                    let sum = Oracles.multiply (matrix before.Basis) (matrix before.A)
                    closeMatrix "sum" sum (OutputDeltas.sum after)
                    let finished = int64 c.First

                    identical
                        "basis"
                        (before.Basis.narrow(1L, 0L, finished).clone())
                        (after.Basis.narrow(1L, 0L, finished).clone())

                    identical "A" (before.A.narrow (0L, 0L, finished)) (after.A.narrow (0L, 0L, finished))
                    identical "shares" before.Before (after.Before.narrow (0L, 0L, finished))

                    close
                        "orthonormal"
                        (Seq.cast<float>(Oracles.identity c.Outputs))
                        (Seq.cast (gram (matrix after.Basis))))

            property
                "along the new directions, the task's outputs are uncorrelated, with descending variances"
                (fun (c: Drift) ->
                    let after = c.Ordered
                    let old = c.Deltas
                    let ownB, ownA = columns c.First (matrix old.Basis), (matrix old.A)[c.First .., *]
                    // the change of the outputs, image by image, along each new direction
                    let drift =
                        Oracles.multiply
                            (Oracles.multiply c.X (Oracles.transpose ownA))
                            (Oracles.transpose ownB)

                    let along = Oracles.multiply drift (columns c.First (matrix after.Basis))
                    let found = covariance along
                    let energies = Array.init (c.Outputs - c.First) (fun i -> found[i, i])

                    closeMatrix
                        "uncorrelated"
                        (Array2D.init energies.Length energies.Length (fun i j ->
                            if i = j then energies[i] else 0.0))
                        (tensor found)

                    Expect.all (Array.pairwise energies) (fun (a, b) -> b <= a + 1e-9) "descending"
                    let total = Array.sum energies

                    // fewer than two inputs have no variance
                    if total > 1e-6 then
                        let shares =
                            energies |> Array.mapi (fun i _ -> Array.sum energies[.. i - 1] / total)

                        closeTo 1e-7 "shares" shares ((numbers after.Before)[c.First ..]))

            property "what stays is what the published loop keeps of each task" (fun (c: Energies) ->
                let expected =
                    published c.All
                    |> Array.collect (fun count -> Array.init c.Each (fun i -> i < count))

                Expect.equal (OutputDeltas.stays c.Tasks c.Before) expected "which stay")

            testCase "a task without energy keeps nothing, and leaves the others theirs" (fun () ->
                Expect.equal
                    (OutputDeltas.stays 2 [| 0.0; 0.9; 1.0; 1.0 |])
                    [| true; true; false; false |]
                    "which stay"

                Expect.equal (OutputDeltas.stays 0 [| 1.0; 1.0 |]) [| false; false |] "before the first task")

            testCase
                "the first task trains A and B, later tasks A alone"
                (withPlan (fun plan ->
                    let states = states plan 1
                    // B is zero in the first step, and so is the gradient of A
                    let first = trained plan states[0] 0
                    let start = begun plan states[0] 0

                    Expect.notEqual
                        (numbers first.Trained.A[1])
                        (numbers start.Trained.A[1])
                        "A of the first task"

                    Expect.all (numbers start.B[1]) ((=) 0.0) "B at the start"
                    Expect.exists (numbers first.B[1]) ((<>) 0.0) "B of the first task"
                    let start = begun plan states[1] 1
                    let second = trained plan states[1] 1
                    Expect.all (numbers start.Trained.A[1]) ((=) 0.0) "A at the start"
                    Expect.exists (numbers second.Trained.A[1]) ((<>) 0.0) "A of the second task"
                    Expect.isEmpty second.Trained.B "trained B"
                    identical "B" start.B[1] second.B[1]))

            testCase
                "a task's B is what earlier tasks do not keep, and the bases of all tasks are orthonormal together"
                (withPlan (fun plan ->
                    for index, state in List.indexed (states plan 2) do
                        let training = begun plan state index

                        for i, block in Array.indexed state.Blocks do
                            let stays = OutputDeltas.stays index (numbers block.Before)

                            let leaving =
                                [|
                                    for j in 0..23 do
                                        if not stays[j] then
                                            j
                                |]

                            atMost "kept" (float (24 * index / (index + 1))) (float (24 - leaving.Length))
                            let basis = matrix block.Basis

                            let expected =
                                Array2D.init 24 leaving.Length (fun row j -> basis[row, leaving[j]])

                            closeMatrix $"free in block {i}" expected training.Free[i]

                            close
                                "orthonormal"
                                (Seq.cast<float>(Oracles.identity 24))
                                (Seq.cast (gram basis))

                        let kept = (typed plan).Merge training

                        closeTensors
                            "the task starts at what is kept"
                            (features plan training.Network (firstImages plan))
                            (features plan ((typed plan).Adapters kept) (firstImages plan))))

            testCase
                "the network in training ≡ the merged one ≡ that of the ordered state, in every task"
                (withPlan (fun plan ->
                    for index, state in List.indexed (states plan 2) do
                        let training = trained plan state index
                        let images = firstImages plan
                        let expected = features plan (E2Lora.inTraining training) images
                        let network = (typed plan).Adapters

                        closeTensors
                            "merged"
                            expected
                            (features plan (network ((typed plan).Merge training)) images)

                        closeTensors
                            "ordered"
                            expected
                            (features plan (network (finished plan index training)) images)))

            for again in [ false; true ] do
                testCase
                    $"a step follows the slope of the merged network's loss, activations again {again}"
                    (withPlan (fun plan ->
                        let plan =
                            { plan with
                                Backbone =
                                    { plan.Backbone with
                                        CheckpointActivations = again
                                    }
                            }

                        for index, state in List.indexed (states plan 1) do
                            let batch = (Tiny.batches plan index)[0]
                            let training = step plan batch (begun plan state index)
                            let next = step plan batch training

                            let leaves (t: E2Lora.Trained) =
                                [
                                    for a in t.A do
                                        rates.Network, a
                                    for b in t.B do
                                        rates.Network, b
                                    for leaf in Linear.leaves t.Classifier do
                                        rates.Classifier, leaf
                                ]

                            for (rate, before), (_, after) in
                                List.zip (leaves training.Trained) (leaves next.Trained) do
                                for i in [ 0; int (before.numel ()) - 1 ] do
                                    let loss by =
                                        lossThroughMerged plan batch (moved training before (int64 i) by)

                                    let slope = (loss 1e-5 - loss -1e-5) / 2e-5
                                    let change = ((numbers before)[i] - (numbers after)[i]) / rate

                                    closeTo
                                        1e-6
                                        $"task {index}, {Shape.text before.shape}"
                                        [ slope ]
                                        [ change ]))

            testCase
                "its own scores ≡ the loops, and rows of earlier classes keep their bits"
                (withPlan (fun plan ->
                    let states = states plan 2

                    identical
                        "rows"
                        states[1].Classifier.Weight
                        (states[2].Classifier.Weight.narrow(0L, 0L, 2L))

                    let batch = (Tiny.batches plan 0)[0]
                    let network = (typed plan).Adapters states[2]

                    match (typed plan).Logits.Value states[2] with
                    | OwnScores.OfFeatures scorer ->
                        features plan network batch.Images
                        |> scorer.Score
                        |> closeMatrix "scores" (logits plan states[2].Classifier network batch)
                    | OwnScores.OfImages _ -> failtest "scores of images"))

            testCase
                "it stores 48·L·d² + 12·L·d + 8 bytes, however many tasks, and 4·(d + 1) per class"
                (withPlan (fun plan ->
                    for index, state in List.indexed (states plan 3) do
                        let float64s = 2 * (12 * 8 * 8 + 3 * 8) + 2 * index * 9
                        Expect.equal (Tree.bytes E2Lora.stateTree state) (8L * int64 float64s + 8L) "bytes"))

            rejects "more tasks than outputs" [ "earlier tasks"; "fewer than the 3"; "3" ] (fun () ->
                OutputDeltas.stays 3 [| 0.0; 0.0; 0.0 |] |> ignore)

            for name, words, change in
                [
                    "a negative distillation",
                    [ "distillation"; "-1" ],
                    (fun s -> { s with Distillation = -1.0 })
                    "a temperature of 0",
                    [ "temperature"; "above 0"; "0" ],
                    (fun s -> { s with Temperature = 0.0 })
                ] do
                rejects name words (fun () ->
                    E2Lora.method' (Tiny.vit Precision.Float32 8 2 7) (change settings) |> ignore)
        ]
