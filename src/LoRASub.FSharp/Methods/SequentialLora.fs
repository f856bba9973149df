namespace LoRASub.Methods

open LoRASub.Backbone

/// The baseline that adapts the network to each task in turn without protecting earlier ones: LoRA-Sub-DRS without
/// projection and triplet loss, each task's pairs merged.
[<RequireQualifiedAccess>]
module SequentialLora =

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "sequential"
            Summary = "low-rank training on each task in turn, without protection of earlier ones"
            Source = "Hu et al. 2022, arXiv 2106.09685"
            Stores = LoRASubDrs.info.Stores
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

    let private unprotected (settings: LoRASubSettings) =
        { settings with
            Projection = false
            Triplet = false
        }

    /// <summary>The method over a backbone.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, rates and optimizer; projection and triplet loss are switched
    /// off.</param>
    /// <returns>The method with the types of LoRA-Sub-DRS.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) =
        { LoRASubDrs.method' vit (unprotected settings) with
            Info = info
        }

    /// <summary>The upper bound: the same on all classes as one task.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">As for `method'`.</param>
    /// <returns>The method with the types of LoRA-Sub-DRS.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let joint (vit: VisionTransformer) (settings: LoRASubSettings) =
        { method' vit settings with
            Info = jointInfo
        }
