namespace LoRASub.Backbone

open System.Collections.Generic
open LoRASub.Core
open TorchSharp

/// Hands a product's output through and, on the way back, gives low-rank pairs their gradients: with g the gradient of a
/// pair's rows, ∂A = (g·B)ᵀ·x and ∂B = gᵀ·(x·Aᵀ), so that none of the weight's size is formed.
type internal PairGradient() =
    inherit CustomFunction<PairGradient>()

    // the first output row of each pair, y, x, then A and B of each pair
    override _.Value(ctx, arguments) =
        let tensors = arguments[1..] |> Array.map (fun t -> t :?> torch.Tensor)
        ctx.save_data ("rows", arguments[0])
        ctx.save_for_backward (List tensors[1..])
        tensors[0].detach()

    override _.Gradients(ctx, saved, gradient) =
        let rows = ctx.get_data "rows" :?> int64[]
        let flat (t: torch.Tensor) = t.reshape (-1L, Array.last t.shape)
        let x, g = flat saved[0], flat gradient // [R, inputs], [R, outputs of all rows]

        let a, b =
            saved[1..]
            |> Array.chunkBySize 2
            |> Array.map (fun p -> p[0], p[1])
            |> Array.unzip

        // `to` makes another handle even where the type is the same
        let like (other: torch.Tensor) (t: torch.Tensor) =
            if t.dtype = other.dtype then t else t.``to`` other.dtype

        let parts =
            Array.map2 (fun row (b: torch.Tensor) -> g.narrow (1L, row, b.shape[0])) rows b // [R, outputs] each

        // One product for all pairs whose leaf is trained, split by rank. Null for the other pairs.
        let together (leaves: torch.Tensor[]) (product: int[] -> torch.Tensor) : torch.Tensor[] =
            let asking =
                [| 0 .. leaves.Length - 1 |] |> Array.filter (fun i -> leaves[i].requires_grad)

            let found = Array.create leaves.Length null

            if not (Array.isEmpty asking) then
                let ranks = asking |> Array.map (fun i -> a[i].shape[0])
                Array.iter2 (fun i part -> found[i] <- part) asking ((product asking).split(ranks, 0L))

            found

        // with the few rows on the left, which products are faster with
        let inner =
            together b (fun asking ->
                let a = torch.cat ([| for i in asking -> a[i] |], 0L) |> like x // [Σr, inputs]
                a.mm (x.t ())) // [Σr, R]

        let dA =
            together a (fun asking ->
                let back = [| for i in asking -> parts[i].mm(like x b[i]) |] // [R, r] each
                torch.cat(back, 1L).t().mm x) // [Σr, inputs]

        [|
            null
            gradient
            null
            for i in 0 .. a.Length - 1 do
                if isNull dA[i] then null else like a[i] dA[i]

                if isNull inner[i] then
                    null
                else
                    like b[i] (inner[i].mm(parts[i]).t()) // [outputs, r]
        |]

/// Low-rank pairs in training on rows of a frozen weight.
[<RequireQualifiedAccess>]
module LowRank =

    /// <summary>Makes the output of a product with a merged weight a function of the pairs, whose deltas it holds
    /// already.</summary>
    /// <param name="pairs">Each pair with its first row among the outputs; borrowed.</param>
    /// <param name="x">The input [.., inputs], borrowed.</param>
    /// <param name="y">The output [.., outputs], borrowed.</param>
    /// <returns>y, with gradients for those A and B that require them. Differentiable once.</returns>
    let train (pairs: (int64 * LoraPair) list) (x: torch.Tensor) (y: torch.Tensor) : torch.Tensor =
        if List.isEmpty pairs then
            y
        else
            PairGradient.Of
                [|
                    box (pairs |> List.map fst |> Array.ofList)
                    y
                    x
                    for _, pair in pairs do
                        pair.A
                        pair.B
                |]
