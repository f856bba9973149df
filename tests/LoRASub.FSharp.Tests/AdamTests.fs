module LoRASub.Tests.AdamTests

open LoRASub.Core
open LoRASub.Train
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Adam" name law

type Run =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 4)>]
        Rows: int
        [<Between(1, 4)>]
        Columns: int
        [<Between(0, 6)>]
        Steps: int
        AmsGrad: bool
        /// In hundredths.
        [<Between(0, 20)>]
        WeightDecay: int
        /// Some gradients are missing.
        Gaps: bool
    }

    member c.Options =
        { Adam.defaults with
            AmsGrad = c.AmsGrad
            WeightDecay = float c.WeightDecay / 100.0
        }

    member c.Start = normalMatrix c.Seed c.Rows c.Columns

    member c.Gradients =
        [
            for s in 1 .. c.Steps do
                // falling sizes, so that AMSGrad's maximum matters
                let g =
                    normalMatrix (c.Seed + s) c.Rows c.Columns |> Oracles.scale (2.0 ** -(float s))

                if c.Gaps && (c.Seed + s) % 3 = 0 then None else Some g
        ]

let private oracle (o: AdamOptions) rate : Oracles.AdamSettings =
    {
        Rate = rate
        Beta1 = o.Beta1
        Beta2 = o.Beta2
        Epsilon = o.Epsilon
        WeightDecay = o.WeightDecay
        AmsGrad = o.AmsGrad
    }

