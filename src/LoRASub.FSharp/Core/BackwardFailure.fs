namespace LoRASub

open System
open System.Runtime.ExceptionServices

/// Carries an exception out of a backward pass that LibTorch calls: through native code it would end the process.
[<AllowNullLiteral>]
type internal BackwardFailure() =

    [<ThreadStatic; DefaultValue>]
    static val mutable private current: BackwardFailure

    let mutable first: ExceptionDispatchInfo = null

    /// That of the gradient in progress on this thread; null outside of one.
    static member Current = BackwardFailure.current

    /// Runs f with this one current.
    member this.During(f: unit -> 'T) : 'T =
        let before = BackwardFailure.current
        BackwardFailure.current <- this

        try
            f ()
        finally
            BackwardFailure.current <- before

    /// What f gives, or `otherwise` where it fails and `failure` (which may be null: then it fails) takes that.
    static member Caught(failure: BackwardFailure, otherwise: 'T, f: unit -> 'T) : 'T =
        if isNull failure then
            f ()
        else
            try
                failure.During f
            with e ->
                failure.Keep e
                otherwise

    member private _.Keep(e: exn) =
        if isNull first then
            first <- ExceptionDispatchInfo.Capture e

    /// Throws the first exception that was caught, if any.
    member _.Rethrow() =
        if not (isNull first) then
            first.Throw()
