namespace LoRASub

open System
open System.Globalization
open System.Text.Json
open System.Text.Json.Nodes
open System.Text.RegularExpressions

/// The two published codes, whose defaults differ (see `Preset`).
[<RequireQualifiedAccess>]
type Variant =
    | LibContinual
    | Official

/// How a task's training images are prepared when their features are averaged into prototypes.
[<RequireQualifiedAccess>]
type PrototypeTransform =
    /// Augmented, as in training.
    | Train
    /// As at test time.
    | Test

/// When the stream of random numbers for shuffling and augmentation starts anew.
[<RequireQualifiedAccess>]
type Seeding =
    /// From seed + epoch at every epoch, the same in every task (LibContinual).
    | EveryEpoch
    /// Once per run (the authors' code).
    | Once

/// Everything that decides a run's numbers: the same settings give the same results on one machine and thread count.
type RunSettings =
    {
        Variant: Variant
        /// Name of a data set; see `Datasets.names`.
        Data: string
        DataPath: string option
        /// A safetensors file in timm's names.
        Backbone: string option
        Tasks: int
        /// Classes of the first task, where it differs from the later ones.
        InitialClasses: int option
        /// natural, seed1993 or an order file.
        ClassOrder: string
        Epochs: int
        /// Epochs of the first task, where they differ.
        InitialEpochs: int option
        Batch: int
        /// Name of a method; see `Methods.names`.
        MethodName: string
        Method: LoRASubSettings
        /// Name of a head; see `Heads.names`.
        Head: string
        /// Name of an embedding; see `Embedding.names`.
        Embedding: string
        Heads: int option
        ImageSize: int option
        NormEpsilon: NormEpsilon
        /// Black and white as the network sees them.
        InputRange: struct (float * float)
        Augmentation: Augmentation
        /// Smallest and largest share of the image's area in a random crop.
        CropScale: struct (float * float)
        /// Smallest and largest width / height of a random crop.
        CropRatio: struct (float * float)
        /// Pixels of the shorter side before the centre crop of test images, where larger than the network's.
        TestResize: int option
        /// Share of each class's images that train, for data sets published without a split.
        SplitRatio: float
        SplitSeed: int64
        /// Leave out image files that cannot be decoded instead of stopping.
        SkipBroken: bool
        PrototypeTransform: PrototypeTransform
        Seeding: Seeding
        Precision: Precision
        /// Compute activations again for the gradient instead of keeping them.
        CheckpointActivations: bool
        /// cpu or cuda:N.
        Device: string
        Threads: int option
        Seed: int64
        /// Tasks to learn before stopping early.
        StopAfter: int option
        /// Minutes between checkpoints within a task; 0 saves after each task only.
        CheckpointMinutes: float
        /// Measure how far class means move.
        Drift: bool
        /// Write TensorBoard's event files beside the results.
        TensorBoard: bool
        /// Folders of finished runs to measure forward transfer or intransigence against, separated by commas.
        Reference: string option
    }

    /// Epochs of a task.
    member this.EpochsOf(task: LearningTask) =
        if not (Methods.find this.MethodName).Info.Trains then
            0
        else
            match this.InitialEpochs with
            | Some epochs when task.Index = 0 -> epochs
            | _ -> this.Epochs

