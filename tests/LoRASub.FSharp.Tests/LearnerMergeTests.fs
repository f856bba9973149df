module LoRASub.Tests.LearnerMergeTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open LoRASub.Tests.Check
open TorchSharp

let private names = [| "ant"; "bee"; "cat"; "dog"; "elk" |]

/// Images of five classes, seven each.
let private images = lazy (Tiny.images "squares" 5 (Tiny.labels names.Length 7))

/// The images of some classes at some positions, labelled by place among those classes.
let private part (classes: string[]) (isChosen: int -> bool) : ImageSet =
    let positions = Array.filter isChosen [| 0 .. images.Value.Labels.Length - 1 |]

    ImageSet.select positions images.Value
    |> ImageSet.ofLabels (classes |> Array.map (fun name -> Array.IndexOf(names, name)))

let private settingsOf (folder: string) head : RunSettings =
    let backbone = Path.Combine(folder, "vit.safetensors")

    if not (File.Exists backbone) then
        Tiny.writeBackbone backbone 8 2 7

    let preset = KeptLearner.settings "recommended"

    { preset with
        MethodName = "frozen"
        Method = { preset.Method with Rank = 2 }
        Head = head
        Embedding = "class-token"
        Backbone = Some backbone
        Precision = Precision.Float64
        Device = Generators.deviceName
        Batch = 4
    }

/// A learner of groups of classes and the positions of their images. Owned by the caller's scope.
let private learned settings (groups: (string[] * (int -> bool)) list) : KeptLearner =
    groups
    |> List.fold
        (fun kept (classes, isChosen) -> (Lesson.learn 0.0 classes (part classes isChosen) ignore kept).After)
        (KeptLearner.create settings)

let private inScope (test: string -> unit) () =
    Probe.inFolder (fun folder -> Scope.run (fun () -> test folder))

let private written (head: HeadState) = Hidden.written head |> List.sortBy fst

let private heads =
    [
        for row in Heads.all do
            if row.Info.Name <> Heads.logits.Info.Name then
                match row.Parameters with
                | ("FEATURES", _) :: _ -> $"{row.Info.Name}:12"
                | _ -> row.Info.Name
    ]

let private table (kept: KeptLearner) =
    [ for one in kept.Classes -> one.Id.Value, one.Name, one.Task, one.Images ]

