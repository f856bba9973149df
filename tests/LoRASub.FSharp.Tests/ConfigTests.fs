module LoRASub.Tests.ConfigTests

open System
open System.Text.Json
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Settings
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.SettingsTests

let private own (text: string) =
    Some(ConfigFileTests.parse "own.yaml" text)

let private lib changes =
    List.fold
        (fun text (old, changed) -> ConfigFileTests.edit old changed text)
        ConfigFileTests.libContinual
        changes
    |> ConfigFileTests.parse "lib.yaml"
    |> Some

let private off = Some(ConfigFileTests.parse "off.json" ConfigFileTests.official)

let private source name (merged: MergedConfig) =
    merged.Sources
    |> Array.tryFind (fun s -> s.Name = name)
    |> Option.map (fun s -> s.Value, s.Source)

/// The settings as a YAML file, quoted or not, ranges as lists or texts.
let private yaml (seed: int) (pairs: (string * string) list) =
    let styles = integers seed 3 pairs.Length

    String.Join(
        "\n",
        pairs
        |> List.mapi (fun i (name, text) ->
            match styles[i] with
            | 0 -> $"{name}: \"{text}\""
            | 1 when text.Contains ',' -> $"{name}: [{text}]"
            | _ -> $"{name}: {text}")
    )

let private presetOf (pairs: (string * string) list) =
    pairs
    |> List.tryFindBack (fun (name, _) -> name = "data")
    |> Option.map snd
    |> Option.defaultValue "fashion-mnist"
    |> Preset.ofData
    |> snd

let private given (c: Choices) =
    if c.Pairs.IsEmpty then [ "rank", "3" ] else c.Pairs

/// A file and a command line.
type Two =
    {
        [<Between(0, 9999)>]
        File: int
        [<Between(0, 9999)>]
        Line: int
    }

