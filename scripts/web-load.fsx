// Many clients at once against the web example, on loopback: errors, latency, and the memory of the server over time.
//
//     dotnet fsi build.fsx -t Build
//     dotnet fsi scripts/web-load.fsx [SECONDS [CLIENTS]]

#load "load.fsx"
#r "../src/LoRASub.FSharp/bin/Release/net10.0/SkiaSharp.dll"

open System
open System.Collections.Concurrent
open System.Diagnostics
open System.IO
open System.Net.Http
open System.Text.Json
open System.Text.RegularExpressions
open System.Threading.Tasks
open LoRASub.Data
open LoRASub.Fluent
open SkiaSharp
open Load

let argument at otherwise =
    fsi.CommandLineArgs
    |> Array.tryItem (at + 1)
    |> Option.map int
    |> Option.defaultValue otherwise

let seconds, clients = argument 0 75, argument 1 32
let folder = Directory.CreateTempSubdirectory("web-load-").FullName

// ---------------------------------------------------------------------------------------------- a learner and images

let data = Images.FromDataset("fashion-mnist", fashionMnist)
let classifier = ContinualClassifier.Create(microVit, ClassifierOptions(Epochs = 1))
classifier.Learn(data.Train.Select [| 0..199 |])
classifier.Save folder

/// A JPEG as a phone's thumbnail would be: 640 x 640.
let jpeg (picture: Picture) : byte[] =
    ImageFile.ensureLoaded ()
    use small = new SKBitmap(picture.Width, picture.Height)

    small.Pixels <-
        Array.init (picture.Width * picture.Height) (fun i ->
            SKColor(picture.Pixels[3 * i], picture.Pixels[3 * i + 1], picture.Pixels[3 * i + 2]))

    use large = small.Resize(SKImageInfo(640, 640), SKFilterQuality.High)
    use bytes = large.Encode(SKEncodedImageFormat.Jpeg, 85)
    bytes.ToArray()

let images =
    let set = (Datasets.load "fashion-mnist" fashionMnist).Test
    Array.init 50 (set.Read >> jpeg)

let expected =
    images
    |> Array.map (fun image -> classifier.Predict(ReadOnlyMemory image).ClassName)

classifier.Dispose()

// ---------------------------------------------------------------------------------------------- the server

let program =
    Path.Combine(
        __SOURCE_DIRECTORY__,
        "../tests/LoRASub.FSharp.Web/bin/Release/net10.0/LoRASub.FSharp.Web.dll"
    )

let server =
    let arguments = [ program; folder; microVit; "--urls"; "http://127.0.0.1:0" ]
    Process.Start(ProcessStartInfo("dotnet", arguments, RedirectStandardOutput = true))

let address =
    Seq.initInfinite (fun _ -> server.StandardOutput.ReadLine())
    |> Seq.map (fun line -> Regex.Match(line, @"http://127\.0\.0\.1:\d+"))
    |> Seq.find _.Success
    |> _.Value

let log = server.StandardOutput.ReadToEndAsync()
let http = new HttpClient(BaseAddress = Uri address)

// ---------------------------------------------------------------------------------------------- the clients

let latencies = ConcurrentBag<float>()
let errors = ConcurrentBag<string>()
let clock = Stopwatch.StartNew()
let warm = 15.0

let ask (i: int) : Task =
    task {
        let began = clock.Elapsed

        try
            use! answer = http.PostAsync("/predict?top=3", new ByteArrayContent(images[i]))
            let! text = answer.Content.ReadAsStringAsync()

            if not answer.IsSuccessStatusCode then
                errors.Add $"{answer.StatusCode}: {text}"
            else
                use json = JsonDocument.Parse text
                let best = ((json.RootElement[0])[0]).GetProperty("className").GetString()

                if best <> expected[i] then
                    errors.Add $"image {i} is {best}, not {expected[i]}"
        with e ->
            errors.Add e.Message

        if began.TotalSeconds > warm then
            latencies.Add((clock.Elapsed - began).TotalMilliseconds)
    }

let client (number: int) : Task =
    task {
        let mutable i = number

        while clock.Elapsed.TotalSeconds < float seconds do
            do! ask (i % images.Length)
            i <- i + 1
    }

let running = Task.WhenAll(Array.init clients client)
let memory = ResizeArray<struct (float * float)>()

while not (running.Wait 1000) do
    server.Refresh()

    if clock.Elapsed.TotalSeconds > warm then
        memory.Add(struct (clock.Elapsed.TotalMinutes, float server.WorkingSet64 / 1e6))

running.Wait()
server.Kill()
server.WaitForExit()
Directory.Delete(folder, true)

if not errors.IsEmpty then
    eprintfn "%s" log.Result

// ---------------------------------------------------------------------------------------------- what was measured

let sorted = latencies.ToArray() |> Array.sort

let percentile (p: float) =
    sorted[min (sorted.Length - 1) (int (p * float sorted.Length))]

/// Least squares, MB per minute.
let slope =
    let x, y =
        [ for struct (x, _) in memory -> x ], [ for struct (_, y) in memory -> y ]

    let mx, my = List.average x, List.average y

    List.sum (List.map2 (fun a b -> (a - mx) * (b - my)) x y)
    / List.sumBy (fun a -> (a - mx) ** 2.0) x

let struct (_, first), struct (_, last) = memory[0], memory[memory.Count - 1]

printfn
    "%d clients, %d s after %.0f s of warming up, %d processors"
    clients
    (seconds - int warm)
    warm
    Environment.ProcessorCount

printfn "requests    %d, %.0f/s" sorted.Length (float sorted.Length / (float seconds - warm))
printfn "errors      %d %s" errors.Count (errors |> Seq.tryHead |> Option.defaultValue "")
printfn "latency     p50 %.0f ms, p99 %.0f ms" (percentile 0.5) (percentile 0.99)
printfn "memory      %.0f MB, then %.0f MB; slope %.1f MB/min" first last slope
exit (if errors.IsEmpty then 0 else 1)
