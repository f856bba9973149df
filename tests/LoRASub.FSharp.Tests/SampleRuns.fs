/// Run folders as `lorasub run` writes them, without running: numbers that look like a run's, drawn from its seed.
module LoRASub.Tests.SampleRuns

open System
open System.Collections.Generic
open System.IO
open System.IO.Compression
open System.Text
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report

type Sample =
    {
        Tasks: int
        /// Tasks that are done; fewer than Tasks without summary.json.
        Learned: int
        ClassesPerTask: int
        Blocks: int
        Epochs: int
        Seed: int64
        /// Share that is lost on a task with every later one.
        Decay: float
        /// Name of the class at a position.
        Name: int -> string
        Settings: (string * string) list
        /// Optional files that are not there.
        Without: string list
    }

let small: Sample =
    {
        Tasks = 3
        Learned = 3
        ClassesPerTask = 4
        Blocks = 6
        Epochs = 4
        Seed = 1L
        Decay = 0.02
        Name = fun position -> $"class {position}"
        Settings = []
        Without = []
    }

let private clothes =
    [|
        "T-shirt/top"
        "Trouser"
        "Pullover"
        "Dress"
        "Coat"
        "Sandal"
        "Shirt"
        "Sneaker"
        "Bag"
        "Ankle boot"
    |]

/// The ten classes of Fashion-MNIST, then numbers.
let clothing (position: int) =
    if position < clothes.Length then
        clothes[position]
    else
        $"class {position}"

let private crcTable =
    [|
        for n in 0u .. 255u ->
            Seq.init 8 id
            |> Seq.fold (fun c _ -> if c &&& 1u = 1u then 0xEDB88320u ^^^ (c >>> 1) else c >>> 1) n
    |]

let private crc (bytes: byte[]) =
    bytes
    |> Array.fold (fun c b -> crcTable[int ((c ^^^ uint32 b) &&& 0xFFu)] ^^^ (c >>> 8)) 0xFFFFFFFFu
    |> (^^^) 0xFFFFFFFFu

let private bigEndian (n: uint32) =
    [| byte (n >>> 24); byte (n >>> 16); byte (n >>> 8); byte n |]

/// A grey PNG file of `side` pixels.
let png (side: int) (pixel: int -> int -> byte) : byte[] =
    let chunk (name: string) (content: byte[]) =
        let body = Array.append (Encoding.ASCII.GetBytes name) content
        Array.concat [ bigEndian (uint32 content.Length); body; bigEndian (crc body) ]

    let rows =
        [|
            for y in 0 .. side - 1 do
                0uy // no filter

                for x in 0 .. side - 1 do
                    pixel x y
        |]

    use packed = new MemoryStream()

    do
        use stream = new ZLibStream(packed, CompressionLevel.Optimal)
        stream.Write(rows, 0, rows.Length)

    let size = bigEndian (uint32 side)

    Array.concat
        [
            [| 0x89uy; 0x50uy; 0x4Euy; 0x47uy; 0x0Duy; 0x0Auy; 0x1Auy; 0x0Auy |]
            chunk "IHDR" (Array.concat [ size; size; [| 8uy; 0uy; 0uy; 0uy; 0uy |] ])
            chunk "IDAT" (packed.ToArray())
            chunk "IEND" [||]
        ]

/// A pattern that tells a class from others.
let private picture (label: int) (n: int) =
    png 28 (fun x y ->
        let dx, dy = float x - 13.5, float y - 13.5
        let angle = atan2 dy dx + float n * 0.3
        let petals = 6.0 + 5.0 * cos (angle * float (2 + label % 5))
        let distance = sqrt (dx * dx + dy * dy)
        byte (255.0 / (1.0 + exp (distance - petals - float (label % 3)))))

/// Test images of a class.
[<Literal>]
let private TestImages = 100

/// Row t, column j of the accuracy matrix, as [right, all] for all classes of a task.
let private scores (sample: Sample) (random: Random) : int[][] =
    let start =
        Array.init sample.Tasks (fun j -> 0.92 - 0.012 * float j + 0.03 * (random.NextDouble() - 0.5))

    Array.init sample.Learned (fun t ->
        Array.init (t + 1) (fun j ->
            let share =
                start[j] - sample.Decay * float (t - j) + 0.012 * (random.NextDouble() - 0.5)

            let all = TestImages * sample.ClassesPerTask
            max 0 (min all (int (share * float all)))))

