module LoRASub.Tests.CliTests

open System
open System.Buffers.Binary
open System.Diagnostics
open System.IO
open System.IO.Compression
open System.Text
open System.Text.Json
open System.Text.Json.Nodes
open System.Text.RegularExpressions
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Data
open Expecto
open LoRASub.Cli
open Spectre.Console
open TorchSharp

// ---------------------------------------------------------------------------------------------- a small world

let under (folder: string) (name: string) = Path.Combine(folder, name)

/// An IDX file of uint8.
let private idx (sizes: int list) (elements: byte[]) =
    [|
        0uy
        0uy
        8uy
        byte sizes.Length
        for size in sizes do
            let bytes = Array.zeroCreate 4
            BinaryPrimitives.WriteInt32BigEndian(Span bytes, size)
            yield! bytes
        yield! elements
    |]

[<Literal>]
let private Side = 8

/// `each` images of each of ten classes: class c is bright in row c / 2, on its left or its right.
let private writeSplit (folder: string) (images: string) (labels: string) (each: int) =
    let n = 10 * each

    let pixel i y x =
        let c = i % 10

        if y = c / 2 && x / 4 = c % 2 then
            byte (200 + i / 10)
        else
            byte (i / 10)

    let pixels =
        [|
            for i in 0 .. n - 1 do
                for y in 0 .. Side - 1 do
                    for x in 0 .. Side - 1 -> pixel i y x
        |]

    File.WriteAllBytes(under folder images, idx [ n; Side; Side ] pixels)
    File.WriteAllBytes(under folder labels, idx [ n ] (Array.init n (fun i -> byte (i % 10))))

let private trainImages, private trainLabels =
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

/// Width 8, two blocks, two heads; `change` may spoil its tensors.
let private writeBackbone (path: string) (change: Map<string, torch.Tensor> -> Map<string, torch.Tensor>) =
    let shape =
        {
            Width = 8
            Depth = 2
            Heads = 2
            PatchSize = 4
            ImageSize = Side
            Channels = 1
            MlpRatio = 2.0
            QkvBias = true
        }

    Scope.run (fun () ->
        Weights.randomTensors shape torch.ScalarType.Float32 (Rng.ofSeed 5L)
        |> change
        |> Map.toSeq
        |> Safetensors.write path (Map.ofList [ "heads", "2" ]))

/// A text of lines that were wrapped beside their labels, as one line each.
let unwrapped (text: string) : string =
    Text.RegularExpressions.Regex.Replace(text, @"\n {6,}(?=\S)", " ")

/// Runs a test in a folder that holds data/ and vit.safetensors.
let inWorld (test: string -> unit) () =
    let world = Directory.CreateTempSubdirectory("lorasub-cli-").FullName

    try
        let data = Directory.CreateDirectory(under world "data").FullName
        writeSplit data trainImages trainLabels 4
        writeSplit data "t10k-images-idx3-ubyte" "t10k-labels-idx1-ubyte" 2
        writeBackbone (under world "vit.safetensors") id
        test world
    finally
        Directory.Delete(world, true)

/// What a whole run in a world takes; later arguments replace these.
let arguments (world: string) (more: string list) : string list =
    let usual =
        [
            "--data", "mnist"
            "--data-path", under world "data"
            "--backbone", under world "vit.safetensors"
            "--tasks", "2"
            "--epochs", "1"
            "--batch", "8"
            "--rank", "2"
            "--out", under world "out"

            if not Generators.onCpu && not (List.contains "--devices" more) then
                "--device", Generators.deviceName
        ]

    [
        "run"
        for name, value in usual do
            if not (List.contains name more) then
                name
                value
        yield! more
    ]

type Ended =
    {
        Code: int
        Out: string
        Error: string
    }

/// Runs the program in this process, on what `terminal` makes of its output.
let insideOn (terminal: StringWriter -> IAnsiConsole option) (arguments: string list) : Ended =
    use out = new StringWriter()
    use error = new StringWriter()

    let code =
        Program.start
            {
                Out = out
                Error = error
                Terminal = terminal out
                Interruption = Interruption()
            }
            (Array.ofList arguments)

    {
        Code = code
        Out = out.ToString()
        Error = error.ToString()
    }

let inside = insideOn (fun _ -> None)

/// A terminal of 80 columns that writes into a text.
let terminalOf height (out: StringWriter) : IAnsiConsole option =
    let settings = AnsiConsoleSettings(Out = AnsiConsoleOutput out)
    settings.Ansi <- AnsiSupport.Yes
    settings.Interactive <- InteractionSupport.Yes
    let console = AnsiConsole.Create settings
    console.Profile.Width <- 80
    console.Profile.Height <- height
    Some console

let processOf (environment: (string * string) list) (arguments: string list) =
    let program = under AppContext.BaseDirectory "lorasub.dll"
    let info = ProcessStartInfo(Probe.dotnet, program :: arguments)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true

    for name, value in environment do
        info.Environment[name] <- value

    Process.Start info

/// Runs the program as a process of its own.
let outside environment (arguments: string list) : Ended =
    use child = processOf environment arguments
    let error = child.StandardError.ReadToEndAsync()
    let out = child.StandardOutput.ReadToEnd()
    child.WaitForExit()

    {
        Code = child.ExitCode
        Out = out
        Error = error.Result
    }

let private noLibTorch = [ "LORASUB_LIBTORCH", "/no/such/folder" ]

// ---------------------------------------------------------------------------------------------- bad input

/// One way to go wrong: what to spoil in the world, what to ask for, and words of the answer.
type private Bad =
    {
        Name: string
        Spoil: string -> unit
        Arguments: string -> string list
        Words: string list
    }

/// Spoils a file under data/.
let private data name file spoil words =
    {
        Name = name
        Spoil = fun world -> spoil (under (under world "data") file)
        Arguments = fun world -> arguments world []
        Words = file :: words
    }

/// Spoils the backbone's file.
let private backbone name spoil words =
    {
        Name = name
        Spoil = fun world -> spoil (under world "vit.safetensors")
        Arguments = fun world -> arguments world []
        Words = "vit.safetensors" :: words
    }

/// Spoils the backbone's tensors.
let private tensors name change words =
    backbone name (fun path -> writeBackbone path change) words

/// Asks for something that cannot be.
let private flags name more words =
    {
        Name = name
        Spoil = ignore
        Arguments = fun world -> arguments world more
        Words = words
    }

/// Gives exactly these arguments.
let private line name given words =
    { flags name [] words with
        Arguments = fun _ -> given
    }

/// Gives a configuration file with a text, or without one a file that is not there.
let private config name (text: string option) words =
    {
        Name = $"configuration: {name}"
        Spoil = fun world -> text |> Option.iter (fun t -> File.WriteAllText(under world "config.yaml", t))
        Arguments = fun world -> arguments world [ "--config"; under world "config.yaml" ]
        Words = words
    }

let private cut (path: string) =
    let bytes = File.ReadAllBytes path
    File.WriteAllBytes(path, bytes[.. bytes.Length - 20])

let private editBytes (edit: byte[] -> unit) (path: string) =
    let bytes = File.ReadAllBytes path
    edit bytes
    File.WriteAllBytes(path, bytes)

let private pack (bytes: byte[]) =
    use packed = new MemoryStream()

    (use gzip = new GZipStream(packed, CompressionLevel.Fastest)
     gzip.Write(bytes, 0, bytes.Length))

    packed.ToArray()

/// A safetensors file of a header as it is and 64 bytes of data.
let private rawTensors (header: byte[]) (path: string) =
    File.WriteAllBytes(
        path,
        [|
            yield! BitConverter.GetBytes(uint64 header.Length)
            yield! header
            yield! Array.zeroCreate<byte> 64
        |]
    )

