namespace LoRASub.Core

open TorchSharp

/// A position in the tree of random streams: a value, so that the same key always gives the same numbers and
/// nothing is remembered between draws. After JAX's explicit keys; the mixing is SplitMix64 (Steele et al. 2014).
[<Struct>]
type RandomKey =
    {
        /// Decides every number drawn.
        Bits: uint64
    }

/// Random numbers as functions of a key.
[<RequireQualifiedAccess>]
module Rng =

    let private mix (z: uint64) =
        let z = (z ^^^ (z >>> 30)) * 0xBF58476D1CE4E5B9UL
        let z = (z ^^^ (z >>> 27)) * 0x94D049BB133111EBUL
        z ^^^ (z >>> 31)

    /// <summary>The root key of a seed.</summary>
    /// <param name="seed">Any number.</param>
    /// <returns>The same key for the same seed.</returns>
    let ofSeed (seed: int64) =
        {
            Bits = mix (uint64 seed + 0x9E3779B97F4A7C15UL)
        }

    /// <summary>The child of a key at a number. Children at different numbers are independent streams.</summary>
    /// <param name="number">Any number.</param>
    /// <param name="key">The parent, which stays usable.</param>
    /// <returns>The child key.</returns>
    let fold (number: int64) (key: RandomKey) =
        {
            Bits = mix (key.Bits ^^^ mix (uint64 number * 0xD1342543DE82EF95UL + 0x9E3779B97F4A7C15UL))
        }

    // Drawn on the CPU whatever the target device: the same key gives the same numbers everywhere.
    let private draw (key: RandomKey) (device: torch.Device) (sample: torch.Generator -> torch.Tensor) =
        use generator = new torch.Generator(key.Bits, torch.CPU)
        let numbers = sample generator

        if device.``type`` = DeviceType.CPU then
            numbers
        else
            use onCpu = numbers
            onCpu.``to`` device

    /// <summary>Uniform numbers in [low, high). The same key gives the same numbers on every device.</summary>
    /// <param name="low">The smallest number.</param>
    /// <param name="high">The bound above.</param>
    /// <param name="shape">Sizes of the result.</param>
    /// <param name="dtype">A floating-point type.</param>
    /// <param name="device">Where the result is.</param>
    /// <param name="key">Decides the numbers.</param>
    /// <returns>A tensor of this shape, owned by the caller.</returns>
    let uniform
        (low: float)
        (high: float)
        (shape: int64[])
        (dtype: torch.ScalarType)
        (device: torch.Device)
        key
        =
        draw key device (fun generator ->
            let numbers =
                torch.rand (shape, dtype = dtype, device = torch.CPU, generator = generator)

            numbers.mul_(Number.Of(high - low)).plus_(Number.Of low))

    /// <summary>Standard normal numbers. The same key gives the same numbers on every device.</summary>
    /// <param name="shape">Sizes of the result.</param>
    /// <param name="dtype">A floating-point type.</param>
    /// <param name="device">Where the result is.</param>
    /// <param name="key">Decides the numbers.</param>
    /// <returns>A tensor of this shape, owned by the caller.</returns>
    let normal (shape: int64[]) (dtype: torch.ScalarType) (device: torch.Device) key =
        draw key device (fun generator ->
            torch.randn (shape, dtype = dtype, device = torch.CPU, generator = generator))

    /// <summary>Uniform integers in [0, high). The same key gives the same numbers on every device.</summary>
    /// <param name="high">The bound above, at least 1.</param>
    /// <param name="shape">Sizes of the result.</param>
    /// <param name="device">Where the result is.</param>
    /// <param name="key">Decides the numbers.</param>
    /// <returns>An int64 tensor of this shape, owned by the caller.</returns>
    let integers (high: int64) (shape: int64[]) (device: torch.Device) key =
        draw key device (fun generator ->
            torch.randint (
                0L,
                high,
                shape,
                dtype = torch.ScalarType.Int64,
                device = torch.CPU,
                generator = generator
            ))

    /// <summary>The numbers 0 to n - 1 in random order (Fisher-Yates).</summary>
    /// <param name="n">How many numbers; not negative.</param>
    /// <param name="key">Decides the order.</param>
    /// <returns>Each number once.</returns>
    let permutation (n: int) (key: RandomKey) : int[] =
        let order = Array.init n id
        let mutable state = key

        for i in n - 1 .. -1 .. 1 do
            state <- fold (int64 i) state
            // the bias of a remainder of 64 bits is below 2^-32 for any array
            let j = int (state.Bits % uint64 (i + 1))
            let kept = order[i]
            order[i] <- order[j]
            order[j] <- kept

        order
