namespace LoRASub.Report

open System.IO
open LoRASub.Settings

/// What two runs must share before their numbers can be compared.
[<RequireQualifiedAccess>]
module internal Protocol =

    /// The runs whose measures are reported: the finished ones, or those that have learned a task.
    let counted (group: RunGroup) : RunData[] =
        match group.Runs |> Array.filter _.Finished with
        | [||] -> group.Runs |> Array.filter (fun run -> run.Matrix.Length > 0)
        | finished -> finished

    let private setting (name: string) (run: RunData) =
        run.Settings |> Array.tryFind (fst >> (=) name) |> Option.map snd

    /// Files may lie elsewhere on another machine: only their names count.
    let fileName (path: string) =
        Path.GetFileNameWithoutExtension(Path.TrimEndingDirectorySeparator path)

    let private data (run: RunData) =
        match run.Data, setting "data-path" run with
        | "folder", Some path -> $"folder {fileName path}"
        | data, _ -> data

    let private tasks (run: RunData) =
        let count = if run.Tasks = 1 then "1 task" else $"{run.Tasks} tasks"

        let classes n =
            if n = 1 then "1 class" else $"{n} classes"

        match Array.toList run.TaskSizes with
        | [] -> count
        | size :: rest when rest |> List.forall ((=) size) -> $"{count} of {classes size}"
        | first :: second :: rest when rest |> List.forall ((=) second) ->
            $"{count}: {classes first}, then {second} each"
        | sizes -> $"{count} of {List.min sizes} to {classes (List.max sizes)}"

    /// How far a run got: "5 tasks", or "2 of 5 tasks (stopped early)".
    let learned (run: RunData) : string =
        let n = run.Matrix.Length

        if n < run.Tasks then
            let why = if run.Finished then "stopped early" else "not finished"
            $"{n} of {run.Tasks} tasks ({why})"
        elif n = 1 then
            "1 task"
        else
            $"{n} tasks"

    let private backbone (run: RunData) =
        setting "backbone" run |> Option.map fileName |> Option.defaultValue ""

    /// By name; empty where unknown.
    let private parts (run: RunData) : (string * string) list =
        let orEmpty name =
            setting name run |> Option.defaultValue ""

        [
            "data", data run
            "tasks", tasks run
            "tasks learned", learned run
            "test images", string (run.Matrix |> Array.sumBy (Array.last >> _.Total))
            "class order", fileName (orEmpty "class-order")
            "backbone", backbone run
            "image size", orEmpty "image-size"
        ]

    /// "on fashion-mnist, 5 tasks of 2 classes, backbone vit_micro".
    let describe (run: RunData) : string =
        [
            if run.Data <> "" then
                $"on {data run}"
            tasks run
            if backbone run <> "" then
                $"backbone {backbone run}"
        ]
        |> String.concat ", "

    /// The parts in which groups differ, with each group's.
    let differences (groups: RunGroup[]) : (string * string[])[] =
        let all =
            groups
            |> Array.choose (fun group -> counted group |> Array.tryHead |> Option.map parts)

        if all.Length < 2 then
            [||]
        else
            all[0]
            |> List.mapi (fun i (name, _) -> name, all |> Array.map (fun parts -> snd parts[i]))
            |> List.filter (fun (_, values) -> (Array.distinct values).Length > 1)
            |> Array.ofList

    /// Why the groups' numbers cannot be compared; none where they can.
    let warning (groups: RunGroup[]) : string option =
        match differences groups with
        | [||] -> None
        | found ->
            let one (name, values: string[]) =
                let values = values |> Array.map (fun v -> if v = "" then "unknown" else v)
                $"""{name} ({String.concat "; " values})"""

            let list = found |> Array.map one |> String.concat ", "

            Some
                $"The runs follow different protocols, so their numbers are not comparable. They differ in {list}."
