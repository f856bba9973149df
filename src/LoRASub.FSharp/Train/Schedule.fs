namespace LoRASub.Train

open LoRASub.Core

/// The learning rate over epochs.
[<RequireQualifiedAccess>]
module Schedule =

    // The cosine reaches 0 at epoch 1 + 100(K−1)/99; this is the last whole epoch before it.
    let private lastPositive (scheduleEpochs: int) =
        1 + (100 * max (scheduleEpochs - 1) 1 - 1) / 99

    /// The published rate of epoch e of a schedule of K epochs: base · cos(99π·max(e−1, 0)/(200·max(K−1, 1))).
    /// Epochs 0 and 1 both run at the base rate. Past the cosine's zero, where the published code would go negative,
    /// the last positive rate is held. Rejects e < 0 and K < 1.
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
    let heldFrom (scheduleEpochs: int) (epochs: int) : int option =
        let first = lastPositive scheduleEpochs + 1
        if first < epochs then Some first else None