/// Right answers of each class after the last task: a task's, spread over its classes.
let private byClass (sample: Sample) (random: Random) (lastRow: int[]) : int[] =
    lastRow
    |> Array.collect (fun correct ->
        let each = Array.create sample.ClassesPerTask (correct / sample.ClassesPerTask)

        for i in 0 .. correct % sample.ClassesPerTask - 1 do
            each[i] <- each[i] + 1

        // classes of a task differ
        for i in 0 .. sample.ClassesPerTask - 2 do
            let moved = random.Next(0, 1 + min each[i] (TestImages - each[i + 1]) / 4)
            each[i] <- each[i] - moved
            each[i + 1] <- each[i + 1] + moved

        each)

let private confusion (sample: Sample) (random: Random) (right: int[]) : int[][] =
    right
    |> Array.mapi (fun i correct ->
        let row = Array.zeroCreate right.Length
        row[i] <- correct

        for _ in 1 .. TestImages - correct do
            let near =
                min
                    (right.Length - 1)
                    (i / sample.ClassesPerTask * sample.ClassesPerTask
                     + random.Next(0, sample.ClassesPerTask))

            let guess =
                if random.NextDouble() < 0.5 then
                    near
                else
                    random.Next right.Length

            let taken = if guess = i then (i + 1) % right.Length else guess
            row[taken] <- row[taken] + 1

        row)

let private movement (scale: float) : DriftFile.Movement =
    {
        Euclidean = 14.0 * scale
        Cosine = 0.12 * scale * scale
        Relative = scale
    }

let private ranks (sample: Sample) t =
    if t = 0 then
        [||]
    else
        Array.init sample.Blocks (fun b -> max 1 (24 + 3 * b - t))

let private drift (sample: Sample) (random: Random) : DriftFile =
    let classes = sample.Learned * sample.ClassesPerTask
    let noise () = 0.85 + 0.3 * random.NextDouble()
    let taskOf position = position / sample.ClassesPerTask
    let seen t = (t + 1) * sample.ClassesPerTask
    // how far a class has moved by task t
    let far t position =
        (0.08 + 4.0 * sample.Decay * sqrt (float (t - taskOf position))) * noise ()

    let places =
        Array.init classes (fun _ ->
            struct (8.0 * random.NextDouble() - 4.0, 6.0 * random.NextDouble() - 3.0))

    let block task b : DriftFile.BlockSpectrum =
        {
            Rank = (ranks sample task)[b]
            EnergyInside = 0.95 + 0.01 * float (b % 5)
            EnergyOutside = 0.05 - 0.01 * float (b % 5)
            Spectrum = Array.init 48 (fun i -> 0.3 * exp (-0.18 * float i / (1.0 + 0.15 * float b)))
            SpectrumRest = 0.01
        }

    {
        Classes =
            Array.init classes (fun position ->
                {
                    Position = position
                    Name = sample.Name position
                    Task = taskOf position
                })
        AfterTask =
            Array.init sample.Learned (fun t ->
                {
                    Task = t
                    Classes =
                        Array.init (seen t) (fun position ->
                            let far = far t position

                            {
                                Position = position
                                Output = movement far
                                OutputSinceLearned = movement (far - 0.05)
                                Blocks =
                                    Array.init sample.Blocks (fun b ->
                                        movement (far * float (b + 1) / float sample.Blocks))
                            })
                })
        Subspaces =
            Array.init sample.Learned (fun t ->
                {
                    Task = t
                    Blocks = Array.init (ranks sample t).Length (block t)
                })
        Overlap =
            [|
                for second in 1 .. sample.Learned - 1 do
                    for first in 1 .. second - 1 do
                        for b in 0 .. sample.Blocks - 1 do
                            ({
                                Block = b
                                First = first
                                Second = second
                                MeanSquaredCosine = 0.85 - 0.03 * float (second - first)
                                SmallestAngle = 0.4
                                LargestAngle = 88.0
                            }
                            : DriftFile.Overlap)
            |]
        Picture =
            {
                Explained = [| 0.41; 0.22 |]
                Prototypes =
                    places
                    |> Array.mapi (fun position (struct (x, y)) ->
                        ({ Position = position; X = x; Y = y }: DriftFile.Point))
                Means =
                    [|
                        for t in 0 .. sample.Learned - 1 do
                            for position in 0 .. seen t - 1 do
                                let struct (x, y) = places[position]
                                let far = 2.0 * far t position

                                ({
                                    AfterTask = t
                                    Position = position
                                    X = x + far * cos (float position)
                                    Y = y + far * sin (float position)
                                }
                                : DriftFile.MeanPoint)
                    |]
            }
    }

