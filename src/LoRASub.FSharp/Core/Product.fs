namespace LoRASub.Core

open System
open System.Runtime.Intrinsics.X86
open System.Text
open TorchSharp

/// The part of LibTorch that multiplies float32 matrices on the CPU, and how attention is computed in bfloat16.
[<RequireQualifiedAccess>]
type internal ProductRoute =
    /// Its BLAS, which is MKL in the packages: the fastest kernels on Intel's processors, and only those for AVX2 on
    /// others.
    | Blas
    /// oneDNN, which asks for instructions and not for the maker: reached through a convolution of 1 x 1, and with
    /// more than one thread only.
    | OneDnn

[<RequireQualifiedAccess>]
module internal ProductRoute =

    /// As the setting names them.
    let name (route: ProductRoute) : string =
        match route with
        | ProductRoute.Blas -> "blas"
        | ProductRoute.OneDnn -> "onednn"

/// Matrix products of the network.
[<RequireQualifiedAccess>]
module internal Product =

    /// The setting that overrides the choice: blas or onednn.
    [<Literal>]
    let Variable = "LORASUB_PRODUCTS"

    /// The maker that the processor names, such as GenuineIntel or AuthenticAMD; empty where it has no such name.
    let vendor () : string =
        if X86Base.IsSupported then
            let struct (_, b, c, d) = X86Base.CpuId(0, 0)

            [| b; d; c |] |> Array.collect BitConverter.GetBytes |> Encoding.ASCII.GetString
        else
            ""

    /// The route for a maker's processor: oneDNN if MKL would not use AVX-512. `asked` is the variable's
    /// value, or empty. Rejects another value.
    let internal choose (asked: string) (vendor: string) (avx512: bool) : ProductRoute =
        match asked with
        | "blas" -> ProductRoute.Blas
        | "onednn" -> ProductRoute.OneDnn
        | "" when avx512 && vendor <> "GenuineIntel" -> ProductRoute.OneDnn
        | "" -> ProductRoute.Blas
        | other -> Errors.reject Variable "must be blas or onednn, or not set" $"'{other}'" ""

    let private chosen =
        lazy
            (let asked =
                Environment.GetEnvironmentVariable Variable
                |> Option.ofObj
                |> Option.defaultValue ""

             choose asked (vendor ()) Avx512F.IsSupported)

    /// The route on this machine. Rejects an unknown value of the variable.
    let route () : ProductRoute = chosen.Value

    // x [.., k] as an image of one column with k channels, last in memory: a view
    let private convolve (weight: torch.Tensor) (bias: torch.Tensor) (x: torch.Tensor) =
        let n, k = weight.shape[0], weight.shape[1]
        let image = x.reshape(1L, -1L, 1L, k).permute(0L, 3L, 1L, 2L)
        let result = torch.nn.functional.conv2d (image, weight.reshape (n, k, 1L, 1L), bias)
        let shape = Array.copy x.shape
        shape[shape.Length - 1] <- n
        result.permute(0L, 2L, 3L, 1L).reshape shape

    // LibTorch's own rule for a convolution of one image without a width of its own
    let private mostWithoutOneDnn = 20480L

    /// x·Wᵀ + b by the given route: x [.., k], W [n, k], b [n] or null -> [.., n]. Differentiable; borrows; what LibTorch
    /// would not give to oneDNN (other types, one thread, at most 20 480 numbers in x) takes the other route.
    let linearBy
        (route: ProductRoute)
        (weight: torch.Tensor)
        (bias: torch.Tensor)
        (x: torch.Tensor)
        : torch.Tensor =
        match route with
        | ProductRoute.OneDnn when
            x.dtype = torch.ScalarType.Float32
            && x.device.``type`` = DeviceType.CPU
            && x.numel () > mostWithoutOneDnn
            && torch.get_num_threads () > 1
            ->
            convolve weight bias x
        | _ -> torch.nn.functional.linear (x, weight, bias)

    /// `linearBy` the route of this machine.
    let linear weight bias x = linearBy (route ()) weight bias x
