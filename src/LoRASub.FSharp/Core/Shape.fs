namespace LoRASub.Core

open TorchSharp

/// One axis of an expected shape.
[<Struct; RequireQualifiedAccess>]
type Axis =
    /// Exactly this many.
    | Is of size: int64
    /// Any number; the name appears in the message.
    | Any of name: string

/// Shape, kind and device checks that run before native calls: TorchSharp's `matmul` and `backward` end the
/// process on a mismatch, so nothing unchecked may reach them.
[<RequireQualifiedAccess>]
module Shape =

    /// <summary>Sizes as people read them: "[2, 3]".</summary>
    /// <param name="sizes">Sizes of a tensor, axis by axis.</param>
    /// <returns>The sizes with commas between them, in brackets.</returns>
    let text (sizes: int64 seq) =
        let inner = System.String.Join(", ", sizes)
        $"[{inner}]"

    let private expectedText (axes: Axis list) =
        let name axis =
            match axis with
            | Axis.Is n -> string n
            | Axis.Any name -> name

        let inner = axes |> List.map name |> String.concat ", "
        $"[{inner}]"

    /// <summary>Checks the shape of a tensor.</summary>
    /// <param name="subject">Names the tensor in the error.</param>
    /// <param name="axes">What each axis must be.</param>
    /// <param name="tensor">Of any type, on any device; borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The tensor has another number of axes or another fixed size;
    /// the message gives both shapes.</exception>
    let expect (subject: string) (axes: Axis list) (tensor: torch.Tensor) =
        let fits axis size =
            match axis with
            | Axis.Is n -> n = size
            | Axis.Any _ -> true

        let actual = tensor.shape

        if not (actual.Length = axes.Length && Seq.forall2 fits axes actual) then
            Errors.reject subject $"must have shape {expectedText axes}" (text actual) ""

    /// <summary>Checks that a tensor is on the device of another.</summary>
    /// <param name="subject">Names the tensor in the error.</param>
    /// <param name="neighbour">A tensor on the device wanted; borrowed.</param>
    /// <param name="tensor">The tensor to check; borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The tensor is on another device.</exception>
    let expectDevice (subject: string) (neighbour: torch.Tensor) (tensor: torch.Tensor) =
        if tensor.device.ToString() <> neighbour.device.ToString() then
            Errors.reject subject $"must be on {neighbour.device}" $"{tensor.device}" "move it there first"

    /// <summary>Checks that a tensor has the device and the element type of another.</summary>
    /// <param name="subject">Names the tensor in the error.</param>
    /// <param name="neighbour">A tensor of the device and type wanted; borrowed.</param>
    /// <param name="tensor">The tensor to check; borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The tensor is on another device or of another type.</exception>
    let expectLike (subject: string) (neighbour: torch.Tensor) (tensor: torch.Tensor) =
        if tensor.dtype <> neighbour.dtype then
            Errors.reject subject $"must be {neighbour.dtype}" $"{tensor.dtype}" ""

        expectDevice subject neighbour tensor
