module LoRASub.Tests.ErrorsTests

open Expecto
open LoRASub
open LoRASub.Tests.Check

let private messageOf (call: unit -> unit) =
    try
        call ()
        failtest "was accepted"
    with :? InputException as error ->
        error.Message

[<Tests>]
let tests =
    testList
        "Errors"
        [
            testCase "a rejection reads: subject, rule, finding, fix" (fun () ->
                let full =
                    messageOf (fun () -> Errors.reject "rank" "must be at least 1" "0" "raise it")

                Expect.equal full "rank: must be at least 1; found 0; raise it" "with a fix"
                let short = messageOf (fun () -> Errors.reject "rank" "must be at least 1" "0" "")
                Expect.equal short "rank: must be at least 1; found 0" "without one")

            testCase "require builds its text only when it rejects" (fun () ->
                let mutable built = 0

                let received () =
                    built <- built + 1
                    "2"

                Errors.require (fun () -> true) "n" "must be 1" received
                Expect.equal built 0 "accepted"

                Expect.equal
                    (messageOf (fun () -> Errors.require (fun () -> false) "n" "must be 1" received))
                    "n: must be 1; found 2"
                    "rejected"

                Expect.equal built 1 "once")

            testCase "requireBetween accepts both ends" (fun () ->
                Errors.requireBetween "share" 0.0 1.0 0.0
                Errors.requireBetween "share" 0.0 1.0 1.0

                let message =
                    messageOf (fun () -> Errors.requireBetween "share" 0.0 1.0 (1.0 + 1e-12))

                Expect.stringContains message "share: must lie in [0, 1]" "just above")

            rejects "requireBetween refuses NaN" [ "share"; "[0, 1]"; "NaN" ] (fun () ->
                Errors.requireBetween "share" 0.0 1.0 nan)

            testCase "the cause of an error stays with it" (fun () ->
                let cause = exn "disk"
                Expect.equal (InputException("file", cause).InnerException) cause "inner exception")
        ]
