// Cuts the bundled subset of Fashion-MNIST: the first 300 training and 100 test images of each class, in the original
// order (which mixes the classes), as the four gzip IDX files of the full set. The same input gives the same bytes.
//
//   dotnet fsi scripts/cut-fashion-mnist.fsx FOLDER
//
// FOLDER has the full set. Debian's package dataset-fashion-mnist installs it in /usr/share/datasets/fashion-mnist.

open System
open System.Buffers.Binary
open System.IO
open System.IO.Compression

let target =
    Path.Combine(__SOURCE_DIRECTORY__, "..", "src", "LoRASub.FSharp.Cli", "assets", "fashion-mnist")

let unpack (path: string) =
    use file = File.OpenRead path
    use stream = new GZipStream(file, CompressionMode.Decompress)
    use all = new MemoryStream()
    stream.CopyTo all
    all.ToArray()

/// Writes under a temporary name, flushed to disk, then renamed. The gzip header has no name and no time.
let pack (path: string) (bytes: byte[]) =
    let temporary = path + ".tmp"

    do
        use file = File.Create temporary

        do
            use stream = new GZipStream(file, CompressionLevel.SmallestSize, leaveOpen = true)
            stream.Write(bytes, 0, bytes.Length)

        file.Flush true

    File.Move(temporary, path, overwrite = true)

/// The elements at some positions, `size` bytes each, after a header with the new count.
let pick (file: byte[]) (headerBytes: int) (size: int) (positions: int[]) =
    let header = Array.sub file 0 headerBytes
    BinaryPrimitives.WriteInt32BigEndian(Span(header, 4, 4), positions.Length)

    let elements =
        positions |> Array.map (fun i -> Array.sub file (headerBytes + i * size) size)

    Array.append header (Array.concat elements)

let cut (source: string) (prefix: string) (perClass: int) =
    let images, labels =
        $"{prefix}-images-idx3-ubyte.gz", $"{prefix}-labels-idx1-ubyte.gz"

    let imageBytes = unpack (Path.Combine(source, images))
    let labelBytes = unpack (Path.Combine(source, labels))

    let positions =
        Array.sub labelBytes 8 (labelBytes.Length - 8)
        |> Array.indexed
        |> Array.groupBy snd
        |> Array.collect (snd >> Array.truncate perClass >> Array.map fst)
        |> Array.sort

    pack (Path.Combine(target, images)) (pick imageBytes 16 (28 * 28) positions)
    pack (Path.Combine(target, labels)) (pick labelBytes 8 1 positions)
    printfn $"{prefix}: {positions.Length} images"

match List.tail (Array.toList fsi.CommandLineArgs) with
| [ source ] when Directory.Exists source ->
    Directory.CreateDirectory target |> ignore
    cut source "train" 300
    cut source "t10k" 100
| _ ->
    eprintfn "usage: dotnet fsi scripts/cut-fashion-mnist.fsx FOLDER (which holds the full Fashion-MNIST)"
    exit 2
