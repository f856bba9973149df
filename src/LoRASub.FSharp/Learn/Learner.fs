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

/// What one training step tells, as tensors on the device: reading them is left to whoever wants to wait.
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

/// How the state of a phase is laid out for a checkpoint: as named tensors, its numbers as tensors of one entry.
type Layout<'State> =
    {
        /// All that cannot be computed again, bit for bit. The state's own tensors are borrowed, the others made anew:
        /// to be called in a scope.
        Tensors: 'State -> (string * torch.Tensor) list
        /// The state whose task, task state and named tensors these are; it takes the tensors over.
        Restore: LearningTask -> TaskState -> (string -> torch.Tensor) -> 'State
    }

/// The contract of a class-incremental method. A value closed over the frozen backbone; each function borrows its
/// arguments and owns its result. The phases of a task are types, so that training before observing does not compile.
type Learner<'Observing, 'Training> =
    {
        /// As it stands in saved results.
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
        /// Adds a task's classes to the state with the network as it stands, in one pass over its training images.
        Extend: LearningTask -> BatchLoader[] -> TaskState -> TaskState
        Deploy: TaskState -> Model
        /// Of images.
        Features: Model -> torch.Tensor -> Features
        /// Features -> classes [n] int64, as positions in the class order.
        Classify: Model -> Features -> torch.Tensor
        ObservingLeaves: Leaves<'Observing>
        TrainingLeaves: Leaves<'Training>
        ObservingLayout: Layout<'Observing>
        TrainingLayout: Layout<'Training>
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
    let leaves: Leaves<TaskState> =
        fun s -> Seq.append (Seq.collect Lora.deltaLeaves s.Deltas) (Prototype.leaves s.Prototypes)

    /// The state's tensors by the names that files give them. Borrowed.
    let tensors (state: TaskState) : (string * torch.Tensor) list =
        [
            for block, delta in Array.indexed state.Deltas do
                $"blocks.{block}.delta.key", delta.Key
                $"blocks.{block}.delta.value", delta.Value
            "prototypes", state.Prototypes.Means
        ]

    /// The state of so many blocks, finished tasks and classes whose named tensors these are, which it takes over.
    let restore blocks finished classes key (find: string -> torch.Tensor) : TaskState =
        {
            Finished = finished
            Deltas =
                Array.init blocks (fun block ->
                    {
                        Key = find $"blocks.{block}.delta.key"
                        Value = find $"blocks.{block}.delta.value"
                    })
            Prototypes =
                {
                    Means = find "prototypes"
                    Classes = Array.init classes id
                }
            Key = key
        }

    /// Number of classes seen so far.
    let classes (state: TaskState) = state.Prototypes.Classes.Length

[<RequireQualifiedAccess>]
module Model =
    /// The prototypes belong to the state.
    let leaves: Leaves<Model> = fun m -> m.Adapters.Qkv

[<RequireQualifiedAccess>]
module Learner =
    /// Images -> classes [n] int64, as positions in the class order. Borrows; owned by the caller.
    let predict (learner: Learner<_, _>) (model: Model) (images: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () -> learner.Features model images |> learner.Classify model)

[<RequireQualifiedAccess>]
module StepReport =
    let leaves: Leaves<StepReport> = fun r -> [ r.Loss; r.Predictions; r.Correct ]
