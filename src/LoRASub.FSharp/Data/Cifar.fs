namespace LoRASub.Data

open System
open System.IO
open System.Text.RegularExpressions
open LoRASub.Core

/// The binary version of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): records of label bytes and then 3072 pixel bytes,
/// the red, green and blue planes of 32 x 32, row by row. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
[<RequireQualifiedAccess>]
module internal Cifar =

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

    /// What a published version is made of.
    type private Version =
        {
            Name: string
            Classes: int
            LabelBytes: int
            Archive: string
            /// The folder that the archive makes.
            Inside: string
            ClassNames: string
            Train: string list
            Test: string
        }

    /// Rejects the version for Python, whose files are pickles.
    let private refusePickles (version: Version) (folder: string) =
        let python =
            Directory.GetFileSystemEntries folder
            |> Array.map (fun (path: string) -> Path.GetFileName path)
            |> Array.sort
            |> Array.tryFind (fun entry ->
                Regex.IsMatch(entry, @"^(cifar-10+-(python|batches-py).*|data_batch_1|batches\.meta|meta)$"))

        match python with
        | Some entry when not (File.Exists(Path.Combine(folder, version.Test))) ->
            Errors.reject
                folder
                $"{version.Name} needs the files of the binary version, such as {version.Test}"
                $"the version for Python ({entry})"
                $"download and unpack {version.Archive}"
        | _ -> ()

    let private load (version: Version) (folder: string) : Dataset =
        DataFile.requireFolder version.Name folder

        let folder =
            folder
            |> ScanFiles.enter version.Inside (fun folder -> File.Exists(Path.Combine(folder, version.Test)))

        refusePickles version folder
        let readSet = readSet version.Name version.Classes version.LabelBytes folder
        let names = Path.Combine(folder, version.ClassNames)

        let dataset =
            Dataset.create
                version.Name
                (classNames version.Classes names)
                (readSet version.Train)
                (readSet [ version.Test ])
            |> Dataset.validate

        { dataset with
            Notes =
                [|
                    if not (File.Exists names) then
                        $"classes are numbered, because {version.ClassNames} is missing"
                |]
        }

    /// CIFAR-10 from the files of `cifar-10-batches-bin`, or the folder that holds it; without batches.meta.txt the
    /// classes are numbered, with a note. Rejects the version for Python.
    let load10 (folder: string) : Dataset =
        folder
        |> load
            {
                Name = "cifar10"
                Classes = 10
                LabelBytes = 1
                Archive = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
                Inside = "cifar-10-batches-bin"
                ClassNames = "batches.meta.txt"
                Train = [ for i in 1..5 -> $"data_batch_{i}.bin" ]
                Test = "test_batch.bin"
            }

    /// CIFAR-100 with its 100 fine labels from the files of `cifar-100-binary`, or the folder that holds it; without
    /// fine_label_names.txt the classes are numbered, with a note. Rejects the version for Python.
    let load100 (folder: string) : Dataset =
        folder
        |> load
            {
                Name = "cifar100"
                Classes = 100
                LabelBytes = 2
                Archive = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
                Inside = "cifar-100-binary"
                ClassNames = "fine_label_names.txt"
                Train = [ "train.bin" ]
                Test = "test.bin"
            }
