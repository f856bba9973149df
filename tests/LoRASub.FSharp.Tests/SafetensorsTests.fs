module LoRASub.Tests.SafetensorsTests

open System
open System.Buffers.Binary
open System.IO
open System.Runtime.InteropServices
open System.Text
open LoRASub.Core
open LoRASub.Files
open Expecto
open FsCheck
open FsCheck.FSharp
open LoRASub.Tests.Probe
open TorchSharp

/// Cuts a file, even one that this process has open.
[<DllImport("libc")>]
extern int private truncate(string path, int64 length)

let private prefixed (length: uint64) (rest: byte[]) =
    let prefix = Array.zeroCreate<byte> 8
    BinaryPrimitives.WriteUInt64LittleEndian(Span prefix, length)
    Array.append prefix rest

let private fileOf (header: byte[]) (data: byte[]) =
    prefixed (uint64 header.Length) (Array.append header data)

/// A file with this header and so many zero bytes of data.
let private withHeader (header: string) (data: int) =
    fileOf (Encoding.UTF8.GetBytes header) (Array.zeroCreate data)

let private one dtype shape first last =
    $"""{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{first},{last}]}}}}"""

let private nested depth =
    String.replicate depth "[" + String.replicate depth "]"

let private ones count =
    "[" + String.concat "," (List.replicate count "1") + "]"

