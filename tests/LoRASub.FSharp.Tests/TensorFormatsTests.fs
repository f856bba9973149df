module LoRASub.Tests.TensorFormatsTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Probe
open LoRASub.Tests.WeightFiles
open TorchSharp

let private options =
    { Tiny.backboneOptions Precision.Float64 with
        NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
    }

/// A file that another program wrote; weights/make.py shows how.
let fixture (name: string) =
    Path.Combine(AppContext.BaseDirectory, "weights", name)

let private leavesOf (path: string) : byte[][] =
    use _ = torch.NewDisposeScope()

    Weights.load options path
    |> VisionTransformer.leaves
    |> Seq.map bytesOf
    |> Array.ofSeq

let private expected = lazy leavesOf (fixture "timm.safetensors")

/// Of the fixture's image, as a file's network sees it, and the largest difference to a stored tensor.
let private difference (path: string) (name: string) : float =
    use _ = torch.NewDisposeScope()
    let known = (Safetensors.read (fixture "features.safetensors")).Tensors
    let vit = Weights.load options path
    let image = known["image"].``to``(torch.ScalarType.Float64, Generators.device)
    let found = VisionTransformer.features (VisionTransformer.frozen vit) vit image
    found.cpu().sub(known[name]).abs().max().item<float>()

/// A file of these bytes is refused, leaves no tensor, and makes no file.
let private refuses extension (rows: (string * byte[] * string list) list) =
    [
        for name, bytes, words in rows do
            testCase name (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "w" + extension)
                    File.WriteAllBytes(path, bytes)
                    refused ("w" + extension :: words) (fun () -> Weights.load options path |> ignore)

                    Expect.equal (Directory.GetFileSystemEntries folder) [| path |] "files in the folder"))
    ]

/// Each damaged file is refused, or its damage is outside what is read.
let private damaged name (change: byte[] -> seq<byte[]>) =
    [
        for file in [ "timm.pth"; "augreg.npz"; "augreg-compressed.npz" ] do
            testCase $"{file}: {name}" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "w")
                    let mutable refusedFiles = 0
                    let mutable all = 0

                    for bytes in change (File.ReadAllBytes(fixture file)) do
                        File.WriteAllBytes(path, bytes)
                        all <- all + 1

                        try
                            Expect.equal (leavesOf path) expected.Value "what is read"
                        with :? InputException ->
                            refusedFiles <- refusedFiles + 1

                    Expect.isGreaterThan refusedFiles (all / 2) $"refused of {all}"))
    ]

let private one = tensor (storage "FloatStorage" "0" 4) 0 [ 4 ] [ 1 ]
let private state = dictionary [ text "x", one ]

