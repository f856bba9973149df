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

    let private metadataKey = "__metadata__"

    let private types =
        [
            "F64", torch.ScalarType.Float64
            "F32", torch.ScalarType.Float32
            "F16", torch.ScalarType.Float16
            "BF16", torch.ScalarType.BFloat16
            "I64", torch.ScalarType.Int64
            "I32", torch.ScalarType.Int32
            "U8", torch.ScalarType.Byte
            "BOOL", torch.ScalarType.Bool
        ]

    let private knownTypes = types |> List.map fst |> String.concat ", "
    let private shown = TensorBytes.shown
    let private tensorOf = TensorBytes.tensorOf

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

    /// One entry, its offset still counted from the end of the header.
    let private entry path (name: string) (element: JsonElement) =
        let subject = tensorOf path name
        let fields = Map.ofArray (properties subject element)

        let field key =
            match Map.tryFind key fields with
            | Some value -> value
            | None -> Errors.reject subject "must have 'dtype', 'shape' and 'data_offsets'" $"no '{key}'" ""

        let code = text subject (field "dtype")

        let scalarType =
            match types |> List.tryFind (fun (known, _) -> known = code) with
            | Some(_, scalarType) -> scalarType
            | None ->
                Errors.reject subject $"must have a dtype out of {knownTypes}" (shown code) "convert it first"

        let shape = wholeNumbers subject "shape" (field "shape")

        match wholeNumbers subject "data_offsets" (field "data_offsets") with
        | [| first; last |] when first <= last ->
            let expected = TensorBytes.length subject scalarType shape

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
        TensorBytes.fill path stream (Span start)

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
        TensorBytes.fill path stream (Span prefix)
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
        TensorBytes.fill path stream (Span json)

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
        use stream = TensorBytes.open' "a safetensors file" path
        readHeader path stream

    // ---- data

    let private readTensor path (stream: FileStream) (entry: TensorEntry) =
        stream.Position <- entry.Offset
        let fill = Fill(fun bytes -> TensorBytes.fill path stream bytes)
        TensorBytes.read (tensorOf path entry.Name) entry.Type entry.Shape fill

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
        use stream = TensorBytes.open' "a safetensors file" path
        readFrom path stream wanted

    /// <summary>Reads a file if its bytes have this hash, even when a file of the same name takes its place
    /// meanwhile.</summary>
    /// <param name="sha256">SHA-256 in lower-case hexadecimal.</param>
    /// <param name="path">The file.</param>
    /// <returns>All tensors on the CPU, owned by the caller; None where the hash is another.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing, unreadable or, where the hash fits,
    /// not well-formed.</exception>
    let readHashed (sha256: string) (path: string) : TensorFile option =
        use stream = TensorBytes.open' "a safetensors file" path

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

        match types |> List.tryFind (fun (_, scalarType) -> scalarType = tensor.dtype) with
        | Some(code, dtype) -> struct (code, TensorBytes.elementSize dtype * tensor.numel ())
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
                    TensorBytes.eachChunk (tensor.detach().cpu().contiguous()) (fun chunk ->
                        stream.Write(Span.op_Implicit chunk.bytes: ReadOnlySpan<byte>))))
