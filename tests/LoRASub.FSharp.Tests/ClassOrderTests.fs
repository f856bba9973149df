module LoRASub.Tests.ClassOrderTests

open System.IO
open System.Text
open LoRASub.Data
open Expecto
open FsCheck
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private published =
    Directory.GetFiles(Path.Combine(System.AppContext.BaseDirectory, "class-orders"), "*.json")
    |> Array.sort

let private entries order =
    match order with
    | ClassOrder.Explicit(_, entries) -> entries
    | other -> failtest $"{other} instead of an explicit order"

let private badInputs: BadInput list =
    let resolve order _ =
        ClassOrder.resolve 4 (ClassOrder.Explicit("order.json", order)) |> ignore

    let read (text: string) folder =
        write folder "order.json" (Encoding.UTF8.GetBytes text)
        ClassOrder.readFile (Path.Combine(folder, "order.json")) |> ignore

    let row what words text : BadInput = what, "order.json" :: words, read text

    [
        "a repeated class",
        [ "order.json"; "0 to 3 once"; "1 at entry 2 and at entry 0" ],
        resolve [| 1; 0; 1; 2 |]
        "a missing class", [ "order.json"; "3 entries without 2" ], resolve [| 1; 0; 3 |]
        "a class above the range", [ "order.json"; "4 at entry 3" ], resolve [| 0; 1; 2; 4 |]
        "a negative class", [ "order.json"; "-1 at entry 0" ], resolve [| -1; 1; 2; 3 |]
        "too many entries", [ "order.json"; "0 at entry 4 and at entry 0" ], resolve [| 0; 1; 2; 3; 0 |]
        "no entries", [ "order.json"; "0 entries without 0" ], resolve [||]
        "a missing file",
        [ "absent.json"; "no such file" ],
        fun folder -> ClassOrder.readFile (Path.Combine(folder, "absent.json")) |> ignore
        row "an empty file" [ "JSON" ] ""
        row "text" [ "JSON" ] "0, 1, 2"
        row "a cut array" [ "JSON" ] "[0, 1, "
        row "something after the array" [ "JSON" ] "[0, 1] 2"
        row "an object without an order" [ "without \"order\"" ] "{\"classes\": [0, 1]}"
        row "a number" [ "array"; "Number" ] "7"
        row "null" [ "array"; "Null" ] "null"
        row "an order that is text" [ "array"; "String" ] "{\"order\": \"0, 1\"}"
        row "an entry of text" [ "integer"; "\"1\" at entry 1" ] "[0, \"1\"]"
        row "a fraction" [ "integer"; "1.5 at entry 1" ] "[0, 1.5]"
        row "an entry beyond 32 bits" [ "integer"; "4294967296 at entry 0" ] "[4294967296]"
        row "a null entry" [ "integer"; "null at entry 2" ] "[0, 1, null]"
        row "a nested array" [ "integer"; "[0] at entry 0" ] "[[0], 1]"
        row "deep nesting" [ "JSON"; "depth" ] (String.replicate 100000 "[")
        row
            "deep nesting in an object"
            [ "JSON"; "depth" ]
            (String.replicate 5000 "{\"order\":" + "0" + String.replicate 5000 "}")
    ]

[<Tests>]
let tests =
    testList
        "ClassOrder"
        [
            refusals badInputs

            testCase "the seven published lists are there" (fun () -> Expect.hasLength published 7 "files")

            for path in published do
                testCase $"seed 1993 gives {Path.GetFileNameWithoutExtension path}" (fun () ->
                    let order = entries (ClassOrder.readFile path)

                    Expect.equal
                        (ClassOrder.resolve order.Length ClassOrder.Seed1993)
                        order
                        "numpy's permutation")

            // printed by numpy.random.RandomState(seed).permutation(n)
            testCase "other seeds are numpy's too" (fun () ->
                Expect.equal (ClassOrder.numpyPermutation 0u 7) [| 6; 2; 1; 3; 0; 5; 4 |] "seed 0"

                Expect.equal
                    (ClassOrder.numpyPermutation System.UInt32.MaxValue 9)
                    [| 5; 1; 8; 7; 0; 6; 4; 2; 3 |]
                    "the largest seed"
                // 2000 entries need more than the first 624 words
                let first = Array.take 8 (ClassOrder.numpyPermutation 42u 2000)
                Expect.equal first [| 1860; 353; 1333; 905; 1289; 1273; 938; 1731 |] "seed 42")

            law "every order is a permutation" (fun (seed: uint32, NonNegativeInt n) ->
                let n = n % 300

                Expect.equal
                    (Array.sort (ClassOrder.numpyPermutation seed n))
                    (Array.init n id)
                    "each class once")

            law "an explicit permutation is kept" (fun (seed: uint32, PositiveInt n) ->
                let order = ClassOrder.numpyPermutation seed n
                Expect.equal (ClassOrder.resolve n (ClassOrder.Explicit("given", order))) order "the same")

            testCase "the natural order counts up" (fun () ->
                Expect.equal (ClassOrder.resolve 4 ClassOrder.Natural) [| 0; 1; 2; 3 |] "0 to 3")

            testCase "an order is read from an array and from an object" (fun () ->
                inFolder (fun folder ->
                    let read (text: string) =
                        write folder "order.json" (Encoding.UTF8.GetBytes text)
                        entries (ClassOrder.readFile (Path.Combine(folder, "order.json")))

                    Expect.equal (read "[2, 0, 1]") [| 2; 0; 1 |] "array"
                    Expect.equal (read "\uFEFF[1, 0]") [| 1; 0 |] "array after a byte order mark"
                    Expect.equal (read "{\"dataset\": \"x\", \"order\": [1, 0]}") [| 1; 0 |] "object"))
        ]
