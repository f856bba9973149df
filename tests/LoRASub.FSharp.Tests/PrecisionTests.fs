module LoRASub.Tests.PrecisionTests

open LoRASub.Core
open Expecto
open TorchSharp

[<Tests>]
let tests =
    testList
        "Precision"
        [
            testCase "statistics never run below float32" (fun () ->
                let formats precision =
                    Precision.compute precision, Precision.master precision

                let f32, bf16, f64 =
                    torch.ScalarType.Float32, torch.ScalarType.BFloat16, torch.ScalarType.Float64

                Expect.equal (formats Precision.Float32) (f32, f32) "float32"
                Expect.equal (formats Precision.TF32) (f32, f32) "TF32"
                Expect.equal (formats Precision.BFloat16) (bf16, f32) "bfloat16"
                Expect.equal (formats Precision.Float64) (f64, f64) "float64")
        ]
