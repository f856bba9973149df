module LoRASub.Tests.FluentTests

open System
open System.Diagnostics
open System.IO
open System.Runtime.InteropServices
open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Run
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open TorchSharp

let private options () =
    ClassifierOptions(
        // a method that trains on any data
        Preset = "libcontinual",
        Epochs = 2,
        BatchSize = 8,
        Rank = 2,
        LearningRate = 5e-3,
        HeadLearningRate = 1e-2,
        Augment = false,
        Seed = 3L,
        Device = Generators.deviceName
    )

/// A backbone file of width 8 and the folder that holds it.
let private withBackbone (test: string -> string -> unit) () =
    Probe.inFolder (fun folder ->
        let backbone = Path.Combine(folder, "backbone.safetensors")
        Tiny.writeBackbone backbone 8 2 7
        test folder backbone)

let private data = Tiny.dataset 4 6 3
let private colours = data.ClassNames
let private train = ImageCollection(data.Train, colours, [||])
let private test = ImageCollection(data.Test, colours, [||])

let private learnGroup (classifier: ContinualClassifier) (group: int[]) =
    classifier.Learn(Images.OfClasses(train, group))

let private learned backbone (options: ClassifierOptions) =
    let classifier = ContinualClassifier.Create(backbone, options)
    learnGroup classifier [| 0; 1 |]
    learnGroup classifier [| 2; 3 |]
    classifier

let private read (images: ImageCollection) (positions: int[]) =
    TestFiles.planesAt 1 images.Set positions

/// Runs the C# program that comes with the tests: exit code, output and errors.
let private runProgram (arguments: string list) =
    // tests/LoRASub.FSharp.Tests/bin/… and tests/LoRASub.FSharp.CSharp/bin/… are built side by side
    let mine = "LoRASub.FSharp.Tests"
    let own = AppContext.BaseDirectory
    let at = own.LastIndexOf(mine, StringComparison.Ordinal)
    let folder = own.Remove(at, mine.Length).Insert(at, "LoRASub.FSharp.CSharp")
    let program = Path.Combine(folder, "LoRASub.FSharp.CSharp.dll")
    Expect.isTrue (File.Exists program) $"{program} must be built with the tests"

    let info = ProcessStartInfo(Probe.dotnet, program :: arguments)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true
    use child = Process.Start info
    let errors = child.StandardError.ReadToEndAsync()
    let output = child.StandardOutput.ReadToEnd()
    child.WaitForExit()
    child.ExitCode, output, errors.Result

