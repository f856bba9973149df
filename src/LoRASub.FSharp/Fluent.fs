namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Report
open TorchSharp

/// The progress of learning, for a progress bar.
[<Struct>]
type LearningProgress =
    {
        /// observe, train or prototypes.
        Phase: string
        /// Steps done in this phase.
        Done: int
        /// Steps of this phase.
        Total: int
        /// Mean loss of the epoch so far; NaN where it was not read.
        Loss: float
    }

/// Settings of a `ContinualClassifier`. Learning rates, rank, margin and weights default to the published ones of
/// CIFAR-100; the input range and epsilon to those of most timm checkpoints.
type ClassifierOptions() =
    /// Passes over the images of each new group of classes.
    member val Epochs = 5 with get, set
    /// Images per step.
    member val BatchSize = 128 with get, set
    /// Rank of the low-rank pairs.
    member val Rank = 10 with get, set
    /// Base learning rate of the low-rank pairs.
    member val LearningRate = 5e-4 with get, set
    /// Base learning rate of the linear head that each group of classes is trained with.
    member val HeadLearningRate = 2e-3 with get, set
    /// Margin of the triplet loss.
    member val Margin = 1.0 with get, set
    /// Weight of the triplet loss.
    member val TripletWeight = 0.05 with get, set
    /// Share of the observed energy that the retained space holds, in (0, 1].
    member val Energy = 0.99 with get, set
    /// Random crops and flips of the training images; switch off for digits and text.
    member val Augment = true with get, set
    /// The value of a black pixel as the backbone was trained.
    member val InputLow = -1.0 with get, set
    /// The value of a white pixel as the backbone was trained.
    member val InputHigh = 1.0 with get, set
    /// Layer-norm epsilon that the backbone was trained with.
    member val NormEpsilon = 1e-6 with get, set
    /// Attention heads; 0: from the file or its width.
    member val Heads = 0 with get, set
    /// Height and width of the backbone's images in pixels; 0: from its positions.
    member val ImageSize = 0 with get, set
    /// "float32", "bfloat16" or "float64".
    member val Precision = "float32" with get, set
    /// Compute activations again for the gradient instead of keeping them: slower, in less memory.
    member val CheckpointActivations = false with get, set
    /// "cpu" or "cuda:N".
    member val Device = "cpu" with get, set
    /// The same seed, options and images give the same classifier.
    member val Seed = 0L with get, set
    /// Hears of the progress on the calling thread.
    member val Progress: Action<LearningProgress> = null with get, set

    member internal this.ToSettings(backbone: string) : RunSettings =
        let positive n = if n > 0 then Some n else None
        let preset = Preset.cifar100 Variant.LibContinual

        { preset with
            Backbone = Some backbone
            Epochs = this.Epochs
            Batch = this.BatchSize
            Heads = positive this.Heads
            ImageSize = positive this.ImageSize
            NormEpsilon =
                {
                    Blocks = this.NormEpsilon
                    Final = this.NormEpsilon
                }
            InputRange = struct (this.InputLow, this.InputHigh)
            Augmentation =
                if this.Augment then
                    Augmentation.CropFlip
                else
                    Augmentation.None
            PrototypeTransform = PrototypeTransform.Test
            Seeding = Seeding.Once
            CheckpointActivations = this.CheckpointActivations
            Device = this.Device
            Seed = this.Seed
            Method =
                { preset.Method with
                    Rank = this.Rank
                    LearningRate = this.LearningRate
                    HeadLearningRate = this.HeadLearningRate
                    Energy = this.Energy
                    Margin = this.Margin
                    TripletWeight = this.TripletWeight
                }
        }
        |> Settings.set "precision" this.Precision