let private jsonTensors (header: string) =
    rawTensors (Encoding.UTF8.GetBytes header)

let private tensorJson dtype first last =
    $"{{\"dtype\":\"{dtype}\",\"shape\":[8],\"data_offsets\":[{first},{last}]}}"

let private with1 (name: string) (change: torch.Tensor -> torch.Tensor) (all: Map<string, torch.Tensor>) =
    Map.add name (change all[name]) all

let private fill (value: float) (t: torch.Tensor) =
    torch.full_like (t, Scalar.op_Implicit value)

let private badInput =
    [
        // data sets
        flags "no data folder" [ "--data-path"; "/no/such/data" ] [ "/no/such/data"; "no such folder" ]
        flags "empty data path" [ "--data-path"; "" ] [ "data-path"; "found an empty name" ]
        data "no images" trainImages File.Delete [ "mnist needs this file"; "no such file" ]
        data "no labels" "t10k-labels-idx1-ubyte" File.Delete [ "no such file" ]
        data "images cut off" trainImages cut [ "need 2560 bytes"; "found 2541"; "truncated" ]
        data "empty images" trainImages (fun path -> File.WriteAllBytes(path, [||])) [ "found no bytes" ]
        data "wrong magic" trainImages (editBytes (fun b -> b[3] <- 1uy)) [ "0x00000803"; "0x00000801" ]
        data "negative size" trainImages (editBytes (fun b -> b[4] <- 255uy)) [ "at least 1" ]
        data "more bytes than elements" trainLabels (editBytes (fun b -> b[7] <- 39uy)) [ "must end after" ]
        data
            "counts differ"
            trainLabels
            (fun path -> File.WriteAllBytes(path, idx [ 39 ] (Array.zeroCreate 39)))
            [ "one label for each of the 40 images"; "found 39" ]
        data
            "no gzip in .gz"
            trainImages
            (fun path -> File.Move(path, path + ".gz"))
            [ ".gz"; "must be gzip data" ]
        data
            "gzip cut off"
            trainImages
            (fun path ->
                let packed = pack (File.ReadAllBytes path)
                File.WriteAllBytes(path + ".gz", packed[.. packed.Length / 2])
                File.Delete path)
            [ ".gz" ]
        data
            "label out of range"
            trainLabels
            (editBytes (fun b -> b[8 + 3] <- 10uy))
            [ "labels must be in 0 to 9"; "10 at position 3" ]
        {
            Name = "a class without training images"
            Spoil =
                fun world ->
                    under (under world "data") trainLabels
                    |> editBytes (fun b ->
                        for i in 8 .. b.Length - 1 do
                            b[i] <- byte (i % 9))
            Arguments = fun world -> arguments world []
            Words =
                [
                    trainImages
                    "class 9 (9)"
                    "needs at least one training image"
                    "found none"
                ]
        }
        {
            Name = "a task without training images"
            Spoil =
                fun world ->
                    under (under world "data") trainLabels
                    |> editBytes (fun b ->
                        for i in 8 .. b.Length - 1 do
                            b[i] <- byte (i % 9))
            Arguments = fun world -> arguments world [ "--tasks"; "10"; "--class-order"; "natural" ]
            Words = [ trainImages; "task 10"; "needs at least one training image"; "found none" ]
        }
        {
            Name = "CIFAR file of a broken length"
            Spoil =
                fun world ->
                    for file in [ for i in 1..5 -> $"data_batch_{i}.bin" ] @ [ "test_batch.bin" ] do
                        File.WriteAllBytes(under (under world "data") file, Array.zeroCreate 3000)
            Arguments = fun world -> arguments world [ "--data"; "cifar10" ]
            Words = [ "data_batch_1.bin"; "records of 3073 bytes"; "found 3000 bytes" ]
        }
        {
            Name = "CIFAR-100 label out of range"
            Spoil =
                fun world ->
                    for file in [ "train.bin"; "test.bin" ] do
                        File.WriteAllBytes(under (under world "data") file, Array.create 3074 200uy)
            Arguments = fun world -> arguments world [ "--data"; "cifar100" ]
            Words = [ "train.bin"; "labels must be in 0 to 99"; "found 200" ]
        }

        // weights files
        flags "no weights" [ "--backbone"; "/no/such.safetensors" ] [ "/no/such.safetensors" ]
        backbone "weights cut off" cut []
        backbone
            "weights of 3 bytes"
            (fun path -> File.WriteAllBytes(path, [| 1uy; 2uy; 3uy |]))
            [ "found 3" ]
        backbone
            "header longer than the file"
            (editBytes (fun b -> b[3] <- 1uy))
            [ "must hold its header of"; "truncated" ]
        backbone "no JSON header" (jsonTensors "{\"a\":") [ "JSON" ]
        backbone
            "overlapping tensors"
            (jsonTensors $"""{{"a":{tensorJson "F32" 0 32},"b":{tensorJson "F32" 16 48}}}""")
            [ "'b'" ]
        backbone "offsets beyond the file" (jsonTensors $"""{{"a":{tensorJson "F32" 64 96}}}""") [ "'a'" ]
        backbone "offsets that do not fit" (jsonTensors $"""{{"a":{tensorJson "F32" 0 64}}}""") [ "'a'" ]
        backbone "unknown dtype" (jsonTensors $"""{{"a":{tensorJson "F99" 0 64}}}""") [ "'a'"; "F99" ]
        backbone "header not in UTF-8" (rawTensors [| 123uy; 34uy; 255uy; 254uy; 34uy; 125uy |]) [ "UTF-8" ]
        backbone
            "deeply nested header"
            (jsonTensors ("{\"a\":" + String('[', 5000) + String(']', 5000) + "}"))
            [ "levels deep" ]

        // networks
        tensors
            "missing leaf"
            (Map.remove "blocks.1.attn.qkv.weight")
            [ "'blocks.1.attn.qkv.weight'"; "must be there" ]
        tensors "missing block" (Map.filter (fun name _ -> not (name.StartsWith "blocks.0."))) [ "block 0" ]
        tensors
            "unknown leaf"
            (fun all -> Map.add "dist_token" all["cls_token"] all)
            [ "'dist_token'"; "plain ViT" ]
        tensors
            "wrong shape"
            (with1 "blocks.0.attn.proj.weight" (fun t -> t.narrow(0L, 0L, 7L).contiguous()))
            [ "'blocks.0.attn.proj.weight'"; "7" ]
        tensors "NaN" (with1 "norm.bias" (fill nan)) [ "'norm.bias'"; "must be finite" ]
        tensors "infinity" (with1 "pos_embed" (fill infinity)) [ "'pos_embed'"; "must be finite" ]
        tensors
            "whole numbers"
            (with1 "norm.weight" (fun t -> t.``to`` torch.ScalarType.Int64))
            [ "'norm.weight'"; "floating point"; "Int64" ]
        flags
            "heads that do not divide"
            [ "--attention-heads"; "3" ]
            [ "vit.safetensors"; "divides its width 8"; "found 3" ]
        flags "image no multiple of a patch" [ "--image-size"; "10" ] [ "image size"; "multiple"; "found 10" ]
        tensors
            "all-zero second moment"
            (with1 "blocks.0.norm1.weight" (fill 0.0)
             >> with1 "blocks.0.norm1.bias" (fill 0.0))
            []
        |> fun bad ->
            { bad with
                Words = [ "second moment of block 0, task 2"; "found" ]
            }

        // settings
        flags "rank 0" [ "--rank"; "0" ] [ "rank"; "found 0" ]
        flags "rank above the width" [ "--rank"; "9" ] [ "rank"; "8"; "found 9" ]
        flags "more tasks than classes" [ "--tasks"; "11" ] [ "tasks"; "at most 10"; "found 11" ]
        flags
            "tasks that leave one empty"
            [ "--tasks"; "6" ]
            [ "the 10 classes into equal tasks"; "found 6"; "use 5 or 10 tasks" ]
        flags "no task" [ "--tasks"; "0" ] [ "tasks"; "at least 1"; "found 0" ]
        flags
            "first classes that do not fit"
            [ "--initial-classes"; "10" ]
            [ "initial classes"; "1 to 9"; "found 10" ]
        flags "energy 0" [ "--energy"; "0" ] [ "energy"; "found 0" ]
        flags "energy above 1" [ "--energy"; "1.001" ] [ "energy"; "found 1.001" ]
        flags "energy NaN" [ "--energy"; "nan" ] [ "energy" ]
        flags "batch of 0" [ "--batch"; "0" ] [ "batch"; "at least 1"; "found 0" ]
        flags "no epoch" [ "--epochs"; "0" ] [ "epochs"; "at least 1"; "found 0" ]
        flags "no thread" [ "--threads"; "0" ] [ "threads"; "at least 1"; "found 0" ]
        flags "negative rate" [ "--lr"; "-1" ] [ "--lr: must be finite and at least 0"; "found -1" ]
        flags "negative margin" [ "--margin=-1" ] [ "margin"; "found -1" ]
        flags "norm order below 1" [ "--norm-order"; "0.5" ] [ "norm-order"; "found 0.5" ]
        flags "falling input range" [ "--input-range"; "1,-1" ] [ "input-range"; "1,-1" ]
        flags "half an input range" [ "--input-range"; "1" ] [ "input-range"; "LOW,HIGH"; "found '1'" ]
        flags "epsilon 2" [ "--norm-epsilon"; "2" ] [ "norm-epsilon"; "between 0 and 1"; "found '2'" ]
        flags "a word for a number" [ "--epochs"; "many" ] [ "epochs"; "whole number"; "'many'" ]
        flags "unknown choice" [ "--b-init"; "ones" ] [ "b-init"; "zeros, sparse"; "'ones'" ]
        flags "unknown variant" [ "--variant"; "oficial" ] [ "variant"; "official"; "'oficial'" ]
        flags "unknown data set" [ "--data"; "cifar-100" ] [ "found cifar-100"; "did you mean cifar100?" ]
        flags "no class order" [ "--class-order"; "/no/order.json" ] [ "/no/order.json"; "no such file" ]
        {
            Name = "class order that is no permutation"
            Spoil = fun world -> File.WriteAllText(under world "order.json", "[0,1,2,3,4,5,6,7,8,8]")
            Arguments = fun world -> arguments world [ "--class-order"; under world "order.json" ]
            Words = [ "order.json"; "each class from 0 to 9 once"; "8 at entry 9" ]
        }
        {
            Name = "class order that is no JSON"
            Spoil = fun world -> File.WriteAllText(under world "order.json", "0 1 2")
            Arguments = fun world -> arguments world [ "--class-order"; under world "order.json" ]
            Words = [ "order.json"; "must be JSON" ]
        }
        flags
            "absent device"
            [ "--device"; "cuda:99" ]
            [ "device cuda:99"; "must be present"; "CUDA devices" ]
        flags "unknown device" [ "--device"; "tpu" ] [ "device"; "cpu or cuda:N"; "'tpu'" ]
        flags
            "a loss that is no number"
            [ "--head-lr"; "1e38"; "--epochs"; "4" ]
            [ "loss of task 1"; "must stay finite"; "lower lr or head-lr" ]
        flags
            "a last step that diverges"
            [ "--lr"; "1e38"; "--batch"; "1000"; "--epochs"; "1" ]
            [ "after task 1"; "must stay finite"; "lower lr or head-lr" ]
        flags "more threads than any machine has" [ "--threads"; "100000" ] [ "threads"; "at most 1024" ]
        flags "more epochs than can be counted" [ "--epochs"; "400000000" ] [ "epochs"; "at most 1000000" ]

        // configuration files
        config "no such configuration" None [ "config.yaml"; "no such file" ]
        config "a configuration of nobody" (Some "a: 1") [ "config.yaml"; "'a'" ]
        config "no YAML" (Some "rank: [") [ "config.yaml"; "must be YAML" ]
        config
            "an unknown setting"
            (Some "rank: 2\nmargn: 1")
            [ "config.yaml, line 2"; "did you mean margin?" ]
        config "a wrong type" (Some "rank: two") [ "config.yaml, line 1"; "whole number"; "'two'" ]
        config "out of range" (Some "energy: 2") [ "config.yaml, line 1"; "energy" ]
        config "an unknown data set" (Some "data: minst") [ "config.yaml, line 1"; "did you mean mnist?" ]
        config
            "an unknown method"
            (Some(ConfigFileTests.official |> ConfigFileTests.edit "lorasub_drs" "other"))
            [ "model_name"; "must be lorasub_drs"; "'other'" ]
        config
            "fewer classes than the configuration says"
            (ConfigFileTests.official
             |> ConfigFileTests.edit "ImageNet_A" "mnist"
             |> ConfigFileTests.edit "[3, 4]" "[3]"
             |> Some)
            [
                "config.yaml"
                "its tasks need data of 200 classes"
                "found 10"
                "in the file"
            ]
        {
            Name = "a configuration whose tasks do not divide the classes, dry"
            Spoil = fun world -> File.WriteAllText(under world "config.yaml", "data: cifar100\ntasks: 30")
            Arguments = fun world -> [ "run"; "--dry-run"; "--config"; under world "config.yaml" ]
            Words = [ "tasks"; "the 100 classes into equal tasks"; "--initial-classes 13" ]
        }
        flags "seeds beside a seed" [ "--seed"; "1"; "--seeds"; "1,2" ] [ "--seeds"; "combined with --seed" ]
        flags "a seed twice" [ "--seeds"; "1,1" ] [ "--seeds"; "each seed once" ]

        // output
        {
            Name = "output name that is too long"
            Spoil = ignore
            Arguments = fun world -> arguments world [ "--out"; under world (String.replicate 300 "x") ]
            Words = [ "xxx"; "must be writable" ]
        }
        {
            Name = "output that is a file"
            Spoil = fun world -> File.WriteAllText(under world "taken", "")
            Arguments = fun world -> arguments world [ "--out"; under world "taken" ]
            Words = [ "taken"; "must be a folder"; "a file" ]
        }
        {
            Name = "output in a file"
            Spoil = fun world -> File.WriteAllText(under world "taken", "")
            Arguments = fun world -> arguments world [ "--out"; under (under world "taken") "out" ]
            Words = [ "taken"; "must be a folder"; "a file" ]
        }
        {
            Name = "output with a finished run"
            Spoil =
                fun world ->
                    Directory.CreateDirectory(under world "done") |> ignore
                    File.WriteAllText(under (under world "done") "summary.json", "{}")
            Arguments = fun world -> arguments world [ "--out"; under world "done" ]
            Words = [ "done"; "must not hold a run"; "a finished one"; "--resume"; "--overwrite" ]
        }
        flags
            "output that cannot be written"
            [ "--out"; "/proc/lorasub" ]
            [ "/proc/lorasub"; "folder that can be written" ]

        // what is chosen by name
        flags
            "unknown preset"
            [ "--preset"; "recomended" ]
            [ "preset: must be one of"; "did you mean recommended?" ]
        flags "unknown head" [ "--head"; "nearest-men" ] [ "head"; "did you mean nearest-mean?" ]
        flags
            "unknown embedding"
            [ "--embedding"; "class-tokens" ]
            [ "embedding"; "did you mean class-token?" ]
        flags "unknown head among several" [ "--heads"; "lda,rigde@rich" ] [ "head"; "did you mean ridge?" ]
        flags "unknown embedding of a head" [ "--heads"; "lda@rihc" ] [ "embedding"; "did you mean rich?" ]
        flags "nothing held out" [ "--validate"; "0" ] [ "validate"; "between 0 and 1" ]
        flags "all held out" [ "--validate"; "1" ] [ "validate"; "between 0 and 1" ]
        line "stray word after methods" [ "methods"; "all" ] [ "all" ]

        // the line itself
        flags "unknown flag" [ "--epoch"; "3" ] [ "--epoch"; "lorasub run"; "did you mean --epochs?" ]
        flags "stray word" [ "stray" ] [ "stray" ]
        flags "repeated flag" [ "--seed"; "1"; "--seed=2" ] [ "--seed"; "more than once" ]
        flags "flag without its value" [ "--seed" ] [ "--seed"; "must be followed by N" ]
        flags "flag before another flag" [ "--seed"; "--rank"; "4" ] [ "--seed"; "must be followed by N" ]
        flags
            "folder without its name"
            [ "--resume"; "--tasks"; "4" ]
            [ "'--resume' must be followed by <DIR>" ]
        flags "switch with another value" [ "--amsgrad"; "maybe" ] [ "--amsgrad"; "true, false"; "'maybe'" ]
        flags "switch with a value" [ "--no-triplet=maybe" ] [ "maybe" ]
        line "unknown command" [ "rum" ] [ "unknown command 'rum'"; "did you mean run?" ]
        line "a command that nothing resembles" [ "serve" ] [ "unknown command 'serve'; see lorasub --help" ]
        line
            "an option that nothing resembles"
            [ "run"; "--frobnicate" ]
            [ "unknown option '--frobnicate' of lorasub run; see lorasub run --help" ]
        line "help for an unknown command" [ "help"; "evalute" ] [ "evalute"; "did you mean evaluate?" ]
        line "an unknown command with help" [ "rum"; "--help" ] [ "rum"; "did you mean run?" ]
        line "unknown option" [ "--versoin" ] [ "--versoin"; "did you mean --version?" ]
        line
            "no data path"
            [ "run"; "--data"; "cifar100" ]
            [ "--data-path"; "files of cifar100"; "pass --data-path DIR" ]
        line "nothing to evaluate" [ "evaluate" ] [ "evaluate"; "folder of a run" ]
        line "evaluate what is not there" [ "evaluate"; "/no/run" ] [ "/no/run" ]
        line "evaluate two" [ "evaluate"; "a"; "b" ] [ "b" ]
    ]

