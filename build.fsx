// Builds, tests and runs LoRASub.FSharp:
//
//     dotnet fsi build.fsx -t Test
//     dotnet fsi build.fsx -t Run --tasks 10
//     dotnet fsi build.fsx --list
//
// Everything after the target's name belongs to the target. The script uses no packages, because it has to work
// before there are any.

open System
open System.Collections.Generic
open System.Diagnostics
open System.IO
open System.Runtime.InteropServices
open System.Security.Cryptography
open System.Text
open System.Text.RegularExpressions
open System.Threading.Tasks

let root = __SOURCE_DIRECTORY__
let (</>) (a: string) (b: string) = Path.Combine(a, b)
let solution = root </> "LoRASub.FSharp.sln"
let cli = root </> "src" </> "LoRASub.FSharp.Cli"
let benchmarks = root </> "tests" </> "LoRASub.FSharp.Benchmarks"

/// Ends the script with an exit code; the text, if any, goes to standard error.
exception Stop of exitCode: int * why: string

// ---------------------------------------------------------------------------------------------- processes

module Native =
    [<DllImport("libc", SetLastError = true)>]
    extern int kill(int pid, int signal)

/// The children that a signal to this script has to reach; also the lock of both values.
let private running = HashSet<Process>()

/// After a signal no child is started.
let mutable private stopping = false

/// What a shell reports of a program that SIGTERM ended.
let private terminated = 143

// Ctrl-C goes from the terminal to every process of the group, so the child already has it: this script only
// has to outlive the child, to pass its exit code on. A termination request comes here alone.
Console.CancelKeyPress.Add(fun signal ->
    signal.Cancel <- true
    lock running (fun () -> stopping <- true))

let private terminations =
    PosixSignalRegistration.Create(
        PosixSignal.SIGTERM,
        fun signal ->
            signal.Cancel <- true

            let reached =
                lock running (fun () ->
                    stopping <- true

                    for child in running do
                        if OperatingSystem.IsWindows() then
                            child.Kill true
                        elif not child.HasExited then
                            Native.kill (child.Id, 15) |> ignore

                    running.Count)

            if reached = 0 then
                exit terminated
    )

type Output =
    /// The child writes to this script's own output.
    | Inherit
    /// Each line of standard output goes to the function; standard error is inherited.
    | Lines of (string -> unit)
    /// Both are collected and thrown away unless the child fails.
    | Quiet of StringBuilder

/// Runs a program in a folder, with these variables beside its environment, to its end and returns its exit code.
let runWith
    (variables: (string * string) list)
    (folder: string)
    (output: Output)
    (program: string)
    (arguments: string list)
    : int =
    let info = ProcessStartInfo(program, arguments, WorkingDirectory = folder)
    info.RedirectStandardOutput <- not output.IsInherit
    info.RedirectStandardError <- output.IsQuiet

    if not output.IsInherit then
        info.Environment["DOTNET_CLI_TELEMETRY_OPTOUT"] <- "1"
        info.Environment["DOTNET_NOLOGO"] <- "1"
        info.Environment["DOTNET_GENERATE_ASPNET_CERTIFICATE"] <- "false"
        // A build server would outlive the build and keep the output pipe open.
        info.Environment["MSBUILDDISABLENODEREUSE"] <- "1"
        info.Environment["DOTNET_CLI_USE_MSBUILD_SERVER"] <- "0"

    for name, value in variables do
        info.Environment[name] <- value

    use child = new Process(StartInfo = info)

    let receive (line: string) =
        match output, line with
        | _, null
        | Inherit, _ -> ()
        | Lines f, line -> f line
        | Quiet text, line -> lock text (fun () -> text.AppendLine line |> ignore)

    child.OutputDataReceived.Add(fun e -> receive e.Data)
    child.ErrorDataReceived.Add(fun e -> receive e.Data)

    let starts () =
        not stopping && child.Start() && running.Add child

    if lock running starts then
        if info.RedirectStandardOutput then
            child.BeginOutputReadLine()

        if info.RedirectStandardError then
            child.BeginErrorReadLine()

        child.WaitForExit()
        lock running (fun () -> running.Remove child |> ignore)
        child.ExitCode
    else
        terminated

