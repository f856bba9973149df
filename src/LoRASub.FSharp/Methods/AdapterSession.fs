namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open TorchSharp

/// How MLP adapters are made and trained.
type AdapterOptions =
    {
        /// Width of each adapter, at least 1.
        Hidden: int
        /// Factor of an adapter's output.
        Scale: float
        /// Share of hidden units that a step drops, in [0, 1).
        Dropout: float
        /// Momentum and weight decay, of the classifier as well.
        Sgd: SgdOptions
    }

/// A linear classifier of unit features with unit weights: logits σ·cos(f, w_c) (Hou et al., CVPR 2019).
[<ReferenceEquality>]
type internal CosineClassifier =
    {
        /// [classes, d]
        Weight: torch.Tensor
        /// σ, scalar, trained as well.
        Scale: torch.Tensor
    }

[<RequireQualifiedAccess>]
module internal CosineClassifier =

    let tree: Tree<CosineClassifier> =
        tree {
            let! weight = Tree.field "weight" _.Weight Tree.tensor
            and! scale = Tree.field "scale" _.Scale Tree.tensor
            return { Weight = weight; Scale = scale }
        }

    /// Weights from U(−1/√d, 1/√d), σ = 1.
    let init (classes: int) (width: int64) dtype (device: torch.Device) key : CosineClassifier =
        let bound = 1.0 / sqrt (float width)

        {
            Weight = Rng.uniform -bound bound [| int64 classes; width |] dtype device key
            Scale = torch.ones ([||], dtype = dtype, device = device)
        }

    /// Rows of unit length; a row of zeros stays.
    let unit (rows: torch.Tensor) : torch.Tensor =
        rows.div ((rows.norm (1, keepdim = true)).clamp_min(Number.Of 1e-12))

    /// Features [n, d] -> [n, classes]. Differentiable.
    let logits (classifier: CosineClassifier) (features: torch.Tensor) : torch.Tensor =
        (unit features).mm((unit classifier.Weight).t()).mul classifier.Scale

/// A task that trains fresh MLP adapters with a cosine classifier of its own classes, by cross-entropy: what RanPAC does in
/// its first task, and EASE in every task.
[<ReferenceEquality>]
type internal AdapterSession =
    {
        Task: LearningTask
        /// One per block.
        Mlp: MlpAdapter[]
        Classifier: CosineClassifier
        /// Without adapters.
        Network: Adapters
        Optimizer: SgdState[]
        /// Of the next step's dropout.
        Key: RandomKey
    }

[<RequireQualifiedAccess>]
module internal AdapterSession =

    let mlpTree (options: AdapterOptions) : Tree<MlpAdapter[]> =
        Tree.array (MlpAdapter.tree options.Scale)

    let private trainedTree (options: AdapterOptions) =
        Tree.pair "adapters" (mlpTree options) "classifier" CosineClassifier.tree

    let private keyTree: Tree<RandomKey> =
        Tree.convert (fun bits -> { Bits = uint64 bits }) (fun key -> int64 key.Bits) Tree.int64

    let tree (options: AdapterOptions) (vit: VisionTransformer) (task: LearningTask) : Tree<AdapterSession> =
        tree {
            let! task = Tree.given _.Task task
            and! mlp = Tree.field "adapters" _.Mlp (mlpTree options)
            and! classifier = Tree.field "classifier" _.Classifier CosineClassifier.tree

            and! network =
                Tree.computed _.Network Adapters.tree (fun () -> VisionTransformer.frozen vit)

            and! optimizer = Tree.field "optimizer" _.Optimizer (Tree.array Sgd.tree)
            and! key = Tree.field "key" _.Key keyTree

            return
                {
                    Task = task
                    Mlp = mlp
                    Classifier = classifier
                    Network = network
                    Optimizer = optimizer
                    Key = key
                }
        }

    /// Rejects options out of range.
    let check (options: AdapterOptions) =
        if options.Hidden < 1 then
            Errors.reject "hidden width of an MLP adapter" "must be at least 1" $"{options.Hidden}" ""

        if not (options.Dropout >= 0.0 && options.Dropout < 1.0) then
            Errors.reject "dropout" "must be in [0, 1)" $"{options.Dropout}" ""

        Sgd.check 0.0 options.Sgd

    /// A session before its first step.
    let start (options: AdapterOptions) (vit: VisionTransformer) key (task: LearningTask) : AdapterSession =
        Scope.noGrad (tree options vit task).Leaves (fun () ->
            let master = Precision.master vit.Precision

            let mlp =
                vit.Blocks
                |> Array.mapi (fun i _ ->
                    Rng.fold (int64 i) key
                    |> MlpAdapter.init options.Scale options.Hidden vit.Width master vit.Device)

            let classifier =
                CosineClassifier.init task.Classes.Length vit.Width master vit.Device (Rng.fold -1L key)

            {
                Task = task
                Mlp = mlp
                Classifier = classifier
                Network = VisionTransformer.frozen vit
                Optimizer = LocalTask.optimizer options.Sgd (trainedTree options) (struct (mlp, classifier))
                Key = Rng.fold -2L key
            })

    let private dropping (options: AdapterOptions) key (mlp: MlpAdapter[]) =
        if options.Dropout = 0.0 then
            mlp
        else
            mlp
            |> Array.mapi (fun block adapter ->
                { adapter with
                    Dropout =
                        Some
                            {
                                Rate = options.Dropout
                                Key = Rng.fold (int64 block) key
                            }
                })

    /// One step on one batch.
    let update (options: AdapterOptions) vit (rates: Rates) (batch: Batch) (session: AdapterSession) =
        let lossOf (struct (mlp, classifier)) local =
            let network =
                { session.Network with
                    Mlp = dropping options session.Key mlp
                }

            let logits =
                VisionTransformer.features network vit batch.Images
                |> CosineClassifier.logits classifier // [n, classes of the task]

            struct (torch.nn.functional.cross_entropy (logits, local), logits)

        Scope.keep (Leaves.both (tree options vit session.Task).Leaves StepReport.leaves) (fun () ->
            let struct (struct (mlp, classifier), optimizer, report) =
                LocalTask.step
                    options.Sgd
                    rates
                    (trainedTree options)
                    session.Task
                    batch.Labels
                    lossOf
                    session.Optimizer
                    (struct (session.Mlp, session.Classifier))

            struct ({ session with
                        Mlp = mlp
                        Classifier = classifier
                        Optimizer = optimizer
                        Key = Rng.fold -1L session.Key
                    },
                    report))

    /// Copies of adapters.
    let copied (mlp: MlpAdapter[]) : MlpAdapter[] =
        mlp |> Array.map (fun one -> Tree.map _.clone() (MlpAdapter.tree one.Scale) one)

    /// The backbone with copies of adapters, one per block or none at all.
    let network (vit: VisionTransformer) (mlp: MlpAdapter[]) : Adapters =
        Scope.noGrad Adapters.leaves (fun () ->
            { VisionTransformer.frozen vit with
                Mlp = copied mlp
            })
