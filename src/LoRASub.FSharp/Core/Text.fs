namespace LoRASub.Core

open System
open System.Globalization
open System.Text

/// Text on its way to people. Names of files, classes and tensors come from anywhere; on a terminal or a page they
/// must not act as anything but text. Files for programs keep the exact names.
[<RequireQualifiedAccess>]
module internal Text =

    let private isHidden (rune: Rune) =
        match Rune.GetUnicodeCategory rune with
        | UnicodeCategory.Control // ESC, CR, LF, C1
        | UnicodeCategory.Format // turns of direction, zero-width characters, tags
        | UnicodeCategory.LineSeparator
        | UnicodeCategory.ParagraphSeparator -> true
        | _ -> rune.Value &&& 0xFFFE = 0xFFFE // no characters, and forbidden in XML

    let private escaped (c: char) =
        match c with
        | '\n' -> @"\n"
        | '\r' -> @"\r"
        | '\t' -> @"\t"
        | c -> $@"\u{int c:X4}"

    /// The text with every character that controls a terminal, changes the direction of text or cannot be seen, and
    /// every half of a surrogate pair, written as an escape of JSON: `\n`, `\u001B`. The result is one line; applying
    /// it twice changes nothing more.
    let visible (text: string) : string =
        let plain = text.AsSpan().IndexOfAnyExceptInRange(' ', '~') < 0

        if plain then
            text
        else
            let shown = StringBuilder(text.Length + 16)
            let mutable i = 0

            while i < text.Length do
                let mutable rune = Unchecked.defaultof<Rune>
                let isWhole = Rune.TryGetRuneAt(text, i, &rune)
                let length = if isWhole then rune.Utf16SequenceLength else 1

                if isWhole && not (isHidden rune) then
                    shown.Append(text, i, length) |> ignore
                else
                    for j in i .. i + length - 1 do
                        shown.Append(escaped text[j]) |> ignore

                i <- i + length

            string shown

    /// "1 task", "5 tasks".
    let counted (n: int) (one: string) (many: string) : string =
        if n = 1 then $"1 {one}" else $"{n} {many}"

    /// The visible text in at most `most` characters; one that is longer ends in `dots`, and never in half of a
    /// surrogate pair.
    let cut (dots: string) (most: int) (text: string) : string =
        let text = visible text

        if text.Length <= most then
            text
        else
            let kept = most - dots.Length

            let kept =
                if Char.IsHighSurrogate text[kept - 1] then
                    kept - 1
                else
                    kept

            text.Substring(0, kept) + dots
