/// `lorasub data`: lists the data sets and validates the folder of one.
module LoRASub.Cli.DataCommand

open System
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Data

let private classes (known: KnownDataset) =
    match known.Classes with
    | Some n -> $"{n} classes"
    | None -> "any number of classes"

/// Name, classes, address and layout of every known data set.
let list () : string list =
    [
        for known in Datasets.known do
            yield! Layout.row 19 known.Name $"{known.Title}, {classes known}"
            yield! Layout.row 19 "" known.Published
            yield! Layout.row 19 "" known.Layout

            if (DataDownloads.tryFind known.Name).IsSome then
                yield! Layout.row 19 "" $"lorasub data get {known.Name}"
    ]

[<Literal>]
let private Listed = 20

/// The share of a published data set, if the folder has only a subset.
let private subset (report: DataReport) : string list =
    let images = report.TrainingImages + report.TestImages

    let parts =
        [
            report.ClassNames.Length, report.Dataset.Classes, "classes"
            images, report.Dataset.ImageCount, "images"
        ]
        |> List.choose (fun (found, published, what) ->
            match published with
            | Some n when n <> found -> Some $"{found} of {n} {what}"
            | _ -> None)

    match parts with
    | some when images > 0 && not some.IsEmpty -> [ "subset     " + String.concat ", " some ]
    | _ -> []

/// The classes and images found, the problems, and where the set is published.
let lines (report: DataReport) : string list =
    let known = report.Dataset
    let line = Layout.row 11

    [
        yield! line "data set" $"{known.Title} ({known.Name}) in {report.Folder}"

        if report.ClassNames.Length > 0 then
            yield!
                line
                    "found"
                    $"{report.ClassNames.Length} classes, {report.TrainingImages} training and {report.TestImages} test images"

        for note in report.Notes do
            yield! line "note" (note.ReplaceLineEndings(string ' '))

        for problem in Array.truncate Listed report.Problems do
            // as errors are: a path is not cut
            $"problem    {problem.ReplaceLineEndings(string ' ')}"

        if report.Problems.Length > Listed then
            $"problem    {report.Problems.Length - Listed} more"

        for file in Array.truncate Listed report.Broken do
            $"broken     {file.Path}: {file.Reason}"

        if report.Broken.Length > Listed then
            $"broken     {report.Broken.Length - Listed} more"

        yield! line "known as" $"{known.Title}, {classes known}"
        yield! line "layout" known.Layout
        yield! line "published" known.Published

        yield! subset report

        if Array.isEmpty report.Problems then
            "No problems found"
    ]

/// Checks a folder; 0 without problems, 2 with problems.
let check (say: string list -> unit) (name: string) (folder: string) : int =
    let report = Datasets.check name (LearnerFolder.absolute folder)

    say (lines report)
    if Array.isEmpty report.Problems then 0 else 2

/// Downloads a data set into a folder, or into the cache, and reads it once.
let get (shell: Shell) (name: string) (folder: string option) : int =
    let row =
        match DataDownloads.tryFind name, Datasets.known |> List.tryFind (fun known -> known.Name = name) with
        | Some row, _ -> row
        | None, Some known ->
            Errors.reject
                $"data set {name}"
                "must be one that lorasub data get can download"
                known.Title
                $"get it from where it is published: {known.Published}"
        | None, None ->
            let names = DataDownloads.all |> List.map _.Name

            Errors.reject
                "data set"
                $"""must be one of {String.concat ", " names}"""
                name
                (Errors.didYouMean names name)

    let target =
        match folder with
        | Some folder -> LearnerFolder.absolute folder
        | None -> DataDownloads.folder name

    if DataDownloads.isComplete row target then
        Shell.say shell [ $"already there, in {target}" ]
    else
        for source in row.Files do
            Shell.say shell [ $"downloading {source.Address}" ]

        shell.Interruption.Message <- "interrupted; the same command continues"

        Display.working (Shell.canvas shell) (fun show ->
            DataDownloads.get (Shell.patient shell) row target (Display.received show))

    let path = DataDownloads.pathOf row target
    let data = Datasets.load name path

    Shell.say
        shell
        [
            $"found      {data.ClassNames.Length} classes, {data.Train.Labels.Length} training and {data.Test.Labels.Length} test images"

            if row.Files |> List.exists _.Md5.IsNone then
                "checked    by its length and layout only: no checksum of it is published"

            $"published  {(Datasets.known |> List.find (fun known -> known.Name = name)).Published}"

            if folder.IsSome || name = Assets.DataName then
                $"use it     lorasub run --data {name} --data-path {path}"
            else
                $"use it     lorasub run --data {name}"
        ]

    0
