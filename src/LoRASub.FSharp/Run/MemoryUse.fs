namespace LoRASub.Run

open System
open System.Diagnostics
open System.IO
open TorchSharp

/// What the process holds at one moment.
type MemoryUse =
    {
        /// Living tensor handles.
        Tensors: int64
        /// Resident memory, in bytes.
        ResidentBytes: int64
    }

[<RequireQualifiedAccess>]
module MemoryUse =

    /// Measured now.
    let now () =
        use me = Process.GetCurrentProcess()

        {
            Tensors = torch.Tensor.TotalCount
            ResidentBytes = me.WorkingSet64
        }

    /// The largest resident memory so far, in bytes.
    let peakBytes () =
        use me = Process.GetCurrentProcess()
        me.PeakWorkingSet64
