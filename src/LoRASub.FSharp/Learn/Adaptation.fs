namespace LoRASub.Learn

open System
open System.Globalization
open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads

/// What a trial on the first task's training images says about adapting the network: it adapts to half of the classes,
/// the other half arrive afterwards, and images held out of both halves are scored. Both networks score the same images.
type AdaptationTrial =
    {
        /// Classes that the network adapted to.
        Classes: int
        /// Classes that arrived afterwards.
        LaterClasses: int
        /// Images held out and scored.
        Images: int
        /// Of them, correct with the frozen network.
        Frozen: int
        /// Of them, correct with the adapted network.
        Adapted: int
        /// Standard error of the difference of the two accuracies, as a fraction.
        Error: float
    }

    /// Accuracy gained by adapting, as a fraction.
    member this.Gain = float (this.Adapted - this.Frozen) / float this.Images

    override this.ToString() =
        let percent n =
            (100.0 * float n / float this.Images).ToString("F1", CultureInfo.InvariantCulture)

        let points (x: float) =
            (100.0 * x).ToString("F1", CultureInfo.InvariantCulture)

        let choice =
            if this.Helps then
                "the network adapts"
            else
                "the network stays frozen"

        $"{choice}: adapted to {this.Classes} classes it gets {percent this.Adapted}%% of {this.Images} held-out training images of {this.Classes + this.LaterClasses} classes right, frozen {percent this.Frozen}%% (difference {points this.Gain} ± {points this.Error})"

    /// Whether the gain is more than two standard errors. Otherwise chance may explain it, and the frozen network, which
    /// costs no training, is the better choice.
    member this.Helps = this.Gain > 2.0 * this.Error

/// Decides by validation on the first task whether the network should adapt at all.
[<RequireQualifiedAccess>]
module Adaptation =

    // One image in this many is held out.
    let private heldOutEvery = 5

    // Which held-out images a learner gets right after adapting to `first` and meeting `later`.
    let private correct (learner: Learner) options (set: ImageSet) key onEvent first later train heldOut =
        let taskOf index firstClass classes =
            {
                Index = index
                FirstClass = firstClass
                Classes = classes
            }

        let a, b = taskOf 0 0 first, taskOf 1 (Array.length first) later
        let all = taskOf 0 0 (Array.append first later)
        let learner = Learner.alone learner

        Scope.run (fun () ->
            let start = Learner.start learner key
            let names = first |> Array.map string<int>

            let context =
                { ImageTask.context learner options set (train first) names a start (PhaseClock()) with
                    OnEvent = onEvent
                }

            let state = (TaskLoop.learn context start None).State
            let arriving = TaskStream.plainBatches options.Batch set b (train later)
            let model = Learner.foresee learner b arriving state

            [|
                for load in TaskStream.plainBatches options.Batch set all heldOut do
                    yield!
                        Scope.run (fun () ->
                            let batch = load ()
                            let best = Scorer.best (Learner.predict learner model batch.Images)
                            best.eq(batch.Labels).cpu().data<bool>().ToArray())
            |])

    // Images of a class that a trial reads: more would settle little that these do not.
    let private most = 500

    // Evenly spaced, where a class has more.
    let private byLabel (positions: int[]) (set: ImageSet) =
        positions
        |> Array.groupBy (fun i -> set.Labels[i])
        |> Array.map (fun (label, mine) ->
            let count = min most mine.Length
            label, Array.init count (fun i -> mine[int (int64 i * int64 mine.Length / int64 count)]))
        |> Map.ofArray

    /// The number of images that a trial reads.
    let internal images (positions: int[]) (set: ImageSet) : int =
        byLabel positions set |> Map.values |> Seq.sumBy Array.length

    /// Whether images are enough for a trial: four classes, and five images of each.
    let internal isPossible (positions: int[]) (classes: int[]) (set: ImageSet) : bool =
        let byLabel = byLabel positions set

        let isEnough label =
            match Map.tryFind label byLabel with
            | Some mine -> mine.Length >= heldOutEvery
            | None -> false

        classes.Length >= 4 && Array.forall isEnough classes

    /// <summary>Compares a learner that adapts its network to the first task with one that does not, on that task's
    /// training images alone, at most 500 of each class. The cost is about half of learning these.</summary>
    /// <param name="frozen">Of a method that does not train; borrowed.</param>
    /// <param name="adapting">With the same head and embedding. The head must not be `logits`. Borrowed.</param>
    /// <param name="options">How the task will be learned.</param>
    /// <param name="set">Images.</param>
    /// <param name="positions">Those of the first task's training images.</param>
    /// <param name="classes">The labels of its classes, in the class order.</param>
    /// <param name="key">The root key of the learner to come.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <returns>None where the task is too small to tell: fewer than four classes, or a class with fewer than five
    /// images.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `TaskLoop.learn`.</exception>
    let trial
        frozen
        adapting
        options
        (set: ImageSet)
        (positions: int[])
        (classes: int[])
        key
        onEvent
        : AdaptationTrial option =
        if not (isPossible positions classes set) then
            None
        else
            let byLabel = byLabel positions set

            let pick isHeldOut labels =
                labels
                |> Array.collect (fun label ->
                    byLabel[label]
                    |> Array.indexed
                    |> Array.filter (fun (i, _) -> (i % heldOutEvery = heldOutEvery - 1) = isHeldOut)
                    |> Array.map snd)

            let first, later = Array.splitAt (classes.Length / 2) classes
            let heldOut = pick true classes

            let score learner =
                correct learner options set key onEvent first later (pick false) heldOut

            let frozen = score frozen

            // the images were readable a moment ago, so what fails is the training, such as a loss that is not finite
            let adapted =
                try
                    score adapting
                with :? InputException ->
                    Array.create frozen.Length false

            let differences =
                Array.map2
                    (fun was is -> float (Convert.ToInt32(is: bool) - Convert.ToInt32(was: bool)))
                    frozen
                    adapted

            let count = Array.filter id >> Array.length
            let n, mean = float heldOut.Length, Array.average differences
            let variance = (differences |> Array.sumBy (fun d -> (d - mean) ** 2.0)) / (n - 1.0)

            Some
                {
                    Classes = first.Length
                    LaterClasses = later.Length
                    Images = heldOut.Length
                    Frozen = count frozen
                    Adapted = count adapted
                    Error = sqrt (variance / n)
                }
