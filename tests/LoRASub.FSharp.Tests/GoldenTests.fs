/// Fixtures made by another implementation of the method. LORASUB_GOLDEN names another folder in the same layout.
module LoRASub.Tests.GoldenTests

open System
open System.IO
open System.Text.Json
open Expecto
open LoRASub
open LoRASub.Tests.Generators
open TorchSharp

let private folder =
    match Environment.GetEnvironmentVariable "LORASUB_GOLDEN" with
    | null
    | "" -> Path.Combine(AppContext.BaseDirectory, "golden")
    | other -> other

/// Tensors by name, and the header's settings.
type private Fixture(name: string) =
    let bytes = File.ReadAllBytes(Path.Combine(folder, $"{name}.safetensors"))
    let length = int (BitConverter.ToUInt64(bytes, 0))
    let header = JsonDocument.Parse(ReadOnlyMemory(bytes, 8, length)).RootElement

    member _.Setting(key: string) = header.GetProperty("__metadata__").GetProperty(key).GetString()
    member _.Has(key: string) = header.TryGetProperty key |> fst

    member _.Tensor(key: string) : torch.Tensor =
        let entry = header.GetProperty key
        let list (property: string) = [| for n in entry.GetProperty(property).EnumerateArray() -> n.GetInt64() |]
        let offsets = list "data_offsets"
        let raw = ReadOnlySpan(bytes, 8 + length + int offsets[0], int (offsets[1] - offsets[0]))

        let flat =
            match entry.GetProperty("dtype").GetString() with
            | "F64" -> torch.tensor (Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(raw).ToArray())
            | "I64" -> torch.tensor (Runtime.InteropServices.MemoryMarshal.Cast<byte, int64>(raw).ToArray())
            | other -> failwith $"{name}, {key}: type {other} is not read here"

        flat.reshape (list "shape")

    member this.Number(key: string) = (this.Tensor key).item<float> ()
    member this.Integer(key: string) = (this.Tensor key).item<int64> ()
    member this.Cases = int (this.Setting "cases")

/// Largest absolute difference; infinite where one is NaN.
let private difference (expected: torch.Tensor) (actual: torch.Tensor) =
    Expect.equal actual.shape expected.shape "shape"
    let d = Array.map2 (fun (e: float) a -> abs (e - a)) (numbers expected) (numbers actual)
    if Array.exists Double.IsNaN d then infinity else Array.fold max 0.0 d

/// Runs every case, reports the largest difference of all and bounds it.
let private golden (name: string) (cases: Fixture -> float list) =
    testCase name (fun () ->
        Scope.run (fun () ->
            let differences = cases (Fixture name)
            let largest = List.max differences
            Check.note $"golden {name}: {differences.Length} cases, largest difference {largest:E2}"
            Check.atMost "largest difference" 1e-9 largest))

let private triplet (f: Fixture) =
    [ for i in 0 .. f.Cases - 1 do
          let prototypes, labels = f.Tensor $"{i}.prototypes", f.Tensor $"{i}.labels"
          let loss (ps: torch.Tensor[]) = AugmentedTriplet.loss (f.Number $"{i}.margin") 2.0 prototypes labels ps[0]
          let struct (value, gradients) = Grad.valueAndGrad loss [| f.Tensor $"{i}.features" |]
          max (difference (f.Tensor $"{i}.loss") (value.reshape 1L)) (difference (f.Tensor $"{i}.gradient") gradients[0].Value) ]

let private projection (f: Fixture) =
    [ for i in 0 .. f.Cases - 1 do
          let moment = { Moment = f.Tensor $"{i}.moment"; Count = 1L }
          let p = Projection.retain UpdateScale.Frobenius (f.Number $"{i}.threshold") $"case {i}" moment
          Expect.equal (int64 p.Rank) (f.Integer $"{i}.retained") $"rank of case {i}"
          max (difference (f.Tensor $"{i}.singular_values") p.Spectrum) (difference (f.Tensor $"{i}.projection") p.Matrix) ]

let private projectedAdam (f: Fixture) =
    let number key = float (f.Setting key)

    [ for i in 0 .. f.Cases - 1 do
          let start, gradients, after = f.Tensor $"{i}.start", f.Tensor $"{i}.gradients", f.Tensor $"{i}.after"

          let confinement =
              if f.Has $"{i}.projection" then
                  let p = f.Tensor $"{i}.projection"
                  // the fixture's convention: as many rows as the projection means left, also for squares
                  let left = start.dim () = 2L && start.shape[0] = p.shape[0]
                  Confinement.Within((if left then Side.Left else Side.Right), p)
              else
                  Confinement.Free

          let options =
              { Beta1 = number "beta1"
                Beta2 = number "beta2"
                Epsilon = number "eps"
                WeightDecay = f.Number $"{i}.weight_decay"
                AmsGrad = f.Integer $"{i}.amsgrad" <> 0L }

          let t = Transform.chain (Adam.transform (number "lr") options) (Projected.transform [| confinement |])

          let step (struct (ps, state), largest) (s: int64) =
              let struct (ps: torch.Tensor[], state) = Transform.step t [| Some gradients[s] |] state ps
              struct (ps, state), max largest (difference after[s] ps[0])

          let start = [| start |]
          let _, largest = List.fold step (struct (start, t.Init start), 0.0) [ 0L .. gradients.shape[0] - 1L ]
          largest ]

let private attention (f: Fixture) =
    let weight name = f.Tensor $"weight.{name}"
    let heads = int64 (f.Setting "heads")
    let qkv: Linear = { Weight = weight "qkv.weight"; Bias = Some(weight "qkv.bias") }
    let projection: Linear = { Weight = weight "proj.weight"; Bias = Some(weight "proj.bias") }
    let pair part : LoraPair = { A = weight $"lora_A_{part}.weight"; B = weight $"lora_B_{part}.weight" }
    let lora: LayerLora = { Key = pair "k"; Value = pair "v" }
    let before: LayerDelta = { Key = weight "prev_k_weight"; Value = weight "prev_v_weight" }

    let forward sign delta lora x =
        let weight = Attention.withDelta sign torch.float64 delta qkv.Weight
        Attention.forward heads { qkv with Weight = weight } projection lora x

    let x1, x2 = f.Tensor "x1", f.Tensor "x2"
    let moment = SecondMoment.zero x1.shape[2] torch.float64 torch.CPU |> SecondMoment.observe x1 |> SecondMoment.observe x2

    [ difference (f.Tensor "training") (forward 1.0 before (Some lora) x1)
      difference (f.Tensor "subtracted1") (forward -1.0 before None x1)
      difference (f.Tensor "subtracted2") (forward -1.0 before None x2)
      difference (f.Tensor "second_moment") moment.Moment
      difference (f.Tensor "testing_after_merge") (forward 1.0 (Lora.merge lora before) None x1) ]

[<Tests>]
let tests =
    testList "Golden" [
        golden "augmented_triplet" triplet
        golden "retained_projection" projection
        golden "projected_adam" projectedAdam
        golden "attention" attention
    ]