/// Name, bytes, and what the message must say besides the file's path.
let private malformed: (string * byte[] * string list) list =
    [
        "an empty file", [||], [ "must be a safetensors file"; "found an empty file" ]
        "seven bytes", Array.zeroCreate 7, [ "at least 8 bytes"; "found 7" ]
        "a header of no bytes", prefixed 0UL [||], [ "starts with '{'"; "nothing" ]
        "a header longer than the file", prefixed 3UL "{}"B, [ "must hold its header of 3 bytes"; "found 2" ]
        "a header of 2^63 bytes", prefixed (1UL <<< 63) "{}"B, [ "length of 9223372036854775808" ]
        "a header of 2^64 - 1 bytes", prefixed UInt64.MaxValue "{}"B, [ "length of 18446744073709551615" ]
        "a header that is not UTF-8", fileOf [| byte '{'; 0xFFuy; byte '}' |] [||], [ "UTF-8" ]
        "a header after a byte order mark", withHeader "\uFEFF{}" 0, [ "starts with '{'"; "239" ]
        "a header after a space", withHeader " {}" 0, [ "starts with '{'"; "32" ]
        "a header of no meaning", prefixed 99UL "no"B, [ "header of at most 2"; "length of 99" ]
        "a header that is cut short",
        prefixed 100UL """{"w":{"dtype":"""B,
        [ "must hold its header of 100 bytes"; "found 14"; "download it again" ]
        for bytes, name, advice in FileKindTests.kinds do
            if bytes.Length > 0 then
                $"{name} in its place", bytes, [ "must be a safetensors file"; $"found "; name; advice ]
        // without a time stamp, gzip begins as a short header would
        "a large gzip archive",
        Array.append [| 0x1Fuy; 0x8Buy; 8uy; 0uy; 0uy; 0uy; 0uy; 0uy |] (Array.create 600_000 0xFFuy),
        [ "found a gzip archive" ]
        "a header that is not JSON", withHeader "{w}" 0, [ "JSON" ]
        "a header that stops in the middle", withHeader """{"w":{"dtype":""" 0, [ "JSON" ]
        "text after the JSON", withHeader "{} x" 0, [ "JSON" ]
        "a list as header", withHeader "[]" 0, [ "starts with '{'" ]
        "a deep header", withHeader ("""{"w":""" + nested 100_000 + "}") 0, [ "3 levels" ]
        "a name given twice",
        withHeader
            """{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"""
            2,
        [ "'w' twice" ]
        "metadata given twice",
        withHeader """{"__metadata__":{},"__metadata__":{}}""" 0,
        [ "'__metadata__' twice" ]
        "a field given twice",
        withHeader """{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}""" 1,
        [ "tensor 'w'"; "'dtype' twice" ]
        "half a surrogate pair as name", withHeader """{"\ud800":{}}""" 0, [ "Unicode" ]
        "a number as entry", withHeader """{"w":1}""" 0, [ "tensor 'w'"; "JSON object" ]
        "null as entry", withHeader """{"w":null}""" 0, [ "tensor 'w'"; "JSON object" ]
        "no dtype",
        withHeader """{"w":{"shape":[1],"data_offsets":[0,1]}}""" 1,
        [ "tensor 'w'"; "no 'dtype'" ]
        "no shape",
        withHeader """{"w":{"dtype":"U8","data_offsets":[0,1]}}""" 1,
        [ "tensor 'w'"; "no 'shape'" ]
        "no offsets",
        withHeader """{"w":{"dtype":"U8","shape":[1]}}""" 1,
        [ "tensor 'w'"; "no 'data_offsets'" ]
        "an unknown dtype", withHeader (one "F8_E4M3" "[1]" 0 1) 1, [ "tensor 'w'"; "BF16"; "F8_E4M3" ]
        "a dtype in small letters", withHeader (one "f32" "[1]" 0 4) 4, [ "tensor 'w'"; "found f32" ]
        "a number as dtype",
        withHeader """{"w":{"dtype":4,"shape":[1],"data_offsets":[0,1]}}""" 1,
        [ "tensor 'w'"; "string" ]
        "a number as shape", withHeader (one "U8" "1" 0 1) 1, [ "tensor 'w'"; "'shape'"; "found 1" ]
        "a negative size", withHeader (one "U8" "[-1]" 0 1) 1, [ "tensor 'w'"; "'shape'"; "found -1" ]
        "two negative sizes", withHeader (one "U8" "[-1,-1]" 0 1) 1, [ "tensor 'w'"; "'shape'"; "found -1" ]
        "a fractional size", withHeader (one "U8" "[1.5]" 0 1) 1, [ "tensor 'w'"; "'shape'"; "found 1.5" ]
        "a size with an exponent",
        withHeader (one "U8" "[1e0]" 0 1) 1,
        [ "tensor 'w'"; "'shape'"; "found 1e0" ]
        "a text as size", withHeader (one "U8" "[\"1\"]" 0 1) 1, [ "tensor 'w'"; "'shape'" ]
        "a size above 2^63", withHeader (one "U8" "[18446744073709551615]" 0 1) 1, [ "tensor 'w'"; "'shape'" ]
        "a list as size", withHeader (one "U8" "[[1]]" 0 1) 1, [ "3 levels" ]
        "65 axes", withHeader (one "U8" (ones 65) 0 1) 1, [ "tensor 'w'"; "64 axes"; "found 65" ]
        "a product above 2^63",
        withHeader (one "U8" "[4294967296,4294967296]" 0 1) 1,
        [ "tensor 'w'"; "2^63" ]
        "a product that wraps to 0",
        withHeader (one "F32" "[4611686018427387904,4]" 0 0) 0,
        [ "tensor 'w'"; "2^63" ]
        "bytes above 2^63", withHeader (one "F64" "[2305843009213693952]" 0 8) 8, [ "tensor 'w'"; "2^63" ]
        "a product above 2^63 beside a zero",
        withHeader (one "U8" "[0,4294967296,4294967296]" 0 0) 0,
        [ "tensor 'w'"; "2^63" ]
        "fewer bytes than the shape says",
        withHeader (one "F32" "[2]" 0 4) 4,
        [ "tensor 'w'"; "8 bytes"; "found 4" ]
        "more bytes than the shape says",
        withHeader (one "F32" "[2]" 0 12) 12,
        [ "tensor 'w'"; "8 bytes"; "found 12" ]
        "no bytes for a scalar", withHeader (one "F32" "[]" 0 0) 0, [ "tensor 'w'"; "4 bytes"; "found 0" ]
        "bytes for an empty shape", withHeader (one "F32" "[0]" 0 4) 4, [ "tensor 'w'"; "0 bytes"; "found 4" ]
        "one offset",
        withHeader """{"w":{"dtype":"U8","shape":[1],"data_offsets":[1]}}""" 1,
        [ "tensor 'w'"; "two offsets"; "[1]" ]
        "three offsets",
        withHeader """{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}""" 1,
        [ "tensor 'w'"; "two offsets"; "[0, 1, 2]" ]
        "offsets in the wrong order",
        withHeader (one "U8" "[1]" 1 0) 1,
        [ "tensor 'w'"; "two offsets"; "[1, 0]" ]
        "a negative offset",
        withHeader (one "U8" "[1]" -1 0) 1,
        [ "tensor 'w'"; "'data_offsets'"; "found -1" ]
        "a fractional offset",
        withHeader """{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1.0]}}""" 1,
        [ "tensor 'w'"; "'data_offsets'"; "found 1.0" ]
        "data cut short",
        withHeader (one "F32" "[2]" 0 8) 7,
        [ "tensor 'w'"; "7 bytes of data"; "bytes 0 to 8" ]
        "data cut off", withHeader (one "F32" "[2]" 0 8) 0, [ "tensor 'w'"; "0 bytes of data" ]
        "a huge tensor in a small file",
        withHeader (one "U8" "[9000000000000000000]" 0 9000000000000000000L) 8,
        [ "tensor 'w'"; "8 bytes of data" ]
        "offsets at the end of int64",
        withHeader (one "U8" "[1]" 9223372036854775806L 9223372036854775807L) 8,
        [ "tensor 'w'"; "8 bytes of data" ]
        "a hole before a tensor",
        withHeader (one "U8" "[1]" 1 2) 2,
        [ "tensor 'w'"; "start at byte 0"; "found 1" ]
        "a hole between tensors",
        withHeader
            """{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"""
            3,
        [ "tensor 'w'"; "start at byte 1"; "found 2" ]
        "tensors that overlap",
        withHeader
            """{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"""
            3,
        [ "tensor 'w'"; "start at byte 2"; "found 1" ]
        "tensors that share their bytes",
        withHeader
            """{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"""
            2,
        [ "start at byte 2"; "found 0" ]
        "data after the last tensor", withHeader (one "U8" "[1]" 0 1) 2, [ "after 1 bytes"; "found 2" ]
        "data without tensors", withHeader "{}" 1, [ "after 0 bytes"; "found 1" ]
        "a list as metadata", withHeader """{"__metadata__":[]}""" 0, [ "__metadata__"; "JSON object" ]
        "a number in the metadata",
        withHeader """{"__metadata__":{"heads":3}}""" 0,
        [ "'heads'"; "string"; "found 3" ]
        "null in the metadata", withHeader """{"__metadata__":{"heads":null}}""" 0, [ "'heads'"; "string" ]
        "an object in the metadata", withHeader """{"__metadata__":{"a":{}}}""" 0, [ "'a'"; "string" ]
        "half a surrogate pair in the metadata",
        withHeader """{"__metadata__":{"a":"\ud800"}}""" 0,
        [ "'a'"; "string" ]
    ]

