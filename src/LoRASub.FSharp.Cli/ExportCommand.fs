/// `lorasub export`: what a learner knows, as files for other programs.
module LoRASub.Cli.ExportCommand

open System.Globalization
open System.IO
open LoRASub.Core
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Learn
open LoRASub.Run
open TorchSharp
open LoRASub.Cli.LearnerFolder

/// The arguments.
type Request =
    {
        Folder: string
        /// A new or an empty folder.
        Out: string
        /// Of the adapter; None: the smallest without loss.
        Rank: int option
        Settings: (string * string) list
        LibTorch: string option
    }

let private requireEmpty (folder: string) =
    if File.Exists folder || (entries folder).Length > 0 then
        Errors.reject folder "must be a new or an empty folder" "files" "choose another folder"

/// Writes the classes, and the weights and the adapter where the method's network is a plain one.
let export (shell: Shell) (request: Request) : int =
    let folder, out = absolute request.Folder, absolute request.Out

    requireLearner folder
    requireEmpty out

    let precision =
        match (LearnerFile.record folder).Settings.TryGetValue "precision" with
        | true, text -> text
        | _ -> "float32"

    // sums of weights and changes are rounded once, when they are written
    let kept =
        openSaved shell request.LibTorch (("precision", "float64") :: request.Settings) folder

    use _ = Scope.own KeptLearner.leaves kept
    let method = kept.Learner.Method.Info.Name

    if request.Rank.IsSome && not (Export.isAdapted kept) then
        Errors.reject
            "--rank"
            "needs an adapter, which only a learner with changed weights has"
            $"a learner whose method {method} did not change them"
            "remove --rank"

    // again: reading took a while
    requireEmpty out
    let isNew = not (Directory.Exists out)
    WholeFile.makeFolder out

    // what was written before a failure would refuse the next try
    let removing (write: unit -> int) : int =
        try
            write ()
        with _ ->
            try
                if isNew then
                    Directory.Delete(out, true)
                else
                    Directory.GetFiles out |> Array.iter File.Delete

                    Directory.GetDirectories out
                    |> Array.iter (fun below -> Directory.Delete(below, true))
            with
            | :? IOException
            | :? System.UnauthorizedAccessException -> ()

            reraise ()

    removing (fun () ->
        Export.classes out kept
        let known = Text.counted kept.Classes.Length "class" "classes"
        // a method's own classifier has no means
        let files = Directory.GetFiles out |> Array.map Path.GetFileName |> Array.sort

        Shell.say shell (line "classes" $"""{String.concat ", " files}: {known}""")

        if Export.isPlain kept then
            let dtype =
                if precision = "float64" then
                    torch.ScalarType.Float64
                else
                    torch.ScalarType.Float32

            Export.weights dtype (Path.Combine(out, "weights.safetensors")) kept
            Shell.say shell [ "weights     weights.safetensors: the network in timm's names" ]
            let adapter = Path.Combine(out, "adapter")
            WholeFile.makeFolder adapter

            let written =
                Export.adapter request.Rank adapter kept
                |> Option.map (fun change ->
                    use _ = Scope.own LowRankChange.leaves change
                    struct (change.Rank, change.RelativeError))

            match written with
            | Some struct (rank, error) ->
                let error = error.ToString("0.0e+0", CultureInfo.InvariantCulture)
                Shell.say shell [ $"adapter     adapter/, for PEFT: rank {rank}, relative error {error}" ]
            | None ->
                Directory.Delete adapter

                Shell.say
                    shell
                    (line "note" $"no adapter: method {method} left the network as it was loaded")
        else
            Shell.say
                shell
                (line
                    "note"
                    $"no weights: method {method} predicts with adapters beside the MLPs, which no plain Vision Transformer has")

        if
            kept.Learner.Readouts
            |> Array.exists (fun readout -> readout.Embedding.Frozen.Length > 0)
        then
            Shell.say
                shell
                (line "note" "the head also reads the backbone as it was loaded, which is not in these files")

        if
            kept.Learner.Readouts
            |> Array.exists (fun readout -> readout.Embedding.Flip || readout.Embedding.Shift)
        then
            Shell.say
                shell
                (line "note" "a head averages several views of an image: see flip and shift in learner.json")

        Shell.say shell (line "exported" $"{folder} to {out}")
        0)
