namespace LoRASub

open TorchSharp

/// One mean feature per class seen so far.
[<ReferenceEquality>]
type Prototypes =
    {
        /// [c, d]: raw means, not normalised.
        Means: torch.Tensor
        /// The class of each row.
        Classes: int[]
    }

/// Sums of features per class and their counts: a monoid, so that batches, threads and machines can be merged.
[<ReferenceEquality>]
type ClassSums =
    {
        /// [c, d]
        Sums: torch.Tensor
        /// [c], int64
        Counts: torch.Tensor
    }

    /// Merges the sums of disjoint images. Owned by the caller.
    static member (+)(left: ClassSums, right: ClassSums) : ClassSums =
        Shape.expect "class sums to add" [ for n in left.Sums.shape -> Axis.Is n ] right.Sums // one class would broadcast
        Shape.expectLike "class sums to add" left.Sums right.Sums

        {
            Sums = left.Sums.add right.Sums
            Counts = left.Counts.add right.Counts
        }

[<RequireQualifiedAccess>]
module ClassSums =

    let leaves: Leaves<ClassSums> = fun s -> [ s.Sums; s.Counts ]

    /// The sums of no image. Owned by the caller.
    let zero (classes: int) (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : ClassSums =
        {
            Sums = torch.zeros ([| int64 classes; width |], dtype = dtype, device = device)
            Counts = torch.zeros ([| int64 classes |], dtype = torch.ScalarType.Int64, device = device)
        }

    /// Adds a batch: features [n, d] and labels [n] in [0, classes). Borrows; owned by the caller.
    let observe (features: torch.Tensor) (labels: torch.Tensor) (sums: ClassSums) : ClassSums =
        Shape.expect "features" [ Axis.Any "batch"; Axis.Is sums.Sums.shape[1] ] features
        Shape.expectDevice "features" sums.Sums features
        Shape.expect "labels" [ Axis.Is features.shape[0] ] labels
        Shape.expectLike "labels" sums.Counts labels

        Scope.noGrad leaves (fun () ->
            {
                Sums =
                    sums.Sums.index_add (0L, labels, features.``to`` sums.Sums.dtype, Scalar.op_Implicit 1.0)
                Counts = sums.Counts.index_add (0L, labels, torch.ones_like labels, Scalar.op_Implicit 1L)
            })

    /// Mean feature per class, [c, d]. `nameOf` names a class without images in the error. Owned by the caller.
    let means (nameOf: int -> string) (sums: ClassSums) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            let counts = sums.Counts.cpu().data<int64>().ToArray()

            match Array.tryFindIndex ((=) 0L) counts with
            | Some empty ->
                Errors.reject (nameOf empty) "needs at least one training image for its prototype" "none" ""
            | None -> sums.Sums.div (sums.Counts.``to``(sums.Sums.dtype).unsqueeze 1L))

/// Nearest-prototype classification.
[<RequireQualifiedAccess>]
module Prototype =

    let leaves: Leaves<Prototypes> = fun p -> Seq.singleton p.Means

    /// Before the first task. Owned by the caller.
    let none (width: int64) (dtype: torch.ScalarType) (device: torch.Device) : Prototypes =
        {
            Means = torch.zeros ([| 0L; width |], dtype = dtype, device = device)
            Classes = [||]
        }

    /// Appends classes; the old rows keep their values bit by bit. Borrows; owned by the caller.
    let append (classes: int[]) (means: torch.Tensor) (prototypes: Prototypes) : Prototypes =
        Shape.expect "new prototypes" [ Axis.Is classes.LongLength; Axis.Is prototypes.Means.shape[1] ] means
        Shape.expectLike "new prototypes" prototypes.Means means
        let all = Array.append prototypes.Classes classes

        match all |> Array.countBy id |> Array.tryFind (fun (_, count) -> count > 1) with
        | Some(known, _) ->
            Errors.reject $"class {known}" "must be new" "a class that has a prototype already" ""
        | None ->
            {
                Means = torch.cat ([| prototypes.Means; means |], 0L)
                Classes = all
            }

    /// Squared distances between features scaled by 1/(‖f‖ + 1e-8) and prototypes scaled to unit length, [n, c]:
    /// smaller is closer. Borrows; owned by the caller.
    let distances (prototypes: Prototypes) (features: torch.Tensor) : torch.Tensor =
        Shape.expect "features" [ Axis.Any "batch"; Axis.Is prototypes.Means.shape[1] ] features
        Shape.expectLike "features" prototypes.Means features

        Scope.noGrad Leaves.tensor (fun () ->
            let f = features.div (features.norm(1, keepdim = true).add(Scalar.op_Implicit 1e-8))
            let p = prototypes.Means.div (prototypes.Means.norm (1, keepdim = true))
            let squares (t: torch.Tensor) = t.mul(t).sum 1L
            // |f|² + |p|² − 2fp: one product for all classes
            (squares f).unsqueeze(1L).add(squares p).sub(f.mm(p.t ()).mul(Scalar.op_Implicit 2.0)))

    /// Position of the smallest of each row of `distances`, [n, c] -> [n] int64: the first of those that rounding cannot
    /// tell from it. Borrows; owned by the caller.
    let closest (distances: torch.Tensor) : torch.Tensor =
        Scope.noGrad Leaves.tensor (fun () ->
            // a matrix product gives equal prototypes unequal last digits, other ones on other processors
            let rounding = Scalar.op_Implicit (32.0 * Precision.epsilon distances.dtype)

            let isFarther =
                distances.gt ((distances.amin ([| 1L |], keepdim = true)).add rounding)

            Fused.firstSmallest (isFarther.``to`` torch.ScalarType.Int64))

    /// Position of the nearest prototype of each feature row, [n] int64, the first where several tie, as equal
    /// prototypes do. Owned by the caller. Rejects an empty set of prototypes.
    let nearest (prototypes: Prototypes) (features: torch.Tensor) : torch.Tensor =
        if Array.isEmpty prototypes.Classes then
            Errors.reject "prediction" "needs at least one learned class" "none" "learn a task first"

        Scope.noGrad Leaves.tensor (fun () -> closest (distances prototypes features))
