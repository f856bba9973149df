namespace LoRASub.Run

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings

/// Settles the method `auto`: whether the network adapts to the first task.
[<RequireQualifiedAccess>]
module Decision =

    /// The name of the method for a first task of some images of a set, and the trial: None where the settings leave
    /// nothing open or the task is too small for one. Borrows the backbone. Rejects as `TaskLoop.learn`.
    let internal ofImages
        (settings: RunSettings)
        (backbone: VisionTransformer)
        set
        positions
        classes
        onEvent
        =
        if settings.IsUndecided then
            let under (info: MethodInfo) =
                Recipe.learner backbone { settings with MethodName = info.Name }

            let options =
                Recipe.learnOptions settings backbone (defaultArg settings.InitialEpochs settings.Epochs)

            let trial =
                Adaptation.trial
                    (under Frozen.info)
                    (under FirstSession.info)
                    options
                    set
                    positions
                    classes
                    (Rng.ofSeed settings.Seed)
                    onEvent

            let helps = trial |> Option.exists _.Helps
            struct ((if helps then FirstSession.info.Name else Frozen.info.Name), trial)
        else
            struct (settings.MethodName, None)

    /// The decision in words.
    let internal describe (trial: AdaptationTrial option) : string =
        match trial with
        | Some trial -> string trial
        | None -> "the network stays frozen: the first task is too small for a trial"

    /// <summary>The plan with its method settled: where the settings say `auto`, a trial on the first task's training
    /// images decides whether the network adapts to that task. Until then a plan has the method that adapts.</summary>
    /// <param name="onEvent">Receives the trial's progress, on the calling thread.</param>
    /// <param name="plan">Borrowed.</param>
    /// <returns>The plan, over the same backbone, and the trial: None where nothing was open, or the task is too small
    /// for one and the network stays frozen.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">As `TaskLoop.learn`.</exception>
    let ofPlan (onEvent: TaskEvent -> unit) (plan: Plan) : struct (Plan * AdaptationTrial option) =
        let stream = plan.Stream
        let first = stream.Tasks[0]
        let positions = TaskStream.trainIndices stream first

        let struct (method, trial) =
            ofImages plan.Settings plan.Backbone stream.Dataset.Train positions first.Classes onEvent

        let settings =
            { plan.Settings with
                MethodName = method
            }

        struct ({ plan with Settings = settings }, trial)
