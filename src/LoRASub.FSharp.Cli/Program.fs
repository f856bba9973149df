module LoRASub.Cli.Program

open LoRASub

[<EntryPoint>]
let main _ =
    let load = NativeBackend.ensureLoaded ()
    printfn "%A" load
    use t = TorchSharp.torch.ones ([| 2L; 3L |])
    printfn "%d elements" t.NumberOfElements
    0
