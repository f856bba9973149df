// How far images decoded and resampled here are from Pillow's, in grey levels: mean and largest difference.
//
//     dotnet fsi scripts/compare-pillow.fsx [PYTHON]
//
// Needs the library's build (dotnet fsi build.fsx -t Build) and a Python 3 with Pillow and numpy. PYTHON is its
// executable; the default is python3.

#load "load.fsx"

open System
open System.Diagnostics
open System.IO
open LoRASub.Data

let python =
    match List.tail (List.ofArray fsi.CommandLineArgs) with
    | [] -> "python3"
    | program :: _ -> program

let folder = Directory.CreateTempSubdirectory("lorasub-pillow-").FullName

let run =
    Process.Start(python, [ Path.Combine(__SOURCE_DIRECTORY__, "compare-pillow.py"); folder ])

run.WaitForExit()

if run.ExitCode <> 0 then
    eprintfn
        $"{python} must be a Python 3 with Pillow and numpy: dotnet fsi scripts/compare-pillow.fsx PYTHON"

    exit 2

/// Mean and largest difference of two arrays of bytes.
let difference (expected: byte[]) (actual: byte[]) : struct (float * int) =
    if expected.Length <> actual.Length then
        failwith $"{actual.Length} bytes, expected {expected.Length}"

    let differences =
        Array.map2 (fun (a: byte) (b: byte) -> abs (int a - int b)) expected actual

    struct (Array.averageBy float differences, Array.max differences)

let rows =
    Directory.GetFiles folder
    |> Array.filter (fun path -> File.Exists(path + ".rgb"))
    |> Array.sort
    |> Array.map (fun path ->
        let picture = ImageFile.read path
        let pillow kind = File.ReadAllBytes(path + kind)

        Path.GetFileName path,
        $"{picture.Width} x {picture.Height}",
        [
            difference (pillow ".rgb") picture.Pixels
            difference (pillow ".224") (Picture.resize 224 224 picture).Pixels
            difference (pillow ".centre") (Picture.centre 256 224 picture).Pixels
        ])

let cell (struct (mean: float, largest: int)) = $"{mean:F3} / {largest}"

printfn "| image | size | decoded | resized to 224 | shorter side 256, centre 224 |"
printfn "|---|---|---|---|---|"

for name, size, differences in rows do
    let cells = differences |> List.map cell |> String.concat " | "
    printfn $"| {name} | {size} | {cells} |"

let all =
    [ 0..2 ]
    |> List.map (fun i ->
        let column = rows |> Array.map (fun (_, _, differences) -> differences[i])

        struct (column |> Array.averageBy (fun struct (mean, _) -> mean),
                column |> Array.map (fun struct (_, largest) -> largest) |> Array.max))
    |> List.map cell
    |> String.concat " | "

printfn $"| all {rows.Length} | | {all} |"
Directory.Delete(folder, true)
