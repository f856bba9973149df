namespace LoRASub.Core

open System
open System.Collections.Concurrent
open System.Collections.Generic
open System.Runtime.ExceptionServices
open TorchSharp

/// One gradient in progress: owns what custom functions hand to LibTorch, and carries an exception out of them, which
/// through native code would end the process.
///
/// LibTorch calls a custom function's backward on the caller's thread for a CPU and on its own thread for a CUDA
/// device, where no dispose scope is open. TorchSharp owns none of the handles there: not the incoming gradient, not the
/// saved variables, not the returned gradients, which LibTorch copies only after the function has returned.
[<AllowNullLiteral>]
type internal BackwardPass() =

    [<ThreadStatic; DefaultValue>]
    static val mutable private current: BackwardPass

    let mutable first: ExceptionDispatchInfo = null

    // by thread: on its own thread, a function is called only after the results of the one before it were copied
    let returned = ConcurrentDictionary<int, torch.Tensor[]>()

    let freeReturned (thread: int) =
        match returned.TryRemove thread with
        | true, tensors -> tensors |> Array.iter _.Dispose()
        | _ -> ()

    /// That of the gradient in progress on this thread; null outside of one.
    static member Current = BackwardPass.current

    /// Runs f with this one current.
    member this.During(f: unit -> 'T) : 'T =
        let before = BackwardPass.current
        BackwardPass.current <- this

        try
            f ()
        finally
            BackwardPass.current <- before

    /// Throws the first exception that a custom function raised, if any.
    member _.Rethrow() =
        if not (isNull first) then
            first.Throw()

    /// The gradients that a custom function's `compute` gives, now owned by this pass, or only null where it raises an
    /// exception, which is kept. Frees `incoming` unless it is one of them.
    member this.Gradients
        (count: int, incoming: torch.Tensor, compute: unit -> torch.Tensor[])
        : torch.Tensor[] =
        let thread = Environment.CurrentManagedThreadId
        freeReturned thread

        let gradients =
            try
                this.During compute
            with e ->
                first <-
                    if isNull first then
                        ExceptionDispatchInfo.Capture e
                    else
                        first

                Array.zeroCreate count

        let owned =
            HashSet<torch.Tensor>(Seq.choose Option.ofObj gradients, HashIdentity.Reference)

        if not (owned.Contains incoming) then
            incoming.Dispose()

        for tensor in owned do
            tensor.DetachFromDisposeScope() |> ignore

        // those of a pass inside this call, which is over
        freeReturned thread
        returned[thread] <- Array.ofSeq owned
        gradients

    interface IDisposable with
        /// Frees what the last function on each thread returned. No backward pass may be running.
        member _.Dispose() = Seq.iter freeReturned returned.Keys

/// A function with a gradient of its own. Applied inside `Grad`, all its handles are freed by the end of the pass.
[<AbstractClass>]
type internal CustomFunction<'F when 'F :> CustomFunction<'F> and 'F: (new: unit -> 'F)>() =
    inherit torch.autograd.SingleTensorFunction<'F>()

    override _.Name = typeof<'F>.Name

    /// The value; saves in the context what the gradient needs. Runs without gradients.
    abstract Value: ctx: torch.autograd.AutogradContext * arguments: obj[] -> torch.Tensor

    /// A gradient for each argument, or null, from the saved tensors and the gradient of the value. Runs without
    /// gradients; borrows both.
    abstract Gradients:
        ctx: torch.autograd.AutogradContext * saved: torch.Tensor[] * gradient: torch.Tensor -> torch.Tensor[]

    override this.forward(ctx, arguments) =
        // after a failure, undefined gradients arrive: filling them with zeros would need memory, outside our reach
        ctx.set_materialize_grads false
        ctx.save_data ("pass", BackwardPass.Current)
        ctx.save_data ("count", arguments.Length)
        this.Value(ctx, arguments)

    override this.backward(ctx, gradient) =
        let count = ctx.get_data "count" :?> int

        let compute () =
            if gradient.IsInvalid then
                Array.zeroCreate count
            else
                Scope.noGrad (Seq.choose Option.ofObj) (fun () ->
                    this.Gradients(ctx, ctx.get_saved_variables().ToArray(), gradient))

        match ctx.get_data "pass" :?> BackwardPass with
        | null -> List(compute ())
        | pass -> List(pass.Gradients(count, gradient, compute))

    /// The value of the arguments, owned by the caller.
    static member Of(arguments: obj[]) : torch.Tensor =
        // TorchSharp also makes an alias of the result and a second tensor of its size
        Scope.keep Leaves.tensor (fun () -> torch.autograd.SingleTensorFunction<'F>.apply arguments)
