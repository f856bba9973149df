namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone

/// The baseline that adapts the network to each task in turn without protecting earlier ones: low-rank pairs and a local
/// head trained with cross-entropy, each task's pairs merged.
[<RequireQualifiedAccess>]
module SequentialLora =

    /// What outlives a task: per block, the summed deltas of finished tasks.
    type State = LayerDelta[]

    /// A task in training.
    type Training = AdamTraining<State>

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "sequential"
            Summary = "low-rank training on each task in turn, without protection of earlier ones"
            Source = "Hu et al. 2022, arXiv 2106.09685"
            Stores = "two d x d deltas per block, 8·L·d² bytes; nothing per task or class"
            Trains = true
            Joint = false
        }

    /// <summary>The same for all classes as one task.</summary>
    let jointInfo =
        { info with
            Name = "joint"
            Summary = "low-rank training on all classes as one task: an upper bound"
            Joint = true
        }

    let private rules vit (settings: LoRASubSettings) : LoraRules<State, _> =
        {
            BInit = settings.BInit
            Rank = settings.Rank
            Optimizer = LoRASubDrs.adam settings
            State = Tree.field "blocks" id LoraTask.deltas
            Start = fun () -> LoraTask.noDeltas vit
            Deltas = id
            ObservedSign = 1.0
            Prepare = fun observing -> struct (observing.Trained, [||])
            Confine = fun _ _ -> Confinement.Free
            Loss = fun _ -> LoraTask.crossEntropy
            Merge = fun deltas _ -> deltas
        }

    /// <summary>The method over a backbone.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, start of B, rates and optimizer.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method'
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        : Method<State, LoraObserving<State>, Training> =
        LoRASubDrs.check vit.Width settings
        LoraTask.method' info vit (rules vit settings)

    /// <summary>The upper bound: the same on all classes as one task.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">As for `method'`.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let joint (vit: VisionTransformer) (settings: LoRASubSettings) =
        { method' vit settings with
            Info = jointInfo
        }
