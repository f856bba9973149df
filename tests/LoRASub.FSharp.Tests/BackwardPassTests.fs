module LoRASub.Tests.BackwardPassTests

open System
open System.Collections.Generic
open System.Runtime.CompilerServices
open System.Threading
open LoRASub.Core
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

[<Literal>]
let private Width = 4

/// Runs `work` on a thread without a dispose scope, as LibTorch runs a backward function for a CUDA device.
let private withoutScope (work: unit -> unit) =
    let failure = ref null

    let thread =
        Thread(fun () ->
            try
                work ()
            with e ->
                failure.Value <- e)

    thread.Start()
    thread.Join()

    if not (isNull failure.Value) then
        raise failure.Value

/// x [2, 3, d], then for each block A and B of keys and of values, then a weight [d, 3d].
let private inputs (depth: int) () =
    [|
        shaped [ 2; 3; Width ] (normals 1 (6 * Width))
        for i in 1..depth do
            for j in 0..1 do
                shaped [ 2; Width ] (normals (4 * i + 2 * j) (2 * Width))
                shaped [ Width; 2 ] (normals (4 * i + 2 * j + 1) (2 * Width))
        shaped [ Width; 3 * Width ] (normals 2 (3 * Width * Width))
    |]

// x, pairs and weight -> [2, 3, d]
let private block (ps: torch.Tensor[]) =
    let pairs =
        [
            int64 Width, { A = ps[1]; B = ps[2] }
            2L * int64 Width, { A = ps[3]; B = ps[4] }
        ]

    let parts = (LowRank.train pairs ps[0] (ps[0].matmul ps[5])).chunk(3L, dim = -1L)
    ps[0].add(parts[0].mul(parts[1].tanh()).add parts[2])

/// A loss over `depth` blocks, each run by `run`, which is given the block's number.
let private loss (depth: int) (run: int -> torch.Tensor[] -> torch.Tensor) (ps: torch.Tensor[]) =
    let step (x: torch.Tensor) i =
        run i [| x; yield! ps[1 + 4 * i .. 4 + 4 * i]; Array.last ps |]

    (Seq.fold step ps[0] (seq { 0 .. depth - 1 })).square().sum()

let private kept _ = block
let private recomputed _ = Recomputation.run block

/// Value and gradients of `f`, owned, from a backward pass on a thread without a scope.
let private gradients (f: torch.Tensor[] -> torch.Tensor) (inputs: torch.Tensor[]) =
    let struct (value, gradients, own) =
        Grad.valueAndGradWith
            (fun ps ->
                let variables = ps |> Array.map (fun p -> p.detach().requires_grad_())
                let value = f variables

                withoutScope (fun () ->
                    torch.autograd.backward ([| value |], null, Nullable(), false, variables))

                struct (ps[0].sum(), variables |> Array.map _.grad))
            inputs

    value.Dispose()
    own |> Array.choose id |> Array.iter _.Dispose()
    gradients

/// `run` that fails in the backward pass at one block.
let private failing at i =
    Recomputation.run (fun ps ->
        if i = at && torch.is_grad_enabled () then
            failwith "second pass"

        block ps)

let private fails at (given: torch.Tensor[]) =
    Expect.throwsC (fun () -> gradients (loss 3 (failing at)) given |> ignore) (fun e ->
        Expect.equal e.Message "second pass" "message")

// what a run of a recomputed function captured
[<MethodImpl(MethodImplOptions.NoInlining)>]
let private captured () =
    let one = obj ()

    let run _ =
        Recomputation.run (fun ps ->
            GC.KeepAlive one
            block ps)

    Scope.run (fun () -> gradients (loss 2 run) (inputs 2 ()) |> ignore)
    WeakReference one

[<Tests>]
let tests =
    testList
        "BackwardPass"
        [
            noLeaks "a backward pass on a thread without a scope" (inputs 3) (fun given ->
                gradients (loss 3 kept) given)

            noLeaks "a recomputing backward pass on a thread without a scope" (inputs 3) (fun given ->
                gradients (loss 3 recomputed) given)

            // the last that is reached: TorchSharp counts each undefined gradient after a failure as a tensor
            noLeaks "a backward pass that fails on a thread without a scope" (inputs 3) (fun given ->
                fails 0 given
                [])

            testCase "a failure in the middle of a backward pass reaches the caller" (fun () ->
                Scope.run (fun () -> fails 1 (inputs 3 ())))

            testCase "handles are freed during the pass, not only after it" (fun () ->
                Scope.run (fun () ->
                    GC.Collect()
                    GC.WaitForPendingFinalizers()
                    let live = List<int64>()

                    let counting _ =
                        Recomputation.run (fun ps ->
                            if torch.is_grad_enabled () then
                                live.Add torch.Tensor.TotalCount

                            block ps)

                    gradients (loss 6 counting) (inputs 6 ()) |> ignore
                    Expect.hasLength live 6 "blocks"

                    Expect.all
                        live
                        (fun count -> count <= live[1])
                        $"tensors at each block: %A{List.ofSeq live}"))

            testCase "nothing holds on to what a function captured" (fun () ->
                let one = captured ()
                GC.Collect()
                GC.WaitForPendingFinalizers()
                GC.Collect()
                Expect.isFalse one.IsAlive "collected")

            testCase "gradients on another thread, recomputed or not, ≡ those of plain operations" (fun () ->
                Scope.run (fun () ->
                    let given = inputs 3 ()

                    // outside of Grad, with the pairs' deltas as part of the product
                    let plain (ps: torch.Tensor[]) =
                        let delta a b =
                            (ps[b]: torch.Tensor).mm(ps[a]: torch.Tensor).t()

                        let zero =
                            torch.zeros (
                                [| int64 Width; int64 Width |],
                                dtype = ps[0].dtype,
                                device = ps[0].device
                            )

                        let deltas = torch.cat ([| zero; delta 1 2; delta 3 4 |], 1L)
                        let weight = ps[5].add(deltas).sub(deltas.detach ())
                        let parts = (ps[0].matmul weight).chunk(3L, dim = -1L)
                        ps[0].add(parts[0].mul(parts[1].tanh()).add parts[2])

                    let direct run =
                        let variables = given |> Array.map (fun p -> p.detach().requires_grad_())

                        torch.autograd.backward (
                            [| loss 3 run variables |],
                            null,
                            Nullable(),
                            false,
                            variables
                        )

                        variables |> Array.map _.grad

                    let expected = direct (fun _ -> plain)

                    for actual in
                        [
                            direct kept
                            direct recomputed
                            gradients (loss 3 kept) given
                            gradients (loss 3 recomputed) given
                        ] do
                        Array.iter2 (closeTensors "gradient") expected actual))
        ]
