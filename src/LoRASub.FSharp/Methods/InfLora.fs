namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Heads
open TorchSharp

/// What InfLoRA decides.
type InfLoraOptions =
    {
        /// λ_b: the energy of a task's inputs that is excluded from later updates, at the first task.
        First: float
        /// λ_e: the same after all tasks.
        Last: float
        /// T: over how many tasks the energy grows from λ_b to λ_e; it stays there afterwards. `Methods` takes the run's
        /// number of tasks.
        Tasks: int
    }

/// Interference-free low-rank adaptation: Y.-S. Liang, W.-J. Li, CVPR 2024, arXiv 2404.00228. A reads only the leading
/// directions of the task's inputs outside those of old inputs, is the same for key and value, and stays fixed; B and a
/// local head are trained. Prediction takes the largest of all local logits. Differences from the published code: rows of
/// A beyond the rank of the allowed inputs are zero, where the code takes arbitrary directions; ties of the energy rule
/// are broken up to rounding.
[<RequireQualifiedAccess>]
module InfLora =

    /// <summary>λ_b and λ_e for CIFAR-100 in 10 tasks.</summary>
    let published: InfLoraOptions = { First = 0.95; Last = 1.0; Tasks = 10 }

    /// The pass after training.
    [<ReferenceEquality>]
    type Pass =
        {
            /// Index of the task.
            Task: int
            /// Per block, the second moment of its attention's inputs under the merged network.
            Moments: SecondMoment[]
        }

    /// What outlives a task.
    [<ReferenceEquality>]
    type State =
        {
            /// Per block, the summed deltas of finished tasks.
            Deltas: LayerDelta[]
            /// Per block, the space of old inputs; empty before the first task.
            Spaces: DualGpm[]
            /// The local heads of all tasks, [c, d] and [c].
            Heads: Linear
            /// In the pass after training only.
            Pass: Pass option
        }

    /// A task in training.
    type Training = AdamTraining<State>

    let private passTree: Tree<Pass> =
        tree {
            let! task = Tree.field "task" _.Task Tree.int
            and! moments = Tree.field "moments" _.Moments (Tree.array SecondMoment.tree)
            return { Task = task; Moments = moments }
        }

    let private stateTree: Tree<State> =
        tree {
            let! deltas = Tree.field "blocks" _.Deltas LoraTask.deltas
            and! spaces = Tree.field "spaces" _.Spaces (Tree.array DualGpm.tree)
            and! heads = Tree.field "heads" _.Heads Linear.tree
            and! pass = Tree.field "pass" _.Pass (Tree.option passTree)

            return
                {
                    Deltas = deltas
                    Spaces = spaces
                    Heads = heads
                    Pass = pass
                }
        }

    /// <summary>Its name, its paper and what it stores.</summary>
    let info: MethodInfo =
        {
            Name = "inflora"
            Summary = "low-rank training of B alone, on directions of A that old inputs do not use"
            Source = "Liang & Li, CVPR 2024, arXiv 2404.00228"
            Stores =
                "two d x d deltas and a basis of at most d x d/2 per block, at most 10·L·d² bytes; a row of a linear "
                + "classifier per class, 4·(d + 1) bytes; nothing per task"
            Trains = true
            Joint = false
        }

    /// ε of a task.
    let internal threshold (options: InfLoraOptions) (task: int) : float =
        let share = min 1.0 (float task / float options.Tasks)
        options.First + (options.Last - options.First) * share

    let private check (options: InfLoraOptions) =
        Projection.checkThreshold options.First
        Projection.checkThreshold options.Last

        if options.Tasks < 1 then
            Errors.reject "number of tasks" "must be at least 1" $"{options.Tasks}" ""

    let private start (vit: VisionTransformer) : State =
        {
            Deltas = LoraTask.noDeltas vit
            Spaces = [||]
            Heads = LocalHead.none vit
            Pass = None
        }

    // Of as many blocks as there are moments.
    let private oldSpaces (moments: SecondMoment[]) (state: State) =
        if Array.isEmpty state.Spaces then
            moments
            |> Array.map (fun { Moment = like } -> DualGpm.zero like.shape[0] like.dtype like.device)
        else
            state.Spaces

    // A = U_rᵀ/√3, which has the expected row norm of LoRA's random start.
    let private prepare (observing: LoraObserving<State>) =
        let spaces = oldSpaces observing.Moments observing.State

        let confined i (pairs: LayerLora) : LayerLora =
            let subject = $"second moment of block {i}, task {observing.Task.Index + 1}"
            let rank = int (Seq.head pairs.Values).A.shape[0]

            let a =
                (DualGpm.leading rank subject observing.Moments[i] spaces[i]).div(Number.Of(sqrt 3.0))

            pairs |> Map.map (fun _ pair -> { pair with A = a })

        let lora = Array.mapi confined observing.Trained.Lora
        struct (LoraTask.ofPairs lora observing.Trained.Head, [||])

    let private rules vit (settings: LoRASubSettings) : LoraRules<State, _> =
        {
            BInit = BInit.Zeros
            Rank = settings.Rank
            Optimizer = LoRASubDrs.adam settings
            State = stateTree
            Start = fun () -> start vit
            Deltas = _.Deltas
            ObservedSign = 1.0
            Prepare = prepare
            Confine =
                fun _ side ->
                    match side with
                    | Side.Right -> Confinement.Fixed
                    | Side.Left -> Confinement.Free
            Loss = fun _ -> LoraTask.crossEntropy
            Merge =
                fun deltas training ->
                    { training.State with
                        Deltas = deltas
                        Heads = LocalHead.append training.Trained.Head training.State.Heads
                        Pass =
                            Some
                                {
                                    Task = training.Task.Index
                                    Moments = LoraTask.noMoments vit
                                }
                    }
        }

    let private consolidate vit images (state: State) : State =
        match state.Pass with
        | None -> Errors.reject "consolidation" "must follow the end of training" "a finished state" ""
        | Some pass ->
            Scope.noGrad stateTree.Leaves (fun () ->
                let network = VisionTransformer.merged 1.0 state.Deltas vit

                { state with
                    Pass =
                        Some
                            { pass with
                                Moments = LoraTask.observeInputs vit network images pass.Moments
                            }
                })

    let private finish options (state: State) : State =
        match state.Pass with
        | None -> state
        | Some pass ->
            Scope.noGrad stateTree.Leaves (fun () ->
                let extend i space =
                    let subject = $"second moment of block {i}, after task {pass.Task + 1}"
                    DualGpm.extend (threshold options pass.Task) subject pass.Moments[i] space

                { state with
                    Spaces = state |> oldSpaces pass.Moments |> Array.mapi extend
                    Pass = None
                })

    let private forget row (state: State) : State =
        Scope.noGrad stateTree.Leaves (fun () ->
            { state with
                Heads = LocalHead.withoutRow row state.Heads
            })

    /// <summary>The method over a backbone, with options of its own.</summary>
    /// <param name="options">How the excluded energy grows.</param>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, rates and optimizer; B starts at zero.</param>
    /// <returns>The method with its types. Each pass before and after training is a forward pass; that after
    /// training is one more than the head's.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting or option is out of range, also for the width of
    /// the backbone.</exception>
    let methodWith
        (options: InfLoraOptions)
        (vit: VisionTransformer)
        (settings: LoRASubSettings)
        : Method<State, LoraObserving<State>, Training> =
        LoRASubDrs.check vit.Width settings
        check options

        { LoraTask.method' info vit (rules vit settings) with
            Observes = fun _ -> true
            Consolidate = fun batch _ state -> consolidate vit batch.Images state
            Finish = finish options
            Forget = forget
            Logits = Some(fun state -> LocalHead.scores state.Heads)
        }

    /// <summary>`methodWith` of `published`.</summary>
    /// <param name="vit">The backbone, borrowed for as long as the method is used.</param>
    /// <param name="settings">Rank, rates and optimizer; B starts at zero.</param>
    /// <returns>The method with its types.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting is out of range, also for the width of the
    /// backbone.</exception>
    let method' (vit: VisionTransformer) (settings: LoRASubSettings) = methodWith published vit settings
