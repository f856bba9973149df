namespace LoRASub.Run

open System.Diagnostics
open LoRASub.Core
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// What learning costs with a backbone on a device, in seconds.
type internal LearnCost =
    {
        /// An image in a pass without training.
        Pass: float
        /// An image in an epoch of training.
        Training: float
        /// A task beside its images.
        Task: float
        /// A state made ready to predict.
        Deploy: float
    }

/// What is to be learned.
type internal LearnWork =
    {
        /// Images of new classes.
        New: int
        /// More images of known classes.
        More: int
        /// The share of all that is held out.
        HoldOut: float
        /// 0 where the network does not adapt.
        Epochs: int
        /// Images of the trial that decides first if the network adapts; 0 where that is decided.
        Trial: int
    }

/// How long learning will take.
[<RequireQualifiedAccess>]
module internal LearnTime =

    /// Seconds if the network stays frozen where that is open, and if it adapts.
    let seconds (cost: LearnCost) (work: LearnWork) : struct (float * float) =
        let trained images =
            images * float work.Epochs * cost.Training

        let held = work.HoldOut * float (work.New + work.More)

        let passes =
            // those that are held out are predicted and then learned
            (float (work.New + work.More) + held) * cost.Pass
            + (if work.New > 0 then cost.Task else 0.0)
            + (if work.More > 0 then cost.Task else 0.0)
            + (if held > 0.0 then cost.Deploy + cost.Task else 0.0)

        let kept = 1.0 - work.HoldOut

        let learned = trained (kept * float work.New)

        if work.Trial > 0 then
            // both networks see every image, and one of them adapts to four fifths of half of the classes
            let tried = kept * float work.Trial

            let trial =
                2.0 * (tried * cost.Pass + cost.Deploy + cost.Task) + trained (0.4 * tried)

            struct (passes + trial, passes + trial + learned)
        else
            struct (passes + learned, passes + learned)

    /// What a lesson of new classes, and of more images of known ones, has to do.
    let work (holdOut: float) (news: ImageSet) (more: ImageSet) (kept: KeptLearner) : LearnWork =
        let labels = Array.distinct news.Labels
        let task = ImageTask.nextTask (labels |> Array.map string) kept.State

        let positions = Array.init news.Labels.Length id

        let isOpen =
            kept.Settings.IsUndecided && Adaptation.isPossible positions labels news

        let adapts =
            kept.Learner.Method.Trains task && (isOpen || not kept.Settings.IsUndecided)

        {
            New = news.Labels.Length
            More = more.Labels.Length
            HoldOut = if Learner.isLogits kept.Learner.Head then 0.0 else holdOut
            Epochs = if adapts then kept.Settings.Epochs else 0
            Trial = if isOpen then Adaptation.images positions news else 0
        }

    // Batches of a measurement.
    let private batches = 2

    // Seconds that a measurement takes at most, beside its first rounds.
    let private most = 15.0

    /// Learns a few images, which it forgets again: some to warm up and to see how many to take, then those. None where they
    /// cannot be learned, as learning itself will say. Borrows.
    let measure
        (work: LearnWork)
        (names: string[])
        (images: ImageSet)
        (kept: KeptLearner)
        : LearnCost option =
        let learner, settings = kept.Learner, kept.Settings
        let backbone, count = learner.Backbone, images.Labels.Length

        // evenly spaced
        let some n =
            ImageSet.select (Array.init n (fun i -> int (int64 i * int64 count / int64 n))) images

        let learn batch onEvent (chosen: ImageSet) =
            let labels = Array.distinct chosen.Labels

            let names, chosen =
                labels |> Array.map (Array.get names), ImageSet.ofLabels labels chosen

            let sized (options: BatchOptions) = { options with BatchSize = batch }

            if work.New > 0 then
                let options = Recipe.learnOptions settings backbone (min 1 work.Epochs)

                let options =
                    { options with
                        Batch = sized options.Batch
                    }

                ImageTask.learn learner options names chosen onEvent kept.State
            else
                let options = sized (Recipe.testOptions settings backbone)
                ImageTask.addImages learner options names chosen onEvent kept.State

        let round batch =
            let clock, stamps = Stopwatch.StartNew(), ResizeArray()

            let onEvent event =
                match event with
                | Steps step ->
                    if backbone.Device.``type`` = DeviceType.CUDA then
                        torch.cuda.synchronize ()

                    stamps.Add struct (step.Phase, clock.Elapsed.TotalSeconds)
                | _ -> ()

            let n = min count (batches * batch)
            Scope.run (fun () -> learn batch onEvent (some n) |> ignore)

            // each phase reports its steps at the same place of each
            let stepOf phase =
                let times =
                    [|
                        for struct (other, time) in stamps do
                            if other = phase then
                                time
                    |]

                if times.Length < 2 then
                    0.0
                else
                    (Array.last times - times[0]) / float (times.Length - 1)

            let steps = float n / float batch

            let pass, training =
                stepOf Phase.Observe + stepOf Phase.Prototypes, stepOf Phase.Train

            {
                Pass = pass / float batch
                Training = training / float batch
                Task = max 0.0 (clock.Elapsed.TotalSeconds - steps * (pass + training))
                Deploy = 0.0
            }

        let deploy () =
            Scope.run (fun () ->
                let one = some 1
                let state = learn 1 ignore one
                let clock = Stopwatch.StartNew()
                let model = Learner.deploy learner state

                ImageTask.scored learner (Recipe.testOptions settings backbone) model one [| 0 |]
                |> ignore

                clock.Elapsed.TotalSeconds)

        // Larger batches are nearer to those of learning, as long as the time that they take is small. The first ones are
        // slow: the runtime has compiled little yet.
        let rec rounds batch spent cost =
            let struct (least, _) = seconds cost work
            let left = min most (2.0 + 0.2 * least) - spent - cost.Task
            let fits = left / (float batches * max 1e-6 (cost.Pass + cost.Training))

            let next =
                List.min [ 4 * batch; settings.Batch; count / batches; int (min fits 1e6) ]

            if next < 2 * batch then
                cost
            else
                let clock = Stopwatch.StartNew()
                let cost = round next
                rounds next (spent + clock.Elapsed.TotalSeconds) cost

        try
            let first = max 2 (min 8 (count / 16))
            // warms up
            round first |> ignore
            let cost = rounds first 0.0 (round first)

            Some
                { cost with
                    Deploy =
                        if work.Trial > 0 || work.HoldOut > 0.0 then
                            deploy ()
                        else
                            0.0
                }
        with :? InputException ->
            None
