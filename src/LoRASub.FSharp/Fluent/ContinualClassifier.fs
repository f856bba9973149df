namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open TorchSharp

/// The class predicted for an image.
[<Struct>]
type Prediction =
    {
        ClassName: string
        /// The head's score. Compare it only between classes of one image; larger is better.
        Score: float
    }

/// A classifier that learns new classes from their images and keeps none of the images: the library's front door
/// from C#. Holds native memory: dispose it. Not safe for use from several threads at once.
/// Throws InputException for input that breaks a rule, and MemoryException, an OutOfMemoryException, where memory runs
/// out in main memory or on the GPU; the classifier then stays as it was.
type ContinualClassifier
    private
    (initialLearner: Learner, settings: RunSettings, sha256: string, options: ClassifierOptions, initial) =
    let backbone = initialLearner.Backbone
    let mutable learner = initialLearner
    let mutable adaptation: string = null
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

    // The learner for the next group of classes, with the reason where the first group decides whether the network adapts.
    let decide (names: string[]) (images: ImageSet) : struct (Learner * string) =
        if settings.IsUndecided && state.Finished = 0 then
            let struct (method, trial) =
                Decision.ofImages
                    settings
                    backbone
                    images
                    (Array.init images.Labels.Length id)
                    (Array.init names.Length id)
                    options.Report

            struct (Recipe.learner backbone { settings with MethodName = method }, Decision.describe trial)
        else
            struct (learner, adaptation)

    // A classifier outlives the scopes of its caller.
    static let opened
        (settings: RunSettings)
        (file: string)
        options
        (build: VisionTransformer -> struct (Learner * TaskState))
        =
        let struct (backbone, sha256) = Recipe.openBackbone settings file

        try
            let struct (learner, state) = build backbone
            Scope.detach VisionTransformer.leaves backbone |> ignore
            new ContinualClassifier(learner, settings, sha256, options, Scope.detach TaskState.leaves state)
        with _ ->
            Scope.free VisionTransformer.leaves backbone
            reraise ()

    /// <summary>A classifier that knows no class yet, over a frozen Vision Transformer.</summary>
    /// <param name="backbone">A safetensors file with timm's names.</param>
    /// <param name="options">Read once.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An option is out of range, or the file is not such a
    /// network.</exception>
    static member Create(backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.value "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        let settings = options.ToSettings backbone

        opened settings backbone options (fun vit ->
            let learner = Recipe.learner vit settings
            struct (learner, Learner.start learner (Rng.ofSeed options.Seed)))

    /// <summary>`Create` with default options.</summary>
    /// <param name="backbone">A safetensors file with timm's names.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is not such a network.</exception>
    static member Create(backbone: string) : ContinualClassifier =
        ContinualClassifier.Create(backbone, ClassifierOptions())

    /// <summary>A saved classifier, over the backbone file that it was trained on.</summary>
    /// <param name="folder">The folder that it was saved in.</param>
    /// <param name="backbone">The backbone's file.</param>
    /// <param name="options">Those of further training. Image size, input range, heads and epsilon are always
    /// the saved ones.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no classifier, its files are damaged, or
    /// the backbone is another.</exception>
    static member Load(folder: string, backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.value "folder" folder
        Given.value "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        use _ = torch.NewDisposeScope()
        let saved = LearnerFile.load folder

        let settings =
            { options.ToSettings backbone with
                MethodName = saved.Record.Method
                InputRange = struct (saved.Input.Low, saved.Input.High)
                ImageSize = Some saved.Input.Size
                Heads = Some saved.Record.Heads
                NormEpsilon = saved.NormEpsilon
            }

        LearnerFile.checkBackbone saved (DataFile.sha256 backbone) backbone

        opened settings backbone options (fun vit ->
            let learner = LearnerFile.learner vit settings.Method saved
            struct (learner, LearnerFile.restore learner saved))

    /// <summary>`Load` with default options.</summary>
    /// <param name="folder">The folder that it was saved in.</param>
    /// <param name="backbone">The backbone's file.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no classifier, its files are damaged, or
    /// the backbone is another.</exception>
    static member Load(folder: string, backbone: string) : ContinualClassifier =
        ContinualClassifier.Load(folder, backbone, ClassifierOptions())

    /// <summary>Names of the classes that it knows, in the order learned.</summary>
    member _.ClassNames: IReadOnlyList<string> = state.Classes |> Array.map _.Name :> _

    /// <summary>Learns a group of new classes. The images are not kept. Where it throws, the classifier stays
    /// as it was.</summary>
    /// <param name="newClasses">Their names.</param>
    /// <param name="images">Labelled 0, 1, … into `newClasses`.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A name is known or there twice, labels are out of range, or
    /// a class has no image.</exception>
    member _.Learn(newClasses: IReadOnlyList<string>, images: ImageSet) : unit =
        requireLive ()
        Given.value "new classes" newClasses
        Given.value "images" images
        let names = Array.ofSeq newClasses
        names |> Array.iter (Given.value "class name")

        ImageTask.check names images state
        let struct (chosen, reason) = decide names images
        let learnOptions = Recipe.learnOptions settings backbone settings.Epochs

        Scope.run (fun () ->
            let before =
                if settings.IsUndecided && state.Finished = 0 then
                    Learner.start chosen (Rng.ofSeed settings.Seed)
                else
                    state

            let after =
                ImageTask.learn chosen learnOptions names images options.Report before
                |> Scope.detach TaskState.leaves

            replace after)

        learner <- chosen
        adaptation <- reason

        // the current folder may change
        sources <- Path.GetFullPath images.Source :: sources

    /// <summary>Why the network was or was not adapted to the first group of classes. Null before the first group, and for
    /// presets that do not decide.</summary>
    member _.Adaptation: string = adaptation

    /// <summary>Forgets a class: it is no longer predicted, and its mean is deleted. What it contributed to a shared
    /// covariance, and to the network, stays.</summary>
    /// <param name="className">Its name.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The classifier does not know the name.</exception>
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

    /// <summary>The best class of some images of a set.</summary>
    /// <param name="images">A set; its labels are not used.</param>
    /// <param name="positions">Positions in the set.</param>
    /// <returns>One prediction per position.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, or an image cannot be
    /// read.</exception>
    member _.Predict(images: ImageSet, positions: int[]) : Prediction[] =
        requireLive ()
        Given.value "images" images
        Given.value "positions" positions
        let batching = Recipe.testOptions settings backbone

        ImageTask.predict learner batching (deployed ()) images positions
        |> Array.map (fun best ->
            {
                ClassName = state.Classes[best.Row].Name
                Score = best.Score
            })

    /// <summary>The best class of each image of a set.</summary>
    /// <param name="images">A set; its labels are not used.</param>
    /// <returns>One prediction per image, in order.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, or an image cannot be
    /// read.</exception>
    member this.Predict(images: ImageSet) : Prediction[] =
        Given.value "images" images
        this.Predict(images, Array.init images.Labels.Length id)

    /// <summary>Writes the classifier into a folder: `learner.safetensors` and `learner.json`. A classifier
    /// that is there already can be loaded until the new one can, whatever happens meanwhile. The backbone
    /// stays where it is.</summary>
    /// <param name="folder">Made where it is missing.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder cannot be written, or is among the images that
    /// were learned.</exception>
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
            LearnerRecord.create
                learner
                state
                (state.Classes |> Array.map _.Id.Value)
                (Recipe.testOptions settings backbone).Format
                settings.NormEpsilon
                sha256
                []

        LearnerFile.save folder learner record state

    /// <summary>Frees the native memory; harmless to call again.</summary>
    member _.Dispose() =
        if not disposed then
            disposed <- true
            forgetModel ()
            Scope.free TaskState.leaves state
            Scope.free VisionTransformer.leaves backbone

    interface IDisposable with
        member this.Dispose() = this.Dispose()
