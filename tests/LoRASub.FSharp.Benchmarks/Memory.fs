/// Peak memory of training steps, each in a process of its own.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Memory

open System
open System.Diagnostics
open System.Reflection
open LoRASub
open LoRASub.Benchmarks.Results

[<Literal>]
let private Steps = 3

/// Peaks in bytes, before the first step and after the last, of steps on a network; ends no process.
let private peaks (vit: VisionTransformer) settings (images: int) : struct (int64 * int64) =
    let batch = Workload.batch vit images 0 10 1L

    let training =
        Workload.training vit settings (Workload.taskAfter 0 10) (Workload.stateOf vit 0) batch

    let before = MemoryUse.peakBytes ()

    for _ in 1..Steps do
        Scope.run (fun () -> LoRASubDrs.update vit settings batch training |> ignore)

    struct (before, MemoryUse.peakBytes ())

let private precisions =
    [ "float32", Precision.Float32; "bfloat16", Precision.BFloat16 ]

/// What the child process does: steps on ViT-B/16, then prints both peaks.
let child (precision: string) (images: int) : unit =
    Scope.run (fun () ->
        let vit =
            Workload.random Workload.vitBaseShape (Map.find precision (Map.ofList precisions))

        let struct (before, after) = peaks vit Workload.settings images
        printfn $"{before} {after}")

let private inChild (options: Options) precision (images: int) : int64[] =
    let arguments =
        [
            Assembly.GetExecutingAssembly().Location
            "--threads"
            string options.Threads
            "--peak"
            precision
            string images
        ]

    let info = ProcessStartInfo("dotnet", arguments)
    info.RedirectStandardOutput <- true
    use child = Process.Start info
    let text = child.StandardOutput.ReadToEnd()
    child.WaitForExit()

    if child.ExitCode <> 0 then
        failwith $"the process of {images} images in {precision} ended with {child.ExitCode}"

    text.Trim().Split ' ' |> Array.map Int64.Parse

let private measure (options: Options) : Findings =
    let mebibytes (bytes: int64) = Cell.Number(float bytes / 1048576.0)

    {
        Text =
            [
                $"The largest resident memory of a process that makes a ViT-B/16 with random weights and trains {Steps}"
                + " steps at 224 pixels, rank 10: before the first step, and to the end."
            ]
        Tables =
            [
                {
                    Caption = "MiB"
                    Columns = [ "format"; "images in a batch"; "before the steps"; "peak"; "peak per image" ]
                    Rows =
                        [
                            for precision, _ in precisions do
                                for images in [ 8; 32 ] do
                                    let peaks = inChild options precision images

                                    [
                                        Cell.Text precision
                                        Cell.Number(float images)
                                        mebibytes peaks[0]
                                        mebibytes peaks[1]
                                        mebibytes (peaks[1] / int64 images)
                                    ]
                        ]
                }
            ]
        Targets = []
    }

let private check () =
    Scope.run (fun () ->
        let struct (before, after) =
            peaks (Workload.tiny ()) { Workload.settings with Rank = 3 } 4

        if before <= 0L || after < before then
            failwith $"memory: a peak of {after} bytes after one of {before}")

let section: Section =
    {
        Id = "memory"
        Title = "Peak memory"
        Measure = measure
        Check = check
    }
