namespace LoRASub.Report

open System.IO
open LoRASub.Core
open LoRASub.Settings

/// What two runs must share before their numbers can be compared.
[<RequireQualifiedAccess>]
module internal Protocol =

    let private setting (get: RunSettings -> string option) (run: RunData) : string =
        run.Settings |> Option.bind get |> Option.defaultValue ""

    /// Files may lie elsewhere on another machine: only their names count.
    let fileName (path: string) =
        Path.GetFileNameWithoutExtension(Path.TrimEndingDirectorySeparator path)

    let private data (run: RunData) =
        match run.Data, setting _.DataPath run with
        | "folder", path when path <> "" -> $"folder {fileName path}"
        | data, _ -> data

    let private backbone (run: RunData) = fileName (setting _.Backbone run)

    let private tasks (run: RunData) =
        let count = Text.counted run.Tasks "task" "tasks"
        let classes n = Text.counted n "class" "classes"

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
        else
            Text.counted n "task" "tasks"

    /// By name; empty where unknown.
    let private parts (run: RunData) : (string * string) list =
        [
            "data", data run
            "tasks", tasks run
            "tasks learned", learned run
            "test images", string (Array.last run.Matrix |> Array.sumBy _.Total)
            "interim images", setting (_.InterimImages >> Option.map string) run
            "class order", fileName (setting (_.ClassOrder >> Some) run)
            "backbone", backbone run
            "image size", setting (_.ImageSize >> Option.map string) run
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
        match groups |> Array.choose (RunGroup.counted >> Array.tryHead >> Option.map parts) with
        | [||] -> [||]
        | all ->
            [|
                for i, (name, _) in List.indexed all[0] do
                    let values = all |> Array.map (fun parts -> snd parts[i])

                    if (Array.distinct values).Length > 1 then
                        name, values
            |]

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