let private hostileTorch =
    let value bytes = torchFile bytes

    [
        "a pickle that runs a command",
        value (Array.concat [ global' "posix" "system"; tuple [ text "touch harmed" ]; "R"B ]),
        [ "data.pkl"; "'posix.system', which is not executed" ]
        "a pickle that evaluates Python",
        value (Array.concat [ global' "builtins" "eval"; tuple [ text "1" ]; "R"B ]),
        [ "'builtins.eval', which is not executed" ]
        "a module of PyTorch's own",
        value (Array.concat [ global' "torch.hub" "load"; tuple [ text "x" ]; "R"B ]),
        [ "'torch.hub.load', which is not executed" ]
        "an instruction that instantiates a class", value "(iposix\nsystem\n."B, [ "byte"; "0x69" ]
        "a call of what is no global", value (Array.concat [ text "x"; ")R"B ]), [ "must call a global" ]
        "protocol 5", zip [ stored "a/data.pkl" [| 0x80uy; 5uy; 78uy; 46uy |] ], [ "protocol 2"; "found 5" ]
        "an empty pickle", zip [ stored "a/data.pkl" [||] ], [ "must have 1 more bytes" ]
        "operands that are missing", value "R"B, [ "an operand for each instruction" ]
        "a mark that is missing", value "t"B, [ "must have a mark" ]
        "a memory that is empty", value "h\000"B, [ "nothing at 0" ]
        "a text of 2 GB",
        value [| byte 'X'; 255uy; 255uy; 255uy; 127uy |],
        [ "must have 2147483647 more bytes" ]
        "a text of a negative length",
        value [| byte 'X'; 255uy; 255uy; 255uy; 255uy |],
        [ "must have -1 more bytes" ]
        "bytes after the end",
        zip [ stored "a/data.pkl" (Array.append (pickle "N"B) "N"B) ],
        [ "must end with its value"; "1 more" ]
        "a dictionary in itself", value (Array.concat [ "}q\000"B; text "x"; "h\000s"B ]), [ "16 levels" ]
        "a list in itself", value "]q\000h\000a"B, [ "must not hold itself" ]
        "a hundred thousand lists in each other",
        value (Array.concat [ Array.create 100_000 (byte ']'); Array.create 99_999 (byte 'a') ]),
        [ "16 levels" ]
        "lists that hold ten lists, thirteen times over",
        value (
            Array.concat
                [
                    "]q\000"B
                    for i in 0uy .. 12uy do
                        "]("B
                        Array.concat (Array.replicate 10 [| byte 'h'; i |])
                        [| byte 'e'; byte 'q'; i + 1uy |]
                ]
        ),
        [ "values" ]
        "a name of 1001 characters",
        value (dictionary [ text (String.replicate 1001 "x"), one ]),
        [ "at most 1000" ]
        "a name that is there twice",
        value (dictionary [ text "x", one; text "x", one ]),
        [ "'x'"; "must be there once" ]
        "a key that is a dictionary", value (dictionary [ "}"B, one ]), [ "text or whole numbers as keys" ]
        "complex numbers",
        value (dictionary [ text "x", tensor (storage "ComplexFloatStorage" "0" 2) 0 [ 2 ] [ 1 ] ]),
        [ "'torch.ComplexFloatStorage'" ]
        "a storage that is not there",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "1" 4) 0 [ 4 ] [ 1 ] ]),
        [ "member 'a/data/1'"; "must be there" ]
        "a storage outside the archive",
        value (
            dictionary
                [
                    text "x", tensor (storage "FloatStorage" "../../../etc/passwd" 4) 0 [ 4 ] [ 1 ]
                ]
        ),
        [ "member 'a/data/../../../etc/passwd'"; "must be there" ]
        "a storage that claims more",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" Int32.MaxValue) 0 [ 4 ] [ 1 ] ]),
        [ "storage of 2147483647 elements"; "found 16 bytes" ]
        "a storage of a negative size",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" -4) 0 [ 4 ] [ 1 ] ]),
        [ "storage of -4 elements" ]
        "a tensor that reaches beyond its storage",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) 1 [ 4 ] [ 1 ] ]),
        [ "'x'"; "must lie in its storage of 4 elements"; "from element 1" ]
        "a tensor before its storage",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) -1 [ 4 ] [ 1 ] ]),
        [ "'x'"; "must lie in its storage" ]
        "a tensor that is expanded to 8 GB",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) 0 [ Int32.MaxValue ] [ 0 ] ]),
        [ "'x'"; "must lie in its storage" ]
        "a shape of more than 2^63 bytes",
        value (
            dictionary
                [
                    text "x",
                    tensor (storage "FloatStorage" "0" 4) 0 (List.replicate 3 Int32.MaxValue) [ 0; 0; 0 ]
                ]
        ),
        [ "'x'"; "below 2^63" ]
        "a negative size",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) 0 [ -1 ] [ 1 ] ]),
        [ "'x'"; "sizes of at least 0" ]
        "a negative stride",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) 3 [ 4 ] [ -1 ] ]),
        [ "'x'"; "strides of at least 0" ]
        "strides of another number of axes",
        value (dictionary [ text "x", tensor (storage "FloatStorage" "0" 4) 0 [ 4 ] [ 1; 1 ] ]),
        [ "'x'"; "1 strides" ]
        "a hundred axes",
        value (
            dictionary
                [
                    text "x",
                    tensor (storage "FloatStorage" "0" 4) 0 (List.replicate 100 1) (List.replicate 100 1)
                ]
        ),
        [ "'x'"; "at most 64 axes" ]
        "no tensors", value "N"B, [ "must have at least one block" ]
        "big-endian numbers",
        zip [ stored "a/data.pkl" (pickle state); stored "a/byteorder" "big"B ],
        [ "byte order 'little'"; "'big'" ]
        "a TorchScript program",
        zip [ stored "a/data.pkl" (pickle state); stored "a/constants.pkl" "."B ],
        [ "TorchScript"; "state_dict()" ]
        "two pickles",
        zip [ stored "a/data.pkl" (pickle state); stored "b/data.pkl" (pickle state) ],
        [ "one data.pkl"; "found 2" ]
        "a member that is there twice",
        zip
            [
                stored "a/data.pkl" (pickle state)
                stored "a/data/0" "x"B
                stored "a/data/0" "x"B
            ],
        [ "'a/data/0'"; "must be there once" ]
        "an encrypted member",
        zip
            [
                { stored "a/data.pkl" (pickle state) with
                    Flags = 1
                }
            ],
        [ "must not be encrypted" ]
        "another checksum",
        zip
            [
                { stored "a/data.pkl" (pickle state) with
                    Crc = 7u
                }
            ],
        [ "data.pkl"; "checksum 00000007" ]
        "a method of compression that nobody uses",
        zip
            [
                { stored "a/data.pkl" (pickle state) with
                    Method = 77
                }
            ],
        [ "whole zip archive" ]
        "members that overlap",
        zip
            [
                stored "a/data.pkl" (pickle state)
                for i in 1..20 do
                    { stored $"a/data/{i}" (Array.zeroCreate 4096) with
                        Place = if i = 1 then None else Some 1
                    }
            ],
        [ "overlap"; "do not use it" ]
        "a zip bomb",
        zip
            [
                stored "a/data.pkl" (pickle state)
                deflated "a/data/0" (Array.zeroCreate 100_000_000)
            ],
        [ "must not unpack to more than 32 times" ]
        "a pickle of 5 MB",
        zip [ stored "a/data.pkl" (Array.zeroCreate 5_000_000) ],
        [ "data.pkl"; "at most 4194304 bytes" ]
    ]

