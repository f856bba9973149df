namespace LoRASub

open System
open System.Globalization
open System.IO
open TorchSharp

/// A learner on disk: all it needs to predict and to learn more, except the backbone.
[<ReferenceEquality>]
type SavedLearner =
    {
        /// As in `Learner.Name`.
        Method: string
        State: TaskState
        /// The data set's label of the class learned i-th, for all classes of the run.
        Order: int[]
        /// Names in the same order.
        ClassNames: string[]
        /// Classes of each finished task.
        TaskSizes: int[]
        Input: ImageFormat
        Heads: int
        NormEpsilon: NormEpsilon
        /// SHA-256 of the backbone's file, in lower-case hexadecimal.
        BackboneSha256: string
    }

/// Saves and loads learners: `learner.safetensors` holds the tensors, `learner.json` the rest and the hash of the tensors
/// that belong to it. New tensors wait under a name of their own until the new JSON takes its name. That one step
/// decides which learner the folder holds, so that a process killed at any moment leaves the old or the new one.
[<RequireQualifiedAccess>]
module LearnerFile =

    [<Literal>]
    let private Version = 1L

    let leaves: Leaves<SavedLearner> = fun saved -> TaskState.leaves saved.State

    /// The JSON half; the tensors are beside it.
    let jsonPath (folder: string) = Path.Combine(folder, "learner.json")

    /// The tensor half.
    let tensorPath (folder: string) =
        Path.Combine(folder, "learner.safetensors")

    /// The tensors of a save that is not finished.
    let nextPath (folder: string) =
        Path.Combine(folder, "learner.next.safetensors")

    let private treeOf (state: TaskState) =
        TaskState.tree state.Finished state.Prototypes.Classes state.Key

    let private purpose = "the JSON half of a saved learner"

    // The hash in learner.json; none where that is missing or damaged. Rejects a file that cannot be read.
    let private namedHash (folder: string) : string option =
        let path = jsonPath folder

        if File.Exists path then
            let bytes = ReadOnlyMemory(Json.bytes purpose path)

            try
                Json.parse purpose path bytes (fun root ->
                    Some((root.GetProperty "tensorsSha256").GetString()))
            with :? InputException ->
                None
        else
            None

    // Finishes a save whose JSON is in place, and drops one whose JSON is not.
    let private settle (folder: string) =
        let next = nextPath folder

        if File.Exists next then
            if namedHash folder = Some(DataFile.sha256 next) then
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

    let private toJson (saved: SavedLearner) (tensorsSha256: string) =
        let ints = Json.array (int64 >> Json.int)

        Json.object
            [
                "version", Json.int Version
                "method", Json.text saved.Method
                "finishedTasks", Json.int (int64 saved.State.Finished)
                "taskSizes", ints saved.TaskSizes
                "classNames", Json.array Json.text saved.ClassNames
                "classOrder", ints saved.Order
                "prototypeClasses", ints saved.State.Prototypes.Classes
                "randomKey", Json.text (saved.State.Key.Bits.ToString "x16")
                "imageSize", Json.int (int64 saved.Input.Size)
                "channels", Json.int (int64 saved.Input.Channels)
                "inputRange", Json.array Json.float [ saved.Input.Low; saved.Input.High ]
                "heads", Json.int (int64 saved.Heads)
                "normEpsilon", Json.array Json.float [ saved.NormEpsilon.Blocks; saved.NormEpsilon.Final ]
                "backboneSha256", Json.text saved.BackboneSha256
                "tensorsSha256", Json.text tensorsSha256
            ]

    /// Writes a learner into a folder that exists, over an older one, which can be loaded until the new one can. A save
    /// that fails leaves the older one. Rejects a folder that cannot be written.
    let save (folder: string) (saved: SavedLearner) : unit =
        if Directory.Exists(tensorPath folder) then
            Errors.reject (tensorPath folder) "must be a file" "a folder" "choose another folder"

        let next = nextPath folder

        alone folder (fun () ->
            // before anything is written over tensors that learner.json names already
            settle folder

            try
                Safetensors.write
                    next
                    (Map [ "format", "lorasub learner" ])
                    (Tree.write (treeOf saved.State) saved.State)

                Json.write (jsonPath folder) (toJson saved (DataFile.sha256 next))
            finally
                try
                    settle folder
                with :? InputException ->
                    // a learner whose tensors still wait can be loaded: the next save moves them
                    ())

    // The tensors that learner.json names by their hash.
    let private tensorsOf (folder: string) (sha256: string) : TensorFile =
        let path = tensorPath folder

        match
            [ path; nextPath folder ]
            |> List.filter File.Exists
            |> List.tryPick (Safetensors.readHashed sha256)
        with
        | Some file -> file
        | None when File.Exists path ->
            let rule = $"must have the SHA-256 {sha256} that learner.json gives"
            Errors.reject path rule (DataFile.sha256 path) ""
        | None -> Errors.reject path "must be beside learner.json" "no such file" ""

    let private loadOnce (dtype: torch.ScalarType) (device: torch.Device) (folder: string) : SavedLearner =
        let path = jsonPath folder

        Scope.keep leaves (fun () ->
            Json.read purpose path (fun root ->
                let get (name: string) = root.GetProperty name

                let version = (get "version").GetInt64()

                if version <> Version then
                    Errors.reject
                        path
                        $"must be of version {Version}"
                        $"version {version}"
                        "use the program that wrote it"

                let ints name =
                    [| for item in (get name).EnumerateArray() -> item.GetInt32() |]

                let pair name =
                    match [| for item in (get name).EnumerateArray() -> item.GetDouble() |] with
                    | [| first; second |] -> struct (first, second)
                    | other -> Errors.reject $"{path}, {name}" "must hold 2 numbers" $"{other.Length}" ""

                let file = tensorsOf folder ((get "tensorsSha256").GetString())
                let tensorPath = file.Path

                let classes = ints "prototypeClasses"
                let order = ints "classOrder"

                let names =
                    [| for item in (get "classNames").EnumerateArray() -> item.GetString() |]

                if names.Length <> order.Length then
                    Errors.reject
                        path
                        $"needs a name for each of {order.Length} classes"
                        $"{names.Length}"
                        ""

                if classes.Length > order.Length || classes <> Array.init classes.Length id then
                    let rule =
                        $"prototype classes must be 0, 1, … in order, at most {order.Length} of them"

                    Errors.reject path rule $"{List.ofArray classes}" ""

                let finished, sizes = (get "finishedTasks").GetInt32(), ints "taskSizes"

                if sizes.Length <> finished || Array.sum sizes <> classes.Length then
                    let rule =
                        $"task sizes must be {finished}, one per finished task, and add up to {classes.Length}"

                    Errors.reject path rule $"{List.ofArray sizes}" ""

                let key =
                    match
                        UInt64.TryParse(
                            (get "randomKey").GetString(),
                            NumberStyles.HexNumber,
                            CultureInfo.InvariantCulture
                        )
                    with
                    | true, bits -> { Bits = bits }
                    | _ ->
                        Errors.reject $"{path}, randomKey" "must be 16 hexadecimal digits" "another text" ""

                let struct (low, high) = pair "inputRange"
                let struct (blocksEpsilon, finalEpsilon) = pair "normEpsilon"

                let state =
                    let state = Tree.read (TaskState.tree finished classes key) tensorPath file.Tensors
                    let means = state.Prototypes.Means

                    Shape.expect
                        $"{tensorPath}, prototypes"
                        [ Axis.Is classes.LongLength; Axis.Any "width" ]
                        means

                    for b, delta in Array.indexed state.Deltas do
                        for KeyValue(site, part) in delta do
                            Shape.expect
                                $"{tensorPath}, blocks.{b}.delta.{Site.name site}"
                                [ Axis.Is means.shape[1]; Axis.Is means.shape[1] ]
                                part

                    Tree.map _.``to``(dtype).``to``(device) (treeOf state) state

                {
                    Method = (get "method").GetString()
                    State = state
                    Order = order
                    ClassNames = names
                    TaskSizes = sizes
                    Input =
                        {
                            Size = (get "imageSize").GetInt32()
                            Channels = (get "channels").GetInt32()
                            Low = low
                            High = high
                        }
                    Heads = (get "heads").GetInt32()
                    NormEpsilon =
                        {
                            Blocks = blocksEpsilon
                            Final = finalEpsilon
                        }
                    BackboneSha256 = (get "backboneSha256").GetString()
                }))

    /// Reads what `save` wrote, also while another process saves over it; tensors come onto `device` in `dtype`. Owned by
    /// the caller. Rejects files that are missing, damaged, of another version, or not of one save.
    let load (dtype: torch.ScalarType) (device: torch.Device) (folder: string) : SavedLearner =
        let rec attempt left =
            try
                loadOnce dtype device folder
            with :? InputException when left > 0 ->
                // the folder may have come to hold another learner between two of its files
                attempt (left - 1)

        attempt 4

    /// Rejects a backbone whose width, depth or hash is not the one that the learner was trained on.
    let checkBackbone (saved: SavedLearner) (vit: VisionTransformer) (sha256: string) (path: string) =
        let width = saved.State.Prototypes.Means.shape[1]

        if vit.Width <> width || vit.Blocks.Length <> saved.State.Deltas.Length then
            let rule =
                $"must have width {width} and {saved.State.Deltas.Length} blocks, as the saved learner has"

            Errors.reject path rule $"width {vit.Width} and {vit.Blocks.Length} blocks" ""

        if sha256 <> saved.BackboneSha256 then
            let rule =
                $"must be the backbone that the learner was trained on (SHA-256 {saved.BackboneSha256})"

            Errors.reject path rule sha256 "give that file as the backbone"
