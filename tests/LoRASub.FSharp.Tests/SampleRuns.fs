/// Run folders as `lorasub run` writes them, without running: numbers that look like a run's, drawn from its seed.
module LoRASub.Tests.SampleRuns

open System
open System.IO
open System.IO.Compression
open System.Text
open System.Text.Json.Nodes
open LoRASub

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

// JSON, shorter than Json's names

let private num (x: float) =
    if Double.IsFinite x then Json.float x else null

let private int' (n: int) = Json.int (int64 n)
let private ints: int seq -> JsonNode = Json.array int'
let private nums: float seq -> JsonNode = Json.array num
let private text = Json.text
let private obj' = Json.object

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

let private movement (scale: float) =
    obj'
        [
            "euclidean", num (14.0 * scale)
            "cosine", num (0.12 * scale * scale)
            "relative", num scale
        ]

let private drift (sample: Sample) (random: Random) =
    let classes = sample.Learned * sample.ClassesPerTask
    let noise () = 0.85 + 0.3 * random.NextDouble()
    let taskOf position = position / sample.ClassesPerTask
    // how far a class has gone by task t
    let gone t position =
        (0.08 + 4.0 * sample.Decay * sqrt (float (t - taskOf position))) * noise ()

    let places =
        Array.init classes (fun _ ->
            struct (8.0 * random.NextDouble() - 4.0, 6.0 * random.NextDouble() - 3.0))

    let place before position (x: float) (y: float) =
        obj' [ yield! before; "position", int' position; "x", num x; "y", num y ]

    let blockOf task b =
        let rank = if task = 0 then 0 else max 1 (24 + 3 * b - task)

        let spectrum =
            [ for i in 0..47 -> 0.3 * exp (-0.18 * float i / (1.0 + 0.15 * float b)) ]

        obj'
            [
                "rank", int' rank
                "energyInside", num (0.99 + 0.001 * float (b % 5))
                "energyOutside", num (0.01 - 0.001 * float (b % 5))
                "spectrum", nums spectrum
                "spectrumRest", num 0.01
            ]

    obj'
        [
            "classes",
            Json.array
                (fun position ->
                    obj'
                        [
                            "position", int' position
                            "name", text (sample.Name position)
                            "task", int' (taskOf position)
                        ])
                [ 0 .. classes - 1 ]
            "afterTask",
            Json.array
                (fun t ->
                    obj'
                        [
                            "task", int' t
                            "classes",
                            Json.array
                                (fun position ->
                                    let far = gone t position

                                    obj'
                                        [
                                            "position", int' position
                                            "output", movement far
                                            "outputSinceLearned", movement (far - 0.05)
                                            "blocks",
                                            Json.array
                                                (fun b ->
                                                    movement (far * float (b + 1) / float sample.Blocks))
                                                [ 0 .. sample.Blocks - 1 ]
                                        ])
                                [ 0 .. (t + 1) * sample.ClassesPerTask - 1 ]
                        ])
                [ 0 .. sample.Learned - 1 ]
            "subspaces",
            Json.array
                (fun t ->
                    obj'
                        [
                            "task", int' t
                            "blocks",
                            Json.array
                                (blockOf t)
                                [
                                    if t > 0 then
                                        yield! [ 0 .. sample.Blocks - 1 ]
                                ]
                        ])
                [ 0 .. sample.Learned - 1 ]
            "overlap",
            Json.array
                id
                [
                    for second in 1 .. sample.Learned - 1 do
                        for first in 1 .. second - 1 do
                            for b in 0 .. sample.Blocks - 1 do
                                obj'
                                    [
                                        "block", int' b
                                        "first", int' first
                                        "second", int' second
                                        "meanSquaredCosine", num (0.85 - 0.03 * float (second - first))
                                        "smallestAngle", num 0.4
                                        "largestAngle", num 88.0
                                    ]
                ]
            "picture",
            obj'
                [
                    "explained", nums [ 0.41; 0.22 ]
                    "prototypes",
                    Json.array id (places |> Seq.mapi (fun position (struct (x, y)) -> place [] position x y))
                    "means",
                    Json.array
                        id
                        [
                            for t in 0 .. sample.Learned - 1 do
                                for position in 0 .. (t + 1) * sample.ClassesPerTask - 1 do
                                    let struct (x, y) = places[position]
                                    let far = 2.0 * gone t position

                                    place
                                        [ "afterTask", int' t ]
                                        position
                                        (x + far * cos (float position))
                                        (y + far * sin (float position))
                        ]
                ]
        ]

let private phases (task: int) (random: Random) =
    obj'
        [
            "observe", num (if task = 0 then 0.0 else 2.0 + random.NextDouble())
            "project", num (if task = 0 then 0.0 else 0.6)
            "train", num (28.0 + 3.0 * random.NextDouble())
            "prototypes", num (3.0 + random.NextDouble())
            "predict", num (1.0 + 0.8 * float task)
        ]

let private resources (sample: Sample) (random: Random) =
    let tasks = [ for t in 0 .. sample.Learned - 1 -> phases t random ]

    let total (name: string) =
        tasks |> List.sumBy (fun task -> (task[name]).GetValue<float>())

    obj'
        [
            "phaseSeconds",
            obj'
                [
                    for name in [ "observe"; "project"; "train"; "prototypes"; "predict" ] ->
                        name, num (total name)
                ]
            "taskSeconds", JsonArray(Array.ofList tasks)
            "peakMemoryBytes", Json.int 1500000000L
            "memory",
            Json.array
                (fun t ->
                    let memory (bytes: int) =
                        obj' [ "tensors", int' 91; "residentBytes", int' bytes ]

                    obj'
                        [
                            "taskStart", memory 340000000
                            "taskEnd", memory (1260000000 + 20000000 * min t 10)
                        ])
                [ 0 .. sample.Learned - 1 ]
            "environment",
            obj'
                [
                    "program", text "0.1.0"
                    "runtime", text ".NET 10.0.0"
                    "torchSharp", text "0.107.0"
                    "processor", text "AMD EPYC 9V74"
                    "cores", int' 2
                    "memoryBytes", Json.int 25000000000L
                    "system", text "Debian GNU/Linux 12"
                    "threads", int' 2
                    "device", text "cpu"
                ]
            "startedUtc", text "2026-01-02T03:04:05Z"
            "finishedUtc", text "2026-01-02T03:09:17Z"
        ]

let private ranks (sample: Sample) t =
    [
        if t > 0 then
            for b in 0 .. sample.Blocks - 1 -> max 1 (24 + 3 * b - t)
    ]

let private pairs (sample: Sample) (row: int[]) =
    row
    |> Json.array (fun correct -> ints [ correct; TestImages * sample.ClassesPerTask ])

let private metrics (sample: Sample) (random: Random) (rows: int[][]) =
    [
        obj'
            [
                "event", text "start"
                "method", text "lora-sub-drs"
                "seed", Json.int sample.Seed
            ]
        for t in 0 .. sample.Learned - 1 do
            if t > 0 then
                obj'
                    [
                        "event", text "retained"
                        "task", int' t
                        "ranks", ints (ranks sample t)
                        "energies", nums [ for _ in ranks sample t -> 0.99 ]
                    ]

            for epoch in 0 .. sample.Epochs - 1 do
                obj'
                    [
                        "event", text "epoch"
                        "task", int' t
                        "epoch", int' epoch
                        "loss", num (0.35 + 1.4 * exp (-0.7 * float epoch) + 0.05 * random.NextDouble())
                        "accuracy", num (90.0 - 30.0 * exp (-0.7 * float epoch))
                        "learningRate", num 5e-4
                        "seconds", num 7.1
                    ]

            obj'
                [
                    "event", text "task"
                    "task", int' t
                    "row", pairs sample rows[t]
                    "seconds", num 35.0
                ]
    ]

let private settings (sample: Sample) =
    let base' =
        [
            "variant", "official"
            "data", "fashion-mnist"
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

/// Writes the folder of one run.
let write (folder: string) (sample: Sample) : unit =
    Directory.CreateDirectory folder |> ignore
    // a seed and its ablation draw other numbers
    let random = Random(int sample.Seed + int (1e6 * sample.Decay))
    let rows = scores sample random
    let path name = Path.Combine(folder, name)

    let save name (node: unit -> JsonNode) =
        if not (List.contains name sample.Without) then
            Json.write (path name) (node ())

    save "settings.json" (fun () -> obj' [ for name, value in settings sample -> name, text value ])

    save "sources.json" (fun () ->
        obj'
            [
                "settings",
                Json.array
                    (fun (name, value) ->
                        let source =
                            if name = "seed" then
                                "command line"
                            else
                                "default of official"

                        obj' [ "name", text name; "value", text value; "source", text source ])
                    (settings sample)
                "notes", Json.array text [ "The config's key 'workers' is not used by this method." ]
            ])

    save "resources.json" (fun () -> resources sample random)

    if not (List.contains "metrics.jsonl" sample.Without) then
        let lines =
            metrics sample random rows |> List.map (fun line -> line.ToJsonString() + "\n")

        File.WriteAllText(path "metrics.jsonl", String.concat "" lines)

    if sample.Learned > 0 then
        let right = byClass sample random (Array.last rows)
        let mistaken = confusion sample random right

        save "classes.json" (fun () ->
            obj'
                [
                    "classes",
                    Json.array
                        id
                        (right
                         |> Seq.mapi (fun position correct ->
                             obj'
                                 [
                                     "position", int' position
                                     "label", int' position
                                     "name", text (sample.Name position)
                                     "task", int' (position / sample.ClassesPerTask)
                                     "correct", int' correct
                                     "total", int' TestImages
                                 ]))
                    "confusion", Json.array ints mistaken
                    "samples",
                    Json.array
                        (fun n ->
                            let truth = n * 7 % right.Length

                            let predicted =
                                if n % 3 = 0 then
                                    (truth + 1 + n / 3) % right.Length
                                else
                                    truth

                            obj'
                                [
                                    "task", int' (truth / sample.ClassesPerTask)
                                    "true", int' truth
                                    "predicted", int' predicted
                                    "png", text (Convert.ToBase64String(picture truth n))
                                ])
                        [ 0..39 ]
                ])

        save "drift.json" (fun () -> drift sample random)

    if sample.Learned = sample.Tasks then
        save "summary.json" (fun () ->
            obj'
                [
                    "method", text "lora-sub-drs"
                    "variant", text "official"
                    "data", text "fashion-mnist"
                    "tasks", int' sample.Tasks
                    "learnedTasks", int' sample.Learned
                    "seed", Json.int sample.Seed
                    "forwardTransfer", null
                    "forwardTransferNote", text "needs a reference run (--reference)"
                    "intransigence", null
                    "intransigenceNote", text "needs a reference run (--reference)"
                    "correctAndTotal", Json.array (pairs sample) rows
                    "retainedRank", Json.array ints [ for t in 0 .. sample.Tasks - 1 -> ranks sample t ]
                    "threads", int' 2
                ])

/// Writes a folder of several seeds.
let writeSeeds (folder: string) (seeds: int64 list) (sample: Sample) : unit =
    for seed in seeds do
        write (Path.Combine(folder, $"seed-{seed}")) { sample with Seed = seed }

    Json.write
        (Path.Combine(folder, "statistics.json"))
        (obj'
            [
                "seeds", Json.array Json.int seeds
                "measures", obj' []
                "curve", JsonArray()
            ])
