module LoRASub.Tests.CalibrationTests

open System
open LoRASub.Core
open LoRASub.Learn
open LoRASub.Measure
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

type Case =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 60)>]
        Images: int
        [<Between(1, 6)>]
        Classes: int
        [<Between(0, 40)>]
        Percent: int
    }

    member c.Scores = normalMatrix c.Seed c.Images c.Classes |> Oracles.scale 4.0

    member c.Rows =
        [| for i in 0 .. c.Images - 1 -> (c.Seed + 7 * i * i + i) % c.Classes |]

    member c.Support = [| for i in 0 .. c.Images - 1 -> Array.max (c.Scores[i, *]) |]

    member c.Group =
        (Calibration.ofScores [| for i in 0 .. c.Images - 1 -> c.Scores[i, *] |] c.Support c.Rows).Value

let private property name (law: Case -> bool) =
    property "Calibration" name (fun c -> Expect.isTrue (law c) $"{c}")

let private group classes images temperature support : HeldOut =
    {
        Classes = classes
        Images = images
        Temperature = temperature
        Support = support
    }

let private close expected found = abs (expected - found) < 1e-9

[<Tests>]
let tests =
    testList
        "Calibration"
        [
            property "probabilities add up to 1 in the order of the scores" (fun (c: Case) ->
                let calibration = Calibration.ofGroups 0.05 c.Classes [| c.Group |]
                let scores = c.Scores[0, *]
                let found = (Calibration.probabilities scores calibration).Value

                close 1.0 (Array.sum found)
                && (let places = Array.indexed >> Array.sortBy (snd >> (~-)) >> Array.map fst
                    places scores = places found))

            property "the temperature is the best of its neighbours" (fun (c: Case) ->
                // as if one image more had a random label
                let random = 1.0 / float (c.Images + 1)

                let loss temperature =
                    [
                        for i in 0 .. c.Images - 1 do
                            let s = c.Scores[i, *] |> Array.map (fun s -> s / temperature)
                            let top = Array.max s
                            let total = top + log (s |> Array.sumBy (fun x -> exp (x - top)))
                            total - (1.0 - random) * s[c.Rows[i]] - random * Array.average s
                    ]
                    |> List.average

                let t = c.Group.Temperature

                c.Classes = 1
                || (loss t <= loss (0.9 * t) + 1e-9 && loss t <= loss (1.1 * t) + 1e-9)
                || t > 100.0)

            property
                "a threshold leaves at most the stated share below, counting the new image"
                (fun (c: Case) ->
                    let rate = float c.Percent / 100.0
                    let calibration = Calibration.ofGroups rate c.Classes [| c.Group |]

                    match calibration.Threshold with
                    | None -> rate * float (c.Images + 1) < 1.0
                    | Some threshold ->
                        let below =
                            c.Group.Support |> Array.filter (fun one -> one <= threshold) |> Array.length

                        float below / float (c.Images + 1) <= rate + 1e-9
                        && float (below + 1) / float (c.Images + 1) > rate - 1e-9)

            property "a record passes its own check" (fun (c: Case) -> Calibration.isValid c.Group)

            testCase "labels drawn from a softmax give back its temperature" (fun () ->
                let n, classes, temperature = 4000, 5, 3.0
                let scores = normalMatrix 11 n classes |> Oracles.scale 6.0
                let uniform = Random 5

                let rows =
                    [|
                        for i in 0 .. n - 1 do
                            let p =
                                scores[i, *]
                                |> Array.map (fun s -> exp (s / temperature))
                                |> fun e -> Array.map (fun x -> x / Array.sum e) e

                            let u = uniform.NextDouble()
                            let sums = Array.scan (+) 0.0 p |> Array.tail

                            max
                                0
                                (min
                                    (classes - 1)
                                    (Array.findIndexBack (fun s -> s <= u) (Array.append [| 0.0 |] sums)))
                    |]

                let all = [| for i in 0 .. n - 1 -> scores[i, *] |]
                let found = (Calibration.ofScores all (Array.map Array.max all) rows).Value
                Expect.isLessThan (abs (found.Temperature / temperature - 1.0)) 0.1 $"{found.Temperature}")

            testCase "few images that are all right do not make certain" (fun () ->
                let one = (Calibration.ofScores [| [| 1.0; 0.0 |] |] [| 1.0 |] [| 0 |]).Value
                let calibration = Calibration.ofGroups 0.05 2 [| one |]
                let p = (Calibration.probabilities [| 1.0; 0.0 |] calibration).Value[0]
                Expect.isTrue (close 0.75 (Math.Round(p, 4))) $"one image and one at random: {p}")

            testCase "stated false alarms hold for new images" (fun () ->
                let random = Random 3

                let draw n =
                    Array.init n (fun _ -> random.NextDouble() ** 3.0)

                let shares =
                    [
                        for _ in 1..200 do
                            let threshold =
                                (Calibration.ofGroups 0.1 4 [| group 4 50 1.0 (Array.sort (draw 50)) |])
                                    .Threshold.Value

                            draw 200 |> Array.averageBy (fun x -> if x < threshold then 1.0 else 0.0)
                    ]

                let mean = List.average shares
                Expect.isTrue (mean < 0.105 && mean > 0.08) $"{mean} of at most 0.1")

            testCase "no images, no probabilities and nothing unknown" (fun () ->
                Expect.isNone (Calibration.ofScores [||] [||] [||]) "nothing held out"
                let calibration = Calibration.ofGroups 0.05 3 [||]
                Expect.isNone (Calibration.probabilities [| 1.0; 2.0; 3.0 |] calibration) "no probability"
                Expect.isTrue (Calibration.isKnown -1e9 calibration) "known"

                let zero = Calibration.ofGroups 0.0 3 [| group 3 10 1.0 [| 0.0 |] |]
                Expect.isTrue (Calibration.isKnown -1e9 zero) "a rate of 0 calls none unknown")

            testCase "a rate out of range is rejected" (fun () ->
                for rate in [ -0.1; 1.0; nan ] do
                    Expect.throwsT<InputException>
                        (fun () -> Calibration.ofGroups rate 2 [||] |> ignore)
                        $"{rate}")

            testCase "a group counts less the fewer classes were known" (fun () ->
                let early, late = group 1 100 1.0 [| 0.0 |], group 10 100 4.0 [| 1.0 |]
                let t = (Calibration.ofGroups 0.05 10 [| early; late |]).Temperature.Value
                Expect.isTrue (t > 3.99 && t < 4.0) $"{t}"
                Expect.equal (Calibration.prune 10 [| early; late |]) [| late |] "not kept"
                Expect.equal (Calibration.prune 2 [| early; late |]) [| early; late |] "kept")

            testCase "records that no program wrote are told" (fun () ->
                let valid = group 2 3 1.0 [| 0.0; 1.0 |]

                for other in
                    [
                        { valid with Classes = 0 }
                        { valid with Images = 0 }
                        { valid with Temperature = 0.0 }
                        { valid with Temperature = nan }
                        { valid with Support = [||] }
                        { valid with Support = [| 1.0; 0.0 |] }
                        { valid with Support = [| nan |] }
                    ] do
                    Expect.isFalse (Calibration.isValid other) $"{other}"

                Expect.isTrue (Calibration.isValid valid) "valid")

            property "the area under the curve ≡ counting pairs" (fun (c: Case) ->
                let known = c.Support |> Array.map round
                let unknown = c.Scores[0, *] |> Array.map round

                let pairs =
                    [
                        for k in known do
                            for u in unknown do
                                if k > u then 1.0
                                elif k = u then 0.5
                                else 0.0
                    ]

                close (List.average pairs) (Detection.auroc known unknown).Value)

            testCase "the calibration error of a known case" (fun () ->
                // 0.9 and 0.95 are in one bin, 0.2 in another
                let error =
                    Detection.calibrationError
                        [| 0.95; 0.9404; 0.2; 1.0; 0.0 |]
                        [| true; false; false; true; false |]

                let expected = (abs (0.95 + 0.9404 + 1.0 - 2.0) + 0.2 + 0.0) / 5.0
                Expect.isTrue (close expected error) $"{error}"
                Expect.equal (Detection.calibrationError [||] [||]) 0.0 "no image"
                Expect.isNone (Detection.auroc [||] [| 1.0 |]) "no known image")
        ]
