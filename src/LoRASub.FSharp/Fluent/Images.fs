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

    /// Images held in memory: `pixels` holds count × channels × height × width bytes, each image plane by plane, row
    /// by row; channels is 1 (grey) or 3 (RGB); `labels` holds one number per image. Borrows the arrays.
    static member FromBytes
        (labels: int[], channels: int, height: int, width: int, pixels: byte[])
        : ImageSet =
        Given.value "labels" labels
        Given.value "pixels" pixels
        ImageSet.ofBytes "images in memory" labels channels height width pixels

    /// Images read when they are needed, one at a time: `read` gives the bytes of the images at the positions it is given,
    /// laid out as for `FromBytes`, and may be called from several threads at once.
    static member FromReader
        (labels: int[], channels: int, height: int, width: int, read: Func<int[], byte[]>)
        : ImageSet =
        Given.value "labels" labels
        Given.value "read" read

        (fun position -> read.Invoke [| position |])
        |> ImageSet.ofReader "images from a reader" labels channels height width

    /// Image files, which may differ in size: JPEG, PNG, WebP, BMP or GIF. They are decoded when they are needed, and kept in
    /// memory up to 2 GiB. `labels` holds one number per file.
    static member FromFiles(labels: IReadOnlyList<int>, paths: IReadOnlyList<string>) : ImageSet =
        Given.value "labels" labels
        Given.value "paths" paths
        paths |> Seq.iter (Given.value "path")

        if labels.Count <> paths.Count then
            Errors.reject "labels" $"must be {paths.Count}, one per file" $"{labels.Count}" ""

        Seq.map2 (fun label path -> ({ Path = path; Label = label }: LabelledFile)) labels paths
        |> Array.ofSeq
        |> ImageFiles.set "image files"

    /// Image files without labels, for `Predict`.
    static member FromFiles(paths: IReadOnlyList<string>) : ImageSet =
        Given.value "paths" paths
        Images.FromFiles(Array.zeroCreate<int> paths.Count, paths)

    /// The images of a folder that holds a folder for each class, for `Learn`; names in ordinal order. For folders of
    /// train and test images see `FromDataset("folder", …)`.
    static member FromFolder(folder: string) : NamedImages =
        Given.value "folder" folder
        let found = FileScan.require (ImageFolder.all folder)

        {
            ClassNames = found.ClassNames
            Images = ImageFiles.set folder found.Train
            Notes = found.Notes
        }

    /// The images of some classes of a set; the first of `classes` becomes label 0, the next label 1, and so on.
    static member OfClasses(images: ImageSet, classes: IReadOnlyList<int>) : ImageSet =
        let labels = Array.ofSeq classes

        let chosen =
            Array.init images.Labels.Length id
            |> Array.filter (fun i -> Array.contains images.Labels[i] labels)

        let set = ImageSet.select chosen images

        { set with
            Labels = set.Labels |> Array.map (fun label -> Array.IndexOf(labels, label))
        }

    /// One of the data sets known by name (see Datasets.names), from a folder in its published layout.
    static member FromDataset(name: string, folder: string) : Dataset = Datasets.load name folder
