namespace LoRASub.Backbone

open LoRASub.Core
open TorchSharp

/// Dropout of hidden units in training, with probability Rate; the others are divided by 1 − Rate (Srivastava et al.
/// 2014).
type Dropout =
    {
        /// In [0, 1).
        Rate: float
        /// Decides which.
        Key: RandomKey
    }

/// A bottleneck beside the MLP of a block: the block's output gains Scale · Up(relu(Down x)), where x is the stream after
/// attention, before the second norm. AdaptFormer: S. Chen et al., NeurIPS 2022, arXiv 2205.13535, without a norm of its
/// own.
[<ReferenceEquality>]
type MlpAdapter =
    {
        /// [h, d]
        Down: Linear
        /// [d, h]
        Up: Linear
        /// s in the paper.
        Scale: float
        /// In a step of training only.
        Dropout: Dropout option
    }

[<RequireQualifiedAccess>]
module MlpAdapter =

    /// <summary>The tensors of an adapter.</summary>
    /// <param name="scale">The scale of an adapter that is read from a file, which has no dropout.</param>
    /// <returns>A tree of both layers, under the names down and up.</returns>
    let tree (scale: float) : Tree<MlpAdapter> =
        tree {
            let! down = Tree.field "down" _.Down Linear.tree
            and! up = Tree.field "up" _.Up Linear.tree
            and! scale = Tree.given _.Scale scale
            and! dropout = Tree.given _.Dropout None

            return
                {
                    Down = down
                    Up = up
                    Scale = scale
                    Dropout = dropout
                }
        }

    /// The tensors of an adapter.
    let leaves: Leaves<MlpAdapter> = (tree 1.0).Leaves

    /// <summary>A fresh adapter that changes nothing yet, as in the paper's code: Down from U(−1/√d, 1/√d), which is
    /// Kaiming uniform with a = √5; Up and the biases 0.</summary>
    /// <param name="scale">The factor of its output.</param>
    /// <param name="hidden">h, at least 1.</param>
    /// <param name="width">d.</param>
    /// <param name="dtype">The type of its tensors.</param>
    /// <param name="device">Their device.</param>
    /// <param name="key">The random key.</param>
    /// <returns>The adapter, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">h below 1.</exception>
    let init
        (scale: float)
        (hidden: int)
        (width: int64)
        (dtype: torch.ScalarType)
        (device: torch.Device)
        (key: RandomKey)
        : MlpAdapter =
        if hidden < 1 then
            Errors.reject "hidden width of an MLP adapter" "must be at least 1" $"{hidden}" ""

        let bound = 1.0 / sqrt (float width)

        let zeros (shape: int64[]) =
            torch.zeros (shape, dtype = dtype, device = device)

        {
            Down =
                {
                    Weight = Rng.uniform -bound bound [| int64 hidden; width |] dtype device key
                    Bias = Some(zeros [| int64 hidden |])
                }
            Up =
                {
                    Weight = zeros [| width; int64 hidden |]
                    Bias = Some(zeros [| width |])
                }
            Scale = scale
            Dropout = None
        }

    /// The adapter for one slice of a batch. Each slice has its own dropout.
    let internal ofSlice (number: int) (adapter: MlpAdapter) : MlpAdapter =
        match adapter.Dropout with
        | None -> adapter
        | Some dropout ->
            { adapter with
                Dropout =
                    Some
                        { dropout with
                            Key = Rng.fold (int64 number) dropout.Key
                        }
            }

    let private drop (dropout: Dropout) (x: torch.Tensor) =
        let drawn =
            Rng.uniform 0.0 1.0 x.shape torch.ScalarType.Float32 x.device dropout.Key

        let kept = drawn.ge (Number.Of dropout.Rate)
        x.mul (kept.``to``(x.dtype).div(Number.Of(1.0 - dropout.Rate)))

    let internal check (width: int64) (neighbour: torch.Tensor) (adapter: MlpAdapter) =
        let down, up = adapter.Down.Weight, adapter.Up.Weight
        Shape.expect "MLP adapter's down weight" [ Axis.Any "hidden"; Axis.Is width ] down
        Shape.expect "MLP adapter's up weight" [ Axis.Is width; Axis.Is down.shape[0] ] up

        for weight in [ down; up ] do
            Shape.expectDevice "MLP adapter" neighbour weight

    /// Scale · Up(dropped relu(Down x)), added to y. x and y [.., d].
    let internal add (adapter: MlpAdapter) (x: torch.Tensor) (y: torch.Tensor) : torch.Tensor =
        // trained parameters are wider than activations in bfloat16
        let through (layer: Linear) (x: torch.Tensor) =
            let cast (t: torch.Tensor) = t.``to`` x.dtype

            x
            |> Linear.forward
                {
                    Weight = cast layer.Weight
                    Bias = Option.map cast layer.Bias
                }

        let hidden = (through adapter.Down x).relu()
        let hidden = Option.fold (fun x dropout -> drop dropout x) hidden adapter.Dropout
        y.add (through adapter.Up hidden, alpha = Number.Of adapter.Scale)
