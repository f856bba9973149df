namespace LoRASub.Heads

open System
open System.Globalization
open LoRASub.Core

/// A kind of head.
type HeadRow =
    {
        /// Name, meaning and source.
        Info: HeadInfo
        /// Names and defaults of what may follow the name after colons.
        Parameters: (string * string) list
        /// Makes the head of a full name from the texts of its parameters.
        Create: string -> string list -> AnyHead
    }

/// The heads that can be chosen by name: the only list of them.
[<RequireQualifiedAccess>]
module Heads =

    /// <summary>The classifier that a method brings itself: a head without a state, for which
    /// `Learner.deploy` asks the method.</summary>
    let logits: Head<unit> =
        {
            Info =
                {
                    Name = "logits"
                    Summary = "the method's own classifier"
                    Source = "the method's paper"
                }
            Tree = Tree.unit
            Zero = fun _ _ _ -> ()
            Grow = fun _ () -> ()
            Observe = fun _ _ () -> ()
            Merge = fun () () -> ()
            Forget = fun _ () -> ()
            Transport = None
            Scores =
                fun () ->
                    Errors.reject
                        "head logits"
                        "must take its scores from a method's own classifier"
                        "no method"
                        "use `Learner.deploy`"
        }

    let private (|Share|_|) (text: string) =
        match Double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture) with
        | true, x when x > 0.0 && x <= 1.0 -> Some x
        | _ -> None

    let private (|Whole|_|) (text: string) =
        match Int32.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture) with
        | true, n when n > 0 -> Some n
        | _ -> None

    let private reject (name: string) (expected: string) (text: string) =
        Errors.reject $"head {name}" $"must have {expected} there" $"'{text}'" ""

    let private number name =
        function
        | Share x -> x
        | text -> reject name "a number in (0, 1]" text

    let private shrinkage name (text: string) =
        match text, text.Split '-' with
        | "oas", _ -> Shrinkage.Oas
        | "ratio", _ -> Shrinkage.Ratio
        | _, [| Whole images; "images" |] -> Shrinkage.Images images
        | Share x, _ -> Shrinkage.Fixed x
        | _ -> reject name "a number in (0, 1], ratio, oas, or a number of images such as 300-images" text

    let private features name =
        function
        | Whole m when m <= 20000 -> m
        | text -> reject name "a number of features from 1 to 20000" text

    let private row (info: HeadInfo) (parameters: (string * string) list) create : HeadRow =
        {
            Info = info
            Parameters = parameters
            Create = create
        }

    // a head under the name that was asked for
    let private called (name: string) (head: Head<'H>) : AnyHead =
        Head.hide
            { head with
                Info = { head.Info with Name = name }
            }

    let private fixedRow (head: Head<'H>) =
        row head.Info [] (fun name _ -> called name head)

    /// <summary>Every head that has a name.</summary>
    let all: HeadRow list =
        [
            fixedRow NearestMean.head
            row Discriminant.info [ "SHRINKAGE", "0.01" ] (fun name texts ->
                called name (Discriminant.lda (shrinkage name texts[0])))
            row Discriminant.cosineInfo [ "SHRINKAGE", "0.01" ] (fun name texts ->
                called name (Discriminant.cosine (shrinkage name texts[0])))
            row Ridge.info [ "LAMBDA", "0.001" ] (fun name texts ->
                called name (Ridge.head (number name texts[0])))
            row RandomProjection.ridgeInfo [ "FEATURES", "2048"; "LAMBDA", "0.1" ] (fun name texts ->
                Ridge.head (number name texts[1])
                |> RandomProjection.over RandomProjection.ridgeInfo (features name texts[0])
                |> called name)
            row RandomProjection.cosineInfo [ "FEATURES", "2048"; "SHRINKAGE", "0.1" ] (fun name texts ->
                Discriminant.cosine (shrinkage name texts[1])
                |> RandomProjection.over RandomProjection.cosineInfo (features name texts[0])
                |> called name)
            row ClassCovariance.mixedInfo [ "BETA", "0.2"; "SHRINKAGE", "0.03" ] (fun name texts ->
                called name (ClassCovariance.mixed (number name texts[0]) (number name texts[1])))
            fixedRow ClassCovariance.fecam
            fixedRow logits
        ]

    /// <summary>Their names.</summary>
    let names = all |> List.map _.Info.Name

    /// <summary>The head of a name, such as `cosine-lda` or `rp-ridge:10000:0.03`: parameters follow the name in the order
    /// of `HeadRow.Parameters`, and those left out have their defaults.</summary>
    /// <param name="name">One of `names`, and parameters.</param>
    /// <returns>The head over hidden states, under this name.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no head of this name, or a parameter is one too many or
    /// out of range.</exception>
    let find (name: string) : AnyHead =
        let parts = List.ofArray (name.Split ':')

        match all |> List.tryFind (fun row -> row.Info.Name = parts.Head) with
        | None ->
            Errors.reject
                "head"
                $"""must be one of {String.concat ", " names}"""
                $"'{name}'"
                (Errors.didYouMean names parts.Head)
        | Some row when parts.Length - 1 > row.Parameters.Length ->
            let most = String.concat ":" (row.Info.Name :: List.map fst row.Parameters)

            Errors.reject "head" $"must be {most} at most" $"'{name}'" ""
        | Some row ->
            let given = parts.Tail

            row.Parameters
            |> List.mapi (fun i (_, byDefault) -> List.tryItem i given |> Option.defaultValue byDefault)
            |> row.Create name
