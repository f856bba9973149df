module LoRASub.Tests.PrefetchTests

open System
open System.Threading
open LoRASub.Core
open LoRASub.Data
open Expecto
open FsCheck

[<Tests>]
let tests =
    testList
        "Prefetch"
        [
            TestFiles.law
                "results are those of the items, whatever is asked for"
                (fun (PositiveInt n, asked: int list, ahead: byte) ->
                    let n = 1 + n % 20
                    let items = Prefetch.ahead (int ahead % 5) n (fun i () -> 7 * i)

                    for i in asked do
                        let i = (i &&& 0x7FFFFFFF) % n
                        Expect.equal (items[i]()) (7 * i) $"item {i}")

            testCase "no more than the next few are begun, each once" (fun () ->
                let begun = Array.zeroCreate<int> 10
                let prepared = ResizeArray()

                let items =
                    Prefetch.ahead 2 10 (fun i ->
                        prepared.Add i
                        fun () -> Interlocked.Increment(&begun[i]))

                Expect.isEmpty prepared "nothing before the first is asked for"
                Expect.equal (items[0]()) 1 "first"
                Expect.equal (List.ofSeq prepared) [ 0; 1; 2 ] "two ahead"
                Expect.equal (items[1]()) 1 "second"
                Expect.equal (List.ofSeq prepared) [ 0; 1; 2; 3 ] "one more"

                for i in 2..9 do
                    Expect.equal (items[i]()) 1 "each once"

                Expect.equal (List.ofSeq prepared) [ 0..9 ] "all, in order"
                Expect.equal (items[4]()) 2 "made again"
                Expect.equal prepared.Count 11 "and no other with it")

            testCase "items run side by side, ahead of the one asked for" (fun () ->
                use second = new ManualResetEventSlim()

                let items =
                    Prefetch.ahead 1 2 (fun i () ->
                        if i = 0 then
                            second.Wait(TimeSpan.FromSeconds 30.0)
                        else
                            second.Set()
                            true)

                Expect.isTrue (items[0]()) "the first waited for the second")

            testCase "an error reaches the one who asks, and no one else" (fun () ->
                let items =
                    Prefetch.ahead 2 4 (fun i () ->
                        if i = 1 then
                            Errors.reject "file 1" "must be whole" "a part" ""
                        else
                            i)

                Expect.equal (items[0]()) 0 "before"
                Check.refused [ "file 1"; "a part" ] (fun () -> items[1]() |> ignore)
                Expect.equal (items[2]()) 2 "after"
                Check.refused [ "file 1" ] (fun () -> items[1]() |> ignore))

            testCase "items that nobody asks for any more come to an end" (fun () ->
                let counts = [| 0; 0 |]

                let items =
                    Prefetch.ahead 3 100 (fun _ () ->
                        Interlocked.Increment &counts[0] |> ignore
                        Thread.Sleep 1
                        Interlocked.Increment &counts[1])

                items[0]() |> ignore

                SpinWait.SpinUntil((fun () -> Volatile.Read &counts[1] = 4), TimeSpan.FromSeconds 30.0)
                |> ignore

                Expect.equal counts [| 4; 4 |] "one and three ahead")
        ]
