namespace LoRASub.Reports

open System
open System.Globalization
open System.Text
open LoRASub

/// Texts and numbers on their way into HTML and SVG.
[<RequireQualifiedAccess>]
module internal Markup =

    /// The visible text (`Text.visible`), which holds nothing that XML forbids; line ends stay.
    let clean (text: string) : string =
        text.Split '\n' |> Array.map Text.visible |> String.concat "\n"

    /// A text as the content of an element or a quoted attribute.
    let escape (text: string) : string =
        let escaped = StringBuilder(text.Length + 16)

        for c in clean text do
            match c with
            | '&' -> escaped.Append "&amp;"
            | '<' -> escaped.Append "&lt;"
            | '>' -> escaped.Append "&gt;"
            | '"' -> escaped.Append "&quot;"
            | '\'' -> escaped.Append "&#39;"
            | c -> escaped.Append c
            |> ignore

        string escaped

    /// An element around children that are markup already; attribute values are escaped here.
    let element (name: string) (attributes: (string * string) list) (children: string seq) : string =
        let attributes =
            String.concat "" [ for key, value in attributes -> $" {key}=\"{escape value}\"" ]

        let inner = String.concat "" children
        $"<{name}{attributes}>{inner}</{name}>"

    /// An element without content, closed as XML wants and HTML allows.
    let lone (name: string) (attributes: (string * string) list) : string =
        let attributes =
            String.concat "" [ for key, value in attributes -> $" {key}=\"{escape value}\"" ]

        $"<{name}{attributes}/>"

    /// At most `length` characters, the middle left out.
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

    /// A number with a fixed count of decimals and a true minus sign, for people.
    let fixedPoint (decimals: int) (value: float) : string =
        if Double.IsFinite value then
            // no minus before a rounded zero
            let rounded = Math.Round(value, decimals) + 0.0
            rounded.ToString("F" + string decimals, CultureInfo.InvariantCulture).Replace('-', '−')
        else
            none

    /// A number with about `digits` significant digits, for axes and hovers.
    let significant (digits: int) (value: float) : string =
        if Double.IsFinite value then
            value.ToString("G" + string digits, CultureInfo.InvariantCulture)
        else
            none
