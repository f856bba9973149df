/// Fixtures made by another implementation of the method. LORASUB_GOLDEN names another folder in the same layout.
module LoRASub.Tests.GoldenTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Generators
open TorchSharp

/// Tensors by name, and the header's settings.
type private Fixture(name: string) =
    let file =
        Safetensors.read (Path.Combine(Probe.goldenFolder, $"{name}.safetensors"))

    member _.Setting(key: string) = file.Metadata[key]
    member _.Has(key: string) = file.Tensors.ContainsKey key
    member _.Tensor(key: string) : torch.Tensor = file.Tensors[key].``to`` device
    member this.Number(key: string) = (this.Tensor key).item<float>()
    member this.Integer(key: string) = (this.Tensor key).item<int64>()
    member this.Cases = int (this.Setting "cases")

    /// The tensors under a prefix, without it.
    member _.Under(prefix: string) =
        file.Tensors
        |> Map.toSeq
        |> Seq.filter (fun (key, _) -> key.StartsWith prefix)
        |> Seq.map (fun (key, tensor) -> key.Substring prefix.Length, tensor)
        |> Map.ofSeq

/// Largest absolute difference; infinite where one is NaN.
let private difference (expected: torch.Tensor) (actual: torch.Tensor) =
    Expect.equal actual.shape expected.shape "shape"

    let d =
        Array.map2 (fun (e: float) a -> abs (e - a)) (numbers expected) (numbers actual)

    if Array.exists Double.IsNaN d then
        infinity
    else
        Array.fold max 0.0 d

/// Runs every case, reports the largest difference of all and bounds it.
let private golden (name: string) (cases: Fixture -> float list) =
    testCase name (fun () ->
        Scope.run (fun () ->
            let differences = cases (Fixture name)
            let largest = List.max differences
            Check.note $"golden {name}: {differences.Length} cases, largest difference {largest:E2}"
            Check.atMost "largest difference" 1e-9 largest))

let private triplet (f: Fixture) =
    [
        for i in 0 .. f.Cases - 1 do
            let prototypes, labels = f.Tensor $"{i}.prototypes", f.Tensor $"{i}.labels"

            let loss (ps: torch.Tensor[]) =
                AugmentedTriplet.loss (f.Number $"{i}.margin") 2.0 prototypes labels ps[0]

            let struct (value, gradients) =
                Grad.valueAndGrad loss [| f.Tensor $"{i}.features" |]

            max
                (difference (f.Tensor $"{i}.loss") (value.reshape 1L))
                (difference (f.Tensor $"{i}.gradient") gradients[0].Value)
    ]

let private projection (f: Fixture) =
    [
        for i in 0 .. f.Cases - 1 do
            let moment =
                {
                    Moment = f.Tensor $"{i}.moment"
                    Count = 1L
                }

            let p =
                Projection.retain UpdateScale.Frobenius (f.Number $"{i}.threshold") $"case {i}" moment

            Expect.equal (int64 p.Rank) (f.Integer $"{i}.retained") $"rank of case {i}"

            max
                (difference (f.Tensor $"{i}.singular_values") p.Spectrum)
                (difference (f.Tensor $"{i}.projection") p.Matrix)
    ]

let private projectedAdam (f: Fixture) =
    let number key = float (f.Setting key)

    [
        for i in 0 .. f.Cases - 1 do
            let start, gradients, after =
                f.Tensor $"{i}.start", f.Tensor $"{i}.gradients", f.Tensor $"{i}.after"

            let confinement =
                if f.Has $"{i}.projection" then
                    let p = f.Tensor $"{i}.projection"
                    // the fixture's convention: as many rows as the projection means left, also for squares
                    let left = start.dim () = 2L && start.shape[0] = p.shape[0]
                    Confinement.Within((if left then Side.Left else Side.Right), p)
                else
                    Confinement.Free

            let options =
                {
                    Beta1 = number "beta1"
                    Beta2 = number "beta2"
                    Epsilon = number "eps"
                    WeightDecay = f.Number $"{i}.weight_decay"
                    AmsGrad = f.Integer $"{i}.amsgrad" <> 0L
                }

            let t =
                Transform.chain (Adam.transform (number "lr") options) (Projected.transform [| confinement |])

            let step (struct (ps, state), largest) (s: int64) =
                let struct (ps: torch.Tensor[], state) =
                    Transform.step t [| Some gradients[s] |] state ps

                struct (ps, state), max largest (difference after[s] ps[0])

            let start = [| start |]

            let _, largest =
                List.fold step (struct (start, t.Init start), 0.0) [ 0L .. gradients.shape[0] - 1L ]

            largest
    ]

