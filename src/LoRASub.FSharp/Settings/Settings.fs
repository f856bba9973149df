namespace LoRASub.Settings

open System
open System.Globalization
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Measure

/// The kind of values of a setting. It decides the form of the flag, the form in JSON and the type in the documentation.
[<RequireQualifiedAccess>]
type SettingKind =
    /// Both bounds are included.
    | Whole of least: int64 * most: int64
    /// A rule such as "in (0, 1]".
    | Number of range: string
    /// Names of the two numbers such as "LOW,HIGH", and their rule.
    | Pair of names: string * rule: string
    | Choice of string list
    /// true or false; --NAME and --no-NAME on the command line.
    | Switch
    | Name
    | File
    | Folder
    /// Separated by commas, or a list in a configuration file.
    | Folders
    /// Likewise; `none` for an empty list.
    | Names

/// One setting, under the same name on the command line, in configuration files and in settings.json. Help, documentation,
/// checks and saved forms follow from this row.
type Setting =
    {
        Name: string
        /// Heading in help and documentation.
        Group: string
        /// One phrase, for help and documentation. For a switch it is an imperative: "skip broken images".
        Doc: string
        /// What applies where the setting is left open and no preset has a value, in a few words.
        Otherwise: string
        Kind: SettingKind
        /// Shown by `run --help`, not only by `--help-all`.
        Common: bool
        /// May differ in a resumed run: it changes no number, or the file that it names is compared.
        FreeOnResume: bool
        /// None where the setting is left open.
        Get: RunSettings -> string option
        /// Rejects a text of the wrong kind, and a value that no run can have.
        Set: string -> RunSettings -> RunSettings
    }

