/// Whole runs on CIFAR-100, phase by phase: the library, the matrix products that a run needs, the published code's
/// loops on the same LibTorch, and a Python peer.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.EndToEnd

open System
open System.Diagnostics
open System.IO
open System.Text.Json
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Fluent
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open TorchSharp

/// What a contestant tells of one run.
type private Run =
    {
        /// Of the phases that it tells apart.
        Seconds: Map<Phase, float>
        /// Mean accuracy over the tasks after the last one; of products alone there is none.
        Accuracy: float option
    }

/// Runs in turns, and by name the largest resident memory of the process in each, in bytes. Before each run the allocator
/// gives back what it kept of other contestants' tensors: between shapes that differ so much it finds little use for it.
let private inTurns
    rounds
    (contestants: (string * (unit -> Run)) list)
    : (string * Run[]) list * (string * int64[]) list =
    let results =
        contestants
        |> List.map (fun (name, run) ->
            name,
            fun () ->
                MemoryUse.resetPeak ()
                let result = run ()
                struct (result, MemoryUse.peakBytes ()))
        |> Measure.inTurns rounds

    results
    |> List.map (fun (name, runs) -> name, runs |> Array.map (fun struct (run, _) -> run)),
    results
    |> List.map (fun (name, runs) -> name, runs |> Array.map (fun struct (_, peak) -> peak))

let private memoryTable (rounds: int) (peaks: (string * int64[]) list) : Table =
    {
        Caption = "Largest resident memory in each round, MB"
        Columns = "contestant" :: [ for round in 1..rounds -> string round ]
        Rows =
            [
                for name, bytes in peaks ->
                    Cell.Text name :: [ for b in bytes -> Cell.Number(Math.Round(float b / 1e6)) ]
            ]
    }

// ---------------------------------------------------------------- the run

/// The first `count` images of a set for each task, in the set's order.
let private limited (count: int) (indices: LearningTask -> int[]) (tasks: LearningTask[]) (set: ImageSet) =
    let kept = tasks |> Array.collect (indices >> Array.truncate count) |> Array.sort

    ImageSet.select kept set

let settings (tasks: int) (epochs: int) : RunSettings =
    let published = Preset.cifar100 Variant.LibContinual

    { published with
        Tasks = tasks
        Epochs = epochs
        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
        InputRange = struct (-1.0, 1.0)
        Augmentation = Augmentation.None
        Seeding = Seeding.Once
        Drift = false
        // the others train and classify as published
        OtherHeads = []
    }

/// A run on so many training and test images of each task, at most; borrows the network.
let plan settings (dataset: Dataset) (trainImages: int, testImages: int) (vit: VisionTransformer) : Plan =
    let order = Plan.classOrder settings.ClassOrder

    let create dataset =
        TaskStream.create dataset order settings.Tasks settings.InitialClasses

    let whole = create dataset

    {
        Settings =
            { settings with
                Precision = vit.Precision
            }
        Stream =
            create
                { dataset with
                    Train = limited trainImages (TaskStream.trainIndices whole) whole.Tasks dataset.Train
                    Test = limited testImages (TaskStream.testIndices whole) whole.Tasks dataset.Test
                }
        Backbone = vit
        BackboneSha256 = ""
        References = [||]
    }

let private tasksOf (plan: Plan) =
    plan.Stream.Tasks
    |> Array.truncate (defaultArg plan.Settings.StopAfter Int32.MaxValue)

// ---------------------------------------------------------------- contestants

let private ours (plan: Plan) () : Run =
    Scope.run (fun () ->
        let outcome = Experiment.run (Plan.learner plan) plan ignore
        let last = Array.last outcome.Matrix

        {
            Seconds = outcome.PhaseSeconds
            Accuracy = Some(last |> Array.averageBy Metrics.accuracy)
        })

