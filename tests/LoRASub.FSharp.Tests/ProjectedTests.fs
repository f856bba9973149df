module LoRASub.Tests.ProjectedTests

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Projected" name law
let private flat (m: float[,]) = Seq.cast<float> m

/// A LoRA pair trained for some steps inside the space retained from random inputs.
type Training =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 8)>]
        Rows: int
        [<Between(1, 6)>]
        Width: int
        [<Between(1, 6)>]
        Rank: int
        [<Between(1, 5)>]
        Steps: int
        /// In percent of the energy.
        [<Between(1, 100)>]
        Threshold: int
        AmsGrad: bool
        /// In hundredths.
        [<Between(0, 10)>]
        WeightDecay: int
    }

    interface IConstrained with
        member c.Holds = c.Rank <= c.Width

    member c.Options =
        { Adam.defaults with
            AmsGrad = c.AmsGrad
            WeightDecay = float c.WeightDecay / 100.0
        }

    member c.Projection =
        Projection.retain
            UpdateScale.Frobenius
            (float c.Threshold / 100.0)
            "moment"
            {
                Moment = tensor (Oracles.secondMoment (normalMatrix c.Seed c.Rows c.Width))
                Count = int64 c.Rows
            }

    member c.A = normalMatrix (c.Seed + 1) c.Rank c.Width
    member c.B = normalMatrix (c.Seed + 2) c.Width c.Rank
    member c.Head = normalMatrix (c.Seed + 3) 3 c.Width

    member c.GradientsOf offset (shape: float[,]) =
        [
            for s in 1 .. c.Steps ->
                normalMatrix (c.Seed + 10 * s + offset) (Array2D.length1 shape) (Array2D.length2 shape)
        ]

