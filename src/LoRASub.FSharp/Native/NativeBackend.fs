namespace LoRASub.Native

open System
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Runtime.Loader
open System.Text.RegularExpressions
open LoRASub.Core
open Microsoft.Win32.SafeHandles

/// The LibTorch that TorchSharp was built for.
module internal LibTorch =

    [<Literal>]
    let Expected = "2.10"

    /// The setting that refuses other versions: 1, or not set.
    [<Literal>]
    let Strict = "LORASUB_LIBTORCH_STRICT"

/// How the native libraries came into this process.
type NativeLoad =
    {
        /// The folder that LibTorch was taken from; empty where TorchSharp's own loader does the work.
        LibTorch: string
        /// LibTorch's version as its folder states it; empty when it does not.
        LibTorchVersion: string
        /// Whether this is the version that TorchSharp was built for and the tests ran on.
        IsTested: bool
        /// What chose the folder: "package", "LORASUB_LIBTORCH" or "useLibTorch".
        ChosenBy: string
        /// The shared objects in the order in which they were loaded.
        Libraries: string list
        /// The package's libLibTorchSharp.so when a changed copy of it had to be loaded.
        PatchedFrom: string option
        /// Symbol versions that the copy no longer insists on, because the system's libstdc++ lacks them.
        Weakened: string list
    }

    /// <summary>A note that this LibTorch is not the tested version; None if it is.</summary>
    member load.Note: string option =
        if load.IsTested then
            None
        else
            let version =
                if load.LibTorchVersion = "" then
                    "of unknown version"
                else
                    load.LibTorchVersion

            Some $"LibTorch {version} is untested (tested: {LibTorch.Expected})"

    /// <summary>Name and value of each fact, for a person to read.</summary>
    member load.Facts: (string * string) list =
        [
            if load.LibTorch = "" then
                "LibTorch", "left to TorchSharp's loader"
            else
                let version =
                    if load.LibTorchVersion = "" then
                        "version not stated"
                    else
                        load.LibTorchVersion

                "LibTorch", $"{load.LibTorch} ({version}; chosen by {load.ChosenBy})"

            match load.Note with
            | None -> ()
            | Some note -> "untested", note

            for path in load.Libraries do
                "loaded", path

            match load.PatchedFrom with
            | None -> ()
            | Some original ->
                let versions = String.concat ", " load.Weakened
                "patched", $"{original}, because the system's libstdc++ lacks {versions}"
        ]

