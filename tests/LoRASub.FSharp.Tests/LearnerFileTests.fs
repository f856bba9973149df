module LoRASub.Tests.LearnerFileTests

open System
open System.IO
open System.Text.Json.Nodes
open Expecto
open LoRASub
open LoRASub.Tests.Check
open TorchSharp

let private load folder =
    LearnerFile.load torch.ScalarType.Float32 Generators.device folder

/// A learner of one finished task, saved.
let private withSaved (test: Plan -> SavedLearner -> string -> unit) () =
    Probe.inFolder (fun folder ->
        Scope.run (fun () ->
            let plan = Tiny.plan Tiny.settings
            let saved = Tiny.saved plan (Tiny.learnFirst (Tiny.learner plan) plan)
            LearnerFile.save folder saved
            test plan saved folder))

let private editJson (folder: string) (edit: JsonObject -> unit) =
    let path = LearnerFile.jsonPath folder
    let json = (JsonNode.Parse(File.ReadAllText path)).AsObject()
    edit json
    File.WriteAllText(path, json.ToJsonString())

/// Replaces the tensors by others, with a hash that vouches for them.
let private replaceTensors folder (tensors: (string * torch.Tensor) list) =
    Safetensors.write (LearnerFile.tensorPath folder) Map.empty tensors

    editJson folder (fun json ->
        json["tensorsSha256"] <- JsonValue.Create(DataFile.sha256 (LearnerFile.tensorPath folder)))

let private tensors (saved: SavedLearner) =
    [
        for i, d in Array.indexed saved.State.Deltas do
            $"blocks.{i}.delta.key", d[Site.Key]
            $"blocks.{i}.delta.value", d[Site.Value]
        "prototypes", saved.State.Prototypes.Means
    ]

let private set (name: string) (node: string) folder _ =
    editJson folder (fun json -> json[name] <- JsonNode.Parse node)

/// What is done to a saved folder, and words of the refusal.
let private damages: (string * string list * (string -> SavedLearner -> unit)) list =
    [
        "no JSON", [ "learner.json"; "no such file" ], (fun f _ -> File.Delete(LearnerFile.jsonPath f))
        "no tensors",
        [ "learner.safetensors"; "no such file" ],
        (fun f _ -> File.Delete(LearnerFile.tensorPath f))
        "truncated JSON",
        [ "learner.json"; "must be JSON" ],
        (fun f _ ->
            let text = File.ReadAllText(LearnerFile.jsonPath f)
            File.WriteAllText(LearnerFile.jsonPath f, text.Substring(0, text.Length / 2)))
        "an empty file",
        [ "learner.json"; "must be JSON" ],
        (fun f _ -> File.WriteAllText(LearnerFile.jsonPath f, ""))
        "a list",
        [ "learner.json"; "saved learner" ],
        (fun f _ -> File.WriteAllText(LearnerFile.jsonPath f, "[]"))
        "another version", [ "learner.json"; "version 1"; "version 2" ], set "version" "2"
        "a changed tensor byte",
        [ "learner.safetensors"; "SHA-256" ],
        (fun f _ ->
            let bytes = File.ReadAllBytes(LearnerFile.tensorPath f)
            bytes[bytes.Length - 1] <- bytes[bytes.Length - 1] ^^^ 1uy
            File.WriteAllBytes(LearnerFile.tensorPath f, bytes))
        "a missing member",
        [ "learner.json"; "saved learner" ],
        (fun f _ -> editJson f (fun json -> json.Remove "heads" |> ignore))
        "a text for a number", [ "learner.json"; "saved learner" ], set "heads" "\"two\""
        "a number too large", [ "learner.json"; "saved learner" ], set "heads" "99999999999"
        "names that are too few", [ "learner.json"; "a name for each of 4"; "1" ], set "classNames" "[\"a\"]"
        "a class out of range",
        [ "learner.json"; "in order, at most 4"; "9" ],
        set "prototypeClasses" "[0, 9]"
        "one prototype class too few",
        [ "learner.safetensors"; "[1, width]" ],
        (fun f saved ->
            set "prototypeClasses" "[0]" f saved
            set "taskSizes" "[1]" f saved)
        "task sizes that do not add up",
        [ "learner.json"; "task sizes"; "add up to 2" ],
        set "taskSizes" "[3]"
        "another number of finished tasks", [ "learner.json"; "must be 2" ], set "finishedTasks" "2"
        "a key that is no number", [ "randomKey"; "hexadecimal" ], set "randomKey" "\"xyz\""
        "a range of three", [ "inputRange"; "2 numbers"; "3" ], set "inputRange" "[0, 1, 2]"
        "no prototypes",
        [ "learner.safetensors"; "prototypes" ],
        (fun f saved ->
            replaceTensors f (tensors saved |> List.filter (fun (name, _) -> name <> "prototypes")))
        "a delta of another shape",
        [ "learner.safetensors"; "blocks.1.delta.value"; "[8, 8]"; "[8, 3]" ],
        (fun f saved ->
            replaceTensors
                f
                (tensors saved
                 |> List.map (fun (name, t) ->
                     name,
                     (if name = "blocks.1.delta.value" then
                          t.narrow(1L, 0L, 3L).contiguous()
                      else
                          t))))
    ]

