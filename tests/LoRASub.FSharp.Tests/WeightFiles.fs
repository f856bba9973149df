/// Byte-exact writers of zip archives, pickles and .npy files, for files that no program would write.
module LoRASub.Tests.WeightFiles

open System
open System.IO
open System.IO.Compression
open System.Text

let private int16 (n: int) = BitConverter.GetBytes(uint16 n)
let private int32 (n: int64) = BitConverter.GetBytes(uint32 n)

/// One bit at a time.
let crc32 (bytes: byte[]) : uint32 =
    let mutable crc = UInt32.MaxValue

    for b in bytes do
        crc <- crc ^^^ uint32 b

        for _ in 1..8 do
            crc <-
                if crc &&& 1u = 1u then
                    (crc >>> 1) ^^^ 0xEDB88320u
                else
                    crc >>> 1

    ~~~crc

/// A member of a zip archive, with what the archive says of it.
type ZipMember =
    {
        Name: string
        Packed: byte[]
        Method: int
        Flags: int
        Size: int64
        Crc: uint32
        /// Of the member whose bytes it claims; None: its own.
        Place: int option
    }

let stored (name: string) (data: byte[]) : ZipMember =
    {
        Name = name
        Packed = data
        Method = 0
        Flags = 0
        Size = int64 data.Length
        Crc = crc32 data
        Place = None
    }

let deflated (name: string) (data: byte[]) : ZipMember =
    use packed = new MemoryStream()

    (use stream = new DeflateStream(packed, CompressionLevel.SmallestSize)
     stream.Write(data, 0, data.Length))

    { stored name data with
        Packed = packed.ToArray()
        Method = 8
    }

let zip (members: ZipMember list) : byte[] =
    use file = new MemoryStream()
    let put (bytes: byte[]) = file.Write(bytes, 0, bytes.Length)

    let common (one: ZipMember) =
        [
            int16 20
            int16 one.Flags
            int16 one.Method
            int32 0L
            int32 (int64 one.Crc)
            int32 one.Packed.Length
            int32 one.Size
            int16 (Encoding.UTF8.GetByteCount one.Name)
            int16 0
        ]
        |> Array.concat

    let places =
        [|
            for one in members do
                let at = file.Position

                if one.Place.IsNone then
                    put "PK\003\004"B
                    put (common one)
                    put (Encoding.UTF8.GetBytes one.Name)
                    put one.Packed

                at
        |]

    let directory = file.Position

    for i, one in List.indexed members do
        put "PK\001\002"B
        put (int16 20)
        put (common one)
        put (Array.zeroCreate 10)
        put (int32 places[defaultArg one.Place i])
        put (Encoding.UTF8.GetBytes one.Name)

    let length = file.Position - directory
    put "PK\005\006"B
    put (int32 0L)
    put (int16 members.Length)
    put (int16 members.Length)
    put (int32 length)
    put (int32 directory)
    put (int16 0)
    file.ToArray()

// ---- pickles

let text (s: string) : byte[] =
    let bytes = Encoding.UTF8.GetBytes s
    Array.concat [ "X"B; int32 bytes.Length; bytes ]

let whole (n: int) : byte[] =
    Array.append "J"B (BitConverter.GetBytes n)

let global' (owner: string) (name: string) : byte[] =
    Encoding.UTF8.GetBytes $"c{owner}\n{name}\n"

let tuple (items: byte[] list) : byte[] =
    Array.concat [ yield "("B; yield! items; yield "t"B ]

let dictionary (pairs: (byte[] * byte[]) list) : byte[] =
    Array.concat
        [
            yield "}("B
            for key, value in pairs do
                yield key
                yield value
            yield "u"B
        ]

let storage (kind: string) (key: string) (count: int) : byte[] =
    Array.append (tuple [ text "storage"; global' "torch" kind; text key; text "cpu"; whole count ]) "Q"B

let tensor (storage: byte[]) (start: int) (shape: int list) (strides: int list) : byte[] =
    Array.concat
        [
            global' "torch._utils" "_rebuild_tensor_v2"
            tuple
                [
                    storage
                    whole start
                    tuple (List.map whole shape)
                    tuple (List.map whole strides)
                    [| 0x89uy |]
                    Array.append (global' "collections" "OrderedDict") ")R"B
                ]
            "R"B
        ]

let pickle (value: byte[]) : byte[] =
    Array.concat [ [| 0x80uy; 2uy |]; value; "."B ]

/// A PyTorch archive of a pickle and one storage of 16 bytes.
let torchFile (value: byte[]) : byte[] =
    zip [ stored "a/data.pkl" (pickle value); stored "a/data/0" (Array.zeroCreate 16) ]

// ---- arrays

let npyOf (header: string) (data: byte[]) : byte[] =
    Array.concat
        [
            [| 0x93uy |]
            "NUMPY\001\000"B
            int16 (header.Length + 1)
            Encoding.Latin1.GetBytes(header + "\n")
            data
        ]

let npy (descr: string) (shape: string) (bytes: int) : byte[] =
    npyOf $"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}" (Array.zeroCreate bytes)
