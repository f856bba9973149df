namespace LoRASub.Backbone

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open TorchSharp

/// A weight of a block that can carry a low-rank delta.
[<RequireQualifiedAccess>]
type Site =
    | Query
    | Key
    | Value
    /// The output projection of attention.
    | Projection
    | Fc1
    | Fc2

[<RequireQualifiedAccess>]
module Site =

    /// The rows of the fused weight, in their order.
    let internal fused = [ Site.Query; Site.Key; Site.Value ]

    /// The weights that stand on their own.
    let internal others = [ Site.Projection; Site.Fc1; Site.Fc2 ]

    /// All of them.
    let all: Site list = fused @ others

    /// <summary>The name of a site in saved files and in errors.</summary>
    /// <param name="site">The site.</param>
    /// <returns>Its name in lower case.</returns>
    let name (site: Site) : string =
        match site with
        | Site.Query -> "query"
        | Site.Key -> "key"
        | Site.Value -> "value"
        | Site.Projection -> "projection"
        | Site.Fc1 -> "fc1"
        | Site.Fc2 -> "fc2"

/// A low-rank pair: its weight delta is B·A. No α/r scaling, no bias.
[<ReferenceEquality>]
type LoraPair =
    {
        /// [r, inputs]: reads from the input.
        A: torch.Tensor
        /// [outputs, r]: writes to the output.
        B: torch.Tensor
    }

/// The pairs of one block.
type LayerLora = Map<Site, LoraPair>

/// The summed deltas B·A of finished tasks in one block, [outputs, inputs] each.
type LayerDelta = Map<Site, torch.Tensor>

/// How B starts in each task.
[<RequireQualifiedAccess>]
type BInit =
    /// All zeros: the network starts where the last task left it (LibContinual).
    | Zeros
    /// One entry per column from N(0, 0.01²) (the authors' code).
    | Sparse

