module LoRASub.Tests.KernelsTests

open LoRASub.Core
open Expecto
open TorchSharp

[<Tests>]
let tests =
    testList
        "Kernels"
        [
            testCase "LibTorch's switch for repeatable kernels is found and moves" (fun () ->
                Expect.isFalse (Kernels.isDeterministic ()) "at first"

                try
                    Kernels.setDeterministic true
                    Expect.isTrue (Kernels.isDeterministic ()) "asked for"
                finally
                    Kernels.setDeterministic false

                Expect.isFalse (Kernels.isDeterministic ()) "no longer")

            testCase "on a CPU, whose kernels repeat every bit, nothing changes" (fun () ->
                Kernels.choose torch.CPU Precision.TF32 true
                Expect.isFalse (Kernels.isDeterministic ()) "repeatable kernels"
                Expect.isFalse torch.backends.cuda.matmul.allow_tf32 "TF32")

            testCase "TF32 is one switch for cuBLAS and cuDNN" (fun () ->
                try
                    for allowed in [ true; false ] do
                        Kernels.allowTF32 allowed
                        Expect.equal torch.backends.cuda.matmul.allow_tf32 allowed "cuBLAS"
                        Expect.equal torch.backends.cudnn.allow_tf32 allowed "cuDNN"
                finally
                    Kernels.allowTF32 false)
        ]
