module LoRASub.Tests.BackboneCommandTests

open System
open System.IO
open Expecto
open LoRASub.Tests.Probe

let private info path =
    let ended = CliTests.inside [ "backbone"; "info"; path ]
    ended.Code, CliTests.unwrapped ended.Out, ended.Error

let private says file words =
    testCase file (fun () ->
        let code, out, error = info (TensorFormatsTests.fixture file)
        Expect.equal (code, error) (0, "") "ended well"

        for word in
            "width 8, 2 blocks, MLP of 16"
            :: "8 x 8 pixels"
            :: "parameters   1,656"
            :: words do
            Expect.stringContains out word file)

[<Tests>]
let tests =
    testList
        "BackboneCommand"
        [
            says
                "timm.safetensors"
                [
                    "safetensors"
                    "names        timm"
                    "number of heads not stated: give --attention-heads"
                    "30 of 30"
                ]
            says
                "augreg.npz"
                [
                    "NumPy archive"
                    "Flax"
                    "2 heads"
                    "values from -1 to 1"
                    "38 of 42"
                    "head/kernel [8, 5]: classifier"
                ]
            says
                "dino.pth"
                [
                    "after 'teacher.backbone.'"
                    "30 of 68"
                    "student.*, 31 tensors: not under 'teacher.backbone.'"
                    "teacher.head.mlp.0.weight [4, 8]: not under"
                ]
            says "timm-bfloat16.pth" [ "30 BFloat16" ]
            says "dinov2.pth" [ "layer scales are multiplied"; "mask_token [1, 8]: token of masked training" ]

            testCase "a flipped bit among the numbers is found" (fun () ->
                inFolder (fun folder ->
                    let bytes = File.ReadAllBytes(TensorFormatsTests.fixture "timm.pth")
                    // the first tensor of the file after its header, which is cls_token
                    let plain = File.ReadAllBytes(TensorFormatsTests.fixture "timm.safetensors")
                    let first = 8 + int (BitConverter.ToInt64(plain, 0))
                    let place = bytes.AsSpan().IndexOf(ReadOnlySpan(plain, first, 32))
                    Expect.isGreaterThan place 0 "where it is"
                    bytes[place] <- bytes[place] ^^^ 1uy
                    let path = Path.Combine(folder, "w.pth")
                    File.WriteAllBytes(path, bytes)
                    let code, out, error = info path
                    Expect.equal (code, error) (2, "") "ended"
                    Expect.stringContains out "the file is damaged" "reason"
                    Expect.isFalse (out.Contains "can be used") "its use"))

            testCase "what cannot be used ends with 2 and the reason" (fun () ->
                let code, out, error = info (TensorFormatsTests.fixture "features.safetensors")
                Expect.equal (code, error) (2, "") "another network"

                for word in [ "format       safetensors"; "problem "; "must belong to a plain ViT" ] do
                    Expect.stringContains out word "another network"

                let code, _, error = info (TensorFormatsTests.fixture "legacy.pth")
                Expect.equal code 2 "older PyTorch"
                Expect.stringContains error "a Python pickle" "older PyTorch"

                inFolder (fun folder ->
                    let code, _, error = info (Path.Combine(folder, "none"))
                    Expect.equal code 2 "no file"
                    Expect.stringContains error "no such file" "no file")

                let ended = CliTests.inside [ "backbone"; "info" ]
                Expect.equal ended.Code 2 "no argument"
                Expect.stringContains ended.Error "needs a file" "no argument")
        ]