/// `runWith` no variables.
let runIn folder output program arguments =
    runWith [] folder output program arguments

/// `runIn` the repository.
let run (output: Output) program arguments = runIn root output program arguments

/// The lines of a failed build that say why: the errors and warnings, each once, or everything when there are none.
let reasons (output: string) =
    let lines = output.Split('\n') |> Array.map _.Trim() |> Array.filter ((<>) "")

    let isReason (line: string) =
        Regex.IsMatch(line, @"\b(error|warning)( [A-Z]+\d+)?\s*:", RegexOptions.IgnoreCase)

    // MSBuild ends each with the project in brackets, which the file's own path already shows
    let short (line: string) =
        Regex.Replace(line, @" \[[^\]]+proj\]$", "").Replace(root + string Path.DirectorySeparatorChar, "")

    match lines |> Array.filter isReason |> Array.map short |> Array.distinct with
    | [||] -> String.Join('\n', lines)
    | found -> String.Join('\n', found)

/// One line on the console: the step's name, then its seconds. `work` gets a function that runs `dotnet` quietly.
let step (name: string) (work: (string list -> unit) -> unit) =
    let clock = Stopwatch.StartNew()
    eprintf "%-28s" name

    let dotnet (arguments: string list) =
        let text = StringBuilder()
        let code = run (Quiet text) "dotnet" arguments

        if code <> 0 then
            eprintfn "failed"
            raise (Stop(code, $"{reasons (text.ToString())}\n\n'dotnet {arguments[0]}' ended with {code}."))

    work dotnet
    eprintfn "%6.1f s" clock.Elapsed.TotalSeconds

// ---------------------------------------------------------------------------------------------- packages

/// NuGet's folder of unpacked packages, which Paket uses too (`storage: none`).
let packagesFolder =
    match Environment.GetEnvironmentVariable "NUGET_PACKAGES" with
    | null
    | "" ->
        Environment.GetFolderPath Environment.SpecialFolder.UserProfile
        </> ".nuget"
        </> "packages"
    | folder -> Path.GetFullPath folder

/// Name and version of every package in paket.lock.
let lockedPackages () =
    [
        for line in File.ReadLines(root </> "paket.lock") do
            let entry = Regex.Match(line, @"^ {4}(\S+) \(([^)]+)\)")

            if entry.Success then
                entry.Groups[1].Value, entry.Groups[2].Value
    ]

let isUnpacked (name: string, version: string) =
    File.Exists(
        packagesFolder
        </> name.ToLowerInvariant()
        </> version.ToLowerInvariant()
        </> ".nupkg.metadata"
    )

/// Brings the locked packages into the packages folder with `dotnet restore`, hence from whatever sources the user
/// has configured for it. Paket takes a package that is already there without asking the source that
/// paket.dependencies names, so that this also works when NUGET_PACKAGES points elsewhere.
let fetchPackages dotnet =
    match lockedPackages () |> List.filter (isUnpacked >> not) with
    | [] -> ()
    | absent ->
        let folder = root </> "obj" </> "fetch"
        Directory.CreateDirectory folder |> ignore

        let items =
            absent
            |> List.map (fun (name, version) ->
                $"<PackageDownload Include=\"{name}\" Version=\"[{version}]\" />")
            |> String.concat "\n    "

        File.WriteAllText(
            folder </> "fetch.csproj",
            $"""<Project Sdk="Microsoft.NET.Sdk">
  <PropertyGroup>
    <TargetFramework>net10.0</TargetFramework>
  </PropertyGroup>
  <ItemGroup>
    {items}
  </ItemGroup>
</Project>
"""
        )

        dotnet
            [
                "restore"
                folder </> "fetch.csproj"
                // this project is not one of ours
                "-p:ImportDirectoryBuildProps=false"
                "-p:ImportDirectoryBuildTargets=false"
            ]

