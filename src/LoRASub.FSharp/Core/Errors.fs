namespace LoRASub.Core

open System

/// <summary>Input that breaks a stated rule: the message names the file, tensor or setting, the rule, what was found, and
/// what to do. Programs answer it with exit code 2. The message is one line of visible text (`Text.visible`), whatever
/// names it holds.</summary>
/// <param name="message">The text, before it is made visible.</param>
/// <param name="inner">The exception behind it, or null.</param>
type InputException(message: string, inner: exn) =
    inherit Exception(Text.visible message, inner)
    /// <summary>An exception with no inner exception.</summary>
    /// <param name="message">The text, before it is made visible.</param>
    new(message: string) = InputException(message, null)

/// The one way in which this library refuses its input.
[<RequireQualifiedAccess>]
module Errors =

    /// "subject: rule; found received; fix". `subject` is the file, tensor or setting; `fix` may be empty.
    let internal message (subject: string) (rule: string) (received: string) (fix: string) : string =
        // a damaged file may hold a text of any length
        let rule, received = Text.cut "..." 1000 rule, Text.cut "..." 500 received

        // the system's messages are sentences
        let received =
            if
                fix <> ""
                && received.EndsWith '.'
                && not (received.EndsWith("..", StringComparison.Ordinal))
            then
                received.Substring(0, received.Length - 1)
            else
                received

        let fix = if fix = "" then "" else "; " + fix
        // joined, not formatted: F#'s formatting takes 20 ms when it is first used, a tenth of a refused command
        String.Concat [| subject; ": "; rule; "; found "; received; fix |]

    /// <summary>Refuses input: raises an `InputException` of one line, "subject: rule; found received;
    /// fix".</summary>
    /// <param name="subject">The file, tensor or setting.</param>
    /// <param name="rule">What it must be.</param>
    /// <param name="received">What it is.</param>
    /// <param name="fix">What to do; may be empty.</param>
    /// <returns>Nothing: it stands where any type is needed.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">Always.</exception>
    let reject (subject: string) (rule: string) (received: string) (fix: string) : 'a =
        raise (InputException(message subject rule received fix))

    /// Changes of one letter and swaps of neighbours from one name to another (optimal string alignment).
    let private distance (name: string) (other: string) : int =
        let mutable before = [||]
        let mutable row = Array.init (other.Length + 1) id

        for i in 1 .. name.Length do
            let previous = row
            row <- Array.create (other.Length + 1) i

            for j in 1 .. other.Length do
                let change = if name[i - 1] = other[j - 1] then 0 else 1
                row[j] <- min (previous[j - 1] + change) (1 + min previous[j] row[j - 1])

                if i > 1 && j > 1 && name[i - 1] = other[j - 2] && name[i - 2] = other[j - 1] then
                    row[j] <- min row[j] (before[j - 2] + 1)

            before <- previous

        row[other.Length]

    /// A slip of the hand: at most a third of the letters differ, or one name begins with the other.
    let private isClose (name: string) (other: string) =
        let begins (long: string) (short: string) =
            short.Length >= 3 && long.StartsWith(short, StringComparison.Ordinal)

        3 * distance name other <= max name.Length other.Length
        || begins name other
        || begins other name

    /// The known name that is nearest to the given one, capitals ignored, if it is close enough to be meant.
    let internal nearest (known: string seq) (name: string) : string option =
        let name = name.ToLowerInvariant()

        match List.ofSeq known with
        | [] -> None
        | known ->
            let lower (other: string) = other.ToLowerInvariant()
            let best = known |> List.minBy (lower >> distance name)
            if isClose name (lower best) then Some best else None

    /// "did you mean X?" for the nearest known name, empty where none is close: advice for `reject`.
    let internal didYouMean (known: string seq) (name: string) : string =
        match nearest known name with
        | Some best -> $"did you mean {best}?"
        | None -> ""
