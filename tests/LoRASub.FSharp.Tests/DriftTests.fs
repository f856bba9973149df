module LoRASub.Tests.DriftTests

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private propertyOf cases name law = propertyOf cases "Drift" name law

type Run =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 3)>]
        Tasks: int
        [<Between(0, 2)>]
        Depth: int
        [<Between(1, 4)>]
        Width: int
        /// Classes of each task.
        [<Between(1, 2)>]
        Each: int
        /// Test images of each class.
        [<Between(1, 4)>]
        Images: int
    }

    member c.Seen t = (t + 1) * c.Each

    /// Class token of image i of class p, after layer l (the last is the output), as the network is after task t.
    member c.Token t p l i : float[] =
        normals (c.Seed + 10000 * (t + 1) + 1000 * p + 100 * l + i) c.Width

    /// Mean of the training images of class p.
    member c.Prototype p : float[] =
        normals (c.Seed + 5000 + p) c.Width |> Array.map ((*) 2.0)

    /// Of the classes of task t.
    member c.Means t : torch.Tensor =
        tensor (array2D (Array.init c.Each (fun i -> c.Prototype(t * c.Each + i))))

    /// Of all classes up to task t.
    member c.Prototypes t : torch.Tensor =
        tensor (array2D (Array.init (c.Seen t) c.Prototype))

    /// From the second task on.
    member c.Subspaces t : Subspace[] =
        if t = 0 then
            [||]
        else
            Array.init c.Depth (fun b ->
                let moment =
                    {
                        Moment = tensor (Oracles.secondMoment (normalMatrix (c.Seed + 77 * t + b) 5 c.Width))
                        Count = 5L
                    }

                Subspace.ofProjection (Projection.retain UpdateScale.Frobenius 0.7 "m" moment))

/// A run whose tokens `token t p l i` are given.
let private momentsWith (token: int -> int -> int -> int -> float[]) (c: Run) t =
    let images =
        [|
            for p in 0 .. c.Seen t - 1 do
                for i in 0 .. c.Images - 1 -> p, i
        |]

    let layer l =
        array2D (images |> Array.map (fun (p, i) -> token t p l i))

    ClassMoments.zero (c.Seen t) c.Depth (int64 c.Width) device
    |> ClassMoments.observe
        (ClassMomentsTests.features (Array.init (c.Depth + 1) layer))
        (labelTensor (Array.map fst images))

let private none (c: Run) = Drift.none c.Depth (int64 c.Width)

let private stepWith token (c: Run) state t =
    Drift.afterTask t (c.Means t) (momentsWith token c t) (c.Subspaces t) state

let private measureWith token (c: Run) : Drift.State =
    List.fold (stepWith token c) (none c) [ 0 .. c.Tasks - 1 ]

let private measure (c: Run) = measureWith c.Token c

let private numbersOf (m: Drift.Movement) = [ m.Euclidean; m.Cosine; m.Relative ]

/// Output, output since learned, blocks.
let private all (d: Drift.ClassDrift) =
    [ d.Output; d.OutputSinceLearned; yield! d.Blocks ]

/// As `closeTo`, where NaN stands for what is undefined on both sides.
let private sameTo tolerance what (expected: float list) (actual: float list) =
    let undefined = List.map Double.IsNaN
    Expect.equal (undefined actual) (undefined expected) $"{what}: what is undefined"
    let defined = List.filter (Double.IsNaN >> not)
    closeTo tolerance what (defined expected) (defined actual)

let private same what expected actual = sameTo 1e-9 what expected actual

// The definitions, by the loops.

let private meanOf (tokens: float[][]) =
    Array.init tokens[0].Length (fun j -> tokens |> Array.averageBy (Array.item j))

let private slowMovement (from: float[]) (now: float[]) spread =
    let apart = norm (Array.map2 (-) now from)
    let cosine = Array.sum (Array.map2 (*) now from) / (norm now * norm from)

    [ apart; 1.0 - cosine; if spread > 0.0 then apart / spread else nan ]