let projects () =
    [ "src"; "tests" ]
    |> List.collect (fun top ->
        Directory.GetFiles(root </> top, "*.*proj", SearchOption.AllDirectories)
        |> List.ofArray)
    |> List.filter (fun path -> path.EndsWith ".fsproj" || path.EndsWith ".csproj")
    |> List.sort

/// Changes whenever a restore has something to do. Compile items do not count: they change often.
let restoreKey () =
    let text = StringBuilder()

    let add (path: string) =
        if File.Exists path then
            text.AppendLine(path) |> ignore

            for line in File.ReadLines path do
                if not (line.Contains "<Compile ") then
                    text.AppendLine line |> ignore

    text.AppendLine(packagesFolder).AppendLine(Environment.Version.ToString())
    |> ignore

    List.iter
        add
        [
            root </> ".config" </> "dotnet-tools.json"
            root </> "paket.dependencies"
            root </> "paket.lock"
            root </> "Directory.Build.props"
            root </> "Directory.Build.targets"
            solution
            for project in projects () do
                project
                Path.GetDirectoryName project </> "paket.references"
        ]

    text.ToString()
    |> Encoding.UTF8.GetBytes
    |> SHA256.HashData
    |> Convert.ToHexString

let restore () =
    let stamp = root </> "obj" </> "restored"

    let isRestored =
        File.Exists stamp
        && File.ReadAllText stamp = restoreKey ()
        && File.Exists(root </> ".paket" </> "Paket.Restore.targets")
        && projects ()
           |> List.forall (fun p -> File.Exists(Path.GetDirectoryName p </> "obj" </> "project.assets.json"))
        && lockedPackages () |> List.forall isUnpacked

    if not isRestored then
        let size =
            if List.forall isUnpacked (lockedPackages ()) then
                ""
            else
                " (once, 1 GB)"

        step $"Restore{size}" (fun dotnet ->
            dotnet [ "tool"; "restore" ]
            fetchPackages dotnet
            dotnet [ "paket"; "restore" ]
            dotnet [ "restore"; solution ]
            Directory.CreateDirectory(root </> "obj") |> ignore
            File.WriteAllText(stamp, restoreKey ()))

// ---------------------------------------------------------------------------------------------- targets

let build (what: string) =
    restore ()

    step "Build" (fun dotnet ->
        dotnet
            [
                "build"
                what
                "-c"
                "Release"
                "--no-restore"
                "--disable-build-servers"
                "-v"
                "q"
            ])

let passOn code =
    if code <> 0 then
        raise (Stop(code, ""))

let output (project: string) (assembly: string) =
    project </> "bin" </> "Release" </> "net10.0" </> assembly + ".dll"

/// `lorasub run`, or the subcommand that comes first.
let runCli (arguments: string list) =
    build cli

    let command =
        match arguments with
        | first :: _ when not (first.StartsWith '-') -> arguments
        | _ -> "run" :: arguments

    // paths among the arguments are the caller's
    runIn Environment.CurrentDirectory Inherit "dotnet" (output cli "lorasub" :: command)
    |> passOn

let bench (arguments: string list) =
    build solution // the start of the program is measured as well

    runIn
        Environment.CurrentDirectory
        Inherit
        "dotnet"
        (output benchmarks "LoRASub.FSharp.Benchmarks" :: arguments)
    |> passOn

let compare (arguments: string list) =
    build cli

    runIn
        Environment.CurrentDirectory
        Inherit
        "dotnet"
        ([ "fsi"; root </> "scripts" </> "compare.fsx" ] @ arguments)
    |> passOn

/// Passed, failed and skipped.
let private counts (line: string) =
    let m = Regex.Match(line, @"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$")

    let number (i: int) =
        if m.Groups[i].Success then int m.Groups[i].Value else 0

    if m.Success then
        Some(number 1, number 2, number 3)
    else
        None

