/// Times of alternatives taken in turns, so that whatever else the machine does meets all of them alike.
module LoRASub.Benchmarks.Measure

open System
open System.Diagnostics

/// A median between its quartiles.
type Spread =
    {
        Median: float
        Lower: float
        Upper: float
    }

[<RequireQualifiedAccess>]
module Spread =

    /// Of at least one number; quartiles between two numbers are interpolated.
    let ofValues (values: float[]) : Spread =
        let sorted = Array.sort values

        let quantile share =
            let place = share * float (sorted.Length - 1)
            let below = int place
            let above = min (below + 1) (sorted.Length - 1)
            sorted[below] + (place - float below) * (sorted[above] - sorted[below])

        {
            Median = quantile 0.5
            Lower = quantile 0.25
            Upper = quantile 0.75
        }

    let map (f: float -> float) (spread: Spread) : Spread =
        ofValues [| f spread.Lower; f spread.Median; f spread.Upper |]

/// The seconds of an alternative, one number per round.
type Timing = { Name: string; Seconds: float[] }

[<RequireQualifiedAccess>]
module Timing =

    let spread (timing: Timing) : Spread = Spread.ofValues timing.Seconds

    /// How many times the second one's time the first one takes, each ratio within one round.
    let ratio (first: Timing) (second: Timing) : Spread =
        Spread.ofValues (Array.map2 (/) first.Seconds second.Seconds)

/// What `f` gives, and the seconds it took.
let timed (f: unit -> 'T) : struct ('T * float) =
    let clock = Stopwatch.StartNew()
    let result = f ()
    struct (result, clock.Elapsed.TotalSeconds)

/// Runs every action once a round, in the given order and in the reverse by turns; what each gave, round by round.
let inTurns (rounds: int) (actions: (string * (unit -> 'T)) list) : (string * 'T[]) list =
    let all = Array.ofList actions
    let results = all |> Array.map (fun _ -> ResizeArray<'T>())

    for round in 1..rounds do
        let order = [| 0 .. all.Length - 1 |]

        for i in (if round % 2 = 1 then order else Array.rev order) do
            // nobody pays for another's garbage
            GC.Collect()
            GC.WaitForPendingFinalizers()
            results[i].Add((snd all[i]) ())

    [ for i in 0 .. all.Length - 1 -> fst all[i], results[i].ToArray() ]

/// Seconds that one measurement should last at least.
[<Literal>]
let private Shortest = 0.05

/// Seconds of one call of each action, over rounds of all actions in turn after two calls that do not count. Short
/// actions are called as often as the clock needs. An action owns and frees what it makes.
let interleaved (rounds: int) (actions: (string * (unit -> unit)) list) : Timing list =
    let calls =
        actions
        |> List.map (fun (_, action) ->
            action ()
            let struct ((), seconds) = timed action
            Math.Clamp(int (ceil (Shortest / seconds)), 1, 1000))

    let measured =
        List.map2
            (fun (name, action) calls ->
                name,
                fun () ->
                    let struct ((), seconds) =
                        timed (fun () ->
                            for _ in 1..calls do
                                action ())

                    seconds / float calls)
            actions
            calls

    inTurns rounds measured
    |> List.map (fun (name, seconds) -> { Name = name; Seconds = seconds })