let private types =
    [
        torch.ScalarType.Float64
        torch.ScalarType.Float32
        torch.ScalarType.Float16
        torch.ScalarType.BFloat16
        torch.ScalarType.Int64
        torch.ScalarType.Int32
        torch.ScalarType.Byte
        torch.ScalarType.Bool
    ]

/// A tensor of any bit pattern: NaN, infinities and denormals come too.
let private anyBits (dtype: torch.ScalarType) (shape: int64[]) (seed: int) =
    let tensor = torch.zeros (shape, dtype = dtype)
    let bytes = tensor.bytes
    Random(seed).NextBytes bytes

    if dtype = torch.ScalarType.Bool then
        for i in 0 .. bytes.Length - 1 do
            bytes[i] <- bytes[i] &&& 1uy

    Generators.place tensor

let private specs =
    gen {
        let! names = Gen.listOf (ArbMap.defaults |> ArbMap.generate<UnicodeString>)
        // halves of surrogate pairs are refused: see below
        let isText name = not (Seq.exists Char.IsSurrogate name)
        let names = names |> List.map _.Get |> List.distinct |> List.filter isText

        return!
            names
            |> List.map (fun name ->
                gen {
                    let! dtype = Gen.elements types
                    let! axes = Gen.choose (0, 4)
                    let! shape = Gen.arrayOfLength axes (Gen.choose (0, 4) |> Gen.map int64)
                    let! seed = Gen.choose (0, 1_000_000)
                    return name, dtype, shape, seed
                })
            |> Gen.sequenceToList
    }

let private quick =
    { FsCheckConfig.defaultConfig with
        maxTest = 60
    }

