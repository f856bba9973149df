namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// A batch size that was tried, or is known not to fit without trying.
type BatchTrial =
    {
        Batch: int
        /// Used at the peak, or expected where `Ran` is false; None where memory ran out or the device does not say.
        Bytes: int64 option
        Ran: bool
        Fits: bool
    }

/// The largest batch that a plan can learn in the memory that there is.
[<RequireQualifiedAccess>]
module LargestBatch =

    /// <summary>Searches by doubling, then by halving the gap to a sixteenth of the batch.</summary>
    /// <param name="fits">Whether a batch fits; if one does, smaller ones do.</param>
    /// <param name="most">No larger one is tried.</param>
    /// <returns>A batch that fits, at most a sixteenth smaller than the largest; 0 where not even one image does.</returns>
    let search (fits: int -> bool) (most: int) : int =
        let rec between low high =
            let middle = low + (high - low) / 2

            if high - low <= max 1 (low / 16) then low
            elif fits middle then between middle high
            else between low middle

        let rec grow low =
            let next = min most (max 1 (2 * low))

            if low = most then low
            elif fits next then grow next
            else between low next

        grow 0

    /// The bytes of a batch on the line through the two largest ones measured; None with fewer than two.
    let internal expected (measured: (int * int64) list) (batch: int) : int64 option =
        match measured |> List.sortByDescending fst with
        | (large, more) :: (small, less) :: _ ->
            Some(more + max 0L (more - less) * int64 (batch - large) / int64 (large - small))
        | _ -> None

    // One batch of each of the first two tasks: the second has projections and prototypes, as later ones have. Images
    // repeat where a task has fewer.
    let private learn (learner: Learner) (plan: Plan) (batch: int) : TaskState =
        let settings =
            { plan.Settings with
                Batch = batch
                Epochs = 1
                InitialEpochs = None
            }

        let set = plan.Stream.Dataset.Train

        (Learner.start learner (Rng.ofSeed settings.Seed), Array.truncate 2 plan.Stream.Tasks)
        ||> Array.fold (fun state task ->
            let classes = Array.truncate batch task.Classes

            let images =
                TaskStream.trainIndices plan.Stream task
                |> Array.groupBy (fun i -> set.Labels[i])
                |> Map.ofArray

            let position i =
                let mine = images[classes[i % classes.Length]]
                mine[i / classes.Length % mine.Length]

            let context =
                ImageTask.context
                    learner
                    (Recipe.learnOptions settings plan.Backbone 1)
                    set
                    (Array.init batch position)
                    (classes |> Array.map (fun label -> plan.Stream.Dataset.ClassNames[label]))
                    { task with
                        FirstClass = TaskState.classes state
                        Classes = classes
                    }
                    state
                    (PhaseClock())

            (TaskLoop.learn context state None).State)

    // Main memory that is left may be used up to a quarter: a process that takes all of it is killed.
    let private usual () =
        NativeError.freeMain ()
        |> Option.map (fun free -> (MemoryUse.now ()).ResidentBytes + free / 4L * 3L)

    /// <summary>Finds the largest batch by learning two tasks of one batch each, again and again.</summary>
    /// <param name="plan">Borrowed. Its batch size does not count.</param>
    /// <param name="limit">Bytes that this process may use on a CPU. None for three quarters of the memory that is left, or
    /// for all memory of a CUDA device.</param>
    /// <param name="report">Called after each batch.</param>
    /// <returns>The batch; at most the images of the largest task, and 0 where not even one image fits.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A limit for a CUDA device, or as `TaskLoop.learn`.</exception>
    let find (plan: Plan) (limit: int64 option) (report: BatchTrial -> unit) : int =
        let learner = Plan.learner plan
        let onCpu = plan.Backbone.Device.``type`` <> DeviceType.CUDA

        // LibTorch keeps what it has taken of a device, so that a smaller batch after a larger one would seem as large
        if limit.IsSome && not onCpu then
            Errors.reject
                "memory limit of the largest batch"
                "must be left out on a GPU, whose memory is the limit"
                $"{Bytes.text limit.Value}"
                ""

        let limit = if limit.IsNone && onCpu then usual () else limit
        let isOver bytes = limit |> Option.exists ((>) bytes)
        let mutable measured = []

        let attempt batch =
            MemoryUse.resetPeak ()

            try
                Scope.run (fun () -> learn learner plan batch |> ignore)

                let bytes =
                    if onCpu then
                        Some(MemoryUse.peakBytes ())
                    else
                        MemoryUse.deviceBytes plan.Backbone.Device

                struct (true, bytes)
            with e when e :? MemoryException || (NativeError.ofException e).IsSome ->
                struct (false, None)

        let fits batch =
            let trial =
                match expected measured batch with
                // not tried: it would take memory from other programs
                | Some bytes when isOver bytes ->
                    {
                        Batch = batch
                        Bytes = Some bytes
                        Ran = false
                        Fits = false
                    }
                | _ ->
                    let struct (learned, bytes) = attempt batch
                    bytes |> Option.iter (fun bytes -> measured <- (batch, bytes) :: measured)

                    {
                        Batch = batch
                        Bytes = bytes
                        Ran = true
                        Fits = learned && not (Option.exists isOver bytes)
                    }

            report trial
            trial.Fits

        plan.Stream.Tasks
        |> Array.map (TaskStream.trainIndices plan.Stream >> _.Length)
        |> Array.max
        |> search fits
