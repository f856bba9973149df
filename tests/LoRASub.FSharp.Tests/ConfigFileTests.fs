module LoRASub.Tests.ConfigFileTests

open System
open System.IO
open System.Text
open LoRASub.Core
open LoRASub.Settings
open LoRASub.Report
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

/// In the manner of LibContinual's files: repeated keys, anchors, trailing blanks, framework keys.
let libContinual =
    """# ten tasks of tiny-imagenet

dataset: &dataset cub200
image_size: &image_size 64
first: &first 20
dataset: &dataset tiny-imagenet
data_root: /elsewhere/tiny
init_cls_num: *first
inc_cls_num: &inc 18
total_cls_num: 200
task_num: &task_num 11
epoch: 7
init_epoch: 9
val_per_epoch: 7
batch_size: 48
setting: task-agnostic  
testing_times: 1
n_gpu: 1
train_trfms:
  - RandomResizedCrop: {size: *image_size, scale: [0.2, 1.0], ratio: [0.5, 2.]}
  - RandomHorizontalFlip: {}
  - ToTensor: {}
  - Normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
test_trfms: 
  - Resize:
      size: 72
  - CenterCrop:
      size: *image_size
  - ToTensor:
  - Normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
optimizer:
  name: Adam
  kwargs: {lr: 3e-4, weight_decay: 0.01, betas: [0.8, 0.99], eps: 1e-7, amsgrad: True}
lr_scheduler:
  name: CosineSchedule
  kwargs: {K: 3}
backbone:
  name: vit_pt_imnet
  kwargs:
    pretrained: True
    model_name : some_vit
    attn_layer: MultiHeadAttention_LoRA_Sub
    lora_rank: 6
classifier:
  name: LoRAsub_DRS
  kwargs:
    init_cls_num: *first
    inc_cls_num: *inc
    task_num: *task_num
    embd_dim: 192
    fc_lrate: 0.003
    margin_inter: 1.5
    lambada: 0.1
    """

/// In the manner of the authors' files.
let official =
    """{
  "prefix": "try", "dataset": "ImageNet_A", "data_path": "data/a",
  "memory_size": 0, "memory_per_class": 0, "fixed_memory": true, "shuffle": false,
  "seed": [3, 4],
  "init_cls": 20, "increment": 10, "total_sessions" : 19,
  "model_name": "lorasub_drs", "net_type": "sip", "embd_dim" : 768, "num_heads": 12, "EPSILON" : 1e-8,
  "init_epoch" : 6, "optim" : "Adam", "init_lr" : 0.0004, "init_lr_decay" : 0.1, "init_weight_decay" : 0.0,
  "epochs" : 5, "fc_lrate" : 0.004, "lrate" : 0.0004, "lrate_decay" : 0.1, "batch_size" : 32,
  "weight_decay" : 0.0, "rank": 4, "margin_inter": 1.25, "lambada": 0.3, "num_workers" : 16
}"""

let parse (name: string) (text: string) =
    ConfigFile.parse name (Encoding.UTF8.GetBytes text)

/// A text with one part replaced, which it must have.
let edit (old: string) (changed: string) (text: string) =
    Expect.stringContains text old "the part to change"
    text.Replace(old, changed)

let private said (file: ConfigFile) =
    file.Settings |> List.map (fun s -> s.Name, s.Value, s.Source)

let private value name (file: ConfigFile) =
    file.Settings |> List.tryFindBack (fun s -> s.Name = name) |> Option.map _.Value

let private lib changes =
    List.fold (fun text (old, changed) -> edit old changed text) libContinual changes
    |> parse "lib.yaml"

let private off changes =
    List.fold (fun text (old, changed) -> edit old changed text) official changes
    |> parse "off.json"

let private own (text: string) = parse "own.yaml" text

let examples =
    let rec find folder =
        let here = Path.Combine(folder, "docs", "examples")

        if Directory.Exists here then
            here
        else
            find (Path.GetDirectoryName(folder: string))

    find AppContext.BaseDirectory

