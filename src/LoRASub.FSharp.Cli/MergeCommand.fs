/// `lorasub merge` and `lorasub diff`: two learners.
module LoRASub.Cli.MergeCommand

open LoRASub.Core
open LoRASub.Files
open LoRASub.Learn
open LoRASub.Run

/// Adds what the second learner knows to the first.
let merge (shell: Shell) (into: string) (from: string) settings libTorch : int =
    let into, from = LearnerFolder.absolute into, LearnerFolder.absolute from
    List.iter LearnerFolder.requireLearner [ into; from ]
    LearnerFolder.requireOwn into

    if RealPath.same into from then
        Errors.reject "lorasub merge" "needs two learners" "the same folder twice" ""

    LearnerFolder.holding into (fun () ->
        // before anything large is read
        LearnerMerge.check (LearnerFile.record into) (LearnerFile.record from)
        let kept = LearnerFolder.openSaved shell libTorch settings into
        use _ = Scope.own KeptLearner.leaves kept

        Scope.run (fun () ->
            let other = KeptLearner.besides kept (LearnerFile.load from)
            let next = LearnerMerge.merge other kept

            let added = next.Classes.Length - kept.Classes.Length
            let more = other.Classes.Length - added

            lock Shell.saving (fun () -> KeptLearner.save into next)

            Shell.say
                shell
                [
                    yield! LearnerFolder.line "merged" $"{from} into {into}"

                    yield!
                        LearnerFolder.line
                            "added"
                            $"""{Text.counted added "class" "classes"}; {more} already known"""

                    yield!
                        LearnerFolder.line
                            "knows"
                            $"""{Text.counted next.Classes.Length "class" "classes"}, from {next.Classes |> Array.sumBy _.Images} images"""
                ]))

    0

let private percent (fraction: float) =
    Layout.atMost 2 (100.0 * fraction) + "%"

let private differences (all: Different list) =
    [
        for one in all do
            let shown text =
                if text = "" then "-" else Text.cut "..." 200 text

            yield! LearnerFolder.line one.Name $"{shown one.Left} | {shown one.Right}"
    ]

let private about (record: LearnerFormat.Record) =
    let classes = record.State.Classes
    $"""{Text.counted classes.Length "class" "classes"}, {classes |> Array.sumBy _.Images} images"""

let private changes (change: LearnerChange) =
    [
        match change.Mean with
        | Some(name, by) -> $"means       of the classes in both: at most {percent by}, {name}"
        | None -> "means       not comparable"

        match change.Network with
        | Some(name, by) -> $"network     at most {percent by}, {name}"
        | None ->
            if change.Unlike = 0 then
                "network     the same"

        if change.Unlike > 0 then
            $"""network     {Text.counted change.Unlike "tensor" "tensors"} with another shape or in one learner only"""
    ]

/// Prints what differs between two learners. Loads tensors, and LibTorch, only where they are not the same.
let diff (shell: Shell) (left: string) (right: string) libTorch : int =
    let left, right = LearnerFolder.absolute left, LearnerFolder.absolute right
    List.iter LearnerFolder.requireLearner [ left; right ]
    let here, there = LearnerFile.verified left, LearnerFile.verified right
    let found = LearnerDiff.ofRecords here there

    let found =
        if found.SameTensors then
            found
        else
            Shell.loadNative shell libTorch (KeptLearner.settings "recommended")

            Scope.run (fun () -> LearnerDiff.ofTensors (LearnerFile.load left) (LearnerFile.load right) found)

    let classes label (some: SavedClass[]) =
        [
            for one in some do
                $"{label} {one.Name}, {one.Images} images"
        ]

    Shell.say
        shell
        [
            yield! LearnerFolder.line "left" $"{left}: {about here}"
            yield! LearnerFolder.line "right" $"{right}: {about there}"
            yield! differences (found.Traits @ found.Settings)
            yield! classes "only left  " found.OnlyLeft
            yield! classes "only right " found.OnlyRight

            for one, other in found.Renamed do
                $"renamed     {one.Name} | {other.Name}"

            for one, other in found.Counts do
                $"images      {one.Name}: {one.Images} | {other.Images}"

            yield! found.Change |> Option.map changes |> Option.defaultValue []

            if found.IsEmpty then
                "no difference"
        ]

    0
