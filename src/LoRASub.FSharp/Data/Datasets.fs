namespace LoRASub.Data

open LoRASub.Core
open LoRASub.Native

/// What is known of a data set by its name.
type KnownDataset =
    {
        /// As the settings name it.
        Name: string
        /// As its publication calls it.
        Title: string
        /// None for a set of the user's own.
        Classes: int option
        /// Training and test images together; None for a set of the user's own.
        ImageCount: int option
        /// Where it is published.
        Published: string
        /// The files and folders that `load` reads, as published.
        Layout: string
    }

/// What a folder holds of a data set.
type DataReport =
    {
        /// The data set that was looked for.
        Dataset: KnownDataset
        /// The folder that was given.
        Folder: string
        /// The name of each label.
        ClassNames: string[]
        /// Images of the training split, broken ones included.
        TrainingImages: int
        /// Images of the test split, broken ones included.
        TestImages: int
        /// Files that cannot be decoded.
        Broken: BrokenFile[]
        /// What a run on this folder reports: the role of each folder, and what was skipped.
        Notes: string[]
        /// Problems that prevent the use of the set; empty without problems.
        Problems: string[]
    }

/// The data sets known by name.
[<RequireQualifiedAccess>]
module Datasets =

    type private Reader =
        /// Whole files of images of one size.
        | Arrays of (string -> Dataset)
        | Files of (ReadOptions -> string -> FileScan)

    let private entry name title size published layout reader =
        {
            Name = name
            Title = title
            Classes = Option.map fst size
            ImageCount = Option.map snd size
            Published = published
            Layout = layout
        },
        reader

    let private idxLayout =
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each plain or .gz"

    let private classFolders =
        "<wnid>/*, split by split-ratio and split-seed; or train/<wnid>/* with test/<wnid>/*"

    let private domainLayout =
        "<domain>/<class>/* with <domain>_train.txt and <domain>_test.txt"

    let private table: (KnownDataset * Reader) list =
        [
            entry
                "fashion-mnist"
                "Fashion-MNIST"
                (Some(10, 70000))
                "https://github.com/zalandoresearch/fashion-mnist"
                idxLayout
                (Arrays(Idx.load "fashion-mnist" Idx.fashionMnistClasses))
            entry
                "mnist"
                "MNIST"
                (Some(10, 70000))
                "http://yann.lecun.com/exdb/mnist/"
                idxLayout
                (Arrays(Idx.load "mnist" Idx.mnistClasses))
            entry
                "cifar10"
                "CIFAR-10"
                (Some(10, 60000))
                "https://www.cs.toronto.edu/~kriz/cifar.html"
                "data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt (the binary version)"
                (Arrays Cifar.load10)
            entry
                "cifar100"
                "CIFAR-100"
                (Some(100, 60000))
                "https://www.cs.toronto.edu/~kriz/cifar.html"
                "train.bin, test.bin, fine_label_names.txt (the binary version)"
                (Arrays Cifar.load100)
            entry
                "imagenet-r"
                "ImageNet-R"
                (Some(200, 30000))
                "https://github.com/hendrycks/imagenet-r"
                classFolders
                (Files(ImageFolder.scan "imagenet-r"))
            entry
                "imagenet-a"
                "ImageNet-A"
                (Some(200, 7500))
                "https://github.com/hendrycks/natural-adv-examples"
                classFolders
                (Files(ImageFolder.scan "imagenet-a"))
            entry
                "cub200"
                "CUB-200-2011"
                (Some(200, 11788))
                "https://www.vision.caltech.edu/datasets/cub_200_2011/"
                "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/"
                (Files(fun _ -> Cub.scan))
            entry
                "domainnet"
                "DomainNet, all domains together"
                (Some(345, 586575))
                "http://ai.bu.edu/M3SDA/"
                domainLayout
                (Files(fun _ -> DomainNet.scan))
            entry
                "domainnet-domains"
                "DomainNet, domain-incremental"
                (Some(6 * 345, 586575))
                "http://ai.bu.edu/M3SDA/"
                domainLayout
                (Files(fun _ -> DomainNet.scanDomains))
            entry
                "tiny-imagenet"
                "Tiny-ImageNet-200"
                (Some(200, 110000))
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
                "wnids.txt, words.txt, train/<wnid>/images/*, val/val_annotations.txt, val/images/; or val/<wnid>/*"
                (Files(fun _ -> TinyImageNet.scan))
            entry
                "folder"
                "any folder of images"
                None
                "your own"
                "train/<class>/* with test/<class>/* or val/<class>/*; or <class>/*, split by split-ratio and split-seed"
                (Files(ImageFolder.scan "folder"))
        ]

    /// <summary>The data sets that `load` reads.</summary>
    let known: KnownDataset list = List.map fst table

    /// Whether a data set takes every image below its folder, and not only those that it lists.
    let internal takesEveryImage (name: string) : bool =
        List.contains name [ "imagenet-r"; "imagenet-a"; "folder" ]

    /// <summary>The names that `load` takes.</summary>
    let names: string list = known |> List.map _.Name

    let private find (name: string) =
        match table |> List.tryFind (fun (known, _) -> known.Name = name) with
        | Some found -> found
        | None ->
            let all = String.concat ", " names
            Errors.reject "data set" $"must be one of {all}" name (Errors.didYouMean names name)

    /// <summary>Reads a data set from its published files.</summary>
    /// <param name="options">How image files are split and what happens to broken ones.</param>
    /// <param name="name">One of `names`.</param>
    /// <param name="folder">The folder with its files, in the published layout.</param>
    /// <returns>The data set. Image files are decoded when they are used.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the folder or a file is missing, or a file
    /// is damaged.</exception>
    let loadWith (options: ReadOptions) (name: string) (folder: string) : Dataset =
        let _, reader = find name
        DataFile.requireFolder name folder

        NativeError.during (fun () -> $"while reading {name} from {folder}") NativeError.moreMemory (fun () ->
            let dataset =
                match reader with
                | Arrays load -> load folder
                | Files scan -> scan options folder |> ImageFiles.dataset options name

            match options.HoldOut with
            | Some share -> Dataset.holdOut share options.SplitSeed dataset
            | None -> dataset)

    /// <summary>The number of classes in the folder of a data set. No image is decoded.</summary>
    /// <param name="options">How image files are split.</param>
    /// <param name="name">One of `names`.</param>
    /// <param name="folder">The folder with its files, in the published layout.</param>
    /// <returns>The number of classes.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the folder or a file is missing, or a file
    /// is damaged.</exception>
    let classes (options: ReadOptions) (name: string) (folder: string) : int =
        let _, reader = find name
        DataFile.requireFolder name folder

        match reader with
        | Arrays load -> (load folder).ClassNames.Length
        | Files scan -> (scan options folder).ClassNames.Length

    /// <summary>Reads a data set from its published files, with the standard options.</summary>
    /// <param name="name">One of `names`.</param>
    /// <param name="folder">The folder with its files, in the published layout.</param>
    /// <returns>The data set. Image files are decoded when they are used.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the folder or a file is missing, or a file
    /// is damaged.</exception>
    let load (name: string) (folder: string) : Dataset =
        loadWith ReadOptions.standard name folder

    /// <summary>Reads the lists of a data set of image files, and no image.</summary>
    /// <param name="options">How image files are split.</param>
    /// <param name="name">One of `names`.</param>
    /// <param name="folder">The folder with its files, in the published layout.</param>
    /// <returns>What was found; None for a set that is published as arrays.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown, the folder or a file is missing, or a file
    /// is damaged.</exception>
    let scan (options: ReadOptions) (name: string) (folder: string) : FileScan option =
        let _, reader = find name
        DataFile.requireFolder name folder

        match reader with
        | Arrays _ -> None
        | Files scan -> Some(scan options folder)

    /// <summary>Looks through a folder for a data set: reads its lists, decodes every image, and reports all that
    /// is wrong.</summary>
    /// <param name="name">One of `names`.</param>
    /// <param name="folder">The folder with its files, in the published layout.</param>
    /// <returns>What was found, with its problems.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is unknown.</exception>
    let check (name: string) (folder: string) : DataReport =
        let known, reader = find name

        let empty =
            {
                Dataset = known
                Folder = folder
                ClassNames = [||]
                TrainingImages = 0
                TestImages = 0
                Broken = [||]
                Notes = [||]
                Problems = [||]
            }

        try
            DataFile.requireFolder name folder

            match reader with
            | Arrays load ->
                let data = load folder

                { empty with
                    ClassNames = data.ClassNames
                    TrainingImages = data.Train.Labels.Length
                    TestImages = data.Test.Labels.Length
                    Notes = data.Notes
                }
            | Files scan ->
                let scan = scan ReadOptions.standard folder
                let files = Array.append scan.Train scan.Test |> Array.map _.Path |> Array.distinct
                let broken = ImageFiles.verify files

                { empty with
                    ClassNames = scan.ClassNames
                    TrainingImages = scan.Train.Length
                    TestImages = scan.Test.Length
                    Broken = broken
                    Notes = scan.Notes
                    Problems =
                        [|
                            yield! scan.Problems
                            if scan.Train.Length = 0 then
                                "no training image"
                            if scan.Test.Length = 0 then
                                "no test image"
                            if broken.Length > 0 then
                                $"{broken.Length} of {files.Length} image files cannot be decoded"
                        |]
                }
        with :? InputException as e ->
            { empty with
                Problems = [| e.Message |]
            }
