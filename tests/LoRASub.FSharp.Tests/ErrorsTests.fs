module LoRASub.Tests.ErrorsTests

open LoRASub.Core
open LoRASub.Data
open Expecto
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

            testCase "names in a message cannot act on the terminal, whoever makes it" (fun () ->
                let hostile = "\u001B[31m\r\nx\u202E"

                for message in
                    [
                        messageOf (fun () -> Errors.reject hostile "rule" "it" "")
                        messageOf (fun () -> Errors.reject "it" hostile hostile hostile)
                        InputException(hostile).Message
                        InputException(hostile, exn "cause").Message
                    ] do
                    Expect.stringContains message @"\u001B[31m\r\nx\u202E" "visible"
                    Expect.isFalse (message |> Seq.exists System.Char.IsControl) "no control character")

            testCase "a name is suggested for a slip, and none for another word" (fun () ->
                let commands = [ "run"; "evaluate"; "data"; "report"; "doctor" ]
                let options = [ "--lr"; "--out"; "--seed"; "--epochs"; "--version" ]

                for known, given, meant in
                    [
                        commands, "rum", "run"
                        commands, "evalute", "evaluate"
                        commands, "Report", "report"
                        options, "--epoch", "--epochs"
                        options, "--output", "--out"
                        options, "--versoin", "--version"
                        Datasets.names, "cub", "cub200"
                        Datasets.names, "MNIST", "mnist"
                        Datasets.names, "minst", "mnist"
                        commands, "dtaa", "data"
                        Datasets.names, "cifar-100", "cifar100"
                    ] do
                    Expect.equal (Errors.didYouMean known given) $"did you mean {meant}?" given

                for known, given in
                    [
                        commands, "predict"
                        commands, "inspect"
                        commands, "frobnicate"
                        commands, "version"
                        commands, ""
                        options, "-t"
                        options, "--predict"
                        options, "--model"
                        Datasets.names, "nosuch"
                        [], "run"
                    ] do
                    Expect.equal (Errors.didYouMean known given) "" given)

            testCase "the cause of an error stays with it" (fun () ->
                let cause = exn "disk"
                Expect.equal (InputException("file", cause).InnerException) cause "inner exception")
        ]
