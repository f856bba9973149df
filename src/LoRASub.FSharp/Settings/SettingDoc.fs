namespace LoRASub.Settings


/// Help and documentation of settings, from their rows and the presets.
[<RequireQualifiedAccess>]
module internal SettingDoc =

    let private quick = Preset.quick Variant.Official

    /// "a, b or c".
    let private oneOf (items: string list) =
        match List.rev items with
        | last :: (_ :: _ as others) -> String.concat " or " [ String.concat ", " (List.rev others); last ]
        | _ -> String.concat "" items

    // ------------------------------------------------------------------------------------------ help

    /// The flag without its dashes and value: the name, or no-NAME for a switch that is on by default.
    let private flagName (s: Setting) =
        if s.Kind = SettingKind.Switch && s.Get quick = Some "true" then
            "no-" + s.Name
        else
            s.Name

    /// What a message or the help shows for the value of the flag, such as N or FILE; empty for a switch.
    let placeholder (kind: SettingKind) : string =
        match kind with
        | SettingKind.Whole _ -> "N"
        | SettingKind.Number _ -> "X"
        | SettingKind.Pair _ -> "X,Y"
        | SettingKind.Choice _ -> "KIND"
        | SettingKind.Switch -> ""
        | SettingKind.Name -> "NAME"
        | SettingKind.File -> "FILE"
        | SettingKind.Folder
        | SettingKind.Folders -> "DIR"
        | SettingKind.Names -> "NAMES"

    /// The flag as help shows it: "--rank N", "--no-projection".
    let flag (s: Setting) : string =
        $"--{flagName s} {placeholder s.Kind}".TrimEnd()

    /// One line of help about the flag, with the default of the command line.
    let usage (s: Setting) : string =
        let byDefault =
            match s.Get quick, s.Get(Preset.cifar100 Variant.Official) with
            | _ when s.Kind = SettingKind.Switch -> ""
            | Some usual, Some cifar when cifar <> usual && s.Name <> "data" ->
                $" (default {usual}; cifar100: {cifar})"
            | Some usual, _ -> $" (default {usual})"
            | None, _ when s.Otherwise <> "" -> $" (default: {s.Otherwise})"
            | None, _ -> ""

        let what =
            match s.Kind with
            | SettingKind.Switch when flagName s <> s.Name -> "do not " + s.Doc
            // the command that it names lists them
            | SettingKind.Choice _ when s.Doc.StartsWith "see " -> s.Doc
            | SettingKind.Choice cases -> $"{s.Doc}: {oneOf cases}"
            | SettingKind.Pair(names, _) -> $"{s.Doc}: {names}"
            | _ -> s.Doc

        what + byDefault

    // ------------------------------------------------------------------------------------------ documentation

    let private code text = $"`{text}`"

    let private typeOf (kind: SettingKind) =
        match kind with
        | SettingKind.Whole(1L, 1_000_000L) -> "integer, at least 1"
        | SettingKind.Whole(_, System.Int64.MaxValue) -> "integer"
        | SettingKind.Whole(least, most) -> $"integer, {least} to {most}"
        | SettingKind.Number range -> $"number, {range}"
        | SettingKind.Pair(names, rule) -> $"{names}{rule}"
        | SettingKind.Choice cases -> oneOf (List.map code cases)
        | SettingKind.Switch -> "true or false"
        | SettingKind.Name -> "text"
        | SettingKind.File -> "file"
        | SettingKind.Folder -> "folder"
        | SettingKind.Folders -> "folders, separated by commas"
        | SettingKind.Names -> "names, separated by commas"

    /// The default of the command line, then those of published protocols that differ.
    let private defaults (s: Setting) =
        let shown (preset: Variant -> RunSettings) =
            match s.Get(preset Variant.LibContinual), s.Get(preset Variant.Official) with
            | Some one, Some other when one = other -> code one
            // this setting chooses between the columns itself
            | Some _, Some other when s.Name = "variant" -> code other
            | Some one, Some other -> $"libcontinual {code one}, official {code other}"
            | _ -> s.Otherwise

        let usual = shown (snd Preset.all.Head)

        usual
        :: [
            for name, preset in Preset.all.Tail do
                let text = shown preset

                // the name of the data set says which preset applies
                if text <> usual && text <> code name then
                    $"{name} {text}"
        ]
        |> List.filter (fun text -> text <> "")
        |> String.concat "; "

    let private line (s: Setting) =
        let note =
            if s.FreeOnResume then
                "; may change with `--resume`"
            else
                ""

        $"| {code s.Name} | {typeOf s.Kind} | {defaults s} | {s.Doc}{note} |"

    /// The section of docs/configuration.md about settings: a table for each group, in Markdown.
    let table () : string =
        Settings.all
        |> List.groupBy _.Group
        |> List.map (fun (group, settings) ->
            [
                $"### {group}"
                ""
                "| name | type | default | meaning |"
                "|---|---|---|---|"
                yield! List.map line settings
                ""
            ]
            |> String.concat "\n")
        |> String.concat "\n"