/// Parameters and state after each step.
let private steps (transform: Transform<'S>) (start: torch.Tensor[]) (gradients: Gradients list) =
    (struct (start, transform.Init start), gradients)
    ||> List.scan (fun (struct (parameters, state)) g -> Transform.step transform g state parameters)
    |> List.tail

let private example () = [| tensor (normalMatrix 1 2 3) |]

[<Tests>]
let tests =
    testList
        "Adam"
        [
            property "every step ≡ the loops, with each option" (fun (c: Run) ->
                let expected =
                    Oracles.projectedAdam (oracle c.Options 0.01) Oracles.Anywhere c.Start c.Gradients

                let gradients = c.Gradients |> List.map (fun g -> [| Option.map tensor g |])
                let actual = steps (Adam.transform 0.01 c.Options) [| tensor c.Start |] gradients

                List.iter2
                    (fun e struct (ps: torch.Tensor[], _) -> closeMatrix "parameter" e ps[0])
                    expected
                    actual)

            property
                "a missing gradient changes neither the parameter nor its moments nor its step count"
                (fun (c: Run) ->
                    let transform = Adam.transform 0.01 c.Options

                    let present =
                        c.Gradients |> List.choose id |> List.map (fun g -> [| Some(tensor g) |])

                    let withGaps = present |> List.collect (fun g -> [ [| None |]; g; [| None |] ])

                    let last all =
                        all
                        |> List.tryLast
                        |> Option.map (fun struct (ps: torch.Tensor[], s: AdamState) ->
                            ps[0], s.Mu[0], s.Nu[0], s.Steps)

                    match
                        last (steps transform [| tensor c.Start |] present),
                        last (steps transform [| tensor c.Start |] withGaps)
                    with
                    | Some(p, mu, nu, n), Some(p', mu', nu', n') ->
                        List.iter2 (identical "tensors") [ p; mu; nu ] [ p'; mu'; nu' ]
                        Expect.equal n' n "steps"
                    | None, None -> ()
                    | other -> failtest $"%A{other}")

            property "parameters do not influence each other" (fun (c: Run) ->
                let transform = Adam.transform 0.01 c.Options
                let gradients = c.Gradients |> List.map (Option.map tensor)
                let other = tensor (normalMatrix 7 2 2)

                let alone =
                    steps transform [| tensor c.Start |] (gradients |> List.map Array.singleton)

                let beside =
                    steps
                        transform
                        [| other; tensor c.Start |]
                        (gradients |> List.map (fun g -> [| Some other; g |]))

                List.iter2
                    (fun struct (a: torch.Tensor[], _) struct (b: torch.Tensor[], _) ->
                        identical "parameter" a[0] b[1])
                    alone
                    beside)

            property
                "the first step has length η for every entry, whatever the gradient's scale"
                (fun (c: Run) ->
                    let g = tensor c.Start

                    let struct (updates, _) =
                        let t = Adam.transform 0.01 Adam.defaults in
                        t.Update [| Some g |] (t.Init [| g |]) [| g |]

                    for x, u in Array.zip (numbers g) (numbers updates[0].Value) do
                        // ε stands beside √v = √(1−β₂)·|g| before the correction
                        close "u" [ -0.01 * x / (abs x + 1e-8 / sqrt 0.001) ] [ u ])

            property "arguments keep their bits, the old state included" (fun (c: Run) ->
                let transform = Adam.transform 0.01 c.Options
                let ps = [| tensor c.Start |]

                let struct (_, state) =
                    Transform.step transform [| Some(tensor c.Start) |] (transform.Init ps) ps

                let all = Seq.append ps (transform.Tree.Leaves state) |> Array.ofSeq
                let before = all |> Array.map _.clone()
                let counts = Array.copy state.Steps

                Transform.step transform [| Some(tensor (normalMatrix 3 c.Rows c.Columns)) |] state ps
                |> ignore

                Array.iter2 (identical "argument") before all
                Expect.equal state.Steps counts "step counts")

            testCase "a zero gradient moves nothing" (fun () ->
                Scope.run (fun () ->
                    let p = example ()

                    let struct (stepped, _) =
                        Transform.step
                            (Adam.transform 0.01 Adam.defaults)
                            [| Some(torch.zeros_like p[0]) |]
                            ((Adam.transform 0.01 Adam.defaults).Init p)
                            p

                    identical "parameter" p[0] stepped[0]))

            testCase "the published defaults" (fun () ->
                Expect.equal
                    Adam.defaults
                    {
                        Beta1 = 0.9
                        Beta2 = 0.999
                        Epsilon = 1e-8
                        WeightDecay = 0.0
                        AmsGrad = false
                    }
                    "defaults")

            testCase "AMSGrad's maximum is held only with AMSGrad" (fun () ->
                Scope.run (fun () ->
                    Expect.isEmpty ((Adam.transform 0.1 Adam.defaults).Init(example ())).NuMax "without"

                    Expect.hasLength
                        ((Adam.transform 0.1 { Adam.defaults with AmsGrad = true }).Init(example ())).NuMax
                        1
                        "with"))

            testList
                "limits"
                [
                    for rate in [ -1e-9; nan; infinity ] do
                        rejects
                            $"learning rate {rate}"
                            [ "learning rate"; "at least 0"; $"{rate}" ]
                            (fun () -> Adam.check rate Adam.defaults)

                    for epsilon in [ -1e-9; nan ] do
                        rejects $"epsilon {epsilon}" [ "epsilon"; $"{epsilon}" ] (fun () ->
                            Adam.check 0.1 { Adam.defaults with Epsilon = epsilon })

                    for decay in [ -0.1; nan ] do
                        rejects $"weight decay {decay}" [ "weight decay"; $"{decay}" ] (fun () ->
                            Adam.check
                                0.1
                                { Adam.defaults with
                                    WeightDecay = decay
                                })

                    for beta in [ -0.1; 1.0; nan ] do
                        rejects $"beta 1 of {beta}" [ "beta 1"; "[0, 1)"; $"{beta}" ] (fun () ->
                            Adam.check 0.1 { Adam.defaults with Beta1 = beta })

                        rejects $"beta 2 of {beta}" [ "beta 2"; "[0, 1)"; $"{beta}" ] (fun () ->
                            Adam.check 0.1 { Adam.defaults with Beta2 = beta })

                    testCase "zeros are allowed" (fun () ->
                        Adam.check
                            0.0
                            { Adam.defaults with
                                Beta1 = 0.0
                                Beta2 = 0.0
                                Epsilon = 0.0
                            })

                    rejects "transform checks them" [ "learning rate" ] (fun () ->
                        Adam.transform -1.0 Adam.defaults |> ignore)
                ]

            (let attempt (gradient: torch.Tensor) =
                let t, ps = Adam.transform 0.1 Adam.defaults, example ()
                Transform.step t [| Some gradient |] (t.Init ps) ps |> ignore

             testList
                 "gradients"
                 [
                     rejects "of another shape" [ "gradient 0"; "[2, 3]"; "[3, 2]" ] (fun () ->
                         attempt (tensor (normalMatrix 1 3 2)))
                     rejects "of a shape that would broadcast" [ "gradient 0"; "[2, 3]"; "[1, 3]" ] (fun () ->
                         attempt (tensor (normalMatrix 1 1 3)))
                     rejects "of another type" [ "gradient 0"; "Float64"; "Float32" ] (fun () ->
                         attempt (torch.zeros (2L, 3L, device = device)))
                     rejects "on another device" [ "gradient 0"; string device; "meta" ] (fun () ->
                         attempt (onMeta (tensor (normalMatrix 1 2 3))))
                     if hasKernels then
                         rejects "that are sparse" [ "gradient 0"; "dense"; "sparse" ] (fun () ->
                             attempt ((Array.head (example ())).to_sparse()))
                 ])

            testCase "steps on the meta device, with every option" (fun () ->
                Scope.run (fun () ->
                    let options =
                        { Adam.defaults with
                            AmsGrad = true
                            WeightDecay = 0.1
                        }

                    let ps = example () |> Array.map onMeta
                    let t = Adam.transform 0.1 options
                    let struct (stepped, state) = Transform.step t [| Some ps[0] |] (t.Init ps) ps
                    Seq.iter (expectMeta [ 2L; 3L ]) (Seq.append stepped (t.Tree.Leaves state))))

            (let amsgrad =
                Adam.transform
                    0.1
                    { Adam.defaults with
                        AmsGrad = true
                        WeightDecay = 0.1
                    }

             noLeaks "init" example (fun ps -> amsgrad.Tree.Leaves(amsgrad.Init ps)))

            (let amsgrad =
                Adam.transform
                    0.1
                    { Adam.defaults with
                        AmsGrad = true
                        WeightDecay = 0.1
                    }

             noLeaks "a step" (fun () -> let ps = example () in ps, amsgrad.Init ps) (fun (ps, state) ->
                 let struct (stepped, next) = Transform.step amsgrad [| Some ps[0] |] state ps
                 Seq.append stepped (amsgrad.Tree.Leaves next)))
        ]
