// Uses the packages in artifacts/packages as a stranger would, from an empty folder: the C# program and the script on the
// library's package page, and the tool. It needs the network where the packages folder lacks a package.
//
//     dotnet fsi build.fsx -t Pack --check

open System
open System.Diagnostics
open System.IO
open System.IO.Compression
open System.Text
open System.Text.RegularExpressions

let under (folder: string) (name: string) = Path.Combine(folder, name)
let root = Path.GetFullPath(under __SOURCE_DIRECTORY__ "..")
let packages = under root "artifacts/packages"
let work = Directory.CreateTempSubdirectory("packages-").FullName

let fail (text: string) =
    eprintfn "%s\n\nThe folder is kept: %s" text work
    exit 1

// ---------------------------------------------------------------------------------------------- what is in them

let version =
    Directory.GetFiles(packages, "LoRASub.FSharp.*.nupkg")
    |> Array.map (fun file -> (Path.GetFileNameWithoutExtension file).Substring "LoRASub.FSharp.".Length)
    |> Array.exactlyOne

let bytesOf (entry: ZipArchiveEntry) =
    use stream = entry.Open()
    use copy = new MemoryStream()
    stream.CopyTo copy
    copy.ToArray()

/// Natives are other people's; F# leaves the path of a file in its quotations, which the arguments of lorasub are.
let isOurs (name: string) =
    Regex.IsMatch(name, @"\.(nuspec|xml|json|md)$|LoRASub[^/]*\.dll$")

for package in Directory.GetFiles packages do
    use archive = ZipFile.OpenRead package
    let name = Path.GetFileName package

    for entry in archive.Entries |> Seq.filter (fun entry -> isOurs entry.FullName) do
        if (bytesOf entry).AsSpan().IndexOf(ReadOnlySpan(Encoding.UTF8.GetBytes root)) >= 0 then
            fail $"{name}: {entry.FullName} names this folder, {root}"

    if name.StartsWith "LoRASub.FSharp." then
        let libraries =
            archive.Entries
            |> Seq.map _.FullName
            |> Seq.filter (fun name -> not (name.StartsWith "_rels/" || name.StartsWith "package/"))
            |> Seq.sortWith (fun a b -> String.CompareOrdinal(a, b))
            |> List.ofSeq

        let expected =
            [
                "LICENSE"
                "LoRASub.FSharp.nuspec"
                "README.md"
                "[Content_Types].xml"
                "icon.png"
                "lib/net10.0/LoRASub.FSharp.dll"
                "lib/net10.0/LoRASub.FSharp.xml"
            ]

        if libraries <> expected then
            fail $"{name} holds %A{libraries}"

// ---------------------------------------------------------------------------------------------- a stranger's folder

/// A picture of 32 x 32 pixels near one colour.
let paint (path: string) (seed: int) (colour: byte list) =
    Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore
    let random = Random seed
    use writer = new BinaryWriter(File.Create path)
    writer.Write "BM"B
    let pixels = 32 * 32 * 3

    for number in [ 54 + pixels; 0; 54; 40; 32; 32; 1 ||| (24 <<< 16); 0; pixels; 0; 0; 0; 0 ] do
        writer.Write(number: int)

    for _ in 1 .. 32 * 32 do
        for part in List.rev colour do
            writer.Write(byte (Math.Clamp(int part + random.Next(-30, 31), 0, 255)))

for folder, colour in
    [
        "pets/cat", [ 200uy; 60uy; 60uy ]
        "pets/dog", [ 60uy; 60uy; 200uy ]
        "birds/crow", [ 40uy; 40uy; 40uy ]
        "birds/gull", [ 220uy; 220uy; 220uy ]
    ] do
    for seed in 1..20 do
        paint (under work $"{folder}/{seed}.bmp") seed colour

paint (under work "unknown.jpg") 99 [ 60uy; 60uy; 200uy ]

for suffix in [ ""; ".json" ] do
    File.Copy(
        under root $"src/LoRASub.FSharp.Cli/assets/vit_micro_patch4_32.safetensors{suffix}",
        under work $"vit.safetensors{suffix}"
    )

