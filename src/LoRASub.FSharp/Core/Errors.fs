namespace LoRASub

open System

/// Input that breaks a stated rule: the message names the file, tensor or setting, the rule, what was found, and
/// what to do. Programs answer it with exit code 2.
type InputException(message: string, inner: exn) =
    inherit Exception(message, inner)
    new(message: string) = InputException(message, null)

/// The one way in which this library refuses its input.
[<RequireQualifiedAccess>]
module Errors =

    /// "subject: rule; found received; fix". `subject` is the file, tensor or setting; `fix` may be empty.
    let message (subject: string) (rule: string) (received: string) (fix: string) : string =
        let fix = if fix = "" then "" else "; " + fix
        // joined, not formatted: F#'s formatting takes 20 ms when it is first used, a tenth of a refused command
        String.Concat [| subject; ": "; rule; "; found "; received; fix |]

    /// Raises an InputException with this `message`.
    let reject (subject: string) (rule: string) (received: string) (fix: string) : 'a =
        raise (InputException(message subject rule received fix))

    /// The known name with the fewest changes of one letter (Levenshtein distance) to the given one, for
    /// "did you mean". Needs at least one known name.
    let nearest (known: string seq) (name: string) : string =
        let distance (other: string) =
            let mutable row = Array.init (other.Length + 1) id

            for i in 1 .. name.Length do
                let previous = row
                row <- Array.create (other.Length + 1) i

                for j in 1 .. other.Length do
                    let change = if name[i - 1] = other[j - 1] then 0 else 1
                    row[j] <- min (previous[j - 1] + change) (1 + min previous[j] row[j - 1])

            row[other.Length]

        Seq.minBy distance known
