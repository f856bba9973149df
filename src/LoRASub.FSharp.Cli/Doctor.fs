/// Checks the installation and suggests fixes.
module LoRASub.Cli.Doctor

open System
open System.Diagnostics
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Runtime.Intrinsics.X86
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Data
open LoRASub.Run
open TorchSharp

/// The result of one check.
type private Finding =
    | Fact of name: string * value: string
    | Broken of name: string * why: string

/// The findings of a check; an exception becomes a problem.
let private guarded (name: string) (check: unit -> Finding list) : Finding list =
    try
        check ()
    with e ->
        [ Broken(name, NativeError.describe e) ]

let private versionOf (assembly: Assembly) = assembly.GetName().Version.ToString 3

let private program () =
    [
        Fact("lorasub", versionOf (Assembly.GetExecutingAssembly()))
        Fact("TorchSharp", versionOf typeof<DeviceType>.Assembly)
        Fact(".NET", RuntimeInformation.FrameworkDescription)
        Fact("system", $"{RuntimeInformation.OSDescription}, {RuntimeInformation.OSArchitecture}")
    ]

let private machine () =
    let flags = Machine.instructions ()

    let sets =
        [
            "AVX2", Avx2.IsSupported
            "AVX-512", Avx512F.IsSupported
            "AVX-512 bfloat16", flags.Contains "avx512_bf16"
            "AMX bfloat16", flags.Contains "amx_bf16"
        ]

    let names wanted =
        match sets |> List.filter (fun (_, present) -> present = wanted) with
        | [] -> "none"
        | some -> some |> List.map fst |> String.concat ", "

    let memory = GC.GetGCMemoryInfo()

    [
        Fact("cores", string Environment.ProcessorCount)
        Fact("instructions", $"{names true}; without {names false}")
        Fact("memory", $"{Bytes.text memory.TotalAvailableMemoryBytes} for this process")
    ]

let private assets () =
    let data () =
        let data = Datasets.load Assets.DataName Assets.dataPath
        let images = $"{data.Train.Labels.Length} + {data.Test.Labels.Length} images"
        [ Fact("data", $"{Assets.dataPath} ({images})") ]

    let backbone () =
        let header = Safetensors.header Assets.backbone
        [ Fact("backbone", $"{Assets.backbone} ({header.Entries.Length} tensors)") ]

    guarded "data" data @ guarded "backbone" backbone

let private native (libTorch: string option) =
    Option.iter NativeBackend.useLibTorch libTorch
    let load = NativeBackend.ensureLoaded ()

    [ for name, value in load.Facts -> Fact(name, value) ]

let private devices () =
    let cuda =
        if torch.cuda_is_available () then
            $"""{Text.counted (torch.cuda.device_count ()) "CUDA device" "CUDA devices"}"""
        else
            "no CUDA device (none found, or LibTorch without CUDA)"

    let driver =
        [
            yield! CudaDriver.version () |> Option.toList
            match CudaDriver.cudaVersion () with
            | Some version -> $"for CUDA up to {version}"
            | None -> ()
        ]

    [
        Fact("devices", $"cpu; {cuda}")
        if not driver.IsEmpty then
            Fact("driver", String.concat ", " driver)

        // the driver may know devices that this LibTorch cannot use
        for n, one in
            Seq.initInfinite id
            |> Seq.map (fun n -> n, CudaDriver.device n)
            |> Seq.takeWhile (snd >> _.IsSome) do
            let one = one.Value

            Fact(
                $"GPU {n}",
                $"{one.Name}, {Bytes.text one.TotalBytes} ({Bytes.text one.FreeBytes} free), compute capability {one.Capability}"
            )

        Fact("threads", $"{torch.get_num_threads ()}")
    ]

/// GFLOP/s of a product of n x n matrices: the best of half a second, because other programs only slow it down.
let private speedOn (device: torch.Device) (n: int64) (route: ProductRoute) (dtype: torch.ScalarType) =
    Scope.run (fun () ->
        let matrix =
            (Rng.normal [| n; n |] torch.ScalarType.Float32 torch.CPU (Rng.ofSeed 0L)).``to``(dtype).``to``
                device

        let product () =
            let clock = Stopwatch.StartNew()
            Scope.run (fun () -> Product.linearBy route matrix null matrix |> ignore)

            if device.``type`` = DeviceType.CUDA then
                torch.cuda.synchronize device

            clock.Elapsed.TotalSeconds

        product () |> ignore // makes threads and buffers
        let clock = Stopwatch.StartNew()
        let mutable best = product ()

        while clock.Elapsed.TotalSeconds < 0.5 do
            best <- min best (product ())

        2.0 * float n ** 3.0 / best / 1e9)