/// Every file under a folder, with its length.
let listing (folder: string) =
    [
        for path in
            Directory.GetFileSystemEntries(folder, "*", SearchOption.AllDirectories)
            |> Array.sort do
            path, (if File.Exists path then FileInfo(path).Length else -1L)
    ]

/// What can be found only when the run has begun, and its settings are saved.
let private begun =
    [
        "all-zero second moment"
        "a loss that is no number"
        "a last step that diverges"
    ]

let mutable private refused = 0

let private refuses (run: string list -> Ended) (bad: Bad) =
    testCase
        bad.Name
        (inWorld (fun world ->
            bad.Spoil world
            let before = listing world
            let ended = run (bad.Arguments world)
            Expect.equal ended.Code 2 $"exit code; {ended.Error}"
            Expect.stringStarts ended.Error "lorasub: " "standard error"
            Expect.hasLength (ended.Error.TrimEnd('\n').Split '\n') 1 $"lines of {ended.Error}"

            for word in bad.Words do
                Expect.stringContains ended.Error word "the message"

            let out = under world "out"
            let after = listing world

            if List.contains bad.Name begun then
                Expect.isTrue (File.Exists(under out "settings.json")) "the settings"
                Expect.isFalse (File.Exists(under out "summary.json")) "no results"
                let beside = after |> List.filter (fun (path, _) -> not (path.StartsWith out))
                Expect.equal beside before "nothing else is written"
            else
                Expect.equal after before "nothing is written"

            refused <- refused + 1))

