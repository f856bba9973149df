module LoRASub.Tests.SamplesTests

open System.IO
open LoRASub.Data
open LoRASub.Run
open Expecto

let private stream =
    TaskStream.create (Tiny.dataset 4 3 6) ClassOrder.Natural 2 None

/// Every third image of a task taken for another class.
let private predictions: TaskPredictions[] =
    stream.Tasks
    |> Array.map (fun task ->
        let truth =
            TaskStream.testIndices stream task
            |> Array.map (fun i -> stream.Dataset.Test.Labels[i])

        {
            Task = task
            Truth = truth
            Predicted = truth |> Array.mapi (fun i c -> if i % 3 = 0 then (c + 1) % 4 else c)
            Others = [||]
        })

[<Tests>]
let tests =
    testList
        "Samples"
        [
            testCase "images of each task, whatever was predicted, as PNG files" (fun () ->
                let samples = Samples.choose stream predictions

                for task in 0..1 do
                    let mine = samples |> Array.filter (fun s -> s.Task = task)
                    Expect.equal mine.Length 6 $"task {task}"

                let others =
                    predictions
                    |> Array.map (fun p ->
                        { p with
                            Predicted = p.Truth |> Array.map (fun c -> (c + 2) % 4)
                        })

                let pngs = Array.map (fun (s: SamplePrediction) -> s.Png)
                Expect.equal (pngs (Samples.choose stream others)) (pngs samples) "the same for other runs"

                for sample in samples do
                    let task = predictions[sample.Task]

                    Expect.exists
                        (Seq.zip task.Truth task.Predicted)
                        ((=) (sample.Truth, sample.Predicted))
                        "a prediction of the run"

                Probe.inFolder (fun folder ->
                    let path = Path.Combine(folder, "sample.png")

                    for sample in samples do
                        File.WriteAllBytes(path, sample.Png)
                        let picture = ImageFile.read path
                        Expect.equal (picture.Height, picture.Width) (8, 8) "size"

                        let originals =
                            [
                                for i in TaskStream.testIndices stream stream.Tasks[sample.Task] do
                                    if stream.Dataset.Test.Labels[i] = sample.Truth then
                                        (stream.Dataset.Test.Read i).Pixels
                            ]

                        Expect.contains originals picture.Pixels "one of the class's images"))

            testCase "large images come small, grey ones as grey" (fun () ->
                let bytes = Array.init (4 * 300 * 30) (fun i -> byte (i % 251))
                let set = ImageSet.ofBytes "grey" [| 0; 0; 0; 0 |] 1 300 30 bytes

                let one =
                    TaskStream.create (Dataset.create "grey" [| "a" |] set set) ClassOrder.Natural 1 None

                let all: TaskPredictions =
                    {
                        Task = one.Tasks[0]
                        Truth = [| 0; 0; 0; 0 |]
                        Predicted = [| 0; 0; 0; 0 |]
                        Others = [||]
                    }

                Probe.inFolder (fun folder ->
                    let path = Path.Combine(folder, "sample.png")

                    for sample in Samples.choose one [| all |] do
                        File.WriteAllBytes(path, sample.Png)
                        let picture = ImageFile.read path
                        Expect.equal (picture.Height, picture.Width) (96, 9) "size"

                        for i in 0..3 .. picture.Pixels.Length - 3 do
                            Expect.equal picture.Pixels[i] picture.Pixels[i + 2] "grey"))
        ]
