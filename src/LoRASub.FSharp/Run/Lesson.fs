namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// What came of learning images.
type Lesson =
    {
        /// With a state owned by the caller, over the same backbone.
        After: KeptLearner
        /// The decision whether the network adapts, in words, if one was made.
        Decision: string option
        /// Of the images held out, before the head learned them too.
        Accuracy: Score
    }

/// Teaches kept learners.
[<RequireQualifiedAccess>]
module Lesson =

    // Adds images of known classes, those of them that have any, to the head's statistics.
    let private added (names: string[]) (images: ImageSet) onEvent (kept: KeptLearner) : KeptLearner =
        let labels = images.Labels |> Array.distinct |> Array.sort

        if Array.isEmpty labels then
            kept
        else
            let names = labels |> Array.map (fun label -> names[label])
            let batching = Recipe.testOptions kept.Settings kept.Learner.Backbone

            { kept with
                State =
                    ImageTask.addImages
                        kept.Learner
                        batching
                        names
                        (ImageSet.ofLabels labels images)
                        onEvent
                        kept.State
            }

    // Calibrates a learner by images that it has not learned; then the head learns them too.
    let private heldOut (names: string[]) (images: ImageSet) onEvent (kept: KeptLearner) =
        if Array.isEmpty images.Labels then
            struct (kept, { Correct = 0; Total = 0 })
        else
            let rowOf name =
                kept.Classes |> Array.findIndex (fun one -> one.Name = name)

            let rows = names |> Array.map rowOf
            let rows = images.Labels |> Array.map (fun label -> rows[label])

            let scored = KeptLearner.scored images kept

            let group =
                Calibration.ofScores (scored |> Array.map _.Scores) (scored |> Array.map _.Support) rows

            let right = Array.map2 (fun (one: Scored) row -> one.Best = row) scored rows

            let kept =
                { kept with
                    HeldOut =
                        Array.append kept.HeldOut (Option.toArray group)
                        |> Calibration.prune kept.Classes.Length
                }

            struct (added names images onEvent kept,
                    {
                        Correct = right |> Array.filter id |> Array.length
                        Total = right.Length
                    })

    // Learns images, all but those held out, which calibrate what came of it.
    let private lesson
        (share: float)
        (names: string[])
        (images: ImageSet)
        onEvent
        (kept: KeptLearner)
        (learn: ImageSet -> struct (KeptLearner * string option))
        : Lesson =
        if not (share >= 0.0 && share < 1.0) then
            Errors.reject "the share to hold out" "must be at least 0 and below 1" $"{share}" ""

        // a method's own classifier cannot learn them later
        let share = if Learner.isLogits kept.Learner.Head then 0.0 else share
        let struct (train, held) = ImageSet.divide share kept.Settings.SplitSeed images

        Scope.keep (fun (lesson: Lesson) -> TaskState.leaves lesson.After.State) (fun () ->
            let struct (taught, decision) = learn train
            let struct (after, accuracy) = heldOut names held onEvent taught

            {
                After = after
                Decision = decision
                Accuracy = accuracy
            })

    /// <summary>Learns a group of new classes. The images are not kept. The first group decides whether the network
    /// adapts, where the settings leave that open.</summary>
    /// <param name="holdOut">The share of each class's images that measures the accuracy and calibrates probabilities, in
    /// [0, 1). The head learns them afterwards; one that is the method's own classifier cannot, and then no image is held
    /// out.</param>
    /// <param name="names">Of the new classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`; read several times.</param>
    /// <param name="onEvent">Receives progress on the calling thread. What it raises ends the learning.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>What came of it.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `ImageTask.learn` rejects, or the share is out of
    /// range.</exception>
    let learn
        (holdOut: float)
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        (kept: KeptLearner)
        : Lesson =
        ImageTask.check names images kept.State
        let settings, backbone = kept.Settings, kept.Learner.Backbone

        let decided (images: ImageSet) =
            let struct (method, trial) =
                Decision.ofImages
                    settings
                    backbone
                    images
                    (Array.init images.Labels.Length id)
                    (Array.init names.Length id)
                    onEvent

            let settings = { settings with MethodName = method }
            let learner = Recipe.learner backbone settings

            let kept =
                { kept with
                    Settings = settings
                    Learner = learner
                    State = Learner.start learner (Rng.ofSeed settings.Seed)
                }

            struct (kept, Some(Decision.describe trial))

        lesson holdOut names images onEvent kept (fun train ->
            let struct (kept, decision) =
                if settings.IsUndecided then
                    decided train
                else
                    struct (kept, None)

            let options = Recipe.learnOptions kept.Settings backbone kept.Settings.Epochs
            let next = ImageTask.learn kept.Learner options names train onEvent kept.State
            struct ({ kept with State = next }, decision))

    /// <summary>Adds images of known classes to the head's statistics. Nothing is forgotten, as these are sums, and the
    /// network stays as it is.</summary>
    /// <param name="holdOut">As for `learn`.</param>
    /// <param name="names">Of known classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`; not kept.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>What came of it.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A name is not known, labels are out of range, or the learner's
    /// head is the method's own classifier, which keeps no sums.</exception>
    let addImages
        (holdOut: float)
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        (kept: KeptLearner)
        : Lesson =
        ImageTask.checkMore kept.Learner names images kept.State |> ignore

        lesson holdOut names images onEvent kept (fun train -> struct (added names train onEvent kept, None))
