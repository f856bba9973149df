/// How fast a learner predicts image files, against the forward passes alone.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Predicting

open System.IO
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Report
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open TorchSharp

/// What a measurement is made of.
type private Setup =
    {
        Shape: BackboneShape
        Photographs: int
        Width: int
        Height: int
        BatchSize: int
    }

let private full =
    {
        Shape =
            { Workload.vitBaseShape with
                Width = 192
                Heads = 3
            }
        Photographs = 256
        Width = 500
        Height = 375
        BatchSize = 32
    }

[<Literal>]
let private Classes = 10

/// A learner as the preset `recommended` makes it, and a state of random embeddings.
let private learned (vit: VisionTransformer) : struct (Learner * TaskState) =
    let embedding = Embedding.rich vit

    let learner =
        Learner.create
            vit
            (Method.hide (Frozen.method' vit))
            (Head.hide (Discriminant.cosine (Shrinkage.Fixed 0.01)))
            embedding

    let state = Learner.start learner (Workload.key 1L)
    let images = 20 * Classes

    let embeddings =
        Rng.normal [| int64 images; Embedding.width vit embedding |] torch.float32 torch.CPU (Workload.key 2L)

    let rows = torch.tensor (Array.init images (fun i -> int64 (i % Classes)))

    let info row : ClassInfo =
        {
            Id = ClassId row
            Name = $"class {row}"
            Task = 0
            Images = 20L
        }

    struct (learner,
            { state with
                Finished = 1
                Classes = Array.init Classes info
                Head = learner.Head.Grow Classes state.Head |> learner.Head.Observe embeddings rows
            })

/// Predictions of files, decoded anew each time, and forward passes over one batch in memory, in turns.
let private timings (setup: Setup) rounds : Timing list =
    let folder = Directory.CreateTempSubdirectory "lorasub-bench-"

    try
        Scope.noGrad Leaves.none (fun () ->
            let vit = Workload.random setup.Shape Precision.Float32

            let paths =
                Waiting.writePhotographs setup.Photographs setup.Width setup.Height folder.FullName

            let set: ImageSet =
                {
                    Source = "photographs"
                    Labels = Array.zeroCreate paths.Length
                    Read = fun i -> ImageFile.read paths[i]
                }

            let options: BatchOptions =
                {
                    Format =
                        {
                            Size = vit.ImageSize
                            Channels = 3
                            Low = -1.0
                            High = 1.0
                        }
                    BatchSize = setup.BatchSize
                    Augmentation = Augmentation.None
                    Cropping = Cropping.standard
                    Device = vit.Device
                    Dtype = torch.float32
                }

            let struct (learner, state) = learned vit
            let model = Learner.deploy learner state
            let network = VisionTransformer.frozen vit
            let batch = Workload.batch vit setup.BatchSize 0 Classes 3L

            let predict () =
                ImageTask.best 3 learner options model Calibration.none set (Array.init paths.Length id)
                |> ignore

            let forward () =
                for _ in 1 .. paths.Length / setup.BatchSize do
                    Scope.run (fun () -> VisionTransformer.features network vit batch.Images |> ignore)

            interleaved rounds [ "predict", predict; "forward", forward ])
    finally
        folder.Delete true

let private measure (options: Options) : Findings =
    let setup = full
    let found = timings setup options.Rounds
    let ratio = Timing.ratio found[0] found[1]

    let perSecond (timing: Timing) =
        timing.Seconds
        |> Array.map (fun seconds -> float setup.Photographs / seconds)
        |> Spread.ofValues
        |> Cell.Measured

    {
        Text =
            [
                $"{setup.Photographs} JPEG files of {setup.Width} x {setup.Height} pixels, decoded, resized to 224 pixels,"
                + $" and predicted in batches of {setup.BatchSize} by the recommended head on a ViT-Ti/16 (width 192, 12"
                + " blocks, 197 tokens) in float32; against the forward passes of as many batches that are in memory."
            ]
        Tables =
            [
                {
                    Caption = "Images per second"
                    Columns = [ "what"; "images per second" ]
                    Rows =
                        [
                            [ Cell.Text "predictions from files"; perSecond found[0] ]
                            [ Cell.Text "forward passes alone"; perSecond found[1] ]
                        ]
                }
            ]
        Targets = [ Target.atMost "predictions from files / forward passes" 1.25 "x" ratio ]
    }

/// A small one runs.
let private check () =
    let small =
        { full with
            Shape =
                { full.Shape with
                    Width = 24
                    Depth = 1
                    ImageSize = 32
                }
            Photographs = 8
            Width = 40
            Height = 30
            BatchSize = 4
        }

    timings small 1 |> ignore

let section: Section =
    {
        Id = "predict"
        Title = "Predicting files"
        NeedsData = false
        Measure = measure
        Check = check
    }