let private attention (f: Fixture) =
    let weight name = f.Tensor $"weight.{name}"
    let heads = int64 (f.Setting "heads")

    let qkv: Linear =
        {
            Weight = weight "qkv.weight"
            Bias = Some(weight "qkv.bias")
        }

    let projection: Linear =
        {
            Weight = weight "proj.weight"
            Bias = Some(weight "proj.bias")
        }

    let pair part : LoraPair =
        {
            A = weight $"lora_A_{part}.weight"
            B = weight $"lora_B_{part}.weight"
        }

    let lora: LayerLora = Map.ofList [ Site.Key, pair "k"; Site.Value, pair "v" ]

    let before: LayerDelta =
        Map.ofList [ Site.Key, weight "prev_k_weight"; Site.Value, weight "prev_v_weight" ]

    let forward sign delta lora x =
        let weight = Attention.withDelta sign torch.float64 delta qkv.Weight

        let merged = (Attention.withPairs torch.float64 [| lora |] [| weight |])[0]

        Attention.forward heads { qkv with Weight = merged } projection lora x

    let x1, x2 = f.Tensor "x1", f.Tensor "x2"

    let moment =
        SecondMoment.zero x1.shape[2] torch.float64 device
        |> SecondMoment.observe x1
        |> SecondMoment.observe x2

    [
        difference (f.Tensor "training") (forward 1.0 before lora x1)
        difference (f.Tensor "subtracted1") (forward -1.0 before Map.empty x1)
        difference (f.Tensor "subtracted2") (forward -1.0 before Map.empty x2)
        difference (f.Tensor "second_moment") moment.Moment
        difference (f.Tensor "testing_after_merge") (forward 1.0 (Lora.merge lora before) Map.empty x1)
    ]

