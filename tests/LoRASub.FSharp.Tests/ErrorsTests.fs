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

            testCase "the cause of an error stays with it" (fun () ->
                let cause = exn "disk"
                Expect.equal (InputException("file", cause).InnerException) cause "inner exception")
        ]
