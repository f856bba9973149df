module LoRASub.Tests.ScopeTests

open LoRASub.Core
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Scope" name law
let private one () = torch.ones 1L
let private alive (t: torch.Tensor) = not t.IsInvalid

let private add (t: torch.Tensor) (n: int) =
    t.add(Scalar.op_Implicit 1.0).add(Scalar.op_Implicit (float n - 1.0))

type Steps =
    {
        [<Between(0, 6)>]
        Count: int
        /// Which step fails; the later ones never run.
        [<Between(0, 6)>]
        Failing: int
    }

exception private Broken

let private listed (expected: torch.Tensor list) (actual: torch.Tensor seq) =
    let actual = List.ofSeq actual
    Expect.equal actual.Length expected.Length "how many"

    List.iter2
        (fun (e: torch.Tensor) a -> Expect.isTrue (obj.ReferenceEquals(e, a)) "the same object")
        expected
        actual

[<Tests>]
let tests =
    testList
        "Scope"
        [
            testCase "keep frees temporaries and keeps leaves" (fun () ->
                let mutable temporary = null

                let kept =
                    Scope.keep Leaves.tensor (fun () ->
                        temporary <- one ()
                        temporary.add temporary)

                Expect.isFalse (alive temporary) "temporary"
                Expect.equal (kept.item<single>()) 2.0f "leaf"
                kept.Dispose())

            testCase "keep hands its leaves to the enclosing scope" (fun () ->
                let inner = Scope.run (fun () -> Scope.keep Leaves.tensor one)
                Expect.isFalse (alive inner) "freed with the outer scope")

            testCase "keep leaves a borrowed leaf where it was" (fun () ->
                let free = one () // in no scope
                let result = Scope.run (fun () -> Scope.keep Leaves.tensor (fun () -> free))
                Expect.isTrue (alive result) "still its owner's"
                free.Dispose()

                let mutable outer = null

                Scope.run (fun () ->
                    outer <- one ()
                    Scope.run (fun () -> Scope.keep Leaves.tensor (fun () -> outer) |> ignore)
                    Expect.isTrue (alive outer) "two scopes further out")

                Expect.isFalse (alive outer) "freed by its own scope")

            testCase "a leaf that is listed twice is kept once" (fun () ->
                let kept = Scope.keep Leaves.tensors (fun () -> let t = one () in [| t; t |])
                Expect.isTrue (alive kept[0]) "kept"
                Scope.free Leaves.tensors kept
                Expect.isFalse (alive kept[0]) "freed")

            testCase "an exception frees everything and passes on" (fun () ->
                let mutable temporary = null

                Expect.throwsT<Broken>
                    (fun () ->
                        Scope.keep Leaves.tensor (fun () ->
                            temporary <- one ()
                            raise Broken)
                        |> ignore)
                    "passed on"

                Expect.isFalse (alive temporary) "temporary")

            testCase "noGrad records no graph, and ends with its call" (fun () ->
                Scope.run (fun () ->
                    let p = torch.ones (1L, requires_grad = true)
                    Expect.isFalse (Scope.noGrad Leaves.tensor (fun () -> p.add p)).requires_grad "inside"
                    Expect.isTrue (p.add p).requires_grad "afterwards"))

            testCase "supersede frees what no kept state holds" (fun () ->
                let shared, old, fresh = one (), one (), one ()
                Scope.supersede Leaves.tensors [ [| shared; fresh |] ] [| shared; old |]

                Expect.equal
                    (List.map alive [ shared; old; fresh ])
                    [ true; false; true ]
                    "shared, old, fresh"

                Scope.free Leaves.tensors [| shared; fresh |])

            testCase "own frees on disposal" (fun () ->
                let t = one ()
                (use _ = Scope.own Leaves.tensor t in ())
                Expect.isFalse (alive t) "freed")

            property
                "fold is List.fold, frees intermediate states and never the borrowed first"
                (fun (c: Steps) ->
                    let first = one ()
                    let seen = ResizeArray<torch.Tensor>()

                    let step (state: torch.Tensor) n =
                        seen.Add state
                        add state n

                    let last = Scope.fold Leaves.tensor step first [ 1 .. c.Count ]
                    Expect.equal (last.item<single>()) (float32 (1 + List.sum [ 1 .. c.Count ])) "value"
                    Expect.isTrue (alive first) "the first is its owner's"

                    Expect.equal
                        (Seq.filter alive seen |> Seq.length)
                        (min 1 c.Count)
                        "only the first is alive")

            property "fold keeps leaves that pass from state to state" (fun (c: Steps) ->
                let first = [| one (); one () |]
                let step (state: torch.Tensor[]) n = [| state[0]; add state[1] n |]
                let last = Scope.fold Leaves.tensors step first [ 1 .. c.Count ]
                Expect.isTrue (obj.ReferenceEquals(last[0], first[0])) "passed on"
                Expect.all (Array.append first last) alive "all alive")

            property "a step that throws leaks nothing" (fun (c: Steps) ->
                let first = one ()
                let before = torch.Tensor.TotalCount

                let step (state: torch.Tensor) n =
                    let next = add state n
                    if n > c.Failing then raise Broken else next

                try
                    (Scope.fold Leaves.tensor step first [ 1 .. c.Count ]).Dispose()
                with Broken ->
                    ()

                let expected = if c.Count = 0 then before - 1L else before // no step: the result is the first state
                Expect.equal torch.Tensor.TotalCount expected "live tensors")

            noLeaks "keep" one (fun t -> [ Scope.keep Leaves.tensor (fun () -> t.add(t).add t) ])
            noLeaks "noGrad" one (fun t -> [ Scope.noGrad Leaves.tensor (fun () -> t.add(t).add t) ])
            noLeaks "run" one (fun t ->
                Scope.run (fun () -> t.add(t).add t |> ignore)
                [])
            noLeaks "fold" one (fun t -> [ Scope.fold Leaves.tensor add t [ 1..5 ] ])
            testCase "each combinator lists its tensors in order" (fun () ->
                Scope.run (fun () ->
                    let a, b, c = torch.zeros 1L, torch.zeros 1L, torch.zeros 1L
                    listed [] (Leaves.none 7)
                    listed [ a ] (Leaves.tensor a)
                    listed [ a; b ] (Leaves.tensors [| a; b |])
                    listed [ a ] (Leaves.first Leaves.tensor (struct (a, "rest")))
                    listed [ a; b; c ] (Leaves.both Leaves.tensor Leaves.tensors (struct (a, [| b; c |])))
                    listed [ a; b; c ] (Leaves.array Leaves.tensors [| [| a; b |]; [||]; [| c |] |])
                    listed [ a ] (Leaves.option Leaves.tensor (Some a))
                    listed [] (Leaves.option Leaves.tensor None)))
        ]
