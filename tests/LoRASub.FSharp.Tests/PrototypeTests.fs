module LoRASub.Tests.PrototypeTests

open Expecto
open LoRASub
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Prototype" name law
let private float64 = torch.ScalarType.Float64

type Features =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 12)>]
        Rows: int
        [<Between(1, 5)>]
        Width: int
        [<Between(1, 5)>]
        Classes: int
    }

    interface IConstrained with
        member c.Holds = c.Classes <= c.Rows

    member c.X = normalMatrix c.Seed c.Rows c.Width |> Oracles.scale 3.0

    /// Every class at least once.
    member c.Labels =
        Array.append [| 0 .. c.Classes - 1 |] (integers c.Seed c.Classes (c.Rows - c.Classes))

    member c.Means = normalMatrix (c.Seed + 1) c.Classes c.Width |> Oracles.scale 5.0

let private zero (c: Features) =
    ClassSums.zero c.Classes (int64 c.Width) float64 device

let private observe (x: float[,]) (labels: int[]) sums =
    ClassSums.observe (tensor x) (labelTensor labels) sums

let private observed (c: Features) = observe c.X c.Labels (zero c)
let private means sums = ClassSums.means string sums

let private learned (m: float[,]) : Prototypes =
    {
        Means = tensor m
        Classes = Array.init (Array2D.length1 m) id
    }

let private nearest p x =
    wholeNumbers (Prototype.nearest p (tensor x)) |> Array.map int

let private sameSums (e: ClassSums) (a: ClassSums) =
    closeTensors "sums" e.Sums a.Sums
    identical "counts" e.Counts a.Counts

let private example: Features =
    {
        Seed = 1
        Rows = 6
        Width = 3
        Classes = 2
    }