let known =
    match Environment.GetEnvironmentVariable "NUGET_PACKAGES" with
    | null
    | "" -> under (Environment.GetFolderPath Environment.SpecialFolder.UserProfile) ".nuget/packages"
    | folder -> Path.GetFullPath folder

// other packages come from where they are already, or from the user's sources
File.WriteAllText(
    under work "nuget.config",
    $"""<configuration>
  <packageSources><add key="made-here" value="{packages}" /></packageSources>
  <fallbackPackageFolders><add key="known" value="{known}" /></fallbackPackageFolders>
</configuration>
"""
)

/// Runs a program in the folder and prints its seconds and the last line of its output.
let run
    (name: string)
    (environment: (string * string) list)
    (expected: string)
    program
    (arguments: string list)
    =
    let clock = Stopwatch.StartNew()
    eprintf "%-44s" name

    let info =
        ProcessStartInfo(program, arguments, WorkingDirectory = work, RedirectStandardOutput = true)

    for key, value in [ "NUGET_PACKAGES", under work "packages"; "DOTNET_NOLOGO", "1" ] @ environment do
        info.Environment[key] <- value

    use started = Process.Start info
    let output = started.StandardOutput.ReadToEnd()
    started.WaitForExit()

    if started.ExitCode <> 0 || not (output.Contains expected) then
        fail $"exit code {started.ExitCode}, expected 0 and '{expected}':\n{output}"

    let last = output.TrimEnd().Split '\n' |> Array.last
    eprintfn "%6.1f s  %s" clock.Elapsed.TotalSeconds last

let dotnet name expected arguments = run name [] expected "dotnet" arguments

// ---------------------------------------------------------------------------------------------- the library

let page = File.ReadAllText(under root "src/LoRASub.FSharp/README.md")

let example (language: string) =
    Regex.Match(page, $"```{language}\n(.*?)```", RegexOptions.Singleline).Groups[1].Value

let libTorch = Regex.Match(page, @"nuget: (libtorch-\S+), (\S+)""").Groups

dotnet "dotnet new console" "" [ "new"; "console"; "-o"; "app"; "-f"; "net10.0"; "--no-restore" ]
File.WriteAllText(under work "app/Program.cs", example "csharp")
let add = [ "add"; "app"; "package" ]
dotnet "dotnet add package LoRASub.FSharp" "" (add @ [ "LoRASub.FSharp"; "-v"; version; "--no-restore" ])
dotnet "dotnet add package libtorch" "" (add @ [ libTorch[1].Value; "-v"; libTorch[2].Value; "--no-restore" ])

dotnet
    "dotnet run, C#"
    "dog"
    [
        "run"
        "--project"
        "app"
        "-p:CreateSymbolicLinksForCopyLocalIfPossible=true"
    ]

let script =
    (example "fsharp").Replace("nuget: LoRASub.FSharp", $"nuget: LoRASub.FSharp, {version}")

File.WriteAllText(under work "script.fsx", script)
dotnet "dotnet fsi script.fsx" "dog" [ "fsi"; "script.fsx" ]

// ---------------------------------------------------------------------------------------------- the tool

let tools = under work "tools"

dotnet
    "dotnet tool install"
    "installed"
    [ "tool"; "install"; "lorasub"; "--tool-path"; tools; "--version"; version ]

// with a home of its own, it finds LibTorch in itself or not at all
let lorasub expected arguments =
    run
        ("lorasub " + String.concat " " arguments)
        [ ("HOME", work) ]
        expected
        (under tools "lorasub")
        arguments

lorasub (version.Split('-')[0]) [ "--version" ]
lorasub "Usage" [ "--help" ]
lorasub "" [ "learn"; "learner"; "pets" ]
lorasub "" [ "learn"; "learner"; "birds" ]
lorasub "dog" [ "predict"; "learner"; "unknown.jpg" ]
lorasub "LibTorch" [ "doctor" ]

Directory.Delete(work, true)
