/// `lorasub data`: lists the data sets and validates the folder of one.
module LoRASub.Cli.DataCommand

open System
open LoRASub.Data

let private classes (known: KnownDataset) =
    match known.Classes with
    | Some n -> $"{n} classes"
    | None -> "any number of classes"

/// Name, classes, address and layout of every known data set.
let list () : string list =
    [
        for known in Datasets.known do
            $"{known.Name, -18} {known.Title}, {classes known}"
            $"""{"", -18} {known.Published}"""
            $"""{"", -18} {known.Layout}"""
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

    [
        $"data set   {known.Title} ({known.Name}) in {report.Folder}"

        if report.ClassNames.Length > 0 then
            $"found      {report.ClassNames.Length} classes, {report.TrainingImages} training and {report.TestImages} test images"

        for note in report.Notes do
            $"note       {note.ReplaceLineEndings(string ' ')}"

        for problem in Array.truncate Listed report.Problems do
            $"problem    {problem.ReplaceLineEndings(string ' ')}"

        if report.Problems.Length > Listed then
            $"problem    {report.Problems.Length - Listed} more"

        for file in Array.truncate Listed report.Broken do
            $"broken     {file.Path}: {file.Reason}"

        if report.Broken.Length > Listed then
            $"broken     {report.Broken.Length - Listed} more"

        $"known as   {known.Title}, {classes known}"
        $"layout     {known.Layout}"
        $"published  {known.Published}"

        yield! subset report

        if Array.isEmpty report.Problems then
            "No problems found"
    ]

/// Checks a folder; 0 without problems, 2 with problems.
let check (say: string list -> unit) (name: string) (folder: string) : int =
    let report =
        Datasets.check name (IO.Path.GetFullPath(folder, Environment.CurrentDirectory))

    say (lines report)
    if Array.isEmpty report.Problems then 0 else 2
