namespace LoRASub

/// Input that breaks a stated rule: the message names the file, tensor or setting, the rule, what was found, and
/// what to do. Programs answer it with exit code 2.
type InputException(message: string, inner: exn) =
    inherit System.Exception(message, inner)
    new(message: string) = InputException(message, null)

/// The one way in which this library refuses its input.
[<RequireQualifiedAccess>]
module Errors =

    /// Raises an InputException that reads "subject: rule; found received; fix".
    /// `subject` is the file, tensor or setting; `fix` may be empty.
    let reject (subject: string) (rule: string) (received: string) (fix: string) : 'a =
        let fix = if fix = "" then "" else "; " + fix
        raise (InputException $"{subject}: {rule}; found {received}{fix}")

    /// Rejects unless `condition` holds; the texts are built only then.
    let inline require ([<InlineIfLambda>] condition: unit -> bool) (subject: string) (rule: string) (received: unit -> string) =
        if not (condition ()) then
            reject subject rule (received ()) ""

    /// Rejects a number outside a closed interval, and NaN.
    let requireBetween (subject: string) (low: float) (high: float) (value: float) =
        if not (value >= low && value <= high) then
            reject subject $"must lie in [{low}, {high}]" $"{value}" ""
