module LoRASub.Tests.ImageFilesTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.TestFiles

/// Two classes of `each` images of differing sizes, a third of each for the test; image i has red 10 i.
let private scan (folder: string) (each: int) : FileScan =
    let files: LabelledFile[] =
        Array.init (2 * each) (fun i ->
            let path = Path.Combine(folder, $"{i}.png")
            writePicture path (plainPicture (4 + i) (9 - i % 5) (10 * i) 50 100)
            { Path = path; Label = i % 2 })

    let test, train =
        files |> Array.indexed |> Array.partition (fun (i, _) -> i % 6 < 2)

    {
        ClassNames = [| "a"; "b" |]
        Answers = [| 0; 1 |]
        TrainSource = Path.Combine(folder, "train list")
        Train = Array.map snd train
        TestSource = Path.Combine(folder, "test list")
        Test = Array.map snd test
        Notes = [||]
        Problems = [||]
    }

let private spoil (folder: string) (i: int) =
    File.WriteAllText(Path.Combine(folder, $"{i}.png"), "no image")

let private skipping =
    { ReadOptions.standard with
        SkipBroken = true
    }

let private badInputs: BadInput list =
    let load spoilt options folder =
        let scan = scan folder 12
        spoilt |> List.iter (spoil folder)
        ImageFiles.dataset options "toy" scan |> ignore

    [
        "one broken file",
        [ "toy"; "1 broken of 24"; "3.png (text)"; "skip-broken" ],
        load [ 3 ] ReadOptions.standard
        "seven broken files, of which five are named",
        [ "7 broken of 24"; "2.png"; "20.png"; "and 2 more" ],
        load [ 2; 3; 4; 13; 14; 20; 21 ] ReadOptions.standard
        "no test image left",
        [ "test list"; "at least one test image" ],
        load [ 0; 1; 6; 7; 12; 13; 18; 19 ] skipping
        "a scan with a problem",
        [ "list: must be long; found short" ],
        fun folder ->
            { scan folder 12 with
                Problems = [| "list: must be long; found short" |]
            }
            |> ImageFiles.dataset skipping "toy"
            |> ignore
        "a position after the end",
        [ "train list"; "0 to 15"; "16" ],
        fun folder ->
            (ImageFiles.dataset ReadOptions.standard "toy" (scan folder 12)).Train.Read 16
            |> ignore
    ]

[<Tests>]
let tests =
    testList
        "ImageFiles"
        [
            refusals badInputs

            testCase "pictures have their files' sizes and colours, and planes" (fun () ->
                inFolder (fun folder ->
                    let scan = scan folder 6
                    let data = ImageFiles.dataset ReadOptions.standard "toy" scan
                    Expect.equal (data.Train.Labels.Length, data.Test.Labels.Length) (8, 4) "counts"
                    Expect.isEmpty data.Notes "nothing to tell"
                    let picture = data.Train.Read 1

                    Expect.equal
                        (picture.Height, picture.Width, picture.Pixels[0])
                        (7, 6, 30uy)
                        "third file"

                    Expect.equal
                        (Array.countBy id (planes 3 picture))
                        [| 30uy, 42; 50uy, 42; 100uy, 42 |]
                        "planes"))

            testCase "broken files are left out and told, the same every time" (fun () ->
                inFolder (fun folder ->
                    let scan = scan folder 12
                    [ 2; 8; 12 ] |> List.iter (spoil folder)
                    let load () = ImageFiles.dataset skipping "toy" scan
                    let data = load ()
                    Expect.equal (data.Train.Labels.Length, data.Test.Labels.Length) (14, 7) "three fewer"
                    Expect.hasLength data.Notes 4 "their number, and each"

                    for word in [ "3 of 24"; "2.png"; "12.png" ] do
                        Expect.stringContains (String.concat "; " data.Notes) word "note"

                    Expect.equal (load ()).Notes data.Notes "again"
                    Expect.equal ((data.Train.Read 0).Pixels[0]) 30uy "the next one moves up"))

            testCase "damage within a file shows when all is decoded" (fun () ->
                inFolder (fun folder ->
                    let scan = scan folder 6
                    let path = Path.Combine(folder, "4.png")
                    let file = File.ReadAllBytes path
                    // in the compressed pixels
                    file[file.Length - 30] <- file[file.Length - 30] ^^^ 0x55uy
                    File.WriteAllBytes(path, file)
                    Expect.isNone (ImageFile.glance path) "not at a glance"
                    let found = ImageFiles.verify [| Path.Combine(folder, "3.png"); path |]
                    Expect.equal (found |> Array.map _.Path) [| path |] "found"
                    let data = ImageFiles.dataset skipping "toy" scan
                    Expect.stringContains data.Notes[0] "1 of 12" "left out"))

            testCase "decoded pictures stay up to a limit, the oldest leave" (fun () ->
                inFolder (fun folder ->
                    let paths =
                        Array.init 5 (fun i ->
                            let path = Path.Combine(folder, $"{i}.png")
                            writePicture path (plainPicture 10 10 i 0 0)
                            path)

                    let cache = PictureCache 1700L // three pictures of 300 + 256 bytes
                    let first = cache.Read paths[0]
                    Expect.isTrue (obj.ReferenceEquals(cache.Read paths[0], first)) "kept"
                    paths |> Array.iter (cache.Read >> ignore)
                    Expect.equal cache.Held 1668L "bytes"
                    Expect.isFalse (obj.ReferenceEquals(cache.Read paths[0], first)) "the oldest has left"
                    Expect.equal cache.Held 1668L "still"

                    let several = PictureCache 1700L

                    System.Threading.Tasks.Parallel.For(
                        0,
                        200,
                        fun i ->
                            let picture = several.Read paths[i % 5]

                            if int picture.Pixels[0] <> i % 5 then
                                failwith "another picture"
                    )
                    |> ignore

                    Expect.isLessThanOrEqual several.Held 1700L "never more than the limit"))
        ]
