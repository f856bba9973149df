module LoRASub.Tests.CifarTests

open System.IO
open System.Text
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

/// Records whose label bytes are given; the pixels count up from the label bytes' last.
let private records (labels: byte list list) =
    [|
        for bytes in labels do
            yield! bytes
            yield! Array.init 3072 (fun i -> byte (i + int (List.last bytes)))
    |]

let private trainFiles = [ for i in 1..5 -> $"data_batch_{i}.bin" ]

let private write10 folder =
    trainFiles
    |> List.iteri (fun i file -> write folder file (records [ [ byte i ]; [ 9uy ] ]))

    write folder "test_batch.bin" (records [ [ 7uy ] ])

let private write100 folder =
    write folder "train.bin" (records [ [ 3uy; 99uy ]; [ 200uy; 0uy ] ])
    write folder "test.bin" (records [ [ 1uy; 42uy ] ])

let private badInputs: BadInput list =
    let replaced load prepare name content (folder: string) =
        prepare folder
        write folder name content
        load folder |> ignore

    let row10 what name words content : BadInput =
        what, name :: words, replaced Cifar.load10 write10 name content

    let row100 what name words content : BadInput =
        what, name :: words, replaced Cifar.load100 write100 name content

    let python name load (make: string -> unit) : BadInput =
        $"the version for Python: {name}",
        [ "binary version"; "version for Python"; name; "binary.tar.gz" ],
        fun folder ->
            make (Path.Combine(folder, name))
            load folder |> ignore

    let file (path: string) = File.WriteAllText(path, "")

    let folder (path: string) =
        Directory.CreateDirectory path |> ignore

    [
        python "cifar-100-python" Cifar.load100 folder
        python "cifar-100-python.tar.gz" Cifar.load100 file
        python "meta" Cifar.load100 file
        python "cifar-10-batches-py" Cifar.load10 folder
        python "data_batch_1" Cifar.load10 file
        "a missing folder",
        [ "nowhere"; "cifar10"; "no such folder" ],
        fun folder -> Cifar.load10 (Path.Combine(folder, "nowhere")) |> ignore
        "an empty folder", [ "train.bin"; "cifar100"; "no such file" ], Cifar.load100 >> ignore
        "a missing batch",
        [ "data_batch_4.bin"; "no such file" ],
        fun folder ->
            write10 folder
            File.Delete(Path.Combine(folder, "data_batch_4.bin"))
            Cifar.load10 folder |> ignore
        row10 "an empty file" "data_batch_2.bin" [ "3073"; "0 bytes" ] [||]
        row10 "a cut record" "test_batch.bin" [ "3073"; "3072 bytes" ] (Array.zeroCreate 3072)
        row100
            "records of CIFAR-10 in CIFAR-100"
            "train.bin"
            [ "3074"; "6146 bytes" ]
            (records [ [ 1uy ]; [ 2uy ] ])
        row10
            "a label out of range"
            "data_batch_5.bin"
            [ "0 to 9"; "10 at position 1" ]
            (records [ [ 0uy ]; [ 10uy ] ])
        row100
            "a fine label out of range"
            "test.bin"
            [ "0 to 99"; "100 at position 0" ]
            (records [ [ 0uy; 100uy ] ])
        row100 "too few class names" "fine_label_names.txt" [ "100 classes"; "2" ] "apple\nbear\n"B
    ]

[<Tests>]
let tests =
    testList
        "Cifar"
        [
            refusals badInputs

            testCase "CIFAR-10: five batches in their order, one label byte" (fun () ->
                inFolder (fun folder ->
                    write10 folder

                    leavesNothing (fun () ->
                        let set = Cifar.load10 folder
                        Expect.equal set.Train.Labels [| 0; 9; 1; 9; 2; 9; 3; 9; 4; 9 |] "training labels"
                        Expect.equal set.Test.Labels [| 7 |] "test labels"
                        Expect.equal set.ClassNames[9] "class 9" "numbered without a names file"
                        Expect.stringContains (Array.exactlyOne set.Notes) "batches.meta.txt" "said"
                        let first = set.Train.Read 0
                        Expect.equal (first.Height, first.Width) (32, 32) "size"

                        let expected =
                            [|
                                for first in [ 2; 9 ] do
                                    yield! Array.init 3072 (fun i -> byte (i + first))
                            |]

                        Expect.equal (planesAt 3 set.Train [| 4; 1 |]) expected "planes in file order")))

            testCase "CIFAR-100: the fine label is the second byte" (fun () ->
                inFolder (fun folder ->
                    write100 folder
                    let set = Cifar.load100 folder
                    Expect.equal set.Train.Labels [| 99; 0 |] "fine labels, any coarse one"
                    Expect.equal set.Test.Labels [| 42 |] "test labels"

                    Expect.equal
                        (planesAt 3 set.Test [| 0 |])
                        (Array.init 3072 (fun i -> byte (i + 42)))
                        "pixels"))

            testCase "the folder that the archive makes may be given from outside" (fun () ->
                inFolder (fun folder ->
                    let inside = Path.Combine(folder, "cifar-100-binary")
                    Directory.CreateDirectory inside |> ignore
                    write100 inside
                    Expect.equal (Cifar.load100 folder).Test.Labels [| 42 |] "read"))

            testCase "class names come from the text file" (fun () ->
                inFolder (fun folder ->
                    write10 folder
                    let names = [| for i in 0..9 -> $"name {i}" |]

                    write
                        folder
                        "batches.meta.txt"
                        (Encoding.UTF8.GetBytes(String.concat "\r\n" names + "\n\n"))

                    Expect.equal (Cifar.load10 folder).ClassNames names "names, without empty lines"))
        ]