/// The same batches from the same loaders, and the same random start of each task.
let private literal (plan: Plan) () : Run =
    Scope.run (fun () ->
        let settings = plan.Settings
        let ours = LoRASubDrs.method' plan.Backbone settings.Method

        use theirs =
            new Literal.Learner(plan.Backbone, settings.Method, settings.ScheduleLength)

        let clock = PhaseClock()
        let key = Rng.ofSeed settings.Seed
        let start = ours.Start key
        let plain = Plan.batchOptions plan Augmentation.None

        let batches task epoch =
            let options = Plan.batchOptions plan settings.Augmentation
            TaskStream.trainBatches options (Recipe.epochKey settings key task epoch) plan.Stream task

        let each (loaders: BatchLoader[]) visit =
            for load in loaders do
                Scope.run (fun () -> visit (load ()))

        let accuracy task =
            let mutable right, all = 0, 0

            each (TaskStream.testBatches plain plan.Stream task) (fun batch ->
                let truth = batch.Labels.data<int64>().ToArray()
                let predicted = theirs.Predict batch.Images

                for i in 0 .. truth.Length - 1 do
                    right <- right + (if truth[i] = int64 predicted[i] then 1 else 0)

                all <- all + truth.Length)

            float right / float all

        let mutable last = [||]

        for task in tasksOf plan do
            Scope.run (fun () ->
                let begun =
                    ours.BeginTask
                        (key |> Rng.fold RandomBranch.Method |> Rng.fold (int64 task.Index))
                        task
                        start

                theirs.BeginTask(task, begun.Lora, begun.Head))

            if ours.Observes task then
                clock.Time Phase.Observe (fun () -> each (batches task -1) theirs.Observe)
                clock.Time Phase.Project theirs.Prepare

            clock.Time Phase.Train (fun () ->
                for epoch in 0 .. settings.EpochsOf task - 1 do
                    theirs.Epoch <- epoch
                    each (batches task epoch) (fun batch -> theirs.Step batch |> ignore))

            clock.Time Phase.Prototypes (fun () ->
                theirs.EndTask(fun () -> batches task (settings.EpochsOf task)))

            last <-
                clock.Time Phase.Predict (fun () -> plan.Stream.Tasks[.. task.Index] |> Array.map accuracy)

        {
            Seconds = clock.Seconds
            Accuracy = Some(Array.average last)
        })

/// The products of every batch of a run, by phase: of a task after the first as with the mean number of prototypes,
/// to which little of the time goes. Decompositions are no products.
let private products (plan: Plan) : (Phase * Bound.Product list * int) list =
    let settings = plan.Settings
    let tasks = tasksOf plan
    let rows = Bound.Rows.Needed

    let sizes (count: int) =
        Array.init ((count + settings.Batch - 1) / settings.Batch) (fun i ->
            min settings.Batch (count - i * settings.Batch))

    let trained task =
        sizes (TaskStream.trainIndices plan.Stream task).Length

    let create (task: LearningTask) prototypes images =
        Bound.Sizes.create plan.Backbone settings.Method.Rank task.Classes.Length prototypes images

    // every batch of some tasks, equal ones counted together
    let phase name (chosen: LearningTask[]) (batches: LearningTask -> int[]) prototypes products =
        if Array.isEmpty chosen then
            []
        else
            let mean = chosen |> Array.averageBy (prototypes >> float) |> Math.Round |> int

            chosen
            |> Array.collect batches
            |> Array.countBy id
            |> Array.map (fun (images, times) -> name, products (create chosen[0] mean images), times)
            |> List.ofArray

    let epochs task =
        Array.init (settings.EpochsOf task) (fun _ -> trained task) |> Array.concat

    let known (task: LearningTask) = task.FirstClass

    let seen (task: LearningTask) = task.FirstClass + task.Classes.Length

    let tested (task: LearningTask) =
        plan.Stream.Tasks[.. task.Index]
        |> Array.collect (fun earlier -> sizes (TaskStream.testIndices plan.Stream earlier).Length)

    [
        yield! phase Phase.Observe tasks[1..] trained known (Bound.observe rows)
        yield! phase Phase.Train tasks[..0] epochs known (Bound.step rows)
        yield! phase Phase.Train tasks[1..] epochs known (Bound.step rows)
        yield! phase Phase.Prototypes tasks trained seen (Bound.prototypes rows)
        yield! phase Phase.Predict tasks tested seen (Bound.predict rows)
    ]