let private slow (c: Run) t p : float list list =
    let tokens t l = Array.init c.Images (c.Token t p l)
    let mean t l = meanOf (tokens t l)
    let learned = p / c.Each

    let spread l =
        let away x =
            norm (Array.map2 (-) x (mean learned l)) ** 2.0

        sqrt (Array.averageBy away (tokens learned l))

    let since l =
        slowMovement (mean learned l) (mean t l) (spread l)

    [
        slowMovement (c.Prototype p) (mean t c.Depth) (spread c.Depth)
        since c.Depth
        for l in 0 .. c.Depth - 1 do
            since l
    ]

let private tensors = Drift.tree.Write "drift"

let private restore (named: Map<string, torch.Tensor>) =
    Drift.tree.Read (NamedTensors("the checkpoint", named)) "drift"

let private same2 what (expected: Drift.State) (actual: Drift.State) =
    Expect.equal (List.map fst (tensors actual)) (List.map fst (tensors expected)) "names"

    List.iter2 (fun (name, e) (_, a) -> repeated $"{what}, {name}" e a) (tensors expected) (tensors actual)

let private example: Run =
    {
        Seed = 1
        Tasks = 3
        Depth = 2
        Width = 3
        Each = 2
        Images = 3
    }

/// The node at a path of names and indices.
let private at (path: string) (root: JsonNode) : JsonNode =
    (root, path.Split '/')
    ||> Array.fold (fun node step ->
        match Int32.TryParse step with
        | true, i -> node[i]
        | _ -> node[step])

let private float path root = (at path root).GetValue<float>()
let private int path root = (at path root).GetValue<int64>() |> int
let private count path root = (at path root).AsArray().Count

let private json (c: Run) (state: Drift.State) =
    let node =
        Drift.toJson (Array.init (c.Seen(c.Tasks - 1)) (sprintf "colour %d")) state

    JsonNode.Parse(node.ToJsonString())

let private tampered name change =
    fun () ->
        tensors (measure example)
        |> Map.ofList
        |> Map.change name change
        |> restore
        |> ignore

