// Learns two tasks of two classes and prints the retained rank of each block, the accuracy matrix and the measures.
// Run after a build: dotnet fsi scripts/two-tasks.fsx

#load "load.fsx"

open LoRASub.Core
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Load

let plan =
    smallPlan
        2
        { Preset.quick Variant.LibContinual with
            Epochs = 1
            Batch = 16
        }

let learner = Plan.learner plan

let onProgress progress =
    match progress with
    | TaskBegins(task, _) ->
        let names = task.Classes |> Array.map (fun c -> plan.Stream.Dataset.ClassNames[c])
        printfn "task %d: %s" task.Index (String.concat ", " names)
    | Learning(Retains(_, blocks)) ->
        printfn
            "retained rank per block: %s of %d"
            (blocks |> Array.map (fun b -> string b.Rank) |> String.concat " ")
            plan.Backbone.Width
    | _ -> ()

let outcome = Experiment.run learner plan onProgress

printfn "accuracy, %% (row: after task t, column: on task j)"

for row in outcome.Matrix do
    for score in row do
        printf "%7.1f" (100.0 * Metrics.accuracy score)

    printfn ""

let measures = Metrics.measure outcome.Matrix
printfn "last %.1f, average %.1f" (100.0 * measures["last"]) (100.0 * measures["average"])
Option.iter (fun f -> printfn "forgetting %.1f" (100.0 * f)) (Map.tryFind "forgetting" measures)

Scope.free TaskState.leaves outcome.State
Scope.free Plan.leaves plan