/// The table of settings, and settings as texts and JSON.
[<RequireQualifiedAccess>]
module Settings =

    /// How a data set of image files is read.
    let internal reading (settings: RunSettings) : ReadOptions =
        {
            SplitRatio = settings.SplitRatio
            SplitSeed = settings.SplitSeed
            SkipBroken = settings.SkipBroken
            HoldOut = settings.Validate
        }

    // ------------------------------------------------------------------------------------------ kinds of values

    /// Values of one type as text. `Read` takes the setting's name, for its rejections.
    type private Form<'T> =
        {
            Kind: SettingKind
            Read: string -> string -> 'T
            Show: 'T -> string option
        }

    let private form kind read show : Form<'T> =
        {
            Kind = kind
            Read = read
            Show = show
        }

    let private invariant = CultureInfo.InvariantCulture

    /// A decimal number, or a fraction of two: 0.75, 1e-8, 3/4.
    let private tryNumber (text: string) : float option =
        let decimal (part: string) =
            Double.TryParse(part.Trim(), NumberStyles.Float, invariant)

        match text.Split '/' |> Array.map decimal with
        | [| (true, x) |] -> Some x
        | [| (true, above); (true, below) |] when below <> 0.0 -> Some(above / below)
        | _ -> None

    /// The shortest text that is read back as the same number: 0.75, 1e-8.
    let private show (x: float) =
        x.ToString("R", invariant).Replace("E-0", "e-").Replace('E', 'e')

    /// A fraction such as 4/3 where the decimal number is long.
    let private showShort (x: float) =
        let fraction q =
            let p = Math.Round(x * q)
            if p / q = x then Some $"{show p}/{show q}" else None

        if (show x).Length <= 12 then
            show x
        else
            List.tryPick fraction [ 3.0 .. 9.0 ] |> Option.defaultValue (show x)

    let private whole64 (least: int64) (most: int64) : Form<int64> =
        let read name (text: string) =
            match Int64.TryParse(text, NumberStyles.AllowLeadingSign, invariant) with
            | true, n when n < least -> Errors.reject name $"must be at least {least}" $"{n}" ""
            | true, n when n > most -> Errors.reject name $"must be at most {most}" $"{n}" ""
            | true, n -> n
            | _ when most = Int64.MaxValue ->
                Errors.reject name "must be a whole number of at most 64 bits" $"'{text}'" ""
            | _ -> Errors.reject name "must be a whole number" $"'{text}'" ""

        form (SettingKind.Whole(least, most)) read (string >> Some)

    let private whole (least: int) (most: int) : Form<int> =
        let wide = whole64 least most

        form wide.Kind (fun name text -> int (wide.Read name text)) (int64 >> wide.Show)

    let private number (range: string) (holds: float -> bool) : Form<float> =
        let read name (text: string) =
            match tryNumber text with
            | Some x when holds x -> x
            | Some x -> Errors.reject name $"must be {range}" (show x) ""
            | None -> Errors.reject name "must be a number" $"'{text}'" ""

        form (SettingKind.Number range) read (show >> Some)

    /// One number stands for both where the rule allows it.
    let private pair names rule (oneForBoth: bool) (holds: float -> float -> bool) =
        let read name (text: string) : struct (float * float) =
            match text.Split ',' |> Array.map tryNumber with
            | [| Some first; Some second |] when holds first second -> struct (first, second)
            | [| Some both |] when oneForBoth && holds both both -> struct (both, both)
            | _ -> Errors.reject name $"must be {names}{rule}" $"'{text}'" ""

        form (SettingKind.Pair(names, rule)) read (fun (struct (first, second)) ->
            Some $"{showShort first},{showShort second}")

    let private choiceAs kind (cases: (string * 'T) list) : Form<'T> =
        let read name text =
            match cases |> List.tryFind (fst >> (=) text) with
            | Some(_, case) -> case
            | None ->
                let known = List.map fst cases
                let rule = "must be one of " + String.concat ", " known
                Errors.reject name rule $"'{text}'" (Errors.didYouMean known text)

        form kind read (fun value -> cases |> List.find (snd >> (=) value) |> fst |> Some)

    let private choice cases =
        choiceAs (SettingKind.Choice(List.map fst cases)) cases

    let private switch: Form<bool> =
        choiceAs SettingKind.Switch [ "true", true; "false", false ]

    let private given name (text: string) =
        if String.IsNullOrWhiteSpace text then
            Errors.reject name "must name a file, a folder or a choice" "an empty name" ""

        text

    let private text kind : Form<string> = form kind given Some

    let private folders: Form<string list> =
        let read name (text: string) =
            text.Split(',', StringSplitOptions.TrimEntries)
            |> Array.map (given name)
            |> List.ofArray

        let show names =
            if List.isEmpty names then
                None
            else
                Some(String.concat "," names)

        form SettingKind.Folders read show

    /// Names that `check` accepts.
    let private names (check: string -> unit) : Form<string list> =
        let read name (text: string) =
            if text = "none" then
                []
            else
                let all = text.Split(',', StringSplitOptions.TrimEntries)
                all |> Array.iter (given name >> check)
                List.ofArray all

        let show all =
            Some(if List.isEmpty all then "none" else String.concat "," all)

        form SettingKind.Names read show

    let private checked' (check: string -> unit) : Form<string> =
        form
            SettingKind.Name
            (fun name text ->
                check (given name text)
                text)
            Some

    let private optional (inner: Form<'T>) : Form<'T option> =
        form inner.Kind (fun name text -> Some(inner.Read name text)) (Option.bind inner.Show)

    // ------------------------------------------------------------------------------------------ the table

    /// A row without its field, for --help-all only.
    let private row name doc (form: Form<'T>) = struct (name, doc, false, form)

    /// A row without its field, for --help as well.
    let private common name doc (form: Form<'T>) = struct (name, doc, true, form)

    let private field (get: RunSettings -> 'T) set (struct (name, doc, common, form: Form<'T>)) : Setting =
        {
            Name = name
            Group = ""
            Doc = doc
            Otherwise = ""
            Kind = form.Kind
            Common = common
            FreeOnResume = false
            Get = get >> form.Show
            Set = form.Read name >> set
        }

    let private ofMethod (get: LoRASubSettings -> 'T) set =
        field (_.Method >> get) (fun v s -> { s with Method = set v s.Method })

    let private ofAdam (get: AdamOptions -> 'T) set =
        ofMethod (_.Adam >> get) (fun v m -> { m with Adam = set v m.Adam })

    let private freeOnResume (setting: Setting) = { setting with FreeOnResume = true }
    let private otherwise text (setting: Setting) = { setting with Otherwise = text }

    let private group name (rows: Setting list) =
        rows |> List.map (fun s -> { s with Group = name })

    let private name = text SettingKind.Name
    let private file = optional (text SettingKind.File)
    let private folder = optional (text SettingKind.Folder)
    let private count = whole 1 1_000_000
    let private seed = whole64 Int64.MinValue Int64.MaxValue

    let private seeding =
        choice [ "every-epoch", Seeding.EveryEpoch; "once", Seeding.Once ]

    let private bInit = choice [ "zeros", BInit.Zeros; "sparse", BInit.Sparse ]

    let private betweenZeroAndOne =
        number "between 0 and 1" (fun x -> x > 0.0 && x < 1.0)

    let private minutes = number "0 to 1000000" (fun x -> x >= 0.0 && x <= 1e6)
    let private order = number "at least 1" (fun x -> x >= 1.0)
    let private decay = number "in [0, 1)" (fun x -> x >= 0.0 && x < 1.0)

    let private notNegative =
        number "finite and at least 0" (fun x -> x >= 0.0 && Double.IsFinite x)

    let private inputRange =
        pair "LOW,HIGH" " with LOW < HIGH" false (fun low high ->
            low < high && Double.IsFinite low && Double.IsFinite high)

    let private cropScale =
        pair "LOW,HIGH" " with 0 < LOW <= HIGH <= 1" false (fun low high ->
            0.0 < low && low <= high && high <= 1.0)

    let private cropRatio =
        pair "LOW,HIGH" " with 0 < LOW <= HIGH" false (fun low high ->
            0.0 < low && low <= high && Double.IsFinite high)

    let private normEpsilon =
        let holds x = 0.0 < x && x < 1.0

        pair "BLOCKS,FINAL" ", or one number for both, between 0 and 1" true (fun blocks final ->
            holds blocks && holds final)

    let private share = number "in (0, 1]" (fun x -> x > 0.0 && x <= 1.0)

    let private prototypeTransform =
        choice [ "train", PrototypeTransform.Train; "test", PrototypeTransform.Test ]

    let private updateScale =
        choice [ "frobenius", UpdateScale.Frobenius; "none", UpdateScale.Unscaled ]

    let private variant =
        choice [ "libcontinual", Variant.LibContinual; "official", Variant.Official ]

    let private augmentation =
        choice
            [
                "none", Augmentation.None
                "flip", Augmentation.Flip
                "crop-flip", Augmentation.CropFlip
            ]

    let private precision =
        choice
            [
                "float32", Precision.Float32
                "tf32", Precision.TF32
                "bfloat16", Precision.BFloat16
                "float64", Precision.Float64
            ]

    let private data =
        [
            common "data" "see lorasub data list" name
            |> field _.Data (fun v s -> { s with Data = v })
            common "data-path" "folder with the data set's files" folder
            |> field _.DataPath (fun v s -> { s with DataPath = v })
            |> freeOnResume
            common "backbone" "file or name of a plain ViT" file
            |> field _.Backbone (fun v s -> { s with Backbone = v })
            |> otherwise "bundled ViT"
            |> freeOnResume
            common "input-range" "pixel range of the network" inputRange
            |> field _.InputRange (fun v s -> { s with InputRange = v })
            row "augment" "augmentation of training images" augmentation
            |> field _.Augmentation (fun v s -> { s with Augmentation = v })
            row "crop-scale" "smallest and largest area of random crops, as a share of the image" cropScale
            |> field _.CropScale (fun v s -> { s with CropScale = v })
            row "crop-ratio" "smallest and largest width over height of random crops" cropRatio
            |> field _.CropRatio (fun v s -> { s with CropRatio = v })
            row "test-resize" "shorter side of test images before the centre crop" (optional count)
            |> field _.TestResize (fun v s -> { s with TestResize = v })
            row "split-ratio" "training share of each class, for data without a split" betweenZeroAndOne
            |> field _.SplitRatio (fun v s -> { s with SplitRatio = v })
            row "split-seed" "seed of that split" seed
            |> field _.SplitSeed (fun v s -> { s with SplitSeed = v })
            row "skip-broken" "skip images that cannot be decoded" switch
            |> field _.SkipBroken (fun v s -> { s with SkipBroken = v })
            row "attention-heads" "attention heads of the network" (optional count)
            |> field _.Heads (fun v s -> { s with Heads = v })
            |> otherwise "from the weights"
            row "image-size" "image side in pixels" (optional count)
            |> field _.ImageSize (fun v s -> { s with ImageSize = v })
            |> otherwise "from the weights"
            row "norm-epsilon" "layer-norm epsilon of the blocks and of the final norm" normEpsilon
            |> field
                (fun s -> struct (s.NormEpsilon.Blocks, s.NormEpsilon.Final))
                (fun (struct (blocks, final)) s ->
                    { s with
                        NormEpsilon = { Blocks = blocks; Final = final }
                    })
        ]

    let private protocol =
        [
            common "tasks" "number of tasks" count
            |> field _.Tasks (fun v s -> { s with Tasks = v })
            row "initial-classes" "classes of the first task; the other tasks share the rest" (optional count)
            |> field _.InitialClasses (fun v s -> { s with InitialClasses = v })
            row "class-order" "natural, seed1993 or a JSON file" name
            |> field _.ClassOrder (fun v s -> { s with ClassOrder = v })
            |> freeOnResume
            row "stop-after" "stop after this many tasks" (optional count)
            |> field _.StopAfter (fun v s -> { s with StopAfter = v })
            row
                "validate"
                "score on this share of the training images, not on test images"
                (optional betweenZeroAndOne)
            |> field _.Validate (fun v s -> { s with Validate = v })
            row
                "interim-images"
                "score only the first N test images of each class after all tasks but the last; no drift"
                (optional count)
            |> field _.InterimImages (fun v s -> { s with InterimImages = v })
            |> otherwise "all"
            row "seed" "random seed" seed |> field _.Seed (fun v s -> { s with Seed = v })
        ]

    /// <summary>A head and an embedding by name.</summary>
    /// <param name="embedding">Where the text names none.</param>
    /// <param name="text">HEAD or HEAD@EMBEDDING.</param>
    /// <returns>The two names.</returns>
    let internal readout (embedding: string) (text: string) : struct (string * string) =
        match text.IndexOf '@' with
        | -1 -> struct (text, embedding)
        | at -> struct (text.Substring(0, at), text.Substring(at + 1))

    let private checkReadout (text: string) =
        let struct (head, embedding) = readout Embedding.names.Head text

        try
            Heads.find head |> ignore
            Embedding.named embedding |> ignore
        with :? InputException as e ->
            raise (InputException($"heads, '{text}': {e.Message}", e))

    let private named (names: string list) =
        choice (names |> List.map (fun name -> name, name))

    let private checkHead (text: string) =
        match text.IndexOf '@' with
        | -1 -> Heads.find text |> ignore
        | at ->
            Errors.reject
                "head"
                "must be a head without an embedding"
                $"'{text}'"
                $"use --head {text.Substring(0, at)} --embedding {text.Substring(at + 1)}"

    let private learner =
        [
            common "method" "see lorasub methods" (named (Methods.names @ [ Methods.Auto ]))
            |> field _.MethodName (fun v s -> { s with MethodName = v })
            row "head" "classifier of the embeddings; see lorasub heads" (checked' checkHead)
            |> field _.Head (fun v s -> { s with Head = v })
            row
                "embedding"
                "tokens that the head reads; see lorasub heads"
                (checked' (Embedding.named >> ignore))
            |> field _.Embedding (fun v s -> { s with Embedding = v })
            row "heads" "more heads to score in the same run: HEAD or HEAD@EMBEDDING" (names checkReadout)
            |> field _.OtherHeads (fun v s -> { s with OtherHeads = v })
            row "transport" "let heads follow a network that moves" switch
            |> field _.Transport (fun v s -> { s with Transport = v })
            row "recompute" "also score heads recomputed from old training images, as a diagnosis" switch
            |> field _.Recompute (fun v s -> { s with Recompute = v })
            row "rank" "rank of the low-rank updates" count
            |> ofMethod _.Rank (fun v m -> { m with Rank = v })
            row "variant" "published code whose defaults apply" variant
            |> field _.Variant (fun v s -> { s with Variant = v })
            row "b-init" "initial value of B in each task" bInit
            |> ofMethod _.BInit (fun v m -> { m with BInit = v })
            row "margin" "margin of the triplet loss, between unit vectors" notNegative
            |> ofMethod _.Margin (fun v m -> { m with Margin = v })
            row "triplet-weight" "weight of the triplet loss" notNegative
            |> ofMethod _.TripletWeight (fun v m -> { m with TripletWeight = v })
            row "norm-order" "norm order of feature-to-prototype distances in the triplet loss" order
            |> ofMethod _.NormOrder (fun v m -> { m with NormOrder = v })
            row
                "energy"
                "share of the second moment: lora-sub-drs retains it (1: no projection), null-space leaves it out"
                share
            |> ofMethod _.Energy (fun v m -> { m with Energy = v })
            row "update-scale" "scaling of the projection: by its Frobenius norm, or none" updateScale
            |> ofMethod _.UpdateScale (fun v m -> { m with UpdateScale = v })
            row
                "prototype-transform"
                "transform of the images that prototypes are computed from"
                prototypeTransform
            |> field _.PrototypeTransform (fun v s -> { s with PrototypeTransform = v })
            row "projection" "project updates" switch
            |> ofMethod _.Projection (fun v m -> { m with Projection = v })
            row "subtraction" "subtract the old tasks' updates when a task is observed" switch
            |> ofMethod _.Subtraction (fun v m -> { m with Subtraction = v })
            row "triplet" "add the triplet loss to cross-entropy" switch
            |> ofMethod _.Triplet (fun v m -> { m with Triplet = v })
            row "training" "train the network" switch
            |> field _.Training (fun v s -> { s with Training = v })
        ]

    let private training =
        [
            common "epochs" "epochs per task" count
            |> field _.Epochs (fun v s -> { s with Epochs = v })
            row "lr" "learning rate of the LoRA pairs" notNegative
            |> ofMethod _.LearningRate (fun v m -> { m with LearningRate = v })
            row "batch" "batch size" count
            |> field _.Batch (fun v s -> { s with Batch = v })
            row "head-lr" "learning rate of each task's linear classifier" notNegative
            |> ofMethod _.HeadLearningRate (fun v m -> { m with HeadLearningRate = v })
            row "initial-epochs" "epochs of the first task, if different" (optional count)
            |> field _.InitialEpochs (fun v s -> { s with InitialEpochs = v })
            row "schedule-epochs" "length K of the learning-rate schedule" (optional count)
            |> field _.ScheduleEpochs (fun v s -> { s with ScheduleEpochs = v })
            |> otherwise "epochs"
            row "weight-decay" "weight decay, added to the gradient" notNegative
            |> ofAdam _.WeightDecay (fun v a -> { a with WeightDecay = v })
            row "adam-beta1" "Adam's decay of the first moment" decay
            |> ofAdam _.Beta1 (fun v a -> { a with Beta1 = v })
            row "adam-beta2" "Adam's decay of the second moment" decay
            |> ofAdam _.Beta2 (fun v a -> { a with Beta2 = v })
            row "adam-epsilon" "added to the root of Adam's second moment" notNegative
            |> ofAdam _.Epsilon (fun v a -> { a with Epsilon = v })
            row "amsgrad" "use AMSGrad" switch
            |> ofAdam _.AmsGrad (fun v a -> { a with AmsGrad = v })
            row "seeding" "when random numbers restart" seeding
            |> field _.Seeding (fun v s -> { s with Seeding = v })
        ]

    let private output =
        [
            row "checkpoint-minutes" "minutes between checkpoints; 0: only after each task" minutes
            |> field _.CheckpointMinutes (fun v s -> { s with CheckpointMinutes = v })
            |> freeOnResume
            row "drift" "measure how far class means move" switch
            |> field _.Drift (fun v s -> { s with Drift = v })
            row "tensorboard" "also write TensorBoard event files" switch
            |> field _.TensorBoard (fun v s -> { s with TensorBoard = v })
            |> freeOnResume
            row "reference" "finished runs to measure transfer against" folders
            |> field _.Reference (fun v s -> { s with Reference = v })
            |> freeOnResume
        ]

    let private machine =
        [
            common "device" "cpu or cuda:N" name
            |> field _.Device (fun v s -> { s with Device = v })
            row "deterministic" "make GPU runs repeat bit for bit, with slower kernels" switch
            |> field _.Deterministic (fun v s -> { s with Deterministic = v })
            // LibTorch starts all threads that it is given, and crashes with too many
            row "threads" "LibTorch threads" (optional (whole 1 1024))
            |> field _.Threads (fun v s -> { s with Threads = v })
            |> otherwise "LibTorch's choice"
            row "precision" "floating-point type" precision
            |> field _.Precision (fun v s -> { s with Precision = v })
            row "checkpoint-activations" "recompute activations: slower, less memory" switch
            |> field _.CheckpointActivations (fun v s -> { s with CheckpointActivations = v })
        ]

    /// Every setting, in the order in which they are listed.
    let all: Setting list =
        List.concat
            [
                group "Data" data
                group "Protocol" protocol
                group "Method" learner
                group "Training" training
                group "Output" output
                group "Machine" machine
            ]

    // ------------------------------------------------------------------------------------------ settings as texts

    /// <summary>The row of a setting.</summary>
    /// <param name="name">As on the command line, without dashes.</param>
    /// <returns>Its row.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No setting has this name; the message names the nearest
    /// one.</exception>
    let find (name: string) : Setting =
        match all |> List.tryFind (fun s -> s.Name = name) with
        | Some setting -> setting
        | None ->
            let known = List.map _.Name all
            let rule = "must be one of " + String.concat ", " known
            Errors.reject $"setting '{name}'" rule $"'{name}'" (Errors.didYouMean known name)

    /// <summary>Sets one setting by name.</summary>
    /// <param name="name">As on the command line, without dashes.</param>
    /// <param name="text">The value as text.</param>
    /// <param name="settings">The settings to change.</param>
    /// <returns>The changed settings.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the text is of the wrong kind, or no run
    /// can have the value.</exception>
    let set (name: string) (text: string) (settings: RunSettings) : RunSettings =
        (find name).Set text settings

    /// <summary>The preset of the named variant, with settings changed in turn.</summary>
    /// <param name="preset">Gives the settings of a variant.</param>
    /// <param name="pairs">(name, text); the last of a repeated name counts. The official variant applies where none
    /// is named.</param>
    /// <returns>The settings.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the text is of the wrong kind, or no run
    /// can have the value.</exception>
    let ofPairs (preset: Variant -> RunSettings) (pairs: (string * string) list) : RunSettings =
        let variant =
            match List.tryFindBack (fun (name, _) -> name = "variant") pairs with
            | Some(_, text) -> (set "variant" text (preset Variant.LibContinual)).Variant
            | None -> Variant.Official

        List.fold (fun s (name, text) -> set name text s) (preset variant) pairs

    /// <summary>The settings as texts.</summary>
    /// <param name="settings">Any.</param>
    /// <returns>(name, text) for every setting that is not left open, in the order of `all`.</returns>
    let toPairs (settings: RunSettings) : (string * string) list =
        all
        |> List.choose (fun s -> s.Get settings |> Option.map (fun text -> s.Name, text))

    /// <summary>Checks settings. What depends on data or backbone is checked where those are read.</summary>
    /// <param name="settings">Any, such as those changed as a record.</param>
    /// <exception cref="T:LoRASub.Core.InputException">No run can have a value.</exception>
    let check (settings: RunSettings) : unit =
        for name, text in toPairs settings do
            set name text settings |> ignore

    let private node (kind: SettingKind) (text: string) : JsonNode =
        match kind with
        // JSON has no infinity
        | SettingKind.Number _ when text = "Infinity" -> Json.text text
        | SettingKind.Whole _
        | SettingKind.Number _
        | SettingKind.Switch -> JsonNode.Parse text
        | _ -> Json.text text

    /// <summary>The settings as one JSON object.</summary>
    /// <param name="settings">Any.</param>
    /// <returns>An object; numbers and true or false as such.</returns>
    let toJson (settings: RunSettings) : JsonNode =
        Json.object
            [
                for s in all do
                    match s.Get settings with
                    | Some text -> s.Name, node s.Kind text
                    | None -> ()
            ]

    /// <summary>Reads what `toJson` made.</summary>
    /// <param name="subject">Names the file in errors.</param>
    /// <param name="json">The object.</param>
    /// <returns>The settings; those that are absent have the values of `Preset.quick`, without more heads.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The value is not an object of texts, numbers and booleans, or
    /// breaks a rule of `set`.</exception>
    let ofJson (subject: string) (json: JsonElement) : RunSettings =
        if json.ValueKind <> JsonValueKind.Object then
            Errors.reject subject "must hold a JSON object of settings" $"{json.ValueKind}" ""

        let pairs =
            [
                for property in json.EnumerateObject() do
                    match property.Value.ValueKind with
                    // attention heads, in runs saved before heads had the name
                    | JsonValueKind.Number when property.Name = "heads" ->
                        "attention-heads", property.Value.GetRawText()
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
            // a run that was saved without the setting had one head
            ofPairs Preset.quick (("heads", "none") :: pairs)
        with :? InputException as e ->
            raise (InputException($"{subject}, {e.Message}", e))