[<Tests>]
let tests =
    testList
        "Drift"
        [
            propertyOf 60 "every class after every task ≡ the loops" (fun (c: Run) ->
                let state = measure c

                for t in 0 .. c.Tasks - 1 do
                    let classes = Drift.classes t state
                    Expect.equal (classes |> Array.map _.Position) [| 0 .. c.Seen t - 1 |] "positions"

                    for d in classes do
                        // the loops' 1 − cos rounds at 1e-16
                        same
                            $"class {d.Position} after task {t}"
                            (List.concat (slow c t d.Position))
                            (all d |> List.collect numbersOf))

            propertyOf
                40
                "a class in its own task, and one that stays where it is, has moved by exactly 0"
                (fun (c: Run) ->
                    let learned p = p / c.Each
                    let still _ p l i = c.Token (learned p) p l i

                    // a GPU may sum the images in another order
                    let least = if onCpu then 0.0 else 1e-12

                    let zeros =
                        List.forall (fun (m: Drift.Movement) -> m.Euclidean <= least && m.Cosine <= least)

                    let stays, moves = measureWith still c, measure c

                    for t in 0 .. c.Tasks - 1 do
                        for d in Drift.classes t stays do
                            Expect.isTrue (zeros (List.tail (all d))) $"class {d.Position} stays"

                        for d in Drift.classes t moves do
                            if learned d.Position = t then
                                Expect.isTrue
                                    (zeros (List.tail (all d)))
                                    $"class {d.Position} in its own task")

            propertyOf 40 "moving all images by v after they were learned: drift ‖v‖" (fun (c: Run) ->
                let v = normals (c.Seed + 9) c.Width

                let token t p l i =
                    let steps = Operators.float (t - p / c.Each)
                    Array.map2 (fun x v -> x + steps * v) (c.Token (p / c.Each) p l i) v

                let state = measureWith token c

                for t in 0 .. c.Tasks - 1 do
                    for d in Drift.classes t state do
                        let expected = norm v * Operators.float (t - d.Position / c.Each)
                        let found = List.tail (all d) |> List.map _.Euclidean
                        close "euclidean" (List.map (fun _ -> expected) found) found)

            propertyOf
                40
                "scaling features now leaves the cosine; scaling all of them leaves the relative drift"
                (fun (c: Run) ->
                    let scaled by t p l i = c.Token t p l i |> Array.map ((*) by)

                    let now t p l i =
                        scaled (if t = p / c.Each then 1.0 else 7.0) t p l i

                    let plain = measure c

                    let compare token pick =
                        let other = measureWith token c

                        for t in 0 .. c.Tasks - 1 do
                            (Drift.classes t plain, Drift.classes t other)
                            ||> Array.iter2 (fun e a ->
                                let since d = List.tail (all d) |> List.map pick
                                sameTo 1e-7 $"class {e.Position}" (since e) (since a))

                    compare now _.Cosine
                    compare (scaled 7.0) _.Relative)

            propertyOf
                40
                "a checkpoint is read back bit for bit, and the measurement goes on alike"
                (fun (c: Run) ->
                    let through (state: Drift.State) =
                        Probe.inFolder (fun folder ->
                            let path = Path.Combine(folder, "drift.safetensors")
                            Safetensors.write path Map.empty (tensors state)
                            Scope.keep Drift.leaves (fun () -> restore (Safetensors.read path).Tensors))

                    same2 "before the first task" (none c) (through (none c))

                    let stopping =
                        List.fold
                            (fun state t -> through (stepWith c.Token c state t))
                            (none c)
                            [ 0 .. c.Tasks - 1 ]

                    same2 "the end" (measure c) stopping

                    if onCpu then
                        Expect.equal
                            ((json c stopping).ToJsonString())
                            ((json c (measure c)).ToJsonString())
                            "drift.json")

            propertyOf 30 "arguments keep their bits, also those of the earlier state" (fun (c: Run) ->
                let last = c.Tasks - 1
                let state = List.fold (stepWith c.Token c) (none c) [ 0 .. last - 1 ]

                let means, moments, subspaces =
                    c.Means last, momentsWith c.Token c last, c.Subspaces last

                let given =
                    [
                        yield! Drift.leaves state
                        means
                        yield! ClassMoments.leaves moments
                        yield! Seq.collect Subspace.leaves subspaces
                    ]

                let before = given |> List.map _.clone()
                let next = Drift.afterTask last means moments subspaces state
                List.iter2 (identical "argument") before given

                // what the state holds must outlive what it was made of
                Scope.free
                    Leaves.tensors
                    [|
                        means
                        yield! ClassMoments.leaves moments
                        yield! Seq.collect Subspace.leaves subspaces
                    |]

                same2 "afterwards" (measure c) next)

            propertyOf 30 "overlaps are those of each pair of tasks that retain something" (fun (c: Run) ->
                let root = json c (measure c)

                let expected =
                    [
                        for second in 0 .. c.Tasks - 1 do
                            for first in 1 .. second - 1 do
                                for block in 0 .. c.Depth - 1 -> block, first, second
                    ]

                Expect.equal
                    [
                        for node in (at "overlap" root).AsArray() ->
                            int "block" node, int "first" node, int "second" node
                    ]
                    expected
                    "pairs"

                for i, (block, first, second) in List.indexed expected do
                    let basis t =
                        (Array.item block (c.Subspaces t)).Basis

                    let o = Overlap.ofBases (basis first) (basis second)

                    close
                        "overlap"
                        [ o.MeanSquaredCosine; o.SmallestAngle; o.LargestAngle ]
                        [
                            for name in [ "meanSquaredCosine"; "smallestAngle"; "largestAngle" ] ->
                                float $"overlap/{i}/{name}" root
                        ])

            testCase "by hand: what drift.json tells of two tasks in one dimension" (fun () ->
                Scope.run (fun () ->
                    // class 0: images at 1 and 3, prototype at 2.5; then both move by 1. class 1: one image at −4
                    let moments (block: float list) (output: float list) labels =
                        let column (x: float list) = array2D [ for x in x -> [ x ] ]

                        ClassMoments.zero (Array.max labels + 1) 1 1L device
                        |> ClassMoments.observe
                            (ClassMomentsTests.features [| column block; column output |])
                            (labelTensor labels)

                    let prototypes (means: float list) =
                        tensor (array2D [ for m in means -> [ m ] ])

                    let subspace =
                        {
                            Basis = tensor (array2D [ [ -1.0 ] ])
                            Spectrum = vector [| 3.0 |]
                        }

                    let root =
                        Drift.none 1 1L
                        |> Drift.afterTask
                            0
                            (prototypes [ 2.5 ])
                            (moments [ 10.0; 30.0 ] [ 1.0; 3.0 ] [| 0; 0 |])
                            [||]
                        |> Drift.afterTask
                            1
                            (prototypes [ -3.5 ])
                            (moments [ 11.0; 31.0; 5.0 ] [ 2.0; 4.0; -4.0 ] [| 0; 0; 1 |])
                            [| subspace |]
                        |> Drift.toJson [| "red"; "blue"; "of a task to come" |]

                    Expect.equal
                        (root.ToJsonString())
                        ("""{"classes":[{"position":0,"name":"red","task":0},{"position":1,"name":"blue","task":1}],"""
                         + """"afterTask":[{"task":0,"classes":[{"position":0,"""
                         + """"output":{"euclidean":0.5,"cosine":0,"relative":0.5},"""
                         + """"outputSinceLearned":{"euclidean":0,"cosine":0,"relative":0},"""
                         + """"blocks":[{"euclidean":0,"cosine":0,"relative":0}]}]},"""
                         + """{"task":1,"classes":[{"position":0,"""
                         + """"output":{"euclidean":0.5,"cosine":0,"relative":0.5},"""
                         + """"outputSinceLearned":{"euclidean":1,"cosine":0,"relative":1},"""
                         + """"blocks":[{"euclidean":1,"cosine":0,"relative":0.1}]},"""
                         + """{"position":1,"output":{"euclidean":0.5,"cosine":0,"relative":null},"""
                         + """"outputSinceLearned":{"euclidean":0,"cosine":0,"relative":null},"""
                         + """"blocks":[{"euclidean":0,"cosine":0,"relative":null}]}]}],"""
                         + """"subspaces":[{"task":0,"blocks":[]},{"task":1,"blocks":[{"rank":1,"energyInside":1,"""
                         + """"energyOutside":0,"spectrum":[1],"spectrumRest":0}]}],"overlap":[],"""
                         + """"picture":{"explained":[1,0],"prototypes":[{"position":0,"x":3,"y":0},"""
                         + """{"position":1,"x":-3,"y":0}],"means":[{"afterTask":0,"position":0,"x":2.5,"y":0},"""
                         + """{"afterTask":1,"position":0,"x":3.5,"y":0},{"afterTask":1,"position":1,"x":-3.5,"y":0}]}}""")
                        "drift.json"))

            testCase "a long spectrum is told by its head and the share of the rest" (fun () ->
                Scope.run (fun () ->
                    let width = 100
                    let spectrum = Array.init width (fun i -> Operators.float (width - i))

                    let subspace =
                        {
                            Basis = tensor (Oracles.identity width).[*, ..9]
                            Spectrum = vector spectrum
                        }

                    let tokens = normalMatrix 1 1 width

                    let root =
                        Drift.none 1 100L
                        |> Drift.afterTask
                            0
                            (tensor tokens)
                            (ClassMoments.zero 1 1 100L device
                             |> ClassMoments.observe
                                 (ClassMomentsTests.features [| tokens; tokens |])
                                 (labelTensor [| 0 |]))
                            [| subspace |]
                        |> Drift.toJson [| "only" |]

                    let block = at "subspaces/0/blocks/0" root
                    let total = Array.sum spectrum
                    Expect.equal (count "spectrum" block) 64 "head"
                    close "first" [ 100.0 / total ] [ float "spectrum/0" block ]
                    close "rest" [ Array.sum spectrum[64..] / total ] [ float "spectrumRest" block ]
                    close "inside" [ Array.sum spectrum[..9] / total ] [ float "energyInside" block ]
                    close "outside" [ Array.sum spectrum[10..] / total ] [ float "energyOutside" block ]

                    Expect.equal
                        ((at "picture" root).ToJsonString())
                        """{"explained":[null,null],"prototypes":[{"position":0,"x":0,"y":0}],"means":[{"afterTask":0,"position":0,"x":0,"y":0}]}"""
                        "one prototype has no plane"))

            testCase "drift.json has an entry for each class, task and block" (fun () ->
                Scope.run (fun () ->
                    let root = json example (measure example)
                    Expect.equal (count "classes" root) 6 "classes"

                    Expect.equal
                        [
                            for i in 0..5 ->
                                int $"classes/{i}/task" root,
                                (at $"classes/{i}/name" root).GetValue<string>()
                        ]
                        [ for i in 0..5 -> i / 2, $"colour {i}" ]
                        "tasks and names"

                    for t in 0..2 do
                        Expect.equal
                            (count $"afterTask/{t}/classes" root)
                            (2 * (t + 1))
                            $"classes after task {t}"

                        Expect.equal (count $"afterTask/{t}/classes/0/blocks" root) 2 "blocks"

                    Expect.equal
                        [ for t in 0..2 -> count $"subspaces/{t}/blocks" root ]
                        [ 0; 2; 2 ]
                        "subspaces"

                    Expect.equal (count "overlap" root) 2 "overlaps"
                    Expect.equal (count "picture/means" root) (2 + 4 + 6) "means in the picture"))

            testCase "the picture's means lie where the plane of the prototypes puts them" (fun () ->
                Scope.run (fun () ->
                    let picture = Drift.picture (measure example)
                    let plane = PrincipalPlane.fit (example.Prototypes 2)

                    let expected =
                        array2D [ for p in 0..3 -> meanOf (Array.init 3 (example.Token 1 p 2)) ]

                    close
                        "after task 1"
                        (numbers (PrincipalPlane.coordinates plane (tensor expected)))
                        [|
                            for struct (x, y) in picture.Means[1] do
                                x
                                y
                        |]

                    Expect.isTrue (picture.Explained[0] >= picture.Explained[1]) "x shows more than y"))

            propertyOf 30 "the summary is the mean over old classes after the last task" (fun (c: Run) ->
                match Drift.summary (measure c) with
                | None -> Expect.equal c.Tasks 1 "one task has no old class"
                | Some summary ->
                    let last = c.Tasks - 1
                    Expect.equal summary.Classes (c.Seen(last - 1)) "old classes"
                    let old = [ for p in 0 .. summary.Classes - 1 -> array2D (slow c last p) ]

                    let mean layer number =
                        match
                            old
                            |> List.map (fun movements -> movements[layer, number])
                            |> List.filter (Double.IsNaN >> not)
                        with
                        | [] -> nan
                        | defined -> List.average defined

                    let found = [ summary.Output; summary.OutputSinceLearned; yield! summary.Blocks ]

                    same
                        "means"
                        [
                            for layer in 0 .. c.Depth + 1 do
                                for number in 0..2 -> mean layer number
                        ]
                        (List.collect numbersOf found))

            testCase "a zero mean has no angle" (fun () ->
                Scope.run (fun () ->
                    let state = measureWith (fun _ _ _ _ -> Array.zeroCreate 3) example
                    let d = (Drift.classes 2 state)[0]

                    Expect.all
                        (all d)
                        (fun m -> Double.IsNaN m.Cosine && Double.IsNaN m.Relative)
                        "undefined"

                    Expect.isSome (Drift.summary state) "and the summary says so"

                    Expect.isTrue
                        (Double.IsNaN (Drift.summary state).Value.Output.Cosine)
                        "of no defined number"))

            rejects "a task out of turn" [ "drift"; "task 0 next"; "task 1" ] (fun () ->
                stepWith example.Token example (none example) 1 |> ignore)

            rejects
                "a task without a new class"
                [ "means of task 1"; "at least one class"; "none" ]
                (fun () ->
                    let state = stepWith example.Token example (none example) 0

                    Drift.afterTask
                        1
                        ((example.Means 0).narrow(0L, 0L, 0L))
                        (momentsWith example.Token example 0)
                        [||]
                        state
                    |> ignore)

            rejects "means of another width" [ "means of a task"; "[classes, 4]"; "[2, 3]" ] (fun () ->
                stepWith example.Token example (none { example with Width = 4 }) 0 |> ignore)

            rejects "moments of other classes" [ "class moments"; "[2, 3, 3]"; "[4, 3, 3]" ] (fun () ->
                Drift.afterTask 0 (example.Means 0) (momentsWith example.Token example 1) [||] (none example)
                |> ignore)

            rejects "a class without test images" [ "class 1"; "at least one image" ] (fun () ->
                let moments =
                    ClassMoments.zero 2 2 3L device
                    |> ClassMoments.observe
                        (ClassMomentsTests.features (Array.create 3 (normalMatrix 1 1 3)))
                        (labelTensor [| 0 |])

                Drift.afterTask 0 (example.Means 0) moments [||] (none example) |> ignore)

            rejects "subspaces of fewer blocks" [ "retained subspaces"; "0 or 2"; "1" ] (fun () ->
                Drift.afterTask
                    0
                    (example.Means 0)
                    (momentsWith example.Token example 0)
                    (Array.take 1 (example.Subspaces 1))
                    (none example)
                |> ignore)

            rejects
                "subspaces of another width"
                [ "basis of a retained subspace"; "[3, directions]"; "[4, " ]
                (fun () ->
                    Drift.afterTask
                        0
                        (example.Means 0)
                        (momentsWith example.Token example 0)
                        ({ example with Width = 4 }.Subspaces 1)
                        (none example)
                    |> ignore)

            rejects "a picture before the first task" [ "drift"; "at least one finished task" ] (fun () ->
                Drift.toJson [||] (none example) |> ignore)

            rejects "fewer names than classes" [ "class names"; "at least 6"; "5" ] (fun () ->
                Drift.toJson (Array.create 5 "") (measure example) |> ignore)

            testList
                "a checkpoint with"
                [
                    for name, tensor, change, words in
                        [
                            "no anchors",
                            "drift.anchors",
                            (fun _ -> None),
                            [ "drift.anchors"; "the checkpoint"; "no such tensor" ]
                            "half a subspace",
                            "drift.tasks.2.subspaces.1.spectrum",
                            (fun _ -> None),
                            [ "drift.tasks.2.subspaces.1.spectrum"; "no such tensor" ]
                            "the last task missing",
                            "drift.tasks.2.means",
                            (fun _ -> None),
                            [ "drift.tasks.2.means"; "no such tensor" ]
                            "a task missing",
                            "drift.tasks.1.means",
                            (fun _ -> None),
                            [ "drift.tasks.1.means"; "no such tensor" ]
                            "spreads of another type",
                            "drift.spreads",
                            Option.map (fun (t: torch.Tensor) -> t.``to`` torch.float32),
                            [ "drift.spreads"; "Float64"; "Float32" ]
                            "movements of other classes",
                            "drift.tasks.0.movements",
                            Option.map (fun (t: torch.Tensor) -> t.narrow (0L, 0L, 1L)),
                            [ "drift.tasks.0.movements"; "[2, 4, 3]"; "[1, 4, 3]" ]
                            "prototypes that are a number",
                            "drift.prototypes",
                            Option.map (fun (t: torch.Tensor) -> t.sum ()),
                            [ "drift.prototypes"; "[classes, width]"; "[]" ]
                        ] do
                        rejects name words (tampered tensor change)
                ]

            (let inputs () =
                let moments = momentsWith example.Token example 1
                let state = stepWith example.Token example (none example) 0
                example.Means 1, moments, example.Subspaces 1, state

             let nothing f state : torch.Tensor seq =
                 f state |> ignore
                 Seq.empty

             testList
                 "ownership"
                 [
                     noLeaks "none" ignore (fun () -> Drift.leaves (none example))
                     noLeaks "afterTask" inputs (fun (means, moments, subspaces, state) ->
                         let after = Drift.afterTask 1 means moments subspaces state
                         let kept = Collections.Generic.HashSet(Drift.leaves state, HashIdentity.Reference)
                         Drift.leaves after |> Seq.filter (kept.Contains >> not))
                     noLeaks "restore" (fun () -> Map.ofList (tensors (measure example))) (fun named ->
                         Drift.leaves (restore named))
                     noLeaks "classes" (fun () -> measure example) (nothing (Drift.classes 1))
                     noLeaks "summary" (fun () -> measure example) (nothing Drift.summary)
                     noLeaks "drift.json" (fun () -> measure example) (nothing (json example))
                 ])
        ]
