namespace LoRASub.Files

open System
open System.Buffers.Binary
open System.Globalization
open System.IO.Compression
open System.Text
open System.Text.RegularExpressions
open LoRASub.Core
open TorchSharp

/// NumPy's .npz (numpy.org, "numpy.lib.format"): a zip archive with one .npy file per array, which is a header in
/// Python's syntax and the numbers.
[<RequireQualifiedAccess>]
module internal NumpyArchive =

    /// numpy's own bound.
    let private longestHeader = 10_000

    let private types =
        [
            "<f8", torch.ScalarType.Float64
            "<f4", torch.ScalarType.Float32
            "<f2", torch.ScalarType.Float16
            // NumPy has no bfloat16: JAX's arrays are saved as two bytes without a meaning
            "|V2", torch.ScalarType.BFloat16
            "<i8", torch.ScalarType.Int64
            "<i4", torch.ScalarType.Int32
            "|u1", torch.ScalarType.Byte
            "|b1", torch.ScalarType.Bool
        ]

    let private syntax =
        Regex(
            @"^\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(((?:[0-9]+, ?)*[0-9]*)\),? ?\} *\n?$",
            RegexOptions.CultureInvariant
        )

    /// An array, and whether its first axis is the fastest.
    type private Npy = { Entry: TensorEntry; Reversed: bool }

    let private sizes (subject: string) (text: string) =
        text.Split([| ','; ' ' |], StringSplitOptions.RemoveEmptyEntries)
        |> Array.map (fun size ->
            match Int64.TryParse(size, NumberStyles.None, CultureInfo.InvariantCulture) with
            | true, size -> size
            | _ -> Errors.reject subject "must have sizes below 2^63" size "")

    /// Reads a header; the numbers follow.
    let private npy (path: string) (name: string) (length: int64) (fill: Fill) : Npy =
        let subject = TensorBytes.tensorOf path name

        let next count =
            let bytes = Array.zeroCreate<byte> count
            fill.Invoke(Span bytes)
            bytes

        let start = next 8

        if
            not (
                start.AsSpan(1, 5).SequenceEqual(ReadOnlySpan "NUMPY"B)
                && start[0] = 0x93uy
                && start[6] >= 1uy
                && start[6] <= 3uy
            )
        then
            Errors.reject subject "must begin as a .npy file of version 1 to 3" "other bytes" ""

        let lengthBytes = if start[6] = 1uy then 2 else 4
        let text = Array.append (next lengthBytes) [| 0uy; 0uy |]

        let headerLength =
            if lengthBytes = 2 then
                int64 (BinaryPrimitives.ReadUInt16LittleEndian(ReadOnlySpan text))
            else
                int64 (BinaryPrimitives.ReadUInt32LittleEndian(ReadOnlySpan text))

        if headerLength > int64 longestHeader then
            Errors.reject subject $"must have a header of at most {longestHeader} bytes" $"{headerLength}" ""

        let header = Encoding.Latin1.GetString(next (int headerLength))
        let found = syntax.Match header

        if not found.Success then
            let rule =
                "must have a header with 'descr', 'fortran_order' and 'shape', as NumPy writes it"

            Errors.reject subject rule (TensorBytes.shown header) ""

        let code = found.Groups[1].Value

        let dtype =
            match types |> List.tryFind (fun (known, _) -> known = code) with
            | Some(_, dtype) -> dtype
            | None ->
                let known = types |> List.map fst |> String.concat ", "

                let received =
                    if code.EndsWith 'O' then
                        "Python objects, whose pickles could run code"
                    else
                        TensorBytes.shown code

                Errors.reject subject $"must have a dtype out of {known}" received "convert it first"

        let shape = sizes subject found.Groups[3].Value
        let offset = int64 (8 + lengthBytes) + headerLength
        let expected = TensorBytes.length subject dtype shape

        if length - offset <> expected then
            let rule = $"must have {expected} bytes for {code} {Shape.text shape}"
            Errors.reject subject rule $"{length - offset}" "the file is damaged; download it again"

        {
            Entry =
                {
                    Name = name
                    Type = dtype
                    Shape = shape
                    Offset = offset
                    Length = expected
                }
            Reversed = found.Groups[2].Value = "True"
        }

    let private nameOf (archive: Archive) (one: ZipArchiveEntry) =
        if not (one.FullName.EndsWith(".npy", StringComparison.Ordinal)) then
            Errors.reject
                archive.Path
                "must hold .npy arrays only"
                $"'{TensorBytes.shown one.FullName}'"
                "give the weights themselves"

        one.FullName.Substring(0, one.FullName.Length - 4)

    let private headerOf (archive: Archive) : TensorFileHeader =
        {
            Path = archive.Path
            Entries =
                [|
                    for one in archive.Members.Values do
                        let name = nameOf archive one
                        (archive |> Archive.start one (npy archive.Path name one.Length)).Entry
                |]
            Metadata = Map.empty
        }

    /// Names, types and shapes. Rejects a file that is not well-formed.
    let header (path: string) : TensorFileHeader = Archive.using path headerOf

    let private readArray (archive: Archive) (name: string) : torch.Tensor =
        let one = Archive.find (name + ".npy") archive

        Scope.keep Leaves.tensor (fun () ->
            archive
            |> Archive.whole one (fun fill ->
                let npy = npy archive.Path name one.Length fill
                let subject = TensorBytes.tensorOf archive.Path name
                let shape = npy.Entry.Shape

                if npy.Reversed then
                    let axes = [| for i in shape.Length - 1 .. -1 .. 0 -> int64 i |]

                    (TensorBytes.read subject npy.Entry.Type (Array.rev shape) fill)
                        .permute(axes)
                        .contiguous()
                else
                    TensorBytes.read subject npy.Entry.Type shape fill))

    /// The wanted arrays on the CPU in the file's types, owned by the caller. Rejects a file that is not well-formed.
    let readOnly (wanted: string -> bool) (path: string) : TensorFile =
        Archive.using path (fun archive ->
            let header = headerOf archive

            Scope.keep Safetensors.leaves (fun () ->
                {
                    Path = path
                    Tensors =
                        header.Entries
                        |> Array.filter (fun e -> wanted e.Name)
                        |> Array.map (fun e -> e.Name, readArray archive e.Name)
                        |> Map.ofArray
                    Metadata = Map.empty
                }))
