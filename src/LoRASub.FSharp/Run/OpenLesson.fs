namespace LoRASub.Run

open System
open System.IO
open System.IO.Enumeration
open System.Security.Cryptography
open System.Text
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data
open LoRASub.Learn
open LoRASub.Settings
open TorchSharp

/// A lesson that was interrupted, as it waits in the folder of its learner: `lesson-SHA256.safetensors`, named by the hash
/// of its bytes.
type internal OpenLesson =
    {
        /// That the learner has, or that the trial chose.
        Method: string
        /// As in `Lesson`.
        Decision: string option
        /// The progress under a learner of that method, owned by the caller.
        Progress: Learner -> TaskState -> TaskProgress
    }

[<RequireQualifiedAccess>]
module internal OpenLesson =

    // Of the tensors of methods in training.
    [<Literal>]
    let private Version = "3"

    [<Literal>]
    let private Pattern = "lesson-*.safetensors"

    /// Whether a path is one of a lesson.
    let isOne (path: string) : bool =
        FileSystemName.MatchesSimpleExpression(Pattern.AsSpan(), (Path.GetFileName path).AsSpan())

    let private files (folder: string) =
        if Directory.Exists folder then
            Directory.GetFiles(folder, Pattern)
        else
            [||]

    /// Whether a lesson waits in a folder.
    let exists (folder: string) : bool = not (Array.isEmpty (files folder))

    /// Removes the lesson of a folder, if there is one.
    let delete (folder: string) : unit =
        files folder |> Array.iter WholeFile.discard

    /// The hash of all that decides the numbers of a lesson: only the same one can be continued.
    let identity (kept: KeptLearner) (names: string[]) (images: ImageSet) : string =
        [
            Version
            for setting in Settings.all do
                if not setting.FreeOnResume then
                    $"{setting.Name}={setting.Get kept.Settings}"
            kept.BackboneSha256
            for one in kept.Classes do
                $"{one.Id} {one.Name} {one.Task} {one.Images}"
            yield! names
            ImageSet.labelsSha256 images
            ImageSet.imagesSha256 images
            // sums are added in another order
            string (torch.get_num_threads ())
        ]
        |> String.concat "\n"
        |> Encoding.UTF8.GetBytes
        |> SHA256.HashData
        |> Convert.ToHexStringLower

    /// Writes a lesson in place of the one that the folder has. Borrows.
    let save
        (folder: string)
        (identity: string)
        (decision: string option)
        (names: string[])
        (kept: KeptLearner)
        (progress: TaskProgress)
        : unit =
        let learner, state = kept.Learner, kept.State
        let old = files folder
        let next = Path.Combine(folder, ".lorasub-lesson.tmp")

        let struct (stage, count) =
            match progress with
            | Observing(_, batches) -> struct ("observing", batches)
            | Training(_, epoch, _) -> struct ("training", epoch)

        let metadata =
            [
                "format", "lorasub lesson"
                "identity", identity
                "method", learner.Method.Info.Name
                "stage", stage
                "count", string count
                match decision with
                | Some text -> "decision", text
                | None -> ()
            ]

        try
            Scope.run (fun () ->
                TaskProgress.write learner (ImageTask.nextTask names state) state progress
                |> Safetensors.write next (Map metadata))

            let path = Path.Combine(folder, $"lesson-{DataFile.sha256 next}.safetensors")
            File.Move(next, path, overwrite = true)
            old |> Array.filter ((<>) path) |> Array.iter WholeFile.discard
        with _ ->
            WholeFile.discard next
            reraise ()

    /// The lesson that waits in a folder, if it is the one of this identity; or why it cannot be continued. Its tensors
    /// belong to the caller's scope.
    let load (folder: string) (identity: string) (names: string[]) : Result<OpenLesson, string> option =
        match files folder with
        | [||] -> None
        | found ->
            let path = Array.max found
            let stated = (Path.GetFileNameWithoutExtension path).Substring "lesson-".Length

            try
                match Safetensors.readHashed stated path with
                | None -> Error $"{path} is damaged"
                | Some file when Map.tryFind "identity" file.Metadata <> Some identity ->
                    Error "it was of other images, classes, settings or threads"
                | Some file ->
                    Ok
                        {
                            Method = file.Metadata["method"]
                            Decision = Map.tryFind "decision" file.Metadata
                            Progress =
                                fun learner state ->
                                    let device = learner.Backbone.Device

                                    let tensors =
                                        NamedTensors(
                                            path,
                                            file.Tensors |> Map.map (fun _ t -> t.``to`` device)
                                        )

                                    TaskProgress.read
                                        learner
                                        (ImageTask.nextTask names state)
                                        state
                                        tensors
                                        (file.Metadata["stage"] = "observing")
                                        (int file.Metadata["count"])
                        }
            with :? InputException as e ->
                Error e.Message
            |> Some
