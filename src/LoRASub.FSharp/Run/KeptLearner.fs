namespace LoRASub.Run

open System
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings

/// A learner that is kept: what it has learned, the backbone that it sees with, and the settings for further
/// learning. The images that it learned from are not in it.
[<ReferenceEquality>]
type KeptLearner =
    {
        /// With the backbone's path.
        Settings: RunSettings
        /// Of the backbone's file, in lower-case hexadecimal.
        BackboneSha256: string
        /// Its backbone belongs to whoever opened it.
        Learner: Learner
        /// What it has learned so far.
        State: TaskState
        /// What calibrates its scores.
        HeldOut: HeldOut[]
    }

    /// The classes that it knows, by row.
    member this.Classes: ClassInfo[] = this.State.Classes

/// Creates, saves and loads kept learners; `Lesson` teaches them. `ContinualClassifier` and the commands `learn`, `predict`
/// and others are thin layers over them.
[<RequireQualifiedAccess>]
module KeptLearner =

    /// Lists the tensors of a kept learner, its backbone's with them.
    let internal leaves: Leaves<KeptLearner> =
        fun kept -> Seq.append (VisionTransformer.leaves kept.Learner.Backbone) (TaskState.leaves kept.State)

    /// <summary>Settings of a new learner.</summary>
    /// <param name="preset">Chooses method, head and embedding: see `Preset.named`.</param>
    /// <returns>The settings, without a backbone: published rates, five epochs, random crops and flips.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no preset of this name.</exception>
    let settings (preset: string) : RunSettings =
        let named =
            ("variant", "libcontinual") :: Preset.pairs preset
            |> Settings.ofPairs Preset.cifar100

        { named with
            OtherHeads = []
            Epochs = 5
            InputRange = struct (-1.0, 1.0)
            NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
            Augmentation = Augmentation.CropFlip
            PrototypeTransform = PrototypeTransform.Test
            Seeding = Seeding.Once
        }

    let private opened
        settings
        (struct (file, sha256): struct (string * string))
        (heldOut: HeldOut[])
        (build: VisionTransformer -> struct (Learner * TaskState))
        : KeptLearner =
        Scope.keep leaves (fun () ->
            let struct (learner, state) = build (Recipe.loadBackbone settings file)

            {
                // the learner is saved with it, and may be opened in another folder
                Settings = { settings with Backbone = Some file }
                BackboneSha256 = sha256
                Learner = learner
                State = state
                HeldOut = heldOut
            })

    /// <summary>A learner that knows no class yet.</summary>
    /// <param name="settings">They name the backbone's file.</param>
    /// <returns>The learner and its backbone, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, or the file is not a Vision
    /// Transformer.</exception>
    let create (settings: RunSettings) : KeptLearner =
        opened settings (Recipe.identified settings.Backbone.Value) [||] (fun backbone ->
            let learner = Recipe.learner backbone settings
            struct (learner, Learner.start learner (Rng.ofSeed settings.Seed)))

    /// <summary>The settings that a saved learner continues with.</summary>
    /// <param name="saved">As `LearnerFile.load` gives it.</param>
    /// <param name="settings">Of further training. What decides how images are seen is taken from the learner
    /// instead.</param>
    /// <returns>The settings.</returns>
    let internal settingsOf (saved: SavedLearner) (settings: RunSettings) : RunSettings =
        { settings with
            MethodName = saved.Record.Method
            InputRange = struct (saved.Input.Low, saved.Input.High)
            ImageSize = Some saved.Input.Size
            Heads = Some saved.Record.Heads
            NormEpsilon = saved.NormEpsilon
            Transport = saved.Record.Transport |> Option.defaultValue true
        }

    /// The settings that were saved with a learner; those of a new one where it has none.
    let internal savedSettings (saved: SavedLearner) : RunSettings =
        let pairs =
            [
                for KeyValue(name, text) in saved.Record.Settings do
                    name, text
            ]

        try
            let preset = settings "recommended"

            match pairs with
            | [] -> preset
            | _ -> Settings.ofPairs (fun variant -> { preset with Variant = variant }) pairs
            |> settingsOf saved
        with :? InputException as e ->
            raise (InputException($"{saved.Path}: {e.Message}", e))

    /// The learner of a file over its backbone, as `Recipe.identified` gives it. Owned by the caller.
    let internal ofSaved (settings: RunSettings) (backbone: struct (string * string)) (saved: SavedLearner) =
        let struct (file, sha256) = backbone
        LearnerFile.checkBackbone saved sha256 file

        opened settings backbone (defaultArg saved.Record.HeldOut [||]) (fun vit ->
            let struct (tasks, _) = settings.Split

            let learner =
                { LearnerFile.learner vit tasks settings.Method saved with
                    Transport = settings.Transport
                }

            struct (learner, LearnerFile.restore learner saved))

    /// <summary>A learner from its folder, with the settings that it was saved with.</summary>
    /// <param name="backbone">The file of its backbone, wherever it is now.</param>
    /// <param name="folder">As `save` wrote it.</param>
    /// <returns>The learner and its backbone, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A file is missing, damaged or of another version, or the backbone
    /// is not the learner's.</exception>
    let load (backbone: string) (folder: string) : KeptLearner =
        Scope.keep leaves (fun () ->
            let saved = LearnerFile.load folder

            ofSaved (savedSettings saved) (Recipe.identified backbone) saved)

    /// Another learner of a file, over the backbone of one that is open; its state is owned by the caller. Rejects one of
    /// another backbone or another way to see images.
    let internal besides (kept: KeptLearner) (saved: SavedLearner) : KeptLearner =
        let backbone =
            kept.Settings.Backbone
            |> Option.defaultValue "the backbone of the other learner"

        LearnerFile.checkBackbone saved kept.BackboneSha256 backbone
        let settings = savedSettings saved
        let struct (tasks, _) = settings.Split
        let learner = LearnerFile.learner kept.Learner.Backbone tasks settings.Method saved

        { kept with
            Settings =
                { settings with
                    Backbone = kept.Settings.Backbone
                }
            Learner = learner
            State = LearnerFile.restore learner saved
            HeldOut = defaultArg saved.Record.HeldOut [||]
        }

    /// What is saved of a learner beside its tensors.
    let internal record (kept: KeptLearner) : LearnerFormat.Record =
        let record =
            LearnerRecord.create
                kept.Learner
                kept.State
                (kept.Classes |> Array.map _.Id.Value)
                (Recipe.testOptions kept.Settings kept.Learner.Backbone).Format
                kept.Settings.NormEpsilon
                kept.BackboneSha256
                (Settings.toPairs kept.Settings)

        { record with
            HeldOut =
                if Array.isEmpty kept.HeldOut then
                    None
                else
                    Some kept.HeldOut
        }

    /// <summary>Writes a learner into a folder. One that is there already can be loaded until the new one can, whatever
    /// happens meanwhile. The backbone stays where it is.</summary>
    /// <param name="folder">Made where it is absent.</param>
    /// <param name="kept">Borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder cannot be written.</exception>
    let save (folder: string) (kept: KeptLearner) : unit =
        WholeFile.makeFolder folder

        LearnerFile.save folder kept.Learner (record kept) kept.State

    /// <summary>How the scores of a learner are read.</summary>
    /// <param name="falseAlarms">The share of images of known classes that may be called unknown, in [0, 1).</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>Without probabilities and threshold where no image was held out.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The share is out of range.</exception>
    let calibration (falseAlarms: float) (kept: KeptLearner) : Calibration =
        Calibration.ofGroups falseAlarms kept.Classes.Length kept.HeldOut

    /// The scores of every image of a set. Rejects a learner without classes and images that cannot be read.
    let internal scored (images: ImageSet) (kept: KeptLearner) : Scored[] =
        Scope.run (fun () ->
            ImageTask.scored
                kept.Learner
                (Recipe.testOptions kept.Settings kept.Learner.Backbone)
                (Learner.deploy kept.Learner kept.State)
                images
                (Array.init images.Labels.Length id))

    /// <summary>The position of a class by name.</summary>
    /// <param name="name">Of the class.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>What the learner knows of the class.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner does not know the name; the nearest one is
    /// named.</exception>
    let classOf (name: string) (kept: KeptLearner) : ClassInfo =
        match kept.Classes |> Array.tryFind (fun one -> one.Name = name) with
        | Some one -> one
        | None ->
            let known = kept.Classes |> Array.map _.Name |> List.ofArray

            Errors.reject
                $"class '{name}'"
                "must be a class that the learner knows"
                "an unknown class"
                (Errors.didYouMean known name)

    /// <summary>The learner without a class. What the class contributed to a shared covariance, and to the network,
    /// stays.</summary>
    /// <param name="name">Of the class.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>The learner with a state owned by the caller; the two states may share tensors.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner does not know the name.</exception>
    let forget (name: string) (kept: KeptLearner) : KeptLearner =
        { kept with
            State = Learner.forget kept.Learner (classOf name kept).Id kept.State
        }

    /// <summary>The learner with another name for a class, which stays the same class.</summary>
    /// <param name="name">Of the class.</param>
    /// <param name="newName">Not a name of another class, and not blank.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>The learner, which shares its tensors with the old one.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner does not know the name, or the new one is blank or
    /// another class's.</exception>
    let rename (name: string) (newName: string) (kept: KeptLearner) : KeptLearner =
        let id = (classOf name kept).Id

        if String.IsNullOrWhiteSpace newName then
            Errors.reject "the new class name" "must hold a character" "a blank name" ""

        if kept.Classes |> Array.exists (fun one -> one.Name = newName && one.Id <> id) then
            Errors.reject $"class '{newName}'" "must be new" "a class of that name" ""

        { kept with
            State =
                { kept.State with
                    Classes =
                        kept.Classes
                        |> Array.map (fun one -> if one.Id = id then { one with Name = newName } else one)
                }
        }
