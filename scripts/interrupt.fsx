// Kills the program at random moments and counts what is lost.
//
//     dotnet fsi scripts/interrupt.fsx runs [KILLS] [TERMINATIONS] [SEED]
//     dotnet fsi scripts/interrupt.fsx classifier [KILLS] [SEED]
//
// `runs` ends short runs and resumes them. The results must be byte-identical to an uninterrupted run. 20 kills and 5
// terminations take about five minutes. `classifier` kills a process that saves classifiers over each other. One of the
// two must load, and the next save must remove what the killed process left. 20 kills take about three minutes. Build the
// program first (`dotnet fsi build.fsx -t Build`).

#load "load.fsx"

open System
open System.Diagnostics
open System.IO
open System.Runtime.InteropServices
open System.Threading
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Fluent
open TorchSharp

module Native =
    [<DllImport("libc", SetLastError = true)>]
    extern int kill(int pid, int signal)

let mode, arguments =
    match List.ofArray fsi.CommandLineArgs with
    | _ :: mode :: rest -> mode, Array.ofList rest
    | _ -> "runs", [||]

let number at otherwise =
    if at < arguments.Length then
        int arguments[at]
    else
        otherwise

let under (folder: string) (name: string) = Path.Combine(folder, name)

let start (program: string) (words: string list) =
    let info = ProcessStartInfo(program, words)
    info.RedirectStandardOutput <- true
    info.RedirectStandardError <- true
    let child = Process.Start info
    child.ErrorDataReceived.Add ignore
    child.BeginErrorReadLine()
    child

/// What a killed process left in a folder, apart from the expected files.
let leftovers (folder: string) (expected: string list) =
    Directory.GetFiles folder
    |> Array.map Path.GetFileName
    |> Array.filter (fun name -> not (List.contains name expected))

let counted (names: string seq) =
    names
    |> Seq.countBy (fun name -> if name.EndsWith ".tmp" then "temporary files" else name)
    |> Seq.map (fun (name, n) -> $"{name}: {n}")
    |> String.concat ", "
    |> fun text -> if text = "" then "none" else text

/// Ends the script with the number of losses, and keeps the folder if there are any.
let conclude (folder: string) (lost: int) =
    if lost = 0 then
        Directory.Delete(folder, true)
        exit 0

    printfn $"kept in {folder}"
    exit 1

// ---------------------------------------------------------------------------------------------- runs

let program =
    under __SOURCE_DIRECTORY__ "../src/LoRASub.FSharp.Cli/bin/Release/net10.0/lorasub"

/// Twenty training and ten test images of each class of Fashion-MNIST, as files that a run reads.
let writeData (folder: string) =
    let whole = Datasets.load "fashion-mnist" Load.fashionMnist
    Directory.CreateDirectory folder |> ignore

    for name, each, set in [ "train", 20, whole.Train; "t10k", 10, whole.Test ] do
        let few = Load.firstImages 10 each set

        let write (kind: string) (header: int list) (bytes: byte[]) =
            let bigEndian (n: int) = Array.rev (BitConverter.GetBytes n)
            let content = Array.append (Array.collect bigEndian (Array.ofList header)) bytes
            File.WriteAllBytes(under folder $"{name}-{kind}-ubyte", content)

        let pictures = Array.init few.Labels.Length few.Read
        // grey: red, green and blue are the same
        let grey (picture: Picture) =
            Array.init (picture.Height * picture.Width) (fun i -> picture.Pixels[3 * i])

        write
            "images-idx3"
            [ 2051; pictures.Length; pictures[0].Height; pictures[0].Width ]
            (Array.collect grey pictures)

        write "labels-idx1" [ 2049; few.Labels.Length ] (Array.map byte few.Labels)

