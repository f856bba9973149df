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

        let pairs =
            saved[1..]
            |> Array.chunkBySize 2
            |> Array.map (fun p -> {| A = p[0]; B = p[1] |})

        let part i =
            g.narrow (1L, rows[i], pairs[i].B.shape[0]) // [R, outputs]

        // one product for all pairs whose leaf is trained, split by their ranks
        let together axis (leaf: int -> torch.Tensor) (product: int[] -> torch.Tensor) =
            let asking =
                [| 0 .. pairs.Length - 1 |] |> Array.filter (fun i -> (leaf i).requires_grad)

            if Array.isEmpty asking then
                Map.empty
            else
                let ranks = asking |> Array.map (fun i -> pairs[i].A.shape[0])
                Map.ofSeq (Seq.zip asking ((product asking).split(ranks, axis)))

        // with the few rows on the left, which products are faster with
        let inner =
            together 0L (fun i -> pairs[i].B) (fun asking ->
                let a = torch.cat([| for i in asking -> pairs[i].A |]).``to`` x.dtype // [Σr, inputs]
                a.mm (x.t ())) // [Σr, R]

        let dA =
            together 0L (fun i -> pairs[i].A) (fun asking ->
                let back = [| for i in asking -> (part i).mm(pairs[i].B.``to`` x.dtype) |] // [R, r] each
                torch.cat(back, 1L).t().mm x) // [Σr, inputs]

        let orNull (t: torch.Tensor option) =
            match t with
            | Some t -> t.``to`` saved[1].dtype
            | None -> null

        [|
            null
            gradient
            null
            for i in 0 .. pairs.Length - 1 do
                orNull (Map.tryFind i dA)
                orNull (Map.tryFind i inner |> Option.map (fun inner -> inner.mm(part i).t())) // [outputs, r]
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