let private hostileNumpy =
    let file name bytes = zip [ stored name bytes ]

    [
        "Python objects", file "x.npy" (npy "|O" "4," 32), [ "'x'"; "pickles could run code" ]
        "big-endian numbers", file "x.npy" (npy ">f4" "4," 16), [ "'x'"; "found >f4" ]
        "complex numbers", file "x.npy" (npy "<c8" "4," 32), [ "'x'"; "found <c8" ]
        "records",
        file
            "x.npy"
            (npyOf "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }" (Array.zeroCreate 16)),
        [ "'x'"; "as NumPy writes it" ]
        "a header that is code",
        file "x.npy" (npyOf "__import__('os').system('touch harmed')" [||]),
        [ "'x'"; "as NumPy writes it"; "__import__" ]
        "no signature", file "x.npy" (Array.zeroCreate 100), [ "'x'"; "must begin as a .npy file" ]
        "version 9",
        file "x.npy" (npy "<f4" "4," 16 |> Array.mapi (fun i b -> if i = 6 then 9uy else b)),
        [ "'x'"; "version 1 to 3" ]
        "a header of 60 kB", file "x.npy" (npyOf (String(' ', 60_000)) [||]), [ "'x'"; "at most 10000 bytes" ]
        "a header that ends early",
        file "x.npy" (Array.truncate 20 (npy "<f4" "4," 16)),
        [ "'x.npy'"; "must hold 20 bytes" ]
        "an empty array file", file "x.npy" [||], [ "'x.npy'"; "must hold 0 bytes" ]
        "a shape larger than the file",
        file "x.npy" (npy "<f4" "1000000000000," 16),
        [ "'x'"; "must have 4000000000000 bytes"; "found 16" ]
        "a shape of more than 2^63 bytes",
        file "x.npy" (npy "<f4" "4000000000, 4000000000" 16),
        [ "'x'"; "below 2^63" ]
        "a size beyond 64 bits",
        file "x.npy" (npy "<f4" "99999999999999999999," 16),
        [ "'x'"; "sizes below 2^63" ]
        "a negative size", file "x.npy" (npy "<f4" "-4," 16), [ "'x'"; "as NumPy writes it" ]
        "more bytes than the shape",
        file "x.npy" (npy "<f4" "4," 20),
        [ "'x'"; "must have 16 bytes"; "found 20" ]
        "another file in the archive",
        zip [ stored "x.npy" (npy "<f4" "4," 16); stored "../run.py" "x"B ],
        [ ".npy arrays only"; "'../run.py'" ]
        "an array that is there twice",
        zip [ stored "x.npy" (npy "<f4" "4," 16); stored "x.npy" (npy "<f4" "4," 16) ],
        [ "'x.npy'"; "must be there once" ]
        "a zip bomb",
        zip [ deflated "x.npy" (npy "<f4" "25000000," 100_000_000) ],
        [ "must not unpack to more than 32 times" ]
        "a member that claims less than it unpacks to",
        zip
            [
                { deflated "x.npy" (npy "<f4" "4," 16) with
                    Size = 20L
                }
            ],
        [ "x" ]
        "an archive without its directory",
        Array.truncate 60 (file "x.npy" (npy "<f4" "4," 16)),
        [ "whole zip archive" ]
    ]

// ---- shards

