/// What every head must keep to, whatever it computes.
module LoRASub.Tests.HeadContractTests

open System
open System.Collections.Generic
open LoRASub.Core
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private width = 5
let private classes = 3

/// Embeddings and rows of `images` images, each class at least twice.
let private batch (seed: int) (images: int) =
    let rows = Array.init images (fun i -> i % classes)
    let noise = normalMatrix seed images width

    // classes apart, so that a head can tell them
    let embeddings =
        noise |> Array2D.mapi (fun i j x -> x + (if j = rows[i] then 6.0 else 0.0))

    struct (embeddings, rows)

let private empty (head: AnyHead) =
    head.Zero (int64 width) torch.ScalarType.Float64 device |> head.Grow classes

let private observe (head: AnyHead) (struct (embeddings, rows)) state =
    head.Observe (tensor embeddings) (labelTensor rows) state

let private scores (head: AnyHead) state (struct (embeddings, _)) : float[,] =
    matrix ((head.Scores state).Score(tensor embeddings))

let private same (what: string) (expected: float[,]) (actual: float[,]) =
    closeTo 1e-7 what (Seq.cast<float> expected) (Seq.cast<float> actual)

let private part first count (struct (embeddings: float[,], rows: int[])) =
    struct (embeddings[first .. first + count - 1, *], Array.sub rows first count)

let private bits (tensors: torch.Tensor seq) =
    tensors |> Seq.map Probe.bytesOf |> Array.ofSeq

let private inScope (test: unit -> unit) () = Scope.run test

