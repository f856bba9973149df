namespace LoRASub.Core

open System
open TorchSharp

/// Numbers for LibTorch. TorchSharp reads a scalar's handle and lets go of the scalar, so that its finalizer may free the
/// number while LibTorch still reads it: seldom, and only under load. Each thread therefore keeps its last scalars.
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

/// Sums for all of the library: TorchSharp's `add` makes a scalar of its own for its factor, which nothing keeps alive.
[<AutoOpen>]
module internal Sums =

    let private one = Scalar.op_Implicit 1

    type torch.Tensor with

        /// Their sum, owned by the caller.
        member this.plus(other: torch.Tensor) : torch.Tensor = this.add (other, one)

        /// Each number plus this one.
        member this.plus(number: Scalar) : torch.Tensor = this.add (number, one)

        /// Adds in place.
        member this.plus_(other: torch.Tensor) : torch.Tensor = this.add_ (other, one)

        /// Adds in place.
        member this.plus_(number: Scalar) : torch.Tensor = this.add_ (number, one)
