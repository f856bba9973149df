namespace LoRASub

open TorchSharp

/// All that outlives a task: no image, no feature, no head.
[<ReferenceEquality>]
type TaskState =
    {
        /// Tasks finished so far.
        Finished: int
        /// Per block, the summed deltas of finished tasks.
        Deltas: LayerDelta[]
        /// One per class seen so far; classes are positions in the class order.
        Prototypes: Prototypes
        /// The root of every random number to come.
        Key: RandomKey
    }

/// A state made ready to predict: effective weights, and the prototypes it shares with the state.
[<ReferenceEquality>]
type Model =
    {
        Adapters: Adapters
        Prototypes: Prototypes
    }

/// Result of one training step, left on the device; reading it synchronises.
[<ReferenceEquality>]
type StepReport =
    {
        /// Scalar.
        Loss: torch.Tensor
        /// The head's predictions, [n] int64, as positions in the class order.
        Predictions: torch.Tensor
        /// How many of them are right, scalar int64.
        Correct: torch.Tensor
    }

/// What the observation of a task's data led to, for one block.
type Retained =
    {
        Rank: int
        Energy: float
        Condition: float
    }

/// The contract of a class-incremental method. A value closed over the frozen backbone; each function borrows its
/// arguments and owns its result. The phases of a task are types, so that training before observing does not compile.
type Learner<'Observing, 'Training> =
    {
        /// Name in saved results.
        Name: string
        /// Before the first task.
        Start: RandomKey -> TaskState
        /// Whether a task's data must be observed before training.
        Observes: LearningTask -> bool
        BeginTask: LearningTask -> TaskState -> 'Observing
        /// One batch of the new task, without gradients.
        Observe: Batch -> 'Observing -> 'Observing
        Prepare: 'Observing -> 'Training
        /// Sets the epoch, counted from 0, and with it the learning rate.
        BeginEpoch: int -> 'Training -> 'Training
        /// One step on one batch.
        Update: Batch -> 'Training -> struct ('Training * StepReport)
        /// What observing led to, per block; empty where nothing is retained.
        Retained: 'Training -> Retained[]
        /// The retained spaces themselves, per block, on the CPU; empty where nothing is retained. Owned by the caller.
        Subspaces: 'Training -> Subspace[]
        /// Merges the task and adds its classes, in one pass over its training images.
        AfterTask: BatchLoader[] -> 'Training -> TaskState
        /// Adds a task's classes to the state without training, in one pass over its training images.
        Extend: LearningTask -> BatchLoader[] -> TaskState -> TaskState
        Deploy: TaskState -> Model
        /// Of images.
        Features: Model -> torch.Tensor -> Features
        /// Features -> classes [n] int64, as positions in the class order.
        Classify: Model -> Features -> torch.Tensor
        /// The tensors of a task in observation, which was begun on a task state.
        ObservingTree: LearningTask -> TaskState -> Tree<'Observing>
        /// The tensors of a task in training.
        TrainingTree: LearningTask -> TaskState -> Tree<'Training>
    }

/// Children of a state's root key, so that the method and its data never share a stream.
[<RequireQualifiedAccess>]
module RandomBranch =
    [<Literal>]
    let Method = 0L

    [<Literal>]
    let Data = 1L

[<RequireQualifiedAccess>]
module TaskState =
    /// The state's tensors; what a file of tensors does not hold is given.
    let tree finished (classes: int[]) key : Tree<TaskState> =
        let block = Tree.field "delta" id (Lora.deltaTree Lora.keyValue)

        tree {
            let! finished = Tree.given _.Finished finished
            and! deltas = Tree.field "blocks" _.Deltas (Tree.array block)
            and! means = Tree.field "prototypes" _.Prototypes.Means Tree.tensor
            and! classes = Tree.given _.Prototypes.Classes classes
            and! key = Tree.given _.Key key

            return
                {
                    Finished = finished
                    Deltas = deltas
                    Prototypes = { Means = means; Classes = classes }
                    Key = key
                }
        }

    let leaves = (tree 0 [||] (Rng.ofSeed 0L)).Leaves

    /// Number of classes seen so far.
    let classes (state: TaskState) = state.Prototypes.Classes.Length

[<RequireQualifiedAccess>]
module Model =
    /// The prototypes belong to the state.
    let leaves: Leaves<Model> = fun m -> Adapters.leaves m.Adapters

[<RequireQualifiedAccess>]
module Learner =
    /// Images -> classes [n] int64, as positions in the class order. Borrows; owned by the caller.
    let predict (learner: Learner<_, _>) (model: Model) (images: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () -> learner.Features model images |> learner.Classify model)

[<RequireQualifiedAccess>]
module StepReport =
    let leaves: Leaves<StepReport> = fun r -> [ r.Loss; r.Predictions; r.Correct ]
