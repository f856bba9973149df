namespace LoRASub.Run

open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure

/// The results of a kept learner on labelled images.
type Assessment =
    {
        /// For each image of a known class, its class and the one predicted, by row.
        Answers: struct (int * int)[]
        /// The expected calibration error of the probabilities. None where there are none.
        CalibrationError: float option
        /// Images of known classes that are called unknown. None where the learner has no threshold at this rate.
        FalseAlarms: int option
        /// Images of classes that the learner does not know.
        Strangers: int
        /// Those of them that are called unknown. None where the learner has no threshold at this rate.
        Detected: int option
        /// How well support tells known classes from unknown ones (`Detection.auroc`). None where either has no image.
        Auroc: float option
    }

/// Assessments.
[<RequireQualifiedAccess>]
module Assessment =

    /// <summary>Predicts labelled images and compares.</summary>
    /// <param name="falseAlarms">The share of images of known classes that may be called unknown, in [0, 1).</param>
    /// <param name="names">Of classes, known to the learner or not.</param>
    /// <param name="images">Labelled 0, 1, … into `names`.</param>
    /// <param name="kept">Borrowed.</param>
    /// <returns>The assessment.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learner knows no class, the share is out of range, or an image
    /// cannot be read.</exception>
    let ofImages (falseAlarms: float) (names: string[]) (images: ImageSet) (kept: KeptLearner) : Assessment =
        let calibration = KeptLearner.calibration falseAlarms kept

        let rows =
            names
            |> Array.map (fun name -> kept.Classes |> Array.tryFindIndex (fun one -> one.Name = name))

        let known, strangers =
            KeptLearner.scored images kept
            |> Array.map2 (fun label (one: Scored) -> rows[label], one) images.Labels
            |> Array.partition (fst >> Option.isSome)

        let known = known |> Array.map (fun (row, one) -> row.Value, one)
        let strangers = Array.map snd strangers
        let isRight = known |> Array.map (fun (row, one) -> row = one.Best)

        let probability (one: Scored) =
            Calibration.probabilities one.Scores calibration
            |> Option.map (Array.item one.Best)

        let called (all: Scored[]) =
            calibration.Threshold
            |> Option.map (fun threshold ->
                all |> Array.filter (fun one -> one.Support < threshold) |> Array.length)

        let support = Array.map (fun (one: Scored) -> one.Support)

        {
            Answers = known |> Array.map (fun (row, one) -> struct (row, one.Best))
            CalibrationError =
                calibration.Temperature
                |> Option.map (fun _ ->
                    let probabilities = known |> Array.choose (snd >> probability)
                    Detection.calibrationError probabilities isRight)
            FalseAlarms = called (Array.map snd known)
            Strangers = strangers.Length
            Detected = called strangers
            Auroc = Detection.auroc (support (Array.map snd known)) (support strangers)
        }