/// Runs all products as often as a run needs them.
let private bound (ready: (Phase * Bound.Ready * int) list) () : Run =
    let clock = PhaseClock()

    for phase, products, times in ready do
        clock.Time phase (fun () ->
            for _ in 1..times do
                products.Run())

    {
        Seconds = clock.Seconds
        Accuracy = None
    }

// ---------------------------------------------------------------- the Python peer

/// Exit code and standard output of a program; none where it cannot be started.
let private output (program: string) (arguments: string list) : struct (int * string) option =
    let info = ProcessStartInfo(program, arguments)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true

    try
        use child = Process.Start info
        let errors = child.StandardError.ReadToEndAsync()
        let text = child.StandardOutput.ReadToEnd()
        child.WaitForExit()
        errors.Wait()
        Some(struct (child.ExitCode, (if child.ExitCode = 0 then text else errors.Result)))
    with :? ComponentModel.Win32Exception ->
        None

/// The peer's script and a Python that has torch, or why there is none.
let private findPeer (options: Options) : Result<string * string, string> =
    match options.Peer |> Option.map (fun folder -> Path.Combine(folder, "run_peer.py")) with
    | None -> Error "none"
    | Some script when not (File.Exists script) -> Error "a folder without run_peer.py"
    | Some script ->
        [ "/usr/bin/python3"; "python3" ]
        |> List.tryFind (fun python ->
            match output python [ "-c"; "import torch, numpy" ] with
            | Some(struct (0, _)) -> true
            | _ -> false)
        |> function
            | Some python -> Ok(python, script)
            | None -> Error "no Python that has torch and numpy"

/// One run as a child process. It projects while it observes, and tells no seconds of projecting.
let private peer
    (options: Options)
    (plan: Plan)
    (data: string)
    (images: int)
    (python: string, script: string)
    (code: string)
    ()
    : Run =
    let arguments =
        [
            script
            Workload.bundledFile options.Root
            data
            for name, value in
                [
                    "--code", code
                    "--tasks", string plan.Settings.Tasks
                    "--stop", string (tasksOf plan).Length
                    "--epochs", string plan.Settings.Epochs
                    "--batch", string plan.Settings.Batch
                    "--limit", string images
                    "--threads", string options.Threads
                ] do
                name
                value
        ]

    match output python arguments with
    | Some(struct (0, text)) ->
        use told = text.Trim().Split('\n') |> Array.last |> JsonDocument.Parse
        let seconds = told.RootElement.GetProperty "seconds"

        {
            Seconds =
                Phase.all
                |> List.map (fun phase -> phase, seconds.GetProperty(Phase.name phase).GetDouble())
                |> Map.ofList
            Accuracy = Some(told.RootElement.GetProperty("last").GetDouble() / 100.0)
        }
    | Some(struct (code, text)) -> failwith $"the Python peer ended with {code}: {text}"
    | None -> failwith "the Python peer did not start"

// ---------------------------------------------------------------- findings

/// Rows of the table: what is compared, and the phases it sums.
let private rows =
    [
        for phase in Phase.all do
            Phase.name phase, [ phase ]

            if phase = Phase.Project then
                "observe + project", [ Phase.Observe; Phase.Project ]
        "total", Phase.all
    ]

let private secondsOf (phases: Phase list) (name: string, runs: Run[]) : Timing =
    {
        Name = name
        Seconds =
            runs
            |> Array.map (fun run -> phases |> List.sumBy (fun phase -> run.Seconds[phase]))
    }

let private isPeer (name: string) = name.StartsWith "peer"

/// Whether a contestant has a time of its own for a row.
let private tells (name: string) (phases: Phase list) =
    match phases with
    | [ Phase.Project ] -> not (isPeer name || name.StartsWith "bound")
    | [ Phase.Observe ] -> not (isPeer name)
    | _ -> true

[<Literal>]
let private Epochs = 5

[<Literal>]
let private Tasks = 10

