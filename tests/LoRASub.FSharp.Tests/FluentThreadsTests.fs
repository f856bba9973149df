/// A classifier that many threads use at once, and calls that run beside the caller.
module LoRASub.Tests.FluentThreadsTests

open System
open System.Collections.Concurrent
open System.IO
open System.Threading
open System.Threading.Tasks
open LoRASub.Core
open LoRASub.Fluent
open Expecto

let private data = Tiny.dataset 6 4 2
let private names = data.ClassNames
let private train = ImageCollection(data.Train, names, [||])
let private test = ImageCollection(data.Test, names, [||])

let private group (labels: int list) =
    Images.OfClasses(train, Array.ofList labels)

let private options () =
    ClassifierOptions(
        Preset = "libcontinual",
        Epochs = 1,
        BatchSize = 8,
        Rank = 2,
        LearningRate = 5e-3,
        HeadLearningRate = 1e-2,
        Augment = false,
        Device = Generators.deviceName
    )

/// A backbone file and the folder that holds it. No tensor may be left.
let private withBackbone (test: string -> string -> unit) () =
    Probe.inFolder (fun folder ->
        let backbone = Path.Combine(folder, "backbone.safetensors")
        Tiny.writeBackbone backbone 8 2 7
        Probe.leavesNothing (fun () -> test folder backbone))

/// A classifier that has learned the first two classes.
let private started (backbone: string) =
    let classifier = ContinualClassifier.Create(backbone, options ())
    classifier.Learn(group [ 0; 1 ])
    classifier

/// Runs each function on a thread of its own, all at once, and fails with the first of their errors.
let private together (functions: (unit -> unit) list) =
    let errors = ConcurrentQueue<exn>()
    use start = new ManualResetEventSlim()

    let threads =
        [
            for f in functions do
                let run () =
                    start.Wait()

                    try
                        f ()
                    with e ->
                        errors.Enqueue e

                let thread = Thread(run)
                thread.Start()
                thread
        ]

    start.Set()

    for thread in threads do
        thread.Join()

    if not errors.IsEmpty then
        failtest $"{errors.Count} of {functions.Length} threads failed, the first with {Seq.head errors}"

/// Equal but for the last digits, which the number of images in a batch changes.
let private isLike (expected: Prediction[]) (found: Prediction[]) =
    expected.Length = found.Length
    && Array.forall2
        (fun (a: Prediction) (b: Prediction) -> a.ClassName = b.ClassName && abs (a.Score - b.Score) < 1e-4)
        expected
        found

/// Changes, one after another.
let private changes: (ContinualClassifier -> unit) list =
    let learn labels (classifier: ContinualClassifier) = classifier.Learn(group labels)

    [
        learn [ 2; 3 ]
        fun classifier -> classifier.Rename(names[2], "another name")
        fun classifier -> classifier.AddImages((train.Select [| 0; 0; 6 |]).WithClasses names[0])
        fun classifier -> classifier.Forget "another name"
        learn [ 4 ]
        fun classifier -> classifier.LearnAsync(group [ 5 ]).Wait()
        fun classifier -> classifier.Forget names[4]
        learn [ 2 ]
        fun classifier -> classifier.Rename(names[3], "last")
    ]

/// What is predicted and known after each change, where nobody disturbs.
let private answers backbone =
    use classifier = started backbone

    let now () =
        classifier.Predict test, List.ofSeq classifier.ClassNames

    [|
        now ()

        for change in changes do
            change classifier
            now ()
    |]

/// A progress that calls a function at once, on the thread that reports.
let private onProgress (f: LearningProgress -> unit) =
    { new IProgress<LearningProgress> with
        member _.Report step = f step
    }

let private isCancelled (task: Task) =
    Expect.throwsC (fun () -> task.GetAwaiter().GetResult()) (fun e ->
        Expect.isTrue (e :? OperationCanceledException) $"{e}")

    Expect.isTrue task.IsCanceled "the state of the task"