[<Tests>]
let tests =
    testList
        "LearnerFile"
        [
            testCase
                "what is saved is loaded bit for bit"
                (withSaved (fun plan saved folder ->
                    let loaded = load folder
                    Tiny.sameState "state" saved.State loaded.State

                    let rest (s: SavedLearner) =
                        (s.Method, s.Order, s.ClassNames, s.TaskSizes),
                        (s.Input, s.Heads, s.NormEpsilon, s.BackboneSha256)

                    Expect.equal (rest loaded) (rest saved) "the rest"
                    Expect.equal (Directory.GetFiles folder).Length 2 "two files"))

            testCase
                "saving over an older learner replaces it"
                (withSaved (fun plan saved folder ->
                    let outcome = Tiny.run plan
                    LearnerFile.save folder (Tiny.saved plan outcome.State)
                    Tiny.sameState "state" outcome.State (load folder).State
                    Expect.equal (Directory.GetFiles folder).Length 2 "two files"))

            testCase
                "a start without classes is saved and loaded"
                (withSaved (fun plan _ folder ->
                    let start = (Tiny.learner plan).Start(Rng.ofSeed -3L)
                    LearnerFile.save folder (Tiny.saved plan start)
                    Tiny.sameState "state" start (load folder).State))

            testCase
                "tensors are loaded in the format asked for"
                (withSaved (fun _ saved folder ->
                    let wide = LearnerFile.load torch.ScalarType.Float64 Generators.device folder

                    Seq.iter2
                        (fun (a: torch.Tensor) (b: torch.Tensor) ->
                            Expect.equal b.dtype torch.ScalarType.Float64 "format"
                            Expect.equal (TestFiles.numbers b) (TestFiles.numbers a) "numbers")
                        (TaskState.leaves saved.State)
                        (TaskState.leaves wide.State)))

            for name, words, damage in damages do
                testCase
                    $"{name}: refused, and nothing left"
                    (withSaved (fun _ saved folder ->
                        damage folder saved
                        Probe.refused words (fun () -> load folder |> ignore)))

            testCase
                "the backbone must be the one that was trained on"
                (withSaved (fun plan saved folder ->
                    let path = Path.Combine(folder, "backbone.safetensors")
                    Tiny.writeBackbone path 8 2 7

                    let own =
                        { saved with
                            BackboneSha256 = DataFile.sha256 path
                        }

                    LearnerFile.checkBackbone own plan.Backbone (DataFile.sha256 path) path

                    refused [ path; "SHA-256"; saved.BackboneSha256; "as the backbone" ] (fun () ->
                        LearnerFile.checkBackbone saved plan.Backbone (DataFile.sha256 path) path)

                    for vit, found in
                        [
                            Tiny.vit Precision.Float32 10 2 7, "width 10"
                            Tiny.vit Precision.Float32 8 1 7, "1 blocks"
                        ] do
                        refused [ path; "width 8 and 2 blocks"; found ] (fun () ->
                            LearnerFile.checkBackbone own vit (DataFile.sha256 path) path)))

            testCase
                "a folder in the way of either file leaves no half of it"
                (withSaved (fun _ saved _ ->
                    for pathOf in [ LearnerFile.tensorPath; LearnerFile.jsonPath ] do
                        Probe.inFolder (fun folder ->
                            Directory.CreateDirectory(pathOf folder) |> ignore
                            refused [ "folder" ] (fun () -> LearnerFile.save folder saved)

                            Expect.isEmpty
                                (Directory.GetFiles(
                                    folder,
                                    "*.tmp",
                                    EnumerationOptions(AttributesToSkip = FileAttributes.None)
                                ))
                                "temporary files"

                            refused [ folder ] (fun () -> load folder |> ignore))))

            testCase
                "a folder that does not exist is refused"
                (withSaved (fun _ saved folder ->
                    refused [ "learner.safetensors"; "folder" ] (fun () ->
                        LearnerFile.save (Path.Combine(folder, "absent")) saved)))

            testCase "the hash is that of the file's bytes, and a missing file is refused" (fun () ->
                Probe.inFolder (fun folder ->
                    let path = Path.Combine(folder, "abc")
                    File.WriteAllText(path, "abc")

                    Expect.equal
                        (DataFile.sha256 path)
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
                        "the published example of SHA-256"

                    refused [ "nowhere" ] (fun () ->
                        DataFile.sha256 (Path.Combine(folder, "nowhere")) |> ignore)))

            testCase
                "whatever a kill leaves is the old or the new learner, and the next save clears it up"
                (withSaved (fun plan older folder ->
                    let newer = Tiny.saved plan (Tiny.run plan).State

                    Probe.inFolder (fun other ->
                        LearnerFile.save other newer
                        let read path = File.ReadAllBytes path

                        let newTensors, newJson =
                            read (LearnerFile.tensorPath other), read (LearnerFile.jsonPath other)

                        let next = LearnerFile.nextPath folder

                        let holds (saved: SavedLearner) =
                            Tiny.sameState "state" saved.State (load folder).State

                        // new tensors in part or whole, their JSON not there
                        File.WriteAllBytes(next, newTensors[..99])
                        holds older
                        File.WriteAllBytes(next, newTensors)
                        holds older
                        // the JSON there, the tensors not in their place
                        File.WriteAllBytes(LearnerFile.jsonPath folder, newJson)
                        holds newer

                        LearnerFile.save folder older
                        holds older
                        Expect.isFalse (File.Exists next) "nothing waits"
                        Expect.hasLength (Directory.GetFiles folder) 2 "two files")))

            testCase
                "a save that fails after the tensors keeps the older learner"
                (withSaved (fun plan older folder ->
                    // its JSON cannot be made
                    let broken =
                        { Tiny.saved plan (Tiny.run plan).State with
                            Method = null
                            ClassNames = null
                        }

                    Expect.throws (fun () -> LearnerFile.save folder broken) "fails"
                    Tiny.sameState "state" older.State (load folder).State
                    Expect.hasLength (Directory.GetFiles folder) 2 "two files"))

            testCase
                "readers and savers at one time get a whole learner"
                (withSaved (fun plan older folder ->
                    let newer = Tiny.saved plan (Tiny.run plan).State
                    let mutable saving = true

                    let savers =
                        [|
                            for first in [ older; newer ] ->
                                Threading.Tasks.Task.Run(fun () ->
                                    for i in 0..14 do
                                        LearnerFile.save folder (if i % 2 = 0 then first else older))
                        |]

                    let all = Threading.Tasks.Task.WhenAll savers
                    let mutable loads = 0

                    while saving do
                        saving <- not all.IsCompleted

                        Scope.run (fun () ->
                            let classes = (load folder).State.Prototypes.Classes.Length
                            Expect.contains [ 2; 4 ] classes "one of the two")

                        loads <- loads + 1

                    all.Wait()
                    Expect.isGreaterThan loads 1 "loads meanwhile"
                    Expect.hasLength (Directory.GetFiles folder) 2 "two files"))
        ]