let private roundTrip (specs: (string * torch.ScalarType * int64[] * int) list) =
    inFolder (fun folder ->
        use _ = torch.NewDisposeScope()
        let path = Path.Combine(folder, "a.safetensors")

        let metadata =
            specs |> List.map (fun (name, dtype, _, _) -> name, string dtype) |> Map.ofList

        let written =
            [
                for name, dtype, shape, seed in specs do
                    let tensor = anyBits dtype shape seed
                    // every second one in a layout that is not contiguous
                    name,
                    (if seed % 2 = 0 && shape.Length > 1 then
                         tensor.transpose (0L, 1L)
                     else
                         tensor)
            ]

        Safetensors.write path metadata written
        let header = Safetensors.header path

        Expect.equal
            (header.Entries |> Array.map _.Name |> List.ofArray |> List.sort)
            (written |> List.map fst |> List.sort)
            "names"

        Expect.equal header.Metadata metadata "metadata"
        let file = Safetensors.read path
        Expect.equal file.Tensors.Count written.Length "number of tensors"

        for name, tensor in written do
            let found = file.Tensors[name]
            Expect.equal found.dtype tensor.dtype "dtype"
            Expect.equal found.shape tensor.shape "shape"
            Expect.equal (bytesOf found) (bytesOf tensor) "bytes"

        let again = Path.Combine(folder, "b.safetensors")
        Safetensors.write again metadata written
        Expect.equal (File.ReadAllBytes again) (File.ReadAllBytes path) "the same input gives the same bytes")

let private sample path =
    Scope.run (fun () ->
        Safetensors.write
            path
            (Map.ofList [ "heads", "3" ])
            [
                "a", torch.arange(Scalar.op_Implicit 6.0f).reshape(2L, 3L)
                "b", torch.zeros ([| 0L; 6L |], dtype = torch.ScalarType.Float64)
                "c", torch.tensor 7L
                "d", torch.tensor [| true; false |]
            ])

let private sampleBytes =
    lazy
        (inFolder (fun folder ->
            let path = Path.Combine(folder, "a.safetensors")
            sample path
            File.ReadAllBytes path))

let private bitPatterns =
    [
        "BF16", 0x3F80us, 1.0f
        "BF16", 0xBF80us, -1.0f
        "BF16", 0x4049us, 3.140625f
        "BF16", 0x7F7Fus, 3.3895314e38f
        "BF16", 0x0080us, 1.17549435e-38f
        "BF16", 0x7F80us, infinityf
        "F16", 0x3C00us, 1.0f
        "F16", 0xC000us, -2.0f
        "F16", 0x3555us, 0.33325195f
        "F16", 0x7BFFus, 65504.0f
        "F16", 0x0001us, 5.9604645e-8f
        "F16", 0xFC00us, -infinityf
    ]

let private refusedNames =
    [
        "a name given twice",
        (fun () -> [ "w", torch.ones 1L; "w", torch.ones 1L ]),
        [ "tensor 'w'"; "2 times" ]
        "the format's own name", (fun () -> [ "__metadata__", torch.ones 1L ]), [ "__metadata__" ]
        "half a surrogate pair", (fun () -> [ string (char 0xD800), torch.ones 1L ]), [ "Unicode" ]
        "complex numbers",
        (fun () -> [ "w", torch.zeros (1L, dtype = torch.ScalarType.ComplexFloat32) ]),
        [ "tensor 'w'"; "ComplexFloat32" ]
        "a sparse tensor", (fun () -> [ "w", torch.ones(2L, 2L).to_sparse() ]), [ "tensor 'w'"; "sparse" ]
        "a tensor without values",
        (fun () -> [ "w", torch.ones (2L, device = torch.META) ]),
        [ "tensor 'w'"; "meta" ]
    ]

