namespace LoRASub

open System.Collections.Generic
open System.Threading.Tasks
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
        Format: ImageFormat
        BatchSize: int
        /// Of training batches; test batches have none.
        Augmentation: Augmentation
        Cropping: Cropping
        Device: torch.Device
        Dtype: torch.ScalarType
    }

/// A data set whose classes arrive in tasks.
[<ReferenceEquality>]
type TaskStream =
    {
        Dataset: Dataset
        /// Entry i is the data set's label of the class learned i-th.
        Order: int[]
        Tasks: LearningTask[]
    }

[<RequireQualifiedAccess>]
module Batch =
    let leaves: Leaves<Batch> = fun batch -> [ batch.Images; batch.Labels ]

[<RequireQualifiedAccess>]
module TaskStream =

    let private divisors n =
        [
            for d in 1..n do
                if n % d = 0 then
                    d
        ]

    let private listed (numbers: int list) =
        numbers |> List.map string |> String.concat ", "

    /// The number of classes in each task.
    let private sizes (tasks: int) (initialClasses: int option) (classes: int) : int[] =
        if tasks < 1 then
            Errors.reject "tasks" "must be at least 1" $"{tasks}" ""

        if tasks > classes then
            Errors.reject "tasks" $"must be at most {classes}, one per class" $"{tasks}" ""

        match initialClasses with
        | None ->
            if classes % tasks <> 0 then
                let rule = $"must divide the {classes} classes when no first task is set"
                Errors.reject "tasks" rule $"{tasks}" $"{listed (divisors classes)} would work"

            Array.create tasks (classes / tasks)
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
                    $"must lie in 1 to {largest}, so that each of {later} later tasks has a class"

                Errors.reject "initial classes" rule $"{initial}" ""

            let rest = classes - initial

            if rest % later <> 0 then
                let rule = $"one less must divide the {rest} classes after the first {initial}"

                Errors.reject
                    "tasks"
                    rule
                    $"{tasks}"
                    $"{listed (divisors rest |> List.map ((+) 1))} would work"

            Array.append [| initial |] (Array.create later (rest / later))

    /// Cuts a class order into tasks of equal size; with `initialClasses` the first has that many and the others share
    /// the rest. Rejects numbers that do not divide, and says which would.
    let split (tasks: int) (initialClasses: int option) (order: int[]) : LearningTask[] =
        let sizes = sizes tasks initialClasses order.Length
        let firsts = Array.scan (+) 0 sizes

        sizes
        |> Array.mapi (fun i size ->
            {
                Index = i
                FirstClass = firsts[i]
                Classes = order[firsts[i] .. firsts[i] + size - 1]
            })

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

            let subject = $"{set.Source}, task {task.Index} with classes {names}"
            Errors.reject subject $"needs at least one {kind} image" "none" ""

        found

    /// Positions of a task's training images in the data set, ascending.
    let trainIndices (stream: TaskStream) (task: LearningTask) : int[] =
        indices "training" stream.Dataset.Train stream task

    /// Positions of a task's test images in the data set, ascending.
    let testIndices (stream: TaskStream) (task: LearningTask) : int[] =
        indices "test" stream.Dataset.Test stream task

    /// A data set cut into tasks. Rejects a data set with bad labels, an order that is no permutation, numbers of tasks
    /// and classes that do not fit, a task without training or test images, and a class without training images, of
    /// which there could be no prototype.
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

    /// What counts as the right answer for the class at each position of the order.
    let answers (stream: TaskStream) : int[] =
        stream.Order |> Array.map (fun label -> stream.Dataset.Answers[label])

    /// Batches that are made ahead of the one asked for.
    [<Literal>]
    let private Ahead = 2

    /// Bytes of some images of differing sizes, fitted for the network, plane by plane; on all cores. Images that cannot
    /// be decoded are refused together.
    let private fitted
        size
        (decode: int -> Picture)
        (fit: int -> Picture -> Picture)
        (positions: int[])
        : byte[] =
        let image = 3 * size * size
        let planes = Array.zeroCreate<byte>(positions.Length * image)
        let refusals = Array.create<exn option> positions.Length None

        Parallel.For(
            0,
            positions.Length,
            fun i ->
                try
                    decode positions[i] |> fit i |> Picture.copyPlanes planes (i * image)
                with :? InputException as e ->
                    refusals[i] <- Some e
        )
        |> ignore

        match Array.choose id refusals with
        | [||] -> planes
        | refusals ->
            let others =
                if refusals.Length = 1 then
                    ""
                else
                    $"; {refusals.Length - 1} more of the same batch cannot be read either"

            raise (InputException(refusals[0].Message + others, refusals[0]))

    /// The network input of each chunk of positions, augmented by the chunk's child of the key. Images of differing
    /// sizes are decoded on all cores, ahead of the chunk asked for; the others are gathered when asked for.
    let internal inputs
        options
        augmentation
        key
        (set: ImageSet)
        (chunks: int[][])
        : (unit -> torch.Tensor)[] =
        let format, cropping = options.Format, options.Cropping
        let keyOf (number: int) = Rng.fold (int64 number) key

        match set.Decode with
        | None ->
            chunks
            |> Array.mapi (fun number some ->
                fun () ->
                    Scope.noGrad Leaves.tensor (fun () ->
                        let pixels = set.Read some

                        if pixels.shape[0] <> some.LongLength then
                            Errors.reject
                                set.Source
                                $"must read {some.Length} images"
                                $"{pixels.shape[0]}"
                                ""

                        ImageFormat.toInput
                            format
                            cropping
                            augmentation
                            (keyOf number)
                            options.Device
                            options.Dtype
                            pixels))
        | Some decode ->
            let prepare number =
                let some = chunks[number]

                let fit =
                    Augment.pictures augmentation cropping format.Size some.Length (keyOf number)

                fun () -> fitted format.Size decode fit some

            Prefetch.ahead Ahead chunks.Length prepare
            |> Array.mapi (fun number make ->
                fun () ->
                    let planes = make ()

                    Scope.noGrad Leaves.tensor (fun () ->
                        ImageSet.ofPlanes chunks[number].Length format.Size format.Size planes
                        |> ImageFormat.ofFitted format options.Device options.Dtype))

    /// Loaders of some images of one task, in the given order; each batch augments by its own child of the key.
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

        let format = ImageFormat.validate options.Format

        let place =
            dict (task.Classes |> Seq.mapi (fun i c -> c, int64 (task.FirstClass + i)))

        let chunks = positions |> Array.chunkBySize options.BatchSize

        inputs { options with Format = format } augmentation key set chunks
        |> Array.mapi (fun number input ->
            let labels = chunks[number] |> Array.map (fun i -> place[set.Labels[i]])

            fun () ->
                Scope.noGrad Batch.leaves (fun () ->
                    {
                        Images = input ()
                        Labels = torch.tensor(labels).``to`` options.Device
                    }))

    /// One epoch over a task's training images, shuffled and augmented as the key decides; the last batch may be
    /// smaller. The loaders read no image of another task.
    let trainBatches
        (options: BatchOptions)
        (key: RandomKey)
        (stream: TaskStream)
        (task: LearningTask)
        : BatchLoader[] =
        let mine = trainIndices stream task

        let shuffled =
            Rng.permutation mine.Length (Rng.fold 0L key) |> Array.map (fun i -> mine[i])

        batches options options.Augmentation (Rng.fold 1L key) stream.Dataset.Train task shuffled

    /// A task's training images in order, without augmentation, for prototypes by the test transform.
    let plainTrainBatches (options: BatchOptions) (stream: TaskStream) (task: LearningTask) : BatchLoader[] =
        trainIndices stream task
        |> batches options Augmentation.None (Rng.ofSeed 0L) stream.Dataset.Train task

    /// A task's test images in order, without augmentation.
    let testBatches (options: BatchOptions) (stream: TaskStream) (task: LearningTask) : BatchLoader[] =
        testIndices stream task
        |> batches options Augmentation.None (Rng.ofSeed 0L) stream.Dataset.Test task
