module LoRASub.Tests.ProductTests

open LoRASub.Core
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

type Operands =
    {
        [<Between(0, 1000)>]
        Seed: int
        [<Between(1, 3)>]
        Batch: int
        // so that some products are of more than 20480 numbers, below which oneDNN is not asked
        [<Between(1, 150)>]
        Tokens: int
        [<Between(1, 200)>]
        In: int
        [<Between(1, 20)>]
        Out: int
        HasBias: bool
    }

let private normal (shape: int list) seed =
    Rng.normal
        (List.map int64 shape |> Array.ofList)
        torch.ScalarType.Float32
        device
        (Rng.ofSeed (int64 seed))

let private numbersOf (t: torch.Tensor) =
    numbers (t.``to`` torch.ScalarType.Float64)

// oneDNN is asked with more than one thread only
let private withThreads n (f: unit -> unit) =
    let before = torch.get_num_threads ()
    torch.set_num_threads n

    try
        f ()
    finally
        torch.set_num_threads before

let private differentiate route (c: Operands) =
    let weight = normal [ c.Out; c.In ] (c.Seed + 1)
    let bias = if c.HasBias then normal [ c.Out ] (c.Seed + 2) else null
    let weighing = normal [ c.Batch; c.Tokens; c.Out ] (c.Seed + 3)

    [| normal [ c.Batch; c.Tokens; c.In ] c.Seed |]
    |> Grad.valueAndGradWith (fun p ->
        let y = Product.linearBy route weight bias p[0]
        struct (y.mul(weighing).sum(), [| y |]))

[<Tests>]
let tests =
    testList
        "Product"
        [
            property "Product" "both routes agree, in value and gradient" (fun (c: Operands) ->
                withThreads 2 (fun () ->
                    let struct (_, blas, ofBlas) = differentiate ProductRoute.Blas c
                    let struct (_, oneDnn, ofOneDnn) = differentiate ProductRoute.OneDnn c

                    Expect.equal
                        oneDnn[0].shape
                        [| int64 c.Batch; int64 c.Tokens; int64 c.Out |]
                        "[B, N, n]"

                    closeTo 1e-4 "product" (numbersOf blas[0]) (numbersOf oneDnn[0])
                    closeTo 1e-4 "gradient" (numbersOf ofBlas[0].Value) (numbersOf ofOneDnn[0].Value)))

            testCase "no rows" (fun () ->
                withThreads 2 (fun () ->
                    Scope.run (fun () ->
                        let y =
                            Product.linearBy
                                ProductRoute.OneDnn
                                (normal [ 5; 4 ] 0)
                                null
                                (torch.zeros ([| 0L; 3L; 4L |], device = device))

                        Expect.equal y.shape [| 0L; 3L; 5L |] "[B, N, n]")))

            testCase "each maker's route" (fun () ->
                let route asked vendor avx512 = Product.choose asked vendor avx512
                Expect.equal (route "" "GenuineIntel" true) ProductRoute.Blas "MKL knows Intel's AVX-512"
                Expect.equal (route "" "AuthenticAMD" true) ProductRoute.OneDnn "MKL would use AVX2"
                Expect.equal (route "" "AuthenticAMD" false) ProductRoute.Blas "AVX2 is all there is"
                Expect.equal (route "" "" false) ProductRoute.Blas "no x86"
                Expect.equal (route "blas" "AuthenticAMD" true) ProductRoute.Blas "as asked"
                Expect.equal (route "onednn" "GenuineIntel" true) ProductRoute.OneDnn "as asked")

            rejects "another route" [ "LORASUB_PRODUCTS"; "blas or onednn"; "'mkl'" ] (fun () ->
                Product.choose "mkl" "GenuineIntel" true |> ignore)

            testCase "the processor names its maker" (fun () ->
                if System.Runtime.Intrinsics.X86.X86Base.IsSupported then
                    Expect.isMatch (Product.vendor ()) "^[ -~]{12}$" "twelve letters")
        ]
