module LoRASub.Tests.LeavesTests

open Expecto
open LoRASub
open TorchSharp

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
        "Leaves"
        [
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
