/// Training steps against the products that they need.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Step

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Report
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open TorchSharp

/// Classes of earlier tasks, so that there are prototypes and projections.
[<Literal>]
let private Known = 50

[<Literal>]
let private Classes = 10

/// A training step of the second task, and its products; the tensors belong to the current scope.
let private contestants
    (vit: VisionTransformer)
    (settings: LoRASubSettings)
    (images: int)
    : struct ((unit -> unit) * Bound.Ready) =
    let batch = Workload.batch vit images Known Classes 1L

    let training =
        Workload.training vit settings (Workload.taskAfter Known Classes) (Workload.stateOf vit Known) batch

    let sizes = Bound.Sizes.create vit settings.Rank Classes Known images

    struct ((fun () ->
                Scope.run (fun () ->
                    (LoRASubDrs.method' vit settings).Update Workload.rates batch training |> ignore)),
            Bound.ready (Bound.step Bound.Rows.Needed sizes))

/// Step and bound in float32, then in bfloat16.
let private interleave (rounds: int) (make: Precision -> VisionTransformer) (images: int) : Timing list =
    Scope.run (fun () ->
        let both precision =
            contestants (make precision) Workload.settings images

        let struct (single, singleBound) = both Precision.Float32
        let struct (half, halfBound) = both Precision.BFloat16
        use singleBound = singleBound
        use halfBound = halfBound

        interleaved
            rounds
            [
                "float32", single
                "float32 bound", singleBound.Run
                "bfloat16", half
                "bfloat16 bound", halfBound.Run
            ])

/// Seconds of a product of two square matrices in float32, then in bfloat16.
let private rates (rounds: int) (size: int64) : Timing list =
    Scope.run (fun () ->
        use _ = torch.no_grad ()

        let product (dtype: torch.ScalarType) =
            let matrix () =
                torch.randn ([| size; size |], dtype = dtype)

            let a, b, c = matrix (), matrix (), matrix ()
            fun () -> c.addmm_ (a, b, 0.0f, 1.0f) |> ignore

        interleaved rounds [ "float32", product torch.float32; "bfloat16", product torch.bfloat16 ])

let private measure (options: Options) : Findings =
    let cases =
        [
            "bundled, 128 images of 32 pixels", interleave options.Rounds (Workload.bundled options.Root) 128
            "ViT-B/16, 8 images of 224 pixels",
            interleave options.Rounds (Workload.random Workload.vitBaseShape) 8
        ]

    let size = 2048L
    let products = rates options.Rounds size
    let operations = 2.0 * float (size * size * size)

    let share (timings: Timing list) first =
        Timing.ratio timings[first + 1] timings[first]

    {
        Text =
            [
                $"One training step (forward, backward, projected update) with {Known} prototypes, the four alternatives in"
                + " turns. *Bound* is its products alone, in the same format; the share is *bound* over *ours*."
                "What bfloat16 can gain is what the processor's product gains: the last table."
            ]
        Tables =
            [
                {
                    Caption = "Milliseconds of a step"
                    Columns =
                        [
                            "step"
                            "float32"
                            "bound"
                            "share, %"
                            "bfloat16"
                            "bound"
                            "share, %"
                            "float32 / bfloat16"
                        ]
                    Rows =
                        [
                            for name, timings in cases do
                                let cell i = milliseconds (Timing.spread timings[i])

                                [
                                    Cell.Text name
                                    cell 0
                                    cell 1
                                    Cell.Measured(percent (share timings 0))
                                    cell 2
                                    cell 3
                                    Cell.Measured(percent (share timings 2))
                                    Cell.Measured(Timing.ratio timings[0] timings[2])
                                ]
                        ]
                }
                {
                    Caption = $"A product of two matrices of {size} x {size}"
                    Columns = [ "format"; "ms"; "thousand million operations a second"; "float32 / this" ]
                    Rows =
                        [
                            for timing in products do
                                [
                                    Cell.Text timing.Name
                                    milliseconds (Timing.spread timing)
                                    Cell.Measured(
                                        Timing.spread timing |> Spread.map (fun s -> operations / s / 1e9)
                                    )
                                    Cell.Measured(Timing.ratio products[0] timing)
                                ]
                        ]
                }
            ]
        Targets =
            [
                for name, timings in cases do
                    Target.atLeast $"share of the bound, float32, {name}" 70.0 "%" (percent (share timings 0))

                    Target.atLeast
                        $"share of the bound, bfloat16, {name}"
                        60.0
                        "%"
                        (percent (share timings 2))
            ]
    }

/// A step of a small network runs, and so do its products.
let private runs () =
    Scope.run (fun () ->
        let settings = { Workload.settings with Rank = 3 }
        let struct (step, bound) = contestants (Workload.tiny ()) settings 4
        use bound = bound
        step ()
        bound.Run())

let section: Section =
    {
        Id = "step"
        Title = "Training step"
        NeedsData = false
        Measure = measure
        Check =
            fun () ->
                Agreement.learner ()
                Agreement.bound ()
                runs ()
    }
