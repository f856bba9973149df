namespace LoRASub.Measure

/// The results of a run compared with a reference run.
type RunScores =
    {
        /// False for prototypes of the frozen backbone.
        Trained: bool
        /// The head that gave the scores, HEAD@EMBEDDING.
        Head: string
        Matrix: AccuracyMatrix
        /// The classes learned, with their scores under the last state.
        Classes: ClassScore[]
    }

/// The measures that need other runs, as fractions, or the reason why one is missing.
type Transfer =
    {
        /// Lopez-Paz & Ranzato 2017.
        ForwardTransfer: Result<float, string>
        /// Chaudhry et al. 2018, I_k = a*_k − a_{k,k} for the last task k: positive where learning all classes at once
        /// learns the last ones better, at most 1.
        Intransigence: Result<float, string>
    }

/// Compares a run with reference runs.
[<RequireQualifiedAccess>]
module Transfer =

    let private labels (classes: ClassScore[]) = classes |> Seq.map _.Label |> Set.ofSeq

    let private labelsOf (task: int) (run: RunScores) =
        run.Classes |> Array.filter (fun one -> one.Task = task) |> labels

    // on a task's test images when it was just learned
    let private learned (run: RunScores) (task: int) : Score = Array.last run.Matrix[task]

    // the same classes and the same number of test images
    let private agree (run: RunScores) (reference: RunScores) task =
        labelsOf task run = labelsOf task reference
        && (learned run task).Total = (learned reference task).Total

    let private measured (run: RunScores) (before: Score[]) =
        Array.map _.Total before = [| for task in 1 .. run.Matrix.Length - 1 -> (learned run task).Total |]

    // of the first reference that fits; otherwise why the first one does not
    let private ofFirst
        (missing: string)
        (value: RunScores -> Result<float, string>)
        (candidates: RunScores[])
        =
        match Array.map value candidates with
        | [||] -> Error missing
        | values -> values |> Array.tryFind Result.isOk |> Option.defaultValue values[0]

    let private otherHead (run: RunScores) (reference: RunScores) =
        Error $"the reference run is scored with {reference.Head}, not {run.Head}"

    let private forward (before: Score[]) (run: RunScores) (references: RunScores[]) =
        let tasks = run.Matrix.Length

        let over (reference: RunScores) =
            if reference.Head <> run.Head then
                otherHead run reference
            elif reference.Matrix.Length < tasks then
                Error $"the reference run has {reference.Matrix.Length} of the {tasks} tasks"
            else
                match seq { 0 .. tasks - 1 } |> Seq.tryFind (agree run reference >> not) with
                | Some task -> Error $"the reference run has other classes or test images in task {task + 1}"
                | None ->
                    let baseline =
                        [| for task in 1 .. tasks - 1 -> Metrics.accuracy (learned reference task) |]

                    match Metrics.forwardTransfer (Array.map Metrics.accuracy before) baseline with
                    | Some value -> Ok value
                    | None -> Error "one task has no forward transfer"

        match references |> Array.filter (fun reference -> not reference.Trained) with
        | _ when tasks = 1 -> Error "one task has no forward transfer"
        | untrained when untrained.Length > 0 && not (measured run before) ->
            Error "the test images of the later tasks were not scored before learning them"
        | untrained -> ofFirst "needs a reference run of the same tasks without training" over untrained

    let private intransigence (run: RunScores) (references: RunScores[]) =
        let last = run.Matrix.Length - 1

        let under (joint: RunScores) =
            let own = learned run last
            let wanted = labelsOf last run

            let reached =
                joint.Classes
                |> Seq.filter (fun one -> wanted.Contains one.Label)
                |> Seq.fold (fun sum one -> sum + one.Score) { Correct = 0; Total = 0 }

            if joint.Head <> run.Head then
                otherHead run joint
            elif labels joint.Classes <> labels run.Classes then
                Error "the joint reference run learned other classes"
            elif reached.Total <> own.Total then
                Error
                    $"the joint reference run was scored on {reached.Total} test images of the last task, not {own.Total}"
            else
                Ok(Metrics.accuracy reached - Metrics.accuracy own)

        references
        |> Array.filter (fun reference -> reference.Trained && reference.Matrix.Length = 1)
        |> ofFirst "needs a reference run that learned all these classes as one task" under

    /// <summary>Forward transfer and intransigence of a run, compared with reference runs. Forward transfer takes its
    /// baseline from the diagonal of a reference without training and of the same tasks. Intransigence takes a*_k
    /// from a trained reference that learned the same classes as one task: that is joint learning of tasks 1 to k for
    /// the last k only, so there is no mean over tasks.</summary>
    /// <param name="references">Finished runs, in any order; those that do not fit are ignored.</param>
    /// <param name="before">For every task after the first, the score on its test images right before learning it,
    /// with prototypes of its classes under the network at that time; empty if not measured.</param>
    /// <param name="run">The run to measure.</param>
    /// <returns>Each measure as a fraction, or why it is missing.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An accuracy matrix breaks a rule of
    /// `Metrics.check`.</exception>
    let measure (references: RunScores[]) (before: Score[]) (run: RunScores) : Transfer =
        for one in Array.append [| run |] references do
            Metrics.check one.Matrix

        {
            ForwardTransfer = forward before run references
            Intransigence = intransigence run references
        }

    /// Adds the measures that need other runs.
    let internal complete (transfer: Transfer) (measures: Measures) : Measures =
        let add name value measures =
            match value with
            | Ok value -> Map.add name value measures
            | Error _ -> measures

        measures
        |> add "forwardTransfer" transfer.ForwardTransfer
        |> add "intransigence" transfer.Intransigence

    /// Why a measure is missing; None where it is there.
    let internal note (value: Result<float, string>) : string option =
        match value with
        | Ok _ -> None
        | Error reason -> Some reason