let private resources (sample: Sample) (random: Random) : ResourcesFile =
    let phases task =
        dict
            [
                "observe", (if task = 0 then 0.0 else 2.0 + random.NextDouble())
                "project", (if task = 0 then 0.0 else 0.6)
                "train", 28.0 + 3.0 * random.NextDouble()
                "prototypes", 3.0 + random.NextDouble()
                "predict", 1.0 + 0.8 * float task
            ]

    let tasks = Array.init sample.Learned phases

    let memory bytes : MemoryUse =
        { Tensors = 91L; ResidentBytes = bytes }

    {
        PhaseSeconds =
            Dictionary(
                dict
                    [
                        for name in [ "observe"; "project"; "train"; "prototypes"; "predict" ] ->
                            name, tasks |> Array.sumBy _.Item(name)
                    ]
            )
        TaskSeconds = tasks |> Array.map Dictionary
        PeakMemoryBytes = 1500000000L
        PeakDeviceBytes = None
        Memory =
            Array.init sample.Learned (fun t ->
                {
                    TaskStart = memory 340000000L
                    TaskEnd = memory (1260000000L + 20000000L * int64 (min t 10))
                })
        Environment =
            (Json.object
                [
                    "program", Json.text "0.1.0"
                    "processor", Json.text "AMD EPYC 9V74"
                    "cores", Json.int 2L
                    "memoryBytes", Json.int 25000000000L
                    "device", Json.text "cpu"
                ])
                .AsObject()
        StartedUtc = "2026-01-02T03:04:05Z"
        FinishedUtc = "2026-01-02T03:09:17Z"
    }

let private matrixOf (sample: Sample) (rows: int[][]) : AccuracyMatrix =
    rows
    |> Array.map (
        Array.map (fun correct ->
            {
                Correct = correct
                Total = TestImages * sample.ClassesPerTask
            })
    )

let private events (sample: Sample) (random: Random) (matrix: AccuracyMatrix) =
    [
        MetricsEvent.Start
            {
                Method = "lora-sub-drs"
                Variant = "official"
                Data = "fashion-mnist"
                Seed = sample.Seed
                TaskSizes = Array.create sample.Tasks sample.ClassesPerTask
            }
        for t in 0 .. sample.Learned - 1 do
            if t > 0 then
                MetricsEvent.Retained(t, ranks sample t, Array.create sample.Blocks 0.99)

            for epoch in 0 .. sample.Epochs - 1 do
                MetricsEvent.Epoch
                    {
                        Task = t
                        Epoch = epoch
                        Loss = 0.35 + 1.4 * exp (-0.7 * float epoch) + 0.05 * random.NextDouble()
                        Accuracy = 0.9 - 0.3 * exp (-0.7 * float epoch)
                        LearningRate = 5e-4
                        Seconds = 7.1
                    }

            MetricsEvent.Task
                {
                    Task = t
                    Row = matrix[t]
                    Seconds = 35.0
                }
    ]

/// A line of metrics.jsonl.
let line (event: MetricsEvent) : string =
    let time = DateTimeOffset(2026, 1, 2, 3, 4, 5, TimeSpan.Zero)
    MetricsLog.encode { Time = time; Event = event } + "\n"

