module LoRASub.Tests.NullSpaceLoraTests

open LoRASub.Core
open LoRASub.Subspace
open LoRASub.Train
open LoRASub.Backbone
open LoRASub.Methods
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open LoRASub.Tests.LoraSteps
open TorchSharp

/// A later task, and how far it is trained.
type Case =
    {
        [<Between(0, 9999)>]
        Seed: int
        /// Half the width, which two heads divide.
        [<Between(2, 4)>]
        Half: int
        [<Between(1, 4)>]
        Steps: int
        [<Between(1, 2)>]
        Task: int
        /// In percent.
        [<Between(50, 99)>]
        Energy: int
        Sparse: bool
    }

    member c.Share = float c.Energy / 100.0

    member c.Plan =
        plan c.Seed (2 * c.Half) (fun m ->
            { m with
                BInit = if c.Sparse then BInit.Sparse else BInit.Zeros
            })

let private methodOf share (plan: Plan) =
    NullSpaceLora.methodWith { Energy = share } plan.Backbone plan.Settings.Method

let private property name law =
    propertyOf<Case> 10 "NullSpaceLora" name law

/// NNᵀ of each block, from the slow moments of tasks, each under the network after it.
let private slowSpaces share (moments: SecondMoment[]) =
    moments
    |> Array.map (fun moment ->
        let spectrum, vectors = Oracles.eigen (matrix moment.Moment)
        let d = spectrum.Length
        let k = min (d - 1) (Oracles.retainedRank share spectrum)
        Oracles.subtract (Oracles.identity d) (Oracles.projector vectors k))

/// A plan whose first task has one image again and again: 5 tokens, of at most 5 dimensions.
let private ofOneImage (c: Case) =
    let plan = c.Plan
    let images = plan.Stream.Dataset.Train

    let dataset =
        { plan.Stream.Dataset with
            Train =
                { images with
                    Read = fun i -> images.Read(if images.Labels[i] < 2 then 0 else i)
                }
        }

    Tiny.planWith plan.Settings dataset plan.Backbone

[<Tests>]
let tests =
    testList
        "NullSpaceLora"
        [
            property
                "the state holds the token moments of every task, each under the network after it"
                (fun c ->
                    let plan = c.Plan
                    let method = methodOf c.Share plan

                    let states =
                        [ 0 .. c.Task ]
                        |> List.map (fun i -> let struct (s, _, _) = prepared plan method i in s)

                    let last = List.last states

                    let expected =
                        List.tail states
                        |> List.mapi (fun task state ->
                            slowMoments (baked 1.0 state.Deltas plan.Backbone) (Tiny.batches plan task))

                    for block in 0 .. plan.Backbone.Blocks.Length - 1 do
                        let mean =
                            expected
                            |> List.map (fun moments -> moments[block])
                            |> List.reduce Oracles.add
                            |> Oracles.scale (1.0 / float c.Task)

                        closeMatrix "moment" mean last.Moments[block].Moment

                        Expect.equal
                            last.Moments[block].Count
                            (int64 c.Task * 6L * 5L)
                            "6 images of 5 tokens each")

            property "the first task is plain Adam" (fun c ->
                let plan = c.Plan
                let method = methodOf c.Share plan
                let struct (_, _, training) = prepared plan method 0
                Expect.isEmpty training.Projections "projections"
                against plan method _.Deltas noMore c.Steps (fun _ -> Oracles.Anywhere) training)

            property
                "a later task is Adam whose updates of A are multiplied by NNᵀ, and B's are free"
                (fun c ->
                    let plan = c.Plan
                    let method = methodOf c.Share plan
                    let struct (state, observed, training) = prepared plan method c.Task
                    let spaces = slowSpaces c.Share state.Moments
                    let last = 4 * spaces.Length

                    let start = Seq.collect Lora.leaves observed.Lora |> Array.ofSeq
                    let prepared = parameters training

                    for i in 0..2 .. last - 1 do
                        let expected = Oracles.multiply (matrix start[i]) spaces[i / 4]
                        closeTo 1e-8 "A at the start" (Seq.cast expected) (numbers prepared[i])

                    let confinedBy i =
                        if i < last && i % 2 = 0 then
                            Oracles.FromRight spaces[i / 4]
                        else
                            Oracles.Anywhere

                    against plan method _.Deltas noMore c.Steps confinedBy training)

            property "A(I − NNᵀ) = 0 before and after every step" (fun c ->
                let plan = c.Plan
                let method = methodOf c.Share plan
                let struct (_, _, training) = prepared plan method c.Task

                for training in path plan method c.Steps training do
                    for block in 0 .. training.Lora.Length - 1 do
                        let space = training.Projections[block]

                        let outside =
                            Oracles.subtract
                                (Oracles.identity (int plan.Backbone.Width))
                                (Oracles.multiply
                                    (matrix space.Basis)
                                    (Oracles.transpose (matrix space.Basis)))

                        for pair in training.Lora[block].Values do
                            atMost
                                "outside"
                                1e-11
                                (Oracles.frobenius (Oracles.multiply (matrix pair.A) outside)))

            property
                "old tokens of few dimensions: the first block's keys and values of old images do not change"
                (fun c ->
                    let plan = ofOneImage { c with Half = 4 }
                    let method = methodOf 1.0 plan
                    let struct (before, _, training) = prepared plan method 1
                    let trained = path plan method 3 training |> List.last
                    let after = method.Merge trained
                    let old = inputs plan.Backbone (Tiny.batches plan 0) |> Array.head

                    let before, after = before.Deltas[0], after.Deltas[0]

                    for site in Lora.keyValue do
                        let moved = Oracles.subtract (matrix after[site]) (matrix before[site])

                        Expect.isGreaterThan (Oracles.frobenius moved) 1e-3 "the weight has moved"
                        let change = Oracles.multiply old (Oracles.transpose moved)
                        atMost "keys and values" 1e-9 (Oracles.frobenius change))

            testCase "as published, 99 % of the energy is left out" (fun () ->
                Scope.run (fun () ->
                    let plan = plan 1 8 id
                    let method = NullSpaceLora.method' plan.Backbone plan.Settings.Method
                    let struct (_, _, training) = prepared plan method 1

                    for retained in (method.Diagnostics training).Retained do
                        atMost "energy" 0.01 retained.Energy))

            rejects "an energy of 0" [ "energy threshold"; "(0, 1]" ] (fun () ->
                methodOf 0.0 (plan 1 8 id) |> ignore)
        ]
