namespace LoRASub.Run

open System
open System.Security.Cryptography
open LoRASub.Core
open LoRASub.Heads
open LoRASub.Learn
open TorchSharp

/// Adds what one learner knows to another. Heads are sums over images, so that two learners that see alike add up to the
/// one that learned the images of both.
[<RequireQualifiedAccess>]
module LearnerMerge =

    let private advice = "learn the images of one into the other with: lorasub learn"

    /// Rejects learners whose statistics do not add up, as far as their records show.
    let internal check (into: LearnerFormat.Record) (from: LearnerFormat.Record) =
        match LearnerDiff.between (LearnerDiff.traits into) (LearnerDiff.traits from) with
        | [] -> ()
        | some ->
            let found =
                some
                |> List.map (fun d -> $"{d.Name}: {d.Left}, {d.Right}")
                |> String.concat "; "

            Errors.reject "learners to merge" "must see and predict alike" found advice

        if into.Head = Heads.logits.Info.Name then
            Errors.reject
                "learners to merge"
                "must have a head of sums, which add up"
                "the method's own classifier (head logits)"
                advice

    // What the method keeps decides what the sums are of.
    let private checkNetworks (learner: Learner) (into: TaskState) (from: TaskState) =
        if not (Tree.equal learner.Method.State into.Method from.Method) then
            Errors.reject
                "learners to merge"
                "must have the same network, so that their statistics are of the same features"
                $"two networks, adapted to other images by method {learner.Method.Info.Name}"
                $"{advice}, or keep both with --method frozen"

    // Which row of a head's tensor is the class of a name: an axis that is empty in a fresh state counts classes.
    let private rowLeaves (learner: Learner) (readout: Readout) (head: HeadState) =
        Seq.zip (Hidden.leaves (Learner.noHead learner readout)) (Hidden.leaves head)
        |> Seq.map (fun (fresh, leaf) -> struct (leaf, fresh.dim () > 0L && fresh.shape[0] = 0L))
        |> Array.ofSeq

    // A class that both learned from the same images, under whatever name, has bit for bit the same sums.
    let private checkDisjoint (learner: Learner) (into: TaskState) (from: TaskState) =
        let rows (state: TaskState) =
            let leaves =
                rowLeaves learner learner.Readout state.Head
                |> Array.filter (fun struct (_, isPerClass) -> isPerClass)
                |> Array.map (fun struct (leaf, _) -> leaf.cpu().contiguous())

            let sumsOf row =
                leaves
                |> Array.map (fun leaf -> leaf.select(0L, int64 row).contiguous().bytes.ToArray())
                |> Array.concat
                |> SHA256.HashData
                |> Convert.ToHexString

            [|
                for row, one in Array.indexed state.Classes do
                    if one.Images > 0L then
                        sumsOf row, one.Name
            |]

        let theirs = dict (rows from)

        for sums, name in rows into do
            match theirs.TryGetValue sums with
            | true, other ->
                let found =
                    if other = name then
                        "the same statistics in both"
                    else
                        $"those of '{other}' in the other"

                Errors.reject
                    $"class '{name}'"
                    "must be learned from other images in each learner, or they would count twice"
                    found
                    "merge learners that were not copied from one another"
            | _ -> ()

    /// The head with a row for each class of the union; `places` holds the class's own row, if it has one.
    let private arranged
        (learner: Learner)
        (readout: Readout)
        (places: int option[])
        (head: HeadState)
        : HeadState =
        let own = places |> Array.choose id |> Array.length
        let grown = readout.Head.Grow (places.Length - own) head
        let mutable next = own - 1

        let rows =
            places
            |> Array.map (fun place ->
                match place with
                | Some row -> int64 row
                | None ->
                    next <- next + 1
                    int64 next)

        let index = torch.tensor (rows, device = learner.Backbone.Device)

        let leaves =
            rowLeaves learner readout grown
            |> Array.map (fun struct (leaf, isPerClass) ->
                if isPerClass then leaf.index_select (0L, index) else leaf)

        Tree.withLeaves readout.Head.Tree leaves grown

    // Classes known to both keep their identity and task in the first; new ones follow, in new groups.
    let private union (into: TaskState) (from: TaskState) =
        let known = into.Classes |> Array.map _.Name |> Set.ofArray
        let added = from.Classes |> Array.filter (fun one -> not (known.Contains one.Name))
        let tasks = added |> Array.map _.Task |> Array.distinct |> Array.sort

        let classes =
            [|
                for one in into.Classes do
                    let more =
                        from.Classes
                        |> Array.tryFind (fun other -> other.Name = one.Name)
                        |> Option.map _.Images

                    { one with
                        Images = one.Images + defaultArg more 0L
                    }

                for i, one in Array.indexed added do
                    { one with
                        Id = ClassId(into.NextId.Value + i)
                        Task = into.Finished + System.Array.IndexOf(tasks, one.Task)
                    }
            |]

        struct (classes, into.Finished + tasks.Length)

    /// <summary>Adds what one learner knows to another over the same frozen network: of classes that both know, the
    /// statistics add up; the others are appended with ids and groups of their own. The result is what learning the images
    /// of both gives, up to rounding.</summary>
    /// <param name="from">Learned from other images; borrowed.</param>
    /// <param name="into">Borrowed.</param>
    /// <returns>The second learner with a state owned by the caller, over the same backbone; the states may share
    /// tensors.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The learners differ in backbone, method, adapted network, head,
    /// embedding, precision or input; the head is the method's own classifier; or a class has the same statistics in
    /// both.</exception>
    let merge (from: KeptLearner) (into: KeptLearner) : KeptLearner =
        check (KeptLearner.record into) (KeptLearner.record from)
        let learner = into.Learner

        Scope.noGrad (fun (kept: KeptLearner) -> TaskState.leaves kept.State) (fun () ->
            let left, right = into.State, from.State
            checkNetworks learner left right
            let struct (classes, finished) = union left right

            let placesIn (state: TaskState) =
                classes
                |> Array.map (fun (one: ClassInfo) ->
                    state.Classes
                    |> Array.tryFindIndex (fun (other: ClassInfo) -> other.Name = one.Name))

            let ofLeft, ofRight = placesIn left, placesIn right

            checkDisjoint learner left right

            let heads =
                Array.map3
                    (fun (readout: Readout) head other ->
                        readout.Head.Merge
                            (arranged learner readout ofLeft head)
                            (arranged learner readout ofRight other))
                    learner.Readouts
                    (TaskState.heads left)
                    (TaskState.heads right)

            { into with
                HeldOut = Array.append into.HeldOut from.HeldOut |> Calibration.prune classes.Length
                State =
                    { left with
                        Finished = finished
                        Classes = classes
                        NextId = ClassId(left.NextId.Value + classes.Length - left.Classes.Length)
                        Head = heads[0]
                        Others = heads[1..]
                    }
            })
