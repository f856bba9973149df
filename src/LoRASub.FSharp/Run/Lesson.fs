namespace LoRASub.Run

open System
open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// The result of learning images.
type Lesson =
    {
        /// With a state owned by the caller, over the same backbone.
        After: KeptLearner
        /// The decision whether the network adapts, in words, if one was made.
        Decision: string option
        /// Of the images held out, before the head learned them too.
        Accuracy: Score
    }

/// A lesson was asked to stop. The learner is as it was.
type LessonStoppedException internal (message: string) =
    inherit OperationCanceledException(message)

/// Where a lesson waits when it is interrupted.
type internal Recovery =
    {
        /// Of the learner.
        Folder: string
        /// How often the progress is saved; zero: only when it is stopped.
        Every: TimeSpan
        /// Whether the lesson should stop.
        IsStopping: unit -> bool
        /// Receives what the user should know.
        Note: string -> unit
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

    // Learns images, all but those held out, which calibrate the result.
    let private lesson
        (share: float)
        (names: string[])
        (images: ImageSet)
        onEvent
        (kept: KeptLearner)
        (learn: ImageSet -> struct (KeptLearner * string option))
        : Lesson =
        Calibration.requireShare "the share to hold out" share

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

    // Saves the progress now and then, and where the lesson is asked to stop.
    let private onStep (recovery: Recovery) (save: TaskProgress -> unit) =
        let sinceSaved = Stopwatch.StartNew()

        fun (progress: unit -> TaskProgress) ->
            if recovery.IsStopping() then
                save (progress ())
                raise (LessonStoppedException "stopped; the learner is as it was. The same command continues")
            elif recovery.Every > TimeSpan.Zero && sinceSaved.Elapsed >= recovery.Every then
                // a full disk should not end a lesson that may find room later
                try
                    save (progress ())
                with
                | :? InputException
                | :? IOException
                | :? UnauthorizedAccessException as e ->
                    recovery.Note $"the progress could not be saved: {e.Message}"

                sinceSaved.Restart()

    /// `learn` that can be interrupted and continued.
    let internal learnIn
        (recovery: Recovery option)
        (holdOut: float)
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        (kept: KeptLearner)
        : Lesson =
        ImageTask.check names images kept.State
        let settings, backbone = kept.Settings, kept.Learner.Backbone

        // where there is no progress to save
        let orStop event =
            if recovery |> Option.exists (fun recovery -> recovery.IsStopping()) then
                raise (LessonStoppedException "stopped; the learner is as it was")

            onEvent event

        let under method =
            let settings = { settings with MethodName = method }
            let learner = Recipe.learner backbone settings

            { kept with
                Settings = settings
                Learner = learner
                State = Learner.start learner (Rng.ofSeed settings.Seed)
            }

        let decided (images: ImageSet) =
            let struct (method, trial) =
                Decision.ofImages
                    settings
                    backbone
                    images
                    (Array.init images.Labels.Length id)
                    (Array.init names.Length id)
                    orStop

            struct (under method, Some(Decision.describe trial))

        let opened (recovery: Recovery) identity =
            match OpenLesson.load recovery.Folder identity names with
            | None -> None
            | Some(Ok lesson) ->
                recovery.Note "continues where it was interrupted"
                Some lesson
            | Some(Error reason) ->
                recovery.Note $"the interrupted lesson starts again: {reason}"
                None

        lesson holdOut names images orStop kept (fun train ->
            let identity =
                match recovery with
                | Some _ -> OpenLesson.identity kept names train
                | None -> ""

            let saved = recovery |> Option.bind (fun recovery -> opened recovery identity)

            let struct (kept, decision) =
                match saved with
                | Some lesson when settings.IsUndecided -> struct (under lesson.Method, lesson.Decision)
                | Some lesson -> struct (kept, lesson.Decision)
                | None when settings.IsUndecided -> decided train
                | None -> struct (kept, None)

            let onStep =
                match recovery with
                | Some recovery ->
                    onStep recovery (OpenLesson.save recovery.Folder identity decision names kept)
                | None -> ignore

            let from =
                saved |> Option.map (fun lesson -> lesson.Progress kept.Learner kept.State)

            let options = Recipe.learnOptions kept.Settings backbone kept.Settings.Epochs

            let next =
                ImageTask.learnFrom from onStep kept.Learner options names train onEvent kept.State

            struct ({ kept with State = next }, decision))

    /// <summary>Learns a group of new classes. The images are not kept. The first group decides whether the network
    /// adapts, where the settings leave that open.</summary>
    /// <param name="holdOut">The share of each class's images that measures the accuracy and calibrates probabilities, in
    /// [0, 1). The head learns them afterwards; one that is the method's own classifier cannot, and then no image is held
    /// out.</param>
    /// <param name="names">Of the new classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`; read several times.</param>
    /// <param name="onEvent">Receives progress on the calling thread. What it raises ends the learning.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>The learner after it.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `ImageTask.learn` rejects, or the share is out of
    /// range.</exception>
    let learn
        (holdOut: float)
        (names: string[])
        (images: ImageSet)
        (onEvent: TaskEvent -> unit)
        (kept: KeptLearner)
        : Lesson =
        learnIn None holdOut names images onEvent kept

    /// <summary>Adds images of known classes to the head's statistics. Nothing is forgotten, as these are sums, and the
    /// network stays as it is.</summary>
    /// <param name="holdOut">As for `learn`.</param>
    /// <param name="names">Of known classes.</param>
    /// <param name="images">Labelled 0, 1, … into `names`; not kept.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>The learner after it.</returns>
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
