namespace LoRASub.Report

open System.Collections.Generic
open LoRASub.Measure

/// What the runs of a group have in common.
[<RequireQualifiedAccess; CompilationRepresentation(CompilationRepresentationFlags.ModuleSuffix)>]
module internal RunGroup =

    /// The runs whose measures are reported: the finished ones, or those that have learned a task.
    let counted (group: RunGroup) : RunData[] =
        match group.Runs |> Array.filter _.Finished with
        | [||] -> group.Runs |> Array.filter (fun run -> run.Matrix.Length > 0)
        | finished -> finished

    /// Tasks that the run has learned which got furthest, of those that are counted.
    let tasks (group: RunGroup) : int =
        counted group |> Seq.map _.Matrix.Length |> Seq.fold max 0

    /// Accuracy in percent on task j's test images after learning task t, over the counted runs that learned it.
    let accuracies (group: RunGroup) : Interval[][] =
        let tasks = tasks group

        Array.init tasks (fun t ->
            Array.init tasks (fun j ->
                counted group
                |> Seq.choose (_.Matrix >> Array.tryItem t >> Option.bind (Array.tryItem j))
                |> Seq.map (Metrics.accuracy >> (*) 100.0)
                |> Interval.ofValues))

    /// The phases that some run has timed.
    let phases (groups: RunGroup[]) : string[] =
        groups
        |> Seq.collect _.Runs
        |> Seq.choose _.Resources
        |> Seq.collect _.PhaseSeconds.Keys
        |> Seq.distinct
        |> Array.ofSeq

    /// Wall time of a phase, all tasks together, over runs.
    let seconds (phase: string) (group: RunGroup) : Interval =
        group.Runs
        |> Seq.choose _.Resources
        |> Seq.map _.PhaseSeconds.GetValueOrDefault(phase, nan)
        |> Interval.ofValues
