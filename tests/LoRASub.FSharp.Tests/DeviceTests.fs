module LoRASub.Tests.DeviceTests

open LoRASub.Core
open Expecto
open LoRASub.Tests.Check
open TorchSharp

[<Tests>]
let tests =
    testList
        "Device"
        [
            testCase "cpu is the CPU" (fun () ->
                Expect.equal (Device.parse "cpu").``type`` DeviceType.CPU "kind")

            for name in [ ""; "gpu"; "cuda"; "cuda:"; "cuda:x"; "cuda:-1"; "cuda:0:1"; "CPU"; "cpu:0" ] do
                rejects $"'{name}'" [ "device"; "cpu or cuda:N"; $"'{name}'" ] (fun () ->
                    Device.parse name |> ignore)

            testCase "a CUDA device is there or refused with their number" (fun () ->
                let count =
                    if torch.cuda_is_available () then
                        torch.cuda.device_count ()
                    else
                        0

                for n in 0 .. count - 1 do
                    Expect.equal (Device.parse $"cuda:{n}").index n "index"

                refused [ $"device cuda:{count}"; "must be present"; $"{count} CUDA devices" ] (fun () ->
                    Device.parse $"cuda:{count}" |> ignore))
        ]
