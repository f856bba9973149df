module LoRASub.Tests.LearnerFileTests

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open TorchSharp

/// A learner of one finished task, saved.
let private withSaved (test: Plan -> TaskState -> string -> unit) () =
    Probe.inFolder (fun folder ->
        Scope.run (fun () ->
            let plan = Tiny.plan Tiny.settings
            let state = Tiny.learnFirst (Tiny.learner plan) plan
            Tiny.save folder plan state
            test plan state folder))

let private editJson (folder: string) (edit: JsonObject -> unit) =
    let path = LearnerFile.jsonPath folder
    let json = (JsonNode.Parse(File.ReadAllText path)).AsObject()
    json.Remove "sha256" |> ignore
    edit json
    File.WriteAllText(path, json.ToJsonString())

/// Replaces the tensors by others, with a hash that vouches for them.
let private replaceTensors folder (tensors: (string * torch.Tensor) list) =
    Safetensors.write (LearnerFile.tensorPath folder) Map.empty tensors

    editJson folder (fun json ->
        json["tensorsSha256"] <- JsonValue.Create(DataFile.sha256 (LearnerFile.tensorPath folder)))

let private tensors (plan: Plan) (state: TaskState) =
    Tree.write (Learner.tree (Tiny.learner plan) state) state

let private changeClass (row: int) (name: string) (node: string) folder =
    editJson folder (fun json -> json["state"].["classes"].[row].[name] <- JsonNode.Parse node)

let private setState (name: string) (node: string) folder =
    editJson folder (fun json -> json["state"].[name] <- JsonNode.Parse node)

let private set (name: string) (node: string) folder =
    editJson folder (fun json -> json[name] <- JsonNode.Parse node)

let private changeTensors change folder plan state =
    replaceTensors folder (tensors plan state |> change)

/// What is done to a saved folder, and words of the refusal.
let private damages: (string * string list * (string -> Plan -> TaskState -> unit)) list =
    let json edit folder (_: Plan) (_: TaskState) : unit = edit folder

    [
        "no JSON",
        [ "learner.json"; "no such file" ],
        json (fun folder -> File.Delete(LearnerFile.jsonPath folder))
        "no tensors",
        [ "learner.safetensors"; "no such file" ],
        json (fun folder -> File.Delete(LearnerFile.tensorPath folder))
        "truncated JSON",
        [ "learner.json"; "must be JSON" ],
        json (fun folder ->
            let text = File.ReadAllText(LearnerFile.jsonPath folder)
            File.WriteAllText(LearnerFile.jsonPath folder, text.Substring(0, text.Length / 2)))
        "an empty file",
        [ "learner.json"; "must be JSON" ],
        json (fun folder -> File.WriteAllText(LearnerFile.jsonPath folder, ""))
        "a list",
        [ "learner.json"; "saved learner" ],
        json (fun folder -> File.WriteAllText(LearnerFile.jsonPath folder, "[]"))
        "another version", [ "learner.json"; "version 1 to 3"; "version 4" ], json (set "version" "4")
        "a version in words",
        [
            "learner.json, version"
            "a whole number from 1 to 3"
            "found \"x\""
            "backup"
        ],
        json (set "version" "\"x\"")
        "half a version", [ "learner.json, version"; "found 1.5" ], json (set "version" "1.5")
        "a long name of a method",
        [ "learner.json"; "must be one of"; "zzz..." ],
        json (set "method" ("\"" + String('z', 10000) + "\""))
        "a changed tensor byte",
        [ "learner.safetensors"; "SHA-256" ],
        json (fun folder ->
            let bytes = File.ReadAllBytes(LearnerFile.tensorPath folder)
            bytes[bytes.Length - 1] <- bytes[bytes.Length - 1] ^^^ 1uy
            File.WriteAllBytes(LearnerFile.tensorPath folder, bytes))
        "a missing member",
        [ "learner.json"; "saved learner" ],
        json (fun folder -> editJson folder (fun json -> json.Remove "heads" |> ignore))
        "a text for a number", [ "learner.json"; "saved learner" ], json (set "heads" "\"two\"")
        "a number too large", [ "learner.json"; "saved learner" ], json (set "heads" "99999999999")
        "an unknown method", [ "learner.json"; "lora-sub-drs"; "'magic'" ], json (set "method" "\"magic\"")
        "an unknown head", [ "learner.json"; "nearest-mean"; "'magic'" ], json (set "head" "\"magic\"")
        "an embedding of a block that is not there",
        [ "learner.json"; "block"; "9" ],
        json (fun folder ->
            editJson folder (fun json -> json["embedding"].["parts"].[0].["block"] <- JsonValue.Create 9))
        "two classes of one name",
        [ "learner.json"; "name of its own" ],
        json (changeClass 1 "name" "\"colour 0\"")
        "two classes of one id", [ "learner.json"; "id of its own" ], json (changeClass 1 "id" "0")
        "an id out of range", [ "learner.json"; "from 0 to 1"; "9" ], json (changeClass 1 "id" "9")
        "a class of a task to come", [ "learner.json"; "1 tasks"; "task 1" ], json (changeClass 1 "task" "1")
        "one class too few",
        [ "learner.json"; "head.counts"; "[1]"; "[2]" ],
        json (fun folder -> editJson folder (fun json -> (json["state"].["classes"].AsArray()).RemoveAt 1))
        "a key that is no number", [ "randomKey"; "hexadecimal" ], json (setState "randomKey" "\"xyz\"")
        "a range of three", [ "inputRange"; "2 numbers"; "3" ], json (set "inputRange" "[0, 1, 2]")
        "no prototypes",
        [ "learner.safetensors"; "method.prototypes" ],
        changeTensors (List.filter (fun (name, _) -> name <> "method.prototypes"))
        "a delta of another shape",
        [ "learner.json"; "blocks.1.delta.value"; "[8, 8]"; "[8, 3]" ],
        changeTensors (
            List.map (fun (name, t) ->
                name,
                (if name = "method.blocks.1.delta.value" then
                     t.narrow(1L, 0L, 3L).contiguous()
                 else
                     t))
        )
    ]