[<Tests>]
let tests =
    testList
        "FluentThreads"
        [
            testCase
                "twenty threads call everything at once, and each answer is of a state that was current during the call"
                (withBackbone (fun folder backbone ->
                    let answers = answers backbone
                    use classifier = started backbone
                    let image = Path.Combine(folder, "image.png")
                    TestFiles.writePicture image (data.Test.Read 0)
                    let encoded = File.ReadAllBytes image
                    let begun = ref 0
                    let finished = ref 0

                    /// Asks, and expects an answer that fits a state between those before and after the call.
                    let during what (ask: unit -> 'T) (fits: Prediction[] -> string list -> 'T -> bool) =
                        let first = Volatile.Read &finished.contents
                        let found = ask ()
                        let last = Volatile.Read &begun.contents

                        let isRight =
                            answers[first..last]
                            |> Array.exists (fun (predictions, names) -> fits predictions names found)

                        if not isRight then
                            failtest $"{what}: {found} is no answer of the states {first} to {last}"

                    let all = Array.init test.Count id

                    let calls: (string * (int -> unit)) list =
                        [
                            "Predict",
                            fun _ ->
                                during "Predict" (fun () -> classifier.Predict test) (fun expected _ ->
                                    isLike expected)
                            "Predict at positions",
                            fun _ ->
                                during
                                    "Predict at positions"
                                    (fun () -> classifier.Predict(test, Array.rev all))
                                    (fun expected _ -> isLike (Array.rev expected))
                            "PredictAsync",
                            fun _ ->
                                during
                                    "PredictAsync"
                                    (fun () -> classifier.PredictAsync(test).Result)
                                    (fun expected _ -> isLike expected)
                            "PredictTopK",
                            fun _ ->
                                during
                                    "PredictTopK"
                                    (fun () -> classifier.PredictTopK(test, Int32.MaxValue))
                                    (fun expected names found ->
                                        isLike expected (Array.map Array.head found)
                                        && found
                                           |> Array.forall (fun one ->
                                               set names = set (one |> Array.map _.ClassName)))
                            "Predict of bytes",
                            fun _ ->
                                during
                                    "Predict of bytes"
                                    (fun () -> classifier.Predict(ReadOnlyMemory encoded))
                                    (fun expected _ found -> isLike expected[..0] [| found |])
                            "Evaluate",
                            fun _ ->
                                during
                                    "Evaluate"
                                    (fun () -> classifier.Evaluate(Images.OfClasses(test, [| 0; 1 |])))
                                    (fun expected _ found ->
                                        let correct =
                                            all
                                            |> Array.filter (fun i ->
                                                data.Test.Labels[i] < 2
                                                && names[data.Test.Labels[i]] = expected[i].ClassName)

                                        found.Correct = correct.Length)
                            "ClassNames",
                            fun _ ->
                                during "ClassNames" (fun () -> List.ofSeq classifier.ClassNames) (fun _ ->
                                    (=))
                            "Save and Load",
                            fun thread ->
                                let kept = Path.Combine(folder, $"kept {thread % 2}")

                                during
                                    "Save and Load"
                                    (fun () ->
                                        // two threads to a folder; only one classifier may write it
                                        lock changes (fun () ->
                                            classifier.Save kept

                                            use loaded =
                                                ContinualClassifier.Load(kept, backbone, options ())

                                            loaded.Predict test))
                                    (fun expected _ -> isLike expected)
                        ]

                    let change () =
                        try
                            for change in changes do
                                Interlocked.Increment begun |> ignore
                                change classifier
                                Interlocked.Increment finished |> ignore
                                // some calls meet a state at rest
                                Thread.Sleep 20
                        finally
                            Volatile.Write(&finished.contents, changes.Length)

                    let ask thread () =
                        let _, call = calls[thread % calls.Length]
                        let mutable left = 3

                        while left > 0 do
                            if Volatile.Read &finished.contents = changes.Length then
                                left <- left - 1

                            call thread

                    together (change :: [ for thread in 1..19 -> ask thread ])

                    Expect.isTrue
                        (isLike (fst answers[changes.Length]) (classifier.Predict test))
                        "in the end"))

            testCase
                "twenty threads change a classifier at once, and no change is lost"
                (withBackbone (fun _ backbone ->
                    use classifier = started backbone

                    together
                        [
                            for thread in 1..20 do
                                fun () ->
                                    let mine = $"class of thread {thread}"
                                    let images = (group [ thread % 6 ]).WithClasses mine
                                    classifier.LearnAsync(images).Wait()
                                    classifier.AddImages images
                                    classifier.Rename(mine, mine + " renamed")
                                    Expect.hasLength (classifier.Predict test) 12 "predictions"

                                    if thread % 2 = 0 then
                                        classifier.Forget(mine + " renamed")
                        ]

                    Expect.equal
                        (set classifier.ClassNames)
                        (set
                            [
                                yield! names[..1]

                                for thread in 1..2..20 do
                                    $"class of thread {thread} renamed"
                            ])
                        "classes"))

            testCase
                "a classifier that is disposed while twenty threads use it gives right answers until it says so"
                (withBackbone (fun folder backbone ->
                    let saved = Path.Combine(folder, "saved")

                    let expected =
                        use classifier = started backbone
                        classifier.Save saved
                        classifier.Predict test

                    for round in 1..5 do
                        let classifier = ContinualClassifier.Load(saved, backbone, options ())
                        let answered = ref 0

                        let untilDisposed thread () =
                            let mutable goesOn = true

                            while goesOn do
                                try
                                    match thread % 4 with
                                    | 0 ->
                                        use cancellation = new CancellationTokenSource()

                                        let stop (step: LearningProgress) =
                                            if step.Phase = "prototypes" then
                                                cancellation.Cancel()

                                        try
                                            classifier
                                                .LearnAsync(group [ 2 ], onProgress stop, cancellation.Token)
                                                .GetAwaiter()
                                                .GetResult()
                                        with :? OperationCanceledException ->
                                            ()
                                    | 1 -> classifier.Save(Path.Combine(folder, $"kept by {thread}"))
                                    | 2 -> classifier.Rename(names[0], names[0])
                                    | _ ->
                                        Expect.isTrue
                                            (isLike expected (classifier.Predict test))
                                            "predictions"

                                    Interlocked.Increment answered |> ignore
                                with :? ObjectDisposedException ->
                                    goesOn <- false

                        let dispose () =
                            // if every thread fails, the test ends with their error
                            SpinWait.SpinUntil(
                                (fun () -> Volatile.Read &answered.contents >= 10 * round),
                                TimeSpan.FromMinutes 2.0
                            )
                            |> ignore

                            classifier.Dispose()

                        together (dispose :: [ for thread in 1..20 -> untilDisposed thread ])))

            testCase
                "learning beside the caller reports its progress, and can be cancelled between steps"
                (withBackbone (fun _ backbone ->
                    use classifier = started backbone
                    let before = classifier.Predict test
                    let phases = ConcurrentQueue<string>()
                    use cancellation = new CancellationTokenSource()

                    let stop (step: LearningProgress) =
                        phases.Enqueue step.Phase

                        if step.Phase = "train" then
                            cancellation.Cancel()

                    classifier.LearnAsync(group [ 2; 3 ], onProgress stop, cancellation.Token)
                    |> isCancelled

                    Expect.equal (List.distinct (List.ofSeq phases)) [ "observe"; "train" ] "until then"
                    isCancelled (classifier.LearnAsync(group [ 2; 3 ], null, cancellation.Token))
                    isCancelled (classifier.AddImagesAsync(group [ 0 ], null, cancellation.Token))
                    Expect.equal (classifier.Predict test) before "as it was"
                    Expect.sequenceEqual classifier.ClassNames names[..1] "names"

                    classifier
                        .LearnAsync(group [ 2; 3 ], onProgress (fun s -> phases.Enqueue s.Phase))
                        .Wait()

                    Expect.contains phases "prototypes" "to the end"
                    phases.Clear()

                    classifier
                        .AddImagesAsync(group [ 0 ], onProgress (fun s -> phases.Enqueue s.Phase))
                        .Wait()

                    Expect.isNonEmpty phases "progress of more images"

                    Expect.throwsT<InputException>
                        (fun () -> classifier.LearnAsync(group [ 2 ]).GetAwaiter().GetResult())
                        "known already"))

            testCase
                "a change waits for its turn, where it can be cancelled, and never for itself"
                (withBackbone (fun _ backbone ->
                    use classifier = started backbone
                    use reached = new ManualResetEventSlim()
                    use goOn = new ManualResetEventSlim()
                    let inside: exn option ref = ref None

                    let pause _ =
                        if not reached.IsSet then
                            inside.Value <-
                                try
                                    classifier.Rename(names[0], "me")
                                    None
                                with e ->
                                    Some e

                            // predictions see the state before
                            Expect.hasLength (classifier.Predict test) 12 "predictions"
                            reached.Set()
                            goOn.Wait()

                    let first = classifier.LearnAsync(group [ 2 ], onProgress pause)
                    Task.WaitAny(first, Task.Run(fun () -> reached.Wait())) |> ignore
                    Expect.isTrue reached.IsSet $"{first.Exception}"
                    use cancellation = new CancellationTokenSource()
                    let second = classifier.LearnAsync(group [ 3 ], null, cancellation.Token)
                    let third = classifier.LearnAsync(group [ 4 ])
                    cancellation.Cancel()
                    isCancelled second
                    Expect.isFalse (first.IsCompleted || third.IsCompleted) "still waiting"
                    Expect.sequenceEqual classifier.ClassNames names[..1] "nothing learned yet"
                    goOn.Set()
                    Task.WaitAll(first, third)
                    Expect.isTrue (inside.Value.Value :? InvalidOperationException) $"{inside.Value}"

                    Expect.sequenceEqual
                        classifier.ClassNames
                        [ names[0]; names[1]; names[2]; names[4] ]
                        "one after the other"))

            testCase
                "predictions and evaluations beside the caller end when they are cancelled"
                (withBackbone (fun _ backbone ->
                    use classifier = started backbone
                    let expected = classifier.Evaluate(Images.OfClasses(test, [| 0; 1 |]))
                    let steps = ConcurrentQueue<LearningProgress>()

                    let found =
                        classifier
                            .EvaluateAsync(Images.OfClasses(test, [| 0; 1 |]), onProgress steps.Enqueue)
                            .Result

                    Expect.equal (found.Images, found.Correct) (expected.Images, expected.Correct) "the same"

                    Expect.all
                        steps
                        (fun s -> s.Phase = "predict" && s.Done <= s.Total && s.Total = 4)
                        "progress"

                    Expect.equal (Seq.last steps).Done 4 "all of them"
                    Expect.equal (Seq.head steps).Done 0 "from the first"

                    // the reading of the third image cancels
                    let calls: (ImageCollection * CancellationToken -> Task) list =
                        [
                            fun (images, token) -> classifier.PredictAsync(images, token)
                            fun (images, token) -> classifier.PredictTopKAsync(images, 2, token)
                            fun (images, token) -> classifier.EvaluateAsync(images, null, token)
                        ]

                    for call in calls do
                        use cancellation = new CancellationTokenSource()
                        let read = ref 0

                        let reader (positions: int[]) =
                            if Interlocked.Increment read = 3 then
                                cancellation.Cancel()

                            Array.zeroCreate<byte>(192 * positions.Length)

                        let images =
                            Images.FromReader(Array.zeroCreate 1000, 3, 8, 8, Func<int[], byte[]>(reader))

                        isCancelled (call (images.WithClasses names[0], cancellation.Token))
                        Expect.isLessThan read.Value 500 "images read"))

            testCase
                "a classifier that is disposed while it learns stops learning"
                (withBackbone (fun _ backbone ->
                    let classifier = started backbone
                    let progress = onProgress (fun _ -> classifier.Dispose())

                    Expect.throwsT<ObjectDisposedException>
                        (fun () -> classifier.LearnAsync(group [ 2 ], progress).GetAwaiter().GetResult())
                        "learning"

                    Expect.throwsT<ObjectDisposedException> (fun () -> classifier.Forget names[0]) "later"))
        ]
