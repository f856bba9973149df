namespace LoRASub.Train

open LoRASub.Core
open TorchSharp

/// The side from which a parameter's update is projected. A property of the parameter, never guessed from
/// shapes: a square parameter must work as well.
[<RequireQualifiedAccess>]
type Side =
    /// P·u, for a [d, r] parameter that writes into the projected space (LoRA's B).
    | Left
    /// u·P, for a [r, d] parameter that reads from it (LoRA's A); 4-D updates are flattened to [out, rest].
    | Right

/// What happens to one parameter's updates.
[<RequireQualifiedAccess>]
type Confinement =
    /// Updated freely.
    | Free
    /// Never updated.
    | Fixed
    /// Multiplied by a projection matrix [d, d], or by one for each block, [blocks, d, d], where the parameter holds
    /// several pairs of each: [blocks, pairs, d, r] from the left, [blocks, pairs, r, d] from the right.
    | Within of Side * torch.Tensor

/// Updates confined to retained spaces.
[<RequireQualifiedAccess>]
module Projected =

    // Each block's pairs side by side are one matrix.
    let private applyEach i (update: torch.Tensor) side (matrices: torch.Tensor) =
        let blocks, d = matrices.shape[0], matrices.shape[1]
        Shape.expect $"projection of parameter {i}" [ Axis.Is blocks; Axis.Is d; Axis.Is d ] matrices
        let subject = $"update of parameter {i}, projected for each block"

        match side with
        | Side.Left ->
            Shape.expect subject [ Axis.Is blocks; Axis.Any "pairs"; Axis.Is d; Axis.Any "r" ] update
            let pairs, r = update.shape[1], update.shape[3]
            let wide = update.transpose(1L, 2L).reshape(blocks, d, pairs * r)
            matrices.bmm(wide).reshape(blocks, d, pairs, r).transpose(1L, 2L)
        | Side.Right ->
            Shape.expect subject [ Axis.Is blocks; Axis.Any "pairs"; Axis.Any "r"; Axis.Is d ] update
            update.reshape(blocks, -1L, d).bmm(matrices).reshape update.shape

    let private apply i (update: torch.Tensor) confinement =
        match confinement with
        | Confinement.Free
        | Confinement.Fixed -> update
        | Confinement.Within(side, matrices) when matrices.dim () = 3L ->
            Shape.expectLike $"projections of parameter {i}" update matrices
            applyEach i update side matrices
        | Confinement.Within(side, matrix) ->
            Shape.expectLike $"projection of parameter {i}" update matrix

            if update.dim () = 0L then
                Errors.reject
                    $"update of parameter {i}"
                    "must have rows to be projected"
                    (Shape.text update.shape)
                    ""

            let rows = update.shape[0]

            match side with
            | Side.Left ->
                Shape.expect
                    $"projection of parameter {i}, from the left"
                    [ Axis.Is rows; Axis.Is rows ]
                    matrix

                Shape.expect
                    $"update of parameter {i}, projected from the left"
                    [ Axis.Any "d"; Axis.Any "r" ]
                    update

                matrix.mm update
            | Side.Right ->
                let flat = update.reshape (rows, -1L) // [out, rest]
                let columns = flat.shape[1]

                Shape.expect
                    $"projection of parameter {i}, from the right"
                    [ Axis.Is columns; Axis.Is columns ]
                    matrix

                flat.mm(matrix).reshape update.shape

    /// <summary>Confines each parameter's update to its retained space (Liu &amp; Chang 2025, the update
    /// rule).</summary>
    /// <param name="confinements">One per parameter; matrices [d, d], borrowed for as long as the
    /// transformation is used.</param>
    /// <returns>A transformation without memory.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When it is applied: another number of parameters, or a matrix whose
    /// size, type or device does not fit its parameter.</exception>
    let transform (confinements: Confinement[]) : Transform<unit> =
        let each = Transform.stateless (fun i update _ -> apply i update confinements[i])

        { each with
            Update =
                fun gradients state parameters ->
                    if confinements.Length <> parameters.Length then
                        let rule = $"must be {parameters.Length}, one per parameter"
                        Errors.reject "confinements" rule $"{confinements.Length}" ""

                    let moving =
                        Array.map2
                            (fun (one: Confinement) gradient -> if one.IsFixed then None else gradient)
                            confinements
                            gradients

                    each.Update moving state parameters
        }