[<Tests>]
let tests =
    testList
        "Config"
        [
            property "Config" "own YAML ≡ its settings" (fun (c: Choices) ->
                let pairs = given c
                let merged = Config.merge None (own (yaml c.Seed pairs)) [] None
                Expect.equal merged.Settings (Settings.ofPairs (presetOf pairs) pairs) "settings"

                for name, _ in pairs do
                    Expect.stringStarts (snd (source name merged).Value) "own.yaml, line " name)

            property "Config" "settings.json of a run is a configuration" (fun (c: Choices) ->
                let settings = Settings.ofPairs (presetOf c.Pairs) c.Pairs
                let text = (Settings.toJson settings).ToJsonString()
                Expect.equal (Config.merge None (own text) [] None).Settings settings "settings")

            property "Config" "the command line wins over the file, the file over the preset" (fun (t: Two) ->
                // a resize of the file's would be fitted to the command line's image size
                let inFile =
                    given { Seed = t.File } |> List.filter (fun (name, _) -> name <> "test-resize")

                let inFile = if inFile.IsEmpty then [ "rank", "3" ] else inFile
                let line = { Seed = t.Line }.Pairs
                let merged = Config.merge None (own (yaml t.File inFile)) line None
                let all = inFile @ line
                Expect.equal merged.Settings (Settings.ofPairs (presetOf all) all) "settings"

                for setting in Settings.all do
                    match setting.Get merged.Settings, source setting.Name merged with
                    | Some value, Some(told, source) ->
                        Expect.equal told value setting.Name
                        let among = List.exists (fun (name, _) -> name = setting.Name)

                        if among line then
                            Expect.equal source "command line" setting.Name
                        elif among inFile then
                            Expect.stringStarts source "own.yaml, line " setting.Name
                        else
                            Expect.isTrue
                                (source.StartsWith "preset " || source = "default")
                                $"{setting.Name}: {source}"
                    | None, None -> ()
                    | value, source -> failtest $"{setting.Name}: {value}, {source}")

            property "Config" "the order of a file's keys does not matter" (fun (c: Choices) ->
                let pairs = given c

                let shuffled =
                    order c.Seed pairs.Length |> Array.map (fun i -> pairs[i]) |> List.ofArray

                let settings pairs =
                    (Config.merge None (own (yaml 0 pairs)) [] None).Settings

                Expect.equal (settings shuffled) (settings pairs) "settings")

            testCase "without a file the presets are those of the data set" (fun () ->
                let merged pairs =
                    (Config.merge None None pairs None).Settings

                Expect.equal (merged []) (Preset.quick Variant.Official) "none"
                Expect.equal (merged [ "data", "cifar100" ]) (Preset.cifar100 Variant.Official) "cifar100"

                Expect.equal
                    (merged [ "data", "imagenet-r"; "variant", "libcontinual" ])
                    (Preset.imageNetR Variant.LibContinual)
                    "imagenet-r"

                Expect.equal (merged [ "data", "mnist" ]).Epochs 4 "others")

            testCase "each value says where it comes from" (fun () ->
                let merged =
                    Config.merge
                        None
                        (own "data: cifar100\nepochs: 3\nvariant: libcontinual")
                        [ "rank", "4" ]
                        None

                for name, expected in
                    [
                        "rank", Some("4", "command line")
                        "epochs", Some("3", "own.yaml, line 2")
                        "schedule-epochs", None
                        "class-order", Some("seed1993", "preset cifar100 libcontinual")
                        "augment", Some("crop-flip", "preset cifar100 libcontinual")
                        "energy", Some("0.99", "default")
                        "backbone", None
                    ] do
                    Expect.equal (source name merged) expected name

                Expect.equal
                    (source "augment" (Config.merge None None [] None))
                    (Some("flip", "preset quick official"))
                    "quick")

            testCase "a named preset lies over the data set's, and under file and command line" (fun () ->
                let quick pairs = Settings.ofPairs Preset.quick pairs

                let alone head embedding =
                    { quick [] with
                        MethodName = "auto"
                        Epochs = 5
                        Head = head
                        Embedding = embedding
                        OtherHeads = []
                    }

                let expected =
                    [
                        "recommended", alone "cosine-lda:ratio" "rich"
                        "small", alone "cosine-lda:ratio" "small-texture"
                        "large", alone "cosine-lda:ratio" "richest+shift"
                        "libcontinual",
                        { Preset.quick Variant.LibContinual with
                            OtherHeads = []
                        }
                        "official",
                        { Preset.quick Variant.Official with
                            OtherHeads = []
                        }
                    ]

                Expect.equal
                    (Preset.named |> List.map (fun (name, _, _) -> name))
                    (List.map fst expected)
                    "names"

                for name, settings in expected do
                    let merged = Config.merge (Some name) None [] None
                    Expect.equal merged.Settings settings name

                    for setting, value in Preset.pairs name do
                        Expect.equal (source setting merged) (Some(value, $"preset {name}")) setting

                let merged =
                    Config.merge
                        (Some "recommended")
                        (own "embedding: all-blocks\ndata: cifar100")
                        [ "head", "lda" ]
                        None

                Expect.equal
                    merged.Settings
                    { Preset.cifar100 Variant.Official with
                        MethodName = "auto"
                        Epochs = 5
                        Head = "lda"
                        Embedding = "all-blocks"
                        OtherHeads = []
                    }
                    "over it"

                Expect.equal (source "head" merged) (Some("lda", "command line")) "head"
                Expect.equal (source "embedding" merged) (Some("all-blocks", "own.yaml, line 1")) "embedding")

            rejects
                "an unknown preset"
                [
                    "preset"
                    "recommended, small, large"
                    "'recomended'"
                    "did you mean recommended?"
                ]
                (fun () -> Config.merge (Some "recomended") None [] None |> ignore)

            testCase "attention heads are read under their older name" (fun () ->
                let settings text =
                    (Config.merge None (own text) [] None).Settings

                Expect.equal (settings "heads: 12").Heads (Some 12) "a number"

                Expect.equal
                    (settings "heads: 12").OtherHeads
                    [ "cosine-lda:ratio@rich" ]
                    "the default heads"

                Expect.equal
                    (settings "heads: [lda, ridge@last-blocks]").OtherHeads
                    [ "lda"; "ridge@last-blocks" ]
                    "names")

            testCase "a rival trains at the rates of its paper, unless something else is said" (fun () ->
                for row in Methods.all do
                    let merged = Config.merge None None [ "method", row.Info.Name ] None

                    for name, text in row.Defaults do
                        Expect.equal
                            (source name merged)
                            (Some(
                                (Settings.find name).Get merged.Settings |> Option.get,
                                $"method {row.Info.Name}"
                            ))
                            $"{row.Info.Name}, {name}"

                        Expect.equal
                            (Settings.set name text merged.Settings)
                            merged.Settings
                            $"{row.Info.Name}, {name} = {text}"

                let merged = Config.merge None None [ "method", "ease"; "lr", "0.5" ] None
                Expect.equal merged.Settings.Method.LearningRate 0.5 "said"
                Expect.equal merged.Settings.Method.HeadLearningRate 0.025 "not said")

            testCase "what the command line says in vain is noted" (fun () ->
                let notes pairs =
                    List.ofArray (Config.merge None None pairs None).Notes

                let cases =
                    [
                        [ "method", "ease"; "rank", "8"; "energy", "0.9"; "lr", "0.1" ],
                        [ "--rank, --energy ignored: not used by method ease" ]
                        [ "method", "joint"; "tasks", "5" ],
                        [ "--tasks ignored: method joint learns all classes as one task" ]
                        [ "method", "sequential"; "projection", "false" ],
                        [ "--no-projection ignored: not used by method sequential" ]
                        [ "method", "frozen"; "epochs", "9"; "batch", "64" ],
                        [ "--epochs ignored: method frozen does not train" ]
                        [ "method", "inflora"; "training", "false" ],
                        [ "--method ignored: the network stays frozen with --no-training" ]
                        [ "augment", "flip"; "crop-scale", "0.5,1" ],
                        [ "--crop-scale ignored: only --augment crop-flip crops" ]
                        [ "rank", "8"; "tasks", "5" ], []
                    ]

                for pairs, expected in cases do
                    Expect.equal (notes pairs) expected $"%A{pairs}"

                Expect.equal
                    (List.ofArray (Config.merge None (own "rank: 8") [ "method", "ease" ] None).Notes)
                    []
                    "a file may serve several methods")

            testCase "published files keep their variant's and the framework's defaults" (fun () ->
                let merged = Config.merge None (lib []) [] None
                Expect.equal merged.Settings.Variant Variant.LibContinual "variant"
                Expect.equal merged.Settings.ClassOrder "seed1993" "class order"
                Expect.equal (source "seed" merged) (Some("1993", "LibContinual's default")) "seed"
                Expect.equal merged.Settings.ScheduleLength 7 "K is the later tasks' epochs"
                Expect.equal merged.Seeds [| 1993L |] "seeds"
                let official = Config.merge None off [] None
                Expect.equal official.Settings.Variant Variant.Official "official"
                Expect.equal official.Settings.Method.BInit BInit.Sparse "its B"
                Expect.equal official.Settings.Seed 3L "its first seed"
                Expect.equal official.Seeds [| 3L; 4L |] "its seeds"

                Expect.equal
                    (source "seeds" official)
                    (Some("3,4", "off.json, line 4 (seed)"))
                    "their source"

                Expect.equal (source "seed" official) None "in place of the seed")

            testCase "seeds: command line over file" (fun () ->
                let seeds file pairs line =
                    let merged = Config.merge None file pairs line
                    Expect.equal merged.Settings.Seed merged.Seeds[0] "the first"
                    merged.Seeds

                Expect.equal (seeds None [] None) [| 1993L |] "the preset's"
                Expect.equal (seeds off [ "seed", "9" ] None) [| 9L |] "--seed"
                Expect.equal (seeds off [] (Some [| 8L; 7L |])) [| 8L; 7L |] "--seeds"
                Expect.equal (seeds (own "seed: 5") [] None) [| 5L |] "seed"
                Expect.equal (seeds (own "seeds: [5, 6]") [] None) [| 5L; 6L |] "seeds"

                refused [ "--seeds"; "combined with --seed" ] (fun () ->
                    Config.merge None None [ "seed", "1" ] (Some [| 2L |]) |> ignore))

            rejects
                "an unknown data set of the command line"
                [ "found mnost"; "did you mean mnist?" ]
                (fun () -> Config.merge None None [ "data", "mnost" ] None |> ignore)

            testCase "another data set on the command line has classes of its own" (fun () ->
                let expected pairs =
                    (Config.merge None (lib []) pairs None).Expected

                Expect.equal (expected []).Classes (Some 200) "the file's"
                Expect.equal (expected [ "data", "tiny-imagenet" ]).Classes (Some 200) "the same"
                Expect.equal (expected [ "data", "mnist" ]).Classes None "another"
                Expect.equal (expected [ "data", "mnist" ]).Width (Some 192) "the width stays")

            testCase "a resize before the centre crop fits the size of the images" (fun () ->
                let resize file pairs =
                    let merged = Config.merge None file pairs None

                    merged.Settings.TestResize,
                    merged.Notes |> Array.exists (fun n -> n.StartsWith "test-resize")

                Expect.equal (resize (lib []) []) (Some 72, false) "as the file says"
                Expect.equal (resize (lib []) [ "image-size", "32" ]) (Some 36, true) "for smaller images"

                Expect.equal
                    (resize (lib []) [ "image-size", "32"; "test-resize", "40" ])
                    (Some 40, false)
                    "as asked for"

                Expect.equal (resize None [ "data", "imagenet-r" ]) (Some 256, false) "the preset's"

                Expect.equal
                    (resize None [ "data", "imagenet-r"; "image-size", "64" ])
                    (Some 73, true)
                    "the preset's, fitted"

                Expect.equal (resize (own "test-resize: 40") [ "image-size", "32" ]) (Some 40, false) "own"

                let onBackbone size file pairs =
                    let merged = Config.merge None file pairs None |> Config.fitToBackbone size

                    merged.Settings.TestResize,
                    merged.Notes |> Array.exists (fun n -> n.StartsWith "test-resize")

                let images = [ "data", "imagenet-r" ]
                Expect.equal (onBackbone 32 None images) (Some 37, true) "a small backbone"
                Expect.equal (onBackbone 224 None images) (Some 256, false) "one of the preset's size"
                Expect.equal (onBackbone 32 (lib []) []) (Some 72, false) "the file's"

                Expect.equal
                    (onBackbone 32 None (("test-resize", "40") :: images))
                    (Some 40, false)
                    "the command line's"

                Expect.equal (resize None [ "image-size", "32" ]) (None, false) "none")

            testCase "the first task's epochs do not follow the command line's silently" (fun () ->
                let notes file pairs =
                    (Config.merge None file pairs None).Notes
                    |> Array.filter (fun n -> n.StartsWith "the first task")

                Expect.equal
                    (notes (lib []) [ "epochs", "1" ])
                    [| "the first task keeps its 9 epochs, unless --initial-epochs is given" |]
                    "the file's"

                Expect.hasLength (notes None [ "data", "imagenet-r"; "epochs", "1" ]) 1 "the preset's"
                Expect.isEmpty (notes (lib []) []) "nothing asked for"
                Expect.isEmpty (notes (lib []) [ "epochs", "9" ]) "the same"
                Expect.isEmpty (notes (lib []) [ "epochs", "1"; "initial-epochs", "2" ]) "both asked for")

            testCase "the data must have the classes that the file says" (fun () ->
                let expected = (Config.merge None (lib []) [] None).Expected
                Config.checkClasses expected 200
                Config.checkClasses { expected with Classes = None } 7

                refused [ "lib.yaml"; "200 classes"; "found 7"; "in the file" ] (fun () ->
                    Config.checkClasses expected 7)

                refused [ "200 classes"; "found 201" ] (fun () -> Config.checkClasses expected 201))

            testCase "another width or number of heads is a note" (fun () ->
                let expected = (Config.merge None off [] None).Expected
                Expect.isEmpty (Config.backboneNotes expected 768 12) "as said"

                Expect.equal
                    (Config.backboneNotes expected 192 3)
                    [
                        "off.json gives width 768; the backbone's 192 is used"
                        "off.json gives heads 12; the backbone's 3 is used"
                    ]
                    "notes"

                Expect.isEmpty
                    (Config.backboneNotes (Config.merge None None [] None).Expected 7 7)
                    "without a file")

            testCase "a range that nobody gave is noted where the weights state none" (fun () ->
                let assumed file pairs metadata =
                    let metadata = Map.ofList metadata

                    Config.assumed
                        (Config.merge None file pairs None)
                        (WeightsCard.ofMetadata "w" metadata)
                        metadata

                Expect.equal
                    (assumed None [] [])
                    [ "input-range 0,1 is a default; most timm weights expect -1,1" ]
                    "nothing known"

                Expect.equal
                    (assumed None [] [ "input", "x\u001B[31m" ])
                    [ @"input-range 0,1 is a default; the weights file states 'x\u001B[31m'" ]
                    "as the file says"

                Expect.isEmpty (assumed None [] [ "input-range", "-1,1" ]) "stated"
                Expect.isEmpty (assumed None [ "input-range", "0,1" ] []) "given"
                Expect.isEmpty (assumed (own "input-range: [0, 1]") [] []) "in a file")

            testCase "a setting from any source that contradicts the weights is warned of" (fun () ->
                let warning file pairs metadata =
                    let settings = (Config.merge None file pairs None).Settings
                    Config.contradiction settings (WeightsCard.ofMetadata "w" (Map.ofList metadata))

                let range = [ "input-range", "-1,1" ]

                let expected =
                    Some
                        "input-range 0,1 differs from -1,1, which the weights were trained with; --input-range -1,1 follows the weights"

                Expect.equal (warning None [] range) expected "default"
                Expect.equal (warning None [ "input-range", "0,1" ] range) expected "command line"
                Expect.equal (warning (own "input-range: [0, 1]") [] range) expected "file"
                Expect.equal (warning None [ "data", "cifar100" ] range) expected "preset"

                Expect.equal (warning None range range) None "agreement on the command line"
                Expect.equal (warning (own "input-range: [-1, 1]") [] range) None "agreement in a file"
                Expect.equal (warning None range [ "mean", "0.5"; "std", "0.5" ]) None "mean and std"
                Expect.equal (warning None [] []) None "nothing stated"
                Expect.equal (warning None [] [ "heads", "3"; "image-size", "32" ]) None "left open"

                Expect.equal
                    (warning
                        None
                        [ "attention-heads", "6"; "image-size", "64"; "norm-epsilon", "1e-5" ]
                        [ "heads", "3"; "image-size", "32"; "norm-epsilon", "1e-6" ])
                    (Some(
                        "image-size 64 differs from 32, and attention-heads 6 differs from 3, and norm-epsilon 1e-5,1e-5 differs from 1e-6,1e-6, "
                        + "which the weights were trained with; --image-size 32 --attention-heads 3 --norm-epsilon 1e-6,1e-6 follow the weights"
                    ))
                    "several"

                Expect.equal
                    (warning None [] [ "mean", "0.485,0.456,0.406"; "std", "0.229,0.224,0.225" ])
                    (Some
                        "input-range 0,1 differs from -1.986,2.4392, which the weights were trained with; --input-range -1.986,2.4392 is the closest single range; the weights have one per channel")
                    "channels of their own")

            testCase "a value on the command line is refused under its flag" (fun () ->
                for name, text, words in
                    [
                        "lr", "fast", [ "--lr: must be a number; found 'fast'" ]
                        "lr", "-1", [ "--lr: must be finite and at least 0"; "found -1" ]
                        "crop-ratio", "3/0,1", [ "--crop-ratio: must be LOW,HIGH" ]
                        "tasks", "0", [ "--tasks: must be at least 1" ]
                    ] do
                    refused words (fun () -> Config.merge None None [ name, text ] None |> ignore))

            testCase "tasks as far as they are known without data" (fun () ->
                let sizes file pairs =
                    Config.taskSizes (Config.merge None file pairs None)

                Expect.equal
                    (sizes (lib []) [])
                    (Some(Array.append [| 20 |] (Array.create 10 18)))
                    "a first task"

                Expect.equal
                    (sizes None [ "data", "cifar100"; "tasks", "20" ])
                    (Some(Array.create 20 5))
                    "by data set"

                Expect.equal (sizes None [ "tasks", "3" ]) (Some [| 4; 4; 2 |]) "a smaller last task"
                refused [ "tasks"; "equal tasks" ] (fun () -> sizes None [ "tasks", "6" ] |> ignore)

                refused [ "lib.yaml"; "38 classes"; "found 200" ] (fun () ->
                    let small =
                        lib [ "total_cls_num: 200", "total_cls_num: 38"; "&task_num 11", "&task_num 2" ]

                    sizes small [] |> ignore))

            testCase "what was open is completed under a source of its own" (fun () ->
                let merged = Config.merge None (own "rank: 3\nseeds: [1, 2]") [] None

                let completed =
                    Config.complete
                        "found nearby"
                        { merged.Settings with
                            Backbone = Some "vit"
                        }
                        merged

                Expect.equal (source "backbone" completed) (Some("vit", "found nearby")) "new"
                Expect.equal (source "rank" completed) (Some("3", "own.yaml, line 1")) "kept"
                Expect.equal (source "seeds" completed) (source "seeds" merged) "seeds"
                Expect.equal (completed.Sources.Length - 1) merged.Sources.Length "nothing else")

            testCase "sources.json names every setting with its source, and the notes" (fun () ->
                let merged = Config.merge None (lib []) [ "rank", "4" ] None
                use document = JsonDocument.Parse((Config.toJson merged).ToJsonString())

                let text (e: JsonElement) (name: string) = (e.GetProperty name).GetString()

                Expect.equal
                    [|
                        for e in (document.RootElement.GetProperty "settings").EnumerateArray() ->
                            {
                                Name = text e "name"
                                Value = text e "value"
                                Source = text e "source"
                            }
                    |]
                    merged.Sources
                    "settings"

                Expect.equal
                    [|
                        for e in (document.RootElement.GetProperty "notes").EnumerateArray() -> e.GetString()
                    |]
                    merged.Notes
                    "notes")
        ]