let private shards (folder: string) : string =
    let tensors = Map.toList (Tiny.tensors 8 2 1)
    let first, second = List.splitAt 9 tensors
    let map = Text.StringBuilder()

    for name, some in [ "a.safetensors", first; "b.safetensors", second ] do
        Safetensors.write (Path.Combine(folder, name)) Map.empty some

        for tensor, _ in some do
            map.Append(if map.Length = 0 then "" else ",").Append($"\"{tensor}\":\"{name}\"")
            |> ignore

    let index = Path.Combine(folder, "model.safetensors.index.json")
    File.WriteAllText(index, $"{{\"metadata\":{{\"total_size\":1}},\"weight_map\":{{{map}}}}}")
    index

let private changed (old: string) (replacement: string) (path: string) =
    File.WriteAllText(path, (File.ReadAllText path).Replace(old, replacement))

let private inFolderOf (path: string) name =
    Path.Combine(Path.GetDirectoryName path, name)

/// What is wrong, the change to the files, and the words of the message.
let private hostileShards: (string * (string -> unit) * string list) list =
    let named (name: string) =
        changed "\"cls_token\":\"b.safetensors\"" $"\"cls_token\":\"{name}\""

    [
        for name in
            [
                "../b.safetensors"
                "/etc/passwd"
                @"..\\b.safetensors"
                "sub/b.safetensors"
                ".."
                "."
                ""
                "C:b"
            ] do
            $"a shard called '{name}'", named name, [ "files of its own folder" ]
        "a name of a shard that is a number",
        changed "\"cls_token\":\"b.safetensors\"" "\"cls_token\":3",
        [ "'cls_token'"; "must have a file's name" ]
        "a tensor that is there twice",
        changed "\"cls_token\"" "\"pos_embed\":\"b.safetensors\",\"cls_token\"",
        [ "'pos_embed'"; "must be there once" ]
        "a tensor that is in no shard",
        changed "\"cls_token\"" "\"other\":\"b.safetensors\",\"cls_token\"",
        [ "b.safetensors"; "'other'"; "must be there" ]
        "a tensor that the index does not name",
        changed "\"cls_token\":\"b.safetensors\"," "",
        [ "b.safetensors"; "'cls_token'"; "must be in the index" ]
        "a tensor in another shard", named "a.safetensors", [ "a.safetensors"; "'cls_token'" ]
        "a shard that is gone",
        (fun path -> File.Delete(inFolderOf path "b.safetensors")),
        [ "b.safetensors"; "no such file" ]
        "a shard that is a web page",
        (fun path -> File.WriteAllText(inFolderOf path "b.safetensors", "<html></html>")),
        [ "b.safetensors"; "an HTML page" ]
        "a shard that is an index",
        (fun path -> File.Copy(path, inFolderOf path "b.safetensors", true)),
        [ "b.safetensors"; "an index of shards" ]
        "a shard that is cut off",
        (fun path ->
            let file = inFolderOf path "b.safetensors"
            File.WriteAllBytes(file, Array.truncate 2000 (File.ReadAllBytes file))),
        [ "b.safetensors"; "truncated" ]
        "a map that is a list",
        (fun path -> File.WriteAllText(path, """{"weight_map": ["a"]}""")),
        [ "an index of shards" ]
        "an index that is cut off",
        (fun path -> File.WriteAllText(path, (File.ReadAllText path).Substring(0, 300))),
        [ "index.json"; "must be JSON" ]
        "an index of nothing",
        (fun path -> File.WriteAllText(path, """{"weight_map": {}}""")),
        [ "at least one block" ]
    ]

