namespace LoRASub.Backbone

open System
open System.Globalization
open System.IO
open System.Text.Json
open LoRASub.Core
open LoRASub.Files

/// Layer-norm epsilons: in the blocks and at the end.
type NormEpsilon =
    {
        /// Of the norms in the blocks.
        Blocks: float
        /// Of the norm after the last block.
        Final: float
    }

/// A value that a file states.
type Stated<'T> =
    {
        /// What it states.
        Value: 'T
        /// The file and its key, for errors.
        Place: string
    }

/// What a weights file says about the training of its network; None where it does not say.
type WeightsCard =
    {
        /// Values of black and white of each channel, or of all channels if there is one.
        InputRange: Stated<struct (float * float)[]> option
        /// Pixels of a side.
        ImageSize: Stated<int> option
        /// Attention heads.
        Heads: Stated<int> option
        /// In the blocks and at the end.
        NormEpsilon: Stated<NormEpsilon> option
    }

/// Reads what a weights file says about itself: from the JSON file beside it, and from its metadata.
[<RequireQualifiedAccess>]
module WeightsCard =

    let private keys =
        [ "input-range"; "mean"; "std"; "image-size"; "heads"; "norm-epsilon" ]

    /// <summary>The JSON file beside a weights file.</summary>
    /// <param name="weights">Path of the weights file.</param>
    /// <returns>The path with `.json` after it, whether or not there is such a file.</returns>
    let path (weights: string) : string = weights + ".json"

    /// <summary>The input range of all channels: the mean of theirs, to four decimals.</summary>
    /// <param name="card">Any.</param>
    /// <returns>Values of black and white; None where the card states none.</returns>
    let range (card: WeightsCard) : struct (float * float) option =
        card.InputRange
        |> Option.map (fun stated ->
            let mean (part: struct (float * float) -> float) =
                Math.Round(Array.averageBy part stated.Value, 4)

            struct (mean (fun struct (low, _) -> low), mean (fun struct (_, high) -> high)))

    let private quoted (text: string) = "'" + Text.cut "..." 80 text + "'"

    let private wholeNumber (text: string, place: string) =
        match Int32.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture) with
        | true, value when value >= 1 -> { Value = value; Place = place }
        | _ -> Errors.reject place "must be a whole number of at least 1" (quoted text) ""

    /// One or more finite numbers, with commas between them and, as JSON and Python write lists, brackets around them.
    let private numbers (rule: string) (isRight: float[] -> bool) (text: string, place: string) : float[] =
        let tryNumber (part: string) =
            match Double.TryParse(part, NumberStyles.Float, CultureInfo.InvariantCulture) with
            | true, value when Double.IsFinite value -> Some value
            | _ -> None

        let found = text.Trim('[', ']', '(', ')', ' ').Split ',' |> Array.map tryNumber

        match Array.choose id found with
        | values when values.Length = found.Length && isRight values -> values
        | _ -> Errors.reject place $"must be {rule}" (quoted text) ""

    let private perChannel rule isRight =
        numbers $"{rule}, one or one a channel" (fun values ->
            (values.Length = 1 || values.Length = 3) && Array.forall isRight values)

    let private rangeOf (find: string -> (string * string) option) =
        match find "input-range", find "mean", find "std" with
        | None, None, None -> None
        | Some(text, place), None, None ->
            let range =
                numbers "two numbers, black below white" (fun v -> v.Length = 2 && v[0] < v[1]) (text, place)

            Some
                {
                    Value = [| struct (range[0], range[1]) |]
                    Place = place
                }
        | None, Some mean, Some std ->
            let means = perChannel "a mean" (fun _ -> true) mean
            let deviations = perChannel "a standard deviation above 0" (fun x -> x > 0.0) std

            let channel (values: float[]) i =
                if values.Length = 1 then values[0] else values[i]

            Some
                {
                    Value =
                        Array.init (max means.Length deviations.Length) (fun i ->
                            let mean, deviation = channel means i, channel deviations i
                            struct ((0.0 - mean) / deviation, (1.0 - mean) / deviation))
                        |> Array.distinct
                    Place = snd mean
                }
        | Some(_, place), _, _ -> Errors.reject place "must not be beside 'mean' or 'std'" "both" "keep one"
        | None, Some(_, place), None
        | None, None, Some(_, place) ->
            Errors.reject place "'mean' and 'std' must come together" "one of them" "give both"

    let private ofTexts (find: string -> (string * string) option) : WeightsCard =
        let positive =
            numbers "one or two numbers between 0 and 1" (fun values ->
                values.Length <= 2 && values |> Array.forall (fun x -> x > 0.0 && x < 1.0))

        {
            InputRange = rangeOf find
            ImageSize = find "image-size" |> Option.map wholeNumber
            Heads = find "heads" |> Option.map wholeNumber
            NormEpsilon =
                find "norm-epsilon"
                |> Option.map (fun (text, place) ->
                    let values = positive (text, place)

                    {
                        Value =
                            {
                                Blocks = values[0]
                                Final = Array.last values
                            }
                        Place = place
                    })
        }

    /// <summary>What the metadata of a weights file says.</summary>
    /// <param name="subject">Names the file in errors.</param>
    /// <param name="metadata">Text by key; other keys than a card's are ignored.</param>
    /// <returns>The card; None for each key that is absent.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A value is of the wrong kind or out of range.</exception>
    let ofMetadata (subject: string) (metadata: Map<string, string>) : WeightsCard =
        ofTexts (fun key ->
            Map.tryFind key metadata
            |> Option.map (fun text -> text, $"{subject}: metadata '{key}'"))

    let private ofJson (path: string) : WeightsCard =
        let place key = $"{path}: '{key}'"

        let textOf (key: string) (value: JsonElement) =
            let one (item: JsonElement) =
                if item.ValueKind <> JsonValueKind.Number then
                    Errors.reject
                        (place key)
                        "must be a number or a list of numbers"
                        (quoted (value.GetRawText()))
                        ""

                item.GetRawText()

            if value.ValueKind = JsonValueKind.Array then
                value.EnumerateArray() |> Seq.map one |> String.concat ","
            else
                one value

        let texts =
            Json.read "the card of a weights file, an object" path (fun json ->
                [
                    for property in json.EnumerateObject() do
                        if not (List.contains property.Name keys) then
                            Errors.reject
                                path
                                $"""must have no keys but {String.concat ", " keys}"""
                                (quoted property.Name)
                                ""

                        property.Name, textOf property.Name property.Value
                ])

        match texts |> List.countBy fst |> List.tryFind (fun (_, n) -> n > 1) with
        | Some(key, n) -> Errors.reject (place key) "must be there once" $"{n} times" ""
        | None -> ()

        let texts = Map.ofList texts
        ofTexts (fun key -> Map.tryFind key texts |> Option.map (fun text -> text, place key))

    /// <summary>What a weights file says about itself: the JSON file beside it comes before its metadata.</summary>
    /// <param name="header">The header of the weights file.</param>
    /// <returns>The card; None for what neither states.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The JSON file is damaged or has an unknown key, or a value is of the
    /// wrong kind or out of range.</exception>
    let read (header: TensorFileHeader) : WeightsCard =
        let inside = ofMetadata header.Path header.Metadata
        let beside = path header.Path

        if File.Exists beside then
            let card = ofJson beside

            {
                InputRange = card.InputRange |> Option.orElse inside.InputRange
                ImageSize = card.ImageSize |> Option.orElse inside.ImageSize
                Heads = card.Heads |> Option.orElse inside.Heads
                NormEpsilon = card.NormEpsilon |> Option.orElse inside.NormEpsilon
            }
        else
            inside
