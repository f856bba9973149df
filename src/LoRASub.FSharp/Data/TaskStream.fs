namespace LoRASub.Data

open System
open System.Collections.Generic
open System.Runtime.ExceptionServices
open System.Threading.Tasks
open LoRASub.Core
open TorchSharp

/// The classes that arrive together: positions FirstClass, FirstClass + 1, … of the class order.
type LearningTask =
    {
        /// From 0.
        Index: int
        /// Position of its first class in the class order.
        FirstClass: int
        /// The data set's labels of its classes, in the order learned.
        Classes: int[]
    }

/// A batch for the network.
[<ReferenceEquality>]
type Batch =
    {
        /// [n, c, size, size]
        Images: torch.Tensor
        /// [n], int64: positions in the class order, 0 for the first class learned.
        Labels: torch.Tensor
    }

/// Makes a batch, owned by the caller: inside the scope of the step that uses it, that scope frees it.
type BatchLoader = unit -> Batch

/// How images become batches.
type BatchOptions =
    {
        /// What the network expects of its images.
        Format: ImageFormat
        /// Images of a batch, at least 1.
        BatchSize: int
        /// Of training batches; test batches have none.
        Augmentation: Augmentation
        /// Which part of an image the network sees.
        Cropping: Cropping
        /// Where batches are.
        Device: torch.Device
        /// The type of the images of a batch.
        Dtype: torch.ScalarType
    }

/// A data set whose classes arrive in tasks.
[<ReferenceEquality>]
type TaskStream =
    {
        /// All images, of every task.
        Dataset: Dataset
        /// Entry i is the data set's label of the class learned i-th.
        Order: int[]
        /// In the order in which they are learned.
        Tasks: LearningTask[]
    }

/// Batches.
[<RequireQualifiedAccess>]
module Batch =
    /// <summary>The tensors of a batch.</summary>
    /// <param name="batch">The batch.</param>
    /// <returns>Its images and labels.</returns>
    let leaves: Leaves<Batch> = fun batch -> [ batch.Images; batch.Labels ]

