/// How time and memory grow: with tasks, prototypes, images in a batch and tokens.
[<RequireQualifiedAccess>]
module LoRASub.Benchmarks.Growth

open System
open LoRASub.Core
open LoRASub.Train
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open LoRASub.Benchmarks.Measure
open LoRASub.Benchmarks.Results
open TorchSharp

/// The exponent p of y = c·xᵖ, by least squares on logarithms.
let exponent (points: (float * float) list) : float =
    let logs = points |> List.map (fun (x, y) -> log x, log y)
    let mean pick = logs |> List.averageBy pick
    let mx, my = mean fst, mean snd

    List.sumBy (fun (x, y) -> (x - mx) * (y - my)) logs
    / List.sumBy (fun (x, _) -> (x - mx) * (x - mx)) logs

let private medianOf (timing: Timing) = (Timing.spread timing).Median

// ---------------------------------------------------------------- tasks

[<Literal>]
let private Tasks = 50

/// Tasks, from 1, after which a look is taken; the first is what the others are divided by.
let private looks = [ 2; 10; 25; 50 ]

/// A task's training and test images in the long run.
[<Literal>]
let private TaskImages = 32

[<Literal>]
let private TestImages = 4

/// Resident bytes after each task of a run of 50, and the seconds of a training step in it.
let private longRun root (dataset: Dataset) (drift: bool) : struct (float[] * float[]) =
    Scope.run (fun () ->
        let vit = Workload.bundled root Precision.Float32
        let published = EndToEnd.settings Tasks 2

        let settings =
            { published with
                Batch = 16
                Drift = drift
            }

        let plan = EndToEnd.plan settings dataset (TaskImages, TestImages) vit
        let learner = Plan.learner plan
        let outcome = Experiment.run learner plan ignore

        let steps (task: LearningTask) =
            let images = (TaskStream.trainIndices plan.Stream task).Length
            settings.Epochs * ((images + settings.Batch - 1) / settings.Batch)

        struct (outcome.Tasks |> Array.map (fun task -> float task.MemoryAfter.ResidentBytes),
                Array.map2
                    (fun task (record: TaskRecord) -> record.Seconds[Phase.Train] / float (steps task))
                    plan.Stream.Tasks
                    outcome.Tasks))

