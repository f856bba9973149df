namespace LoRASub.Subspace

open LoRASub.Core
open TorchSharp

/// How the projector is scaled: by its Frobenius norm (the published choice) or not at all.
[<RequireQualifiedAccess>]
type UpdateScale =
    /// Π/√k, of Frobenius norm 1: the published choice.
    | Frobenius
    /// Π itself.
    | Unscaled

/// Projector on the directions that hold most of a second moment's energy, or on the rest of them.
[<ReferenceEquality>]
type Projection =
    {
        /// [d, d]: Π = U_k U_kᵀ, over √k under UpdateScale.Frobenius.
        Matrix: torch.Tensor
        /// [d, k]: the retained eigenvectors U_k, by descending eigenvalue.
        Basis: torch.Tensor
        /// [d]: eigenvalues, descending, rounding's negative ones set to 0.
        Spectrum: torch.Tensor
        /// Share of the spectrum's sum in the retained directions, in [0, 1].
        Energy: float
        /// Largest over smallest eigenvalue; infinite where the smallest is 0.
        Condition: float
    }

    /// k: the number of retained directions.
    member this.Rank = int this.Basis.shape[1]

/// Projections on the retained space.
[<RequireQualifiedAccess>]
module Projection =

    /// <summary>The tensors and numbers of a projection.</summary>
    let tree: Tree<Projection> =
        tree {
            let! matrix = Tree.field "matrix" _.Matrix Tree.tensor
            and! basis = Tree.field "basis" _.Basis Tree.tensor
            and! spectrum = Tree.field "spectrum" _.Spectrum Tree.tensor
            and! energy = Tree.field "energy" _.Energy Tree.float
            and! condition = Tree.field "condition" _.Condition Tree.float

            return
                {
                    Matrix = matrix
                    Basis = basis
                    Spectrum = spectrum
                    Energy = energy
                    Condition = condition
                }
        }

    /// <summary>Lists the tensors of a projection.</summary>
    let leaves = tree.Leaves

    /// Rejects an energy threshold outside (0, 1].
    let internal checkThreshold (threshold: float) =
        if not (threshold > 0.0 && threshold <= 1.0) then
            Errors.reject "energy threshold" "must be in (0, 1]" $"{threshold}" ""

    /// The trace of a moment, in float64: its energy. Rejects a moment that is all zero or not finite.
    let internal energyOf (subject: string) (moment: SecondMoment) : float =
        let d = moment.Moment.shape[0]
        Shape.expect subject [ Axis.Is d; Axis.Is d ] moment.Moment

        Scope.noGrad Leaves.none (fun () ->
            // checked first: the decomposition of NaN fails deep inside LAPACK
            let trace = moment.Moment.trace().``to``(torch.ScalarType.Float64).item<float>()

            if not (moment.Moment.isfinite().all().item<bool>()) then
                Errors.reject
                    subject
                    "must be finite"
                    "NaN or infinity"
                    "look for non-finite images or weights"

            if not (trace > 0.0) then
                let fix =
                    "the observed inputs are all zero: check the images and the weights of the first layer norm"

                Errors.reject subject "must have positive energy" "an all-zero second moment" fix

            trace)

    // Cuts the spectrum where its leading eigenvalues reach the threshold and keeps what `choose` takes of the d
    // directions: the first and the number of them, from the number of the leading ones.
    let private cut scale threshold subject (moment: SecondMoment) (choose: int -> struct (int * int)) =
        checkThreshold threshold
        energyOf subject moment |> ignore

        Scope.noGrad leaves (fun () ->
            let struct (ascending, vectors) = torch.linalg.eigh moment.Moment
            let spectrum = ascending.flip(0L).clamp_min(Number.Of 0.0) // [d]

            let energies =
                spectrum.cpu().``to``(torch.ScalarType.Float64).data<float>().ToArray()

            let sums = Array.scan (+) 0.0 energies
            let shareOf leading = sums[leading] / Array.last sums

            let rounding = 8.0 * Precision.epsilon spectrum.dtype

            let leading =
                seq { 1 .. energies.Length }
                |> Seq.find (fun k -> shareOf k >= threshold - rounding)

            let struct (first, count) = choose leading

            let basis = vectors.flip(1L).narrow(1L, int64 first, int64 count).contiguous() // [d, k]

            let norm =
                match scale with
                | UpdateScale.Frobenius -> sqrt (float count)
                | UpdateScale.Unscaled -> 1.0

            let smallest, largest = Array.last energies, energies[0]

            {
                Matrix = basis.mm(basis.t ()).div(Number.Of norm)
                Basis = basis
                Spectrum = spectrum
                Energy = shareOf (first + count) - shareOf first
                Condition = if smallest > 0.0 then largest / smallest else infinity
            })

    /// <summary>Keeps the fewest leading eigenvectors whose share of the spectrum reaches the threshold, up
    /// to rounding: of d equal eigenvalues, k hold a share of k/d on every processor. Liu &amp; Chang 2025,
    /// the equation of P, by one symmetric eigendecomposition where the published code takes an SVD per
    /// parameter.</summary>
    /// <param name="scale">How the projector is scaled.</param>
    /// <param name="threshold">Share of the energy to retain, in (0, 1].</param>
    /// <param name="subject">Names the moment in errors.</param>
    /// <param name="moment">[d, d], borrowed.</param>
    /// <returns>The projection, on the moment's device and in its type; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The threshold is outside (0, 1], or the moment is all zero
    /// or not finite.</exception>
    let retain (scale: UpdateScale) (threshold: float) (subject: string) (moment: SecondMoment) : Projection =
        cut scale threshold subject moment (fun leading -> struct (0, leading))

    /// <summary>Leaves out the directions that `retain` keeps, and keeps the rest: the approximate null space
    /// of the inputs. One direction, that of the smallest eigenvalue, is always kept.</summary>
    /// <param name="threshold">Share of the energy to leave out, in (0, 1].</param>
    /// <param name="subject">Names the moment in errors.</param>
    /// <param name="moment">[d, d], borrowed.</param>
    /// <returns>The projection NNᵀ, unscaled, on the moment's device and in its type; owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The threshold is outside (0, 1], or the moment is all zero
    /// or not finite.</exception>
    let leaveOut (threshold: float) (subject: string) (moment: SecondMoment) : Projection =
        let d = int moment.Moment.shape[0]

        cut UpdateScale.Unscaled threshold subject moment (fun leading ->
            let first = min leading (d - 1)
            struct (first, d - first))
