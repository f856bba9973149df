// A data set of your own, from arrays: noisy stripes in four directions.
// Run after a build: dotnet fsi scripts/own-data.fsx

#load "load.fsx"

open LoRASub.Data
open LoRASub.Run
open Load

let names = [| "across"; "down"; "rising"; "falling" |]
let slopes = [| 0, 1; 1, 0; 1, 1; 1, -1 |]
let random = System.Random 1

/// Red, green and blue planes of 32 x 32 bytes.
let image (label: int) : byte[] =
    let down, across = slopes[label]
    let stripe y x = (down * y + across * x) &&& 4
    Array.init 3072 (fun i -> byte (30 * stripe (i % 1024 / 32) (i % 32) + random.Next 100))

let images (count: int) =
    let labels = Array.init count (fun i -> i % 4)
    ImageSet.ofBytes "stripes" labels 3 32 32 (Array.collect image labels)

let plan = planOf (Dataset.create "stripes" names (images 120) (images 80)) 2 quick
tryOut "stripes" (Plan.learner plan) plan
