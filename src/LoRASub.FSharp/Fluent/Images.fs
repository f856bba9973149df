namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Data
open TorchSharp

// C# can hand in null where F# cannot.
module internal Given =
    let value (name: string) (value: 'T) =
        if isNull (box value) then
            Errors.reject name "must be given" "null" ""

/// Images with the names of their classes.
[<ReferenceEquality>]
type NamedImages =
    {
        ClassNames: string[]
        /// Labelled by the place of their class in `ClassNames`.
        Images: ImageSet
        /// What was left out, and which links were followed; mostly none.
        Notes: string[]
    }

/// Images for a `ContinualClassifier`.
[<AbstractClass; Sealed>]
type Images =

    /// <summary>Images held in memory.</summary>
    /// <param name="labels">One number per image.</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels.</param>
    /// <param name="width">Pixels.</param>
    /// <param name="pixels">count × channels × height × width bytes, each image plane by plane, row by row;
    /// borrowed.</param>
    /// <returns>The set, which borrows the arrays.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The bytes are of another number, or a size is out of
    /// range.</exception>
    static member FromBytes
        (labels: int[], channels: int, height: int, width: int, pixels: byte[])
        : ImageSet =
        Given.value "labels" labels
        Given.value "pixels" pixels
        ImageSet.ofBytes "images in memory" labels channels height width pixels

    /// <summary>Images read when they are needed, one at a time.</summary>
    /// <param name="labels">One number per image.</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels.</param>
    /// <param name="width">Pixels.</param>
    /// <param name="read">Gives the bytes of the images at the positions it is given, laid out as for
    /// `FromBytes`; may be called from several threads at once.</param>
    /// <returns>The set.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: another number of bytes.</exception>
    static member FromReader
        (labels: int[], channels: int, height: int, width: int, read: Func<int[], byte[]>)
        : ImageSet =
        Given.value "labels" labels
        Given.value "read" read

        (fun position -> read.Invoke [| position |])
        |> ImageSet.ofReader "images from a reader" labels channels height width

    /// <summary>Image files, which may differ in size: JPEG, PNG, WebP, BMP or GIF. They are decoded when
    /// they are needed, and kept in memory up to 2 GiB.</summary>
    /// <param name="labels">One number per file.</param>
    /// <param name="paths">The files.</param>
    /// <returns>The set.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The labels are of another number than the files; or, when an image is
    /// read, its file is missing or damaged.</exception>
    static member FromFiles(labels: IReadOnlyList<int>, paths: IReadOnlyList<string>) : ImageSet =
        Given.value "labels" labels
        Given.value "paths" paths
        paths |> Seq.iter (Given.value "path")

        if labels.Count <> paths.Count then
            Errors.reject "labels" $"must be {paths.Count}, one per file" $"{labels.Count}" ""

        Seq.map2 (fun label path -> ({ Path = path; Label = label }: LabelledFile)) labels paths
        |> Array.ofSeq
        |> ImageFiles.set "image files"

    /// <summary>Image files without labels, for `Predict`.</summary>
    /// <param name="paths">The files.</param>
    /// <returns>The set, with label 0 for each.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: its file is missing or damaged.</exception>
    static member FromFiles(paths: IReadOnlyList<string>) : ImageSet =
        Given.value "paths" paths
        Images.FromFiles(Array.zeroCreate<int> paths.Count, paths)

    /// <summary>The images of a folder that holds a folder for each class, for `Learn`. For folders of train
    /// and test images see `FromDataset("folder", …)`.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>Class names in ordinal order, their images, and notes on what was left out.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder is missing, holds no class, or has a class
    /// without images.</exception>
    static member FromFolder(folder: string) : NamedImages =
        Given.value "folder" folder
        let found = FileScan.require (ImageFolder.all folder)

        {
            ClassNames = found.ClassNames
            Images = ImageFiles.set folder found.Train
            Notes = found.Notes
        }

    /// <summary>The images of some classes of a set.</summary>
    /// <param name="images">The set; borrowed.</param>
    /// <param name="classes">Labels of the set: the first becomes label 0, the next label 1, and so
    /// on.</param>
    /// <returns>The set of these images, in their order.</returns>
    static member OfClasses(images: ImageSet, classes: IReadOnlyList<int>) : ImageSet =
        let labels = Array.ofSeq classes

        let chosen =
            Array.init images.Labels.Length id
            |> Array.filter (fun i -> Array.contains images.Labels[i] labels)

        let set = ImageSet.select chosen images

        { set with
            Labels = set.Labels |> Array.map (fun label -> Array.IndexOf(labels, label))
        }

    /// <summary>One of the data sets known by name.</summary>
    /// <param name="name">One of `Datasets.names`.</param>
    /// <param name="folder">In the published layout of the data set.</param>
    /// <returns>Training and test images with class names.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is not known, or the folder does not hold the data
    /// set.</exception>
    static member FromDataset(name: string, folder: string) : Dataset = Datasets.load name folder
