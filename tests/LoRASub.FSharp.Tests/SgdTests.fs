module LoRASub.Tests.SgdTests

open LoRASub.Train
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Sgd" name law

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
        /// In hundredths.
        [<Between(0, 99)>]
        Momentum: int
        /// In hundredths.
        [<Between(0, 20)>]
        WeightDecay: int
        /// Some gradients are missing.
        Gaps: bool
    }

    member c.Options: SgdOptions =
        {
            Momentum = float c.Momentum / 100.0
            WeightDecay = float c.WeightDecay / 100.0
        }

    member c.Start = normalMatrix c.Seed c.Rows c.Columns

    /// Each with the learning rate of its step.
    member c.Gradients =
        [
            for s in 1 .. c.Steps do
                let g = normalMatrix (c.Seed + s) c.Rows c.Columns
                0.1 / float s, (if c.Gaps && (c.Seed + s) % 3 = 0 then None else Some g)
        ]

/// The parameter after each step, number by number.
let private oracle (o: SgdOptions) (start: float[,]) gradients : float[,] list =
    let mutable w = start
    let mutable v = Array2D.map (fun _ -> 0.0) start

    [
        for rate: float, gradient in gradients do
            match gradient with
            | None -> ()
            | Some(g: float[,]) ->
                v <-
                    v
                    |> Array2D.mapi (fun i j v -> o.Momentum * v + g[i, j] + o.WeightDecay * w[i, j])

                w <- w |> Array2D.mapi (fun i j w -> w - rate * v[i, j])

            w
    ]

let private options: SgdOptions = { Momentum = 0.9; WeightDecay = 0.0 }

[<Tests>]
let tests =
    testList
        "Sgd"
        [
            property "every step ≡ the loops, at rates that change, beside another parameter" (fun (c: Run) ->
                let other = tensor (normalMatrix 7 2 2)
                let start = [| other; tensor c.Start |]
                let zero = (Sgd.transform 0.0 c.Options).Init start

                let steps =
                    (struct (start, zero), c.Gradients)
                    ||> List.scan (fun (struct (parameters, state)) (rate, g) ->
                        let transform = Sgd.transform rate c.Options
                        Transform.step transform [| Some other; Option.map tensor g |] state parameters)
                    |> List.tail

                List.iter2
                    (fun e struct (ps: torch.Tensor[], _) -> closeMatrix "parameter" e ps[1])
                    (oracle c.Options c.Start c.Gradients)
                    steps)

            property "a saved state is the state" (fun (c: Run) ->
                let transform = Sgd.transform 0.1 c.Options
                let ps = [| tensor c.Start |]

                let struct (ps, state) =
                    Transform.step transform [| Some ps[0] |] (transform.Init ps) ps

                let again =
                    LoRASub.Core.Tree.write Sgd.tree state
                    |> Map.ofList
                    |> LoRASub.Core.Tree.read Sgd.tree "the file"

                let after state =
                    let struct (ps, _) = Transform.step transform [| Some ps[0] |] state ps
                    ps[0]

                identical "parameter" (after state) (after again))

            noLeaks
                "a step"
                (fun () ->
                    let transform = Sgd.transform 0.1 options
                    let ps = [| tensor (normalMatrix 1 2 3) |]
                    transform, ps, transform.Init ps)
                (fun (transform, ps, state) ->
                    let struct (stepped, next) = Transform.step transform [| Some ps[0] |] state ps
                    Seq.append stepped next.Velocity)

            for name, words, call in
                [
                    "a negative rate", [ "learning rate"; "-1" ], (fun () -> Sgd.check -1.0 options)
                    "a momentum of 1",
                    [ "momentum"; "[0, 1)" ],
                    (fun () -> Sgd.check 0.1 { options with Momentum = 1.0 })
                    "weight decay that is no number",
                    [ "weight decay"; "NaN" ],
                    (fun () -> Sgd.check 0.1 { options with WeightDecay = nan })
                    "a gradient of another shape",
                    [ "gradient 0"; "[2, 3]"; "[3, 2]" ],
                    (fun () ->
                        let p, g = tensor (normalMatrix 1 2 3), tensor (normalMatrix 1 3 2)
                        let transform = Sgd.transform 0.1 options
                        Transform.step transform [| Some g |] (transform.Init [| p |]) [| p |] |> ignore)
                ] do
                rejects name words call
        ]
