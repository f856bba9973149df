namespace LoRASub.Files

open System
open System.Buffers.Binary
open System.Collections.Generic
open System.IO
open System.Text
open System.Text.Encodings.Web
open System.Text.Json
open LoRASub.Core
open TorchSharp

/// Tensors and text of one file.
[<ReferenceEquality>]
type TensorFile =
    {
        /// The file.
        Path: string
        /// By name, on the CPU; owned by whoever owns the record.
        Tensors: Map<string, torch.Tensor>
        /// Text by key.
        Metadata: Map<string, string>
    }

/// The position of one tensor in its file.
type TensorEntry =
    {
        /// Its name.
        Name: string
        /// Its element type.
        Type: torch.ScalarType
        /// Its sizes, axis by axis.
        Shape: int64[]
        /// Its first byte, counted from the start of the file.
        Offset: int64
        /// Its length in bytes.
        Length: int64
    }

/// What a file holds, without the numbers.
type TensorFileHeader =
    {
        /// The file.
        Path: string
        /// In the order of their bytes.
        Entries: TensorEntry[]
        /// Text by key.
        Metadata: Map<string, string>
    }

/// The safetensors format (github.com/huggingface/safetensors, "Format"): the length of a JSON header as eight
/// bytes, the header, then the tensors' bytes, little-endian, row by row, without holes. Checked before anything is
/// allocated, for a file may come from anywhere.
[<RequireQualifiedAccess>]
module Safetensors =

    /// <summary>Lists the tensors of a file.</summary>
    /// <param name="file">What was read, borrowed.</param>
    /// <returns>Its tensors.</returns>
    let leaves (file: TensorFile) : torch.Tensor seq = file.Tensors.Values

    /// The reference implementation's own bound.
    let private longestHeader = 100_000_000L

    /// No operation of LibTorch takes more.
    let private mostAxes = 64

    /// Tensors are moved in pieces: spans are limited to 2 GB.
    let private chunkBytes = 1L <<< 26

    let private metadataKey = "__metadata__"

    let private types =
        [
            "F64", torch.ScalarType.Float64, 8L
            "F32", torch.ScalarType.Float32, 4L
            "F16", torch.ScalarType.Float16, 2L
            "BF16", torch.ScalarType.BFloat16, 2L
            "I64", torch.ScalarType.Int64, 8L
            "I32", torch.ScalarType.Int32, 4L
            "U8", torch.ScalarType.Byte, 1L
            "BOOL", torch.ScalarType.Bool, 1L
        ]

    let private knownTypes =
        types |> List.map (fun (code, _, _) -> code) |> String.concat ", "

    // a hostile name or value must not flood the screen
    let internal shown (text: string) = Text.cut "..." 80 text

    let private tensorOf path name = $"{path}: tensor '{shown name}'"

    let private open' (path: string) =
        if Directory.Exists path then
            Errors.reject path "must be a safetensors file" "a folder" ""

        if not (File.Exists path) then
            Errors.reject path "must be an existing file" "no such file" ""

        try
            File.OpenRead path
        with
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must be a file that can be read" e.Message ""

    let private fill path (stream: Stream) (bytes: Span<byte>) =
        try
            stream.ReadExactly bytes
        with :? IOException as e ->
            Errors.reject path "must be readable up to its end" e.Message ""

    // ---- header

    let private text (subject: string) (element: JsonElement) =
        let refuse () =
            Errors.reject subject "must be a string" (shown (element.GetRawText())) ""

        if element.ValueKind <> JsonValueKind.String then
            refuse ()

        try
            element.GetString()
        with :? InvalidOperationException ->
            refuse () // half of a surrogate pair

    let private properties (subject: string) (element: JsonElement) =
        if element.ValueKind <> JsonValueKind.Object then
            Errors.reject subject "must be a JSON object" (shown (element.GetRawText())) ""

        let seen = HashSet<string>(StringComparer.Ordinal)

        [|
            for property in element.EnumerateObject() do
                let name =
                    try
                        property.Name
                    with :? InvalidOperationException ->
                        Errors.reject subject "must have names in Unicode" "half of a surrogate pair" ""

                if not (seen.Add name) then
                    Errors.reject subject "must name everything once" $"'{shown name}' twice" ""

                name, property.Value
        |]

    let private wholeNumbers (subject: string) (field: string) (element: JsonElement) =
        let rule = $"must have a list of whole numbers from 0 as '{field}'"

        if element.ValueKind <> JsonValueKind.Array then
            Errors.reject subject rule (shown (element.GetRawText())) ""

        [|
            for item in element.EnumerateArray() do
                match item.ValueKind, item.ValueKind = JsonValueKind.Number && fst (item.TryGetInt64()) with
                | JsonValueKind.Number, true when item.GetInt64() >= 0L -> item.GetInt64()
                | _ -> Errors.reject subject rule (shown (item.GetRawText())) ""
        |]

    /// Bytes of a tensor, where they can be counted. Zeros count as ones: LibTorch multiplies the other sizes into
    /// its strides.
    let private byteLength (subject: string) (elementSize: int64) (shape: int64[]) =
        let mutable bound = elementSize

        for size in shape do
            if size > 0L && bound > Int64.MaxValue / size then
                Errors.reject
                    subject
                    "must have a size below 2^63 bytes"
                    $"shape {shown (Shape.text shape)}"
                    ""

            bound <- bound * max size 1L

        if Array.contains 0L shape then 0L else bound

    /// One entry, its offset still counted from the end of the header.
    let private entry path (name: string) (element: JsonElement) =
        let subject = tensorOf path name
        let fields = Map.ofArray (properties subject element)

        let field key =
            match Map.tryFind key fields with
            | Some value -> value
            | None -> Errors.reject subject "must have 'dtype', 'shape' and 'data_offsets'" $"no '{key}'" ""

        let code = text subject (field "dtype")

        let scalarType, elementSize =
            match types |> List.tryFind (fun (known, _, _) -> known = code) with
            | Some(_, scalarType, size) -> scalarType, size
            | None ->
                Errors.reject subject $"must have a dtype out of {knownTypes}" (shown code) "convert it first"

        let shape = wholeNumbers subject "shape" (field "shape")

        if shape.Length > mostAxes then
            Errors.reject subject $"must have at most {mostAxes} axes" $"{shape.Length}" ""

        match wholeNumbers subject "data_offsets" (field "data_offsets") with
        | [| first; last |] when first <= last ->
            let expected = byteLength subject elementSize shape

            if last - first <> expected then
                let rule = $"must have {expected} bytes for {code} {Shape.text shape}"
                Errors.reject subject rule $"{last - first}" "the file is damaged"

            {
                Name = name
                Type = scalarType
                Shape = shape
                Offset = first
                Length = expected
            }
        | offsets ->
            Errors.reject
                subject
                "must have two offsets, the first not after the last"
                (Shape.text offsets)
                ""

    let private metadataOf path (element: JsonElement) =
        let subject = $"{path}: {metadataKey}"

        properties subject element
        |> Array.map (fun (key, value) -> key, text $"{subject}, '{shown key}'" value)
        |> Map.ofArray

    /// Entries in the order of their bytes, which must cover the data exactly once.
    let private covering path (dataStart: int64) (dataLength: int64) (entries: TensorEntry[]) =
        let sorted = entries |> Array.sortBy (fun e -> struct (e.Offset, e.Length))
        let mutable reached = 0L

        for e in sorted do
            let subject = tensorOf path e.Name

            if e.Offset + e.Length > dataLength then
                let received = $"bytes {e.Offset} to {e.Offset + e.Length}"

                Errors.reject
                    subject
                    $"must be in the file's {dataLength} bytes of data"
                    received
                    "the file is truncated; download it again"

            if e.Offset <> reached then
                let rule = $"must start at byte {reached}, where the tensor before it ends"
                Errors.reject subject rule $"{e.Offset}" "tensors must not overlap or leave holes"

            reached <- e.Offset + e.Length

        if reached <> dataLength then
            Errors.reject
                path
                $"must end where its last tensor does, after {reached} bytes of data"
                $"{dataLength}"
                ""

        sorted |> Array.map (fun e -> { e with Offset = dataStart + e.Offset })

    /// Rejects a file with the signature of another format, and names that format.
    let private refuseOtherKind path (stream: FileStream) =
        stream.Position <- 0L
        let start = Array.zeroCreate<byte>(int (min stream.Length (int64 FileKind.Needed)))
        fill path stream (Span start)

        match FileKind.identify start with
        | Some kind -> Errors.reject path "must be a safetensors file" kind.Name kind.Advice
        | None -> ()

    let private readHeader (path: string) (stream: FileStream) : TensorFileHeader =
        let fileLength = stream.Length

        let refuse rule received fix : 'T =
            refuseOtherKind path stream
            Errors.reject path rule received fix

        if fileLength < 8L then
            refuse "must be at least 8 bytes long" $"{fileLength}" "it is not a safetensors file"

        let prefix = Array.zeroCreate<byte> 8
        fill path stream (Span prefix)
        let length = BinaryPrimitives.ReadUInt64LittleEndian(ReadOnlySpan prefix)
        let available = fileLength - 8L

        if
            length > uint64 available
            && length <= uint64 longestHeader
            && stream.ReadByte() = int '{'
        then
            Errors.reject
                path
                $"must hold its header of {length} bytes"
                $"{available}"
                "the file is truncated; download it again"

        if length > uint64 available || length > uint64 longestHeader then
            let rule = $"must have a header of at most {min available longestHeader} bytes"
            refuse rule $"a length of {length}" "it is not a safetensors file, or is truncated"

        let json = Array.zeroCreate<byte>(int length)
        fill path stream (Span json)

        if not (Unicode.Utf8.IsValid(ReadOnlySpan json)) then
            refuse "must have a header in UTF-8" "other bytes" ""

        if json.Length = 0 || json[0] <> byte '{' then
            let received = if json.Length = 0 then "nothing" else $"byte {json[0]}"
            refuse "must have a header that starts with '{'" received "it is not a safetensors file"

        use document =
            try
                // file, tensor, list of numbers
                JsonDocument.Parse(ReadOnlyMemory json, JsonDocumentOptions(MaxDepth = 3))
            with :? JsonException as e ->
                Errors.reject
                    path
                    "must have a header in JSON, at most 3 levels deep"
                    (shown (Json.reason e))
                    ""

        let metadata, tensors =
            properties $"{path}: header" document.RootElement
            |> Array.partition (fun (name, _) -> name = metadataKey)

        {
            Path = path
            Entries =
                tensors
                |> Array.map (fun (name, element) -> entry path name element)
                |> covering path (8L + int64 length) (available - int64 length)
            Metadata =
                match metadata with
                | [| _, element |] -> metadataOf path element
                | _ -> Map.empty
        }

    /// <summary>What a file holds, without the numbers.</summary>
    /// <param name="path">The file.</param>
    /// <returns>Names, types, shapes and metadata.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, unreadable or not
    /// well-formed.</exception>
    let header (path: string) : TensorFileHeader =
        use stream = open' path
        readHeader path stream

    // ---- data

    /// Runs `move` over the tensor's bytes in pieces. The tensor is contiguous and on the CPU.
    let private eachChunk (tensor: torch.Tensor) (move: torch.Tensor -> unit) =
        let count = tensor.numel ()
        let step = chunkBytes / tensor.ElementSize
        let flat = tensor.view [| count |]
        let mutable start = 0L

        while start < count do
            Scope.run (fun () -> move (flat.narrow (0L, start, min step (count - start))))
            start <- start + step

    // Read straight into the tensor's own memory, not mapped: a mapped file that is truncated meanwhile kills the
    // process, and 343 MB take 65 ms this way, 54 to 61 ms mapped and copied.
    let private readTensor path (stream: FileStream) (entry: TensorEntry) =
        Scope.keep Leaves.tensor (fun () ->
            let tensor = torch.empty (entry.Shape, dtype = entry.Type, device = torch.CPU)
            stream.Position <- entry.Offset

            eachChunk tensor (fun chunk ->
                let bytes = chunk.bytes
                fill path stream bytes

                if
                    entry.Type = torch.ScalarType.Bool
                    && bytes.IndexOfAnyExceptInRange(0uy, 1uy) >= 0
                then
                    Errors.reject
                        (tensorOf path entry.Name)
                        "must hold 0 or 1 in each byte"
                        "another value"
                        "")

            tensor)

    let private readFrom path (stream: FileStream) (wanted: string -> bool) : TensorFile =
        let header = readHeader path stream

        Scope.keep leaves (fun () ->
            {
                Path = path
                Tensors =
                    header.Entries
                    |> Array.filter (fun e -> wanted e.Name)
                    |> Array.map (fun e -> e.Name, readTensor path stream e)
                    |> Map.ofArray
                Metadata = header.Metadata
            })

    /// <summary>Reads some tensors of a file, and the metadata.</summary>
    /// <param name="wanted">Whether the tensor of a name is read.</param>
    /// <param name="path">The file.</param>
    /// <returns>The tensors on the CPU in the file's types, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, unreadable or not well-formed, its
    /// unwanted tensors included.</exception>
    let readOnly (wanted: string -> bool) (path: string) : TensorFile =
        use stream = open' path
        readFrom path stream wanted

    /// <summary>Reads a file if its bytes have this hash, even when a file of the same name takes its place
    /// meanwhile.</summary>
    /// <param name="sha256">SHA-256 in lower-case hexadecimal.</param>
    /// <param name="path">The file.</param>
    /// <returns>All tensors on the CPU, owned by the caller; None where the hash is another.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, unreadable or, where the hash fits,
    /// not well-formed.</exception>
    let readHashed (sha256: string) (path: string) : TensorFile option =
        use stream = open' path

        if Convert.ToHexStringLower(Security.Cryptography.SHA256.HashData stream) = sha256 then
            stream.Position <- 0L
            Some(readFrom path stream (fun _ -> true))
        else
            None

    /// <summary>Reads a whole file.</summary>
    /// <param name="path">The file.</param>
    /// <returns>All tensors on the CPU in the file's types, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, unreadable or not
    /// well-formed.</exception>
    let read (path: string) : TensorFile = readOnly (fun _ -> true) path

    // ---- writing

    let private checkText (subject: string) (text: string) =
        try
            UTF8Encoding(false, true).GetByteCount text |> ignore
        with :? EncoderFallbackException ->
            Errors.reject subject "must be Unicode text" "half of a surrogate pair" ""

    let private codeOf path (name: string) (tensor: torch.Tensor) =
        let subject = tensorOf path name
        checkText subject name

        if name = metadataKey then
            Errors.reject
                subject
                $"must not be called {metadataKey}"
                "that name"
                "the format keeps it for itself"

        if tensor.is_sparse || tensor.device_type = DeviceType.META then
            Errors.reject subject "must be dense and have values" "a sparse or meta tensor" ""

        match types |> List.tryFind (fun (_, scalarType, _) -> scalarType = tensor.dtype) with
        | Some(code, _, size) -> struct (code, size * tensor.numel ())
        | None ->
            Errors.reject
                subject
                $"must have a dtype out of {knownTypes}"
                $"{tensor.dtype}"
                "convert it first"

    let private headerBytes path (metadata: Map<string, string>) (tensors: (string * torch.Tensor)[]) =
        use buffer = new MemoryStream()

        let options =
            JsonWriterOptions(Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping)

        (use json = new Utf8JsonWriter(buffer, options)
         json.WriteStartObject()

         if not metadata.IsEmpty then
             json.WriteStartObject metadataKey

             for KeyValue(key, value) in metadata do
                 checkText $"{path}: {metadataKey}" key
                 checkText $"{path}: {metadataKey}, '{shown key}'" value
                 json.WriteString(key, value)

             json.WriteEndObject()

         let mutable offset = 0L

         for name, tensor in tensors do
             let struct (code, length) = codeOf path name tensor
             json.WriteStartObject name
             json.WriteString("dtype", code)
             json.WriteStartArray "shape"
             tensor.shape |> Array.iter json.WriteNumberValue
             json.WriteEndArray()
             json.WriteStartArray "data_offsets"
             json.WriteNumberValue offset
             json.WriteNumberValue(offset + length)
             json.WriteEndArray()
             json.WriteEndObject()
             offset <- offset + length

         json.WriteEndObject())

        // the data starts at a multiple of 8
        while buffer.Length % 8L <> 0L do
            buffer.WriteByte(byte ' ')

        if buffer.Length > longestHeader then
            Errors.reject path $"must have a header of at most {longestHeader} bytes" $"{buffer.Length}" ""

        buffer.ToArray()

    /// <summary>Writes named tensors, in their order, and metadata as a whole file; the same input gives the
    /// same bytes.</summary>
    /// <param name="path">The file; an older one is replaced in one step.</param>
    /// <param name="metadata">Text by key.</param>
    /// <param name="tensors">Of any device and layout; borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">A name is there twice or kept by the format, a tensor has a
    /// type that the format lacks or is sparse, or the file cannot be written.</exception>
    let write (path: string) (metadata: Map<string, string>) (tensors: (string * torch.Tensor) seq) : unit =
        let tensors = Array.ofSeq tensors

        match tensors |> Array.countBy fst |> Array.tryFind (fun (_, count) -> count > 1) with
        | Some(name, count) -> Errors.reject (tensorOf path name) "must be given once" $"{count} times" ""
        | None -> ()

        let json = headerBytes path metadata tensors

        WholeFile.write path (fun stream ->
            let prefix = Array.zeroCreate<byte> 8
            BinaryPrimitives.WriteUInt64LittleEndian(Span prefix, uint64 json.Length)
            stream.Write(prefix, 0, prefix.Length)
            stream.Write(json, 0, json.Length)

            for _, tensor in tensors do
                // one tensor at a time: at most one copy is alive
                Scope.noGrad Leaves.none (fun () ->
                    eachChunk (tensor.detach().cpu().contiguous()) (fun chunk ->
                        stream.Write(Span.op_Implicit chunk.bytes: ReadOnlySpan<byte>))))
