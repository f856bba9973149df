namespace LoRASub.Subspace

open LoRASub.Core
open TorchSharp

/// The uncentred second moment XᵀX/n of the rows seen so far, and their number n.
[<ReferenceEquality>]
type SecondMoment =
    {
        /// [d, d], symmetric, float32 or float64.
        Moment: torch.Tensor
        /// Rows seen.
        Count: int64
    }

    /// <summary>Merges the moments of disjoint rows: associative and commutative, with `zero` as its
    /// identity.</summary>
    /// <param name="left">[d, d], borrowed.</param>
    /// <param name="right">Of the same width, type and device; borrowed.</param>
    /// <returns>The moment of all rows, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The moments differ in width, type or device.</exception>
    static member (+)(left: SecondMoment, right: SecondMoment) : SecondMoment =
        let d = left.Moment.shape[0]
        Shape.expect "second moment to add" [ Axis.Is d; Axis.Is d ] right.Moment // one column would broadcast
        Shape.expectLike "second moment to add" left.Moment right.Moment
        let total = left.Count + right.Count

        if total = 0L then
            { left with
                Moment = left.Moment.clone ()
            }
        else
            let weighted (m: SecondMoment) =
                m.Moment.mul (Number.Of(float m.Count / float total))

            Scope.noGrad (fun m -> Seq.singleton m.Moment) (fun () ->
                {
                    Moment = (weighted left).plus(weighted right)
                    Count = total
                })

/// Second moments: a monoid, so that batches and machines can be merged.
[<RequireQualifiedAccess>]
module SecondMoment =

    /// <summary>The tensors of a moment.</summary>
    let tree: Tree<SecondMoment> =
        tree {
            let! moment = Tree.field "moment" _.Moment Tree.tensor
            and! count = Tree.field "count" _.Count Tree.int64
            return { Moment = moment; Count = count }
        }

    /// <summary>Lists the tensors of a moment.</summary>
    let leaves = tree.Leaves

    /// <summary>The moment of no rows.</summary>
    /// <param name="width">d.</param>
    /// <param name="dtype">float32 or float64.</param>
    /// <param name="device">Where the moment is.</param>
    /// <returns>[d, d] zeros, owned by the caller.</returns>
    let zero (width: int64) (dtype: torch.ScalarType) (device: torch.Device) =
        {
            Moment = torch.zeros ([| width; width |], dtype = dtype, device = device)
            Count = 0L
        }

    /// <summary>The moment of one batch of inputs, as one product.</summary>
    /// <param name="dtype">float32 or float64: the type of the product.</param>
    /// <param name="inputs">[..., d], of any floating-point type; borrowed.</param>
    /// <returns>XᵀX/n, [d, d], owned by the caller; zeros for no rows.</returns>
    let ofInputs (dtype: torch.ScalarType) (inputs: torch.Tensor) : SecondMoment =
        Scope.noGrad leaves (fun () ->
            let width = inputs.shape[inputs.shape.Length - 1]
            let rows = inputs.reshape(-1L, width).``to`` dtype // [n, d]
            let count = rows.shape[0]
            let gram = rows.t().mm rows // [d, d]

            {
                Moment = gram.div (Number.Of(float (max count 1L)))
                Count = count
            })

    /// <summary>The moment after one more batch of inputs.</summary>
    /// <param name="inputs">[..., d], borrowed.</param>
    /// <param name="moment">[d, d], borrowed.</param>
    /// <returns>The moment of the rows so far and these, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The inputs have another number of columns or are on another
    /// device.</exception>
    let observe (inputs: torch.Tensor) (moment: SecondMoment) : SecondMoment =
        let width = moment.Moment.shape[0]

        if inputs.shape[inputs.shape.Length - 1] <> width then
            Errors.reject
                "inputs of the second moment"
                $"must have {width} columns"
                (Shape.text inputs.shape)
                ""

        Shape.expectDevice "inputs of the second moment" moment.Moment inputs

        Scope.keep leaves (fun () -> moment + ofInputs moment.Moment.dtype inputs)
