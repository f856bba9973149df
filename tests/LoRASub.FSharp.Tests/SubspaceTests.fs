module LoRASub.Tests.SubspaceTests

open LoRASub.Core
open LoRASub.Subspace
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private retained () =
    let moment =
        {
            Moment = tensor (Oracles.secondMoment (normalMatrix 1 6 4))
            Count = 6L
        }

    Projection.retain UpdateScale.Frobenius 0.8 "m" moment

[<Tests>]
let tests =
    testList
        "Subspace"
        [
            testCase "it holds what a projection retains, in tensors of its own" (fun () ->
                Scope.run (fun () ->
                    let projection = retained ()
                    let subspace = Subspace.ofProjection projection
                    let basis, spectrum = projection.Basis.clone (), projection.Spectrum.clone ()
                    let rank = projection.Rank
                    Scope.free Projection.leaves projection
                    identical "basis" basis subspace.Basis
                    identical "spectrum" spectrum subspace.Spectrum
                    Expect.equal subspace.Rank rank "rank"))

            testCase "the shares of the retained eigenvalues add up to the retained energy" (fun () ->
                Scope.run (fun () ->
                    let projection = retained ()
                    let subspace = Subspace.ofProjection projection
                    let shares = Subspace.shares subspace
                    close "all" [ 1.0 ] [ Array.sum shares ]
                    close "energy" [ projection.Energy ] [ Array.sum (Array.take subspace.Rank shares) ]))

            noLeaks "ofProjection" retained (fun p -> Subspace.leaves (Subspace.ofProjection p))

            noLeaks "shares" retained (fun p ->
                Subspace.shares
                    {
                        Basis = p.Basis
                        Spectrum = p.Spectrum
                    }
                |> ignore

                [])
        ]
