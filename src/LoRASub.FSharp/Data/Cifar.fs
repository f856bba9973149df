namespace LoRASub

open System
open System.IO

/// The binary version of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): records of label bytes and then 3072 pixel bytes,
/// the red, green and blue planes of 32 x 32, row by row. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
[<RequireQualifiedAccess>]
module Cifar =

    [<Literal>]
    let private Pixels = 3072

    /// Labels and pixels of one file; the last of the label bytes is the class (CIFAR-100 puts the superclass first).
    let private readFile (classes: int) (labelBytes: int) (path: string) : struct (int[] * byte[]) =
        let bytes = DataFile.bytes path
        let record = labelBytes + Pixels

        if bytes.Length = 0 || bytes.Length % record <> 0 then
            let rule = $"must be a whole number of records of {record} bytes, at least one"
            Errors.reject path rule $"{bytes.Length} bytes" ""

        let count = bytes.Length / record
        let labels = Array.init count (fun i -> int bytes[i * record + labelBytes - 1])
        ImageSet.requireLabels path classes labels
        let pixels = Array.zeroCreate<byte>(count * Pixels)

        for i in 0 .. count - 1 do
            Buffer.BlockCopy(bytes, i * record + labelBytes, pixels, i * Pixels, Pixels)

        struct (labels, pixels)

    let private readSet (name: string) classes labelBytes (folder: string) (files: string list) : ImageSet =
        let paths = files |> List.map (fun file -> DataFile.find name folder [ file ])
        let parts = paths |> List.map (readFile classes labelBytes) |> List.toArray
        let labels = parts |> Array.collect (fun struct (labels, _) -> labels)
        let pixels = parts |> Array.map (fun struct (_, pixels) -> pixels) |> Array.concat
        let source = if paths.Length = 1 then paths.Head else folder
        ImageSet.ofBytes source labels 3 32 32 pixels

    let private classNames (classes: int) (path: string) =
        if File.Exists path then
            let names = DataFile.lines path

            if names.Length <> classes then
                Errors.reject path $"must name {classes} classes, one in a line" $"{names.Length}" ""

            names
        else
            Array.init classes (fun c -> $"class {c}")

    let private load name classes labelBytes namesFile trainFiles testFile (folder: string) : Dataset =
        DataFile.requireFolder name folder

        Dataset.create
            name
            (classNames classes (Path.Combine(folder, namesFile)))
            (readSet name classes labelBytes folder trainFiles)
            (readSet name classes labelBytes folder [ testFile ])
        |> Dataset.validate

    /// CIFAR-10 from the files of `cifar-10-batches-bin`; without batches.meta.txt the classes are numbered.
    let load10 (folder: string) : Dataset =
        let batches = [ for i in 1..5 -> $"data_batch_{i}.bin" ]
        load "cifar10" 10 1 "batches.meta.txt" batches "test_batch.bin" folder

    /// CIFAR-100 with its 100 fine labels from the files of `cifar-100-binary`; without fine_label_names.txt the
    /// classes are numbered.
    let load100 (folder: string) : Dataset =
        load "cifar100" 100 2 "fine_label_names.txt" [ "train.bin" ] "test.bin" folder