/// Published settings: the tables of docs/method.md, column by column.
[<RequireQualifiedAccess>]
module Preset =

    /// CIFAR-100 in 10 tasks: 20 epochs, head rate 2e-3, margin 1, λ 0.05.
    let cifar100 (variant: Variant) : RunSettings =
        let libcontinual = variant = Variant.LibContinual

        {
            Variant = variant
            Data = "cifar100"
            DataPath = None
            Backbone = None
            Tasks = 10
            InitialClasses = None
            ClassOrder = if libcontinual then "seed1993" else "natural"
            Epochs = 20
            InitialEpochs = None
            Batch = 128
            MethodName = LoRASubDrs.info.Name
            Method =
                {
                    Rank = 10
                    BInit = if libcontinual then BInit.Zeros else BInit.Sparse
                    LearningRate = 5e-4
                    HeadLearningRate = 2e-3
                    Adam = Adam.defaults
                    ScheduleEpochs = 20
                    Energy = 0.99
                    UpdateScale = UpdateScale.Frobenius
                    Projection = true
                    Subtraction = true
                    Triplet = true
                    Margin = 1.0
                    TripletWeight = 0.05
                    NormOrder = 2.0
                }
            Head = NearestMean.head.Info.Name
            Embedding = Embedding.names[0]
            Heads = None
            ImageSize = None
            NormEpsilon =
                {
                    Blocks = if libcontinual then 1e-5 else 1e-6
                    Final = 1e-6
                }
            InputRange = struct (0.0, 1.0)
            Augmentation = Augmentation.CropFlip
            CropScale = struct (0.08, 1.0)
            CropRatio = struct (3.0 / 4.0, 4.0 / 3.0)
            TestResize = None
            SplitRatio = 0.8
            SplitSeed = 1993L
            SkipBroken = false
            PrototypeTransform =
                if libcontinual then
                    PrototypeTransform.Train
                else
                    PrototypeTransform.Test
            Seeding = if libcontinual then Seeding.EveryEpoch else Seeding.Once
            Precision = Precision.Float32
            CheckpointActivations = false
            Device = "cpu"
            Threads = None
            Seed = 1993L
            StopAfter = None
            CheckpointMinutes = 10.0
            Drift = true
            TensorBoard = false
            Reference = None
        }

    /// ImageNet-R in 10 tasks: 40 epochs in the first task, 50 later, head rate 5e-4, margin 2, λ 0.2.
    let imageNetR (variant: Variant) : RunSettings =
        let cifar = cifar100 variant

        { cifar with
            Data = "imagenet-r"
            Epochs = 50
            InitialEpochs = Some 40
            TestResize = Some 256
            Method =
                { cifar.Method with
                    HeadLearningRate = 5e-4
                    ScheduleEpochs = 50
                    Margin = 2.0
                    TripletWeight = 0.2
                }
        }

    /// The command line's defaults for small data sets: CIFAR-100's settings in 2 tasks of 4 epochs, about a minute
    /// on two cores with the bundled subset of Fashion-MNIST. Flips only: crops down to 8% of an
    /// image, made for photographs, cost 2 points there.
    let quick (variant: Variant) : RunSettings =
        { cifar100 variant with
            Data = "fashion-mnist"
            Tasks = 2
            Epochs = 4
            Augmentation = Augmentation.Flip
            Method =
                { (cifar100 variant).Method with
                    ScheduleEpochs = 4
                }
        }

    /// DomainNet's six domains, one a task; otherwise as `quick`.
    let domains (variant: Variant) : RunSettings =
        { quick variant with
            Data = "domainnet-domains"
            Tasks = 6
            ClassOrder = "natural"
            Augmentation = Augmentation.CropFlip
        }

    /// The preset of a data set, and the preset's name: `quick` without a published one.
    let ofData (data: string) : string * (Variant -> RunSettings) =
        match data with
        | "cifar100" -> data, cifar100
        | "imagenet-r" -> data, imageNetR
        | "domainnet-domains" -> data, domains
        | _ -> "quick", quick

/// One setting by name: the same name on the command line and in files.
type Setting =
    {
        Name: string
        /// None where the setting is left open.
        Get: RunSettings -> string option
        /// Rejects a text of the wrong kind.
        Set: string -> RunSettings -> RunSettings
    }