[<Tests>]
let tests =
    testList
        "TensorFormats"
        [
            testCase "the features of the safetensors file are NumPy's" (fun () ->
                Expect.isLessThan (difference (fixture "timm.safetensors") "features") 1e-12 "difference")

            for file in
                [
                    "augreg.npz"
                    "augreg-compressed.npz"
                    "timm.pth"
                    "views.pt"
                    "dino.pth"
                    "pytorch_model.bin"
                ] do
                testCase $"{file}: the network of the safetensors file, bit for bit" (fun () ->
                    leavesNothing (fun () ->
                        Expect.equal (leavesOf (fixture file)) expected.Value "weights"
                        Expect.isLessThan (difference (fixture file) "features") 1e-12 "difference"))

            testCase "bfloat16 is the same rounded" (fun () ->
                use _ = torch.NewDisposeScope()
                let tensors = (Safetensors.read (fixture "timm.safetensors")).Tensors

                let rounded =
                    tensors
                    |> Map.map (fun _ t ->
                        t.``to``(torch.ScalarType.BFloat16).``to``(torch.ScalarType.Float64))
                    |> Weights.ofTensors options "w" Map.empty
                    |> VisionTransformer.leaves
                    |> Seq.map bytesOf
                    |> Array.ofSeq

                Expect.equal (leavesOf (fixture "timm-bfloat16.pth")) rounded "weights")

            testCase "DINOv2's layer scales are multiplied into the layers before them" (fun () ->
                Expect.isLessThan (difference (fixture "dinov2.pth") "scaled") 1e-12 "difference")

            testCase "two hundred tensors that share 16 bytes are refused" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "shared.pt")
                    let shared = dictionary [ for i in 1..200 -> text $"{i}", one ]
                    File.WriteAllBytes(path, torchFile shared)

                    refused [ "shared.pt"; "at most 100 times"; "3200 bytes of 16" ] (fun () ->
                        TorchArchive.readOnly (fun _ -> true) path |> ignore)))

            testCase "an archive of older PyTorch is refused by its name" (fun () ->
                refused [ "legacy.pth"; "a Python pickle, as older PyTorch saved" ] (fun () ->
                    Weights.load options (fixture "legacy.pth") |> ignore))

            testCase "types are read as they are, and unwanted tensors are not" (fun () ->
                use _ = torch.NewDisposeScope()

                inFolder (fun folder ->
                    let path = Path.Combine(folder, "w.npz")

                    File.WriteAllBytes(
                        path,
                        zip
                            [
                                for descr, size in
                                    [ "<f8", 8; "<f2", 2; "|V2", 2; "<i8", 8; "<i4", 4; "|u1", 1; "|b1", 1 ] do
                                    stored (descr[1..] + ".npy") (npy descr "2, 3" (6 * size))
                                stored "scalar.npy" (npy "<f4" "" 4)
                            ]
                    )

                    let all = (TensorFormats.readOnly (fun _ -> true) path).Tensors
                    Expect.equal all["V2"].dtype torch.ScalarType.BFloat16 "JAX's bfloat16"
                    Expect.equal all["b1"].dtype torch.ScalarType.Bool "bool"
                    Expect.equal all["f2"].shape [| 2L; 3L |] "shape"
                    Expect.equal all["scalar"].shape [||] "scalar"
                    Expect.equal (TensorFormats.readOnly ((=) "i8") path).Tensors.Count 1 "one"))

            testCase "a checksum of any length is that of the standard" (fun () ->
                inFolder (fun folder ->
                    let path = Path.Combine(folder, "w.zip")

                    for length in [ 0; 1; 7; 8; 9; 64; 1001 ] do
                        File.WriteAllBytes(
                            path,
                            zip [ stored "x" (Array.init length (fun i -> byte (i * i))) ]
                        )

                        Archive.using path (fun archive ->
                            Expect.hasLength
                                (Archive.bytes 2000 (Archive.find "x" archive) archive)
                                length
                                "bytes")))

            testList "PyTorch archives that are refused" (refuses ".pth" hostileTorch)
            testList "NumPy archives that are refused" (refuses ".npz" hostileNumpy)

            testList
                "damaged archives"
                [
                    yield!
                        damaged "cut off" (fun bytes ->
                            seq { for n in 100..397 .. bytes.Length - 1 -> Array.truncate n bytes })
                    yield!
                        damaged "a flipped bit" (fun bytes ->
                            seq {
                                for at in 0..61 .. bytes.Length - 1 ->
                                    bytes
                                    |> Array.mapi (fun i b -> if i = at then b ^^^ (1uy <<< (at % 8)) else b)
                            })
                ]

            testCase "shards are one file; their hash is of all" (fun () ->
                inFolder (fun folder ->
                    use _ = torch.NewDisposeScope()
                    let index = shards folder
                    let whole = Path.Combine(folder, "whole.safetensors")
                    Safetensors.write whole Map.empty (Map.toSeq (Tiny.tensors 8 2 1))
                    Expect.equal (leavesOf index) (leavesOf whole) "weights"
                    Expect.notEqual (Weights.sha256 index) (TensorFormats.sha256 whole) "hashes"
                    let before = Weights.sha256 index
                    Safetensors.write (inFolderOf index "a.safetensors") (Map [ "a", "b" ]) []
                    Expect.notEqual (Weights.sha256 index) before "with another shard"))

            testList
                "shards that are refused"
                [
                    for name, change, words in hostileShards do
                        testCase name (fun () ->
                            inFolder (fun folder ->
                                use _ = torch.NewDisposeScope()
                                let index = shards folder
                                change index
                                refused words (fun () -> Weights.load options index |> ignore)))
                ]
        ]
