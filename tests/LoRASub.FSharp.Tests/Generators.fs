/// Cases that print and shrink well: small records of plain numbers. A law turns them into float64 numbers itself,
/// so that a counterexample is a handful of sizes and a seed.
module LoRASub.Tests.Generators

open System
open System.Runtime.InteropServices
open LoRASub.Core
open LoRASub.Native
open FSharp.Reflection
open FsCheck
open FsCheck.FSharp
open TorchSharp

/// The closed interval of a case's int field; shrinking moves towards its low end.
[<AttributeUsage(AttributeTargets.Property)>]
type BetweenAttribute(low: int, high: int) =
    inherit Attribute()
    member _.Low = low
    member _.High = high

/// A case whose fields depend on each other.
type IConstrained =
    abstract Holds: bool

let private range (field: Reflection.PropertyInfo) =
    match Attribute.GetCustomAttribute(field, typeof<BetweenAttribute>) with
    | :? BetweenAttribute as between -> between.Low, between.High
    | _ -> failwith $"{field.Name} of {field.DeclaringType.Name} needs [<Between>]"

let private fieldGen (field: Reflection.PropertyInfo) : Gen<obj> =
    if field.PropertyType = typeof<bool> then
        Gen.elements [ false; true ] |> Gen.map box
    else
        let low, high = range field
        // the ends are the edge shapes: one row, one class, rank = width
        Gen.frequency [ 1, Gen.constant low; 1, Gen.constant high; 4, Gen.choose (low, high) ]
        |> Gen.map box

let private fieldShrink (field: Reflection.PropertyInfo) (value: obj) : obj list =
    match value with
    | :? bool as flag -> if flag then [ box false ] else []
    | _ ->
        let low, n = fst (range field), unbox<int> value

        [ low; low + (n - low) / 2; n - 1 ]
        |> List.distinct
        |> List.filter (fun m -> m >= low && m < n)
        |> List.map box