[<Tests>]
let tests =
    testList
        "LearnerMerge"
        [
            for head in heads do
                testCase
                    $"{head}: learners of disjoint images add up to the learner of all"
                    (inScope (fun folder ->
                        let settings = settingsOf folder head

                        for seed in 1..6 do
                            Scope.run (fun () ->
                                // of three classes a random share each, one class each alone
                                let random = Random seed
                                let isLeft = Array.init 35 (fun i -> i < 5 || i >= 10 && random.Next 2 = 0)
                                let mine = [| "cat"; "ant"; "bee"; "dog" |]
                                let theirs = [| "bee"; "elk"; "ant"; "cat" |]
                                let here i = isLeft[i] || i % 5 = 3
                                let there i = not isLeft[i] || i % 5 = 4
                                let into = learned settings [ mine[..1], here; mine[2..], here ]
                                let from = learned settings [ theirs[..1], there; theirs[2..], there ]
                                let before = table into, table from
                                let merged = LearnerMerge.merge from into
                                Expect.equal (table into, table from) before "arguments untouched"

                                let all =
                                    learned
                                        settings
                                        [
                                            mine[..1], (fun _ -> true)
                                            mine[2..], (fun _ -> true)
                                            [| "elk" |], (fun _ -> true)
                                        ]

                                Expect.equal (table merged) (table all) "classes"
                                Expect.equal merged.State.NextId all.State.NextId "next id"
                                Expect.equal merged.State.Finished all.State.Finished "groups"

                                for (name, expected), (other, actual) in
                                    List.zip (written all.State.Head) (written merged.State.Head) do
                                    Expect.equal other name "tensor"
                                    let e, a = TestFiles.numbers expected, TestFiles.numbers actual
                                    Expect.hasLength a e.Length name
                                    let size = e |> Array.map abs |> Array.max |> max 1e-300

                                    Expect.isLessThan
                                        ((Array.map2 (fun x y -> abs (x - y)) e a |> Array.max) / size)
                                        1e-7
                                        $"seed {seed}, {name}")))

            testCase
                "a learner that was merged is saved, loaded, and learns more"
                (inScope (fun folder ->
                    let settings = settingsOf folder "cosine-lda"
                    let into = learned settings [ names[..1], (fun _ -> true) ]
                    let from = learned settings [ names[2..3], (fun _ -> true) ]
                    let merged = LearnerMerge.merge from into
                    let place = Path.Combine(folder, "merged")
                    KeptLearner.save place merged
                    let beside = KeptLearner.besides into (LearnerFile.load place)
                    Tiny.sameState "over the open backbone" merged.State beside.State
                    let again = KeptLearner.load settings.Backbone.Value place
                    Tiny.sameState "state" merged.State again.State

                    let more =
                        (Lesson.learn 0.0 names[4..] (part names[4..] (fun _ -> true)) ignore again).After

                    Expect.equal
                        (table more)
                        [ for i in 0..4 -> i, names[i], i / 2, 7L ]
                        "ids and groups of their own"))

            testCase
                "a learner copied from the other is rejected: its images would count twice"
                (inScope (fun folder ->
                    let settings = settingsOf folder "cosine-lda"
                    let first = learned settings [ names[..1], (fun _ -> true) ]

                    let second =
                        (Lesson.learn 0.0 names[2..3] (part names[2..3] (fun _ -> true)) ignore first).After

                    Probe.isRefused [ "class 'ant'"; "count twice" ] (fun () ->
                        LearnerMerge.merge second first |> ignore)))

            testCase
                "learners that see or predict in other ways are rejected, with what differs"
                (inScope (fun folder ->
                    let settings = settingsOf folder "nearest-mean"
                    let into = learned settings [ names[..1], (fun _ -> true) ]
                    let other = Path.Combine(folder, "other.safetensors")
                    Tiny.writeBackbone other 8 2 8

                    for what, settings in
                        [
                            "head", { settings with Head = "lda" }
                            "method",
                            { settings with
                                MethodName = "lora-sub-drs"
                                Epochs = 1
                            }
                            "embedding",
                            { settings with
                                Embedding = "last-blocks"
                            }
                            "precision",
                            { settings with
                                Precision = Precision.Float32
                            }
                            "input range",
                            { settings with
                                InputRange = struct (0.0, 1.0)
                            }
                            "norm epsilon",
                            { settings with
                                NormEpsilon = { Blocks = 1e-5; Final = 1e-6 }
                            }
                            "backbone", { settings with Backbone = Some other }
                        ] do
                        let from = learned settings [ names[2..3], (fun _ -> true) ]

                        Probe.isRefused [ "learners to merge"; what; "lorasub learn" ] (fun () ->
                            LearnerMerge.merge from into |> ignore)))

            testCase
                "networks that adapted to other images are rejected, and a method's own classifier"
                (inScope (fun folder ->
                    for head, words in
                        [
                            "nearest-mean", [ "same network"; "first-session"; "--method frozen" ]
                            "logits", [ "head of sums"; "logits" ]
                        ] do
                        let settings =
                            { settingsOf folder head with
                                MethodName = (if head = "logits" then "inflora" else "first-session")
                                Epochs = 1
                            }

                        let into = learned settings [ names[..1], (fun _ -> true) ]
                        let from = learned settings [ names[2..3], (fun _ -> true) ]

                        Probe.isRefused ("learners to merge" :: words) (fun () ->
                            LearnerMerge.merge from into |> ignore)))

            testCase
                "diff: classes, names, images, settings and the largest changes"
                (inScope (fun folder ->
                    let settings =
                        { settingsOf folder "nearest-mean" with
                            MethodName = "first-session"
                            Epochs = 1
                        }

                    let left = learned settings [ names[..2], (fun i -> i < 30) ]
                    let place name = Path.Combine(folder, name)
                    KeptLearner.save (place "left") left

                    let right = KeptLearner.rename "ant" "wasp" left |> KeptLearner.forget "bee"
                    let more = part [| "cat" |] (fun i -> i >= 30)
                    let right = (Lesson.addImages 0.0 [| "cat" |] more ignore right).After

                    let right =
                        (Lesson.learn 0.0 [| "elk" |] (part [| "elk" |] (fun _ -> true)) ignore right).After

                    KeptLearner.save
                        (place "right")
                        { right with
                            Settings = { right.Settings with Epochs = 3 }
                        }

                    let record name = LearnerFile.record (place name)
                    let named = Array.map (fun (one: SavedClass) -> one.Name)

                    let compared left right =
                        LearnerDiff.ofRecords (record left) (record right)
                        |> LearnerDiff.ofTensors
                            (LearnerFile.load (place left))
                            (LearnerFile.load (place right))

                    let found = compared "left" "right"
                    let change = found.Change.Value
                    Expect.isEmpty found.Traits "they see alike"

                    Expect.equal
                        found.Settings
                        [
                            {
                                Name = "epochs"
                                Left = "1"
                                Right = "3"
                            }
                        ]
                        "another setting"

                    Expect.equal
                        (named found.OnlyLeft, named found.OnlyRight)
                        ([| "bee" |], [| "elk" |])
                        "only"

                    Expect.equal [ for a, b in found.Renamed -> a.Name, b.Name ] [ "ant", "wasp" ] "renamed"

                    Expect.equal
                        [ for a, b in found.Counts -> a.Name, a.Images, b.Images ]
                        [ "cat", 6L, 7L ]
                        "images"

                    Expect.isFalse found.SameTensors "tensors"
                    Expect.isFalse found.IsEmpty "different"

                    match change.Mean with
                    | Some(name, by) ->
                        Expect.equal name "cat" "the mean that moved"

                        let mean (kept: KeptLearner) =
                            let row = kept.Classes |> Array.findIndex (fun one -> one.Name = "cat")
                            (Tiny.prototypes kept.State).select(0L, int64 row)

                        let a, b = mean left, mean right
                        let norm (t: torch.Tensor) = t.norm().item<float>()
                        closeTo 1e-9 "by" [ norm (a.sub b) / max (norm a) (norm b) ] [ by ]
                    | None -> failtest "a mean"

                    Expect.isNone change.Network "the network stays"
                    Expect.equal change.Unlike 0 "the same tensors"

                    let other = learned settings [ names[1..3], (fun _ -> true) ]
                    KeptLearner.save (place "other") other

                    let found = compared "left" "other"
                    Expect.isEmpty found.Renamed "other images"
                    Expect.isSome found.Change.Value.Network "another network"
                    Expect.isTrue (LearnerDiff.ofRecords (record "left") (record "left")).IsEmpty "itself"

                    // the same tensors show a name as another of the same class
                    KeptLearner.save (place "named") (KeptLearner.rename "cat" "lynx" left)
                    let named = LearnerDiff.ofRecords (record "left") (record "named")

                    Expect.equal
                        [ for a, b in named.Renamed -> a.Name, b.Name ]
                        [ "cat", "lynx" ]
                        "renamed alone"

                    let swapped =
                        left
                        |> KeptLearner.rename "cat" "lynx"
                        |> KeptLearner.rename "ant" "cat"
                        |> KeptLearner.rename "lynx" "ant"

                    KeptLearner.save (place "swapped") swapped
                    let swapped = LearnerDiff.ofRecords (record "left") (record "swapped")

                    Expect.equal
                        (set [ for a, b in swapped.Renamed -> a.Name, b.Name ])
                        (set [ "cat", "ant"; "ant", "cat" ])
                        "two names that changed places"

                    Expect.isFalse swapped.IsEmpty "a difference"))

            testCase
                "of two classes of the same images, one is another's new name"
                (inScope (fun folder ->
                    let settings = settingsOf folder "nearest-mean"
                    let ants = part [| "ant" |] (fun _ -> true)
                    let count = ants.Labels.Length

                    let twice =
                        { ImageSet.select (Array.init (2 * count) (fun i -> i % count)) ants with
                            Labels = Array.init (2 * count) (fun i -> i / count)
                        }

                    let learn names images =
                        (Lesson.learn 0.0 names images ignore (KeptLearner.create settings)).After

                    let place name = Path.Combine(folder, name)
                    KeptLearner.save (place "left") (learn [| "ant"; "bee" |] twice)
                    KeptLearner.save (place "right") (learn [| "wasp" |] ants)
                    let load name = LearnerFile.load (place name)
                    let left, right = load "left", load "right"

                    let found =
                        LearnerDiff.ofRecords left.Record right.Record
                        |> LearnerDiff.ofTensors left right

                    Expect.equal [ for a, b in found.Renamed -> a.Name, b.Name ] [ "ant", "wasp" ] "renamed"
                    Expect.equal [ for one in found.OnlyLeft -> one.Name ] [ "bee" ] "the other"
                    Expect.isEmpty found.OnlyRight "none"))
        ]
