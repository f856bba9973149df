namespace LoRASub.Benchmarks

open System
open System.IO
open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Report
open BenchmarkDotNet.Attributes
open BenchmarkDotNet.Configs
open BenchmarkDotNet.Engines
open BenchmarkDotNet.Jobs
open BenchmarkDotNet.Loggers
open BenchmarkDotNet.Running
open BenchmarkDotNet.Toolchains.InProcess.Emit
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open SkiaSharp
open TorchSharp

/// The augmented triplet loss and its gradient on a batch of 128 rows of ViT-B's width.
type TripletParts() =
    let mutable features: torch.Tensor = null
    let mutable labels: torch.Tensor = null
    let mutable means: torch.Tensor = null
    let mutable centres: float32[][] = [||]

    let forwardAndBackward loss =
        Scope.run (fun () ->
            Grad.valueAndGrad (fun (f: torch.Tensor[]) -> loss labels f[0]) [| features |]
            |> ignore)

    static member val Counts: int[] = [||] with get, set

    [<ParamsSource("Counts")>]
    member val Prototypes = 0 with get, set

    [<GlobalSetup>]
    member this.Setup() =
        features <- Workload.unitRows 128 768 1L
        labels <- torch.tensor (Array.init 128 (fun i -> int64 (i % 10)))
        means <- Workload.unitRows this.Prototypes 768 2L
        centres <- Literal.rowsOf means

    [<GlobalCleanup>]
    member _.Cleanup() =
        features.Dispose()
        labels.Dispose()
        means.Dispose()

    [<Benchmark(OperationsPerInvoke = 10)>]
    member _.Ours() =
        for _ in 1..10 do
            forwardAndBackward (AugmentedTriplet.loss 1.0 2.0 means)

    [<Benchmark>]
    member _.Literal() =
        forwardAndBackward (Literal.triplet 1.0 2.0 centres)

/// Projections of 12 blocks of ViT-B's width from their second moments.
type ProjectionParts() =
    let mutable moments: SecondMoment[] = [||]

    let each (project: SecondMoment -> unit) =
        for moment in moments do
            Scope.run (fun () ->
                use _ = torch.no_grad ()
                project moment)

    [<GlobalSetup>]
    member _.Setup() =
        moments <- Array.init 12 (int64 >> Workload.decayingMoment 768)

    [<GlobalCleanup>]
    member _.Cleanup() =
        moments |> Array.iter (Scope.free SecondMoment.leaves)

    [<Benchmark>]
    member _.Ours() =
        each (fun moment ->
            Projection.retain UpdateScale.Frobenius Workload.settings.Energy "moment" moment
            |> ignore)

    [<Benchmark>]
    member _.Literal() =
        each (fun moment ->
            for _ in 1..4 do
                let copy = moment.Moment.clone ()
                Literal.transform Workload.settings.Energy copy |> ignore)

    /// The decomposition without anything around it.
    [<Benchmark>]
    member _.Decomposition() =
        each (fun moment -> torch.linalg.eigh moment.Moment |> ignore)

