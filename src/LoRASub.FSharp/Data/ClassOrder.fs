namespace LoRASub.Data

open System.Text.Json
open LoRASub.Core
open LoRASub.Files

/// The order in which the classes of a data set are learned.
[<RequireQualifiedAccess>]
type ClassOrder =
    /// As the data set numbers them.
    | Natural
    /// numpy's `RandomState(1993).permutation`, the order of most published class-incremental runs.
    | Seed1993
    /// A given order; `source` is the file or setting that its errors name.
    | Explicit of source: string * order: int[]

/// numpy's legacy random state, as far as a permutation needs it: MT19937 (Matsumoto & Nishimura 1998).
module private MersenneTwister =

    let private size = 624
    let private shift = 397

    let private seeded (seed: uint32) =
        let state = Array.zeroCreate<uint32> size
        state[0] <- seed

        for i in 1 .. size - 1 do
            state[i] <- 1812433253u * (state[i - 1] ^^^ (state[i - 1] >>> 30)) + uint32 i

        state

    /// The next 624 words of the recurrence, in place: each reads words that this round has replaced already.
    let private twist (state: uint32[]) =
        for i in 0 .. size - 1 do
            let y = (state[i] &&& 0x80000000u) ||| (state[(i + 1) % size] &&& 0x7FFFFFFFu)
            let odd = if y &&& 1u = 0u then 0u else 0x9908B0DFu
            state[i] <- state[(i + shift) % size] ^^^ (y >>> 1) ^^^ odd

    let private temper (y: uint32) =
        let y = y ^^^ (y >>> 11)
        let y = y ^^^ ((y <<< 7) &&& 0x9D2C5680u)
        let y = y ^^^ ((y <<< 15) &&& 0xEFC60000u)
        y ^^^ (y >>> 18)

    /// A source of 32-bit words.
    let words (seed: uint32) : unit -> uint32 =
        let state = seeded seed
        let mutable at = size

        fun () ->
            if at = size then
                twist state
                at <- 0

            at <- at + 1
            temper state[at - 1]

/// Class orders from names and files.
[<RequireQualifiedAccess>]
module ClassOrder =

    /// What numpy's `RandomState(seed).permutation(n)` gives: Fisher-Yates from the end, each index drawn by masking
    /// a 32-bit word to the bits of its bound and rejecting what is larger.
    let internal numpyPermutation (seed: uint32) (n: int) : int[] =
        let next = MersenneTwister.words seed
        let order = Array.init n id

        for i in n - 1 .. -1 .. 1 do
            let mask =
                System.UInt32.MaxValue
                >>> System.Numerics.BitOperations.LeadingZeroCount(uint32 i)

            let mutable j = next () &&& mask

            while j > uint32 i do
                j <- next () &&& mask

            let kept = order[i]
            order[i] <- order[int j]
            order[int j] <- kept

        order

    let private requirePermutation (source: string) (classes: int) (order: int[]) =
        let refuse received =
            Errors.reject source $"must name each class from 0 to {classes - 1} once" received ""

        let places = Array.create classes -1

        order
        |> Array.iteri (fun i c ->
            if c < 0 || c >= classes then
                refuse $"{c} at entry {i}"

            if places[c] >= 0 then
                refuse $"{c} at entry {i} and at entry {places[c]}"

            places[c] <- i)

        match Array.tryFindIndex ((=) -1) places with
        | Some missing -> refuse $"{order.Length} entries without {missing}"
        | None -> ()

    /// <summary>The labels in the order in which they are learned.</summary>
    /// <param name="classes">The number of classes.</param>
    /// <param name="order">The order.</param>
    /// <returns>Entry i is the label of the class learned i-th.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">An explicit order does not name each class once.</exception>
    let resolve (classes: int) (order: ClassOrder) : int[] =
        match order with
        | ClassOrder.Natural -> Array.init classes id
        | ClassOrder.Seed1993 -> numpyPermutation 1993u classes
        | ClassOrder.Explicit(source, order) ->
            requirePermutation source classes order
            Array.copy order

    let private entries (path: string) (list: JsonElement) =
        list.EnumerateArray()
        |> Seq.mapi (fun i entry ->
            let mutable value = 0

            if entry.ValueKind = JsonValueKind.Number && entry.TryGetInt32 &value then
                value
            else
                let text = Text.cut "..." 40 (entry.GetRawText())
                Errors.reject path "each entry of a class order must be an integer" $"{text} at entry {i}" "")
        |> Seq.toArray

    /// <summary>Reads an explicit order.</summary>
    /// <param name="path">A JSON file: an array of integers, or an object that holds one as `order`.</param>
    /// <returns>The order, whose errors name the file.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The file is missing or holds something else.</exception>
    let readFile (path: string) : ClassOrder =
        let what =
            "a class order: an array of integers, or an object that holds one as \"order\""

        let refuse received =
            Errors.reject path $"must be {what}" received ""

        Json.read what path (fun root ->
            let list =
                match root.ValueKind with
                | JsonValueKind.Object ->
                    match root.TryGetProperty "order" with
                    | true, list -> list
                    | false, _ -> refuse "an object without \"order\""
                | _ -> root

            if list.ValueKind <> JsonValueKind.Array then
                refuse $"{list.ValueKind}"

            ClassOrder.Explicit(path, entries path list))