[<RequireQualifiedAccess>]
module Settings =

    /// How a data set of image files is read.
    let reading (settings: RunSettings) : ReadOptions =
        {
            SplitRatio = settings.SplitRatio
            SplitSeed = settings.SplitSeed
            SkipBroken = settings.SkipBroken
        }

    let private invariant = CultureInfo.InvariantCulture

    let private parse name rule (tryParse: string -> bool * 'T) (text: string) : 'T =
        match tryParse text with
        | true, value -> value
        | _ -> Errors.reject name rule $"'{text}'" ""

    let private wholeNumber name =
        parse name "must be a whole number" (fun t ->
            Int32.TryParse(t, NumberStyles.AllowLeadingSign, invariant))

    /// A decimal number, or a fraction of two: 0.75, 1e-8, 3/4.
    let private tryNumber (text: string) : bool * float =
        let decimal (part: string) =
            Double.TryParse(part.Trim(), NumberStyles.Float, invariant)

        match text.Split '/' |> Array.map decimal with
        | [| one |] -> one
        | [| (true, above); (true, below) |] when below <> 0.0 -> true, above / below
        | _ -> false, nan

    let private number name = parse name "must be a number" tryNumber

    let private setting name get set =
        {
            Name = name
            Get = get >> Some
            Set = set
        }

    let private named name (text: string) =
        if String.IsNullOrWhiteSpace text then
            Errors.reject name "must name a file, a folder or a choice" "an empty name" ""

        text

    let private text name (get: RunSettings -> string) set = setting name get (named name >> set)

    let private int name (get: RunSettings -> int) set =
        setting name (get >> string) (wholeNumber name >> set)

    /// The shortest text that is read back as the same number: 0.75, 1e-8.
    let private show (x: float) =
        x.ToString("R", invariant).Replace("E-0", "e-").Replace('E', 'e')

    let private float name (get: RunSettings -> float) set =
        setting name (get >> show) (number name >> set)

    let private optional (inner: string -> 'T) (show: 'T -> string) name get set =
        {
            Name = name
            Get = get >> Option.map show
            Set = fun text -> set (Some(inner text))
        }

    let private optionalInt name = optional (wholeNumber name) string name
    let private optionalText name = optional (named name) id name

    let private oneOf (cases: (string * 'T) list) name (get: RunSettings -> 'T) set =
        let textOf value =
            cases |> List.find (fun (_, case) -> case = value) |> fst

        let ofText (text: string) =
            match List.tryFind (fun (t, _) -> t = text) cases with
            | Some(_, case) -> case
            | None ->
                let known = cases |> List.map fst |> String.concat ", "
                Errors.reject name $"must be one of {known}" $"'{text}'" ""

        setting name (get >> textOf) (ofText >> set)

    let private onOff name get set =
        oneOf [ "true", true; "false", false ] name get set

    let private numbers name rule (text: string) =
        match text.Split ',' |> Array.map tryNumber with
        | parts when Array.forall fst parts -> Array.map snd parts
        | _ -> Errors.reject name rule $"'{text}'" ""

    let private normEpsilon name (text: string) =
        let rule = "must be EPSILON or BLOCKS,FINAL"

        match numbers name rule text with
        | [| both |] -> { Blocks = both; Final = both }
        | [| blocks; final |] -> { Blocks = blocks; Final = final }
        | _ -> Errors.reject name rule $"'{text}'" ""

    let private range name (text: string) =
        let rule = "must be LOW,HIGH"

        match numbers name rule text with
        | [| low; high |] -> struct (low, high)
        | _ -> Errors.reject name rule $"'{text}'" ""

    let private interval name (get: RunSettings -> struct (float * float)) set =
        // a ratio such as 4/3 stays readable
        let short (x: float) =
            let fraction q =
                let p = Math.Round(x * q)
                if p / q = x then Some $"{show p}/{show q}" else None

            if (show x).Length <= 12 then
                show x
            else
                List.tryPick fraction [ 3.0 .. 9.0 ] |> Option.defaultValue (show x)

        let showRange (struct (low, high)) = $"{short low},{short high}"
        setting name (get >> showRange) (range name >> set)

    let private int64 name (get: RunSettings -> int64) set =
        let whole =
            parse name "must be a whole number of at most 64 bits" (fun t ->
                Int64.TryParse(t, NumberStyles.AllowLeadingSign, invariant))

        setting name (get >> string) (whole >> set)

    let private choices (names: string list) =
        names |> List.map (fun name -> name, name)

    let private ofMethod (change: LoRASubSettings -> LoRASubSettings) (s: RunSettings) =
        { s with Method = change s.Method }

    let private ofAdam (change: AdamOptions -> AdamOptions) =
        ofMethod (fun m -> { m with Adam = change m.Adam })

    let private variants =
        [ "libcontinual", Variant.LibContinual; "official", Variant.Official ]

    /// Every setting, in the order in which they are listed.
    let all: Setting list =
        [
            oneOf variants "variant" _.Variant (fun v s -> { s with Variant = v })
            text "data" _.Data (fun v s -> { s with Data = v })
            optionalText "data-path" _.DataPath (fun v s -> { s with DataPath = v })
            optionalText "backbone" _.Backbone (fun v s -> { s with Backbone = v })
            int "tasks" _.Tasks (fun v s -> { s with Tasks = v })
            optionalInt "initial-classes" _.InitialClasses (fun v s -> { s with InitialClasses = v })
            text "class-order" _.ClassOrder (fun v s -> { s with ClassOrder = v })
            int "epochs" _.Epochs (fun v s -> { s with Epochs = v })
            optionalInt "initial-epochs" _.InitialEpochs (fun v s -> { s with InitialEpochs = v })
            int "schedule-epochs" _.Method.ScheduleEpochs (fun v ->
                ofMethod (fun m -> { m with ScheduleEpochs = v }))
            int "batch" _.Batch (fun v s -> { s with Batch = v })
            int "rank" _.Method.Rank (fun v -> ofMethod (fun m -> { m with Rank = v }))
            float "lr" _.Method.LearningRate (fun v -> ofMethod (fun m -> { m with LearningRate = v }))
            float "head-lr" _.Method.HeadLearningRate (fun v ->
                ofMethod (fun m -> { m with HeadLearningRate = v }))
            float "margin" _.Method.Margin (fun v -> ofMethod (fun m -> { m with Margin = v }))
            float "triplet-weight" _.Method.TripletWeight (fun v ->
                ofMethod (fun m -> { m with TripletWeight = v }))
            float "energy" _.Method.Energy (fun v -> ofMethod (fun m -> { m with Energy = v }))
            float "weight-decay" _.Method.Adam.WeightDecay (fun v ->
                ofAdam (fun a -> { a with WeightDecay = v }))
            float "adam-beta1" _.Method.Adam.Beta1 (fun v -> ofAdam (fun a -> { a with Beta1 = v }))
            float "adam-beta2" _.Method.Adam.Beta2 (fun v -> ofAdam (fun a -> { a with Beta2 = v }))
            float "adam-epsilon" _.Method.Adam.Epsilon (fun v -> ofAdam (fun a -> { a with Epsilon = v }))
            onOff "amsgrad" _.Method.Adam.AmsGrad (fun v -> ofAdam (fun a -> { a with AmsGrad = v }))
            float "norm-order" _.Method.NormOrder (fun v -> ofMethod (fun m -> { m with NormOrder = v }))
            optionalInt "heads" _.Heads (fun v s -> { s with Heads = v })
            optionalInt "image-size" _.ImageSize (fun v s -> { s with ImageSize = v })
            oneOf [ "zeros", BInit.Zeros; "sparse", BInit.Sparse ] "b-init" _.Method.BInit (fun v ->
                ofMethod (fun m -> { m with BInit = v }))
            setting
                "norm-epsilon"
                (fun s -> $"{show s.NormEpsilon.Blocks},{show s.NormEpsilon.Final}")
                (fun text s ->
                    { s with
                        NormEpsilon = normEpsilon "norm-epsilon" text
                    })
            interval "input-range" _.InputRange (fun v s -> { s with InputRange = v })
            oneOf
                [ "train", PrototypeTransform.Train; "test", PrototypeTransform.Test ]
                "prototype-transform"
                _.PrototypeTransform
                (fun v s -> { s with PrototypeTransform = v })
            oneOf
                [ "frobenius", UpdateScale.Frobenius; "none", UpdateScale.Unscaled ]
                "update-scale"
                _.Method.UpdateScale
                (fun v -> ofMethod (fun m -> { m with UpdateScale = v }))
            onOff "projection" _.Method.Projection (fun v -> ofMethod (fun m -> { m with Projection = v }))
            onOff "subtraction" _.Method.Subtraction (fun v -> ofMethod (fun m -> { m with Subtraction = v }))
            onOff "triplet" _.Method.Triplet (fun v -> ofMethod (fun m -> { m with Triplet = v }))
            oneOf (choices Methods.names) "method" _.MethodName (fun v s -> { s with MethodName = v })
            oneOf (choices Heads.names) "head" _.Head (fun v s -> { s with Head = v })
            oneOf (choices Embedding.names) "embedding" _.Embedding (fun v s -> { s with Embedding = v })
            // an older name for the frozen method
            onOff "training" (fun s -> s.MethodName <> Frozen.info.Name) (fun trains s ->
                if not trains then
                    { s with MethodName = Frozen.info.Name }
                elif s.MethodName = Frozen.info.Name then
                    { s with
                        MethodName = LoRASubDrs.info.Name
                    }
                else
                    s)
            optionalInt "stop-after" _.StopAfter (fun v s -> { s with StopAfter = v })
            oneOf
                [
                    "none", Augmentation.None
                    "flip", Augmentation.Flip
                    "crop-flip", Augmentation.CropFlip
                ]
                "augment"
                _.Augmentation
                (fun v s -> { s with Augmentation = v })
            interval "crop-scale" _.CropScale (fun v s -> { s with CropScale = v })
            interval "crop-ratio" _.CropRatio (fun v s -> { s with CropRatio = v })
            optionalInt "test-resize" _.TestResize (fun v s -> { s with TestResize = v })
            float "split-ratio" _.SplitRatio (fun v s -> { s with SplitRatio = v })
            int64 "split-seed" _.SplitSeed (fun v s -> { s with SplitSeed = v })
            onOff "skip-broken" _.SkipBroken (fun v s -> { s with SkipBroken = v })
            oneOf [ "every-epoch", Seeding.EveryEpoch; "once", Seeding.Once ] "seeding" _.Seeding (fun v s ->
                { s with Seeding = v })
            oneOf
                [
                    "float32", Precision.Float32
                    "bfloat16", Precision.BFloat16
                    "float64", Precision.Float64
                ]
                "precision"
                _.Precision
                (fun v s -> { s with Precision = v })
            onOff "checkpoint-activations" _.CheckpointActivations (fun v s ->
                { s with CheckpointActivations = v })
            text "device" _.Device (fun v s -> { s with Device = v })
            optionalInt "threads" _.Threads (fun v s -> { s with Threads = v })
            int64 "seed" _.Seed (fun v s -> { s with Seed = v })
            float "checkpoint-minutes" _.CheckpointMinutes (fun v s -> { s with CheckpointMinutes = v })
            onOff "drift" _.Drift (fun v s -> { s with Drift = v })
            onOff "tensorboard" _.TensorBoard (fun v s -> { s with TensorBoard = v })
            optionalText "reference" _.Reference (fun v s -> { s with Reference = v })
        ]

    /// Sets one by name. Rejects an unknown name and a text of the wrong kind.
    let set (name: string) (text: string) (settings: RunSettings) : RunSettings =
        match all |> List.tryFind (fun s -> s.Name = name) with
        | Some setting -> setting.Set text settings
        | None ->
            let known = List.map _.Name all
            let rule = "must be one of " + String.concat ", " known
            Errors.reject $"setting '{name}'" rule $"'{name}'" (Errors.didYouMean known name)

    /// The preset of the named variant, then each (name, text) in turn. Where epochs are given and schedule-epochs is
    /// not, the schedule is cut for those epochs.
    let ofPairs (preset: Variant -> RunSettings) (pairs: (string * string) list) : RunSettings =
        let variant =
            match List.tryFindBack (fun (name, _) -> name = "variant") pairs with
            | Some(_, text) -> (set "variant" text (preset Variant.LibContinual)).Variant
            | None -> Variant.Official

        let settings =
            List.fold (fun s (name, text) -> set name text s) (preset variant) pairs

        let given name =
            List.exists (fun (other, _) -> other = name) pairs

        if given "epochs" && not (given "schedule-epochs") then
            ofMethod
                (fun m ->
                    { m with
                        ScheduleEpochs = settings.Epochs
                    })
                settings
        else
            settings

    /// Rejects numbers that no run can have; what depends on data or backbone is checked where those are read.
    let check (settings: RunSettings) =
        let between name low high value =
            if value < low then
                Errors.reject name $"must be at least {low}" $"{value}" ""

            if value > high then
                Errors.reject name $"must be at most {high}" $"{value}" ""

        let million = 1_000_000
        between "tasks" 1 million settings.Tasks
        between "epochs" 1 million settings.Epochs
        between "batch" 1 million settings.Batch
        Option.iter (between "initial-classes" 1 million) settings.InitialClasses
        Option.iter (between "initial-epochs" 1 million) settings.InitialEpochs
        Option.iter (between "heads" 1 million) settings.Heads
        Option.iter (between "image-size" 1 million) settings.ImageSize
        Option.iter (between "stop-after" 1 million) settings.StopAfter
        // LibTorch starts all threads that it is given, and crashes with too many
        Option.iter (between "threads" 1 1024) settings.Threads
        let struct (low, high) = settings.InputRange

        if not (low < high && Double.IsFinite low && Double.IsFinite high) then
            Errors.reject "input-range" "must be LOW,HIGH with LOW < HIGH" $"{show low},{show high}" ""

        for epsilon in [ settings.NormEpsilon.Blocks; settings.NormEpsilon.Final ] do
            if not (epsilon > 0.0 && epsilon < 1.0) then
                Errors.reject "norm-epsilon" "must be between 0 and 1" (show epsilon) ""

        let struct (small, large) = settings.CropScale

        if not (0.0 < small && small <= large && large <= 1.0) then
            Errors.reject
                "crop-scale"
                "must be LOW,HIGH with 0 < LOW <= HIGH <= 1"
                $"{show small},{show large}"
                ""

        let struct (narrow, wide) = settings.CropRatio

        if not (0.0 < narrow && narrow <= wide && Double.IsFinite wide) then
            Errors.reject "crop-ratio" "must be LOW,HIGH with 0 < LOW <= HIGH" $"{show narrow},{show wide}" ""

        Option.iter (between "test-resize" 1 million) settings.TestResize

        if not (settings.SplitRatio > 0.0 && settings.SplitRatio < 1.0) then
            Errors.reject "split-ratio" "must be between 0 and 1" (show settings.SplitRatio) ""

        if not (settings.CheckpointMinutes >= 0.0 && settings.CheckpointMinutes <= 1e6) then
            Errors.reject
                "checkpoint-minutes"
                "must be 0 (after each task only) to 1000000"
                (show settings.CheckpointMinutes)
                ""

        LoRASubDrs.checkSettings settings.Method

    /// Every setting that is not left open, as (name, text).
    let toPairs (settings: RunSettings) : (string * string) list =
        all
        |> List.choose (fun s -> s.Get settings |> Option.map (fun text -> s.Name, text))

    /// The settings as one JSON object; numbers and true/false as such.
    let toJson (settings: RunSettings) : JsonNode =
        // a folder may be named 007, which is not a number in JSON
        let bare = Regex @"^(true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?)\z"

        let node (text: string) =
            if bare.IsMatch text then
                JsonNode.Parse text
            else
                Json.text text

        Json.object (toPairs settings |> List.map (fun (name, text) -> name, node text))

    /// Reads what `toJson` made. Rejects unknown names and values of the wrong kind; `subject` names the file.
    let ofJson (subject: string) (json: JsonElement) : RunSettings =
        if json.ValueKind <> JsonValueKind.Object then
            Errors.reject subject "must hold a JSON object of settings" $"{json.ValueKind}" ""

        let pairs =
            [
                for property in json.EnumerateObject() do
                    match property.Value.ValueKind with
                    | JsonValueKind.String -> property.Name, property.Value.GetString()
                    | JsonValueKind.Number
                    | JsonValueKind.True
                    | JsonValueKind.False -> property.Name, property.Value.GetRawText()
                    | kind ->
                        Errors.reject
                            $"{subject}, {property.Name}"
                            "must be a string, number or boolean"
                            $"{kind}"
                            ""
            ]

        try
            ofPairs Preset.quick pairs
        with :? InputException as e ->
            raise (InputException($"{subject}, {e.Message}", e))
