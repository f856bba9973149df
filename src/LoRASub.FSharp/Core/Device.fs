namespace LoRASub.Core

open System
open TorchSharp

/// Devices by their names.
[<RequireQualifiedAccess>]
module Device =

    /// <summary>The device of a name.</summary>
    /// <param name="name">`cpu` or `cuda:N`.</param>
    /// <returns>The device.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is another, or the machine has no such
    /// device.</exception>
    let parse (name: string) : torch.Device =
        let rule = "must be cpu or cuda:N"

        match name.Split ':' with
        | [| "cpu" |] -> torch.CPU
        | [| "cuda"; number |] ->
            match Int32.TryParse number with
            | true, n when n >= 0 ->
                let count =
                    if torch.cuda_is_available () then
                        torch.cuda.device_count ()
                    else
                        0

                if n >= count then
                    let fix = "this LibTorch may be a CPU build: see --libtorch, and `lorasub doctor`"
                    Errors.reject $"device {name}" "must be present" $"{count} CUDA devices" fix

                torch.device (DeviceType.CUDA, n)
            | _ -> Errors.reject "device" rule $"'{name}'" ""
        | _ -> Errors.reject "device" rule $"'{name}'" ""