[<Tests>]
let tests =
    testList
        "Prototype"
        [
            property "streaming mean = mean" (fun (c: Features) ->
                let cut = c.Seed % (c.Rows + 1) // either part may be empty

                let halves =
                    zero c
                    |> observe c.X[.. cut - 1, *] c.Labels[.. cut - 1]
                    |> observe c.X[cut.., *] c.Labels[cut..]

                closeMatrix "means" (Oracles.prototypes c.Classes c.Labels c.X) (means halves))

            property
                "sums of shards merge: associative, commutative, zero is the identity"
                (fun (c: Features) ->
                    let part i =
                        zero c |> observe (pick [| i % c.Rows |] c.X) [| c.Labels[i % c.Rows] |]

                    let a, b, d = part c.Seed, part (c.Seed / 7), part (c.Seed / 31)
                    sameSums ((a + b) + d) (a + (b + d))
                    sameSums (a + b) (b + a)
                    sameSums a (a + zero c)
                    sameSums a (zero c + a))

            property "the order of the images does not matter" (fun (c: Features) ->
                let o = order c.Seed c.Rows

                sameSums
                    (observed c)
                    (zero c |> observe (pick o c.X) (o |> Array.map (fun i -> c.Labels[i]))))

            property "observing borrows its arguments" (fun (c: Features) ->
                let x, y, sums = tensor c.X, labelTensor c.Labels, zero c
                let all = [ x; y; sums.Sums; sums.Counts ]
                let before = all |> List.map _.clone()
                ClassSums.observe x y sums |> ignore
                List.iter2 (identical "argument") before all)

            property "squared distances ≡ the loops" (fun (c: Features) ->
                closeMatrix
                    "distances"
                    (Oracles.squaredDistances c.Means c.X)
                    (Prototype.distances (learned c.Means) (tensor c.X)))

            property "the nearest prototype ≡ the loops" (fun (c: Features) ->
                let expected = Oracles.squaredDistances c.Means c.X

                nearest (learned c.Means) c.X
                |> Array.iteri (fun i position ->
                    // a row whose two nearest differ by rounding alone may go to either
                    atMost "its distance" (Array.min (row expected i) + 1e-12) expected[i, position]))

            property "nearest on unit vectors = largest cosine" (fun (c: Features) ->
                let cosines = Oracles.multiply (unitRows c.X) (Oracles.transpose (unitRows c.Means))

                nearest (learned c.Means) c.X
                |> Array.iteri (fun i position ->
                    closeTo 1e-9 "cosine" [ Array.max (row cosines i) ] [ cosines[i, position] ]))

            property "adding a class never changes or reorders the others' scores" (fun (c: Features) ->
                let old = learned c.Means

                let more =
                    Prototype.append [| c.Classes |] (tensor (normalMatrix (c.Seed + 9) 1 c.Width)) old

                let before = Prototype.distances old (tensor c.X)
                let after = (Prototype.distances more (tensor c.X)).narrow(1L, 0L, int64 c.Classes)
                closeTo 1e-12 "scores" (numbers before) (numbers after))

            property "appending keeps the old rows bit by bit" (fun (c: Features) ->
                let old = learned c.Means

                let more =
                    Prototype.append [| 10; 20 |] (tensor (normalMatrix (c.Seed + 9) 2 c.Width)) old

                identical "old rows" old.Means (more.Means.narrow (0L, 0L, int64 c.Classes))

                closeMatrix
                    "new rows"
                    (normalMatrix (c.Seed + 9) 2 c.Width)
                    (more.Means.narrow (0L, int64 c.Classes, 2L))

                Expect.equal more.Classes (Array.append old.Classes [| 10; 20 |]) "classes"
                closeMatrix "the argument" c.Means old.Means)

            property
                "the length of a prototype does not matter, that of a feature only through 1e-8"
                (fun (c: Features) ->
                    let plain = Prototype.distances (learned c.Means) (tensor c.X)
                    let longer = c.Means |> Array2D.mapi (fun i _ v -> v * float (2 + i))
                    closeTensors "prototypes" plain (Prototype.distances (learned longer) (tensor c.X))

                    // a row of length ‖f‖ is short of a unit vector by 1e-8/‖f‖, which moves its square by up to 4 times that
                    let shortest = rows c.X |> Array.map norm |> Array.min

                    closeTo
                        (1e-9 + 4e-8 / shortest)
                        "features"
                        (numbers plain)
                        (numbers (Prototype.distances (learned c.Means) (tensor (Oracles.scale 7.0 c.X)))))

            property "of equal prototypes the first is nearest" (fun (c: Features) ->
                let twice =
                    pick
                        [|
                            for _ in 1..2 do
                                yield! [| 0 .. c.Classes - 1 |]
                        |]
                        c.Means

                Expect.all
                    (nearest (learned twice) c.X)
                    (fun position -> position < c.Classes)
                    "first copies")

            testCase "distances that rounding cannot tell apart tie, others do not" (fun () ->
                Scope.run (fun () ->
                    for dtype in [ float64; torch.float32 ] do
                        let unit = Precision.epsilon dtype

                        let rows =
                            array2D
                                [
                                    [ 0.5; 0.5 + 8.0 * unit; 0.5 - 8.0 * unit ]
                                    [ 0.5 + 64.0 * unit; 0.5; 0.5 - 8.0 * unit ]
                                    [ 0.5; 0.5 - 64.0 * unit; 0.25 ]
                                ]

                        let found = wholeNumbers (Prototype.closest ((tensor rows).``to`` dtype))
                        Expect.equal found [| 0L; 1L; 2L |] $"{dtype}"))

            testCase "of many equal prototypes of a wide network the first is nearest" (fun () ->
                Scope.run (fun () ->
                    for dtype in [ float64; torch.float32 ] do
                        let one = normalMatrix 1 1 197
                        let copies = 333

                        let equal =
                            {
                                Means = (tensor (pick (Array.zeroCreate copies) one)).``to`` dtype
                                Classes = [| 0 .. copies - 1 |]
                            }

                        let x = (tensor (normalMatrix 2 65 197)).``to`` dtype
                        Expect.all (wholeNumbers (Prototype.nearest equal x)) ((=) 0L) $"{dtype}"))

            testCase "a feature of zeros has a distance to every class" (fun () ->
                Scope.run (fun () ->
                    let d =
                        Prototype.distances (learned example.Means) (tensor (Array2D.zeroCreate 1 3))

                    close "distances" [ 1.0; 1.0 ] (numbers d)))

            testCase "one class takes everything" (fun () ->
                Scope.run (fun () ->
                    Expect.equal
                        (nearest (learned example.Means[..0, *]) example.X)
                        (Array.zeroCreate 6)
                        "positions"))

            testCase "no feature, no prediction" (fun () ->
                Scope.run (fun () ->
                    Expect.equal (nearest (learned example.Means) example.X[.. -1, *]) [||] "positions"))

            testCase "prototypes begin empty" (fun () ->
                Scope.run (fun () ->
                    let none = Prototype.none 3L float64 device
                    Expect.equal none.Means.shape [| 0L; 3L |] "shape"
                    let first = Prototype.append [| 4; 2 |] (tensor example.Means) none
                    identical "means" (tensor example.Means) first.Means
                    Expect.equal first.Classes [| 4; 2 |] "classes"))

            rejects "prediction without classes" [ "prediction"; "at least one"; "learn a task" ] (fun () ->
                Prototype.nearest (Prototype.none 3L float64 device) (tensor example.X)
                |> ignore)

            rejects
                "a class without images, by its name"
                [ "class seven"; "at least one training image" ]
                (fun () ->
                    let sums = zero example |> observe example.X[..0, *] [| 0 |]

                    ClassSums.means (fun c -> if c = 1 then "class seven" else "another") sums
                    |> ignore)

            rejects "a known class" [ "class 1"; "must be new" ] (fun () ->
                Prototype.append [| 5; 1 |] (tensor example.Means) (learned example.Means)
                |> ignore)

            rejects "a new class twice" [ "class 5"; "must be new" ] (fun () ->
                Prototype.append [| 5; 5 |] (tensor example.Means) (learned example.Means)
                |> ignore)

            rejects "more means than classes" [ "new prototypes"; "[1, 3]"; "[2, 3]" ] (fun () ->
                Prototype.append [| 5 |] (tensor example.Means) (learned example.Means)
                |> ignore)

            rejects "new prototypes of another type" [ "new prototypes"; "Float64"; "Float32" ] (fun () ->
                Prototype.append [| 5 |] (torch.zeros (1L, 3L, device = device)) (learned example.Means)
                |> ignore)

            rejects "new prototypes on another device" [ "new prototypes"; string device; "meta" ] (fun () ->
                Prototype.append [| 5; 6 |] (onMeta (tensor example.Means)) (learned example.Means)
                |> ignore)

            rejects "features of another width" [ "features"; "[batch, 3]"; "[6, 2]" ] (fun () ->
                Prototype.distances (learned example.Means) (tensor example.X[*, ..1]) |> ignore)

            rejects "features of another type" [ "features"; "Float64"; "Float32" ] (fun () ->
                Prototype.distances (learned example.Means) (torch.zeros (1L, 3L, device = device))
                |> ignore)

            rejects "summed features of another width" [ "features"; "[batch, 3]"; "[6, 2]" ] (fun () ->
                observe example.X[*, ..1] example.Labels (zero example) |> ignore)

            rejects "labels of another batch" [ "labels"; "[6]"; "[5]" ] (fun () ->
                observe example.X example.Labels[..4] (zero example) |> ignore)

            rejects "labels of another type" [ "labels"; "Int64"; "Int32" ] (fun () ->
                ClassSums.observe
                    (tensor example.X)
                    ((labelTensor example.Labels).``to`` torch.int32)
                    (zero example)
                |> ignore)

            rejects "features to sum on another device" [ "features"; string device; "meta" ] (fun () ->
                ClassSums.observe (onMeta (tensor example.X)) (labelTensor example.Labels) (zero example)
                |> ignore)

            // one class would broadcast silently
            rejects "sums of different classes" [ "class sums"; "[1, 3]"; "[2, 3]" ] (fun () ->
                ClassSums.zero 1 3L float64 device + ClassSums.zero 2 3L float64 device
                |> ignore)

            testCase
                "sums and distances on the meta device; means and errors read counts on the host"
                (fun () ->
                    Scope.run (fun () ->
                        let x, y = onMeta (tensor example.X), onMeta (labelTensor example.Labels)
                        let sums = ClassSums.observe x y (ClassSums.zero 2 3L float64 torch.META)
                        expectMeta [ 2L; 3L ] sums.Sums
                        expectMeta [ 2L ] sums.Counts
                        expectMeta [ 2L; 3L ] (sums + sums).Sums
                        let none = Prototype.none 3L float64 torch.META
                        let p = Prototype.append [| 0; 1 |] (onMeta (tensor example.Means)) none
                        expectMeta [ 6L; 2L ] (Prototype.distances p x)
                        expectMeta [ 6L ] (Prototype.nearest p x)))

            (let inputs () =
                tensor example.X, labelTensor example.Labels, zero example

             let classes () = learned example.Means, tensor example.X

             testList
                 "ownership"
                 [
                     noLeaks "zero" ignore (fun () -> ClassSums.leaves (zero example))
                     noLeaks "observe" inputs (fun (x, y, sums) ->
                         ClassSums.leaves (ClassSums.observe x y sums))
                     noLeaks "⊕" inputs (fun (_, _, sums) -> ClassSums.leaves (sums + sums))
                     noLeaks "means" (fun () -> observed example) (fun sums -> [ means sums ])
                     noLeaks "none" ignore (fun () -> Prototype.leaves (Prototype.none 3L float64 device))
                     noLeaks "append" classes (fun (p, x) ->
                         Prototype.leaves (Prototype.append [| 2; 3; 4; 5; 6; 7 |] x p))
                     noLeaks "distances" classes (fun (p, x) -> [ Prototype.distances p x ])
                     noLeaks "nearest" classes (fun (p, x) -> [ Prototype.nearest p x ])
                 ])
        ]