let private speed = speedOn torch.CPU 1024L

/// The smallest number of threads whose products in float32 are as fast as any, within a twentieth.
let private fastestThreads (used: ProductRoute) : int =
    let before = torch.get_num_threads ()

    try
        let rates =
            Seq.unfold (fun n -> Some(n, 2 * n)) 1
            |> Seq.takeWhile (fun n -> n < Environment.ProcessorCount)
            |> Seq.insertAt 0 Environment.ProcessorCount
            |> Seq.sort
            |> Seq.map (fun n ->
                torch.set_num_threads n
                n, speed used torch.ScalarType.Float32)
            |> List.ofSeq

        let best = rates |> List.map snd |> List.max
        rates |> List.find (fun (_, rate) -> rate >= 0.95 * best) |> fst
    finally
        torch.set_num_threads before

/// The rates of each CUDA device that LibTorch can use, and the precision to choose.
let private gpuSpeeds () =
    [
        for n in
            0 .. (if torch.cuda_is_available () then
                      torch.cuda.device_count ()
                  else
                      0)
                 - 1 do
            let device = torch.device (DeviceType.CUDA, n)

            let rate allowed dtype =
                Kernels.allowTF32 allowed
                let rate = speedOn device 8192L ProductRoute.Blas dtype
                Kernels.allowTF32 false
                rate / 1e3

            let rates =
                [
                    "float32", rate false torch.ScalarType.Float32
                    "tf32", rate true torch.ScalarType.Float32
                    "bfloat16", rate false torch.ScalarType.BFloat16
                ]

            let shown =
                rates
                |> List.map (fun (name, rate) -> $"{rate:F0} in {name}")
                |> String.concat ", "

            // a wider format unless a narrower one is clearly faster
            let choice =
                rates
                |> List.reduce (fun best next -> if snd next > 1.2 * snd best then next else best)
                |> fst

            Fact($"cuda:{n}", $"{shown} TFLOP/s: fastest with --device cuda:{n} --precision {choice}")
    ]

let private speeds () =
    // LibTorch does not use oneDNN with one thread
    let several = torch.get_num_threads () > 1
    let used = if several then Product.route () else ProductRoute.Blas
    let blas = speed ProductRoute.Blas torch.ScalarType.Float32
    let half = speed ProductRoute.Blas torch.ScalarType.BFloat16

    let oneDnn =
        if several then
            speed ProductRoute.OneDnn torch.ScalarType.Float32
        else
            0.0

    let single = if used.IsBlas then blas else oneDnn
    let name = if used.IsBlas then "LibTorch's BLAS" else "oneDNN"

    let rates =
        if several then
            $"{blas:F0} GFLOP/s, {oneDnn:F0} through oneDNN"
        else
            $"{blas:F0} GFLOP/s; oneDNN needs more than one thread"

    let maker =
        match Product.vendor () with
        | "" -> ""
        | vendor -> $" for {vendor}"

    let advice =
        if half > 1.2 * single then
            "--precision bfloat16 is faster here"
        else
            "--precision bfloat16 is not faster here"

    [
        Fact("products", $"{single:F0} GFLOP/s in float32, {half:F0} in bfloat16: {advice}")
        Fact("float32 by", $"{name}{maker}: {rates} ({Product.Variable}=blas or onednn)")
        Fact(
            "recommended",
            $"""on the CPU --precision {if half > 1.2 * single then "bfloat16" else "float32"} --threads {fastestThreads used}"""
        )
    ]

/// Prints every finding; 0 without problems, else 1.
let run (out: TextWriter) (libTorch: string option) : int =
    let mutable broken = 0

    let show findings =
        for finding in findings do
            match finding with
            | Fact(name, value) -> out.WriteLine $"{name, -13} {value}"
            | Broken(name, why) ->
                broken <- broken + 1
                out.WriteLine $"{name, -13} PROBLEM: {why}"

            out.Flush()

    show (program ())
    show (guarded "machine" machine)
    show (assets ())

    match guarded "LibTorch" (fun () -> native libTorch) with
    | [ Broken _ ] as failure -> show failure
    | loaded ->
        show loaded
        show (guarded "devices" devices)
        show (guarded "products" speeds)
        show (guarded "GPU" gpuSpeeds)

    out.WriteLine()

    match broken with
    | 0 -> out.WriteLine "No problems found"
    | 1 -> out.WriteLine "1 problem"
    | n -> out.WriteLine $"{n} problems"

    min 1 broken