let private holds (case: 'T) =
    match box case with
    | :? IConstrained as constrained -> constrained.Holds
    | _ -> true

/// Draws and shrinks a record of ints (each with [<Between>]) and bools.
let arbitrary<'T> () : Arbitrary<'T> =
    let fields = FSharpType.GetRecordFields typeof<'T>

    let make (values: obj[]) =
        FSharpValue.MakeRecord(typeof<'T>, values) :?> 'T

    let generator =
        fields
        |> Array.map fieldGen
        |> Gen.sequenceToArray
        |> Gen.map make
        |> Gen.filter holds

    let shrink (case: 'T) =
        let values = FSharpValue.GetRecordFields(box case)

        seq {
            for i in 0 .. fields.Length - 1 do
                for smaller in fieldShrink fields[i] values[i] do
                    make (Array.updateAt i smaller values)
        }
        |> Seq.filter holds

    Arb.fromGenShrink (generator, shrink)

// Plain numbers, without torch.

/// Standard normal numbers (Box-Muller).
let normals (seed: int) (count: int) : float[] =
    let random = Random seed

    Array.init count (fun _ ->
        sqrt (-2.0 * log (1.0 - random.NextDouble()))
        * cos (2.0 * Math.PI * random.NextDouble()))

/// A rows × columns matrix of standard normal numbers.
let normalMatrix seed rows columns : float[,] =
    let numbers = normals seed (rows * columns)
    Array2D.init rows columns (fun i j -> numbers[i * columns + j])

/// Integers in [0, high).
let integers (seed: int) (high: int) (count: int) : int[] =
    let random = Random seed
    Array.init count (fun _ -> random.Next high)

/// 0 to count - 1 in random order.
let order (seed: int) (count: int) : int[] =
    let random = Random seed
    Array.init count id |> Array.sortBy (fun _ -> random.Next())

let row (m: float[,]) i : float[] = m[i, *]
let rows (m: float[,]) : float[][] = Array.init (Array2D.length1 m) (row m)

let pick (indices: int[]) (m: float[,]) =
    Array2D.init indices.Length (Array2D.length2 m) (fun i j -> m[indices[i], j])

let norm (v: float[]) = sqrt (Array.sumBy (fun x -> x * x) v)

/// Every row scaled to unit length.
let unitRows (m: float[,]) : float[,] =
    let norms = rows m |> Array.map norm
    m |> Array2D.mapi (fun i _ x -> x / norms[i])

/// An orthogonal matrix: Gram-Schmidt on random rows, twice for accuracy.
let orthogonal (seed: int) (n: int) : float[,] =
    let basis = rows (normalMatrix seed n n)

    for _ in 1..2 do
        for i in 0 .. n - 1 do
            for j in 0 .. i - 1 do
                let along = Array.fold2 (fun sum x y -> sum + x * y) 0.0 basis[i] basis[j]
                basis[i] <- Array.map2 (fun x y -> x - along * y) basis[i] basis[j]

            let length = norm basis[i]
            basis[i] <- basis[i] |> Array.map (fun x -> x / length)

    array2D basis

// The device of the tests.

/// LibTorch's lazy device: it computes on the CPU and refuses tensors of any other device, as a GPU does.
let private lazyDevice () =
    let libTorch = NativeLibrary.Load "libtorch_cpu.so" // loaded already

    let start =
        NativeLibrary.GetExport(libTorch, "_ZN5torch4lazy22InitTorchScriptBackendEv")

    (Marshal.GetDelegateForFunctionPointer<Action> start).Invoke()
    torch.Device(enum<DeviceType> 17, 0)

/// Where all tests make their tensors. LORASUB_TEST_DEVICE names it: cuda:N, lazy, or cpu, as without it.
let device: torch.Device =
    match Environment.GetEnvironmentVariable "LORASUB_TEST_DEVICE" with
    | null
    | ""
    | "cpu" -> torch.CPU
    | name ->
        try
            NativeBackend.ensureLoaded () |> ignore
            if name = "lazy" then lazyDevice () else Device.parse name
        with error ->
            eprintfn $"LORASUB_TEST_DEVICE: {error.Message}"
            exit 2

let onCpu = device.``type`` = DeviceType.CPU

/// LibTorch's lazy device lacks some kernels of a CPU and of CUDA.
let hasKernels = onCpu || device.``type`` = DeviceType.CUDA

/// The device by the name that settings and `--device` know; the CPU in place of the lazy device.
let deviceName =
    if device.``type`` = DeviceType.CUDA then
        string device
    else
        "cpu"

/// A new tensor, moved to the device of the tests.
let place (fresh: torch.Tensor) : torch.Tensor =
    if onCpu then
        fresh
    else
        use fresh = fresh
        fresh.``to`` device

// Between plain numbers and tensors.

/// A float64 tensor of this shape.
let shaped (shape: int list) (numbers: float[]) : torch.Tensor =
    place (torch.tensor(numbers).reshape(shape |> List.map int64 |> Array.ofList))

let vector (numbers: float[]) : torch.Tensor = place (torch.tensor numbers)

let tensor (m: float[,]) : torch.Tensor =
    shaped [ Array2D.length1 m; Array2D.length2 m ] (m |> Seq.cast<float> |> Array.ofSeq)

let labelTensor (labels: int[]) : torch.Tensor =
    place (torch.tensor (Array.map int64 labels))

/// The numbers of a float64 tensor, row by row.
let numbers (t: torch.Tensor) : float[] =
    Scope.run (fun () -> t.detach().cpu().flatten().contiguous().data<float>().ToArray())

/// The numbers of an int64 tensor, row by row.
let wholeNumbers (t: torch.Tensor) : int64[] =
    Scope.run (fun () -> t.cpu().contiguous().data<int64>().ToArray())

let matrix (t: torch.Tensor) : float[,] =
    let flat, columns = numbers t, int t.shape[1]
    Array2D.init (int t.shape[0]) columns (fun i j -> flat[i * columns + j])

/// The meta device holds shapes without numbers: a tensor made elsewhere by mistake fails beside its tensors.
let onMeta (t: torch.Tensor) : torch.Tensor = t.``to`` torch.META
