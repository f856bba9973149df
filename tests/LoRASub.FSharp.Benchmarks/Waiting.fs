/// How long training waits for images that are decoded from files.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Waiting

open System
open System.IO
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Report
open LoRASub.Fluent
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open SkiaSharp
open TorchSharp

/// What a measurement is made of.
type private Setup =
    {
        Shape: BackboneShape
        Photographs: int
        Width: int
        Height: int
        BatchSize: int
        Settings: LoRASubSettings
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
        BatchSize = 16
        Settings = Workload.settings
    }

[<Literal>]
let private Classes = 4

/// JPEG files of smooth colours with some grain; their paths.
let writePhotographs (count: int) (w: int) (h: int) (folder: string) : string[] =
    let noise = Random 7

    Array.init count (fun i ->
        use bitmap = new SKBitmap(w, h, SKColorType.Rgba8888, SKAlphaType.Opaque)

        bitmap.Pixels <-
            Array.init (w * h) (fun p ->
                let x, y = p % w, p / w
                let wave = 100.0 + 90.0 * sin (float (x * (1 + i % 7)) / 40.0 + float y / 25.0)
                let grain () = noise.Next 40

                SKColor(
                    byte (int wave + grain ()),
                    byte (200 * y / h + grain ()),
                    byte (200 * x / w + grain ())
                ))

        use data = bitmap.Encode(SKEncodedImageFormat.Jpeg, 90)
        let path = Path.Combine(folder, $"{i}.jpg")
        File.WriteAllBytes(path, data.ToArray())
        path)

/// Decoded anew whenever asked for: the library would keep pictures that it has room for.
let private streamOf (setup: Setup) (paths: string[]) : TaskStream =
    let set: ImageSet =
        {
            Source = "photographs"
            Labels = paths |> Array.mapi (fun i _ -> i % Classes)
            Read = fun i -> ImageFile.read paths[i]
        }

    let dataset =
        Dataset.create "photographs" (Array.init Classes (fun c -> $"class {c}")) set set

    TaskStream.create dataset ClassOrder.Natural 1 None

/// Seconds of an epoch.
type private Epoch =
    {
        /// Blocked in each loader, in turn.
        Waited: float[]
        /// From the first loader's call to the last step's end.
        Wall: float
    }

/// Waiting over the whole time from some batch on.
let private share (from: int) (epoch: Epoch) =
    let before = Array.sum epoch.Waited[.. from - 1]
    Array.sum epoch.Waited[from..] / (epoch.Wall - before)

/// An epoch whose steps end before the next batch is asked for, as the task loop's do on a processor.
let private epoch (loaders: BatchLoader[]) (step: Batch -> unit) () : Epoch =
    let waited = Array.zeroCreate loaders.Length

    let struct ((), wall) =
        timed (fun () ->
            for i in 0 .. loaders.Length - 1 do
                Scope.run (fun () ->
                    let struct (batch, seconds) = timed loaders[i]
                    waited[i] <- seconds
                    step batch))

    { Waited = waited; Wall = wall }

