module LoRASub.Tests.ScheduleTests

open System
open LoRASub.Train
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Schedule" name law

type Epochs =
    {
        /// In ten-thousandths.
        [<Between(1, 100)>]
        Base: int
        [<Between(1, 150)>]
        Schedule: int
        [<Between(0, 400)>]
        Epoch: int
    }

    member c.Rate e =
        Schedule.cosine (float c.Base / 1e4) c.Schedule e

[<Tests>]
let tests =
    testList
        "Schedule"
        [
            property "≡ the published cosine, held at its last positive value" (fun (c: Epochs) ->
                close
                    "rate"
                    [ Oracles.learningRate (float c.Base / 1e4) c.Schedule c.Epoch ]
                    [ c.Rate c.Epoch ])

            property "η₀ = η₁ = the base rate" (fun (c: Epochs) ->
                Expect.equal (c.Rate 0, c.Rate 1) (float c.Base / 1e4, float c.Base / 1e4) "first two epochs")

            property "non-increasing" (fun (c: Epochs) ->
                atMost "the next rate" (c.Rate c.Epoch) (c.Rate(c.Epoch + 1)))

            property "positive and finite, at any epoch and at K = 1" (fun (c: Epochs) ->
                for k in [ c.Schedule; 1 ] do
                    let rate = Schedule.cosine (float c.Base / 1e4) k c.Epoch
                    Expect.isTrue (rate > 0.0 && Double.IsFinite rate) $"K = {k}: {rate}")

            property "within the schedule's own epochs nothing is held" (fun (c: Epochs) ->
                Expect.equal (Schedule.heldFrom c.Schedule c.Schedule) None "K epochs of K"

                if c.Schedule >= 2 then
                    let half =
                        99.0 * Math.PI * float (c.Schedule - 2) / (200.0 * float (c.Schedule - 1))

                    close "the last epoch" [ float c.Base / 1e4 * cos half ] [ c.Rate(c.Schedule - 1) ])

            property "heldFrom is the first epoch that repeats the rate before it" (fun (c: Epochs) ->
                let repeats =
                    Seq.tryFind (fun e -> c.Rate e = c.Rate(e - 1)) (seq { 2 .. c.Epoch - 1 })

                Expect.equal (Schedule.heldFrom c.Schedule c.Epoch) repeats "first held epoch")

            testCase "a long first task in a short schedule runs on at the last positive rate" (fun () ->
                Expect.equal (Schedule.heldFrom 5 40) (Some 6) "held from"
                close "held" [ Math.Cos(99.0 * Math.PI / 200.0) ] [ Schedule.cosine 1.0 5 5 ]
                Expect.equal (Schedule.cosine 1.0 5 39) (Schedule.cosine 1.0 5 5) "at the end")

            rejects "K = 0" [ "schedule epochs"; "at least 1"; "found 0" ] (fun () ->
                Schedule.cosine 1.0 0 0 |> ignore)
            rejects "epoch −1" [ "epoch"; "at least 0"; "found -1" ] (fun () ->
                Schedule.cosine 1.0 5 -1 |> ignore)
        ]
