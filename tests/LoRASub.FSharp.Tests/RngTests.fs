module LoRASub.Tests.RngTests

open LoRASub.Core
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Rng" name law
let private float64 = torch.ScalarType.Float64

type Draw =
    {
        [<Between(-1000, 1000)>]
        Seed: int
        [<Between(0, 50)>]
        Count: int
        [<Between(-1000, 1000)>]
        Number: int
    }

let private key (c: Draw) = Rng.ofSeed (int64 c.Seed)

[<Tests>]
let tests =
    testList
        "Rng"
        [
            property "the same key gives the same bits, whatever was drawn before" (fun (c: Draw) ->
                let draws () =
                    [
                        Rng.uniform -1.0 1.0 [| int64 c.Count |] float64 device (key c)
                        Rng.normal [| int64 c.Count |] float64 device (key c)
                        Rng.integers 7L [| int64 c.Count |] device (key c)
                    ]

                let first = draws ()
                torch.rand 5L |> ignore
                List.iter2 (identical "again") first (draws ()))

            property "drawing leaves the global generator alone" (fun (c: Draw) ->
                torch.manual_seed 5L |> ignore
                let expected = torch.rand 3L
                torch.manual_seed 5L |> ignore
                Rng.normal [| 10L |] float64 device (key c) |> ignore
                identical "global stream" expected (torch.rand 3L))

            property "children of different numbers differ, and from their parent" (fun (c: Draw) ->
                let child = Rng.fold (int64 c.Number) (key c)
                Expect.notEqual child (key c) "parent"
                Expect.notEqual child (Rng.fold (int64 c.Number + 1L) (key c)) "sibling"
                Expect.notEqual child (Rng.fold (int64 c.Number) (Rng.ofSeed (int64 c.Seed + 1L))) "cousin"
                Expect.equal child (Rng.fold (int64 c.Number) (key c)) "itself")

            property "uniform stays in its interval" (fun (c: Draw) ->
                for x in numbers (Rng.uniform -0.25 0.75 [| int64 c.Count |] float64 device (key c)) do
                    Expect.isTrue (x >= -0.25 && x < 0.75) $"{x}")

            property "integers stay in theirs" (fun (c: Draw) ->
                let high = int64 (c.Count + 1)

                for n in wholeNumbers (Rng.integers high [| 20L |] device (key c)) do
                    Expect.isTrue (n >= 0L && n < high) $"{n}")

            property "a permutation holds each number once, and depends on its key alone" (fun (c: Draw) ->
                let order = Rng.permutation c.Count (key c)
                Expect.equal (Array.sort order) (Array.init c.Count id) "each once"
                Expect.equal (Rng.permutation c.Count (key c)) order "again")

            testCase "every order of three is about equally likely" (fun () ->
                let counts =
                    Array.init 6000 (fun i -> Rng.permutation 3 (Rng.ofSeed (int64 i)))
                    |> Array.countBy id

                Expect.equal counts.Length 6 "orders"

                for order, count in counts do
                    // six standard deviations of a binomial(6000, 1/6)
                    Expect.isLessThan (abs (count - 1000)) 174 $"%A{order}")

            testCase "moments of the draws" (fun () ->
                Scope.run (fun () ->
                    let x = numbers (Rng.normal [| 100000L |] float64 device (Rng.ofSeed 1L))
                    closeTo 0.02 "normal mean" [ 0.0 ] [ Array.average x ]
                    closeTo 0.02 "normal variance" [ 1.0 ] [ Array.averageBy (fun v -> v * v) x ]
                    let u = numbers (Rng.uniform 2.0 4.0 [| 100000L |] float64 device (Rng.ofSeed 2L))
                    closeTo 0.02 "uniform mean" [ 3.0 ] [ Array.average u ]))

            testCase "draws on another device keep shape and type" (fun () ->
                Scope.run (fun () ->
                    expectMeta
                        [ 2L; 3L ]
                        (Rng.uniform 0.0 1.0 [| 2L; 3L |] float64 torch.META (Rng.ofSeed 1L))

                    expectMeta [ 2L ] (Rng.normal [| 2L |] float64 torch.META (Rng.ofSeed 1L))
                    expectMeta [ 4L ] (Rng.integers 3L [| 4L |] torch.META (Rng.ofSeed 1L))))

            noLeaks "uniform" ignore (fun () ->
                [ Rng.uniform -1.0 1.0 [| 4L |] float64 device (Rng.ofSeed 1L) ])
            noLeaks "uniform elsewhere" ignore (fun () ->
                [ Rng.uniform 0.0 1.0 [| 4L |] float64 torch.META (Rng.ofSeed 1L) ])
            noLeaks "normal" ignore (fun () -> [ Rng.normal [| 4L |] float64 device (Rng.ofSeed 1L) ])
            noLeaks "integers" ignore (fun () -> [ Rng.integers 4L [| 4L |] device (Rng.ofSeed 1L) ])
        ]
