namespace LoRASub.Learn

open System
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

    /// Whether the gain is more than its standard error. Otherwise the frozen network, which costs no training, is the
    /// better choice.
    member this.Helps = this.Gain > this.Error

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

    /// <summary>Compares a learner that adapts its network to the first task with one that does not, on that task's
    /// training images alone. The cost is about half of learning the task.</summary>
    /// <param name="frozen">Of a method that does not train; borrowed.</param>
    /// <param name="adapting">With the same head and embedding, which has sums: not `logits`; borrowed.</param>
    /// <param name="options">How the task will be learned.</param>
    /// <param name="set">Training images.</param>
    /// <param name="classes">The labels of the first task's classes, in the class order.</param>
    /// <param name="key">The root key of the learner to come.</param>
    /// <param name="onEvent">Receives progress on the calling thread.</param>
    /// <returns>None where the task is too small to tell: fewer than four classes, or a class with fewer than five
    /// images.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `TaskLoop.learn`.</exception>
    let trial frozen adapting options (set: ImageSet) (classes: int[]) key onEvent : AdaptationTrial option =
        let positions =
            classes
            |> Array.map (fun label ->
                label,
                Array.indexed set.Labels
                |> Array.filter (snd >> (=) label)
                |> Array.map fst)
            |> Map.ofArray

        if
            classes.Length < 4
            || positions |> Map.exists (fun _ mine -> mine.Length < heldOutEvery)
        then
            None
        else
            let pick isHeldOut labels =
                labels
                |> Array.collect (fun label ->
                    positions[label]
                    |> Array.indexed
                    |> Array.filter (fun (i, _) -> (i % heldOutEvery = heldOutEvery - 1) = isHeldOut)
                    |> Array.map snd)

            let first, later = Array.splitAt (classes.Length / 2) classes
            let heldOut = pick true classes

            let score learner =
                correct learner options set key onEvent first later (pick false) heldOut

            let frozen, adapted = score frozen, score adapting

            let differences =
                Array.map2 (fun was is -> float (Convert.ToInt32(is: bool) - Convert.ToInt32(was: bool))) frozen adapted

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
