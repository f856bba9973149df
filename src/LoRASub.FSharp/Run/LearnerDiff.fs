namespace LoRASub.Run

open System
open System.Globalization
open LoRASub.Core
open LoRASub.Files
open LoRASub.Learn
open TorchSharp

/// A value that differs between two learners; empty for none.
type Different =
    {
        /// Of what.
        Name: string
        /// In the first learner.
        Left: string
        /// In the second one.
        Right: string
    }

/// The largest changes of tensors from one learner to another.
type LearnerChange =
    {
        /// The class known to both whose mean moved most, and by how much of its length; None where both know no class,
        /// or their means cannot be compared.
        Mean: struct (string * float) option
        /// The tensor of the method that changed most, by its name in the file, and by how much of its norm; None where
        /// none changed.
        Network: struct (string * float) option
        /// Tensors of the method that only one has, or that have other shapes.
        Unlike: int
    }

/// The differences between two learners.
type LearnerDiff =
    {
        /// Of what decides how they see and predict.
        Traits: Different list
        /// Of the other settings, which further learning uses.
        Settings: Different list
        /// Classes that only the first one knows.
        OnlyLeft: SavedClass[]
        /// Classes that only the second one knows.
        OnlyRight: SavedClass[]
        /// Classes with the same statistics under two names.
        Renamed: (SavedClass * SavedClass)[]
        /// Classes of one name with other numbers of images.
        Counts: (SavedClass * SavedClass)[]
        /// Whether their tensors are the same, bit for bit.
        SameTensors: bool
        /// Of tensors, once they are compared.
        Change: LearnerChange option
    }

    /// Whether there is no difference.
    member this.IsEmpty =
        this.SameTensors
        && this.Traits.IsEmpty
        && this.Settings.IsEmpty
        && Array.isEmpty this.OnlyLeft
        && Array.isEmpty this.OnlyRight
        && Array.isEmpty this.Renamed
        && Array.isEmpty this.Counts

