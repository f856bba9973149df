/// How laws, errors and leaks are checked, and the count of cases behind each property.
module LoRASub.Tests.Check

open System
open System.Collections.Generic
open System.Text
open LoRASub.Core
open LoRASub.Settings
open LoRASub.Run
open Expecto
open FsCheck
open FsCheck.FSharp
open TorchSharp

/// LORASUB_SEED, or a constant, so that every run draws the same cases unless asked otherwise.
let private rootSeed =
    match Environment.GetEnvironmentVariable "LORASUB_SEED" with
    | null
    | "" -> 20250318L
    | text -> Int64.Parse text

let private executed = ResizeArray<struct (string * int)>()

let private notes = ResizeArray<string>()

/// Adds a line to the report that follows the run.
let note (line: string) = notes.Add line

/// The notes, "property group: name: N cases" per property that ran, in order, and the total.
let report () : string list =
    [
        yield! notes
        $"device: {Generators.device}"
        for struct (name, cases) in executed do
            $"property {name}: {cases} cases"
        let total = executed |> Seq.sumBy (fun struct (_, cases) -> cases)
        $"{executed.Count} properties, {total} cases, seed {rootSeed}"
    ]

let private nameSeed (name: string) =
    let key =
        Encoding.UTF8.GetBytes name
        |> Seq.fold (fun key b -> Rng.fold (int64 b) key) (Rng.ofSeed rootSeed)

    key.Bits >>> 1

