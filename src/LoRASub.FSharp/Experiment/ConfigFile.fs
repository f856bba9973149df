namespace LoRASub

open System
open System.Globalization
open System.Text.Json.Nodes

/// A setting's text and its source.
type SettingSource =
    {
        Name: string
        Value: string
        /// As "command line", "FILE, line 12 (classifier.kwargs.fc_lrate)", "preset cifar100 libcontinual" or "default".
        Source: string
    }

/// Whose names a configuration file uses.
[<RequireQualifiedAccess>]
type ConfigFormat =
    /// This program's settings, flat, in YAML or JSON.
    | Own
    /// LibContinual's YAML.
    | LibContinual
    /// The authors' JSON.
    | Official

/// Data and backbone of a published configuration, to be checked once they are read.
type Expectations =
    {
        /// The configuration file; empty if there is none.
        File: string
        Classes: int option
        Width: int option
        Heads: int option
    }

/// A configuration file, read.
type ConfigFile =
    {
        Path: string
        Format: ConfigFormat
        Settings: SettingSource list
        /// Where the file names seeds: those, and where it does.
        Seeds: (int64[] * string) option
        /// Keys of the file that have no effect here.
        Notes: string list
        Expected: Expectations
    }

/// Configuration files: this program's own, and the two published codes' as they are.
[<RequireQualifiedAccess>]
module ConfigFile =

    let private invariant = CultureInfo.InvariantCulture
    let private show (x: float) = x.ToString("R", invariant)

    let private listed (names: string seq) = String.Join(", ", names)

    let private words (text: string) : string list =
        text.Split([| ' '; '\n' |], StringSplitOptions.RemoveEmptyEntries)
        |> List.ofArray

    let private says name value source : SettingSource =
        {
            Name = name
            Value = value
            Source = source
        }

    // ------------------------------------------------------------------------------------------ data sets

    /// The same for ImageNet_R, imagenet-r and ImageNetR.
    let private spelling (name: string) =
        String.filter Char.IsLetterOrDigit name |> _.ToLowerInvariant()

    let internal refuseData subject name : 'T =
        Errors.reject
            subject
            $"must be one of {listed Datasets.names}"
            name
            (Errors.didYouMean Datasets.names (name.Trim '\''))

    // ------------------------------------------------------------------------------------------ reading a tree

    let private shortened = ConfigTree.cut 60

    /// A value under a key, and its place.
    type private Found =
        {
            Value: ConfigValue
            Source: string
        }

        member this.Refuse rule fix : 'T =
            let received =
                match this.Value with
                | Text text -> $"'{shortened text}'"
                | Nothing -> "nothing"
                | Items _ -> "a list"
                | Entries _ -> "a mapping"

            Errors.reject this.Source rule received fix

    /// A mapping of a file. The last of a repeated key counts.
    type private Section =
        {
            File: string
            /// classifier.kwargs., or empty at the top.
            Prefix: string
            Entries: (string * ConfigNode)[]
        }

        member this.Find(name: string) : Found option =
            this.Entries
            |> Array.tryFindBack (fun (key, _) -> key = name)
            |> Option.map (fun (_, node) ->
                {
                    Value = node.Value
                    Source = $"{this.File}, line {node.Line} ({this.Prefix}{name})"
                })

        member this.Names = this.Entries |> Array.map fst |> Array.distinct |> List.ofArray

    let private section (s: Section) (name: string) : Section =
        let entries =
            match s.Find name with
            | None -> [||]
            | Some found ->
                match found.Value with
                | Entries entries -> entries
                | Nothing -> [||]
                | _ -> found.Refuse "must be a mapping" ""

        { s with
            Prefix = $"{s.Prefix}{name}."
            Entries = entries
        }

    let private text (found: Found) : string =
        match found.Value with
        | Text text -> text
        | _ -> found.Refuse "must be a single value" ""

    let private number (found: Found) : float =
        match Double.TryParse(text found, NumberStyles.Float, invariant) with
        | true, x when Double.IsFinite x -> x
        | _ -> found.Refuse "must be a number" ""

    let private wholeFrom (least: int) (found: Found) : int =
        match Int32.TryParse(text found, NumberStyles.AllowLeadingSign, invariant) with
        | true, n when n >= least -> n
        | _ -> found.Refuse $"must be a whole number of at least {least}" ""

    let private count = wholeFrom 1

    /// The single values of a list.
    let private items (found: Found) : string[] =
        match found.Value with
        | Items items when items.Length > 0 ->
            items |> Array.map (fun item -> text { found with Value = item.Value })
        | _ -> found.Refuse "must be a list of single values" ""

    let private assign name (found: Found option) : SettingSource list =
        found |> Option.map (fun f -> says name (text f) f.Source) |> Option.toList

    let private assignPair name (found: Found option) : SettingSource list =
        found
        |> Option.map (fun f ->
            match items f with
            | [| low; high |] -> says name $"{low},{high}" f.Source
            | _ -> f.Refuse "must be a list of two numbers" "")
        |> Option.toList

    /// Rejects another text than the only possible ones, where the key is given.
    let private mustBe (possible: string list) why (found: Found option) =
        found
        |> Option.iter (fun f ->
            if not (List.contains (text f) possible) then
                f.Refuse $"""must be {String.Join(" or ", possible)}{why}""" "")

    /// Rejects a key that is not among the known ones.
    let private only (known: string list) (s: Section) =
        for name in s.Names do
            if not (List.contains name known) then
                let line = (s.Find name).Value.Source

                Errors.reject
                    line
                    $"must be one of {listed known}"
                    $"'{shortened name}'"
                    (Errors.didYouMean known (shortened name))

    let private noExemplars (found: Found option) =
        found
        |> Option.iter (fun f ->
            if number f > 0.0 then
                f.Refuse "must be 0, as this method keeps no images of earlier tasks" "set it to 0")

    let private parseSeeds (refuse: string -> unit) (texts: string[]) : int64[] =
        let seeds =
            texts
            |> Array.map (fun text ->
                match Int64.TryParse(text.Trim(), NumberStyles.AllowLeadingSign, invariant) with
                | true, seed -> seed
                | _ ->
                    refuse "must be whole numbers of at most 64 bits"
                    0L)

        if seeds.Length <> (Array.distinct seeds).Length then
            refuse "must name each seed once"

        seeds

    /// Seeds in a file: one, or a list.
    let private seedsOf (found: Found) : int64[] * string =
        let texts =
            match found.Value with
            | Items _ -> items found
            | _ -> [| text found |]

        parseSeeds (fun rule -> Errors.reject found.Source rule $"'{shortened (listed texts)}'" "") texts,
        found.Source

    /// Seeds on the command line: `1,2,3`. Rejects what is not a number, and a repeated one.
    let seeds (subject: string) (text: string) : int64[] =
        text.Split ','
        |> parseSeeds (fun rule -> Errors.reject subject rule $"'{shortened text}'" "write 1,2,3")

    // ------------------------------------------------------------------------------------------ published protocols

    let private assignData (found: Found) : SettingSource list =
        let name = text found

        match Datasets.names |> List.tryFind (fun known -> spelling known = spelling name) with
        | Some known -> [ says "data" known found.Source ]
        | None -> refuseData found.Source $"'{shortened name}'"

    let private needed (s: Section) name rule : Found =
        match s.Find name with
        | Some found -> found
        | None -> Errors.reject $"{s.File}, {s.Prefix}{name}" rule "no such key" ""

    /// Tasks and classes: those of the first task, of each later one, of all, and the number of tasks.
    let private tasks (s: Section) first later total number : SettingSource list * int option =
        let first = needed s first "must give the classes of the first task"
        let later = needed s later "must give the classes of a later task"
        let given = s.Find number
        let total = Option.bind s.Find total
        let initial, increment = int64 (count first), int64 (count later)

        let tasks, source =
            match given, total with
            | Some given, _ -> int64 (count given), given.Source
            | None, Some total when (int64 (count total) - initial) % increment = 0L ->
                1L + (int64 (count total) - initial) / increment, total.Source
            | None, Some total -> total.Refuse $"must be {initial} and a multiple of {increment}" ""
            | None, None ->
                Errors.reject $"{s.File}, {number}" "must give the number of tasks" "no such key" ""

        let classes = initial + increment * (tasks - 1L)

        if classes > 1_000_000L || tasks < 1L then
            Errors.reject source "must give 1 to 1000000 classes in all" $"{classes}" ""

        total
        |> Option.iter (fun total ->
            if int64 (count total) <> classes then
                total.Refuse
                    $"must be {classes}, {initial} in the first task and {increment} in each of {tasks - 1L} later ones"
                    "change it or the classes of the tasks")

        [
            says "tasks" (string tasks) source
            // left open where all tasks are equal, so that another number of tasks can be asked for
            if initial <> increment && tasks > 1L then
                says "initial-classes" (string initial) first.Source
        ],
        Some(int classes)

    /// The preset under a published file, whose own defaults are LibContinual's or the authors'.
    let private presetOf (variant: Variant) (data: SettingSource list) : RunSettings =
        snd (Preset.ofData data.Head.Value) variant

    /// Both codes take the later tasks' epochs where the first task's are not given.
    let private epochs (preset: RunSettings) (s: Section) first later : SettingSource list =
        let initial =
            match s.Find first with
            | None when preset.InitialEpochs.IsSome -> s.Find later
            | found -> found

        assign "epochs" (s.Find later) @ assign "initial-epochs" initial

    let private elsewhere (found: Found option) : string list =
        found
        |> Option.map (fun f ->
            $"{f.Source}: '{shortened (text f)}' is a folder on the machine of the file's author; set yours with --data-path")
        |> Option.toList

    /// One note with all keys without effect.
    let private unused (file: string) (ignored: string list) (used: string list) (names: string list) =
        let stray, known = names |> List.partition (fun n -> not (List.contains n ignored))

        let stray =
            List.truncate 20 stray
            |> List.map shortened
            |> List.map (fun n ->
                match Errors.nearest used n with
                | Some near -> $"{n} (unknown; the nearest known key is {near})"
                | None -> $"{n} (unknown)")

        match known @ stray with
        | [] -> []
        | all -> [ $"{file}: not used by this method: {listed all}" ]

    let private except (used: string list) (s: Section) =
        s.Names |> List.filter (fun n -> not (List.contains n used))

    // ------------------------------------------------------------------------------------------ LibContinual

    let private transforms =
        [
            "RandomResizedCrop", [ "size"; "scale"; "ratio" ]
            "RandomHorizontalFlip", [ "p" ]
            "Resize", [ "size" ]
            "CenterCrop", [ "size" ]
            "ToTensor", []
            "Normalize", [ "mean"; "std" ]
        ]

    /// The steps of train_trfms or test_trfms.
    let private steps (root: Section) (name: string) : (Found * (string * Section) list) option =
        root.Find name
        |> Option.map (fun found ->
            let step (node: ConfigNode) =
                match node.Value with
                | Entries [| kind, arguments |] ->
                    let here =
                        {
                            File = root.File
                            Prefix = $"{name}."
                            Entries = [| kind, arguments |]
                        }

                    only (List.map fst transforms) here
                    let arguments = section here kind
                    let known = List.find (fst >> (=) kind) transforms |> snd

                    if known.IsEmpty then
                        for argument in arguments.Names do
                            (arguments.Find argument).Value.Refuse $"{kind} takes no argument" ""
                    else
                        only known arguments

                    mustBe [ "0.5" ] ", as flips are even" (arguments.Find "p")
                    kind, arguments
                | _ -> found.Refuse "each step must be a mapping of one name to its arguments" ""

            match found.Value with
            | Items items -> found, items |> Array.map step |> List.ofArray
            | Nothing -> found, []
            | _ -> found.Refuse "must be a list of steps" "")

    let private side (arguments: Section) : (int * Found) option =
        arguments.Find "size"
        |> Option.map (fun found ->
            match found.Value with
            | Items _ ->
                match items found |> Array.distinct with
                | [| one |] -> count { found with Value = Text one }, found
                | _ -> found.Refuse "must be square" ""
            | _ -> count found, found)

    /// Black and white after Normalize.
    let private inputRange (arguments: Section) : string * string =
        let one name (fallback: float) =
            match arguments.Find name with
            | None -> fallback, $"{arguments.File} ({arguments.Prefix}{name})"
            | Some found ->
                let numbers =
                    items found |> Array.map (fun t -> number { found with Value = Text t })

                if (Array.distinct numbers).Length > 1 then
                    Errors.reject
                        found.Source
                        "must be the same for every channel: only one black and one white level (input-range) is supported"
                        (shortened (listed (Array.map show numbers)))
                        "write one number three times"

                numbers[0], found.Source

        let mean, source = one "mean" 0.0
        let deviation, place = one "std" 1.0

        if not (deviation > 0.0) then
            Errors.reject place "must be above 0" (show deviation) ""

        $"{show ((0.0 - mean) / deviation)},{show ((1.0 - mean) / deviation)}", source

    /// The settings of both lists of transforms and image_size, over a preset.
    let private images (preset: RunSettings) (root: Section) : SettingSource list =
        let train, test = steps root "train_trfms", steps root "test_trfms"

        let geometric (all: (string * Section) list) =
            all |> List.filter (fun (kind, _) -> kind <> "ToTensor" && kind <> "Normalize")

        let refuse (found: Found) rule (all: (string * Section) list) : 'T =
            Errors.reject
                found.Source
                rule
                (if all.IsEmpty then
                     "none"
                 else
                     all |> List.map fst |> listed |> shortened)
                ""

        // each with the sizes that must be the network's
        let augment, trainSizes =
            match train with
            | None -> [], []
            | Some(found, all) ->
                let say text = says "augment" text found.Source

                match geometric all with
                | [ "RandomResizedCrop", crop; "RandomHorizontalFlip", _ ] ->
                    say "crop-flip" :: assignPair "crop-scale" (crop.Find "scale")
                    @ assignPair "crop-ratio" (crop.Find "ratio"),
                    [ side crop ]
                | [ "Resize", resize; "RandomHorizontalFlip", _ ]
                | [ "RandomHorizontalFlip", _; "Resize", resize ] -> [ say "flip" ], [ side resize ]
                | [ "RandomHorizontalFlip", _ ] -> [ say "flip" ], []
                | [ "Resize", resize ] -> [ say "none" ], [ side resize ]
                | [] -> [ say "none" ], []
                | other ->
                    refuse
                        found
                        "must be RandomResizedCrop and RandomHorizontalFlip, Resize and RandomHorizontalFlip, or Resize, then ToTensor and Normalize"
                        other

        let testResize, testSizes =
            match test with
            | None -> [], []
            | Some(found, all) ->
                match geometric all with
                | [] -> [], []
                | [ "Resize", resize ] ->
                    // takes the place of a preset's larger one
                    (if preset.TestResize.IsSome then
                         assign "test-resize" (resize.Find "size")
                     else
                         []),
                    [ side resize ]
                | [ "Resize", resize; "CenterCrop", crop ] ->
                    assign "test-resize" (resize.Find "size"), [ side crop ]
                | other ->
                    refuse found "must be Resize, or Resize and CenterCrop, then ToTensor and Normalize" other

        let sizes =
            (root.Find "image_size" |> Option.map (fun f -> count f, f)) :: trainSizes
            @ testSizes
            |> List.choose id

        let imageSize =
            match sizes with
            | [] -> []
            | (size, first) :: others ->
                for other, found in others do
                    if other <> size then
                        found.Refuse
                            $"must be {size}, the size of {first.Source}"
                            "the network has one size of images"

                [ says "image-size" (string size) first.Source ]

        let ranges =
            [ train; test ]
            |> List.choose id
            |> List.collect snd
            |> List.filter (fst >> (=) "Normalize")
            |> List.map (snd >> inputRange)

        let range =
            match ranges with
            | [] -> []
            | (range, source) :: others ->
                for other, place in others do
                    if other <> range then
                        Errors.reject
                            place
                            $"must give the range of {source}, {range}"
                            other
                            "training and test images share one range"

                [ says "input-range" range source ]

        augment @ testResize @ imageSize @ range

    let private libContinualKeys =
        words
            "dataset data_root init_cls_num inc_cls_num total_cls_num task_num image_size
             init_epoch epoch batch_size setting train_trfms test_trfms optimizer backbone
             classifier buffer seed"

    let private libContinualIgnored =
        words
            "val_per_epoch testing_times testing_per_task lr_scheduler n_gpu device_ids
             deterministic num_workers workers pin_memory save_path log_level log_interval
             log_name tag stage warmup task_counts buffer.name buffer.kwargs"

    let private classifierKeys =
        words "init_cls_num inc_cls_num task_num embd_dim fc_lrate margin_inter lambada"

    let private libContinual (root: Section) : ConfigFile =
        let classifier, optimizer, backbone =
            section root "classifier", section root "optimizer", section root "backbone"

        let method, adam, network =
            section classifier "kwargs", section optimizer "kwargs", section backbone "kwargs"

        let buffer = section root "buffer"

        root.Find "includes"
        |> Option.iter (fun f ->
            f.Refuse "must be a whole configuration in one file" "write the included keys into it")

        needed classifier "name" "must name the method, LoRAsub_DRS"
        |> Some
        |> mustBe [ "LoRAsub_DRS" ] ", the method of this program"

        only classifierKeys method
        mustBe [ "Adam" ] ", the optimizer of this method" (optimizer.Find "name")
        only [ "lr"; "weight_decay"; "betas"; "eps"; "amsgrad" ] adam
        mustBe [ "vit_pt_imnet" ] ", a plain Vision Transformer" (backbone.Find "name")
        mustBe [ "MultiHeadAttention_LoRA_Sub" ] "" (network.Find "attn_layer")
        mustBe [ "true" ] ", as the backbone is never trained" (network.Find "pretrained")
        mustBe [ "task-agnostic" ] ", as prediction is over all classes seen" (root.Find "setting")

        for s in [ root; buffer; section buffer "kwargs" ] do
            for name in [ "buffer_size"; "memory_size"; "memory_per_class" ] do
                noExemplars (s.Find name)

        // given twice in published files
        for name in [ "init_cls_num"; "inc_cls_num"; "task_num" ] do
            match root.Find name, method.Find name with
            | Some outer, Some inner when text outer <> text inner ->
                inner.Refuse $"must be {text outer}, as in {outer.Source}" ""
            | _ -> ()

        let data = assignData (needed root "dataset" "must name the data set")
        let preset = presetOf Variant.LibContinual data

        let protocol, classes =
            tasks root "init_cls_num" "inc_cls_num" (Some "total_cls_num") "task_num"

        let betas =
            match assignPair "betas" (adam.Find "betas") with
            | [ pair ] ->
                let values = pair.Value.Split ','

                [
                    for i, name in [ 0, "adam-beta1"; 1, "adam-beta2" ] do
                        says name values[i] pair.Source
                ]
            | _ -> []

        let stray =
            [
                except libContinualKeys root
                except [ "name"; "kwargs" ] optimizer
                |> List.map (fun n -> optimizer.Prefix + n)
                except [ "name"; "kwargs" ] classifier
                |> List.map (fun n -> classifier.Prefix + n)
                except [ "name"; "kwargs" ] backbone |> List.map (fun n -> backbone.Prefix + n)
                except [ "model_name"; "lora_rank"; "attn_layer"; "pretrained" ] network
                |> List.map (fun n -> network.Prefix + n)
                buffer.Names |> List.map (fun n -> buffer.Prefix + n)
            ]
            |> List.concat

        {
            Path = root.File
            Format = ConfigFormat.LibContinual
            Settings =
                [
                    says "variant" "libcontinual" $"{root.File} (LibContinual's format)"
                    says "seed" "1993" "LibContinual's default"
                    yield! data
                    yield! assign "data-path" (root.Find "data_root")
                    yield! protocol
                    yield! epochs preset root "init_epoch" "epoch"
                    yield! assign "batch" (root.Find "batch_size")
                    yield! images preset root
                    yield! assign "lr" (adam.Find "lr")
                    yield! assign "weight-decay" (adam.Find "weight_decay")
                    yield! betas
                    yield! assign "adam-epsilon" (adam.Find "eps")
                    yield! assign "amsgrad" (adam.Find "amsgrad")
                    yield! assign "rank" (network.Find "lora_rank")
                    yield! assign "head-lr" (method.Find "fc_lrate")
                    yield! assign "margin" (method.Find "margin_inter")
                    yield! assign "triplet-weight" (method.Find "lambada")
                ]
            Seeds = root.Find "seed" |> Option.map seedsOf
            Notes =
                [
                    yield! elsewhere (root.Find "data_root")
                    yield!
                        network.Find "model_name"
                        |> Option.map (fun f ->
                            $"{f.Source}: the weights of {shortened (text f)} are given with --backbone FILE")
                        |> Option.toList
                    yield! unused root.File libContinualIgnored libContinualKeys stray
                ]
            Expected =
                {
                    File = root.File
                    Classes = classes
                    Width = method.Find "embd_dim" |> Option.map count
                    Heads = None
                }
        }

    // ------------------------------------------------------------------------------------------ the authors' code

    let private officialKeys =
        words
            "dataset data_path memory_size memory_per_class shuffle seed init_cls increment
             total_sessions model_name net_type embd_dim num_heads EPSILON init_epoch optim
             init_lr init_weight_decay epochs fc_lrate lrate batch_size weight_decay rank
             margin_inter lambada"

    let private officialIgnored =
        words
            "prefix fixed_memory init_lr_decay lrate_decay init_milestones milestones num_workers
             device"

    let private official (root: Section) : ConfigFile =
        mustBe [ "lorasub_drs" ] ", the method of this program" (root.Find "model_name")
        mustBe [ "sip" ] ", a plain Vision Transformer" (root.Find "net_type")
        mustBe [ "Adam" ] ", the optimizer of this method" (root.Find "optim")
        noExemplars (root.Find "memory_size")
        noExemplars (root.Find "memory_per_class")

        root.Find "EPSILON"
        |> Option.iter (fun f ->
            if number f <> 1e-8 then
                f.Refuse "must be 1e-8, which prediction adds to the length of a feature" "")

        // one value serves every task here
        let same first later =
            match root.Find first, root.Find later with
            | Some a, Some b when number a <> number b ->
                a.Refuse $"must be {text b}, as {later}: one value serves every task" ""
            | a, b -> Option.orElse a b

        let data = assignData (needed root "dataset" "must name the data set")
        let preset = presetOf Variant.Official data
        let protocol, classes = tasks root "init_cls" "increment" None "total_sessions"
        let seeds = root.Find "seed" |> Option.map seedsOf

        let classOrder =
            root.Find "shuffle"
            |> Option.map (fun f ->
                let order =
                    match text f, seeds with
                    | "false", _ -> "natural"
                    | "true", Some([| 1993L |], _) -> "seed1993"
                    | "true", _ ->
                        f.Refuse
                            "must be false, or true with the one seed 1993"
                            "set it to false, and give --class-order FILE for another order"
                    | _ -> f.Refuse "must be true or false" ""

                says "class-order" order f.Source)

        {
            Path = root.File
            Format = ConfigFormat.Official
            Settings =
                [
                    says "variant" "official" $"{root.File} (the authors' format)"
                    yield! data
                    yield! assign "data-path" (root.Find "data_path")
                    yield! protocol
                    yield! Option.toList classOrder
                    yield! epochs preset root "init_epoch" "epochs"
                    yield! assign "batch" (root.Find "batch_size")
                    yield! assign "rank" (root.Find "rank")
                    yield! assign "lr" (same "init_lr" "lrate")
                    yield! assign "head-lr" (root.Find "fc_lrate")
                    yield! assign "margin" (root.Find "margin_inter")
                    yield! assign "triplet-weight" (root.Find "lambada")
                    yield! assign "weight-decay" (same "init_weight_decay" "weight_decay")
                ]
            Seeds = seeds
            Notes =
                [
                    yield! elsewhere (root.Find "data_path")
                    yield! unused root.File officialIgnored officialKeys (except officialKeys root)
                ]
            Expected =
                {
                    File = root.File
                    Classes = classes
                    Width = root.Find "embd_dim" |> Option.map count
                    Heads = root.Find "num_heads" |> Option.map count
                }
        }

    // ------------------------------------------------------------------------------------------ this program's own

    let private ownKeys =
        List.map (fun (s: Setting) -> s.Name) Settings.all @ [ "seeds" ]

    /// Settings of two numbers, which may also be written as a list.
    let private pairs = [ "norm-epsilon"; "input-range"; "crop-scale"; "crop-ratio" ]

    let internal nothingExpected =
        {
            File = ""
            Classes = None
            Width = None
            Heads = None
        }

    let private own (root: Section) : ConfigFile =
        let place (node: ConfigNode) = $"{root.File}, line {node.Line}"

        root.Entries
        |> Array.groupBy fst
        |> Array.iter (fun (name, all) ->
            let _, node = Array.last all

            if not (List.contains name ownKeys) then
                Errors.reject
                    (place node)
                    "must be a setting of docs/configuration.md"
                    $"'{shortened name}'"
                    (Errors.didYouMean ownKeys (shortened name))

            if all.Length > 1 then
                let lines = all |> Array.map (fun (_, node) -> string node.Line) |> listed

                Errors.reject
                    (place node)
                    $"{name} must be given once"
                    $"lines {shortened lines}"
                    "remove one of them")

        let found (name, node: ConfigNode) =
            {
                Value = node.Value
                Source = $"{place node} ({name})"
            }

        let seeds, rest = root.Entries |> Array.partition (fun (name, _) -> name = "seeds")

        if seeds.Length = 1 && Array.exists (fun (name, _) -> name = "seed") rest then
            (found seeds[0]).Refuse "cannot be combined with seed" "remove one of them"

        let setting (name, node: ConfigNode) =
            let found = found (name, node)

            let value =
                match node.Value with
                | Items _ when List.contains name pairs -> String.Join(",", items found)
                | Nothing -> found.Refuse "must have a value" "remove the key for the default"
                | Items _ when name = "seed" -> found.Refuse "must be one number" "write seeds for several"
                | _ -> text found

            says name value (place node)

        {
            Path = root.File
            Format = ConfigFormat.Own
            Settings = rest |> Array.map setting |> List.ofArray
            Seeds =
                seeds
                |> Array.tryHead
                |> Option.map (found >> seedsOf)
                |> Option.map (fun (s, _) -> s, place (snd seeds[0]))
            Notes = []
            Expected =
                { nothingExpected with
                    File = root.File
                }
        }

    // ------------------------------------------------------------------------------------------ a file

    let private marks =
        [
            ConfigFormat.LibContinual,
            [ "classifier"; "init_cls_num"; "inc_cls_num"; "total_cls_num"; "task_num" ]
            ConfigFormat.Official,
            [ "init_cls"; "increment"; "total_sessions"; "init_lr"; "lrate"; "model_name" ]
        ]

    /// The format with most of its own keys, this program's where no published one has any.
    let private formatOf (root: Section) : ConfigFormat =
        let names = root.Names

        let hits keys =
            names |> List.filter (fun n -> List.contains n keys) |> List.length

        match marks |> List.maxBy (snd >> hits) with
        | format, keys when hits keys > 0 -> format
        | _ when hits ownKeys > 0 -> ConfigFormat.Own
        | _ ->
            let known = ownKeys @ List.collect snd marks
            let name = shortened names.Head

            Errors.reject
                root.File
                "must hold settings of docs/configuration.md, or a configuration of LibContinual or of the method's authors"
                $"'{name}'"
                (Errors.didYouMean known name)

    /// Rejects a value that no run can have, and names its place.
    let private checkSetting (s: SettingSource) =
        if s.Value.Length > 4096 then
            Errors.reject s.Source "must have at most 4096 characters" $"{s.Value.Length}" ""

        if s.Name = "data" && not (List.contains s.Value Datasets.names) then
            refuseData s.Source $"'{shortened s.Value}'"

        try
            Preset.quick Variant.Official |> Settings.set s.Name s.Value |> Settings.check
        with :? InputException as e ->
            let advised =
                e.Message.IndexOf(';', e.Message.IndexOf("; found", StringComparison.Ordinal) + 1) > 0

            let fix = if advised then "" else "; remove it for the default"
            raise (InputException($"{s.Source}: {e.Message}{fix}", e))

    /// The configuration in a file's bytes; `path` is the name that errors and sources use. Rejects what is no
    /// configuration, unknown or nested settings, and values of a wrong kind or out of range.
    let parse (path: string) (bytes: byte[]) : ConfigFile =
        match (ConfigTree.parse path bytes).Value with
        | Entries entries when entries.Length > 0 ->
            let root =
                {
                    File = path
                    Prefix = ""
                    Entries = entries
                }

            let file =
                match formatOf root with
                | ConfigFormat.Own -> own root
                | ConfigFormat.LibContinual -> libContinual root
                | ConfigFormat.Official -> official root

            List.iter checkSetting file.Settings
            file
        | _ -> Errors.reject path "must hold a mapping of settings" "none" "see docs/configuration.md"

    /// Reads a configuration file. Rejects as `parse`, and what is not a file of at most 1 MiB.
    let read (path: string) : ConfigFile = parse path (ConfigTree.bytes path)