let writeBackbone (path: string) =
    let shape =
        {
            Width = 32
            Depth = 2
            Heads = 2
            PatchSize = 7
            ImageSize = 28
            Channels = 3
            MlpRatio = 2.0
            QkvBias = true
        }

    Scope.run (fun () ->
        Weights.randomTensors shape torch.ScalarType.Float32 (Rng.ofSeed 5L)
        |> Map.toSeq
        |> Safetensors.write path (Map.ofList [ ("heads", "2") ]))

let interruptRuns () =
    let kills, terminations, seed = number 0 20, number 1 5, number 2 1
    let folder = Directory.CreateTempSubdirectory("lorasub-interrupt-").FullName
    writeData (under folder "data")
    writeBackbone (under folder "vit.safetensors")

    let settings =
        [
            "run"
            "--data-path"
            under folder "data"
            "--backbone"
            under folder "vit.safetensors"
            "--epochs"
            "6"
            "--batch"
            "8"
            "--tasks"
            "5"
            "--threads"
            "1"
            "--checkpoint-minutes"
            "0.005"
            "--tensorboard"
        ]

    let begin' (words: string list) =
        let child = start program words
        child.OutputDataReceived.Add ignore
        child.BeginOutputReadLine()
        child

    let finish (words: string list) =
        use child = begin' words
        child.WaitForExit()
        child.ExitCode

    // what a run must leave, whatever happened to it
    let names =
        [
            "summary.json"
            "learner.safetensors"
            "learner.json"
            "drift.json"
            "classes.json"
        ]

    let results (run: string) =
        names
        |> List.map (fun name ->
            let path = under run name

            name,
            (if File.Exists path then
                 Convert.ToHexString(File.ReadAllBytes path)
             else
                 "missing"))

    let clock = Stopwatch.StartNew()
    let whole = under folder "whole"

    if finish (settings @ [ "--out"; whole ]) <> 0 then
        failwith "the undisturbed run failed; is the program built?"

    // of the quickest run so far: the first one after a build reads everything from disk
    let length = ref clock.Elapsed.TotalSeconds
    let expected = results whole
    printfn $"undisturbed: {length.Value:F1} s"
    let random = Random seed

    let belongs (name: string) =
        List.contains name names
        || List.contains name [ ".lock"; "settings.json"; "sources.json"; "metrics.jsonl"; "resources.json" ]
        || name.EndsWith ".csv"
        || name.StartsWith "events."

    let left = ResizeArray<string>()

    /// One run, ended after a random share of its time, and resumed until it is done.
    let rec disturbed (name: string) (signal: int) (expectedCode: int) i =
        let run = under folder $"{name}-{i}"
        let after = random.NextDouble() * length.Value
        let clock = Stopwatch.StartNew()
        use child = begin' (settings @ [ "--out"; run ])

        if child.WaitForExit(TimeSpan.FromSeconds after) then
            // too late for this one
            length.Value <- min length.Value clock.Elapsed.TotalSeconds
            Directory.Delete(run, true)
            disturbed name signal expectedCode i
        else
            Native.kill (child.Id, signal) |> ignore
            child.WaitForExit()
            compared name run after (child.ExitCode = expectedCode) i

    /// Whether a resumed run ends like the uninterrupted one.
    and compared (name: string) (run: string) (after: float) asExpected i =
        let begun = File.Exists(under run "settings.json")
        let checkpoint = File.Exists(under run "checkpoint.json")

        let resumed =
            if begun then
                finish [ "run"; "--resume"; run ]
            else
                finish (settings @ [ "--out"; run ])

        let different =
            List.zip expected (results run)
            |> List.filter (fun (a, b) -> a <> b)
            |> List.map (fst >> fst)

        let mine = leftovers run [] |> Array.filter (belongs >> not)
        left.AddRange mine

        let state =
            if checkpoint then "from a checkpoint"
            elif begun then "from its settings"
            else "from nothing"

        let good = different.IsEmpty && resumed = 0 && mine.Length = 0 && asExpected

        let outcome =
            if good then
                "equal"
            else
                let files = String.concat ", " different
                let beside = String.concat ", " mine
                $"DIFFERENT: {files}; left behind: {beside}; as expected {asExpected}, then {resumed}"

        printfn $"{name} {i + 1}: after {after:F1} s, {state}: {outcome}"

        if good then
            Directory.Delete(run, true)

        good

    let outcomes =
        [
            for i in 0 .. kills - 1 -> disturbed "kill" 9 137 i
            for i in 0 .. terminations - 1 -> disturbed "termination" 15 143 i
        ]

    let good = outcomes |> List.filter id |> List.length
    printfn $"{good} of {outcomes.Length} as the undisturbed run; files left behind: {counted left}"
    conclude folder (outcomes.Length - good)

