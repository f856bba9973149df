namespace LoRASub.Native

open System
open System.IO
open System.Runtime.InteropServices
open System.Text
open System.Text.RegularExpressions

/// A CUDA device as the driver describes it.
type internal CudaDevice =
    {
        Name: string
        /// Such as 9.0.
        Capability: string
        FreeBytes: int64
        TotalBytes: int64
    }

/// What the NVIDIA driver knows and LibTorch does not pass on. Its library is the driver's own; without it there is
/// nothing to know.
[<RequireQualifiedAccess>]
module internal CudaDriver =

    [<DllImport("libcuda.so.1", EntryPoint = "cuInit")>]
    extern int private start(uint32 flags)

    [<DllImport("libcuda.so.1", EntryPoint = "cuDriverGetVersion")>]
    extern int private getVersion(int& version)

    [<DllImport("libcuda.so.1", EntryPoint = "cuDeviceGet")>]
    extern int private getDevice(int& device, int ordinal)

    [<DllImport("libcuda.so.1", EntryPoint = "cuDeviceGetName")>]
    extern int private getName(byte[] name, int length, int device)

    [<DllImport("libcuda.so.1", EntryPoint = "cuDeviceGetAttribute")>]
    extern int private getAttribute(int& value, int attribute, int device)

    // the context that LibTorch uses as well
    [<DllImport("libcuda.so.1", EntryPoint = "cuDevicePrimaryCtxRetain")>]
    extern int private retain(nativeint& context, int device)

    [<DllImport("libcuda.so.1", EntryPoint = "cuDevicePrimaryCtxRelease_v2")>]
    extern int private release(int device)

    [<DllImport("libcuda.so.1", EntryPoint = "cuCtxPushCurrent_v2")>]
    extern int private push(nativeint context)

    [<DllImport("libcuda.so.1", EntryPoint = "cuCtxPopCurrent_v2")>]
    extern int private pop(nativeint& context)

    [<DllImport("libcuda.so.1", EntryPoint = "cuMemGetInfo_v2")>]
    extern int private getMemory(unativeint& free, unativeint& total)

    // None without a driver, or where a call ends in an error.
    let private asking (ask: (int -> unit) -> 'T) : 'T option =
        let require code =
            if code <> 0 then
                raise (ExternalException($"CUDA driver: error {code}", code))

        try
            require (start 0u)
            Some(ask require)
        with
        | :? DllNotFoundException
        | :? EntryPointNotFoundException
        | :? ExternalException -> None

    /// A device by its number, which is LibTorch's. None without a driver.
    let device (ordinal: int) : CudaDevice option =
        asking (fun require ->
            let mutable device, major, minor = 0, 0, 0
            let name = Array.zeroCreate<byte> 256
            require (getDevice (&device, ordinal))
            require (getName (name, name.Length, device))
            require (getAttribute (&major, 75, device))
            require (getAttribute (&minor, 76, device))
            let mutable context, free, total = 0n, 0un, 0un
            require (retain (&context, device))

            try
                require (push context)

                try
                    require (getMemory (&free, &total))
                finally
                    pop &context |> ignore
            finally
                release device |> ignore

            {
                Name = Encoding.UTF8.GetString(name, 0, Array.IndexOf(name, 0uy))
                Capability = $"{major}.{minor}"
                FreeBytes = int64 free
                TotalBytes = int64 total
            })

    /// The newest CUDA version that the driver supports, such as 13.0.
    let cudaVersion () : string option =
        asking (fun require ->
            let mutable version = 0
            require (getVersion &version)
            $"{version / 1000}.{version % 1000 / 10}")

    /// The driver's own version, where the system reports it.
    let version () : string option =
        let path = "/proc/driver/nvidia/version"

        if File.Exists path then
            match Regex.Match(File.ReadAllText path, @"\s(\d+\.\d+(\.\d+)?)\s") with
            | found when found.Success -> Some found.Groups[1].Value
            | _ -> None
        else
            None
