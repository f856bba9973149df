namespace LoRASub.Core

open TorchSharp

/// A value whose type only its maker knows, so that makers of different types fit one list and the program chooses
/// among them at run time. 'Kind tells hidden values of different roles apart.
[<ReferenceEquality>]
type Hidden<'Kind> =
    internal
        {
            Maker: string
            Value: obj
            Tensors: unit -> torch.Tensor seq
            Written: unit -> (string * torch.Tensor) list
        }

[<RequireQualifiedAccess>]
module internal Hidden =

    /// The tensors that the value owns.
    let leaves: Leaves<Hidden<'Kind>> = fun hidden -> hidden.Tensors()

    /// The value as saved to a file; see `Tree.write`.
    let written (hidden: Hidden<'Kind>) : (string * torch.Tensor) list = hidden.Written()

    /// Hides a value. `tree` describes its tensors.
    let hide (maker: string) (tree: Tree<'T>) (value: 'T) : Hidden<'Kind> =
        {
            Maker = maker
            Value = box value
            Tensors = fun () -> tree.Leaves value
            Written = fun () -> Tree.write tree value
        }

    /// The value, for its maker. Rejects a value that another made.
    let reveal (maker: string) (hidden: Hidden<'Kind>) : 'T =
        if hidden.Maker <> maker then
            Errors.reject maker "must be given its own state" $"a state of {hidden.Maker}" ""

        // unit is null as an object
        if isNull hidden.Value then
            Unchecked.defaultof<'T>
        else
            unbox<'T> hidden.Value

    /// The tree of a hidden value.
    let tree (maker: string) (tree: Tree<'T>) : Tree<Hidden<'Kind>> =
        Tree.convert (hide maker tree) (reveal maker) tree
