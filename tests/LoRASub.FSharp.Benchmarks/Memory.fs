/// Peak memory of training steps, each in a process of its own.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Memory

open System
open System.Diagnostics
open System.Globalization
open System.Reflection
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results

[<Literal>]
let private Steps = 3

/// What steps on a network did to the memory of their process.
type private Use =
    {
        /// Bytes before the first step.
        Before: int64
        Peak: int64
        /// Seconds of a step after the first.
        Seconds: float
    }

let private steps (vit: VisionTransformer) settings (images: int) : Use =
    let batch = Workload.batch vit images 0 10 1L

    let training =
        Workload.training vit settings (Workload.taskAfter 0 10) (Workload.stateOf vit 0) batch

    let step () =
        Scope.run (fun () -> (LoRASubDrs.method' vit settings).Update Workload.rates batch training |> ignore)

    let before = MemoryUse.peakBytes ()
    step ()

    let struct ((), seconds) =
        timed (fun () ->
            for _ in 1..Steps do
                step ())

    {
        Before = before
        Peak = MemoryUse.peakBytes ()
        Seconds = seconds / float Steps
    }

let private precisions =
    [ "float32", Precision.Float32; "bfloat16", Precision.BFloat16 ]

let private activations = [ "kept", false; "recomputed", true ]

/// What the child process does: steps on ViT-B/16, then prints what they used.
let child (precision: string) (kept: string) (images: int) : unit =
    Scope.run (fun () ->
        let vit =
            Workload.random Workload.vitBaseShape (Map.find precision (Map.ofList precisions))

        let used =
            steps
                { vit with
                    CheckpointActivations = Map.find kept (Map.ofList activations)
                }
                Workload.settings
                images

        printfn "%d %d %.6f" used.Before used.Peak used.Seconds)

let private inChild (options: Options) precision kept (images: int) : Use =
    let arguments =
        [
            Assembly.GetExecutingAssembly().Location
            "--threads"
            string options.Threads
            "--peak"
            precision
            kept
            string images
        ]

    let info = ProcessStartInfo("dotnet", arguments)
    info.RedirectStandardOutput <- true
    use child = Process.Start info
    let text = child.StandardOutput.ReadToEnd()
    child.WaitForExit()

    if child.ExitCode <> 0 then
        failwith $"the process of {images} images in {precision} ended with {child.ExitCode}"

    let told = text.Trim().Split ' '

    {
        Before = Int64.Parse told[0]
        Peak = Int64.Parse told[1]
        Seconds = Double.Parse(told[2], CultureInfo.InvariantCulture)
    }

let private measure (options: Options) : Findings =
    let mebibytes (bytes: int64) = Cell.Number(float bytes / 1048576.0)

    {
        Text =
            [
                "The largest resident memory of a process that makes a ViT-B/16 with random weights and trains"
                + $" {Steps + 1} steps at 224 pixels, rank 10: before the first step, and to the end. Each row is one"
                + " process; activations are kept for the gradient or, with `--checkpoint-activations`, recomputed; times"
                + " are of a step after the first."
            ]
        Tables =
            [
                {
                    Caption = "Peak resident memory, MiB"
                    Columns =
                        [
                            "format"
                            "images in a batch"
                            "activations"
                            "before the steps"
                            "peak"
                            "of the steps, / kept"
                            "time, / kept"
                        ]
                    Rows =
                        [
                            for precision, _ in precisions do
                                for images in [ 8; 32 ] do
                                    let all =
                                        activations
                                        |> List.map (fun (name, _) ->
                                            name, inChild options precision name images)

                                    let kept = snd all.Head
                                    let grown (u: Use) = float (u.Peak - u.Before)

                                    for name, used in all do
                                        [
                                            Cell.Text precision
                                            Cell.Number(float images)
                                            Cell.Text name
                                            mebibytes used.Before
                                            mebibytes used.Peak
                                            Cell.Number(grown used / grown kept)
                                            Cell.Number(used.Seconds / kept.Seconds)
                                        ]
                        ]
                }
            ]
        Targets = []
    }

/// Steps run, with activations kept and recomputed.
let private check () =
    Scope.run (fun () ->
        for _, recomputed in activations do
            let vit =
                { Workload.tiny () with
                    CheckpointActivations = recomputed
                }

            steps vit { Workload.settings with Rank = 3 } 4 |> ignore)

let section: Section =
    {
        Id = "memory"
        Title = "Peak memory"
        NeedsData = false
        Measure = measure
        Check = check
    }
