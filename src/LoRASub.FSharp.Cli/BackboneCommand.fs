/// `lorasub backbone`: what a file of weights is, and whether it can be used.
module LoRASub.Cli.BackboneCommand

open System
open System.Globalization
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Files
open LoRASub.Backbone
open TorchSharp

[<Literal>]
let private Listed = 20

let private line = Layout.row 13

/// Names under one beginning, where the network is under another, or that differ in a block's number only, as one.
let private ignored (header: TensorFileHeader) (selection: Weights.Selection) : string list =
    let shapes = header.Entries |> Array.map (fun e -> e.Name, e.Shape) |> Map.ofArray

    let group (name: string) =
        if name.StartsWith(selection.Prefix, StringComparison.Ordinal) then
            fst (Namings.template name)
        else
            name.Split('.', '/')[0] + ".*"

    let groups =
        selection.Ignored
        |> List.groupBy (fun (name, what) -> group name, what)
        |> List.map (fun ((group, what), some) ->
            match some with
            | [ name, _ ] -> $"{TensorBytes.shown name} {Shape.text shapes[name]}: {what}"
            | _ -> $"{TensorBytes.shown group}, {some.Length} tensors: {what}")

    [
        for group in List.truncate Listed groups do
            yield! line "" group

        if groups.Length > Listed then
            yield! line "" $"{groups.Length - Listed} more"
    ]

let private headsText (card: WeightsCard) (width: int64) =
    match card.Heads, Weights.usualHeads width with
    | Some stated, _ -> $"{stated.Value} heads"
    | None, Some heads -> $"{heads} heads (not stated; as timm at this width)"
    | None, None -> "number of heads not stated: give --attention-heads"

let private rangeText (card: WeightsCard) =
    match card.InputRange with
    | None -> "input range not stated"
    | Some stated ->
        let pair (struct (black: float, white: float)) = $"{black:G4} to {white:G4}"
        "values from " + (stated.Value |> Array.map pair |> String.concat ", ")

/// The network itself, read in full. Rejects what cannot be used.
let private network (path: string) (header: TensorFileHeader) (selection: Weights.Selection) : string list =
    // before anything names a device
    NativeBackend.ensureLoaded () |> ignore
    let card = Weights.card header

    let options =
        {
            // a number that is not stated does not change what else is right
            Heads =
                match card.Heads, Weights.usualHeads (Weights.width header) with
                | None, None -> Some 1
                | _ -> None
            ImageSize = None
            NormEpsilon = { Blocks = 1e-6; Final = 1e-6 }
            Precision = Precision.Float32
            Device = torch.CPU
            CheckpointActivations = false
        }

    use _ = torch.NewDisposeScope()
    let vit = Weights.load options path
    let hidden = vit.Blocks[0].Fc1.Weight.shape[0]
    let parameters = VisionTransformer.leaves vit |> Seq.sumBy _.numel()

    [
        yield!
            line
                "network"
                $"width {vit.Width}, {vit.Blocks.Length} blocks, MLP of {hidden}, {headsText card vit.Width}"

        yield!
            line
                "images"
                $"{vit.ImageSize} x {vit.ImageSize} pixels of {vit.Channels} channels in patches of {vit.PatchSize}; {rangeText card}"

        yield! line "parameters" $"{parameters:N0}"

        if selection.HasLayerScale then
            yield! line "" "layer scales are multiplied into the layers before them"
    ]

let private numbers (values: float list) =
    values
    |> List.map _.ToString(CultureInfo.InvariantCulture)
    |> String.concat ", "

/// Published backbones by how they were trained: name, pixels, heads, size and address.
let list () : string list =
    [
        for family, backbones in Backbones.known |> List.groupBy _.Family do
            yield! Layout.wrap Layout.Columns $"{family.Title}: {family.Images}"

            yield!
                Layout.wrap
                    Layout.Columns
                    $"mean {numbers family.Mean}; deviation {numbers family.Deviation}; {family.Licence}"

            family.Published
            $"""  {"name", -44}pixels  heads       MB"""

            for one in backbones do
                let megabytes = Layout.fixed' 0 (float (4L * Backbones.parameters one) / 1e6)

                $"  {one.Name, -44}{one.ImageSize, 6}{one.Heads, 7}{megabytes, 9}"

                if string one.Address <> Backbones.hub one.Name then
                    $"    {one.Address}"

            ""

        "MB: of the network in float32, without a classifier."
        "Files without an address:"
        "  " + Backbones.hub "NAME"
        "lorasub backbone get NAME downloads one. Details: docs/backbones.md."
    ]

/// Downloads a published backbone into a folder, or into the cache.
let get (shell: Shell) (name: string) (folder: string option) : int =
    let backbone =
        match Backbones.tryFind name with
        | Some backbone -> backbone
        | None ->
            Errors.reject "backbone" "must be a name of lorasub backbone list" name (Backbones.meant name)

    let target =
        match folder with
        | Some folder -> LearnerFolder.absolute folder
        | None -> Backbones.cache ()

    let path = Backbones.path target backbone

    if not (File.Exists path) then
        Shell.say shell [ $"downloading {Backbones.addressOf backbone}" ]

    shell.Interruption.Message <- "interrupted; the same command continues"

    let fetched =
        Display.working (Shell.canvas shell) (fun show ->
            Backbones.get (Shell.patient shell) target backbone (Display.received show "received"))

    Shell.say
        shell
        [
            yield! line "file" path
            yield! line "bytes" $"{fetched.Lock.Bytes}"
            yield! line "SHA-256" fetched.Lock.Sha256

            yield!
                line
                    "checked"
                    (match fetched.CheckedBy with
                     | _ when not fetched.IsNew -> "already there, as its lock describes it"
                     | [] -> "by its length and layout only: no checksum of it is published"
                     | sources -> "against the checksum of " + String.concat ", " (List.distinct sources))

            yield! line "licence" $"{backbone.Family.Licence} ({backbone.Family.Published})"
            ""
            "This backbone can be used: --backbone "
            + (if folder.IsSome then path else backbone.Name)
        ]

    0

/// What a file is: its format, names, network, and the tensors that are not used; 0, or 2 with the problem last where it
/// cannot be used.
let info (say: string list -> unit) (given: string) : int =
    let path = Backbones.find given
    let format = TensorFormats.ofFile path
    say (line "file" path @ line "format" format.Name)

    try
        let header = format.Header path

        let types =
            header.Entries
            |> Array.countBy _.Type
            |> Array.map (fun (dtype, n) -> $"{n} {dtype}")
            |> String.concat ", "

        let struct (_, sha256) = Backbones.identified path
        say (line "SHA-256" sha256 @ line "tensors" types)

        let selection = Weights.select path (header.Entries |> Seq.map _.Name)

        let prefix =
            if selection.Prefix = "" then
                ""
            else
                $", after '{TensorBytes.shown selection.Prefix}'"

        say
            [
                yield! line "names" (selection.NamingName + prefix)
                yield! network path header selection
                yield! line "used" $"{selection.Used.Count} of {header.Entries.Length} tensors"

                if not selection.Ignored.IsEmpty then
                    yield! line "ignored" (Text.counted selection.Ignored.Length "tensor" "tensors")
                    yield! ignored header selection
            ]

        // a damaged tensor shows only when it is read
        NativeBackend.ensureLoaded () |> ignore

        Scope.run (fun () -> format.ReadOnly selection.Used.Contains path |> ignore)

        say [ ""; "This backbone can be used: --backbone " + given ]

        0
    with :? InputException as e ->
        say (line "problem" e.Message)
        2
