module LoRASub.Tests.Program

open LoRASub.Native
open Expecto
open Expecto.Impl

/// The lists that compute with tensors: another processor or device gives their numbers other last digits.
let private numeric =
    set
        [
            "Rng"
            "Grad"
            "SecondMoment"
            "Projection"
            "Subspace"
            "Overlap"
            "Transform"
            "Adam"
            "Projected"
            "AugmentedTriplet"
            "Lora"
            "Attention"
            "VisionTransformer"
            "Adapter"
            "Embedding"
            "Weights"
            "ClassSums"
            "NearestMean"
            "HeadContract"
            "ClassMoments"
            "PrincipalPlane"
            "Resample"
            "Augment"
            "ImageFormat"
            "TaskStream"
            "Contract"
            "LoRASubDrs"
            "Drift"
            "Experiment"
            "Checkpoint"
            "LearnerFile"
            "Fluent"
            "Product"
            "Fused"
            "Golden"
        ]

/// `--numeric` runs those lists; all other arguments are Expecto's.
[<EntryPoint>]
let main argv =
    NativeBackend.ensureLoaded () |> ignore
    let isNumeric (names: string list) = List.exists numeric.Contains names

    match testFromThisAssembly () with
    | Some tests when Array.contains "--numeric" argv ->
        Test.filter "." isNumeric tests
        |> TestRun.run (Array.except [ "--numeric" ] argv) Check.report
    | Some tests -> TestRun.run argv Check.report tests
    | None -> 2
