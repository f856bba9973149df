module LoRASub.Tests.NativeBackendTests

open Expecto
open LoRASub

[<Tests>]
let tests =
    testList
        "NativeBackend"
        [
            testCase "loading is idempotent, and tensors work after it" (fun () ->
                let first = NativeBackend.ensureLoaded ()
                let second = NativeBackend.ensureLoaded ()
                Expect.equal second first "the same load"
                use ones = TorchSharp.torch.ones ([| 2L; 3L |])
                Expect.equal (ones.sum().item<single>()) 6.0f "2 x 3 ones")
        ]