/// Epochs from files with training steps, steps on one batch in memory alone, and loading alone, in turns.
let private epochs (setup: Setup) rounds : (string * Epoch[]) list =
    let folder = Directory.CreateTempSubdirectory "lorasub-bench-"

    try
        Scope.run (fun () ->
            let vit = Workload.random setup.Shape Precision.Float32

            let stream =
                writePhotographs setup.Photographs setup.Width setup.Height folder.FullName
                |> streamOf setup

            let options: BatchOptions =
                {
                    Format =
                        {
                            Size = vit.ImageSize
                            Channels = 3
                            Low = 0.0
                            High = 1.0
                        }
                    BatchSize = setup.BatchSize
                    Augmentation = Augmentation.CropFlip
                    Cropping = Cropping.standard
                    Device = vit.Device
                    Dtype = torch.float32
                }

            let task = stream.Tasks[0]
            let seen = Workload.batch vit setup.BatchSize 0 Classes 1L

            let training =
                Workload.training vit setup.Settings task (Workload.stateOf vit 0) seen

            let step batch =
                Scope.run (fun () ->
                    (LoRASubDrs.method' vit setup.Settings).Update Workload.rates batch training
                    |> ignore)

            let loaders () =
                TaskStream.trainBatches options (Workload.key 8L) stream task

            let inMemory () =
                loaders ()
                |> Array.map (fun _ ->
                    fun () ->
                        {
                            Images = seen.Images.alias ()
                            Labels = seen.Labels.alias ()
                        })

            step seen

            inTurns
                rounds
                [
                    "files", (fun () -> epoch (loaders ()) step ())
                    "memory", (fun () -> epoch (inMemory ()) step ())
                    "loading", (fun () -> epoch (loaders ()) ignore ())
                ])
    finally
        folder.Delete true

let private measure (options: Options) : Findings =
    let setup = full
    let results = epochs setup options.Rounds

    let of' name =
        results |> List.find (fun (known, _) -> known = name) |> snd

    let files, memory, loading = of' "files", of' "memory", of' "loading"

    let spread f (epochs: Epoch[]) =
        epochs |> Array.map f |> Spread.ofValues

    let perImage = spread (fun epoch -> 1e3 * epoch.Wall / float setup.Photographs)

    let over (a: Epoch[]) (b: Epoch[]) =
        Array.map2 (fun a b -> a.Wall / b.Wall) a b |> Spread.ofValues

    {
        Text =
            [
                $"An epoch over {setup.Photographs} JPEG files of {setup.Width} x {setup.Height} pixels, cropped, resized"
                + $" to 224 pixels and flipped, in batches of {setup.BatchSize}, on a ViT-Ti/16 (width 192, 12 blocks, 197"
                + " tokens) in float32. Files are decoded anew in every epoch, on all cores, two batches ahead. *Waiting*"
                + " is the time inside the loaders, which also turn bytes into the network's input; nothing is ahead of an"
                + " epoch's first batch."
                "Decoding shares the cores with the steps: what it takes from them is no waiting, but the epoch is longer"
                + " by it than one on a batch in memory. Turning the bytes of a batch into numbers takes about a"
                + " millisecond by itself; most of the waiting is likely that it then shares the cores with the decoding of"
                + " the batch after next, which asking for a batch starts."
            ]
        Tables =
            [
                {
                    Caption = "Milliseconds per image, of whole epochs"
                    Columns =
                        [
                            "epoch"
                            "ms per image"
                            "/ in memory"
                            "waiting, %"
                            "waiting after the first batch, %"
                        ]
                    Rows =
                        [
                            [
                                Cell.Text "from files"
                                Cell.Measured(perImage files)
                                Cell.Measured(over files memory)
                                Cell.Measured(percent (spread (share 0) files))
                                Cell.Measured(percent (spread (share 1) files))
                            ]
                            [
                                Cell.Text "one batch in memory"
                                Cell.Measured(perImage memory)
                                Cell.Number 1.0
                                Cell.Measured(percent (spread (share 0) memory))
                                Cell.Measured(percent (spread (share 1) memory))
                            ]
                            [
                                Cell.Text "loading without steps"
                                Cell.Measured(perImage loading)
                                Cell.Measured(over loading memory)
                                Cell.Text ""
                                Cell.Text ""
                            ]
                        ]
                }
            ]
        Targets =
            [
                Target.atMost
                    "waiting for data after the first batch, share of the epoch"
                    2.0
                    "%"
                    (percent (spread (share 1) files))
            ]
    }

/// Small epochs run.
let private check () =
    let small =
        { full with
            Shape =
                { full.Shape with
                    Width = 24
                    Depth = 1
                    ImageSize = 32
                }
            Photographs = 12
            Width = 40
            Height = 30
            BatchSize = 4
            Settings = { Workload.settings with Rank = 3 }
        }

    epochs small 1 |> ignore

let section: Section =
    {
        Id = "data"
        Title = "Waiting for data"
        NeedsData = false
        Measure = measure
        Check = check
    }
