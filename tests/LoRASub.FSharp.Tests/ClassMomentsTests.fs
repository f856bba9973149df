module LoRASub.Tests.ClassMomentsTests

open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Measure
open LoRASub.Fluent
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "ClassMoments" name law

type Tokens =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 12)>]
        Images: int
        [<Between(0, 3)>]
        Depth: int
        [<Between(1, 4)>]
        Width: int
        [<Between(1, 4)>]
        Classes: int
    }

    interface IConstrained with
        member c.Holds = c.Classes <= c.Images

    /// [layers][images, width]; the last is the output.
    member c.Layers =
        Array.init (c.Depth + 1) (fun i -> normalMatrix (c.Seed + i) c.Images c.Width |> Oracles.scale 3.0)

    /// Every class at least once.
    member c.Labels =
        Array.append [| 0 .. c.Classes - 1 |] (integers c.Seed c.Classes (c.Images - c.Classes))

let features (layers: float[,][]) : torch.Tensor[] = Array.map tensor layers

let private zero (c: Tokens) =
    ClassMoments.zero c.Classes c.Depth (int64 c.Width) device

let private observe (images: int[]) (c: Tokens) moments =
    ClassMoments.observe
        (features (Array.map (pick images) c.Layers))
        (labelTensor (images |> Array.map (fun i -> c.Labels[i])))
        moments

let private all (c: Tokens) =
    observe [| 0 .. c.Images - 1 |] c (zero c)

let private means moments = ClassMoments.means string moments
let private spreads moments = ClassMoments.spreads string moments

let private same (e: ClassMoments) (a: ClassMoments) =
    closeTensors "sums" e.Sums a.Sums
    closeTensors "squares" e.Squares a.Squares
    identical "counts" e.Counts a.Counts

let private example =
    {
        Seed = 1
        Images = 6
        Depth = 2
        Width = 3
        Classes = 2
    }