[<RequireQualifiedAccess>]
module Lora =

    /// <summary>The tensors of a pair: `a` and `b`.</summary>
    let pairTree: Tree<LoraPair> =
        tree {
            let! a = Tree.field "a" _.A Tree.tensor
            and! b = Tree.field "b" _.B Tree.tensor
            return { A = a; B = b }
        }

    /// <summary>The tensors of one block's deltas.</summary>
    /// <param name="sites">The sites that are read from a file.</param>
    /// <returns>A tree of one tensor per site, under the site's name.</returns>
    let deltaTree (sites: Site list) : Tree<LayerDelta> = Tree.keyed Site.name sites Tree.tensor

    /// <summary>The tensors of one block's pairs.</summary>
    /// <param name="sites">The sites that are read from a file.</param>
    /// <returns>A tree of A, then B per site, under the site's name.</returns>
    let tree (sites: Site list) : Tree<LayerLora> = Tree.keyed Site.name sites pairTree

    /// The sites of LoRA-Sub-DRS.
    let keyValue = [ Site.Key; Site.Value ]

    /// <summary>Lists the tensors of one block's pairs.</summary>
    let leaves: Leaves<LayerLora> = (tree []).Leaves

    /// <summary>Lists the tensors of one block's deltas.</summary>
    let deltaLeaves: Leaves<LayerDelta> = (deltaTree []).Leaves

    /// Rejects a rank outside [1, width].
    let internal checkRank (width: int64) (rank: int) =
        if rank < 1 || int64 rank > width then
            Errors.reject "rank" $"must be in [1, {width}], the width of what it adapts" $"{rank}" ""

    /// <summary>A fresh pair: A from U(−1/√inputs, 1/√inputs), which is Kaiming uniform with a = √5.</summary>
    /// <param name="bInit">How B starts.</param>
    /// <param name="rank">r, at most the smaller side of the weight.</param>
    /// <param name="shape">Of the adapted weight: [outputs, inputs].</param>
    /// <param name="dtype">The type of both.</param>
    /// <param name="device">The device of both.</param>
    /// <param name="key">The random key.</param>
    /// <returns>The pair, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A rank outside its bounds.</exception>
    let initPair (bInit: BInit) (rank: int) (shape: int64[]) dtype device (key: RandomKey) : LoraPair =
        let outputs, inputs = shape[0], shape[1]
        checkRank (min outputs inputs) rank
        let bound = 1.0 / sqrt (float inputs)

        let a =
            Rng.uniform -bound bound [| int64 rank; inputs |] dtype device (Rng.fold 0L key)

        let b = torch.zeros ([| outputs; int64 rank |], dtype = dtype, device = device)

        match bInit with
        | BInit.Zeros -> ()
        | BInit.Sparse ->
            Scope.run (fun () ->
                let row = Rng.integers outputs [| 1L; int64 rank |] device (Rng.fold 1L key)
                let entry = Rng.normal [| 1L; int64 rank |] dtype device (Rng.fold 2L key)
                b.scatter_ (0L, row, entry.mul (Number.Of 0.01)) |> ignore)

        { A = a; B = b }

    // The child of a block's random key; none may change, for it would change every run.
    let private branch (site: Site) =
        match site with
        | Site.Key -> 0L
        | Site.Value -> 1L
        | Site.Query -> 2L
        | Site.Projection -> 3L
        | Site.Fc1 -> 4L
        | Site.Fc2 -> 5L

    /// <summary>Fresh pairs for one block, each from a random stream of its own.</summary>
    /// <param name="bInit">How B starts.</param>
    /// <param name="rank">r of each pair.</param>
    /// <param name="shapes">Of the adapted weights, as `Block.shapes` gives them.</param>
    /// <param name="dtype">The type of the pairs.</param>
    /// <param name="device">Their device.</param>
    /// <param name="key">The block's random key.</param>
    /// <returns>One pair per site, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A rank above the smaller side of a weight, or below 1.</exception>
    let init bInit rank (shapes: Map<Site, int64[]>) dtype device key : LayerLora =
        shapes
        |> Map.map (fun site shape -> initPair bInit rank shape dtype device (Rng.fold (branch site) key))

    /// <summary>The delta of a pair.</summary>
    /// <param name="pair">A [r, inputs] and B [outputs, r], borrowed.</param>
    /// <returns>B·A, [outputs, inputs], owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A and B of different ranks, types or devices.</exception>
    let delta (pair: LoraPair) : torch.Tensor =
        Shape.expect "LoRA's A" [ Axis.Any "rank"; Axis.Any "inputs" ] pair.A
        Shape.expect "LoRA's B" [ Axis.Any "outputs"; Axis.Is pair.A.shape[0] ] pair.B
        Shape.expectLike "LoRA's B" pair.A pair.B
        pair.B.mm pair.A

    /// <summary>The deltas of no task.</summary>
    /// <param name="shapes">Of the adapted weights, as `Block.shapes` gives them.</param>
    /// <param name="dtype">The type of the deltas.</param>
    /// <param name="device">Their device.</param>
    /// <returns>Zeros per site, owned by the caller.</returns>
    let noDelta (shapes: Map<Site, int64[]>) (dtype: torch.ScalarType) (device: torch.Device) : LayerDelta =
        shapes
        |> Map.map (fun _ shape -> torch.zeros (shape, dtype = dtype, device = device))

    /// <summary>V + B·A at each site: how a finished task joins the earlier ones.</summary>
    /// <param name="lora">The pairs of the finished task, borrowed.</param>
    /// <param name="merged">V, the deltas of the earlier tasks, for the same sites; borrowed.</param>
    /// <returns>The deltas of all of them, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Other sites, or a pair of another shape, type or device than its
    /// delta.</exception>
    let merge (lora: LayerLora) (merged: LayerDelta) : LayerDelta =
        let names sites =
            sites |> Seq.map Site.name |> String.concat ", "

        if List.ofSeq lora.Keys <> List.ofSeq merged.Keys then
            Errors.reject
                "finished pairs"
                $"must be on the sites of the deltas, {names merged.Keys}"
                (names lora.Keys)
                ""

        Scope.noGrad deltaLeaves (fun () ->
            merged
            |> Map.map (fun site merged ->
                let subject = $"delta of the finished {Site.name site} pair"
                let delta = delta lora[site]
                Shape.expect subject [ for n in merged.shape -> Axis.Is n ] delta
                Shape.expectLike subject merged delta
                merged.plus delta))