/// The parts of the method, each against what the published code does in its place.
[<RequireQualifiedAccess>]
module Parts =

    /// Seconds per operation by method and first parameter, iteration by iteration. In this process, so that LibTorch
    /// is loaded once and has the same threads.
    let private run<'T> (iterations: int) : Map<string * string, Timing> =
        let job =
            Job.Default
                .WithToolchain(InProcessEmitToolchain(TimeSpan.FromHours 2.0, false))
                .WithStrategy(RunStrategy.Monitoring)
                .WithWarmupCount(1)
                .WithIterationCount(iterations)

        let config =
            ManualConfig
                .CreateEmpty()
                .AddJob(job)
                .AddLogger(NullLogger.Instance)
                .WithArtifactsPath(Path.Combine(AppContext.BaseDirectory, "artifacts"))
                .WithOptions(ConfigOptions.DisableLogFile)

        let summary = BenchmarkRunner.Run<'T> config

        for error in summary.ValidationErrors do
            // such as advice against assemblies in a temporary folder
            if error.IsCritical then
                failwith error.Message

        Map.ofList
            [
                for report in summary.Reports do
                    let case = report.BenchmarkCase
                    let name = case.Descriptor.WorkloadMethod.Name

                    if not report.Success then
                        failwith $"{typeof<'T>.Name}.{name} did not run"

                    let parameter =
                        case.Parameters.Items
                        |> Seq.tryHead
                        |> Option.map (fun p -> string p.Value)
                        |> Option.defaultValue ""

                    (name, parameter),
                    {
                        Name = name
                        Seconds =
                            [|
                                for m in report.GetResultRuns() -> m.Nanoseconds / float m.Operations / 1e9
                            |]
                    }
            ]

    /// Of two things measured one after the other: every iteration of the one over every iteration of the other.
    let private ratio (first: Timing) (second: Timing) : Spread =
        Spread.ofValues
            [|
                for a in first.Seconds do
                    for b in second.Seconds -> a / b
            |]

    let private cell (timing: Timing) = milliseconds (Timing.spread timing)

    // ---------------------------------------------------------------- triplet

    /// A training step of this many images is measured; one of 128 is taken as sixteen of them.
    [<Literal>]
    let private StepImages = 8

    /// Seconds of the loss with 10 000 prototypes over those of a training step of 128 images on ViT-B/16.
    let private shareOfStep (rounds: int) : Spread =
        Scope.run (fun () ->
            let vit = Workload.random Workload.vitBaseShape Precision.Float32
            let batch = Workload.batch vit StepImages 0 10 7L
            let task = Workload.taskAfter 0 10
            let state = Workload.stateOf vit 0
            let training = Workload.training vit Workload.settings task state batch
            let loss = TripletParts(Prototypes = 10000)
            loss.Setup()

            let timings =
                interleaved
                    rounds
                    [
                        "loss", loss.Ours
                        "step",
                        fun () ->
                            Scope.run (fun () ->
                                (LoRASubDrs.method' vit Workload.settings).Update
                                    Workload.rates
                                    batch
                                    training
                                |> ignore)
                    ]

            loss.Cleanup()
            let steps = 128.0 / float StepImages
            // `Ours` computes the loss ten times
            Timing.ratio timings[0] timings[1] |> Spread.map (fun r -> r / 10.0 / steps))

    let private measureTriplet (options: Options) : Findings =
        TripletParts.Counts <- [| 0; 100; 1000 |]
        let usual = run<TripletParts> options.Rounds
        TripletParts.Counts <- [| 10000 |]
        let long = run<TripletParts> 3
        let all = Map.fold (fun all key value -> Map.add key value all) usual long
        let find method (count: int) = all[(method, string count)]

        let ratioAt count =
            ratio (find "Literal" count) (find "Ours" count)

        let share = shareOfStep options.Rounds

        {
            Text =
                [
                    "128 unit rows of 768 columns with 10 classes, forward and backward, by BenchmarkDotNet in one"
                    + " process. *Literal* loops over rows and prototypes and waits for a comparison at each pair; at"
                    + " 10 000 prototypes both are measured three times only."
                    $"The share of a step is that of a training step of {StepImages} images of 224 pixels on ViT-B/16,"
                    + $" times {128 / StepImages} for a batch of 128, in the first task, in float32 and in turns with the"
                    + " loss."
                ]
            Tables =
                [
                    {
                        Caption = "Milliseconds"
                        Columns = [ "prototypes"; "ours"; "literal"; "literal / ours" ]
                        Rows =
                            [
                                for count in [ 0; 100; 1000; 10000 ] do
                                    [
                                        Cell.Number(float count)
                                        cell (find "Ours" count)
                                        cell (find "Literal" count)
                                        Cell.Measured(ratioAt count)
                                    ]
                            ]
                    }
                ]
            Targets =
                [
                    Target.atLeast "literal / ours, 100 prototypes" 100.0 "x" (ratioAt 100)
                    Target.atMost
                        "10 000 prototypes, share of a ViT-B/16 step of 128 images"
                        2.0
                        "%"
                        (percent share)
                ]
        }

    let private triplet: Section =
        {
            Id = "triplet"
            Title = "Augmented triplet loss"
            NeedsData = false
            Measure = measureTriplet
            Check = Agreement.triplet
        }

    // ---------------------------------------------------------------- projection

    let private measureProjection (options: Options) : Findings =
        let timings = run<ProjectionParts> options.Rounds
        let find method = timings[(method, "")]
        let saved = ratio (find "Literal") (find "Ours")

        {
            Text =
                [
                    "Projections of 12 blocks of width 768 from their second moments, energy 0.99, by BenchmarkDotNet in"
                    + " one process. *Ours*: one symmetric eigendecomposition per block. *Literal*: a singular value"
                    + " decomposition for each of the four matrices of a block. *Decomposition*: the eigendecompositions"
                    + " alone."
                ]
            Tables =
                [
                    {
                        Caption = "Milliseconds"
                        Columns =
                            [ "ours"; "literal"; "decomposition"; "literal / ours"; "ours / decomposition" ]
                        Rows =
                            [
                                [
                                    cell (find "Ours")
                                    cell (find "Literal")
                                    cell (find "Decomposition")
                                    Cell.Measured saved
                                    Cell.Measured(ratio (find "Ours") (find "Decomposition"))
                                ]
                            ]
                    }
                ]
            Targets = [ Target.atLeast "literal / ours" 6.0 "x" saved ]
        }

    let private projection: Section =
        {
            Id = "projection"
            Title = "Projections"
            NeedsData = false
            Measure = measureProjection
            Check = Agreement.projection
        }

    // ---------------------------------------------------------------- prototypes

    [<Literal>]
    let private Classes = 10

    /// The pass after training as the task loop runs it, its result freed.
    let private ours vit (training: LoRASubDrs.Training<_>) (loaders: unit -> BatchLoader[]) () =
        let learner =
            Learner.create
                vit
                (Method.hide (LoRASubDrs.method' vit Workload.settings))
                (Head.hide NearestMean.head)
                (Embedding.output vit)

        let start = Learner.start learner (Workload.key 0L)

        // without epochs: the training that follows is its start
        let context =
            {
                Learner = learner
                Task = training.Task
                Names = training.Task.Classes |> Array.map string
                Batches = fun _ -> loaders ()
                Epochs = 0
                Rates = fun _ -> Workload.rates
                Clock = PhaseClock()
                OnEvent = ignore
                OnStep = ignore
            }

        TaskLoop.learn context start None |> Scope.free LearnedTask.leaves
        Scope.free TaskState.leaves start

    let private literal vit (adapters: Adapters) (loaders: unit -> BatchLoader[]) () =
        let features (images: torch.Tensor) =
            Scope.noGrad Leaves.tensor (fun () -> VisionTransformer.features adapters vit images)

        Literal.prototypes features 0 Classes loaders |> ignore

    /// Features of every batch, and nothing made of them.
    let private bare vit (adapters: Adapters) (loaders: unit -> BatchLoader[]) () =
        for load in loaders () do
            Scope.run (fun () ->
                use _ = torch.no_grad ()
                let batch = load ()
                VisionTransformer.features adapters vit batch.Images |> ignore)

    /// A task of ten classes ready to end, and the network that its end runs.
    let private onBundled root (f: VisionTransformer -> LoRASubDrs.Training<_> -> Adapters -> 'T) : 'T =
        Scope.run (fun () ->
            let vit = Workload.bundled root Precision.Float32
            let state = Workload.stateOf vit 0
            let seen = Workload.batch vit 1 0 Classes 0L

            let training =
                Workload.training vit Workload.settings (Workload.taskAfter 0 Classes) state seen

            f vit training (VisionTransformer.merged 1.0 state.Deltas vit))

    let private inMemory rounds root : Timing list =
        onBundled root (fun vit training adapters ->
            let batches = Array.init 5 (fun i -> Workload.batch vit 128 0 Classes (int64 i))

            let loaders () =
                batches |> Array.map (fun batch () -> batch)

            let sizes = Bound.Sizes.create vit Workload.settings.Rank Classes 0 128
            use products = Bound.ready (Bound.prototypes Bound.Rows.Needed sizes)

            interleaved
                rounds
                [
                    "ours", ours vit training loaders
                    "bare", bare vit adapters loaders
                    "literal", literal vit adapters loaders
                    "bound",
                    fun () ->
                        for _ in batches do
                            products.Run()
                ])

    [<Literal>]
    let private Photographs = 20

    /// Random JPEG files, <class>/*, of 160 x 120 pixels.
    let private writePhotographs (folder: string) =
        let noise = Random 5

        for c in 0 .. Classes - 1 do
            let one =
                Directory.CreateDirectory(Path.Combine(folder, "train", $"class{c}")).FullName

            for i in 0..Photographs do
                use bitmap = new SKBitmap(160, 120, SKColorType.Rgba8888, SKAlphaType.Opaque)

                bitmap.Pixels <-
                    Array.init (160 * 120) (fun p ->
                        let x, y = p % 160, p / 160
                        let grain () = noise.Next 24
                        SKColor(byte (x + grain ()), byte (2 * y % 200 + grain ()), byte (20 * c + grain ())))

                use data = bitmap.Encode(SKEncodedImageFormat.Jpeg, 90)
                File.WriteAllBytes(Path.Combine(one, $"{i}.jpg"), data.ToArray())

        // a data set needs test images; none is read here
        let test = Directory.CreateDirectory(Path.Combine(folder, "test")).FullName

        for c in 0 .. Classes - 1 do
            let there = Directory.CreateDirectory(Path.Combine(test, $"class{c}")).FullName

            File.Move(
                Path.Combine(folder, "train", $"class{c}", $"{Photographs}.jpg"),
                Path.Combine(there, "0.jpg")
            )

    let private withPhotographs (f: string -> 'T) : 'T =
        let folder = Directory.CreateTempSubdirectory "lorasub-bench-"

        try
            writePhotographs folder.FullName
            f folder.FullName
        finally
            folder.Delete true

    let private fromFiles rounds root : Timing list =
        withPhotographs (fun folder ->
            onBundled root (fun vit training adapters ->
                let options: BatchOptions =
                    {
                        Format =
                            {
                                Size = vit.ImageSize
                                Channels = 3
                                Low = 0.0
                                High = 1.0
                            }
                        BatchSize = 128
                        Augmentation = Augmentation.None
                        Cropping = Cropping.standard
                        Device = vit.Device
                        Dtype = torch.float32
                    }

                let scan = ImageFolder.scan "folder" ReadOptions.standard folder
                let data = ImageFiles.dataset ReadOptions.standard "folder" scan

                // the library would keep what it decoded, the published loaders do not
                let train =
                    { data.Train with
                        Read = fun i -> ImageFile.read scan.Train[i].Path
                    }

                let stream = TaskStream.create { data with Train = train } ClassOrder.Natural 1 None

                let loaders () =
                    TaskStream.plainTrainBatches options stream stream.Tasks[0]

                interleaved
                    rounds
                    [ "ours", ours vit training loaders; "literal", literal vit adapters loaders ]))

    let private measurePrototypes (options: Options) : Findings =
        let memory = inMemory options.Rounds options.Root
        let files = fromFiles options.Rounds options.Root
        let overBare = Timing.ratio memory[0] memory[1]
        let overFiles = Timing.ratio files[1] files[0]

        {
            Text =
                [
                    "The end of a task of 10 classes on the bundled backbone (width 192, 6 blocks, 65 tokens) in"
                    + " float32, batches of 128, the alternatives in turns. *Ours* is the whole of it: merging the"
                    + " deltas, features, class means. *Bare*: the forward passes alone. *Literal*: one pass over the"
                    + " data per class."
                    $"In memory: 640 images. From files: {Classes * Photographs} JPEG files of 160 x 120 pixels,"
                    + " decoded and shrunk anew in each pass; both read them through this library, on all cores."
                ]
            Tables =
                [
                    {
                        Caption = "Milliseconds"
                        Columns = [ "images"; "ours"; "bare"; "bound"; "literal"; "literal / ours" ]
                        Rows =
                            [
                                [
                                    Cell.Text "in memory"
                                    cell memory[0]
                                    cell memory[1]
                                    cell memory[3]
                                    cell memory[2]
                                    Cell.Measured(Timing.ratio memory[2] memory[0])
                                ]
                                [
                                    Cell.Text "JPEG files"
                                    cell files[0]
                                    Cell.Text ""
                                    Cell.Text ""
                                    cell files[1]
                                    Cell.Measured overFiles
                                ]
                            ]
                    }
                ]
            Targets =
                [
                    Target.atMost "ours / bare forward passes" 1.1 "x" overBare
                    Target.atLeast "literal / ours from JPEG files" 1.0 "x" overFiles
                ]
        }

    let private prototypes: Section =
        {
            Id = "prototypes"
            Title = "Prototype stage"
            NeedsData = false
            Measure = measurePrototypes
            Check =
                fun () ->
                    Agreement.learner ()
                    Agreement.bound ()
        }

    let sections: Section list = [ triplet; projection; prototypes ]
