namespace LoRASub.Run

open System
open System.Globalization
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Measure

/// Results as tables for other programs: comma-separated values by RFC 4180 (fields with commas, quotes or line ends in
/// quotes, quotes doubled, lines ended by CR LF), numbers with a point, percentages as in summary.json.
[<RequireQualifiedAccess>]
module internal Csv =

    /// A field, in quotes where it needs them.
    let field (text: string) =
        if text.IndexOfAny [| ','; '"'; '\r'; '\n' |] < 0 then
            text
        else
            "\"" + text.Replace("\"", "\"\"") + "\""

    /// A table from its rows of fields, the header first.
    let table (rows: string seq seq) : string =
        rows
        |> Seq.map (fun row -> (row |> Seq.map field |> String.concat ",") + "\r\n")
        |> String.concat ""

    let private number (value: float) =
        value.ToString("R", CultureInfo.InvariantCulture)

    let private percent (score: Score) =
        if score.Total = 0 then
            ""
        else
            number (Metrics.percent (Metrics.accuracy score))

    /// accuracy.csv: a row per task learned, a column per task tested, `seen` for all of them together; empty above the
    /// diagonal. In percent. Rejects as `Metrics.check`.
    let accuracy (matrix: AccuracyMatrix) : string =
        Metrics.check matrix
        let tasks = seq { 0 .. matrix.Length - 1 }

        let row t =
            seq {
                string t

                for j in tasks do
                    if j <= t then percent (matrix[t][j]) else ""

                percent (Metrics.seen matrix[t])
            }

        table
            [
                seq {
                    "task"

                    for j in tasks do
                        $"task{j}"

                    "seen"
                }
                yield! Seq.map row tasks
            ]

    /// classes.csv: a row per class in the order of learning.
    let classes (scores: ClassScore[]) : string =
        let row (one: ClassScore) =
            seq {
                string one.Position
                string one.Label
                one.Name
                string one.Task
                string one.Score.Correct
                string one.Score.Total
                percent one.Score
            }

        table
            [
                seq {
                    "position"
                    "label"
                    "name"
                    "task"
                    "correct"
                    "total"
                    "accuracy"
                }
                yield! Array.map row scores
            ]

    /// confusion.csv: a row per true class with its name, a column per predicted position. `names` are by position.
    /// Rejects too few names.
    let confusion (names: string[]) (confusion: Confusion) : string =
        let size = confusion.Counts.Length

        if names.Length < size then
            Errors.reject "names of the classes" $"must be at least {size}" $"{names.Length}" ""

        let row i (counts: int[]) =
            seq {
                string i
                names[i]
                yield! Seq.map string counts
            }

        table
            [
                seq {
                    "position"
                    "name"

                    for j in 0 .. size - 1 do
                        string j
                }
                yield! Array.mapi row confusion.Counts
            ]

    let private path name (folder: string) = Path.Combine(folder, $"{name}.csv")

    /// Writes accuracy.csv, classes.csv and confusion.csv into a folder, each whole.
    let write (folder: string) (matrix: AccuracyMatrix) (scores: ClassScore[]) (counts: Confusion) : unit =
        let names = scores |> Array.map _.Name
        WholeFile.writeText (path "accuracy" folder) (accuracy matrix)
        WholeFile.writeText (path "classes" folder) (classes scores)
        WholeFile.writeText (path "confusion" folder) (confusion names counts)
