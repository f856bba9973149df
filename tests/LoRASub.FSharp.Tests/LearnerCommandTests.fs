module LoRASub.Tests.LearnerCommandTests

open System
open System.IO
open System.Text.Json
open System.Text.RegularExpressions
open LoRASub.Core
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Cli
open Expecto
open LoRASub.Tests.CliTests
open TorchSharp

/// Folders of images for some classes: each class has a colour, each image a shade of it.
let private photos (folder: string) (classes: string list) (images: int) =
    let all = [ "ant"; "bee"; "cat"; "dog"; "elk"; "fox" ]

    for name in classes do
        let own = Directory.CreateDirectory(under folder name).FullName
        let colour = List.findIndex ((=) name) all

        for i in 1..images do
            let channel c =
                (colour * (53 + 31 * c) + 40 * c) % 200 + 5 * (i % 10)

            TestFiles.writePicture
                (under own $"{i}.png")
                (TestFiles.plainPicture 9 10 (channel 0) (channel 1) (channel 2))

    folder

/// Runs a test with a folder that holds a backbone, january/ with four classes and february/ with two more.
let private inShop (test: string -> unit) () =
    Probe.inFolder (fun world ->
        Tiny.writeBackbone (under world "vit.safetensors") 8 2 7
        photos (under world "january") [ "ant"; "bee"; "cat"; "dog" ] 10 |> ignore
        photos (under world "february") [ "elk"; "fox" ] 10 |> ignore
        test world)

let private learning (world: string) images more =
    [
        "learn"
        under world "shop"
        under world images
        for name, value in [ "--epochs", "1"; "--batch", "8"; "--rank", "2" ] do
            if not (List.contains name more) then
                name
                value
        yield! more
    ]

/// Learns a folder of images, the first of a learner.
let private first world images more =
    let ended =
        inside (
            learning
                world
                images
                [
                    "--backbone"
                    under world "vit.safetensors"
                    "--device"
                    Generators.deviceName
                    yield! more
                ]
        )

    Expect.equal (ended.Code, ended.Error) (0, "") "learned"
    ended.Out

let private shop (world: string) = under world "shop"

let private done' (arguments: string list) =
    let ended = inside arguments
    Expect.equal (ended.Code, ended.Error) (0, "") $"{arguments}"
    ended.Out

/// Every file of a folder with its bytes.
let private contents (folder: string) =
    Directory.GetFiles(folder, "*", SearchOption.AllDirectories)
    |> Array.sort
    |> Array.map (fun path -> path, Convert.ToBase64String(File.ReadAllBytes path))

let private refusedIn world (words: string list) (arguments: string list) =
    let before = contents world
    let ended = inside arguments
    Expect.equal ended.Code 2 $"{arguments}: {ended.Error}"

    for word in words do
        Expect.stringContains ended.Error word $"{arguments}"

    Expect.equal (contents world) before $"{arguments}: nothing written"

/// The head's sums after some images, half of them added later or not.
let private sums world head (parts: int list list) =
    let images = LoRASub.Fluent.Images.FromFolder(under world "january")

    Scope.run (fun () ->
        let kept =
            KeptLearner.create
                { KeptLearner.settings "recommended" with
                    MethodName = "frozen"
                    Head = head
                    Embedding = "class-token"
                    Backbone = Some(under world "vit.safetensors")
                    Precision = Precision.Float64
                    Device = Generators.deviceName
                    Batch = 3
                }

        use _ = Scope.own KeptLearner.leaves kept
        let names, images = Array.ofSeq images.ClassNames, images.Set

        let part which =
            ImageSet.select
                (Array.indexed images.Labels
                 |> Array.map fst
                 |> Array.filter (fun i -> List.contains (i % 3) which))
                images

        let started = (Lesson.learn 0.0 names (part parts.Head) ignore kept).After

        let ended =
            parts.Tail
            |> List.fold
                (fun kept which -> (Lesson.addImages 0.0 names (part which) ignore kept).After)
                started

        Hidden.leaves ended.State.Head |> Seq.map TestFiles.numbers |> Array.concat,
        ended.Classes |> Array.map _.Images)

