namespace LoRASub.Learn

open System
open System.Collections.Generic
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Methods
open TorchSharp

/// Saves and loads learners: `learner.safetensors` holds the tensors, `learner.json` the rest, the hash of the tensors
/// that belong to it, and its own. New tensors wait under a name of their own until the new JSON takes its name. That one step
/// decides which learner the folder holds, so that a process killed at any moment leaves the old or the new one.
[<RequireQualifiedAccess>]
module LearnerFile =

    /// <summary>The JSON half of a saved learner; the tensors are beside it.</summary>
    /// <param name="folder">The folder of the learner.</param>
    /// <returns>A path, whether or not there is such a file.</returns>
    let jsonPath (folder: string) = Path.Combine(folder, "learner.json")

    /// <summary>The tensor half of a saved learner.</summary>
    /// <param name="folder">The folder of the learner.</param>
    /// <returns>A path, whether or not there is such a file.</returns>
    let tensorPath (folder: string) =
        Path.Combine(folder, "learner.safetensors")

    /// The tensors of a save that is not finished.
    let internal nextPath (folder: string) =
        Path.Combine(folder, "learner.next.safetensors")

    // Finishes a save whose JSON is in place, and drops one whose JSON is not.
    let private settle (folder: string) =
        let next = nextPath folder

        if File.Exists next then
            if LearnerJson.tensorsHash (jsonPath folder) = Some(DataFile.sha256 next) then
                try
                    File.Move(next, tensorPath folder, overwrite = true)
                with
                | :? IOException
                | :? UnauthorizedAccessException as e ->
                    Errors.reject (tensorPath folder) "must be a file that can be replaced" e.Message ""
            else
                WholeFile.discard next

    // One process at a time: the second one's tensors would replace the first one's before its JSON is in place.
    let private alone (folder: string) (work: unit -> unit) =
        let lock' = Path.Combine(folder, ".lorasub-learner.tmp")
        let clock = Diagnostics.Stopwatch.StartNew()

        let rec hold () : FileStream =
            try
                new FileStream(
                    lock',
                    FileMode.OpenOrCreate,
                    FileAccess.ReadWrite,
                    FileShare.None,
                    1,
                    FileOptions.DeleteOnClose
                )
            with
            | :? IOException as e when WholeFile.isLocked e && clock.Elapsed < TimeSpan.FromMinutes 1.0 ->
                Threading.Thread.Sleep 20
                hold ()
            | :? IOException
            | :? UnauthorizedAccessException as e ->
                Errors.reject (tensorPath folder) "must be in a folder that can be written" e.Message ""

        use _ = hold ()
        work ()

    /// Rejects a folder with the tensors of a learner whose learner.json is lost: they may be all that is left of it.
    let internal requireNoOrphan (folder: string) =
        if File.Exists(tensorPath folder) && not (File.Exists(jsonPath folder)) then
            Errors.reject
                (tensorPath folder)
                "must be beside its learner.json"
                "no such file"
                "restore learner.json from a backup, or choose another folder"

    /// <summary>Writes a learner into a folder that exists, over an older one, which can be loaded until the
    /// new one can. A save that fails leaves the older one.</summary>
    /// <param name="folder">The folder.</param>
    /// <param name="learner">Borrowed.</param>
    /// <param name="record">As `record` gives it.</param>
    /// <param name="state">Of the learner; borrowed.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The folder cannot be written.</exception>
    let save (folder: string) (learner: Learner) (record: LearnerFormat.Record) (state: TaskState) : unit =
        requireNoOrphan folder

        if Directory.Exists(tensorPath folder) then
            Errors.reject (tensorPath folder) "must be a file" "a folder" "choose another folder"

        let next = nextPath folder

        alone folder (fun () ->
            // before anything is written over tensors that learner.json names already
            settle folder

            try
                Scope.run (fun () ->
                    Safetensors.write
                        next
                        (Map [ "format", "lorasub learner" ])
                        (Tree.write (Learner.tree learner state) state))

                LearnerJson.write
                    (jsonPath folder)
                    { record with
                        TensorsSha256 = DataFile.sha256 next
                    }
            finally
                try
                    settle folder
                with :? InputException ->
                    // a learner whose tensors still wait can be loaded: the next save moves them
                    ())

    let private lost (folder: string) =
        Errors.reject
            (tensorPath folder)
            "must be beside learner.json"
            "no such file"
            "restore the folder from a backup"

    // What `read` gives of the tensors that learner.json names by their hash.
    let private tensorsOf (folder: string) (sha256: string) (read: string -> 'T option) : 'T =
        let path = tensorPath folder

        match [ path; nextPath folder ] |> List.filter File.Exists |> List.tryPick read with
        | Some found -> found
        | None when File.Exists path ->
            let rule = $"must have the SHA-256 {sha256} that learner.json gives"
            Errors.reject path rule (DataFile.sha256 path) "restore the folder from a backup"
        | None -> lost folder

    let private checkedRecord (path: string) =
        let struct (record, isOld) = LearnerJson.read path
        LearnerRecord.check path record
        struct (record, isOld)

    /// What learner.json says, without the tensors. Loads no native library. Rejects a file that is missing, damaged or of
    /// another version.
    let internal record (folder: string) : LearnerFormat.Record =
        let struct (record, _) = checkedRecord (jsonPath folder)
        record

    // The folder may come to hold another learner between two of its files.
    let private steady (read: unit -> 'T) : 'T =
        let rec attempt left =
            try
                read ()
            with :? InputException when left > 0 ->
                attempt (left - 1)

        attempt 4

    /// `record` of a learner whose tensors are the ones that it names. Reads them, but loads no native library. Rejects
    /// files as `load`.
    let internal verified (folder: string) : LearnerFormat.Record =
        steady (fun () ->
            let record = record folder
            let sha256 = record.TensorsSha256

            tensorsOf folder sha256 (fun path -> if DataFile.sha256 path = sha256 then Some() else None)

            record)

    let private loadOnce (folder: string) : SavedLearner =
        let path = jsonPath folder
        let struct (record, isOld) = checkedRecord path
        let sha256 = record.TensorsSha256
        let file = tensorsOf folder sha256 (Safetensors.readHashed sha256)

        {
            Record = record
            Tensors =
                if isOld then
                    LearnerVersion1.rename file.Tensors
                else
                    file.Tensors
            Path = path
        }

    /// <summary>Reads what `save` wrote, also while another process saves over it, or a learner of version
    /// 1.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>The record and its tensors, which belong to the caller's scope.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A file is missing, damaged or of another version, or the
    /// two are not of one save.</exception>
    let load (folder: string) : SavedLearner = steady (fun () -> loadOnce folder)

    /// <summary>Checks that a backbone is the one that the learner was trained on.</summary>
    /// <param name="saved">The learner.</param>
    /// <param name="sha256">SHA-256 of the backbone's file, in lower-case hexadecimal.</param>
    /// <param name="path">That file, for the error.</param>
    /// <exception cref="T:LoRASub.Core.InputException">The hash is another.</exception>
    let checkBackbone (saved: SavedLearner) (sha256: string) (path: string) =
        if sha256 <> saved.Record.BackboneSha256 then
            let rule =
                $"must be the backbone that the learner was trained on (SHA-256 {saved.Record.BackboneSha256})"

            Errors.reject path rule sha256 "give that file as the backbone"

    /// <summary>The learner that was saved, over its backbone.</summary>
    /// <param name="backbone">Borrowed for as long as the learner is used.</param>
    /// <param name="tasks">How many are planned, learned ones included.</param>
    /// <param name="settings">The method's, for further tasks.</param>
    /// <param name="saved">The learner.</param>
    /// <returns>The learner; `restore` gives its state.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The method or the head is not known, or the backbone cannot
    /// give the embedding.</exception>
    let learner (backbone: VisionTransformer) (tasks: int) settings (saved: SavedLearner) : Learner =
        let record = saved.Record

        let embedding =
            match record.Embedding with
            | Some embedding -> SavedEmbedding.toEmbedding saved.Path embedding
            | None -> Embedding.output backbone

        // what the file says is the file's fault, but settings are the caller's
        let ofFile (read: unit -> 'T) : 'T =
            try
                read ()
            with :? InputException as e ->
                raise (InputException($"{saved.Path}: {e.Message}", e))

        let row = ofFile (fun () -> Methods.find record.Method)
        let method = row.Create backbone tasks settings

        let other (saved': SavedReadout) : Readout =
            {
                Label = saved'.Label
                Head = Heads.find saved'.Head
                Embedding = SavedEmbedding.toEmbedding saved.Path saved'.Embedding
            }

        let learner =
            ofFile (fun () ->
                Learner.create backbone method (Heads.find record.Head) embedding
                |> Learner.withOthers (record.Others |> Option.defaultValue [||] |> Array.map other))

        { learner with
            Transport = record.Transport |> Option.defaultValue true
        }

    /// <summary>The state that was saved, on the learner's backbone and in its precision.</summary>
    /// <param name="learner">As `learner` gives it; borrowed.</param>
    /// <param name="saved">The learner; borrowed.</param>
    /// <returns>The state, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A tensor is absent or does not fit the
    /// backbone.</exception>
    let restore (learner: Learner) (saved: SavedLearner) : TaskState =
        let vit = learner.Backbone

        Scope.noGrad TaskState.leaves (fun () ->
            let fresh = Learner.start learner (Rng.ofSeed 0L)
            let types = Tree.write (Learner.tree learner fresh) fresh |> Map.ofList

            let fitted (name: string) (tensor: torch.Tensor) =
                let dtype =
                    match Map.tryFind name types with
                    | Some like -> like.dtype
                    | None when torch.is_floating_point tensor -> Precision.master vit.Precision
                    | None -> tensor.dtype

                tensor.detach().``to``(vit.Device).``to``(dtype, copy = true)

            let tensors =
                NamedTensors(tensorPath (Path.GetDirectoryName saved.Path), Map.map fitted saved.Tensors)

            SavedState.toState saved.Path learner saved.Record.State tensors "")
