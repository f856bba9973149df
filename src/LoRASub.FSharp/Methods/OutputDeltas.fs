namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Subspace
open TorchSharp

/// The summed deltas of tasks in one weight [outputs, inputs], as Basis·A: by direction of its outputs.
[<ReferenceEquality>]
type internal OutputDeltas =
    {
        /// [outputs, k]: orthonormal columns, the directions of one task after those of another.
        Basis: torch.Tensor
        /// [k, inputs]
        A: torch.Tensor
        /// Share of its task's energy in that task's directions before it, in [0, 1]; 1 where the task has no energy. [k],
        /// or less while the last task's directions are not in order.
        Before: torch.Tensor
    }

/// Deltas by the energy of their outputs: L. Li et al., ICML 2026, arXiv 2605.27482.
[<RequireQualifiedAccess>]
module internal OutputDeltas =

    let tree: Tree<OutputDeltas> =
        tree {
            let! basis = Tree.field "basis" _.Basis Tree.tensor
            and! a = Tree.field "a" _.A Tree.tensor
            and! before = Tree.field "before" _.Before Tree.tensor

            return
                {
                    Basis = basis
                    A = a
                    Before = before
                }
        }

    /// Of no task: every direction is free.
    let none
        (outputs: int64)
        (inputs: int64)
        (dtype: torch.ScalarType)
        (device: torch.Device)
        : OutputDeltas =
        {
            Basis = torch.eye (outputs, dtype = dtype, device = device)
            A = torch.zeros ([| outputs; inputs |], dtype = dtype, device = device)
            Before = torch.ones ([| outputs |], dtype = dtype, device = device)
        }

    /// Basis·A, [outputs, inputs].
    let sum (deltas: OutputDeltas) : torch.Tensor = deltas.Basis.mm deltas.A

    /// The same sum with the last task's directions in descending order of energy: Basis·Q and Qᵀ·A, with Q the
    /// eigenvectors of A·Cov(x)·Aᵀ. The moment is of the inputs with a 1 appended. In float64, whose rounding is far
    /// below the energy that a task may lose.
    let ordered (subject: string) (moment: SecondMoment) (deltas: OutputDeltas) : OutputDeltas =
        Scope.noGrad tree.Leaves (fun () ->
            let inputs, first = deltas.A.shape[1], deltas.Before.shape[0]
            let fresh = deltas.A.shape[0] - first // r
            let precise (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64
            let a = precise (deltas.A.narrow (0L, first, fresh))
            let moment = (precise moment.Moment).narrow(0L, 0L, inputs)
            let mean = moment.narrow (1L, inputs, 1L)
            let covariance = moment.narrow(1L, 0L, inputs).sub(mean.mm (mean.t ()))
            let drift = a.mm(covariance).mm(a.t ()) // [r, r]

            if not (drift.isfinite().all().item<bool>()) then
                Errors.reject subject "must be finite" "NaN or infinity" "lower the learning rate"

            let struct (ascending, vectors) = torch.linalg.eigh drift
            let q = vectors.flip 1L
            // in it and in those after it; not on a GPU, where LibTorch's cumsum may refuse to be repeatable
            let rest =
                ascending.clamp_min(Number.Of 0.0).cpu().cumsum(0L).flip(0L).``to`` ascending.device

            let total = (rest.narrow (0L, 0L, 1L)).clamp_min(Number.Of 1e-300)

            let replace axis (part: torch.Tensor) (whole: torch.Tensor) =
                torch.cat ([| whole.narrow (axis, 0L, first); part.``to`` whole.dtype |], axis)

            {
                Basis = replace 1L ((precise (deltas.Basis.narrow (1L, first, fresh))).mm q) deltas.Basis
                A = replace 0L (q.t().mm a) deltas.A
                Before = replace 0L (torch.ones_like(rest).sub(rest.div total)) deltas.Before
            })

    /// Which directions stay when a task begins after others, from `Before` of all of them.
    let stays (tasks: int) (before: float[]) : bool[] =
        if tasks >= before.Length then
            Errors.reject
                "earlier tasks"
                $"must be fewer than the {before.Length} outputs that they share"
                $"{tasks}"
                "use a wider backbone"

        let leaving = (Array.sort before)[tasks * before.Length / (tasks + 1)]
        let rounding = 8.0 * Precision.epsilon torch.ScalarType.Float32
        let share step = 1.0 - 1e-5 * float step - rounding
        let step = Seq.initInfinite ((+) 1) |> Seq.find (fun step -> share step <= leaving)
        before |> Array.map (fun before -> before < share step)

    /// Makes room for a task after `tasks` others: what they keep, and the directions left to it, [outputs, r].
    let split (tasks: int) (deltas: OutputDeltas) : struct (OutputDeltas * torch.Tensor) =
        Scope.noGrad (Leaves.both tree.Leaves Leaves.tensor) (fun () ->
            let stays =
                deltas.Before.cpu().``to``(torch.ScalarType.Float64).data<float>().ToArray()
                |> stays tasks
                |> Array.indexed

            let positions wanted =
                let all =
                    stays
                    |> Array.filter (fun (_, stays) -> stays = wanted)
                    |> Array.map (fst >> int64)

                torch.tensor (all, dtype = torch.ScalarType.Int64, device = deltas.A.device)

            let kept = positions true

            struct ({
                        Basis = deltas.Basis.index_select (1L, kept)
                        A = deltas.A.index_select (0L, kept)
                        Before = deltas.Before.index_select (0L, kept)
                    },
                    deltas.Basis.index_select (1L, positions false)))
