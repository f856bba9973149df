namespace LoRASub

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

    /// "[2, 3]" for a list of sizes.
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

    /// Checks the number of axes and each fixed size; the message gives both shapes.
    let expect (subject: string) (axes: Axis list) (tensor: torch.Tensor) =
        let fits axis size =
            match axis with
            | Axis.Is n -> n = size
            | Axis.Any _ -> true

        let actual = tensor.shape

        if not (actual.Length = axes.Length && Seq.forall2 fits axes actual) then
            Errors.reject subject $"must have shape {expectedText axes}" (text actual) ""

    /// Checks that a tensor is on the device of its neighbour.
    let expectDevice (subject: string) (neighbour: torch.Tensor) (tensor: torch.Tensor) =
        if tensor.device.ToString() <> neighbour.device.ToString() then
            Errors.reject subject $"must be on {neighbour.device}" $"{tensor.device}" "move it there first"

    /// Checks that a tensor is on the device of its neighbour and has its element type.
    let expectLike (subject: string) (neighbour: torch.Tensor) (tensor: torch.Tensor) =
        if tensor.dtype <> neighbour.dtype then
            Errors.reject subject $"must be {neighbour.dtype}" $"{tensor.dtype}" ""

        expectDevice subject neighbour tensor
