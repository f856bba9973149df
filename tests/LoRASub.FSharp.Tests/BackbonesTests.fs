/// Published backbones by name: the table, the files, and how commands find them.
module LoRASub.Tests.BackbonesTests

open System
open System.IO
open System.Diagnostics
open System.Text.RegularExpressions
open System.Threading
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Methods
open LoRASub.Settings
open LoRASub.Run
open LoRASub.Fluent
open LoRASub.Cli
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.LoopbackServer
open TorchSharp

/// Of the fixtures: width 8, 2 blocks, 8 x 8 pixels.
let private row (address: Uri) : KnownBackbone =
    { Backbones.known.Head with
        Name = "small"
        Address = address
        Width = 8
        Depth = 2
        Heads = 4
        PatchSize = 4
        ImageSize = 8
    }

let private getRow (server: LoopbackServer) folder =
    Backbones.get DownloadTests.quick folder (row (server.Address "x/model.safetensors")) (fun _ _ -> ())

let private inEnvironment (variables: (string * string) list) (work: unit -> 'T) : 'T =
    let before =
        variables
        |> List.map (fun (name, _) -> name, Environment.GetEnvironmentVariable name)

    let set =
        List.iter (fun (name: string, value: string) -> Environment.SetEnvironmentVariable(name, value))

    set variables

    try
        work ()
    finally
        set before

let private tag = "\"a\""

let private table =
    [
        testCase "every row is a plain network that can be downloaded" (fun () ->
            for one in Backbones.known do
                Download.requireSafe None one.Address
                Expect.equal (one.Width % one.Heads, one.ImageSize % one.PatchSize) (0, 0) one.Name
                Expect.equal one.Family.Mean.Length one.Family.Deviation.Length one.Name
                Expect.isNotEmpty one.Family.Licence one.Name

            let names = Backbones.known |> List.map _.Name
            Expect.equal (List.distinct names) names "names"
            let addresses = Backbones.known |> List.map _.Address
            Expect.equal (List.distinct addresses) addresses "addresses"
            let files = Backbones.known |> List.map (Backbones.path "folder")
            Expect.equal (List.distinct files) files "files")

        testCase "the names say what the rows say" (fun () ->
            let sizes =
                Map.ofList
                    [
                        "tiny", (192, 12)
                        "small", (384, 12)
                        "base", (768, 12)
                        "large", (1024, 24)
                        "huge", (1280, 32)
                    ]

            let checkedRows =
                Backbones.known
                |> List.filter (fun one ->
                    let found =
                        Regex.Match(one.Name, @"^(?:vit|deit)_(\w+?)_patch(\d+)_(?:(\d+)\.|dinov2)")

                    if found.Success then
                        Expect.equal (one.Width, one.Depth) sizes[found.Groups[1].Value] one.Name
                        Expect.equal (string one.PatchSize) found.Groups[2].Value one.Name

                        let pixels =
                            if found.Groups[3].Success then
                                found.Groups[3].Value
                            else
                                "518"

                        Expect.equal (string one.ImageSize) pixels one.Name

                    found.Success)

            Expect.equal checkedRows.Length (Backbones.known.Length - 9) "all but MoCo's and Google's")

        testCase "parameters are those of the network" (fun () ->
            let shape: BackboneShape =
                {
                    Width = 8
                    Depth = 2
                    Heads = 4
                    PatchSize = 4
                    ImageSize = 8
                    Channels = 3
                    MlpRatio = 4.0
                    QkvBias = true
                }

            let count =
                Scope.run (fun () ->
                    (Weights.randomTensors shape torch.ScalarType.Float32 (Rng.ofSeed 1L)).Values
                    |> Seq.sumBy _.numel())

            Expect.equal (Backbones.parameters (row (Uri "https://example.com"))) count "of a small one"

            let b16 =
                Backbones.known
                |> List.find (fun one -> one.Name = "vit_base_patch16_224.augreg_in21k")

            Expect.equal (Backbones.parameters b16) 85_798_656L "of ViT-B/16, as timm counts them")

        testCase "list shows every name in 80 columns, addresses apart" (fun () ->
            let ended = CliTests.inside [ "backbone"; "list" ]
            Expect.equal (ended.Code, ended.Error) (0, "") "ended well"

            for one in Backbones.known do
                Expect.stringContains ended.Out $"  {one.Name} " one.Name

            for line in ended.Out.Split '\n' do
                if not (line.Contains "https://") then
                    Expect.isLessThanOrEqual line.Length 80 line)

        testCase "the command alone shows its help" (fun () ->
            for command in [ "backbone"; "data" ] do
                let bare = CliTests.inside [ command ]
                Expect.equal bare.Code 0 command
                Expect.stringContains bare.Out $"lorasub {command} get" command)
    ]

let private downloads =
    [
        testCase "what the table states reaches the network" (fun () ->
            inFolder (fun folder ->
                let bytes = File.ReadAllBytes(TensorFormatsTests.fixture "timm.safetensors")
                use server = new LoopbackServer(fun _ -> ofFile tag bytes)
                getRow server folder |> ignore
                let path = Path.Combine(folder, "small.safetensors")
                let card = WeightsCard.read (Safetensors.header path)
                Expect.equal (WeightsCard.range card) (Some(struct (-1.0, 1.0))) "range"
                Expect.equal (card.ImageSize |> Option.map _.Value) (Some 8) "pixels"
                Expect.equal (card.NormEpsilon |> Option.map _.Value.Final) (Some 1e-6) "epsilon"

                let options =
                    {
                        Heads = None
                        ImageSize = None
                        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
                        Precision = Precision.Float32
                        Device = torch.CPU
                        CheckpointActivations = false
                    }

                leavesNothing (fun () ->
                    let vit = Weights.load options path
                    use _ = Scope.own VisionTransformer.leaves vit
                    Expect.equal vit.Heads 4 "heads")

                // a changed card stays, a lost one comes back
                let card = WeightsCard.path path
                File.WriteAllText(card, """{"heads": 2}""")
                getRow server folder |> ignore
                Expect.equal (File.ReadAllText card) """{"heads": 2}""" "changed"
                File.Delete card
                getRow server folder |> ignore
                Expect.stringContains (File.ReadAllText card) "\"heads\": 4" "lost"
                Expect.hasLength server.Requests 1 "requests"

                File.WriteAllText(card, """{"heads": 2}""")
                File.Delete path
                getRow server folder |> ignore

                Expect.equal
                    (File.ReadAllText card)
                    """{"heads": 2}"""
                    "changed, beside a file that was deleted"))

        for name, bytes, words in
            [
                "a page", Text.Encoding.UTF8.GetBytes "<!doctype html><p>log in", [ "an HTML page" ]
                "another network",
                File.ReadAllBytes(TensorFormatsTests.fixture "features.safetensors"),
                [ "must belong to a plain ViT" ]
                "a network of another size",
                (inFolder (fun folder ->
                    let path = Path.Combine(folder, "x")

                    Scope.run (fun () ->
                        Weights.randomTensors
                            {
                                Width = 16
                                Depth = 1
                                Heads = 4
                                PatchSize = 4
                                ImageSize = 8
                                Channels = 3
                                MlpRatio = 4.0
                                QkvBias = true
                            }
                            torch.ScalarType.Float32
                            (Rng.ofSeed 1L)
                        |> Map.toSeq
                        |> Safetensors.write path Map.empty)

                    File.ReadAllBytes path)),
                [ "must be small, of width 8 with 2 blocks"; "width 16, 1 blocks" ]
            ] do
            testCase $"{name} is no backbone" (fun () ->
                inFolder (fun folder ->
                    use server = new LoopbackServer(fun _ -> ofFile tag bytes)
                    isRefused words (fun () -> getRow server folder |> ignore)
                    Expect.isEmpty (Directory.GetFiles folder) "nothing is left"))
    ]

[<Literal>]
let private Name = "vit_tiny_patch16_224.augreg_in21k"

let private file = Name + ".safetensors"

/// A file of the network of a row, with random weights.
let private tiny =
    lazy
        (let known = Backbones.known |> List.find (fun one -> one.Name = Name)

         inFolder (fun folder ->
             let path = Path.Combine(folder, "x")

             Scope.run (fun () ->
                 Weights.randomTensors
                     {
                         Width = known.Width
                         Depth = known.Depth
                         Heads = known.Heads
                         PatchSize = known.PatchSize
                         ImageSize = known.ImageSize
                         Channels = 3
                         MlpRatio = 4.0
                         QkvBias = true
                     }
                     torch.ScalarType.Float32
                     (Rng.ofSeed 1L)
                 |> Map.toSeq
                 |> Safetensors.write path Map.empty)

             File.ReadAllBytes path))

/// Runs a test with a hub on this machine and a cache of its own.
let private withHub reply (test: LoopbackServer -> (string * string) list -> string -> unit) =
    inFolder (fun folder ->
        use server = new LoopbackServer(reply)

        test
            server
            [
                "HF_ENDPOINT", (string (server.Address "")).TrimEnd '/'
                "LORASUB_CACHE", folder
            ]
            (Path.Combine(folder, "backbones")))

let private names =
    [
        testCase "get, then --backbone NAME in commands and in C#" (fun () ->
            withHub (fun _ -> ofFile tag tiny.Value) (fun server environment cache ->
                inEnvironment environment (fun () ->
                    isRefused
                        [
                            $"backbone {Name}"
                            "downloaded first"
                            cache
                            $"lorasub backbone get {Name}"
                        ]
                        (fun () -> Backbones.resolve Name |> ignore)

                    let refused = CliTests.inside [ "backbone"; "info"; Name ]
                    Expect.equal refused.Code 2 "not yet"
                    Expect.stringContains refused.Error $"lorasub backbone get {Name}" "not yet"

                    let got = CliTests.inside [ "backbone"; "get"; Name ]
                    Expect.equal (got.Code, got.Error) (0, "") "got"

                    for word in
                        [
                            string (server.Address $"timm/{Name}/resolve/main/model.safetensors")
                            "no checksum of it is published"
                            "Apache-2.0"
                            $"--backbone {Name}"
                        ] do
                        Expect.stringContains got.Out word "got"

                    let again = CliTests.inside [ "backbone"; "get"; Name ]
                    Expect.equal again.Code 0 "again"
                    Expect.stringContains again.Out "already there, as its lock" "again"
                    Expect.hasLength server.Requests 1 "requests"

                    Expect.equal (Backbones.resolve Name) (Path.Combine(cache, file)) "path"
                    let info = CliTests.inside [ "backbone"; "info"; Name ]
                    Expect.equal (info.Code, info.Error) (0, "") "info"

                    Expect.stringContains
                        (CliTests.unwrapped info.Out)
                        "12 blocks, MLP of 768, 3 heads"
                        "info"

                    Expect.stringContains (CliTests.unwrapped info.Out) "values from -1 to 1" "info"

                    use classifier = ContinualClassifier.Create Name
                    Expect.isEmpty classifier.ClassNames "C#"

                    let path = Path.Combine(cache, file)
                    let bytes = File.ReadAllBytes path
                    bytes[bytes.Length - 1] <- bytes[bytes.Length - 1] ^^^ 1uy
                    File.WriteAllBytes(path, bytes)
                    isRefused [ path; "SHA-256" ] (fun () -> Backbones.resolve Name |> ignore))))

        testCase "learn, predict and evaluate take the name" (fun () ->
            withHub (fun _ -> ofFile tag tiny.Value) (fun _ environment cache ->
                inEnvironment environment (fun () ->
                    let run arguments =
                        let ended = CliTests.inside arguments
                        Expect.equal (ended.Code, ended.Error) (0, "") (string arguments)
                        ended.Out

                    run [ "backbone"; "get"; Name ] |> ignore
                    let path = Path.Combine(cache, file)

                    let settings =
                        { Preset.quick Variant.LibContinual with
                            Backbone = Some Name
                        }

                    Expect.equal (Assets.fill settings).Backbone (Some path) "run"

                    isRefused [ "--reference"; "without a comma" ] (fun () ->
                        Assets.fill { settings with Reference = [ "a,b" ] } |> ignore)

                    leavesNothing (fun () ->
                        let struct (vit, sha256) = Recipe.openBackbone settings Name
                        use _ = Scope.own VisionTransformer.leaves vit
                        Expect.equal sha256 (Weights.sha256 path) "F#")

                    inFolder (fun folder ->
                        let images = Path.Combine(folder, "images")
                        let learner = Path.Combine(folder, "learner")

                        for i, name in List.indexed [ "red"; "blue" ] do
                            for j in 1..2 do
                                TestFiles.plainPicture 20 20 (250 * (1 - i)) (40 * j) (250 * i)
                                |> TestFiles.writePicture (Path.Combine(images, name, $"{j}.png"))

                        let named = [ "--backbone"; Name ]
                        run ([ "learn"; learner; images; "--method"; "frozen" ] @ named) |> ignore
                        run ([ "predict"; learner; images ] @ named) |> ignore
                        run ([ "evaluate"; learner; images ] @ named) |> ignore
                        // the learner remembers the file
                        Expect.stringContains (run [ "inspect"; learner ]) cache "inspect"))))

        testCase "files come before names" (fun () ->
            inFolder (fun folder ->
                let here = Path.Combine(folder, Name)
                Expect.equal (Backbones.resolve here) here "a path that is not there"
                File.WriteAllText(here, "")
                let before = Environment.CurrentDirectory
                Environment.CurrentDirectory <- folder

                try
                    Expect.equal (Backbones.resolve Name) Name "a file here"
                finally
                    Environment.CurrentDirectory <- before

                Expect.equal (Backbones.resolve "none.pth") "none.pth" "neither"

                isRefused [ "lorasub backbone list"; $"did you mean {Name}?" ] (fun () ->
                    Backbones.resolve "vit_tiny_patch16_224.augreg_in22k" |> ignore)))

        testCase "unknown names, wrong words and a wrong endpoint" (fun () ->
            let refused arguments words =
                let ended = CliTests.inside arguments
                Expect.equal ended.Code 2 (string arguments)

                for word in words do
                    Expect.stringContains ended.Error word (string arguments)

            refused [ "backbone"; "get"; "vit_tiny" ] [ "lorasub backbone list"; "did you mean vit_tiny" ]
            refused [ "backbone"; "get" ] [ "the name of a backbone"; "found none" ]
            refused [ "backbone"; "get"; "a"; "b"; "c" ] [ "the name of a backbone"; "a b c" ]
            refused [ "data"; "get"; "cifar1000" ] [ "must be one of"; "did you mean cifar100?" ]
            refused [ "data"; "get"; "domainnet" ] [ "can download"; "http://ai.bu.edu/M3SDA/" ]

            inEnvironment [ "HF_ENDPOINT", "http://example.com" ] (fun () ->
                refused [ "backbone"; "get"; Name ] [ "must be an https address" ]))

        testCase "a stop leaves what the same command continues" (fun () ->
            let half = tiny.Value.Length / 2

            let reply number request =
                let answer = ofFile tag tiny.Value request

                if number = 0 then
                    { broken half answer with
                        Stalls = true
                    }
                else
                    answer

            withHub reply (fun server environment cache ->
                use child = CliTests.processOf environment [ "backbone"; "get"; Name ]
                let part = Path.Combine(cache, file + ".part")
                let clock = Stopwatch.StartNew()

                while not (File.Exists part && FileInfo(part).Length = int64 half)
                      && clock.Elapsed.TotalSeconds < 60.0 do
                    Thread.Sleep 20

                (Process.Start("kill", [ "-TERM"; string child.Id ])).WaitForExit()
                let error = child.StandardError.ReadToEnd()
                child.WaitForExit()
                Expect.equal child.ExitCode 143 error
                Expect.stringContains error "the same command continues" "message"
                Expect.isFalse (File.Exists(Path.Combine(cache, file))) "no file"
                let ended = CliTests.outside environment [ "backbone"; "get"; Name ]
                Expect.equal (ended.Code, ended.Error) (0, "") "continued"
                Expect.equal (List.last server.Requests).From (Some(int64 half)) "range"

                Expect.isTrue
                    (File
                        .ReadAllBytes(Path.Combine(cache, file))
                        .AsSpan()
                        .SequenceEqual(ReadOnlySpan tiny.Value))
                    "content"))

        testCase "the cache is where the variables say" (fun () ->
            let folder variables =
                inEnvironment variables (fun () -> Cache.folder "x")

            let none = [ "LORASUB_CACHE", ""; "XDG_CACHE_HOME", ""; "HOME", "/home/me" ]
            Expect.equal (folder (none @ [ "LORASUB_CACHE", "/my" ])) "/my/x" "own"

            if OperatingSystem.IsLinux() then
                Expect.equal (folder none) "/home/me/.cache/lorasub/x" "home"
                Expect.equal (folder (none @ [ "XDG_CACHE_HOME", "/xdg" ])) "/xdg/lorasub/x" "XDG"

                Expect.equal
                    (folder (none @ [ "XDG_CACHE_HOME", "xdg" ]))
                    "/home/me/.cache/lorasub/x"
                    "relative"

                isRefused [ "LORASUB_CACHE"; "set it" ] (fun () -> folder (none @ [ "HOME", "" ]) |> ignore))
    ]

[<Tests>]
let tests =
    testList
        "Backbones"
        [
            testList "table" table
            testList "downloads" downloads
            testList "names" names
        ]