/// The laws of a head.
let contract (head: AnyHead) : Test =
    let all = batch 1 24
    let test = batch 2 9
    let learned () = empty head |> observe head all

    testList
        head.Info.Name
        [
            testCase
                "classes that are apart are told apart"
                (inScope (fun () ->
                    let struct (embeddings, rows) = test
                    let found = (head.Scores(learned ())).Score(tensor embeddings)
                    Expect.equal found.shape [| 9L; int64 classes |] "one score per image and class"
                    Expect.equal (wholeNumbers (Scorer.best found)) (Array.map int64 rows) "predictions"))

            testCase
                "neither batches nor their order matter"
                (inScope (fun () ->
                    let expected = scores head (learned ()) test

                    for cut in [ 1; 7; 23 ] do
                        let first, second = part 0 cut all, part cut (24 - cut) all
                        let forth = empty head |> observe head first |> observe head second
                        let back = empty head |> observe head second |> observe head first
                        same $"cut at {cut}" expected (scores head forth test)
                        same $"cut at {cut}, backwards" expected (scores head back test)))

            testCase
                "merging is associative and commutative, and equals one pass"
                (inScope (fun () ->
                    let a, b, c = part 0 9 all, part 9 6 all, part 15 9 all
                    let of' x = empty head |> observe head x
                    let whole = scores head (learned ()) test
                    let merged left right = head.Merge left right
                    same "left" whole (scores head (merged (merged (of' a) (of' b)) (of' c)) test)
                    same "right" whole (scores head (merged (of' a) (merged (of' b) (of' c))) test)
                    same "turned" whole (scores head (merged (of' c) (merged (of' b) (of' a))) test)
                    same "with nothing" whole (scores head (merged (learned ()) (empty head)) test)))

            testCase
                "classes may arrive one after the other"
                (inScope (fun () ->
                    let struct (embeddings, rows) = all

                    let ofRow row =
                        let mine = [| 0..23 |] |> Array.filter (fun i -> rows[i] = row)
                        struct (pick mine embeddings, Array.create mine.Length row)

                    let mutable state = head.Zero (int64 width) torch.ScalarType.Float64 device

                    for row in 0 .. classes - 1 do
                        state <- head.Grow 1 state |> observe head (ofRow row)

                    same "scores" (scores head (learned ()) test) (scores head state test)))

            testCase
                "a forgotten class leaves the others in their order"
                (inScope (fun () ->
                    let without = head.Forget 1 (learned ())
                    let struct (embeddings, rows) = test
                    let found = (head.Scores without).Score(tensor embeddings)
                    Expect.equal found.shape [| 9L; 2L |] "one score less"

                    Array.iter2
                        (fun row predicted ->
                            if row <> 1 then
                                Expect.equal predicted (if row = 0 then 0L else 1L) "prediction")
                        rows
                        (wholeNumbers (Scorer.best found))

                    Expect.isLessThan
                        (Tree.bytes head.Tree without)
                        (Tree.bytes head.Tree (learned ()))
                        "bytes"))

            testCase
                "a saved state scores as before"
                (inScope (fun () ->
                    let state = learned ()

                    let saved =
                        Tree.write head.Tree state
                        |> List.map (fun (name, tensor) -> name, tensor.clone ())
                        |> Map.ofList

                    let loaded = Tree.read head.Tree "the copies" saved
                    Expect.isTrue (Tree.equal head.Tree state loaded) "state"
                    repeated "scores" (tensor (scores head state test)) (tensor (scores head loaded test))))

            testCase
                "no function changes its arguments, and each owns its result alone"
                (inScope (fun () ->
                    let state, other = learned (), learned ()
                    let struct (embeddings, rows) = all
                    let x, y = tensor embeddings, labelTensor rows
                    let scorer = head.Scores state

                    let given =
                        [|
                            x
                            y
                            yield! Hidden.leaves state
                            yield! Hidden.leaves other
                            yield! Scorer.leaves scorer
                        |]

                    let calls: (string * (unit -> torch.Tensor seq)) list =
                        [
                            "Zero", (fun () -> Hidden.leaves (empty head))
                            "Grow", (fun () -> Hidden.leaves (head.Grow 2 state))
                            "Observe", (fun () -> Hidden.leaves (head.Observe x y state))
                            "Merge", (fun () -> Hidden.leaves (head.Merge state other))
                            "Forget", (fun () -> Hidden.leaves (head.Forget 0 state))
                            "Scores", (fun () -> Scorer.leaves (head.Scores state))
                            "Score", (fun () -> Seq.singleton (scorer.Score x))
                        ]

                    for name, call in calls do
                        let before = bits given

                        let struct (result, fresh) =
                            Probe.counting (fun () ->
                                Scope.keep Leaves.tensors (fun () -> Array.ofSeq (call ())))

                        Expect.equal (bits given) before $"{name}: arguments"
                        let owned = HashSet<torch.Tensor>(result, HashIdentity.Reference)
                        owned.ExceptWith given
                        Expect.equal fresh (int64 owned.Count) $"{name}: new tensors"))

            testCase
                "its numbers are finite in float32 as well"
                (inScope (fun () ->
                    let struct (embeddings, rows) = all

                    let state =
                        head.Zero (int64 width) torch.ScalarType.Float32 device
                        |> head.Grow classes
                        |> head.Observe ((tensor embeddings).``to`` torch.float32) (labelTensor rows)

                    let found = (head.Scores state).Score((tensor embeddings).``to`` torch.float32)

                    Expect.all (numbers (found.``to`` torch.float64)) Double.IsFinite "scores"))

            rejects $"{head.Info.Name}: embeddings of another width" [ "[batch, 5]"; "[2, 3]" ] (fun () ->
                head.Observe (tensor (normalMatrix 1 2 3)) (labelTensor [| 0; 1 |]) (empty head)
                |> ignore)

            rejects $"{head.Info.Name}: another head's state" [ head.Info.Name; "its own state" ] (fun () ->
                head.Grow 1 (Hidden.hide "another head" Tree.unit ()) |> ignore)
        ]

[<Tests>]
let tests =
    testList
        "HeadContract"
        [
            for row in Heads.all do
                match row.Info.Name with
                // it has no sums: its scores are a method's
                | "logits" -> ()
                // few random features, so that the tests are quick
                | name when name.StartsWith "rp-" -> contract (Heads.find $"{name}:24")
                | name -> contract (Heads.find name)

            contract (Heads.find "cosine-lda:oas")
            contract (Heads.find "cosine-lda:ratio")

            contract (Head.hide ToyHead.head)
        ]