/// What differs between two learners.
[<RequireQualifiedAccess>]
module LearnerDiff =

    let private setting name byDefault (record: LearnerFormat.Record) =
        match record.Settings.TryGetValue name with
        | true, text -> text
        | _ -> byDefault

    let private numbers (values: float[]) =
        values
        |> Array.map (fun x -> x.ToString("R", CultureInfo.InvariantCulture))
        |> String.concat ", "

    let private embedding (saved: SavedEmbedding) = (Json.ofRecord saved).ToJsonString()

    /// What decides how a learner sees and predicts, by name: two that agree in all of it have statistics that add up,
    /// where their networks are the same.
    let internal traits (record: LearnerFormat.Record) : (string * string) list =
        [
            "backbone", $"SHA-256 {record.BackboneSha256}"
            "method", record.Method
            "head", record.Head
            "embedding",
            (match record.Embedding with
             | Some one -> embedding one
             | None -> "the class token at the output")
            "other heads",
            record.Others
            |> Option.defaultValue [||]
            |> Array.map (fun other -> $"{other.Label} ({other.Head} of {embedding other.Embedding})")
            |> String.concat ", "
            "precision", setting "precision" "float32" record
            "image size", string record.ImageSize
            "channels", string record.Channels
            "input range", numbers record.InputRange
            "attention heads", string record.Heads
            "norm epsilon", numbers record.NormEpsilon
        ]

    /// The values that differ between two lists of the same names.
    let internal between (left: (string * string) list) (right: (string * string) list) : Different list =
        List.map2 (fun (name, a) (_, b) -> { Name = name; Left = a; Right = b }) left right
        |> List.filter (fun one -> one.Left <> one.Right)

    // the traits have them, or they are places on a disk
    let private told =
        set
            [
                "backbone"
                "method"
                "head"
                "embedding"
                "heads"
                "precision"
                "image-size"
                "input-range"
                "attention-heads"
                "norm-epsilon"
            ]

    // Classes that each learner has alone but under another name become renamed ones, one with one: of several that are
    // the same, the first.
    let private rename (isSame: SavedClass -> SavedClass -> bool) (found: LearnerDiff) : LearnerDiff =
        let step (found: LearnerDiff) (one: SavedClass) =
            match found.OnlyRight |> Array.tryFind (isSame one) with
            | None -> found
            | Some other ->
                { found with
                    OnlyLeft = Array.except [ one ] found.OnlyLeft
                    OnlyRight = Array.except [ other ] found.OnlyRight
                    Renamed = Array.append found.Renamed [| one, other |]
                }

        Array.fold step found found.OnlyLeft

    /// <summary>Compares what learner.json says of two learners.</summary>
    /// <param name="left">Of the first.</param>
    /// <param name="right">Of the second.</param>
    /// <returns>What differs. Classes are matched by name; in learners of the same tensors by their rows, which shows those
    /// with another name. `ofTensors` finds these in other learners.</returns>
    let ofRecords (left: LearnerFormat.Record) (right: LearnerFormat.Record) : LearnerDiff =
        let names =
            Seq.append left.Settings.Keys right.Settings.Keys
            |> Seq.distinct
            |> Seq.filter (told.Contains >> not)
            |> List.ofSeq

        let settings record =
            names |> List.map (fun name -> name, setting name "" record)

        let here, there = left.State.Classes, right.State.Classes
        let sameTensors = left.TensorsSha256 = right.TensorsSha256

        let pairs =
            if sameTensors && here.Length = there.Length then
                Array.zip here there
            else
                let named = there |> Array.map (fun one -> one.Name, one) |> Map.ofArray

                here
                |> Array.choose (fun one ->
                    Map.tryFind one.Name named |> Option.map (fun other -> one, other))

        {
            Traits = between (traits left) (traits right)
            Settings = between (settings left) (settings right)
            OnlyLeft = Array.except (Array.map fst pairs) here
            OnlyRight = Array.except (Array.map snd pairs) there
            Renamed = pairs |> Array.filter (fun (one, other) -> one.Name <> other.Name)
            Counts = pairs |> Array.filter (fun (one, other) -> one.Images <> other.Images)
            SameTensors = sameTensors
            Change = None
        }

    // ‖a − b‖ over the larger norm; 0 for zeros.
    let private relative (a: torch.Tensor) (b: torch.Tensor) : float =
        let norm (t: torch.Tensor) =
            t.``to``(torch.ScalarType.Float64).norm().item<float>()

        let size = max (norm a) (norm b)
        let wide (t: torch.Tensor) = t.``to`` torch.ScalarType.Float64

        if size = 0.0 then
            0.0
        else
            norm ((wide a).sub(wide b)) / size

    let private largest (changes: struct (string * float) seq) =
        changes |> Seq.sortByDescending (fun struct (_, by) -> by) |> Seq.tryHead

    let private means (saved: SavedLearner) : Map<string, torch.Tensor> =
        let inHead =
            saved.Tensors
            |> Map.filter (fun name _ -> name.StartsWith("head.", StringComparison.Ordinal))

        match Export.sumsAmong inHead.Keys with
        | Some(sums, counts) when inHead.ContainsKey counts ->
            let all = Export.meansOf inHead[sums] inHead[counts]

            saved.Record.State.Classes
            |> Array.truncate (int all.shape[0])
            |> Array.mapi (fun row one -> one.Name, all.select (0L, int64 row))
            |> Map.ofArray
        | _ -> Map.empty

    /// Of two means of the same images, summed in another order.
    let private rounding = 1e-6

    /// <summary>Compares the tensors of two learners.</summary>
    /// <param name="left">The first; borrowed.</param>
    /// <param name="right">The second; borrowed.</param>
    /// <param name="found">What `ofRecords` gives of them.</param>
    /// <returns>The same with the largest changes, and with classes of the same mean and number of images as
    /// renamed.</returns>
    let ofTensors (left: SavedLearner) (right: SavedLearner) (found: LearnerDiff) : LearnerDiff =
        Scope.noGrad Leaves.none (fun () ->
            let ofMethod (saved: SavedLearner) =
                saved.Tensors
                |> Map.filter (fun name _ -> name.StartsWith("method.", StringComparison.Ordinal))

            let both (here: Map<string, torch.Tensor>) (there: Map<string, torch.Tensor>) =
                [
                    for KeyValue(name, a) in here do
                        match Map.tryFind name there with
                        | Some b when a.shape = b.shape -> struct (name, relative a b)
                        | _ -> ()
                ]

            let ofLeft, ofRight = means left, means right

            let isSame (one: SavedClass) (other: SavedClass) =
                match Map.tryFind one.Name ofLeft, Map.tryFind other.Name ofRight with
                | Some a, Some b when a.shape = b.shape ->
                    // no image, no mean
                    one.Images > 0L && one.Images = other.Images && relative a b < rounding
                | _ -> false

            let here, there = ofMethod left, ofMethod right
            let shared = both here there

            { rename isSame found with
                Change =
                    Some
                        {
                            Mean = largest (both ofLeft ofRight)
                            Network = shared |> List.filter (fun struct (_, by) -> by > 0.0) |> largest
                            Unlike =
                                (Set.union (Set.ofSeq here.Keys) (Set.ofSeq there.Keys)).Count
                                - shared.Length
                        }
            })
