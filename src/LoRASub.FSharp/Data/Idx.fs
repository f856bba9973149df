namespace LoRASub.Data

open System
open System.Buffers.Binary
open System.IO
open System.IO.Compression
open LoRASub.Core

/// The IDX format of MNIST and Fashion-MNIST, plain or gzip: two zero bytes, the element type (8: uint8), the number
/// of axes, each axis as a big-endian int32, then the elements. Source: http://yann.lecun.com/exdb/mnist/.
[<RequireQualifiedAccess>]
module internal Idx =

    let mnistClasses = Array.init 10 string

    let fashionMnistClasses =
        [|
            "T-shirt/top"
            "Trouser"
            "Pullover"
            "Dress"
            "Coat"
            "Sandal"
            "Shirt"
            "Sneaker"
            "Bag"
            "Ankle boot"
        |]

    let private isGzip (stream: Stream) =
        let first = stream.ReadByte()
        let second = stream.ReadByte()
        stream.Position <- 0L
        first = 0x1F && second = 0x8B

    let private readUpTo (stream: Stream) (count: int) =
        let bytes = Array.zeroCreate<byte> count
        struct (bytes, stream.ReadAtLeast(Span bytes, count, throwOnEndOfStream = false))

    /// Axes and elements of an opened, decompressed file that must have as many axes as `axes` names.
    let private parse (path: string) (axes: string list) (stream: Stream) : struct (int[] * byte[]) =
        let struct (header, got) = readUpTo stream (4 + 4 * axes.Length)
        let magic = 0x0800 + axes.Length
        let shape = String.concat " x " axes

        if got < 4 || BinaryPrimitives.ReadInt32BigEndian(ReadOnlySpan header) <> magic then
            let found =
                if got = 0 then
                    "no bytes"
                else
                    "0x" + Convert.ToHexString(header, 0, min got 4)

            Errors.reject path $"must begin with 0x{magic:X8} (uint8, {shape})" found ""

        if got < header.Length then
            Errors.reject
                path
                $"must have a header of {header.Length} bytes"
                $"{got} bytes"
                "the file is truncated"

        let sizes =
            axes
            |> List.mapi (fun i _ -> BinaryPrimitives.ReadInt32BigEndian(ReadOnlySpan(header, 4 + 4 * i, 4)))

        let sizesText = sizes |> List.map string |> String.concat " x "
        let count = sizes |> List.fold (fun product size -> product * float size) 1.0

        if List.exists (fun size -> size < 1) sizes || count > float Array.MaxLength then
            let rule =
                $"each axis of {shape} must be at least 1 and their product at most {Array.MaxLength}"

            Errors.reject path rule sizesText ""

        let struct (elements, got) = readUpTo stream (int count)

        if got < elements.Length then
            Errors.reject
                path
                $"{sizesText} elements need {elements.Length} bytes"
                $"{got}"
                "the file is truncated"

        if stream.ReadByte() >= 0 then
            Errors.reject path $"must end after its {elements.Length} elements" "more bytes" ""

        struct (List.toArray sizes, elements)

    /// The decoder is content with a stream that lacks its end, which holds the length.
    let private requireGzipEnd (path: string) (length: int) (stream: Stream) =
        stream.Seek(-4L, SeekOrigin.End) |> ignore
        let struct (stated, _) = readUpTo stream 4

        if BinaryPrimitives.ReadInt32LittleEndian(ReadOnlySpan stated) <> length then
            Errors.reject
                path
                $"gzip data must end with their length, {length}"
                "other bytes"
                "the file is damaged"

    let private read (dataset: string) (axes: string list) (folder: string) (name: string) =
        let path = DataFile.find dataset folder [ name; name + ".gz" ]

        DataFile.openRead path (fun stream ->
            if isGzip stream then
                use unpacked = new GZipStream(stream, CompressionMode.Decompress, leaveOpen = true)
                let struct (sizes, elements) = parse path axes unpacked
                requireGzipEnd path (4 + 4 * axes.Length + elements.Length) stream
                struct (path, struct (sizes, elements))
            elif path.EndsWith ".gz" then
                Errors.reject
                    path
                    "a .gz file must be gzip data"
                    "something else"
                    "unpacked, it has no .gz in its name"
            else
                struct (path, parse path axes stream))

    let private split dataset classes folder imagesName labelsName =
        let struct (imagesPath, struct (sizes, pixels)) =
            read dataset [ "images"; "rows"; "columns" ] folder imagesName

        let struct (labelsPath, struct (_, labels)) =
            read dataset [ "labels" ] folder labelsName

        if labels.Length <> sizes[0] then
            Errors.reject
                labelsPath
                $"must have one label for each of the {sizes[0]} images of {imagesPath}"
                $"{labels.Length}"
                ""

        let labels = Array.map int labels
        ImageSet.requireLabels labelsPath classes labels
        struct (ImageSet.ofBytes imagesPath labels 1 sizes[1] sizes[2] pixels, sizes)

    /// Reads the four files of an MNIST-like data set (train-images-idx3-ubyte and so on, each plain or as .gz) from a
    /// folder, as grey images [n, 1, H, W].
    let load (name: string) (classNames: string[]) (folder: string) : Dataset =
        let split = split name classNames.Length folder

        let struct (train, trainSizes) =
            split "train-images-idx3-ubyte" "train-labels-idx1-ubyte"

        let struct (test, testSizes) =
            split "t10k-images-idx3-ubyte" "t10k-labels-idx1-ubyte"

        if trainSizes[1..] <> testSizes[1..] then
            let rule =
                $"test images must be {trainSizes[1]} x {trainSizes[2]}, as the training images are"

            Errors.reject test.Source rule $"{testSizes[1]} x {testSizes[2]}" ""

        Dataset.validate (Dataset.create name classNames train test)
