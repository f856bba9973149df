namespace LoRASub.Run

open System
open System.Diagnostics
open System.IO
open System.Runtime.InteropServices
open LoRASub.Native
open TorchSharp

/// The memory that the process uses at one moment.
type MemoryUse =
    {
        /// Living tensor handles.
        Tensors: int64
        /// Resident memory, in bytes.
        ResidentBytes: int64
    }

/// Measures the memory of this process.
[<RequireQualifiedAccess>]
module MemoryUse =

    /// <summary>Measures the memory that the process uses now.</summary>
    /// <returns>Living tensors, and resident bytes.</returns>
    let now () =
        use me = Process.GetCurrentProcess()

        {
            Tensors = torch.Tensor.TotalCount
            ResidentBytes = me.WorkingSet64
        }

    /// <summary>The largest resident memory so far.</summary>
    /// <returns>Bytes.</returns>
    let peakBytes () =
        use me = Process.GetCurrentProcess()
        me.PeakWorkingSet64

    /// <summary>Memory in use on a CUDA device now, by all processes. LibTorch keeps what it has taken, so that at the end
    /// of a run this is what the run needed.</summary>
    /// <param name="device">Any; without its driver, and on another kind of device, there is no answer.</param>
    /// <returns>Bytes, or None.</returns>
    let deviceBytes (device: torch.Device) : int64 option =
        if device.``type`` = DeviceType.CUDA then
            CudaDriver.device (max 0 device.index)
            |> Option.map (fun one -> one.TotalBytes - one.FreeBytes)
        else
            None

    [<DllImport("libc.so.6", EntryPoint = "malloc_trim")>]
    extern int private trim(unativeint pad)

    /// Gives free memory back to the system and lets `peakBytes` begin anew. Where the system cannot, the peak remains
    /// that of the process.
    let internal resetPeak () : unit =
        GC.Collect()
        GC.WaitForPendingFinalizers()

        if OperatingSystem.IsLinux() then
            try
                trim 0un |> ignore
                File.WriteAllText("/proc/self/clear_refs", "5")
            with
            | :? IOException
            | :? UnauthorizedAccessException
            | :? EntryPointNotFoundException -> ()