let private timing results phases name : Timing option =
    results
    |> List.tryFind (fun (known, _) -> known = name && tells name phases)
    |> Option.map (secondsOf phases)

let private ratio results phases (first, second) : Spread option =
    Option.map2 Timing.ratio (timing results phases first) (timing results phases second)

/// Seconds and ratios by phase of what each contestant did; `pairs` are what the ratios divide.
let private tables (results: (string * Run[]) list) (pairs: (string * string) list) : Table list =
    let names = List.map fst results

    [
        {
            Caption = "Seconds of all tasks, per phase"
            Columns = "phase" :: names
            Rows =
                [
                    for row, phases in rows do
                        Cell.Text row
                        :: [
                            for name in names do
                                match timing results phases name with
                                | Some timing -> Cell.Measured(Timing.spread timing)
                                | None -> Cell.Text ""
                        ]
                    Cell.Text "accuracy after the last task, %"
                    :: [
                        for _, runs in results do
                            match runs[0].Accuracy with
                            | Some accuracy -> Cell.Number(100.0 * accuracy)
                            | None -> Cell.Text ""
                    ]
                ]
        }
        {
            Caption = "Ratios, round by round"
            Columns = "phase" :: (pairs |> List.map (fun (first, second) -> $"{first} / {second}"))
            Rows =
                [
                    for row, phases in rows do
                        Cell.Text row
                        :: [
                            for pair in pairs do
                                match ratio results phases pair with
                                | Some ratio -> Cell.Measured ratio
                                | None -> Cell.Text ""
                        ]
                ]
        }
    ]

/// The phase in which an opponent, all of which are float32, comes closest to ours is to be ours.
let private everyPhaseFaster results (opponent: string) : Target =
    let row, smallest =
        rows
        |> List.choose (fun (row, phases) ->
            ratio results phases (opponent, "ours") |> Option.map (fun ratio -> row, ratio))
        |> List.minBy (fun (_, ratio) -> ratio.Median)

    Target.atLeast $"the phase with the smallest {opponent} / ours: {row}" 1.0 "x" smallest

let private dataOf (options: Options) =
    match options.Data with
    | Some folder -> folder
    | None -> Errors.reject "--data" "must name the folder of CIFAR-100's binary files" "none" ""

let private planOf (options: Options) data tasks (testImages: int) precision : Plan =
    let settings =
        { settings Tasks Epochs with
            StopAfter = tasks
        }

    Workload.bundled options.Root precision
    |> plan settings (Cifar.load100 data) (options.Images, testImages)

let private runText (options: Options) (plan: Plan) tests =
    $"{(tasksOf plan).Length} of {Tasks} tasks of CIFAR-100 on the bundled backbone (width 192, 6 blocks, 65 tokens),"
    + $" {Epochs} epochs of at most {options.Images} training images a task in batches of 128, no augmentation; after"
    + $" each task {tests} test images of every task so far are predicted. Each round runs every contestant once."
    + " *Ours* is `Experiment.run` without drift, data loading included, in float32 and in bfloat16 (*bf16*)."

/// Test images of a task that are predicted, where the peer does not ask for all.
[<Literal>]
let private TestImages = 100

let private measure (options: Options) : Findings =
    Scope.run (fun () ->
        let planOf = planOf options (dataOf options) options.Tasks TestImages
        let single, half = planOf Precision.Float32, planOf Precision.BFloat16

        let ready plan =
            [
                for phase, products, times in products plan do
                    phase, Bound.ready products, times
            ]

        let singleBound, halfBound = ready single, ready half

        let results, peaks =
            inTurns
                options.Rounds
                [
                    "ours", ours single
                    "ours bf16", ours half
                    "bound", bound singleBound
                    "bound bf16", bound halfBound
                    "literal", literal single
                ]

        for _, products, _ in singleBound @ halfBound do
            (products :> IDisposable).Dispose()

        let total pair = (ratio results Phase.all pair).Value

        {
            Text =
                [
                    runText options single (string TestImages)
                    "*Bound* is the products of the same batches in the same format; decompositions are not counted. *Literal*"
                    + " learns from the same batches from the same start, in float32."
                ]
            Tables =
                tables
                    results
                    [
                        "ours", "bound"
                        "ours bf16", "bound bf16"
                        "literal", "ours"
                        "literal", "ours bf16"
                    ]
                @ [ memoryTable options.Rounds peaks ]
            Targets =
                [
                    Target.atMost "total, ours / bound, float32" 1.5 "x" (total ("ours", "bound"))
                    Target.atMost "total, ours / bound, bfloat16" 1.7 "x" (total ("ours bf16", "bound bf16"))
                    everyPhaseFaster results "literal"
                ]
        })

