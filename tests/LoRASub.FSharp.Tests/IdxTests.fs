module LoRASub.Tests.IdxTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

let private trainImages = "train-images-idx3-ubyte"
let private trainLabels = "train-labels-idx1-ubyte"
let private testImages = "t10k-images-idx3-ubyte"
let private testLabels = "t10k-labels-idx1-ubyte"

/// Four training and two test images of 2 x 3.
let private good =
    [
        trainImages, idx 0x803 [ 4; 2; 3 ] (countedPixels 4 6)
        trainLabels, idx 0x801 [ 4 ] [| 0uy; 1uy; 1uy; 0uy |]
        testImages, idx 0x803 [ 2; 2; 3 ] (countedPixels 2 6)
        testLabels, idx 0x801 [ 2 ] [| 1uy; 0uy |]
    ]

let private load folder = Idx.load "toy" [| "a"; "b" |] folder

/// The good files, one of them replaced.
let private loadWith (name: string) (content: byte[]) (folder: string) =
    for file, bytes in good do
        if file <> name && file + ".gz" <> name then
            write folder file bytes

    write folder name content
    load folder |> ignore

let private packed = gzip (List.head good |> snd)

/// Four images of 40 x 60 that do not shrink, so that half of the file is half of the images.
let private noise =
    let pixels = Array.zeroCreate<byte> 9600
    System.Random(1).NextBytes pixels
    gzip (idx 0x803 [ 4; 40; 60 ] pixels)

let private badInputs: BadInput list =
    let row what name words content : BadInput =
        what, name :: words, loadWith name content

    [
        "a missing folder",
        [ "nowhere"; "folder"; "no such folder" ],
        fun folder -> load (Path.Combine(folder, "nowhere")) |> ignore
        "an empty folder", [ trainImages; ".gz"; "no such file" ], load >> ignore
        "a file without its labels",
        [ testLabels; "no such file" ],
        fun folder ->
            for file, bytes in List.take 3 good do
                write folder file bytes

            load folder |> ignore
        row "an empty file" trainImages [ "0x00000803"; "no bytes" ] [||]
        row "two bytes" trainImages [ "0x00000803"; "0x0000" ] [| 0uy; 0uy |]
        row
            "the magic number of labels in images"
            trainImages
            [ "0x00000803"; "0x00000801" ]
            (idx 0x801 [ 4 ] (countedPixels 4 1))
        row
            "the magic number of images in labels"
            trainLabels
            [ "0x00000801"; "0x00000803" ]
            (idx 0x803 [ 4; 1; 1 ] (countedPixels 4 1))
        row
            "float elements"
            trainImages
            [ "0x00000803"; "0x00000D03" ]
            (idx 0xD03 [ 4; 2; 3 ] (countedPixels 4 24))
        row "text" testLabels [ "0x00000801"; "0x6C6F7374" ] "lost"B
        row
            "a header that ends early"
            trainImages
            [ "header of 16 bytes"; "8 bytes"; "truncated" ]
            (idx 0x803 [ 4 ] [||])
        row "an axis of 0" trainImages [ "at least 1"; "4 x 0 x 3" ] (idx 0x803 [ 4; 0; 3 ] [||])
        row "a negative axis" trainImages [ "at least 1"; "4 x -2 x 3" ] (idx 0x803 [ 4; -2; 3 ] [||])
        row
            "axes beyond memory"
            trainImages
            [ "at most"; "2147483647 x" ]
            (idx 0x803 [ 0x7FFFFFFF; 0x7FFFFFFF; 0x7FFFFFFF ] [||])
        row
            "too few pixels"
            trainImages
            [ "4 x 2 x 3"; "24"; "23"; "truncated" ]
            (idx 0x803 [ 4; 2; 3 ] (Array.zeroCreate 23))
        row
            "too many pixels"
            trainImages
            [ "end after its 24"; "more bytes" ]
            (idx 0x803 [ 4; 2; 3 ] (Array.zeroCreate 25))
        row
            "a .gz that is not gzip"
            (trainImages + ".gz")
            [ "must be gzip"; "something else" ]
            (List.head good |> snd)
        row
            "a gzip stream cut in its middle"
            (trainImages + ".gz")
            [ "9600"; "truncated" ]
            noise[.. noise.Length / 2]
        row "a gzip stream cut after its header" (trainImages + ".gz") [ "no bytes" ] packed[..9]
        row
            "a gzip stream without its trailer"
            (trainImages + ".gz")
            [ "end with their length, 40" ]
            packed[.. packed.Length - 9]
        row
            "a gzip stream without its last byte"
            (trainImages + ".gz")
            [ "end with their length, 40" ]
            packed[.. packed.Length - 2]
        row "a gzip stream of two bytes" (trainImages + ".gz") [ "no bytes" ] packed[..1]
        row
            "a gzip stream with a damaged checksum"
            (trainImages + ".gz")
            [ "cannot be read" ]
            (packed |> Array.mapi (fun i b -> if i = packed.Length - 6 then ~~~b else b))
        row
            "more labels than images"
            trainLabels
            [ "each of the 4 images"; trainImages; "5" ]
            (idx 0x801 [ 5 ] (Array.zeroCreate 5))
        row
            "fewer labels than images"
            testLabels
            [ "each of the 2 images"; testImages; "1" ]
            (idx 0x801 [ 1 ] [| 0uy |])
        row
            "a label out of range"
            trainLabels
            [ "0 to 1"; "2 at position 3" ]
            (idx 0x801 [ 4 ] [| 0uy; 1uy; 0uy; 2uy |])
        row
            "test images of another size"
            testImages
            [ "2 x 3"; "3 x 2" ]
            (idx 0x803 [ 2; 3; 2 ] (countedPixels 2 6))
    ]

[<Tests>]
let tests =
    testList
        "Idx"
        [
            refusals badInputs

            for what, suffix, wrap in
                [
                    "plain files", "", id
                    "gzip files", ".gz", gzip
                    "gzip files named as plain ones", "", gzip
                ] do
                testCase $"reads {what}" (fun () ->
                    inFolder (fun folder ->
                        for file, bytes in good do
                            write folder (file + suffix) (wrap bytes)

                        leavesNothing (fun () ->
                            let set = load folder
                            Expect.equal set.Train.Labels [| 0; 1; 1; 0 |] "training labels"
                            Expect.equal set.Test.Labels [| 1; 0 |] "test labels"

                            Expect.stringContains
                                set.Train.Source
                                trainImages
                                "the source is the file of images"

                            let first = set.Train.Read 0
                            Expect.equal (first.Height, first.Width) (2, 3) "size"

                            Expect.equal
                                (planesAt 1 set.Train [| 3; 1 |])
                                (Array.append (Array.create 6 3uy) (Array.create 6 1uy))
                                "pixels")))
        ]
