namespace LoRASub.Run

open System
open System.Diagnostics
open System.IO
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