[<Tests>]
let tests =
    testList
        "Fluent"
        [
            testCase
                "groups of classes are learned, each image gets a class and a score"
                (withBackbone (fun _ backbone ->
                    use classifier = learned backbone (options ())
                    Expect.sequenceEqual classifier.ClassNames colours "names in the order learned"
                    let predictions = classifier.Predict test
                    Expect.equal predictions.Length 12 "one per image"

                    for p in predictions do
                        Expect.contains colours p.ClassName "a known class"
                        Expect.isTrue (Double.IsFinite p.Score) "score"

                    let right =
                        Array.map2
                            (fun (p: Prediction) label -> p.ClassName = colours[label])
                            predictions
                            (Array.ofSeq test.Labels)
                        |> Array.filter id

                    Expect.isGreaterThan right.Length 6 "right of 12, where guessing gives 3"))

            testCase
                "predicting twice, in other batches and by position gives the same"
                (withBackbone (fun _ backbone ->
                    use classifier = learned backbone (options ())
                    let all = classifier.Predict test
                    Expect.equal (classifier.Predict test) all "again"

                    let some = classifier.Predict(test, [| 7; 2; 2 |])

                    Array.iter2
                        (fun (a: Prediction) (b: Prediction) ->
                            Expect.equal b.ClassName a.ClassName "class"
                            closeTo 1e-5 "score" [ a.Score ] [ b.Score ])
                        [| all[7]; all[2]; all[2] |]
                        some

                    Expect.isEmpty (classifier.Predict(test, [||])) "no position"))

            testCase
                "files of differing sizes are learned from a folder and predicted one by one"
                (withBackbone (fun folder backbone ->
                    let paint (name: string) red green i =
                        let path = Path.Combine(folder, "pets", name, $"{i}.png")

                        TestFiles.writePicture
                            path
                            (TestFiles.plainPicture (9 + i) (14 - i) red green (20 * i))

                        path

                    let cats = Array.init 4 (paint "cat" 240 10)
                    let dogs = Array.init 4 (paint "dog" 10 240)
                    let pets = Images.FromFolder(Path.Combine(folder, "pets"))
                    Expect.sequenceEqual pets.ClassNames [| "cat"; "dog" |] "folders"
                    Expect.sequenceEqual pets.Labels [| 0; 0; 0; 0; 1; 1; 1; 1 |] "labels"
                    Expect.isEmpty pets.Notes "nothing left out"
                    File.WriteAllText(Path.Combine(folder, "pets", "cat", "a.tga"), "")

                    Expect.stringContains
                        (Seq.exactlyOne (Images.FromFolder(Path.Combine(folder, "pets"))).Notes)
                        ".tga"
                        "left out"

                    let changed = options ()
                    changed.Augment <- true
                    use classifier = ContinualClassifier.Create(backbone, changed)
                    classifier.Learn pets

                    let names paths =
                        classifier.Predict(Images.FromFiles(paths: string[])) |> Array.map _.ClassName

                    Expect.equal
                        (names [| dogs[3]; cats[0]; dogs[0] |])
                        [| "dog"; "cat"; "dog" |]
                        "in their order"

                    let dogsAlone = Images.OfClasses(pets, [| 1 |])

                    Expect.all
                        (classifier.Predict dogsAlone)
                        (fun p -> p.ClassName = "dog")
                        "one of the classes"

                    classifier.Learn([| "fox" |], Images.FromFiles([| 0; 0 |], [| cats[0]; dogs[1] |]))
                    Expect.equal classifier.ClassNames.Count 3 "a third class, from files"

                    refused [ "labels"; "must be 2"; "1" ] (fun () ->
                        Images.FromFiles([| 0 |], cats[..1]) |> ignore)

                    refused [ "paths"; "must be given" ] (fun () -> Images.FromFiles(null) |> ignore)
                    refused [ "nowhere"; "no such folder" ] (fun () -> Images.FromFolder "nowhere" |> ignore)
                    refused [ "folder"; "empty" ] (fun () -> Images.FromFolder "" |> ignore)
                    File.WriteAllText(cats[1], "no image")

                    refused [ "1.png"; "JPEG, PNG, WebP, BMP or GIF" ] (fun () ->
                        names [| cats[1] |] |> ignore)))

            testCase
                "learning more changes what is predicted with"
                (withBackbone (fun _ backbone ->
                    use classifier = ContinualClassifier.Create(backbone, options ())
                    learnGroup classifier [| 0; 1 |]
                    let before = classifier.Predict test

                    Expect.all
                        before
                        (fun p -> p.ClassName = colours[0] || p.ClassName = colours[1])
                        "two classes"

                    learnGroup classifier [| 2; 3 |]

                    Expect.exists
                        (classifier.Predict test)
                        (fun p -> p.ClassName = colours[2] || p.ClassName = colours[3])
                        "new classes"))

            testCase
                "several best classes, more images and another name"
                (withBackbone (fun folder backbone ->
                    use classifier = learned backbone (options ())
                    let best = classifier.PredictTopK(test, 3)
                    Expect.equal (best |> Array.map Array.head) (classifier.Predict test) "the best"

                    for some in best do
                        Expect.hasLength some 3 "as many as asked for"
                        Expect.hasLength (Array.distinctBy _.ClassName some) 3 "different ones"
                        let scores = some |> Array.map _.Score
                        Expect.equal scores (Array.sortDescending scores) "best first"

                    Expect.hasLength
                        (Array.head (classifier.PredictTopK(test, 9)))
                        4
                        "all where there are fewer"

                    refused [ "count"; "0" ] (fun () -> classifier.PredictTopK(test, 0) |> ignore)
                    let before = classifier.Predict test

                    let image = test.Select [| 0 |]

                    let classOf set =
                        (classifier.Predict(set: ImageCollection) |> Array.head).ClassName

                    let right = classOf image
                    let other = colours |> Array.find ((<>) right)
                    // the same image many times as another class
                    let many = Images.OfClasses(test.Select(Array.zeroCreate 500), [| 0 |])
                    classifier.AddImages(many.WithClasses other)

                    Expect.equal (classOf image) other "more images count"
                    Expect.notEqual (classifier.Predict test) before "and change predictions"

                    refused [ "class 'tiger'"; "must be known" ] (fun () ->
                        classifier.AddImages([| "tiger" |], Images.OfClasses(image, [| 0 |])))

                    classifier.Rename(other, "tiger")
                    Expect.equal (classOf image) "tiger" "the same class"
                    refused [ right; "must be new" ] (fun () -> classifier.Rename("tiger", right))
                    let saved = Path.Combine(folder, "saved")
                    classifier.Save saved

                    let tiger =
                        (LearnerFile.record saved).State.Classes
                        |> Array.find (fun one -> one.Name = "tiger")

                    Expect.equal tiger.Images 506L "its images"))

            testCase
                "the same seed gives the same classifier, another seed another"
                (withBackbone (fun _ backbone ->
                    let predictions seed =
                        let options = options ()
                        options.Seed <- seed
                        options.Augment <- true
                        use classifier = learned backbone options
                        classifier.Predict test

                    Expect.equal (predictions 1L) (predictions 1L) "the same"
                    Expect.notEqual (predictions 1L) (predictions 2L) "another"))

            testCase
                "a saved classifier is loaded, predicts the same and learns on the same"
                (withBackbone (fun folder backbone ->
                    let saved = Path.Combine(folder, "new", "classifier")
                    use first = ContinualClassifier.Create(backbone, options ())
                    learnGroup first [| 0; 1 |]
                    first.Save saved
                    first.Save saved // over itself
                    let other = options ()
                    // the saved ones count
                    other.InputLow <- Nullable 0.0
                    other.NormEpsilon <- Nullable 1e-3
                    use loaded = ContinualClassifier.Load(saved, backbone, other)
                    Expect.sequenceEqual loaded.ClassNames first.ClassNames "names"
                    Expect.equal (loaded.Predict test) (first.Predict test) "predictions"
                    learnGroup first [| 2; 3 |]
                    learnGroup loaded [| 2; 3 |]
                    Expect.equal (loaded.Predict test) (first.Predict test) "after more classes"))

            testCase "a finished run's learner is a classifier" (fun () ->
                Probe.inFolder (fun folder ->
                    let settings =
                        { Tiny.onFiles folder with
                            StopAfter = Some 1
                        }

                    let out = Path.Combine(folder, "out")

                    Scope.run (fun () ->
                        let plan = Plan.load settings
                        SavedRun.save out plan DateTime.UtcNow (Tiny.run plan)
                        use classifier = ContinualClassifier.Load(out, settings.Backbone.Value, options ())

                        let names =
                            plan.Stream.Tasks[0].Classes |> Array.map (fun c -> Idx.fashionMnistClasses[c])

                        Expect.sequenceEqual classifier.ClassNames names "classes learned"

                        Expect.equal
                            (classifier.Predict(ImageCollection(plan.Stream.Dataset.Test, [||], [||])))
                                .Length
                            30
                            "predictions")))

            testCase
                "the first group of classes decides whether the network adapts"
                (withBackbone (fun folder backbone ->
                    let options () =
                        let options = options ()
                        options.Preset <- ClassifierOptions().Preset
                        options

                    use small = ContinualClassifier.Create(backbone, options ())
                    Expect.isNull small.Adaptation "before"
                    learnGroup small [| 0; 1 |]
                    Expect.stringContains small.Adaptation "too small" "two classes"

                    use large = ContinualClassifier.Create(backbone, options ())
                    learnGroup large [| 0..3 |]

                    Expect.stringContains
                        large.Adaptation
                        "4 held-out training images of 4 classes"
                        "a trial"

                    let saved = Path.Combine(folder, "saved")
                    large.Save saved
                    use loaded = ContinualClassifier.Load(saved, backbone, options ())
                    Expect.equal (loaded.Predict test) (large.Predict test) "the choice is saved"))

            testCase
                "every preset learns and predicts"
                (withBackbone (fun _ backbone ->
                    for preset in [ "small"; "official" ] do
                        let options = options ()
                        options.Preset <- preset
                        use classifier = learned backbone options
                        Expect.equal (classifier.Predict test).Length 12 preset))

            rejects "an unknown preset" [ "preset"; "did you mean small?" ] (fun () ->
                let options = options ()
                options.Preset <- "smal"
                ContinualClassifier.Create("absent.safetensors", options) |> ignore)

            testCase
                "shares are checked when a classifier is made, and options that change later change nothing"
                (withBackbone (fun _ backbone ->
                    for name, change in
                        [
                            "HoldOut", (fun (o: ClassifierOptions) -> o.HoldOut <- 1.0)
                            "FalseAlarms", (fun o -> o.FalseAlarms <- nan)
                        ] do
                        let options = options ()
                        change options

                        refused [ name; "at least 0 and below 1" ] (fun () ->
                            ContinualClassifier.Create(backbone, options) |> ignore)

                    let options = options ()
                    use classifier = learned backbone options
                    let before = classifier.Predict test
                    options.FalseAlarms <- 0.9
                    Expect.equal (classifier.Predict test) before "predictions"))

            testCase
                "progress is told"
                (withBackbone (fun _ backbone ->
                    let steps = ResizeArray<LearningProgress>()
                    let options = options ()
                    options.Progress <- Action<LearningProgress>(steps.Add)
                    use _ = learned backbone options
                    let phases = steps |> Seq.map _.Phase |> Seq.distinct |> List.ofSeq
                    Expect.equal phases [ "train"; "prototypes"; "observe" ] "phases"
                    Expect.exists steps (fun s -> not (Double.IsNaN s.Loss)) "a loss"
                    Expect.all steps (fun s -> s.Done >= 0 && s.Done <= s.Total && s.Total > 0) "steps"))

            testCase
                "where memory runs out, learning and prediction say so and leave the classifier as it was"
                (withBackbone (fun _ backbone ->
                    let options = options ()
                    use classifier = learned backbone options
                    let before = classifier.Predict test

                    let fails (words: string list) (call: unit -> unit) =
                        Expect.throwsC call (fun e ->
                            Expect.isTrue (e :? MemoryException && e :? OutOfMemoryException) $"{e}"

                            for word in words do
                                Expect.stringContains e.Message word "message")

                    Probe.leavesNothing (fun () ->
                        let native =
                            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes. Error code 12 (Cannot allocate memory)\nframe #0: f"

                        options.Progress <-
                            Action<LearningProgress>(fun _ -> raise (ExternalException native))

                        fails [ "task 3, phase"; "1.0 KiB requested"; "smaller batch" ] (fun () ->
                            classifier.Learn([| "new" |], Images.OfClasses(train, [| 0 |])))

                        options.Progress <- null
                        let reader = Func<int[], byte[]>(fun _ -> raise (OutOfMemoryException()))
                        let images = Images.FromReader([| 0 |], 3, 8, 8, reader)

                        fails [ "while predicting"; "BatchSize" ] (fun () ->
                            classifier.Predict images |> ignore))

                    Expect.equal (classifier.Predict test) before "predictions"
                    Expect.sequenceEqual classifier.ClassNames colours "names"))

            testCase
                "a disposed classifier leaves nothing, and says that it is disposed"
                (withBackbone (fun folder backbone ->
                    Probe.leavesNothing (fun () ->
                        let classifier = learned backbone (options ())
                        classifier.Predict test |> ignore
                        classifier.Save(Path.Combine(folder, "saved"))
                        (classifier :> IDisposable).Dispose()
                        (classifier :> IDisposable).Dispose()

                        for call in
                            [
                                (fun () -> classifier.Predict test |> ignore)
                                (fun () -> classifier.Save folder)
                                (fun () -> learnGroup classifier [| 0 |])
                                (fun () -> classifier.ClassNames |> ignore)
                                (fun () -> classifier.Adaptation |> ignore)
                            ] do
                            Expect.throwsT<ObjectDisposedException> call "disposed")))

            testCase
                "a learner made with a relative path is found from another folder"
                (withBackbone (fun folder backbone ->
                    let before = Environment.CurrentDirectory
                    let saved = Path.Combine(folder, "saved")

                    let expected =
                        Environment.CurrentDirectory <- Path.GetDirectoryName backbone

                        try
                            use classifier = learned (Path.GetFileName backbone) (options ())
                            classifier.Save saved
                            classifier.Predict test
                        finally
                            Environment.CurrentDirectory <- before

                    Expect.equal (LearnerFile.record saved).Settings["backbone"] backbone "the full path"
                    use again = ContinualClassifier.Load(saved, backbone, options ())
                    Expect.equal (again.Predict test) expected "the same"))

            testCase
                "a classifier outlives the scopes in which it was made, taught and asked"
                (withBackbone (fun folder backbone ->
                    let saved = Path.Combine(folder, "saved")

                    Probe.leavesNothing (fun () ->
                        use classifier =
                            Scope.run (fun () -> ContinualClassifier.Create(backbone, options ()))

                        Scope.run (fun () -> learnGroup classifier [| 0; 1 |])
                        Scope.run (fun () -> learnGroup classifier [| 2; 3 |])
                        let inside = Scope.run (fun () -> classifier.Predict test)
                        Expect.equal (classifier.Predict test) inside "predictions"
                        classifier.Save saved

                        use loaded =
                            Scope.run (fun () -> ContinualClassifier.Load(saved, backbone, options ()))

                        Expect.equal (loaded.Predict test) inside "loaded")))

            testCase
                "a refused or interrupted lesson leaves the classifier as it was"
                (withBackbone (fun _ backbone ->
                    let options = options ()
                    use classifier = ContinualClassifier.Create(backbone, options)
                    learnGroup classifier [| 0; 1 |]
                    let before = classifier.Predict test

                    Probe.leavesNothing (fun () ->
                        options.Progress <-
                            Action<LearningProgress>(fun _ -> raise (OperationCanceledException()))

                        Expect.throwsT<OperationCanceledException>
                            (fun () -> learnGroup classifier [| 2; 3 |])
                            "interrupted"

                        options.Progress <- null

                        let refusals: (string list * string[] * ImageCollection) list =
                            [
                                [ "new classes"; "at least one" ], [||], train
                                [ "class 'colour 1'"; "must be new" ],
                                [| "colour 1"; "colour 2" |],
                                Images.OfClasses(train, [| 1; 2 |])
                                [ "class ' '"; "not blank" ],
                                [| " "; "colour 2" |],
                                Images.OfClasses(train, [| 2; 3 |])
                                [ "class 'twice'"; "must be new" ],
                                [| "twice"; "twice" |],
                                Images.OfClasses(train, [| 2; 3 |])
                                [ "class 'colour 3'"; "at least one image" ],
                                [| "colour 2"; "colour 3" |],
                                Images.OfClasses(train, [| 2 |])
                                [ "labels must be in 0 to 0" ],
                                [| "colour 2" |],
                                Images.OfClasses(train, [| 2; 3 |])
                            ]

                        for words, names, images in refusals do
                            Probe.isRefused words (fun () -> classifier.Learn(names, images)))

                    Expect.equal (classifier.Predict test) before "predictions"
                    Expect.sequenceEqual classifier.ClassNames colours[..1] "names"
                    learnGroup classifier [| 2; 3 |]
                    Expect.equal classifier.ClassNames.Count 4 "learns on"))

            testList
                "refuses, leaving nothing"
                [
                    for name, words, act in
                        [
                            "no backbone file",
                            [ "nowhere.safetensors" ],
                            (fun (_: string) (_: string) ->
                                ContinualClassifier.Create "nowhere.safetensors" |> ignore)
                            "another precision",
                            [ "precision"; "'half'"; "float32" ],
                            (fun _ backbone ->
                                ContinualClassifier.Create(backbone, ClassifierOptions(Precision = "half"))
                                |> ignore)
                            "no preset",
                            [ "Preset"; "null" ],
                            (fun _ backbone ->
                                ContinualClassifier.Create(backbone, ClassifierOptions(Preset = null))
                                |> ignore)
                            "no epochs",
                            [ "epochs"; "0" ],
                            (fun _ backbone ->
                                ContinualClassifier.Create(backbone, ClassifierOptions(Epochs = 0)) |> ignore)
                            "a rank above the width",
                            [ "rank"; "10" ],
                            (fun _ backbone -> ContinualClassifier.Create backbone |> ignore)
                            "prediction before learning",
                            [ "prediction"; "at least one learned class" ],
                            (fun _ backbone ->
                                use classifier = ContinualClassifier.Create(backbone, options ())
                                classifier.Predict test |> ignore)
                            "a position that is not there",
                            [ "tiny test images"; "12" ],
                            (fun _ backbone ->
                                use classifier = learned backbone (options ())
                                classifier.Predict(test, [| 12 |]) |> ignore)
                            "a file where the folder should be",
                            [ "backbone.safetensors"; "folder" ],
                            (fun _ backbone ->
                                use classifier = learned backbone (options ())
                                classifier.Save backbone)
                            "a folder without a classifier",
                            [ "learner.json"; "no such file" ],
                            (fun folder backbone -> ContinualClassifier.Load(folder, backbone) |> ignore)
                            "another backbone",
                            [ "other.safetensors"; "SHA-256" ],
                            (fun folder backbone ->
                                use classifier = learned backbone (options ())
                                classifier.Save folder
                                let other = Path.Combine(folder, "other.safetensors")
                                Tiny.writeBackbone other 8 2 8
                                ContinualClassifier.Load(folder, other, options ()) |> ignore)
                        ] do
                        testCase
                            name
                            (withBackbone (fun folder backbone ->
                                Probe.refused words (fun () -> act folder backbone)))
                ]

            testCase
                "an evaluation counts what is predicted, in all and by class"
                (withBackbone (fun _ backbone ->
                    use classifier = learned backbone (options ())
                    // another order than the classifier's
                    let some = Images.OfClasses(test, [| 3; 1; 0 |])
                    let found = classifier.Predict some |> Array.map _.ClassName

                    let truth =
                        some.Labels |> Seq.map (fun label -> some.ClassNames[label]) |> Array.ofSeq

                    let pairs = Array.zip truth found
                    let result = classifier.Evaluate some
                    let correct = pairs |> Array.filter (fun (a, b) -> a = b) |> Array.length
                    Expect.equal (result.Images, result.Correct) (9, correct) "all"
                    Expect.equal result.Accuracy (float correct / 9.0) "a share"

                    Expect.equal
                        [ for one in result.Classes -> one.ClassName, one.Images, one.Correct ]
                        [
                            for name in [ colours[0]; colours[1]; colours[3] ] ->
                                name, 3, pairs |> Array.filter ((=) (name, name)) |> Array.length
                        ]
                        "by class, in the order learned"

                    let mistakes = pairs |> Array.filter (fun (a, b) -> a <> b) |> Array.countBy id

                    Expect.equal
                        (set
                            [
                                for one in result.Confusions ->
                                    (one.ClassName, one.PredictedName), one.Images
                            ])
                        (set mistakes)
                        "mistakes"

                    let perfect = classifier.Evaluate(test.Select [| 0 |])
                    Expect.isLessThanOrEqual perfect.Confusions.Count 1 "one image"

                    refused [ "class 'colour 9'"; "did you mean" ] (fun () ->
                        classifier.Evaluate(train.WithClasses(Array.append [| "colour 9" |] colours[1..]))
                        |> ignore)

                    refused [ "class names"; "WithClasses" ] (fun () ->
                        classifier.Evaluate(Images.FromFiles [| "some.png" |]) |> ignore)

                    refused [ "at least one image" ] (fun () ->
                        classifier.Evaluate(test.Select [||]) |> ignore)))

            testCase "mistakes are counted, the most frequent first" (fun () ->
                let result =
                    EvaluationResult.ofRows [| "a"; "b"; "c" |] [| 0; 0; 2; 2; 2; 2 |] [| 0; 1; 1; 1; 0; 2 |]

                Expect.equal (result.Images, result.Correct) (6, 2) "all"
                Expect.equal result.Accuracy (1.0 / 3.0) "accuracy"

                Expect.equal
                    [
                        for one in result.Classes -> one.ClassName, one.Images, one.Correct, one.Accuracy
                    ]
                    [ "a", 2, 1, 0.5; "c", 4, 1, 0.25 ]
                    "classes with images"

                Expect.equal
                    [ for one in result.Confusions -> one.ClassName, one.PredictedName, one.Images ]
                    [ "c", "b", 2; "a", "b", 1; "c", "a", 1 ]
                    "mistakes")

            testCase
                "encoded images and streams are predicted as files are, and bad ones are refused"
                (withBackbone (fun folder backbone ->
                    use classifier = learned backbone (options ())
                    let path = Path.Combine(folder, "image.png")
                    TestFiles.writePicture path (TestFiles.plainPicture 9 7 200 30 90)
                    let bytes = File.ReadAllBytes path
                    let expected = (classifier.Predict(Images.FromFiles [| path |]))[0]
                    Expect.equal (classifier.Predict(ReadOnlyMemory bytes)) expected "bytes"
                    use stream = new MemoryStream(Array.append [| 7uy |] bytes)
                    stream.ReadByte() |> ignore
                    Expect.equal (classifier.Predict(stream :> Stream)) expected "the rest of a stream"
                    stream.Position <- 1L
                    let read = Images.FromStreamAsync(stream).Result
                    stream.Dispose()
                    Expect.equal (classifier.Predict read) [| expected |] "read ahead"
                    let two = Images.FromEncoded(bytes, bytes)

                    Expect.equal
                        (classifier.Predict two |> Array.map _.ClassName)
                        (Array.create 2 expected.ClassName)
                        "two"

                    let labelled = Images.FromEncoded([| 1; 0 |], [| bytes; bytes |])
                    Expect.sequenceEqual labelled.Labels [ 1; 0 ] "labels"
                    classifier.Learn(two.WithClasses "magenta")
                    Expect.contains classifier.ClassNames "magenta" "two images of a class"

                    let isRefused words (bytes: byte[]) =
                        refused words (fun () -> classifier.Predict(ReadOnlyMemory bytes) |> ignore)
                        refused words (fun () -> classifier.Predict(new MemoryStream(bytes)) |> ignore)

                    isRefused [ "image: must be a JPEG, PNG, WebP, BMP or GIF image"; "empty" ] [||]
                    isRefused [ "image: must be"; "text" ] "hello"B
                    isRefused [ "image: must be"; "more than 100000000" ] (ImageFileTests.png 60000 50000)
                    isRefused [ "image: must be" ] bytes[.. bytes.Length / 2]

                    refused [ "image 2: must be"; "text" ] (fun () ->
                        classifier.Predict(Images.FromEncoded(bytes, "hello"B)) |> ignore)

                    use few = new ImageBytes(10L)
                    few.Write(bytes, 0, 10)

                    refused [ "at most 10 bytes" ] (fun () -> few.Write(bytes, 0, 1))
                    refused [ "at most 10 bytes" ] (fun () -> (new MemoryStream(bytes)).CopyTo few)

                    Expect.throwsT<InputException>
                        (fun () -> (new MemoryStream(bytes)).CopyToAsync(few).GetAwaiter().GetResult())
                        "read without blocking"))

            testCase "names and positions of images are checked" (fun () ->
                let some = train.Select [| 5; 0 |]
                Expect.equal (read some [| 1 |]) (read train [| 0 |]) "selected"
                Expect.sequenceEqual some.ClassNames colours "with their names"
                refused [ "positions must be in 0 to 23"; "24" ] (fun () -> train.Select [| 24 |] |> ignore)
                refused [ "classes"; "0 to 3"; "4" ] (fun () -> Images.OfClasses(train, [| 4 |]) |> ignore)
                refused [ "class name"; "null" ] (fun () -> train.WithClasses(null, "b") |> ignore))

            testCase "images of some classes are those images, numbered by their place" (fun () ->
                let some = Images.OfClasses(train, [| 3; 1 |])
                Expect.equal some.Count 12 "6 of each"

                let places =
                    [|
                        for i in 0 .. train.Count - 1 do
                            if train.Labels[i] % 2 = 1 then
                                i
                    |]

                Expect.sequenceEqual
                    some.Labels
                    (places |> Array.map (fun i -> if train.Labels[i] = 3 then 0 else 1))
                    "labels"

                Expect.equal (read some [| 4; 0 |]) (read train [| places[4]; places[0] |]) "pixels")

            testCase "a reader is asked for the positions that are needed" (fun () ->
                let asked = ResizeArray<int[]>()

                let set =
                    Images.FromReader(
                        [| 0; 1; 0 |],
                        1,
                        2,
                        2,
                        fun positions ->
                            asked.Add positions
                            positions |> Array.collect (fun p -> Array.create 4 (byte p))
                    )

                Expect.equal (read set [| 2; 0 |]) [| 2uy; 2uy; 2uy; 2uy; 0uy; 0uy; 0uy; 0uy |] "bytes"
                Expect.equal (List.ofSeq asked) [ [| 2 |]; [| 0 |] ] "one at a time"
                refused [ "images from a reader"; "0 to 2"; "3" ] (fun () -> set.Set.Read 3 |> ignore)

                refused [ "images from a reader"; "4 bytes"; "3" ] (fun () ->
                    let short = Images.FromReader([| 0 |], 1, 2, 2, (fun _ -> [| 1uy; 2uy; 3uy |]))
                    short.Set.Read 0 |> ignore))

            testCase "images in memory are checked" (fun () ->
                let set = Images.FromBytes([| 0; 1 |], 1, 1, 2, [| 1uy; 2uy; 3uy; 4uy |])
                Expect.equal (read set [| 1 |]) [| 3uy; 4uy |] "bytes"

                refused [ "images in memory"; "4 bytes"; "3" ] (fun () ->
                    Images.FromBytes([| 0; 1 |], 1, 1, 2, [| 1uy; 2uy; 3uy |]) |> ignore))

            testCase "the C# program learns, predicts, saves and loads" (fun () ->
                Probe.inFolder (fun folder ->
                    let backbone = Path.Combine(folder, "backbone.safetensors")
                    Tiny.writeBackbone backbone 12 2 7
                    Tiny.writeFashion folder 3 2
                    let code, output, errors = runProgram [ backbone; folder; "1" ]
                    Expect.equal (code, errors) (0, "") output

                    Expect.stringContains
                        output
                        "learning T-shirt/top, Trouser, Pullover, Dress, Coat"
                        "first group"

                    Expect.stringContains
                        output
                        "learning Sandal, Shirt, Sneaker, Bag, Ankle boot"
                        "second group"

                    Expect.stringContains output "  prototypes, 1 batches" "progress"
                    Expect.stringContains output "too small for a trial" "three images a class"
                    Expect.stringContains output " of 20 test images correct" "score"
                    Expect.stringContains output "  Trouser: " "accuracy of a class"

                    let same =
                        Text.RegularExpressions.Regex.Match(
                            output,
                            "a stream and a file look like (.+), (.+), (.+)\n"
                        )

                    Expect.hasLength
                        (List.distinct [ for i in 1..3 -> same.Groups[i].Value ])
                        1
                        "the same image"

                    Expect.isTrue same.Success "an image file"
                    Expect.stringContains output "the saved classifier predicts the same" "saved and loaded"))

            testCase "the C# of the documentation is compiled" (fun () ->
                Probe.requireSdk ()
                let root = Probe.repository ()

                let compiled =
                    [ "LoRASub.FSharp.CSharp"; "LoRASub.FSharp.Web" ]
                    |> List.collect (fun name ->
                        File.ReadAllLines(Path.Combine(root, "tests", name, "Program.cs"))
                        |> List.ofArray)
                    |> List.map _.Trim()
                    |> set

                for page in [ "csharp.md"; "web.md" ] do
                    let text = File.ReadAllText(Path.Combine(root, "docs", page))

                    let lines =
                        [
                            for block in Text.RegularExpressions.Regex.Matches(text, "```csharp\n([^`]+)```") do
                                yield!
                                    block.Groups[1].Value.Split('\n', StringSplitOptions.RemoveEmptyEntries)
                        ]

                    Expect.isNonEmpty lines page

                    for line in lines do
                        Expect.contains compiled (line.Trim()) page)

            testCase "the C# program answers bad input in a line and with exit code 2" (fun () ->
                Probe.inFolder (fun folder ->
                    let absent = Path.Combine(folder, "absent")
                    let code, output, errors = runProgram [ absent; folder ]
                    Expect.equal code 2 output
                    Expect.stringContains errors folder "the message names the file"
                    Expect.equal (errors.TrimEnd().Split('\n').Length) 1 "one line"))

            testCase
                "a classifier is not saved among the images that it learned"
                (withBackbone (fun folder backbone ->
                    let data = Path.Combine(folder, "data")

                    for name, red in [ "ant", 10; "bee", 200 ] do
                        for i in 1..3 do
                            TestFiles.writePicture
                                (Path.Combine(data, name, $"{i}.png"))
                                (TestFiles.plainPicture 8 8 red (20 * i) 90)

                    let link = Path.Combine(folder, "link")
                    Directory.CreateSymbolicLink(link, data) |> ignore
                    let images = Images.FromFolder data
                    use classifier = ContinualClassifier.Create(backbone, options ())
                    classifier.Learn images

                    for inside in [ data; Path.Combine(data, "kept"); Path.Combine(link, "ant", "kept") ] do
                        refused [ inside; "outside the folder that images are read from" ] (fun () ->
                            classifier.Save inside)

                    Expect.hasLength (Directory.GetFileSystemEntries data) 2 "two classes"
                    classifier.Save(Path.Combine(folder, "kept"))))

            testCase
                "a classifier saved by an earlier program predicts as it did, learns on and is saved anew"
                (fun () ->
                    let saved = Path.Combine(AppContext.BaseDirectory, "saved-learner")
                    let backbone = Path.Combine(saved, "backbone.safetensors")

                    // the images that it was made with
                    let image label number : byte[] =
                        Array.init 192 (fun i ->
                            byte ((label * 71 + i / 16 * (13 + 29 * label) + (i * number * 7) % 23) % 256))

                    let images (labels: int[]) (classes: int[]) =
                        labels
                        |> Array.mapi (fun i label -> image classes[label] i)
                        |> Array.concat
                        |> fun pixels -> Images.FromBytes(labels, 3, 8, 8, pixels)

                    let test = images [| for i in 0..11 -> i % 4 |] [| 0..3 |]

                    let expected =
                        [|
                            for line in File.ReadAllLines(Path.Combine(saved, "predictions.csv")) do
                                let parts = line.Split ','
                                parts[0], Double.Parse(parts[1], Globalization.CultureInfo.InvariantCulture)
                        |]

                    let options =
                        ClassifierOptions(
                            Epochs = 1,
                            BatchSize = 4,
                            Rank = 2,
                            Device = Generators.deviceName
                        )

                    let check (classifier: ContinualClassifier) =
                        let found = classifier.Predict test
                        Expect.equal (found |> Array.map _.ClassName) (Array.map fst expected) "classes"

                        closeTo 1e-4 "scores" (Array.map snd expected) (found |> Array.map _.Score)

                    use classifier = ContinualClassifier.Load(saved, backbone, options)
                    check classifier

                    Probe.inFolder (fun folder ->
                        classifier.Save folder
                        use again = ContinualClassifier.Load(folder, backbone, options)
                        check again)

                    classifier.Learn([| "four" |], images [| 0; 0; 0; 0 |] [| 4 |])

                    Expect.equal
                        (List.ofSeq classifier.ClassNames)
                        [ "zero"; "one"; "two"; "three"; "four" ]
                        "names")

            testCase
                "a forgotten class is predicted no more, and a name that is not known is refused"
                (fun () ->
                    let saved = Path.Combine(AppContext.BaseDirectory, "saved-learner")
                    let options = ClassifierOptions(Rank = 2, Device = Generators.deviceName)

                    use classifier =
                        ContinualClassifier.Load(saved, Path.Combine(saved, "backbone.safetensors"), options)

                    classifier.Forget "one"
                    Expect.equal (List.ofSeq classifier.ClassNames) [ "zero"; "two"; "three" ] "names"
                    let pixels = Array.init (192 * 8) (fun i -> byte (i * 37 % 256))
                    let images = Images.FromBytes(Array.zeroCreate 8, 3, 8, 8, pixels)

                    for found in classifier.Predict images do
                        Expect.notEqual found.ClassName "one" "a class that is still known"

                    refused [ "class 'thre'"; "did you mean"; "three" ] (fun () -> classifier.Forget "thre"))
        ]