[<Tests>]
let tests =
    testList
        "ClassMoments"
        [
            property "means and spreads ≡ the loops" (fun (c: Tokens) ->
                let moments = all c

                let perClass =
                    [
                        for p in 0 .. c.Classes - 1 do
                            for layer in c.Layers do
                                let mine =
                                    rows layer
                                    |> Array.indexed
                                    |> Array.filter (fun (i, _) -> c.Labels[i] = p)

                                let mine = Array.map snd mine

                                let mean =
                                    Array.init c.Width (fun j -> mine |> Array.averageBy (Array.item j))

                                let apart x = norm (Array.map2 (-) x mean) ** 2.0
                                mean, sqrt (Array.averageBy apart mine)
                    ]

                close "means" (perClass |> Seq.collect fst) (numbers (means moments))
                close "spreads" (perClass |> Seq.map snd) (numbers (spreads moments)))

            property
                "moments of shards merge: associative, commutative, zero is the identity"
                (fun (c: Tokens) ->
                    let part i = observe [| i % c.Images |] c (zero c)
                    let a, b, d = part c.Seed, part (c.Seed / 7), part (c.Seed / 31)
                    same ((a + b) + d) (a + (b + d))
                    same (a + b) (b + a)
                    same a (a + zero c)
                    same a (zero c + a))

            property "neither batches nor their order matter" (fun (c: Tokens) ->
                let mixed, cut = order c.Seed c.Images, c.Seed % (c.Images + 1) // either part may be empty
                same (all c) (zero c |> observe mixed[.. cut - 1] c |> observe mixed[cut..] c)
                same (all c) (observe mixed[.. cut - 1] c (zero c) + observe mixed[cut..] c (zero c)))

            property "moving every image by v moves each mean by v and no spread" (fun (c: Tokens) ->
                let v = normals (c.Seed + 50) c.Width

                let moved =
                    ClassMoments.observe
                        (features (c.Layers |> Array.map (Array2D.mapi (fun _ j x -> x + v[j]))))
                        (labelTensor c.Labels)
                        (zero c)

                closeTensors "means" ((means (all c)).add(vector v)) (means moved)
                // a root takes the rounding of its square
                closeTo 1e-6 "spreads" (numbers (spreads (all c))) (numbers (spreads moved)))

            property "observing borrows its arguments" (fun (c: Tokens) ->
                let x, y, moments = features c.Layers, labelTensor c.Labels, all c
                let given = [ yield! x; y; yield! ClassMoments.leaves moments ]
                let before = given |> List.map _.clone()
                ClassMoments.observe x y moments |> ignore
                List.iter2 (identical "argument") before given)

            testCase "one image, or equal ones, have no spread" (fun () ->
                Scope.run (fun () ->
                    let row = [| 123.4; -56.78; 0.1 |]

                    for images in [ 1; 3; 1000; 20000 ] do
                        let layer = array2D (Array.create images row)

                        let moments =
                            ClassMoments.zero 1 0 3L device
                            |> ClassMoments.observe
                                (features [| layer |])
                                (labelTensor (Array.zeroCreate images))

                        Expect.equal (numbers (spreads moments)) [| 0.0 |] $"{images} images"))

            testCase "float32 features are summed in float64" (fun () ->
                Scope.run (fun () ->
                    let x = (Array.last (features example.Layers)).``to`` torch.float32

                    let moments =
                        ClassMoments.observe [| x; x; x |] (labelTensor example.Labels) (zero example)

                    let exact = x.``to`` torch.float64

                    let expected =
                        ClassMoments.observe
                            [| exact; exact; exact |]
                            (labelTensor example.Labels)
                            (zero example)

                    identical "sums" expected.Sums moments.Sums))

            rejects "a class without images, by its name" [ "class seven"; "at least one image" ] (fun () ->
                observe [| 0 |] example (zero example)
                |> ClassMoments.means (fun c -> if c = 1 then "class seven" else "another")
                |> ignore)

            rejects "features of another depth" [ "features"; "3 layers"; "2" ] (fun () ->
                ClassMoments.observe
                    (features example.Layers[1..])
                    (labelTensor example.Labels)
                    (zero example)
                |> ignore)

            rejects "a block of another width" [ "features of a layer"; "[6, 3]"; "[6, 2]" ] (fun () ->
                ClassMoments.observe
                    (features (Array.updateAt 0 (normalMatrix 1 6 2) example.Layers))
                    (labelTensor example.Labels)
                    (zero example)
                |> ignore)

            rejects "labels of another batch" [ "features of a layer"; "[5, 3]"; "[6, 3]" ] (fun () ->
                ClassMoments.observe
                    (features example.Layers)
                    (labelTensor example.Labels[..4])
                    (zero example)
                |> ignore)

            rejects "features on another device" [ "features"; string device; "meta" ] (fun () ->
                let x = features example.Layers

                ClassMoments.observe
                    (Array.updateAt 0 (onMeta x[0]) x)
                    (labelTensor example.Labels)
                    (zero example)
                |> ignore)

            rejects "moments of different classes" [ "class moments"; "[1, 3, 3]"; "[2, 3, 3]" ] (fun () ->
                zero { example with Classes = 1 } + zero example |> ignore)

            testCase "observe and merge on the meta device: no batch waits for the host" (fun () ->
                Scope.run (fun () ->
                    let x = features example.Layers

                    let moments =
                        ClassMoments.observe
                            (Array.map onMeta x)
                            (onMeta (labelTensor example.Labels))
                            (ClassMoments.zero 2 2 3L torch.META)

                    expectMeta [ 2L; 3L; 3L ] (moments + moments).Sums
                    expectMeta [ 2L; 3L ] moments.Squares
                    expectMeta [ 2L ] moments.Counts))

            (let inputs () =
                features example.Layers, labelTensor example.Labels, zero example

             testList
                 "ownership"
                 [
                     noLeaks "zero" ignore (fun () -> ClassMoments.leaves (zero example))
                     noLeaks "observe" inputs (fun (x, y, m) ->
                         ClassMoments.leaves (ClassMoments.observe x y m))
                     noLeaks "⊕" inputs (fun (_, _, m) -> ClassMoments.leaves (m + m))
                     noLeaks "means" (fun () -> all example) (fun m -> [ means m ])
                     noLeaks "spreads" (fun () -> all example) (fun m -> [ spreads m ])
                 ])
        ]
