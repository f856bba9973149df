/// The shape of the source: how many other files a file names, and which folders it may open.
module LoRASub.Tests.ArchitectureTests

open System
open System.IO
open System.Text.RegularExpressions
open Expecto

/// A source file of the library, without comments and the text of strings.
type private Source =
    {
        Path: string
        Folder: string
        Code: string
        /// The types and modules at its top level.
        Names: Set<string>
    }

let private matches (pattern: string) (text: string) =
    Regex.Matches(text, pattern, RegexOptions.Multiline) |> Seq.toList

/// Code inside the braces of an interpolated string stays.
let private codeOf (text: string) =
    let withoutComments = Regex.Replace(text, "//.*", "")

    let holes (found: Match) =
        if found.Value[0] = '$' then
            matches @"\{[^{}]*\}" found.Value |> List.map _.Value |> String.concat " "
        else
            "\"\""

    Regex.Replace(withoutComments, @"\$?""(\\.|[^""\\\n])*""", holes)

let private sources: Lazy<Source[]> =
    lazy
        (let root = Path.Combine(Probe.repository (), "src", "LoRASub.FSharp")
         let project = File.ReadAllText(Path.Combine(root, "LoRASub.FSharp.fsproj"))

         [|
             for found in matches "<Compile Include=\"([^\"]+)\"" project do
                 let path = found.Groups[1].Value
                 let code = codeOf (File.ReadAllText(Path.Combine(root, path)))

                 {
                     Path = path
                     Folder = path.Split('/')[0]
                     Code = Regex.Replace(code, @"^(namespace|open)\b.*$", "", RegexOptions.Multiline)
                     Names =
                         matches @"^(?:type|and|module)\s+(?:private\s+|internal\s+)?(\w+)" code
                         |> List.map _.Groups[1].Value
                         |> Set.ofList
                 }
         |])

/// The files before one that it names, without those of Core, the library's vocabulary. The label of a record's field
/// is no name of a type.
let private named (files: Source[]) (at: int) : string list =
    let mine = files[at]

    let words =
        matches @"(?<![.\w'])[A-Z]\w*(?!\w| *[=:](?!:)| *with)" mine.Code
        |> List.map _.Value
        |> Set.ofList

    [
        for other in files[.. at - 1] do
            if
                other.Folder <> "Core"
                && not (Set.isEmpty (Set.intersect (other.Names - mine.Names) words))
            then
                other.Path
    ]

/// What a file may name besides Core.
[<Literal>]
let private Most = 12

[<Tests>]
let tests =
    testList
        "Architecture"
        [
            testCase $"no file names more than {Most} others" (fun () ->
                Probe.requireSdk ()
                let files = sources.Value

                let counts =
                    [
                        for i in 0 .. files.Length - 1 do
                            let names = named files i

                            if names.Length > Most then
                                let list = String.concat " " names
                                $"{files[i].Path} names {names.Length}: {list}"
                    ]

                Expect.isEmpty counts (String.concat "\n" counts))

            testCase "a folder's files are compiled together, so that folders form layers" (fun () ->
                Probe.requireSdk ()
                let folders = sources.Value |> Array.map _.Folder |> List.ofArray
                let runs = folders |> List.pairwise |> List.filter (fun (a, b) -> a <> b)
                Expect.hasLength runs (List.length (List.distinct folders) - 1) $"{runs}")

            testCase "a folder is a namespace" (fun () ->
                Probe.requireSdk ()
                let root = Path.Combine(Probe.repository (), "src", "LoRASub.FSharp")

                for source in sources.Value do
                    let first = File.ReadLines(Path.Combine(root, source.Path)) |> Seq.head
                    Expect.equal first $"namespace LoRASub.{source.Folder}" source.Path)

            testCase "the count finds the files that a file names" (fun () ->
                Probe.requireSdk ()
                let files = sources.Value
                let at = files |> Array.findIndex (fun file -> file.Path = "Heads/NearestMean.fs")
                Expect.equal (named files at) [ "Heads/ClassSums.fs"; "Heads/Head.fs" ] "names")
        ]