[<Tests>]
let tests =
    testList
        "Learner commands"
        [
            testCase
                "a learner's life: learn, learn more, predict, evaluate, inspect, forget, rename"
                (inShop (fun world ->
                    let january = first world "january" []
                    Expect.stringContains january "new         4 classes, 40 images" "what is learned"

                    Expect.isMatch january "(?m)^time +about [0-9.]+ s" "how long it takes"

                    Expect.stringContains january "the network stays frozen" "the decision"
                    Expect.stringContains january "accuracy    100.0% of 4 held-out images" "held out"
                    Directory.Delete(under world "january", true)
                    let february = done' (learning world "february" [])
                    Expect.stringContains february "knows 4 classes" "before"
                    Expect.stringContains february "knows 6 classes" "after"
                    Expect.isMatch february "(?m)^time +about [0-9.]+ s$" "nothing is open any more"

                    photos (under world "test") [ "ant"; "bee"; "cat"; "dog"; "elk"; "fox" ] 3
                    |> ignore

                    Directory.Move(under world "test/fox", under world "test/wolf")
                    let evaluated = done' [ "evaluate"; shop world; under world "test" ]
                    Expect.isMatch evaluated "(?m)^all +15 +100.0" "old classes too"

                    Expect.isMatch
                        evaluated
                        "3 images of 1 class that it does not know \(wolf\): AUROC"
                        "unknown"

                    Expect.stringContains evaluated "probabilities are off by" "calibration"

                    let file = under world "test/elk/1.png"
                    Expect.stringStarts (done' [ "predict"; shop world; file ]) $"{file}: elk " "predicted"

                    let inspected = done' [ "inspect"; shop world ]
                    Expect.isMatch inspected "(?m)^ +1 +10 +dog" "a class of the first group"
                    Expect.isMatch inspected "(?m)^ +2 +10 +elk" "a class of the second"

                    done' [ "forget"; shop world; "elk" ] |> ignore
                    done' [ "rename"; shop world; "ant"; "wasp" ] |> ignore
                    let after = done' [ "inspect"; shop world ]
                    Expect.isFalse (after.Contains "elk") "forgotten"
                    Expect.isMatch after "(?m)^ +1 +10 +wasp" "renamed"
                    let now = done' [ "predict"; shop world; file ]
                    Expect.isFalse (now.Contains "elk ") "not predicted any more"))

            testCase
                "names that look like options, after --"
                (inShop (fun world ->
                    first world "january" [ "--method"; "frozen" ] |> ignore
                    done' [ "rename"; shop world; "bee"; "--"; "--help" ] |> ignore
                    Expect.isMatch (done' [ "inspect"; "--"; shop world ]) "(?m)^ +1 +10 +--help$" "renamed"
                    done' [ "rename"; shop world; "--"; "--help"; "-" ] |> ignore

                    refusedIn
                        world
                        [ "class '--help'"; "unknown class" ]
                        [ "forget"; shop world; "--"; "--help" ]

                    refusedIn world [ "class '--'"; "unknown class" ] [ "forget"; shop world; "--"; "--" ]
                    refusedIn world [ "unknown option '--'" ] [ "--"; "forget"; shop world; "ant" ]

                    refusedIn
                        world
                        [ "--epochs must be followed by N" ]
                        [ "learn"; "x"; "--epochs"; "--"; "5" ]

                    done' [ "forget"; "--"; shop world; "-" ] |> ignore
                    Expect.isFalse ((done' [ "inspect"; shop world ]).Contains "  -") "forgotten"))

            testCase
                "a folder of other files becomes a learner's, which is said"
                (inShop (fun world ->
                    let notes = under (Directory.CreateDirectory(shop world).FullName) "notes.txt"
                    File.WriteAllText(notes, "mine")
                    let said = first world "january" [ "--method"; "frozen" ]
                    Expect.stringContains said "the folder was not a learner; its 1 other file" "said"
                    Expect.equal (File.ReadAllText notes) "mine" "it stays"
                    let again = done' (learning world "february" [])
                    Expect.isFalse (again.Contains "other file") "a learner now"))

            testCase "the time that learning takes is that of its parts" (fun () ->
                let cost: LearnCost =
                    {
                        Pass = 1.0
                        Training = 10.0
                        Task = 1000.0
                        Deploy = 10000.0
                    }

                let work =
                    {
                        New = 100
                        More = 0
                        HoldOut = 0.0
                        Epochs = 2
                        Trial = 0
                    }

                let both seconds = struct (seconds, seconds)
                Expect.equal (LearnTime.seconds cost work) (both 3100.0) "training"
                Expect.equal (LearnTime.seconds cost { work with Epochs = 0 }) (both 1100.0) "frozen"

                Expect.equal
                    (LearnTime.seconds
                        cost
                        { work with
                            New = 0
                            More = 50
                            Epochs = 0
                        })
                    (both 1050.0)
                    "more images"

                Expect.equal
                    (LearnTime.seconds cost { work with HoldOut = 0.1; Epochs = 0 })
                    (both 12110.0)
                    "held-out images are predicted and learned"

                Expect.equal
                    (LearnTime.seconds cost { work with Trial = 100 })
                    (struct (24100.0, 26100.0))
                    "a trial"

                Expect.equal
                    (LearnTime.seconds cost { work with Trial = 50 })
                    (struct (23600.0, 25600.0))
                    "a trial of half the images")

            testCase
                "predictions as CSV and JSON lines, of files, folders and a list"
                (inShop (fun world ->
                    first world "january" [] |> ignore
                    let folder = under world "january/ant"
                    let csv = done' [ "predict"; shop world; folder; "--top"; "2"; "--format"; "csv" ]
                    let rows = csv.Trim().Split '\n'
                    Expect.equal rows[0] "file,rank,class,score,probability,known" "header"
                    Expect.hasLength rows 21 "two rows for each of ten images"

                    for row in rows[1..] |> Array.filter _.Contains(",1,") do
                        Expect.stringContains row ",1,ant," "the class of the folder"

                    let lines =
                        (done'
                            [
                                "predict"
                                shop world
                                under world "january"
                                "--top"
                                "9"
                                "--format"
                                "jsonl"
                            ])
                            .Trim()
                            .Split
                            '\n'

                    Expect.hasLength lines 40 "every image below the folder"

                    for line in lines do
                        let json = JsonDocument.Parse(line).RootElement
                        let classes = json.GetProperty "classes"
                        Expect.equal (classes.GetArrayLength()) 4 "all classes where there are fewer"

                        let scores =
                            [ for one in classes.EnumerateArray() -> (one.GetProperty "score").GetDouble() ]

                        Expect.equal scores (List.sortDescending scores) "best first"

                        Expect.stringContains
                            ((json.GetProperty "file").GetString())
                            $"""{Path.DirectorySeparatorChar}{classes[0].GetProperty("name").GetString()}{Path.DirectorySeparatorChar}"""
                            "the folder's class"

                    use list =
                        new StringReader(
                            String.concat "\n" [ under folder "1.png"; ""; under folder "2.png" ]
                        )

                    let input = Console.In

                    try
                        Console.SetIn list
                        let listed = done' [ "predict"; shop world; "-" ]
                        Expect.hasLength (listed.Trim().Split '\n') 2 "each line is a file"
                    finally
                        Console.SetIn input))

            testCase
                "files that are not images are skipped when predicting, and else refused, or skipped on request"
                (inShop (fun world ->
                    File.WriteAllText(under world "january/ant/0.png", "no image")

                    refusedIn
                        world
                        [ "0.png"; "fix or remove the file, or pass --skip-broken" ]
                        (learning world "january" [ "--backbone"; under world "vit.safetensors" ])

                    photos (under world "may") [ "elk" ] 1 |> ignore
                    Directory.CreateDirectory(under world "may/yak") |> ignore
                    File.WriteAllText(under world "may/yak/0.png", "no image")

                    refusedIn
                        world
                        [ "class 'yak'"; "an image that can be read"; "--skip" ]
                        (learning
                            world
                            "may"
                            [ "--backbone"; under world "vit.safetensors"; "--skip-broken" ])

                    let learned =
                        inside (
                            learning
                                world
                                "january"
                                [ "--backbone"; under world "vit.safetensors"; "--skip-broken" ]
                        )

                    Expect.equal learned.Code 0 "learned"
                    Expect.stringContains learned.Error "0.png is skipped" "said"
                    Expect.stringContains learned.Out "4 classes, 40 images" "the others"

                    let predicted =
                        inside [ "predict"; shop world; under world "january/ant"; "nowhere.png" ]

                    Expect.equal predicted.Code 1 "some are missing"
                    Expect.stringContains predicted.Error "0.png is skipped" "no image"
                    Expect.stringContains predicted.Error "nowhere.png is skipped" "no file"
                    Expect.hasLength (predicted.Out.Trim().Split '\n') 10 "the others"

                    let evaluating = [ "evaluate"; shop world; under world "january" ]
                    refusedIn world [ "0.png"; "--skip-broken" ] evaluating
                    let evaluated = inside (evaluating @ [ "--skip-broken" ])
                    Expect.equal evaluated.Code 0 "evaluated"
                    Expect.stringContains evaluated.Error "0.png is skipped" "said"
                    Expect.isTrue (Regex.IsMatch(evaluated.Out, @"(?m)^all +40 ")) evaluated.Out

                    // of the class that the learner does not know, no image is left
                    Directory.Move(under world "may/yak", under world "january/yak")
                    let evaluated = inside (evaluating @ [ "--skip-broken" ])
                    Expect.equal evaluated.Code 0 evaluated.Error
                    Expect.isFalse (evaluated.Out.Contains "AUROC") evaluated.Out
                    File.WriteAllText(under world "may/elk/1.png", "no image")

                    refusedIn
                        world
                        [ "an image that can be read" ]
                        [ "evaluate"; shop world; under world "may"; "--skip-broken" ]))

            testCase
                "known classes are left out, or learned from more images"
                (inShop (fun world ->
                    first
                        world
                        "january"
                        [ "--skip"; "cat, dog"; "--rename"; "bee=honey bee"; "--holdout"; "0" ]
                    |> ignore

                    let more = photos (under world "march") [ "ant"; "cat" ] 4 |> Path.GetFileName
                    let without = done' (learning world more [])
                    Expect.stringContains without "known       1 left out" "left out"
                    refusedIn world [ "2 known classes"; "--more" ] (learning world more [])
                    let added = done' (learning world more [ "--more"; "--holdout"; "0.5" ])
                    Expect.stringContains added "more        2 classes, 8 images" "added"
                    let inspected = done' [ "inspect"; shop world ]

                    for images, name in [ 14, "ant"; 10, "honey bee"; 8, "cat" ] do
                        Expect.isMatch inspected $"(?m)^ +[12] +{images} +{name}$" name))

            testCase
                "a name that differs from a known one only by case or normalisation is refused"
                (inShop (fun world ->
                    first world "january" [ "--rename"; "bee=caf\u00E9" ] |> ignore

                    for name, known in [ "Ant", "ant"; "cafe\u0301", "caf\u00E9" ] do
                        let more = Path.Combine(world, "more", name)
                        Directory.CreateDirectory more |> ignore
                        File.Copy(under world "february/elk/1.png", Path.Combine(more, "1.png"))

                        refusedIn
                            world
                            [ $"class '{name}'"; $"'{known}'"; $"--more --rename \"{name}={known}\"" ]
                            (learning world "more" [])

                        let renamed =
                            done' (learning world "more" [ "--more"; "--rename"; $"{name}={known}" ])

                        Expect.stringContains renamed "more        1 class, 1 image" "the same class"
                        Directory.Delete(more, true)))

            testCase
                "a method's own classifier learns all images at once, and no more of them"
                (inShop (fun world ->
                    let said =
                        first
                            world
                            "january"
                            [ "--method"; "inflora"; "--head"; "logits"; "--embedding"; "class-token" ]

                    Expect.stringContains said "learned     40 images" "all of them"
                    Expect.isFalse (said.Contains "accuracy") "none held out"

                    Expect.equal
                        (LearnerFile.record (shop world)).Settings["head-lr"]
                        "0.0005"
                        "the published rate of the method"

                    let more = photos (under world "march") [ "ant"; "elk" ] 3 |> Path.GetFileName
                    refusedIn world [ "--more"; "keeps sums" ] (learning world more [ "--more" ])))

            testCase
                "whether heads follow the network may change"
                (inShop (fun world ->
                    first world "january" [ "--method"; "frozen" ] |> ignore
                    done' (learning world "february" [ "--no-transport" ]) |> ignore
                    Expect.equal (LearnerFile.record (shop world)).Transport (Some false) "saved"))

            testCase
                "two learners: the difference, and one of both"
                (inShop (fun world ->
                    first world "january" [ "--method"; "frozen" ] |> ignore
                    let branch = under world "branch"

                    let other =
                        learning
                            world
                            "february"
                            [ "--method"; "frozen"; "--backbone"; under world "vit.safetensors" ]

                    done' ("learn" :: branch :: other[2..]) |> ignore
                    let diff = done' [ "diff"; shop world; branch ]

                    for line in
                        [
                            $"left        {shop world}: 4 classes, 40 images"
                            $"right       {branch}: 2 classes, 20 images"
                            "only left   ant, 10 images"
                            "only right  fox, 10 images"
                            "means       not comparable"
                            "network     the same"
                        ] do
                        Expect.contains (diff.Split('\n', StringSplitOptions.TrimEntries)) line "difference"

                    Expect.stringContains (done' [ "diff"; branch; branch ]) "no difference" "itself"

                    let damaged = Directory.CreateDirectory(under world "damaged").FullName

                    for file in [ "learner.json"; "learner.safetensors" ] do
                        File.Copy(under branch file, under damaged file)

                    let tensors = under damaged "learner.safetensors"
                    let bytes = File.ReadAllBytes tensors
                    bytes[bytes.Length - 1] <- bytes[bytes.Length - 1] ^^^ 1uy
                    File.WriteAllBytes(tensors, bytes)

                    for pair in [ [ branch; damaged ]; [ damaged; branch ]; [ damaged; damaged ] ] do
                        refusedIn world [ tensors; "must have the SHA-256"; "backup" ] ("diff" :: pair)

                    let merged = done' [ "merge"; shop world; branch ]
                    Expect.stringContains merged "added       2 classes; 0 already known" "what was done"
                    Expect.stringContains merged "knows       6 classes, from 60 images" "what it knows"
                    let inspected = done' [ "inspect"; shop world ]
                    Expect.isMatch inspected "(?m)^ +1 +10 +dog" "its own"
                    Expect.isMatch inspected "(?m)^ +2 +10 +elk" "the other's, in a group of its own"
                    let file = under world "february/elk/1.png"
                    Expect.stringStarts (done' [ "predict"; shop world; file ]) $"{file}: elk " "predicted"

                    refusedIn world [ "class 'elk'"; "count twice" ] [ "merge"; shop world; branch ]
                    refusedIn world [ "two learners" ] [ "merge"; shop world; shop world + "/" ]
                    refusedIn world [ "no learner.json" ] [ "merge"; shop world; under world "none" ]
                    refusedIn world [ "needs the folders of two learners" ] [ "diff"; branch ]

                    let adapted = under world "adapted"

                    let other =
                        learning
                            world
                            "february"
                            [ "--method"; "sequential"; "--backbone"; under world "vit.safetensors" ]

                    done' ("learn" :: adapted :: other[2..]) |> ignore

                    refusedIn
                        world
                        [ "see and predict alike"; "method: frozen, sequential" ]
                        [ "merge"; shop world; adapted ]))

            testCase
                "weights, adapter and classes are exported, and the weights are a backbone"
                (inShop (fun world ->
                    let out name = under world name

                    let files name =
                        Directory.GetFiles(out name, "*", SearchOption.AllDirectories)
                        |> Array.map (fun path -> Path.GetRelativePath(out name, path))
                        |> Array.sort

                    let plain = [| "class-means.npy"; "classes.csv"; "weights.safetensors" |]

                    let adapter =
                        [| "adapter/adapter_config.json"; "adapter/adapter_model.safetensors" |]

                    let learnAs name method =
                        let arguments =
                            learning
                                world
                                "january"
                                [
                                    "--method"
                                    method
                                    "--backbone"
                                    under world "vit.safetensors"
                                    "--input-range"
                                    "-1,1"
                                ]

                        done' ("learn" :: under world name :: arguments[2..]) |> ignore

                    learnAs "still" "frozen"
                    let said = done' [ "export"; under world "still"; out "a" ]
                    Expect.equal (files "a") plain "files"
                    Expect.stringContains said "no adapter: method frozen" "said so"

                    for ask, name in [ [ "--rank"; "1" ], "still"; [ "--rank"; "9" ], "still" ] do
                        refusedIn
                            world
                            [ "--rank: needs an adapter"; "method frozen"; "remove --rank" ]
                            ([ "export"; under world name; out "x" ] @ ask)

                    Expect.stringContains said "classes.csv" "classes"

                    learnAs "moved" "sequential"
                    let said = done' [ "export"; under world "moved"; out "b" ]
                    Expect.equal (files "b") (Array.append adapter plain) "files"
                    // rank 2 on each of keys and values
                    Expect.isMatch said @"(?m)^adapter     .*: rank 4, relative error \d\.\de-\d" "exact"
                    let low = done' [ "export"; under world "moved"; out "c"; "--rank"; "1" ]
                    Expect.isMatch low @"(?m)^adapter     .*: rank 1, relative error \d\.\de-[01]" "lossy"
                    refusedIn world [ "a new or an empty folder" ] [ "export"; under world "moved"; out "b" ]
                    refusedIn world [ "no learner.json" ] [ "export"; out "b"; out "d" ]

                    learnAs "many" "ease"
                    let said = done' [ "export"; under world "many"; out "e" ]
                    Expect.equal (files "e") [| "class-means.npy"; "classes.csv" |] "classes alone"
                    Expect.stringContains said "no weights: method ease" "said so"

                    let weights = under world "b/weights.safetensors"
                    let info = done' [ "backbone"; "info"; weights ]
                    Expect.stringContains info "2 heads" "what the file states"

                    done'
                        [
                            "learn"
                            under world "again"
                            under world "january"
                            "--backbone"
                            weights
                            "--method"
                            "frozen"
                        ]
                    |> ignore

                    let record = LearnerFile.record (under world "again")
                    Expect.equal record.InputRange [| -1.0; 1.0 |] "its input range"
                    Expect.equal record.Heads 2 "its heads"))

            testCase
                "images added later count as if they had been there"
                (inShop (fun world ->
                    for head in [ "nearest-mean"; "cosine-lda"; "ridge"; "fecam" ] do
                        let whole, count = sums world head [ [ 0; 1; 2 ] ]
                        let later, laterCount = sums world head [ [ 0 ]; [ 2 ]; [ 1 ] ]
                        Expect.equal laterCount count $"{head}: images"
                        Expect.hasLength later whole.Length $"{head}: sums"

                        for a, b in Array.zip whole later do
                            Expect.floatClose Accuracy.high b a head))

            testCase
                "bad requests are refused, and a learner stays as it was"
                (inShop (fun world ->
                    let none = under world "none"
                    refusedIn world [ "no learner.json"; "lorasub learn" ] [ "predict"; none; "x.png" ]
                    refusedIn world [ "no learner.json" ] [ "inspect"; none ]
                    refusedIn world [ "no learner.json" ] [ "forget"; none; "ant" ]
                    refusedIn world [ "no such folder" ] [ "learn"; shop world; under world "nowhere" ]

                    refusedIn
                        world
                        [ "outside" ]
                        [ "learn"; under world "january/shop"; under world "january" ]

                    first world "january" [] |> ignore
                    let learn more = learning world "february" more
                    refusedIn world [ "--head"; "when a learner is made" ] (learn [ "--head"; "lda" ])
                    refusedIn world [ "--preset"; "when a learner is made" ] (learn [ "--preset"; "small" ])
                    refusedIn world [ "--no-training"; "when a learner is made" ] (learn [ "--no-training" ])
                    refusedIn world [ "--holdout"; "'1'" ] (learn [ "--holdout"; "1" ])
                    refusedIn world [ "--rename"; "FOLDER=NAME" ] (learn [ "--rename"; "elk" ])
                    refusedIn world [ "class 'wolf'"; "no such folder" ] (learn [ "--skip"; "wolf" ])
                    refusedIn world [ "--skip"; "every folder" ] (learn [ "--skip"; "elk,fox" ])

                    refusedIn
                        world
                        [ "class 'ant'"; "one folder"; "'ant', 'Ant'"; "--rename" ]
                        (learn [ "--rename"; "elk=ant,fox=Ant" ])

                    refusedIn world [ "--epoks"; "did you mean --epochs" ] (learn [ "--epoks"; "2" ])
                    refusedIn world [ "class 'ent'"; "did you mean ant" ] [ "forget"; shop world; "ent" ]
                    refusedIn world [ "class 'bee'"; "must be new" ] [ "rename"; shop world; "ant"; "bee" ]
                    refusedIn world [ "needs a learner's folder" ] [ "predict"; shop world ]
                    refusedIn world [ "--top"; "0" ] [ "predict"; shop world; "x.png"; "--top"; "0" ]

                    refusedIn
                        world
                        [ "--format"; "did you mean jsonl" ]
                        [ "predict"; shop world; "x.png"; "--format"; "json" ]

                    refusedIn world [ "knows"; "none" ] [ "evaluate"; shop world; under world "february" ]

                    Tiny.writeBackbone (under world "other.safetensors") 8 2 9

                    refusedIn
                        world
                        [ "other.safetensors"; "SHA-256" ]
                        [
                            "predict"
                            shop world
                            "x.png"
                            "--backbone"
                            under world "other.safetensors"
                        ]

                    File.Move(under world "vit.safetensors", under world "moved.safetensors")
                    refusedIn world [ "needs its backbone"; "--backbone" ] [ "predict"; shop world; "x.png" ]

                    done'
                        [
                            "predict"
                            shop world
                            under world "january/bee/1.png"
                            "--backbone"
                            under world "moved.safetensors"
                        ]
                    |> ignore

                    done' [ "forget"; shop world; "dog"; "--backbone"; under world "moved.safetensors" ]
                    |> ignore

                    let tensors = LearnerFile.tensorPath (shop world)
                    let whole = File.ReadAllBytes tensors
                    File.WriteAllBytes(tensors, Array.append whole [| 0uy |])
                    refusedIn world [ "learner.safetensors"; "SHA-256"; "backup" ] [ "inspect"; shop world ]
                    File.WriteAllBytes(tensors, whole)

                    use _ = RunFolder.hold (shop world)

                    let ended = inside [ "forget"; shop world; "ant" ]

                    Expect.equal ended.Code 2 "in use"
                    Expect.stringContains ended.Error "another process" "in use"))

            testCase
                "a change that is saved is done, though nothing can be printed"
                (inShop (fun world ->
                    first world "january" [ "--method"; "frozen" ] |> ignore
                    use error = new StringWriter()

                    let unprinted arguments =
                        use full =
                            { new StringWriter() with
                                override _.WriteLine(_: string) : unit =
                                    raise (IOException "No space left on device")
                            }

                        Program.start
                            {
                                Out = full
                                Error = error
                                Terminal = None
                                Interruption = Interruption()
                            }
                            (Array.ofList arguments)

                    Expect.equal (unprinted [ "forget"; shop world; "ant" ]) 0 "forgotten"
                    Expect.equal (unprinted [ "inspect"; shop world ]) 1 "nothing else comes of it"
                    Expect.stringContains (string error) "No space left on device" "said"
                    Expect.isFalse ((done' [ "inspect"; shop world ]).Contains " ant") "forgotten"))

            testCase
                "a prediction ends when its reader has read enough"
                (inShop (fun world ->
                    first world "january" [ "--method"; "frozen" ] |> ignore
                    // more lines than a pipe holds
                    let images = List.replicate 50 (under world "january")
                    use child = processOf [] ("predict" :: shop world :: images)
                    Expect.stringContains (child.StandardOutput.ReadLine()) ".png: " "an answer"
                    child.StandardOutput.Dispose()
                    Expect.equal (child.StandardError.ReadToEnd()) "" "nothing to say"
                    child.WaitForExit()
                    Expect.equal child.ExitCode 141 "as for SIGPIPE"))

            testCase
                "an interruption leaves the learner as it was"
                (inShop (fun world ->
                    first world "january" [ "--method"; "sequential" ] |> ignore

                    let learner () =
                        contents (shop world)
                        |> Array.filter (fun (path, _) -> (Path.GetFileName path).StartsWith "learner.")

                    let before = learner ()

                    use child = processOf [] (learning world "february" [ "--epochs"; "1000000" ])

                    // it has said what it will learn, and cannot be done
                    while not (child.StandardOutput.ReadLine().StartsWith "new ") do
                        ()

                    use kill = Diagnostics.Process.Start("kill", [ "-TERM"; string child.Id ])
                    kill.WaitForExit()
                    let error = child.StandardError.ReadToEnd()
                    child.WaitForExit()
                    Expect.equal child.ExitCode 143 "stopped"
                    Expect.stringContains error "the learner is as it was. The same command continues" "said"
                    Expect.equal (learner ()) before "unchanged"

                    let lessons () =
                        Directory.GetFiles(shop world, "lesson-*.safetensors")

                    Expect.hasLength (lessons ()) 1 "the lesson waits"

                    // another lesson does not continue it, and ends it
                    let ended = inside (learning world "february" [])
                    Expect.equal ended.Code 0 ended.Error

                    Expect.stringContains
                        ended.Error
                        "starts again: it was of other images, classes, settings or threads"
                        "said"

                    Expect.isEmpty (lessons ()) "none waits"))
        ]
