module LoRASub.Tests.AugmentedTripletTests

open LoRASub.Core
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Data
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "AugmentedTriplet" name law

let private propertyOf cases name law =
    propertyOf cases "AugmentedTriplet" name law

type Batch =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 12)>]
        Rows: int
        [<Between(1, 6)>]
        Width: int
        [<Between(1, 4)>]
        Classes: int
        [<Between(0, 5)>]
        Prototypes: int
        /// In tenths.
        [<Between(0, 30)>]
        Margin: int
        /// Every third row repeats the first.
        Duplicates: bool
        /// The first prototype points where the first row does.
        OnPrototype: bool
    }

    member c.M = float c.Margin / 10.0

    member c.Features =
        let drawn = unitRows (normalMatrix c.Seed c.Rows c.Width)

        if c.Duplicates then
            drawn |> Array2D.mapi (fun i j x -> if i % 3 = 0 then drawn[0, j] else x)
        else
            drawn

    member c.Labels = integers (c.Seed + 1) c.Classes c.Rows

    /// Raw, of any length.
    member c.Means =
        normalMatrix (c.Seed + 2) c.Prototypes c.Width
        |> Array2D.mapi (fun i j x ->
            if i = 0 && c.OnPrototype then
                4.0 * c.Features[0, j]
            else
                3.0 * x)

let private loss margin order prototypes labels features =
    AugmentedTriplet.loss margin order (tensor prototypes) (labelTensor labels) (tensor features)

let private value (c: Batch) =
    (numbers (loss c.M 2.0 c.Means c.Labels c.Features))[0]

let private gradient margin order prototypes labels features =
    let f (ps: torch.Tensor[]) =
        AugmentedTriplet.loss margin order (tensor prototypes) (labelTensor labels) ps[0]

    let struct (value, gradients) = Grad.valueAndGrad f [| tensor features |]
    (numbers value)[0], gradients[0].Value

/// For each row, the gradient of all rows equal to it: a matrix product gives duplicates unequal last digits, so that any
/// of them may be the extreme.
let private pooled (features: float[,]) (gradient: float[,]) : float[,] =
    let equal i j = row features i = row features j
    let rows = [ 0 .. Array2D.length1 features - 1 ]

    gradient
    |> Array2D.mapi (fun i k _ -> rows |> List.filter (equal i) |> List.sumBy (fun j -> gradient[j, k]))

let private sameGradient features expected (actual: torch.Tensor) =
    Expect.equal
        actual.shape
        [| for n in 0..1 -> int64 ((expected: float[,]).GetLength n) |]
        "gradient: shape"

    close
        "gradient"
        (Seq.cast<float>(pooled features expected))
        (Seq.cast<float>(pooled features (matrix actual)))

let private againstLoops order (c: Batch) =
    let expected, slopes, torn =
        Oracles.augmentedTriplet c.M order c.Means c.Labels c.Features

    let value, gradient = gradient c.M order c.Means c.Labels c.Features
    close "value" [ expected ] [ value ]

    if not torn then
        sameGradient c.Features slopes gradient

let private x, y, p =
    normalMatrix 1 4 3 |> unitRows, [| 0; 0; 1; 1 |], normalMatrix 2 2 3

