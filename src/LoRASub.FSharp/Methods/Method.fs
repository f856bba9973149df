namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open TorchSharp

/// What a method is, for lists, files and errors.
type MethodInfo =
    {
        /// On the command line and in files.
        Name: string
        /// One sentence.
        Summary: string
        /// Paper.
        Source: string
        /// What outlives a task, beside the head's sums.
        Stores: string
        /// False if the method trains nothing in any task.
        Trains: bool
        /// True for the upper bound that learns all classes as one task.
        Joint: bool
    }

/// The learning rates of one step, which the task loop takes from its schedule.
[<Struct>]
type Rates =
    {
        /// Of what adapts the network.
        Network: float
        /// Of the task's linear classifier.
        Classifier: float
    }

/// Result of one training step, left on the device; reading it synchronises.
[<ReferenceEquality>]
type StepReport =
    {
        /// Scalar.
        Loss: torch.Tensor
        /// The classifier's predictions, [n] int64, as rows of classes.
        Predictions: torch.Tensor
        /// How many of them are correct, scalar int64.
        Correct: torch.Tensor
    }

/// Reports of steps.
[<RequireQualifiedAccess>]
module StepReport =
    /// <summary>Lists the tensors of a report.</summary>
    /// <param name="report">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<StepReport> =
        fun report -> [ report.Loss; report.Predictions; report.Correct ]

    /// The report of a classifier of the task's classes: predictions and labels are positions in the task, [n] int64.
    let internal ofTask (task: LearningTask) loss (labels: torch.Tensor) (predictions: torch.Tensor) =
        {
            Loss = loss
            Predictions = predictions.plus (Number.Of(int64 task.FirstClass))
            Correct = predictions.eq(labels).sum()
        }

/// What a projection retains in one block.
type Retained =
    {
        /// Directions retained.
        Rank: int
        /// Their share of the energy, in [0, 1].
        Energy: float
        /// Largest over smallest eigenvalue of the second moment.
        Condition: float
    }

/// What a method can report of a task in training, per block; empty where nothing is retained.
[<ReferenceEquality>]
type Diagnostics =
    {
        /// Numbers of the retained spaces.
        Retained: Retained[]
        /// The retained spaces themselves, on the CPU.
        Subspaces: Subspace[]
    }

/// What methods report of a task.
[<RequireQualifiedAccess>]
module Diagnostics =
    /// <summary>Of a method that retains nothing.</summary>
    let none = { Retained = [||]; Subspaces = [||] }

    /// The numbers of each block's projection.
    let internal retained (projections: Projection[]) : Retained[] =
        projections
        |> Array.map (fun p ->
            {
                Rank = p.Rank
                Energy = p.Energy
                Condition = p.Condition
            })

    /// <summary>What the projection of each block retains.</summary>
    /// <param name="projections">One per block, or none; borrowed.</param>
    /// <returns>Owned by the caller.</returns>
    let ofProjections (projections: Projection[]) : Diagnostics =
        {
            Retained = retained projections
            Subspaces = Array.map Subspace.ofProjection projections
        }

    /// <summary>Lists the tensors of the retained spaces.</summary>
    /// <param name="found">Borrowed.</param>
    /// <returns>Its tensors, which stay its own.</returns>
    let leaves: Leaves<Diagnostics> =
        fun found -> Leaves.array Subspace.leaves found.Subspaces

/// A method's own classifier of a state, made ready.
[<RequireQualifiedAccess>]
type OwnScores =
    /// Of features [n, d], the class token after the final norm.
    | OfFeatures of Scorer
    /// Of images [n, c, H, W] in the backbone's input range: where one network's features are not enough.
    | OfImages of Scorer

    /// <summary>What scores.</summary>
    member this.Scorer: Scorer =
        match this with
        | OfFeatures scorer
        | OfImages scorer -> scorer

/// Methods' own classifiers.
[<RequireQualifiedAccess>]
module OwnScores =
    /// <summary>Lists the tensors of a classifier.</summary>
    /// <param name="scores">Borrowed.</param>
    /// <returns>The tensors that its scorer owns.</returns>
    let leaves (scores: OwnScores) : torch.Tensor seq = Scorer.leaves scores.Scorer

