namespace LoRASub.Fluent

open System
open System.Collections.Generic
open System.IO
open System.Runtime.InteropServices
open System.Threading
open System.Threading.Tasks
open LoRASub.Core
open LoRASub.Data

/// Images for a `ContinualClassifier`, each with a label. Immutable, and safe to use from several threads. Image files are
/// read when they are needed.
[<Sealed>]
type ImageCollection internal (set: ImageSet, classNames: string[], notes: string[]) =
    member internal _.Set = set

    /// <summary>How many images.</summary>
    member _.Count: int = set.Labels.Length

    /// <summary>The label of each image: the place of its class in `ClassNames`. 0 for images without labels.</summary>
    member _.Labels: IReadOnlyList<int> = set.Labels

    /// <summary>The name of each label; empty where the images have no names.</summary>
    member _.ClassNames: IReadOnlyList<string> = classNames

    /// <summary>What was left out, and which links were followed; mostly none.</summary>
    member _.Notes: IReadOnlyList<string> = notes

    /// <summary>The same images with other names.</summary>
    /// <param name="classNames">The name of each label: one name makes all images without labels images of that
    /// class.</param>
    /// <returns>The collection.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A name is null.</exception>
    member _.WithClasses([<ParamArray>] classNames: string[]) : ImageCollection =
        Given.value "class names" classNames
        classNames |> Array.iter (Given.value "class name")
        ImageCollection(set, classNames, notes)

    /// <summary>Some of the images, in that order.</summary>
    /// <param name="positions">Positions from 0; repeats are allowed.</param>
    /// <returns>A collection as long as the positions.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A position is not that of an image.</exception>
    member _.Select(positions: IReadOnlyList<int>) : ImageCollection =
        Given.value "positions" positions
        let positions = Array.ofSeq positions
        positions |> Array.iter (ImageSet.requirePosition set.Source set.Labels.Length)
        ImageCollection(ImageSet.select positions set, classNames, notes)

/// A data set known by name.
[<Sealed>]
type ImageDataset internal (dataset: Dataset) =
    let part (set: ImageSet) =
        ImageCollection(set, dataset.ClassNames, [||])

    /// <summary>The images that are learned.</summary>
    member _.Train: ImageCollection = part dataset.Train

    /// <summary>The images that are predicted.</summary>
    member _.Test: ImageCollection = part dataset.Test

    /// <summary>The name of each label.</summary>
    member _.ClassNames: IReadOnlyList<string> = dataset.ClassNames

    /// <summary>What was left out, and which links were followed; mostly none.</summary>
    member _.Notes: IReadOnlyList<string> = dataset.Notes

/// The bytes of one encoded image, up to a limit.
type internal ImageBytes(limit: int64) =
    inherit MemoryStream()

    let require (length: int64) =
        if length > limit then
            Errors.reject "stream" $"must hold an image of at most {limit} bytes" "more" ""

    override this.Write(buffer: byte[], offset: int, count: int) =
        require (this.Length + int64 count)
        base.Write(buffer, offset, count)

    override this.Write(buffer: ReadOnlySpan<byte>) =
        require (this.Length + int64 buffer.Length)
        base.Write buffer

