/// Lessons that are interrupted at every step and continued.
module LoRASub.Tests.LessonTests

open System
open System.IO
open LoRASub.Core
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open LoRASub.Run
open Expecto
open TorchSharp

let private names = [| "ant"; "bee"; "cat" |]

let private images: ImageSet =
    let labels = Array.init 18 (fun i -> i % 3)
    let pixels = Array.init (18 * 3 * 64) (fun i -> byte (i * 7 % 251 + i / 64 % 3))
    ImageSet.ofBytes "images" labels 3 8 8 pixels

let private settings world method =
    { KeptLearner.settings "recommended" with
        MethodName = method
        Backbone = Some(Path.Combine(world, "vit.safetensors"))
        Device = Generators.deviceName
        Epochs = 2
        Batch = 4
        Method =
            { (KeptLearner.settings "recommended").Method with
                Rank = 2
            }
    }

/// Stops a lesson at its n-th look at whether it should stop; None: never.
let private learn (folder: string) (stopAt: int option) (notes: ResizeArray<string>) (kept: KeptLearner) =
    let looks = ref 0

    let recovery: Recovery =
        {
            Folder = folder
            Every = TimeSpan.Zero
            IsStopping =
                fun () ->
                    looks.Value <- looks.Value + 1
                    Some looks.Value = stopAt
            Note = notes.Add
        }

    Lesson.learnIn (Some recovery) 0.2 names images ignore kept

let private numbers (lesson: Lesson) =
    [
        for tensor in TaskState.leaves lesson.After.State do
            yield! TestFiles.numbers tensor
        for held in lesson.After.HeldOut do
            held.Temperature
            yield! held.Support
    ]

/// Runs a test with a new learner of a method and a folder.
let private withLearner method (test: string -> KeptLearner -> unit) () =
    Probe.inFolder (fun world ->
        Tiny.writeBackbone (Path.Combine(world, "vit.safetensors")) 8 2 7

        Scope.run (fun () ->
            let kept = KeptLearner.create (settings world method)
            use _ = Scope.own KeptLearner.leaves kept
            test world kept))

let private waits (folder: string) =
    Directory.GetFiles(folder, "lesson-*.safetensors")

let private stopped folder at kept =
    Expect.throwsT<LessonStoppedException>
        (fun () -> learn folder (Some at) (ResizeArray()) kept |> ignore)
        $"stopped at look {at}"

[<Tests>]
let tests =
    testList
        "Lesson"
        [
            for method in [ "lora-sub-drs"; "sequential"; "frozen"; "auto" ] do
                testCase
                    $"{method}, stopped anywhere and continued, learns the same"
                    (withLearner method (fun world kept ->
                        let expected = numbers (learn world None (ResizeArray()) kept)
                        let mutable at = 1
                        let mutable goesOn = 0
                        let mutable isOver = false

                        while not isOver do
                            try
                                learn world (Some at) (ResizeArray()) kept |> ignore
                                isOver <- true
                            with :? LessonStoppedException ->
                                let notes = ResizeArray()
                                let wasOpen = not (Array.isEmpty (waits world))
                                let found = numbers (learn world None notes kept)
                                Expect.equal found expected $"stopped at look {at}"

                                if wasOpen then
                                    Expect.contains notes "continues where it was interrupted" "said"
                                    goesOn <- goesOn + 1

                                OpenLesson.delete world
                                at <- at + 1

                        Expect.isGreaterThan goesOn 2 $"steps to stop at, of {at}"))

            testCase
                "a damaged lesson, or one of other images, starts again"
                (withLearner "sequential" (fun world kept ->
                    let expected = numbers (learn world None (ResizeArray()) kept)
                    stopped world 4 kept
                    let path = Array.exactlyOne (waits world)
                    let bytes = File.ReadAllBytes path
                    bytes[bytes.Length - 3] <- bytes[bytes.Length - 3] ^^^ 1uy
                    File.WriteAllBytes(path, bytes)
                    let notes = ResizeArray()
                    Expect.equal (numbers (learn world None notes kept)) expected "the same"
                    Expect.exists notes _.Contains("is damaged") "said"

                    OpenLesson.delete world
                    stopped world 4 kept

                    let others =
                        { kept with
                            Settings = { kept.Settings with Epochs = 3 }
                        }

                    let notes = ResizeArray()
                    learn world None notes others |> ignore
                    Expect.exists notes _.Contains("other images, classes, settings or threads") "said"))

            testCase
                "a lesson is saved in place of the last one"
                (withLearner "sequential" (fun world kept ->
                    stopped world 3 kept
                    let first = waits world
                    stopped world 5 kept
                    Expect.hasLength (waits world) 1 "one"
                    Expect.notEqual (waits world) first "another"
                    Expect.isEmpty (Directory.GetFiles(world, "*.tmp")) "nothing half-written"))
        ]
