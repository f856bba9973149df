namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone

/// What null-space LoRA decides.
type NullSpaceOptions =
    {
        /// Share of the energy of old inputs in the directions that A must not read, in (0, 1].
        Energy: float
    }

/// Low-rank training in the null space of old inputs, after Adam-NSCL (Wang et al., CVPR 2021, arXiv 2103.07113). With N the
/// directions of the attention inputs that hold the least energy over all finished tasks, A starts as A·NNᵀ and its Adam
/// updates are multiplied by NNᵀ, so that B·A·x is almost nothing for old x; B is free. Adam-NSCL instead projects the
/// updates of whole weights, averages inputs over the batch first, and keeps eigenvalues up to a multiple of the smallest,
/// which behind a layer norm may be one direction; here moments are of tokens, and the cut is a share of the energy.
[<RequireQualifiedAccess>]
module NullSpaceLora =

    /// <summary>99 % of the energy is left out.</summary>
    let published: NullSpaceOptions = { Energy = 0.99 }

    /// What outlives a task.
    [<ReferenceEquality>]
    type State =
        {
            /// Per block, the summed deltas of finished tasks.
            Deltas: LayerDelta[]
            /// Per block, the second moment of the attention inputs of finished tasks, each under the network after it.
            Moments: SecondMoment[]
        }

    /// A task in training.
    type Training = AdamTraining<State>

    let private stateTree: Tree<State> =
        tree {
            let! deltas = Tree.field "blocks" _.Deltas LoraTask.deltas
            and! moments = Tree.field "moments" _.Moments (Tree.array SecondMoment.tree)

            return { Deltas = deltas; Moments = moments }
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "null-space"
            Summary = "low-rank training that old inputs hardly reach"
            Source = "Wang et al., CVPR 2021, arXiv 2103.07113, applied to LoRA"
            Stores =
                "two d x d deltas and one d x d second moment per block, 12·L·d² bytes; nothing per task or class"
            Trains = true
            Joint = false
        }

    // Nothing is old before the first task.
    let private prepare options (observing: LoraObserving<State>) =
        let spaceOf i (moment: SecondMoment) =
            let subject = $"second moment of block {i}, before task {observing.Task.Index + 1}"

            Projection.leaveOut options.Energy subject moment

        let confined (pairs: LayerLora) (space: Projection) : LayerLora =
            pairs |> Map.map (fun _ pair -> { pair with A = pair.A.mm space.Matrix })

        let trained, moments = observing.Trained, observing.State.Moments

        if moments |> Array.exists (fun moment -> moment.Count > 0L) then
            let spaces = Array.mapi spaceOf moments

            struct (LoraTask.ofPairs (Array.map2 confined trained.Lora spaces) trained.Head, spaces)
        else
            struct (trained, [||])

    let private rules options vit (settings: LoRASubSettings) : LoraRules<State, _> =
        {
            BInit = settings.BInit
            Rank = settings.Rank
            Optimizer = LoRASubDrs.adam settings
            State = stateTree
            Start =
                fun () ->
                    {
                        Deltas = LoraTask.noDeltas vit
                        Moments = LoraTask.noMoments vit
                    }
            Deltas = _.Deltas
            ObservedSign = 1.0
            Prepare = prepare options
            Confine =
                fun spaces side ->
                    match side with
                    | Side.Right -> LoraTask.within spaces side
                    | Side.Left -> Confinement.Free
            Loss = fun _ -> LoraTask.crossEntropy
            Merge = fun deltas training -> { training.State with Deltas = deltas }
        }

    /// <summary>The method over a backbone, with options of its own.</summary>
    /// <param name="options">How much of the old inputs is left out.</param>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, start of B, rates and optimizer.</param>
    /// <returns>The method with its types. The pass after training takes a forward pass of its own.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let methodWith
        (options: NullSpaceOptions)
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        : Method<State, LoraObserving<State>, Training> =
        LoRASubDrs.check vit.Width settings
        Projection.checkThreshold options.Energy

        { LoraTask.method' info vit (rules options vit settings) with
            // drift.json lists spaces that hold most of the energy, and these hold the least
            Diagnostics =
                fun training ->
                    { Diagnostics.none with
                        Retained = Diagnostics.retained training.Projections
                    }
            Consolidate =
                fun batch _ state ->
                    Scope.noGrad stateTree.Leaves (fun () ->
                        let network = VisionTransformer.merged 1.0 state.Deltas vit

                        { state with
                            Moments = LoraTask.observeInputs vit network batch.Images state.Moments
                        })
        }

    /// <summary>`methodWith` of `published`.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, start of B, rates and optimizer.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) = methodWith published vit settings
