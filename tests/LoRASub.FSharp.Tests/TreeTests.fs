module LoRASub.Tests.TreeTests

open LoRASub.Core
open Expecto
open TorchSharp
open LoRASub.Tests.Generators
open LoRASub.Tests.Check

type Inner =
    {
        Weight: torch.Tensor
        Bias: torch.Tensor option
    }

/// One of everything that a state holds.
[<ReferenceEquality>]
type Outer =
    {
        Name: string
        Steps: int64
        Epoch: int
        Energy: float
        Counts: int64[]
        Layers: Inner[]
        Pair: struct (torch.Tensor * unit)
        /// The sum of the weights.
        Total: torch.Tensor
    }

let private innerTree: Tree<Inner> =
    tree {
        let! weight = Tree.field "weight" _.Weight Tree.tensor
        and! bias = Tree.field "bias" _.Bias (Tree.option Tree.tensor)
        return { Weight = weight; Bias = bias }
    }

let private outerTree name (total: unit -> torch.Tensor) : Tree<Outer> =
    tree {
        let! name = Tree.given _.Name name
        and! steps = Tree.field "steps" _.Steps Tree.int64
        and! epoch = Tree.field "epoch" _.Epoch Tree.int
        and! energy = Tree.field "energy" _.Energy Tree.float
        and! counts = Tree.field "counts" _.Counts Tree.int64s
        and! layers = Tree.field "layers" _.Layers (Tree.array innerTree)

        and! pair =
            Tree.field "pair" _.Pair (Tree.pair "tensor" Tree.tensor "nothing" Tree.unit)

        and! total = Tree.computed _.Total Tree.tensor total

        return
            {
                Name = name
                Steps = steps
                Epoch = epoch
                Energy = energy
                Counts = counts
                Layers = layers
                Pair = pair
                Total = total
            }
    }

let private make (layers: bool list) (steps: int64) (energy: float) : Outer =
    let tensor i = torch.tensor [| float32 i; 1.0f |]

    {
        Name = "outer"
        Steps = steps
        Epoch = int (steps % 7L)
        Energy = energy
        Counts = Array.init layers.Length int64
        Layers =
            layers
            |> List.mapi (fun i hasBias ->
                {
                    Weight = tensor i
                    Bias = if hasBias then Some(tensor (-i)) else None
                })
            |> Array.ofList
        Pair = struct (tensor 9, ())
        Total = tensor 5
    }

/// Each bit of `Biases` says whether a layer has one.
type Case =
    {
        [<Between(0, 5)>]
        Layers: int
        [<Between(0, 31)>]
        Biases: int
        [<Between(-1000000, 1000000)>]
        Number: int
    }

    member c.Value =
        make
            [ for i in 0 .. c.Layers - 1 -> c.Biases >>> i &&& 1 = 1 ]
            (int64 c.Number)
            (1.0 / float c.Number)

let private whole = outerTree "outer" (fun () -> torch.tensor [| 5.0f; 1.0f |])

let private read named =
    Tree.read whole "the file" (Map.ofList named)

[<Tests>]
let tests =
    testList
        "Tree"
        [
            propertyOf 60 "Tree" "what is written is read back, bit for bit" (fun (c: Case) ->
                Scope.run (fun () ->
                    let value = c.Value
                    let again = read (Tree.write whole value)
                    Expect.isTrue (Tree.equal whole value again) "equal trees"
                    Expect.equal (again.Name, again.Epoch) (value.Name, value.Epoch) "given, and a number"
                    Expect.equal (Probe.bytesOf again.Total) (Probe.bytesOf value.Total) "computed again"))

            propertyOf 60 "Tree" "leaves, map and withLeaves agree on tensors and order" (fun (c: Case) ->
                Scope.run (fun () ->
                    let value = c.Value
                    let mapped = Tree.map (fun t -> t.add (Scalar.op_Implicit 1.0f)) whole value
                    let expected = [| for t in whole.Leaves value -> t.add (Scalar.op_Implicit 1.0f) |]
                    let replaced = Tree.withLeaves whole expected value

                    Expect.equal
                        (whole.Leaves mapped |> Seq.map Probe.bytesOf |> List.ofSeq)
                        (expected |> Seq.map Probe.bytesOf |> List.ofSeq)
                        "map"

                    Seq.iter2
                        (fun (a: torch.Tensor) b -> Expect.isTrue (obj.ReferenceEquals(a, b)) "withLeaves")
                        expected
                        (whole.Leaves replaced)

                    Expect.equal replaced.Steps value.Steps "numbers stay"))

            testCase "leaves are the tensors written, and the computed ones" (fun () ->
                Scope.run (fun () ->
                    let value = make [ true; false ] 1L 1.0
                    let written = Tree.write whole value |> List.map snd

                    let isWritten t =
                        written |> List.exists (fun w -> obj.ReferenceEquals(w, t))

                    let leaves = List.ofSeq (whole.Leaves value)
                    Expect.equal leaves.Length 5 "3 of the layers, 1 of the pair, 1 computed"

                    Expect.equal
                        (leaves |> List.filter (isWritten >> not))
                        [ value.Total ]
                        "all but the computed one"))

            testCase "names are paths" (fun () ->
                Scope.run (fun () ->
                    Expect.equal
                        (Tree.write whole (make [ false; true ] 1L 1.0) |> List.map fst)
                        [
                            "steps"
                            "epoch"
                            "energy"
                            "counts"
                            "layers.0.weight"
                            "layers.1.weight"
                            "layers.1.bias"
                            "pair.tensor"
                        ]
                        "in the order of the fields"))

            testCase "a state that differs in one bit, one shape or one name is not equal" (fun () ->
                Scope.run (fun () ->
                    let value = make [ true ] 1L 1.0
                    let layer = value.Layers[0]

                    let withWeight weight =
                        { value with
                            Layers = [| { layer with Weight = weight } |]
                        }

                    for what, other in
                        [
                            "a bit", withWeight (layer.Weight.add (Scalar.op_Implicit 1e-7f))
                            "the shape", withWeight (layer.Weight.unsqueeze 0L)
                            "the type", withWeight (layer.Weight.``to`` torch.float64)
                            "a name",
                            { value with
                                Layers = [| { layer with Bias = None } |]
                            }
                            "a number", { value with Steps = 2L }
                        ] do
                        Expect.isFalse (Tree.equal whole value other) what))

            testList
                "refused"
                [
                    for name in [ "steps"; "counts"; "layers.1.weight"; "pair.tensor" ] do
                        rejects $"a missing {name}" [ "the file"; name; "no such tensor" ] (fun () ->
                            Scope.run (fun () ->
                                Tree.write whole (make [ true; true; true ] 1L 1.0)
                                |> List.filter (fun (n, _) -> n <> name)
                                |> read
                                |> ignore))
                ]

            noLeaks "reading" (fun () -> Tree.write whole (make [ true ] 1L 1.0)) (fun named ->
                whole.Leaves(read named)
                |> Seq.filter (fun t -> not (List.exists (fun (_, n) -> obj.ReferenceEquals(t, n)) named)))
        ]