[<Tests>]
let tests =
    testList
        "ConfigFile"
        [
            testCase "every key of LibContinual's files becomes a setting" (fun () ->
                let file = lib []
                Expect.equal file.Format ConfigFormat.LibContinual "format"
                let at line key = $"lib.yaml, line {line} ({key})"

                Expect.equal
                    (said file)
                    [
                        "variant", "libcontinual", "lib.yaml (LibContinual's format)"
                        "seed", "1993", "LibContinual's default"
                        "data", "tiny-imagenet", at 6 "dataset"
                        "data-path", "/elsewhere/tiny", at 7 "data_root"
                        "tasks", "11", at 11 "task_num"
                        "initial-classes", "20", at 8 "init_cls_num"
                        "epochs", "7", at 12 "epoch"
                        "initial-epochs", "9", at 13 "init_epoch"
                        "batch", "48", at 15 "batch_size"
                        "augment", "crop-flip", at 19 "train_trfms"
                        "crop-scale", "0.2,1.0", at 20 "train_trfms.RandomResizedCrop.scale"
                        "crop-ratio", "0.5,2.", at 20 "train_trfms.RandomResizedCrop.ratio"
                        "test-resize", "72", at 26 "test_trfms.Resize.size"
                        "image-size", "64", at 4 "image_size"
                        "input-range", "-1,1", at 23 "train_trfms.Normalize.mean"
                        "lr", "3e-4", at 33 "optimizer.kwargs.lr"
                        "weight-decay", "0.01", at 33 "optimizer.kwargs.weight_decay"
                        "adam-beta1", "0.8", at 33 "optimizer.kwargs.betas"
                        "adam-beta2", "0.99", at 33 "optimizer.kwargs.betas"
                        "adam-epsilon", "1e-7", at 33 "optimizer.kwargs.eps"
                        "amsgrad", "true", at 33 "optimizer.kwargs.amsgrad"
                        "rank", "6", at 43 "backbone.kwargs.lora_rank"
                        "head-lr", "0.003", at 51 "classifier.kwargs.fc_lrate"
                        "margin", "1.5", at 52 "classifier.kwargs.margin_inter"
                        "triplet-weight", "0.1", at 53 "classifier.kwargs.lambada"
                    ]
                    "settings"

                Expect.equal
                    file.Expected
                    {
                        File = "lib.yaml"
                        Classes = Some 200
                        Width = Some 192
                        Heads = None
                    }
                    "expectations"

                Expect.isNone file.Seeds "seeds"

                Expect.equal
                    file.Notes
                    [
                        "lib.yaml, line 7 (data_root): '/elsewhere/tiny' is a folder on the machine of the file's author; set yours with --data-path"
                        "lib.yaml, line 41 (backbone.kwargs.model_name): the weights of some_vit are given with --backbone FILE"
                        "lib.yaml: not used by this method: val_per_epoch, testing_times, n_gpu, lr_scheduler, first (unknown)"
                    ]
                    "notes")

            testCase "every key of the authors' files becomes a setting" (fun () ->
                let file = off []
                Expect.equal file.Format ConfigFormat.Official "format"
                let at line key = $"off.json, line {line} ({key})"

                Expect.equal
                    (said file)
                    [
                        "variant", "official", "off.json (the authors' format)"
                        "data", "imagenet-a", at 2 "dataset"
                        "data-path", "data/a", at 2 "data_path"
                        "tasks", "19", at 5 "total_sessions"
                        "initial-classes", "20", at 5 "init_cls"
                        "class-order", "natural", at 3 "shuffle"
                        "epochs", "5", at 8 "epochs"
                        "initial-epochs", "6", at 7 "init_epoch"
                        "batch", "32", at 8 "batch_size"
                        "rank", "4", at 9 "rank"
                        "lr", "0.0004", at 8 "lrate"
                        "head-lr", "0.004", at 8 "fc_lrate"
                        "margin", "1.25", at 9 "margin_inter"
                        "triplet-weight", "0.3", at 9 "lambada"
                        "weight-decay", "0.0", at 9 "weight_decay"
                    ]
                    "settings"

                Expect.equal
                    file.Expected
                    {
                        File = "off.json"
                        Classes = Some 200
                        Width = Some 768
                        Heads = Some 12
                    }
                    "expectations"

                Expect.equal file.Seeds (Some([| 3L; 4L |], at 4 "seed")) "seeds"

                Expect.equal
                    file.Notes
                    [
                        "off.json, line 2 (data_path): 'data/a' is a folder on the machine of the file's author; set yours with --data-path"
                        "off.json: not used by this method: prefix, fixed_memory, init_lr_decay, lrate_decay, num_workers"
                    ]
                    "notes")

            testCase "the format is seen in the keys, not in the name" (fun () ->
                Expect.equal (parse "x.json" libContinual).Format ConfigFormat.LibContinual "LibContinual"
                Expect.equal (parse "x.yaml" official).Format ConfigFormat.Official "official"
                Expect.equal (parse "x.json" "rank: 3").Format ConfigFormat.Own "own YAML"
                Expect.equal (parse "x.yaml" "{\"rank\": 3}").Format ConfigFormat.Own "own JSON")

            testCase "data sets under published spellings" (fun () ->
                for spelling, name in
                    [
                        "cifar100", "cifar100"
                        "CIFAR-100", "cifar100"
                        "ImageNet_R", "imagenet-r"
                        "TinyImageNet", "tiny-imagenet"
                        "CUB200", "cub200"
                    ] do
                    Expect.equal (value "data" (off [ "ImageNet_A", spelling ])) (Some name) spelling)

            testCase "equal tasks leave the first task's classes open" (fun () ->
                let equal =
                    lib
                        [
                            "&first 20", "&first 10"
                            "&inc 18", "&inc 10"
                            "&task_num 11", "&task_num 20"
                        ]

                Expect.equal
                    (value "tasks" equal, value "initial-classes" equal)
                    (Some "20", None)
                    "task_num"

                let one = off [ "\"total_sessions\" : 19", "\"total_sessions\" : 1" ]
                Expect.equal (value "tasks" one, value "initial-classes" one) (Some "1", None) "one task"
                Expect.equal one.Expected.Classes (Some 20) "its classes")

            testCase "without task_num the classes say how many tasks" (fun () ->
                let file = lib [ "task_num: &task_num 11\n", ""; "    task_num: *task_num\n", "" ]
                Expect.equal (value "tasks" file) (Some "11") "tasks")

            testCase "without the first task's epochs it takes the later tasks', not a preset's" (fun () ->
                let imageNetR =
                    lib [ "init_epoch: 9\n", ""; "&dataset tiny-imagenet", "imagenet-r" ]

                Expect.equal (value "initial-epochs" imageNetR) (Some "7") "over a preset's 40"
                let tiny = lib [ "init_epoch: 9\n", "" ]
                Expect.equal (value "initial-epochs" tiny) None "nothing to replace")

            for name, change, expected in
                [
                    "crops", [], [ "augment", Some "crop-flip"; "test-resize", Some "72" ]
                    "flips alone",
                    [
                        "RandomResizedCrop: {size: *image_size, scale: [0.2, 1.0], ratio: [0.5, 2.]}",
                        "Resize: {size: 64}"
                    ],
                    [ "augment", Some "flip"; "crop-scale", None ]
                    "flips first",
                    [
                        "  - RandomResizedCrop: {size: *image_size, scale: [0.2, 1.0], ratio: [0.5, 2.]}\n",
                        ""
                        "RandomHorizontalFlip: {}",
                        "RandomHorizontalFlip: {p: 0.5}\n  - Resize: {size: [64, 64]}"
                    ],
                    [ "augment", Some "flip" ]
                    "no augmentation",
                    [
                        "RandomResizedCrop: {size: *image_size, scale: [0.2, 1.0], ratio: [0.5, 2.]}",
                        "Resize: {size: 64}"
                        "  - RandomHorizontalFlip: {}\n", ""
                    ],
                    [ "augment", Some "none" ]
                    "a test image without centre crop",
                    [ "size: 72", "size: 64"; "  - CenterCrop:\n      size: *image_size\n", "" ],
                    [ "test-resize", None; "image-size", Some "64" ]
                    "a preset's centre crop taken back",
                    [
                        "&dataset tiny-imagenet", "imagenet-r"
                        "size: 72", "size: 64"
                        "  - CenterCrop:\n      size: *image_size\n", ""
                    ],
                    [ "test-resize", Some "64" ]
                    "the crop's size where the file has no image_size",
                    [ "image_size: &image_size 64", "side: &image_size 64" ],
                    [ "image-size", Some "64" ]
                    "Normalize left out",
                    [ "  - Normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\n", "" ],
                    [ "input-range", None ]
                    "a range above 1",
                    [
                        "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]",
                        "mean: [0, 0, 0], std: [0.25, 0.25, 0.25]"
                    ],
                    [ "input-range", Some "0,4" ]
                ] do
                testCase $"transforms: {name}" (fun () ->
                    let file = lib change

                    for setting, text in expected do
                        Expect.equal (value setting file) text setting)

            testCase "a buffer of no images is a note" (fun () ->
                let file =
                    lib [ "n_gpu: 1", "buffer: {name: LinearBuffer, kwargs: {buffer_size: 0}}" ]

                Expect.stringContains
                    (List.last file.Notes)
                    "lr_scheduler, buffer.name, buffer.kwargs"
                    "note")

            testCase "a file's seed is one or a list" (fun () ->
                let seeds text =
                    (off [ "[3, 4]", text ]).Seeds |> Option.map fst

                Expect.equal (seeds "[0]") (Some [| 0L |]) "list of one"
                Expect.equal (seeds "7") (Some [| 7L |]) "one"

                Expect.equal
                    ((lib [ "n_gpu: 1", "seed: 5" ]).Seeds |> Option.map fst)
                    (Some [| 5L |])
                    "LibContinual")

            testCase "shuffling by seed 1993 is the published order" (fun () ->
                let file = off [ "\"shuffle\": false", "\"shuffle\": true"; "[3, 4]", "[1993]" ]
                Expect.equal (value "class-order" file) (Some "seed1993") "order")

            for name, change, words in
                [
                    "another method",
                    ("LoRAsub_DRS", "InfLoRA"),
                    [ "line 45 (classifier.name)"; "LoRAsub_DRS"; "'InfLoRA'" ]
                    "no method",
                    ("  name: LoRAsub_DRS\n", ""),
                    [ "classifier.name"; "LoRAsub_DRS"; "no such key" ]
                    "another optimizer",
                    ("name: Adam", "name: SGD"),
                    [ "optimizer.name"; "must be Adam"; "'SGD'" ]
                    "an unknown option of Adam",
                    ("eps:", "epz:"),
                    [ "optimizer.kwargs.epz"; "did you mean eps?" ]
                    "another backbone", ("vit_pt_imnet", "resnet18"), [ "backbone.name"; "'resnet18'" ]
                    "another attention", ("MultiHeadAttention_LoRA_Sub", "MHA"), [ "attn_layer"; "'MHA'" ]
                    "a backbone to train",
                    ("pretrained: True", "pretrained: False"),
                    [ "pretrained"; "must be true" ]
                    "an unknown data set",
                    ("&dataset tiny-imagenet", "tiny-imagenets"),
                    [ "line 6 (dataset)"; "must be one of"; "did you mean tiny-imagenet?" ]
                    "no data set", ("dataset: &dataset tiny-imagenet\n", ""), []
                    "an unknown argument",
                    ("lambada", "lambda"),
                    [ "classifier.kwargs.lambda"; "must be one of"; "did you mean lambada?" ]
                    "task by task prediction", ("task-agnostic", "task-aware"), [ "setting"; "task-agnostic" ]
                    "a buffer",
                    ("n_gpu: 1", "buffer: {kwargs: {buffer_size: 2000}}"),
                    [ "buffer.kwargs.buffer_size"; "must be 0"; "'2000'"; "set it to 0" ]
                    "files within the file",
                    ("n_gpu: 1", "includes: [headers/data.yaml]"),
                    [ "includes"; "one file" ]
                    "classes that do not fit",
                    ("total_cls_num: 200", "total_cls_num: 100"),
                    [
                        "line 10 (total_cls_num)"
                        "must be 200, 20 in the first task and 18 in each of 10 later ones"
                        "'100'"
                    ]
                    "classes said twice",
                    ("    inc_cls_num: *inc", "    inc_cls_num: 10"),
                    [ "classifier.kwargs.inc_cls_num"; "must be 18" ]
                    "no classes of a task",
                    ("init_cls_num: *first\ninc", "inc"),
                    [ "init_cls_num"; "no such key" ]
                    "a text as a number",
                    ("task_num: &task_num 11", "task_num: &task_num eleven"),
                    [ "line 11 (task_num)"; "whole number"; "'eleven'" ]
                    "no task",
                    ("task_num: &task_num 11", "task_num: &task_num 0"),
                    [ "task_num"; "at least 1" ]
                    "too many classes",
                    ("task_num: &task_num 11", "task_num: &task_num 2000000000"),
                    [ "task_num"; "1000000 classes" ]
                    "a list as a number",
                    ("batch_size: 48", "batch_size: [48]"),
                    [ "line 15 (batch_size)"; "single value"; "a list" ]
                    "a value out of range",
                    ("batch_size: 48", "batch_size: 0"),
                    [
                        "lib.yaml, line 15 (batch_size): batch: must be at least 1; found 0; remove it"
                    ]
                    "a rate that is no number",
                    ("lr: 3e-4", "lr: fast"),
                    [ "optimizer.kwargs.lr"; "lr: must be a number"; "'fast'" ]
                    "a negative decay", ("0.01", "-0.01"), [ "optimizer.kwargs.weight_decay"; "weight-decay" ]
                    "one beta", ("[0.8, 0.99]", "[0.8]"), [ "betas"; "two numbers" ]
                    "a section that is none",
                    ("backbone:\n  name: vit_pt_imnet\n  kwargs:", "backbone: vit\nkwargs:"),
                    []
                    "an unknown transform",
                    ("RandomHorizontalFlip: {}", "ColorJitter: {}"),
                    [ "ColorJitter"; "must be one of RandomResizedCrop" ]
                    "an order of transforms that is not possible",
                    ("  - RandomHorizontalFlip: {}\n", ""),
                    [ "line 19 (train_trfms)"; "RandomResizedCrop and RandomHorizontalFlip" ]
                    "an unknown argument of a transform",
                    ("scale:", "scales:"),
                    [ "RandomResizedCrop.scales"; "did you mean scale?" ]
                    "flips of another share",
                    ("RandomHorizontalFlip: {}", "RandomHorizontalFlip: {p: 1}"),
                    [ "RandomHorizontalFlip.p"; "must be 0.5" ]
                    "images of two sizes",
                    ("{size: *image_size", "{size: 32"),
                    [ "RandomResizedCrop.size"; "must be 64"; "'32'" ]
                    "an oblong", ("{size: *image_size", "{size: [64, 32]"), [ "must be square" ]
                    "a step that is no mapping",
                    ("RandomHorizontalFlip: {}", "RandomHorizontalFlip"),
                    [ "train_trfms"; "one name to its arguments" ]
                    "channels of their own",
                    ("mean: [0.5, 0.5, 0.5]", "mean: [0.485, 0.456, 0.406]"),
                    [
                        "Normalize.mean"
                        "the same for every channel"
                        "input-range"
                        "0.485, 0.456, 0.406"
                    ]
                    "a deviation of 0",
                    ("std: [0.5, 0.5, 0.5]", "std: [0, 0, 0]"),
                    [ "Normalize.std"; "above 0" ]
                    "a seed that is none", ("n_gpu: 1", "seed: x"), [ "(seed)"; "whole numbers"; "'x'" ]
                ] do
                rejects $"LibContinual: {name}" ("lib.yaml" :: words) (fun () ->
                    let text =
                        match name with
                        | "no data set" ->
                            libContinual
                            |> edit "dataset: &dataset cub200\n" ""
                            |> edit (fst change) (snd change)
                        | "an unknown data set" -> libContinual |> edit (fst change) (snd change)
                        | _ -> edit (fst change) (snd change) libContinual

                    parse "lib.yaml" text |> ignore)

            rejects
                "LibContinual: ranges that differ between training and test"
                [ "test_trfms.Normalize.mean"; "-1,1"; "0,2" ]
                (fun () ->
                    let at = libContinual.LastIndexOf("mean: [0.5, 0.5, 0.5]", StringComparison.Ordinal)
                    let text = libContinual.Remove(at, 21).Insert(at, "mean: [0, 0, 0]")
                    parse "lib.yaml" text |> ignore)

            for name, change, words in
                [
                    "another method",
                    ("lorasub_drs", "ease"),
                    [ "line 6 (model_name)"; "lorasub_drs"; "'ease'" ]
                    "another network", ("\"sip\"", "\"resnet\""), [ "net_type"; "sip" ]
                    "another optimizer", ("\"Adam\"", "\"SGD\""), [ "optim"; "Adam"; "'SGD'" ]
                    "an unknown data set",
                    ("ImageNet_A", "ImageNet_B"),
                    [ "line 2 (dataset)"; "must be one of"; "'ImageNet_B'" ]
                    "memory",
                    ("\"memory_size\": 0", "\"memory_size\": 2000"),
                    [ "line 3 (memory_size)"; "must be 0"; "'2000'" ]
                    "memory per class",
                    ("\"memory_per_class\": 0", "\"memory_per_class\": 20"),
                    [ "memory_per_class"; "must be 0" ]
                    "memory that is no number",
                    ("\"memory_size\": 0", "\"memory_size\": true"),
                    [ "memory_size"; "must be a number" ]
                    "another epsilon", ("1e-8", "1e-6"), [ "EPSILON"; "must be 1e-8" ]
                    "a rate of its own for the first task",
                    ("\"init_lr\" : 0.0004", "\"init_lr\" : 0.01"),
                    [ "init_lr"; "must be 0.0004, as lrate" ]
                    "a decay of its own for the first task",
                    ("\"init_weight_decay\" : 0.0", "\"init_weight_decay\" : 0.1"),
                    [ "init_weight_decay"; "must be 0.0" ]
                    "shuffling by another seed",
                    ("\"shuffle\": false", "\"shuffle\": true"),
                    [ "shuffle"; "must be false"; "--class-order" ]
                    "shuffling that is no truth value",
                    ("\"shuffle\": false", "\"shuffle\": 3"),
                    [ "shuffle"; "true or false" ]
                    "a seed twice", ("[3, 4]", "[3, 3]"), [ "line 4 (seed)"; "each seed once"; "3, 3" ]
                    "no seed", ("[3, 4]", "[]"), [ "seed"; "a list" ]
                    "no sessions",
                    (", \"total_sessions\" : 19", ""),
                    [ "off.json, total_sessions"; "no such key" ]
                    "a mapping as a value",
                    ("\"rank\": 4", "\"rank\": {\"x\": 4}"),
                    [ "line 9 (rank)"; "single value"; "a mapping" ]
                    "null", ("\"rank\": 4", "\"rank\": null"), [ "line 9 (rank)"; "single value"; "nothing" ]
                    "a fraction of a rank",
                    ("\"rank\": 4", "\"rank\": 4.5"),
                    [ "line 9 (rank): rank: must be a whole number; found '4.5'" ]
                ] do
                rejects $"official: {name}" ("off.json" :: words) (fun () -> off [ change ] |> ignore)

            testCase "own settings, lists for ranges, and seeds" (fun () ->
                let file =
                    own
                        "rank: 3\ninput-range: [-1, 1]\ncrop-scale: 0.5,1\nseeds: [1, 2]\ndata-path: 007\nreference: [a, b]"

                Expect.equal file.Format ConfigFormat.Own "format"

                Expect.equal
                    (said file)
                    [
                        "rank", "3", "own.yaml, line 1"
                        "input-range", "-1,1", "own.yaml, line 2"
                        "crop-scale", "0.5,1", "own.yaml, line 3"
                        "data-path", "007", "own.yaml, line 5"
                        "reference", "a,b", "own.yaml, line 6"
                    ]
                    "settings"

                Expect.equal file.Seeds (Some([| 1L; 2L |], "own.yaml, line 4")) "seeds"
                Expect.isEmpty file.Notes "notes")

            for name, text, words in
                [
                    "an unknown setting",
                    "rank: 3\nepoch: 5",
                    [ "own.yaml, line 2"; "'epoch'"; "did you mean epochs?" ]
                    "a repeated setting",
                    "rank: 3\nlr: 1\nrank: 3",
                    [ "line 3"; "rank must be given once"; "lines 1, 3" ]
                    "a nested value", "rank:\n  low: 3", [ "line 1 (rank)"; "single value"; "a mapping" ]
                    "a list where one belongs", "rank: [3]", [ "line 1 (rank)"; "a list" ]
                    "a list within a list", "input-range: [[0], 1]", [ "input-range"; "single value" ]
                    "nothing", "rank: 3\nlr:", [ "line 2 (lr)"; "must have a value"; "remove the key" ]
                    "a word for a number",
                    "rank: ten",
                    [ "own.yaml, line 1: rank: must be a whole number; found 'ten'; remove it" ]
                    "a number for a word", "variant: 3", [ "line 1"; "libcontinual, official"; "'3'" ]
                    "a truth value for a number", "rank: true", [ "rank"; "'true'" ]
                    "out of range", "lr: 1\nenergy: 1.5", [ "line 2"; "energy" ]
                    "three numbers", "input-range: [0, 1, 2]", [ "line 1"; "LOW,HIGH"; "'0,1,2'" ]
                    "an unknown data set",
                    "data: cifar-100",
                    [ "line 1"; "must be one of"; "did you mean cifar100?" ]
                    "seeds beside a seed", "seed: 1\nseeds: [2]", [ "line 2 (seeds)"; "combined with seed" ]
                    "a list as the seed", "seed: [1, 2]", [ "line 1 (seed)"; "write seeds" ]
                    "no seeds", "seeds: []", [ "seeds"; "a list" ]
                    "a seed twice", "seeds: [1, 1]", [ "seeds"; "once" ]
                    "a wrong seed", "seeds: [1, 1.5]", [ "seeds"; "whole numbers"; "1, 1.5" ]
                    "names of nobody",
                    "epoch: 3\nfoo: 1",
                    [ "own.yaml"; "LibContinual"; "'epoch'"; "did you mean epochs?" ]
                    "an empty file", "", [ "own.yaml"; "must hold a mapping of settings" ]
                    "an empty mapping", "{}", [ "must hold a mapping of settings" ]
                    "a list", "- rank", [ "must hold a mapping of settings" ]
                    "a control character", "\"ra\\u0007nk\": 1\nrank: 2", [ @"'ra\u0007nk'" ]
                ] do
                rejects $"own: {name}" words (fun () -> own text |> ignore)

            testCase "a message is one line, whatever the file holds" (fun () ->
                for text in
                    [
                        "\"a\\nb\": 1\nrank: 2"
                        "rank: \"x\\ny\""
                        "class-order: " + String('x', 5000)
                        "rank: 1\n? |\n  a\n  b\n: 2"
                    ] do
                    try
                        own text |> ignore
                        failtest "was accepted"
                    with :? InputException as e ->
                        Expect.hasLength (e.Message.Split '\n') 1 e.Message)

            testCase "seeds on the command line" (fun () ->
                Expect.equal (ConfigFile.seeds "--seeds" "1, -2,3") [| 1L; -2L; 3L |] "three"
                Expect.equal (ConfigFile.seeds "--seeds" "9223372036854775807") [| Int64.MaxValue |] "one"

                for text, words in
                    [
                        "", [ "--seeds"; "whole numbers"; "''" ]
                        "1,x", [ "'1,x'"; "write 1,2,3" ]
                        "1,1", [ "each seed once" ]
                        "1,", [ "whole numbers" ]
                    ] do
                    refused words (fun () -> ConfigFile.seeds "--seeds" text |> ignore))

            testCase "the documentation has the table of settings" (fun () ->
                let text = File.ReadAllText(Path.Combine(examples, "..", "configuration.md"))
                // to write it anew, print SettingDoc.table () in F# Interactive
                Expect.stringContains text (SettingDoc.table ()) "docs/configuration.md")

            testCase "the examples of the documentation can be read" (fun () ->
                let files = Directory.GetFiles(examples, "*.yaml")
                Expect.hasLength files 2 "examples"

                for path in files do
                    let file = ConfigFile.read path
                    Expect.equal file.Format ConfigFormat.Own path
                    Config.merge None (Some file) [] None |> _.Settings |> Settings.check)

            propertyOf
                150
                "Config"
                "damaged configurations are read or refused"
                (fun (d: ConfigTreeTests.Damage) ->
                    for text in [ libContinual; official; "rank: 3\nseeds: [1, 2]\ninput-range: [0, 1]\n" ] do
                        ConfigTreeTests.orRefused (fun () ->
                            let file = ConfigFile.parse "f" (d.Of(Encoding.UTF8.GetBytes text))
                            Config.merge None (Some file) [] None |> Config.taskSizes |> ignore))

            testCase "aliases of aliases and many keys cost no more than their text" (fun () ->
                let laughs = ConfigTreeTests.laughs
                refused [ "own.yaml" ] (fun () -> own laughs |> ignore)

                refused [ "own.yaml"; "single value" ] (fun () ->
                    own "input-range: [&x [0, 1], *x]" |> ignore)

                let noted = lib [ "n_gpu: 1", laughs ]
                Expect.stringContains (List.last noted.Notes) "l9 (unknown" "note"

                let repeated =
                    try
                        own (String.replicate 10_000 "rank: 1\n") |> ignore
                        ""
                    with :? InputException as e ->
                        e.Message

                Expect.stringContains repeated "given once" "refused"
                Expect.isLessThan repeated.Length 300 "a message to read"

                let keys = String.Join("\n", [ for i in 1..20_000 -> $"key{i}: 1" ])
                let many = lib [ "n_gpu: 1", keys ]
                Expect.isLessThan (List.last many.Notes).Length 3000 "a note to read")
        ]
