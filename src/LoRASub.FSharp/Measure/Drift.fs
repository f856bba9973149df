namespace LoRASub.Measure

open System
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open TorchSharp

/// The parts of drift.json, docs/drift.md. Numbers that are undefined are null there and NaN here.
[<RequireQualifiedAccess>]
module DriftFile =

    /// The movement of a class mean from an anchor to now. NaN: undefined.
    [<Struct>]
    type Movement =
        {
            Euclidean: float
            /// 1 − cos of the angle between both; undefined where one is zero.
            Cosine: float
            /// Euclidean over the class's spread when it was learned; undefined for a class without spread.
            Relative: float
        }

    /// One class after one task.
    type ClassDrift =
        {
            /// In the class order, from 0.
            Position: int
            /// From the stored prototype to the test mean. Not zero even in the class's own task, because the prototype
            /// is a mean of training images.
            Output: Movement
            /// From the test mean right after the class was learned to the test mean now.
            OutputSinceLearned: Movement
            /// The same after each block.
            Blocks: Movement[]
        }

    type ClassOfTask =
        {
            Position: int
            Name: string
            Task: int
        }

    /// Every class seen, after a task.
    type AfterTask = { Task: int; Classes: ClassDrift[] }

    /// The second moment of a task's inputs to one block, as shares of its trace.
    type BlockSpectrum =
        {
            Rank: int
            EnergyInside: float
            EnergyOutside: float
            /// The largest eigenvalues, descending.
            Spectrum: float[]
            /// Sum of the others.
            SpectrumRest: float
        }

    /// Empty for a task that retains nothing.
    type TaskSubspaces = { Task: int; Blocks: BlockSpectrum[] }

    /// The overlap of the retained subspaces of two tasks; angles in degrees.
    type Overlap =
        {
            Block: int
            First: int
            Second: int
            MeanSquaredCosine: float
            SmallestAngle: float
            LargestAngle: float
        }

    type Point = { Position: int; X: float; Y: float }

    type MeanPoint =
        {
            AfterTask: int
            Position: int
            X: float
            Y: float
        }

    /// Prototypes and test means in the plane of the prototypes' two largest principal components.
    type Picture =
        {
            /// Share of the prototypes' variance along x and y.
            Explained: float[]
            Prototypes: Point[]
            Means: MeanPoint[]
        }

/// drift.json.
type DriftFile =
    {
        Classes: DriftFile.ClassOfTask[]
        AfterTask: DriftFile.AfterTask[]
        Subspaces: DriftFile.TaskSubspaces[]
        Overlap: DriftFile.Overlap[]
        Picture: DriftFile.Picture
    }

