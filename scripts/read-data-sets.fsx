// How fast data sets of image files are read: makes each layout in a temporary folder with real JPEG or PNG files of
// realistic sizes, reads all training batches at 224 pixels, and prints a Markdown table.
//
//     dotnet fsi scripts/read-data-sets.fsx [IMAGES]
//
// Needs the library's build (dotnet fsi build.fsx -t Build). IMAGES: training images per layout; the default is 300.

#load "load.fsx"
#r "../src/LoRASub.FSharp/bin/Release/net10.0/SkiaSharp.dll"

open System
open System.Diagnostics
open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Report
open SkiaSharp
open TorchSharp

ImageFile.ensureLoaded ()

let images =
    match List.tail (List.ofArray fsi.CommandLineArgs) with
    | [] -> 300
    | count :: _ -> int count

/// A few classes are enough: the time depends on the images.
let classes = 10

/// A synthetic photograph: a gradient, coloured discs, and noise, which makes the files as large as photographs.
let draw (random: Random) (width: int) (height: int) : SKBitmap =
    let bitmap = new SKBitmap(width, height, SKColorType.Rgba8888, SKAlphaType.Opaque)

    let colour () =
        SKColor(byte (random.Next 256), byte (random.Next 256), byte (random.Next 256))

    do
        use canvas = new SKCanvas(bitmap)
        use paint = new SKPaint()
        let ends = [| colour (); colour () |]

        use slope =
            SKShader.CreateLinearGradient(
                SKPoint(0f, 0f),
                SKPoint(0f, single height),
                ends,
                SKShaderTileMode.Clamp
            )

        paint.Shader <- slope
        canvas.DrawPaint paint
        paint.Shader <- null

        for _ in 1..12 do
            paint.Color <- colour ()
            let radius = single (random.Next(5, 5 + height / 4))
            canvas.DrawCircle(single (random.Next width), single (random.Next height), radius, paint)

    bitmap.Pixels <-
        bitmap.Pixels
        |> Array.map (fun pixel ->
            let shake (value: byte) =
                byte (Math.Clamp(int value + random.Next(-12, 13), 0, 255))

            SKColor(shake pixel.Red, shake pixel.Green, shake pixel.Blue))

    bitmap

let write (random: Random) (path: string) (width: int) (height: int) =
    Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore
    use bitmap = draw random width height

    let format =
        if path.EndsWith ".png" then
            SKEncodedImageFormat.Png
        else
            SKEncodedImageFormat.Jpeg

    use data = bitmap.Encode(format, 90)
    File.WriteAllBytes(path, data.ToArray())

/// About 500 x 375; each image has another size.
let photograph random path =
    let across, down = 460 + (random: Random).Next 80, 345 + random.Next 60

    if random.Next 2 = 0 then
        write random path across down
    else
        write random path down across

let lines folder name (lines: string seq) =
    File.WriteAllLines(Path.Combine(folder, name), lines)

let byClass (random: Random) folder extension each =
    for c in 0 .. classes - 1 do
        for i in 0 .. each - 1 do
            photograph random (Path.Combine(folder, $"n{c:D8}", $"{i}.{extension}"))

let cub (random: Random) folder =
    let all =
        [
            for c in 1..classes do
                for i in 1 .. (images + classes) / classes -> c, $"{c:D3}.Bird_{c}/Bird_{i}.jpg", i > 1
        ]

    for _, name, _ in all do
        photograph random (Path.Combine(folder, "images", name))

    lines folder "classes.txt" [ for c in 1..classes -> $"{c} {c:D3}.Bird_{c}" ]
    lines folder "images.txt" (all |> List.mapi (fun i (_, name, _) -> $"{i + 1} {name}"))
    lines folder "image_class_labels.txt" (all |> List.mapi (fun i (c, _, _) -> $"{i + 1} {c}"))

    lines
        folder
        "train_test_split.txt"
        (all |> List.mapi (fun i (_, _, t) -> $"{i + 1} {if t then 1 else 0}"))

let domainNet (random: Random) folder =
    for domain in [ "clipart"; "real" ] do
        for split, each in [ "train", images / 2 / classes; "test", 1 ] do
            let entries =
                [
                    for c in 0 .. classes - 1 do
                        for i in 1..each -> $"{domain}/thing_{c}/{split}_{i}.jpg", c
                ]

            for path, _ in entries do
                photograph random (Path.Combine(folder, path))

            lines folder $"{domain}_{split}.txt" (entries |> List.map (fun (path, c) -> $"{path} {c}"))

