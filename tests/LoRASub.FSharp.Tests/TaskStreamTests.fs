module LoRASub.Tests.TaskStreamTests

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Report
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles
open TorchSharp

/// Images of 2 x 2 that are full of their own position; image i has label i mod classes.
let private set source (classes: int) (perClass: int) : ImageSet =
    let n = classes * perClass
    ImageSet.ofBytes source (Array.init n (fun i -> i % classes)) 1 2 2 (countedPixels n 4)

let private toy classes : Dataset =
    Dataset.create
        "toy"
        (Array.init classes (fun c -> $"kind {c}"))
        (set "train.bin" classes 5)
        (set "test.bin" classes 2)

let private options: BatchOptions =
    {
        Format =
            {
                Size = 2
                Channels = 1
                Low = 0.0
                High = 255.0
            }
        BatchSize = 4
        Augmentation = Augmentation.None
        Cropping = Cropping.standard
        Device = Generators.device
        Dtype = torch.ScalarType.Float32
    }

let private key = Rng.ofSeed 1L

let private stream =
    TaskStream.create (toy 6) (ClassOrder.Explicit("order", [| 4; 2; 0; 5; 1; 3 |])) 3 None

/// Positions in the data set and labels of some batches.
let private contents (loaders: BatchLoader[]) =
    loaders
    |> Array.collect (fun load ->
        Scope.run (fun () ->
            let batch = load ()

            let firsts =
                numbers (batch.Images.flatten(1L).select(1L, 0L)) |> Array.map (round >> int)

            Array.zip firsts (numbers batch.Labels |> Array.map int)))

let private badInputs: BadInput list =
    let split tasks initial classes _ =
        TaskStream.split tasks initial (Array.init classes id) |> ignore

    let create dataset order tasks _ =
        TaskStream.create dataset order tasks None |> ignore

    let train options _ =
        TaskStream.trainBatches options key stream stream.Tasks[0] |> ignore

    let relabelled labels = { (toy 4).Train with Labels = labels }

    [
        "more tasks than classes", [ "tasks"; "at most 10"; "11" ], split 11 None 10
        "no task", [ "tasks"; "at least 1"; "0" ], split 0 None 10
        "a negative number of tasks", [ "tasks"; "-3" ], split -3 None 10
        "tasks that do not divide the classes",
        [
            "tasks"
            "the 10 classes into equal tasks"
            "found 6"
            "use 5 or 10 tasks"
            "--initial-classes 5, which leaves 1"
        ],
        split 6 None 10
        "eleven classes in five tasks",
        [
            "found 5"
            "use 4 or 6 tasks"
            "--initial-classes 3, which leaves 2 for each later task"
        ],
        split 5 None 11
        "later tasks that do not divide the rest",
        [
            "the 90 classes after the first 10"
            "found 41"
            "use 31 or 46 tasks"
            "--initial-classes 20, which leaves 2"
        ],
        split 41 (Some 10) 100
        "no initial class", [ "initial classes"; "1 to 8"; "0" ], split 3 (Some 0) 10
        "initial classes that leave a task empty", [ "initial classes"; "1 to 8"; "9" ], split 3 (Some 9) 10
        "one task with fewer initial classes", [ "initial classes"; "all 10"; "5" ], split 1 (Some 5) 10
        "an order that is no permutation",
        [ "given"; "0 to 3 once"; "entry 1" ],
        create (toy 4) (ClassOrder.Explicit("given", [| 0; 0; 1; 2 |])) 2
        "a label out of range",
        [ "train.bin"; "0 to 3"; "4" ],
        create { toy 4 with Train = (toy 5).Train } ClassOrder.Natural 2
        "a task without training images",
        [ "train.bin"; "task 2"; "2 (kind 2), 3 (kind 3)"; "training image" ],
        create
            { toy 4 with
                Train = relabelled [| 0; 1; 0 |]
            }
            ClassOrder.Natural
            2
        "a task without test images",
        [ "test.bin"; "task 1"; "test image" ],
        create
            { toy 4 with
                Test =
                    { relabelled [| 2; 3 |] with
                        Source = "test.bin"
                    }
            }
            ClassOrder.Natural
            2
        "a batch of 0", [ "batch size"; "at least 1"; "0" ], train { options with BatchSize = 0 }
        "a negative batch", [ "batch size"; "-1" ], train { options with BatchSize = -1 }
        "a test batch of 0",
        [ "batch size"; "0" ],
        fun _ ->
            TaskStream.testBatches { options with BatchSize = 0 } stream stream.Tasks[0]
            |> ignore
        "a bad image format",
        [ "image size" ],
        train
            { options with
                Format = { options.Format with Size = 0 }
            }
    ]

