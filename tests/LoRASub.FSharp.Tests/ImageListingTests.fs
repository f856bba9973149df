module LoRASub.Tests.ImageListingTests

open System.IO
open LoRASub.Data
open Expecto
open LoRASub.Tests.Probe

[<Tests>]
let tests =
    testList
        "ImageListing"
        [
            testCase "names that systems leave behind, in any case, and names of classes" (fun () ->
                for name in
                    [
                        "__MACOSX"
                        ".DS_Store"
                        "._a.jpg"
                        "Icon\r"
                        "Thumbs.db"
                        "THUMBS.DB"
                        "desktop.ini"
                        "$Recycle.Bin"
                        "System Volume Information"
                        "found.000"
                        "lost+found"
                        ".Trash-1000"
                        "@eaDir"
                        "#recycle"
                        "@Recycle"
                        ".ipynb_checkpoints"
                        "__pycache__"
                        ".git"
                    ] do
                    Expect.isTrue (ImageListing.isLeftBehind name) name

                for name in [ "lost"; "eaDir"; "recycle"; "found.1"; "001.Auk"; "thumbs"; "_cat" ] do
                    Expect.isFalse (ImageListing.isLeftBehind name) name)

            testCase "names with their numbers, the most frequent first" (fun () ->
                Expect.equal
                    (ImageListing.counted [| "b"; "a"; "b"; "c"; "b"; "c" |])
                    "b (3), c (2), a"
                    "few"

                Expect.equal
                    (ImageListing.counted [| for i in 0..9 -> string i |])
                    "0, 1, 2, 3, 4, 5, 6, 7 and 2 more names"
                    "many")

            testCase "a folder that cannot be read is a problem, not an exception" (fun () ->
                inFolder (fun folder ->
                    let gone = ImageListing.place (Path.Combine(folder, "gone"))
                    let listing = ImageListing.list gone [] gone
                    Expect.isEmpty listing.Folders "folders"
                    let problem = Array.exactlyOne (ImageListing.problems listing.Findings)
                    Expect.stringContains problem "gone: must be a readable folder" "said"))
        ]