/// What shows on one processor the last digits that matrix products have on others.
let processors =
    [
        "ATEN_CPU_CAPABILITY", "default"
        "LORASUB_PRODUCTS", "blas"
        "LORASUB_PRODUCTS", "onednn"
        "MKL_ENABLE_INSTRUCTIONS", "AVX2" // what MKL gives other makers' processors
    ]

/// Exit code, and the counts where tests were run, of each project of tests; `print` gets the lines of their output.
let private runTests variables (print: string -> unit) (arguments: string list) =
    [
        for project in projects () |> List.filter _.EndsWith(".Tests.fsproj") do
            let mutable found = None

            // each project closes with a line of counts; their sum is shown instead
            let show (line: string) =
                // Expecto resets colours that it never set
                let line = Regex.Replace(line, @"\x1b\[[0-9;]*m", "")

                match counts line with
                | None -> print line
                | sums -> found <- sums

            let name = Path.GetFileNameWithoutExtension project

            let code =
                runWith
                    variables
                    root
                    (Lines show)
                    "dotnet"
                    (output (Path.GetDirectoryName project) name :: arguments)

            match found with
            | None when code <> 0 -> code, Some(0, 1, 0) // it broke down before it could count
            | sums -> code, sums
    ]

let test (arguments: string list) =
    build solution

    let usual = runTests [] (printfn "%s") arguments

    // Two at a time, because most tests use one core; passive, because threads that wait would take the other's core.
    let repeats = if List.isEmpty arguments then processors else []
    let repeated = Array.create repeats.Length []

    Parallel.For(
        0,
        repeats.Length,
        ParallelOptions(MaxDegreeOfParallelism = 2),
        fun i ->
            let name, value = repeats[i]
            let variables = [ name, value; "OMP_WAIT_POLICY", "passive" ]

            let print (line: string) =
                stdout.WriteLine $"{name}={value}: {line}"

            repeated[i] <- runTests variables print [ "--numeric" ]
    )
    |> ignore

    let runs = usual @ List.concat repeated

    match List.choose snd runs with
    | [] -> () // a listing or the help
    | sums ->
        let total pick = List.sumBy pick sums
        let skipped = total (fun (_, _, n) -> n)
        let tail = if skipped > 0 then $", {skipped} skipped" else ""
        printfn "%d passed, %d failed%s" (total (fun (n, _, _) -> n)) (total (fun (_, n, _) -> n)) tail

    runs |> List.map fst |> List.tryFind ((<>) 0) |> Option.iter passOn

let fantomas (options: string list) =
    let sources =
        [ "build.fsx"; "src"; "tests"; "scripts" ]
        |> List.filter (fun path -> File.Exists(root </> path) || Directory.Exists(root </> path))

    step "Tools" (fun dotnet -> dotnet [ "tool"; "restore" ])
    run Inherit "dotnet" ("fantomas" :: options @ sources) |> passOn

let clean () =
    for top in [ "src"; "tests" ] do
        for name in [ "bin"; "obj" ] do
            for project in Directory.GetDirectories(root </> top) do
                if Directory.Exists(project </> name) then
                    Directory.Delete(project </> name, true)

    for generated in [ "obj"; "artifacts"; "paket-files"; ".paket" ] do
        if Directory.Exists(root </> generated) then
            Directory.Delete(root </> generated, true)

let publish () =
    restore ()
    let folder = root </> "artifacts" </> "lorasub"

    // machine code compiled ahead halves the program's start; the compiler for it is one more package
    step "Publish" (fun dotnet ->
        dotnet
            [
                "publish"
                cli
                "-c"
                "Release"
                "--use-current-runtime"
                "--no-self-contained"
                "-p:PublishReadyToRun=true"
                "--disable-build-servers"
                "-o"
                folder
                "-v"
                "q"
            ])

    eprintfn "The program is artifacts/lorasub/lorasub; the folder can be moved."

