namespace LoRASub.Settings

open System
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Methods
open LoRASub.Files
open LoRASub.Backbone
open LoRASub.Data
open LoRASub.Settings.ConfigSection

/// sources.json.
type SourcesFile =
    {
        Settings: SettingSource[]
        Notes: string[]
    }

/// Command line, file and preset merged.
type MergedConfig =
    {
        /// With the first of the seeds.
        Settings: RunSettings
        /// Every setting that is not left open; `seeds` instead of `seed` if there are several.
        Sources: SettingSource[]
        Notes: string[]
        /// At least one; each has a run of its own.
        Seeds: int64[]
        Expected: Expectations
    }

/// The merging of command line, configuration file and presets.
[<RequireQualifiedAccess>]
module Config =

    let private commandLine = "command line"

    /// Whether nobody named the setting: its value is a default or a preset's.
    let internal isAssumed (s: SettingSource) : bool =
        s.Source = "default" || s.Source.StartsWith("preset ", StringComparison.Ordinal)

    /// The image size that the presets' test-resize is meant for.
    let private publishedSize = 224

    let private defaults: RunSettings list =
        [
            for _, preset in Preset.all do
                for variant in [ Variant.LibContinual; Variant.Official ] do
                    preset variant
        ]

    let private lastOf name (all: SettingSource list) =
        all |> List.tryFindBack (fun s -> s.Name = name)

    // A resize that was meant for images of one size, for images of another.
    let private resized (resize: int) (old: int) (size: int) (settings: RunSettings) =
        let fitted = int (Math.Round(float resize * float size / float old))

        { settings with
            TestResize = Some fitted
        },
        [
            $"test-resize {resize} is meant for images of {old} px; for {size} px it is {fitted}, unless --test-resize is given"
        ]

    /// The resize for the image size, where that is a setting.
    let private fitTestResize (given: SettingSource list) (settings: RunSettings) =
        let meantFor =
            match lastOf "test-resize" given with
            | None -> Some publishedSize
            | Some said when said.Source = commandLine -> None
            | Some _ ->
                given
                |> List.filter (fun s -> s.Source <> commandLine)
                |> lastOf "image-size"
                |> Option.map (fun s -> int s.Value)

        match settings.TestResize, settings.ImageSize, meantFor with
        | Some resize, Some size, Some old when size <> old -> resized resize old size settings
        | _ -> settings, []

    /// The first task's epochs if they differ from the command line's epochs.
    let private otherInitialEpochs (given: SettingSource list) (settings: RunSettings) =
        let asked name =
            lastOf name given |> Option.exists (fun s -> s.Source = commandLine)

        match settings.InitialEpochs with
        | Some initial when asked "epochs" && not (asked "initial-epochs") && initial <> settings.Epochs ->
            [
                $"the first task keeps its {initial} epochs, unless --initial-epochs is given"
            ]
        | _ -> []

    /// Settings of the command line that the run ignores, with the reason.
    let private withoutEffect (given: SettingSource list) (settings: RunSettings) : string list =
        let method = settings.ChosenMethod

        let unused =
            Methods.all |> List.collect _.Uses |> List.distinct |> List.except method.Uses

        let training = [ "epochs"; "initial-epochs"; "schedule-epochs" ]

        let ignored reason names =
            let flags =
                given
                |> List.filter (fun s -> s.Source = commandLine && List.contains s.Name names)
                |> List.map (fun s ->
                    if s.Value = "false" then
                        $"--no-{s.Name}"
                    else
                        $"--{s.Name}")

            if flags.IsEmpty then
                []
            else
                [ $"""{String.concat ", " flags} ignored: {reason}""" ]

        let name = method.Info.Name

        if settings.Training then
            ignored $"not used by method {name}" unused
            @ (if method.Info.Trains then
                   []
               else
                   ignored $"method {name} does not train" training)
            @ (if settings.Augmentation = Augmentation.CropFlip then
                   []
               else
                   ignored "only --augment crop-flip crops" [ "crop-scale"; "crop-ratio" ])
            @ (if method.Info.Joint then
                   ignored
                       $"method {name} learns all classes as one task"
                       [ "tasks"; "initial-classes"; "initial-epochs" ]
               else
                   [])
        else
            ignored
                "the network stays frozen with --no-training"
                ("method" :: training @ List.collect _.Uses Methods.all)

    let private sourceOf (preset: string) (given: SettingSource list) (name: string) (value: string) =
        let get = (Settings.find name).Get

        match lastOf name given with
        | Some said -> said.Source
        | None when defaults |> List.forall (fun d -> get d = Some value) -> "default"
        | None -> preset

    let private sourcesOf (source: string -> string -> string) (seeds: int64[]) (settings: RunSettings) =
        [|
            for name, value in Settings.toPairs settings do
                let source = source name value

                if name = "seed" && seeds.Length > 1 then
                    says "seeds" (seeds |> Array.map string |> String.concat ",") source
                else
                    says name value source
        |]

    /// Rejects a value that no run can have, under the name of its flag.
    let private checkArgument (s: SettingSource) =
        if s.Name = "data" && not (List.contains s.Value Datasets.names) then
            refuseData "--data" s.Value

        try
            Preset.quick Variant.Official |> Settings.set s.Name s.Value |> ignore
        with :? InputException as e ->
            raise (InputException("--" + e.Message, e))

    /// <summary>The settings of the command line over those of the file, over the preset of the data set and variant
    /// that these name.</summary>
    /// <param name="preset">Name of a preset of `Preset.named`, which file and command line override.</param>
    /// <param name="file">A configuration file, if there is one.</param>
    /// <param name="arguments">(setting, text) of the command line.</param>
    /// <param name="seeds">Seeds of the command line, if it names several.</param>
    /// <returns>The settings, and the source of each.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A setting or data set is unknown, a text is of the wrong kind,
    /// or both seeds and a seed are given.</exception>
    let merge
        (preset: string option)
        (file: ConfigFile option)
        (arguments: (string * string) list)
        (seeds: int64[] option)
        : MergedConfig =
        let said = arguments |> List.map (fun (name, value) -> says name value commandLine)

        List.iter checkArgument said

        if seeds.IsSome && (lastOf "seed" said).IsSome then
            Errors.reject "--seeds" "cannot be combined with --seed" "both" "remove one of them"

        let inFile = file |> Option.map (fun f -> f.Settings) |> Option.defaultValue []

        let seedsSaid =
            match seeds with
            | Some seeds -> Some(seeds, commandLine)
            | None when (lastOf "seed" said).IsSome -> None
            | None -> file |> Option.bind _.Seeds

        let first =
            seedsSaid
            |> Option.map (fun (seeds, source) -> says "seed" (string seeds[0]) source)
            |> Option.toList

        let named =
            match preset with
            | None -> []
            | Some preset ->
                Preset.pairs preset
                |> List.map (fun (name, value) -> says name value $"preset {preset}")

        // the published rates of the method that is named
        let ofMethod =
            match lastOf "method" (named @ inFile @ said) with
            | None -> []
            | Some method ->
                Methods.defaults method.Value
                |> List.map (fun (name, value) -> says name value $"method {method.Value}")

        let given = ofMethod @ named @ inFile @ said @ first

        let data =
            lastOf "data" given
            |> Option.map _.Value
            |> Option.defaultValue (Preset.quick Variant.Official).Data

        let presetName, preset = Preset.ofData data

        let settings, notes =
            given
            |> List.map (fun s -> s.Name, s.Value)
            |> Settings.ofPairs preset
            |> fitTestResize given

        let variant = Settings.toPairs settings |> List.find (fst >> (=) "variant") |> snd

        let allSeeds =
            match seedsSaid with
            | Some(seeds, _) -> seeds
            | None -> [| settings.Seed |]

        let expected = file |> Option.map _.Expected |> Option.defaultValue nothingExpected

        {
            Settings = settings
            Sources = sourcesOf (sourceOf $"preset {presetName} {variant}" given) allSeeds settings
            Notes =
                [|
                    yield! file |> Option.map _.Notes |> Option.defaultValue []
                    yield! notes
                    yield! otherInitialEpochs given settings
                    yield! withoutEffect given settings
                |]
            Seeds = allSeeds
            Expected =
                // another data set has classes of its own
                match lastOf "data" inFile with
                | Some said when said.Value <> data -> { expected with Classes = None }
                | _ -> expected
        }

    /// The merged configuration under completed settings: settings that were not set before get the given source.
    let internal complete (source: string) (settings: RunSettings) (merged: MergedConfig) : MergedConfig =
        let before name _ =
            let name =
                if name = "seed" && merged.Seeds.Length > 1 then
                    "seeds"
                else
                    name

            merged.Sources
            |> Array.tryFind (fun s -> s.Name = name)
            |> Option.map _.Source
            |> Option.defaultValue source

        { merged with
            Settings = settings
            Sources = sourcesOf before merged.Seeds settings
        }

    /// A preset's resize for the image size of the backbone, where that is no setting; with a note.
    let internal fitToBackbone (size: int) (merged: MergedConfig) : MergedConfig =
        let isPreset =
            merged.Sources |> Array.exists (fun s -> s.Name = "test-resize" && isAssumed s)

        match merged.Settings.TestResize, merged.Settings.ImageSize with
        | Some resize, None when isPreset && size <> publishedSize ->
            let settings, notes = resized resize publishedSize size merged.Settings

            { complete "" settings merged with
                Notes = Array.append merged.Notes (Array.ofList notes)
            }
        | _ -> merged

    // ------------------------------------------------------------------------------------------ checks against the data

    /// Rejects data whose number of classes differs from the configuration.
    let internal checkClasses (expected: Expectations) (classes: int) =
        match expected.Classes with
        | Some wanted when wanted <> classes ->
            Errors.reject
                expected.File
                $"its tasks need data of {wanted} classes"
                $"{classes}"
                "use the whole data set, or change the numbers of classes and tasks in the file"
        | _ -> ()

    /// A note on an input range that is neither given nor stated by the weights. Their metadata `input` may state in
    /// words what the network was trained on.
    let internal assumed
        (merged: MergedConfig)
        (card: WeightsCard)
        (metadata: Map<string, string>)
        : string list =
        let says =
            match Map.tryFind "input" metadata with
            | Some input -> $"""the weights file states '{Text.cut "..." 80 input}'"""
            | None -> "most timm weights expect -1,1"

        merged.Sources
        |> Array.tryFind (fun s -> s.Name = "input-range" && isAssumed s && card.InputRange.IsNone)
        |> Option.map (fun s -> $"input-range {s.Value} is a default; {says}")
        |> Option.toList

    /// One sentence on all settings that contradict what the weights state about their training, with the flags that
    /// would follow the weights; None where there are none. What settings leave open contradicts nothing.
    let internal contradiction (settings: RunSettings) (card: WeightsCard) : string option =
        // the setting's text now, and as the weights have it
        let shown name change =
            let setting = Settings.all |> List.find (fun s -> s.Name = name)

            setting.Get settings
            |> Option.map (fun now -> name, now, (setting.Get(change settings)).Value)

        let differing (close: 'T -> bool) name (stated: Stated<'T> option) change =
            match stated with
            | Some stated when not (close stated.Value) -> shown name (change stated.Value)
            | _ -> None

        // means and deviations in decimals give a range a rounding away from the one meant
        let near (a: float) (b: float) = abs (a - b) <= 1e-3 * (1.0 + abs b)

        let isRange (range: struct (float * float)[]) =
            let struct (low, high) = settings.InputRange
            range |> Array.forall (fun (struct (l, h)) -> near low l && near high h)

        let found =
            [
                differing isRange "input-range" card.InputRange (fun _ s ->
                    { s with
                        InputRange = (WeightsCard.range card).Value
                    })
                differing
                    (fun size -> settings.ImageSize = Some size)
                    "image-size"
                    card.ImageSize
                    (fun size s -> { s with ImageSize = Some size })
                differing
                    (fun heads -> settings.Heads = Some heads)
                    "attention-heads"
                    card.Heads
                    (fun heads s -> { s with Heads = Some heads })
                differing ((=) settings.NormEpsilon) "norm-epsilon" card.NormEpsilon (fun epsilon s ->
                    { s with NormEpsilon = epsilon })
            ]
            |> List.choose id

        let differences =
            found
            |> List.map (fun (name, now, stated) -> $"{name} {now} differs from {stated}")
            |> String.concat ", and "

        let flags =
            found
            |> List.map (fun (name, _, stated) -> $"--{name} {stated}")
            |> String.concat " "

        let follows =
            match found, card.InputRange with
            | ("input-range", _, _) :: _, Some stated when stated.Value.Length > 1 ->
                "is the closest single range; the weights have one per channel"
            | [ _ ], _ -> "follows the weights"
            | _ -> "follow the weights"

        if found.IsEmpty then
            None
        else
            Some $"{differences}, which the weights were trained with; {flags} {follows}"

    /// Notes where the configuration differs from the backbone, whose own numbers are used.
    let internal backboneNotes (expected: Expectations) (width: int) (heads: int) : string list =
        [
            for what, wanted, found in [ "width", expected.Width, width; "heads", expected.Heads, heads ] do
                match wanted with
                | Some wanted when wanted <> found ->
                    $"{expected.File} gives {what} {wanted}; the backbone's {found} is used"
                | _ -> ()
        ]

    /// The number of classes in each task, for a total number of classes. Rejects as `TaskStream.split`.
    let internal taskSizesOf (merged: MergedConfig) (classes: int) : int[] =
        let struct (tasks, initial) = merged.Settings.Split

        TaskStream.split tasks initial (Array.init classes id)
        |> Array.map _.Classes.Length

    /// The number of classes in each task, where the number of classes is known without the data. Rejects tasks that
    /// leave one without classes, and a published number of classes that is not the file's.
    let internal taskSizes (merged: MergedConfig) : int[] option =
        let published =
            Datasets.known
            |> List.tryFind (fun known -> known.Name = merged.Settings.Data)
            |> Option.bind _.Classes

        Option.iter (checkClasses merged.Expected) published

        published
        |> Option.orElse merged.Expected.Classes
        |> Option.map (taskSizesOf merged)

    /// `sources.json`: every setting with its text and source, and the notes.
    let internal toJson (merged: MergedConfig) : JsonNode =
        Json.ofRecord (
            {
                Settings = merged.Sources
                Notes = merged.Notes
            }
            : SourcesFile
        )
