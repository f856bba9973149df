module LoRASub.Tests.LargestBatchTests

open LoRASub.Core
open LoRASub.Native
open LoRASub.Run
open Expecto
open LoRASub.Tests.TestFiles
open TorchSharp

[<Tests>]
let tests =
    testList
        "LargestBatch"
        [
            law
                "the batch found fits, the largest is less than a sixteenth larger, and few are tried"
                (fun (a: int, b: int) ->
                    let largest, most = abs (a % 3000), 1 + abs (b % 3000)
                    let mutable tried = []

                    let fits batch =
                        tried <- batch :: tried
                        batch <= largest

                    let found = LargestBatch.search fits most
                    let possible = min largest most
                    Expect.isLessThanOrEqual found possible "fits"
                    Expect.isLessThanOrEqual (possible - found) (found / 16) "near the largest"
                    Expect.isTrue (found = 0 || List.contains found tried) "the one found was tried"
                    Expect.isTrue (tried |> List.forall (fun n -> n >= 1 && n <= most)) "in range"
                    Expect.isLessThanOrEqual tried.Length 24 "tries")

            law "memory on a line is expected exactly" (fun (a: int, b: int) ->
                let start, slope = int64 (abs (a % 1000)), int64 (abs (b % 1000))
                let bytes batch = start + slope * int64 batch
                let measured = [ 4, bytes 4; 1, bytes 1; 2, bytes 2 ]
                Expect.equal (LargestBatch.expected measured 100) (Some(bytes 100)) "expected"
                Expect.isNone (LargestBatch.expected [ 4, 7L ] 8) "one point is no line")

            testCase "a limit of memory decides, and a batch that would break it by far is not run" (fun () ->
                let plan = Tiny.plan Tiny.settings
                use _ = Scope.own Plan.leaves plan
                let most = 4 * 2 // images of a task

                let run limit =
                    let trials = ResizeArray()
                    LargestBatch.find plan limit trials.Add, List.ofSeq trials

                let all, trials = run None
                Expect.equal all most "all images of a task"

                Expect.isTrue
                    (trials |> List.forall (fun t -> t.Ran && t.Fits && t.Bytes.IsSome))
                    "each fits"

                // a GPU's own memory is the limit there
                if Generators.onCpu then
                    let none, trials = run (Some 1L)
                    Expect.equal none 0 "nothing fits in one byte"
                    Expect.hasLength trials 1 "one try"
                else
                    Check.refused [ "must be left out on a GPU" ] (fun () -> run (Some 1L) |> ignore))

            testCase
                "the peak begins anew, so that a smaller batch can be measured after a larger one"
                (fun () ->
                    if System.OperatingSystem.IsLinux() then
                        let megabytes n =
                            Scope.run (fun () -> torch.ones [| int64 n <<< 18 |] |> ignore)
                            MemoryUse.peakBytes ()

                        MemoryUse.resetPeak ()
                        let large = megabytes 512
                        MemoryUse.resetPeak ()
                        let small = megabytes 16
                        Expect.isLessThan small (large - (256L <<< 20)) "the second peak")

            testCase "sizes are read with their unit" (fun () ->
                for text, bytes in
                    [
                        "512MiB", Some(512L <<< 20)
                        "1.5GiB", Some(3L <<< 29)
                        "8 GiB", Some(8L <<< 30)
                        "8", None
                        "8gb", None
                        "-1GiB", None
                        "", None
                    ] do
                    Expect.equal (Bytes.tryParse text) bytes text)

            testCase "without a CUDA device there is no memory of one" (fun () ->
                Expect.isNone (MemoryUse.deviceBytes torch.CPU) "the CPU"
                Expect.isNone (CudaDriver.device 99) "no such device")
        ]
