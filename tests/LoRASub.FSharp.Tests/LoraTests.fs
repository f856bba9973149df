module LoRASub.Tests.LoraTests

open LoRASub.Core
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Lora" name law
let private float64 = torch.ScalarType.Float64

type Pair =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 8)>]
        Width: int
        [<Between(1, 8)>]
        Rank: int
    }

    interface IConstrained with
        member c.Holds = c.Rank <= c.Width

    member c.Init bInit dtype =
        Lora.initPair bInit c.Rank (int64 c.Width) dtype device (Rng.ofSeed (int64 c.Seed))

    member c.A = normalMatrix c.Seed c.Rank c.Width
    member c.B = normalMatrix (c.Seed + 1) c.Width c.Rank

let private layer (c: Pair) : LayerLora =
    {
        Key = { A = tensor c.A; B = tensor c.B }
        Value =
            {
                A = tensor (Oracles.scale 2.0 c.A)
                B = tensor c.B
            }
    }

let private example: Pair = { Seed = 1; Width = 4; Rank = 2 }

[<Tests>]
let tests =
    testList
        "Lora"
        [
            property "initially |A| ≤ 1/√d" (fun (c: Pair) ->
                let bound = 1.0 / sqrt (float c.Width)

                let largest (a: torch.Tensor) =
                    numbers (a.``to`` float64) |> Array.map abs |> Array.max

                atMost "float64" bound (largest (c.Init BInit.Zeros float64).A)
                atMost "float32" (float (float32 bound)) (largest (c.Init BInit.Zeros torch.float32).A))

            property "initially B is zero" (fun (c: Pair) ->
                Expect.all (numbers (c.Init BInit.Zeros float64).B) ((=) 0.0) "zeros")

            property "or B has one nonzero per column" (fun (c: Pair) ->
                let b = matrix (c.Init BInit.Sparse float64).B

                for j in 0 .. c.Rank - 1 do
                    let nonzero = b[*, j] |> Array.filter ((<>) 0.0)
                    Expect.hasLength nonzero 1 $"column {j}"
                    atMost "an entry of N(0, 0.01²)" 0.07 (abs nonzero[0]))

            property "the same key gives the same pair; key and value differ" (fun (c: Pair) ->
                let init () =
                    Lora.init BInit.Sparse c.Rank (int64 c.Width) float64 device (Rng.ofSeed (int64 c.Seed))

                let first = init ()
                Seq.iter2 (identical "again") (Lora.leaves first) (Lora.leaves (init ()))
                Expect.notEqual (numbers first.Key.A) (numbers first.Value.A) "A of key and value"
                Expect.equal first.Key.A.shape [| int64 c.Rank; int64 c.Width |] "A [r, d]"
                Expect.equal first.Key.B.shape [| int64 c.Width; int64 c.Rank |] "B [d, r]")

            property "delta = B·A" (fun (c: Pair) ->
                closeMatrix "delta" (Oracles.multiply c.B c.A) (Lora.delta (layer c).Key))

            property "(BM, M⁻¹A) leaves B·A unchanged" (fun (c: Pair) ->
                // a rotation times 2: its inverse is half its transpose
                let q = orthogonal (c.Seed + 2) c.Rank

                let pair =
                    {
                        A = tensor (Oracles.multiply (Oracles.scale 0.5 (Oracles.transpose q)) c.A)
                        B = tensor (Oracles.multiply c.B (Oracles.scale 2.0 q))
                    }

                closeMatrix "delta" (Oracles.multiply c.B c.A) (Lora.delta pair))

            property "merging adds each delta once, in any order" (fun (c: Pair) ->
                let first, second = layer c, layer { c with Seed = c.Seed + 7 }
                let nothing = Lora.noDelta (int64 c.Width) float64 device
                let both = nothing |> Lora.merge first |> Lora.merge second
                let swapped = nothing |> Lora.merge second |> Lora.merge first
                closeTensors "key" ((Lora.delta first.Key).add(Lora.delta second.Key)) both.Key
                closeTensors "value" ((Lora.delta first.Value).add(Lora.delta second.Value)) both.Value
                Seq.iter2 (closeTensors "order") (Lora.deltaLeaves both) (Lora.deltaLeaves swapped))

            property "merging a pair with B = 0 changes no bit" (fun (c: Pair) ->
                let merged = Lora.noDelta (int64 c.Width) float64 device |> Lora.merge (layer c)

                let fresh =
                    Lora.init BInit.Zeros c.Rank (int64 c.Width) float64 device (Rng.ofSeed 1L)

                Seq.iter2
                    (identical "delta")
                    (Lora.deltaLeaves merged)
                    (Lora.deltaLeaves (Lora.merge fresh merged)))

            testCase "A and sparse B follow their distributions" (fun () ->
                Scope.run (fun () ->
                    let draw seed =
                        Lora.initPair BInit.Sparse 100 400L float64 device (Rng.ofSeed seed)

                    let a = numbers (draw 1L).A

                    closeTo
                        0.02
                        "variance of U(−1/√d, 1/√d), times 3d"
                        [ 1.0 ]
                        [ (a |> Array.averageBy (fun x -> x * x)) * 1200.0 ]

                    let entries =
                        [|
                            for seed in 1L .. 20L do
                                yield! numbers (draw seed).B |> Array.filter ((<>) 0.0)
                        |]

                    closeTo
                        0.1
                        "variance of the entries, in 0.01²"
                        [ 1.0 ]
                        [ (entries |> Array.averageBy (fun x -> x * x)) * 1e4 ]

                    closeTo 0.1 "their mean, in 0.01" [ 0.0 ] [ Array.average entries * 100.0 ]))

            rejects "rank 0" [ "rank"; "[1, 4]"; "found 0" ] (fun () -> Lora.checkRank 4L 0)
            rejects "a rank above the width" [ "rank"; "[1, 4]"; "found 5" ] (fun () -> Lora.checkRank 4L 5)
            rejects "init checks its rank" [ "rank"; "found 5" ] (fun () ->
                { example with Rank = 5 }.Init BInit.Zeros float64 |> ignore)

            rejects "A and B of different ranks" [ "LoRA"; "[4, 2]"; "[4, 3]" ] (fun () ->
                Lora.delta
                    {
                        A = tensor (normalMatrix 1 2 4)
                        B = tensor (normalMatrix 1 4 3)
                    }
                |> ignore)

            rejects "a pair of another width than the delta" [ "[4, 4]"; "[1, 1]" ] (fun () ->
                Lora.merge (layer { example with Width = 1; Rank = 1 }) (Lora.noDelta 4L float64 device)
                |> ignore)

            testCase "initial pairs and merging on the meta device" (fun () ->
                Scope.run (fun () ->
                    for bInit in [ BInit.Zeros; BInit.Sparse ] do
                        let lora = Lora.init bInit 2 4L float64 torch.META (Rng.ofSeed 1L)
                        expectMeta [ 2L; 4L ] lora.Key.A
                        expectMeta [ 4L; 2L ] lora.Value.B
                        let merged = Lora.merge lora (Lora.noDelta 4L float64 torch.META)
                        expectMeta [ 4L; 4L ] merged.Value))

            noLeaks "init" ignore (fun () ->
                Lora.leaves (Lora.init BInit.Sparse 2 4L float64 device (Rng.ofSeed 1L)))
            noLeaks "delta" (fun () -> layer example) (fun l -> [ Lora.delta l.Key ])
            noLeaks "noDelta" ignore (fun () -> Lora.deltaLeaves (Lora.noDelta 4L float64 device))
            noLeaks "merge" (fun () -> layer example, Lora.noDelta 4L float64 device) (fun (l, d) ->
                Lora.deltaLeaves (Lora.merge l d))
        ]