/// Makes images for a `ContinualClassifier`.
[<AbstractClass; Sealed>]
type Images =

    static let plain (set: ImageSet) = ImageCollection(set, [||], [||])

    static let encoded (labels: int[]) (images: ReadOnlyMemory<byte>[]) =
        let source = if images.Length = 1 then "image" else "encoded images"

        plain
            {
                Source = source
                Labels = labels
                Read =
                    fun i ->
                        ImageSet.requirePosition source images.Length i
                        ImageFile.decode (if images.Length = 1 then source else $"image {i + 1}") images[i]
            }

    static let require (labels: IReadOnlyList<int>) (count: int) =
        if labels.Count <> count then
            Errors.reject "labels" $"must be {count}, one per image" $"{labels.Count}" ""

    /// <summary>Images held in memory.</summary>
    /// <param name="labels">One number per image.</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels.</param>
    /// <param name="width">Pixels.</param>
    /// <param name="pixels">count × channels × height × width bytes, each image plane by plane, row by row;
    /// borrowed.</param>
    /// <returns>The images, which borrow the arrays.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There are more or fewer bytes, or a size is out of
    /// range.</exception>
    static member FromBytes
        (labels: int[], channels: int, height: int, width: int, pixels: byte[])
        : ImageCollection =
        Given.value "labels" labels
        Given.value "pixels" pixels
        plain (ImageSet.ofBytes "images in memory" labels channels height width pixels)

    /// <summary>Images read when they are needed, one at a time.</summary>
    /// <param name="labels">One number per image.</param>
    /// <param name="channels">1 (grey) or 3 (RGB).</param>
    /// <param name="height">Pixels.</param>
    /// <param name="width">Pixels.</param>
    /// <param name="read">Gives the bytes of the images at the positions it is given, laid out as for
    /// `FromBytes`; may be called from several threads at once.</param>
    /// <returns>The images.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: another number of bytes.</exception>
    static member FromReader
        (labels: int[], channels: int, height: int, width: int, read: Func<int[], byte[]>)
        : ImageCollection =
        Given.value "labels" labels
        Given.value "read" read

        (fun position -> read.Invoke [| position |])
        |> ImageSet.ofReader "images from a reader" labels channels height width
        |> plain

    /// <summary>Encoded images in memory, as files hold them: JPEG, PNG, WebP, BMP or GIF of any size. They are decoded
    /// when they are needed.</summary>
    /// <param name="labels">One number per image.</param>
    /// <param name="images">The bytes of each; borrowed.</param>
    /// <returns>The images.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There are not as many labels as images; or, when an image is
    /// read, it is damaged, of another format, or has more than 100 million pixels.</exception>
    static member FromEncoded(labels: IReadOnlyList<int>, images: IReadOnlyList<byte[]>) : ImageCollection =
        Given.value "labels" labels
        Given.value "images" images
        images |> Seq.iter (Given.value "image")
        require labels images.Count
        encoded (Array.ofSeq labels) [| for image in images -> ReadOnlyMemory image |]

    /// <summary>Encoded images in memory without labels: for `Predict`, or with `WithClasses` of one class.</summary>
    /// <param name="images">The bytes of each; borrowed.</param>
    /// <returns>The images, with label 0 for each.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: it is damaged, of another format, or has more
    /// than 100 million pixels.</exception>
    static member FromEncoded([<ParamArray>] images: byte[][]) : ImageCollection =
        Given.value "images" images
        Images.FromEncoded(Array.zeroCreate<int> images.Length, images)

    static member internal OfMemory(image: ReadOnlyMemory<byte>) : ImageCollection =
        encoded [| 0 |] [| image |]

    /// <summary>The encoded image that is the rest of a stream.</summary>
    /// <param name="stream">Read to its end; not closed.</param>
    /// <returns>The image, with label 0, which does not need the stream.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The stream holds more than 1 GB. When the image is read, as for
    /// `FromEncoded`.</exception>
    static member FromStream(stream: Stream) : ImageCollection =
        Given.value "stream" stream
        use bytes = new ImageBytes(ImageFile.MaxBytes)
        stream.CopyTo bytes
        Images.FromEncoded(bytes.ToArray())

    /// <summary>As `FromStream`, for streams that are read without blocking, such as the body of a web request.</summary>
    /// <param name="stream">Read to its end; not closed.</param>
    /// <param name="cancellationToken">Ends the reading.</param>
    /// <returns>The image, with label 0, which does not need the stream.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The stream holds more than 1 GB. When the image is read, as for
    /// `FromEncoded`.</exception>
    static member FromStreamAsync
        (stream: Stream, [<Optional>] cancellationToken: CancellationToken)
        : Task<ImageCollection> =
        Given.value "stream" stream

        backgroundTask {
            use bytes = new ImageBytes(ImageFile.MaxBytes)
            do! stream.CopyToAsync(bytes, cancellationToken)
            return Images.FromEncoded(bytes.ToArray())
        }

    /// <summary>Image files, which may differ in size: JPEG, PNG, WebP, BMP or GIF. They are decoded when
    /// they are needed, and kept in memory up to 2 GiB.</summary>
    /// <param name="labels">One number per file.</param>
    /// <param name="paths">The files.</param>
    /// <returns>The images.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There are not as many labels as files; or, when an image is
    /// read, its file is missing or damaged.</exception>
    static member FromFiles(labels: IReadOnlyList<int>, paths: IReadOnlyList<string>) : ImageCollection =
        Given.value "labels" labels
        Given.value "paths" paths
        paths |> Seq.iter (Given.text "path")
        require labels paths.Count

        Seq.map2 (fun label path -> ({ Path = path; Label = label }: LabelledFile)) labels paths
        |> Array.ofSeq
        |> ImageFiles.set "image files"
        |> plain

    /// <summary>Image files without labels: for `Predict`, or with `WithClasses` of one class.</summary>
    /// <param name="paths">The files.</param>
    /// <returns>The images, with label 0 for each.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When an image is read: its file is missing or damaged.</exception>
    static member FromFiles(paths: IReadOnlyList<string>) : ImageCollection =
        Given.value "paths" paths
        Images.FromFiles(Array.zeroCreate<int> paths.Count, paths)

    /// <summary>The images of a folder that holds a folder for each class, for `Learn` and `Evaluate`. For folders of train
    /// and test images see `FromDataset("folder", …)`.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>Images with class names in ordinal order, and notes on what was left out.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The folder is missing, holds no class, or has a class
    /// without images.</exception>
    static member FromFolder(folder: string) : ImageCollection =
        Given.text "folder" folder
        let found = FileScan.require (ImageFolder.all folder)
        ImageCollection(ImageFiles.set folder found.Train, found.ClassNames, found.Notes)

    /// <summary>The images of some classes.</summary>
    /// <param name="images">Borrowed.</param>
    /// <param name="classes">Labels of the images: the first becomes label 0, the next label 1, and so
    /// on.</param>
    /// <returns>These images in their order, with their names.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The images have names, and a label is not that of a
    /// name.</exception>
    static member OfClasses(images: ImageCollection, classes: IReadOnlyList<int>) : ImageCollection =
        Given.value "images" images
        Given.value "classes" classes
        let labels, names = Array.ofSeq classes, images.ClassNames

        if names.Count > 0 then
            ImageSet.requireLabels "classes" names.Count labels

        ImageCollection(
            ImageSet.ofLabels labels images.Set,
            (if names.Count > 0 then
                 labels |> Array.map (fun label -> names[label])
             else
                 [||]),
            [| yield! images.Notes |]
        )

    /// <summary>One of the data sets known by name.</summary>
    /// <param name="name">One of `Datasets.names`.</param>
    /// <param name="folder">In the published layout of the data set.</param>
    /// <returns>Training and test images with class names.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The name is not known, or the folder does not hold the data
    /// set.</exception>
    static member FromDataset(name: string, folder: string) : ImageDataset =
        Given.value "name" name
        Given.text "folder" folder
        ImageDataset(Datasets.load name folder)
