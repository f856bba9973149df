namespace LoRASub.Run

open System
open System.IO
open System.Reflection
open System.Runtime.InteropServices
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open TorchSharp

/// The machine and libraries of a run.
[<RequireQualifiedAccess>]
module internal Machine =

    let private version (assembly: Assembly) = assembly.GetName().Version.ToString 3

    // What follows the colon of the first line of this name.
    let private reported (name: string) : string option =
        if File.Exists "/proc/cpuinfo" then
            File.ReadLines "/proc/cpuinfo"
            |> Seq.tryFind _.StartsWith(name)
            |> Option.map (fun line -> line.Substring(line.IndexOf ':' + 1).Trim())
        else
            None

    /// The processor's name, if the system reports it.
    let processor () : string =
        reported "model name"
        |> Option.defaultValue (string RuntimeInformation.ProcessArchitecture)

    /// The instructions that Linux lists; .NET does not report those for bfloat16.
    let instructions () : Set<string> =
        reported "flags"
        |> Option.map (_.Split(' ') >> Set.ofArray)
        |> Option.defaultValue Set.empty

    /// Whether a list of instructions has none for bfloat16; false for an empty list, where nothing is known.
    let lacksBfloat16 (instructions: Set<string>) : bool =
        not instructions.IsEmpty
        && [ "avx512_bf16"; "amx_bf16" ] |> List.forall (instructions.Contains >> not)

    /// Program, libraries and machine, as in resources.json. LibTorch must be loaded.
    let describe (device: string) (deterministic: bool) : JsonNode =
        let native = NativeBackend.ensureLoaded ()

        Json.object
            [
                "program", Json.text $"LoRASub.FSharp {version (Assembly.GetExecutingAssembly())}"
                "runtime", Json.text RuntimeInformation.FrameworkDescription
                "torchSharp", Json.text (version typeof<DeviceType>.Assembly)
                "libTorch", Json.text native.LibTorchVersion
                "libTorchTested", Json.bool native.IsTested
                "processor", Json.text (processor ())
                "cores", Json.int (int64 Environment.ProcessorCount)
                "memoryBytes", Json.int (GC.GetGCMemoryInfo().TotalAvailableMemoryBytes)
                "system", Json.text RuntimeInformation.OSDescription
                "threads", Json.int (torch.get_num_threads ())
                "products", Json.text (ProductRoute.name (Product.route ()))
                "device", Json.text device
                "repeatable", Json.bool (device = "cpu" || deterministic)
            ]