// ---------------------------------------------------------------------------------------------- tests

let private controls (text: string) =
    text |> Seq.filter (fun c -> Char.IsControl c && c <> '\n') |> Seq.length

let private columns (text: string) =
    text.Split '\n' |> Array.map _.Length |> Array.max

let private line' =
    [
        testCase "help is shown without arguments and on request" (fun () ->
            let bare = inside []
            Expect.equal bare.Code 0 "exit code"

            for word in [ "Usage: lorasub COMMAND"; "run"; "evaluate"; "doctor"; "--version" ] do
                Expect.stringContains bare.Out word "help"

            // the first screen of 80 x 24 holds all of it
            Expect.isLessThanOrEqual (columns bare.Out) 80 "columns"
            Expect.isLessThanOrEqual (bare.Out.TrimEnd().Split('\n').Length) 23 "lines"
            Expect.equal (inside [ "--help" ]) bare "the same on request"
            Expect.equal (inside [ "-h" ]).Code 0 "short"
            Expect.equal (inside [ "help" ]) bare "the same as a word, which build.fsx can pass on"

            for command in
                [
                    [ "run" ]
                    [ "learn" ]
                    [ "predict" ]
                    [ "evaluate" ]
                    [ "inspect" ]
                    [ "forget" ]
                    [ "rename" ]
                    [ "merge" ]
                    [ "diff" ]
                    [ "export" ]
                    [ "report" ]
                    [ "doctor" ]
                    [ "data" ]
                    [ "data"; "check" ]
                    [ "data"; "get" ]
                    [ "backbone" ]
                    [ "backbone"; "get" ]
                    [ "backbone"; "info" ]
                    [ "methods" ]
                    [ "heads" ]
                ] do
                let help = inside (command @ [ "--help" ])
                let name = String.concat " " command
                Expect.equal help.Code 0 name
                Expect.stringStarts help.Out $"Usage: lorasub {name} " name
                Expect.isLessThanOrEqual (columns help.Out) 80 name
                Expect.equal (inside ("help" :: command)) help $"help {name}"
                Expect.equal (inside (command @ [ "-h" ])) help $"{name} -h"

            for command, words in
                [
                    "forget", [ "LEARNER"; "CLASS" ]
                    "rename", [ "LEARNER"; "CLASS"; "NAME" ]
                    "diff", [ "LEARNER"; "OTHER" ]
                ] do
                let help = (inside [ command; "--help" ]).Out

                for word in words do
                    Expect.isMatch help $"(?m)^  {word} +[a-z]" $"{command}: what {word} is"

            let learn = (inside [ "learn"; "--help" ]).Out
            Expect.stringContains learn "--skip-broken" "where images may be broken"
            let all = (inside [ "learn"; "--help-all" ]).Out
            Expect.isMatch all @"(?m)^  --no-triplet +do not add" "what the flag does"

            for lists in [ [ "methods" ]; [ "heads" ]; [ "data"; "list" ]; [ "backbone"; "list" ] ] do
                for line in (inside lists).Out.Split '\n' do
                    if not (line.Contains "https://") then
                        Expect.isLessThanOrEqual line.Length 80 line

            Expect.equal (inside [ "version" ]) (inside [ "--version" ]) "the version as a word"

            let run = inside [ "run"; "--help" ]
            Expect.equal run.Code 0 "exit code"
            // the first screen of 80 x 24 holds all of it and the next prompt
            Expect.isLessThanOrEqual (columns run.Out) 80 "columns"
            Expect.isLessThanOrEqual (run.Out.Split('\n').Length) 24 "lines"

            for word in [ "Examples:"; "  lorasub run --resume"; "Data "; "Machine "; "--help-all" ] do
                Expect.stringContains run.Out word "the first screen"

            let all = inside [ "run"; "--help-all" ]
            Expect.equal all.Code 0 "exit code"
            Expect.isLessThanOrEqual (columns all.Out) 80 "columns"

            for setting in Settings.all do
                let flag = Regex.Escape(SettingDoc.flag setting)
                Expect.isMatch all.Out $@"(?m)^.{{9}}{flag}( |$)" "the list of flags")

        testCase "values may begin with a dash and follow an equals sign" (fun () ->
            let settingsOf arguments =
                match Arguments.parse (Array.ofList ("run" :: arguments)) with
                | Arguments.Command.Run run -> run.Config.Settings
                | other -> failtest $"{other}"

            for s in Settings.all do
                match s.Kind with
                | SettingKind.Switch ->
                    for text, forms in
                        [
                            "true", [ [ $"--{s.Name}" ]; [ $"--{s.Name}"; "true" ]; [ $"--{s.Name}=true" ] ]
                            "false",
                            [ [ $"--no-{s.Name}" ]; [ $"--{s.Name}"; "false" ]; [ $"--{s.Name}=false" ] ]
                        ] do
                        for form in forms do
                            Expect.equal (s.Get(settingsOf (form @ [ "--rank"; "3" ]))) (Some text) $"{form}"
                | _ -> ()

            let spaced =
                [ "--input-range"; "-1,1"; "--seed"; "-3"; "--lr"; "1e-2"; "--no-triplet" ]

            let joined = [ "--input-range=-1,1"; "--seed=-3"; "--lr=1e-2"; "--no-triplet" ]
            Expect.equal (settingsOf spaced) (settingsOf joined) "both forms"
            let settings = settingsOf spaced
            Expect.equal settings.InputRange (struct (-1.0, 1.0)) "range"
            Expect.equal settings.Seed -3L "seed"
            Expect.equal settings.Method.LearningRate 1e-2 "rate"
            Expect.isFalse settings.Method.Triplet "switch")

        testCase
            "a dry run tells settings, sources, notes and tasks, without data, weights and LibTorch"
            (fun () ->
                Probe.inFolder (fun folder ->
                    let path = under folder "lib.yaml"
                    File.WriteAllText(path, ConfigFileTests.libContinual)
                    let out = under folder "out"

                    let ended =
                        outside
                            noLibTorch
                            [ "run"; "--config"; path; "--dry-run"; "--rank"; "5"; "--out"; out ]

                    Expect.equal (ended.Code, ended.Error) (0, "") "exit code and standard error"
                    Expect.isFalse (Directory.Exists out) "nothing is written"
                    let lines = ended.Out.Split '\n'

                    let row (name: string) =
                        lines
                        |> Array.filter (fun l -> l.StartsWith(name + " "))
                        |> Array.map (fun l -> Regex.Replace(l, " {2,}", " | "))

                    for name, value, source in
                        [
                            "setting", "value", "source"
                            "rank", "5", "command line"
                            "head-lr", "0.003", "lib.yaml, line 51 (classifier.kwargs.fc_lrate)"
                            "class-order", "seed1993", "preset quick libcontinual"
                            "energy", "0.99", "default"
                        ] do
                        Expect.equal (row name) [| $"{name} | {value} | {source}" |] name

                    let columns =
                        lines
                        |> Array.takeWhile (fun l -> l <> "")
                        |> Array.map (fun l -> Regex.Match(l, @"^\S+ +").Length)

                    Expect.hasLength (Array.distinct columns) 1 "aligned"

                    Expect.stringContains
                        ended.Out
                        "note: lib.yaml: not used by this method: val_per_epoch"
                        "notes"

                    Expect.stringContains
                        ended.Out
                        "11 tasks: 20 classes, then 10 x 18 (200 in all)\n"
                        "tasks"))

        testCase "a dry run without a file, of data that is not here, and of several seeds" (fun () ->
            let dry more = inside ("run" :: "--dry-run" :: more)
            let plain = dry []
            Expect.equal (plain.Code, plain.Error) (0, "") "plain"
            Expect.stringContains plain.Out "2 tasks x 5 classes (10 in all)\n" "tasks"
            let cifar = dry [ "--data"; "cifar100"; "--seeds"; "3,4" ]
            Expect.stringContains cifar.Out "note: a run needs --data-path DIR" "what is missing"
            Expect.stringContains cifar.Out "10 tasks x 10 classes (100 in all)\n2 runs" "tasks and runs"
            Expect.isMatch cifar.Out @"\nseeds +3,4 +command line\n" "seeds"
            let folder = dry [ "--data"; "folder"; "--tasks"; "1" ]

            Expect.stringContains
                folder.Out
                "1 task; the number of classes depends on the data"
                "unknown classes")

        testCase "what can be chosen by name is listed" (fun () ->
            // lines may be wrapped
            let words (text: string) =
                (Regex.Escape text).Replace(@"\ ", @"\s+")

            let methods = inside [ "methods" ]
            Expect.equal (methods.Code, methods.Error) (0, "") "methods"

            for one in Methods.all do
                Expect.isMatch
                    methods.Out
                    $"(?m)^{Regex.Escape one.Info.Name} +{words one.Info.Summary}$"
                    "name"

                for text in [ one.Info.Source; one.Info.Stores ] do
                    Expect.isMatch methods.Out (words text) one.Info.Name

            let heads = inside [ "heads" ]
            Expect.equal (heads.Code, heads.Error) (0, "") "heads"

            for row in Heads.all do
                Expect.isMatch
                    heads.Out
                    $"(?m)^{Regex.Escape row.Info.Name} +{words row.Info.Summary}$"
                    "name"

                for name, _ in row.Parameters do
                    Expect.stringContains heads.Out $":{name}" row.Info.Name

            for name in Embedding.names @ (Preset.named |> List.map (fun (name, _, _) -> name)) do
                Expect.isMatch heads.Out $"(?m)^{Regex.Escape name} +[^ ]" name

            Expect.equal (inside [ "methods"; "list" ]) methods "as of data sets"
            Expect.equal (inside [ "heads"; "list" ]) heads "as of data sets")

        testCase "a preset is the start, and the command line has the last word" (fun () ->
            let settingsOf arguments =
                match Arguments.parse (Array.ofList ("run" :: arguments)) with
                | Arguments.Command.Run run -> run.Config.Settings
                | other -> failtest $"{other}"

            let found =
                settingsOf [ "--preset"; "recommended"; "--head"; "lda:0.1"; "--heads"; "ridge" ]

            Expect.equal (found.MethodName, found.Embedding) ("auto", "rich") "the preset's"
            Expect.equal (found.Head, found.OtherHeads) ("lda:0.1", [ "ridge" ]) "the command line's"
            let dry = inside [ "run"; "--dry-run"; "--preset"; "recommended"; "--head"; "lda" ]
            Expect.equal (dry.Code, dry.Error) (0, "") "dry run"
            Expect.isMatch dry.Out @"(?m)^embedding +rich +preset recommended$" "its source"
            Expect.isMatch dry.Out @"(?m)^head +lda +command line$" "its source")

        testCase "every default that help and documentation show is accepted alone" (fun () ->
            for s in Settings.all do
                for _, preset in Preset.all do
                    for variant in [ Variant.Official; Variant.LibContinual ] do
                        let text = preset variant |> s.Get

                        for text in Option.toList text do
                            for file in [ $"{s.Name}: {text}"; $"{{\"{s.Name}\": \"{text}\"}}" ] do
                                let read = ConfigFile.parse "file" (Encoding.UTF8.GetBytes file)
                                Expect.equal read.Settings[0].Value text "in a file"

                            let merged = Config.merge None None [ s.Name, text ] None
                            Expect.equal (s.Get merged.Settings) (Some text) s.Name)

        testCase "a dry run counts the classes of a folder that is there" (fun () ->
            Probe.inFolder (fun folder ->
                for c in 1..10 do
                    let one = Directory.CreateDirectory(under folder $"data/c{c}").FullName
                    File.WriteAllText(under one "0.png", "")
                    File.WriteAllText(under one "1.png", "")

                let dry tasks more =
                    inside ([ "run"; "--dry-run"; "--data"; "folder"; "--tasks"; tasks ] @ more)

                let here = [ "--data-path"; under folder "data" ]
                let even = dry "5" here
                Expect.stringContains even.Out "5 tasks x 2 classes (10 in all)" "even"
                Expect.isFalse (even.Out.Contains "the last task") "no note"
                let uneven = dry "3" here
                Expect.stringContains uneven.Out "note: the last task has 2 classes, the others 4" "note"
                Expect.stringContains uneven.Out "3 tasks: 2 x 4 classes, then 2 (10 in all)" "uneven"
                let wrong = dry "6" here
                Expect.equal wrong.Code 2 "refused"
                Expect.stringContains wrong.Error "--initial-classes 5" "advice"
                let elsewhere = dry "6" [ "--data-path"; under folder "elsewhere" ]

                Expect.stringContains
                    elsewhere.Out
                    "6 tasks; the number of classes depends on the data"
                    "not here"))

        testCase "help, version and wrong arguments need no LibTorch" (fun () ->
            let help = outside noLibTorch [ "--help" ]
            Expect.equal (help.Code, help.Error) (0, "") "help"
            let version = outside noLibTorch [ "--version" ]
            Expect.equal version.Code 0 "version"
            Expect.stringStarts version.Out "lorasub " "version"
            let rank = outside noLibTorch [ "run"; "--rank"; "0" ]
            Expect.equal rank.Code 2 "rank"
            Expect.stringContains rank.Error "rank" "rank"
            let absent = outside noLibTorch [ "run" ]
            Expect.equal absent.Code 2 "without LibTorch"
            Expect.stringContains absent.Error "/no/such/folder" "without LibTorch")

        testCase "what needs no LibTorch does not load it" (fun () ->
            let folder = Directory.CreateTempSubdirectory("lorasub-loads-").FullName

            try
                for code, arguments in
                    [
                        0, []
                        0, [ "--help" ]
                        0, [ "run"; "--help" ]
                        0, [ "--version" ]
                        0, [ "data"; "list" ]
                        0, [ "run"; "--dry-run" ]
                        2, [ "nothing" ]
                        2, [ "run"; "--nothing" ]
                        2, [ "run"; "--rank"; "0" ]
                    ] do
                    // the system's linker lists what it opens
                    let list = under folder (String.concat "_" ("loads" :: arguments))
                    let ended = outside [ "LD_DEBUG", "files"; "LD_DEBUG_OUTPUT", list ] arguments
                    Expect.equal ended.Code code $"exit code of {arguments}"

                    let opened =
                        Directory.GetFiles(folder, Path.GetFileName list + ".*")
                        |> Array.map File.ReadAllText
                        |> String.concat ""

                    Expect.stringContains opened "libcoreclr.so" $"the list of {arguments}"
                    Expect.isFalse (Regex.IsMatch(opened, "libtorch|libc10|LibTorchSharp")) $"{arguments}"
            finally
                Directory.Delete(folder, true))

        testCase "the arguments are a structure that Argu accepts" (fun () ->
            Argu.ArgumentParser.Create<Flags.Flag>(checkStructure = true) |> ignore)

        testCase "the doctor finds what is broken" (fun () ->
            let ended = outside noLibTorch [ "doctor" ]
            Expect.equal ended.Code 1 "exit code"
            Expect.stringContains ended.Out "PROBLEM: LORASUB_LIBTORCH /no/such/folder" "the reason"
            Expect.stringContains ended.Out "cores" "the rest"
            let well = inside [ "doctor" ]
            Expect.stringContains well.Out "GFLOP/s" "speed"
            Expect.isMatch well.Out @"(?m)^recommended +on the CPU --precision \w+ --threads \d+$" "advice"
            Expect.equal (well.Code, well.Error) (0, "") "all is well")

        testCase
            "another version of LibTorch is used where its symbols bind, and reported"
            (inWorld (fun world ->
                if NativeBackend.ensureLoaded().ChosenBy <> "package" then
                    skiptest "needs LibTorch's package"

                // the package's own files under another version
                let lib = Directory.CreateDirectory(under world "lib").FullName

                for file in Directory.GetFiles(NativeBackend.ensureLoaded().LibTorch) do
                    File.CreateSymbolicLink(under lib (Path.GetFileName file), file) |> ignore

                File.WriteAllText(under world "version.py", "__version__ = '2.11.0+cu130'\n")
                let doctor = outside [ "LORASUB_LIBTORCH", lib ] [ "doctor" ]
                Expect.equal (doctor.Code, doctor.Error) (0, "") "doctor"

                Expect.isMatch
                    doctor.Out
                    @"untested +LibTorch 2\.11\.0\+cu130 is untested \(tested: 2\.10\)"
                    "doctor"

                let run = outside [] (arguments world [ "--libtorch"; lib; "--no-training" ])
                Expect.equal (run.Code, run.Error) (0, "") "run"
                Expect.stringContains run.Out "note: LibTorch 2.11.0+cu130" "run"

                let note = run.Out.Split '\n' |> Array.find _.StartsWith("note: LibTorch")
                Expect.isLessThanOrEqual note.Length 80 "columns of the note"

                let record = File.ReadAllText(RunFiles.resources (under world "out"))
                let environment = (JsonNode.Parse record)["environment"]
                Expect.equal (environment["libTorch"].GetValue<string>()) "2.11.0+cu130" "record"
                Expect.isFalse (environment["libTorchTested"].GetValue<bool>()) "record"

                let strict =
                    outside [ "LORASUB_LIBTORCH_STRICT", "1"; "LORASUB_LIBTORCH", lib ] [ "doctor" ]

                Expect.equal strict.Code 1 "strict"
                Expect.stringContains strict.Out "must hold LibTorch 2.10 under" "strict"))

        testCase
            "a LibTorch without a symbol that TorchSharp needs is refused"
            (inWorld (fun world ->
                let lib = Directory.CreateDirectory(under world "lib").FullName

                for name in [ "libc10.so"; "libtorch_cpu.so"; "libtorch.so" ] do
                    File.WriteAllBytes(under lib name, Elf.empty name)

                File.WriteAllText(under world "version.py", "__version__ = '2.11.0'\n")
                let ended = outside [] (arguments world [ "--libtorch"; lib ])
                Expect.equal ended.Code 2 "exit code"

                Expect.isMatch
                    ended.Error
                    @"must have every symbol that TorchSharp needs; found LibTorch 2\.11\.0 without _Z\w+"
                    "the linker's complaint"))
    ]