/// Parameters after the last step.
let private train (transform: Transform<'S>) (start: float[,] list) (gradients: float[,] list list) =
    let start = start |> List.map tensor |> Array.ofList

    let steps =
        gradients
        |> List.transpose
        |> List.map (fun gs -> [| for g in gs -> Some(tensor g) |])

    (struct (start, transform.Init start), steps)
    ||> List.fold (fun (struct (ps, state)) gs -> Transform.step transform gs state ps)
    |> fun struct (ps, _) -> ps

let private drs (c: Training) confinements =
    Transform.chain (Adam.transform 0.01 c.Options) (Projected.transform confinements)

/// A, B and head after training, with their projection.
let private trained (c: Training) =
    let p = c.Projection

    let confined =
        [|
            Confinement.Within(Side.Right, p.Matrix)
            Confinement.Within(Side.Left, p.Matrix)
            Confinement.Free
        |]

    let starts = [ c.A; c.B; c.Head ]
    train (drs c confined) starts (starts |> List.mapi c.GradientsOf), p

/// I − Π
let private complement (p: Projection) =
    let basis = matrix p.Basis

    Oracles.subtract
        (Oracles.identity (Array2D.length1 basis))
        (Oracles.multiply basis (Oracles.transpose basis))

let private zerosLike m = Array2D.map (fun _ -> 0.0) m

let private settings (c: Training) : Oracles.AdamSettings =
    {
        Rate = 0.01
        Beta1 = 0.9
        Beta2 = 0.999
        Epsilon = 1e-8
        WeightDecay = c.Options.WeightDecay
        AmsGrad = c.AmsGrad
    }

let private update confinement (u: torch.Tensor) =
    let struct (updates, ()) =
        (Projected.transform [| confinement |]).Update [| Some u |] () [| u |]

    updates[0].Value

let private square () = tensor (normalMatrix 1 3 3)
let private wide () = tensor (normalMatrix 2 2 3)

[<Tests>]
let tests =
    testList
        "Projected"
        [
            property "training inside P ≡ the loops, on either side" (fun (c: Training) ->
                let after, p = trained c
                let p = matrix p.Matrix
                let sides = [ Oracles.FromRight p; Oracles.FromLeft p; Oracles.Anywhere ]

                List.zip [ c.A; c.B; c.Head ] sides
                |> List.iteri (fun i (start, side) ->
                    let gradients = c.GradientsOf i start |> List.map Some
                    let expected = Oracles.projectedAdam (settings c) side start gradients |> List.last
                    closeMatrix $"parameter {i}" expected after[i]))

            property "(A − A₀)(I − Π) = 0 after any number of steps" (fun (c: Training) ->
                let after, p = trained c

                let outside =
                    Oracles.multiply (Oracles.subtract (matrix after[0]) c.A) (complement p)

                close "outside" (flat (zerosLike outside)) (flat outside))

            property "(I − Π)(B − B₀) = 0 after any number of steps" (fun (c: Training) ->
                let after, p = trained c

                let outside =
                    Oracles.multiply (complement p) (Oracles.subtract (matrix after[1]) c.B)

                close "outside" (flat (zerosLike outside)) (flat outside))

            property "x ⟂ U_k ⇒ A_T x = A₀ x" (fun (c: Training) ->
                let after, p = trained c
                // columns of I − Π are orthogonal to the retained space
                let x = Oracles.multiply (complement p) (normalMatrix (c.Seed + 5) c.Width 2)
                close "A x" (flat (Oracles.multiply c.A x)) (flat (Oracles.multiply (matrix after[0]) x)))

            property "‖uP‖ ≤ ‖u‖/√k and ‖Pu‖ ≤ ‖u‖/√k" (fun (c: Training) ->
                let p = c.Projection

                let bound m =
                    Oracles.frobenius m / sqrt (float p.Rank) * (1.0 + 1e-12)

                let length confinement m =
                    Oracles.frobenius (matrix (update confinement (tensor m)))

                atMost "‖uP‖" (bound c.A) (length (Confinement.Within(Side.Right, p.Matrix)) c.A)
                atMost "‖Pu‖" (bound c.B) (length (Confinement.Within(Side.Left, p.Matrix)) c.B))

            property "t = 0: everything free is plain Adam, bit by bit" (fun (c: Training) ->
                let starts = [ c.A; c.B; c.Head ]
                let gradients = starts |> List.mapi c.GradientsOf
                let plain = train (Adam.transform 0.01 c.Options) starts gradients

                Array.iter2
                    (identical "parameter")
                    plain
                    (train (drs c (Array.create 3 Confinement.Free)) starts gradients))

            property "heads are never projected, beside confined parameters" (fun (c: Training) ->
                let after, _ = trained c

                let alone =
                    train (Adam.transform 0.01 c.Options) [ c.Head ] [ c.GradientsOf 2 c.Head ]

                identical "head" alone[0] after[2])

            property "heads are never projected, in a group of their own" (fun (c: Training) ->
                let p = c.Projection

                let lora =
                    drs
                        c
                        [|
                            Confinement.Within(Side.Right, p.Matrix)
                            Confinement.Within(Side.Left, p.Matrix)
                        |]

                let heads = drs c [| Confinement.Free |]
                let starts = [ c.Head; c.A; c.B ]
                let gradients = [ c.GradientsOf 2 c.Head; c.GradientsOf 0 c.A; c.GradientsOf 1 c.B ]

                let after =
                    train (Transform.partition [| 1; 0; 0 |] [| lora; heads |]) starts gradients

                let together, _ = trained c
                Array.iter2 (closeTensors "parameter") [| together[2]; together[0]; together[1] |] after)

            property "r = d: the side decides, not the shape" (fun (c: Training) ->
                let u, p =
                    normalMatrix c.Seed c.Width c.Width, normalMatrix (c.Seed + 1) c.Width c.Width

                closeMatrix
                    "left"
                    (Oracles.multiply p u)
                    (update (Confinement.Within(Side.Left, tensor p)) (tensor u))

                closeMatrix
                    "right"
                    (Oracles.multiply u p)
                    (update (Confinement.Within(Side.Right, tensor p)) (tensor u)))

            property "the pairs of each block go by its own matrix" (fun (c: Training) ->
                Scope.run (fun () ->
                    let blocks, pairs, d, r = 3L, 2L, int64 c.Width, int64 c.Rank

                    let random number shape =
                        Rng.normal
                            shape
                            torch.float64
                            torch.CPU
                            (Rng.fold number (Rng.ofSeed (int64 c.Seed)))

                    let matrices = random 1L [| blocks; d; d |]

                    for side, shape in
                        [ Side.Left, [| blocks; pairs; d; r |]; Side.Right, [| blocks; pairs; r; d |] ] do
                        let u = random 2L shape
                        let found = update (Confinement.Within(side, matrices)) u
                        Expect.equal found.shape shape "shape"

                        for block in 0L .. blocks - 1L do
                            for pair in 0L .. pairs - 1L do
                                let of' (t: torch.Tensor) = matrix t[block, pair]
                                let p = matrix matrices[block]

                                let expected =
                                    if side.IsLeft then
                                        Oracles.multiply p (of' u)
                                    else
                                        Oracles.multiply (of' u) p

                                closeMatrix
                                    $"{side}, block {block}, pair {pair}"
                                    expected
                                    found[block, pair]))

            property
                "4-D updates are flattened to [out, rest] and multiplied from the right"
                (fun (c: Training) ->
                    let shape = [ c.Rank; c.Width; 2; 1 ]

                    let u, p =
                        normalMatrix c.Seed c.Rank (2 * c.Width),
                        normalMatrix (c.Seed + 1) (2 * c.Width) (2 * c.Width)

                    let u4 = shaped shape (Array.ofSeq (flat u))
                    let result = update (Confinement.Within(Side.Right, tensor p)) u4
                    Expect.equal result.shape u4.shape "shape"
                    close "uP" (flat (Oracles.multiply u p)) (numbers result))

            testCase "the rows of BA leave the retained space where A₀ does" (fun () ->
                Scope.run (fun () ->
                    // one retained direction of four; B starts at zeros, as published
                    let c: Training =
                        {
                            Seed = 3
                            Rows = 1
                            Width = 4
                            Rank = 2
                            Steps = 5
                            Threshold = 99
                            AmsGrad = false
                            WeightDecay = 0
                        }

                    let p = c.Projection

                    let confined =
                        [|
                            Confinement.Within(Side.Right, p.Matrix)
                            Confinement.Within(Side.Left, p.Matrix)
                        |]

                    let start = [ c.A; zerosLike c.B ]
                    let after = train (drs c confined) start (start |> List.mapi c.GradientsOf)
                    let delta = Oracles.multiply (matrix after[1]) (matrix after[0])
                    let rowsOutside = Oracles.frobenius (Oracles.multiply delta (complement p))
                    let columnsOutside = Oracles.frobenius (Oracles.multiply (complement p) delta)
                    Expect.isGreaterThan rowsOutside 1e-3 "rows: A₀ is not confined"
                    atMost "columns: B is" 1e-12 columnsOutside))

            (let fails side matrix u =
                fun () -> update (Confinement.Within(side, matrix ())) (u ()) |> ignore

             testList
                 "misfits"
                 [
                     rejects
                         "too wide for the left"
                         [ "parameter 0, from the left"; "[2, 2]"; "[3, 3]" ]
                         (fails Side.Left square wide)
                     rejects
                         "too small for the right"
                         [ "parameter 0, from the right"; "[3, 3]"; "[2, 3]" ]
                         (fails Side.Right wide wide)
                     rejects
                         "4-D from the left"
                         [ "parameter 0"; "[d, r]"; "[3, 1, 1, 2]" ]
                         (fails Side.Left square (fun () ->
                             torch.zeros ([| 3L; 1L; 1L; 2L |], dtype = torch.float64, device = device)))
                     rejects
                         "a scalar"
                         [ "parameter 0"; "[]" ]
                         (fails Side.Right square (fun () ->
                             torch.zeros ([||], dtype = torch.float64, device = device)))
                     rejects
                         "another type"
                         [ "parameter 0"; "Float64"; "Float32" ]
                         (fails Side.Right (fun () -> torch.eye (3L, device = device)) wide)
                     rejects
                         "another device"
                         [ "parameter 0"; string device; "meta" ]
                         (fails Side.Right (square >> onMeta) wide)

                     rejects
                         "fewer confinements than parameters"
                         [ "confinements"; "must be 2"; "found 1" ]
                         (fun () ->
                             let u = Some(wide ())

                             (Projected.transform [| Confinement.Free |]).Update
                                 [| u; u |]
                                 ()
                                 [| wide (); wide () |]
                             |> ignore)
                 ])

            testCase "what is fixed has no update" (fun () ->
                Scope.run (fun () ->
                    let u = Some(wide ())

                    let struct (updates, ()) =
                        (Projected.transform [| Confinement.Fixed; Confinement.Free |]).Update
                            [| u; u |]
                            ()
                            [| wide (); wide () |]

                    Expect.isNone updates[0] "fixed"
                    identical "free" u.Value updates[1].Value))

            testCase "Adam and projection on the meta device" (fun () ->
                Scope.run (fun () ->
                    let ps = [| onMeta (wide ()); onMeta (square ()) |]
                    let p = onMeta (square ())

                    let confined =
                        [| Confinement.Within(Side.Right, p); Confinement.Within(Side.Left, p) |]

                    let t =
                        Transform.chain (Adam.transform 0.1 Adam.defaults) (Projected.transform confined)

                    let struct (stepped, _) = Transform.step t (Array.map Some ps) (t.Init ps) ps
                    expectMeta [ 2L; 3L ] stepped[0]
                    expectMeta [ 3L; 3L ] stepped[1]))

            (let transform p =
                Transform.chain
                    (Adam.transform 0.1 Adam.defaults)
                    (Projected.transform [| Confinement.Within(Side.Right, p) |])

             noLeaks
                 "a projected step"
                 (fun () -> let ps, t = [| wide () |], transform (square ()) in ps, t, t.Init ps)
                 (fun (ps, t, state) ->
                     let struct (stepped, next) = Transform.step t [| Some ps[0] |] state ps
                     Seq.append stepped (t.Tree.Leaves next)))
        ]
