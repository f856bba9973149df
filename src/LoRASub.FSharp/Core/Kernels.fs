namespace LoRASub.Core

open System
open System.Runtime.InteropServices
open TorchSharp

/// Which of LibTorch's kernels compute on a CUDA device: a choice for the whole process.
[<RequireQualifiedAccess>]
module Kernels =

    [<DllImport("libc.so.6", EntryPoint = "setenv")>]
    extern int private setVariable(string name, string value, int overwrite)

    // Methods of at::Context by their names in the Itanium C++ ABI: LibTorch has no C function for them, and TorchSharp
    // none of its own. A method takes its object first.
    [<UnmanagedFunctionPointer(CallingConvention.Cdecl)>]
    type private Context = delegate of unit -> nativeint

    [<UnmanagedFunctionPointer(CallingConvention.Cdecl)>]
    type private Read = delegate of nativeint -> byte

    [<UnmanagedFunctionPointer(CallingConvention.Cdecl)>]
    type private SetOne = delegate of nativeint * byte -> unit

    [<UnmanagedFunctionPointer(CallingConvention.Cdecl)>]
    type private SetTwo = delegate of nativeint * byte * byte -> unit

    [<DllImport("libc.so.6", EntryPoint = "dlopen")>]
    extern nativeint private openLibrary(string name, int mode)

    let private find<'D when 'D :> Delegate> (name: string) : 'D option =
        // RTLD_NOW and RTLD_NOLOAD: the copy that this process has loaded, from whatever folder
        let library =
            if OperatingSystem.IsLinux() then
                openLibrary ("libtorch_cpu.so", 2 ||| 4)
            else
                0n

        if library = 0n then
            None
        else
            match NativeLibrary.TryGetExport(library, name) with
            | true, address -> Some(Marshal.GetDelegateForFunctionPointer<'D> address)
            | _ -> None

    let private context () =
        find<Context> "_ZN2at13globalContextEv" |> Option.map _.Invoke()

    /// Whether kernels that repeat every bit are asked for.
    let internal isDeterministic () : bool =
        match context (), find<Read> "_ZNK2at7Context23deterministicAlgorithmsEv" with
        | Some context, Some read -> read.Invoke context <> 0uy
        | _ -> false

    /// Asks for kernels that repeat every bit, as torch.use_deterministic_algorithms does, or for the usual ones. LibTorch
    /// then raises an error where it has no such kernel.
    let internal setDeterministic (wanted: bool) : unit =
        match
            context (),
            find<SetTwo> "_ZN2at7Context26setDeterministicAlgorithmsEbb",
            find<SetOne> "_ZN2at7Context39setDeterministicFillUninitializedMemoryEb"
        with
        | Some context, Some set, Some fill ->
            if wanted then
                // cuBLAS reads it from the C library's environment when its first product is asked for
                setVariable ("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0) |> ignore

            set.Invoke(context, (if wanted then 1uy else 0uy), 0uy)
            // it only helps to find errors, and writes all memory twice
            fill.Invoke(context, 0uy)
        | _ when wanted ->
            Errors.reject
                "deterministic"
                "needs LibTorch on Linux"
                "a LibTorch without this switch"
                "remove --deterministic"
        | _ -> ()

    /// Allows products in float32 to round their factors to TF32, or forbids it. Without this, LibTorch allows it to
    /// cuDNN alone.
    let internal allowTF32 (allowed: bool) : unit =
        torch.backends.cuda.matmul.allow_tf32 <- allowed
        torch.backends.cudnn.allow_tf32 <- allowed

    /// <summary>Chooses the kernels of a CUDA device for this process. Those of a CPU always repeat every bit and know no
    /// TF32.</summary>
    /// <param name="device">On which the network computes.</param>
    /// <param name="precision">The number format of its products.</param>
    /// <param name="deterministic">Whether equal work must give equal bits.</param>
    /// <exception cref="T:LoRASub.Core.InputException">This LibTorch cannot be asked for repeatable kernels.</exception>
    let choose (device: torch.Device) (precision: Precision) (deterministic: bool) : unit =
        if device.``type`` = DeviceType.CUDA then
            allowTF32 (precision = Precision.TF32)
            setDeterministic deterministic
