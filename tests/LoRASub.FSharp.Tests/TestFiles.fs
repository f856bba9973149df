/// Small data-set files, and the tables of refusals that the tests of readers share.
module LoRASub.Tests.TestFiles

open System
open System.Buffers.Binary
open System.IO
open System.IO.Compression
open Expecto
open FsCheck.FSharp
open LoRASub
open TorchSharp

let write (folder: string) (name: string) (bytes: byte[]) =
    File.WriteAllBytes(Path.Combine(folder, name), bytes)

let gzip (bytes: byte[]) : byte[] =
    use packed = new MemoryStream()

    do
        use stream = new GZipStream(packed, CompressionLevel.Optimal)
        stream.Write(bytes, 0, bytes.Length)

    packed.ToArray()

/// An IDX file: magic number, axes, elements.
let idx (magic: int) (sizes: int list) (elements: byte[]) : byte[] =
    let number (n: int) =
        let bytes = Array.zeroCreate<byte> 4
        BinaryPrimitives.WriteInt32BigEndian(Span bytes, n)
        bytes

    Array.concat [ yield number magic; yield! List.map number sizes; yield elements ]

/// One row of bad input: what it is, words of its message, and the call, which gets an empty folder.
type BadInput = string * string list * (string -> unit)

/// One test for each row.
let refusals (rows: BadInput list) : Test =
    testList
        "refuses"
        [
            for name, words, call in rows ->
                testCase name (fun () ->
                    Probe.inFolder (fun folder -> Check.refused words (fun () -> call folder)))
        ]

/// A law over FsCheck's own arguments.
let law name (property: 'Case -> unit) : Test =
    Check.propertyWith (ArbMap.defaults |> ArbMap.arbitrary<'Case>) 100 "Data" name property

/// Elements of a tensor of any type, as float.
let numbers (t: torch.Tensor) : float[] =
    Scope.run (fun () -> t.``to``(torch.ScalarType.Float64).cpu().contiguous().data<float>().ToArray())

let bytes (t: torch.Tensor) : byte[] = t.data<byte>().ToArray()

/// n images of `size` equal bytes each: image i is full of i.
let countedPixels (n: int) (size: int) =
    Array.init (n * size) (fun i -> byte (i / size))

/// Whole-batch data for tests of resampling: pixel (x, y) of image i, 0 to 255.
let pattern (n: int) (height: int) (width: int) : torch.Tensor =
    let pixel i y x =
        (x * 37 + y * 91 + (x * y) % 17 * 13 + (x * x * y) % 29 * 5 + i * 53) % 256

    let values =
        [|
            for i in 0 .. n - 1 do
                for y in 0 .. height - 1 do
                    for x in 0 .. width - 1 do
                        single (pixel i y x)
        |]

    Scope.keep Leaves.tensor (fun () -> torch.tensor(values).view(int64 n, 1L, int64 height, int64 width))