[<Tests>]
let tests =
    testList
        "LearnerFile"
        [
            testCase
                "what is saved is loaded bit for bit"
                (withSaved (fun plan state folder ->
                    Tiny.sameState "state" state (Tiny.load folder plan)
                    let saved = LearnerFile.load folder

                    Expect.equal
                        ((Json.ofRecord { saved.Record with TensorsSha256 = "" }).ToJsonString())
                        ((Json.ofRecord (Tiny.record plan state)).ToJsonString())
                        "the rest"

                    Expect.equal (Directory.GetFiles folder).Length 2 "two files"))

            testCase
                "learner.json with any byte changed is refused by name"
                (withSaved (fun _ _ folder ->
                    let path = LearnerFile.jsonPath folder
                    let whole = File.ReadAllBytes path
                    let random = Random 1

                    for at in 0 .. whole.Length - 1 do
                        for change in [ 1uy; 0x20uy; byte (random.Next(1, 256)) ] do
                            let bytes = Array.copy whole
                            bytes[at] <- bytes[at] ^^^ change
                            File.WriteAllBytes(path, bytes)

                            try
                                Probe.isRefused [ "learner.json" ] (fun () ->
                                    LearnerFile.record folder |> ignore)
                            with e ->
                                failtest $"byte {at} of {whole.Length}, changed by {change}: {e.Message}"

                    for length in [ whole.Length - 1; whole.Length / 2; 0 ] do
                        File.WriteAllBytes(path, whole[.. length - 1])

                        Probe.isRefused [ "learner.json" ] (fun () -> LearnerFile.record folder |> ignore)

                    File.WriteAllBytes(path, Array.append whole "\n"B)

                    Probe.isRefused [ "SHA-256"; "restore it" ] (fun () ->
                        LearnerFile.record folder |> ignore)))

            testCase
                "learner.json of before there was a checksum is loaded, and unknown members damage it"
                (withSaved (fun plan state folder ->
                    editJson folder ignore
                    Tiny.sameState "state" state (Tiny.load folder plan)
                    editJson folder (fun json -> json["sha257"] <- JsonValue.Create "0")

                    Probe.refused [ "learner.json"; "'sha256'"; "'sha257'" ] (fun () ->
                        LearnerFile.record folder |> ignore)

                    for wrong in [ "\"\""; "null"; "\"0\"" ] do
                        editJson folder (fun json ->
                            json.Remove "sha257" |> ignore
                            json["sha256"] <- JsonNode.Parse wrong)

                        Probe.refused [ "learner.json"; "64 hexadecimal digits" ] (fun () ->
                            LearnerFile.record folder |> ignore)))

            testCase
                "saving over an older learner replaces it"
                (withSaved (fun plan _ folder ->
                    let outcome = Tiny.run plan
                    Tiny.save folder plan outcome.State
                    Tiny.sameState "state" outcome.State (Tiny.load folder plan)
                    Expect.equal (Directory.GetFiles folder).Length 2 "two files"))

            testCase
                "a start without classes is saved and loaded"
                (withSaved (fun plan _ folder ->
                    let start = Learner.start (Tiny.learner plan) (Rng.ofSeed -3L)
                    Tiny.save folder plan start
                    Tiny.sameState "state" start (Tiny.load folder plan)))

            testCase
                "tensors are loaded in the precision of the backbone"
                (withSaved (fun _ state folder ->
                    let wide =
                        Tiny.plan
                            { Tiny.settings with
                                Precision = Precision.Float64
                            }

                    Seq.iter2
                        (fun (a: torch.Tensor) (b: torch.Tensor) ->
                            if torch.is_floating_point a then
                                Expect.equal b.dtype torch.ScalarType.Float64 "format"

                            Expect.equal (TestFiles.numbers b) (TestFiles.numbers a) "numbers")
                        (TaskState.leaves state)
                        (TaskState.leaves (Tiny.load folder wide))))

            testCase
                "an embedding of any parts is saved and loaded"
                (withSaved (fun plan _ folder ->
                    let part block tokens final : EmbeddingPart =
                        {
                            Block = block
                            Tokens = tokens
                            FinalNorm = final
                        }

                    let embedding: Embedding =
                        {
                            Frozen = [| part 1 Tokens.Class false |]
                            Parts =
                                [|
                                    part 1 Tokens.PatchMean false
                                    part 1 Tokens.PatchSpread false
                                    part 1 Tokens.PatchCentre true
                                    part 2 Tokens.PatchChange false
                                    part 2 Tokens.PatchQuadrants true
                                |]
                            Standardise = true
                            Flip = true
                            Shift = true
                        }

                    let learner =
                        Learner.create
                            plan.Backbone
                            (Method.hide (Tiny.drs plan))
                            (Heads.find "nearest-mean")
                            embedding

                    let state = Tiny.learnFirst learner plan

                    let record =
                        { Tiny.record plan state with
                            Embedding = Some(SavedEmbedding.ofEmbedding embedding)
                        }

                    LearnerFile.save folder learner record state
                    let saved = LearnerFile.load folder

                    let loaded =
                        LearnerFile.learner plan.Backbone plan.Settings.Tasks plan.Settings.Method saved

                    Expect.equal loaded.Embedding embedding "embedding"
                    Tiny.sameState "state" state (LearnerFile.restore loaded saved)))

            testCase
                "a learner with tensors that its method no longer keeps is loaded without them"
                (withSaved (fun plan _ folder ->
                    let method = SequentialLora.method' plan.Backbone plan.Settings.Method
                    let learner = Tiny.learnerOf plan method
                    let state = Tiny.learnFirst learner plan

                    let record =
                        LearnerRecord.create
                            learner
                            state
                            plan.Stream.Order
                            (Plan.batchOptions plan Augmentation.None).Format
                            plan.Settings.NormEpsilon
                            (String('0', 64))
                            []

                    LearnerFile.save folder learner record state
                    let means = torch.ones ([| 2L; plan.Backbone.Width |])
                    let kept = Tree.write (Learner.tree learner state) state
                    replaceTensors folder (("method.prototypes", means) :: kept)
                    let saved = LearnerFile.load folder

                    let loaded =
                        LearnerFile.learner plan.Backbone plan.Settings.Tasks plan.Settings.Method saved

                    Tiny.sameState "state" state (LearnerFile.restore loaded saved)))

            for name, words, damage in damages do
                testCase
                    $"{name}: refused, and nothing left"
                    (withSaved (fun plan state folder ->
                        damage folder plan state

                        Probe.refused words (fun () ->
                            Scope.run (fun () ->
                                let saved = LearnerFile.load folder

                                let learner =
                                    LearnerFile.learner
                                        plan.Backbone
                                        plan.Settings.Tasks
                                        plan.Settings.Method
                                        saved

                                LearnerFile.restore learner saved |> ignore))))

            testCase
                "the backbone must be the one that was trained on"
                (withSaved (fun plan state folder ->
                    let path = Path.Combine(folder, "backbone.safetensors")
                    Tiny.writeBackbone path 8 2 7
                    let hash = DataFile.sha256 path

                    let own =
                        { Tiny.record plan state with
                            BackboneSha256 = hash
                        }

                    refused [ path; "SHA-256"; String('0', 64); "as the backbone" ] (fun () ->
                        LearnerFile.checkBackbone (LearnerFile.load folder) hash path)

                    LearnerFile.save folder (Tiny.learner plan) own state
                    LearnerFile.checkBackbone (LearnerFile.load folder) hash path

                    for vit, words in
                        [
                            Tiny.vit Precision.Float32 10 2 7, [ "head.sums"; "[2, 10]"; "[2, 8]" ]
                            Tiny.vit Precision.Float32 8 3 7,
                            [ "learner.json"; "method.blocks.2.delta.key"; "no such tensor" ]
                        ] do
                        refused words (fun () ->
                            Scope.run (fun () ->
                                let saved = LearnerFile.load folder

                                let learner =
                                    LearnerFile.learner vit plan.Settings.Tasks plan.Settings.Method saved

                                LearnerFile.restore learner saved |> ignore))))

            testCase
                "a folder in the way of either file leaves no half of it"
                (withSaved (fun plan state _ ->
                    for pathOf in [ LearnerFile.tensorPath; LearnerFile.jsonPath ] do
                        Probe.inFolder (fun folder ->
                            Directory.CreateDirectory(pathOf folder) |> ignore
                            refused [ "folder" ] (fun () -> Tiny.save folder plan state)

                            Expect.isEmpty
                                (Directory.GetFiles(
                                    folder,
                                    "*.tmp",
                                    EnumerationOptions(AttributesToSkip = FileAttributes.None)
                                ))
                                "temporary files"

                            refused [ folder ] (fun () ->
                                Scope.run (fun () -> LearnerFile.load folder |> ignore)))))

            testCase
                "a folder that does not exist is refused"
                (withSaved (fun plan state folder ->
                    refused [ "learner.safetensors"; "folder" ] (fun () ->
                        Tiny.save (Path.Combine(folder, "absent")) plan state)))

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
                    let newer = (Tiny.run plan).State

                    Probe.inFolder (fun other ->
                        Tiny.save other plan newer
                        let read path = File.ReadAllBytes path

                        let newTensors, newJson =
                            read (LearnerFile.tensorPath other), read (LearnerFile.jsonPath other)

                        let next = LearnerFile.nextPath folder

                        let holds (state: TaskState) =
                            Tiny.sameState "state" state (Tiny.load folder plan)

                        // new tensors in part or whole, their JSON not there
                        File.WriteAllBytes(next, newTensors[..99])
                        holds older
                        File.WriteAllBytes(next, newTensors)
                        holds older
                        // the JSON there, the tensors not in their place
                        File.WriteAllBytes(LearnerFile.jsonPath folder, newJson)
                        holds newer

                        Tiny.save folder plan older
                        holds older
                        Expect.isFalse (File.Exists next) "nothing waits"
                        Expect.hasLength (Directory.GetFiles folder) 2 "two files")))

            testCase
                "a save that fails after the tensors keeps the older learner"
                (withSaved (fun plan older folder ->
                    let newer = (Tiny.run plan).State

                    // its JSON cannot be written
                    let folderInTheWay = LearnerFile.jsonPath folder
                    let json = File.ReadAllText folderInTheWay
                    File.Delete folderInTheWay
                    Directory.CreateDirectory folderInTheWay |> ignore

                    Expect.throws (fun () -> Tiny.save folder plan newer) "fails"

                    Directory.Delete folderInTheWay
                    File.WriteAllText(folderInTheWay, json)
                    Tiny.sameState "state" older (Tiny.load folder plan)
                    Expect.hasLength (Directory.GetFiles folder) 2 "two files"))

            testCase
                "readers and savers at one time get a whole learner"
                (withSaved (fun plan older folder ->
                    let newer = (Tiny.run plan).State
                    let mutable saving = true

                    let savers =
                        [|
                            for first in [ older; newer ] ->
                                Threading.Tasks.Task.Run(fun () ->
                                    for i in 0..14 do
                                        Tiny.save folder plan (if i % 2 = 0 then first else older))
                        |]

                    let all = Threading.Tasks.Task.WhenAll savers
                    let mutable loads = 0

                    while saving do
                        saving <- not all.IsCompleted

                        Scope.run (fun () ->
                            let classes = (LearnerFile.load folder).Record.State.Classes.Length
                            Expect.contains [ 2; 4 ] classes "one of the two")

                        loads <- loads + 1

                    all.Wait()
                    Expect.isGreaterThan loads 1 "loads meanwhile"
                    Expect.hasLength (Directory.GetFiles folder) 2 "two files"))
        ]
