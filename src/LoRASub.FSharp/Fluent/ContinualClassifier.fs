namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Learn
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
type ContinualClassifier private (initial: KeptLearner, options: ClassifierOptions) =
    let mutable kept = Scope.detach KeptLearner.leaves initial
    let mutable adaptation: string = null
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
            let fresh = Scope.detach Model.leaves (Learner.deploy kept.Learner kept.State)
            model <- Some fresh
            fresh

    // A classifier outlives the scopes of its caller.
    let replace (next: KeptLearner) =
        forgetModel ()
        Scope.supersede TaskState.leaves [ next.State ] kept.State
        Scope.detach TaskState.leaves next.State |> ignore
        kept <- next

    let best count (images: ImageSet) (positions: int[]) : Prediction[][] =
        requireLive ()
        Given.value "images" images
        Given.value "positions" positions
        let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone

        ImageTask.best count kept.Learner batching (deployed ()) images positions
        |> Array.map (
            Array.map (fun one ->
                {
                    ClassName = kept.Classes[one.Row].Name
                    Score = one.Score
                })
        )

    /// <summary>A classifier that knows no class yet, over a frozen Vision Transformer.</summary>
    /// <param name="backbone">Weights of a plain Vision Transformer (`Weights.load`), or the name of a downloaded one
    /// (`Backbones.known`).</param>
    /// <param name="options">Read once.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An option is out of range, or the file is not such a
    /// network.</exception>
    static member Create(backbone: string, options: ClassifierOptions) : ContinualClassifier =
        Given.value "backbone" backbone
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
        Given.value "folder" folder
        Given.value "backbone" backbone
        Given.value "options" options
        NativeBackend.ensureLoaded () |> ignore
        use _ = torch.NewDisposeScope()
        let saved = LearnerFile.load folder

        let settings = KeptLearner.settingsOf saved (options.ToSettings backbone)
        new ContinualClassifier(KeptLearner.ofSaved settings saved, options)

    /// <summary>`Load` with default options.</summary>
    /// <param name="folder">The folder that it was saved in.</param>
    /// <param name="backbone">The backbone's file, or the name of a downloaded one.</param>
    /// <returns>The classifier, to be disposed by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no classifier, its files are damaged, or
    /// the backbone is another.</exception>
    static member Load(folder: string, backbone: string) : ContinualClassifier =
        ContinualClassifier.Load(folder, backbone, ClassifierOptions())

    /// <summary>Names of the classes that it knows, in the order learned.</summary>
    member _.ClassNames: IReadOnlyList<string> = kept.Classes |> Array.map _.Name :> _

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

        Scope.run (fun () ->
            let struct (next, decision) = KeptLearner.learn names images options.Report kept
            replace next
            decision |> Option.iter (fun text -> adaptation <- text))

        // the current folder may change
        sources <- Path.GetFullPath images.Source :: sources

    /// <summary>Adds images of known classes to the statistics that classify. Nothing is forgotten, the network stays as
    /// it is, and the images are not kept.</summary>
    /// <param name="classes">Their names.</param>
    /// <param name="images">Labelled 0, 1, … into `classes`.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A name is not known, labels are out of range, a class has no
    /// image, or the classifier is the method's own, which keeps no statistics.</exception>
    member _.AddImages(classes: IReadOnlyList<string>, images: ImageSet) : unit =
        requireLive ()
        Given.value "classes" classes
        Given.value "images" images
        let names = Array.ofSeq classes
        names |> Array.iter (Given.value "class name")
        Scope.run (fun () -> replace (KeptLearner.addImages names images options.Report kept))
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

        replace (KeptLearner.forget className kept)

    /// <summary>Gives a class another name. It stays the same class.</summary>
    /// <param name="className">Its name.</param>
    /// <param name="newName">Not a name of another class, and not blank.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The classifier does not know the name, or the new one is blank or
    /// another class's.</exception>
    member _.Rename(className: string, newName: string) : unit =
        requireLive ()
        Given.value "class name" className
        Given.value "new name" newName
        replace (KeptLearner.rename className newName kept)

    /// <summary>The best class of some images of a set.</summary>
    /// <param name="images">A set; its labels are not used.</param>
    /// <param name="positions">Positions in the set.</param>
    /// <returns>One prediction per position.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, or an image cannot be
    /// read.</exception>
    member _.Predict(images: ImageSet, positions: int[]) : Prediction[] =
        best 1 images positions |> Array.map Array.head

    /// <summary>The best classes of each image of a set, best first.</summary>
    /// <param name="images">A set; its labels are not used.</param>
    /// <param name="count">How many; all classes where there are fewer.</param>
    /// <returns>For each image its best classes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">No class is learned, the count is below 1, or an image cannot be
    /// read.</exception>
    member _.PredictTopK(images: ImageSet, count: int) : Prediction[][] =
        Given.value "images" images

        if count < 1 then
            Errors.reject "count" "must be at least 1" $"{count}" ""

        best count images (Array.init images.Labels.Length id)

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

        KeptLearner.save folder kept

    /// <summary>Frees the native memory; harmless to call again.</summary>
    member _.Dispose() =
        if not disposed then
            disposed <- true
            forgetModel ()
            Scope.free KeptLearner.leaves kept

    interface IDisposable with
        member this.Dispose() = this.Dispose()
