namespace LoRASub.Train

open LoRASub.Core

/// The learning rate over epochs.
[<RequireQualifiedAccess>]
module Schedule =

    // The cosine reaches 0 at epoch 1 + 100(K−1)/99; this is the last whole epoch before it.
    let private lastPositive (scheduleEpochs: int) =
        1 + (100 * max (scheduleEpochs - 1) 1 - 1) / 99

    /// <summary>The published rate of an epoch e of a schedule of K epochs: base · cos(99π·max(e−1,
    /// 0)/(200·max(K−1, 1))). Epochs 0 and 1 both run at the base rate. Past the cosine's zero, where the
    /// published code would go negative, the last positive rate is held.</summary>
    /// <param name="baseRate">The rate of the first epoch.</param>
    /// <param name="scheduleEpochs">K, at least 1.</param>
    /// <param name="epoch">e, from 0.</param>
    /// <returns>The learning rate, positive where the base rate is.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">K is below 1 or e below 0.</exception>
    let cosine (baseRate: float) (scheduleEpochs: int) (epoch: int) : float =
        if scheduleEpochs < 1 then
            Errors.reject "schedule epochs" "must be at least 1" $"{scheduleEpochs}" ""

        if epoch < 0 then
            Errors.reject "epoch" "must be at least 0" $"{epoch}" ""

        let e = min epoch (lastPositive scheduleEpochs)
        let steps = float (max (e - 1) 0)

        baseRate
        * cos (99.0 * System.Math.PI * steps / (200.0 * float (max (scheduleEpochs - 1) 1)))

    /// The first epoch below `epochs` at which `cosine` holds its rate, if there is one: worth telling the user.
    let internal heldFrom (scheduleEpochs: int) (epochs: int) : int option =
        let first = lastPositive scheduleEpochs + 1
        if first < epochs then Some first else None