// ---------------------------------------------------------------------------------------------- classifiers

let options = ClassifierOptions(Epochs = 1, BatchSize = 16, Augment = false)

let load (folder: string) =
    ContinualClassifier.Load(folder, Load.microVit, options)

/// The process to kill: prints that it begins, then saves two classifiers in turn until it is killed.
let saveForEver (folder: string) =
    use first = load (under folder "first")
    use second = load (under folder "second")
    let kept = under folder "kept"
    printfn $"{Environment.ProcessId}"

    while true do
        second.Save kept
        first.Save kept

let interruptClassifier () =
    let kills, seed = number 0 20, number 1 1
    let folder = Directory.CreateTempSubdirectory("lorasub-interrupt-").FullName
    let train = Images.FromDataset("fashion-mnist", Load.fashionMnist).Train

    let learned (classes: int) (name: string) =
        use classifier = ContinualClassifier.Create(Load.microVit, options)
        let some = Images.OfClasses(train.Select [| 0..159 |], [| 0 .. classes - 1 |])
        classifier.Learn some
        classifier.Save(under folder name)
        use again = load (under folder name)
        again.Predict(train, [| 0..19 |])

    let expected = [ learned 2 "first"; learned 3 "second" ]
    let kept = under folder "kept"

    let child () =
        start "dotnet" [ "fsi"; under __SOURCE_DIRECTORY__ "interrupt.fsx"; "save"; folder ]

    (use first = load (under folder "first")
     first.Save kept)

    let random = Random seed
    let left = ResizeArray<string>()
    let after = ResizeArray<string>()
    let files = [ "learner.json"; "learner.safetensors" ]
    // they start while the previous one is checked
    let mutable next = child ()

    let killed i =
        use saver = next
        let pid = int (saver.StandardOutput.ReadLine())
        Thread.Sleep(random.Next 300)
        Native.kill (pid, 9) |> ignore
        saver.WaitForExit()

        // only one process saves at a time
        let mine = leftovers kept files
        left.AddRange mine

        let outcome =
            try
                use classifier = load kept
                let predictions = classifier.Predict(train, [| 0..19 |])

                match List.tryFindIndex ((=) predictions) expected with
                | Some 0 -> Ok "the first"
                | Some _ -> Ok "the second"
                | None -> Error "loads, but predicts as neither"
            with :? InputException as e ->
                Error e.Message

        match outcome with
        | Ok which -> printfn $"kill {i + 1}: {which}; left: {counted mine}"
        | Error why -> printfn $"kill {i + 1}: LOST: {why}"

        // the next save must remove what was left
        (use first = load (under folder "first")
         first.Save kept)

        after.AddRange(leftovers kept files)

        if i + 1 < kills then
            next <- child ()

        Result.isOk outcome

    let good = [ for i in 0 .. kills - 1 -> killed i ] |> List.filter id |> List.length

    printfn
        $"{kills - good} of {kills} lost; left by kills: {counted left}; after the next save: {counted after}"

    conclude folder (kills - good + after.Count)

match mode with
| "runs" -> interruptRuns ()
| "classifier" -> interruptClassifier ()
| "save" -> saveForEver arguments[0]
| other -> failwith $"runs or classifier, not {other}"
