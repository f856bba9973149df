namespace LoRASub.Files

open System
open System.IO
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
        /// Its first byte, counted from the start of the file or, in an archive, of its member.
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

/// Puts the next bytes of a file into a span, all of it.
type internal Fill = delegate of Span<byte> -> unit

/// What the readers of tensor files share.
[<RequireQualifiedAccess>]
module internal TensorBytes =

    /// No operation of LibTorch takes more.
    let private mostAxes = 64

    /// Tensors are moved in pieces: spans are limited to 2 GB.
    let private chunkBytes = 1L <<< 26

    // a hostile name or value must not flood the screen
    let shown (text: string) = Text.cut "..." 80 text

    let tensorOf (path: string) (name: string) : string = $"{path}: tensor '{shown name}'"

    /// Opens a file; `what` says what it must be, for a folder in its place.
    let open' (what: string) (path: string) : FileStream =
        if Directory.Exists path then
            Errors.reject path $"must be {what}" "a folder" ""

        if not (File.Exists path) then
            Errors.reject path "must be an existing file" "no such file" ""

        try
            File.OpenRead path
        with
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must be a file that can be read" e.Message ""

    let fill (path: string) (stream: Stream) (bytes: Span<byte>) : unit =
        try
            stream.ReadExactly bytes
        with :? IOException as e ->
            Errors.reject path "must be readable up to its end" e.Message ""

    /// Bytes of one element.
    let elementSize (dtype: torch.ScalarType) : int64 =
        match dtype with
        | torch.ScalarType.Float64
        | torch.ScalarType.Int64 -> 8L
        | torch.ScalarType.Float32
        | torch.ScalarType.Int32 -> 4L
        | torch.ScalarType.Float16
        | torch.ScalarType.BFloat16
        | torch.ScalarType.Int16 -> 2L
        | torch.ScalarType.Byte
        | torch.ScalarType.Int8
        | torch.ScalarType.Bool -> 1L
        | other -> invalidArg (nameof dtype) $"{other}"

    /// Bytes of a tensor, where they can be counted. Zeros count as ones: LibTorch multiplies the other sizes into
    /// its strides.
    let length (subject: string) (dtype: torch.ScalarType) (shape: int64[]) : int64 =
        if shape.Length > mostAxes then
            Errors.reject subject $"must have at most {mostAxes} axes" $"{shape.Length}" ""

        let mutable bound = elementSize dtype

        for size in shape do
            if size > 0L && bound > Int64.MaxValue / size then
                Errors.reject
                    subject
                    "must have a size below 2^63 bytes"
                    $"shape {shown (Shape.text shape)}"
                    ""

            bound <- bound * max size 1L

        if Array.contains 0L shape then 0L else bound

    /// Runs `move` over the tensor's bytes in pieces. The tensor is contiguous and on the CPU.
    let eachChunk (tensor: torch.Tensor) (move: torch.Tensor -> unit) : unit =
        let count = tensor.numel ()
        let step = chunkBytes / tensor.ElementSize
        let flat = tensor.view [| count |]
        let mutable start = 0L

        while start < count do
            Scope.run (fun () -> move (flat.narrow (0L, start, min step (count - start))))
            start <- start + step

    // Read straight into the tensor's own memory, not mapped: a mapped file that is truncated meanwhile kills the
    // process, and 343 MB take 65 ms this way, 54 to 61 ms mapped and copied.
    /// A tensor of the next bytes, owned by the caller. The file is known to be long enough for it.
    let read (subject: string) (dtype: torch.ScalarType) (shape: int64[]) (fill: Fill) : torch.Tensor =
        Scope.keep Leaves.tensor (fun () ->
            let tensor = torch.empty (shape, dtype = dtype, device = torch.CPU)

            eachChunk tensor (fun chunk ->
                let bytes = chunk.bytes
                fill.Invoke bytes

                if dtype = torch.ScalarType.Bool && bytes.IndexOfAnyExceptInRange(0uy, 1uy) >= 0 then
                    Errors.reject subject "must hold 0 or 1 in each byte" "another value" "")

            tensor)
