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

    /// Merges two moments over disjoint rows: associative and commutative, `zero` is its identity. Owned by the caller.
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
                m.Moment.mul (Scalar.op_Implicit (float m.Count / float total))

            Scope.noGrad (fun m -> Seq.singleton m.Moment) (fun () ->
                {
                    Moment = (weighted left).add(weighted right)
                    Count = total
                })

[<RequireQualifiedAccess>]
module SecondMoment =

    let tree: Tree<SecondMoment> =
        tree {
            let! moment = Tree.field "moment" _.Moment Tree.tensor
            and! count = Tree.field "count" _.Count Tree.int64
            return { Moment = moment; Count = count }
        }

    let leaves = tree.Leaves

    /// The moment of no rows, [width, width] zeros. Owned by the caller.
    let zero (width: int64) (dtype: torch.ScalarType) (device: torch.Device) =
        {
            Moment = torch.zeros ([| width; width |], dtype = dtype, device = device)
            Count = 0L
        }

    /// The moment of one batch of inputs [..., d], computed in `dtype` as one product. Borrows the inputs; owned by
    /// the caller.
    let ofInputs (dtype: torch.ScalarType) (inputs: torch.Tensor) : SecondMoment =
        Scope.noGrad leaves (fun () ->
            let width = inputs.shape[inputs.shape.Length - 1]
            let rows = inputs.reshape(-1L, width).``to`` dtype // [n, d]
            let count = rows.shape[0]
            let gram = rows.t().mm rows // [d, d]

            {
                Moment = gram.div (Scalar.op_Implicit (float (max count 1L)))
                Count = count
            })

    /// The moment after one more batch of inputs [..., d]. Borrows both; owned by the caller.
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
