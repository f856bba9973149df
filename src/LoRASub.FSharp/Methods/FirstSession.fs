namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone

/// First-session adaptation (Panos et al. 2023; the first phase of RanPAC, McDonnell et al. 2023): the network adapts to
/// the first task and is never trained again. Here it adapts as `SequentialLora` does; Panos et al. train FiLM layers,
/// RanPAC a parallel adapter.
[<RequireQualifiedAccess>]
module FirstSession =

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "first-session"
            Summary = "low-rank training on the first task only, then no training"
            Source = "Panos et al., ICCV 2023, arXiv 2303.13199"
            Stores = SequentialLora.info.Stores
            Trains = true
            Joint = false
        }

    /// <summary>The method over a backbone.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, start of B, rates and optimizer.</param>
    /// <returns>The method with the types of `SequentialLora`. In later tasks `Update` rejects every step,
    /// and `Merge` gives the state that the task began with.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) =
        let base' = SequentialLora.method' vit settings
        let trains (task: LoRASub.Data.LearningTask) = task.Index = 0

        { base' with
            Info = info
            Trains = trains
            Update =
                fun rates batch training ->
                    if not (trains training.Task) then
                        Errors.reject
                            "method first-session"
                            "must not be trained after the first task"
                            $"a training step of task {training.Task.Index + 1}"
                            "use 0 epochs"

                    base'.Update rates batch training
            Merge =
                fun training ->
                    if trains training.Task then
                        base'.Merge training
                    else
                        training.State
        }