// C# can hand in null where F# cannot.
module internal Given =
    let value (name: string) (value: 'T) =
        if isNull (box value) then
            Errors.reject name "must be given" "null" ""

/// The class predicted for an image.
[<Struct>]
type Prediction =
    {
        ClassName: string
        /// Cosine between the image's feature and the class's mean, in [-1, 1].
        Similarity: float
    }

/// A classifier that learns new classes from their images and keeps none of the images: the library's front door
/// from C#. Holds native memory: dispose it. Not safe for use from several threads at once.
/// Throws InputException for input that breaks a rule, and MemoryException, an OutOfMemoryException, where memory runs
/// out in main memory or on the GPU; the classifier then stays as it was.
type ContinualClassifier
    private (learner: Learner, settings: RunSettings, sha256: string, options: ClassifierOptions, initial) =
    let backbone = learner.Backbone
    let mutable state: TaskState = initial
    let mutable model: Model option = None
    let mutable sources: string list = []
    let mutable disposed = false

    let requireLive () =
        ObjectDisposedException.ThrowIf(disposed, typeof<ContinualClassifier>)

    let forgetModel () =
        Option.iter (Scope.free Model.leaves) model
        model <- None

    let deployed () =
        match model with
        | Some model -> model
        | None ->
            let fresh = Scope.detach Model.leaves (Learner.deploy learner state)
            model <- Some fresh
            fresh

    let replace (next: TaskState) =
        forgetModel ()
        Scope.supersede TaskState.leaves [ next ] state
        state <- Scope.detach TaskState.leaves next

    let onEvent (event: TaskEvent) =
        match event with
        | Steps step when not (isNull options.Progress) ->
            options.Progress.Invoke
                {
                    Phase = Phase.name step.Phase
                    Done = step.Done
                    Total = step.Steps
                    Loss = defaultArg step.Loss nan
                }
        | _ -> ()

    // A classifier outlives the scopes of its caller.
    static let opened
        (settings: RunSettings)
        (file: string)
        options
        (build: VisionTransformer -> struct (Learner * TaskState))
        =
        Settings.check settings
        let sha256 = DataFile.sha256 file
        let backbone = Weights.load (Plan.backboneOptions settings) file

        try
            let struct (learner, state) = build backbone
            Scope.detach VisionTransformer.leaves backbone |> ignore
            new ContinualClassifier(learner, settings, sha256, options, Scope.detach TaskState.leaves state)
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

    /// A classifier that knows no class yet, over a frozen Vision Transformer in a safetensors file with timm's names.
    static member Create(backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.value "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        let settings = options.ToSettings backbone

        opened settings backbone options (fun vit ->
            let learner = Plan.learnerOver vit settings
            struct (learner, Learner.start learner (Rng.ofSeed options.Seed)))

    /// `Create` with default options.
    static member Create(backbone: string) : ContinualClassifier =
        ContinualClassifier.Create(backbone, ClassifierOptions())

    /// A saved classifier, over the backbone file that it was trained on. The image size, input range, heads and
    /// epsilon are always the saved ones, not those of `options`.
    static member Load(folder: string, backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.value "folder" folder
        Given.value "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        use _ = torch.NewDisposeScope()
        let saved = LearnerFile.load folder

        let settings =
            { options.ToSettings backbone with
                InputRange = struct (saved.Input.Low, saved.Input.High)
                ImageSize = Some saved.Input.Size
                Heads = Some saved.Record.Heads
                NormEpsilon = saved.NormEpsilon
            }

        LearnerFile.checkBackbone saved (DataFile.sha256 backbone) backbone

        opened settings backbone options (fun vit ->
            let learner = LearnerFile.learner vit settings.Method saved
            struct (learner, LearnerFile.restore learner saved))

    /// `Load` with default options.
    static member Load(folder: string, backbone: string) : ContinualClassifier =
        ContinualClassifier.Load(folder, backbone, ClassifierOptions())

    /// Names of the classes that it knows, in the order learned.
    member _.ClassNames: IReadOnlyList<string> = state.Classes |> Array.map _.Name :> _

    /// Learns a group of new classes: `images` labelled 0, 1, … into `newClasses`. The images are not kept. Rejects a
    /// name that is known, labels out of range and a class without images; the classifier then stays as it was.
    member _.Learn(newClasses: IReadOnlyList<string>, images: ImageSet) : unit =
        requireLive ()
        Given.value "new classes" newClasses
        Given.value "images" images
        let names = Array.ofSeq newClasses
        names |> Array.iter (Given.value "class name")

        let options = Plan.learnOptions settings backbone settings.Epochs
        ImageTask.learn learner options names images onEvent state |> replace

        // the current folder may change
        sources <- Path.GetFullPath images.Source :: sources

    /// Forgets a class: it is no longer predicted, and its statistics are gone. What the network learned from it stays.
    /// Rejects a name that is not known.
    member _.Forget(className: string) : unit =
        requireLive ()
        Given.value "class name" className

        match state.Classes |> Array.tryFind (fun one -> one.Name = className) with
        | Some one -> replace (Learner.forget learner one.Id state)
        | None ->
            let known = state.Classes |> Array.map _.Name |> List.ofArray
            let advice = Errors.didYouMean known className

            Errors.reject
                $"class '{className}'"
                "must be a class that the classifier knows"
                "an unknown class"
                advice

    /// The best class of each image, at the given positions of a set.
    member _.Predict(images: ImageSet, positions: int[]) : Prediction[] =
        requireLive ()
        Given.value "images" images
        Given.value "positions" positions
        let batching = Plan.batchOptionsFor settings backbone Augmentation.None
        let model = deployed ()

        let predict (input: unit -> torch.Tensor) =
            Scope.run (fun () ->
                let scores = Learner.predict learner model (input ())
                let best = Scorer.best scores

                let ofBest =
                    (scores.gather (1L, best.unsqueeze 1L))
                        .``to``(torch.ScalarType.Float64)
                        .cpu()
                        .data<float>()

                Seq.map2
                    (fun (row: int64) score ->
                        {
                            ClassName = state.Classes[int row].Name
                            Similarity = Math.Clamp(score, -1.0, 1.0)
                        })
                    (best.cpu().data<int64>())
                    ofBest
                |> Array.ofSeq)

        NativeError.during
            (fun () -> "while predicting")
            "use less memory with a smaller BatchSize"
            (fun () ->
                positions
                |> Array.chunkBySize settings.Batch
                |> TaskStream.inputs batching Augmentation.None (Rng.ofSeed 0L) images
                |> Array.collect predict)

    /// The best class of each image of a set.
    member this.Predict(images: ImageSet) : Prediction[] =
        Given.value "images" images
        this.Predict(images, Array.init images.Labels.Length id)

    /// Writes the classifier into a folder, made where it is missing: `learner.safetensors` and `learner.json`. A classifier
    /// that is there already can be loaded until the new one can, whatever happens meanwhile. The backbone stays where
    /// it is. Rejects a folder among the images that were learned.
    member _.Save(folder: string) : unit =
        requireLive ()
        Given.value "folder" folder
        sources |> List.iter (fun source -> ImageSet.requireOutside source folder)

        try
            Directory.CreateDirectory folder |> ignore
        with
        | :? IOException
        | :? UnauthorizedAccessException as e ->
            Errors.reject folder "must be a folder that can be written" e.Message ""

        let record =
            LearnerFile.record
                learner
                state
                (state.Classes |> Array.map _.Id.Value)
                (Plan.batchOptionsFor settings backbone Augmentation.None).Format
                settings.NormEpsilon
                sha256
                []

        LearnerFile.save folder learner record state

    /// Frees the native memory; harmless to call again.
    member _.Dispose() =
        if not disposed then
            disposed <- true
            forgetModel ()
            Scope.free TaskState.leaves state
            Scope.free VisionTransformer.leaves backbone

    interface IDisposable with
        member this.Dispose() = this.Dispose()

/// Images with the names of their classes.
[<ReferenceEquality>]
type NamedImages =
    {
        ClassNames: string[]
        /// Labelled by the place of their class in `ClassNames`.
        Images: ImageSet
        /// What was left out, and which links were followed; mostly none.
        Notes: string[]
    }

/// Images for a `ContinualClassifier`.
[<AbstractClass; Sealed>]
type Images =

    /// Images held in memory: `pixels` holds count × channels × height × width bytes, each image plane by plane, row
    /// by row; channels is 1 (grey) or 3 (RGB); `labels` holds one number per image. Borrows the arrays.
    static member FromBytes
        (labels: int[], channels: int, height: int, width: int, pixels: byte[])
        : ImageSet =
        Given.value "labels" labels
        Given.value "pixels" pixels
        ImageSet.ofBytes "images in memory" labels channels height width pixels

    /// Images read when they are needed, one at a time: `read` gives the bytes of the images at the positions it is given,
    /// laid out as for `FromBytes`, and may be called from several threads at once.
    static member FromReader
        (labels: int[], channels: int, height: int, width: int, read: Func<int[], byte[]>)
        : ImageSet =
        Given.value "labels" labels
        Given.value "read" read

        (fun position -> read.Invoke [| position |])
        |> ImageSet.ofReader "images from a reader" labels channels height width

    /// Image files, which may differ in size: JPEG, PNG, WebP, BMP or GIF. They are decoded when they are needed, and kept in
    /// memory up to 2 GiB. `labels` holds one number per file.
    static member FromFiles(labels: IReadOnlyList<int>, paths: IReadOnlyList<string>) : ImageSet =
        Given.value "labels" labels
        Given.value "paths" paths
        paths |> Seq.iter (Given.value "path")

        if labels.Count <> paths.Count then
            Errors.reject "labels" $"must be {paths.Count}, one per file" $"{labels.Count}" ""

        Seq.map2 (fun label path -> ({ Path = path; Label = label }: LabelledFile)) labels paths
        |> Array.ofSeq
        |> ImageFiles.set "image files"

    /// Image files without labels, for `Predict`.
    static member FromFiles(paths: IReadOnlyList<string>) : ImageSet =
        Given.value "paths" paths
        Images.FromFiles(Array.zeroCreate<int> paths.Count, paths)

    /// The images of a folder that holds a folder for each class, for `Learn`; names in ordinal order. For folders of
    /// train and test images see `FromDataset("folder", …)`.
    static member FromFolder(folder: string) : NamedImages =
        Given.value "folder" folder
        let found = FileScan.require (ImageFolder.all folder)

        {
            ClassNames = found.ClassNames
            Images = ImageFiles.set folder found.Train
            Notes = found.Notes
        }

    /// The images of some classes of a set; the first of `classes` becomes label 0, the next label 1, and so on.
    static member OfClasses(images: ImageSet, classes: IReadOnlyList<int>) : ImageSet =
        let labels = Array.ofSeq classes

        let chosen =
            Array.init images.Labels.Length id
            |> Array.filter (fun i -> Array.contains images.Labels[i] labels)

        let set = ImageSet.select chosen images

        { set with
            Labels = set.Labels |> Array.map (fun label -> Array.IndexOf(labels, label))
        }

    /// One of the data sets known by name (see Datasets.names), from a folder in its published layout.
    static member FromDataset(name: string, folder: string) : Dataset = Datasets.load name folder
