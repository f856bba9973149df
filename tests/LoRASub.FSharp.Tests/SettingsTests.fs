module LoRASub.Tests.SettingsTests

open System.Text.Json
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Settings
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

/// Two different values of a setting, as it writes them itself.
let private valuesOf (s: Setting) : string * string =
    match s.Name, s.Kind with
    | "norm-order", _ -> "1", "Infinity"
    | "data", _ -> "cifar100", "mnist"
    | "head", _ -> "cosine-lda:0.1", "logits"
    | "embedding", _ -> "rich", "frozen+last-blocks+flip"
    | "heads", _ -> "none", "lda,rp-ridge:64@all-blocks"
    | _, SettingKind.Whole(least, most) when least < 0L -> "-7", string most
    | _, SettingKind.Whole(least, _) -> string (least + 1L), string (least + 2L)
    | _, SettingKind.Number _ -> "0.25", "1e-6"
    | _, SettingKind.Pair _ -> "0.25,0.75", "1/3,0.5"
    | _, SettingKind.Choice cases -> cases[0], cases[1]
    | _, SettingKind.Switch -> "true", "false"
    | _, SettingKind.Folders -> "runs/joint", "007,b"
    | _, (SettingKind.Name | SettingKind.Names | SettingKind.File | SettingKind.Folder) ->
        "some folder", "007"

let private texts: (string * string * string) list =
    [
        for s in Settings.all do
            let first, second = valuesOf s
            s.Name, first, second
    ]

/// Which of its two texts, or none, each setting gets.
type Choices =
    {
        [<Between(0, 9999)>]
        Seed: int
    }

    member c.Pairs =
        texts
        |> List.mapi (fun i (name, first, second) ->
            match (integers (c.Seed + i) 3 1)[0] with
            | 0 -> []
            | 1 -> [ name, first ]
            | _ -> [ name, second ])
        |> List.concat

let private ofPairs pairs = Settings.ofPairs Preset.quick pairs

let private throughJson (settings: RunSettings) =
    use document = JsonDocument.Parse((Settings.toJson settings).ToJsonString())
    Settings.ofJson "settings.json" document.RootElement

let private ofJson (json: string) =
    use document = JsonDocument.Parse json
    Settings.ofJson "a file" document.RootElement

let private property name law = property "Settings" name law

/// The two published codes, as docs/method.md has them.
let private variants =
    [
        Variant.LibContinual,
        (BInit.Zeros, 1e-5, 1e-6, PrototypeTransform.Train, "seed1993", Seeding.EveryEpoch)
        Variant.Official, (BInit.Sparse, 1e-6, 1e-6, PrototypeTransform.Test, "natural", Seeding.Once)
    ]

/// Published hyper-parameters: data, epochs of the first and of later tasks, K, head rate, margin, λ.
let private sets =
    [
        Preset.cifar100, ("cifar100", 20, 20, 20, 2e-3, 1.0, 0.05)
        Preset.imageNetR, ("imagenet-r", 40, 50, 50, 5e-4, 2.0, 0.2)
    ]

