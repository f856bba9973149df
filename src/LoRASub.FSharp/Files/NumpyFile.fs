namespace LoRASub.Files

open System
open System.IO
open System.Text
open LoRASub.Core
open TorchSharp

/// Writes NumPy's .npy (numpy.org, "numpy.lib.format", version 1.0): a header in Python's syntax and the numbers.
[<RequireQualifiedAccess>]
module internal NumpyFile =

    // The header ends in a line end at a multiple of 64 bytes.
    let private header (path: string) (tensor: torch.Tensor) : byte[] =
        let descr =
            match tensor.dtype with
            | torch.ScalarType.Float32 -> "<f4"
            | torch.ScalarType.Float64 -> "<f8"
            | torch.ScalarType.Int64 -> "<i8"
            | other -> Errors.reject path "must hold float32, float64 or int64" $"{other}" "convert it first"

        // a tuple of one has a comma
        let shape = tensor.shape |> Array.map (fun n -> $"{n}, ") |> String.concat ""

        let text =
            $"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape.TrimEnd ' '}), }}"

        let length = (10 + text.Length + 1 + 63) / 64 * 64 - 10

        [|
            0x93uy
            yield! "NUMPY\001\000"B
            byte length
            byte (length >>> 8)
            yield! Encoding.ASCII.GetBytes(text.PadRight(length - 1) + "\n")
        |]

    /// Writes a tensor of any device and layout as the whole of a file. Borrows. Rejects other types than float32,
    /// float64 and int64, and as `WholeFile.write`.
    let write (path: string) (tensor: torch.Tensor) : unit =
        let header = header path tensor

        WholeFile.write path (fun stream ->
            stream.Write(header, 0, header.Length)

            Scope.noGrad Leaves.none (fun () ->
                TensorBytes.eachChunk (tensor.detach().cpu().contiguous()) (fun chunk ->
                    stream.Write(Span.op_Implicit chunk.bytes: ReadOnlySpan<byte>))))
