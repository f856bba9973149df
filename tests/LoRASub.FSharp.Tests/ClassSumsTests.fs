module LoRASub.Tests.ClassSumsTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "ClassSums" name law
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

let private zero (c: Features) =
    ClassSums.zero c.Classes (int64 c.Width) float64 device

let private observe (x: float[,]) (labels: int[]) sums =
    ClassSums.observe (tensor x) (labelTensor labels) sums

let private observed (c: Features) = observe c.X c.Labels (zero c)
let private means sums = ClassSums.means string sums

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
        "ClassSums"
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

            rejects
                "a class without images, by its name"
                [ "class seven"; "at least one training image" ]
                (fun () ->
                    let sums = zero example |> observe example.X[..0, *] [| 0 |]

                    ClassSums.means (fun c -> if c = 1 then "class seven" else "another") sums
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

            property "growing adds rows of no image, forgetting removes one" (fun (c: Features) ->
                let sums = observed c
                let grown = ClassSums.grow 2 sums
                identical "old sums" sums.Sums (grown.Sums.narrow (0L, 0L, int64 c.Classes))

                Expect.equal
                    (ClassSums.counts grown)
                    (Array.append (ClassSums.counts sums) [| 0L; 0L |])
                    "counts"

                let row = c.Seed % c.Classes
                let without = ClassSums.forget row sums
                Expect.equal (ClassSums.counts without) (Array.removeAt row (ClassSums.counts sums)) "counts"

                closeMatrix
                    "sums"
                    (pick (Array.removeAt row [| 0 .. c.Classes - 1 |]) (matrix sums.Sums))
                    without.Sums)

            rejects "a row that is not there" [ "class row"; "[0, 1]"; "2" ] (fun () ->
                ClassSums.forget 2 (zero example) |> ignore)

            testCase "sums on the meta device; means read counts on the host" (fun () ->
                Scope.run (fun () ->
                    let x, y = onMeta (tensor example.X), onMeta (labelTensor example.Labels)
                    let sums = ClassSums.observe x y (ClassSums.zero 2 3L float64 torch.META)
                    expectMeta [ 2L; 3L ] sums.Sums
                    expectMeta [ 2L ] sums.Counts
                    expectMeta [ 2L; 3L ] (sums + sums).Sums))

            (let inputs () =
                tensor example.X, labelTensor example.Labels, zero example

             testList
                 "ownership"
                 [
                     noLeaks "zero" ignore (fun () -> ClassSums.leaves (zero example))
                     noLeaks "observe" inputs (fun (x, y, sums) ->
                         ClassSums.leaves (ClassSums.observe x y sums))
                     noLeaks "⊕" inputs (fun (_, _, sums) -> ClassSums.leaves (sums + sums))
                     noLeaks "means" (fun () -> observed example) (fun sums -> [ means sums ])
                     noLeaks "grow" inputs (fun (_, _, sums) -> ClassSums.leaves (ClassSums.grow 1 sums))
                     noLeaks "forget" inputs (fun (_, _, sums) -> ClassSums.leaves (ClassSums.forget 0 sums))
                 ])
        ]
