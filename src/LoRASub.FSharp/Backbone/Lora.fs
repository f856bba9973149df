namespace LoRASub.Backbone

open LoRASub.Core
open LoRASub.Train
open TorchSharp

/// A low-rank pair: its weight delta is B·A. No α/r scaling, no bias.
[<ReferenceEquality>]
type LoraPair =
    {
        /// [r, d]: reads from the input.
        A: torch.Tensor
        /// [d, r]: writes to the output.
        B: torch.Tensor
    }

/// The pairs on the key and the value projection of one block.
type LayerLora = { Key: LoraPair; Value: LoraPair }

/// The summed deltas B·A of finished tasks on the key and the value projection of one block, [d, d] each.
[<ReferenceEquality>]
type LayerDelta =
    {
        Key: torch.Tensor
        Value: torch.Tensor
    }

/// How B starts in each task.
[<RequireQualifiedAccess>]
type BInit =
    /// All zeros: the network starts where the last task left it (LibContinual).
    | Zeros
    /// One entry per column from N(0, 0.01²) (the authors' code).
    | Sparse

[<RequireQualifiedAccess>]
module Lora =

    let pairTree: Tree<LoraPair> =
        tree {
            let! a = Tree.field "a" _.A Tree.tensor
            and! b = Tree.field "b" _.B Tree.tensor
            return { A = a; B = b }
        }

    let deltaTree: Tree<LayerDelta> =
        tree {
            let! key = Tree.field "key" (fun (d: LayerDelta) -> d.Key) Tree.tensor
            and! value = Tree.field "value" (fun (d: LayerDelta) -> d.Value) Tree.tensor
            return { Key = key; Value = value }
        }

    let tree: Tree<LayerLora> =
        tree {
            let! key = Tree.field "key" (fun (l: LayerLora) -> l.Key) pairTree
            and! value = Tree.field "value" (fun (l: LayerLora) -> l.Value) pairTree
            return { Key = key; Value = value }
        }

    /// The projected side of each leaf of `tree`, in order: A reads from the retained space, B writes into it.
    let sides = [ Side.Right; Side.Left; Side.Right; Side.Left ]

    let leaves = tree.Leaves
    let deltaLeaves = deltaTree.Leaves

    /// Rejects a rank outside [1, width].
    let checkRank (width: int64) (rank: int) =
        if rank < 1 || int64 rank > width then
            Errors.reject "rank" $"must be in [1, {width}], the backbone's width" $"{rank}" ""

    /// A fresh pair: A ~ U(−1/√d, 1/√d) (Kaiming uniform with a = √5), B as in `bInit`. Owned by the caller.
    let initPair (bInit: BInit) (rank: int) (width: int64) dtype device (key: RandomKey) : LoraPair =
        checkRank width rank
        let bound = 1.0 / sqrt (float width)

        let a =
            Rng.uniform -bound bound [| int64 rank; width |] dtype device (Rng.fold 0L key)

        let b = torch.zeros ([| width; int64 rank |], dtype = dtype, device = device)

        match bInit with
        | BInit.Zeros -> ()
        | BInit.Sparse ->
            Scope.run (fun () ->
                let row = Rng.integers width [| 1L; int64 rank |] device (Rng.fold 1L key)
                let entry = Rng.normal [| 1L; int64 rank |] dtype device (Rng.fold 2L key)
                b.scatter_ (0L, row, entry.mul (Scalar.op_Implicit 0.01)) |> ignore)

        { A = a; B = b }

    /// Fresh pairs for one block. Owned by the caller.
    let init bInit rank width dtype device key : LayerLora =
        {
            Key = initPair bInit rank width dtype device (Rng.fold 0L key)
            Value = initPair bInit rank width dtype device (Rng.fold 1L key)
        }

    /// B·A, [d, d]. Owned by the caller.
    let delta (pair: LoraPair) : torch.Tensor =
        let r, d = pair.A.shape[0], pair.A.shape[1]
        Shape.expect "LoRA's B" [ Axis.Is d; Axis.Is r ] pair.B
        Shape.expectLike "LoRA's B" pair.A pair.B
        pair.B.mm pair.A

    /// The deltas of no task. Owned by the caller.
    let noDelta (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : LayerDelta =
        let zeros () =
            torch.zeros ([| width; width |], dtype = dtype, device = device)

        { Key = zeros (); Value = zeros () }

    /// V + B·A for key and value: how a finished task joins the earlier ones. Owned by the caller.
    let merge (lora: LayerLora) (merged: LayerDelta) : LayerDelta =
        let add name (merged: torch.Tensor) pair =
            let delta = delta pair
            Shape.expect $"delta of the finished {name} pair" [ for n in merged.shape -> Axis.Is n ] delta
            Shape.expectLike $"delta of the finished {name} pair" merged delta
            merged.add delta

        Scope.noGrad deltaLeaves (fun () ->
            {
                Key = add "key" merged.Key lora.Key
                Value = add "value" merged.Value lora.Value
            })
