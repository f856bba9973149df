namespace LoRASub.Core

open System
open TorchSharp

/// Numbers for LibTorch. TorchSharp reads a scalar's handle and lets go of the scalar, so that its finalizer may free the
/// number while LibTorch still reads it: seldom, and only under load. Each thread therefore keeps its last scalars. `add` and
/// `sub` make one of their own for a factor that is not given.
[<AbstractClass; Sealed>]
type internal Number private () =
    [<ThreadStatic; DefaultValue>]
    static val mutable private recent: Scalar[]

    [<ThreadStatic; DefaultValue>]
    static val mutable private next: int

    // a call has few scalars, and ends on the thread that made them
    static member private Keep(scalar: Scalar) : Scalar =
        if isNull Number.recent then
            Number.recent <- Array.zeroCreate 64

        Number.recent[Number.next] <- scalar
        Number.next <- (Number.next + 1) % Number.recent.Length
        scalar

    /// A floating-point number, kept alive until 64 later ones are made on this thread.
    static member Of(x: float) : Scalar = Number.Keep(Scalar.op_Implicit x)

    /// A whole number, likewise.
    static member Of(x: int64) : Scalar = Number.Keep(Scalar.op_Implicit x)

    /// A whole number, likewise.
    static member Of(x: int) : Scalar = Number.Keep(Scalar.op_Implicit x)