/// A named law over generated cases; each case runs in a dispose scope of its own.
let propertyWith
    (arbitrary: Arbitrary<'T>)
    (cases: int)
    (group: string)
    (name: string)
    (law: 'T -> unit)
    : Test =
    testCase name (fun () ->
        let full = $"{group}: {name}"
        let mutable outcome = None

        let recorder =
            { new IRunner with
                member _.OnStartFixture _ = ()
                member _.OnArguments(_, _, _) = ()
                member _.OnShrink(_, _) = ()
                member _.OnFinished(_, result) = outcome <- Some result
            }

        let config =
            Config.Quick
                .WithMaxTest(cases)
                .WithReplay(
                    Some
                        {
                            Rnd = Rnd(nameSeed full)
                            Size = None
                        }
                )
                .WithRunner(recorder)

        Check.One(config, Prop.forAll (arbitrary) (fun case -> Scope.run (fun () -> law case)))

        match outcome with
        | Some(FsCheck.TestResult.Passed(data, _)) -> executed.Add(struct (full, data.NumberOfTests))
        | Some(FsCheck.TestResult.Failed(data, original, shrunk, reason, _, replay, size)) ->
            executed.Add(struct (full, data.NumberOfTests))

            let shown (values: obj list) =
                values |> List.map (sprintf "%A") |> String.concat " "

            failtest
                $"""case {data.NumberOfTests} of {cases} breaks the law
smallest: {shown shrunk}
drawn: {shown original}
because: {reason}
again with: LORASUB_SEED={rootSeed} (FsCheck replay: seed {replay.Seed}, gamma {replay.Gamma}, size {size})"""
        | other -> failtest $"no verdict: {other}")

/// A law over records drawn by `Generators.arbitrary`.
let propertyOf<'T> (cases: int) group name (law: 'T -> unit) =
    propertyWith (Generators.arbitrary<'T>()) cases group name law

/// `propertyOf` over 100 cases.
let property<'T> group name (law: 'T -> unit) = propertyOf<'T> 100 group name law

// Comparisons; each message gives both numbers.

/// Equal up to `tolerance`, relative to the larger of 1 and what is expected.
let closeTo (tolerance: float) (what: string) (expected: float seq) (actual: float seq) =
    let expected, actual = Array.ofSeq expected, Array.ofSeq actual
    Expect.equal actual.Length expected.Length $"{what}: how many numbers"

    for i in 0 .. expected.Length - 1 do
        let bound = tolerance * max 1.0 (abs expected[i])

        if not (abs (actual[i] - expected[i]) <= bound) && actual[i] <> expected[i] then
            failtest $"{what}: number {i} is {actual[i]:R}, expected {expected[i]:R} within {bound}"

/// The tolerance between a fast function and its slow oracle in float64.
let close what (expected: float seq) (actual: float seq) = closeTo 1e-9 what expected actual

let closeMatrix what (expected: float[,]) (actual: torch.Tensor) =
    let sizes = [| int64 (Array2D.length1 expected); int64 (Array2D.length2 expected) |]
    Expect.equal actual.shape sizes $"{what}: shape"
    close what (Seq.cast<float> expected) (Generators.numbers actual)

let closeTensors what (expected: torch.Tensor) (actual: torch.Tensor) =
    Expect.equal actual.shape expected.shape $"{what}: shape"
    close what (Generators.numbers expected) (Generators.numbers actual)

/// The same type, shape and bits.
let identical (what: string) (expected: torch.Tensor) (actual: torch.Tensor) =
    Expect.equal actual.dtype expected.dtype $"{what}: type"
    Expect.equal actual.shape expected.shape $"{what}: shape"

    let bits (t: torch.Tensor) =
        t.detach().cpu().contiguous().bytes.ToArray()

    Expect.equal (bits actual) (bits expected) $"{what}: bits"

/// Largest difference, relative to the larger of 1 and the number, that the order of a sum makes in a type.
let private ofOrder (dtype: torch.ScalarType) =
    match dtype with
    | torch.ScalarType.Float64 -> 1e-9
    | torch.ScalarType.Float32 -> 1e-3
    | torch.ScalarType.BFloat16 -> 0.05
    | _ -> 0.0

/// What the same computation gave twice: the same bits on a CPU. A GPU may take a sum in another order.
let repeated (what: string) (expected: torch.Tensor) (actual: torch.Tensor) =
    if Generators.onCpu then
        identical what expected actual
    else
        Expect.equal actual.dtype expected.dtype $"{what}: type"
        Expect.equal actual.shape expected.shape $"{what}: shape"

        // NaN stands for what is undefined
        let known x =
            if Double.IsNaN x then Double.MaxValue else x

        let floats (t: torch.Tensor) =
            Scope.run (fun () -> Generators.numbers (t.detach().``to`` torch.ScalarType.Float64))
            |> Array.map known

        closeTo (ofOrder expected.dtype) what (floats expected) (floats actual)

let atMost what (bound: float) (actual: float) =
    if not (actual <= bound) then
        failtest $"{what}: {actual:R} is above {bound:R}"

let finite what (t: torch.Tensor) =
    Expect.all (Generators.numbers t) Double.IsFinite $"{what}: finite"

/// The call must raise an InputException whose message holds all these words.
let refused (words: string list) (call: unit -> unit) =
    match
        (try
            Scope.run call
            None
         with error ->
             Some error)
    with
    | Some(:? InputException as error) ->
        for word in words do
            Expect.stringContains error.Message word "the message names subject, rule and finding"
    | Some error -> failtest $"{error.GetType().Name} instead of InputException: {error.Message}"
    | None -> failtest "was accepted"

let rejects name (words: string list) (call: unit -> unit) : Test =
    testCase name (fun () -> refused words call)

/// Runs `call` on prepared inputs: afterwards exactly the tensors that it returns as its own may be new, and freeing
/// them brings the count of live tensors back to where it was.
let noLeaks (name: string) (inputs: unit -> 'I) (call: 'I -> torch.Tensor seq) : Test =
    testCase $"{name} leaks nothing" (fun () ->
        // the scope keeps a leaked tensor alive, so that no collection can hide it
        use _ = torch.NewDisposeScope()
        let given = inputs ()
        GC.Collect()
        GC.WaitForPendingFinalizers()
        let before = torch.Tensor.TotalCount
        let owned = HashSet<torch.Tensor>(call given, HashIdentity.Reference)

        Expect.equal
            (torch.Tensor.TotalCount - before)
            (int64 owned.Count)
            "new tensors are those of the result"

        for one in owned do
            one.Dispose()

        Expect.equal torch.Tensor.TotalCount before "none is left")

/// Shape of a result computed on the meta device, which it must not have left.
let expectMeta (shape: int64 list) (t: torch.Tensor) =
    Expect.equal t.device.``type`` DeviceType.META "device"
    Expect.equal (List.ofArray t.shape) shape "shape"

/// A number in a closed interval; NaN is in none.
let between (what: string) (low: float) (high: float) (value: float) =
    Expect.isTrue (value >= low && value <= high) $"{what} {value} lies in [{low}, {high}]"