let private measurePeers (options: Options) : Findings =
    match findPeer options with
    | Error why -> Errors.reject "--peer" "must name the folder of the Python peer" why ""
    | Ok found ->
        Scope.run (fun () ->
            let data = dataOf options
            let tasks = Some(defaultArg options.Tasks 3)
            let planOf = planOf options data tasks Int32.MaxValue
            let single, half = planOf Precision.Float32, planOf Precision.BFloat16

            let peers =
                [ "vectorised"; "published" ] |> List.map (fun code -> $"peer {code}", code)

            let results, _ =
                inTurns
                    options.Rounds
                    [
                        "ours", ours single
                        "ours bf16", ours half
                        for name, code in peers do
                            name, peer options single data options.Images found code
                    ]

            {
                Text =
                    [
                        runText options single "all"
                        "The *peer* is the same method in Python, on the LibTorch and OpenBLAS of Debian, on the same images:"
                        + " vectorised, and with the published code's loops. It is not in this repository. It reports"
                        + " observing and projecting as one time."
                    ]
                Tables =
                    tables
                        results
                        [
                            for name, _ in peers do
                                name, "ours"
                                name, "ours bf16"
                        ]
                Targets =
                    [
                        for name, _ in peers do
                            everyPhaseFaster results name
                    ]
            })

// ---------------------------------------------------------------- check

/// Two tasks on a small network: the literal run predicts what the library does, and every phase has its products.
let private agree () =
    Scope.run (fun () ->
        let vit = Workload.tiny ()
        let noise = Random 6
        let labels = Array.init 48 (fun i -> i % 4)

        let images name =
            let pixels =
                labels
                |> Array.collect (fun label ->
                    Array.init (3 * 16 * 16) (fun p ->
                        byte (40 * label + p / 16 % 8 * label + noise.Next 60)))

            ImageSet.ofBytes name labels 3 16 16 pixels

        let dataset =
            Dataset.create "colours" [| "a"; "b"; "c"; "d" |] (images "train") (images "test")

        let published = settings 2 2

        let settings =
            { published with
                ClassOrder = "natural"
                Batch = 16
                Method =
                    { published.Method with
                        Rank = 3
                        LearningRate = 1e-2
                    }
            }

        let plan = plan settings dataset (20, Int32.MaxValue) vit
        let first, second = ours plan (), literal plan ()

        // an image between two prototypes may fall to either side
        if abs (first.Accuracy.Value - second.Accuracy.Value) > 0.03 then
            failwith $"end to end: accuracy {second.Accuracy} where the library has {first.Accuracy}"

        let listed = products plan |> List.map (fun (phase, _, times) -> phase, times)

        let expected =
            [
                Phase.Observe, 1
                Phase.Observe, 1
                Phase.Train, 2
                Phase.Train, 2
                Phase.Train, 2
                Phase.Train, 2
                Phase.Prototypes, 2
                Phase.Prototypes, 2
                Phase.Predict, 3
                Phase.Predict, 3
            ]

        if listed <> expected then
            failwith $"end to end: batches of the products are %A{listed}")

let section: Section =
    {
        Id = "run"
        Title = "End to end"
        NeedsData = true
        Measure = measure
        Check =
            fun () ->
                Agreement.learner ()
                Agreement.bound ()
                agree ()
    }

let peerSection: Section =
    {
        Id = "peer"
        Title = "Against Python"
        NeedsData = true
        Measure = measurePeers
        Check = ignore
    }
