module LoRASub.Tests.NativeErrorTests

open System
open System.IO
open System.Runtime.InteropServices
open LoRASub.Core
open LoRASub.Native
open Expecto
open TorchSharp

let private stack =
    "\nframe #0: c10::ThrowEnforceNotMet(char const*, int, char const*, std::string const&, void const*) + 0x68 (0x7f008bf87fc8 in /x/libc10.so)\nframe #1: c10::alloc_cpu(unsigned long) + 0x358 (0x7f008bf73148 in /x/libc10.so)\n"

let private onCpu =
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1179648000 bytes. Error code 12 (Cannot allocate memory)"
    + stack

let private onGpu =
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 1 has a total capacity of 139.80 GiB of which 12.31 MiB is free. Including non-PyTorch memory, this process has 139.78 GiB memory in use. Of the allocated memory 138.50 GiB is allocated by PyTorch, and 600.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)\nException raised from malloc at /pytorch/c10/cuda/CUDACachingAllocator.cpp:1384 (most recent call first):"
    + stack

let private otherProcess =
    "CUDA out of memory. Tried to allocate 512 bytes. GPU 0 has a total capacity of 79.10 GiB of which 3.12 KiB is free. Process 7 has 79.00 GiB memory in use."

let private shortage kind requested free =
    Some
        {
            Kind = kind
            Requested = requested
            Free = free
        }

let private gpu number = MemoryKind.Gpu(Some number)
let private unknown kind = shortage kind None None

/// A thrown exception of LibTorch's, as TorchSharp raises it.
let private thrown (call: unit -> unit) : exn =
    try
        call ()
        failtest "did not fail"
    with :? ExternalException as e ->
        e

let private tooMuch () =
    thrown (fun () -> torch.empty([| 1L <<< 60 |], dtype = torch.ScalarType.Byte).Dispose())

[<Tests>]
let tests =
    testList
        "NativeError"
        [
            testCase "messages about memory, with their numbers" (fun () ->
                for message, expected in
                    [
                        onCpu, shortage MemoryKind.Main (Some 1179648000L) None
                        onGpu, shortage (gpu 1) (Some 1610612736L) (Some 12907970L)
                        otherProcess, shortage (gpu 0) (Some 512L) (Some 3194L)
                        "CUDA error: out of memory\nCUDA kernel errors might be asynchronous",
                        unknown (MemoryKind.Gpu None)
                        "CUDA driver error: out of memory", unknown (MemoryKind.Gpu None)
                        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                        unknown (MemoryKind.Gpu None)
                        "std::bad_alloc", unknown MemoryKind.Main
                        "/x/libtorch_cpu.so: failed to map segment from shared object",
                        unknown MemoryKind.Main
                        "libc10.so: cannot create shared object descriptor: Cannot allocate memory",
                        unknown MemoryKind.Main
                        // a file system without execution
                        "/x/a.so: failed to map segment from shared object: Operation not permitted", None
                        "CUDA error: device-side assert triggered", None
                        "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", None
                        "", None
                    ] do
                    Expect.equal (NativeError.shortage message) expected message)

            testCase "a native message is cut before its stack" (fun () ->
                for message, expected in
                    [
                        onCpu,
                        "err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1179648000 bytes. Error code 12 (Cannot allocate memory)"
                        "[enforce fail at inline_container.cc:304] . file not found" + stack,
                        "file not found"
                        "a and b differ\nException raised from meta at /x/y.cpp:1 (most recent call first):"
                        + stack,
                        "a and b differ"
                        // with its line breaks replaced
                        "a and b differ Exception raised from meta at /x/y.cpp:1 frame #0: f",
                        "a and b differ"
                        "CUDA error: device-side assert triggered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n",
                        "CUDA error: device-side assert triggered"
                        stack, "no message"
                    ] do
                    Expect.equal (NativeError.text message) expected message)

            testCase "exceptions of LibTorch are short, whatever they are about" (fun () ->
                NativeBackend.ensureLoaded () |> ignore

                let shapes =
                    thrown (fun () ->
                        use a = torch.ones ([| 2L; 3L |])
                        (a.mm a).Dispose())

                Expect.stringContains shapes.Message "frame #" "LibTorch's message"
                Expect.stringStarts (NativeError.describe shapes) "LibTorch: mat1 and mat2" "what"
                Expect.isLessThan (NativeError.describe shapes).Length 200 "length"
                Expect.isNone (NativeError.ofException shapes) "not about memory"
                let wrapped = AggregateException(TypeInitializationException("x", shapes))
                Expect.equal (NativeError.describe wrapped) (NativeError.describe shapes) "of another thread"
                Expect.equal (NativeError.describe (IOException "a\nb")) "a b" "others in one line")

            testCase "a failed allocation, however it is raised" (fun () ->
                NativeBackend.ensureLoaded () |> ignore
                let native = tooMuch ()
                let expected = shortage MemoryKind.Main (Some(1L <<< 60)) None
                Expect.equal (NativeError.ofException native) expected "LibTorch's"

                Expect.equal
                    (NativeError.ofException (AggregateException native))
                    expected
                    "on another thread"

                let managed = NativeError.ofException (OutOfMemoryException())
                Expect.equal managed (unknown MemoryKind.Main) ".NET's"

                for other in
                    [
                        InputException "out of memory" :> exn
                        MemoryException("out of memory", null)
                        exn "out of memory"
                    ] do
                    Expect.isNone (NativeError.ofException other) $"{other.GetType().Name}")

            testCase "the message says what was running, the amounts and what to do" (fun () ->
                let explain message =
                    let shortage = NativeError.shortage message
                    NativeError.explain "in task 1 of 2" shortage.Value "use less"

                Expect.equal
                    (explain onGpu)
                    "out of memory on GPU 1 in task 1 of 2: 1.5 GiB requested, 12.3 MiB free; use less"
                    "GPU"

                Expect.equal (explain "std::bad_alloc") "out of memory in task 1 of 2; use less" "no amounts"
                let bare = NativeError.explain "" (NativeError.shortage onCpu).Value ""
                Expect.equal bare "out of memory: 1.1 GiB requested" "no more known")

            testCase "memory that runs out in a computation is reported once" (fun () ->
                NativeBackend.ensureLoaded () |> ignore

                let call () =
                    NativeError.during (fun () -> "outside") "other" (fun () ->
                        NativeError.during (fun () -> "while testing") "a smaller batch" (fun () ->
                            raise (tooMuch ())))

                Expect.throwsC call (fun e ->
                    Expect.isTrue (e :? OutOfMemoryException && e :? MemoryException) "type"

                    Expect.stringStarts
                        e.Message
                        "out of memory while testing: 1048576.0 TiB requested"
                        "message"

                    Expect.stringEnds e.Message "; a smaller batch" "message"
                    Expect.stringContains e.InnerException.Message "DefaultCPUAllocator" "cause")

                Expect.throwsT<FormatException>
                    (fun () -> NativeError.during (fun () -> "") "" (fun () -> raise (FormatException())))
                    "others pass")
        ]
