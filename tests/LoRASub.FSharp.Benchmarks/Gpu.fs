/// Phases on a CUDA device against the products that they need.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Gpu

open LoRASub.Core
open LoRASub.Native
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

/// Calls between two waits for the device, which computes behind the program.
[<Literal>]
let private Calls = 5

/// Whether LibTorch finds a CUDA device.
let isThere () : bool =
    NativeBackend.ensureLoaded () |> ignore
    torch.cuda_is_available ()

/// Name and value of what is known of the device.
let facts () : (string * string) list =
    [
        match CudaDriver.device 0 with
        | Some gpu -> "gpu", $"{gpu.Name}, {Bytes.text gpu.TotalBytes}"
        | None -> ()
        for name, value in [ "driver", CudaDriver.version (); "cuda", CudaDriver.cudaVersion () ] do
            match value with
            | Some value -> name, value
            | None -> ()
    ]

// Products with their operands on a device.
let private readyOn (device: torch.Device) (products: Bound.Product list) : Bound.Ready =
    let before = torch.get_default_device ()
    torch.set_default_device device

    try
        Bound.ready products
    finally
        torch.set_default_device before

/// Each phase on one batch, and its products; the tensors belong to the current scope.
let private phases (vit: VisionTransformer) (settings: LoRASubSettings) (images: int) =
    let method = LoRASubDrs.method' vit settings
    let batch = Workload.batch vit images Known Classes 1L
    let task, state = Workload.taskAfter Known Classes, Workload.stateOf vit Known
    let begun = method.BeginTask (Workload.key 9L) task state
    let training = Workload.training vit settings task state batch
    let network = VisionTransformer.frozen vit

    let predict () =
        use _ = torch.no_grad ()
        VisionTransformer.features network vit batch.Images |> ignore

    let sizes = Bound.Sizes.create vit settings.Rank Classes Known images

    [
        "observe", (fun () -> method.Observe batch begun |> ignore), Bound.observe
        "step", (fun () -> method.Update Workload.rates batch training |> ignore), Bound.step
        "predict", predict, Bound.features
    ]
    |> List.map (fun (name, work, products) ->
        name, (fun () -> Scope.run work), readyOn vit.Device (products Bound.Rows.Needed sizes))

let private precisions =
    [
        "float32", Precision.Float32
        "tf32", Precision.TF32
        "bfloat16", Precision.BFloat16
    ]

/// Phase, precision, ours and bound, for each phase and precision of a network.
let private timings rounds (images: int) (make: Precision -> VisionTransformer) =
    Scope.run (fun () ->
        [
            for name, precision in precisions do
                for phase, ours, bound in phases (make precision) Workload.settings images do
                    let action (work: unit -> unit) () =
                        Kernels.allowTF32 (precision = Precision.TF32)

                        for _ in 1..Calls do
                            work ()

                        torch.cuda.synchronize (torch.device (DeviceType.CUDA, 0))

                    use bound = bound

                    match interleaved rounds [ "ours", action ours; "bound", action bound.Run ] with
                    | [ ours; bound ] -> phase, name, ours, bound
                    | _ -> ()
        ])

let private measure (options: Options) : Findings =
    if not (isThere ()) then
        Errors.reject
            "section gpu"
            "needs a CUDA device"
            "none"
            "set LORASUB_LIBTORCH to a LibTorch with CUDA; lorasub doctor shows what is found"

    let device = torch.device (DeviceType.CUDA, 0)

    let networks =
        [
            "bundled, 128 images of 32 pixels", Workload.bundledOn device options.Root
            "ViT-B/16, 128 images of 224 pixels", Workload.randomOn device Workload.vitBaseShape
        ]
        |> List.map (fun (name, make) -> name, timings options.Rounds 128 make)

    let perCall (timing: Timing) =
        Timing.spread timing |> Spread.map (fun seconds -> seconds / float Calls)

    {
        Text =
            [
                $"One batch of each phase on `cuda:0` with {Known} prototypes: observing, a training step (forward, backward,"
                + " projected update), and the features of a prediction. *Bound* is the products alone, in the same format."
                + $" The clock stops when the device is done with {Calls} calls."
            ]
        Tables =
            [
                for name, found in networks do
                    {
                        Caption = name
                        Columns =
                            [
                                "phase"
                                "precision"
                                "ms"
                                "images a second"
                                "bound, ms"
                                "share of the bound, %"
                            ]
                        Rows =
                            [
                                for phase, precision, ours, bound in found do
                                    [
                                        Cell.Text phase
                                        Cell.Text precision
                                        milliseconds (perCall ours)
                                        Cell.Measured(
                                            perCall ours |> Spread.map (fun seconds -> 128.0 / seconds)
                                        )
                                        milliseconds (perCall bound)
                                        Cell.Measured(percent (Timing.ratio bound ours))
                                    ]
                            ]
                    }
            ]
        Targets =
            [
                for name, found in networks do
                    for phase, precision, ours, bound in found do
                        if phase = "step" && precision = "bfloat16" then
                            Target.atMost
                                $"step in bfloat16, ours / bound, {name}"
                                2.0
                                "x"
                                (Timing.ratio ours bound)
            ]
    }

/// Every phase and its products run on a small network, and products land on the device that is asked for.
let private check () =
    Scope.run (fun () ->
        for _, ours, bound in phases (Workload.tiny ()) { Workload.settings with Rank = 3 } 4 do
            use bound = bound
            ours ()
            bound.Run()

        let sizes = Bound.Sizes.create (Workload.tiny ()) 3 Classes Known 4
        use elsewhere = readyOn torch.META (Bound.features Bound.Rows.Needed sizes)

        if
            elsewhere.Operands
            |> Array.exists (fun t -> t.device.``type`` <> DeviceType.META)
        then
            failwith "products are not on the device that was asked for")

let section: Section =
    {
        Id = "gpu"
        Title = "On a GPU"
        NeedsData = false
        Measure = measure
        Check = check
    }