/// A class-incremental method over a frozen backbone. A task runs through `BeginTask`, `Observe` for each batch,
/// `Prepare`, `Update` for each step, `Merge`, `Consolidate` for each batch, and `Finish`. The phases are types, so that
/// training before observing does not compile. Each function borrows its arguments and owns its result.
type Method<'State, 'Observing, 'Training> =
    {
        /// Its name and what it stores, for lists, files and errors.
        Info: MethodInfo
        /// The tensors of what outlives a task: what is saved. An axis that counts classes is empty in a
        /// fresh state.
        State: Tree<'State>
        /// The tensors of a task in observation, which was begun on a state.
        Observing: LearningTask -> 'State -> Tree<'Observing>
        /// The tensors of a task in training.
        Training: LearningTask -> 'State -> Tree<'Training>
        /// Before the first task.
        Start: RandomKey -> 'State
        /// Whether a task's images must be observed before training.
        Observes: LearningTask -> bool
        /// Whether a task trains; where not, it has no epochs and `Update` is not called.
        Trains: LearningTask -> bool
        /// Begins a task on a state; the key is the task's own, and no other function draws random numbers.
        BeginTask: RandomKey -> LearningTask -> 'State -> 'Observing
        /// Adds one batch of the new task, images [n, c, H, W] and labels [n] int64, without gradients. Not
        /// called where `Observes` is false.
        Observe: Batch -> 'Observing -> 'Observing
        /// Ends the observation and begins the training.
        Prepare: 'Observing -> 'Training
        /// One step on one batch, at the rates of the schedule. Labels are rows of classes: the first of the
        /// task's is `FirstClass`.
        Update: Rates -> Batch -> 'Training -> struct ('Training * StepReport)
        /// What the training retains, per block; `Diagnostics.none` where the method has no such thing.
        Diagnostics: 'Training -> Diagnostics
        /// Ends training: the state with what the task taught the network.
        Merge: 'Training -> 'State
        /// One batch of the task in the pass after training, with its features [n, d] (class token after the final norm)
        /// under the merged network.
        Consolidate: Batch -> torch.Tensor -> 'State -> 'State
        /// Ends that pass.
        Finish: 'State -> 'State
        /// Without the class in a row; later rows move up. What the network learned from it stays.
        Forget: int -> 'State -> 'State
        /// The network of a state: a fused weight [3d, d] per block in the compute format, without pairs in
        /// training. It owns its tensors.
        Adapters: 'State -> Adapters
        /// The method's own classifier, where it has one: a scorer with tensors of its own, chosen by the head
        /// `logits`.
        Logits: ('State -> OwnScores) option
    }

/// The role of a method's hidden state.
type StateRole = class end

/// The role of a hidden task in observation.
type ObservingRole = class end

/// The role of a hidden task in training.
type TrainingRole = class end

/// A method's state, of whatever type.
type MethodState = Hidden<StateRole>

/// A method whose types are hidden, to be chosen at run time. The phases keep types of their own.
type AnyMethod = Method<MethodState, Hidden<ObservingRole>, Hidden<TrainingRole>>

/// Methods with their types and without.
[<RequireQualifiedAccess>]
module Method =

    // A hidden phase travels with the task and the state that it began from: they decide its tree.
    type private Phase<'State, 'Phase> =
        {
            Task: LearningTask
            State: 'State
            Value: 'Phase
        }

    let private subject (method: Method<_, _, _>) = $"method {method.Info.Name}"

    /// <summary>A hidden state, for the method that made it.</summary>
    /// <param name="method">The method with its types.</param>
    /// <param name="state">Hidden.</param>
    /// <returns>The state itself, borrowed.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The state is another method's.</exception>
    let reveal (method: Method<'S, 'O, 'T>) (state: MethodState) : 'S = Hidden.reveal (subject method) state

    /// <summary>Hides the types of a method, so that methods of different types fit one list.</summary>
    /// <param name="method">The method with its types.</param>
    /// <returns>The same method over hidden states and phases. Its functions fail on those of another method, as
    /// `reveal` does.</returns>
    let hide (method: Method<'S, 'O, 'T>) : AnyMethod =
        let subject = subject method

        let hideState (state: 'S) : MethodState = Hidden.hide subject method.State state

        let reveal (state: MethodState) : 'S = Hidden.reveal subject state

        let phaseTree (treeOf: LearningTask -> 'S -> Tree<'P>) task state : Tree<Phase<'S, 'P>> =
            treeOf task state
            |> Tree.convert
                (fun value ->
                    {
                        Task = task
                        State = state
                        Value = value
                    })
                _.Value

        let hidePhase treeOf task state value : Hidden<'Role> =
            Hidden.hide
                subject
                (phaseTree treeOf task state)
                {
                    Task = task
                    State = state
                    Value = value
                }

        let observing task state value : Hidden<ObservingRole> =
            hidePhase method.Observing task state value

        let training task state value : Hidden<TrainingRole> =
            hidePhase method.Training task state value

        let inPhase (hidden: Hidden<'Role>) : Phase<'S, 'P> = Hidden.reveal subject hidden

        {
            Info = method.Info
            State = Hidden.tree subject method.State
            Observing = fun task state -> Hidden.tree subject (phaseTree method.Observing task (reveal state))
            Training = fun task state -> Hidden.tree subject (phaseTree method.Training task (reveal state))
            Start = method.Start >> hideState
            Observes = method.Observes
            Trains = method.Trains
            BeginTask =
                fun key task hidden ->
                    let state = reveal hidden
                    method.BeginTask key task state |> observing task state
            Observe =
                fun batch hidden ->
                    let phase: Phase<'S, 'O> = inPhase hidden
                    method.Observe batch phase.Value |> observing phase.Task phase.State
            Prepare =
                fun hidden ->
                    let phase: Phase<'S, 'O> = inPhase hidden
                    method.Prepare phase.Value |> training phase.Task phase.State
            Update =
                fun rates batch hidden ->
                    let phase: Phase<'S, 'T> = inPhase hidden
                    let struct (next, report) = method.Update rates batch phase.Value
                    struct (training phase.Task phase.State next, report)
            Diagnostics =
                fun hidden ->
                    let phase: Phase<'S, 'T> = inPhase hidden
                    method.Diagnostics phase.Value
            Merge =
                fun hidden ->
                    let phase: Phase<'S, 'T> = inPhase hidden
                    method.Merge phase.Value |> hideState
            Consolidate =
                fun batch features state -> method.Consolidate batch features (reveal state) |> hideState
            Finish = reveal >> method.Finish >> hideState
            Forget = fun row state -> method.Forget row (reveal state) |> hideState
            Adapters = reveal >> method.Adapters
            Logits = method.Logits |> Option.map (fun logits -> reveal >> logits)
        }