// A LibTorch that is not the tested one is noted in every run.
let private withoutNotes (output: string) =
    output.Split '\n'
    |> Array.filter (fun line -> not (line.StartsWith "note: LibTorch"))
    |> String.concat "\n"

let private runs =
    [
        testCase
            "a whole run as a process tells plain lines"
            (inWorld (fun world ->
                let ended = outside [] (arguments world [])
                Expect.equal (ended.Code, ended.Error) (0, "") "exit code and standard error"
                Expect.equal (controls ended.Out) 0 "control characters"
                Expect.isLessThanOrEqual (columns (withoutNotes ended.Out)) 80 "columns"

                for word in
                    [
                        "mnist: 10 classes, 40 training and 20 test images"
                        "task 1/2: epoch 1/1, loss "
                        "task 2/2: retained ranks of 8: "
                        "last accuracy "
                        "forgetting "
                    ] do
                    Expect.stringContains (unwrapped ended.Out) word "output"))

        testCase
            "settings that contradict the weights are warned of once, and saved as a note"
            (inWorld (fun world ->
                File.WriteAllText(under world "vit.safetensors.json", """{"input-range": [-1, 1]}""")

                let warning =
                    "input-range 0,1 differs from -1,1, which the weights were trained with; --input-range -1,1 follows the weights"

                let ended = inside (arguments world [ "--seeds"; "1,2" ])
                Expect.equal (ended.Code, ended.Error) (0, $"warning: {warning}\n") "warned"
                let sources = File.ReadAllText(under (under world "out") "sources.json")
                Expect.stringContains sources warning "saved"

                let silent =
                    inside (arguments world [ "--input-range"; "-1,1"; "--out"; under world "other" ])

                Expect.equal (silent.Code, silent.Error) (0, "") "agreement"))

        testCase
            "several heads are scored in one run, on held-out images and recomputed if asked"
            (inWorld (fun world ->
                let run name more =
                    let ended = inside (arguments world ([ "--out"; under world name ] @ more))
                    Expect.equal (ended.Code, ended.Error) (0, "") name
                    let struct (summary, _) = SummaryFile.load (under world $"{name}/summary.json")
                    struct (ended.Out, summary)

                let struct (out, summary) = run "usual" []
                let heads = summary.Heads.Value

                Expect.equal
                    (heads |> Array.map _.Head)
                    [| "nearest-mean@class-token"; "cosine-lda:ratio@rich" |]
                    "heads of a usual run"

                Expect.equal heads[0].CorrectAndTotal summary.CorrectAndTotal "the head that predicts"
                Expect.all heads _.Recomputed.IsNone "no diagnosis"

                for head in heads do
                    Expect.stringContains out $"\n{head.Head} " "the table"

                let struct (one, summary) = run "one" [ "--heads"; "none" ]
                Expect.hasLength summary.Heads.Value 1 "one head"
                Expect.isFalse (one.Contains "nearest-mean@class-token") "no table of one"

                // 4 training images of each class
                let struct (_, held) =
                    run
                        "held"
                        [
                            "--validate"
                            "0.25"
                            "--recompute"
                            "--preset"
                            "small"
                            "--method"
                            "frozen"
                        ]

                Expect.equal held.Heads.Value[0].Head "cosine-lda:ratio@small-texture" "the preset"

                Expect.equal
                    (held.CorrectAndTotal |> Array.map (Array.map _.Total))
                    [| [| 5 |]; [| 5; 5 |] |]
                    "one image of each class"

                Expect.all held.Heads.Value _.Recomputed.IsSome "diagnosis"

                let struct (_, augmented) =
                    run
                        "augmented"
                        [
                            "--no-training"
                            "--augment"
                            "crop-flip"
                            "--prototype-transform"
                            "train"
                            "--recompute"
                        ]

                Expect.all
                    augmented.Heads.Value
                    (fun head -> head.Recomputed = Some head.Last)
                    "of the images that the prototypes are of"

                let again = inside [ "evaluate"; under world "held" ]
                Expect.equal (again.Code, again.Error) (0, "") "evaluated on the same images"))

        testCase
            "a run is saved whole, and evaluating it reproduces its last row"
            (inWorld (fun world ->
                let ended = inside (arguments world [ "--tasks"; "5"; "--seed"; "7" ])
                Expect.equal (ended.Code, ended.Error) (0, "") "run"
                let out = under world "out"
                Expect.stringContains ended.Out $"saved in           {out}" "where"
                use json = JsonDocument.Parse(File.ReadAllText(under out "summary.json"))
                let summary = json.RootElement
                let text (name: string) = (summary.GetProperty name).GetString()
                let number (name: string) = (summary.GetProperty name).GetDouble()

                Expect.equal
                    (text "method", text "variant", text "data")
                    ("lora-sub-drs", "official", "mnist")
                    "texts"

                Expect.equal (number "tasks", number "seed") (5.0, 7.0) "numbers"

                let matrix =
                    [
                        for row in (summary.GetProperty "accuracyMatrix").EnumerateArray() ->
                            [ for entry in row.EnumerateArray() -> entry.GetDouble() ]
                    ]

                Expect.equal (matrix |> List.map _.Length) [ 1..5 ] "lower-triangular"
                Expect.all (List.concat matrix) (fun x -> x >= 0.0 && x <= 100.0) "percent"
                // equal task sizes
                Expect.floatClose Accuracy.high (number "last") (List.average (List.last matrix)) "last"

                Expect.floatClose
                    Accuracy.high
                    (number "average")
                    (matrix |> List.averageBy List.average)
                    "average"

                Expect.floatClose Accuracy.high (number "lastByTask") (number "last") "last by task"
                Expect.floatClose Accuracy.high (number "averageByTask") (number "average") "average by task"

                let overEarlier f = [ 0..3 ] |> List.averageBy f

                Expect.floatClose
                    Accuracy.high
                    (number "backwardTransfer")
                    (overEarlier (fun j -> matrix[4][j] - matrix[j][j]))
                    "backward transfer"

                Expect.floatClose
                    Accuracy.high
                    (number "forgetting")
                    (overEarlier (fun j -> List.max [ for t in j..3 -> matrix[t][j] ] - matrix[4][j]))
                    "forgetting"

                use resources = JsonDocument.Parse(File.ReadAllText(under out "resources.json"))

                for phase in [ "observe"; "project"; "train"; "prototypes"; "predict" ] do
                    let seconds = resources.RootElement.GetProperty("phaseSeconds").GetProperty(phase)
                    Expect.isGreaterThan (seconds.GetDouble()) 0.0 phase

                let peak = resources.RootElement.GetProperty "peakMemoryBytes"
                Expect.isGreaterThan (peak.GetDouble()) 1e7 "memory"

                let again = inside [ "evaluate"; out; "--batch"; "3" ]
                Expect.equal (again.Code, again.Error) (0, "") "evaluate"
                Expect.stringContains again.Out "       yes\n" "equal"

                Expect.hasLength
                    ((withoutNotes again.Out).TrimEnd().Split '\n')
                    7
                    "a heading, five tasks and all seen"

                // moved files have to be named
                Directory.Move(under world "data", under world "moved")
                let lost = inside [ "evaluate"; out ]
                Expect.equal lost.Code 2 "lost"
                Expect.stringContains lost.Error (under world "data") "lost"
                let found = inside [ "evaluate"; "--data-path"; under world "moved"; out ]
                Expect.equal found again "found"

                // other weights are refused, a saved score that differs is told
                let other = under world "other.safetensors"
                writeBackbone other (with1 "norm.bias" (fill 0.5))

                let refused =
                    inside [ "evaluate"; out; "--data-path"; under world "moved"; "--backbone"; other ]

                Expect.equal refused.Code 2 "other weights"
                Expect.stringContains refused.Error "other.safetensors" "other weights"
                let path = under out "summary.json"
                let struct (summary, measures) = SummaryFile.load path
                let last = Array.last summary.CorrectAndTotal
                // one image more or, from all, none
                last[0] <-
                    { last[0] with
                        Correct = (last[0].Correct + 1) % (last[0].Total + 1)
                    }

                Json.write path (SummaryFile.toJson measures summary)
                let differs = inside [ "evaluate"; out; "--data-path"; under world "moved" ]
                Expect.equal differs.Code 1 "another score"
                Expect.stringContains differs.Error "differ from the saved scores" "another score"))

        testCase
            "a terminal shows the run in place and gets its cursor back"
            (inWorld (fun world ->
                let terminal = terminalOf 24

                let hidden, shown = "\x1b[?25l", "\x1b[?25h"

                let endsWithCursor (ended: Ended) =
                    Expect.stringContains ended.Out hidden "hidden"

                    Expect.isGreaterThan
                        (ended.Out.LastIndexOf(shown, StringComparison.Ordinal))
                        (ended.Out.LastIndexOf(hidden, StringComparison.Ordinal))
                        "shown again"

                let ended = insideOn terminal (arguments world [])
                Expect.equal (ended.Code, ended.Error) (0, "") "run"
                endsWithCursor ended

                for word in [ "task 1/2"; "% on 5 classes so far (new classes "; "last accuracy" ] do
                    Expect.stringContains (unwrapped ended.Out) word "output"

                let again = insideOn terminal [ "evaluate"; under world "out" ]
                Expect.equal again.Code 0 "evaluate"

                // some terminals have no size
                let flat = insideOn (terminalOf 1) (arguments world [ "--out"; under world "flat" ])
                Expect.equal (flat.Code, flat.Error) (0, "") "without a height"
                Expect.stringContains flat.Out "task 1/2: epoch 1/1" "plain lines"
                Expect.equal (insideOn (terminalOf 1) [ "evaluate"; under world "flat" ]).Code 0 "evaluate"

                let broken =
                    insideOn
                        terminal
                        (arguments world [ "--head-lr"; "1e38"; "--epochs"; "4"; "--out"; under world "b" ])

                Expect.equal broken.Code 2 "a failing run"
                endsWithCursor broken))

        testCase
            "a run follows a configuration file, and tells its notes and what the backbone has instead"
            (inWorld (fun world ->
                let path = under world "official.json"

                ConfigFileTests.official
                |> ConfigFileTests.edit "ImageNet_A" "mnist"
                |> ConfigFileTests.edit "\"init_cls\": 20" "\"init_cls\": 4"
                |> ConfigFileTests.edit "\"increment\": 10" "\"increment\": 3"
                |> ConfigFileTests.edit "\"total_sessions\" : 19" "\"total_sessions\" : 3"
                |> ConfigFileTests.edit "[3, 4]" "[3]"
                |> fun text -> File.WriteAllText(path, text)

                let ended =
                    inside
                        [
                            "run"
                            "--config"
                            path
                            "--data-path"
                            under world "data"
                            "--backbone"
                            under world "vit.safetensors"
                            "--initial-epochs"
                            "1"
                            "--epochs"
                            "1"
                            "--out"
                            under world "out"
                        ]

                Expect.equal (ended.Code, ended.Error) (0, "") "run"

                for word in
                    [
                        "not used by this method: prefix"
                        "gives width 768; the backbone's 8 is used"
                        "gives heads 12; the backbone's 2 is used"
                        "task 3/3"
                    ] do
                    Expect.stringContains (unwrapped ended.Out) word "output"

                let saved = RunFolder.settings (under world "out")
                Expect.equal (saved.Seed, saved.Method.Rank, saved.InitialClasses) (3L, 4, Some 4) "settings"
                Expect.equal (saved.Method.Margin, saved.Epochs) (1.25, 1) "settings"))

        testCase
            "a held learning rate is told"
            (inWorld (fun world ->
                let more = [ "--epochs"; "5"; "--schedule-epochs"; "2"; "--stop-after"; "1" ]
                let ended = inside (arguments world more)
                Expect.stringContains ended.Out "note: task 1: the learning rate stays constant" "note"))

        testCase
            "the same run gives the same numbers, and one task has no forgetting"
            (inWorld (fun world ->
                let numbers (ended: Ended) =
                    ended.Out.Split '\n'
                    |> Array.skipWhile (fun l -> not (l.StartsWith "accuracy in percent"))
                    |> Array.takeWhile (fun l -> not (l.StartsWith "seconds"))

                let run name more =
                    inside (arguments world ([ "--out"; under world name ] @ more))

                let first = run "a" []
                Expect.isGreaterThan (numbers first).Length 5 "numbers"
                Expect.equal (numbers (run "b" [])) (numbers first) "again"
                let one = run "c" [ "--stop-after"; "1" ]
                Expect.stringContains one.Out "forgetting         needs two tasks" "one task"))

    ]