let private settings (sample: Sample) =
    let base' =
        [
            "variant", "official"
            "data", "fashion-mnist"
            "backbone", "somewhere/vit_micro.safetensors"
            "tasks", string sample.Tasks
            "class-order", "natural"
            "epochs", string sample.Epochs
            "lr", "0.0005"
            "margin", "1"
            "energy", "0.99"
            "projection", "true"
            "seed", string sample.Seed
        ]

    let replaced = Map.ofList sample.Settings

    [
        for name, value in base' -> name, Map.tryFind name replaced |> Option.defaultValue value
    ]
    @ (sample.Settings
       |> List.filter (fun (name, _) -> base' |> List.forall (fst >> (<>) name)))

let private sources (sample: Sample) : SourcesFile =
    {
        Settings =
            [|
                for name, value in settings sample ->
                    {
                        Name = name
                        Value = value
                        Source =
                            if name = "seed" then
                                "command line"
                            else
                                "default of official"
                    }
            |]
        Notes = [| "The config's key 'workers' is not used by this method." |]
    }

let private classes (sample: Sample) (random: Random) (lastRow: int[]) : ClassesFile =
    let correct = byClass sample random lastRow

    {
        Classes =
            correct
            |> Array.mapi (fun position correct ->
                {
                    Position = position
                    Label = position
                    Name = sample.Name position
                    Task = position / sample.ClassesPerTask
                    Correct = correct
                    Total = TestImages
                })
        // the same images for every seed, of which each run gets others wrong
        Samples =
            Array.init 40 (fun n ->
                let truth = n * 7 % correct.Length

                {
                    Task = truth / sample.ClassesPerTask
                    True = truth
                    Predicted =
                        if (n + int sample.Seed) % 3 = 0 then
                            (truth + 1 + n / 3) % correct.Length
                        else
                            truth
                    Png = Convert.ToBase64String(picture truth n)
                })
        Confusion = confusion sample random correct
    }

/// Writes the folder of one run.
let write (folder: string) (sample: Sample) : unit =
    Directory.CreateDirectory folder |> ignore
    // a seed and its ablation draw other numbers
    let random = Random(int sample.Seed + int (1e6 * sample.Decay))
    let rows = scores sample random
    let matrix = matrixOf sample rows
    let path name = Path.Combine(folder, name)

    let save name (record: unit -> 'T) =
        if not (List.contains name sample.Without) then
            Json.save (path name) (record ())

    if not (List.contains "settings.json" sample.Without) then
        Json.write
            (path "settings.json")
            (Json.object [ for name, value in settings sample -> name, Json.text value ])

    save "sources.json" (fun () -> sources sample)
    save "resources.json" (fun () -> resources sample random)

    if not (List.contains "metrics.jsonl" sample.Without) then
        File.WriteAllText(
            path "metrics.jsonl",
            events sample random matrix |> List.map line |> String.concat ""
        )

    if sample.Learned > 0 then
        save "classes.json" (fun () -> classes sample random (Array.last rows))
        save "drift.json" (fun () -> drift sample random)

    if
        sample.Learned = sample.Tasks
        || List.contains ("stop-after", string sample.Learned) sample.Settings
    then
        let retained f =
            Array.init sample.Learned (ranks sample >> Array.map f)

        SummaryFile.toJson
            (Metrics.measure matrix)
            {
                Method = "lora-sub-drs"
                Variant = "official"
                Data =
                    sample.Settings
                    |> List.tryFind (fst >> (=) "data")
                    |> Option.map snd
                    |> Option.defaultValue "fashion-mnist"
                Tasks = sample.Tasks
                LearnedTasks = sample.Learned
                Seed = sample.Seed
                ForwardTransferNote = Some "needs a reference run (--reference)"
                IntransigenceNote = Some "needs a reference run (--reference)"
                AccuracyMatrix = matrix |> Array.map (Array.map (Metrics.accuracy >> Metrics.percent))
                CorrectAndTotal = matrix
                Heads = None
                RetainedRank = retained id
                RetainedEnergy = retained (fun _ -> 0.99)
                ConditionNumber = retained (fun _ -> infinity)
                Threads = 2
            }
        |> Json.write (path "summary.json")

/// Writes a folder of several seeds.
let writeSeeds (folder: string) (seeds: int64 list) (sample: Sample) : unit =
    for seed in seeds do
        write (Path.Combine(folder, $"seed-{seed}")) { sample with Seed = seed }

    Json.save
        (Path.Combine(folder, "statistics.json"))
        {
            Seeds = Array.ofList seeds
            Measures = Dictionary()
            Curve = [||]
        }