/// Tasks and their batches.
[<RequireQualifiedAccess>]
module TaskStream =

    /// A number of classes in tasks of equal size, of which the last may be smaller; None if a task would be empty.
    let private equalSizes (tasks: int) (classes: int) : int[] option =
        let size = (classes + tasks - 1) / tasks
        let last = classes - (tasks - 1) * size

        if last < 1 then
            None
        else
            Some(Array.append (Array.create (tasks - 1) size) [| last |])

    /// Rejects a number of later tasks that leaves one empty, and suggests numbers near it. `first` are the
    /// classes before them, in a task of their own where there are any.
    let private refuseTasks (later: int) (first: int) (classes: int) =
        let before = if first = 0 then 0 else 1

        let fits =
            [ later - 1 .. -1 .. 1 ] @ [ later + 1 .. classes ]
            |> List.filter (fun n -> (equalSizes n classes).IsSome)

        let near =
            [
                List.tryFind (fun n -> n < later) fits
                List.tryFind (fun n -> n > later) fits
            ]
            |> List.choose (Option.map (fun n -> string (n + before)))
            |> String.concat " or "

        // with a larger first task the others are equal
        let others = if first = 0 then later - 1 else later
        let size = (classes - (if first = 0 then 1 else 0)) / others
        let initial = first + classes - others * size
        let after = if first = 0 then "" else $" after the first {first}"

        Errors.reject
            "tasks"
            $"must cut the {classes} classes{after} into equal tasks, of which only the last may be smaller"
            $"{later + before}"
            $"use {near} tasks, or --initial-classes {initial}, which leaves {size} for each later task"

    /// The number of classes in each task.
    let private sizes (tasks: int) (initialClasses: int option) (classes: int) : int[] =
        if tasks < 1 then
            Errors.reject "tasks" "must be at least 1" $"{tasks}" ""

        if tasks > classes then
            Errors.reject "tasks" $"must be at most {classes}, one per class" $"{tasks}" ""

        match initialClasses with
        | None ->
            match equalSizes tasks classes with
            | Some sizes -> sizes
            | None -> refuseTasks tasks 0 classes
        | Some initial when tasks = 1 ->
            if initial <> classes then
                Errors.reject
                    "initial classes"
                    $"must be all {classes} when there is one task"
                    $"{initial}"
                    ""

            [| classes |]
        | Some initial ->
            let later = tasks - 1
            let largest = classes - later

            if initial < 1 || initial > largest then
                let rule =
                    $"must be in 1 to {largest}, so that each of {later} later tasks has a class"

                Errors.reject "initial classes" rule $"{initial}" ""

            match equalSizes later (classes - initial) with
            | Some sizes -> Array.append [| initial |] sizes
            | None -> refuseTasks later initial (classes - initial)

    /// Cuts a class order into tasks of equal size, of which the last may be smaller, as published runs have it where
    /// the classes do not divide (Cars: 9 x 20 classes, then 16). With `initialClasses` the first task has that many and
    /// the others share the rest. Rejects numbers that would leave a task empty, and suggests others.
    let internal split (tasks: int) (initialClasses: int option) (order: int[]) : LearningTask[] =
        let sizes = sizes tasks initialClasses order.Length
        let firsts = Array.scan (+) 0 sizes

        sizes
        |> Array.mapi (fun i size ->
            {
                Index = i
                FirstClass = firsts[i]
                Classes = order[firsts[i] .. firsts[i] + size - 1]
            })

    /// Sizes of tasks as people read them: "10 tasks x 5 classes", "11 tasks: 20 classes, then 10 x 18".
    let internal describeSizes (sizes: int[]) : string =
        // runs of equal sizes, each as how many of which size
        let runs =
            (sizes, [])
            ||> Array.foldBack (fun size runs ->
                match runs with
                | (n, same) :: rest when same = size -> (n + 1, size) :: rest
                | _ -> (1, size) :: runs)

        let tasks = Text.counted sizes.Length "task" "tasks"

        match runs with
        | [ _, size ] -> $"""{tasks} x {Text.counted size "class" "classes"}"""
        | _ ->
            let part i (n, size) =
                let size =
                    if i = 0 then
                        Text.counted size "class" "classes"
                    else
                        string size

                if n = 1 then size else $"{n} x {size}"

            $"""{tasks}: {runs |> List.mapi part |> String.concat ", then "}"""

    /// What a reader should know of tasks whose last one is smaller.
    let internal sizeNote (initialClasses: int option) (sizes: int[]) : string option =
        let later = if initialClasses.IsSome then Array.skip 1 sizes else sizes

        match Array.tryHead later, Array.tryLast later with
        | Some size, Some last when last < size ->
            let last = Text.counted last "class" "classes"

            Some $"the last task has {last}, the others {size}; --initial-classes N sets the first task's"
        | _ -> None

    let private indices (kind: string) (set: ImageSet) (stream: TaskStream) (task: LearningTask) : int[] =
        let mine = HashSet task.Classes

        let found =
            [|
                for i in 0 .. set.Labels.Length - 1 do
                    if mine.Contains set.Labels[i] then
                        i
            |]

        if Array.isEmpty found then
            let names =
                task.Classes
                |> Array.map (fun c -> $"{c} ({stream.Dataset.ClassNames[c]})")
                |> String.concat ", "

            let subject = $"{set.Source}, task {task.Index + 1} with classes {names}"
            Errors.reject subject $"needs at least one {kind} image" "none" ""

        found

    /// <summary>Positions of the training images of a task in the data set.</summary>
    /// <param name="stream">A data set cut into tasks.</param>
    /// <param name="task">One of its tasks.</param>
    /// <returns>Positions, ascending.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The task has no such image.</exception>
    let trainIndices (stream: TaskStream) (task: LearningTask) : int[] =
        indices "training" stream.Dataset.Train stream task

    /// <summary>Positions of the test images of a task in the data set.</summary>
    /// <param name="stream">A data set cut into tasks.</param>
    /// <param name="task">One of its tasks.</param>
    /// <returns>Positions, ascending.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The task has no such image.</exception>
    let testIndices (stream: TaskStream) (task: LearningTask) : int[] =
        indices "test" stream.Dataset.Test stream task

    /// <summary>Cuts a data set into tasks.</summary>
    /// <param name="dataset">The data set.</param>
    /// <param name="order">The order in which its classes are learned.</param>
    /// <param name="tasks">The number of tasks; they are of equal size, and the last may be smaller.</param>
    /// <param name="initialClasses">The number of classes in the first task; None: as many as in the
    /// others.</param>
    /// <returns>The stream, which reads no image.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The data set is not valid, the order does not name each class
    /// once, a task would be empty, or a task or class has no images.</exception>
    let create (dataset: Dataset) (order: ClassOrder) (tasks: int) (initialClasses: int option) : TaskStream =
        let dataset = Dataset.validate dataset
        let order = ClassOrder.resolve (Dataset.classes dataset) order

        let stream =
            {
                Dataset = dataset
                Order = order
                Tasks = split tasks initialClasses order
            }

        for task in stream.Tasks do
            trainIndices stream task |> ignore
            testIndices stream task |> ignore

        let trained = HashSet dataset.Train.Labels

        for label in order do
            if not (trained.Contains label) then
                let subject = $"{dataset.Train.Source}, class {label} ({dataset.ClassNames[label]})"
                Errors.reject subject "needs at least one training image" "none" ""

        stream

    /// With the first `each` test images of each class alone.
    let internal firstTests (each: int) (stream: TaskStream) : TaskStream =
        { stream with
            Dataset =
                { stream.Dataset with
                    Test = ImageSet.firstOfEach each stream.Dataset.Test
                }
        }

    /// What counts as the right answer for the class at each position of the order.
    let internal answers (stream: TaskStream) : int[] =
        stream.Order |> Array.map (fun label -> stream.Dataset.Answers[label])

    /// Batches that are made ahead of the one asked for.
    [<Literal>]
    let private Ahead = 2

    /// Bytes of some images, fitted for the network, plane by plane; on all cores. Images that cannot be read are refused
    /// together; another error of a reader arrives as it is.
    let private fitted
        (format: ImageFormat)
        (set: ImageSet)
        (fit: int -> Picture -> Picture)
        (positions: int[])
        : byte[] =
        let image = format.Channels * format.Size * format.Size
        let planes = Array.zeroCreate<byte>(positions.Length * image)
        let failures = Array.create<exn option> positions.Length None

        Parallel.For(
            0,
            positions.Length,
            fun i ->
                try
                    set.Read positions[i]
                    |> Picture.require set.Source
                    |> fit i
                    |> Picture.copyPlanes format.Channels planes (i * image)
                with e ->
                    failures[i] <- Some e
        )
        |> ignore

        let failures = Array.choose id failures

        match failures |> Array.tryFind (fun e -> not (e :? InputException)) with
        | Some other -> ExceptionDispatchInfo.Throw other
        | None when failures.Length > 0 ->
            let others =
                if failures.Length = 1 then
                    ""
                else
                    $"; {failures.Length - 1} more of the same batch cannot be read either"

            raise (InputException(failures[0].Message + others, failures[0]))
        | None -> ()

        planes

    let private tensor (n: int) (format: ImageFormat) (planes: byte[]) : torch.Tensor =
        let side = int64 format.Size
        let shape = [| int64 n; int64 format.Channels; side; side |]
        let images = torch.empty (shape, dtype = torch.ScalarType.Byte, device = torch.CPU)
        planes.AsSpan().CopyTo images.bytes
        images

    /// The network input of each chunk of positions, augmented by the chunk's child of the key. Images are read, cut and
    /// resampled on all cores, ahead of the chunk asked for.
    let internal inputs
        options
        augmentation
        key
        (set: ImageSet)
        (chunks: int[][])
        : (unit -> torch.Tensor)[] =
        let format = ImageFormat.validate options.Format

        let prepare number =
            let some = chunks[number]

            let fit =
                Augment.pictures
                    augmentation
                    options.Cropping
                    format.Size
                    some.Length
                    (Rng.fold (int64 number) key)

            fun () -> fitted format set fit some

        Prefetch.ahead Ahead chunks.Length prepare
        |> Array.mapi (fun number make ->
            fun () ->
                let planes = make ()

                Scope.noGrad Leaves.tensor (fun () ->
                    tensor chunks[number].Length format planes
                    |> ImageFormat.toInput format options.Device options.Dtype))

    // Loaders of some images of one task, in the given order; each batch augments by its own child of the key.
    let private batches
        options
        augmentation
        key
        (set: ImageSet)
        (task: LearningTask)
        (positions: int[])
        : BatchLoader[] =
        if options.BatchSize < 1 then
            Errors.reject "batch size" "must be at least 1" $"{options.BatchSize}" ""

        let place =
            dict (task.Classes |> Seq.mapi (fun i c -> c, int64 (task.FirstClass + i)))

        let chunks = positions |> Array.chunkBySize options.BatchSize

        inputs options augmentation key set chunks
        |> Array.mapi (fun number input ->
            let labels = chunks[number] |> Array.map (fun i -> place[set.Labels[i]])

            fun () ->
                Scope.noGrad Batch.leaves (fun () ->
                    {
                        Images = input ()
                        Labels = ImageFormat.labels options.Device labels
                    }))

    /// One epoch over some images of a set, which are of one task: shuffled, and augmented, as the key decides; the last
    /// batch may be smaller.
    let internal epochBatches
        options
        (key: RandomKey)
        (set: ImageSet)
        task
        (positions: int[])
        : BatchLoader[] =
        let shuffled =
            Rng.permutation positions.Length (Rng.fold 0L key)
            |> Array.map (fun i -> positions[i])

        batches options options.Augmentation (Rng.fold 1L key) set task shuffled

    /// Some images of a set, which are of one task, in order and without augmentation.
    let internal plainBatches options (set: ImageSet) task (positions: int[]) : BatchLoader[] =
        batches options Augmentation.None (Rng.ofSeed 0L) set task positions

    /// <summary>One epoch over the training images of a task, shuffled and augmented. No image of another task is
    /// read.</summary>
    /// <param name="options">Size, range and device of the images, and how they are cut.</param>
    /// <param name="key">Decides the order and the augmentation.</param>
    /// <param name="stream">A data set cut into tasks.</param>
    /// <param name="task">One of its tasks.</param>
    /// <returns>Loaders in order, the last batch maybe smaller: images [n, channels, size, size] and labels [n],
    /// owned by the caller. Images are read when the first loader is called, two batches ahead.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The batch size is below 1, the image format is not valid, or
    /// the task has no images.</exception>
    let trainBatches
        (options: BatchOptions)
        (key: RandomKey)
        (stream: TaskStream)
        (task: LearningTask)
        : BatchLoader[] =
        trainIndices stream task |> epochBatches options key stream.Dataset.Train task

    /// <summary>The training images of a task in order, without augmentation.</summary>
    /// <param name="options">Size, range and device of the images, and how they are cut.</param>
    /// <param name="stream">A data set cut into tasks.</param>
    /// <param name="task">One of its tasks.</param>
    /// <returns>Loaders in order, the last batch maybe smaller: images [n, channels, size, size] and labels [n],
    /// owned by the caller. Images are read when the first loader is called, two batches ahead.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The batch size is below 1, the image format is not valid, or
    /// the task has no images.</exception>
    let plainTrainBatches (options: BatchOptions) (stream: TaskStream) (task: LearningTask) : BatchLoader[] =
        trainIndices stream task |> plainBatches options stream.Dataset.Train task

    /// <summary>The test images of a task in order, without augmentation.</summary>
    /// <param name="options">Size, range and device of the images, and how they are cut.</param>
    /// <param name="stream">A data set cut into tasks.</param>
    /// <param name="task">One of its tasks.</param>
    /// <returns>Loaders in order, the last batch maybe smaller: images [n, channels, size, size] and labels [n],
    /// owned by the caller. Images are read when the first loader is called, two batches ahead.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The batch size is below 1, the image format is not valid, or
    /// the task has no images.</exception>
    let testBatches (options: BatchOptions) (stream: TaskStream) (task: LearningTask) : BatchLoader[] =
        testIndices stream task |> plainBatches options stream.Dataset.Test task
