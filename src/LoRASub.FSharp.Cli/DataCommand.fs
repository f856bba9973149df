/// `lorasub data`: which data sets are known, and what a folder holds of one.
module LoRASub.Cli.DataCommand

open System
open LoRASub

let private classes (known: KnownDataset) =
    match known.Classes with
    | Some n -> $"{n} classes"
    | None -> "any classes"

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

/// What is there, what is broken or missing, and where the set is published.
let lines (report: DataReport) : string list =
    let known = report.Dataset

    [
        $"data set   {known.Title} ({known.Name}) in {report.Folder}"

        if report.ClassNames.Length > 0 then
            $"found      {report.ClassNames.Length} classes, {report.TrainingImages} training and {report.TestImages} test images"

        for problem in report.Problems do
            $"problem    {problem.ReplaceLineEndings(string ' ')}"

        for file in Array.truncate Listed report.Broken do
            $"broken     {file.Path}: {file.Reason}"

        if report.Broken.Length > Listed then
            $"broken     {report.Broken.Length - Listed} more"

        $"known as   {known.Title}, {classes known}"
        $"layout     {known.Layout}"
        $"published  {known.Published}"

        match known.Classes with
        | Some n when report.ClassNames.Length > 0 && report.ClassNames.Length <> n ->
            $"a part     {report.ClassNames.Length} of {n} classes"
        | _ -> ()

        if Array.isEmpty report.Problems then
            "what is there is well"
    ]

/// Checks a folder; 0 where all is well, 2 with problems.
let check (say: string list -> unit) (name: string) (folder: string) : int =
    let report =
        Datasets.check name (IO.Path.GetFullPath(folder, Environment.CurrentDirectory))

    say (lines report)
    if Array.isEmpty report.Problems then 0 else 2
