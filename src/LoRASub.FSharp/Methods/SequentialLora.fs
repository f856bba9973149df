namespace LoRASub.Methods

open LoRASub.Backbone

/// The baseline that adapts the network to each task in turn without protecting earlier ones: LoRA-Sub-DRS without
/// projection and triplet loss, each task's pairs merged.
[<RequireQualifiedAccess>]
module SequentialLora =

    let info: MethodInfo =
        {
            Name = "sequential"
            Summary = "low-rank training on each task in turn, without protection of earlier ones"
            Source = "Hu et al. 2022, arXiv 2106.09685"
            Stores = LoRASubDrs.info.Stores
            Trains = true
            Joint = false
        }

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

    /// The method over a backbone, which it borrows. Rejects settings out of range.
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) =
        { LoRASubDrs.method' vit (unprotected settings) with
            Info = info
        }

    /// The upper bound: the same on all classes at once.
    let joint (vit: VisionTransformer) (settings: LoRASubSettings) =
        { method' vit settings with
            Info = jointInfo
        }