let tinyImageNet (random: Random) folder =
    let wnid c = $"n{c:D8}"
    let ids = List.init classes wnid

    for c in 0 .. classes - 1 do
        for i in 0 .. images / classes - 1 do
            write random (Path.Combine(folder, "train", wnid c, "images", $"{wnid c}_{i}.JPEG")) 64 64

        write random (Path.Combine(folder, "val", "images", $"val_{c}.JPEG")) 64 64

    lines folder "wnids.txt" ids
    lines folder "words.txt" (ids |> List.map (fun id -> $"{id}\tthing {id}"))

    lines
        (Path.Combine(folder, "val"))
        "val_annotations.txt"
        (ids |> List.mapi (fun c id -> $"val_{c}.JPEG\t{id}\t0\t0\t63\t63"))

let split (random: Random) folder extension =
    byClass random (Path.Combine(folder, "train")) extension (images / classes)
    byClass random (Path.Combine(folder, "test")) extension 1

let layouts: (string * string * (Random -> string -> unit)) list =
    [
        "imagenet-r",
        "`<wnid>/*`, JPEG",
        (fun random folder -> byClass random folder "jpg" (images * 5 / 4 / classes))
        "imagenet-a",
        "`train/<wnid>/*`, `test/<wnid>/*`, JPEG",
        (fun random folder -> split random folder "jpg")
        "cub200", "lists and `images/`, JPEG", cub
        "domainnet", "two domains with split lists, JPEG", domainNet
        "domainnet-domains", "the same", domainNet
        "tiny-imagenet", "as published, JPEG of 64 x 64", tinyImageNet
        "folder", "`train/<class>/*`, `test/<class>/*`, PNG", (fun random folder -> split random folder "png")
    ]

let options: BatchOptions =
    {
        Format =
            {
                Size = 224
                Channels = 3
                Low = 0.0
                High = 1.0
            }
        BatchSize = 32
        Augmentation = Augmentation.CropFlip
        Cropping = Cropping.standard
        Device = torch.CPU
        Dtype = torch.ScalarType.Float32
    }

/// Runs `f`. Returns its result, wall seconds, and processor seconds.
let timed (f: unit -> 'T) =
    let cores () =
        Process.GetCurrentProcess().TotalProcessorTime.TotalSeconds

    let before = cores ()
    let clock = Stopwatch.StartNew()
    let result = f ()
    struct (result, clock.Elapsed.TotalSeconds, cores () - before)

/// The number of images in all training batches.
let readAll (data: Dataset) =
    let stream = TaskStream.create data ClassOrder.Natural 1 None

    TaskStream.trainBatches options (Rng.ofSeed 1L) stream stream.Tasks[0]
    |> Array.sumBy (fun load -> Scope.run (fun () -> int (load ()).Images.shape[0]))

printfn
    $"{Environment.ProcessorCount} cores; random crops to 224 x 224 and flips; seconds per 1000 images, and of all cores together\n"

printfn
    "| data set | layout | images read | loading the lists | first epoch | with the decoded images in memory |"

printfn "|---|---|---|---|---|---|"

for round in [ "warm-up"; "measured" ] do
    for name, layout, make in
        (if round = "warm-up" then
             List.truncate 1 layouts
         else
             layouts) do
        let folder = Directory.CreateTempSubdirectory("lorasub-read-").FullName

        try
            make (Random 1) folder
            let struct (data, loading, loadingAll) = timed (fun () -> Datasets.load name folder)
            let struct (count, first, firstAll) = timed (fun () -> readAll data)
            let struct (_, again, againAll) = timed (fun () -> readAll data)
            let files = data.Train.Labels.Length + data.Test.Labels.Length

            let cell (count: int) (seconds: float) (all: float) =
                let per = 1000.0 / float count
                $"{per * seconds:F2}, {per * all:F2}"

            if round = "measured" then
                printfn
                    $"| {name} | {layout} | {count} | {cell files loading loadingAll} | {cell count first firstAll} | {cell count again againAll} |"
        finally
            Directory.Delete(folder, true)