/// Brings LibTorch and TorchSharp's native part into the process before TorchSharp looks for them.
///
/// LibTorch is taken from the folder given to `useLibTorch`, else from the one that LORASUB_LIBTORCH names, else from
/// the package that the program references.
[<RequireQualifiedAccess>]
module NativeBackend =

    /// <summary>The LibTorch version that TorchSharp was built for. Others are accepted where they have all
    /// symbols that it needs.</summary>
    [<Literal>]
    let ExpectedLibTorch = LibTorch.Expected

    [<Literal>]
    let private Variable = "LORASUB_LIBTORCH"

    let private platform = "linux-x64"
    let private wrapper = "libLibTorchSharp.so"

    /// Dependencies first. The CUDA parts are there in a CUDA LibTorch only.
    let private parts =
        [
            "libc10.so"
            "libtorch_cpu.so"
            "libc10_cuda.so"
            "libtorch_cuda.so"
            "libtorch.so"
        ]

    /// Needs that may be weakened: libLibTorchSharp.so has GLIBCXX_3.4.32 for one symbol,
    /// std::ios_base_library_init(), to which nothing in it refers.
    let private dispensable = Set.ofList [ "GLIBCXX_3.4.32" ]

    let private under (folder: string) (name: string) = Path.Combine(folder, name)

    // ---------------------------------------------------------------- the dynamic linker

    [<DllImport("libc.so.6", EntryPoint = "dlopen")>]
    extern nativeint private openLibrary([<MarshalAs(UnmanagedType.LPUTF8Str)>] string path, int mode)

    [<DllImport("libc.so.6", EntryPoint = "dlerror")>]
    extern nativeint private lastError()

    /// The linker's handle, or its complaint. Symbols are bound at once, so that a LibTorch of another version is
    /// found out here and not by an abort in the middle of a run.
    let private tryOpen (path: string) : Result<nativeint, string> =
        lastError () |> ignore

        match openLibrary (path, 2) with
        | 0n -> Error(Marshal.PtrToStringUTF8(lastError ()))
        | handle -> Ok handle

    // ---------------------------------------------------------------- memory

    [<DllImport("libc.so.6", EntryPoint = "mallopt")>]
    extern int private setAllocator(int parameter, int value)

    /// Keeps freed activations with the process: glibc gives blocks of megabytes back to the system at once, and a
    /// training step that takes them again pays for each page. Blocks above 256 MiB, such as covariances of 8,192 columns, would leave
    /// holes that nothing else fits. Whoever sets the allocator by its environment variables is left alone.
    let private keepFreedMemory () =
        let own =
            Environment.GetEnvironmentVariables().Keys
            |> Seq.cast<string>
            |> Seq.exists (fun name ->
                name.StartsWith("MALLOC_", StringComparison.Ordinal)
                || name = "GLIBC_TUNABLES"
                || name = "LD_PRELOAD") // another allocator, as a rule

        if not own then
            let trimThreshold, topPad, mmapThreshold = -1, -2, -3

            // 0 where a glibc takes no such threshold: alone, the others would do harm
            if setAllocator (mmapThreshold, 1 <<< 28) <> 0 then
                setAllocator (trimThreshold, Int32.MaxValue) |> ignore
                setAllocator (topPad, 64 <<< 20) |> ignore

    // ---------------------------------------------------------------- where the files are

    /// A path with all its symbolic links followed: output folders link to the packages.
    let private target (path: string) =
        match File.ResolveLinkTarget(path, true) with
        | null -> Path.GetFullPath path
        | file -> file.FullName

    let private torchSharp = typeof<TorchSharp.DeviceType>.Assembly

    /// Folders that the runtime itself probes for a native library of this program.
    let private probed () =
        [
            match AppContext.GetData "NATIVE_DLL_SEARCH_DIRECTORIES" with
            | :? string as folders ->
                yield! folders.Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries)
            | _ -> ()

            if torchSharp.Location <> "" then
                Path.GetDirectoryName torchSharp.Location
        ]

    /// Package folders: the one that TorchSharp.dll is in or links to, as in a script, and the user's.
    let internal packageFolders () =
        [
            if torchSharp.Location <> "" then
                // packages/torchsharp/0.107.0/lib/net8.0/TorchSharp.dll
                Path.GetFullPath(Path.Combine(target torchSharp.Location, "..", "..", "..", "..", ".."))

            match Environment.GetEnvironmentVariable "NUGET_PACKAGES" with
            | null
            | "" ->
                Path.Combine(
                    Environment.GetFolderPath Environment.SpecialFolder.UserProfile,
                    ".nuget",
                    "packages"
                )
            | folder -> folder
        ]

    /// Folders that may hold the packages' native files.
    let private candidates () =
        let native (folder: string) =
            Path.Combine(folder, "runtimes", platform, "native")

        let version = torchSharp.GetName().Version.ToString 3

        [
            yield! probed ()

            for assembly in [ torchSharp; Assembly.GetExecutingAssembly() ] do
                if assembly.Location <> "" then
                    let folder = Path.GetDirectoryName assembly.Location
                    folder
                    native folder

            native AppContext.BaseDirectory

            for folder in packageFolders () do
                native (Path.Combine(folder, "torchsharp", version))
                native (Path.Combine(folder, "libtorch-cpu-" + platform, ExpectedLibTorch + ".0"))
        ]
        |> List.distinct

    let private tryFind (name: string) (folders: string list) =
        folders |> List.tryFind (fun folder -> File.Exists(under folder name))

    // ---------------------------------------------------------------- another LibTorch

    let private advice =
        $"give the lib folder of LibTorch {ExpectedLibTorch}, such as an installed PyTorch's torch/lib"

    /// The folder itself, or its lib folder, as LibTorch's archive is laid out.
    let internal libTorchFolder (chosenBy: string) (folder: string) : string =
        match tryFind "libtorch_cpu.so" [ folder; under folder "lib" ] with
        | Some folder -> Path.GetFullPath folder
        | None ->
            let found =
                if Directory.Exists folder then
                    "a folder without it"
                else
                    "no such folder"

            Errors.reject $"{chosenBy} {folder}" "must hold libtorch_cpu.so" found advice

    /// The version that a LibTorch folder states: PyTorch's version.py, LibTorch's build-version, the package's
    /// folder, the end of the library's name, or the dependencies of a published program.
    let internal libTorchVersion (folder: string) : string =
        let path = target (under folder "libtorch_cpu.so")

        let stated (file: string) (pattern: string) =
            let file = Path.GetFullPath(Path.Combine(folder, "..", file))

            if File.Exists file then
                Some(Regex.Match(File.ReadAllText file, pattern))
            else
                None

        [
            stated "version.py" @"__version__ = '([^']+)'"
            stated "build-version" @"^(\S+)"
            Some(Regex.Match(path, @"/libtorch-[^/]+/(\d[^/]+)/runtimes/"))
            Some(Regex.Match(path, @"\.so\.(\d[\d.]+)$"))
            for file in Directory.GetFiles(folder, "*.deps.json") do
                Some(Regex.Match(File.ReadAllText file, "\"libtorch-cpu-[^/\"]+/(\d[^\"]+)\""))
        ]
        |> List.choose id
        |> List.tryFind _.Success
        |> Option.map _.Groups[1].Value
        |> Option.defaultValue ""

    /// Whether a stated version is the one that TorchSharp was built for.
    let internal isTested (version: string) : bool =
        (version + ".").StartsWith(ExpectedLibTorch + ".", StringComparison.Ordinal)

    /// Rejects a version that is not the tested one where `strict`, the value of LORASUB_LIBTORCH_STRICT, asks for that.
    let internal requireVersion (strict: string) (subject: string) (version: string) : unit =
        match strict with
        | ""
        | "0" -> ()
        | "1" ->
            if not (isTested version) then
                let found = if version = "" then "no stated version" else version

                Errors.reject
                    subject
                    $"must hold LibTorch {ExpectedLibTorch} under {LibTorch.Strict}=1"
                    found
                    advice
        | other -> Errors.reject LibTorch.Strict "must be 1 or 0, or not set" $"'{other}'" ""

    /// Rejects what the linker did not load. A missing symbol or library has a fix of its own, whichever file the linker
    /// was opening.
    let internal refuseLoad subject (version: string) rule (complaint: string) fix : 'a =
        let missing (pattern: string) =
            match Regex.Match(complaint, pattern).Groups[1].Value with
            | "" -> None
            | name ->
                let version = if version = "" then "a LibTorch" else $"LibTorch {version}"
                Some $"{version} without {name}"

        match
            missing @"undefined symbol: ([^\s,;]+)",
            missing @"(?:^|; )([^/\s]+): cannot open shared object file"
        with
        | Some found, _ ->
            let fix = $"give the lib folder of LibTorch {ExpectedLibTorch}"
            Errors.reject subject "must have every symbol that TorchSharp needs" found fix
        | None, Some found ->
            Errors.reject
                subject
                "must find every library that it needs"
                found
                $"add the folder of that library to LD_LIBRARY_PATH, or give the lib folder of LibTorch {ExpectedLibTorch}"
        | None, None ->
            match NativeError.shortage complaint with
            | Some shortage ->
                raise (
                    NativeError.memory
                        $"while loading LibTorch ({subject})"
                        NativeError.moreMemory
                        shortage
                        null
                )
            | None -> Errors.reject subject rule complaint fix

    // ---------------------------------------------------------------- libraries made here

    [<DllImport("libc.so.6", EntryPoint = "memfd_create", SetLastError = true)>]
    extern int private createInMemory([<MarshalAs(UnmanagedType.LPUTF8Str)>] string name, uint32 flags)

    /// Opens the bytes as a library. They are in the memory of this process and not in a folder, where another user could
    /// place or change them.
    let private openBytes (subject: string) (version: string) (name: string) (bytes: byte[]) : string =
        let failed (complaint: string) =
            refuseLoad $"{subject}, a copy of {name}" version "must be loadable from memory" complaint ""

        let closeOnExec = 1u
        let descriptor = createInMemory (name, closeOnExec)

        if descriptor < 0 then
            failed (Marshal.GetLastPInvokeErrorMessage())

        // It stays open: the linker knows a library by its path, and a later one must have another.
        let file = new SafeFileHandle(nativeint descriptor, ownsHandle = false)
        RandomAccess.Write(file, ReadOnlySpan bytes, 0L)
        let path = $"/proc/self/fd/{descriptor}"

        match tryOpen path with
        | Ok _ -> path
        | Error complaint -> failed complaint

    // ---------------------------------------------------------------- loading

    /// Opens a part of LibTorch. If the linker misses another file of the same folder, that one goes
    /// first: some builds of LibTorch do not declare the CUDA libraries beside them.
    let rec private openPart
        (subject: string)
        (version: string)
        (folder: string)
        (tried: Set<string>)
        (name: string)
        : string list =
        let path = under folder name

        if File.Exists path && not (Elf.isWhole path) then
            let length = FileInfo(target path).Length
            Errors.reject subject $"{name} must be whole" $"only its first {length} bytes" "fetch it again"

        match tryOpen path with
        | Ok _ -> [ path ]
        | Error complaint ->
            let missing =
                Regex.Match(complaint, @"^(\S+): cannot open shared object file").Groups[1].Value

            if
                missing <> ""
                && not (tried.Contains missing)
                && File.Exists(under folder missing)
            then
                let first = openPart subject version folder (tried.Add missing) missing
                first @ openPart subject version folder (tried.Add missing) name
            else
                refuseLoad subject version $"{name} must load" complaint advice

    /// TorchSharp asks the runtime for "torch_cpu" and "torch_cuda" by name, and the runtime would look beside the
    /// program before it asks us. A second LibTorch in the process aborts it. So each file that would be found there
    /// gets an empty namesake: a library whose own name is that path, which the linker then takes as already loaded.
    let private shadow (subject: string) (version: string) (libTorch: string) : unit =
        for folder in List.distinct (probed ()) do
            for name in [ "libtorch_cpu.so"; "libtorch_cuda.so" ] do
                let path = under folder name

                let chosen = under libTorch name

                if File.Exists path && not (File.Exists chosen && target path = target chosen) then
                    openBytes subject version ("shadow-of-" + name) (Elf.empty path) |> ignore

    /// Versions that the linker finds missing: "version `GLIBCXX_3.4.32' not found".
    let private missingVersions (complaint: string) =
        Regex.Matches(complaint, "version `([A-Z]+_[0-9.]+)' not found")
        |> Seq.map _.Groups[1].Value
        |> Set.ofSeq

    // LibTorch's own start and the first computations; 130 MB were measured
    let private start = 256L <<< 20

    /// Raises a MemoryException where a limit of address space leaves too little for these files: C++ would end the
    /// process in the middle of loading them.
    let internal requireMemory (subject: string) (left: int64 option) (files: string list) : unit =
        let needed = start + List.sumBy (fun file -> FileInfo(target file).Length) files

        match left with
        | Some left when left < needed ->
            let shortage =
                {
                    Kind = MemoryKind.Main
                    Requested = Some needed
                    Free = Some left
                }

            raise (
                NativeError.memory $"while loading LibTorch ({subject})" NativeError.moreMemory shortage null
            )
        | _ -> ()

    let private load (chosen: (string * string) option) : NativeLoad =
        let nothing =
            {
                LibTorch = ""
                LibTorchVersion = ""
                IsTested = true
                ChosenBy = "package"
                Libraries = []
                PatchedFrom = None
                Weakened = []
            }

        if
            not (
                OperatingSystem.IsLinux()
                && RuntimeInformation.OSArchitecture = Architecture.X64
            )
        then
            match chosen with
            | None -> nothing
            | Some(chosenBy, folder) ->
                Errors.reject
                    $"{chosenBy} {folder}"
                    "works on Linux x64"
                    RuntimeInformation.RuntimeIdentifier
                    ""
        else
            let folders = candidates ()

            let chosenBy, libTorch =
                match chosen with
                | Some(chosenBy, folder) -> chosenBy, libTorchFolder chosenBy folder
                | None ->
                    match tryFind "libtorch_cpu.so" folders with
                    | Some folder -> "package", folder
                    | None ->
                        Errors.reject
                            "LibTorch"
                            $"must be in the program's folder, in the package folder, or where {Variable} points"
                            "libtorch_cpu.so in none of them"
                            $"reference the package libtorch-cpu-{platform} {ExpectedLibTorch}.0, or {advice}"

            let original =
                match tryFind wrapper folders with
                | Some folder -> under folder wrapper
                | None ->
                    Errors.reject
                        wrapper
                        "must be in the program's folder or in the package folder"
                        "neither"
                        $"reference the package TorchSharp {torchSharp.GetName().Version.ToString 3}"

            let version = libTorchVersion libTorch
            let subject = $"{chosenBy} {libTorch}"

            let strict =
                Environment.GetEnvironmentVariable LibTorch.Strict
                |> Option.ofObj
                |> Option.defaultValue ""

            // the package is of the tested version, also where a published program no longer states it
            if chosen.IsSome then
                requireVersion strict subject version

            // The linker knows a loaded library by its own name, wherever the file that needs it is.
            let present =
                parts
                |> List.filter (fun name ->
                    List.contains name [ "libc10.so"; "libtorch_cpu.so" ]
                    || File.Exists(under libTorch name))

            present
            |> List.map (under libTorch)
            |> List.filter File.Exists
            |> requireMemory subject (NativeError.addressSpaceLeft ())

            let libraries =
                present |> List.collect (openPart subject version libTorch Set.empty)

            shadow subject version libTorch
            keepFreedMemory ()

            let loaded, weakened =
                match tryOpen original with
                | Ok _ -> original, []
                | Error complaint ->
                    let missing = missingVersions complaint

                    if not missing.IsEmpty && Set.isSubset missing dispensable then
                        let bytes = File.ReadAllBytes original
                        let weakened = Elf.weakenNeeds missing bytes
                        openBytes subject version wrapper bytes, weakened
                    else
                        refuseLoad subject version $"must let TorchSharp's {wrapper} load" complaint advice

            // The runtime's own search fails where the original does not load; this is what it asks last.
            let handle = NativeLibrary.Load loaded
            let context = AssemblyLoadContext.GetLoadContext torchSharp
            context.add_ResolvingUnmanagedDll (fun _ name -> if name = "LibTorchSharp" then handle else 0n)

            {
                LibTorch = libTorch
                LibTorchVersion = version
                IsTested = chosen.IsNone || isTested version
                ChosenBy = chosenBy
                Libraries = libraries @ [ loaded ]
                PatchedFrom = if weakened.IsEmpty then None else Some original
                Weakened = weakened
            }

    let private gate = obj ()
    let mutable private chosenFolder: string option = None

    let private state =
        lazy
            (match chosenFolder, Environment.GetEnvironmentVariable Variable with
             | Some folder, _ -> load (Some("useLibTorch", folder))
             | None, (null | "") -> load None
             | None, folder -> load (Some(Variable, folder)))

    /// <summary>Takes LibTorch from a folder instead of the package.</summary>
    /// <param name="folder">A LibTorch folder, or its lib folder.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder holds no libtorch_cpu.so, or LibTorch is loaded
    /// already.</exception>
    let useLibTorch (folder: string) : unit =
        lock gate (fun () ->
            if state.IsValueCreated then
                Errors.reject
                    $"useLibTorch {folder}"
                    "must come before the first use of tensors"
                    $"LibTorch loaded from {state.Value.LibTorch}"
                    ""

            chosenFolder <- Some(libTorchFolder "useLibTorch" folder))

    /// <summary>Loads the native libraries once. Call it before anything of TorchSharp. On Linux it also makes
    /// the process keep the memory that it frees, unless MALLOC_MMAP_THRESHOLD_ or another setting of glibc's
    /// allocator is given.</summary>
    /// <returns>How they were loaded.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The libraries are absent or do not load, or the current folder
    /// was deleted.</exception>
    let ensureLoaded () : NativeLoad =
        lock gate (fun () ->
            // MKL would end the process
            if not (state.IsValueCreated || Directory.Exists ".") then
                Errors.reject "the current folder" "must exist" "a deleted one" "change to another folder"

            state.Force())