/// The library's package and the tool's packages: for Linux, or with --all also for the platforms that were not tried.
let pack (arguments: string list) =
    let folder = root </> "artifacts" </> "packages"

    let rec options version platforms check arguments =
        match arguments with
        | "--version" :: version :: rest -> options [ $"-p:Version={version}" ] platforms check rest
        | "--all" :: rest -> options version "all" check rest
        | "--check" :: rest -> options version platforms true rest
        | [] -> version, platforms, check
        | other :: _ ->
            raise (Stop(2, $"build.fsx: -t Pack takes --version X, --all and --check, not '{other}'"))

    let version, platforms, check = options [] "tested" false arguments
    restore ()

    if Directory.Exists folder then
        Directory.Delete(folder, true)

    let make name options =
        step $"Pack {name}" (fun dotnet ->
            dotnet (
                [
                    "pack"
                    root </> "src" </> name
                    "-c"
                    "Release"
                    "-o"
                    folder
                    "--disable-build-servers"
                    "-v"
                    "q"
                ]
                @ version
                @ options
            ))

    make "LoRASub.FSharp" [ "--no-restore" ]
    make "LoRASub.FSharp.Cli" [ $"-p:ToolPlatforms={platforms}" ]

    for package in Directory.GetFiles folder |> Array.sort do
        eprintfn
            "%8.1f MB  artifacts/packages/%s"
            (float (FileInfo package).Length / 1e6)
            (Path.GetFileName package)

    if check then
        run Inherit "dotnet" [ "fsi"; root </> "scripts" </> "check-packages.fsx" ]
        |> passOn

let docs (arguments: string list) =
    build (root </> "src" </> "LoRASub.FSharp")

    run Inherit "dotnet" ([ "fsi"; root </> "scripts" </> "site.fsx" ] @ arguments)
    |> passOn

let targets =
    [
        "Restore", "fetch the packages of paket.lock", fun _ -> restore ()
        "Build", "compile everything", fun _ -> build solution
        "Test",
        "build and run the tests, the numeric ones also as other processors compute; arguments go to Expecto",
        test
        "Run", "build and run the program: -t Run --tasks 10, -t Run evaluate DIR", runCli
        "Bench", "measure and rewrite docs/performance.md; -t Bench help", bench
        "Compare",
        "compare methods and heads and rewrite docs/comparison.md; see scripts/compare.fsx",
        compare
        "Format", "format the F# files", fun _ -> fantomas []
        "CheckFormat", "fail when an F# file is not formatted", fun _ -> fantomas [ "--check" ]
        "Publish", "put the program into artifacts/lorasub", fun _ -> publish ()
        "Pack",
        "make the packages in artifacts/packages: --version X, --all platforms, --check their use",
        pack
        "Docs", "make the documentation site in artifacts/site; --quick does not run its tutorials", docs
        "Clean", "delete what builds have made", fun _ -> clean ()
    ]

let list () =
    printfn "dotnet fsi build.fsx -t TARGET [the target's arguments]\n"

    for name, purpose, _ in targets do
        printfn "  %-12s %s" name purpose

let exitCode =
    try
        match List.tail (List.ofArray fsi.CommandLineArgs) with
        | []
        | ("--list" | "--help" | "-h") :: _ ->
            list ()
            0
        | ("-t" | "--target") :: name :: arguments ->
            match
                targets
                |> List.tryFind (fun (known, _, _) -> known.Equals(name, StringComparison.OrdinalIgnoreCase))
            with
            | Some(_, _, action) ->
                action arguments
                0
            | None ->
                eprintfn "build.fsx: no target '%s'\n" name
                list ()
                2
        | argument :: _ ->
            eprintfn "build.fsx: found '%s' where '-t TARGET' was expected\n" argument
            list ()
            2
    with Stop(code, why) ->
        if why <> "" then
            eprintfn "%s" why

        code

exit exitCode