[<Tests>]
let tests =
    testList
        "Settings"
        [
            for name, first, second in texts do
                testCase $"{name} keeps its text and changes nothing else" (fun () ->
                    let start = Preset.cifar100 Variant.LibContinual

                    for text in [ first; second ] do
                        let changed = Settings.set name text start
                        Expect.equal ((Settings.find name).Get changed) (Some text) "text"

                        for other in Settings.all do
                            if other.Name <> name then
                                Expect.equal (other.Get changed) (other.Get start) other.Name)

            property "settings ≡ themselves through JSON" (fun (c: Choices) ->
                let settings = ofPairs c.Pairs
                Expect.equal (throughJson settings) settings "settings")

            property "settings ≡ themselves through their pairs" (fun (c: Choices) ->
                let settings = ofPairs c.Pairs
                Expect.equal (ofPairs (Settings.toPairs settings)) settings "settings")

            property "the order of settings does not matter, also that of the variant" (fun (c: Choices) ->
                let pairs = c.Pairs

                let shuffled =
                    order c.Seed pairs.Length |> Array.map (fun i -> pairs[i]) |> List.ofArray

                Expect.equal (ofPairs shuffled) (ofPairs pairs) "settings")

            testCase "the last of a setting's texts counts" (fun () ->
                Expect.equal (ofPairs [ "rank", "3"; "rank", "5" ]).Method.Rank 5 "rank"

                Expect.equal
                    (ofPairs [ "variant", "official"; "variant", "libcontinual" ])
                    (Preset.quick Variant.LibContinual)
                    "variant")

            testCase "each preset goes through JSON unchanged" (fun () ->
                for variant in [ Variant.LibContinual; Variant.Official ] do
                    for preset in [ Preset.quick; Preset.cifar100; Preset.imageNetR ] do
                        let settings = preset variant
                        Expect.equal (throughJson settings) settings settings.Data)

            testCase "numbers and booleans are such in JSON, texts are texts" (fun () ->
                let json =
                    (ofPairs [ "data-path", "007"; "norm-order", "Infinity" ] |> Settings.toJson).AsObject()

                let kind (name: string) = json[name].GetValueKind()
                Expect.equal (kind "rank") JsonValueKind.Number "rank"
                Expect.equal (kind "lr") JsonValueKind.Number "lr"
                Expect.equal (kind "triplet") JsonValueKind.True "triplet"
                Expect.equal (kind "data-path") JsonValueKind.String "data-path"
                Expect.equal (kind "norm-order") JsonValueKind.String "norm-order"
                Expect.isNull json["attention-heads"] "what is left open is left out")

            testCase "K of the schedule is the later tasks' epochs unless given" (fun () ->
                let k pairs = (ofPairs pairs).ScheduleLength
                Expect.equal (k []) 4 "the preset's"
                Expect.equal (k [ "epochs", "9" ]) 9 "epochs"
                Expect.equal (k [ "epochs", "9"; "initial-epochs", "4" ]) 9 "initial epochs do not count"
                Expect.equal (k [ "schedule-epochs", "5"; "epochs", "9" ]) 5 "given"
                let preset = Preset.quick Variant.Official
                Expect.equal { preset with Epochs = 9 } (ofPairs [ "epochs", "9" ]) "in code as in words"
                let saved = ofJson """{"epochs": 4, "schedule-epochs": 4}"""
                Expect.equal saved.ScheduleEpochs (Some 4) "as older runs saved it")

            testCase "epochs of a task" (fun () ->
                let task i : LearningTask =
                    {
                        Index = i
                        FirstClass = i
                        Classes = [| i |]
                    }

                let epochs pairs =
                    [ for i in 0..1 -> (ofPairs pairs).EpochsOf(task i) ]

                Expect.equal (epochs [ "epochs", "9" ]) [ 9; 9 ] "one number"
                Expect.equal (epochs [ "epochs", "9"; "initial-epochs", "4" ]) [ 4; 9 ] "two"

                Expect.equal
                    (epochs [ "epochs", "9"; "initial-epochs", "4"; "training", "false" ])
                    [ 0; 0 ]
                    "no training")

            for preset, (data, firstEpochs, epochs, k, headRate, margin, weight) in sets do
                for variant, (bInit, blocksEpsilon, finalEpsilon, transform, order, seeding) in variants do
                    testCase $"{data}, {variant}: every value of the published tables" (fun () ->
                        let s = preset variant

                        let task i : LearningTask =
                            {
                                Index = i
                                FirstClass = 10 * i
                                Classes = [||]
                            }

                        Expect.equal s.Variant variant "variant"
                        Expect.equal s.Data data "data"
                        Expect.equal s.Tasks 10 "tasks"
                        Expect.equal (s.EpochsOf(task 0), s.EpochsOf(task 1)) (firstEpochs, epochs) "epochs"
                        Expect.equal s.ScheduleLength k "K"
                        Expect.equal s.Method.HeadLearningRate headRate "head rate"
                        Expect.equal s.Method.Margin margin "margin"
                        Expect.equal s.Method.TripletWeight weight "λ"
                        Expect.equal s.Method.Rank 10 "rank"
                        Expect.equal s.Batch 128 "batch"
                        Expect.equal s.Method.LearningRate 5e-4 "LoRA rate"
                        Expect.equal s.Method.Adam.WeightDecay 0.0 "weight decay"
                        Expect.equal s.Method.Energy 0.99 "energy threshold"
                        Expect.equal (s.Method.Adam.Beta1, s.Method.Adam.Beta2) (0.9, 0.999) "β"
                        Expect.equal s.Method.Adam.Epsilon 1e-8 "ε"
                        Expect.isFalse s.Method.Adam.AmsGrad "AMSGrad"
                        Expect.equal s.Method.NormOrder 2.0 "norm order"
                        Expect.equal s.Method.UpdateScale UpdateScale.Frobenius "scale of P"

                        Expect.equal
                            [ s.Method.Projection; s.Method.Subtraction; s.Method.Triplet ]
                            [ true; true; true ]
                            "nothing ablated"

                        Expect.equal
                            (s.MethodName, s.Head, s.Embedding)
                            ("lora-sub-drs", "nearest-mean", "class-token")
                            "method, head and embedding"

                        Expect.equal s.Method.BInit bInit "B at the start"

                        Expect.equal
                            s.NormEpsilon
                            {
                                Blocks = blocksEpsilon
                                Final = finalEpsilon
                            }
                            "layer-norm ε"

                        Expect.equal s.PrototypeTransform transform "transform for prototypes"
                        Expect.equal s.ClassOrder order "class order"
                        Expect.equal s.Seeding seeding "seeding"
                        Expect.equal s.InputRange (struct (0.0, 1.0)) "pixels in [0, 1]"
                        Expect.equal s.Augmentation Augmentation.CropFlip "training images"
                        Settings.check s)

            rejects
                "an unknown name, with the nearest known one"
                [ "setting 'epoch'"; "must be one of"; "did you mean epochs?" ]
                (fun () -> ofPairs [ "epoch", "3" ] |> ignore)

            for name, text, words in
                [
                    "tasks", "ten", [ "tasks"; "whole number"; "'ten'" ]
                    "tasks", "2.5", [ "tasks"; "whole number"; "'2.5'" ]
                    "rank", "", [ "rank"; "''" ]
                    "attention-heads", "99999999999", [ "attention-heads"; "99999999999" ]
                    "lr", "fast", [ "lr"; "must be a number"; "'fast'" ]
                    "lr", "1,5", [ "lr"; "'1,5'" ]
                    "variant", "Official", [ "variant"; "libcontinual, official"; "'Official'" ]
                    "projection", "no", [ "projection"; "true, false" ]
                    "norm-epsilon", "1,2,3", [ "norm-epsilon"; "BLOCKS,FINAL"; "'1,2,3'" ]
                    "norm-epsilon", "small", [ "norm-epsilon"; "'small'" ]
                    "input-range", "1", [ "input-range"; "LOW,HIGH" ]
                    "input-range", "0,x", [ "input-range"; "'0,x'" ]
                    "seed", "1e3", [ "seed"; "'1e3'" ]
                ] do
                rejects $"{name} = '{text}'" words (fun () -> ofPairs [ name, text ] |> ignore)

            for name, text, words in
                [
                    "tasks", "0", [ "tasks"; "at least 1"; "0" ]
                    "epochs", "0", [ "epochs" ]
                    "batch", "-1", [ "batch"; "-1" ]
                    "initial-classes", "0", [ "initial-classes" ]
                    "initial-epochs", "0", [ "initial-epochs" ]
                    "schedule-epochs", "0", [ "schedule-epochs"; "at least 1" ]
                    "attention-heads", "0", [ "attention-heads" ]
                    "image-size", "0", [ "image-size" ]
                    "threads", "0", [ "threads" ]
                    "stop-after", "0", [ "stop-after" ]
                    "input-range", "1,0", [ "input-range"; "LOW < HIGH" ]
                    "input-range", "0,Infinity", [ "input-range" ]
                    "norm-epsilon", "1E-06,0", [ "norm-epsilon"; "between 0 and 1" ]
                    "norm-epsilon", "NaN", [ "norm-epsilon" ]
                    "rank", "0", [ "rank" ]
                    "energy", "1.001", [ "energy"; "in (0, 1]"; "found 1.001" ]
                    "lr", "NaN", [ "lr"; "finite"; "NaN" ]
                    "weight-decay", "-1", [ "weight-decay"; "at least 0"; "found -1" ]
                    "adam-beta1", "1", [ "adam-beta1"; "in [0, 1)" ]
                    "split-ratio", "1", [ "split-ratio"; "between 0 and 1" ]
                    "crop-scale", "0,1", [ "crop-scale"; "0 < LOW" ]
                    "checkpoint-minutes", "-1", [ "checkpoint-minutes"; "0 to 1000000" ]
                    "threads", "1025", [ "threads"; "at most 1024" ]
                    "reference", "a,,b", [ "reference"; "an empty name" ]
                ] do
                rejects $"a run with {name} {text}" words (fun () -> ofPairs [ name, text ] |> ignore)

                rejects $"{name} {text} in a file" ("a file" :: words) (fun () ->
                    ofJson $"{{\"{name}\": \"{text}\"}}" |> ignore)

            for words, (change: RunSettings -> RunSettings) in
                [
                    [ "tasks: must be at least 1; found 0" ], (fun (s: RunSettings) -> { s with Tasks = 0 })
                    [ "input-range: must be LOW,HIGH with LOW < HIGH; found '1,0'" ],
                    (fun s ->
                        { s with
                            InputRange = struct (1.0, 0.0)
                        })
                    [ "backbone"; "an empty name" ], (fun (s: RunSettings) -> { s with Backbone = Some "" })
                    [ "margin: must be finite"; "NaN" ],
                    (fun s ->
                        { s with
                            Method = { s.Method with Margin = nan }
                        })
                ] do
                rejects $"a record whose {words.Head}" words (fun () ->
                    Settings.check (change (Preset.quick Variant.Official)))

            testCase "numbers may be fractions, and are shown in the shortest form" (fun () ->
                for name, text, shown in
                    [
                        "crop-ratio", "3/4,4/3", "0.75,4/3"
                        "crop-ratio", "3/4, 4/3", "0.75,4/3"
                        "crop-ratio", "0.75,1.3333333333333333", "0.75,4/3"
                        "crop-scale", "1/3,1", "1/3,1"
                        "crop-scale", "0.0812345678901,1", "0.0812345678901,1"
                        "norm-epsilon", "1e-5,1e-6", "1e-5,1e-6"
                        "adam-epsilon", "0.00000001", "1e-8"
                        "lr", "1/2000", "0.0005"
                        "lr", "1E-10", "1e-10"
                    ] do
                    let settings = ofPairs [ name, text ]
                    Expect.equal ((Settings.find name).Get settings) (Some shown) text
                    Expect.equal (ofPairs [ name, shown ]) settings "read back"
                    Expect.equal (throughJson settings) settings "through JSON"

                for text in [ "1/0"; "1/2/3"; "/2"; "1/"; "a/2" ] do
                    refused [ "lr"; $"'{text}'" ] (fun () -> ofPairs [ "lr", text ] |> ignore))

            rejects "JSON that is no object" [ "a file"; "object"; "Array" ] (fun () -> ofJson "[]" |> ignore)

            rejects "a list as a setting" [ "a file, rank"; "string, number or boolean"; "Array" ] (fun () ->
                ofJson """{"rank": [1]}""" |> ignore)

            rejects "null as a setting" [ "a file, rank"; "Null" ] (fun () ->
                ofJson """{"rank": null}""" |> ignore)

            rejects "an unknown setting in a file" [ "'ranks'"; "did you mean rank?" ] (fun () ->
                ofJson """{"ranks": 1}""" |> ignore)

            rejects "a boolean where a number belongs" [ "rank"; "'true'" ] (fun () ->
                ofJson """{"rank": true}""" |> ignore)
        ]