[<Tests>]
let tests =
    testList
        "Safetensors"
        [
            testPropertyWithConfig quick "what is written is read, bit by bit" (fun () ->
                Prop.forAll (Arb.fromGen specs) roundTrip)

            testCase "the file's bytes are the format's" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")

                    Scope.run (fun () ->
                        Safetensors.write
                            path
                            (Map.ofList [ "z", "é"; "a", "\"" ])
                            [ "w", torch.tensor [| 1.0f; -2.0f |]; "b", torch.tensor 1uy ])

                    let header =
                        """{"__metadata__":{"a":"\"","z":"é"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}"""

                    let bytes = Encoding.UTF8.GetBytes header

                    let padded =
                        Array.append bytes (Array.create ((8 - bytes.Length % 8) % 8) (byte ' '))

                    let data = [| 0uy; 0uy; 0x80uy; 0x3Fuy; 0uy; 0uy; 0uy; 0xC0uy; 1uy |]
                    Expect.equal (File.ReadAllBytes path) (fileOf padded data) "bytes"))

            testList
                "16-bit floats"
                [
                    for code, bits, value in bitPatterns do
                        testCase $"%s{code} 0x%04X{bits}" (fun () ->
                            inFolder (fun folder ->
                                use _ = torch.NewDisposeScope()
                                let path = Path.Combine(folder, "a.safetensors")
                                let header = Encoding.UTF8.GetBytes(one code "[1]" 0 2)
                                File.WriteAllBytes(path, fileOf header [| byte bits; byte (bits >>> 8) |])
                                let tensor = (Safetensors.read path).Tensors["w"]

                                Expect.equal
                                    (tensor.``to``(torch.ScalarType.Float32).item<single>())
                                    value
                                    "value"

                                let again = tensor.``to``(torch.ScalarType.Float32).``to`` tensor.dtype
                                Expect.equal (bytesOf again) [| byte bits; byte (bits >>> 8) |] "bits"))
                ]

            testList
                "malformed"
                [
                    for name, bytes, parts in malformed do
                        testCase name (fun () ->
                            inFolder (fun folder ->
                                let path = Path.Combine(folder, "bad.safetensors")
                                File.WriteAllBytes(path, bytes)
                                refused (path :: parts) (fun () -> Safetensors.header path |> ignore)
                                refused (path :: parts) (fun () -> Safetensors.read path |> ignore)))
                ]

            testCase
                "a bool that is neither 0 nor 1 is refused, and the tensors before it are freed"
                (fun () ->
                    inFolder (fun folder ->
                        let path = Path.Combine(folder, "bad.safetensors")
                        sample path
                        let bytes = File.ReadAllBytes path
                        bytes[bytes.Length - 1] <- 2uy
                        File.WriteAllBytes(path, bytes)
                        refused [ path; "tensor 'd'"; "0 or 1" ] (fun () -> Safetensors.read path |> ignore)))

            testCase "every shorter file is refused" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")
                    sample path
                    let bytes = File.ReadAllBytes path

                    leavesNothing (fun () ->
                        for length in 0 .. bytes.Length - 1 do
                            File.WriteAllBytes(path, Array.truncate length bytes)
                            isRefused [ path ] (fun () -> Safetensors.read path |> ignore))))

            testCase "a file cut short while it is read is refused" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")

                    // too long for the stream's buffer to hold what the file has lost
                    Scope.run (fun () -> Safetensors.write path Map.empty [ "w", torch.ones 50_000L ])
                    let bytes = File.ReadAllBytes path

                    leavesNothing (fun () ->
                        for length in [ bytes.Length - 1; bytes.Length / 2; 0 ] do
                            File.WriteAllBytes(path, bytes)

                            // names are asked about once the header is read
                            let cut _ = truncate (path, int64 length) = 0

                            refused [ path; "readable up to its end" ] (fun () ->
                                Safetensors.readOnly cut path |> ignore))))

            testPropertyWithConfig
                { quick with maxTest = 500 }
                "changed bytes are read or refused, never anything else"
                (fun (changes: (NonNegativeInt * byte) list) ->
                    inFolder (fun folder ->
                        let path = Path.Combine(folder, "a.safetensors")
                        let bytes = Array.copy sampleBytes.Value

                        for NonNegativeInt at, value in changes do
                            // spread over the file, most of all its header
                            bytes[(at * 7919) % bytes.Length] <- value

                        File.WriteAllBytes(path, bytes)
                        use _ = torch.NewDisposeScope()

                        try
                            let file = Safetensors.read path
                            let shapes = file.Tensors |> Map.map (fun _ tensor -> List.ofArray tensor.shape)

                            let entries = (Safetensors.header path).Entries

                            Expect.equal
                                shapes
                                (Map.ofArray [| for e in entries -> e.Name, List.ofArray e.Shape |])
                                "as its header says"
                        with :? InputException as e ->
                            Expect.stringContains e.Message path "message"))

            testCase "unknown fields of an entry are passed over" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")
                    let header = """{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":"x"}}"""
                    File.WriteAllBytes(path, withHeader header 1)
                    Expect.equal (Safetensors.header path).Entries[0].Shape [| 1L |] "shape"))

            testCase "entries come in the order of their bytes" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")

                    let header =
                        """{"z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"""

                    File.WriteAllBytes(path, withHeader header 2)
                    let entries = (Safetensors.header path).Entries
                    Expect.equal (entries |> Array.map _.Name) [| "a"; "z" |] "order"

                    Expect.equal
                        entries[1].Offset
                        (9L + int64 (Encoding.UTF8.GetByteCount header))
                        "offset in the file"))

            testCase "a file that is missing, and a folder, are refused" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "no.safetensors")
                    refused [ path; "existing file" ] (fun () -> Safetensors.read path |> ignore)
                    refused [ folder; "a folder" ] (fun () -> Safetensors.read folder |> ignore)))

            testCase "readOnly loads what is wanted, and the caller owns just that" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "a.safetensors")
                    sample path

                    let struct (file, left) =
                        counting (fun () ->
                            Safetensors.readOnly (fun name -> name = "a" || name = "c") path)

                    use _ = Scope.own Safetensors.leaves file
                    Expect.equal left 2L "owned tensors"
                    Expect.equal (List.ofSeq file.Tensors.Keys) [ "a"; "c" ] "names"
                    Expect.equal (file.Tensors["c"].item<int64>()) 7L "value"
                    Expect.equal file.Metadata (Map.ofList [ "heads", "3" ]) "metadata"
                    leavesNothing (fun () -> Safetensors.read path |> Scope.free Safetensors.leaves)))

            testCase "writing leaves no tensor and needs no contiguous or gradient-free one" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "a.safetensors")
                    let wide = torch.arange(Scalar.op_Implicit 12.0f).reshape(3L, 4L).requires_grad_()
                    let columns = wide.narrow(1L, 1L, 2L).t() // [2, 3], offset 1, strides 1 and 4
                    leavesNothing (fun () -> Safetensors.write path Map.empty [ "w", columns ])
                    let found = (Safetensors.read path).Tensors["w"]
                    Expect.equal (found.data<single>().ToArray()) [| 1f; 5f; 9f; 2f; 6f; 10f |] "row by row"
                    Expect.isFalse found.requires_grad "no gradient"))

            testList
                "refused when written"
                [
                    for name, tensors, parts in refusedNames do
                        testCase name (fun () ->
                            inFolder (fun folder ->
                                use _ = torch.NewDisposeScope()
                                let path = Path.Combine(folder, "a.safetensors")
                                let tensors = tensors ()
                                refused parts (fun () -> Safetensors.write path Map.empty tensors)
                                Expect.isEmpty (Directory.GetFileSystemEntries folder) "no file"))
                ]

            testCase "tensors larger than one piece" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "a.safetensors")

                    let large =
                        torch.arange (Scalar.op_Implicit 9_000_000L, dtype = torch.ScalarType.Int64) // 72 MB

                    Safetensors.write path Map.empty [ "w", large ]
                    let found = (Safetensors.read path).Tensors["w"]
                    Expect.isTrue (found.eq(large).all().item<bool>()) "values"))

            testCase "a tensor beyond 4 GB is found" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let path = Path.Combine(folder, "a.safetensors")

                    let header =
                        """{"big":{"dtype":"U8","shape":[5000000000],"data_offsets":[0,5000000000]},"w":{"dtype":"U8","shape":[1],"data_offsets":[5000000000,5000000001]}}"""

                    // seeking over the large one leaves a sparse file
                    (use file = File.Create path
                     let start = withHeader header 0
                     file.Write(start, 0, start.Length)
                     file.Position <- int64 start.Length + 5000000000L
                     file.WriteByte 42uy)

                    let file = Safetensors.readOnly ((=) "w") path
                    Expect.equal (file.Tensors["w"].item<byte>()) 42uy "value"))

            testList
                "golden files"
                [
                    for name, metadata in
                        [
                            "attention", "rank"
                            "augmented_triplet", "margin"
                            "learner", "epochs"
                            "learner_official", "epochs"
                            "projected_adam", "lr"
                            "retained_projection", "cases"
                        ] do
                        testCase name (fun () ->
                            inFolder (fun folder ->
                                use _ = torch.NewDisposeScope()
                                let path = Path.Combine(goldenFolder, name + ".safetensors")
                                let file = Safetensors.read path
                                Expect.isNonEmpty file.Tensors "tensors"
                                Expect.isTrue (file.Metadata.ContainsKey metadata) metadata
                                // another writer's header, the same data
                                let copy = Path.Combine(folder, "copy.safetensors")
                                let header = Safetensors.header path

                                Safetensors.write
                                    copy
                                    file.Metadata
                                    [ for e in header.Entries -> e.Name, file.Tensors[e.Name] ]

                                let dataOf (file: string) =
                                    let first = (Safetensors.header file).Entries[0].Offset
                                    (File.ReadAllBytes file)[int first ..]

                                Expect.equal (dataOf copy) (dataOf path) "data"))
                ]
        ]
