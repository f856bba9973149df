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

    /// The processor's name, if the system reports it.
    let processor () : string =
        let line =
            if File.Exists "/proc/cpuinfo" then
                File.ReadLines "/proc/cpuinfo" |> Seq.tryFind _.StartsWith("model name")
            else
                None

        match line with
        | Some text -> text.Substring(text.IndexOf ':' + 1).Trim()
        | None -> string RuntimeInformation.ProcessArchitecture

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