[<Tests>]
let tests =
    testList
        "AugmentedTriplet"
        [
            propertyOf 300 "vectorised ≡ double loop, in value and gradient" (againstLoops 2.0)
            property "also with prototype distances of order 1" (againstLoops 1.0)
            property "also with prototype distances of order 3" (againstLoops 3.0)

            property "the gradient is the slope of the value" (fun (c: Batch) ->
                // central differences along one random direction, where the loss is smooth: no ties of extremes
                let c =
                    { c with
                        Duplicates = false
                        OnPrototype = false
                        Width = max 2 c.Width
                    }

                let direction = normalMatrix (c.Seed + 5) c.Rows c.Width

                let at step =
                    let moved = Oracles.add c.Features (Oracles.scale step direction)
                    let value, _, _ = Oracles.augmentedTriplet c.M 2.0 c.Means c.Labels moved
                    value

                let near step = (at step - at -step) / (2.0 * step)
                // a kink within the step shows as two steps that disagree
                if abs (near 1e-5 - near 1e-6) < 1e-7 then
                    let _, slopes = gradient c.M 2.0 c.Means c.Labels c.Features
                    let along = Seq.sum (Seq.map2 (*) (Seq.cast<float> direction) (numbers slopes))
                    closeTo 1e-5 "slope" [ near 1e-5 ] [ along ])

            property "0 ≤ L ≤ 2 + m on unit rows" (fun (c: Batch) ->
                let l = value c
                Expect.isTrue (l >= 0.0 && l <= 2.0 + c.M + 1e-12) $"{l}")

            property "the order of the batch does not matter" (fun (c: Batch) ->
                let o = order c.Seed c.Rows

                close
                    "loss"
                    [ value c ]
                    (numbers (
                        loss c.M 2.0 c.Means (o |> Array.map (fun i -> c.Labels[i])) (pick o c.Features)
                    )))

            property "the names of the labels do not matter" (fun (c: Batch) ->
                let names = [| 7; -3; 100; 2 |]

                close
                    "loss"
                    [ value c ]
                    (numbers (loss c.M 2.0 c.Means (c.Labels |> Array.map (fun l -> names[l])) c.Features)))

            property "a joint rotation does not matter (norm 2)" (fun (c: Batch) ->
                let q = orthogonal (c.Seed + 3) c.Width

                let turned =
                    loss c.M 2.0 (Oracles.multiply c.Means q) c.Labels (Oracles.multiply c.Features q)
                // roots of tiny squared distances: an error of 1e-16 in the square is one of 1e-8 in the distance
                closeTo 1e-7 "loss" [ value c ] (numbers turned))

            property "the lengths of raw prototypes do not matter" (fun (c: Batch) ->
                let longer = c.Means |> Array2D.mapi (fun i _ v -> v * float (1 + i * c.Seed))
                closeTo 1e-7 "loss" [ value c ] (numbers (loss c.M 2.0 longer c.Labels c.Features)))

            property "one more prototype never lowers it" (fun (c: Batch) ->
                let more = { c with Prototypes = c.Prototypes + 1 }
                atMost "without it" (value more + 1e-12) (value c))

            property "a single class and no prototypes give 0" (fun (c: Batch) ->
                closeTo 1e-12 "loss" [ 0.0 ] [ value { c with Classes = 1; Prototypes = 0 } ])

            property "with m ≥ 2 the hinge is never inactive: the loss is affine in m" (fun (c: Batch) ->
                let c =
                    { c with
                        Margin = 20 + c.Margin
                        Prototypes = max 1 c.Prototypes
                    }
                // only a batch of one class can put the margin on both sides, and a prototype is then nearer
                close "one more unit of margin" [ value c + 1.0 ] [ value { c with Margin = c.Margin + 10 } ])

            property "finite gradients with duplicate rows" (fun (c: Batch) ->
                let same = c.Features |> Array2D.mapi (fun _ j _ -> c.Features[0, j])
                let value, slopes = gradient c.M 2.0 c.Means c.Labels same
                Expect.isTrue (System.Double.IsFinite value) "value"
                finite "gradient" slopes)

            property "borrows: features, labels and prototypes keep their bits" (fun (c: Batch) ->
                let all = [ tensor c.Means; labelTensor c.Labels; tensor c.Features ]
                let before = all |> List.map _.clone()
                AugmentedTriplet.loss c.M 2.0 all[0] all[1] all[2] |> ignore
                List.iter2 (identical "argument") before all)

            testCase "a batch larger than cdist's direct range ≡ the loops" (fun () ->
                Scope.run (fun () ->
                    againstLoops
                        2.0
                        {
                            Seed = 5
                            Rows = 60
                            Width = 4
                            Classes = 4
                            Prototypes = 40
                            Margin = 10
                            Duplicates = true
                            OnPrototype = false
                        }))

            testList
                "exact ties share the gradient evenly"
                [
                    let ties name prototypes labels features =
                        testCase name (fun () ->
                            Scope.run (fun () ->
                                let expected, slopes, _ =
                                    Oracles.augmentedTriplet 1.0 2.0 prototypes labels features

                                let value, actual = gradient 1.0 2.0 prototypes labels features
                                close "value" [ expected ] [ value ]
                                sameGradient features slopes actual))

                    let none = Array2D.zeroCreate 0 2
                    let east, north, south = [ 1.0; 0.0 ], [ 0.0; 1.0 ], [ 0.0; -1.0 ]
                    ties "of two other classes" none [| 0; 1; 2 |] (array2D [ east; north; south ])

                    ties
                        "of two rows of the same class"
                        none
                        [| 0; 0; 0; 1 |]
                        (array2D [ east; north; south; [ -1.0; 0.0 ] ])

                    let wide = unitRows (normalMatrix 3 2 197)

                    ties
                        "of duplicate rows of a wide network"
                        (Array2D.zeroCreate 0 197)
                        [| 0; 1; 1; 1; 1; 0; 0; 1; 1 |]
                        (pick [| 0; 1; 1; 1; 1; 0; 0; 1; 1 |] wide)

                    ties "of duplicate rows" none [| 0; 1; 1; 1 |] (array2D [ east; north; north; south ])

                    ties
                        "of a row and a prototype"
                        (array2D [ [ 0.0; -3.0 ] ])
                        [| 0; 1 |]
                        (array2D [ east; north ])
                ]

            testCase "float32 stays close to float64" (fun () ->
                Scope.run (fun () ->
                    let single (t: torch.Tensor) = t.``to`` torch.float32

                    let l =
                        AugmentedTriplet.loss
                            1.0
                            2.0
                            (single (tensor p))
                            (labelTensor y)
                            (single (tensor x))

                    Expect.equal l.dtype torch.float32 "type"
                    closeTo 1e-5 "loss" (numbers (loss 1.0 2.0 p y x)) [ float (l.item<single>()) ]))

            rejects "labels of another batch" [ "triplet labels"; "[4]"; "[3]" ] (fun () ->
                loss 1.0 2.0 p y[..2] x |> ignore)
            rejects "features that are no matrix" [ "triplet features"; "[batch, width]"; "[12]" ] (fun () ->
                AugmentedTriplet.loss 1.0 2.0 (tensor p) (labelTensor y) ((tensor x).reshape -1L)
                |> ignore)
            rejects
                "prototypes of another width"
                [ "triplet prototypes"; "[classes, 3]"; "[2, 2]" ]
                (fun () -> loss 1.0 2.0 p[*, ..1] y x |> ignore)
            rejects "prototypes of another type" [ "triplet prototypes"; "Float64"; "Float32" ] (fun () ->
                AugmentedTriplet.loss 1.0 2.0 ((tensor p).``to`` torch.float32) (labelTensor y) (tensor x)
                |> ignore)
            rejects "prototypes on another device" [ "triplet prototypes"; string device; "meta" ] (fun () ->
                AugmentedTriplet.loss 1.0 2.0 (onMeta (tensor p)) (labelTensor y) (tensor x)
                |> ignore)
            rejects "labels on another device" [ "triplet labels"; string device; "meta" ] (fun () ->
                AugmentedTriplet.loss 1.0 2.0 (tensor p) (onMeta (labelTensor y)) (tensor x)
                |> ignore)
            rejects "an order below 1" [ "norm order"; "at least 1"; "0.5" ] (fun () ->
                loss 1.0 0.5 p y x |> ignore)
            rejects "an order that is NaN" [ "norm order"; "NaN" ] (fun () -> loss 1.0 nan p y x |> ignore)

            testCase "value and gradient on the meta device" (fun () ->
                Scope.run (fun () ->
                    for count in [ 0; 2 ] do
                        let prototypes = onMeta (tensor p[.. count - 1, *])

                        let f (ps: torch.Tensor[]) =
                            AugmentedTriplet.loss 1.0 2.0 prototypes (onMeta (labelTensor y)) ps[0]

                        let struct (value, gradients) = Grad.valueAndGrad f [| onMeta (tensor x) |]
                        expectMeta [] value

                        expectMeta
                            [ int64 (Array2D.length1 x); int64 (Array2D.length2 x) ]
                            gradients[0].Value))

            noLeaks "loss" (fun () -> tensor p, labelTensor y, tensor x) (fun (p, y, x) ->
                [ AugmentedTriplet.loss 1.0 2.0 p y x ])

            noLeaks "its gradient" (fun () -> tensor p, labelTensor y, tensor x) (fun (p, y, x) ->
                let struct (value, gradients) =
                    Grad.valueAndGrad (fun ps -> AugmentedTriplet.loss 1.0 2.0 p y ps[0]) [| x |]

                [ value; gradients[0].Value ])
        ]
