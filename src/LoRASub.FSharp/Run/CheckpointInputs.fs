namespace LoRASub.Run

open System
open System.Collections.Generic
open System.IO
open System.Security.Cryptography
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open LoRASub.Data
open LoRASub.Measure
open LoRASub.Settings
open TorchSharp

/// A setting in which two runs differ, with its text in each.
type SettingDifference =
    {
        Name: string
        Left: string
        Right: string
    }

/// What a checkpoint is compared with, so that a run is resumed on what it began with.
[<RequireQualifiedAccess>]
module CheckpointInputs =

    let private referenceScores (reference: RunScores) =
        let scores =
            seq {
                yield! Seq.concat reference.Matrix
                for one in reference.Classes -> one.Score
            }

        let counts = scores |> Seq.map (fun score -> $"{score.Correct}/{score.Total}")
        $"{reference.Trained}:{String.Join(',', counts)}"

    /// <summary>What decides a run's numbers beside its settings, by name: a checkpoint is compared with it. To be computed
    /// once, before the first batch: it reads sixteen images of each split.</summary>
    /// <param name="plan">Borrowed.</param>
    /// <returns>Names and texts, such as hashes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">One of those images is damaged.</exception>
    let ofPlan (plan: Plan) : (string * string) list =
        [
            "backbone's SHA-256", plan.BackboneSha256
            "training labels' SHA-256", ImageSet.labelsSha256 plan.Stream.Dataset.Train
            "test labels' SHA-256", ImageSet.labelsSha256 plan.Stream.Dataset.Test
            "training images' SHA-256", ImageSet.imagesSha256 plan.Stream.Dataset.Train
            "test images' SHA-256", ImageSet.imagesSha256 plan.Stream.Dataset.Test
            "class order", String.Join(' ', plan.Stream.Order)
            "scores of the references", String.Join(' ', plan.References |> Seq.map referenceScores)
            // sums are added in another order
            "number of threads", string (torch.get_num_threads ())
        ]

    /// <summary>The settings in which two runs differ, without those that may change when a run is resumed.</summary>
    /// <param name="left">The settings of one run.</param>
    /// <param name="right">The settings of the other.</param>
    /// <returns>Each with its text in both.</returns>
    let differences (left: RunSettings) (right: RunSettings) : SettingDifference list =
        Settings.all
        |> List.filter (fun s -> not s.FreeOnResume)
        |> List.choose (fun s ->
            match s.Get left, s.Get right with
            | a, b when a = b -> None
            | a, b ->
                let shown = Option.defaultValue "not set"

                Some
                    {
                        Name = s.Name
                        Left = shown a
                        Right = shown b
                    })
