module LoRASub.Tests.Program

open Expecto.Impl
open LoRASub

[<EntryPoint>]
let main argv =
    NativeBackend.ensureLoaded () |> ignore

    match testFromThisAssembly () with
    | Some tests -> TestRun.run argv Check.report tests
    | None -> 2
