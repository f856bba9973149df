module LoRASub.Benchmarks.Program

[<EntryPoint>]
let main _ = 0
