/// Holds the opponents to the library's numbers: what computes something else is no opponent.
module LoRASub.Benchmarks.Agreement

open System
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Fluent
open LoRASub.Benchmarks.Workload
open TorchSharp

let private tolerance = 1e-4

/// Raises where two tensors differ by more than 1e-4 of the larger one's greatest entry.
let expectEqual (what: string) (expected: torch.Tensor) (actual: torch.Tensor) : unit =
    Scope.run (fun () ->
        use _ = torch.no_grad ()

        let greatest (t: torch.Tensor) =
            t.abs().max().``to``(torch.float64).item<float>()

        let scale = max (greatest expected) (greatest actual)
        let difference = greatest (expected.sub actual)

        if not (difference <= tolerance * scale) then
            failwith $"{what}: differs by {difference} where the library's numbers reach {scale}")

/// Raises where two lists differ.
let expectSame (what: string) (expected: int[]) (actual: int[]) : unit =
    if expected <> actual then
        failwith $"{what}: %A{actual} where the library has %A{expected}"

let private tensorOf (rows: float32[][]) : torch.Tensor =
    (torch.tensor (Array.concat rows)).reshape(rows.LongLength, -1L)

/// Value and gradient of the triplet loss, with and without prototypes, and for a batch of one class.
let triplet () : unit =
    for classes, prototypes in [ 4, 0; 4, 7; 1, 3; 1, 0 ] do
        Scope.run (fun () ->
            let features = unitRows 12 16 (int64 prototypes)
            let means = unitRows prototypes 16 40L
            let labels = torch.tensor (Array.init 12 (fun i -> int64 (i % classes)))

            let both loss =
                Grad.valueAndGrad (fun (f: torch.Tensor[]) -> loss labels f[0]) [| features |]

            let struct (expected, gradients) = both (AugmentedTriplet.loss 1.0 2.0 means)
            let struct (actual, literal) = both (Literal.triplet 1.0 2.0 (Literal.rowsOf means))
            let what = $"triplet loss of {classes} classes and {prototypes} prototypes"
            expectEqual what expected actual

            match gradients[0], literal[0] with
            | Some expected, Some actual -> expectEqual $"gradient of the {what}" expected actual
            | None, None -> ()
            | _ -> failwith $"{what}: only one has a gradient")

/// One decomposition.
let projection () : unit =
    Scope.run (fun () ->
        let moment = SecondMoment.ofInputs torch.float32 (unitRows 60 24 5L)
        let ours = Projection.retain UpdateScale.Frobenius 0.9 "moment" moment
        expectEqual "projection" ours.Matrix (Literal.transform 0.9 moment.Moment))

/// Two tasks learned by both on a small network from the same start: moments, projections and parameters of the second
/// task, prototypes, predictions.
let learner () : unit =
    Scope.run (fun () ->
        let vit = tiny ()

        let settings =
            { settings with
                Rank = 3
                Energy = 0.9
                LearningRate = 1e-2
            }

        let ours = LoRASubDrs.method' vit settings
        use theirs = new Literal.Learner(vit, settings, 3)

        let learn (state: LoRASubDrs.State) (task: LearningTask) : LoRASubDrs.State =
            let batches =
                Array.init 2 (fun i ->
                    batch vit 9 task.FirstClass task.Classes.Length (int64 (10 * task.Index + i)))

            let begun = ours.BeginTask (Rng.ofSeed (int64 task.Index)) task state
            theirs.BeginTask(task, begun.Lora, begun.Head)

            let observed =
                if ours.Observes task then
                    for batch in batches do
                        theirs.Observe batch

                    theirs.Prepare()
                    Array.fold (fun observing batch -> ours.Observe batch observing) begun batches
                else
                    begun

            for b in 0 .. vit.Blocks.Length - 1 do
                expectEqual $"second moment of block {b}" observed.Moments[b].Moment theirs.Moments[b]

            let mutable training = ours.Prepare observed

            for epoch in 0..1 do
                theirs.Epoch <- epoch

                let rate baseRate = Schedule.cosine baseRate 3 epoch

                let rates =
                    {
                        Network = rate settings.LearningRate
                        Classifier = rate settings.HeadLearningRate
                    }

                for batch in batches do
                    let struct (next, report) = ours.Update rates batch training
                    let struct (loss, right) = theirs.Step batch
                    training <- next
                    expectEqual "loss" report.Loss (torch.tensor (float32 loss))
                    expectSame "right predictions" [| int (report.Correct.item<int64>()) |] [| int right |]

            let parameters =
                Seq.append (Seq.collect Lora.leaves training.Lora) (Linear.leaves training.Head)

            Seq.iteri2
                (fun i expected actual -> expectEqual $"parameter {i}" expected actual)
                parameters
                theirs.Parameters

            let loaders () =
                batches
                |> Array.map (fun batch ->
                    fun () ->
                        {
                            Images = batch.Images.clone ()
                            Labels = batch.Labels.clone ()
                        })

            let merged = ours.Merge training
            let adapters = ours.Adapters merged

            let learned =
                loaders ()
                |> Array.fold
                    (fun state load ->
                        let batch = load ()
                        ours.Consolidate batch (VisionTransformer.features adapters vit batch.Images) state)
                    merged
                |> ours.Finish

            theirs.EndTask loaders
            expectEqual "prototypes" learned.Prototypes (tensorOf theirs.Prototypes)
            learned

        let state =
            [ taskAfter 0 3; taskAfter 3 3 ] |> List.fold learn (ours.Start(Rng.ofSeed 4L))

        let images = (batch vit 20 0 6 90L).Images
        let features = VisionTransformer.features (ours.Adapters state) vit images

        let predicted =
            (Scorer.best ((NearestMean.ofMeans state.Prototypes).Score features)).data<int64>().ToArray()
            |> Array.map int

        expectSame "predictions" predicted (theirs.Predict images))

/// The counted operations of ViT-B/16's forward pass are the published 17.58 thousand million multiplications and
/// additions (timm's table) where all rows are counted, and the products run.
let bound () : unit =
    Scope.run (fun () ->
        let sizes: Bound.Sizes =
            {
                Images = 1L
                Tokens = 197L
                Width = 768L
                Heads = 12L
                Depth = 12L
                Hidden = 3072L
                Patch = 768L
                Rank = 10L
                Classes = 10L
                Prototypes = 20L
                Projected = true
                Precision = Precision.Float32
            }

        let pairs = Bound.operations (Bound.features Bound.Rows.All sizes) / 2e9

        if abs (pairs - 17.58) > 0.02 then
            failwith $"ViT-B/16's forward pass counts {pairs} instead of 17.58 G multiplications"

        let small = Bound.Sizes.create (tiny ()) 3 3 6 4

        for products in
            [
                Bound.observe Bound.Rows.Needed small
                Bound.step Bound.Rows.Needed small
                Bound.step Bound.Rows.All small
                Bound.predict Bound.Rows.Needed small
            ] do
            use ready = Bound.ready products
            ready.Run())
