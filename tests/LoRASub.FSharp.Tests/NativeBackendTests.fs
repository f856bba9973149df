module LoRASub.Tests.NativeBackendTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Methods
open Expecto

let private inFolder (test: string -> unit) () =
    let folder = Directory.CreateTempSubdirectory("lorasub-tests-").FullName

    try
        test folder
    finally
        Directory.Delete(folder, true)

let private rejects (words: string list) (action: unit -> unit) =
    let message =
        try
            action ()
            ""
        with :? InputException as e ->
            e.Message

    Expect.containsAll (words |> List.filter message.Contains) words $"the message: {message}"

/// libLibTorchSharp.so as the package has it.
let private wrapper () =
    let load = NativeBackend.ensureLoaded ()
    load.PatchedFrom |> Option.defaultValue (List.last load.Libraries)

[<Tests>]
let tests =
    testList
        "NativeBackend"
        [
            testCase "loads once, and tensors work after it" (fun () ->
                let first = NativeBackend.ensureLoaded ()
                let again = Array.Parallel.init 8 (fun _ -> NativeBackend.ensureLoaded ())
                Expect.all again (fun load -> obj.ReferenceEquals(load, first)) "the same load"
                use ones = TorchSharp.torch.ones ([| 2L; 3L |])
                Expect.equal (ones.sum().item<single>()) 6.0f "2 x 3 ones")

            testCase "says what it loaded" (fun () ->
                let load = NativeBackend.ensureLoaded ()
                Expect.all load.Libraries File.Exists "files"
                Expect.equal load.PatchedFrom.IsSome (not load.Weakened.IsEmpty) "patched means weakened"
                Expect.contains (List.map fst load.Facts) "LibTorch" "facts")

            testCase "another LibTorch is refused once one is loaded" (fun () ->
                NativeBackend.ensureLoaded () |> ignore

                rejects [ "useLibTorch"; "before the first use" ] (fun () ->
                    NativeBackend.useLibTorch "elsewhere"))

            testCase
                "a folder is refused without LibTorch"
                (inFolder (fun folder ->
                    let ask folder () =
                        NativeBackend.libTorchFolder "--libtorch" folder |> ignore

                    rejects [ "--libtorch"; folder; "libtorch_cpu.so"; "without it" ] (ask folder)
                    rejects [ "no such folder" ] (ask (Path.Combine(folder, "absent")))))

            testCase
                "a folder is taken itself or by its lib, and its version is read"
                (inFolder (fun folder ->
                    let lib = Directory.CreateDirectory(Path.Combine(folder, "lib")).FullName
                    File.WriteAllText(Path.Combine(lib, "libtorch_cpu.so"), "")
                    Expect.equal (NativeBackend.libTorchFolder "" folder) lib "the lib folder"
                    Expect.equal (NativeBackend.libTorchFolder "" lib) lib "the folder itself"
                    Expect.equal (NativeBackend.libTorchVersion lib) "" "no version stated"
                    let dependency = """{ "libraries": { "libtorch-cpu-linux-x64/2.10.0": {} } }"""
                    File.WriteAllText(Path.Combine(lib, "program.deps.json"), dependency)
                    Expect.equal (NativeBackend.libTorchVersion lib) "2.10.0" "a published program"
                    File.WriteAllText(Path.Combine(folder, "build-version"), "2.10.0+cpu\n")
                    Expect.equal (NativeBackend.libTorchVersion lib) "2.10.0+cpu" "LibTorch's archive"
                    File.WriteAllText(Path.Combine(folder, "version.py"), "__version__ = '2.6.0+cu124'\n")
                    Expect.equal (NativeBackend.libTorchVersion lib) "2.6.0+cu124" "PyTorch"))

            testCase "other versions of LibTorch are refused only where the setting asks for that" (fun () ->
                let tested = [ "2.10"; "2.10.0"; "2.10.1+cu128" ]
                let others = [ ""; "2.1.0"; "2.100.0"; "2.11.0+cu130"; "1.13.1"; "3.0" ]

                for version in tested @ others do
                    Expect.equal (NativeBackend.isTested version) (List.contains version tested) version

                    for lenient in [ ""; "0" ] do
                        NativeBackend.requireVersion lenient "folder" version

                for version in tested do
                    NativeBackend.requireVersion "1" "folder" version

                for version in others do
                    rejects [ "folder"; "2.10"; version; "LORASUB_LIBTORCH_STRICT" ] (fun () ->
                        NativeBackend.requireVersion "1" "folder" version)

                rejects [ "LORASUB_LIBTORCH_STRICT"; "'yes'" ] (fun () ->
                    NativeBackend.requireVersion "yes" "folder" "2.10.0"))

            testCase "missing symbols and libraries have fixes of their own" (fun () ->
                let refuse complaint () =
                    NativeBackend.refuseLoad "folder" "2.7.0" "must load" complaint "advice"

                rejects
                    [ "folder"; "every symbol"; "LibTorch 2.7.0 without _ZN2at3fooEv" ]
                    (refuse "/x/libLibTorchSharp.so: undefined symbol: _ZN2at3fooEv, version BASE")

                rejects
                    [ "folder"; "LibTorch 2.7.0 without libcudart.so.13"; "LD_LIBRARY_PATH" ]
                    (refuse "libcudart.so.13: cannot open shared object file: No such file or directory")

                rejects
                    [ "folder: must load; found /x/y.so: invalid ELF header; advice" ]
                    (refuse "/x/y.so: invalid ELF header"))

            testCase
                "too little address space for LibTorch is reported before it is loaded"
                (inFolder (fun folder ->
                    let file = Path.Combine(folder, "libtorch_cpu.so")
                    File.WriteAllBytes(file, Array.zeroCreate (1 <<< 20))

                    let require left () =
                        NativeBackend.requireMemory "folder" left [ file ]

                    require None ()
                    require (Some(257L <<< 20)) ()

                    Expect.throwsC (require (Some(100L <<< 20))) (fun e ->
                        Expect.isTrue (e :? MemoryException) "type"

                        Expect.stringStarts
                            e.Message
                            "out of memory while loading LibTorch (folder): 257.0 MiB requested, 100.0 MiB free; "
                            "message")))

            testCase "weakening changes one flag and nothing else" (fun () ->
                let original = File.ReadAllBytes(wrapper ())
                let changed = Array.copy original
                let names = Set.ofList [ "GLIBCXX_3.4.32"; "GLIBCXX_9.9.9" ]
                Expect.equal (Elf.weakenNeeds names changed) [ "GLIBCXX_3.4.32" ] "the one that is needed"
                let differing = Array.map2 (<>) original changed |> Array.filter id
                Expect.hasLength differing 1 "bytes"

                Expect.throwsT<ArgumentException>
                    (fun () -> Elf.weakenNeeds names [| 1uy |] |> ignore)
                    "no ELF")

            testCase
                "a library that is cut off is noticed"
                (inFolder (fun folder ->
                    let bytes = File.ReadAllBytes(wrapper ())
                    let cut = Path.Combine(folder, "cut.so")
                    File.WriteAllBytes(cut, bytes[.. bytes.Length / 2])
                    Expect.isFalse (Elf.isWhole cut) "half of it"
                    Expect.isTrue (Elf.isWhole (wrapper ())) "all of it"))

            testCase
                "no library is written where another user could place one"
                (inFolder (fun folder ->
                    // what the package cannot load here would lie in one of these
                    let info =
                        Diagnostics.ProcessStartInfo(
                            "dotnet",
                            [ Path.Combine(AppContext.BaseDirectory, "lorasub.dll"); "doctor" ]
                        )

                    for name in [ "HOME"; "XDG_CACHE_HOME"; "TMPDIR"; "LORASUB_NATIVE_CACHE" ] do
                        info.Environment[name] <- folder

                    info.RedirectStandardOutput <- true
                    use child = Diagnostics.Process.Start info
                    let out = child.StandardOutput.ReadToEnd()
                    child.WaitForExit()
                    Expect.equal child.ExitCode 0 out

                    let libraries =
                        Directory.GetFiles(folder, "*", SearchOption.AllDirectories)
                        |> Array.filter _.Contains(".so")

                    Expect.isEmpty libraries "libraries"))
        ]
