namespace LoRASub.Run

open System
open System.Globalization
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Learn
open TorchSharp

/// What a learner knows, as files for other programs. Each file is written whole; folders must exist.
[<RequireQualifiedAccess>]
module Export =

    /// The network of a learner's state, owned by the caller's scope.
    let private adapters (kept: KeptLearner) =
        Learner.adapters kept.Learner kept.State.Method

    /// <summary>Whether the network that a learner predicts with is one plain Vision Transformer, which has weights in
    /// timm's names. It is not with adapters beside the MLPs, for one or several tasks.</summary>
    /// <param name="kept">Borrowed.</param>
    /// <returns>Whether `weights` and `adapter` can write it.</returns>
    let isPlain (kept: KeptLearner) : bool =
        Scope.run (fun () -> Array.isEmpty (adapters kept).Mlp)

    /// Whether the weights of a learner's network differ from its backbone's: only then there is an adapter.
    let internal isAdapted (kept: KeptLearner) : bool =
        isPlain kept
        && Scope.run (fun () ->
            not (List.isEmpty (MergedWeights.change (adapters kept) kept.Learner.Backbone)))

    let private checkPlain (kept: KeptLearner) =
        if not (isPlain kept) then
            Errors.reject
                $"method {kept.Learner.Method.Info.Name}"
                "must predict with one plain Vision Transformer to have weights for other programs"
                "adapters beside the MLPs"
                "keep the learner, or learn with a method that changes weights"

    /// <summary>Writes the network that a learner predicts with as one safetensors file in timm's names, which
    /// `--backbone` reads as well. Its metadata states input range, image size, heads and layer-norm epsilons.</summary>
    /// <param name="dtype">Of the file: float32 holds what a learner in float32 or bfloat16 uses.</param>
    /// <param name="path">The file; an older one is replaced.</param>
    /// <param name="kept">Borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The method's network is not one plain Vision Transformer: it has
    /// adapters beside the MLPs, for one or several tasks. Or the file cannot be written.</exception>
    let weights (dtype: torch.ScalarType) (path: string) (kept: KeptLearner) : unit =
        checkPlain kept
        let vit = kept.Learner.Backbone

        Scope.noGrad Leaves.none (fun () ->
            Safetensors.write
                path
                (MergedWeights.metadata vit kept.Settings.InputRange)
                [
                    for name, tensor in MergedWeights.tensors (adapters kept) vit ->
                        name, tensor.``to`` dtype
                ])

    // Those that a PEFT of any age knows.
    let private configuration (kept: KeptLearner) (change: LowRankChange) : JsonNode =
        let layers =
            change.Pairs
            |> List.map (fun (name, _) -> (name.Split '.')[2..] |> String.concat ".")
            |> List.distinct

        Json.object
            [
                "peft_type", Json.text "LORA"
                "task_type", null
                "base_model_name_or_path",
                Json.option (fun (path: string) -> Json.text (Path.GetFileName path)) kept.Settings.Backbone
                "inference_mode", Json.bool true
                "r", Json.int (int64 change.Rank)
                // the change is B·A · lora_alpha/r
                "lora_alpha", Json.int (int64 change.Rank)
                "lora_dropout", Json.float 0.0
                "bias", Json.text "none"
                "fan_in_fan_out", Json.bool false
                "target_modules", Json.array Json.text layers
                "modules_to_save", null
            ]

    /// <summary>Writes what a learner's method added to its backbone as a LoRA adapter for PEFT around a timm network:
    /// adapter_config.json and adapter_model.safetensors, whose metadata states the relative error.</summary>
    /// <param name="rank">Of each layer's pair. None: the smallest that leaves out no more than rounding.</param>
    /// <param name="folder">It exists.</param>
    /// <param name="kept">In float64 for an exact rank: float32 has rounded the sum of weights and change. Borrowed.</param>
    /// <returns>The change in pairs, and what they leave out of it, owned by the caller; None, and no file, where the
    /// network is the backbone as it was loaded.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">What `weights` rejects; the rank is out of range; or a file cannot
    /// be written.</exception>
    let adapter (rank: int option) (folder: string) (kept: KeptLearner) : LowRankChange option =
        checkPlain kept

        let write (change: LowRankChange) =
            Scope.run (fun () ->
                let narrow (t: torch.Tensor) = t.``to`` torch.ScalarType.Float32

                Safetensors.write
                    (Path.Combine(folder, "adapter_model.safetensors"))
                    (Map
                        [
                            "format", "pt"
                            "rank", string change.Rank
                            "relative-error",
                            change.RelativeError.ToString("R", CultureInfo.InvariantCulture)
                        ])
                    [
                        for name, pair in change.Pairs do
                            $"base_model.model.{name}.lora_A.weight", narrow pair.A
                            $"base_model.model.{name}.lora_B.weight", narrow pair.B
                    ])

            Json.write (Path.Combine(folder, "adapter_config.json")) (configuration kept change)

        Scope.noGrad (Leaves.option LowRankChange.leaves) (fun () ->
            match MergedWeights.change (adapters kept) kept.Learner.Backbone with
            | [] -> None
            | change ->
                let change = MergedWeights.lowRank rank change
                write change
                Some change)

    /// The name of the sums per class among a head's tensors, and that of the counts beside them.
    let internal sumsAmong (names: string seq) : (string * string) option =
        names
        |> Seq.tryFind (fun name -> name = "sums" || name.EndsWith(".sums", StringComparison.Ordinal))
        |> Option.map (fun sums -> sums, sums.Substring(0, sums.Length - "sums".Length) + "counts")

    /// Means per class, [c, D], of sums [c, D] and counts [c]. Owned by the caller's scope.
    let internal meansOf (sums: torch.Tensor) (counts: torch.Tensor) : torch.Tensor =
        sums.div (counts.clamp_min(Number.Of 1L).``to``(sums.dtype).unsqueeze 1L)

    /// <summary>Writes classes.csv, a row for each class with id, name, task and images; and, where the head keeps sums
    /// per class, class-means.npy, [classes, D] in the same order: means of what the head sums, embeddings or its random
    /// features of them.</summary>
    /// <param name="folder">It exists.</param>
    /// <param name="kept">Borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A file cannot be written.</exception>
    let classes (folder: string) (kept: KeptLearner) : unit =
        let row (one: ClassInfo) =
            seq {
                string one.Id
                one.Name
                string one.Task
                string one.Images
            }

        WholeFile.writeText
            (Path.Combine(folder, "classes.csv"))
            (Csv.table
                [
                    seq {
                        "id"
                        "name"
                        "task"
                        "images"
                    }
                    yield! Array.map row kept.Classes
                ])

        Scope.noGrad Leaves.none (fun () ->
            let tensors = Hidden.written kept.State.Head |> Map.ofList

            match sumsAmong tensors.Keys with
            | Some(sums, counts) ->
                meansOf tensors[sums] tensors[counts]
                |> NumpyFile.write (Path.Combine(folder, "class-means.npy"))
            | None -> ())
