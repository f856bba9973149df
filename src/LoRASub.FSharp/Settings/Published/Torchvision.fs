namespace LoRASub.Settings

open LoRASub.Core
open LoRASub.Settings.ConfigSection

/// Lists of torchvision's transforms in LibContinual's files.
[<RequireQualifiedAccess>]
module internal Torchvision =

    let private transforms =
        [
            "RandomResizedCrop", [ "size"; "scale"; "ratio" ]
            "RandomHorizontalFlip", [ "p" ]
            "Resize", [ "size" ]
            "CenterCrop", [ "size" ]
            "ToTensor", []
            "Normalize", [ "mean"; "std" ]
        ]

    /// The steps of train_trfms or test_trfms.
    let private steps (root: Section) (name: string) : (Found * (string * Section) list) option =
        root.Find name
        |> Option.map (fun found ->
            let step (node: ConfigNode) =
                match node.Value with
                | Entries [| kind, arguments |] ->
                    let here =
                        {
                            File = root.File
                            Prefix = $"{name}."
                            Entries = [| kind, arguments |]
                        }

                    only (List.map fst transforms) here
                    let arguments = here.Section kind
                    let known = List.find (fst >> (=) kind) transforms |> snd

                    if known.IsEmpty then
                        for argument in arguments.Names do
                            (arguments.Find argument).Value.Refuse $"{kind} takes no argument" ""
                    else
                        only known arguments

                    mustBe "0.5" ", as flips are even" (arguments.Find "p")
                    kind, arguments
                | _ -> found.Refuse "each step must be a mapping of one name to its arguments" ""

            match found.Value with
            | Items items -> found, items |> Array.map step |> List.ofArray
            | Nothing -> found, []
            | _ -> found.Refuse "must be a list of steps" "")

    /// The side of a square, and its place.
    let private side (arguments: Section) : (string * string) option =
        arguments.Find "size"
        |> Option.map (fun found ->
            match found.Value with
            | Items _ ->
                match found.Items |> Array.distinctBy _.Text with
                | [| one |] -> string one.Count, found.Source
                | _ -> found.Refuse "must be square" ""
            | _ -> string found.Count, found.Source)

    /// The values of black and white after Normalize.
    let private inputRange (arguments: Section) : string * string =
        let one name (fallback: float) =
            match arguments.Find name with
            | None -> fallback, $"{arguments.File} ({arguments.Prefix}{name})"
            | Some found ->
                let numbers = found.Items |> Array.map _.Number

                if (Array.distinct numbers).Length > 1 then
                    Errors.reject
                        found.Source
                        "must be the same for every channel: only one black and one white level (input-range) is supported"
                        (ConfigTree.shortened (listed (Array.map string numbers)))
                        "write one number three times"

                numbers[0], found.Source

        let mean, source = one "mean" 0.0
        let deviation, place = one "std" 1.0

        if not (deviation > 0.0) then
            Errors.reject place "must be above 0" (string deviation) ""

        $"{string ((0.0 - mean) / deviation)},{string ((1.0 - mean) / deviation)}", source

    /// The setting on which several values agree. Rejects one that differs from the first.
    let private agreed setting rule why (values: (string * string) list) : SettingSource list =
        match values with
        | [] -> []
        | (value, source) :: others ->
            for other, place in others do
                if other <> value then
                    Errors.reject place (rule value source) $"'{other}'" why

            [ says setting value source ]

    /// The settings of both lists of transforms and image_size, over a preset.
    let settings (preset: RunSettings) (root: Section) : SettingSource list =
        let train, test = steps root "train_trfms", steps root "test_trfms"

        let geometric (all: (string * Section) list) =
            all |> List.filter (fun (kind, _) -> kind <> "ToTensor" && kind <> "Normalize")

        let refuse (found: Found) rule (all: (string * Section) list) : 'T =
            let names = all |> List.map fst |> listed |> ConfigTree.shortened
            Errors.reject found.Source rule (if all.IsEmpty then "none" else names) ""

        // each with the transforms whose size must be the network's
        let augment, sizedInTraining =
            match train with
            | None -> [], []
            | Some(found, all) ->
                let say text = says "augment" text found.Source

                match geometric all with
                | [ "RandomResizedCrop", crop; "RandomHorizontalFlip", _ ] ->
                    let range setting name =
                        assignPair (fun low high -> [ setting, $"{low},{high}" ]) (crop.Find name)

                    say "crop-flip" :: range "crop-scale" "scale" @ range "crop-ratio" "ratio", [ crop ]
                | [ "Resize", resize; "RandomHorizontalFlip", _ ]
                | [ "RandomHorizontalFlip", _; "Resize", resize ] -> [ say "flip" ], [ resize ]
                | [ "RandomHorizontalFlip", _ ] -> [ say "flip" ], []
                | [ "Resize", resize ] -> [ say "none" ], [ resize ]
                | [] -> [ say "none" ], []
                | other ->
                    refuse
                        found
                        "must be RandomResizedCrop and RandomHorizontalFlip, Resize and RandomHorizontalFlip, or Resize, then ToTensor and Normalize"
                        other

        let testResize, sizedInTest =
            match test with
            | None -> [], []
            | Some(found, all) ->
                match geometric all with
                | [] -> [], []
                // takes the place of a preset's larger one
                | [ "Resize", resize ] when preset.TestResize.IsSome ->
                    assign "test-resize" (resize.Find "size"), [ resize ]
                | [ "Resize", resize ] -> [], [ resize ]
                | [ "Resize", resize; "CenterCrop", crop ] ->
                    assign "test-resize" (resize.Find "size"), [ crop ]
                | other ->
                    refuse found "must be Resize, or Resize and CenterCrop, then ToTensor and Normalize" other

        let imageSize =
            (root.Find "image_size" |> Option.map (fun f -> string f.Count, f.Source))
            :: List.map side (sizedInTraining @ sizedInTest)
            |> List.choose id
            |> agreed
                "image-size"
                (fun size source -> $"must be {size}, the size of {source}")
                "the network has one size of images"

        let range =
            [ train; test ]
            |> List.choose id
            |> List.collect snd
            |> List.filter (fst >> (=) "Normalize")
            |> List.map (snd >> inputRange)
            |> agreed
                "input-range"
                (fun range source -> $"must give the range of {source}, {range}")
                "training and test images share one range"

        augment @ testResize @ imageSize @ range
