/// Text for a terminal of 80 columns: numbers, and lines that do not wrap.
module LoRASub.Cli.Layout

open System
open System.Globalization

/// Of a terminal.
[<Literal>]
let Columns = 80

/// A number with this many decimals.
let fixed' (digits: int) (x: float) : string =
    x.ToString($"F{digits}", CultureInfo.InvariantCulture)

/// A number with at most this many decimals.
let atMost (digits: int) (x: float) : string =
    x.ToString("0." + String('#', digits), CultureInfo.InvariantCulture)

/// A share in percent, with this many decimals.
let percent (digits: int) (share: float) : string = fixed' digits (100.0 * share)

/// Words in lines of at most `width` characters; a longer word has a line of its own.
let wrap (width: int) (text: string) : string list =
    let add (lines: string list) (word: string) =
        match lines with
        | line :: others when line.Length + 1 + word.Length <= width ->
            String.Concat(line, " ", word) :: others
        | _ -> word :: lines

    if text.Length <= width then
        [ text ]
    else
        text.Split ' ' |> Array.fold add [] |> List.rev

/// A text beside its label, which takes `width` columns, in lines of 80.
let row (width: int) (label: string) (text: string) : string list =
    wrap (Columns - width) text
    |> List.mapi (fun i line -> ((if i = 0 then label else "").PadRight width + line).TrimEnd())

/// A time in words, as exact as an estimate is: 20 s, 3 min, 1.5 h.
let about (seconds: float) : string =
    if seconds < 10.0 then $"{max 1.0 (ceil seconds)} s"
    elif seconds < 90.0 then $"{5.0 * ceil (seconds / 5.0)} s"
    elif seconds < 5400.0 then $"{ceil (seconds / 60.0)} min"
    else $"{atMost 1 (seconds / 3600.0)} h"