/// Steps of 32 images as in the tasks that are looked at, and their triplet losses with gradient, in turns.
let private stepsByTask rounds root : (Timing * Timing) list =
    Scope.run (fun () ->
        let vit = Workload.bundled root Precision.Float32
        let settings = Workload.settings

        let actions =
            [
                for number in looks do
                    let known = 2 * (number - 1)
                    let batch = Workload.batch vit 32 known 2 1L
                    let state = Workload.stateOf vit known

                    let training =
                        Workload.training vit settings (Workload.taskAfter known 2) state batch

                    let rows = Workload.unitRows 32 (int vit.Width) 2L
                    let local = batch.Labels.sub (Scalar.op_Implicit (int64 known))

                    $"step {number}",
                    fun () ->
                        Scope.run (fun () ->
                            (LoRASubDrs.method' vit settings).Update Workload.rates batch training |> ignore)

                    $"triplet {number}",
                    fun () ->
                        Scope.run (fun () ->
                            Grad.valueAndGrad
                                (fun (f: torch.Tensor[]) ->
                                    AugmentedTriplet.loss
                                        settings.Margin
                                        settings.NormOrder
                                        state.Prototypes
                                        local
                                        f[0])
                                [| rows |]
                            |> ignore)
            ]

        interleaved rounds actions
        |> List.chunkBySize 2
        |> List.map (fun pair -> pair[0], pair[1]))

let private without (part: Timing) (whole: Timing) : Timing =
    { whole with
        Seconds = Array.map2 (-) whole.Seconds part.Seconds
    }

let private tasksTable
    (steps: (Timing * Timing) list)
    (fresh: float[], inRun: float[])
    (drift: float[])
    (again: float[])
    : Table =
    let at (values: float[]) number = values[number - 1]

    let mebibytes values number =
        Cell.Number(at values number / 1048576.0)

    let relative values number =
        Cell.Number(at values number / at values looks.Head)

    {
        Caption = "By task, of 50"
        Columns =
            [
                "task"
                "step, ms"
                "/ task 2"
                "triplet loss of it, %"
                "step in the run, ms"
                "resident in a fresh process, MiB"
                "/ task 2"
                "then with drift, MiB"
                "/ task 2"
                "then again without, MiB"
                "/ task 2"
            ]
        Rows =
            [
                for number, (step, triplet) in List.zip looks steps do
                    [
                        Cell.Number(float number)
                        milliseconds (Timing.spread step)
                        Cell.Measured(Timing.ratio step (fst steps.Head))
                        Cell.Measured(percent (Timing.ratio triplet step))
                        Cell.Number(1e3 * at inRun number)
                        for run in [ fresh; drift; again ] do
                            mebibytes run number
                            relative run number
                    ]
            ]
    }

// ---------------------------------------------------------------- sizes

/// Seconds of an action at each size, in turns, and the exponent.
let private bySize rounds (caption: string) (column: string) (sizes: (int * (unit -> unit)) list) : Table =
    let timings =
        interleaved rounds (sizes |> List.map (fun (size, action) -> string size, action))

    let points =
        List.map2 (fun (size, _) timing -> float size, medianOf timing) sizes timings

    let fitted = exponent points

    {
        Caption = $"{caption}; fitted exponent {number fitted}"
        Columns = [ column; "ms"; $"µs by {column}" ]
        Rows =
            [
                for (size, _), timing in List.zip sizes timings do
                    [
                        Cell.Number(float size)
                        milliseconds (Timing.spread timing)
                        Cell.Measured(Timing.spread timing |> Spread.map (fun s -> s * 1e6 / float size))
                    ]
            ]
    }

let private byPrototypes rounds (counts: int list) width : Table =
    Scope.run (fun () ->
        let features = Workload.unitRows 128 width 3L

        counts
        |> List.map (fun count ->
            let scorer = NearestMean.ofMeans (Workload.unitRows count width 4L)
            count, (fun () -> Scope.run (fun () -> scorer.Score features |> Scorer.best |> ignore)))
        |> bySize
            rounds
            $"Prediction of 128 features of width {width} by the number of prototypes"
            "prototypes")

/// A step of the first task.
let private step vit settings images : unit -> unit =
    let batch = Workload.batch vit images 0 10 1L

    let training =
        Workload.training vit settings (Workload.taskAfter 0 10) (Workload.stateOf vit 0) batch

    fun () ->
        Scope.run (fun () -> (LoRASubDrs.method' vit settings).Update Workload.rates batch training |> ignore)

let private byBatch rounds root (sizes: int list) : Table =
    Scope.run (fun () ->
        let vit = Workload.bundled root Precision.Float32

        sizes
        |> List.map (fun images -> images, step vit Workload.settings images)
        |> bySize rounds "A training step of the bundled backbone by the images of its batch" "images")

let private tokens (imageSize: int) = pown (imageSize / 4) 2 + 1

let private byTokens rounds (imageSizes: int list) : Table =
    Scope.run (fun () ->
        imageSizes
        |> List.map (fun size ->
            let vit =
                Workload.random
                    { Workload.vitBaseShape with
                        Width = 192
                        Depth = 6
                        Heads = 3
                        PatchSize = 4
                        ImageSize = size
                    }
                    Precision.Float32

            tokens size, step vit Workload.settings 2)
        |> bySize
            rounds
            "A training step of 2 images, width 192, 6 blocks, by the tokens of an image"
            "tokens")

let private measure (options: Options) : Findings =
    let data =
        match options.Data with
        | Some folder -> folder
        | None -> Errors.reject "--data" "must name the folder of CIFAR-100's binary files" "none" ""

    let dataset = Cifar.load100 data
    // before anything larger has been in memory
    let struct (fresh, inRun) = longRun options.Root dataset false
    let struct (drift, _) = longRun options.Root dataset true
    let struct (again, _) = longRun options.Root dataset false
    let steps = stepsByTask options.Rounds options.Root

    let rest (step, triplet) = without triplet step

    let growth = Timing.ratio (rest (List.last steps)) (rest steps.Head)
    let once value = Spread.ofValues [| value |]

    let memory (bytes: float[]) =
        once (Array.last bytes / bytes[looks.Head - 1])

    {
        Text =
            [
                $"A run of {Tasks} tasks of 2 classes of CIFAR-100 on the bundled backbone in float32, 2 epochs of"
                + $" {TaskImages} images a task, {TestImages} test images of each task so far after each: resident memory"
                + " at the end of a task, in three runs of one process. The first takes what the process keeps from then"
                + " on, freed activations among it; what a task leaves behind shows in the other two. Steps of 32 images with the prototypes and projections of these tasks were measured in turns beside it; the"
                + " triplet loss, which compares with all prototypes, is shown separately."
                "The exponent p of time = c · sizeᵖ is fitted by least squares on logarithms."
            ]
        Tables =
            [
                tasksTable steps (fresh, inRun) drift again
                byPrototypes options.Rounds [ 100; 1000; 10000; 100000 ] 192
                byPrototypes options.Rounds [ 100; 1000; 10000; 100000 ] 768
                byBatch options.Rounds options.Root [ for i in 0..9 -> pown 2 i ]
                byTokens options.Rounds [ 32; 48; 64; 96; 128 ]
            ]
        Targets =
            [
                Target.atMost "step without its triplet loss, task 50 / task 2" 1.05 "x" growth
                for run, bytes in
                    [
                        "in a fresh process", fresh
                        "then with drift", drift
                        "then again without", again
                    ] do
                    Target.atMost $"resident memory {run}, task 50 / task 2" 1.05 "x" (memory bytes)
            ]
    }

/// The fit finds a known exponent, and a prediction and a step run.
let private check () =
    let found =
        exponent [ for x in [ 1.0; 2.0; 8.0; 64.0 ] -> x, 3.0 * Math.Pow(x, 1.5) ]

    if abs (found - 1.5) > 1e-9 then
        failwith $"growth: exponent {found} of x^1.5"

    Scope.run (fun () ->
        let vit = Workload.tiny ()
        step vit { Workload.settings with Rank = 3 } 4 ())

    byPrototypes 1 [ 3; 5 ] 8 |> ignore

let section: Section =
    {
        Id = "growth"
        Title = "Growth"
        NeedsData = true
        Measure = measure
        Check = check
    }
