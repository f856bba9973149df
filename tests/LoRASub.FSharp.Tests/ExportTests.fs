module LoRASub.Tests.ExportTests

open System
open System.Diagnostics
open System.IO
open System.Text
open System.Text.Json
open System.Text.RegularExpressions
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open TorchSharp

/// A learner of coloured squares in two groups of classes. Owned by the caller's scope.
let private learnedWith (change: RunSettings -> RunSettings) (folder: string) (groups: string[] list) =
    let backbone = Path.Combine(folder, "vit.safetensors")
    Tiny.writeBackbone backbone 8 2 7
    let preset = KeptLearner.settings "recommended"

    let kept =
        KeptLearner.create (
            change
                { preset with
                    MethodName = "lora-sub-drs"
                    Head = "nearest-mean"
                    Embedding = "class-token"
                    Backbone = Some backbone
                    InputRange = struct (-0.5, 2.0)
                    NormEpsilon = { Blocks = 1e-5; Final = 1e-6 }
                    Precision = Precision.Float64
                    Device = Generators.deviceName
                    Batch = 4
                    Epochs = 2
                    Method =
                        { preset.Method with
                            Rank = 2
                            LearningRate = 5e-3
                            HeadLearningRate = 1e-2
                        }
                }
        )

    let learn (kept, first) (names: string[]) =
        let images =
            Tiny.images "squares" 1 (Tiny.labels names.Length 6 |> Array.map (fun c -> c + first))

        let images =
            { images with
                Labels = images.Labels |> Array.map (fun c -> c - first)
            }

        let next = (Lesson.learn 0.0 names images ignore kept).After
        next, first + names.Length

    groups |> List.fold learn (kept, 0) |> fst

let private twoGroups = [ [| "ant"; "bee, or wasp" |]; [| "cat"; "dog" |] ]

let private withLearner change (test: string -> KeptLearner -> unit) () =
    Probe.inFolder (fun folder -> Scope.run (fun () -> test folder (learnedWith change folder twoGroups)))

let private images (kept: KeptLearner) =
    let vit = kept.Learner.Backbone
    let size = int64 vit.ImageSize

    Rng.uniform -0.5 2.0 [| 5L; 3L; size; size |] torch.ScalarType.Float64 vit.Device (Rng.ofSeed 3L)

let private features (kept: KeptLearner) images =
    VisionTransformer.features (kept.Learner.Method.Adapters kept.State.Method) kept.Learner.Backbone images

let private numbers = TestFiles.numbers

/// The weights of a file, loaded without any hint: the file says it all.
let private loaded path precision =
    Weights.load
        { Tiny.backboneOptions precision with
            Heads = None
            NormEpsilon = (Weights.card (TensorFormats.header path)).NormEpsilon.Value.Value
        }
        path

/// The largest difference, relative to the largest number.
let private difference (expected: float[]) (actual: float[]) =
    Expect.hasLength actual expected.Length "numbers"
    let largest = expected |> Array.map abs |> Array.max
    (Array.map2 (fun a b -> abs (a - b)) expected actual |> Array.max) / largest

let private isPlain change =
    let mutable plain = true
    withLearner change (fun _ kept -> plain <- Export.isPlain kept) ()
    plain

// ---------------------------------------------------------------------------------------------- Python

/// A Python 3 that has numpy: the first on the path, or the system's.
let private python: Lazy<string option> =
    lazy
        ([ "python3"; "/usr/bin/python3" ]
         |> List.tryFind (fun program ->
             try
                 use child =
                     Process.Start(
                         ProcessStartInfo(
                             program,
                             [ "-c"; "import numpy" ],
                             RedirectStandardOutput = true,
                             RedirectStandardError = true
                         )
                     )

                 child.WaitForExit()
                 child.ExitCode = 0
             with :? ComponentModel.Win32Exception ->
                 false))

let private runPython (arguments: string list) : struct (int * string * string) =
    match python.Value with
    | None -> skiptest "needs a Python 3 with numpy, and there is none"
    | Some program ->
        use child =
            Process.Start(
                ProcessStartInfo(
                    program,
                    arguments,
                    RedirectStandardOutput = true,
                    RedirectStandardError = true,
                    StandardOutputEncoding = Encoding.UTF8
                )
            )

        let error = child.StandardError.ReadToEndAsync()
        let out = child.StandardOutput.ReadToEnd()
        child.WaitForExit()
        struct (child.ExitCode, out, error.Result)