/// Whole tasks, from the fixture's own initial pairs and heads: observing, training and prototypes batch by batch.
let private learner (f: Fixture) =
    let number key = float (f.Setting key)
    let batchSize = int64 (f.Setting "batch_size")
    let epsilon = number "norm_eps"

    let backbone =
        let options =
            {
                Heads = Some(int (f.Setting "heads"))
                ImageSize = None
                NormEpsilon = { Blocks = epsilon; Final = epsilon }
                Precision = Precision.Float64
                Device = device
                CheckpointActivations = false
            }

        Weights.ofTensors options "fixture" Map.empty (f.Under "backbone.")

    let settings =
        { (Preset.cifar100 Variant.LibContinual).Method with
            Rank = int (f.Setting "rank")
            LearningRate = number "lr"
            HeadLearningRate = number "fc_lr"
            TripletWeight = number "triplet_weight"
            Margin = number "margin"
            Energy = number "threshold"
            Adam =
                {
                    Beta1 = number "beta1"
                    Beta2 = number "beta2"
                    Epsilon = number "eps"
                    WeightDecay = number "weight_decay"
                    AmsGrad = false
                }
        }

    let method = LoRASubDrs.method' backbone settings
    let sizes = (f.Setting "tasks").Split ',' |> Array.map int

    let tasks =
        sizes
        |> Array.mapi (fun i size ->
            let first = Array.sum sizes[.. i - 1]

            {
                Index = i
                FirstClass = first
                Classes = [| first .. first + size - 1 |]
            })

    let oneTask (state: LoRASubDrs.State, found) (task: LearningTask) =
        let at name = $"task.{task.Index}.{name}"
        let images, labels = f.Tensor(at "images"), f.Tensor(at "labels")

        let loaders: BatchLoader[] =
            [|
                for start in 0L .. batchSize .. labels.shape[0] - 1L do
                    let count = min batchSize (labels.shape[0] - start)

                    fun () ->
                        {
                            Images = images.narrow (0L, start, count)
                            Labels = labels.narrow (0L, start, count)
                        }
            |]

        let lora =
            Array.init backbone.Blocks.Length (fun b ->
                let pair part =
                    {
                        A = f.Tensor(at $"block.{b}.lora_A_{part}.initial")
                        B = f.Tensor(at $"block.{b}.lora_B_{part}.initial")
                    }

                Map.ofList [ Site.Key, pair "k"; Site.Value, pair "v" ])

        let head: Linear =
            {
                Weight = f.Tensor $"head.{task.Index}.weight"
                Bias = Some(f.Tensor $"head.{task.Index}.bias")
            }

        let begun =
            LoRASubDrs.beginTaskWith backbone settings (LoraTask.ofPairs lora head) task state

        let observed =
            if method.Observes task then
                Array.fold (fun o (load: BatchLoader) -> method.Observe (load ()) o) begun loaders
            else
                begun

        let step rates struct (training, losses) (load: BatchLoader) =
            let struct (training, report) = method.Update rates (load ()) training
            struct (training, report.Loss :: losses)

        let epoch state e =
            let rate baseRate =
                Schedule.cosine baseRate (int (f.Setting "schedule_epochs")) e

            let rates =
                {
                    Network = rate settings.LearningRate
                    Classifier = rate settings.HeadLearningRate
                }

            Array.fold (step rates) state loaders

        let prepared = method.Prepare observed

        if task.Index > 0 then
            let ranks = wholeNumbers (f.Tensor(at "retained"))

            Expect.equal
                ((method.Diagnostics prepared).Retained |> Array.map (_.Rank >> int64))
                ranks
                (at "retained")

        let struct (training, losses) =
            Seq.fold epoch struct (prepared, []) [ 0 .. int (f.Setting "epochs") - 1 ]

        let merged = method.Merge training
        let adapters = method.Adapters merged

        let next =
            loaders
            |> Array.fold
                (fun state load ->
                    let batch = load ()
                    let features = VisionTransformer.features adapters backbone batch.Images
                    method.Consolidate batch features state)
                merged
            |> method.Finish

        let probe = f.Tensor "probe.images"
        let features = VisionTransformer.features adapters backbone probe

        let predictions =
            (NearestMean.ofMeans next.Prototypes).Score features
            |> Scorer.best
            |> wholeNumbers

        Expect.equal predictions (wholeNumbers (f.Tensor(at "probe_predictions"))) (at "probe_predictions")

        let deltas =
            [
                for b in 0 .. backbone.Blocks.Length - 1 do
                    difference (f.Tensor(at $"block.{b}.accumulated_k")) (Map.find Site.Key next.Deltas[b])
                    difference (f.Tensor(at $"block.{b}.accumulated_v")) (Map.find Site.Value next.Deltas[b])
            ]

        next,
        List.concat
            [
                found
                deltas
                [
                    difference (f.Tensor(at "losses")) (torch.stack (List.rev losses))
                    difference (f.Tensor(at "prototypes")) next.Prototypes
                    difference (f.Tensor(at "probe_features")) features
                ]
            ]

    let start = method.Start(Rng.ofSeed 0L)

    let before =
        VisionTransformer.features (method.Adapters start) backbone (f.Tensor "probe.images")

    Array.fold oneTask (start, [ difference (f.Tensor "probe.features_before") before ]) tasks
    |> snd

[<Tests>]
let tests =
    testList
        "Golden"
        [
            golden "augmented_triplet" triplet
            golden "retained_projection" projection
            golden "projected_adam" projectedAdam
            golden "attention" attention
            golden "learner" learner
            golden "learner_official" learner
        ]