/// How far the true means of learned classes move, measured on test images, which no training ever sees; and how the
/// retained spaces of tasks overlap. docs/drift.md has the formulas.
[<RequireQualifiedAccess>]
module Drift =

    type Movement = DriftFile.Movement
    type ClassDrift = DriftFile.ClassDrift

    /// Means over the old classes: those learned before the last task.
    type Summary =
        {
            /// The number of old classes.
            Classes: int
            Output: Movement
            OutputSinceLearned: Movement
            Blocks: Movement[]
        }

    /// Prototypes and class means in the plane that shows most of how prototypes differ.
    type Picture =
        {
            /// Share of the prototypes' variance along x and y; NaN where they do not vary.
            Explained: float[]
            /// x and y of each prototype, by position.
            Prototypes: struct (float * float)[]
            /// x and y of each class's test mean, by task and position.
            Means: struct (float * float)[][]
        }

    /// What is kept of one finished task.
    [<ReferenceEquality>]
    type Finished =
        {
            /// [c, blocks + 2, 3], float64: euclidean, cosine, relative; rows are output, output since learned, blocks.
            Movements: torch.Tensor
            /// [c, d], float64: test means at the output.
            Means: torch.Tensor
            /// [t, blocks, 3], float64: overlap with each earlier task, NaN where one of the two retains nothing.
            Overlaps: torch.Tensor
            /// Per block, or empty where nothing is retained.
            Subspaces: Subspace[]
        }

    /// The measurement so far, on the CPU; c classes are learned.
    [<ReferenceEquality>]
    type State =
        {
            /// [c, d], float64: as stored now.
            Prototypes: torch.Tensor
            /// [c, blocks + 1, d], float64: each class's test means right after it was learned.
            Anchors: torch.Tensor
            /// [c, blocks + 1], float64: its spreads then.
            Spreads: torch.Tensor
            Tasks: Finished[]
        }

    let private float64 = torch.ScalarType.Float64

    let private finishedTree: Tree<Finished> =
        tree {
            let! movements = Tree.field "movements" _.Movements Tree.tensor
            and! means = Tree.field "means" _.Means Tree.tensor
            and! overlaps = Tree.field "overlaps" _.Overlaps Tree.tensor
            and! subspaces = Tree.field "subspaces" _.Subspaces (Tree.array Subspace.tree)

            return
                {
                    Movements = movements
                    Means = means
                    Overlaps = overlaps
                    Subspaces = subspaces
                }
        }

    let private stateTree: Tree<State> =
        tree {
            let! prototypes = Tree.field "prototypes" _.Prototypes Tree.tensor
            and! anchors = Tree.field "anchors" _.Anchors Tree.tensor
            and! spreads = Tree.field "spreads" _.Spreads Tree.tensor
            and! tasks = Tree.field "tasks" _.Tasks (Tree.array finishedTree)

            return
                {
                    Prototypes = prototypes
                    Anchors = anchors
                    Spreads = spreads
                    Tasks = tasks
                }
        }

    /// <summary>Lists the tensors that a state owns.</summary>
    let leaves: Leaves<State> = stateTree.Leaves

    // Rejects tensors of another type, or that do not fit each other.
    let private check (state: State) =
        let expect name axes (tensor: torch.Tensor) =
            Shape.expect $"drift.{name}" axes tensor

            if tensor.dtype <> float64 then
                Errors.reject $"drift.{name}" $"must be {float64}" $"{tensor.dtype}" ""

        expect "prototypes" [ Axis.Any "classes"; Axis.Any "width" ] state.Prototypes
        let c, d = Axis.Is state.Prototypes.shape[0], Axis.Is state.Prototypes.shape[1]
        expect "anchors" [ c; Axis.Any "layers"; d ] state.Anchors
        let layers = state.Anchors.shape[1]
        expect "spreads" [ c; Axis.Is layers ] state.Spreads

        for t, task in Array.indexed state.Tasks do
            expect $"tasks.{t}.means" [ Axis.Any "classes"; d ] task.Means
            let seen = Axis.Is task.Means.shape[0]
            expect $"tasks.{t}.movements" [ seen; Axis.Is(layers + 1L); Axis.Is 3L ] task.Movements
            expect $"tasks.{t}.overlaps" [ Axis.Is(int64 t); Axis.Is(layers - 1L); Axis.Is 3L ] task.Overlaps

            if task.Subspaces.Length > 0 && task.Subspaces.LongLength <> layers - 1L then
                Errors.reject
                    $"drift.tasks.{t}.subspaces"
                    $"must be {layers - 1L}, one per block"
                    $"{task.Subspaces.Length}"
                    ""

            for b, subspace in Array.indexed task.Subspaces do
                let name = $"drift.tasks.{t}.subspaces.{b}"
                Shape.expect $"{name}.basis" [ d; Axis.Any "directions" ] subspace.Basis
                Shape.expect $"{name}.spectrum" [ d ] subspace.Spectrum

        let seen = state.Tasks |> Array.map _.Means.shape[0]
        let growing = Array.pairwise (Array.append [| 0L |] seen)

        if
            Array.exists (fun (before, after) -> after <= before) growing
            || Array.fold (fun _ last -> last) 0L seen <> state.Prototypes.shape[0]
        then
            let rule = $"classes must grow with each task, up to {state.Prototypes.shape[0]}"
            Errors.reject "drift.tasks" rule (Shape.text seen) ""

    /// The tensors of the state, for checkpoints. Reading moves them to the CPU, and rejects tensors that are of another
    /// type or do not fit each other.
    let internal tree: Tree<State> =
        { stateTree with
            Read =
                fun tensors path ->
                    let state = stateTree.Read tensors path |> Tree.map _.cpu() stateTree
                    check state
                    state
        }

    /// <summary>The state before the first task.</summary>
    /// <param name="blocks">The number of blocks of the network.</param>
    /// <param name="width">d, the width of the network.</param>
    /// <returns>Owned by the caller, on the CPU.</returns>
    let none (blocks: int) (width: int64) : State =
        let zeros (shape: int64[]) =
            torch.zeros (shape, dtype = float64, device = torch.CPU)

        {
            Prototypes = zeros [| 0L; width |]
            Anchors = zeros [| 0L; int64 blocks + 1L; width |]
            Spreads = zeros [| 0L; int64 blocks + 1L |]
            Tasks = [||]
        }

    // [c, n, d] twice and [c, n] -> [c, n, 3]
    let private movements (from: torch.Tensor) (now: torch.Tensor) (spread: torch.Tensor) =
        let length (x: torch.Tensor) = x.norm (-1, keepdim = true)
        let unit (x: torch.Tensor) = x.div (length x)
        let euclidean = (length (now.sub from)).squeeze -1L
        // ½‖u − v‖² = 1 − u·v on unit vectors, without the cancellation
        let chord = (unit now).sub(unit from)
        let cosine = (chord.mul chord).sum(-1L).div(Number.Of 2.0)

        let relative =
            torch.where (
                spread.gt (Number.Of 0.0),
                euclidean.div spread,
                torch.full_like (spread, Number.Of nan)
            )

        torch.stack ([| euclidean; cosine; relative |], -1L)

    // Layers of `Movements` out of those of `ClassMoments`: the last is the output.
    let private outputFirst (output: torch.Tensor) (layers: torch.Tensor) =
        let blocks = layers.shape[1] - 1L
        torch.cat ([| output; layers.narrow (1L, blocks, 1L); layers.narrow (1L, 0L, blocks) |], 1L)

    let private overlaps (state: State) (blocks: int) (subspaces: Subspace[]) =
        let numbers =
            [|
                for earlier in state.Tasks do
                    for b in 0 .. blocks - 1 do
                        if Array.isEmpty subspaces || Array.isEmpty earlier.Subspaces then
                            yield! [| nan; nan; nan |]
                        else
                            let o = Overlap.ofBases earlier.Subspaces[b].Basis subspaces[b].Basis
                            yield! [| o.MeanSquaredCosine; o.SmallestAngle; o.LargestAngle |]
            |]

        (torch.tensor (numbers, dtype = float64)).reshape(state.Tasks.LongLength, int64 blocks, 3L)

    /// <summary>The measurement after one more task. All that it reads is as the network is after the task.</summary>
    /// <param name="task">The index of the task, from 0: the next one.</param>
    /// <param name="means">[classes of the task, d]: mean features of its training images. Borrowed.</param>
    /// <param name="moments">Of the test images of all classes learned so far. Borrowed.</param>
    /// <param name="subspaces">What the task retained in each block; empty where it retained nothing.
    /// Borrowed.</param>
    /// <param name="state">After the task before. Borrowed.</param>
    /// <returns>Owned by the caller; the tensors of earlier tasks are those of `state`.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The task is out of turn, a class has no test image, or sizes
    /// differ.</exception>
    let afterTask
        (task: int)
        (means: torch.Tensor)
        (moments: ClassMoments)
        (subspaces: Subspace[])
        (state: State)
        : State =
        let old, d = state.Prototypes.shape[0], state.Prototypes.shape[1]
        let layers = state.Anchors.shape[1]

        if task <> state.Tasks.Length then
            Errors.reject "drift" $"must be measured after task {state.Tasks.Length} next" $"task {task}" ""

        Shape.expect "means of a task" [ Axis.Any "classes"; Axis.Is d ] means
        let c = old + means.shape[0]

        if c <= old then
            Errors.reject $"means of task {task}" "must be of at least one class" "none" ""

        Shape.expect "class moments" [ Axis.Is c; Axis.Is layers; Axis.Is d ] moments.Sums

        if subspaces.Length <> 0 && int64 subspaces.Length <> layers - 1L then
            let rule = $"must be 0 or {layers - 1L}, one per block"
            Errors.reject "retained subspaces" rule $"{subspaces.Length}" ""

        for subspace in subspaces do
            Shape.expect "basis of a retained subspace" [ Axis.Is d; Axis.Any "directions" ] subspace.Basis
            Shape.expect "spectrum of a retained subspace" [ Axis.Is d ] subspace.Spectrum

        let nameOf i = $"class {i}"

        Scope.noGrad leaves (fun () ->
            let now = (ClassMoments.means nameOf moments).cpu()
            let spreads = (ClassMoments.spreads nameOf moments).cpu()
            let fresh = means.detach().``to``(float64, copy = true).cpu()
            let stored = torch.cat ([| state.Prototypes; fresh |], 0L)
            // the classes of this task are anchored where they are now
            let joined (kept: torch.Tensor) (now: torch.Tensor) =
                torch.cat ([| kept; now.narrow (0L, old, c - old) |], 0L)

            let anchors, anchorSpreads = joined state.Anchors now, joined state.Spreads spreads

            let output (layers: torch.Tensor) =
                layers.narrow (1L, layers.shape[1] - 1L, 1L)

            let finished =
                {
                    Movements =
                        movements
                            (outputFirst (stored.unsqueeze 1L) anchors)
                            (outputFirst (output now) now)
                            (outputFirst (output anchorSpreads) anchorSpreads)
                    Means = (now.select (1L, layers - 1L)).clone()
                    Overlaps = overlaps state (int layers - 1) subspaces
                    Subspaces = Array.map Subspace.copy subspaces
                }

            {
                Prototypes = stored
                Anchors = anchors
                Spreads = anchorSpreads
                Tasks = Array.append state.Tasks [| finished |]
            })

    // ---- reading

    // A tensor [a, b, c] of float64.
    let private cube (t: torch.Tensor) : float[][][] =
        let numbers = t.flatten().data<float>().ToArray() // flat: an empty tensor of more axes cannot be read
        let b, c = int t.shape[1], int t.shape[2]

        Array.init (int t.shape[0]) (fun i -> Array.init b (fun j -> Array.sub numbers ((i * b + j) * c) c))

    let private movementOf (numbers: float[]) : Movement =
        {
            Euclidean = numbers[0]
            Cosine = numbers[1]
            Relative = numbers[2]
        }

    /// <summary>The drift of every learned class after a task.</summary>
    /// <param name="task">The index of a finished task.</param>
    /// <param name="state">Borrowed.</param>
    /// <returns>By position.</returns>
    let classes (task: int) (state: State) : ClassDrift[] =
        Scope.run (fun () ->
            cube state.Tasks[task].Movements
            |> Array.mapi (fun position rows ->
                {
                    Position = position
                    Output = movementOf rows[0]
                    OutputSinceLearned = movementOf rows[1]
                    Blocks = rows[2..] |> Array.map movementOf
                }))

    /// The task in which each class was learned, by position.
    let internal learnedIn (state: State) : int[] =
        let seen = state.Tasks |> Array.map (fun task -> int task.Means.shape[0])

        Array.pairwise (Array.append [| 0 |] seen)
        |> Array.mapi (fun t (before, after) -> Array.create (after - before) t)
        |> Array.concat

    // NaN where nothing is defined.
    let private mean (values: float seq) =
        match values |> Seq.filter (Double.IsNaN >> not) |> Array.ofSeq with
        | [||] -> nan
        | defined -> Array.average defined

    /// <summary>The mean movement of the old classes after the last task, over those where it is defined.</summary>
    /// <param name="state">Borrowed.</param>
    /// <returns>None before the second task, which is the first to have old classes.</returns>
    let summary (state: State) : Summary option =
        if state.Tasks.Length < 2 then
            None
        else
            let last = state.Tasks.Length - 1

            let old =
                classes last state |> Array.take (int state.Tasks[last - 1].Means.shape[0])

            let over (pick: ClassDrift -> Movement) : Movement =
                let mean (number: Movement -> float) = mean (Seq.map (pick >> number) old)

                {
                    Euclidean = mean _.Euclidean
                    Cosine = mean _.Cosine
                    Relative = mean _.Relative
                }

            Some
                {
                    Classes = old.Length
                    Output = over _.Output
                    OutputSinceLearned = over _.OutputSinceLearned
                    Blocks = Array.init old[0].Blocks.Length (fun b -> over _.Blocks[b])
                }

    /// <summary>Prototypes and test means on the two principal components of the stored prototypes.</summary>
    /// <param name="state">Borrowed.</param>
    /// <returns>Coordinates.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No task is finished.</exception>
    let picture (state: State) : Picture =
        if Array.isEmpty state.Tasks then
            Errors.reject "drift" "needs at least one finished task" "none" ""

        Scope.run (fun () ->
            let plane = PrincipalPlane.fit state.Prototypes

            let points (rows: torch.Tensor) =
                let xy = (PrincipalPlane.coordinates plane rows).data<float>().ToArray()
                Array.init (xy.Length / 2) (fun i -> struct (xy[2 * i], xy[2 * i + 1]))

            {
                Explained = plane.Explained
                Prototypes = points state.Prototypes
                Means = state.Tasks |> Array.map (fun task -> points task.Means)
            })

    // ---- drift.json

    /// The number of eigenvalues that drift.json lists; the share of the others is one number.
    [<Literal>]
    let SpectrumHead = 64

    let private spectrum (subspace: Subspace) : DriftFile.BlockSpectrum =
        let shares = Subspace.shares subspace
        let inside, outside = Array.splitAt subspace.Rank shares
        let head, rest = Array.splitAt (min SpectrumHead shares.Length) shares

        {
            Rank = subspace.Rank
            EnergyInside = Array.sum inside
            EnergyOutside = Array.sum outside
            Spectrum = head
            SpectrumRest = Array.sum rest
        }

    let private overlapsOf (tasks: Finished[]) : DriftFile.Overlap[] =
        [|
            for second, task in Array.indexed tasks do
                for first, blocks in Array.indexed (cube task.Overlaps) do
                    for block, numbers in Array.indexed blocks do
                        if not (Double.IsNaN numbers[0]) then
                            ({
                                Block = block
                                First = first
                                Second = second
                                MeanSquaredCosine = numbers[0]
                                SmallestAngle = numbers[1]
                                LargestAngle = numbers[2]
                            }
                            : DriftFile.Overlap)
        |]

    let private pictureOf (picture: Picture) : DriftFile.Picture =
        {
            Explained = picture.Explained
            Prototypes =
                picture.Prototypes
                |> Array.mapi (fun position (struct (x, y)) ->
                    ({ Position = position; X = x; Y = y }: DriftFile.Point))
            Means =
                picture.Means
                |> Array.mapi (fun task ->
                    Array.mapi (fun position (struct (x, y)) ->
                        {
                            AfterTask = task
                            Position = position
                            X = x
                            Y = y
                        }
                        : DriftFile.MeanPoint))
                |> Array.concat
        }

    /// The measurement as it is saved. `names` are those of the classes by position, at least of the learned ones.
    /// Rejects a state without a finished task, and fewer names than classes.
    let internal toFile (names: string[]) (state: State) : DriftFile =
        let learned = learnedIn state

        if names.Length < learned.Length then
            Errors.reject "class names" $"must be at least {learned.Length}" $"{names.Length}" ""

        Scope.run (fun () ->
            {
                Classes =
                    learned
                    |> Array.mapi (fun position task ->
                        {
                            Position = position
                            Name = names[position]
                            Task = task
                        })
                AfterTask = Array.init state.Tasks.Length (fun t -> { Task = t; Classes = classes t state })
                Subspaces =
                    state.Tasks
                    |> Array.mapi (fun t task ->
                        {
                            Task = t
                            Blocks = Array.map spectrum task.Subspaces
                        })
                Overlap = overlapsOf state.Tasks
                Picture = pictureOf (picture state)
            })

    /// drift.json. Rejects as `toFile`.
    let internal toJson (names: string[]) (state: State) : JsonNode = Json.ofRecord (toFile names state)