/// The features of images by scripts/numpy-vit.py.
let private pythonFeatures (folder: string) (weights: string) (images: torch.Tensor) (adapter: string list) =
    let input, output =
        Path.Combine(folder, "images.safetensors"), Path.Combine(folder, "features.safetensors")

    Safetensors.write input Map.empty [ "images", images ]
    let script = Path.Combine(Probe.repository (), "scripts", "numpy-vit.py")

    let struct (code, _, error) =
        runPython (script :: weights :: input :: output :: adapter)

    Expect.equal code 0 error
    (Safetensors.read output).Tensors["features"]

/// The program of docs/formats.md that reads a learner.
let private reader () =
    let page = File.ReadAllText(Path.Combine(Probe.repository (), "docs", "formats.md"))

    Regex.Matches(page, "(?s)```python\n(.*?)```")
    |> Seq.map _.Groups[1].Value
    |> Seq.find _.Contains("learner.safetensors")

/// A .npy file of float64.
let private npy (path: string) : float[] =
    let bytes = File.ReadAllBytes path
    let start = 10 + int (BitConverter.ToUInt16(bytes, 8))
    Array.init ((bytes.Length - start) / 8) (fun i -> BitConverter.ToDouble(bytes, start + 8 * i))

[<Tests>]
let tests =
    testList
        "Export"
        [
            testCase
                "the exported weights are a backbone with the learner's features, and state what they need"
                (withLearner id (fun folder kept ->
                    let path = Path.Combine(folder, "weights.safetensors")
                    let x = images kept
                    let expected = features kept x |> numbers
                    let frozen = VisionTransformer.frozen kept.Learner.Backbone

                    Expect.isGreaterThan
                        (difference
                            expected
                            (VisionTransformer.features frozen kept.Learner.Backbone x |> numbers))
                        1e-3
                        "the network has adapted"

                    for dtype, bound in [ torch.ScalarType.Float64, 1e-13; torch.ScalarType.Float32, 1e-5 ] do
                        Export.weights dtype path kept
                        let vit = loaded path Precision.Float64
                        let again = VisionTransformer.features (VisionTransformer.frozen vit) vit x
                        Expect.isLessThan (difference expected (numbers again)) bound $"{dtype}"

                    let card = Weights.card (TensorFormats.header path)
                    Expect.equal (WeightsCard.range card) (Some(struct (-0.5, 2.0))) "range"
                    Expect.equal card.ImageSize.Value.Value 8 "size"
                    Expect.equal card.Heads.Value.Value 2 "heads"

                    Expect.equal
                        card.NormEpsilon.Value.Value
                        { Blocks = 1e-5; Final = 1e-6 }
                        "layer-norm epsilons"))

            testCase
                "the adapter is exact at the rank of the change, and states what a lower one leaves out"
                (withLearner id (fun folder kept ->
                    let vit = kept.Learner.Backbone

                    let change =
                        MergedWeights.change (kept.Learner.Method.Adapters kept.State.Method) vit

                    Expect.equal
                        (List.map fst change)
                        [ "blocks.0.attn.qkv"; "blocks.1.attn.qkv" ]
                        "what changed"

                    let errorOf (adapter: LowRankChange) =
                        let squares (t: torch.Tensor) = t.mul(t).sum().item<float>()

                        let left =
                            List.map2
                                (fun (_, whole: torch.Tensor) (_, pair: LoraPair) ->
                                    whole.sub (pair.B.mm pair.A) |> squares)
                                change
                                adapter.Pairs

                        sqrt (List.sum left / List.sumBy (snd >> squares) change)

                    let exact = (Export.adapter None folder kept).Value
                    // two tasks of rank 2 on keys and on values
                    Expect.isLessThanOrEqual exact.Rank 8 "rank"
                    Expect.isLessThan (errorOf exact) 1e-6 "exact"
                    Expect.isLessThan exact.RelativeError 1e-6 "and said so"

                    let mutable before = 0.0

                    for rank in exact.Rank - 1 .. -1 .. 1 do
                        let some = (Export.adapter (Some rank) folder kept).Value
                        Expect.equal some.Rank rank "rank"
                        Check.closeTo 1e-9 "stated error" [ errorOf some ] [ some.RelativeError ]
                        Expect.isGreaterThan some.RelativeError before "a lower rank leaves out more"
                        before <- some.RelativeError

                    for rank in [ 0; -1; 9 ] do
                        Probe.isRefused [ "rank of the adapter"; "[1, 8]"; $"{rank}" ] (fun () ->
                            Export.adapter (Some rank) folder kept |> ignore)

                    let header = Safetensors.header (Path.Combine(folder, "adapter_model.safetensors"))

                    Expect.equal
                        [ for entry in header.Entries -> entry.Name, entry.Shape ]
                        [
                            for i in 0..1 do
                                $"base_model.model.blocks.{i}.attn.qkv.lora_A.weight", [| 1L; 8L |]
                                $"base_model.model.blocks.{i}.attn.qkv.lora_B.weight", [| 24L; 1L |]
                        ]
                        "tensors"

                    Expect.equal (float header.Metadata["relative-error"]) before "error in the file"

                    use config =
                        JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "adapter_config.json")))

                    let root = config.RootElement
                    Expect.equal ((root.GetProperty "peft_type").GetString()) "LORA" "type"
                    Expect.equal ((root.GetProperty "r").GetInt32()) 1 "rank"
                    Expect.equal ((root.GetProperty "lora_alpha").GetInt32()) 1 "factor 1"

                    Expect.equal
                        [
                            for one in (root.GetProperty "target_modules").EnumerateArray() ->
                                one.GetString()
                        ]
                        [ "attn.qkv" ]
                        "layers"))

            testCase "layers of one block that changed have pairs in every block" (fun () ->
                Scope.run (fun () ->
                    let vit = Tiny.vit Precision.Float64 8 2 7
                    let frozen = VisionTransformer.frozen vit
                    let fc1 = vit.Blocks[1].Fc1.Weight
                    let column = torch.ones ([| fc1.shape[0]; 1L |], dtype = fc1.dtype)
                    let row = torch.ones ([| 1L; fc1.shape[1] |], dtype = fc1.dtype)

                    let adapters =
                        { frozen with
                            Weights = [| Map.empty; Map [ Site.Fc1, fc1.add (column.mm row) ] |]
                        }

                    let adapter = MergedWeights.change adapters vit |> MergedWeights.lowRank None

                    Expect.equal
                        [ for name, _ in adapter.Pairs -> name ]
                        [ "blocks.0.mlp.fc1"; "blocks.1.mlp.fc1" ]
                        "layers"

                    Expect.equal adapter.Rank 1 "rank"
                    let pair = snd adapter.Pairs[0]
                    Expect.all (numbers (pair.B.mm pair.A)) ((=) 0.0) "no change in the first block"

                    Expect.equal
                        (MergedWeights.tensors adapters vit |> List.map fst |> List.sort)
                        ((Tiny.tensors 8 2 7).Keys |> List.ofSeq |> List.sort)
                        "timm's names"))

            testCase
                "a method that leaves the network as it is has no adapter, one with adapters beside the MLPs no weights"
                (fun () ->
                    let method name settings = { settings with MethodName = name }

                    withLearner
                        (method "frozen")
                        (fun folder kept ->
                            Expect.isNone (Export.adapter None folder kept) "nothing to adapt"

                            Expect.isFalse
                                (File.Exists(Path.Combine(folder, "adapter_config.json")))
                                "no file")
                        ()

                    for name in [ "ease"; "ranpac" ] do
                        withLearner
                            (method name)
                            (fun folder kept ->
                                Expect.isFalse (Export.isPlain kept) name

                                for work in
                                    [
                                        fun () ->
                                            Export.weights
                                                torch.ScalarType.Float32
                                                (Path.Combine(folder, "weights.safetensors"))
                                                kept
                                        fun () -> Export.adapter None folder kept |> ignore
                                    ] do
                                    Probe.isRefused
                                        [ name; "plain Vision Transformer"; "beside the MLPs" ]
                                        work)
                            ()

                    for name in [ "first-session"; "inflora"; "sd-lora"; "e2-lora" ] do
                        if List.contains name LoRASub.Methods.Methods.names then
                            Expect.isTrue (isPlain (method name)) name)

            testCase
                "the class table has a row for each class, and the means in its order"
                (withLearner id (fun folder kept ->
                    Export.classes folder kept

                    Expect.equal
                        (File.ReadAllText(Path.Combine(folder, "classes.csv")))
                        "id,name,task,images\r\n0,ant,0,6\r\n1,\"bee, or wasp\",0,6\r\n2,cat,1,6\r\n3,dog,1,6\r\n"
                        "table"

                    let path = Path.Combine(folder, "class-means.npy")
                    let bytes = File.ReadAllBytes path
                    let start = 10 + int (BitConverter.ToUInt16(bytes, 8))
                    Expect.equal bytes[..7] (Array.append [| 0x93uy |] "NUMPY\001\000"B) "magic"
                    Expect.equal (start % 64) 0 "aligned"

                    Expect.equal
                        ((Encoding.ASCII.GetString bytes[10 .. start - 1]).TrimEnd())
                        "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 8,), }"
                        "header"

                    Expect.equal (npy path) (numbers (Tiny.prototypes kept.State)) "means"))

            testCase "a vector is a tuple of one" (fun () ->
                Probe.inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.npy")
                    use vector = torch.tensor [| 1.0; 2.0 |]
                    NumpyFile.write path vector
                    Expect.stringContains (File.ReadAllText path) "'shape': (2,)" "shape"
                    Expect.equal (npy path) [| 1.0; 2.0 |] "numbers"
                    use half = vector.``to`` torch.ScalarType.Float16

                    Probe.refused [ path; "float32"; "Float16" ] (fun () -> NumpyFile.write path half)))

            testCase
                "an independent Vision Transformer in Python gives the features of weights and of adapter"
                (withLearner id (fun folder kept ->
                    let weights = Path.Combine(folder, "weights.safetensors")
                    Export.weights torch.ScalarType.Float64 weights kept
                    let x = images kept
                    let expected = features kept x |> numbers
                    let merged = pythonFeatures folder weights x []
                    Expect.isLessThan (difference expected (numbers merged)) 1e-12 "merged weights"

                    // the frozen weights, exported, with the adapter
                    let fresh =
                        { kept with
                            State = Learner.start kept.Learner (Rng.ofSeed 1L)
                        }

                    Export.weights torch.ScalarType.Float64 weights fresh
                    let adapter = Path.Combine(folder, "adapter")
                    Directory.CreateDirectory adapter |> ignore
                    Export.adapter None adapter kept |> ignore
                    let adapted = pythonFeatures folder weights x [ adapter ]
                    // its pairs are in float32
                    Expect.isLessThan (difference expected (numbers adapted)) 1e-5 "backbone and adapter"))

            for head in
                [
                    "nearest-mean"
                    "cosine-lda"
                    "cosine-lda:0.2"
                    "cosine-lda:30-images"
                    "cosine-lda:ratio"
                ] do
                testCase
                    $"the program in docs/formats.md classifies as {head} does, and finds damage"
                    (withLearner (fun settings -> { settings with Head = head }) (fun folder kept ->
                        let own = Path.Combine(folder, "learner")
                        KeptLearner.save own kept
                        let x = features kept (images kept)
                        let embeddings = Path.Combine(folder, "embeddings.npy")
                        NumpyFile.write embeddings x
                        let program = Path.Combine(folder, "read.py")
                        let result = Path.Combine(folder, "scores.npy")
                        File.WriteAllText(program, reader () + "\nnp.save(sys.argv[3], scores)\n")

                        let run () =
                            runPython [ program; own; embeddings; result ]

                        let struct (code, out, error) = run ()
                        Expect.equal code 0 error

                        let scores = (kept.Learner.Head.Scores kept.State.Head).Score x
                        Expect.isLessThan (difference (numbers scores) (npy result)) 1e-9 "scores"

                        let best = (Scorer.best scores).cpu().data<int64>().ToArray()
                        let lines = out.Trim().Split '\n'
                        Expect.hasLength lines best.Length "a line for each image"

                        for row, line in Array.zip best lines do
                            Expect.stringStarts line (kept.Classes[int row].Name + " ") "class"

                        for file in [ "learner.json"; "learner.safetensors" ] do
                            let path = Path.Combine(own, file)
                            let whole = File.ReadAllBytes path
                            let bytes = Array.copy whole
                            // a digit or a number, not the syntax
                            let at =
                                if file = "learner.json" then
                                    (Encoding.UTF8.GetString bytes).IndexOf "\"images\": 6" + 10
                                else
                                    bytes.Length - 1

                            bytes[at] <- bytes[at] ^^^ 1uy
                            File.WriteAllBytes(path, bytes)
                            let struct (code, _, error) = run ()
                            Expect.equal code 1 file
                            Expect.stringStarts error $"{file} is damaged" file
                            File.WriteAllBytes(path, whole)))
        ]