/// A stream whose training images can be read only where `allowed` says so.
let private guarded (allowed: int -> bool) : TaskStream =
    let set = stream.Dataset.Train

    let read i =
        if not (allowed set.Labels[i]) then
            failwith $"image {i} of class {set.Labels[i]} belongs to another task"

        set.Read i

    { stream with
        Dataset =
            { stream.Dataset with
                Train = { set with Read = read }
            }
    }

/// n images of two classes, each of another size.
let private mixed (n: int) : TaskStream =
    let set: ImageSet =
        {
            Source = "pictures"
            Labels = Array.init n (fun i -> i % 2)
            Read = fun i -> PillowFixtures.pattern (5 + i % 7) (4 + i % 11)
        }

    TaskStream.create (Dataset.create "mixed" [| "a"; "b" |] set set) ClassOrder.Natural 1 None

[<Tests>]
let tests =
    testList
        "TaskStream"
        [
            refusals badInputs

            law
                "tasks partition the class order"
                (fun (PositiveInt tasks, PositiveInt each, first: int, seed: uint32) ->
                    let tasks, each = 1 + tasks % 8, 1 + each % 6
                    let initial = if first > 0 && tasks > 1 then Some(1 + first % 7) else None
                    let classes = each * (tasks - 1) + defaultArg initial each
                    let order = ClassOrder.numpyPermutation seed classes
                    let made = TaskStream.split tasks initial order
                    Expect.hasLength made tasks "tasks"
                    Expect.equal (made |> Array.collect _.Classes) order "their classes, in order"
                    Expect.equal made[0].Classes.Length (defaultArg initial each) "the first task"

                    for i in 0 .. tasks - 1 do
                        Expect.equal made[i].Index i "numbered"

                        Expect.equal
                            order[made[i].FirstClass]
                            made[i].Classes[0]
                            "where the first class stands"

                        if i > 0 then
                            Expect.hasLength made[i].Classes each "later tasks are equal")

            law
                "only the last task is smaller, and every advice works"
                (fun (PositiveInt n, PositiveInt t, initial: PositiveInt option) ->
                    let n = 1 + n % 120
                    let tasks = 1 + t % n
                    let initial = initial |> Option.map _.Get |> Option.filter (fun _ -> tasks > 1)
                    let initial = initial |> Option.map (fun i -> 1 + i % (n - tasks + 1))

                    let sizesOf tasks initial =
                        TaskStream.split tasks initial (Array.init n id) |> Array.map _.Classes.Length

                    match
                        try
                            Ok(sizesOf tasks initial)
                        with :? InputException as e ->
                            Error e.Message
                    with
                    | Ok sizes ->
                        Expect.equal (Array.sum sizes) n "every class"
                        Expect.hasLength sizes tasks "tasks"
                        initial |> Option.iter (fun i -> Expect.equal sizes[0] i "the first")
                        let later = if initial.IsSome then Array.skip 1 sizes else sizes
                        let size, last = later[0], Array.last later
                        Expect.isTrue (later[.. later.Length - 2] |> Array.forall ((=) size)) "equal"
                        Expect.isTrue (last >= 1 && last <= size) "the last"
                        Expect.equal (TaskStream.sizeNote initial sizes).IsSome (last < size) "a note"

                        if later.Length > 0 && n % tasks = 0 && initial.IsNone then
                            Expect.equal last size "as published"
                    | Error message ->
                        let numbers pattern =
                            [
                                for m in System.Text.RegularExpressions.Regex.Matches(message, pattern) ->
                                    int m.Groups[1].Value
                            ]

                        for tasks in numbers @"(?:use |or )(\d+)" do
                            sizesOf tasks initial |> ignore

                        let advised =
                            sizesOf tasks (Some(List.exactlyOne (numbers @"--initial-classes (\d+)")))

                        Expect.hasLength (Array.distinct advised[1..]) 1 "equal later tasks")

            testCase "tasks as published runs cut them" (fun () ->
                let sizes tasks initial classes =
                    TaskStream.split tasks initial (Array.init classes id)
                    |> Array.map _.Classes.Length

                for tasks, initial, classes, expected, said in
                    [
                        10, None, 100, Array.create 10 10, "10 tasks x 10 classes"
                        10,
                        None,
                        196,
                        Array.append (Array.create 9 20) [| 16 |],
                        "10 tasks: 9 x 20 classes, then 16"
                        6,
                        Some 50,
                        100,
                        Array.append [| 50 |] (Array.create 5 10),
                        "6 tasks: 50 classes, then 5 x 10"
                        4, Some 50, 100, [| 50; 17; 17; 16 |], "4 tasks: 50 classes, then 2 x 17, then 16"
                        2, None, 3, [| 2; 1 |], "2 tasks: 2 classes, then 1"
                        2, Some 1, 3, [| 1; 2 |], "2 tasks: 1 class, then 2"
                        1, None, 1, [| 1 |], "1 task x 1 class"
                    ] do
                    Expect.equal (sizes tasks initial classes) expected said
                    Expect.equal (TaskStream.describeSizes expected) said "text"

                Expect.equal
                    (TaskStream.sizeNote None [| 3; 3; 3; 2 |])
                    (Some
                        "the last task has 2 classes, the others 3; --initial-classes N sets the first task's")
                    "note")

            testCase "one task may have all classes, with or without saying so" (fun () ->
                let order = Array.init 6 id

                Expect.equal
                    (TaskStream.split 1 None order)
                    (TaskStream.split 1 (Some 6) order)
                    "the same task")

            testCase
                "training batches hold each image of the task once, with its place in the order"
                (fun () ->
                    let pairs = TaskStream.trainBatches options key stream stream.Tasks[1] |> contents

                    Expect.equal
                        (Array.sort (Array.map fst pairs))
                        (TaskStream.trainIndices stream stream.Tasks[1])
                        "positions"

                    for position, label in pairs do
                        Expect.equal stream.Order[label] stream.Dataset.Train.Labels[position] "label"
                        Expect.isTrue (label = 2 || label = 3) "classes of the second task")

            testCase "the last batch is smaller" (fun () ->
                let sizes =
                    TaskStream.trainBatches options key stream stream.Tasks[0]
                    |> Array.map (fun load -> Scope.run (fun () -> int (load ()).Labels.shape[0]))

                Expect.equal sizes [| 4; 4; 2 |] "10 images")

            testCase "the key decides the order and the augmentation" (fun () ->
                let options =
                    { options with
                        Augmentation = Augmentation.CropFlip
                    }

                let pixels seed =
                    TaskStream.trainBatches options (Rng.ofSeed seed) stream stream.Tasks[0]
                    |> Array.collect (fun load -> Scope.run (fun () -> numbers (load ()).Images))

                Expect.equal (pixels 1L) (pixels 1L) "same key"
                Expect.notEqual (pixels 1L) (pixels 2L) "other key")

            testCase "each batch augments by its own key, every time the same" (fun () ->
                // eight times the same image: two batches differ only by their keys
                let images =
                    planes 1 (PillowFixtures.pattern 8 8) |> Array.replicate 8 |> Array.concat

                let set = ImageSet.ofBytes "train.bin" (Array.zeroCreate 8) 1 8 8 images
                let dataset = { toy 1 with Train = set }
                let stream = TaskStream.create dataset ClassOrder.Natural 1 None

                let options =
                    { options with
                        Augmentation = Augmentation.CropFlip
                        Format = { options.Format with Size = 8 }
                    }

                let loaders = TaskStream.trainBatches options key stream stream.Tasks[0]

                let pixels i =
                    Scope.run (fun () -> numbers (loaders[i]()).Images)

                Expect.hasLength loaders 2 "two batches"
                Expect.notEqual (pixels 0) (pixels 1) "two keys"
                Expect.equal (pixels 1) (pixels 1) "read again")

            testCase "test batches are in order, whatever the augmentation" (fun () ->
                let options =
                    { options with
                        Augmentation = Augmentation.CropFlip
                    }

                let pairs = TaskStream.testBatches options stream stream.Tasks[2] |> contents
                // classes 1 and 3 of 6, two images each, at places 4 and 5 of the order
                Expect.equal pairs [| 1, 4; 3, 5; 7, 4; 9, 5 |] "positions and labels")

            testCase "plain training batches are the training images in order" (fun () ->
                let pairs = TaskStream.plainTrainBatches options stream stream.Tasks[0] |> contents

                Expect.equal
                    (Array.map fst pairs)
                    (TaskStream.trainIndices stream stream.Tasks[0])
                    "positions")

            testCase "a task's loaders read no image of an earlier task" (fun () ->
                for task in stream.Tasks do
                    let earlier = HashSet(stream.Order[.. task.FirstClass - 1])
                    let later = guarded (earlier.Contains >> not)
                    let own = guarded (fun label -> Array.contains label task.Classes)

                    for stream in [ later; own ] do
                        Expect.hasLength
                            (TaskStream.trainBatches options key stream task |> contents)
                            10
                            "training"

                        Expect.hasLength
                            (TaskStream.plainTrainBatches options stream task |> contents)
                            10
                            "plain"

                // the guard works: the first task's own images are refused
                let closed = guarded (fun label -> label <> 4)

                Expect.throws
                    (fun () ->
                        TaskStream.trainBatches options key closed stream.Tasks[0] |> contents |> ignore)
                    "guard")

            testCase "images are read only when a batch is made" (fun () ->
                let closed = guarded (fun _ -> false)
                Expect.hasLength (TaskStream.trainBatches options key closed stream.Tasks[0]) 3 "loaders")

            testCase "a batch is the caller's, on a thread of its own too" (fun () ->
                let loaders = TaskStream.trainBatches options key stream stream.Tasks[0]

                leavesNothing (fun () -> Scope.free Batch.leaves (loaders[0]()))

                leavesNothing (fun () ->
                    let batch = System.Threading.Tasks.Task.Run(fun () -> loaders[1]()).Result
                    Expect.equal batch.Labels.dtype torch.ScalarType.Int64 "labels"
                    Expect.equal batch.Images.shape [| 4L; 1L; 2L; 2L |] "images"
                    Scope.free Batch.leaves batch))

            testCase "images of differing sizes: each key's batches, whatever the order asked for" (fun () ->
                let stream, options =
                    mixed 24,
                    { options with
                        Augmentation = Augmentation.CropFlip
                    }

                let pixels seed (order: int list) =
                    let loaders =
                        TaskStream.trainBatches options (Rng.ofSeed seed) stream stream.Tasks[0]

                    let batches = Array.zeroCreate loaders.Length

                    for i in order do
                        batches[i] <- Scope.run (fun () -> numbers (loaders[i]()).Images)

                    batches

                let forward = pixels 1L [ 0..5 ]
                Expect.equal (pixels 1L [ 5; 0; 3; 1; 4; 2; 3 ]) forward "same key"
                Expect.notEqual (pixels 2L [ 0..5 ]) forward "other key")

            testCase "images of differing sizes are cut as alone, and scaled" (fun () ->
                let stream = mixed 8
                let task = stream.Tasks[0]

                let format =
                    { options.Format with
                        Channels = 3
                        Size = 6
                        Low = -1.0
                        High = 1.0
                    }

                let options =
                    { options with
                        Format = format
                        Cropping =
                            { Cropping.standard with
                                TestResize = Some 9
                            }
                    }

                let expected =
                    TaskStream.testIndices stream task
                    |> Array.collect (stream.Dataset.Test.Read >> Picture.centre 9 6 >> planes 3)

                let loaders = TaskStream.testBatches options stream task

                let actual =
                    loaders
                    |> Array.collect (fun load -> Scope.run (fun () -> numbers (load ()).Images))

                Check.closeTo 1e-6 "pixels" (expected |> Array.map (fun b -> float b / 127.5 - 1.0)) actual)

            law
                "a picture in a PNG file and in an array is the same network input, bit for bit"
                (fun (PositiveInt h, PositiveInt w, PositiveInt size, resize: PositiveInt option, seed: int) ->
                    let n, h, w, size = 3, 1 + h % 20, 1 + w % 20, 1 + size % 24
                    let noise = Random seed

                    inFolder (fun folder ->
                        for stored in [ 1; 3 ] do
                            let pixels = Array.zeroCreate<byte>(n * stored * h * w)
                            noise.NextBytes pixels
                            let labels = Array.zeroCreate<int> n
                            let inMemory = ImageSet.ofBytes "memory" labels stored h w pixels

                            let files =
                                Array.init n (fun i ->
                                    let path = Path.Combine(folder, $"{stored} {i}.png")
                                    writePicture path (inMemory.Read i)
                                    ({ Path = path; Label = 0 }: LabelledFile))

                            let inFiles = ImageFiles.set folder files

                            for augmentation in
                                [ Augmentation.None; Augmentation.Flip; Augmentation.CropFlip ] do
                                for channels in [ 1; 3 ] do
                                    let options =
                                        { options with
                                            Format =
                                                {
                                                    Size = size
                                                    Channels = channels
                                                    Low = -1.0
                                                    High = 1.0
                                                }
                                            Cropping =
                                                { Cropping.standard with
                                                    TestResize =
                                                        resize |> Option.map (fun r -> 1 + r.Get % 30)
                                                }
                                        }

                                    let input set =
                                        let inputs =
                                            TaskStream.inputs
                                                options
                                                augmentation
                                                (Rng.ofSeed (int64 seed))
                                                set
                                                [| [| 0 .. n - 1 |] |]

                                        Scope.run (fun () -> numbers (inputs[0]()))

                                    Expect.equal
                                        (input inMemory)
                                        (input inFiles)
                                        $"{stored} to {channels} channels, {augmentation}"))

            testCase "another error of a reader arrives as it is" (fun () ->
                let set: ImageSet =
                    {
                        Source = "own set"
                        Labels = [| 0; 0 |]
                        Read =
                            fun i ->
                                if i = 1 then
                                    raise (TimeoutException "slow")
                                else
                                    PillowFixtures.pattern 2 2
                    }

                let inputs = TaskStream.inputs options Augmentation.None key set [| [| 0; 1 |] |]
                Expect.throwsT<TimeoutException> (fun () -> inputs[0]() |> ignore) "its type")

            testCase "a picture of the wrong length is refused with the set's name" (fun () ->
                let set: ImageSet =
                    {
                        Source = "own set"
                        Labels = [| 0 |]
                        Read =
                            fun _ ->
                                {
                                    Height = 2
                                    Width = 2
                                    Pixels = Array.zeroCreate 4
                                }
                    }

                refused [ "own set"; "3 bytes a pixel"; "2 x 2 with 4 bytes" ] (fun () ->
                    let inputs = TaskStream.inputs options Augmentation.None key set [| [| 0 |] |]
                    inputs[0]() |> ignore))

            testCase "an abandoned epoch of images leaves no tensor, and a batch is the caller's" (fun () ->
                let stream = mixed 24

                leavesNothing (fun () ->
                    let loaders = TaskStream.trainBatches options key stream stream.Tasks[0]
                    Scope.free Batch.leaves (loaders[0]())
                    Scope.free Batch.leaves (loaders[1]())))

            testCase
                "images that cannot be read are refused together, as the one who asks can tell"
                (fun () ->
                    let labels = Array.init 12 (fun i -> i % 2)

                    let decode i =
                        if i = 4 || i = 6 then
                            Errors.reject $"{i}.jpg" "must be whole" "a part" ""

                        PillowFixtures.pattern 5 (4 + i)

                    let set: ImageSet =
                        {
                            Source = "files"
                            Labels = labels
                            Read = decode
                        }

                    let stream =
                        TaskStream.create
                            (Dataset.create "toy" [| "a"; "b" |] set set)
                            ClassOrder.Natural
                            2
                            None

                    let loaders = TaskStream.plainTrainBatches options stream stream.Tasks[0]
                    // positions 0, 2, 4, 6
                    refused [ "4.jpg"; "must be whole"; "1 more of the same batch" ] (fun () ->
                        loaders[0]() |> ignore)

                    leavesNothing (fun () -> Scope.free Batch.leaves (loaders[1]())))

            testCase "answers are the labels' answers in the order learned" (fun () ->
                Expect.equal (TaskStream.answers stream) [| 4; 2; 0; 5; 1; 3 |] "the labels themselves")
        ]