let private texts =
    let row correct =
        correct |> List.map (fun c -> { Correct = c; Total = 4 }) |> Array.ofList

    [
        testCase "a matrix of fifty tasks fits eighty columns" (fun () ->
            let lines =
                Display.matrixLines (
                    Array.init 50 (fun t -> Array.create (t + 1) { Correct = 4; Total = 4 })
                )

            Expect.isLessThanOrEqual (lines |> List.map _.Length |> List.max) 80 "columns"
            Expect.stringContains (List.last lines) "10 of the 50 tasks" "note"
            Expect.stringContains lines[1] "50" "the last task")

        testCase "a small matrix is shown whole" (fun () ->
            Expect.equal
                (Display.matrixLines [| row [ 4 ]; row [ 2; 3 ] |])
                [
                    "accuracy in percent after each task (row) on each task (column)"
                    "  task     1     2  seen"
                    "     1 100.0       100.0"
                    "     2  50.0  75.0  62.5"
                ]
                "lines")

        testCase "times and sizes" (fun () ->
            let seconds = [ 0.4; 59.6; 754.0; 3723.0 ]
            Expect.equal (List.map Display.duration seconds) [ "0:00"; "1:00"; "12:34"; "1:02:03" ] "times"
            let sizes = [ 0L; 1023L; 1536L; 5L <<< 30 ]
            Expect.equal (List.map Bytes.text sizes) [ "0.0 B"; "1023.0 B"; "1.5 KiB"; "5.0 GiB" ] "sizes")

        testCase "the time left is what the steps to do have cost so far" (fun () ->
            let task i =
                {
                    Index = i
                    FirstClass = i
                    Classes = [| i |]
                }

            let workload =
                [| 0; 2 |]
                |> Array.map (fun observe ->
                    Map.ofList
                        [
                            Phase.Observe, observe
                            Phase.Train, 10
                            Phase.Prototypes, 2
                            Phase.Predict, 1
                        ])

            let memory = { Tensors = 0L; ResidentBytes = 0L }

            let step i phase finished =
                Learning(
                    Steps
                        {
                            Task = task i
                            Phase = phase
                            Done = finished
                            Steps = 10
                            Epoch = 0
                            Epochs = 1
                            Loss = None
                            Accuracy = None
                        }
                )

            let after told =
                told
                |> List.fold
                    (fun view (seconds: float, progress) ->
                        Display.View.update (TimeSpan.FromSeconds seconds) progress view)
                    Display.View.initial
                |> Display.View.secondsLeft workload

            let begins = [ 0.0, TaskBegins(task 0, memory) ]
            Expect.isNone (after begins) "nothing is known yet"
            let five = begins @ [ 15.0, step 0 Phase.Train 5 ]
            // 15 more training steps at 3 s, and 2 + 4 + 2 forward steps at a third of that
            Expect.equal (after five) (Some(15.0 * 3.0 + 8.0)) "unseen phases by weight"

            let prototypes =
                five
                @ [
                    30.0, step 0 Phase.Train 10
                    30.0, step 0 Phase.Prototypes 0
                    34.0, step 0 Phase.Prototypes 1
                ]

            // prototypes now at 4 s; the others still by weight: 34 s for 10 · 3 + 1
            let forward = 34.0 / 31.0

            Expect.floatClose
                Accuracy.high
                (after prototypes).Value
                (10.0 * 3.0 + 3.0 * 4.0 + 4.0 * forward)
                "seen phases at their own cost")
    ]

[<Tests>]
let tests =
    testList
        "Cli"
        [
            testList "arguments" line'
            testList "runs" runs
            testList "texts" texts
            testList "bad inputs" (badInput |> List.map (refuses inside))
            testList
                "bad inputs of a process"
                (badInput
                 |> List.filter (fun bad ->
                     List.contains bad.Name [ "unknown flag"; "weights cut off"; "a loss that is no number" ])
                 |> List.map (refuses (outside [])))
            testCase "bad inputs are counted" (fun () ->
                printfn "%d bad inputs refused, nothing written" refused
                Expect.isGreaterThan refused 0 "refused")
        ]
