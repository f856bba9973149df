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
        Lora.initPair bInit c.Rank [| int64 c.Width; int64 c.Width |] dtype device (Rng.ofSeed (int64 c.Seed))

    member c.A = normalMatrix c.Seed c.Rank c.Width
    member c.B = normalMatrix (c.Seed + 1) c.Width c.Rank

let private layer (c: Pair) : LayerLora =
    Map.ofList
        [
            Site.Key, { A = tensor c.A; B = tensor c.B }
            Site.Value,
            {
                A = tensor (Oracles.scale 2.0 c.A)
                B = tensor c.B
            }
        ]

let private square (width: int64) =
    Map.ofList [ for site in Lora.keyValue -> site, [| width; width |] ]

let private noDelta (width: int64) dtype device =
    Lora.noDelta (square width) dtype device

/// The weights of a block of width d with 2d hidden columns.
let private everySite (width: int) =
    let d = int64 width

    Map.ofList
        [
            for site in Site.all do
                site,
                match site with
                | Site.Fc1 -> [| 2L * d; d |]
                | Site.Fc2 -> [| d; 2L * d |]
                | _ -> [| d; d |]
        ]

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

            property "the same key gives the same pairs; each site differs" (fun (c: Pair) ->
                let init () =
                    Lora.init
                        BInit.Sparse
                        c.Rank
                        (everySite c.Width)
                        float64
                        device
                        (Rng.ofSeed (int64 c.Seed))

                let first = init ()
                Seq.iter2 (identical "again") (Lora.leaves first) (Lora.leaves (init ()))

                let different =
                    [ for pair in first.Values -> Array.head (numbers pair.A) ] |> List.distinct

                Expect.hasLength different 6 "another A at each site"

                for KeyValue(site, shape) in everySite c.Width do
                    Expect.equal first[site].A.shape [| int64 c.Rank; shape[1] |] "A [r, inputs]"
                    Expect.equal first[site].B.shape [| shape[0]; int64 c.Rank |] "B [outputs, r]")

            property "the pair of a site does not depend on the other sites" (fun (c: Pair) ->
                let init shapes =
                    Lora.init BInit.Sparse c.Rank shapes float64 device (Rng.ofSeed (int64 c.Seed))

                let all = init (everySite c.Width)

                for KeyValue(site, shape) in everySite c.Width do
                    let alone = init (Map.ofList [ site, shape ])
                    identical "A" all[site].A alone[site].A
                    identical "B" all[site].B alone[site].B)

            property "delta = B·A" (fun (c: Pair) ->
                closeMatrix "delta" (Oracles.multiply c.B c.A) (Lora.delta (Map.find Site.Key (layer c))))

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
                let nothing = noDelta (int64 c.Width) float64 device
                let both = nothing |> Lora.merge first |> Lora.merge second
                let swapped = nothing |> Lora.merge second |> Lora.merge first

                closeTensors
                    "key"
                    ((Lora.delta first[Site.Key]).add(Lora.delta second[Site.Key]))
                    both[Site.Key]

                closeTensors
                    "value"
                    ((Lora.delta first[Site.Value]).add(Lora.delta second[Site.Value]))
                    both[Site.Value]

                Seq.iter2 (closeTensors "order") (Lora.deltaLeaves both) (Lora.deltaLeaves swapped))

            property "merging a pair with B = 0 changes no bit" (fun (c: Pair) ->
                let merged = noDelta (int64 c.Width) float64 device |> Lora.merge (layer c)

                let fresh =
                    Lora.init BInit.Zeros c.Rank (square (int64 c.Width)) float64 device (Rng.ofSeed 1L)

                Seq.iter2
                    (identical "delta")
                    (Lora.deltaLeaves merged)
                    (Lora.deltaLeaves (Lora.merge fresh merged)))

            testCase "A and sparse B follow their distributions" (fun () ->
                Scope.run (fun () ->
                    let draw seed =
                        Lora.initPair BInit.Sparse 100 [| 400L; 400L |] float64 device (Rng.ofSeed seed)

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

            rejects "A and B of different ranks" [ "LoRA"; "[outputs, 2]"; "[4, 3]" ] (fun () ->
                Lora.delta
                    {
                        A = tensor (normalMatrix 1 2 4)
                        B = tensor (normalMatrix 1 4 3)
                    }
                |> ignore)

            rejects "a pair of another width than the delta" [ "[4, 4]"; "[1, 1]" ] (fun () ->
                Lora.merge (layer { example with Width = 1; Rank = 1 }) (noDelta 4L float64 device)
                |> ignore)

            rejects "a pair on a site without a delta" [ "finished pairs"; "key, value"; "fc1" ] (fun () ->
                let pair = (layer example)[Site.Key]

                Lora.merge (Map.ofList [ Site.Fc1, pair ]) (noDelta 4L float64 device) |> ignore)

            testCase "pairs are read by their sites' names; a missing one is rejected" (fun () ->
                Scope.run (fun () ->
                    let sites = List.ofSeq (everySite 3).Keys
                    let lora = Lora.init BInit.Sparse 2 (everySite 3) float64 device (Rng.ofSeed 1L)
                    let written = Tree.write (Lora.tree sites) lora

                    Expect.equal
                        (List.map fst written)
                        [
                            for site in [ "query"; "key"; "value"; "projection"; "fc1"; "fc2" ] do
                                $"{site}.a"
                                $"{site}.b"
                        ]
                        "names"

                    let read sites names =
                        Tree.read (Lora.tree sites) "the file" (Map.ofList (List.filter names written))

                    Expect.isTrue
                        (Tree.equal (Lora.tree sites) lora (read sites (fun _ -> true)))
                        "read back"

                    refused [ "the file"; "fc1.b" ] (fun () ->
                        read sites (fun (name, _) -> name <> "fc1.b") |> ignore)

                    let some = read [ Site.Value ] (fun _ -> true)
                    Expect.equal (List.ofSeq some.Keys) [ Site.Value ] "only the sites asked for"))

            testCase "initial pairs and merging on the meta device" (fun () ->
                Scope.run (fun () ->
                    for bInit in [ BInit.Zeros; BInit.Sparse ] do
                        let lora = Lora.init bInit 2 (square 4L) float64 torch.META (Rng.ofSeed 1L)
                        expectMeta [ 2L; 4L ] lora[Site.Key].A
                        expectMeta [ 4L; 2L ] lora[Site.Value].B
                        let merged = Lora.merge lora (noDelta 4L float64 torch.META)
                        expectMeta [ 4L; 4L ] merged[Site.Value]))

            noLeaks "init" ignore (fun () ->
                Lora.leaves (Lora.init BInit.Sparse 2 (square 4L) float64 device (Rng.ofSeed 1L)))
            noLeaks "delta" (fun () -> layer example) (fun l -> [ Lora.delta l[Site.Key] ])
            noLeaks "noDelta" ignore (fun () -> Lora.deltaLeaves (noDelta 4L float64 device))
            noLeaks "merge" (fun () -> layer example, noDelta 4L float64 device) (fun (l, d) ->
                Lora.deltaLeaves (Lora.merge l d))
        ]
