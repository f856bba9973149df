module LoRASub.Tests.TransformTests

open LoRASub.Core
open LoRASub.Train
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Transform" name law

type Arrays =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 5)>]
        Parameters: int
        [<Between(1, 4)>]
        Rows: int
        [<Between(1, 4)>]
        Columns: int
        [<Between(-3, 3)>]
        Factor: int
    }

    member c.Make offset =
        Array.init c.Parameters (fun i -> tensor (normalMatrix (c.Seed + offset + i) c.Rows c.Columns))

    /// Some gradients are missing.
    member c.Gradients: Gradients =
        c.Make 100
        |> Array.mapi (fun i g -> if (c.Seed >>> i) % 3 = 0 then None else Some g)

let private run (transform: Transform<'S>) (gradients: Gradients) parameters =
    let struct (updates, _) =
        transform.Update gradients (transform.Init parameters) parameters

    updates

let private sameUpdates what (expected: Gradients) (actual: Gradients) =
    Expect.equal (Array.map Option.isSome actual) (Array.map Option.isSome expected) $"{what}: which"

    for e, a in Array.zip expected actual do
        Option.map2 (closeTensors what) e a |> Option.defaultValue ()

let private pair () =
    [| tensor (normalMatrix 1 2 3); tensor (normalMatrix 2 2 3) |]

let private scale (factor: float) =
    Transform.stateless (fun _ update _ -> update.mul (Scalar.op_Implicit factor))

let private adam = Adam.transform 0.1 Adam.defaults

let private owned (given: torch.Tensor[]) struct (parameters: torch.Tensor[], state) (leaves: Leaves<'S>) =
    Seq.append parameters (leaves state)
    |> Seq.filter (fun t -> not (Array.exists (fun g -> obj.ReferenceEquals(g, t)) given))

[<Tests>]
let tests =
    testList
        "Transform"
        [
            property "a stateless one maps each update, missing gradients stay missing" (fun (c: Arrays) ->
                let expected =
                    c.Gradients
                    |> Array.map (Option.map (fun g -> g.mul (Scalar.op_Implicit (float c.Factor))))

                sameUpdates "scale" expected (run (scale (float c.Factor)) c.Gradients (c.Make 0)))

            property "chain feeds the first's updates to the second" (fun (c: Arrays) ->
                let parameters = c.Make 0

                let first, second = Adam.transform 0.1 Adam.defaults, scale (float c.Factor)

                let expected = run second (run first c.Gradients parameters) parameters
                sameUpdates "chain" expected (run (Transform.chain first second) c.Gradients parameters))

            property "chain is associative" (fun (c: Arrays) ->
                let a, b, d = scale 2.0, Adam.transform 0.1 Adam.defaults, scale (float c.Factor)

                let left = run (Transform.chain (Transform.chain a b) d) c.Gradients (c.Make 0)

                sameUpdates
                    "grouping"
                    left
                    (run (Transform.chain a (Transform.chain b d)) c.Gradients (c.Make 0)))

            property "partition gives each parameter its group's transformation, in place" (fun (c: Arrays) ->
                let groupOf = integers c.Seed 3 c.Parameters // some groups may be empty
                let factors = [| 1.0; -2.0; 0.5 |]

                let expected =
                    c.Gradients
                    |> Array.mapi (fun i g ->
                        g |> Option.map (fun g -> g.mul (Scalar.op_Implicit factors[groupOf[i]])))

                let actual =
                    run (Transform.partition groupOf (Array.map scale factors)) c.Gradients (c.Make 0)

                sameUpdates "partition" expected actual)

            property "a partition of one group is that group, over several steps" (fun (c: Arrays) ->
                let steps (transform: Transform<'S>) =
                    (struct (c.Make 0, transform.Init(c.Make 0)), [ 1..3 ])
                    ||> List.fold (fun (struct (ps, state)) _ ->
                        Transform.step transform c.Gradients state ps)
                    |> fun struct (ps, _) -> ps

                let expected = steps adam

                Array.iter2
                    (closeTensors "parameter")
                    expected
                    (steps (Transform.partition (Array.zeroCreate c.Parameters) [| adam |])))

            property
                "step adds the updates; without one the parameter is returned as it is"
                (fun (c: Arrays) ->
                    let parameters = c.Make 0
                    let before = parameters |> Array.map _.clone()

                    let struct (stepped, ()) = Transform.step (scale -1.0) c.Gradients () parameters

                    for i in 0 .. c.Parameters - 1 do
                        match c.Gradients[i] with
                        | Some g -> closeTensors "p − g" (before[i].sub g) stepped[i]
                        | None ->
                            Expect.isTrue (obj.ReferenceEquals(stepped[i], parameters[i])) "the same tensor"

                        identical "the argument" before[i] parameters[i])

            testCase "step records no graph" (fun () ->
                Scope.run (fun () ->
                    let p = (tensor (normalMatrix 1 2 3)).requires_grad_()

                    let struct (stepped, _) =
                        Transform.step adam [| Some(p.detach ()) |] (adam.Init [| p |]) [| p |]

                    Expect.isFalse stepped[0].requires_grad "detached"))

            rejects "fewer gradients than parameters" [ "gradients"; "must be 2"; "found 1" ] (fun () ->
                Transform.step adam [| None |] (adam.Init(pair ())) (pair ()) |> ignore)

            rejects "a group that does not exist" [ "group of parameter 1"; "[0, 0]"; "1" ] (fun () ->
                Transform.partition [| 0; 1 |] [| adam |] |> ignore)

            rejects
                "a partition of another number of parameters"
                [ "parameters"; "must be 3"; "found 2" ]
                (fun () ->
                    let split = Transform.partition [| 0; 0; 0 |] [| adam |]
                    split.Init(pair ()) |> ignore)

            noLeaks "step" (fun () -> let ps = pair () in ps, adam.Init ps) (fun (ps, state) ->
                let result = Transform.step adam [| Some ps[0]; None |] state ps
                // a parameter without a gradient keeps its tensors, which are not new
                owned (Array.ofSeq (Seq.append ps (adam.Tree.Leaves state))) result adam.Tree.Leaves)

            (let split = Transform.partition [| 1; 0 |] [| adam; adam |]

             noLeaks
                 "step of a partition"
                 (fun () -> let ps = pair () in ps, split.Init ps)
                 (fun (ps, state) ->
                     owned ps (Transform.step split [| Some ps[0]; Some ps[1] |] state ps) split.Tree.Leaves))
        ]
