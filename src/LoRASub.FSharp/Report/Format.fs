namespace LoRASub.Report

open System
open System.Globalization
open LoRASub.Core

/// Texts and numbers as reports show them.
[<RequireQualifiedAccess>]
module internal Format =

    /// The visible text (`Text.visible`), which holds nothing that XML forbids; line ends stay.
    let clean (text: string) : string =
        text.Split '\n' |> Array.map Text.visible |> String.concat "\n"

    /// At most `length` characters; the middle of a longer text is left out.
    let shorten (length: int) (text: string) : string =
        // whole characters as people see them: a cut must not leave half of one
        let letters = StringInfo text

        if letters.LengthInTextElements <= length then
            text
        else
            let tail = (length - 1) / 2
            let head = length - 1 - tail

            letters.SubstringByTextElements(0, head)
            + "…"
            + letters.SubstringByTextElements(letters.LengthInTextElements - tail)

    /// What is shown where there is no number.
    let none = "–"

    /// A number with a fixed number of decimals and a true minus sign.
    let fixedPoint (decimals: int) (value: float) : string =
        if Double.IsFinite value then
            // no minus before a rounded zero
            let rounded = Math.Round(value, decimals) + 0.0
            rounded.ToString("F" + string decimals, CultureInfo.InvariantCulture).Replace('-', '−')
        else
            none

    /// A number with about `digits` significant digits, for axes and tooltips.
    let significant (digits: int) (value: float) : string =
        if Double.IsFinite value then
            value.ToString("G" + string digits, CultureInfo.InvariantCulture)
        else
            none

    /// A camel-case name as words: "memoryBytes" is "memory bytes".
    let words (name: string) : string =
        name
        |> String.collect (fun c ->
            if Char.IsUpper c then
                $" {Char.ToLowerInvariant c}"
            else
                string c)
