namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.Diagnostics.CodeAnalysis
open System.IO
open System.Runtime.InteropServices
open System.Threading
open System.Threading.Tasks
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Run
open TorchSharp

/// The class predicted for an image.
[<Struct>]
type Prediction =
    {
        ClassName: string
        /// The head's score. Compare it only between classes of one image; larger is better.
        Score: float
        /// Calibrated by images that were held out while learning. Null where there were none.
        Probability: Nullable<float>
        /// Whether the image is of no class that the classifier knows; `ClassName` is then only the nearest. Never where too
        /// few images were held out: 19 are needed at the usual rate of false alarms.
        IsUnknown: bool
    }

/// A classifier that learns new classes from their images and keeps none of the images: the library's front door
/// from C#. Holds native memory: dispose it.
///
/// Every member may be called from any thread at any time. Predictions run side by side. Changes (`Learn`, `AddImages`,
/// `Forget`, `Rename`) run one after another; until one is finished, predictions and `Save` use the state before it.
/// `Dispose` returns at once: calls that are running finish or throw ObjectDisposedException, as a change does between two
/// steps, and later calls throw it.
///
/// Throws InputException for input that breaks a rule, and MemoryException, an OutOfMemoryException, where memory runs
/// out in main memory or on the GPU; the classifier then stays as it was.
[<Sealed>]
type ContinualClassifier private (initial: KeptLearner, options: ClassifierOptions) =
    // the caller may change its options later
    let holdOut, falseAlarms = options.HoldOut, options.FalseAlarms
    let backbone = Snapshot.OwnBackbone initial.Learner.Backbone

    // guards `current` and `disposed`, never for long
    let gate = obj ()

    [<VolatileField>]
    let mutable current = Snapshot.Of(backbone, (fun () -> struct (initial, [], None)))

    let mutable disposed = false

    let saving = obj ()
    let turn = new SemaphoreSlim(1, 1)
    let mutable changing = 0

    do Scope.free TaskState.leaves initial.State

    let requireLive () =
        ObjectDisposedException.ThrowIf(disposed, typeof<ContinualClassifier>)

    /// Runs `f` on the state as it is now, which lives until `f` ends.
    let withCurrent (f: Snapshot -> 'T) : 'T =
        let now =
            lock gate (fun () ->
                requireLive ()
                current.Join()
                current)

        try
            f now
        finally
            now.Leave()

    /// Makes the next state of the current one. Only in turn.
    let replace (next: Snapshot -> struct (KeptLearner * string list * string option)) : unit =
        withCurrent (fun before ->
            let after = Snapshot.Of(backbone, (fun () -> next before))

            lock gate (fun () ->
                if disposed then
                    after.Leave()

                requireLive ()
                current <- after
                // its maker's use
                before.Leave()))

    /// Runs a change on this thread. Only in turn.
    let change (f: unit -> unit) : unit =
        changing <- Environment.CurrentManagedThreadId

        try
            f ()
        finally
            changing <- 0

    let requireNotChanging () =
        if changing = Environment.CurrentManagedThreadId then
            raise (
                InvalidOperationException
                    "A change cannot be made where another change reports its progress: it would wait for itself."
            )

    let inTurn (f: unit -> unit) : unit =
        requireNotChanging ()
        turn.Wait()

        try
            change f
        finally
            turn.Release() |> ignore

    let inTurnAsync (cancellation: CancellationToken) (f: unit -> unit) : Task =
        requireNotChanging ()

        backgroundTask {
            do! turn.WaitAsync cancellation

            try
                do! Task.Run((fun () -> change f), cancellation)
            finally
                turn.Release() |> ignore
        }

    let listen
        (progress: IProgress<LearningProgress>)
        (cancellation: CancellationToken)
        (event: TaskEvent)
        : unit =
        cancellation.ThrowIfCancellationRequested()
        requireLive ()

        match event with
        | Steps step ->
            let step = LearningProgress.Of step

            if not (isNull options.Progress) then
                options.Progress.Invoke step

            if not (isNull progress) then
                progress.Report step
        | _ -> ()

    let namesOf (images: ImageCollection) : string[] =
        Given.value "images" images

        if images.ClassNames.Count = 0 then
            Errors.reject "images" "must have class names" "none" "give the names with WithClasses"

        Array.ofSeq images.ClassNames

    // the current folder may change
    let source (images: ImageCollection) = Path.GetFullPath images.Set.Source

    let learn (images: ImageCollection) progress cancellation () : unit =
        let names, source = namesOf images, source images

        replace (fun before ->
            let lesson =
                Lesson.learn holdOut names images.Set (listen progress cancellation) before.Kept

            cancellation.ThrowIfCancellationRequested()
            struct (lesson.After, source :: before.Sources, Option.orElse before.Adaptation lesson.Decision))

    let addImages (images: ImageCollection) progress cancellation () : unit =
        let names, source = namesOf images, source images

        replace (fun before ->
            let lesson =
                Lesson.addImages holdOut names images.Set (listen progress cancellation) before.Kept

            cancellation.ThrowIfCancellationRequested()
            struct (lesson.After, source :: before.Sources, before.Adaptation))

    let alter (f: KeptLearner -> KeptLearner) : unit =
        inTurn (fun () -> replace (fun before -> struct (f before.Kept, before.Sources, before.Adaptation)))

    let best count (images: ImageSet) (positions: int[]) : Prediction[][] =
        withCurrent (fun now ->
            now.Best(falseAlarms, count, images, positions)
            |> Array.map (fun answer ->
                answer.Best
                |> Array.map (fun one ->
                    {
                        ClassName = now.Kept.Classes[one.Row].Name
                        Score = one.Score
                        Probability = Option.toNullable one.Probability
                        IsUnknown = not answer.IsKnown
                    })))

    let everywhere (images: ImageCollection) = Array.init images.Count id

    /// The images as they are read until they are no longer wanted.
    let cancelled (cancellation: CancellationToken) (images: ImageCollection) : ImageSet =
        { images.Set with
            Read =
                fun i ->
                    cancellation.ThrowIfCancellationRequested()
                    images.Set.Read i
        }

    let evaluate
        (images: ImageCollection)
        (progress: IProgress<LearningProgress>)
        cancellation
        : EvaluationResult =
        let names = namesOf images

        if images.Count = 0 then
            Errors.reject images.Set.Source "must hold at least one image" "none" ""

        ImageSet.requireLabels images.Set.Source names.Length images.Set.Labels

        withCurrent (fun now ->
            let row label =
                let known = KeptLearner.classOf names[label] now.Kept
                now.Kept.Classes |> Array.findIndex (fun one -> one.Id = known.Id)

            let rowOf =
                images.Set.Labels
                |> Array.distinct
                |> Array.map (fun label -> label, row label)
                |> dict

            let set = cancelled cancellation images
            let read = ref 0

            let report images' =
                if not (isNull progress) then
                    progress.Report
                        {
                            Phase = Phase.name Phase.Predict
                            Done = images'
                            Total = images.Count
                            Loss = nan
                        }

            let read i =
                let before = Interlocked.Increment read - 1

                if before % now.Kept.Settings.Batch = 0 then
                    report before

                set.Read i

            let predicted =
                now.Best(falseAlarms, 1, { set with Read = read }, everywhere images)
                |> Array.map (fun answer -> answer.Best[0].Row)

            report images.Count

            EvaluationResult.ofRows
                (now.Kept.Classes |> Array.map _.Name)
                (images.Set.Labels |> Array.map (fun label -> rowOf[label]))
                predicted)

    let topK (images: ImageCollection) count cancellation : Prediction[][] =
        Given.value "images" images

        if count < 1 then
            Errors.reject "count" "must be at least 1" $"{count}" ""

        best count (cancelled cancellation images) (everywhere images)

    /// <summary>A classifier that knows no class yet, over a frozen Vision Transformer.</summary>
    /// <param name="backbone">Weights of a plain Vision Transformer (`Weights.load`), or the name of a downloaded one
    /// (`Backbones.known`).</param>
    /// <param name="options">Read once, except for `Progress`.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An option is out of range, or the file is not such a
    /// network.</exception>
    static member Create(backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.text "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore

        new ContinualClassifier(
            options.ToSettings backbone
            |> Recipe.fitted options.IsGiven
            |> KeptLearner.create,
            options
        )

    /// <summary>`Create` with default options.</summary>
    /// <param name="backbone">Weights of a plain Vision Transformer (`Weights.load`), or the name of a downloaded one
    /// (`Backbones.known`).</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is not such a network.</exception>
    static member Create(backbone: string) : ContinualClassifier =
        ContinualClassifier.Create(backbone, ClassifierOptions())

    /// <summary>A saved classifier, over the backbone file that it was trained on.</summary>
    /// <param name="folder">The folder that it was saved in.</param>
    /// <param name="backbone">The backbone's file, or the name of a downloaded one.</param>
    /// <param name="options">Those of further training. Image size, input range, heads and epsilon are always
    /// the saved ones.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no classifier, its files are damaged, or
    /// the backbone is another.</exception>
    static member Load(folder: string, backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.text "folder" folder
        Given.text "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        use _ = torch.NewDisposeScope()
        let saved = LearnerFile.load folder

        let settings = KeptLearner.settingsOf saved (options.ToSettings backbone)
        new ContinualClassifier(KeptLearner.ofSaved settings (Recipe.identified backbone) saved, options)

    /// <summary>`Load` with default options.</summary>
    /// <param name="folder">The folder that it was saved in.</param>
    /// <param name="backbone">The backbone's file, or the name of a downloaded one.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no classifier, its files are damaged, or
    /// the backbone is another.</exception>
    static member Load(folder: string, backbone: string) : ContinualClassifier =
        ContinualClassifier.Load(folder, backbone, ClassifierOptions())

    /// <summary>Names of the classes that it knows, in the order learned.</summary>
    member _.ClassNames: IReadOnlyList<string> =
        withCurrent (fun now -> now.Kept.Classes |> Array.map _.Name :> _)

    /// <summary>Why the network was or was not adapted to the first group of classes. Null before the first group, and for
    /// presets that do not decide.</summary>
    [<MaybeNull>]
    member _.Adaptation: string = withCurrent (fun now -> Option.toObj now.Adaptation)

    /// <summary>Learns a group of new classes. The images are not kept. If it throws, the classifier stays
    /// as it was.</summary>
    /// <param name="images">With the names of the new classes.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A name is known or there twice, labels are out of range, or
    /// a class has no image or no name.</exception>
    /// <exception cref="T:System.InvalidOperationException">It is called where a change reports its progress.</exception>
    member _.Learn(images: ImageCollection) : unit =
        inTurn (learn images null CancellationToken.None)

    /// <summary>`Learn` with other names.</summary>
    /// <param name="newClasses">The names of the new classes.</param>
    /// <param name="images">Labelled 0, 1, … into `newClasses`.</param>
    /// <exception cref="T:LoRASub.Core.InputException">As the other `Learn`.</exception>
    /// <exception cref="T:System.InvalidOperationException">It is called where a change reports its progress.</exception>
    member this.Learn(newClasses: IReadOnlyList<string>, images: ImageCollection) : unit =
        Given.value "new classes" newClasses
        Given.value "images" images

        if newClasses.Count = 0 then
            Errors.reject "new classes" "must be at least one" "none" ""

        this.Learn(images.WithClasses(Array.ofSeq newClasses))

    /// <summary>`Learn` on another thread.</summary>
    /// <param name="images">With the names of the new classes.</param>
    /// <param name="progress">Called before each step; null for none.</param>
    /// <param name="cancellationToken">Noticed between steps: the classifier then stays as it was.</param>
    /// <returns>The task, which ends when the classes are learned.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">In the task: as `Learn`.</exception>
    /// <exception cref="T:System.OperationCanceledException">In the task: it was cancelled.</exception>
    member _.LearnAsync
        (
            images: ImageCollection,
            [<Optional; DefaultParameterValue(null: IProgress<LearningProgress>)>] progress:
                IProgress<LearningProgress>,
            [<Optional>] cancellationToken: CancellationToken
        ) : Task =
        inTurnAsync cancellationToken (learn images progress cancellationToken)

    /// <summary>Adds images of known classes to the statistics that classify. Nothing is forgotten, the network stays as
    /// it is, and the images are not kept.</summary>
    /// <param name="images">With the names of their classes.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A name is not known, labels are out of range, a class has no
    /// image or no name, or the classifier is the method's own, which keeps no statistics.</exception>
    /// <exception cref="T:System.InvalidOperationException">It is called where a change reports its progress.</exception>
    member _.AddImages(images: ImageCollection) : unit =
        inTurn (addImages images null CancellationToken.None)

    /// <summary>`AddImages` with other names.</summary>
    /// <param name="classes">The names of the classes.</param>
    /// <param name="images">Labelled 0, 1, … into `classes`.</param>
    /// <exception cref="T:LoRASub.Core.InputException">As the other `AddImages`.</exception>
    /// <exception cref="T:System.InvalidOperationException">It is called where a change reports its progress.</exception>
    member this.AddImages(classes: IReadOnlyList<string>, images: ImageCollection) : unit =
        Given.value "classes" classes
        Given.value "images" images
        this.AddImages(images.WithClasses(Array.ofSeq classes))

    /// <summary>`AddImages` on another thread.</summary>
    /// <param name="images">With the names of their classes.</param>
    /// <param name="progress">Called before each step; null for none.</param>
    /// <param name="cancellationToken">Noticed between steps: the classifier then stays as it was.</param>
    /// <returns>The task, which ends when the images are added.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">In the task: as `AddImages`.</exception>
    /// <exception cref="T:System.OperationCanceledException">In the task: it was cancelled.</exception>
    member _.AddImagesAsync
        (
            images: ImageCollection,
            [<Optional; DefaultParameterValue(null: IProgress<LearningProgress>)>] progress:
                IProgress<LearningProgress>,
            [<Optional>] cancellationToken: CancellationToken
        ) : Task =
        inTurnAsync cancellationToken (addImages images progress cancellationToken)

    /// <summary>Forgets a class: it is no longer predicted, and its mean is deleted. What it contributed to a shared
    /// covariance, and to the network, stays.</summary>
    /// <param name="className">Its name.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The classifier does not know the name.</exception>
    member _.Forget(className: string) : unit =
        Given.value "class name" className
        alter (KeptLearner.forget className)

    /// <summary>Gives a class another name. It stays the same class.</summary>
    /// <param name="className">Its name.</param>
    /// <param name="newName">Not a name of another class, and not blank.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The classifier does not know the name, or the new one is blank or
    /// another class's.</exception>
    member _.Rename(className: string, newName: string) : unit =
        Given.value "class name" className
        Given.value "new name" newName
        alter (KeptLearner.rename className newName)

    /// <summary>The best class of each image.</summary>
    /// <param name="images">Their labels are not used.</param>
    /// <returns>One prediction per image, in order.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, or an image cannot be
    /// read.</exception>
    member _.Predict(images: ImageCollection) : Prediction[] =
        topK images 1 CancellationToken.None |> Array.map Array.head

    /// <summary>The best class of some of the images.</summary>
    /// <param name="images">Their labels are not used.</param>
    /// <param name="positions">Positions of images.</param>
    /// <returns>One prediction per position.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, or an image cannot be
    /// read.</exception>
    member _.Predict(images: ImageCollection, positions: int[]) : Prediction[] =
        Given.value "images" images
        Given.value "positions" positions
        best 1 images.Set positions |> Array.map Array.head

    /// <summary>The best class of an encoded image.</summary>
    /// <param name="image">The bytes of a JPEG, PNG, WebP, BMP or GIF file; borrowed.</param>
    /// <returns>The prediction.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned; or the image is damaged, of another format, or
    /// of more than 100 million pixels.</exception>
    member this.Predict(image: ReadOnlyMemory<byte>) : Prediction = this.Predict(Images.OfMemory image)[0]

    /// <summary>The best class of the encoded image that is the rest of a stream.</summary>
    /// <param name="image">A JPEG, PNG, WebP, BMP or GIF file, read to its end; not closed.</param>
    /// <returns>The prediction.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned; or the image is damaged, of another format, or
    /// of more than 100 million pixels.</exception>
    member this.Predict(image: Stream) : Prediction =
        this.Predict(Images.FromStream image)[0]

    /// <summary>`Predict` on another thread.</summary>
    /// <param name="images">Their labels are not used.</param>
    /// <param name="cancellationToken">Noticed between images.</param>
    /// <returns>A task of one prediction per image, in order.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">In the task: as `Predict`.</exception>
    /// <exception cref="T:System.OperationCanceledException">In the task: it was cancelled.</exception>
    member _.PredictAsync
        (images: ImageCollection, [<Optional>] cancellationToken: CancellationToken)
        : Task<Prediction[]> =
        Task.Run((fun () -> topK images 1 cancellationToken |> Array.map Array.head), cancellationToken)

    /// <summary>The best classes of each image, best first.</summary>
    /// <param name="images">Their labels are not used.</param>
    /// <param name="count">How many; all classes where there are fewer, so that `int.MaxValue` gives the score of every
    /// class.</param>
    /// <returns>For each image its best classes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, the count is below 1, or an image cannot be
    /// read.</exception>
    member _.PredictTopK(images: ImageCollection, count: int) : Prediction[][] =
        topK images count CancellationToken.None

    /// <summary>`PredictTopK` on another thread.</summary>
    /// <param name="images">Their labels are not used.</param>
    /// <param name="count">How many; all classes where there are fewer.</param>
    /// <param name="cancellationToken">Noticed between images.</param>
    /// <returns>A task of the best classes of each image.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">In the task: as `PredictTopK`.</exception>
    /// <exception cref="T:System.OperationCanceledException">In the task: it was cancelled.</exception>
    member _.PredictTopKAsync
        (images: ImageCollection, count: int, [<Optional>] cancellationToken: CancellationToken)
        : Task<Prediction[][]> =
        Task.Run((fun () -> topK images count cancellationToken), cancellationToken)

    /// <summary>Predicts labelled images and counts what is correct.</summary>
    /// <param name="images">With the names of their classes, which the classifier must know.</param>
    /// <returns>Accuracy, in all and for each class, and which classes are taken for which.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no image, an image's class has no name or is not known, or
    /// an image cannot be read.</exception>
    member _.Evaluate(images: ImageCollection) : EvaluationResult =
        evaluate images null CancellationToken.None

    /// <summary>`Evaluate` on another thread.</summary>
    /// <param name="images">With the names of their classes, which the classifier must know.</param>
    /// <param name="progress">Called now and then with the number of images read, and at the end with all of them; null for
    /// none.</param>
    /// <param name="cancellationToken">Noticed between images.</param>
    /// <returns>A task of the counts.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">In the task: as `Evaluate`.</exception>
    /// <exception cref="T:System.OperationCanceledException">In the task: it was cancelled.</exception>
    member _.EvaluateAsync
        (
            images: ImageCollection,
            [<Optional; DefaultParameterValue(null: IProgress<LearningProgress>)>] progress:
                IProgress<LearningProgress>,
            [<Optional>] cancellationToken: CancellationToken
        ) : Task<EvaluationResult> =
        Task.Run((fun () -> evaluate images progress cancellationToken), cancellationToken)

    /// <summary>Writes the classifier into a folder: `learner.safetensors` and `learner.json`. A classifier
    /// that is there already can be loaded until the new one can, whatever happens meanwhile. The backbone
    /// stays where it is.</summary>
    /// <param name="folder">Made where it is missing.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder cannot be written, or is among the images that
    /// were learned.</exception>
    member _.Save(folder: string) : unit =
        Given.text "folder" folder

        // in turn, so that the last to come saves the latest
        lock saving (fun () ->
            withCurrent (fun now ->
                now.Sources |> List.iter (fun source -> ImageSet.requireOutside source folder)

                KeptLearner.save folder now.Kept))

    /// <summary>Frees the native memory once no call uses it; harmless to call again.</summary>
    member _.Dispose() =
        lock gate (fun () ->
            if not disposed then
                disposed <- true
                current.Leave()
                backbone.Leave())

    interface IDisposable with
        member this.Dispose() = this.Dispose()
